"""Calibrated folders, range images and PandaSet's conversion; reading is quick enough."""

import gzip
import json
import pickle
import time

import numpy as np
import pytest
import torch

from data.scan_maker import FORWARD, POINTS, SIZE, K, photograph, pose, seen, write_calibrated, write_range_images
from splatlearn.data.lidar import CalibratedConfig, CalibratedReader
from splatlearn.data.projection import visible_points
from splatlearn.data.range_images import RangeImageConfig, RangeImageReader
from splatlearn.data.sampling import ScenePart
from splatlearn.data.scene import Rejected, Source
from splatlearn.errors import BadData, UserError
from splatlearn.ply import write_ply
from splatlearn.verbs.check import check
from splatlearn.verbs.convert import convert


def read(path, **options):
    return CalibratedReader(CalibratedConfig(**options), path).scenes()


def message(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        scenes = read(path, **options)
        scenes[0].points()
        _ = scenes[0].cameras
    return str(caught.value)


def with_camera(path, **changed) -> str:
    """The message when the front camera says otherwise."""
    table = json.loads((path / "calibration.json").read_text())
    table["cameras"]["front"] |= changed
    (path / "calibration.json").write_text(json.dumps(table))
    found = message(path)
    write_calibrated(path)
    return found


class TestCalibrated:
    def test_smoke(self, tmp_path):
        truths = write_calibrated(tmp_path)
        source = Source(name=str(tmp_path))
        assert source.reader().classes == ("a", "b", "c")
        for scene in source.scenes():
            truth, points = truths[scene.name], scene.points()
            assert scene.camera_names == ("front", "left") and scene.split == ""
            assert np.array_equal(points["label"], np.where(truth.raw == 9, -1, truth.raw))
            for view, camera in enumerate(scene.camera_names):
                rows, pixels = visible_points(points, scene.cameras, view, scene.projection)
                assert rows.tolist() == seen(truth, camera).tolist() and len(rows) > 20
                assert np.abs(pixels.numpy() - truth.pixels[camera][rows]).max() < 0.01
        values = np.concatenate([truth.intensity for truth in truths.values()]) / 255
        assert scene.intensity_statistics == (pytest.approx(values.mean()), pytest.approx(values.std()))
        assert abs(float(points["reflectance"].mean())) < 0.1

    def test_one_scan_without_cameras_labels_or_intensity(self, tmp_path):
        (tmp_path / "scans").mkdir()
        np.save(tmp_path / "scans/only.npy", np.random.default_rng(0).normal(size=(50, 3)))
        (tmp_path / "calibration.json").write_text('{"columns": ["x", "y", "z"]}')
        (scene,) = Source(name=str(tmp_path)).scenes()
        assert len(scene.cameras) == 0 and scene.points().attributes == {}
        assert check(str(tmp_path)).scenes[0].points.count == 50

    def test_layouts(self, tmp_path):
        write_calibrated(tmp_path, scans=1, columns=["x", "y", "z", "intensity"])
        rows = np.fromfile(tmp_path / "scans/drive/000.bin", "<f4").reshape(-1, 4)
        names = ("x", "y", "z", "scalar_intensity")
        write_ply(tmp_path / "scans/drive/000.ply", [(n, rows[:, i].copy()) for i, n in enumerate(names)])
        expected = read(tmp_path)[0].points()
        (tmp_path / "scans/drive/000.bin").unlink()
        found = read(tmp_path)[0].points()
        assert torch.equal(found.xyz, expected.xyz) and torch.equal(found["intensity"], expected["intensity"])
        (tmp_path / "scans/drive/000.ply").unlink()
        rings = np.concatenate([rows, np.arange(POINTS)[:, None] % 16], 1)
        np.save(tmp_path / "scans/drive/000.npy", rings)
        assert "(N, 4) expected, for the columns x, y, z, intensity; got float64 (600, 5)" in message(tmp_path)
        write_calibrated(tmp_path / "b", scans=1, columns=["x", "y", "z", "intensity", "ring"])
        (tmp_path / "b/scans/drive/000.bin").unlink()
        np.save(tmp_path / "b/scans/drive/000.npy", rings)
        assert read(tmp_path / "b")[0].points()["beam"].tolist() == [i % 16 for i in range(POINTS)]

    def test_poses_of_their_own(self, tmp_path):
        write_calibrated(tmp_path, scans=2)
        (tmp_path / "poses/drive").mkdir(parents=True)
        moved = {"front": np.eye(4).tolist(), "left": {"lidar_to_camera": np.eye(4).tolist(), "K": (K * 1).tolist()}}
        (tmp_path / "poses/drive/001.json").write_text(json.dumps(moved))
        usual, own = read(tmp_path)
        assert not torch.equal(usual.cameras.world_to_camera, own.cameras.world_to_camera)
        assert torch.equal(own.cameras.world_to_camera, torch.eye(4).expand(2, 4, 4))

    @pytest.mark.parametrize(
        ("own", "told"),
        [
            ({"frnt": np.eye(4).tolist()}, "'frnt': calibration.json has no such camera; did you mean 'front'"),
            (
                {"front": {"lidar_to_cam": np.eye(4).tolist()}},
                "'lidar_to_cam': unknown; did you mean 'lidar_",
            ),
        ],
    )
    def test_a_misspelt_pose_is_not_the_rigs(self, tmp_path, own, told):
        write_calibrated(tmp_path, scans=1)
        (tmp_path / "poses/drive").mkdir(parents=True)
        (tmp_path / "poses/drive/000.json").write_text(json.dumps(own))
        assert told in message(tmp_path)
        unused = {"left": np.eye(4).tolist()}
        (tmp_path / "poses/drive/000.json").write_text(json.dumps(unused))
        assert len(read(tmp_path, cameras=("front",))[0].cameras) == 1

    def test_distortion_is_removed(self, tmp_path):
        write_calibrated(tmp_path, scans=1)
        plain = read(tmp_path)[0]
        bend = {"distortion": {"model": "OPENCV", "k1": 0.1}}
        table = json.loads((tmp_path / "calibration.json").read_text())
        table["cameras"]["front"] |= bend
        (tmp_path / "calibration.json").write_text(json.dumps(table))
        bent = read(tmp_path)[0]
        assert bent.cameras.intrinsics[0, 0, 0] != plain.cameras.intrinsics[0, 0, 0]
        assert bent.frames([0], SIZE).images.shape == (1, 3, SIZE[1], SIZE[0])
        assert (bent.frames([0], SIZE).images - plain.frames([0], SIZE).images).abs().max() > 0.01

    def test_cameras_of_two_sizes(self, tmp_path):
        write_calibrated(tmp_path, scans=1)
        photograph(tmp_path / "images/left/drive/000.jpg", (320, 90))
        (scene,) = read(tmp_path)
        assert scene.cameras.width == SIZE[0]
        assert scene.cameras.intrinsics[1, 0, 0] == pytest.approx(K[0, 0] / 2)
        assert scene.frames([0, 1], SIZE).images.shape[0] == 2 and scene.images([1])[0].shape[2] == 320

    def test_splits(self, tmp_path):
        write_calibrated(tmp_path, splits={"train": ["drive/000"], "val": ["drive/002"]})
        reader = CalibratedReader(CalibratedConfig(), tmp_path)
        assert [(s.name, s.split) for s in reader.scenes()] == [("drive/000", "train"), ("drive/002", "val")]
        assert reader.skipped[0].name == "drive/001"
        write_calibrated(tmp_path, splits={"val": ["drive"]})
        assert {s.split for s in read(tmp_path)} == {"val"}
        write_calibrated(tmp_path, splits={"train": ["elsewhere"]})
        assert "no scan that could be used: 3 x it is in no split" in message(tmp_path)

    def test_refused(self, tmp_path):
        write_calibrated(tmp_path)
        assert "K: intrinsics of 3x3 (or 4x4) numbers expected, got shape (2, 3)" in with_camera(
            tmp_path, K=K[:2].tolist()
        )
        assert "front: lidar_to_camera: not a rigid motion" in with_camera(
            tmp_path, lidar_to_camera=np.diag([2.0, 1, 1, 1]).tolist()
        )
        assert "4x4 numbers expected, got shape (3, 3)" in with_camera(tmp_path, lidar_to_camera=np.eye(3).tolist())
        assert "an array of numbers expected" in with_camera(tmp_path, K=[["a"]])
        assert "size: width and height expected" in with_camera(tmp_path, size=[3])
        assert "a model of SIMPLE_PINHOLE" in with_camera(tmp_path, distortion={"model": "x"})
        assert "OPENCV has k1, k2, p1, p2 (others are of K); got 'k9'" in with_camera(
            tmp_path, distortion={"model": "OPENCV", "k9": 1}
        )
        assert "is not removed here" in with_camera(tmp_path, distortion={"model": "FOV", "omega": 1})
        for changed, words in (
            ({"colums": []}, "'colums': unknown; did you mean 'columns'"),
            ({"columns": ["x", "y"]}, "columns: x, y, z and other names"),
            ({"classes": ["a"]}, "class id 2, but calibration.json has 1 classes"),
            ({"intensity": {"full": 1}}, "but 0 to 1 expected"),
            ({"projection": {"min_dept": 1}}, "min_dept: unknown; did you mean 'min_depth'"),
            ({"splits": {"trian": []}}, '{"train": [names]'),
        ):
            write_calibrated(tmp_path, **changed)
            assert words in message(tmp_path), changed
        (tmp_path / "calibration.json").write_text("{")
        assert "no readable JSON" in message(tmp_path)
        (tmp_path / "calibration.json").unlink()
        assert "calibration.json missing" in message(tmp_path)

    def test_missing_images(self, tmp_path):
        write_calibrated(tmp_path)
        (tmp_path / "images/front/drive/001.jpg").unlink()
        assert read(tmp_path)[1].skipped == (("front", "the image is missing"),)
        for i in (0, 2):
            (tmp_path / f"images/front/drive/{i:03d}.jpg").unlink()
        assert "images/front/NAME.jpg expected, with the names of the scans (such as drive/000)" in message(tmp_path)

    def test_image_of_another_size(self, tmp_path):
        write_calibrated(tmp_path)
        photograph(tmp_path / "images/left/drive/002.jpg", (100, 90))
        with pytest.raises(Rejected, match="100x90 pixels, but its camera left has 160x90"):
            read(tmp_path)[2].frames([1], SIZE)

    def test_parts_keep_what_belongs_to_the_scan(self, tmp_path):
        write_calibrated(tmp_path, scans=1)
        (scene,) = read(tmp_path)
        part = ScenePart(scene, "train")
        assert part.camera_names == scene.camera_names and part.intensity_statistics == scene.intensity_statistics
        assert part.projection == scene.projection

    def test_check(self, tmp_path):
        truths = write_calibrated(tmp_path)
        photograph(tmp_path / "images/left/drive/002.jpg", (100, 90))
        report = check(str(tmp_path))
        points = report.scenes[0].points
        assert report.reader == "calibrated" and points.seen["front"] == len(seen(truths["drive/000"], "front"))
        assert "Points seen, least/median/most, in so many scans: front" in str(report)
        assert list(report.scenes[2].skipped) == ["100x90 pixels, but its camera left has 160x90"]


class TestRangeImages:
    @pytest.mark.parametrize(("beams", "first"), [(64, "car"), (32, "road")])
    def test_smoke(self, tmp_path, beams, first):
        image = write_range_images(tmp_path, beams)
        source = Source(name=str(tmp_path))
        train, val = source.scenes()
        assert source.reader().classes[0] == first and (train.split, val.split) == ("train", "val")
        points = train.points()
        kept = image.reshape(-1, 6)[image[..., 4].ravel() > 0]
        assert len(points) == beams * 16 - 1 and len(train.cameras) == 0 and train.camera_names == ()
        assert np.array_equal(points.xyz, kept[:, :3])
        assert points["beam"][0] == beams - 1 and points["beam"][-1] == 0
        shift = 1 if beams == 64 else 0
        assert np.array_equal(points["label"], kept[:, 5].astype(int) - shift)

    def test_plain_arrays(self, tmp_path):
        image = write_range_images(tmp_path / "packed", 32)
        (tmp_path / "plain/train").mkdir(parents=True)
        np.save(tmp_path / "plain/train/0.npy", image.astype(np.float64))
        (scene,) = Source(name=str(tmp_path / "plain")).scenes()
        packed = Source(name=str(tmp_path / "packed")).scenes()[0].points()
        assert torch.equal(scene.points().xyz, packed.xyz) and torch.equal(scene.points()["label"], packed["label"])

    def test_refused(self, tmp_path):
        write_range_images(tmp_path / "a", 64)
        write_range_images(tmp_path / "b", 32)
        with pytest.raises(BadData, match="nuscenes and semantic_kitti scans, whose classes differ"):
            RangeImageReader(RangeImageConfig(), tmp_path)
        image = write_range_images(tmp_path / "c", 16)
        with pytest.raises(BadData, match=r"16 beams; 64 \(semantic_kitti\), 32 \(nuscenes\) are known"):
            RangeImageReader(RangeImageConfig(), tmp_path / "c")
        np.savez(tmp_path / "b/train/0.npz", scan=np.repeat(image, 2, 0) + 50)
        with pytest.raises(BadData, match="class id 5"):
            RangeImageReader(RangeImageConfig(), tmp_path / "b").scenes()[0].points()

    def test_real_scans(self, shared_data):
        for name, beams, count in (("semantic_kitti", 64, 13), ("nuscenes", 32, 26)):
            source = Source(name=str(shared_data / "lidar_rangeimage_seg" / name))
            assert len(source.scenes()) == count
            points = source.scenes()[0].points()
            elevation = torch.atan2(points.xyz[:, 2], points.xyz[:, :2].norm(dim=1))
            assert elevation[points["beam"] == 0].median() < elevation[points["beam"] == beams - 1].median()
            assert abs(float(points["reflectance"].mean())) < 0.6 and len(points) > 19000
            road = points["label"] == source.reader().classes.index("road")
            assert road.float().mean() > 0.05 and points.xyz[road, 2].median() < -1.4, "the road lies below the lidar"


def write_table(file, columns: dict[str, np.ndarray]) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is needed to convert PandaSet, and only for that")
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wb") as stream:
        pickle.dump(pandas.DataFrame(columns), stream)


def heading(matrix: np.ndarray) -> dict:
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
    place = dict(zip("xyz", matrix[:3, 3].tolist()))
    return {"heading": {"w": w, "x": x, "y": y, "z": z}, "position": place}


def write_pandaset(root, latitudes=(37.7, 37.3)) -> tuple[np.ndarray, np.ndarray]:
    """Two drives of one scan: (N 3) points of the world, and (4 4) of the cameras to it."""
    world = np.random.default_rng(0).uniform(-20, 20, (POINTS, 3)) + np.array([500, 300, 10])
    look = pose(40, (500, 300, 12))
    look[:3, :3] = look[:3, :3] @ FORWARD.T
    for i, latitude in enumerate(latitudes):
        drive = root / f"{i:03d}"
        x, y, z = world.T
        d = np.arange(POINTS) % 3 == 0
        write_table(drive / "lidar/00.pkl.gz", {"x": x, "y": y, "z": z, "i": x % 255, "t": 0 * x, "d": d.astype(int)})
        write_table(drive / "annotations/semseg/00.pkl.gz", {"class": np.arange(POINTS) % 43 + 1})
        (drive / "meta").mkdir()
        (drive / "meta/gps.json").write_text(json.dumps([{"lat": latitude}]))
        (drive / "lidar/poses.json").write_text(json.dumps([heading(pose(25, (501, 299, 12)))]))
        for camera in ("front_camera", "left_camera"):
            photograph(drive / f"camera/{camera}/00.jpg", (1920, 1080))
            (drive / f"camera/{camera}/poses.json").write_text(json.dumps([heading(look)]))
            matrix = {"fx": 1900, "fy": 1910, "cx": 970, "cy": 530}
            (drive / f"camera/{camera}/intrinsics.json").write_text(json.dumps(matrix))
    return world, look


class TestPandaSet:
    def test_conversion(self, tmp_path):
        world, look = write_pandaset(tmp_path / "pandaset")
        with pytest.raises(BadData, match="PandaSet is converted once: `splatlearn convert"):
            Source(name=str(tmp_path / "pandaset")).scenes()
        told = str(convert(tmp_path / "pandaset", tmp_path / "out"))
        assert "2 drives, 2 scans of each lidar" in told
        train, val = Source(name=str(tmp_path / "out/pandar64")).scenes()
        forward = Source(name=str(tmp_path / "out/pandargt")).scenes()[0]
        assert (train.name, train.split, val.split) == ("000/00", "train", "val")
        assert train.camera_names == ("front_camera", "left_camera") and forward.camera_names == ("front_camera",)
        points, mine = train.points(), np.arange(POINTS) % 3 != 0
        assert len(points) + len(forward.points()) == POINTS
        lidar = np.linalg.inv(pose(25, (501, 299, 12)))
        expected = world[mine] @ lidar[:3, :3].T + lidar[:3, 3] - [0, 0, 1.6]
        assert np.allclose(points.xyz, expected, atol=1e-4)
        rows, pixels = visible_points(points, train.cameras, 0, train.projection)
        in_camera = (world[mine] - look[:3, 3]) @ look[:3, :3]
        truth = in_camera[:, :2] / in_camera[:, 2:] * [1900, 1910] + [970, 530]
        assert len(rows) > 5 and np.abs(pixels.numpy() - truth[rows]).max() < 0.1
        assert points["label"][:5].tolist() == [-1, -1, 4, 15, 5], "ids 2, 3, 5, 6, 8: vegetation, ground, road marking"
        assert train.intensity_statistics[0] == pytest.approx(18.23640649 / 255)
        with pytest.raises(UserError, match="exists; give another folder"):
            convert(tmp_path / "pandaset", tmp_path / "out")

    def test_a_drive_without_its_labels_or_a_camera(self, tmp_path):
        write_pandaset(tmp_path / "pandaset", latitudes=(37.7, 37.7, 37.3))
        (tmp_path / "pandaset/000/annotations/semseg/00.pkl.gz").unlink()
        (tmp_path / "pandaset/001/camera/left_camera/poses.json").unlink()
        told = str(convert(tmp_path / "pandaset", tmp_path / "out"))
        assert "2 drives, 2 scans of each lidar" in told
        names = [scene.camera_names for scene in Source(name=str(tmp_path / "out/pandar64")).scenes()]
        assert names == [("front_camera",), ("front_camera", "left_camera")]


def test_cost_of_a_scan(shared_data):
    """Reading and projecting a key frame of nuScenes stays far below a step's time."""
    (scene,) = Source(name=str(shared_data / "mmdetection3d/demo/data/nuscenes")).scenes()
    took = []
    for _ in range(5):
        start = time.perf_counter()
        visible_points(scene.points(), scene.cameras, 0, scene.projection)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.1
