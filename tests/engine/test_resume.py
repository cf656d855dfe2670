"""Killed or terminated at any moment, a run continues to the same bits."""

import os
import random
import shutil
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from engine.toys import final_digests, losses, run_threaded
from splatlearn.engine.checkpoint import newest_checkpoint

OPTIONS = {"steps": 10, "checkpoint_every": 3, "evaluate_every": 4, "pause": 0.02}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, context) -> Path:
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    process = start(context, run, workers=0)
    process.join()
    assert process.exitcode == 0
    assert len(losses(run)) == OPTIONS["steps"]
    return run


def start(context: ForkServerContext, run: Path, workers: int):
    process = context.Process(target=run_threaded, args=(run,), kwargs={**OPTIONS, "workers": workers})
    process.start()
    return process


def wait_for_lines(process, run: Path, count: int) -> None:
    """Returns when the log has more than `count` lines, or the process has ended."""
    while process.is_alive() and len(losses(run)) <= count:
        time.sleep(0.005)


def kill_until_done(context: ForkServerContext, run: Path, workers: int, kills: int, rng: random.Random) -> int:
    """Kills and resumes a run until it ends by itself, after at most `kills` kills; returns their number."""
    killed = 0
    while True:
        process = start(context, run, workers)
        if killed < kills:
            present = len(losses(run))
            if rng.random() < 0.7 and present < OPTIONS["steps"]:  # else while it starts
                wait_for_lines(process, run, rng.randrange(present, OPTIONS["steps"]))
            process.join(rng.uniform(0, 0.1))
        else:
            process.join()
        if process.exitcode is not None:
            assert process.exitcode == 0
            return killed
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1


def assert_same(run: Path, other: Path) -> None:
    assert losses(run) == losses(other)
    assert final_digests(run) == final_digests(other)


@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        (0, 6),
        (2, 1),
        pytest.param(0, 20, marks=pytest.mark.slow),
        pytest.param(2, 20, marks=pytest.mark.slow),
    ],
)
def test_kill(tmp_path, context, uninterrupted, workers, kills):
    rng, done, run = random.Random(kills), 0, tmp_path / "run"
    while done < kills:
        shutil.rmtree(run, ignore_errors=True)
        done += kill_until_done(context, run, workers, kills - done, rng)
        assert_same(run, uninterrupted)


@pytest.mark.parametrize("workers", [0, 1])
def test_terminate(tmp_path, context, uninterrupted, workers, capfd):
    run = tmp_path / "run"
    process = start(context, run, workers)
    wait_for_lines(process, run, 3)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert int(newest.name.removeprefix("step-")) == len(losses(run)) < OPTIONS["steps"]
    process = start(context, run, 0)
    process.join()
    assert_same(run, uninterrupted)


def test_damaged_checkpoint(tmp_path, context, uninterrupted):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    (run / "summary.json").unlink()
    newest = sorted((run / "checkpoints").iterdir())[-1]
    (newest / "model.safetensors").write_bytes(b"half of it")
    process = start(context, run, 0)
    process.join()
    assert_same(run, uninterrupted)
