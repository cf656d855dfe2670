"""KITTI's object folders and SemanticKITTI's drives: calibration, labels, splits, real frames, what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data.scan_maker import P2, POINTS, TR, photograph, seen, write_kitti, write_lines, write_semantic_kitti
from splatlearn.data.kitti import CLASSES, LEARNING_MAP, OBJECTS, KittiConfig, KittiReader, SemanticKittiReader
from splatlearn.data.projection import ProjectionRule, visible_points
from splatlearn.data.scene import Rejected, Source
from splatlearn.errors import BadData, MissingData
from splatlearn.structures import Boxes, Points


def objects(path, **options):
    return KittiReader(KittiConfig(**options), path).scenes()


def drives(path, **options):
    return SemanticKittiReader(KittiConfig(**options), path).scenes()


def message(read, path, **options) -> str:
    with pytest.raises(BadData) as caught:
        scenes = read(path, **options)
        scenes[0].points()
        _ = scenes[0].cameras
    return str(caught.value)


def inside(xyz: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """(boxes, points): which lie in which."""
    x, y, z = (xyz[None] - boxes.centers[:, None]).unbind(-1)
    cos, sin = boxes.yaws.cos()[:, None], boxes.yaws.sin()[:, None]
    local = torch.stack([cos * x + sin * y, cos * y - sin * x, z], -1).abs()
    return (local <= boxes.sizes[:, None] / 2).all(-1)


class TestObjects:
    def test_projection(self, tmp_path):
        """As the whole chain P2 R0 Tr of homogeneous points has it, its fourth column included."""
        truths = write_kitti(tmp_path)
        scenes = Source(name=str(tmp_path)).scenes()
        assert [scene.name for scene in scenes] == list(truths)
        for scene in scenes:
            points, truth = scene.points(), truths[scene.name]
            assert np.allclose(points["intensity"], truth.intensity) and "label" not in points
            assert scene.intensity_statistics == (0.28613698, 0.14090556)
            rows, pixels = visible_points(points, scene.cameras, 0, scene.projection)
            expected = seen(truth, "image_2", depth=0.0)
            assert rows.tolist() == expected[truth.xyz[expected, 0] > 1].tolist() and len(rows) > 20
            assert np.abs(pixels.numpy() - truth.pixels["image_2"][rows]).max() < 0.01

    def test_points_beside_the_lidar_are_not_seen(self, tmp_path):
        """ScaLR's rule is x > 1 m, and asks for no depth: the camera stands 0.3 m ahead of the lidar."""
        write_kitti(tmp_path, scans=1)
        (scene,) = objects(tmp_path)
        xyz = torch.tensor([[0.9, 0, -0.05], [1.1, 0, -0.05], [-5, 0, 0]])
        points = Points(xyz=xyz, counts=(3,))
        assert visible_points(points, scene.cameras, 0, scene.projection).rows.tolist() == [1]
        assert visible_points(points, scene.cameras, 0, ProjectionRule(min_depth=0.0)).rows.tolist() == [0, 1]

    def test_boxes(self, tmp_path):
        write_kitti(tmp_path, scans=1)
        boxes = objects(tmp_path)[0].boxes()
        assert boxes["label"].tolist() == [OBJECTS.index("Car")]
        assert boxes.sizes.tolist() == [[pytest.approx(4.2), pytest.approx(1.8), pytest.approx(1.5)]]
        assert np.allclose(boxes.centers, [[10, 2, -0.75]], atol=0.02), "the bottom's middle lies on the road"
        assert abs(float(boxes.yaws)) < 0.02

    def test_splits(self, tmp_path):
        write_kitti(tmp_path)
        assert {scene.split for scene in objects(tmp_path)} == {""}
        (tmp_path / "ImageSets").mkdir()
        (tmp_path / "ImageSets/train.txt").write_text("000000\n000002\n")
        (tmp_path / "ImageSets/val.txt").write_text("000001\n")
        assert [scene.split for scene in objects(tmp_path)] == ["train", "val", "train"]
        (tmp_path / "training").rename(tmp_path / "testing")
        assert {scene.split for scene in objects(tmp_path)} == {"test"}

    def test_partial(self, tmp_path):
        write_kitti(tmp_path)
        (tmp_path / "training/image_2/000000.png").unlink()
        (tmp_path / "training/image_2/000001.png").write_bytes(b"no image")
        (tmp_path / "training/calib/000002.txt").unlink()
        scenes = objects(tmp_path)
        assert [len(scene.cameras) for scene in scenes] == [0, 0, 0] and scenes[2].camera_names == ()
        reasons = [scene.skipped[0].reason for scene in scenes]
        assert reasons[0] == "the image is missing" and "no readable image" in reasons[1] and "calib" in reasons[2]
        assert [len(scene.points()) for scene in scenes] == [POINTS] * 3
        with pytest.raises(MissingData, match="no boxes"):
            scenes[2].boxes()

    def test_sizes_differ_between_drives(self, tmp_path):
        write_kitti(tmp_path, scans=2)
        photograph(tmp_path / "training/image_2/000001.png", (170, 92))
        assert [(s.cameras.width, s.cameras.height) for s in objects(tmp_path)] == [(160, 90), (170, 92)]

    def test_refused(self, tmp_path):
        write_kitti(tmp_path, scans=1)
        file = tmp_path / "training/calib/000000.txt"
        write_lines(file, {"P2": P2, "R0_rect": 2 * np.eye(3), "Tr_velo_to_cam": TR})
        assert "R0_rect: not a rigid motion" in message(objects, tmp_path)
        write_lines(file, {"P2": P2})
        assert "a line `Tr:` (or `Tr_velo_to_cam:`) with 12 numbers" in message(objects, tmp_path)
        write_lines(file, {"P2": P2[:, :3], "Tr_velo_to_cam": TR})
        assert "a line `P2:` with 12 numbers" in message(objects, tmp_path)
        file.write_text("P2: a b c\n")
        assert "lines of a name and numbers expected" in message(objects, tmp_path)
        scan = tmp_path / "training/velodyne/000000.bin"
        scan.write_bytes(scan.read_bytes()[:-5])
        assert "9595 bytes are no whole number of records of 4 x float32 (16 bytes)" in message(objects, tmp_path)
        scan.unlink()
        assert "no scan that could be used; looked for training/velodyne" in message(objects, tmp_path)

    def test_real_frames(self, shared_data):
        """The lidar's points lie in the boxes that people drew on the photographs."""
        first, second = objects(shared_data / "kitti_object")
        points = first.points()
        assert len(points) == 115384 and inside(points.xyz, first.boxes()).sum() == 377
        rows, pixels = visible_points(points, first.cameras, 0, first.projection)
        assert len(rows) == pytest.approx(20222, abs=20)
        (person,) = (line.split() for line in (shared_data / "kitti_object/training/label_2/000000.txt").open())
        left, top, right, bottom = map(float, person[4:8])
        body = inside(points.xyz[rows], first.boxes())[0]
        x, y = pixels[body].unbind(1)
        assert ((x > left - 2) & (x < right + 2) & (y > top - 2) & (y < bottom + 2)).all() and len(x) > 300
        assert len(second.boxes()) == 3 and inside(second.points().xyz, second.boxes()).sum(1).min() > 5

    def test_real_info(self, shared_data):
        (scene,) = Source(name=str(shared_data / "mmdetection3d/demo/data/kitti")).scenes()
        points = scene.points()
        seen_rows = visible_points(points, scene.cameras, 0, scene.projection).rows
        assert len(points) == 17238 and len(seen_rows) > 17000, "the file holds what the camera sees"
        assert inside(points.xyz, scene.boxes())[0].sum() > 1300 and set(scene.boxes()["label"].tolist()) == {2}


def test_infos_of_all_that_others_hold_by_split(tmp_path):
    for name, count in (("train", 3), ("val", 2), ("trainval", 5)):
        numbers = range(3, 5) if name == "val" else range(count)
        entries = [{"lidar_points": {"lidar_path": f"{n:06d}.bin"}, "images": {"CAM2": {}}} for n in numbers]
        (tmp_path / f"kitti_infos_{name}.pkl").write_bytes(pickle.dumps({"data_list": entries}))
        for n in numbers:
            (tmp_path / f"{n:06d}.bin").write_bytes(bytes(16))
    assert [(s.name, s.split) for s in objects(tmp_path)] == [
        *((f"{n:06d}", "train") for n in range(3)),
        *((f"{n:06d}", "val") for n in range(3, 5)),
    ]
    (tmp_path / "kitti_infos_train.pkl").unlink()
    (tmp_path / "kitti_infos_val.pkl").unlink()
    assert [s.split for s in objects(tmp_path)] == [""] * 5


class TestDrives:
    @pytest.mark.parametrize("apart", [False, True])
    def test_smoke(self, tmp_path, apart):
        truths = write_semantic_kitti(tmp_path, apart=apart)
        scenes = Source(name=str(tmp_path)).scenes()
        assert [(s.name, s.split) for s in scenes] == list(zip(truths, ["train", "train", "val", "val"]))
        for scene in scenes[::3]:
            truth, points = truths[scene.name], scene.points()
            assert np.array_equal(points["label"], [LEARNING_MAP[int(raw)] for raw in truth.raw])
            rows, pixels = visible_points(points, scene.cameras, 0, scene.projection)
            assert len(rows) > 20 and np.abs(pixels.numpy() - truth.pixels["image_2"][rows]).max() < 0.01

    def test_moving_things_count_as_what_they_are(self):
        assert LEARNING_MAP[252] == LEARNING_MAP[10] == CLASSES.index("car")
        assert LEARNING_MAP[253] == CLASSES.index("bicyclist") and LEARNING_MAP[254] == CLASSES.index("person")
        assert set(LEARNING_MAP.values()) == set(range(-1, 19))

    def test_where_it_starts(self, tmp_path):
        write_semantic_kitti(tmp_path, drives=(3, 11))
        for path in (tmp_path, tmp_path / "dataset", tmp_path / "dataset/sequences"):
            assert SemanticKittiReader.accepts(path)
            assert [s.split for s in drives(path)] == ["train", "train", "test", "test"]
        (one, _) = drives(tmp_path / "dataset/sequences/03")
        assert one.name == "03/000000" and not KittiReader.accepts(tmp_path)
        assert [s.name for s in drives(tmp_path, max_scans=1)] == ["03/000000", "11/000000"]

    def test_a_drive_by_another_name(self, tmp_path, monkeypatch):
        write_semantic_kitti(tmp_path, drives=(3,))
        (tmp_path / "mine").symlink_to(tmp_path / "dataset/sequences/03")
        monkeypatch.chdir(tmp_path / "mine")
        for path in (tmp_path / "mine", Path()):
            scene = drives(path)[0]
            assert (scene.name, scene.split, scene.drive) == ("03/000000", "train", "03")

    def test_partial(self, tmp_path):
        write_semantic_kitti(tmp_path, drives=(0,))
        folder = tmp_path / "dataset/sequences/00"
        (folder / "image_2/000000.png").unlink()
        first, second = drives(tmp_path)
        assert first.skipped == (("image_2", "the image is missing"),) and len(second.cameras) == 1
        (folder / "calib.txt").unlink()
        _, second = drives(tmp_path)
        assert len(second.cameras) == 0 and "no calib.txt" in second.skipped[0].reason

    def test_image_of_another_size(self, tmp_path):
        write_semantic_kitti(tmp_path, drives=(0,))
        photograph(tmp_path / "dataset/sequences/00/image_2/000001.png", (100, 90))
        with pytest.raises(Rejected, match="100x90 pixels, but its camera image_2 has 160x90"):
            drives(tmp_path)[1].frames([0], (80, 45))

    def test_class_outside_the_map(self, tmp_path):
        write_semantic_kitti(tmp_path, drives=(0,))
        np.full(POINTS, 300 + (7 << 16), "<u4").tofile(tmp_path / "dataset/sequences/00/labels/000000.label")
        assert "class id 300, which the data set's map of classes lacks" in message(drives, tmp_path)
