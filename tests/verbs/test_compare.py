import json

import pytest

from splatlearn.errors import UserError
from splatlearn.verbs.compare import compare


def make_run(folder, psnr, losses=(3.0, 2.0, 1.0)):
    folder.mkdir(parents=True)
    summary = {
        "metrics": {"val_psnr": psnr, "baseline/copy": 11.25},
        "steps": len(losses),
        "steps_per_second": 2.5,
        "peak_memory_mb": 900.0,
        "encoder": {"name": "sparse_unet.tiny", "options": {}},
        "data": {"name": "rooms"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def evaluation(miou, seed=0):
    return {
        "task": "segmentation",
        "probe": "linear",
        "metrics": {"miou": miou, "macc": 50.0},
        "encoder": "runs/<b>",
        "data": "rooms",
        "labels": 0.1,
        "seed": seed,
    }


def test_runs_and_evaluations_in_one_table_and_page(tmp_path):
    first, second = make_run(tmp_path / "a" / "run", 21.5), make_run(tmp_path / "b" / "run", 22.5)
    (first / "probe.json").write_text(json.dumps(evaluation(40.5)))
    (tmp_path / "table.json").write_text(json.dumps({"verdict": {}, "evaluations": [evaluation(33.0, 1)]}))
    page = tmp_path / "pages" / "compared.html"
    result = compare(str(first), str(second), str(tmp_path / "table.json"), out=page)
    tables = result.tables()
    assert tables["Pre-training"][:5] == [
        ["", "a/run", "b/run"],
        ["encoder", "sparse_unet.tiny", "sparse_unet.tiny"],
        ["data", "rooms", "rooms"],
        ["steps", "3", "3"],
        ["val_psnr", "21.5", "22.5"],
    ]
    assert [row[-2:] for row in tables["Evaluation"][1:]] == [["40.5", "50"], ["33", "50"]]
    assert all(text in str(result) for text in ("b/run", "22.5", "10 %", str(page)))
    html = page.read_text()
    assert "runs/&lt;b&gt;" in html and "<b>" not in html
    assert "data:image/png;base64," in html and "http" not in html.replace("http-equiv", "")


def test_evaluations_alone_have_no_training_table(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(evaluation(40.5)))
    assert list(compare(str(path)).tables()) == ["Evaluation"]


def test_same_names_are_told_apart(tmp_path):
    one, two = make_run(tmp_path / "x" / "run", 1.0), make_run(tmp_path / "y" / "run", 2.0)
    assert [run.name for run in compare(str(one), str(two)).runs] == ["x/run", "y/run"]
    assert compare(str(one)).runs[0].name == "run"


def test_errors(tmp_path):
    with pytest.raises(UserError, match="name the runs"):
        compare()
    with pytest.raises(UserError, match="absent does not exist"):
        compare(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"neither the summary\.json of a finished run"):
        compare(str(tmp_path))
    broken = tmp_path / "broken.json"
    broken.write_text('{"task": ')
    with pytest.raises(UserError, match=r"broken\.json is not readable as JSON"):
        compare(str(broken))


def test_a_run_that_is_not_finished(tmp_path):
    (tmp_path / "config.yaml").write_text("recipe: gs3\n")
    with pytest.raises(UserError, match="is not finished; the command that began it continues it"):
        compare(str(tmp_path))
