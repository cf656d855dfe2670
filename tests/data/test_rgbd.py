"""Posed RGB-D folders: layouts, geometry, the frame filter, estimated up, messages."""

import logging
import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.recording_maker import (
    FOCAL,
    ROOM,
    SIZE,
    matrix,
    render_room,
    tilted_world,
    write_depth,
    write_scannet,
    write_seven_scenes,
    write_tum,
)
from splatlearn.data.recordings import nearest_in_time
from splatlearn.data.rgbd import RgbdConfig, RgbdReader, RgbdScene
from splatlearn.data.sampling import overlap
from splatlearn.data.scene import Rejected, Source
from splatlearn.errors import BadData, ConfigError


def read(folder: Path, **options) -> RgbdScene:
    scene = RgbdReader(RgbdConfig(**{"up": "known", **options}), folder).scenes()[0]
    assert isinstance(scene, RgbdScene)
    return scene


def message(folder: Path, **options) -> str:
    with pytest.raises(BadData) as caught:
        read(folder, **options)
    return str(caught.value)


def inside_room(xyz: torch.Tensor, margin: float = 0.02) -> float:
    """Largest distance of a point from the room's surfaces, metres."""
    distance = torch.minimum(xyz.abs(), (xyz - torch.from_numpy(ROOM).float()).abs()).amin(1)
    return float(distance.max())


class TestSevenScenes:
    def test_smoke(self, tmp_path):
        truth = write_seven_scenes(tmp_path)
        scene = read(tmp_path)
        assert (scene.name, scene.up, scene.metric, scene.skipped) == (tmp_path.name, "known", "known", ())
        assert scene.cameras["frame"].tolist() == list(range(12))
        assert torch.allclose(scene.cameras.camera_to_world.double(), torch.from_numpy(truth.poses), atol=1e-6)

    def test_points_lie_on_the_room(self, tmp_path):
        write_seven_scenes(tmp_path)
        points = read(tmp_path).frames([0, 5], SIZE).to_points()
        assert points.counts == (4800, 4800)
        assert inside_room(points.xyz) < 0.002

    @pytest.mark.parametrize("size", [(40, 30), (20, 15), (64, 60), (160, 120)])
    def test_other_sizes_keep_the_geometry(self, tmp_path, size):
        write_seven_scenes(tmp_path)
        frames = read(tmp_path).frames([3], size)
        assert frames.images.shape == (1, 3, size[1], size[0])
        assert frames["depth"].shape == (1, size[1], size[0])
        # Nearest depth is off by half a native pixel at most: 1 % of the depth along slanted surfaces.
        assert inside_room(frames.to_points().xyz) < 0.06

    def test_resized_color_is_the_area_mean(self, tmp_path):
        write_seven_scenes(tmp_path)
        scene = read(tmp_path)
        full, small = scene.images([2])[0], scene.frames([2], (20, 15)).images[0]
        mean = full.reshape(3, 15, 4, 20, 4).mean((2, 4))
        assert float((small - mean).abs().max()) < 0.02

    def test_zero_depth_stays_zero_and_65535_is_none(self, tmp_path):
        write_seven_scenes(tmp_path, frames=3)
        depth = np.full((60, 80), 1500, np.uint16)
        depth[:, :40], depth[:30, 40:] = 0, 65535
        Image.fromarray(depth).save(tmp_path / "frame-000001.depth.png")
        found = read(tmp_path).frames([1], (40, 30))["depth"][0]
        assert found[:15].eq(0).all() and found[:, :20].eq(0).all()
        assert (found[15:, 20:] - 1.5).abs().max() < 1e-6

    @pytest.mark.parametrize(("dtype", "none"), [(np.uint16, True), (np.uint32, False), (np.int32, False)])
    def test_65535_is_none_in_16_bits_only(self, tmp_path, dtype, none):
        write_seven_scenes(tmp_path, frames=3)
        (tmp_path / "frame-000001.depth.png").unlink()
        depth = np.full((60, 80), 65535, dtype)
        depth[0, 0] = 60000
        np.save(tmp_path / "frame-000001.depth.npy", depth)
        found = read(tmp_path, depth_scale=1e-4).frames([1], SIZE)["depth"][0]
        assert found[0, 0] == pytest.approx(6.0) and found[1, 1] == pytest.approx(0 if none else 6.5535)

    def test_original_layout_with_sequences_and_splits(self, tmp_path):
        for name in ("seq-01", "seq-02"):
            write_seven_scenes(tmp_path / name, frames=3)
            (tmp_path / name / "camera-intrinsics.txt").unlink()
            for file in (tmp_path / name).glob("*.color.jpg"):
                Image.open(file).resize((640, 480)).save(file.with_suffix(".png"))
                file.unlink()
            for file in (tmp_path / name).glob("*.depth.png"):
                Image.open(file).resize((640, 480), Image.Resampling.NEAREST).save(file)
        (tmp_path / "TrainSplit.txt").write_text("sequence1\n")
        (tmp_path / "TestSplit.txt").write_text("sequence2\n")
        scenes = RgbdReader(RgbdConfig(up="known"), tmp_path).scenes()
        assert [(s.name, s.split) for s in scenes] == [("seq-01", "train"), ("seq-02", "val")]
        expected = torch.tensor([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]])
        assert torch.equal(scenes[0].cameras.intrinsics[0], expected)

    def test_stride_and_max_frames(self, tmp_path):
        write_seven_scenes(tmp_path)
        assert read(tmp_path, stride=3, max_frames=3).cameras["frame"].tolist() == [0, 3, 6]

    def test_float_depth_in_metres_and_nan(self, tmp_path):
        write_seven_scenes(tmp_path, frames=3)
        (tmp_path / "frame-000001.depth.png").unlink()
        depth = np.full((60, 80), 2.25, np.float32)
        depth[:30] = np.nan
        np.save(tmp_path / "frame-000001.depth.npy", depth)
        found = read(tmp_path).frames([1], SIZE)["depth"][0]
        assert found[:30].eq(0).all() and found[30:].eq(2.25).all()

    def test_travels_to_a_worker(self, tmp_path):
        write_seven_scenes(tmp_path)
        scene = read(tmp_path)
        other = pickle.loads(pickle.dumps(scene))
        assert torch.equal(other.frames([1], SIZE).images, scene.frames([1], SIZE).images)

    def test_nothing_is_written_into_the_data(self, tmp_path):
        write_seven_scenes(tmp_path)
        before = sorted(os.listdir(tmp_path))
        read(tmp_path, up="estimate").frames([0], SIZE)
        assert sorted(os.listdir(tmp_path)) == before


class TestOtherLayouts:
    def test_scannet_two_cameras(self, tmp_path):
        truth = write_scannet(tmp_path / "scene0000_00")
        scene = read(tmp_path, up="auto")
        assert (scene.name, scene.up) == ("scene0000_00", "known")
        assert (scene.cameras.width, scene.cameras.height) == (130, 97)
        assert scene.cameras["frame"].tolist() == [0, 20, 40, 60, 80, 100]
        assert scene.cameras.intrinsics[0, 0, 2] == 65.0, "the half pixel is added"
        frames = scene.frames([2], (130, 97))
        exact = render_room(truth.poses[2], matrix(115.0, (130, 97)), (130, 97))[1]
        assert frames["depth"].eq(0).float().mean() < 0.02, "both cameras see nearly the same"
        off = (frames["depth"][0].double() - torch.from_numpy(exact)).abs()[frames["depth"][0] > 0]
        assert off.median() < 0.01 and inside_room(frames.to_points().xyz) < 0.06

    def test_scannet_depth_outside_its_camera_is_none(self, tmp_path):
        write_scannet(tmp_path)
        narrow = np.eye(4)
        narrow[:3, :3] = matrix(2 * FOCAL, SIZE, center=0.5)
        np.savetxt(tmp_path / "intrinsic/intrinsic_depth.txt", narrow)
        depth = read(tmp_path).frames([0], (130, 97))["depth"][0]
        assert depth[:, :20].eq(0).all() and depth[:, -20:].eq(0).all() and depth[40:60, 55:75].gt(0).all()

    def test_tum(self, tmp_path):
        truth = write_tum(tmp_path)
        scene = read(tmp_path, up="auto", intrinsics=(FOCAL, FOCAL, 39.5, 29.5))
        assert scene.up == "known" and len(scene.cameras) == 6
        assert torch.allclose(scene.cameras.camera_to_world.double(), torch.from_numpy(truth.poses), atol=1e-6)
        assert inside_room(scene.frames([1], SIZE).to_points().xyz) < 0.002

    @pytest.mark.parametrize("name", ["rgbd_dataset_freiburg1_desk", "rgbd_dataset_freiburg3_office"])
    def test_tum_says_that_distortion_stays(self, tmp_path, name, caplog):
        write_tum(tmp_path / name)
        scene = read(tmp_path / name, intrinsics=(FOCAL, FOCAL, 39.5, 29.5))
        said = [note for note in scene.notes if "lens distortion is not removed" in note]
        assert len(said) == ("freiburg3" not in name) and all(note in caplog.text for note in said)

    @pytest.mark.parametrize("stamp", ["soon", "nan"])
    @pytest.mark.parametrize("file", ["rgb.txt", "depth.txt", "groundtruth.txt"])
    def test_tum_without_a_time(self, tmp_path, file, stamp):
        write_tum(tmp_path)
        lines = (tmp_path / file).read_text().splitlines()
        lines[2] = " ".join([stamp, *lines[2].split()[1:]])
        (tmp_path / file).write_text("\n".join(lines))
        text = message(tmp_path)
        assert f"{file}: a time stamp in seconds expected" in text and stamp in text

    def test_several_recordings_one_unusable(self, tmp_path, caplog):
        for name in ("b", "a", "c"):
            write_seven_scenes(tmp_path / name, frames=3)
        for pose in (tmp_path / "b").glob("*.pose.txt"):
            pose.unlink()
        reader = RgbdReader(RgbdConfig(up="known"), tmp_path)
        assert [s.name for s in reader.scenes()] == ["a", "c"]
        assert [s.name for s in reader.skipped] == ["b"] and "no pose" in reader.skipped[0].reason
        assert "recording b is left out" in caplog.text

    def test_folders_of_folders(self, tmp_path):
        write_seven_scenes(tmp_path / "all/redkitchen/seq-01", frames=3)
        write_scannet(tmp_path / "all/scans/scene0000_00", frames=3)
        write_seven_scenes(tmp_path / ".hidden/seq-01", frames=3)
        names = [s.name for s in RgbdReader(RgbdConfig(up="known"), tmp_path).scenes()]
        assert names == ["all/redkitchen/seq-01", "all/scans/scene0000_00"]
        only = RgbdReader(RgbdConfig(up="known", layout="scannet"), tmp_path).scenes()
        assert [s.name for s in only] == ["all/scans/scene0000_00"]

    def test_found_by_source(self, tmp_path):
        write_seven_scenes(tmp_path / "kitchen", frames=3)
        assert RgbdReader.accepts(tmp_path) and not RgbdReader.accepts(tmp_path / "kitchen" / "nothing")
        source = Source(name=str(tmp_path), options={"reader": "rgbd", "up": "0,0,1"})
        assert source.scenes()[0].name == "kitchen"


class TestNearestInTime:
    def test_equals_the_table_of_all_gaps(self):
        rng = np.random.default_rng(0)
        times, candidates = rng.uniform(0, 10, 300), rng.uniform(1, 9, 200)
        gaps = np.abs(times[:, None] - candidates[None])
        expected = np.where(gaps.min(1) <= 0.02, gaps.argmin(1), -1)
        assert nearest_in_time(times, candidates, 0.02) == expected.tolist()
        assert set(expected) > {-1}

    def test_edges(self):
        times = np.array([0.0, 1.0, 2.0, 9.0])
        assert nearest_in_time(times, np.array([1.5, 0.5]), 0.5) == [1, 1, 0, -1]
        assert nearest_in_time(times, np.array([2.0]), 1.0) == [-1, 0, 0, -1]
        assert nearest_in_time(times, np.zeros(0), 1.0) == [-1] * 4
        assert nearest_in_time(np.zeros(0), times, 1.0) == []

    def test_many_rows(self):
        """A table of all gaps would take 80 GB."""
        times = np.arange(100_000) / 30
        assert nearest_in_time(times, times + 0.001, 0.02) == list(range(100_000))


class TestFilter:
    """One frame of each kind of damage: it is left out with its name and reason, the others stay."""

    @pytest.fixture
    def folder(self, tmp_path):
        write_seven_scenes(tmp_path)
        return tmp_path

    def reasons(self, folder: Path) -> dict[str, str]:
        scene = read(folder)
        assert len(scene.cameras) == 12 - len(scene.skipped)
        return dict(scene.skipped)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda pose: pose * np.nan, "pose: not finite"),
            (lambda pose: np.full((4, 4), -np.inf), "pose: not finite"),
            (lambda pose: np.diag([1.1, 1, 1, 1]) @ pose, "pose: not a rigid motion"),
            (lambda pose: np.diag([-1, 1, 1, 1]) @ pose, "pose: not a rigid motion"),
            (lambda pose: pose[:3], "pose: 4x4 numbers expected, got shape (3, 4)"),
        ],
    )
    def test_poses(self, folder, change, reason):
        path = folder / "frame-000004.pose.txt"
        np.savetxt(path, change(np.loadtxt(path)))
        assert self.reasons(folder) == {"frame-000004": reason}

    def test_pose_of_words(self, folder):
        (folder / "frame-000004.pose.txt").write_text("lost\n")
        assert "4x4 numbers expected" in self.reasons(folder)["frame-000004"]

    def test_missing_files(self, folder):
        (folder / "frame-000001.pose.txt").unlink()
        (folder / "frame-000002.depth.png").unlink()
        assert self.reasons(folder) == {"frame-000001": "no pose", "frame-000002": "no depth image"}

    def test_colour_alone(self, folder):
        hint = "`--data.reader images` reads them as photographs without cameras"
        depths = sorted(folder.glob("*.depth.png"))
        for path in depths[1:]:
            path.unlink()
        assert hint not in message(folder), "a recording that is short of depth is still one"
        depths[0].unlink()
        assert "at least 2 usable frames expected, got 0 of" in message(folder) and message(folder).endswith(hint)

    @pytest.mark.parametrize("file", ["frame-000004.color.jpg", "frame-000004.depth.png"])
    def test_truncated(self, folder, file):
        path = folder / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        reason = self.reasons(folder)["frame-000004"]
        assert "truncated" in reason and reason.startswith("colour" if "color" in file else "depth")

    def test_empty_file_and_no_image(self, folder):
        (folder / "frame-000003.color.jpg").write_bytes(b"")
        (folder / "frame-000004.depth.png").write_bytes(b"hello" * 300)
        assert self.reasons(folder) == {
            "frame-000003": "colour: the file is empty",
            "frame-000004": "depth: no readable image (of no known format)",
        }

    def test_depth_without_values(self, folder):
        write_depth(folder / "frame-000004.depth.png", np.zeros((60, 80)))
        assert self.reasons(folder) == {"frame-000004": "depth: no pixel has depth"}

    def test_one_frame_of_another_size(self, folder):
        write_depth(folder / "frame-000004.depth.png", np.ones((30, 40)))
        Image.new("RGB", (40, 30)).save(folder / "frame-000005.color.jpg")
        assert self.reasons(folder) == {
            "frame-000004": "depth is 40x30, the recording's is 80x60",
            "frame-000005": "colour is 40x30, the recording's is 80x60",
        }

    def test_counts_by_reason(self, folder, caplog):
        for i in (1, 2, 3):
            (folder / f"frame-{i:06d}.pose.txt").unlink()
        with caplog.at_level(logging.WARNING):
            assert Counter(s.reason for s in read(folder).skipped) == {"no pose": 3}
        assert f"{folder.name}: 3 of 12 frames are left out: 3 x no pose (first: frame-000001)" in caplog.text

    def test_a_frame_takes_little_memory(self, tmp_path):
        frames, folder = 300, tmp_path / "long"
        write_seven_scenes(folder, frames=2)
        for i in range(2, frames):
            for part in ("color.jpg", "depth.png", "pose.txt"):
                os.link(folder / f"frame-000001.{part}", folder / f"frame-{i:06d}.{part}")
        read(folder)
        tracemalloc.start()
        scene = read(folder)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(scene.cameras) == frames and size / frames < 500, "bytes a frame"

    def test_damage_in_the_middle_is_rejected_when_read(self, folder):
        path = folder / "frame-000004.depth.png"
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
        path.write_bytes(data)
        scene = read(folder)
        assert not scene.skipped, "decoding every file at opening would be too slow"
        with pytest.raises(Rejected, match=r"cannot be read \(.*frame-000004\.depth\.png: cannot be decoded"):
            scene.frames([4], SIZE)

    def test_nan_depth_is_rejected_when_read(self, folder):
        (folder / "frame-000004.depth.png").unlink()
        np.save(folder / "frame-000004.depth.npy", np.full((60, 80), np.nan, np.float32))
        with pytest.raises(Rejected, match=r"no pixel has depth \(.*frame-000004\.depth\.npy\)"):
            read(folder).frames([4], SIZE)


class TestMessages:
    """What a user reads when nothing can be used: the file, what was expected, what was got, what to do."""

    def test_missing_folder(self, tmp_path):
        with pytest.raises(BadData, match="no such file or folder"):
            Source(name=str(tmp_path / "nowhere"), options={"reader": "rgbd"}).scenes()

    def test_empty_folder(self, tmp_path):
        text = message(tmp_path)
        assert str(tmp_path) in text and "no recording found" in text and "frame-000000.color.jpg" in text

    def test_no_poses(self, tmp_path):
        write_seven_scenes(tmp_path)
        for pose in tmp_path.glob("*.pose.txt"):
            pose.unlink()
        text = message(tmp_path)
        assert "at least 2 usable frames expected, got 0 of 12" in text
        assert "12 x no pose (first: frame-000000)" in text and "4x4 camera-to-world" in text

    def test_one_frame(self, tmp_path):
        write_seven_scenes(tmp_path, frames=1)
        assert "at least 2 usable frames expected, got 1 of 1" in message(tmp_path)

    def test_intrinsics_of_wrong_shape(self, tmp_path):
        write_seven_scenes(tmp_path)
        np.savetxt(tmp_path / "camera-intrinsics.txt", np.ones((2, 3)))
        text = message(tmp_path)
        assert "camera-intrinsics.txt: intrinsics of 3x3" in text and "got shape (2, 3)" in text

    @pytest.mark.parametrize("content", ["one two three", "1 2\n3"])
    def test_intrinsics_of_words_or_ragged(self, tmp_path, content):
        write_seven_scenes(tmp_path)
        (tmp_path / "camera-intrinsics.txt").write_text(content)
        assert "camera-intrinsics.txt: intrinsics of 3x3 numbers expected" in message(tmp_path)

    def test_intrinsics_that_are_no_camera(self, tmp_path):
        write_seven_scenes(tmp_path)
        np.savetxt(tmp_path / "camera-intrinsics.txt", np.eye(3)[::-1])
        assert "no pinhole matrix" in message(tmp_path)

    def test_no_intrinsics_for_this_size(self, tmp_path):
        write_seven_scenes(tmp_path)
        (tmp_path / "camera-intrinsics.txt").unlink()
        text = message(tmp_path)
        assert "640x480" in text and "80x60" in text and "--data.intrinsics fx,fy,cx,cy" in text
        assert len(read(tmp_path, intrinsics=(FOCAL, FOCAL, 40, 30)).cameras) == 12

    def test_depth_of_another_size(self, tmp_path):
        write_seven_scenes(tmp_path)
        for file in tmp_path.glob("*.depth.png"):
            write_depth(file, np.ones((30, 40)))
        text = message(tmp_path)
        assert "depth is 40x30 and colour 80x60" in text and "frame-000000.depth.png" in text

    def test_scannet_without_intrinsics(self, tmp_path):
        write_scannet(tmp_path)
        (tmp_path / "intrinsic/intrinsic_color.txt").unlink()
        assert "intrinsic/intrinsic_color.txt" in message(tmp_path)

    def test_options(self):
        source = Source(name=".", options={"reader": "rgbd", "upp": "known", "stride": "often"})
        with pytest.raises(ConfigError) as caught:
            source.reader()
        assert "data.upp: unknown; did you mean 'up'?" in str(caught.value) and "data.stride" in str(caught.value)
        with pytest.raises(ValueError, match="a vector x,y,z expected, got 'sideways'"):
            RgbdConfig(up="sideways")

    @pytest.mark.parametrize(
        "wrong", [{"stride": 0}, {"max_frames": 1}, {"depth_scale": 0.0}, {"max_depth": -1.0}, {"depth_scale": np.inf}]
    )
    def test_values_out_of_range(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RgbdConfig(**wrong)


class TestUp:
    """The room is written in a world whose up is (0.97, ...) off z; the reader finds the room's own up again."""

    @pytest.fixture
    def tilted(self, tmp_path):
        return tmp_path, write_seven_scenes(tmp_path, source_from_room=tilted_world())

    def test_estimate(self, tilted, caplog):
        folder, truth = tilted
        with caplog.at_level(logging.INFO, logger="splatlearn"):
            scene = read(folder, up="auto")
        assert scene.up == "estimated" and scene.notes and scene.notes[0] in caplog.text
        room_up = scene.world_from_source[:3, :3] @ truth.source_from_room[:3, 2]
        assert np.degrees(np.arccos(room_up[2])) < 0.5
        heights = scene.frames([0, 6], SIZE).to_points().xyz[:, 2]
        assert abs(float(heights.min())) < 0.03, "the floor is at z = 0"
        assert "floor 1.40 m below the mean camera" in scene.notes[0]
        assert scene.cameras.centers[:, :2].mean(0).abs().max() < 1e-5

    def test_rotation_is_rigid_and_exact(self, tilted):
        folder, truth = tilted
        scene = read(folder, up="estimate")
        back = np.linalg.inv(scene.world_from_source @ truth.source_from_room)
        poses = back @ scene.cameras.camera_to_world.double().numpy()
        assert np.abs(poses - truth.poses).max() < 2e-6

    def test_given_vector(self, tilted):
        folder, truth = tilted
        up = truth.source_from_room[:3, 2]
        scene = read(folder, up=f"{up[0]},{up[1]},{up[2]}")
        assert scene.up == "known"
        assert np.allclose(scene.world_from_source[:3, :3] @ up, [0, 0, 1])
        assert abs(float(scene.frames([0], SIZE).to_points().xyz[:, 2].min())) < 0.02

    @pytest.mark.parametrize("up", ["known", "unknown"])
    def test_the_world_is_left_alone(self, tilted, up):
        scene = read(tilted[0], up=up)
        assert scene.up == up and np.array_equal(scene.world_from_source, np.eye(4))

    def test_cameras_that_do_not_agree(self, tmp_path, caplog):
        write_seven_scenes(tmp_path, frames=12)
        for i, path in enumerate(sorted(tmp_path.glob("*.pose.txt"))):
            angle = np.radians(30 * i)
            roll = np.eye(4)
            roll[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            np.savetxt(path, roll)
        scene = read(tmp_path, up="estimate")
        assert scene.up == "unknown" and "give --data.up x,y,z" in scene.notes[0]


@pytest.fixture(scope="module")
def kitchen(shared_data):
    return RgbdReader(RgbdConfig(), shared_data / "rgbd_7scenes_redkitchen").scenes()[0]


class TestKitchen:
    """The real recording (7-Scenes redkitchen)."""

    def test_frames(self, kitchen):
        assert len(kitchen.cameras) == 190 and kitchen.skipped == ()
        assert (kitchen.cameras.width, kitchen.cameras.height) == (640, 480)

    def test_up(self, kitchen):
        assert kitchen.up == "estimated"
        points = kitchen.frames(range(0, 190, 30), (80, 60)).to_points()
        height = points.xyz[:, 2]
        assert (height.abs() < 0.06).float().mean() > 0.1, "the floor is at z = 0"
        assert (height < -0.1).float().mean() < 0.01, "and nothing is below"

    def test_views_agree(self, kitchen):
        frames = kitchen.frames([0, 5, 30], (160, 120))
        assert overlap(frames, 0, 1) > 0.95 and overlap(frames, 0, 2) > 0.8
