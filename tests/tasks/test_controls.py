"""The table of controls: which run each seed takes, what is held in memory, and when a margin is clear."""

import gc
import json
import weakref
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import save_file

from splatlearn.data.scene import Source
from splatlearn.engine.checkpoint import describe_encoder
from splatlearn.errors import UserError
from splatlearn.tasks.controls import WANTED, Comparison, Margin, _run, _tuned, compare_with_controls
from splatlearn.tasks.encoders import resolve_encoder
from splatlearn.tasks.evaluation import Trial
from splatlearn.tasks.segmentation import Segmentation
from tasks import worlds

FAST = {"rows": 64, "crop": 200, "calibration": 2, "batch": 2, "finetune_batch": 2, "steps": 3, "finetune_steps": 3}


@pytest.fixture(autouse=True)
def toy_world(monkeypatch):
    worlds.register(monkeypatch)


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two encoders on disk as runs leave them."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        encoder = resolve_encoder("random:pointwise", seed=seed).encoder
        encoder.name = "pointwise"
        folder.mkdir()
        save_file(encoder.state_dict(), folder / "encoder.safetensors")
        (folder / "encoder.json").write_text(json.dumps(describe_encoder(encoder)))
    return folders


def compare(runs: list[Path], seed: int = 0, **options) -> Comparison:
    trial = Trial(task="segmentation.tiny", source=Source(name="patches"), seed=seed, task_options=FAST)
    return compare_with_controls(trial, runs, labels=(1.0,), **{"finetune_labels": (), **options})


class TestTable:
    def test_the_first_seed_takes_the_first_run(self, runs):
        table = compare(runs, seed=1, seeds=3, finetune_labels=(0.5,), finetune_seeds=2)
        own = {(e.probe, e.seed): Path(e.encoder).name for e in table.evaluations if e.origin == "run"}
        linear = {("linear", 1): "first", ("linear", 2): "second", ("linear", 3): "first"}
        assert own == linear | {("finetune", 1): "first", ("finetune", 2): "second"}
        for origin in ("random", "raw"):
            assert len(table.values(origin, "linear", 1.0)) == 3
        assert len(table.values("random", "finetune", 0.5)) == 2

    def test_features_of_one_encoder_at_a_time_are_held(self, runs, monkeypatch):
        """Each set may take gigabytes; that of a run, or of the raw inputs, is made once for all its seeds."""
        made: list[weakref.ref] = []
        hold = Segmentation.hold.__func__

        def watched(cls, *arguments):
            gc.collect()
            assert not [reference for reference in made if reference() is not None]
            held = hold(cls, *arguments)
            made.append(weakref.ref(held))
            return held

        monkeypatch.setattr(Segmentation, "hold", classmethod(watched))
        compare(runs, seeds=4)
        assert len(made) == len(runs) + 1 + 4

    def test_no_verdict_on_other_data(self, runs, tmp_path):
        table = compare(runs, seeds=1)
        table.write(tmp_path / "table.json")
        assert json.loads((tmp_path / "table.json").read_text())["verdict"]["clear"] is None
        assert "The margin: " in str(table) and "wanted" not in str(table)


class TestMargin:
    def test_clear(self):
        margin = Margin((40.0, 42.0), (30.0, 32.0), (36.0, 37.0), WANTED["rooms"])
        assert margin.clear and (margin.over_random, margin.over_raw) == (10.0, 4.5)
        assert str(margin).startswith("A clear margin: +10.0 mIoU over random")

    @pytest.mark.parametrize(
        "margin",
        [
            Margin((40.0, 42.0), (33.0, 34.0), (36.0, 37.0), WANTED["rooms"]),  # 7.5 over random
            Margin((40.0, 42.0), (30.0, 32.0), (38.0, 39.0), WANTED["rooms"]),  # 2.5 over raw
            Margin((36.0, 50.0), (30.0, 32.0), (36.5, 37.0), WANTED["rooms"]),  # one bad seed
        ],
    )
    def test_not_clear(self, margin):
        assert not margin.clear
        assert str(margin).startswith("NOT a clear margin")

    def test_no_verdict_on_data_without_one(self):
        margin = Margin((40.0, 42.0), (30.0, 32.0), (36.0, 37.0), None)
        assert margin.clear is None
        assert str(margin).startswith("The margin: +10.0 mIoU over random, +4.5 over raw inputs; worst pre-trained")


def test_parts_in_processes_give_the_same_table(tmp_path):
    """They travel by name, so this takes a world and an encoder that every process knows."""
    encoder = resolve_encoder("random:sparse_unet.tiny").encoder
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    (tmp_path / "encoder.json").write_text(json.dumps(describe_encoder(encoder)))
    trial = Trial(task="segmentation.tiny", source=Source(name="rooms.tiny"), task_options=FAST)
    told: list[str] = []
    here, apart = (
        compare_with_controls(
            trial, [tmp_path], seeds=1, labels=(1.0,), finetune_labels=(), jobs=jobs, tell=told.append
        )
        for jobs in (1, 2)
    )
    assert [e.metrics for e in here.evaluations] == [e.metrics for e in apart.evaluations]
    assert str(here) == str(apart)
    assert told[3:] and all(line.endswith(": done") for line in told[3:])


def test_a_part_that_fails_in_a_process_is_named(tmp_path):
    trial = Trial(task="segmentation.tiny", source=Source(name="rooms.tiny"), task_options=FAST)
    parts = {"this one": partial(_tuned, trial, "random:nothing", None)}
    with pytest.raises(UserError, match=r"this one: .*nothing"):
        _run(parts, 2, lambda text: None)
