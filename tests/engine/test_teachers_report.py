"""What a report says of each teacher is what the log and the evaluation say."""

import json
import re

import numpy as np
import pytest

from splatlearn.engine.report import write_report
from splatlearn.engine.teachers_report import of_teacher, teachers_section

METRICS = {
    "val_loss": 0.3,
    "val_explained": 0.25,
    "val_explained/a": 0.5,
    "val_explained/b": -0.125,
    "components90/a": 12.0,
    "components90/b": 30.0,
    "components90_student": 9.0,
}


def line(step: int, evaluated: bool = False) -> dict:
    loss = 1 / (1 + step)
    metrics = {"loss/a": loss, "loss/b": 2 * loss, "share/a": 0.75, "share/b": 0.25, "finite/a": 1.0}
    if step % 5 == 0:
        metrics |= {"gradient/a": 0.5, "gradient/b": 4.0}
    return {"step": step, "loss": loss, "metrics": metrics} | ({"validation": METRICS} if evaluated else {})


LOG = [line(step, step in (9, 19)) for step in range(20)]


def cells(section: str) -> dict[str, list[str]]:
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", section)]
    return {row[0]: row[1:] for row in rows}


def test_the_table():
    found = cells(teachers_section(METRICS, LOG))
    assert found["teacher"][:2] == ["explained", "components, teacher"]
    assert "components, student" not in found["teacher"]  # no such numbers
    columns = {name: [row[i] for row in found.values()] for i, name in enumerate(found["teacher"])}
    assert columns["explained"] == ["explained", "0.5000", "-0.1250", "0", "-"]
    assert columns["components, teacher"][1:] == ["12", "30", "-", "-"]
    assert columns["gradient norm, training"][1:] == ["0.5000", "4.00", "-", "-"]
    assert columns["loss, training"][1] == f"{(1 / 19 + 1 / 20) / 2:.4f}"


def test_charts_and_what_they_say():
    section = teachers_section(METRICS, LOG)
    assert section.count("<img") == 5
    assert "over 19 steps" in section and "A dash is undefined" not in section
    assert "0 is what a constant has" in section


def test_what_is_undefined_is_told():
    flat = [{**line(step), "metrics": {"loss/a": 1.0, "loss/b": 1 / (1 + step)}} for step in range(9)]
    assert "A dash is undefined" in teachers_section({}, flat)


def test_a_single_teacher_has_no_pair():
    log = [{"step": step, "metrics": {"loss/a": 1 / (1 + step)}} for step in range(9)]
    section = teachers_section({}, log)
    assert section.count("<img") == 1 and "Correlation" not in section


def test_a_run_without_teachers_has_no_such_part(tmp_path):
    assert teachers_section({"val_psnr": 3.0, "baseline/copy": 2.0}, [{"step": 0, "metrics": {"psnr": 1.0}}]) == ""
    assert teachers_section({}, []) == ""


def test_a_report_has_each_number_once(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": METRICS}))
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, LOG)))
    page = write_report(tmp_path).read_text()
    assert "By teacher" in page and "val_explained/a" not in page
    assert page.count("0.5000") == 2 and "a constant has 0" in page


@pytest.mark.parametrize("key", ["val_explained/a", "components90/a", "components90_student", "val_loss/a"])
def test_keys_of_teachers(key):
    assert of_teacher(key)
    assert not of_teacher(key.partition("/")[0].replace("_student", ""))


def test_numbers_that_are_not_finite_are_dashes():
    found = cells(teachers_section({**METRICS, "val_explained/b": None, "components90/b": np.nan}, LOG))
    assert found["b"][:2] == ["-", "-"]
