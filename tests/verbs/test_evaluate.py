import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from splatlearn import registry
from splatlearn.cli import main
from splatlearn.config import to_options
from splatlearn.engine.checkpoint import describe_encoder
from splatlearn.errors import UserError
from splatlearn.tasks.encoders import resolve_encoder
from splatlearn.verbs.evaluate import evaluate, evaluate_table
from tasks import worlds

FAST = {"rows": 128, "crop": 200, "calibration": 5, "batch": 2, "finetune_batch": 2, "finetune_steps": 15}


@pytest.fixture(autouse=True)
def toy_world(monkeypatch):
    worlds.register(monkeypatch)


def run(**changes):
    options = {
        "encoder": "random:pointwise",
        "data": "patches",
        "preset": "tiny",
        "steps": 15,
        "task_options": FAST,
    }
    return evaluate("segmentation", **{**options, **changes})


def exported(folder, seed=0):
    """An encoder on disk as a run leaves it."""
    encoder = resolve_encoder("random:pointwise", {"width": 10}, seed=seed).encoder
    encoder.name = "pointwise"
    folder.mkdir(exist_ok=True)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    (folder / "encoder.json").write_text(json.dumps(describe_encoder(encoder)))
    return folder


class TestEvaluate:
    def test_writes_what_scripts_rely_on(self, tmp_path):
        path = tmp_path / "new" / "result.json"
        result = run(json=path, labels=0.5, seed=3)
        written = json.loads(path.read_text())
        assert {"task", "probe", "metrics", "per_class", "encoder", "data", "seed", "versions", "preset"} <= set(
            written
        )
        assert (written["task"], written["probe"]) == ("segmentation", "linear")
        assert (written["encoder"], written["data"], written["seed"]) == ("random:pointwise", "patches", 3)
        assert written["metrics"].keys() == {"miou", "macc", "accuracy"}
        assert written["per_class"].keys() == set(worlds.CLASSES)
        assert written["metrics"]["miou"] == pytest.approx(sum(written["per_class"].values()) / 3)
        assert written["labels"] == 0.5 and written["steps"] == 15
        assert all(text in str(result) for text in ("miou", "floor", "random:pointwise", "50 % of the labels"))

    def test_is_deterministic_and_seeded(self):
        first, again, other = run(), run(), run(seed=1)
        assert first.metrics == again.metrics
        assert first.metrics != other.metrics

    @pytest.mark.parametrize("probe", ["decoder", "finetune"])
    def test_other_probes(self, probe):
        assert run(probe=probe, labels=0.5).metrics["miou"] > 0

    def test_a_run_folder_is_read_and_kept_frozen(self, tmp_path):
        folder = exported(tmp_path / "run")
        before = (folder / "encoder.safetensors").read_bytes()
        result = run(encoder=str(folder), run=tmp_path / "probe")
        assert result.origin == "run"
        assert (folder / "encoder.safetensors").read_bytes() == before
        assert (tmp_path / "probe" / "summary.json").exists()

    def test_other_weights_are_another_probe(self, tmp_path):
        folder = exported(tmp_path / "run")
        first = run(encoder=str(folder), run=tmp_path / "probe", steps=1)
        assert run(encoder=str(folder), run=tmp_path / "probe", steps=1) == first
        exported(folder, seed=1)
        with pytest.raises(UserError, match=r"weights: [0-9a-f]{64} -> [0-9a-f]{64}"):
            run(encoder=str(folder), run=tmp_path / "probe", steps=1)

    def test_values_typed_in_words_continue_a_run(self, tmp_path):
        first = run(run=tmp_path / "probe", data_options={"scenes": 6})
        typed = {name: str(value) for name, value in FAST.items()}
        again = run(run=tmp_path / "probe", data_options={"scenes": "6"}, task_options=typed)
        assert again.metrics == first.metrics

    def test_its_own_settings_do_it_again(self, tmp_path):
        """And flags win over them."""
        words = [
            "--encoder",
            "random:pointwise",
            "--data",
            "patches",
            "--preset",
            "tiny",
            "--steps",
            "2",
            "--seed",
            "3",
        ]
        words += ["--encoder.width", "10", *(word for name, n in FAST.items() for word in (f"--task.{name}", str(n)))]
        first, again, other = (tmp_path / name for name in ("first", "again", "other"))
        assert main(["evaluate", *words, "--run", str(first)]) == 0
        config = ["evaluate", "--config", str(first / "config.yaml")]
        assert main([*config, "--run", str(again)]) == 0
        assert (again / "config.yaml").read_bytes() == (first / "config.yaml").read_bytes()
        assert main([*config, "--run", str(other), "--seed", "4", "--steps", "1"]) == 0
        settings = yaml.safe_load((other / "config.yaml").read_text())
        assert (settings["seed"], settings["train"]["seed"], settings["train"]["steps"]) == (4, 4, 1)

    def test_global_generator_is_left_alone_by_new_weights(self):
        torch.manual_seed(0)
        first = run().metrics
        torch.manual_seed(1)
        assert run().metrics == first

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": 0.0}, r"--labels: a share in \(0, 1\]"),
            ({"labels": 10}, r"--labels: a share in \(0, 1\]"),
            ({"steps": 0}, "--steps: 1 or more"),
            ({"preset": "tinny"}, "no preset 'tinny'; did you mean 'tiny'"),
            ({"task_options": {"voxl": 1}}, "voxl: unknown; did you mean 'voxel'"),
            ({"encoder": "pointwise"}, "random:pointwise"),
            ({"data": "nowhere"}, "no such file or folder"),
            ({"data_options": {"labelled": False}}, "has no labels"),
        ],
    )
    def test_bad_input(self, changes, message, tmp_path):
        with pytest.raises(UserError, match=message):
            run(json=tmp_path / "result.json", **changes)
        assert not list(tmp_path.iterdir())

    def test_all_of_it_at_once(self, tmp_path):
        with pytest.raises(UserError) as caught:
            run(json=tmp_path, labels=2.0, steps=0, data="nowhere", preset="tinny", encoder="bogus")
        starts = [line.split(":")[0] for line in str(caught.value).splitlines()]
        assert starts == [f"--json {tmp_path}", "--labels", "--steps", "--data nowhere", "tasks", "--encoder bogus"]

    def test_a_seed_that_would_be_ignored(self):
        with pytest.raises(UserError, match=r"--train\.seed: a probe has one seed; give --seed"):
            run(train_options={"seed": 3})

    def test_a_result_that_cannot_be_written_is_told_before_the_work(self, tmp_path, monkeypatch):
        monkeypatch.setattr("splatlearn.tasks.evaluation.find_encoder", None)
        with pytest.raises(UserError, match=r"--json .*: this is a folder; name a file"):
            run(json=tmp_path)

    def test_one_of_several_processes_writes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("splatlearn.engine.runtime.is_main", lambda: False)
        run(json=tmp_path / "result.json")
        assert not list(tmp_path.iterdir())

    def test_unknown_task(self):
        with pytest.raises(UserError, match="unknown name 'segmentasion'; did you mean 'segmentation'"):
            evaluate("segmentasion", encoder="raw", data="patches")


class TestTable:
    def test_all_rows_and_the_verdict(self, tmp_path):
        folder, path, told = exported(tmp_path / "run"), tmp_path / "table.json", []
        options = {**FAST, "steps": 15}
        table = evaluate_table(
            folder, data="patches", seeds=2, labels=(1.0, 0.2), task_options=options, json=path, tell=told.append
        )
        assert len(table.evaluations) == 2 * (3 * 2 + 2)
        assert all(len(table.values(o, "linear", s)) == 2 for o in ("run", "random", "raw") for s in (1.0, 0.2))
        assert len(table.rows()) == 1 + 3 * 2 + 2
        assert list(table.transfer) == [0.1]
        assert "from scratch" in str(table) and "margin" in str(table)
        written = json.loads(path.read_text())
        assert written["verdict"]["clear"] == table.margin.clear
        assert len(written["evaluations"]) == 16
        assert told

    def test_equals_single_evaluations(self, tmp_path):
        folder = exported(tmp_path / "run")
        options = {**FAST, "steps": 15}
        table = evaluate_table(folder, data="patches", seeds=1, seed=2, finetune_labels=(), task_options=options)
        alone = run(encoder=str(folder), seed=2)
        assert table.values("run", "linear", 1.0) == (alone.metrics["miou"],)
        name, width = "random:pointwise", {"width": 10}
        alone = run(encoder=name, encoder_options=width, seed=2, labels=0.1)
        assert table.values("random", "linear", 0.1) == (alone.metrics["miou"],)

    def test_runs_of_different_encoders(self, tmp_path):
        one, two = exported(tmp_path / "one"), exported(tmp_path / "two")
        facts = json.loads((two / "encoder.json").read_text())
        other = registry.encoders.create("pointwise", {"width": 7})
        save_file(other.state_dict(), two / "encoder.safetensors")
        (two / "encoder.json").write_text(json.dumps({**facts, "options": to_options(other.config)}))
        with pytest.raises(UserError, match="different encoders"):
            evaluate_table([one, two], data="patches")
