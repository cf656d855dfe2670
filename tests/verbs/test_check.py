"""`check`: what it counts, what it finds, what it refuses."""

import json
import tarfile
from io import BytesIO
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from data.labelled_maker import write_camvid
from data.recording_maker import SIZE, write_depth, write_seven_scenes
from data.scan_maker import write_calibrated
from splatlearn.errors import BadData, UserError
from splatlearn.verbs.check import check

RGBD = {"reader": "rgbd", "up": "known"}
CLOUD = {"reader": "pointcept"}


@pytest.fixture
def recording(tmp_path):
    write_seven_scenes(tmp_path / "room", frames=12)
    return tmp_path / "room"


def cloud(folder, label=None, **arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    np.save(folder / "coord.npy", rng.uniform(0, 4, (40, 3)).astype(np.float32))
    np.save(folder / "segment.npy", np.arange(40) % 3 - 1 if label is None else label)
    for name, value in arrays.items():
        np.save(folder / f"{name}.npy", value)


class TestRecordings:
    def test_numbers(self, recording):
        report = check(str(recording), data_options=RGBD)
        (scene,) = report.scenes
        views = scene.views
        assert (report.reader, scene.name, scene.up, scene.metric) == ("rgbd", "room", "known", "known")
        assert views and (views.count, views.native, views.pairs) == (12, SIZE, 7)
        assert views.field_of_view == pytest.approx((59.5, 46.4), abs=0.1)
        assert views.depth_share == 1 and 1 < views.depth[0] < views.depth[1] < views.depth[2] < 4.5
        assert 0.5 < views.overlap[0] <= views.overlap[1] < 1
        assert views.path == pytest.approx(0.11, abs=0.01)
        assert scene.points is None and not scene.skipped and not scene.warnings

    def test_every_frame_is_decoded(self, recording):
        (recording / "frame-000001.pose.txt").unlink()
        path = recording / "frame-000004.depth.png"
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
        path.write_bytes(data)
        (recording / "frame-000007.depth.png").unlink()
        np.save(recording / "frame-000007.depth.npy", np.full((60, 80), np.nan))
        report = check(str(recording), data_options=RGBD)
        (scene,) = report.scenes
        assert scene.views and scene.views.count == 9
        names = {name for names in scene.skipped.values() for name in names}
        assert names == {"frame-000001", "frame-000004.depth.png", "frame-000007.depth.npy"}
        text = str(report)
        assert "left out 1 (frame-000001): no pose" in text
        assert "frame-000007.depth.npy): no pixel has depth" in text

    def test_estimated_up_is_printed(self, recording):
        report = check(str(recording), data_options={"reader": "rgbd", "up": "estimate"})
        assert "up is (" in str(report) and "estimated" in str(report)

    @pytest.mark.parametrize(
        ("options", "warning"),
        [
            ({"up": "unknown"}, "give --data.up x,y,z"),
            ({"depth_scale": 1.0}, "--data.depth_scale (metres per unit) right?"),
            ({"intrinsics": (5.0, 5.0, 40.0, 30.0)}, "do the intrinsics belong to"),
        ],
    )
    def test_warnings(self, recording, options, warning):
        (scene,) = check(str(recording), data_options=RGBD | options).scenes
        assert any(warning in text for text in scene.warnings)

    def test_poses_the_wrong_way_round(self, recording):
        for i, path in enumerate(sorted(recording.glob("*.pose.txt"))):
            pose = np.loadtxt(path)
            pose[:3, 3] += 0.3 * i
            np.savetxt(path, pose)
        (scene,) = check(str(recording), data_options=RGBD).scenes
        assert any("not camera-to-world" in text for text in scene.warnings)

    def test_another_gap(self, recording):
        (scene,) = check(str(recording), data_options=RGBD, gap=50).scenes
        assert scene.views and scene.views.pairs == 0 and scene.views.overlap == ()
        assert any("no two views about 50 raw frames apart" in text for text in scene.warnings)

    def test_unusable(self, recording):
        for path in recording.glob("*.depth.png"):
            write_depth(path, np.zeros((60, 80)))
        with pytest.raises(UserError, match="12 x depth: no pixel has depth"):
            check(str(recording), data_options=RGBD)

    def test_unusable_after_decoding(self, recording):
        for path in recording.glob("*.depth.png"):
            path.unlink()
            np.save(path.with_suffix(".npy"), np.full((60, 80), np.nan, np.float32))
        with pytest.raises(BadData, match="no scene can be used: no pixel has depth"):
            check(str(recording), data_options=RGBD)

    def test_kitchen(self, shared_data):
        options = {"reader": "rgbd", "stride": 10}
        report = check(str(shared_data / "rgbd_7scenes_redkitchen"), data_options=options)
        views = report.scenes[0].views
        assert views and views.count == 19 and views.native == (640, 480)
        assert views.overlap[1] > 0.8 and report.scenes[0].up == "estimated"


class TestClouds:
    def test_numbers(self, tmp_path):
        cloud(tmp_path / "a", color=np.zeros((40, 3), np.uint8))
        cloud(tmp_path / "b", color=np.zeros((40, 3), np.uint8))
        (tmp_path / "classes.txt").write_text("wall\nfloor\n")
        report = check(str(tmp_path), data_options=CLOUD)
        points = report.scenes[0].points
        assert points and points.count == 40 and points.attributes == ("color", "label")
        assert points.missing == ("normal", "instance") and points.labels == {-1: 14, 0: 13, 1: 13}
        assert report.classes == ("wall", "floor") and report.scenes[0].views is None
        assert "Labels: ignored 35.0%, wall 32.5%, floor 32.5%" in str(report)

    def test_warnings(self, tmp_path):
        colors = np.zeros((40, 3), np.float32)
        colors[2] = np.nan
        cloud(tmp_path, label=np.full(40, -1), color=colors)
        (scene,) = check(str(tmp_path), data_options=CLOUD).scenes
        assert any("every label is -1" in text for text in scene.warnings)
        assert any("color: 1 rows are not finite" in text for text in scene.warnings)

    def test_lengths(self, tmp_path):
        cloud(tmp_path, color=np.zeros((39, 3)))
        with pytest.raises(UserError, match=r"color\.npy has 39 rows"):
            check(str(tmp_path), data_options=CLOUD)

    def test_damaged_clouds_are_named_and_the_rest_is_looked_at(self, tmp_path):
        for name in "abc":
            cloud(tmp_path / name)
        for name in "ac":
            np.save(tmp_path / name / "coord.npy", np.full((40, 3), np.nan))
        report = check(str(tmp_path), data_options=CLOUD)
        assert [scene.name for scene in report.scenes] == ["b"]
        why = "40 of 40 points are not finite; remove such rows from every array of the scene"
        assert report.skipped == {f"{tmp_path / name / 'coord.npy'}: {why}": (name,) for name in "ac"}
        assert "scene left out (1 (a))" in str(report) and "are not finite" in str(report)

    def test_all_are_damaged(self, tmp_path):
        for name in "ab":
            cloud(tmp_path / name)
            np.save(tmp_path / name / "coord.npy", np.full((40, 3), np.nan))
        with pytest.raises(BadData, match=r"no scene can be used: .*/a/coord\.npy: 40 of 40.*; .*/b/coord\.npy"):
            check(str(tmp_path), data_options=CLOUD)

    def test_a_damaged_scan(self, tmp_path):
        write_calibrated(tmp_path)
        (scan, *_) = sorted((tmp_path / "scans").rglob("*.bin"))
        scan.write_bytes(scan.read_bytes()[:-3])
        report = check(str(tmp_path), data_options={"reader": "calibrated"})
        assert len(report.scenes) == 2
        (reason,) = report.skipped
        assert scan.name in reason


def image(value: int, size=(300, 240), kind="PNG", mode="RGB") -> bytes:
    Image.new("RGB", size, (value, 0, 0)).convert(mode).save(buffer := BytesIO(), kind)
    return buffer.getvalue()


def write_tar(path, members) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


class TestImages:
    FILES: ClassVar = {
        "a.png": image(1),
        "b.jpg": image(2, (100, 400), "JPEG"),
        "c.png": image(1),
        "d.webp": image(3, (1000, 224), "WEBP"),
        "e.png": image(4, (8, 8), mode="L"),
        "f.png": image(1),
        "text.jpg": b"<html>",
        "empty.png": b"",
        "spoilt.png": image(5)[:60] + bytes(20) + image(5)[80:],
    }

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "images").mkdir()
        for name, data in self.FILES.items():
            (tmp_path / "images" / name).write_bytes(data)
        return tmp_path / "images"

    @pytest.fixture
    def shards(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SPLATLEARN_CACHE", str(tmp_path / "cache"))
        (tmp_path / "shards").mkdir()
        write_tar(tmp_path / "shards" / "0.tar", dict(list(self.FILES.items())[:4]))
        write_tar(tmp_path / "shards" / "1.tar", dict(list(self.FILES.items())[4:]) | {"a.json": b"{}"})
        return tmp_path / "shards"

    @pytest.mark.parametrize("kind", ["folder", "shards"])
    def test_numbers(self, kind, request):
        report = check(str(request.getfixturevalue(kind)))
        images = report.images
        assert images and images.count == 6 and report.scenes == ()
        assert images.kinds == {"PNG RGB": 3, "JPEG RGB": 1, "WEBP RGB": 1, "PNG L": 1}
        assert (images.smallest, images.median, images.largest) == ((8, 8), (300, 240), (1000, 224))
        assert (images.least, images.small) == (224, 2)
        ((first, *others),) = images.same
        assert first.endswith("a.png") and len(others) == 2
        damaged = {name.rpartition("/")[2]: why for why, names in report.skipped.items() for name in names}
        assert set(damaged) == {"text.jpg", "empty.png", "spoilt.png"} and damaged["empty.png"] == "the file is empty"
        text = str(report)
        assert f"reader {'images' if kind == 'folder' else 'shards'}, 6 image(s)" in text
        assert "1000x224" in text and "below 224 px" in text and "image left out (1 (" in text
        assert "the same: 3 (" in text

    def test_damage_that_is_found_only_by_decoding(self, folder):
        report = check(str(folder), data_options={"check": False}, small=8)
        assert report.images and report.images.small == 0
        assert sum(map(len, report.skipped.values())) == 3

    def test_many_copies(self, tmp_path):
        for number in range(16):
            (tmp_path / f"{number:02}.png").write_bytes(image(number // 2))
        text = str(check(str(tmp_path)))
        assert text.count("the same: 2 (") == 6 and "and 2 more that are there several times" in text

    def test_a_damaged_shard(self, shards):
        whole = (shards / "1.tar").read_bytes()
        (shards / "1.tar").write_bytes(whole[:1000])
        report = check(str(shards))
        assert report.images and report.images.count == 5
        assert any("damaged shard, 1 images of it are kept" in why for why in report.skipped)

    def test_nothing_can_be_used(self, tmp_path):
        (tmp_path / "a.png").write_bytes(self.FILES["spoilt.png"])
        with pytest.raises(BadData, match="no image can be used: cannot be decoded"):
            check(str(tmp_path), data_options={"reader": "images"})

    def test_json(self, folder, tmp_path):
        report = check(str(folder), json=tmp_path / "report.json")
        assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))


class TestLabelledImages:
    def test_numbers(self, tmp_path):
        report = check(str(write_camvid(tmp_path)), small=30)
        assert report.reader == "labelled_images" and report.scenes == ()
        assert report.images and (report.images.count, report.images.small) == (9, 9)
        labels = report.images.labels
        assert labels and labels.count == 9 and labels.wrong == {}
        assert sum(labels.pixels.values()) == 9 * 40 * 28 and labels.pixels[-1] == 9 * 28
        assert set(labels.pixels) == {-1, 0, 1, 2} and labels.never == report.classes[3:]
        text = str(report)
        assert "9 image(s)" in text and "Labels: ignored 2.5%, sky" in text
        assert "classes that no pixel is of: 8 (road, pavement" in text

    def test_what_is_wrong_with_them(self, tmp_path):
        annotations = write_camvid(tmp_path, train=7) / "trainannot"
        (annotations / "000.png").unlink()
        (annotations / "001.png").write_bytes(b"no image")
        for number, label in ((2, np.full((28, 40), 77)), (3, np.full((28, 40), 77)), (4, np.zeros((40, 28)))):
            Image.fromarray(label.astype(np.uint8)).save(annotations / f"00{number}.png")
        Image.new("RGB", (40, 28)).save(annotations / "005.png")
        (tmp_path / "train" / "006.png").write_bytes(b"no image")
        report = check(str(tmp_path), data_options={"ignore": (2,)})
        assert report.images and (report.images.count, len(report.classes)) == (8, 10)
        labels = report.images.labels
        assert labels and labels.count == 3 and set(labels.pixels) == {-1, 0, 1}
        assert {names: why.split(";")[0] for why, names in labels.wrong.items()} == {
            ("train/001.png",): "cannot be decoded (of no known format)",
            ("train/002.png", "train/003.png"): "ids [77] are no class",
            ("train/004.png",): "they are of 28x40 pixels, the image of 40x28",
            ("train/005.png",): "one channel of 8 bits is expected, ids, got uint8 (28, 40, 3)",
        }
        left_out = {name: why for why, names in report.skipped.items() for name in names}
        assert left_out == {
            "train/000.png": "it has no labels",
            "train/006.png": "cannot be decoded (of no known format)",
        }
        text = " ".join(str(report).split())
        assert "labels that cannot be used, 2 (train/002.png, train/003.png): ids [77] are no class" in text
        assert "image left out (1 (train/000.png)): it has no labels" in text
        assert json.loads(json.dumps(report.to_dict()))["images"]["labels"]["count"] == 3


class TestOutput:
    def test_json(self, recording, tmp_path):
        file = tmp_path / "out" / "report.json"
        report = check(str(recording), data_options=RGBD, json=file)
        written = json.loads(file.read_text())
        assert written == json.loads(json.dumps(report.to_dict()))
        assert written["scenes"][0]["views"]["count"] == 12 and written["reader"] == "rgbd"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": (0, 0)}, "--size: a width and height of 1 or more are needed, got 0,0"),
            ({"gap": -5}, "--gap: 1 or more is needed, got -5"),
            ({"small": 0}, "--small: 1 pixel or more is needed, got 0"),
        ],
    )
    def test_bad_numbers(self, recording, options, message):
        with pytest.raises(UserError, match=message):
            check(str(recording), data_options=RGBD, **options)

    def test_everything_that_is_wrong_is_told_at_once(self, tmp_path):
        with pytest.raises(UserError) as caught:
            check("nowhere", gap=0, size=(0, 1), json=tmp_path)
        starts = [line.split(":")[0] for line in str(caught.value).splitlines()]
        assert starts == ["--gap", "--size", f"--json {tmp_path}", "--data nowhere"]

    @pytest.mark.parametrize(("target", "message"), [("room", "this is a folder"), ("file/r.json", "file is a file")])
    def test_a_report_that_cannot_be_written(self, recording, tmp_path, target, message):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match=f"--json .*{message}"):
            check("never opened", json=tmp_path / target)

    @pytest.mark.parametrize("name", ["nowhere", "rooms.nothing"])
    def test_no_such_data(self, name):
        with pytest.raises(UserError, match=r"nowhere: no such file|no preset 'nothing'"):
            check(name)
