"""`sweep`: every combination gets a run, a table holds them all, and what does not fit is told before any begins."""

import json

import pytest

from data.labelled_maker import write_classes
from splatlearn.cli import main
from splatlearn.errors import ConfigError
from splatlearn.verbs.sweep import Combination, combinations, sweep

SMALL = ["--preset", "tiny", "--recipe.size", "112,112", "--train.validation_samples", "1", "--train.batch", "1"]


def test_all_combinations():
    found = list(combinations(("a.x", "b.x"), (), ("streets", "streets+drives/kitti"), {}, 2))
    assert len(found) == 8 and len({one.name for one in found}) == 8
    assert found[-1] == Combination("b.x", None, ("streets", "drives/kitti"), (), 1)
    assert found[-1].name == "b.x-streets+kitti-seed1"


def test_a_mix_is_a_data_set_and_others_beside_it():
    given = Combination(None, None, ("streets", "kitti"), (), 0).settings({"points": 5}, {"beams": 64})
    assert given["data"] == "streets" and given["recipe_options"] == {"points": 5, "also": {"kitti": {"beams": 64}}}
    assert Combination(None, None, (), (), 0).settings(None, None)["recipe_options"] == {}


def test_settings_that_vary():
    vary = {"projector": ("simple", "ladder"), "dropping.mode": ("none",)}
    found = list(combinations((), (), (), vary, 1))
    assert [one.name for one in found] == ["projector_simple-mode_none-seed0", "projector_ladder-mode_none-seed0"]
    given = found[1].settings({"size": (56, 56)}, None)["recipe_options"]
    assert given == {"size": (56, 56), "projector": "ladder", "dropping.mode": "none"}


@pytest.mark.parametrize("values", ["simple", [], 3])
def test_a_value_is_no_list(tmp_path, values):
    with pytest.raises(ConfigError, match=r"--vary projector: a list of values is needed"):
        sweep("dune", out=tmp_path / "out", preset="tiny", vary={"projector": values})


def test_projectors_side_by_side_with_a_probe(tmp_path):
    data = str(write_classes(tmp_path / "colors", train=3, val=2))
    words = ["sweep", "dune", "--preset", "tiny", "--steps", "2", "--train.batch", "2", "--data", data]
    words += ["--vary", "{projector: [simple, ladder]}", "--recipe.projector_options.hidden", "8", "--labelled", data]
    words += ["--task", "image_classification", "--task-preset", "tiny", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert all(word in page for word in ("projector_simple-seed0", "projector_ladder-seed0", "knn", "val_explained"))


def test_runs_and_their_table(tmp_path, capsys):
    words = ["sweep", "scalr", *SMALL, "--teachers", "timm.tiny,squeezenet.tiny", "--steps", "2", "--out"]
    assert main([*words, str(tmp_path / "all")]) == 0
    table = capsys.readouterr().out
    for teacher in ("timm.tiny", "squeezenet.tiny"):
        run = tmp_path / "all" / f"{teacher}-seed0"
        assert json.loads((run / "summary.json").read_text())["steps"] == 2
        assert run.name in table
    assert "val_cosine_centred" in (tmp_path / "all" / "compare.html").read_text()
    statuses = json.loads((tmp_path / "all" / "status.json").read_text())
    assert {status["state"] for status in statuses} == {"done"}
    assert main([*words, str(tmp_path / "all")]) == 0  # continued: nothing is left to do


@pytest.mark.parametrize("name", ["seeds", "jobs"])
def test_numbers(tmp_path, name):
    with pytest.raises(ConfigError, match=f"--{name}: 1 or more is needed, got 0"):
        sweep("scalr", out=tmp_path / "out", **{name: 0})


def test_runs_that_would_share_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="2 runs would share 1 folders"):
        sweep("scalr", out=tmp_path / "out", preset="tiny", data=("a/pandar64", "b/pandar64"))


def test_what_does_not_fit_is_told_before_any_run(tmp_path):
    with pytest.raises(ConfigError, match=r"wafleiron\.tiny: no such encoder"):
        sweep("scalr", out=tmp_path / "out", preset="tiny", encoders=("waffleiron.tiny", "wafleiron.tiny"))
    assert not (tmp_path / "out").exists()
