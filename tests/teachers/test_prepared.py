"""Maps on disk: what comes back, and what is refused."""

import pytest
import torch

from heads.views import cameras_around
from splatlearn.encoders.base import FeatureMaps
from splatlearn.errors import BadData, UserError
from splatlearn.structures import Frames, Images
from splatlearn.teachers.base import Teacher, create_teacher
from splatlearn.teachers.prepared import FACTS, PreparedMaps

SIZE = (42, 28)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return create_teacher("timm.tiny")


@pytest.fixture
def maps(teacher, tmp_path) -> PreparedMaps:
    """Three views of one scene."""
    maps = PreparedMaps.of(teacher, SIZE, tmp_path / "maps")
    maps.begin()
    for view in range(3):
        maps.write("a/scene", view, teacher(pictures().rows(torch.tensor([view]))), frame=10 * view)
    return PreparedMaps.read(tmp_path / "maps")


def pictures() -> Frames:
    generator = torch.Generator().manual_seed(0)
    cameras = cameras_around((3,), *SIZE).with_attributes(frame=torch.tensor([0, 10, 20]))
    return Frames(images=torch.rand(3, 3, SIZE[1], SIZE[0], generator=generator), cameras=cameras)


def test_what_comes_back_is_what_the_teacher_says(maps, teacher):
    maps.check(teacher, SIZE)
    frames, views = pictures().rows(torch.tensor([0, 2])), [0, 2]
    attached = maps.attach(frames, "a/scene", views)
    assert attached["maps/timm.tiny"].shape == (2, 32, 2, 3) and attached["maps/timm.tiny"].dtype == torch.float16
    direct, read = teacher(frames), teacher(attached)
    assert torch.allclose(read.levels[0], direct.levels[0], atol=2e-3)
    assert torch.allclose(read.summary, direct.summary, atol=2e-3)
    assert not torch.equal(read.summary, read.levels[0].mean((2, 3)))
    packed = Frames.pack([attached, attached])
    assert teacher(packed).levels[0].shape == (4, 32, 2, 3)


def test_no_views(maps):
    assert maps.attach(pictures().rows(torch.tensor([], dtype=torch.int64)), "a/scene", [])["maps/timm.tiny"].shape == (
        0,
        32,
        2,
        3,
    )


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"seed": 1}, SIZE, r"teacher\.digest: .*teacher\.options\.seed: 0 -> 1"),
        ({"norm": False}, SIZE, r"teacher\.options\.norm: True -> False"),
        ({"layers": (0,)}, SIZE, r"teacher\.options\.layers: \[-1\] -> \[0\]"),
        ({}, (28, 28), r"size: \[42, 28\] -> \[28, 28\]"),
    ],
)
def test_another_teacher_or_size(maps, options, size, message):
    other = create_teacher("timm.tiny", options)
    with pytest.raises(UserError, match=message):
        maps.check(other, size)
    with pytest.raises(UserError, match=rf"holds other maps .*{message}"):
        PreparedMaps.of(other, size, maps.folder).begin()


def test_images_of_another_size(maps):
    with pytest.raises(UserError, match=r"prepared for images of \(42, 28\), got \(20, 10\)"):
        maps.attach(Images(images=torch.zeros(1, 3, 10, 20)), "a/scene", [0])


def test_other_frames_under_the_same_numbers(maps):
    with pytest.raises(BadData, match=r"were frames \[10, 20\] when they were prepared, and are \[0, 10\]"):
        maps.attach(pictures().rows(torch.tensor([0, 1])), "a/scene", [1, 2])


def test_missing_and_damaged_files(maps):
    path = maps.path("a/scene", 1)
    path.write_bytes(path.read_bytes()[:50])
    for view in (1, 7):
        with pytest.raises(BadData, match=rf"no map of view {view} of a/scene .*splatlearn prepare"):
            maps.attach(pictures().rows(torch.tensor([0])), "a/scene", [view])
    (maps.folder / FACTS).write_text("{")
    with pytest.raises(BadData, match=r"no prepared maps, maps\.json cannot be read"):
        PreparedMaps.read(maps.folder)


def test_features_that_float16_cannot_hold(maps):
    too_large = FeatureMaps(levels=(torch.full((1, 32, 2, 3), 1e6),), summary=torch.zeros(1, 32))
    with pytest.raises(UserError, match="not finite in float16"):
        maps.write("other", 0, too_large, 0)
    assert not maps.path("other", 0).exists()


def test_several_levels(tmp_path):
    with pytest.raises(UserError, match="one level is prepared, and it gives 2"):
        PreparedMaps.of(create_teacher("timm.tiny", {"layers": (0, 1)}), SIZE, tmp_path)
