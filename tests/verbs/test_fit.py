"""`fit` on a tiny room and a real recording: a run folder, resumed bit for bit; many scenes, some of which fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import splatlearn
from data.photo_maker import write_transforms
from splatlearn.cli import main
from splatlearn.data.rooms.scene import RoomsScene
from splatlearn.engine.checkpoint import newest_checkpoint
from splatlearn.engine.logs import JsonLines
from splatlearn.errors import ConfigError, UserError
from splatlearn.splatting.files import read_gaussians
from splatlearn.splatting.render import render
from splatlearn.verbs.fit import plan_fit
from splatlearn.verbs.fit_scenes import Fits, Status, _places, fit_scene, fit_scenes, parse_shard

WORDS = ["--side", "48", "--gaussians", "1500", "--holdout", "every:4"]
LOOP = {"checkpoint_every": 30}


def plan(steps: int = 90, rooms: int = 1, **options):
    fit = {"side": 48, "gaussians": 1500, "holdout": "every:4", "chain": {"every": 20}, "degree_every": 30, **options}
    return plan_fit("rooms.tiny", steps=steps, data_options={"rooms": rooms}, fit_options=fit, train_options=LOOP)


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in JsonLines(run / "log.jsonl").records()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("fit") / "room"
    ours = plan(refine_poses=True, exposure=True)
    return run, fit_scene(ours, ours.source.scenes()[0], run, show=False)


class TestOneScene:
    def test_metrics(self, finished):
        metrics = finished[1].metrics
        expected = {"val_psnr", "val_ssim", "val_depth_error", "baseline/copy_nearest", "baseline/mean_colour"}
        assert set(metrics) == expected
        assert metrics["val_psnr"] > metrics["baseline/mean_colour"] + 3
        assert metrics["val_psnr"] > metrics["baseline/copy_nearest"]
        assert 0.3 < metrics["val_ssim"] < 1
        assert 0 < metrics["val_depth_error"] < 0.5

    def test_it_learns(self, finished):
        values = losses(finished[0])
        assert sum(values[-9:]) < 0.75 * sum(values[:9])

    def test_the_file_is_the_scene(self, finished):
        run, summary = finished
        gaussians = read_gaussians(run / "scene.ply")
        assert 0 < len(gaussians) == summary.facts["gaussians_per_sample"] <= 1500
        scene = plan().source.scenes()[0]
        frames = scene.frames([5], (48, 36))
        seen = render(gaussians, frames.cameras).color
        assert -10 * float((seen - frames.images).square().mean().log10()) > summary.metrics["baseline/mean_colour"]

    def test_run_folder(self, finished):
        run, summary = finished
        written = json.loads((run / "summary.json").read_text())
        assert written["views"] == {"train": 9, "held_out": 3}
        assert written["init"] == "depth"
        settings = yaml.safe_load((run / "config.yaml").read_text())
        assert settings["fit"]["refine_poses"] is True
        assert settings["data"]["name"] == "rooms.tiny"
        report = (run / "report.html").read_text()
        for expected in ("held-out frame 0", "rendered depth", "nearest training frame", "PSNR of the held-out views"):
            assert expected in report
        assert "input views" not in report
        assert summary.facts["size"] == [48, 36]

    def test_what_is_done_is_not_done_again(self, finished):
        run, summary = finished
        ours, begun = plan(refine_poses=True, exposure=True), (run / "scene.ply").stat().st_mtime_ns
        again = fit_scene(ours, ours.source.scenes()[0], run, show=False)
        assert again.metrics == summary.metrics
        assert (run / "scene.ply").stat().st_mtime_ns == begun

    def test_other_settings_are_refused(self, finished):
        ours = plan()
        with pytest.raises(UserError, match=r"fit\.exposure: True -> False"):
            fit_scene(ours, ours.source.scenes()[0], finished[0], show=False)

    def test_resumes_to_the_same_bits(self, finished, tmp_path):
        run = tmp_path / "again"
        shutil.copytree(finished[0], run)
        for newer in sorted((run / "checkpoints").iterdir())[1:]:
            shutil.rmtree(newer)
        for name in ("summary.json", "scene.ply", "report.html"):
            (run / name).unlink()
        assert int(newest_checkpoint(run / "checkpoints").name[5:]) < 90
        ours = plan(refine_poses=True, exposure=True)
        fit_scene(ours, ours.source.scenes()[0], run, show=False)
        assert losses(run) == losses(finished[0])
        assert (run / "scene.ply").read_bytes() == (finished[0] / "scene.ply").read_bytes()
        for name in ("model", "optimizer"):
            first, second = (
                load_file(newest_checkpoint(folder / "checkpoints") / f"{name}.safetensors")
                for folder in (finished[0], run)
            )
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first)

    def test_growth(self, tmp_path):
        """Points fewer than the cap: the chain adds some, and the checkpoint carries them."""
        ours = plan_fit(
            "rooms.tiny",
            steps=60,
            data_options={"rooms": 1},
            fit_options={"side": 48, "gaussians": 6500, "init": "points", "chain": {"every": 10}, "holdout": "none"},
            train_options=LOOP,
        )
        summary = fit_scene(ours, ours.source.scenes()[0], tmp_path / "run", show=False)
        counts = [record["metrics"]["gaussians"] for record in JsonLines(tmp_path / "run" / "log.jsonl").records()]
        assert counts[0] < 6000
        assert counts == sorted(counts)
        assert counts[-1] == 6500
        assert set(summary.metrics) == {"train_psnr", "train_ssim", "train_depth_error"}

    def test_a_block_is_held_out(self, tmp_path):
        """Frames in a row, so that no training frame lies between them."""
        ours = plan(steps=2, holdout="block:4")
        summary = fit_scene(ours, ours.source.scenes()[0], tmp_path / "run", show=False)
        assert summary.facts["views"] == {"train": 8, "held_out": 4}
        assert {"val_psnr", "val_ssim", "val_depth_error", "baseline/copy_nearest"} < set(summary.metrics)
        report = (tmp_path / "run" / "report.html").read_text()
        assert all(f"held-out frame {frame}" in report for frame in (4, 5, 6, 7))

    def test_command(self, tmp_path, capsys):
        run = str(tmp_path / "run")
        words = ["fit", "rooms.tiny", "--run", run, "--data.rooms", "1", "--steps", "3", *WORDS]
        assert main(words) == 0
        assert "scene.ply" in capsys.readouterr().out
        assert main(["fit", "--config", f"{run}/config.yaml", "--run", str(tmp_path / "copy")]) == 0
        first, second = (yaml.safe_load(Path(r, "config.yaml").read_text()) for r in (run, tmp_path / "copy"))
        assert first == second
        assert losses(tmp_path / "run") == losses(tmp_path / "copy")

    def test_the_split_of_the_source(self, tmp_path):
        names = [f"images/{number:04d}.png" for number in range(1, 5)]
        write_transforms(tmp_path / "house", train_filenames=names[1:], test_filenames=names[:1])
        result = splatlearn.fit(
            str(tmp_path / "house"), run=tmp_path / "run", side=24, gaussians=50, steps=1, data_options={"up": "known"}
        )
        assert [status.name for status in result.statuses] == ["house"]
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["views"] == {"train": 3, "held_out": 1}

    def test_rates_of_single_parameters(self):
        train = plan_fit("rooms.tiny", train_options={"rates": {"splats.base": 7.0}, "learning_rate": 1e-2}).train
        assert train.rates["splats.base"] == 7.0
        assert train.rates["splats.logits"] == plan_fit("rooms.tiny").train.rates["splats.logits"]
        assert train.learning_rate == 1e-2

    def test_settings_without_effect_are_told(self, tmp_path, monkeypatch):
        monkeypatch.setattr("splatlearn.verbs.fit_scenes.fit_scenes", lambda *_, **__: Fits((), {}))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            splatlearn.fit("rooms.tiny", run=tmp_path, fit_options={"degree": 0, "random": 50})
            assert not told
            splatlearn.fit(
                "rooms.tiny",
                run=tmp_path,
                fit_options={
                    "degree": 0,
                    "degree_every": 9,
                    "init": "points",
                    "random": 50,
                    "render": {"depth": "expected"},
                },
            )
        assert [str(one.message).partition(":")[0] for one in told] == [
            f"--fit.{name} has no effect" for name in ("render.depth", "degree_every", "random")
        ]

    def test_everything_wrong_is_told_at_once(self, tmp_path, capsys):
        words = ["--fit.degre", "3", "--train.rat", "2", "--steps", "0", "--holdout", "every:x"]
        assert main(["fit", "nowhere", "--run", str(tmp_path / "run"), *words]) == 2
        error = capsys.readouterr().err
        for expected in ("--steps", "--fit.degre: unknown; did you mean 'degree'", "--train.rat", "no such file"):
            assert expected in error
        assert not (tmp_path / "run").exists()

    def test_no_frames(self, tmp_path, capsys):
        clouds = tmp_path / "clouds" / "room"
        clouds.mkdir(parents=True)
        import numpy as np

        np.save(clouds / "coord.npy", np.random.default_rng(0).random((50, 3), dtype=np.float32))
        np.save(clouds / "color.npy", np.zeros((50, 3), np.uint8))
        assert main(["fit", str(tmp_path / "clouds"), "--run", str(tmp_path / "run")]) == 2
        assert "two posed frames or more are needed for a fit, it has 0" in capsys.readouterr().err


class Failing(RoomsScene):
    """A room whose frames cannot be had: always, or in the first process that asks."""

    def frames(self, views, size):
        mark = Path(os.environ["FAILING_MARK"]) / self.name
        if self.name.endswith("0001") or not mark.exists():
            mark.touch()
            raise OSError(f"{self.name}: the disk is gone")
        return super().frames(views, size)


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """A plan for three rooms: the second always fails, the third at its first attempt."""
    monkeypatch.setenv("FAILING_MARK", str(tmp_path))
    ours = plan(steps=3, rooms=3)
    first, *others = ours.source.scenes()
    scenes = [first, *(Failing(scene.folder, scene.name) for scene in others)]
    monkeypatch.setattr(type(ours.source), "scenes", lambda self: scenes)
    return ours


class TestManyScenes:
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_one_failure_does_not_stop_the_others(self, failing, tmp_path, jobs):
        run = tmp_path / "run"
        with pytest.raises(UserError, match="1 of 3 scenes failed") as caught:
            fit_scenes(failing, run, jobs=jobs)
        text = str(caught.value)
        assert "room-0-0001: OSError: room-0-0001: the disk is gone" in text
        statuses = {status["name"]: status for status in json.loads((run / "status.json").read_text())}
        assert {name: (s["state"], s["attempts"]) for name, s in statuses.items()} == {
            "room-0-0000": ("done", 1),
            "room-0-0001": ("failed", 2),
            "room-0-0002": ("done", 2),
        }
        assert "Traceback" in statuses["room-0-0001"]["error"]
        assert statuses["room-0-0000"]["metrics"]["val_psnr"] > 0
        for name in ("room-0-0000", "room-0-0002"):
            assert (run / name / "scene.ply").is_file()
        assert not (run / "room-0-0001").exists()

    def test_shards(self, tmp_path, capsys):
        words = ["fit", "rooms.tiny", "--run", str(tmp_path / "run"), "--data.rooms", "3", "--steps", "1", *WORDS]
        assert main([*words, "--shard", "2/2"]) == 0
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["room-0-0001", "status-2-of-2.json"]
        assert main([*words, "--shard", "1/2"]) == 0
        assert sorted(path.name for path in (tmp_path / "run").iterdir())[:3] == [f"room-0-000{i}" for i in range(3)]
        assert main([*words, "--shard", "3/2"]) == 2
        assert "1/4 is the first of four" in capsys.readouterr().err

    def test_one_scene_by_name(self, tmp_path, capsys):
        words = ["fit", "rooms.tiny", "--run", str(tmp_path / "run"), "--data.rooms", "2", "--steps", "1", *WORDS]
        assert main([*words, "--scene", "room-0-0001"]) == 0
        assert (tmp_path / "run" / "scene.ply").is_file()
        assert main([*words, "--scene", "room-0-0002"]) == 2
        assert "did you mean 'room-0-0001'" in capsys.readouterr().err

    def test_without_ray(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        assert main(["fit", "rooms.tiny", "--run", str(tmp_path / "run"), "--data.rooms", "2", "--on", "ray"]) == 2
        assert "pip install 'splatlearn[ray]'" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    @pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'splatlearn[ray]'")
    def test_on_ray(self, tmp_path):
        words = ["fit", "rooms.tiny", "--run", "run", "--data.rooms", "2", "--steps", "2", *WORDS, "--on", "ray"]
        command = [sys.executable, "-m", "splatlearn", *words, "--jobs", "2"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        statuses = json.loads((tmp_path / "run" / "status.json").read_text())
        assert [(one["name"], one["state"]) for one in statuses] == [(f"room-0-000{i}", "done") for i in range(2)]
        assert all((tmp_path / "run" / one["name"] / "scene.ply").is_file() for one in statuses)
        alone = [*command, "--run", "alone", "--scene", "room-0-0001"]
        assert subprocess.run(alone, cwd=tmp_path, timeout=300).returncode == 0
        assert (tmp_path / "alone" / "scene.ply").is_file()

    def test_refused_before_any_is_begun(self, tmp_path, monkeypatch, capsys):
        """A later attempt would continue what `--resume never` is to keep."""
        monkeypatch.setattr("splatlearn.verbs.fit_scenes.run_jobs", lambda *_, **__: pytest.fail("a job was begun"))
        for name in ("room-0-0000", "room-0-0001"):
            place = tmp_path / "run" / name
            plan(steps=1, rooms=3).folder(name, place).begin()
            (place / "log.jsonl").touch()
        words = ["fit", "rooms.tiny", "--run", str(tmp_path / "run"), "--data.rooms", "3", "--steps", "1", *WORDS]
        assert main([*words, "--resume", "never"]) == 2
        told = capsys.readouterr().err
        assert "room-0-0000: the run exists and --resume is never" in told
        assert "2 of 3 folders are refused" in told
        assert main(words) == 2
        assert "another configuration" in capsys.readouterr().err

    def test_places(self, tmp_path):
        found = _places(["chess/seq-01", "a b", "x"], tmp_path, "status.json")
        assert [path.name for path in found.values()] == ["chess-seq-01", "a-b", "x"]
        for names in (["a/b", "a b"], ["a", "status.json"]):
            with pytest.raises(UserError, match="too much alike"):
                _places(names, tmp_path, "status.json")

    def test_without_retries(self, failing, tmp_path):
        with pytest.raises(UserError, match="2 of 3 scenes failed"):
            fit_scenes(failing, tmp_path / "run", retries=0)
        with pytest.raises(ConfigError, match="--retries"):
            fit_scenes(failing, tmp_path / "run", retries=-1)

    @pytest.mark.parametrize(("jobs", "on", "ranks"), [(0, "local", 1), (2, "local", 2), (1, "ray", 2)])
    def test_no_such_number_of_jobs(self, jobs, on, ranks, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        with pytest.raises(ConfigError, match="--jobs"):
            fit_scenes(plan(), tmp_path / "run", on=on, jobs=jobs)

    @pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
    def test_no_share(self, text):
        with pytest.raises(ConfigError, match="--shard"):
            parse_shard(text)

    @pytest.mark.parametrize(
        ("number", "everywhere", "code"),
        [(signal.SIGTERM, False, 143), (signal.SIGINT, False, 130), (signal.SIGINT, True, 130)],
    )
    def test_stopped_by_a_signal(self, tmp_path, number, everywhere, code):
        """Both processes save a checkpoint, nothing else is begun, and the runs can be continued. Ctrl-C reaches every
        process of a terminal, which end without saving."""
        run = tmp_path / "run"
        words = [
            "fit",
            "rooms.tiny",
            "--run",
            str(run),
            "--data.rooms",
            "3",
            "--steps",
            "100000",
            "--jobs",
            "2",
            *WORDS,
        ]
        command = [sys.executable, "-m", "splatlearn", *words]
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=heard)
        logs = [run / f"room-0-000{i}" / "log.jsonl" for i in range(2)]
        deadline = time.monotonic() + 600
        while not all(log.exists() for log in logs) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        assert all(log.exists() for log in logs), "the fits did not begin"
        (os.killpg if everywhere else os.kill)(process.pid, number)
        assert process.wait(300) == code
        for log in [] if everywhere else logs:
            newest = newest_checkpoint(log.parent / "checkpoints")
            assert newest is not None
            assert int(newest.name[5:]) == len(losses(log.parent))
        assert not (run / "room-0-0002").exists()


def test_table():
    done = Status(name="a", state="done", attempts=1, seconds=120, metrics={"val_psnr": 21.5, "gaussians": 5000})
    failed = Status(name="b", state="failed", attempts=2, error="broken\nTraceback")
    lines = str(Fits((done, failed), {"a": Path("r/a"), "b": Path("r/b")})).splitlines()
    assert lines[0].split() == ["name", "state", "attempts", "minutes", "Gaussians", "PSNR"]
    assert lines[1].split() == ["a", "done", "1", "2.0", "5,000", "21.500"]
    assert lines[-1] == "b: broken"
    assert str(Fits((failed,), {"b": Path("r/b")})).endswith("b: broken")


def test_a_real_recording(shared_data, tmp_path):
    """Seconds, at a size of stamps: better than the mean colour by far; the whole path from files to a report."""
    result = splatlearn.fit(
        str(shared_data / "rgbd_7scenes_redkitchen"),
        run=tmp_path / "run",
        side=64,
        gaussians=3000,
        steps=120,
        data_options={"max_frames": 32},
        train_options={"checkpoint_every": 1000},
    )
    metrics = result.statuses[0].metrics
    assert metrics["val_psnr"] > metrics["baseline/mean_colour"] + 5
    assert metrics["val_depth_error"] < 0.3
    assert "held-out frame" in (tmp_path / "run" / "report.html").read_text()
