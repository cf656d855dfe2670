"""Folders of images and their groups: what is found, converted and left out, and how samples come about."""

import logging
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.photo_maker import write_colmap
from splatlearn.data.image_folders import ImagesConfig, ImagesReader
from splatlearn.data.image_groups import ImageGroups, Photos
from splatlearn.data.photo_augment import PhotoAugmentation
from splatlearn.data.scene import Rejected, Source
from splatlearn.engine.loader import Loader
from splatlearn.errors import BadData, ConfigError

COLOR = (200, 100, 40)
TEACHERS = ("dino2", "mast3r")


def fill(folder: Path, count: int, size=(20, 16), color=COLOR) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, color).save(folder / f"{number:03}.png")
    return folder


def read(folder: Path, **options):
    return ImagesReader(ImagesConfig(**options), folder).scenes()


class TestReader:
    def test_nested_folders_in_any_case(self, tmp_path):
        fill(tmp_path / "b" / "c", 2)
        Image.new("RGB", (9, 7)).save(tmp_path / "b" / "A.JPEG")
        Image.new("RGB", (9, 7)).save(tmp_path / "z.WebP")
        (tmp_path / "notes.txt").write_text("no image")
        fill(tmp_path / ".hidden", 1)
        scenes = read(tmp_path)
        assert [scene.name for scene in scenes] == ["b/A.JPEG", "b/c/000.png", "b/c/001.png", "z.WebP"]
        assert [tuple(scene.images([0])[0].shape) for scene in scenes] == [(3, 7, 9), *[(3, 16, 20)] * 2, (3, 7, 9)]
        assert [scene.name for scene in read(tmp_path, pattern="b/c/*")] == ["b/c/000.png", "b/c/001.png"]
        assert [scene.name for scene in read(tmp_path, max_images=2)] == ["b/A.JPEG", "b/c/001.png"]

    def test_splits_by_folder(self, tmp_path):
        for split in ("train", "val"):
            fill(tmp_path / split / "dogs", 1)
        assert {scene.name: scene.split for scene in read(tmp_path)} == {
            "train/dogs/000.png": "train",
            "val/dogs/000.png": "val",
        }

    def test_damaged_images_are_named(self, tmp_path, caplog):
        fill(tmp_path, 3)
        whole = (tmp_path / "000.png").read_bytes()
        (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "text.jpg").write_text("no image")
        reader = ImagesReader(ImagesConfig(), tmp_path)
        with caplog.at_level(logging.WARNING):
            assert len(reader.scenes()) == 3
        assert {name for name, _ in reader.skipped} == {"cut.png", "empty.jpg", "text.jpg"}
        assert "3 images are left out" in caplog.text and "cut.png" in caplog.text

    def test_damage_that_only_decoding_shows(self, tmp_path, caplog):
        fill(tmp_path, 1)
        bytes_ = bytearray((tmp_path / "000.png").read_bytes())
        bytes_[50:60] = bytes(10)
        (tmp_path / "000.png").write_bytes(bytes_)
        (scene,) = read(tmp_path)
        with caplog.at_level(logging.WARNING), pytest.raises(Rejected, match=r"cannot be read \(000\.png"):
            scene.images([0])
        assert "000.png" in caplog.text

    def test_nothing_to_read(self, tmp_path):
        with pytest.raises(BadData, match=r"no image found that fits '\*', of \.jpg"):
            read(tmp_path)
        (tmp_path / "a.png").touch()
        with pytest.raises(BadData, match=r"all 1 are damaged: 1 x the file is empty \(first: a\.png\)"):
            read(tmp_path)
        with pytest.raises(ConfigError, match="max_images: 1 or more"):
            ImagesConfig(max_images=0)

    def test_found_by_a_path_alone_where_no_other_reader_takes_it(self, tmp_path):
        fill(tmp_path / "plain" / "deep", 2)
        assert isinstance(Source(name=str(tmp_path / "plain")).reader(), ImagesReader)
        write_colmap(tmp_path / "posed", frames=3)
        assert not isinstance(Source(name=str(tmp_path / "posed")).reader(), ImagesReader)
        assert len(Source(name=str(tmp_path / "posed"), options={"reader": "images"}).scenes()) == 3


class TestConversion:
    """Every kind of file becomes RGB in [0, 1]."""

    def value(self, path: Path, image: Image.Image, **options) -> np.ndarray:
        image.save(path, **options)
        (scene,) = read(path.parent, pattern=path.name)
        (found,) = scene.images([0])
        assert found.dtype == torch.float32 and found.shape[0] == 3
        return (found[:, 3, 3] * 255).numpy()

    def test_cmyk(self, tmp_path):
        image = Image.new("CMYK", (8, 8), (55, 155, 215, 0))
        assert self.value(tmp_path / "a.jpg", image, quality=100) == pytest.approx(COLOR, abs=3)
        assert self.value(tmp_path / "a.tif", image) == pytest.approx(COLOR, abs=1)

    def test_grey_of_16_bits(self, tmp_path):
        image = Image.fromarray(np.full((8, 8), 0x8080, np.uint16))
        for suffix in ("png", "tif"):
            assert self.value(tmp_path / f"a.{suffix}", image) == pytest.approx([128] * 3)
        white = Image.fromarray(np.full((8, 8), 0xFFFF, np.uint16))
        assert self.value(tmp_path / "white.png", white) == pytest.approx([255] * 3)

    def test_palette_grey_alpha(self, tmp_path):
        image = Image.new("RGB", (8, 8), COLOR)
        assert self.value(tmp_path / "p.png", image.quantize(4)) == pytest.approx(COLOR)
        assert self.value(tmp_path / "l.png", Image.new("L", (8, 8), 77)) == pytest.approx([77] * 3)
        assert self.value(tmp_path / "1.png", Image.new("1", (8, 8), 1)) == pytest.approx([255] * 3)
        image.putalpha(51)
        assert self.value(tmp_path / "a.png", image) == pytest.approx([0.2 * c + 0.8 * 255 for c in COLOR], abs=1)

    def test_floats_are_refused(self, tmp_path):
        Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a.tif")
        (scene,) = read(tmp_path)
        with pytest.raises(Rejected, match="8 or 16 bits a channel expected"):
            scene.images([0])

    def test_turned_as_the_camera_says(self, tmp_path):
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[:, 8:] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn clockwise puts it upright
        Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
        (image,) = read(tmp_path)[0].images([0])
        assert image.shape == (3, 16, 8)
        assert float(image[:, :6].max()) < 0.1 and float(image[:, 10:].min()) > 0.9

    def test_turned_clockwise_by_its_name(self, tmp_path):
        """As Pillow's rotation by -90 degrees, which is torchvision's, too."""
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8))
        for folder in ("bodies", "bodies_closeup_2"):
            (tmp_path / folder).mkdir()
            image.save(tmp_path / folder / "a.png")
        plain, turned = (scene.images([0])[0] for scene in read(tmp_path, rotate_clockwise="*closeup*"))
        expected = np.asarray(image.rotate(-90, expand=True))
        assert np.array_equal((turned * 255).round().permute(1, 2, 0), expected) and turned.shape == (3, 8, 5)
        assert torch.equal(turned[:, 0, -1], plain[:, 0, 0])  # what was above on the left is on the right then
        assert all(torch.equal(scene.images([0])[0], plain) for scene in read(tmp_path))


def groups(tmp_path: Path, **options) -> ImageGroups:
    """12 red images of dino2, 5 green ones of mast3r, 5 blue ones of nobody."""
    made = {"dino2": ("red", 12), "mast3r": ("green", 5), "other": ("blue", 5)}
    sources = {
        name: (Source(name=str(fill(tmp_path / name, n, color=color)), options={"reader": "images"}),)
        for name, (color, n) in made.items()
    }
    return ImageGroups(**{"groups": sources, "teachers": TEACHERS, "size": (12, 10), **options})


class TestGroups:
    def test_samples(self, tmp_path):
        data = groups(tmp_path, augmentation=PhotoAugmentation(jitter=0, grey=0, solarize=0))
        for name, channel, number in (("dino2", 0, 0), ("mast3r", 1, 1), ("other", 2, -1)):
            scene = data.scenes("train")[name][0]
            photos = data.sample(scene, np.random.default_rng(0))
            assert photos.images.images.shape == (1, 3, 10, 12)
            assert int(photos.images.images.mean((0, 2, 3)).argmax()) == channel
            assert photos.images["group"].tolist() == [number] and photos.names == (scene.name,)
            coins = photos.images["coins"]
            assert coins.shape == (1, 2) and coins.dtype == torch.float32 and bool(((coins >= 0) & (coins < 1)).all())

    def test_splits_have_nothing_in_common(self, tmp_path):
        data = groups(tmp_path)
        train, val = data.scenes("train"), data.scenes("val")
        assert {name: (len(train[name]), len(val[name])) for name in train} == {
            "dino2": (10, 2),
            "mast3r": (4, 1),
            "other": (4, 1),
        }
        assert not any({s.name for s in train[name]} & {s.name for s in val[name]} for name in train)

    def test_groups_take_turns_and_smaller_ones_cycle(self, tmp_path):
        data = groups(tmp_path)
        names = [
            (int(batch.images["group"][i]), batch.names[i])
            for batch in Loader({"train": data}, {"train": 0}, batch=6).steps("train", 0, 20)
            for i in range(6)
        ]
        assert Counter(group for group, _ in names) == {0: 40, 1: 40, -1: 40}
        for group, size in ((0, 10), (1, 4), (-1, 4)):
            mine = [name for g, name in names if g == group]
            epochs = [tuple(mine[i : i + size]) for i in range(0, 40, size)]
            assert all(len(set(epoch)) == size for epoch in epochs) and len(set(epochs)) > 1

    def test_by_size(self, tmp_path):
        data = groups(tmp_path, balance="size")
        (batch,) = Loader({"train": data}, {"train": 0}, batch=18).steps("train", 0, 1)
        assert Counter(batch.images["group"].tolist()) == {0: 10, 1: 4, -1: 4}

    def test_a_run_goes_on_where_it_stopped_on_any_rank(self, tmp_path):
        data = groups(tmp_path)
        whole = list(Loader({"train": data}, {"train": 3}, batch=4).steps("train", 0, 5))
        ranks = [Loader({"train": data}, {"train": 3}, batch=4, rank=r, ranks=2).steps("train", 3, 5) for r in (0, 1)]
        for batch, parts in zip(whole[3:], zip(*ranks, strict=True), strict=True):
            joined = Photos.pack(list(parts))
            assert joined.names == batch.names
            assert torch.equal(joined.images.images, batch.images.images)
            assert torch.equal(joined.images["coins"], batch.images["coins"])

    def test_a_damaged_image_is_drawn_again(self, tmp_path):
        data = groups(tmp_path)
        data.scenes("train")
        for path in sorted((tmp_path / "mast3r").iterdir())[1:]:
            path.write_bytes(path.read_bytes()[:40])
        loader = Loader({"train": data}, {"train": 0}, batch=3)
        rejected: Counter[str] = Counter()
        for batch in loader.steps("train", 0, 8):
            rejected += loader.rejected
            assert sorted(batch.images["group"].tolist()) == [-1, 0, 1]
        assert rejected["an image cannot be read"] > 0

    def test_evaluation_takes_the_middle(self, tmp_path):
        data = groups(tmp_path, augment=False)
        scene = data.scenes("val")["dino2"][0]
        first, second = (data.sample(scene, np.random.default_rng(seed)) for seed in (0, 1))
        assert torch.equal(first.images.images, second.images.images) and data.shares() == {}

    def test_recordings_give_views(self, tmp_path):
        write_colmap(tmp_path / "posed", frames=6)
        source = Source(name=str(tmp_path / "posed"))
        data = ImageGroups(groups={"mast3r": (source,)}, teachers=TEACHERS, size=(12, 10))
        (scene,) = data.scenes("train")["mast3r"]
        names = {data.sample(scene, np.random.default_rng(seed)).names[0] for seed in range(20)}
        assert len(names) > 2 and all(": view " in name for name in names)

    def test_travels_to_workers(self, tmp_path):
        data = groups(tmp_path)
        data.scenes("train")
        copied = pickle.loads(pickle.dumps(data))
        assert [s.name for s in copied.scenes("val")["dino2"]] == [s.name for s in data.scenes("val")["dino2"]]

    def test_errors(self, tmp_path):
        with pytest.raises(ConfigError, match="groups: at least one"):
            ImageGroups(groups={}, teachers=TEACHERS, size=(12, 10))
        with pytest.raises(ConfigError, match="at least 9x9 pixels are needed, got 4x10"):
            groups(tmp_path, size=(4, 10))
        empty = Source(name=str(fill(tmp_path / "empty", 0)), options={"reader": "images"})
        with pytest.raises(BadData, match=r"^group 'mast3r': .*empty: no image found"):
            ImageGroups(groups={"mast3r": (empty,)}, teachers=TEACHERS, size=(12, 10)).scenes("train")
        few = Source(name=str(fill(tmp_path / "few", 3)), options={"reader": "images"})
        with pytest.raises(BadData, match=r"^group 'dino2': .*few: 3 images cannot be split for validation; 5 are"):
            ImageGroups(groups={"dino2": (few,)}, teachers=TEACHERS, size=(12, 10)).scenes("train")
