"""Every command of the README parses; those that only ask run."""

import re
import shlex
from pathlib import Path

import pytest

from splatlearn import verbs
from splatlearn.arguments import parse
from splatlearn.cli import main
from splatlearn.config import configure
from splatlearn.engine.config import TrainConfig
from splatlearn.registry import encoders, recipes, tasks
from splatlearn.tasks.fitting import FitConfig
from splatlearn.verbs.fit_scenes import parse_shard

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = re.findall(r"^\$ splatlearn (.+)$", (ROOT / "README.md").read_text(), re.M)
CHEAP = ("list", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_parses(command):
    words = shlex.split(command)
    if "--help" in words:
        assert words[0] in verbs.VERBS
        return
    _, given = parse(verbs.verb(words[0]), words[1:])
    configure(TrainConfig, given.get("train_options", {}), "--train")
    name = given.get("encoder", "").removeprefix("random:")
    if name.partition(".")[0] in encoders.families():
        encoders.config(name, given.get("encoder_options"))
    if words[0] == "pretrain":
        recipes.config(words[1], given.get("recipe_options"))
    if words[0] == "evaluate":
        tasks.config("segmentation", given.get("task_options"))
    if words[0] == "fit":
        short = {name: given[name] for name in ("holdout", "side", "gaussians", "exposure") if name in given}
        configure(FitConfig, {**given.get("fit_options", {}), **short}, "--fit")
        parse_shard(given.get("shard", "1/1"))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[0] in CHEAP or "--help" in c])
def test_runs(command, capsys):
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out


def test_every_verb_is_shown():
    shown = {command.split()[0] for command in COMMANDS} | {"demo"}
    assert shown == set(verbs.VERBS)


def test_its_first_commands_are_the_makefiles():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = re.findall(r"^    make ([a-z]+)", "\n".join(page.read_text() for page in PAGES), re.M)
    assert named[:2] == ["demo", "test"]
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points at {target}"
