"""Sources: names before folders, options, what is kept and for how long; rejections; what must be known."""

import pickle

import numpy as np
import pytest

from data.recording_maker import write_seven_scenes
from splatlearn import registry
from splatlearn.data.rgbd import RgbdConfig
from splatlearn.data.rooms import RoomsReader
from splatlearn.data.scene import Rejected, Scene, Source, require_known
from splatlearn.errors import BadData, ConfigError


class Named(Scene):
    def __init__(self, name: str, up: str = "known", metric: str = "known") -> None:
        self.name, self.up, self.metric = name, up, metric


class TestNames:
    @pytest.fixture
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_a_world_comes_before_a_folder_of_its_name(self, here, caplog):
        write_seven_scenes(here / "rooms", frames=3)
        assert isinstance(Source(name="rooms").reader(), RoomsReader)
        assert "the folder is ./rooms" in caplog.text
        for source in (Source(name="./rooms"), Source(name="rooms", options={"reader": "rgbd"})):
            assert source.scenes()[0].name == "rooms"

    def test_a_folder_named_like_no_preset(self, here):
        write_seven_scenes(here / "rooms.bedroom", frames=3)
        assert Source(name="rooms.bedroom").scenes()[0].name == "rooms.bedroom"
        with pytest.raises(ConfigError, match="no preset 'kitchen'"):
            Source(name="rooms.kitchen").reader()

    @pytest.mark.parametrize("name", ["rgbd", "pointcept", "rgbd.tiny"])
    def test_a_reader_of_files_needs_them(self, here, name):
        with pytest.raises(BadData, match=rf"--data {name}: {name.partition('.')[0]} reads files: give their path"):
            Source(name=name).reader()

    def test_what_no_reader_takes(self, here):
        (here / "scene.ply").write_bytes(b"ply")
        (here / "folder").mkdir()
        (here / "folder" / "notes.txt").write_text("")
        with pytest.raises(BadData, match=r"it is a single file\); .*Gaussian scenes are for `view` and `convert`"):
            Source(name="scene.ply").reader()
        with pytest.raises(BadData, match=r"it holds: notes\.txt\); `splatlearn list readers NAME` and docs/ say what"):
            Source(name="folder").reader()

    def test_a_folder_named_like_a_reader(self, here):
        write_seven_scenes(here / "rgbd", frames=3)
        assert Source(name="rgbd").scenes()[0].name == "rgbd"

    def test_only_worlds_are_offered(self, here):
        with pytest.raises(BadData, match=r"did you mean 'rooms'\? \(worlds: rooms, streets\)"):
            Source(name="roms").reader()


class TestOptions:
    @pytest.mark.parametrize("options", [{"x.y": 3}, {"x": {"y": 3}}, {"rooms": [[1], [2]]}])
    def test_nonsense_is_one_clear_error(self, options):
        with pytest.raises(ConfigError, match=r"data\.(x: unknown|rooms: int expected)"):
            Source(name="rooms.tiny", options=options).reader()

    def test_resolved(self):
        resolved = Source(name="rooms.tiny", options={"rooms": "4"}).resolved()
        assert resolved["rooms"] == 4 and resolved["size"] == [64, 48] and resolved["seed"] == 0
        assert Source(name="rooms.tiny", options=resolved).resolved() == resolved

    def test_resolved_keeps_a_forced_reader(self, tmp_path):
        resolved = Source(name=str(tmp_path), options={"reader": "rgbd", "stride": 2}).resolved()
        assert resolved["reader"] == "rgbd" and resolved["stride"] == 2
        again = registry.readers.config("rgbd", {k: v for k, v in resolved.items() if k != "reader"})
        assert again == RgbdConfig(stride=2)


class TestKeeping:
    def test_scenes_are_found_once_a_source(self, tmp_path):
        write_seven_scenes(tmp_path / "a", frames=3)
        source = Source(name=str(tmp_path))
        write_seven_scenes(tmp_path / "b", frames=3)
        before = source.scenes()
        write_seven_scenes(tmp_path / "c", frames=3)
        assert [scene.name for scene in before] == ["a", "b"] and source.scenes() is before

    def test_another_source_sees_what_was_mended(self, tmp_path):
        write_seven_scenes(tmp_path, frames=3)
        moved = (tmp_path / "frame-000001.pose.txt").rename(tmp_path / "pose.bak")
        assert len(Source(name=str(tmp_path)).scenes()[0].skipped) == 1
        moved.rename(tmp_path / "frame-000001.pose.txt")
        assert not Source(name=str(tmp_path)).scenes()[0].skipped

    def test_a_copy_for_a_worker_carries_no_scenes(self, tmp_path):
        write_seven_scenes(tmp_path, frames=3)
        source = Source(name=str(tmp_path), options={"up": "known"})
        bare = len(pickle.dumps(source))
        source.scenes()
        source.memory["large"] = np.zeros(10**6)
        assert len(pickle.dumps(source)) == bare
        copy = pickle.loads(pickle.dumps(source))
        assert copy == source and copy.memory == {} and copy.scenes()[0].up == "known"


class TestRejected:
    def test_kind_and_detail(self):
        rejected = Rejected("too little overlap", "room-1:0+5: 12%, at least 30% expected")
        assert str(rejected) == "too little overlap (room-1:0+5: 12%, at least 30% expected)"
        again = pickle.loads(pickle.dumps(rejected))
        assert (again.kind, again.detail) == (rejected.kind, rejected.detail)
        assert str(Rejected("no depth")) == "no depth"


class TestRequireKnown:
    def test_known_and_estimated_pass(self):
        scenes = [Named("a"), Named("b", up="estimated", metric="estimated")]
        require_known(scenes, "up", "toy")
        require_known(scenes, "metric", "toy")

    def test_messages(self):
        scenes = [Named(name, up="unknown", metric="unknown") for name in "abcde"]
        with pytest.raises(BadData, match=r"toy, but the up axis of a, b, c and 2 more is unknown; give --data\.up"):
            require_known(scenes, "up", "toy")
        with pytest.raises(BadData, match="the unit of a, b, c and 2 more is unknown; give data in metres"):
            require_known(scenes, "metric", "toy")
