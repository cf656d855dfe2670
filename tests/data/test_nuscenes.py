"""nuScenes: tables, infos of mmdetection3d, the real key frame, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch

from data.scan_maker import POINTS, SIZE, photograph, seen, write_nuscenes
from splatlearn.data.nuscenes import CAMERAS, CLASSES, LIDARSEG, NuScenesConfig, NuScenesReader
from splatlearn.data.pickles import read_pickle
from splatlearn.data.projection import ProjectionRule, visible_points
from splatlearn.data.scene import Rejected, Source
from splatlearn.errors import BadData, MissingData


def read(path, **options):
    return NuScenesReader(NuScenesConfig(**options), path).scenes()


def message(path, **options) -> str:
    with pytest.raises(BadData) as caught:
        scenes = read(path, **options)
        scenes[0].points()
        _ = scenes[0].cameras
    return str(caught.value)


def edit(path, change) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


class TestTables:
    def test_smoke(self, tmp_path):
        truths = write_nuscenes(tmp_path)
        scenes = Source(name=str(tmp_path)).scenes()
        assert [scene.name for scene in scenes] == list(truths)
        for scene in scenes:
            points, truth = scene.points(), truths[scene.name]
            assert np.allclose(points.xyz, truth.xyz, atol=1e-5)
            assert np.allclose(points["intensity"] * 255, truth.intensity, atol=1e-4)
            assert np.allclose(points["reflectance"], (truth.intensity - 18.742355) / 22.04632, atol=1e-5)
            assert points["beam"].tolist() == [i % 32 for i in range(POINTS)]
            assert np.array_equal(points["label"], [LIDARSEG[int(raw)] for raw in truth.raw])
            assert scene.camera_names == ("CAM_FRONT", "CAM_BACK") and scene.intensity_statistics[0] < 0.08
        assert scenes[1].cameras["frame"].tolist() == [1, 1]

    def test_projection_follows_the_car(self, tmp_path):
        """Through two poses of the car 2 km from the origin, to a hundredth of a pixel; not so without its motion."""
        for name, truth in write_nuscenes(tmp_path).items():
            scene = next(s for s in read(tmp_path) if s.name == name)
            for view, camera in enumerate(scene.camera_names):
                rows, pixels = visible_points(scene.points(), scene.cameras, view, scene.projection)
                assert rows.tolist() == seen(truth, camera).tolist() and len(rows) > 20
                assert np.abs(pixels.numpy() - truth.pixels[camera][rows]).max() < 0.01

    def test_frames(self, tmp_path):
        write_nuscenes(tmp_path)
        scene = read(tmp_path)[0]
        frames = scene.frames([1, 0], (80, 45))
        assert frames.images.shape == (2, 3, 45, 80) and 0 <= frames.images.min() < frames.images.max() <= 1
        assert torch.allclose(frames.cameras.intrinsics[0, 0], scene.cameras.intrinsics[1, 0] / 2)
        assert scene.frames([], (80, 45)).images.shape == (0, 3, 45, 80)
        assert scene.images([0])[0].shape == (3, SIZE[1], SIZE[0])

    def test_boxes(self, tmp_path):
        write_nuscenes(tmp_path)
        boxes = read(tmp_path)[0].boxes()
        assert boxes["label"].tolist() == [CLASSES.index("car")] and boxes.sizes.tolist() == [[4.0, 2.0, 1.5]]
        assert np.allclose(boxes.centers, [[0, 7.1, -0.8]], atol=1e-4), "8 m ahead of the car: y of the lidar"
        assert float(boxes.yaws) == pytest.approx(np.radians(100), abs=1e-3)

    def test_splits(self, tmp_path):
        write_nuscenes(tmp_path, drives=6, samples=1, version="v1.0-trainval")
        assert [s.split for s in read(tmp_path)] == ["train"] * 4 + ["val", "train"]
        assert [s.name for s in read(tmp_path, max_scans=1)] == ["scene-0000/000", "scene-0004/000"]
        (tmp_path / "splits.json").write_text('{"train": ["scene-0001"], "val": ["scene-0005"]}')
        reader = NuScenesReader(NuScenesConfig(), tmp_path)
        assert [(s.name, s.split) for s in reader.scenes()] == [("scene-0001/000", "train"), ("scene-0005/000", "val")]
        assert len(reader.skipped) == 4 and "in no split" in reader.skipped[0].reason
        (tmp_path / "splits.json").write_text('{"train": ["a"], "val": ["a"]}')
        assert "'a' is listed twice" in message(tmp_path)

    def test_one_scan(self, tmp_path):
        write_nuscenes(tmp_path, samples=1)
        (scene,) = read(tmp_path)
        assert len(scene.points()) == POINTS

    def test_partial(self, tmp_path):
        write_nuscenes(tmp_path, samples=3)
        (tmp_path / "samples/CAM_BACK/sample0_0.jpg").unlink()
        (tmp_path / "samples/LIDAR_TOP/sample0_1.pcd.bin").unlink()
        reader = NuScenesReader(NuScenesConfig(), tmp_path)
        first, last = reader.scenes()
        assert first.camera_names == ("CAM_FRONT",) and first.skipped == (("CAM_BACK", "the image is missing"),)
        assert len(first.cameras) == 1 and len(last.cameras) == 2
        assert reader.skipped == (("scene-0000/001", "its scan is missing"),)

    def test_unlabelled(self, tmp_path):
        write_nuscenes(tmp_path, samples=2)
        assert "label" not in read(tmp_path, labels=False)[0].points()
        (tmp_path / "lidarseg/v1.0-mini/sample0_1.bin").unlink()
        reader = NuScenesReader(NuScenesConfig(), tmp_path)
        assert len(reader.scenes()) == 1 and "its labels are missing" in reader.skipped[0].reason
        (tmp_path / "v1.0-mini/lidarseg.json").unlink()
        (tmp_path / "v1.0-mini/sample_annotation.json").unlink()
        scene = read(tmp_path)[0]
        with pytest.raises(MissingData, match="no boxes: no sample_annotation"):
            scene.boxes()

    def test_cameras_chosen(self, tmp_path):
        write_nuscenes(tmp_path)
        assert read(tmp_path, cameras=("CAM_BACK",))[0].camera_names == ("CAM_BACK",)
        assert "no such camera; did you mean 'CAM_BACK'" in message(tmp_path, cameras=("CAM_BCK",))


class TestRefused:
    def test_messages(self, tmp_path):
        write_nuscenes(tmp_path)
        scan = tmp_path / "samples/LIDAR_TOP/sample0_0.pcd.bin"
        whole = scan.read_bytes()
        scan.write_bytes(whole[:-3])
        assert "11997 bytes are no whole number of records of 5 x float32 (20 bytes)" in message(tmp_path)
        scan.write_bytes(whole[:-20])
        assert "600 labels, but the scan has 599 points" in message(tmp_path)
        rows = np.frombuffer(whole, "<f4").reshape(-1, 5).copy()
        rows[:, 3] *= 100
        rows.tofile(scan)
        assert "but 0 to 255 expected" in message(tmp_path)
        rows[:] = np.nan
        rows.tofile(scan)
        assert "600 points, none of them finite" in message(tmp_path)
        scan.write_bytes(whole)
        np.full(POINTS, 77, np.uint8).tofile(tmp_path / "lidarseg/v1.0-mini/sample0_0.bin")
        assert "class id 77, which the data set's map of classes lacks" in message(tmp_path)

    def test_not_finite_points_are_left_out(self, tmp_path):
        truth = write_nuscenes(tmp_path)["scene-0000/000"]
        scan = tmp_path / "samples/LIDAR_TOP/sample0_0.pcd.bin"
        rows = np.fromfile(scan, "<f4").reshape(-1, 5)
        rows[[3, 5], [1, 3]] = np.nan
        rows.tofile(scan)
        scene = read(tmp_path)[0]
        points = scene.points()
        scene.points()
        assert len(points) == len(points["label"]) == POINTS - 2
        assert np.allclose(points.xyz, np.delete(truth.xyz, [3, 5], 0), atol=1e-5)
        assert scene.notes == ("2 of 600 points are not finite and left out",)

    def test_calibration(self, tmp_path):
        write_nuscenes(tmp_path)
        sensors = tmp_path / "v1.0-mini/calibrated_sensor.json"
        edit(sensors, lambda rows: rows[1].update(rotation=[2.0, 0, 0, 0]))
        assert "a unit quaternion w x y z and a shift x y z expected" in message(tmp_path)
        edit(sensors, lambda rows: rows[1].update(rotation=[1.0, 0, 0, 0], camera_intrinsic=[[1, 2], [3, 4]]))
        assert "intrinsics of 3x3 (or 4x4) numbers expected, got shape (2, 2)" in message(tmp_path)
        edit(sensors, lambda rows: rows.pop(0))
        assert "nothing has the token or field 'cLIDAR_TOP'" in message(tmp_path)
        (tmp_path / "v1.0-mini/ego_pose.json").unlink()
        assert "ego_pose.json missing" in message(tmp_path)

    def test_no_scans(self, tmp_path):
        write_nuscenes(tmp_path, samples=1)
        (tmp_path / "samples/LIDAR_TOP/sample0_0.pcd.bin").unlink()
        assert "no scan that could be used: 1 x its scan is missing (first: scene-0000/000)" in message(tmp_path)

    def test_image_of_another_size(self, tmp_path):
        write_nuscenes(tmp_path)
        photograph(tmp_path / "samples/CAM_BACK/sample0_0.jpg", (100, 90))
        scene = read(tmp_path)[0]
        scene.frames([0], (80, 45))
        with pytest.raises(Rejected, match="100x90 pixels, but its camera CAM_BACK has 160x90"):
            scene.frames([1], (80, 45))


class Evil:
    def __reduce__(self):
        return eval, ("open('never', 'w')",)


class Pointer:
    """Asks for an array of Python objects at an address of its own choice."""

    def __reduce__(self):
        return np.ndarray, ((1,), np.dtype("O"), b"\x41" * 8)


class Disguise:
    """Asks for numbers whose type has been told to be an object."""

    def __reduce__(self):
        state = (3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
        return np.dtype, ("f8", False, True), state


class TestInfos:
    @pytest.mark.parametrize("value", [Pointer(), Disguise(), np.zeros(2, "f4,i8"), np.dtype("M8[ns]")])
    def test_arrays_hold_plain_numbers_alone(self, tmp_path, value):
        file = tmp_path / "a.pkl"
        file.write_bytes(pickle.dumps(value))
        with pytest.raises(BadData, match=r"refused|no readable pickle"):
            read_pickle(file)

    def test_malicious_pickle(self, tmp_path):
        file = tmp_path / "nuscenes_infos_val.pkl"
        file.write_bytes(pickle.dumps({"data_list": [{"lidar_points": {}, "CAM_FRONT": Evil()}]}))
        with pytest.raises(BadData, match=r"it asks for builtins\.eval; nothing of it was run"):
            read_pickle(file)
        assert NuScenesReader.accepts(tmp_path)
        assert "asks for builtins.eval" in message(tmp_path)

    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_plain_pickle(self, tmp_path, protocol):
        file = tmp_path / "a.pkl"
        value = {"a": np.arange(6.0).reshape(2, 3), "b": np.float64(2), "c": [1, (b"x", "y", None)], "d": {1, 2}}
        file.write_bytes(pickle.dumps(value, protocol))
        found = read_pickle(file)
        assert np.array_equal(found.pop("a"), value.pop("a")) and found == value
        file.write_bytes(pickle.dumps(value, protocol)[:-9])
        with pytest.raises(BadData, match="no readable pickle"):
            read_pickle(file)

    def test_older_infos(self, tmp_path):
        file = tmp_path / "nuscenes_infos_train.pkl"
        file.write_bytes(pickle.dumps({"infos": ["CAM_FRONT", "lidar_points"]}))
        assert "update_infos_to_v2.py" in message(file)

    def test_real_key_frame(self, shared_data):
        folder = shared_data / "mmdetection3d/demo/data/nuscenes"
        (scene,) = Source(name=str(folder)).scenes()
        points = scene.points()
        assert len(points) == 34688 and scene.camera_names == CAMERAS
        counts = [len(visible_points(points, scene.cameras, v, scene.projection).rows) for v in range(6)]
        assert all(3000 <= count <= 4850 for count in counts)
        elevation = torch.atan2(points.xyz[:, 2], points.xyz[:, :2].norm(dim=1))
        assert elevation[points["beam"] == 0].median() < elevation[points["beam"] == 31].median(), "0 is the lowest"
        assert abs(float(points["reflectance"].mean())) < 0.3
        assert scene.frames([0], (320, 180)).images.std() > 0.1

    def test_real_boxes_hold_their_points(self, shared_data):
        """The data set says how many points every box has: yaw, size and frame are right."""
        (scene,) = read(shared_data / "mmdetection3d/demo/data/nuscenes")
        xyz, boxes = scene.points().xyz, scene.boxes()
        told = read_pickle(next(scene.scan.parent.glob("*.pkl")))["data_list"][0]["instances"]
        offset = xyz[None] - boxes.centers[:, None]
        cos, sin = boxes.yaws.cos()[:, None], boxes.yaws.sin()[:, None]
        x, y, z = offset.unbind(-1)
        local = torch.stack([cos * x + sin * y, cos * y - sin * x, z], -1).abs()
        inside = (local <= boxes.sizes[:, None] / 2 + 0.01).all(-1).sum(1)
        expected = torch.tensor([int(box["num_lidar_pts"]) for box in told])
        assert (inside - expected).abs().sum() <= 0.04 * expected.sum() and expected.sum() > 900
        assert {int(label) for label in boxes["label"]} <= set(range(-1, 10))

    def test_real_infos_without_photographs(self, shared_data):
        """A sample that mmdetection3d tests with: scans cut short, no photographs, boxes of an older kind."""
        (scene, _) = read(shared_data / "mmdetection3d/tests/data/nuscenes/nus_info.pkl")
        assert len(scene.points()) == 100 and len(scene.cameras) == 0 and len(scene.skipped) == 6
        with pytest.raises(MissingData, match="of a version that orders sizes otherwise"):
            scene.boxes()


class TestRule:
    def test_borders_and_depth(self, tmp_path):
        write_nuscenes(tmp_path, samples=1)
        scene = read(tmp_path)[0]
        points, cameras = scene.points(), scene.cameras
        usual = visible_points(points, cameras, 0)
        near = visible_points(points, cameras, 0, ProjectionRule(min_depth=20.0))
        wide = visible_points(points, cameras, 0, ProjectionRule(border=0.0))
        assert set(near.rows.tolist()) < set(usual.rows.tolist()) <= set(wide.rows.tolist())
        assert (usual.pixels > 0).all() and (usual.pixels < torch.tensor(SIZE) - 1).all()
        half = visible_points(points, cameras.resize(SIZE[0] // 2, SIZE[1] // 2), 0, ProjectionRule(border=0.5))
        assert torch.equal(half.rows, usual.rows) and torch.allclose(half.pixels * 2, usual.pixels, atol=1e-3)

    def test_wrong_rules(self):
        with pytest.raises(ValueError, match="min_depth: 0 or more"):
            ProjectionRule(min_depth=-1)
