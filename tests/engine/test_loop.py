"""The loop on the toy: run folder, evaluation, the guard against non-finite numbers, mixed precision."""

import json
import math
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from engine.toys import Clouds, ToyData, ToyRecipe, ToyScene, losses, run_toy, toy_config
from splatlearn.engine import loop
from splatlearn.engine.checkpoint import RunFolder, load_encoder, newest_checkpoint
from splatlearn.engine.logs import JsonLines
from splatlearn.engine.loop import Terminated, train
from splatlearn.engine.summary import Summary
from splatlearn.engine.trainable import Progress, Step
from splatlearn.errors import BadData, ConfigError, UserError


class Nan(ToyRecipe):
    """Its loss (or its gradient) is not finite at some steps."""

    def __init__(self, bad: set[int], gradient: bool = False) -> None:
        super().__init__(ToyData())
        self.bad, self.gradient = bad, gradient

    def forward(self, batch, progress: Progress) -> Step:
        if progress.step not in self.bad:
            return super().forward(batch, progress)
        if not self.gradient:
            batch.points["color"][0] = math.nan  # reaches the statistics of batch norm too
            return super().forward(batch, progress)
        step = super().forward(batch, progress)
        zero = (self.head.weight * 0).sum()
        return Step({**step.losses, "root": zero.sqrt()})  # finite, with an infinite slope


class Afterwards(Nan):
    """Draws noise, moves a weight and clears some of the optimiser's memory after each step."""

    def __init__(self, bad: set[int] = frozenset()) -> None:
        super().__init__(set(bad))
        self.calls: list[int] = []
        self.drawn: list[float] = []

    @torch.no_grad()
    def after_step(self, optimizer, progress: Progress) -> None:
        self.calls.append(progress.step)
        self.drawn.append(float(torch.rand(())))
        self.head.bias += 0.01 * torch.randn(3)
        optimizer.state[self.head.weight]["exp_avg"][0] = 0


@dataclass(frozen=True, kw_only=True)
class Short(ToyData):
    """No scene of it has a sample."""

    def sample(self, scene: ToyScene, rng) -> Clouds:
        raise BadData("too short")


def fail(*_: object) -> None:
    raise UserError("evaluation failed")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "deep" / "toy"
    recipe = ToyRecipe(ToyData(rejecting=0.2))
    return run, run_toy(run, recipe, evaluate_every=5), recipe


class TestRun:
    def test_learns(self, finished):
        run, summary, _ = finished
        values = losses(run)
        assert len(values) == 12
        assert values[-1] < values[0] / 2
        assert summary.loss == values[-1]

    def test_log(self, finished):
        records = list(JsonLines(finished[0] / "log.jsonl").records())
        assert [record["step"] for record in records] == list(range(12))
        assert [record["step"] for record in records if "validation" in record] == [4, 9, 11]
        for record in records:
            assert record["loss"] == pytest.approx(sum(record["losses"].values()))
            assert record["seconds"] == pytest.approx(sum(record["time"].values()))
            assert record["metrics"]["fraction"] == pytest.approx(record["step"] / 12)
        assert records[0]["learning_rate"] == 1e-2
        assert sum(sum(record.get("rejected", {}).values()) for record in records) > 0

    def test_summary(self, finished):
        run, summary, _ = finished
        written = json.loads((run / "summary.json").read_text())
        assert written["encoder"] == "toy"
        assert written["data"] == {"name": "toy"}
        assert written["gaussians_per_sample"] == 3
        assert written["seed"] == 0
        assert set(written["seconds"]) == {"data", "forward", "backward", "optimizer"}
        assert written["rejected"].keys() == {"too few points"}
        assert written["metrics"]["val_error"] > 0
        assert min(written["steps_per_second"], written["peak_memory_mb"]) > 0
        assert Summary.read(run / "summary.json") == summary

    def test_checkpoint(self, finished):
        run, _, recipe = finished
        newest = newest_checkpoint(run / "checkpoints")
        saved, average = (load_file(newest / f"{name}.safetensors") for name in ("model", "average"))
        assert saved.keys() == average.keys() == recipe.state_dict().keys()
        assert not torch.equal(saved["student.stem.weight"], average["student.stem.weight"])
        assert float(saved["shift"].norm()) > 0

    def test_averaged_weights_are_exported_and_left_in_the_trainable(self, finished):
        run, _, recipe = finished
        average = load_file(newest_checkpoint(run / "checkpoints") / "average.safetensors")
        assert torch.equal(load_encoder(run).stem.weight, average["student.stem.weight"])
        for trained in (recipe, fresh := ToyRecipe(ToyData(rejecting=0.2))):
            if trained is fresh:
                run_toy(run, fresh)  # it is complete: nothing is trained, the weights are read
            assert all(torch.equal(average[name], value) for name, value in trained.state_dict().items())

    def test_complete_run_is_left_alone(self, finished):
        run, summary, _ = finished
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        assert run_toy(run) == summary
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before

    def test_refusals(self, finished):
        run, _, _ = finished
        with pytest.raises(UserError, match="--resume is never"):
            run_toy(run, resume="never")
        with pytest.raises(UserError, match=r"train\.learning_rate: 0\.01 -> 0\.5"):
            run_toy(run, learning_rate=0.5)

    def test_a_finished_run_without_checkpoints_is_kept(self, finished, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(finished[0], run, ignore=shutil.ignore_patterns("checkpoints"))
        log = (run / "log.jsonl").read_bytes()
        with pytest.raises(UserError, match="the run is finished, but its checkpoints are gone"):
            run_toy(run, evaluate_every=5)
        assert (run / "log.jsonl").read_bytes() == log

    def test_global_state_is_given_back(self, finished):
        assert not torch.are_deterministic_algorithms_enabled()


class TestStart:
    """What cannot start leaves nothing behind; what cannot be evaluated keeps what was learnt."""

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_split_without_samples(self, tmp_path, split):
        recipe = ToyRecipe(ToyData())
        broken = Short()
        recipe.data, recipe.validation = (broken, recipe.data) if split == "train" else (recipe.data, broken)
        with pytest.raises(UserError, match=f"split {split}: scene-[0-9]+: too short"):
            run_toy(tmp_path / "run", recipe)
        assert not (tmp_path / "run").exists()

    def test_a_log_is_cut_only_by_a_run_that_can_begin(self, tmp_path):
        run_toy(tmp_path, steps=2)
        for name in ("summary.json", "checkpoints"):
            (tmp_path / name).rename(tmp_path / f"{name}.tmp")
        recipe = ToyRecipe(ToyData())
        recipe.validation = Short()
        with pytest.raises(UserError, match="too short"):
            run_toy(tmp_path, recipe, steps=2)
        assert len(losses(tmp_path)) == 2

    @pytest.mark.parametrize("new", [True, False])
    def test_one_process_at_a_time(self, tmp_path, new):
        run = tmp_path / "run"
        if not new:
            run_toy(run, steps=2)

        class Twice(ToyRecipe):
            def evaluate(self, batches):
                with pytest.raises(UserError, match="another process runs here"):
                    run_toy(run, steps=2)
                return super().evaluate(batches)

        (run / "summary.json").unlink(missing_ok=True)
        run_toy(run, Twice(ToyData(rejecting=0.2)), steps=2)
        assert len(losses(run)) == 2
        assert not (run / ".lock").exists()

    def test_settings_of_a_run_that_never_began_bind_nobody(self, tmp_path):
        settings = {"recipe": "toy", "encoder": "toy", "data": {"name": "toy"}, "train": {"steps": 99}}
        with (folder := RunFolder(tmp_path, settings)).lock:
            folder.claim("auto")
            folder.begin()
        assert run_toy(tmp_path, steps=2, resume="never").steps == 2
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["train"]["steps"] == 2

    def test_a_failing_last_evaluation_costs_no_training(self, tmp_path):
        whole = run_toy(tmp_path / "whole", checkpoint_every=100)
        run, recipe = tmp_path / "run", ToyRecipe(ToyData(rejecting=0.2))
        recipe.evaluate = fail  # type: ignore[method-assign]
        with pytest.raises(UserError, match="evaluation failed"):
            run_toy(run, recipe, checkpoint_every=100)
        assert newest_checkpoint(run / "checkpoints").name == "step-00000012"
        assert len(losses(run)) == 12
        untrained = ToyRecipe(ToyData(rejecting=0.2))
        untrained.forward = fail  # type: ignore[method-assign]
        again = run_toy(run, untrained, checkpoint_every=100)
        assert (again.metrics, again.loss, losses(run)) == (whole.metrics, whole.loss, losses(tmp_path / "whole"))
        last = list(JsonLines(run / "log.jsonl").records())[-1]
        assert last["validation"] == whole.metrics

    def test_ctrl_c_tells_what_is_left(self, tmp_path, monkeypatch):
        recipe, said = ToyRecipe(ToyData()), []
        monkeypatch.setattr(loop.Display, "message", lambda display, text: said.append(text))
        forward, steps = recipe.forward, iter(range(9))

        def interrupted(*given: object):
            if next(steps) == 3:
                raise KeyboardInterrupt
            return forward(*given)

        recipe.forward = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            run_toy(tmp_path, recipe, steps=6, checkpoint_every=2)
        assert said[-1].startswith("interrupted after step 3: ")
        assert "--resume auto continues from it" in said[-1]
        assert run_toy(tmp_path, ToyRecipe(ToyData()), steps=6, checkpoint_every=2).steps == 6

    @pytest.mark.parametrize("when", ["forward", "evaluate"])
    def test_a_signal_in_the_last_step_or_evaluation_is_obeyed(self, tmp_path, when):
        recipe, evaluations = ToyRecipe(ToyData()), []
        work, evaluate = getattr(recipe, when), recipe.evaluate

        def signalled(*given: object):
            os.kill(os.getpid(), signal.SIGTERM)
            return work(*given)

        recipe.evaluate = lambda batches: evaluations.append(1) or evaluate(batches)  # type: ignore[method-assign]
        setattr(recipe, when, signalled)
        with pytest.raises(Terminated, match="stopped by SIGTERM after step 1, checkpoint saved") as caught:
            run_toy(tmp_path, recipe, steps=1)
        assert caught.value.code == 143
        assert not evaluations, "the last evaluation is left to who continues"
        assert (tmp_path / "summary.json").exists() == (when == "evaluate")
        assert run_toy(tmp_path, ToyRecipe(ToyData()), steps=1).metrics.keys() == {"val_error"}

    @pytest.mark.parametrize("ema", [0, 0.9])
    def test_what_the_last_evaluation_decides_is_saved(self, tmp_path, ema):
        class Deciding(ToyRecipe):
            def evaluate(self, batches):
                self.shift.fill_(7)
                return super().evaluate(batches)

        run_toy(tmp_path, recipe := Deciding(ToyData()), steps=2, ema=ema, keep=1)
        for name in ("model", "average") if ema else ("model",):
            saved = load_file(newest_checkpoint(tmp_path / "checkpoints") / f"{name}.safetensors")
            assert saved["shift"].tolist() == 3 * [7]
        assert recipe.shift.tolist() == 3 * [7]
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


class TestSeeds:
    def test_runs_repeat_and_seeds_differ(self, tmp_path):
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            run_toy(tmp_path / name, steps=3, seed=seed)
        assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")

    def test_how_often_it_evaluates_changes_nothing(self, tmp_path):
        run_toy(tmp_path / "a", steps=4)
        run_toy(tmp_path / "b", steps=4, evaluate_every=1, checkpoint_every=1, keep=1)
        assert losses(tmp_path / "a") == losses(tmp_path / "b")


class TestGuard:
    @pytest.mark.parametrize("gradient", [False, True])
    def test_a_step_is_skipped(self, tmp_path, gradient):
        recipe = Nan({1, 2}, gradient)
        summary = run_toy(tmp_path, recipe, steps=5)
        assert summary.skipped == 2
        assert all(bool(torch.isfinite(value).all()) for value in recipe.state_dict().values())
        records = list(JsonLines(tmp_path / "log.jsonl").records())
        assert [record["step"] for record in records if record.get("skipped")] == [1, 2]
        dump = json.loads((tmp_path / "skipped" / "2.json").read_text())
        assert len(dump["samples"]) == 4
        assert "head.weight" in dump["parameters"]

    def test_nothing_of_the_step_remains(self, tmp_path):
        recipe = Nan({0, 1})
        fresh = {name: value.clone() for name, value in recipe.state_dict().items() if name != "shift"}
        run_toy(tmp_path, recipe, steps=2)
        assert all(torch.equal(recipe.state_dict()[name], value) for name, value in fresh.items())

    def test_three_in_a_row_stop_the_run(self, tmp_path):
        recipe = Nan({3, 4, 5})
        with pytest.raises(UserError, match=r"3 steps in a row, the last being 5 \(samples scene-.*clip_norm"):
            run_toy(tmp_path, recipe)
        assert bool(torch.isfinite(recipe.head.weight).all())
        assert len(losses(tmp_path)) == 5

    def test_counting_survives_a_checkpoint(self, tmp_path):
        with pytest.raises(UserError, match="the last being 5"):
            run_toy(tmp_path, Nan({3, 4, 5}), checkpoint_every=4)
        with pytest.raises(UserError, match="the last being 5"):
            run_toy(tmp_path, Nan({3, 4, 5}), checkpoint_every=4)


class TestOptions:
    def test_bf16(self, tmp_path):
        dtypes = []

        class Watched(ToyRecipe):
            def forward(self, batch, progress: Progress) -> Step:
                dtypes.append((batch.points.xyz.dtype, self.head(batch.points.xyz.new_ones(1, 8)).dtype))
                return super().forward(batch, progress)

        recipe = Watched(ToyData())
        run_toy(tmp_path, recipe, steps=3, precision="bf16")
        assert set(dtypes) == {(torch.float32, torch.bfloat16)}
        assert recipe.head.weight.dtype == torch.float32
        assert losses(tmp_path)[-1] < losses(tmp_path)[0]

    def test_epochs(self, tmp_path):
        assert run_toy(tmp_path, steps=0, epochs=1.2).steps == 2  # 7 scenes, 4 a step

    @pytest.mark.parametrize("finished", [True, False])
    def test_a_run_keeps_its_steps_when_scenes_are_added(self, tmp_path, finished):
        options = {"steps": 0, "epochs": 4, "checkpoint_every": 3}
        first = run_toy(tmp_path, **options)
        log = losses(tmp_path)
        if not finished:
            shutil.rmtree(tmp_path / "checkpoints" / f"step-{first.steps:08d}")
            (tmp_path / "summary.json").unlink()
        with pytest.warns(UserWarning, match=r"the run has 7 steps and keeps them; .* 4 would be 9"):
            assert run_toy(tmp_path, ToyRecipe(ToyData(scene_count=9)), **options).steps == first.steps == 7
        assert len(losses(tmp_path)) == 7
        assert losses(tmp_path)[:6] == log[:6]

    def test_a_metric_that_is_not_finite(self, tmp_path):
        class Odd(ToyRecipe):
            def evaluate(self, batches):
                return {"val_error": 1.5, "val_odd": math.inf}

        summary = run_toy(tmp_path, Odd(ToyData()), steps=1)
        assert str(summary).splitlines()[1:] == ["  val_error  1.5", "  val_odd    -"]
        assert math.isnan(summary.metrics["val_odd"])
        text = (tmp_path / "summary.json").read_text()
        assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {"val_error": 1.5, "val_odd": None}
        assert str(run_toy(tmp_path, Odd(ToyData()), steps=1)) == str(summary)

    def test_validation_samples(self, tmp_path):
        class Counting(ToyRecipe):
            def evaluate(self, batches):
                names = [name for batch in batches for name in batch.names]
                return {"samples": len(names), "scenes": len(set(names)), "grad": torch.is_grad_enabled()}

        assert run_toy(tmp_path, Counting(ToyData()), steps=1, validation_samples=10).metrics == {
            "samples": 10,
            "scenes": 7,
            "grad": 0,
        }

    def test_clip(self, tmp_path):
        run_toy(tmp_path, steps=3, clip_norm=0.1, optimizer="sgd", learning_rate=1.0, schedule="constant")
        assert losses(tmp_path)[2] < losses(tmp_path)[0]

    def test_unknown_rate_pattern(self, tmp_path):
        with pytest.raises(ConfigError, match="no parameter matches"):
            run_toy(tmp_path, rates={"encoder.*": 0.1})

    def test_other_threads_are_said(self, tmp_path):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run_toy(tmp_path, steps=2)
            (tmp_path / "summary.json").unlink()
            torch.set_num_threads(2)
            with pytest.warns(UserWarning, match=r"not bit for bit.*threads: 1 -> 2"):
                run_toy(tmp_path, steps=2)
        finally:
            torch.set_num_threads(threads)

    def test_plain_lines(self, tmp_path, capfd):
        train(ToyRecipe(ToyData()), toy_config(steps=2), tmp_path)
        lines = capfd.readouterr().err.splitlines()
        assert re.match(r"step 1/2  loss \d.*  square \d.* steps/s ", lines[0])
        assert any("val_error" in line for line in lines)

    def test_wandb_runs_of_one_name_are_told_apart(self, tmp_path, monkeypatch):
        started = []
        run = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
        fake = SimpleNamespace(init=lambda **options: started.append(options) or run)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        for folder in ("a/seed0", "b/seed0"):
            run_toy(tmp_path / folder, steps=1, wandb="project")
            (tmp_path / folder / "summary.json").unlink()
            run_toy(tmp_path / folder, steps=1, wandb="project")
        first, first_again, second, second_again = (options["id"] for options in started)
        assert (first, second) == (first_again, second_again)
        assert first != second
        assert {options["name"] for options in started} == {"seed0"}

    def test_missing_tracker(self, tmp_path):
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            with pytest.raises(UserError, match="TensorBoard is not installed"):
                run_toy(tmp_path, steps=1, tensorboard=True)
        else:
            run_toy(tmp_path, steps=1, tensorboard=True)
            assert list((tmp_path / "tensorboard").iterdir())


class TestAfterStep:
    def test_called_after_every_step_that_counts(self, tmp_path):
        recipe = Afterwards({3})
        run_toy(tmp_path / "run", recipe)
        assert recipe.calls == [step for step in range(12) if step != 3]
        assert len(set(recipe.drawn)) == 11

    def test_random_numbers_depend_on_seed_and_step_alone(self, tmp_path):
        recipes = [Afterwards(), Afterwards({0, 1, 5}), Afterwards()]
        for number, recipe in enumerate(recipes):
            run_toy(tmp_path / str(number), recipe, seed=7 if number == 2 else 0)
        first, skipping, other = (dict(zip(recipe.calls, recipe.drawn)) for recipe in recipes)
        assert all(first[step] == value for step, value in skipping.items())
        assert first[0] != other[0]

    def test_resumes_to_the_same_bits(self, tmp_path):
        whole, parts = Afterwards(), [Afterwards(), Afterwards()]
        run_toy(tmp_path / "whole", whole)
        run = tmp_path / "parts"
        run_toy(run, parts[0])
        for newer in sorted((run / "checkpoints").iterdir())[1:]:
            shutil.rmtree(newer)
        (run / "summary.json").unlink()
        run_toy(run, parts[1])
        assert parts[1].calls == list(range(8, 12))
        assert losses(run) == losses(tmp_path / "whole")
        for name, value in whole.state_dict().items():
            assert torch.equal(value, parts[1].state_dict()[name]), name
