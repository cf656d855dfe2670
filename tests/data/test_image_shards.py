"""WebDataset shards: what is found, indexed, read and left out, and that a run goes on where it stopped."""

import io
import logging
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splatlearn.data import shard_index
from splatlearn.data.image_folders import ImagesReader
from splatlearn.data.image_groups import ImageGroups, Photos
from splatlearn.data.image_shards import ShardsConfig, ShardsReader, expand
from splatlearn.data.lazy_scenes import JoinedScenes, LazyScenes, joined
from splatlearn.data.sampling import split_scenes
from splatlearn.data.scene import Rejected, Source
from splatlearn.engine.loader import Loader
from splatlearn.errors import BadData, ConfigError

TEACHERS = ("dino2", "mast3r")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def png(value: int, size=(20, 16)) -> bytes:
    Image.new("RGB", size, (value, 10, 20)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def write(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def fill(path: Path, count: int, first: int = 0) -> Path:
    members = {}
    for number in range(first, first + count):
        members |= {f"{number:06}.png": png(number), f"{number:06}.json": b"{}", f"{number:06}.cls": b"3"}
    return write(path, members)


def read(path: Path, **options):
    return ShardsReader(ShardsConfig(**options), path).scenes()


def red(scene) -> int:
    return round(float(scene.images([0])[0][0].mean()) * 255)


class TestReader:
    def test_images_of_every_shard(self, tmp_path):
        fill(tmp_path / "b" / "1.tar", 2, first=3)
        fill(tmp_path / "a.TAR", 3)
        scenes = read(tmp_path)
        names = ["a.TAR/000000.png", "a.TAR/000001.png", "a.TAR/000002.png", "b/1.tar/000003.png", "b/1.tar/000004.png"]
        assert [scene.name for scene in scenes] == names and len(scenes) == 5
        assert [red(scene) for scene in scenes] == [0, 1, 2, 3, 4]
        assert tuple(scenes[-1].images([0])[0].shape) == (3, 16, 20) and scenes[-1].name == names[-1]
        assert [scene.name for scene in scenes[1:4]] == names[1:4]
        assert [scene.name for scene in read(tmp_path, pattern="b/*")] == names[3:]
        assert [scene.name for scene in read(tmp_path, max_images=2)] == [names[0], names[2]]
        assert [scene.name for scene in read(tmp_path / "a.TAR")] == names[:3]
        with pytest.raises(IndexError):
            scenes[5]

    def test_as_webdataset_writes_them(self, tmp_path):
        """By its own writer where that is installed."""
        webdataset = pytest.importorskip("webdataset")
        with webdataset.ShardWriter(str(tmp_path / "set-%06d.tar"), maxcount=3, verbose=0) as writer:
            for number in range(7):
                sample = {"__key__": f"kitchen/{number:05}", "jpg": np.full((8, 8, 3), 30 * number, np.uint8)}
                writer.write({**sample, "json": {"caption": "x"}, "cls": 3})
        scenes = read(tmp_path)
        wanted = [f"set-{number // 3:06}.tar/kitchen/{number:05}.jpg" for number in range(7)]
        assert [scene.name for scene in scenes] == wanted
        assert [red(scene) for scene in scenes] == pytest.approx([30 * number for number in range(7)], abs=1)

    def test_list_of_shards(self, tmp_path):
        for number in range(12):
            fill(tmp_path / "sets" / f"{number:03}.tar", 1, first=number)
        (tmp_path / "list.txt").write_text("# ours\n\nsets/{009..011}.tar\nsets/000.tar\nsets/000.tar\n")
        assert [red(scene) for scene in read(tmp_path / "list.txt")] == [0, 9, 10, 11]
        assert isinstance(Source(name=str(tmp_path / "list.txt")).reader(), ShardsReader)

    def test_braces(self):
        assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
        assert expand("{0..1}/{2..3}") == ["0/2", "0/3", "1/2", "1/3"]
        assert expand("plain.tar") == ["plain.tar"]

    def test_remote_shards_are_read_by_ranges(self, tmp_path):
        fsspec = pytest.importorskip("fsspec")
        data = fill(tmp_path / "a.tar", 3).read_bytes()
        fsspec.filesystem("memory").pipe_file("/ours/train/a.tar", data)
        (tmp_path / "list.txt").write_text("memory://ours/train/a.tar\n")
        scenes = read(tmp_path / "list.txt")
        assert [red(scene) for scene in scenes] == [0, 1, 2]
        assert scenes[0].name == "memory://ours/train/a.tar/000000.png" and scenes[0].split == "train"
        fsspec.filesystem("memory").rm("/ours/train/a.tar")
        with pytest.raises(BadData, match=r"memory://ours/train/a\.tar: the shard cannot be read any more"):
            scenes[1].images([0])
        (tmp_path / "list.txt").write_text("nonsense://a.tar\n")
        with pytest.raises(BadData, match=r"nonsense://a.tar: the shard cannot be read: .*nonsense"):
            read(tmp_path / "list.txt")

    def test_chosen_by_a_path_alone(self, tmp_path):
        fill(tmp_path / "shards" / "a.tar", 2)
        assert isinstance(Source(name=str(tmp_path / "shards")).reader(), ShardsReader)
        assert isinstance(Source(name=str(tmp_path / "shards" / "a.tar")).reader(), ShardsReader)
        (tmp_path / "shards" / "loose.png").write_bytes(png(9))
        assert isinstance(Source(name=str(tmp_path / "shards")).reader(), ImagesReader)

    def test_splits(self, tmp_path):
        for split, first in (("train", 0), ("val", 50)):
            fill(tmp_path / split / "x" / "a.tar", 3, first)
        scenes = read(tmp_path)
        assert [red(scene) for scene in split_scenes(scenes, "val")] == [50, 51, 52]
        shutil.rmtree(tmp_path / "val")
        with pytest.raises(BadData, match=r"3 images cannot be split for validation; 5 are needed"):
            split_scenes(read(tmp_path / "train"), "train")
        fill(tmp_path / "train" / "b.tar", 7, first=3)
        parts = [split_scenes(read(tmp_path / "train"), part) for part in ("train", "val")]
        assert all(isinstance(part, LazyScenes) for part in parts) and [len(part) for part in parts] == [8, 2]
        assert sorted(red(scene) for part in parts for scene in part) == list(range(10))


class TestIndex:
    def test_kept_until_the_shard_changes(self, tmp_path, cache, monkeypatch):
        shard = fill(tmp_path / "a.tar", 2)
        read(tmp_path)
        (kept,) = cache.iterdir()
        made = []
        original = shard_index._make
        monkeypatch.setattr(shard_index, "_make", lambda *a: made.append(a) or original(*a))
        assert len(read(tmp_path)) == 2 and not made
        kept.write_bytes(kept.read_bytes()[:100])
        assert len(read(tmp_path)) == 2 and len(made) == 1
        shard.unlink()
        fill(shard, 5)
        assert len(read(tmp_path)) == 5 and len(made) == 2
        assert not list(cache.glob("*.part"))

    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch):
        fill(tmp_path / "a.tar", 2)
        (tmp_path / "file").touch()
        monkeypatch.setenv("SPLATLEARN_CACHE", str(tmp_path / "file"))
        with pytest.raises(ValueError, match=r"cannot write the cache .* set SPLATLEARN_CACHE"):
            read(tmp_path)

    def test_long_names_and_odd_letters(self, tmp_path):
        names = ["x" * 300 + "/é.png", "b" * 120 + ".PNG", "._a.png", "c.seg.png"]
        write(tmp_path / "a.tar", {name: png(i) for i, name in enumerate(names)})
        for _ in range(2):  # made, then from the cache
            scenes = read(tmp_path)
            assert [scene.name.removeprefix("a.tar/") for scene in scenes] == [names[0], names[1], names[3]]
            assert [red(scene) for scene in scenes] == [0, 1, 3]

    def test_names_with_a_zero_byte(self, tmp_path):
        """Which only extended headers can hold; the cache parts names by it."""
        shard = tmp_path / "a.tar"
        with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
            for number, name in enumerate(["a.png", "b\0c.png", "d.png"]):
                info = tarfile.TarInfo("x.png")
                info.pax_headers, info.size = {"path": name}, len(png(number))
                tar.addfile(info, io.BytesIO(png(number)))
        for _ in range(2):  # made, then from the cache
            reader = ShardsReader(ShardsConfig(), tmp_path)
            assert {scene.name: red(scene) for scene in reader.scenes()} == {"a.tar/a.png": 0, "a.tar/d.png": 2}
            ((_, why),) = reader.skipped
            assert why == r"damaged shard, 2 images of it are kept: the name 'b\x00c.png' holds a zero byte"

    def test_a_cache_whose_arrays_differ_in_length(self, tmp_path, cache):
        fill(tmp_path / "a.tar", 3)
        read(tmp_path)
        (kept,) = cache.iterdir()
        with np.load(kept) as file:
            arrays = dict(file)
        np.savez(kept, **(arrays | {"names": np.frombuffer(b"a\0b\0c\0d\0", np.uint8)}))
        assert [scene.name for scene in read(tmp_path)] == [f"a.tar/{number:06}.png" for number in range(3)]

    def test_small(self, tmp_path):
        """Bytes an image when they travel to a worker: the arrays, and the letters of the names."""
        write(tmp_path / "a.tar", {f"{number:06}.png": b"x" for number in range(2000)})
        assert len(pickle.dumps(read(tmp_path))) / 2000 < 24 + 4 + 10 + 2


class TestDamage:
    def test_cut_shard(self, tmp_path, caplog):
        shard = fill(tmp_path / "a.tar", 4)
        whole = shard.read_bytes()
        with tarfile.open(shard) as tar:
            third = tar.getmember("000002.png")
        for cut, kept, why in (
            (third.offset_data + 10, 2, "it ends within 000002.png"),
            (third.offset + 100, 2, f"it is cut short at byte {third.offset}, after 000001.cls"),
            (third.offset, 2, f"it is cut short at byte {third.offset}, after 000001.cls"),
        ):
            shard.write_bytes(whole[:cut])
            reader = ShardsReader(ShardsConfig(), tmp_path)
            with caplog.at_level(logging.WARNING):
                assert [red(scene) for scene in reader.scenes()] == [0, 1]
            assert reader.skipped == (("a.tar", f"damaged shard, {kept} images of it are kept: {why}"),)
            assert why in caplog.text
        spoilt = bytearray(whole)
        spoilt[third.offset : third.offset + 300] = bytes(range(1, 256)) + bytes(45)
        shard.write_bytes(spoilt)
        reader = ShardsReader(ShardsConfig(), tmp_path)
        assert len(reader.scenes()) == 2 and "it is damaged at byte" in reader.skipped[0].reason

    def test_members_that_are_no_images(self, tmp_path, caplog):
        good = png(7)
        write(tmp_path / "a.tar", {"a.png": good, "b.png": b"text", "c.jpg": b"", "d.png": good[:50], "e.png": good})
        scenes = read(tmp_path)
        with caplog.at_level(logging.WARNING):
            for number in (1, 2, 3, 1):
                with pytest.raises(Rejected, match=r"an image cannot be read \(a\.tar/[bcd]"):
                    scenes[number].images([0])
        assert caplog.text.count("a.tar/b.png") == 1, "named once"
        data = ImageGroups(groups={"dino2": (Source(name=str(tmp_path)),)}, teachers=TEACHERS, size=(12, 10))
        loader = Loader({"train": data}, {"train": 0}, batch=4)
        drawn = [name for batch in loader.steps("train", 0, 6) for name in batch.names]
        assert len(drawn) == 24 and set(drawn) <= {"a.tar/a.png", "a.tar/e.png"}

    def test_left_out_and_named(self, tmp_path):
        write(tmp_path / "a.tar", [("x.png", png(1)), ("x.png", png(2)), ("y.png", png(3))])
        write(tmp_path / "b.tar", {"x.txt": b"text"})
        write(tmp_path / "c.tar", {})
        (tmp_path / "d.tar").touch()
        (tmp_path / "e.tar").write_text("no tar file" * 200)
        reader = ShardsReader(ShardsConfig(), tmp_path)
        assert [red(scene) for scene in reader.scenes()] == [1, 3]
        told = dict(reader.skipped)
        assert told["a.tar/x.png"] == "a name that its shard has twice; the first is taken"
        assert told["b.tar"] == told["c.tar"] == "no image in the shard"
        assert "the file is empty" in told["d.tar"] and "no tar file" in told["e.tar"]

    def test_errors(self, tmp_path):
        with pytest.raises(BadData, match=r"no \.tar file found"):
            read(tmp_path)
        shard = write(tmp_path / "a.tar", {"x.txt": b"text"})
        with pytest.raises(
            BadData, match=r"no image found: 1 shard\(s\) hold 0 images of \.jpg.*no image in the shard"
        ):
            read(tmp_path)
        fill(shard, 3)
        with pytest.raises(BadData, match=r"hold 3 images of .*, none of which fits 'b\*'"):
            read(tmp_path, pattern="b*")
        with pytest.raises(ConfigError, match="max_images: 1 or more"):
            ShardsConfig(max_images=0)
        scenes = read(tmp_path)
        shard.write_bytes(shard.read_bytes()[:600])
        with pytest.raises(BadData, match=r"a\.tar: .* of .* bytes from byte .* it was changed meanwhile"):
            scenes[2].images([0])
        (tmp_path / "list.txt").write_text("gone.tar\n")
        with pytest.raises(BadData, match=r"gone\.tar: the shard cannot be read: "):
            read(tmp_path / "list.txt")

    @pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
    def test_compressed_ones_are_refused(self, tmp_path, name):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a.png"))
        with pytest.raises(BadData, match=r"compressed by gz|compressed by tgz") as caught:
            Source(name=str(tmp_path)).scenes()
        assert "unpack it to .tar" in str(caught.value)


def groups(tmp_path: Path) -> ImageGroups:
    """Two groups, one of shards and loose images together."""
    for number in range(3):
        fill(tmp_path / "dino2" / f"{number}.tar", 4, first=4 * number)
    fill(tmp_path / "mast3r" / "0.tar", 6, first=100)
    (tmp_path / "loose").mkdir(exist_ok=True)
    for number in range(5):
        (tmp_path / "loose" / f"{number}.png").write_bytes(png(200 + number))
    sources = {name: Source(name=str(tmp_path / name)) for name in ("dino2", "mast3r", "loose")}
    return ImageGroups(
        groups={"dino2": (sources["dino2"],), "mast3r": (sources["mast3r"], sources["loose"])},
        teachers=TEACHERS,
        size=(12, 10),
    )


class TestRuns:
    def test_groups_of_shards_and_files(self, tmp_path):
        data = groups(tmp_path)
        train, val = data.scenes("train"), data.scenes("val")
        assert {name: (len(train[name]), len(val[name])) for name in train} == {"dino2": (10, 2), "mast3r": (9, 2)}
        assert isinstance(train["mast3r"], JoinedScenes)
        assert {scene.group for scene in train["mast3r"]} == {"mast3r"}
        assert not any({s.name for s in train[n]} & {s.name for s in val[n]} for n in train)
        numbers = {name: int(data.sample(train[name][0], np.random.default_rng(0)).images["group"]) for name in train}
        assert numbers == {"dino2": 0, "mast3r": 1}

    def test_a_run_goes_on_where_it_stopped_on_any_rank(self, tmp_path):
        whole = list(Loader({"train": groups(tmp_path)}, {"train": 3}, batch=4).steps("train", 0, 5))
        again = groups(tmp_path)  # indexed by a new process
        ranks = [Loader({"train": again}, {"train": 3}, batch=4, rank=r, ranks=2).steps("train", 3, 5) for r in (0, 1)]
        for batch, parts in zip(whole[3:], zip(*ranks, strict=True), strict=True):
            pack = Photos.pack(list(parts))
            assert pack.names == batch.names and torch.equal(pack.images.images, batch.images.images)

    def test_same_samples_from_workers(self, tmp_path):
        data = groups(tmp_path)
        here, there = (Loader({"train": data}, {"train": 0}, batch=6, workers=w) for w in (0, 1))
        for a, b in zip(here.steps("train", 0, 2), there.steps("train", 0, 2), strict=True):
            assert a.names == b.names and torch.equal(a.images.images, b.images.images)

    def test_joined_scenes(self, tmp_path):
        data = groups(tmp_path)
        scenes = joined([source.scenes() for source in data.groups["mast3r"]])
        assert [red(scene) for scene in scenes] == [*range(100, 106), *range(200, 205)]
        assert [red(scene) for scene in scenes.take(np.array([0, 5, 6, 10]))] == [100, 105, 200, 204]
        assert red(scenes[-1]) == 204 and [red(scene) for scene in scenes[4:8]] == [104, 105, 200, 201]
        assert [red(scene) for scene in scenes[::-1]] == [*range(204, 199, -1), *range(105, 99, -1)]
        assert [red(scene) for scene in scenes[8:3:-2]] == [202, 200, 104] and len(scenes[3:3]) == 0
        assert [red(scene) for scene in scenes.take(np.array([6, 0, 7, 7]))] == [200, 100, 201, 201]
        assert joined([[1], [2]]) == [1, 2]
