"""DUNE through the command line as processes: three groups of images; killed and resumed, on one rank and on two."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from splatlearn.cli import main
from splatlearn.engine.checkpoint import newest_checkpoint

STEPS = 12
PATIENCE = 120
"""Seconds after which processes are taken to hang."""
TEACHERS = ("timm.tiny", "mast3r.tiny")
PRELOADED = [
    *("splatlearn.recipes.dune", "splatlearn.engine.loop", "splatlearn.engine.report"),
    *("lightning.fabric.strategies.ddp", "matplotlib.backends.backend_agg"),
]


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Processes forked from one that has imported what runs need: the command line there starts in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small striped images for each group, of unequal numbers."""
    folder = tmp_path_factory.mktemp("images")
    for seed, (name, count) in enumerate({"generic": 12, **dict.fromkeys(TEACHERS, 7)}.items()):
        rng = np.random.default_rng(seed)
        (folder / name).mkdir()
        for number in range(count):
            waves = 0.5 + 0.5 * np.sin(np.linspace(0, rng.uniform(4, 30), 72) + rng.uniform(0, 6))
            pixels = 255 * waves[None, :, None] * rng.uniform(0, 1, 3) * np.ones((64, 1, 1))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02}.png")
    return folder


def arguments(images: Path, run: Path, *further: str, workers: int = 0) -> list[str]:
    groups = ", ".join(f"{name}: {{{images / name}: {{reader: images}}}}" for name in TEACHERS)
    command = ["pretrain", "dune", "--preset", "tiny", "--data", str(images / "generic"), "--run", str(run)]
    options = {"data.reader": "images", "recipe.groups": f"{{{groups}}}", "recipe.gradients_every": 2}
    options |= {"steps": STEPS, "seed": 3}
    train = {"batch": 6, "checkpoint_every": 4, "evaluate_every": 5, "device": "cpu", "workers": workers}
    options |= {f"train.{name}": value for name, value in train.items()}
    return [*command, *(str(word) for name, value in options.items() for word in (f"--{name}", value)), *further]


def standardized(mode: str) -> tuple[str, str]:
    return ("--recipe.standardizer.mode", mode)


def command(words: list[str], variables: dict[str, str]) -> None:
    """The command line, in a process with these variables."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.exit(main(words))


def start(context: ForkServerContext, words: list[str], ranks: int = 1) -> list[ForkServerProcess]:
    """One process, or several with the variables that torchrun would give them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    each = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **sizes, **shared} for rank in range(ranks)]
    processes = [context.Process(target=command, args=(words, of if ranks > 1 else {})) for of in each]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[ForkServerProcess]) -> None:
    """Waits for their end; none may hang or fail."""
    limit = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, limit - time.monotonic()))
    assert not kill(processes), f"{len(processes)} processes hang"


def kill(processes: list[ForkServerProcess]) -> bool:
    """Whether one was still running; none may have failed."""
    assert all(process.exitcode in (None, 0) for process in processes)
    running = [process for process in processes if process.exitcode is None]
    for process in running:
        os.kill(process.pid or 0, signal.SIGKILL)
    for process in running:
        process.join()
    return bool(running)


def lines(run: Path) -> list[dict[str, Any]]:
    """The log, without times; a line that is being written is not looked at."""
    path = run / "log.jsonl"
    whole = (line for line in (path.read_text().splitlines() if path.exists() else []) if line.endswith("}"))
    return [{k: v for k, v in json.loads(line).items() if k not in ("time", "seconds")} for line in whole]


def kill_at(processes: list[ForkServerProcess], run: Path, count: int, delay: float) -> bool:
    """Kills when the log has that many lines and some time has passed; False if they had ended by themselves."""
    limit = time.monotonic() + PATIENCE
    while processes[0].is_alive() and len(lines(run)) < count and time.monotonic() < limit:
        time.sleep(0.005)
    processes[0].join(delay)
    return kill(processes)


def tensors(run: Path) -> dict[str, bytes]:
    """Weights, statistics and the optimiser's state at the end, as they are on disk."""
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None and newest.name == f"step-{STEPS:08d}"
    return {path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))}


def assert_same(run: Path, other: Path) -> None:
    assert lines(run) == lines(other)
    assert tensors(run) == tensors(other)


class Finished:
    """Uninterrupted runs, each made when it is first asked for."""

    def __init__(self, context: ForkServerContext, images: Path, folder: Path) -> None:
        self.context, self.images, self.folder = context, images, folder

    def __call__(self, mode: str, ranks: int) -> Path:
        run = self.folder / f"{mode}-{ranks}"
        if not run.exists():
            finish(start(self.context, arguments(self.images, run, *standardized(mode)), ranks))
        assert len(lines(run)) == STEPS and not any("skipped" in line for line in lines(run))
        return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, context, images) -> Finished:
    return Finished(context, images, tmp_path_factory.mktemp("finished"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("mode", "ranks", "workers", "kills"),
    [
        ("batch", 1, 0, 3),
        ("ema", 2, 0, 1),
        pytest.param("batch", 1, 0, 20, marks=SLOW),
        pytest.param("batch", 1, 2, 6, marks=SLOW),
        pytest.param("ema", 1, 2, 6, marks=SLOW),
        pytest.param("batch", 2, 0, 6, marks=SLOW),
        pytest.param("batch", 2, 2, 3, marks=SLOW),
    ],
)
def test_killed_and_continued(tmp_path, context, images, finished, mode, ranks, workers, kills):
    rng, run, killed = random.Random(kills), tmp_path / "run", 0
    words = arguments(images, run, *standardized(mode), workers=workers)
    while killed < kills:
        present = len(lines(run))
        wanted = rng.randint(present, min(STEPS - 1, present + 5)) if kills > 1 else 5  # an only one after a checkpoint
        if kill_at(start(context, words, ranks), run, wanted, rng.uniform(0, 0.2)):
            killed += 1
        if len(lines(run)) >= STEPS - 1 and killed < kills:
            finish(start(context, words, ranks))
            assert_same(run, finished(mode, ranks))
            shutil.rmtree(run)
    finish(start(context, words, ranks))
    assert_same(run, finished(mode, ranks))
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    statistics = {name: v for name, v in load_file(newest / "model.safetensors").items() if "standardizers" in name}
    assert len(statistics) == 6 and all(float(value.std()) > 0 for value in statistics.values())


def assert_close(run: Path, other: Path) -> None:
    assert len(lines(run)) == len(lines(other)) == STEPS
    for found, expected in zip(lines(run), lines(other)):
        assert found["metrics"].keys() == expected["metrics"].keys()
        for part in ("losses", "metrics", "validation"):
            assert found.get(part, {}) == pytest.approx(expected.get(part, {}), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("mode", ["ema", pytest.param("batch", marks=SLOW)])
def test_two_ranks_equal_one(finished, mode):
    assert_close(finished(mode, 2), finished(mode, 1))
    assert len({line["loss"] for line in lines(finished(mode, 1))}) == STEPS


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path, images, finished):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--", "splatlearn"]
    words = arguments(images, tmp_path / "run", *standardized("batch"))
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, *launcher, *words], env=variables, timeout=PATIENCE, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert_same(tmp_path / "run", finished("batch", 2))


def test_a_rank_without_images_for_a_teacher_does_not_hang(tmp_path, context, images):
    """Two groups take turns, so that of a batch of two each rank has one group's image, always the same group's."""
    words = ["pretrain", "dune", "--preset", "tiny", "--data", str(images / TEACHERS[0]), "--train.batch", "2"]
    words += ["--recipe.domain", TEACHERS[0], "--recipe.dropping.mode", "own_data", "--steps", "4"]
    words += ["--recipe.groups", f"{{{TEACHERS[1]}: {{{images / TEACHERS[1]}: {{}}}}}}", "--train.device", "cpu"]
    for ranks in (1, 2):
        finish(start(context, [*words, "--run", str(tmp_path / str(ranks))], ranks))
    for one, two in zip(*(lines(tmp_path / str(ranks)) for ranks in (1, 2)), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert [two["metrics"][f"share/{name}"] for name in TEACHERS] == [0.5, 0.5]
