"""`pretrain` from the command line: a whole run folder, continued or refused; an encoder to start from."""

import json
import re
import shutil
from dataclasses import dataclass

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from splatlearn import registry
from splatlearn.arguments import parse
from splatlearn.cli import main
from splatlearn.data.scene import Scene, Source
from splatlearn.encoders.base import PointEncoder
from splatlearn.engine.checkpoint import load_encoder
from splatlearn.engine.trainable import Progress, Recipe, Step
from splatlearn.structures import Batch, Points
from splatlearn.verbs import verb
from splatlearn.verbs.pretrain import plan, with_teacher


@dataclass(frozen=True, kw_only=True)
class GuessConfig:
    """Settings.

    Args:
        points: of a cloud.
    """

    points: int = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud(Batch):
    points: Points


class Room(Scene):
    name = "room"


@dataclass(frozen=True)
class GuessData:
    points: int

    def scenes(self, split: str) -> dict[str, list[Scene]]:
        return {"all": [Room()]}

    def shares(self) -> dict[str, float]:
        return {}

    def sample(self, scene: Scene, rng) -> Cloud:
        xyz = torch.from_numpy(rng.random((self.points, 3), dtype="float32"))
        return Cloud(names=(scene.name,), points=Points(counts=(self.points,), xyz=xyz, attributes={"color": xyz}))


class Guess(Recipe[Cloud]):
    """Learn to say where a point is from its colour."""

    def __init__(self, config: GuessConfig, *, student: PointEncoder, source: Source) -> None:
        super().__init__()
        self.data = self.validation = GuessData(config.points)
        self.student, self.head = student, torch.nn.Linear(student.channels[0], 3)

    def forward(self, batch: Cloud, progress: Progress) -> Step:
        guess = self.head(self.student(batch.points).dense())
        return Step({"mse": (guess - batch.points.xyz).square().mean()})

    def evaluate(self, batches) -> dict[str, float]:
        return {"val_psnr": float(sum(len(batch.names) for batch in batches)), "baseline/copy": 0.5}

    def preview(self, batch: Cloud) -> dict[str, torch.Tensor]:
        return {"group/caption": torch.rand(3, 4, 4)}


@pytest.fixture(scope="module")
def recipe():
    """`guess`, as another package would register it: presets without YAML files."""
    registry.recipes.register("guess", GuessConfig, {"tiny": {"points": 30}})(Guess)
    yield "guess"
    del registry.recipes._families["guess"]


def pretrain(run, *words: str) -> int:
    line = [
        "pretrain",
        "guess",
        "--preset",
        "tiny",
        "--encoder",
        "sparse_unet.tiny",
        "--data",
        "rooms.tiny",
        "--run",
    ]
    return main([*line, str(run), "--train.batch", "1", "--train.setup_batches=1", "--steps", "3", *words])


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run of three steps."""
    run = tmp_path_factory.mktemp("runs") / "first"
    assert pretrain(run) == 0
    return run


def test_the_run_folder_is_complete(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "log.jsonl", "summary.json", "report.html", "checkpoints"} <= names
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    assert (settings["recipe"], settings["preset"], settings["train"]["seed"]) == ("guess", "tiny", 0)
    assert settings["encoder"]["name"] == "sparse_unet.tiny"
    assert settings["encoder"]["options"]["voxel"] > 0
    assert settings["data"]["name"] == "rooms.tiny"
    assert settings["data"]["options"]["frames"] == 12
    assert settings["recipe_options"] == {"points": 30}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["metrics"]["baseline/copy"] == 0.5
    assert "caption" in (finished / "report.html").read_text()


def test_a_run_is_continued_never_overwritten(finished, capsys):
    before = (finished / "log.jsonl").read_bytes()
    assert pretrain(finished) == 0
    assert (finished / "log.jsonl").read_bytes() == before
    assert pretrain(finished, "--resume", "never") == 2
    assert "--resume is never" in capsys.readouterr().err
    assert pretrain(finished, "--recipe.points", "31") == 2
    assert "recipe_options.points: 30 -> 31" in capsys.readouterr().err
    assert (finished / "log.jsonl").read_bytes() == before


def test_its_config_file_does_it_again(finished, tmp_path):
    assert main(["pretrain", "--config", str(finished / "config.yaml"), "--run", str(tmp_path / "again")]) == 0
    logs = [(run / "log.jsonl").read_text().splitlines() for run in (finished, tmp_path / "again")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]


def test_flags_win_over_its_config_file(finished):
    file = ["--config", str(finished / "config.yaml"), "--run", "other"]
    jobs = []
    for words in (["--train.seed", "5"], ["--seed", "5"], ["--encoder", "pointnet2.tiny"]):
        (name,), given = parse(verb("pretrain"), [*file, *words])
        del given["run"]
        jobs.append(plan(name, **given).settings)
    assert jobs[0] == jobs[1]
    assert (jobs[0]["train"]["seed"], jobs[0]["train"]["steps"]) == (5, 3)
    assert (
        jobs[2]["encoder"]
        == plan("guess", preset="tiny", data="rooms.tiny", encoder="pointnet2.tiny").settings["encoder"]
    )


def test_a_home_folder_is_expanded(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrain("~/run") == 0
    assert (tmp_path / "run" / "report.html").exists()


def test_the_report_shows_the_averaged_weights(recipe, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Guess, "preview", lambda self, batch: shown.append(self.student.state_dict()) or {})
    assert pretrain(tmp_path / "run", "--train.ema", "0.9") == 0
    exported = load_encoder(tmp_path / "run").state_dict()
    assert all(torch.equal(value, shown[0][name]) for name, value in exported.items())


def test_starts_from_the_weights_of_a_run(finished, tmp_path):
    learnt = load_encoder(finished).state_dict()
    run = tmp_path / "second"
    still = "--train.learning_rate=1e-30", "--train.schedule=constant", "--train.weight_decay=0"
    assert pretrain(run, "--encoder", str(finished), *still) == 0
    again = load_encoder(run).state_dict()
    weights = [name for name, value in learnt.items() if value.is_floating_point() and "running" not in name]
    assert all(torch.allclose(learnt[name], again[name], atol=1e-6) for name in weights)


def test_other_weights_to_start_from_are_another_run(finished, tmp_path, capsys):
    first, run = tmp_path / "first", tmp_path / "second"
    shutil.copytree(finished / "checkpoints" / "step-00000003", first)
    words = "--encoder", str(first), "--steps", "1"
    assert pretrain(run, *words) == 0
    (name,), given = parse(verb("pretrain"), ["--config", str(run / "config.yaml"), "--run", "other"])
    del given["run"]
    assert plan(name, **given).settings == yaml.safe_load((run / "config.yaml").read_text())
    weights = load_file(first / "encoder.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, first / "encoder.safetensors")
    assert pretrain(run, *words) == 2
    assert re.search(r"encoder\.weights: [0-9a-f]{64} -> [0-9a-f]{64}\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "nowhere"], "--encoder nowhere: no such encoder or run folder"),
        (["--preset", "huge"], "--preset huge: guess has none of that name"),
        (["--train.stps", "3"], "--train.stps: unknown; did you mean 'steps'?"),
        (["--data", "nowhere"], "--data nowhere"),
        (["--seed", "x"], "--seed: int expected, got 'x'"),
        (["--train.batch", "0"], "batch"),
        (["--steps", "0"], "--steps: 1 or more is needed, got 0"),
    ],
)
def test_bad_settings_leave_nothing_behind(recipe, tmp_path, capsys, words, message):
    assert pretrain(tmp_path / "run", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "words"), [("nope", []), ("gs3", ["--preset", "huge"])])
def test_everything_that_is_wrong_is_told_at_once(name, words, capsys):
    rest = ["--encoder", "bogus", "--data", "nowhere", "--steps", "0", "--run", "x", "--train.lr", "3"]
    assert main(["pretrain", name, *words, *rest]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    starts = [line.split(":")[0].strip() for line in lines]
    wrong = "--preset huge" if words else "recipes"
    assert first == "splatlearn: error: "
    assert starts == [wrong, "--steps", "--encoder bogus", "--data nowhere", "--train.lr"]


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        ("timm.dinov2-l", {"norm": False}),
        ("dinov2-l", {"norm": False}),
        ("timm.dinov2-b", {"norm": False}),
        ("vit_large_patch14_dinov2.lvd142m", {"norm": False}),
        ("resnet50v2", {}),
    ],
)
def test_a_teacher_of_the_same_family_is_read_as_the_presets(teacher, options):
    preset = {"teachers": {"timm.dinov2-l": {"norm": False}}}
    assert with_teacher("scalr", preset, teacher, None)["teachers"] == {teacher: options}
    assert with_teacher("scalr", preset, teacher, {"norm": True})["teachers"][teacher]["norm"] is True


def test_a_run_without_a_checkpoint_is_no_encoder(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, ignore=lambda folder, names: ["checkpoints"])
    assert pretrain(tmp_path / "run", "--encoder", str(copy)) == 2
    assert "no encoder here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ()),
        ({"formulation": "depth"}, ()),
        ({"depth.per_point": 2}, ("--recipe.depth has no effect: formulation is offset",)),
        ({"cross_view": False, "feature_skip": False}, ("--recipe.feature_skip has no effect: cross_view is off",)),
        ({"offset.rotate_sh": False}, ("--recipe.offset.rotate_sh has no effect: sh_degree is 0",)),
        ({"offset.rotate_sh": False, "offset.sh_degree": 1}, ()),
        (
            {"formulation": "depth", "depth.opacity_exponent": 2},
            ("--recipe.depth.opacity_exponent has no effect: opacity is normalized",),
        ),
        ({"lpips_weights": "vgg.pth"}, ("--recipe.lpips_weights has no effect: lpips is 0",)),
    ],
)
def test_settings_without_effect_are_told(options, told):
    assert plan("gs3", preset="tiny", data="rooms.tiny", recipe_options=options).idle == told


def test_settings_without_effect_are_warned_of(tmp_path):
    words = [
        "pretrain",
        "gs3",
        "--preset",
        "tiny",
        "--data",
        "rooms.tiny",
        "--steps",
        "1",
        "--run",
        str(tmp_path / "run"),
    ]
    with pytest.warns(UserWarning, match="--recipe.depth has no effect: formulation is offset"):
        assert main([*words, "--recipe.depth.per_point", "2"]) == 0
