"""Packed rows: counts, attributes, packing, splitting, regrouping."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splatlearn.errors import MissingAttribute, UserError
from splatlearn.structures import Batch, Cameras, Frames, Images, Packed, Points


def cloud(counts: tuple[int, ...], **attributes: torch.Tensor) -> Points:
    return Points(xyz=torch.randn(sum(counts), 3), counts=counts, attributes=attributes)


def frames(counts: tuple[int, ...] = (1,), size: tuple[int, int] = (4, 3)) -> Frames:
    views, (width, height) = sum(counts), size
    intrinsics = torch.tensor([[5.0, 0, width / 2], [0, 5.0, height / 2], [0, 0, 1]]).expand(views, 3, 3)
    cameras = Cameras(
        world_to_camera=torch.eye(4).expand(views, 4, 4),
        intrinsics=intrinsics,
        width=width,
        height=height,
        counts=counts,
    )
    return Frames(images=torch.rand(views, 3, height, width), cameras=cameras, counts=counts)


class TestPacked:
    def test_rows_without_counts_are_one_item(self):
        assert Points(xyz=torch.zeros(5, 3)).counts == (5,)
        assert Points(xyz=torch.zeros(0, 3)).counts == (0,)

    def test_counts_must_add_up(self):
        with pytest.raises(UserError, match=r"Points: counts add up to 4 rows, but xyz has 5"):
            Points(xyz=torch.zeros(5, 3), counts=(2, 2))

    def test_attributes_are_row_aligned(self):
        with pytest.raises(UserError, match="label has 4"):
            cloud((5,), label=torch.zeros(4))

    def test_missing_attribute_names_what_is_there(self):
        with pytest.raises(MissingAttribute, match="Points has no attribute 'normal'; it has: color, label"):
            cloud((2,), color=torch.zeros(2, 3), label=torch.zeros(2))["normal"]

    def test_item_and_offsets(self):
        points = cloud((2, 0, 3))
        assert points.offsets == (0, 2, 2, 5)
        assert points.item.tolist() == [0, 0, 2, 2, 2]

    @given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    def test_split_and_pack_are_inverse(self, counts):
        points = cloud(tuple(counts), label=torch.arange(sum(counts)))
        again = Points.pack(points.split())
        assert again.counts == points.counts
        assert torch.equal(again.xyz, points.xyz)
        assert torch.equal(again["label"], points["label"])

    def test_rows_selects_in_every_field(self):
        points = cloud((3, 2), label=torch.arange(5))
        chosen = points.rows(torch.tensor([2, 0, 4]))
        assert chosen.counts == (2, 1)
        assert chosen["label"].tolist() == [2, 0, 4]
        masked = points.rows(torch.tensor([False, True, False, True, True]))
        assert masked.counts == (1, 2)

    def test_rows_refuses_to_mix_items(self):
        with pytest.raises(UserError, match="mixes rows of different items"):
            cloud((3, 2)).rows(torch.tensor([4, 0]))

    def test_pack_refuses_different_attributes(self):
        with pytest.raises(UserError, match=r"same attributes; one has \['color'\], another \[\]"):
            Points.pack([cloud((2,), color=torch.zeros(2, 3)), cloud((2,))])

    def test_pack_refuses_different_sizes(self):
        with pytest.raises(UserError, match="width is shared by a batch; got 4 and 8"):
            Cameras.pack([frames().cameras, frames(size=(8, 3)).cameras])

    def test_pack_refuses_different_row_shapes(self):
        with pytest.raises(UserError, match="images has rows of shape"):
            Images.pack([Images(images=torch.zeros(1, 3, 2, 2)), Images(images=torch.zeros(1, 3, 2, 4))])

    def test_pack_refuses_attributes_of_different_row_shapes(self):
        with pytest.raises(UserError, match=r"Points.pack: color has rows of shape \(3,\) in one item and \(4,\)"):
            Points.pack([cloud((2,), color=torch.zeros(2, 3)), cloud((2,), color=torch.zeros(2, 4))])

    def test_no_attribute_is_named_like_a_field(self):
        with pytest.raises(UserError, match="Points: no attribute can be called counts, xyz: a field is"):
            Points(xyz=torch.zeros(2, 3), attributes={"xyz": torch.zeros(2, 3), "counts": torch.zeros(2)})

    def test_pack_of_nothing(self):
        with pytest.raises(UserError, match="nothing to pack"):
            Points.pack([])

    def test_nested_structures_follow(self):
        both = Frames.pack([frames(), frames()])
        assert both.counts == both.cameras.counts == (1, 1)
        pair = both.regroup((2,))
        assert pair.cameras.counts == (2,)
        assert pair.images.data_ptr() == both.images.data_ptr()

    def test_join_makes_consecutive_items_one(self):
        points = cloud((3, 4, 5))
        assert points.join((2, 1)).counts == (7, 5)
        assert points.join((0, 3)).counts == (0, 12)
        with pytest.raises(UserError, match=r"Points\.join: 3 items cannot be 2"):
            points.join((1, 1))

    def test_a_packed_is_picklable(self):
        assert isinstance(pickle.loads(pickle.dumps(frames())), Packed)


class TestBatch:
    def test_packs_field_by_field(self):
        from dataclasses import dataclass

        @dataclass(frozen=True, kw_only=True, eq=False)
        class Pair(Batch):
            left: Points
            right: Points

        one = Pair(names=("a",), left=cloud((2,)), right=cloud((3,)))
        two = Pair.pack([one, one])
        assert two.names == ("a", "a")
        assert (two.left.counts, two.right.counts) == ((2, 2), (3, 3))
        assert two.to("cpu").left.counts == (2, 2)
