"""Labelled clouds: Pointcept folders and .npz files, partial sets, messages."""

import numpy as np
import pytest
import torch

from splatlearn.data.pointcept import PointceptConfig, PointceptReader
from splatlearn.data.scene import Source
from splatlearn.errors import BadData, ConfigError

N = 50


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "coord": rng.normal(size=(N, 3)).astype(np.float32),
        "color": rng.integers(0, 256, (N, 3)).astype(np.uint8),
        "normal": rng.normal(size=(N, 3)).astype(np.float32),
        "segment20": rng.integers(-1, 5, N).astype(np.int16),
        "segment200": rng.integers(0, 100, N),
        "instance": rng.integers(-1, 9, N).astype(np.int32),
    }


def write(folder, **changed) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    parts = {k: v for k, v in (arrays() | changed).items() if v is not None}
    for name, array in parts.items():
        np.save(folder / f"{name}.npy", array)
    return parts


def read(path, **options):
    return PointceptReader(PointceptConfig(**options), path).scenes()


def message(path, **options) -> str:
    with pytest.raises(BadData) as caught:
        read(path, **options)[0].points()
    return str(caught.value)


class TestReading:
    def test_smoke(self, tmp_path):
        parts = write(tmp_path / "scene0")
        (scene,) = read(tmp_path)
        points = scene.points()
        assert (scene.name, scene.split, scene.up) == ("scene0", "", "known")
        assert torch.equal(points.xyz, torch.from_numpy(parts["coord"]))
        assert torch.allclose(points["color"] * 255, torch.from_numpy(parts["color"]).float())
        assert torch.allclose(points["normal"].norm(dim=1), torch.ones(N))
        assert points["label"].dtype == points["instance"].dtype == torch.int64
        assert torch.equal(points["label"], torch.from_numpy(parts["segment20"]).long())

    def test_splits_and_names(self, tmp_path):
        for name in ("val/b", "train/c", "train/a", "test/d"):
            write(tmp_path / name)
        found = [(s.name, s.split) for s in read(tmp_path)]
        assert found == [("test/d", "test"), ("train/a", "train"), ("train/c", "train"), ("val/b", "val")]
        assert [s.name for s in read(tmp_path, max_scenes=1)] == ["test/d"]

    def test_one_scene(self, tmp_path):
        write(tmp_path / "office")
        assert read(tmp_path / "office")[0].name == "office"

    def test_partial_sets(self, tmp_path):
        write(tmp_path, color=None, normal=None, segment20=None, segment200=None, instance=None)
        assert not read(tmp_path)[0].points().attributes

    def test_labels_by_name_and_ignored_ids(self, tmp_path):
        parts = write(tmp_path)
        label = read(tmp_path, labels="segment200", ignore=(7, 8))[0].points()["label"]
        expected = np.where(np.isin(parts["segment200"], (7, 8)), -1, parts["segment200"])
        assert np.array_equal(label.numpy(), expected)
        assert "label" not in read(tmp_path, labels="none")[0].points()

    def test_color_of_any_range(self, tmp_path):
        color = arrays()["color"]
        for given in (color, color.astype(np.float32), color / 255):
            write(tmp_path, color=given)
            assert np.allclose(read(tmp_path)[0].points()["color"].numpy(), color / 255, atol=1e-6)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    def test_one_wrong_color_does_not_change_the_others(self, tmp_path, wrong):
        color = arrays()["color"].astype(np.float32)
        color[3, 1] = wrong
        write(tmp_path, color=color)
        found = read(tmp_path)[0].points()["color"].numpy()
        assert np.isnan(found[3, 1]) and np.isnan(found).sum() == 1
        expected = np.where(np.isfinite(color), color / 255, np.nan)
        assert np.allclose(found, expected, atol=1e-6, equal_nan=True)

    def test_npz(self, tmp_path):
        parts = arrays()
        np.savez(tmp_path / "room.npz", xyz=parts["coord"], rgb=parts["color"], semantic=parts["segment20"])
        np.savez(tmp_path / "other.npz", scan=np.zeros(3))
        (scene,) = read(tmp_path)
        assert scene.name == "room" and set(scene.points().attributes) == {"color", "label"}
        assert read(tmp_path / "room.npz")[0].name == "room"
        assert PointceptReader.accepts(tmp_path) and not PointceptReader.accepts(tmp_path / "other.npz")

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("classes.txt", "wall\nfloor\n\nchair\n"),
            ("classes.yaml", "[wall, floor, chair]"),
            ("classes.yml", "{0: wall, 1: floor, 2: chair}"),
            ("classes.yaml", "classes: [wall, floor, chair]"),
        ],
    )
    def test_class_names(self, tmp_path, file, text):
        write(tmp_path / "a")
        (tmp_path / file).write_text(text)
        assert PointceptReader(PointceptConfig(), tmp_path).classes == ("wall", "floor", "chair")
        assert PointceptReader(PointceptConfig(classes=("x",)), tmp_path).classes == ("x",)


class TestMessages:
    def test_lengths_are_checked_at_opening(self, tmp_path):
        write(tmp_path, color=np.zeros((N - 1, 3)))
        with pytest.raises(BadData) as caught:
            read(tmp_path)
        text = str(caught.value)
        assert "color.npy has 49 rows" in text and "coord.npy has 50" in text

    def test_lengths_in_npz(self, tmp_path):
        np.savez(tmp_path / "a.npz", xyz=np.zeros((N, 3)), label=np.zeros(N - 2, int))
        text = message(tmp_path)
        assert "a.npz[label] has 48 rows" in text and "a.npz[xyz] has 50" in text

    def test_nothing_there(self, tmp_path):
        assert "no cloud found" in message(tmp_path) and "coord.npy" in message(tmp_path)

    def test_not_finite(self, tmp_path):
        coordinates = arrays()["coord"]
        coordinates[3] = np.nan
        write(tmp_path, coord=coordinates)
        assert "coord.npy: 1 of 50 points are not finite" in message(tmp_path)

    def test_shape_and_type(self, tmp_path):
        write(tmp_path, segment20=arrays()["coord"][:, 0])
        assert "segment20.npy: whole numbers expected, got float32" in message(tmp_path)
        write(tmp_path, coord=np.zeros((N, 4)))
        assert "coord.npy: (N, 3) expected, got (50, 4)" in message(tmp_path)

    def test_pickles_are_refused(self, tmp_path):
        np.save(tmp_path / "coord.npy", arrays()["coord"])
        np.save(tmp_path / "segment.npy", np.array([{"a": 1}] * N, dtype=object), allow_pickle=True)
        assert "segment.npy: no readable array (pickled objects are never read)" in message(tmp_path)

    def test_truncated_array(self, tmp_path):
        write(tmp_path)
        data = (tmp_path / "color.npy").read_bytes()
        (tmp_path / "color.npy").write_bytes(data[:-20])
        assert "color.npy: no readable array" in message(tmp_path)

    def test_class_without_a_name(self, tmp_path):
        write(tmp_path, segment20=np.full(N, 5))
        text = message(tmp_path, classes=("wall", "floor"))
        assert "segment20.npy: class id 5, but 2 class names (ids 0 to 1)" in text and "--data.ignore 5" in text

    def test_unknown_labels(self, tmp_path):
        write(tmp_path)
        text = message(tmp_path, labels="segment21")
        assert "no labels 'segment21'; did you mean 'segment20'?" in text and "segment200" in text

    def test_unknown_option(self, tmp_path):
        with pytest.raises(ConfigError, match=r"data\.label: unknown; did you mean 'labels'"):
            Source(name=str(tmp_path), options={"reader": "pointcept", "label": "x"}).reader()

    def test_max_scenes(self):
        with pytest.raises(ConfigError, match="max_scenes: 1 or more is needed, got 0"):
            PointceptConfig(max_scenes=0)

    def test_bad_class_file(self, tmp_path):
        write(tmp_path)
        (tmp_path / "classes.yaml").write_text("{1: wall}")
        assert "classes.yaml: a list of names, or ids 0, 1, ..." in message(tmp_path)


class TestRealClouds:
    def test_crop(self, shared_data):
        (scene,) = read(shared_data / "s3dis_crop_spt")
        points = scene.points()
        assert len(points) == 41568 and points["label"].unique().tolist() == [1, 2, 7, 8, 12]
        assert points["color"].min() >= 0 and 0.9 < points["color"].max() <= 1

    def test_room(self, shared_data):
        points = read(shared_data / "s3dis_room_instances")[0].points()
        assert len(points) == 321112 and set(points.attributes) == {"label", "instance"}
