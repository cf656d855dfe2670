"""The command line: its frozen surface, its errors and exit codes, and that asking costs no heavy import."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from splatlearn import arguments, cli, verbs
from splatlearn.arguments import parse
from splatlearn.cli import main
from splatlearn.errors import BadData, ConfigError
from splatlearn.verbs import doctor

SURFACE = """
demo
  --out PATH
  --seed N
  --steps N

doctor
  --full

check
  DATA
  --data.OPTION VALUE
  --size N,N
  --gap N
  --small N
  --json FILE

fit
  DATA
  --run DIR
  --scene TEXT
  --holdout TEXT
  --side N
  --gaussians N
  --refine-poses
  --exposure
  --steps N
  --seed N
  --on local|ray
  --jobs N
  --retries N
  --shard TEXT
  --resume auto|never
  --data.OPTION VALUE
  --fit.OPTION VALUE
  --train.OPTION VALUE

prepare
  DATA
  --teacher NAME
  --out PATH
  --size N,N
  --layer N
  --device TEXT
  --teacher.OPTION VALUE
  --data.OPTION VALUE

pretrain
  RECIPE
  --run DIR
  --preset TEXT
  --data NAME_OR_DIR
  --encoder NAME_OR_RUN
  --teacher NAME
  --steps N
  --seed N
  --resume auto|never
  --data.OPTION VALUE
  --encoder.OPTION VALUE
  --teacher.OPTION VALUE
  --recipe.OPTION VALUE
  --train.OPTION VALUE

sweep
  RECIPE
  --out PATH
  --preset TEXT
  --encoders TEXT,...
  --teachers TEXT,...
  --data NAME_OR_DIR
  --vary VALUE
  --seeds N
  --steps N
  --labelled TEXT
  --task TEXT
  --task-preset TEXT
  --projector TEXT
  --jobs N
  --retries N
  --data.OPTION VALUE
  --teacher.OPTION VALUE
  --recipe.OPTION VALUE
  --train.OPTION VALUE

evaluate
  TASK
  --encoder NAME_OR_RUN
  --data NAME_OR_DIR
  --probe linear|decoder|finetune
  --preset TEXT
  --labels X
  --robustness
  --corrupted PATH
  --steps N
  --seed N
  --json FILE
  --run DIR
  --data.OPTION VALUE
  --encoder.OPTION VALUE
  --task.OPTION VALUE
  --train.OPTION VALUE

encode
  --encoder NAME_OR_RUN
  --data NAME_OR_DIR
  --out PATH
  --format npy|npz|safetensors
  --levels finest|all
  --size N,N
  --every N
  --seed N
  --device TEXT
  --encoder.OPTION VALUE
  --data.OPTION VALUE

compare
  RUNS
  --out PATH

convert
  SOURCE
  TARGET
  --overwrite
  --dry-run
  --encoder.OPTION VALUE

view
  DATA
  --scene TEXT
  --color TEXT
  --picture PATH
  --size N,N
  --camera N
  --overlay
  --up x|y|z|-x|-y|-z
  --encoder NAME_OR_RUN
  --teacher NAME
  --at N,N,N
  --images N
  --page PATH
  --device TEXT
  --host TEXT
  --port N
  --encoder.OPTION VALUE
  --teacher.OPTION VALUE
  --data.OPTION VALUE

list
  KIND
  NAME
"""
"""Every verb and flag. A change here is a change of what scripts rely on."""

HEAVY = ("torch", "numpy", "numba", "lightning", "matplotlib", "scipy", "timm", "trimesh", "torchmetrics", "PIL")


def listing() -> str:
    lines = []
    for name in verbs.VERBS:
        lines += ["", name, *("  " + " ".join([*a.option_strings[:1], str(a.metavar)]).strip() for a in flags(name))]
    return "\n".join(lines)


def flags(name: str) -> list[argparse.Action]:
    """The arguments that the help of a verb shows, but for those of every verb."""
    actions = arguments.build_parser(name, verbs.verb(name))._actions
    return [a for a in actions if a.help != argparse.SUPPRESS and a.dest not in ("config", "debug", "help")]


def toy(
    recipe: str,
    *,
    run: Path,
    steps: int = 30,
    resume: Literal["auto", "never"] = "auto",
    full: bool = False,
    size: tuple[int, int] | None = None,
    data: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    train_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Learn.

    Words about it.

    Args:
        recipe: how.
        run: where.
        steps: how
            long.
    """
    return {**locals()}


def several(*runs: Path, out: Path | None = None) -> str:
    """Compare."""
    return ",".join(map(str, runs))


@pytest.fixture
def toys(monkeypatch):
    """Two made-up verbs instead of the real ones."""
    known = {"toy": toy, "several": several}
    monkeypatch.setattr(cli, "VERBS", {"toy": "", "several": ""})
    monkeypatch.setattr(cli, "verb", known.__getitem__)


def asked(line: str) -> dict[str, Any]:
    positional, given = parse(toy, line.split())
    return toy(*positional, **given)


class TestSurface:
    def test_every_verb_and_flag(self):
        assert listing().strip() == SURFACE.strip()

    def test_every_flag_is_explained(self):
        for name in verbs.VERBS:
            summary, described = arguments.explain(verbs.verb(name))
            assert summary, name
            missing = {action.dest for action in flags(name)} - set(described)
            assert not missing, f"{name}: no word about {missing}"

    def test_verbs_are_functions_of_the_package(self):
        import splatlearn

        for name in verbs.VERBS:
            assert getattr(splatlearn, name) is verbs.verb(name)
        assert callable(splatlearn.load)
        with pytest.raises(AttributeError, match="no attribute 'pretain'"):
            _ = splatlearn.pretain


class TestParsing:
    def test_order_and_both_spellings(self):
        expected = asked("gs3 --run a --steps 5 --data rooms --data.size 3 --encoder.voxel 0.1")
        assert asked("--data.size=3 --steps=5 --encoder.voxel=0.1 gs3 --data=rooms --run=a") == expected
        assert expected["data_options"] == {"size": "3"}
        assert expected["encoder_options"] == {"voxel": "0.1"}

    def test_types(self):
        given = asked("gs3 --run a/b --steps 5 --size 160,120 --full")
        assert (given["run"], given["steps"], given["size"]) == (Path("a/b"), 5, (160, 120))
        assert given["full"] is True
        assert asked("gs3 --run a --full false")["full"] is False

    def test_nested_and_negative_values(self):
        assert asked("gs3 --run a --data.x.y -3")["data_options"] == {"x": {"y": "-3"}}
        assert asked("gs3 --run a --data.x -1e-3 --steps -5")["data_options"] == {"x": "-1e-3"}
        assert asked("gs3 --run a --size -1,2")["size"] == (-1, 2)

    def test_a_positional_may_be_named(self):
        assert asked("--recipe gs3 --run a")["recipe"] == "gs3"

    def test_repeated(self):
        assert parse(several, ["a", "--out", "o", "b"]) == ([Path("a"), Path("b")], {"out": Path("o")})

    def test_all_problems_in_one_message(self):
        with pytest.raises(ConfigError) as caught:
            asked("gs3 --rnu a --steps many --resume maybe --dta.x 3 extra --size 1")
        message = str(caught.value)
        for expected in (
            "--rnu: unknown; did you mean '--run'?",
            "--run: required",
            "--steps: int expected, got 'many'",
            "--resume: one of auto, never expected, got 'maybe'",
            "--dta.x: unknown",
            "extra: one argument too many",
            "--size: tuple[int, int] expected, got '1'",
        ):
            assert expected in message

    @pytest.mark.parametrize("words", ["--steps 3 --train.steps 4", "--train.steps=3 --steps=3"])
    def test_one_thing_by_two_flags(self, words):
        with pytest.raises(ConfigError, match=r"^--steps and --train\.steps: give one of them$"):
            asked(f"gs3 --run a {words} --train.batch 2")

    def test_a_flag_without_a_value(self):
        with pytest.raises(ConfigError, match="--steps: needs a value"):
            asked("gs3 --run a --steps --full")


class TestConfigFile:
    def test_flags_win(self, tmp_path):
        file = tmp_path / "config.yaml"
        file.write_text("recipe: gs3\nsteps: 7\ndata: {name: rooms, options: {a: 1, b: 2}}\nencoder.voxel: 3\n")
        given = asked(f"--config {file} --run a --data.b 5")
        assert (given["recipe"], given["steps"], given["data"]) == ("gs3", 7, "rooms")
        assert given["data_options"] == {"a": 1, "b": "5"}
        assert given["encoder_options"] == {"voxel": 3}

    def test_a_renamed_part_drops_the_options_of_the_old_one(self, tmp_path):
        file = tmp_path / "config.yaml"
        file.write_text("recipe: gs3\ndata: {name: rooms, options: {a: 1}}\n")
        assert asked(f"--config {file} --run a --data other --data.b 5")["data_options"] == {"b": "5"}
        assert asked(f"--config {file} --run a --data rooms --data.b 5")["data_options"] == {"a": 1, "b": "5"}

    def test_flags_of_the_loop_win_over_the_short_forms_of_a_file(self, tmp_path):
        file = tmp_path / "config.yaml"
        file.write_text("steps: 7\n")
        line = f"gs3 --run a --config {file}"
        assert asked(line)["steps"] == 7
        given = asked(f"{line} --train.steps 9")
        assert (given["steps"], given["train_options"]) == (30, {"steps": "9"})

    def test_another_preset_than_the_files_would_change_nothing(self, tmp_path):
        (tmp_path / "config.yaml").write_text("preset: small\nrecipe_options: {gap: 3}\n")
        line = f"gs3 --run a --config {tmp_path / 'config.yaml'}"
        function = verbs.verb("pretrain")
        assert parse(function, f"{line} --preset small".split())[1]["preset"] == "small"
        with pytest.raises(ConfigError, match=r"--preset tiny: --config .*yaml is of the preset small"):
            parse(function, f"{line} --preset tiny".split())

    def test_paths_are_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "config.yaml").write_text("steps: 7\n")
        given = asked("gs3 --run=~/x --config=~/config.yaml")
        assert (given["run"], given["steps"]) == (tmp_path / "x", 7)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match=r"--config \S*nope\.yaml: cannot be read: No such file"):
            asked(f"gs3 --run a --config {tmp_path / 'nope.yaml'}")

    def test_a_file_that_is_no_text(self, tmp_path):
        (tmp_path / "config.yaml").write_bytes(b"steps: \xff\xfe")
        with pytest.raises(ConfigError, match=r"config\.yaml: not valid YAML: 'utf-8' codec"):
            asked(f"gs3 --run a --config {tmp_path / 'config.yaml'}")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("stepz: 3", "config.yaml: stepz: unknown; did you mean 'steps'"),
            ("- 3", "expected settings"),
            ("a: [", "not valid YAML"),
        ],
    )
    def test_errors(self, tmp_path, text, message):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            asked(f"gs3 --run a --config {tmp_path / 'config.yaml'}")


class TestExitCodes:
    def run(self, monkeypatch, error: BaseException, *words: str) -> int:
        def fail() -> None:
            """Fail."""
            raise error

        monkeypatch.setattr(cli, "VERBS", {"fail": ""})
        monkeypatch.setattr(cli, "verb", lambda name: fail)
        return main(["fail", *words])

    def test_success(self, toys, capsys):
        assert main(["several", "a", "b"]) == 0
        assert capsys.readouterr().out == "a,b\n"

    def test_of_several_processes_the_first_speaks(self, toys, capsys, monkeypatch):
        from splatlearn.engine import runtime

        monkeypatch.setattr(runtime, "is_main", lambda: False)
        assert main(["several", "a"]) == 0
        assert capsys.readouterr().out == ""

    def test_a_mapping_is_json(self, toys, capsys):
        assert main(["toy", "gs3", "--run", "a"]) == 0
        assert json.loads(capsys.readouterr().out)["recipe"] == "gs3"

    def test_users_error(self, monkeypatch, capsys):
        assert self.run(monkeypatch, BadData("x.png: truncated")) == 2
        assert capsys.readouterr().err == "splatlearn: error: x.png: truncated\n"

    def test_a_missing_file(self, monkeypatch, capsys):
        assert self.run(monkeypatch, FileNotFoundError(2, "No such file", "x.yaml")) == 2
        assert "x.yaml" in capsys.readouterr().err

    def test_debug_shows_the_traceback(self, monkeypatch):
        with pytest.raises(BadData):
            self.run(monkeypatch, BadData("bad"), "--debug")

    def test_our_own_error_is_not_hidden(self, monkeypatch):
        with pytest.raises(TypeError):
            self.run(monkeypatch, TypeError("ours"))

    def test_interrupt(self, monkeypatch, capsys):
        assert self.run(monkeypatch, KeyboardInterrupt()) == 130
        assert "interrupted" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("pretain", "unknown verb 'pretain'; did you mean 'pretrain'?"),
            ("list encodrs", "unknown kind 'encodrs'; did you mean 'encoders'?"),
            ("check", "DATA: required"),
        ],
    )
    def test_real_verbs(self, capsys, line, message):
        assert main(line.split()) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert not captured.out


class TestHelp:
    def test_groups_and_defaults(self, toys, capsys):
        assert main(["toy", "--help"]) == 0
        text = capsys.readouterr().out
        for expected in ("usage: splatlearn toy RECIPE --run DIR", "Words about it.", "--data.OPTION VALUE"):
            assert expected in text
        assert "how long. (default: 30)" in text

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out.startswith("splatlearn ")

    def test_nothing_heavy_is_imported(self):
        lines = ["--help", *(f"{name} --help" for name in verbs.VERBS), "list", "list encoders", "doctor"]
        code = (
            "import sys\nfrom splatlearn.cli import main\n"
            f"codes = [main(line.split()) for line in {lines!r}]\n"
            f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
            "sys.exit(f'codes {codes}, imported {heavy}' if any(codes) or heavy else 0)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "usage: splatlearn pretrain RECIPE --run DIR" in done.stdout


class TestListAndDoctor:
    def test_list_names_every_family(self, capsys):
        main(["list"])
        text = capsys.readouterr().out
        for name in ("sparse_unet", "pointnet2", "gs3", "segmentation", "rooms", "rgbd", "photos", "pointcept"):
            assert name in text

    def test_options_of_a_part(self, capsys):
        assert main(["list", "encoders", "sparse_unet.tiny"]) == 0
        text = capsys.readouterr().out
        assert "--encoder.voxel" in text
        assert "metres" in text

    def test_options_of_a_recipe_and_of_the_loop(self, capsys):
        assert main(["list", "recipes", "gs3.tiny"]) == 0
        text = capsys.readouterr().out
        assert "--recipe.epipolar.samples" in text
        assert "sparse_unet.tiny, pointnet2.tiny" in text
        assert main(["list", "train"]) == 0
        assert "--train.learning_rate" in capsys.readouterr().out

    def test_doctor(self, capsys):
        assert main(["doctor"]) == 0
        text = capsys.readouterr().out
        for expected in ("torch", "reference", "cuda", "worlds", "OMP_NUM_THREADS"):
            assert expected in text

    @pytest.mark.parametrize(
        ("absent", "hindrance", "expected"),
        [
            ("", "", ("float32 on CUDA takes gsplat", "gsplat installed")),
            ("no gsplat", "", ("float32 on CUDA takes reference, slow", "gsplat inactive: no gsplat")),
            ("", "no driver", ("would take gsplat; there is none here", "gsplat inactive: no driver", "cuda inactive")),
            ("no gsplat", "no driver", ("would take reference, slow", "inactive: no gsplat; no driver")),
        ],
    )
    def test_doctor_says_which_backend_and_why_not_the_others(self, capsys, monkeypatch, absent, hindrance, expected):
        monkeypatch.setattr(doctor, "_gsplat", lambda: absent)
        monkeypatch.setattr(doctor, "_no_cuda", lambda: hindrance)
        assert main(["doctor"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "float32 on the CPU takes cpu" in text
        for line in expected:
            assert line in text

    @pytest.mark.parametrize("own", ["", "~/worlds"])
    @pytest.mark.parametrize("common", ["", "~/caches"])
    def test_doctor_names_the_folder_that_worlds_are_made_in(self, monkeypatch, own, common):
        from splatlearn.data.procedural.cache import cache_root

        monkeypatch.setenv("SPLATLEARN_CACHE", own)
        monkeypatch.setenv("XDG_CACHE_HOME", common)
        assert dict(doctor._folders())["worlds"].startswith(f"{cache_root()}")

    def test_doctor_knows_whether_gsplat_is_there(self, monkeypatch):
        monkeypatch.setattr(doctor, "find_spec", lambda name: None)
        assert "splatlearn[cuda]" in doctor._gsplat()
        monkeypatch.setattr(doctor, "find_spec", lambda name: name)
        assert not doctor._gsplat()

    def test_doctor_tries_the_backends(self, capsys):
        import torch

        assert main(["doctor", "--full"]) == 0
        text = capsys.readouterr().out
        assert text.count("renders (greatest alpha 0.90") == 2
        expected = "gsplat not tried: torch finds no CUDA device"
        assert (expected in " ".join(text.split())) != torch.cuda.is_available()

    def test_extras_are_those_of_the_project(self):
        import tomllib

        from splatlearn.verbs.doctor import EXTRAS

        file = Path(__file__).parents[1] / "pyproject.toml"
        extras = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
        named = {extra: {line.split(">")[0] for line in lines} for extra, lines in extras.items() if extra != "dev"}
        assert {extra: set(packages) for extra, packages in EXTRAS.items()} == named
