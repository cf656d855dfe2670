"""Splits, groups of views, overlap, crops."""

import numpy as np
import pytest
import torch

from data.recording_maker import SIZE, write_seven_scenes
from splatlearn.data.rgbd import RgbdConfig, RgbdReader
from splatlearn.data.sampling import (
    ScenePart,
    crop_nearest,
    draw_views,
    overlap,
    pairs,
    split_scenes,
)
from splatlearn.data.scene import Rejected, Scene
from splatlearn.errors import BadData, MissingData
from splatlearn.structures import Boxes, Cameras, Points


class Fake(Scene):
    """A scene that is a name, and a cloud on a line."""

    def __init__(self, name: str, split: str = "", drive: str = "") -> None:
        self.name, self.split, self.drive = name, split, drive

    def points(self) -> Points:
        xyz = torch.zeros(100, 3)
        xyz[:, 1] = torch.arange(100)
        return Points(xyz=xyz, attributes={"label": torch.arange(100)})

    def boxes(self) -> Boxes:
        centers = torch.tensor([[0.0, 10, 0], [0, 90, 0]])
        return Boxes(centers=centers, sizes=torch.ones(2, 3), yaws=torch.zeros(2))


def cameras(frame: list[int]) -> Cameras:
    count = len(frame)
    return Cameras(
        world_to_camera=torch.eye(4).expand(count, 4, 4),
        intrinsics=torch.eye(3).expand(count, 3, 3),
        width=4,
        height=3,
        attributes={"frame": torch.tensor(frame)},
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    write_seven_scenes(folder, frames=20)
    return RgbdReader(RgbdConfig(up="known"), folder).scenes()[0]


class TestSplit:
    def test_scenes_by_seed(self):
        scenes = [Fake(str(i)) for i in range(20)]
        train, val = (split_scenes(scenes, part, seed=3) for part in ("train", "val"))
        assert len(val) == 4 and not set(train) & set(val) and set(train) | set(val) == set(scenes)
        assert val == split_scenes(scenes, "val", seed=3) != split_scenes(scenes, "val", seed=4)

    def test_split_of_the_source(self):
        scenes = [Fake("a", "train"), Fake("b", "val"), Fake("c", "test")]
        assert [s.name for s in split_scenes(scenes, "train")] == ["a"]
        assert [s.name for s in split_scenes(scenes, "val")] == ["b"]
        assert [s.name for s in split_scenes([scenes[0], scenes[2]], "val")] == ["c"]

    def test_scenes_of_a_drive_stay_together(self):
        scenes = [Fake(f"{drive}/{i}", drive=drive) for drive in "abcd" for i in range(5)]
        train, val = (split_scenes(scenes, part) for part in ("train", "val"))
        assert len(val) == 5 and len({scene.drive for scene in val}) == 1
        assert {scene.drive for scene in train} | {scene.drive for scene in val} == set("abcd")

    def test_the_end_of_a_single_drive(self):
        scenes = [Fake(str(i), "train", drive="a") for i in range(10)]
        assert split_scenes(scenes, "train") == scenes[:8] and split_scenes(scenes, "val") == scenes[8:]

    def test_last_fifth_of_the_views(self, recording):
        train, val = (split_scenes([recording], part)[0] for part in ("train", "val"))
        assert train.cameras["frame"].tolist() == list(range(16))
        assert val.cameras["frame"].tolist() == list(range(16, 20))
        assert torch.equal(val.frames([1], SIZE).images, recording.frames([17], SIZE).images)
        assert torch.equal(val.images([0])[0], recording.images([16])[0])
        assert (val.name, val.up) == (recording.name, recording.up)

    def test_last_fifth_of_the_floor(self):
        train, val = (ScenePart(Fake("a"), part) for part in ("train", "val"))
        assert train.points()["label"].tolist() == list(range(80))
        assert val.points()["label"].tolist() == list(range(80, 100))
        assert len(train.boxes()) == len(val.boxes()) == 1
        assert len(train.cameras) == 0

    @pytest.mark.parametrize("stated", ["", "train"])
    def test_too_few_images(self, stated, recording):
        class Image(Scene):
            def __init__(self, name: str) -> None:
                self.name, self.split = name, stated

        images = [Image(str(number)) for number in range(5)]
        for part in ("train", "val"):
            with pytest.raises(BadData, match=r"3 images cannot be split for validation; 5 are needed.*the first is 0"):
                split_scenes(images[:3], part)
            with pytest.raises(BadData, match="1 images cannot be split"):
                split_scenes([recording, images[0]], part)
        assert [len(split_scenes(images, part)) for part in ("train", "val")] == [4, 1]

    def test_too_few_views(self, recording):
        """A part without views, and without a cloud, would only fail later."""

        class Few(Scene):
            name, cameras = "few", cameras([0, 1])

        with pytest.raises(BadData, match="cannot be split"):
            split_scenes([Few()], "val")

    def test_unknown_split(self):
        with pytest.raises(BadData, match="train or val expected, got 'validation'"):
            split_scenes([Fake("a")], "validation")


class TestPairs:
    def test_exact_gap(self):
        found = pairs(cameras(list(range(8))), 5)
        assert found.tolist() == [[0, 5], [1, 6], [2, 7]]

    def test_triples(self):
        assert pairs(cameras(list(range(5))), 2, 3).tolist() == [[0, 2, 4]]

    def test_stride_takes_the_nearest_gap(self):
        frames = list(range(0, 100, 20))
        assert pairs(cameras(frames), 5).tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
        assert pairs(cameras(list(range(0, 20, 2))), 5)[0].tolist() == [0, 2], "4 and 6 are equally near"

    def test_a_dropped_frame(self):
        found = pairs(cameras([0, 1, 2, 3, 4, 6, 7, 8]), 5).tolist()
        assert [0, 4] in found and [1, 5] in found

    def test_a_hole_is_not_bridged(self):
        found = pairs(cameras([0, 1, 2, 3, 500, 501, 502, 503]), 2).tolist()
        assert found == [[0, 2], [1, 3], [2, 3], [4, 6], [5, 7]], "2 to 3 stands in for 2 to 4"

    def test_unsorted_rows(self):
        assert pairs(cameras([3, 0, 1, 2]), 3).tolist() == [[1, 0]]

    @pytest.mark.parametrize("frames", [[0], [0, 1, 2]])
    def test_none(self, frames):
        with pytest.raises(BadData, match="no 2 views about 50 raw frames apart"):
            pairs(cameras(frames), 50)


class TestDraw:
    def test_views_and_one_in_between(self, recording):
        rng = np.random.default_rng(0)
        for views in (2, 3):
            drawn = draw_views(recording, views=views, gap=5, size=SIZE, rng=rng)
            frame = drawn.frames.cameras["frame"].tolist()
            assert drawn.inputs == views and len(frame) == views + 1
            assert np.diff(frame[:views]).tolist() == [5] * (views - 1)
            assert frame[0] < frame[-1] < frame[views - 1] and frame[-1] not in frame[:views]
            assert drawn.name == f"{recording.name}:{'+'.join(map(str, frame))}"

    def test_same_generator_same_views(self, recording):
        first, second = (
            draw_views(recording, views=2, gap=5, size=SIZE, rng=np.random.default_rng(7)) for _ in range(2)
        )
        assert first.name == second.name and torch.equal(first.frames.images, second.frames.images)

    def test_nothing_in_between(self, recording):
        rng = np.random.default_rng(0)
        assert len(draw_views(recording, views=2, gap=1, size=SIZE, rng=rng).frames) == 2
        drawn = draw_views(recording, views=2, gap=5, size=SIZE, rng=rng, in_between=False)
        assert len(drawn.frames) == 2

    def test_parts_share_no_frame(self, recording):
        rng = np.random.default_rng(0)
        for part, allowed in (("train", range(16)), ("val", range(16, 20))):
            scene = ScenePart(recording, part)
            for _ in range(10):
                drawn = draw_views(scene, views=2, gap=3, size=(16, 12), rng=rng)
                assert set(drawn.frames.cameras["frame"].tolist()) <= set(allowed)

    def test_too_little_overlap_is_rejected(self, recording):
        rng = np.random.default_rng(0)
        with pytest.raises(Rejected, match=r"too little overlap \(.*%, at least 99% expected\)"):
            draw_views(recording, views=2, gap=15, size=SIZE, rng=rng, min_overlap=0.99)

    def test_messages(self, recording):
        rng = np.random.default_rng(0)
        with pytest.raises(BadData, match=f"{recording.name}: no 2 views about 99 raw frames apart among 20"):
            draw_views(recording, views=2, gap=99, size=SIZE, rng=rng)
        with pytest.raises(MissingData, match="a has no posed frames"):
            draw_views(Fake("a"), views=2, gap=5, size=SIZE, rng=rng)


class TestKitchen:
    """The real recording: the last fifth of the frames is kept out."""

    def test_split_and_draw(self, shared_data):
        scenes = RgbdReader(RgbdConfig(), shared_data / "rgbd_7scenes_redkitchen").scenes()
        train, val = (split_scenes(scenes, part)[0] for part in ("train", "val"))
        assert val.cameras["frame"].tolist() == list(range(152, 190))
        assert (len(pairs(train.cameras, 5)), len(pairs(val.cameras, 5))) == (147, 33)
        rng = np.random.default_rng(0)
        drawn = draw_views(val, views=2, gap=5, size=(160, 120), rng=rng, min_overlap=0.5)
        assert len(drawn.frames) == 3 and overlap(drawn.frames, 0, 1) > 0.8


class TestOverlap:
    def test_same_view_and_turned_away(self, recording):
        frames = recording.frames([0, 0], SIZE)
        assert overlap(frames, 0, 1) == 1.0
        back = torch.diag(torch.tensor([-1.0, 1, -1, 1]))
        frames.cameras.world_to_camera[1] = back @ frames.cameras.world_to_camera[1]
        assert overlap(frames, 0, 1) == 0.0

    def test_falls_with_the_gap(self, recording):
        frames = recording.frames([0, 5, 19], SIZE)
        near, far = overlap(frames, 0, 1), overlap(frames, 0, 2)
        assert 1 > near > far > 0.2

    def test_depth_must_agree(self, recording):
        frames = recording.frames([0, 0], SIZE)
        frames["depth"][1] += 0.2
        assert overlap(frames, 0, 1) == 0.0

    def test_holes_tell_nothing(self, recording):
        frames = recording.frames([0, 0], SIZE)
        frames["depth"][1, :30] = 0
        assert overlap(frames, 0, 1) == 1.0
        frames["depth"][0] = 0
        assert overlap(frames, 0, 1) == 0.0


class TestCrops:
    @pytest.fixture
    def cloud(self):
        xyz = torch.from_numpy(np.random.default_rng(0).uniform(0, 4, (500, 3)).astype(np.float32))
        return Points(xyz=xyz, attributes={"label": torch.arange(500)})

    def test_nearest(self, cloud):
        part = crop_nearest(cloud, 60, np.random.default_rng(1))
        centre = cloud.xyz[int(np.random.default_rng(1).integers(500))]
        outside = cloud.rows(~torch.isin(cloud["label"], part["label"]))
        radius = (part.xyz - centre).norm(dim=1).max()
        assert len(part) == 60 and radius <= (outside.xyz - centre).norm(dim=1).min()
        assert (part["label"].diff() > 0).all()
        assert crop_nearest(cloud, 500, np.random.default_rng(1)) is cloud
