"""Several processes equal one at equal global batch."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.toys import ToyData, losses, run_rank, run_rank_apart
from splatlearn.engine.checkpoint import newest_checkpoint
from splatlearn.engine.loader import Loader
from splatlearn.engine.logs import JsonLines

OPTIONS = {"steps": 20, "checkpoint_every": 8, "evaluate_every": 10}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(context, run: Path, ranks: int, target=run_rank, **options) -> list[int | None]:
    port = free_port()
    arguments = {**OPTIONS, **options}
    processes = [
        context.Process(target=target, args=(run, rank, ranks, port), kwargs=arguments) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, context) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    for ranks in (1, 2):
        assert run_ranks(context, folder / str(ranks), ranks) == [0] * ranks
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


def test_ranks_have_unequal_points():
    data = ToyData(rejecting=0.2)
    loaders = [Loader({"train": data}, {"train": 0}, batch=4, rank=rank, ranks=2) for rank in range(2)]
    for first, second in zip(*(loader.steps("train", 0, 20) for loader in loaders), strict=True):
        assert len(first.points) != len(second.points)


def test_losses(runs):
    one, two = losses(runs[1]), losses(runs[2])
    assert len(one) == 20
    assert two == pytest.approx(one, rel=1e-4)
    assert one[-1] < one[0] / 2


def test_weights_statistics_and_averages(runs):
    for stem in ("model", "average"):
        states = [load_file(newest_checkpoint(runs[ranks] / "checkpoints") / f"{stem}.safetensors") for ranks in (1, 2)]
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            torch.testing.assert_close(states[1][name], value, rtol=2e-3, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_logs_and_metrics(runs):
    one, two = (list(JsonLines(runs[ranks] / "log.jsonl").records()) for ranks in (1, 2))
    assert [r.get("rejected") for r in one] == [r.get("rejected") for r in two]
    metrics = [json.loads((runs[ranks] / "summary.json").read_text())["metrics"] for ranks in (1, 2)]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-3)


def test_every_rank_gets_the_summary_of_the_first(tmp_path, context):
    """Also where each has a folder of its own, as `evaluate` without `--run`."""
    assert run_ranks(context, tmp_path, 2, run_rank_apart, steps=2) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["metrics"]["val_error"] > 0
    assert (second["metrics"], second["steps"]) == (first["metrics"], 2)
    assert (first["main"], second["main"]) == (True, False)


def test_resume_is_exact(runs, tmp_path, context):
    run = tmp_path / "run"
    shutil.copytree(runs[2], run)
    for path in (run / "checkpoints" / "step-00000020", run / "summary.json"):
        path.rename(tmp_path / path.name)
    assert run_ranks(context, run, 2) == [0, 0]
    assert losses(run) == losses(runs[2])
    resumed = newest_checkpoint(run / "checkpoints") / "model.safetensors"
    assert resumed.read_bytes() == (tmp_path / "step-00000020" / "model.safetensors").read_bytes()


def test_all_ranks_skip_together(tmp_path, context):
    assert run_ranks(context, tmp_path, 2, poisoned=True, steps=6) == [0, 0]
    skipped = [r["step"] for r in JsonLines(tmp_path / "log.jsonl").records() if r.get("skipped")]
    assert 0 < len(skipped) < 6
    dump = json.loads((tmp_path / "skipped" / f"{skipped[0]}.json").read_text())
    assert len(dump["samples"]) == 4
    assert "scene-2" in dump["samples"]
    model = load_file(newest_checkpoint(tmp_path / "checkpoints") / "model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in model.values())


def test_indivisible_batch(tmp_path, context):
    assert run_ranks(context, tmp_path, 3) == [1, 1, 1]
