"""Images with classes of pixels: CamVid's, ADE20K's and Cityscapes' folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.labelled_maker import write_camvid
from splatlearn.data.labelled_images import CAMVID, CITYSCAPES, LabelledImagesConfig
from splatlearn.data.sampling import split_scenes
from splatlearn.data.scene import Rejected, Source
from splatlearn.errors import BadData, ConfigError, MissingData


def source(path, **options) -> Source:
    return Source(name=str(path), options=options)


def save(path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def pair(path_of_image, path_of_label, ids, size=(6, 4)) -> None:
    save(path_of_image, np.zeros((size[1], size[0], 3), np.uint8))
    save(path_of_label, np.resize(np.array(ids, np.uint8), (size[1], size[0])))


class TestCamVid:
    def test_splits_names_and_labels(self, tmp_path):
        data = source(write_camvid(tmp_path))
        scenes = data.scenes()
        assert tuple(data.reader().classes) == CAMVID[:-1]
        assert [s.name for s in split_scenes(scenes, "val")] == ["val/000.png", "val/001.png", "val/002.png"]
        (label,), (image,) = scenes[0].pixel_labels([0]), scenes[0].images([0])
        assert label.shape == image.shape[1:] and label.dtype == torch.int64
        assert bool((label[:, 0] == -1).all()) and set(label[:, 1:].unique().tolist()) <= {0, 1, 2}

    def test_real_ones(self, shared_data):
        data = source(shared_data / "camvid")
        scenes = data.scenes()
        assert len(split_scenes(scenes, "train")) == 47 and len(split_scenes(scenes, "val")) == 20
        seen = {int(c) for scene in scenes for c in scene.pixel_labels([0])[0].unique()}
        assert seen == {-1, *range(11)}

    def test_what_has_no_labels_is_named(self, tmp_path):
        write_camvid(tmp_path)
        (tmp_path / "trainannot" / "002.png").unlink()
        data = source(tmp_path)
        assert len(data.scenes()) == 8
        assert [s.name for s in data.reader().skipped] == ["train/002.png"]

    def test_own_classes(self, tmp_path):
        write_camvid(tmp_path)
        data = source(tmp_path, classes=("a", "b", "c"), ignore=(1, 11))
        assert tuple(data.reader().classes) == ("a", "c")
        found = {int(c) for s in data.scenes() for c in s.pixel_labels([0])[0].unique()}
        assert found == {-1, 0, 1}

    def test_ignored_classes_of_the_layout(self, tmp_path):
        pair(tmp_path / "train" / "a.png", tmp_path / "trainannot" / "a.png", [0, 1, 10, 11])
        data = source(tmp_path, ignore=(0,))
        classes = data.reader().classes
        assert tuple(classes) == CAMVID[1:-1]
        found = data.scenes()[0].pixel_labels([0])[0].unique().tolist()
        assert found == [-1, 0, 9] and (classes[0], classes[9]) == ("building", "bicyclist")
        with pytest.raises(BadData, match="every class is ignored"):
            source(tmp_path, classes=("a", "b"), ignore=(0, 1)).scenes()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"ignore": (300, 3)}, "ignore: ids from 0 to 255 expected, got 300"),
            ({"ignore": (-5,)}, "ignore: ids from 0 to 255 expected, got -5"),
            ({"classes": ("a",) * 256}, "classes: at most 255 names, of the ids 0 to 254, got 256"),
            ({"max_images": 0}, "max_images: 1 or more"),
        ],
    )
    def test_options_that_cannot_be(self, options, message):
        with pytest.raises(ConfigError, match=message):
            LabelledImagesConfig(**options)

    def test_names_are_unique(self, tmp_path):
        for folder in "xyz":
            pair(tmp_path / "train" / folder / "0.png", tmp_path / "trainannot" / folder / "0.png", [0])
        (tmp_path / "trainannot" / "z" / "0.png").unlink()
        data = source(tmp_path)
        assert [scene.name for scene in data.scenes()] == ["train/x/0.png", "train/y/0.png"]
        assert [skip.name for skip in data.reader().skipped] == ["train/z/0.png"]

    def test_exif_turns_neither(self, tmp_path):
        pair(tmp_path / "train" / "a.jpg", tmp_path / "trainannot" / "a.png", [0, 1])
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (6, 4)).save(tmp_path / "train" / "a.jpg", exif=exif)
        (scene,) = source(tmp_path).scenes()
        assert scene.images([0])[0].shape[1:] == scene.pixel_labels([0])[0].shape == (4, 6)

    def test_an_id_that_is_no_class(self, tmp_path):
        pair(tmp_path / "train" / "a.png", tmp_path / "trainannot" / "a.png", [0, 40])
        with pytest.raises(BadData, match=r"a\.png: ids \[40\] are no class.*--data\.ignore"):
            source(tmp_path).scenes()[0].pixel_labels([0])

    def test_colours_where_ids_should_be(self, tmp_path):
        write_camvid(tmp_path)
        save(tmp_path / "trainannot" / "000.png", np.zeros((28, 40, 3), np.uint8))
        with pytest.raises(BadData, match="one channel of 8 bits is expected"):
            source(tmp_path).scenes()[0].pixel_labels([0])

    def test_a_damaged_file_is_drawn_again(self, tmp_path):
        write_camvid(tmp_path)
        for folder in ("train", "trainannot"):
            (tmp_path / folder / "000.png").write_bytes(b"no image")
        scene = source(tmp_path).scenes()[0]
        for read in (scene.images, scene.pixel_labels):
            with pytest.raises(Rejected, match="cannot be read"):
                read([0])

    def test_labels_that_are_damaged_within(self, tmp_path):
        write_camvid(tmp_path)
        file = tmp_path / "trainannot" / "000.png"
        whole = file.read_bytes()
        scene = source(tmp_path).scenes()[0]
        for place in (33, 41, len(whole) // 2):  # the length of the chunk with the pixels, its start, its middle
            file.write_bytes(whole[:place] + bytes(4) + whole[place + 4 :])
            with pytest.raises(Rejected, match=r"labels cannot be read \(train/000\.png: cannot be decoded"):
                scene.pixel_labels([0])

    def test_at_most(self, tmp_path):
        assert len(source(write_camvid(tmp_path), max_images=2).scenes()) == 4

    def test_none_at_all(self, tmp_path):
        for folder in ("train", "trainannot"):
            (tmp_path / folder).mkdir()
        with pytest.raises(BadData, match="no image has labels"):
            source(tmp_path).scenes()


class TestOthers:
    def test_ade20k(self, tmp_path):
        for split in ("training", "validation"):
            pair(tmp_path / "images" / split / "A.jpg", tmp_path / "annotations" / split / "A.png", [0, 1, 150])
        data = source(tmp_path)
        assert len(data.reader().classes) == 150
        scene, other = data.scenes()
        assert (scene.split, other.split) == ("train", "val")
        assert set(scene.pixel_labels([0])[0].unique().tolist()) == {-1, 0, 149}

    def test_cityscapes(self, tmp_path):
        for split in ("train", "val"):
            image = tmp_path / "leftImg8bit" / split / "ulm" / "ulm_1_leftImg8bit.png"
            pair(image, tmp_path / "gtFine" / split / "ulm" / "ulm_1_gtFine_labelIds.png", [0, 7, 33, 3])
        data = source(tmp_path)
        assert tuple(data.reader().classes) == tuple(CITYSCAPES) and len(CITYSCAPES) == 19
        assert set(data.scenes()[0].pixel_labels([0])[0].unique().tolist()) == {-1, 0, 18}

    def test_scenes_without(self, tmp_path):
        save(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
        with pytest.raises(MissingData, match="no labels of pixels"):
            source(tmp_path).scenes()[0].pixel_labels([0])

    def test_rooms_have_them(self):
        scene = Source(name="rooms.tiny").scenes()[0]
        (image,), (label,) = scene.images([0]), scene.pixel_labels([0])
        assert label.shape == image.shape[1:] and int(label.min()) >= 0
        assert int(label.max()) < len(Source(name="rooms.tiny").reader().classes)
