"""The part of a report that tells teachers apart: what each was worth, weighed and pulled, and how alike they move.

A number of a teacher has the key `WHAT/TEACHER`, in the log of a step or in the evaluation.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from splatlearn.engine import markup, plots
from splatlearn.engine.diagnostics import Series, collect, update_correlations

LOGGED = {
    "loss": ("loss", "Loss of each teacher, over all images: raw values pale, running mean dark"),
    "share": ("share of the kept pairs", "Share of the kept pairs of teacher and image"),
    "gradient": ("gradient norm", "Norm of each teacher's gradient at the student's features"),
}
"""Of a step: what -> what the values are, and what the chart says."""
EVALUATED = {
    "val_loss": "loss, validation",
    "val_explained": "explained",
    "components90": "components, teacher",
    "components90_student": "components, student",
}
"""Of an evaluation: what -> the table's column."""
OWN = "components90_student"
"""The same without a name: of the student's own features."""
LAST = 0.1
"""Share of the steps that the table's numbers of training are means of."""
TEXT = (
    "<i>Explained</i> is the share of the variance of the teacher's standardised patches that the student's prediction "
    "explains, over the validation images: 1 is the teacher itself, <b>0 is what a constant has</b>, and worse than a "
    "constant is below. <i>Components</i> are the principal components that hold 90 % of the variance, of the "
    "teacher's standardised patches and of what the student gives in their place. Numbers of training are means over "
    "the last tenth of the steps."
)
CORRELATION = (
    "Correlation, over {count:,} steps, of how the losses change from a step to the next: 1, the teachers' losses rise "
    "and fall together; 0, independently; -1, one falls where the other rises. Each step has other images, and that "
    "some are hard for every teacher is part of it."
)
UNDEFINED = " A dash is undefined: a loss that does not change, or fewer than three steps that follow each other."


def of_teacher(key: str) -> bool:
    """Whether a metric is in this part of the report."""
    return key == OWN or ("/" in key and key.partition("/")[0] in EVALUATED)


def teachers_section(metrics: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    """Table and charts by teacher; nothing where the run has none.

    Args:
        metrics: of the last evaluation.
        log: lines of `log.jsonl`.
    """
    teachers = _teachers(metrics, log)
    if not teachers:
        return ""
    series = {what: collect(log, {name: f"{what}/{name}" for name in teachers}) for what in LOGGED}
    figures = [
        markup.figure(plots.curves(series[what], "step", label, log=what != "share"), caption)
        for what, (label, caption) in LOGGED.items()
        if series[what]
    ]
    explained = collect(log, {name: f"val_explained/{name}" for name in teachers})
    if any(len(steps) > 1 for steps, _ in explained.values()):
        chart = plots.curves(explained, "step", "explained", log=False, smooth=1)
        figures.append(markup.figure(chart, "Explained share of the variance of each teacher's patches; a constant: 0"))
    if len(series["loss"]) > 1:
        matrix, count = update_correlations(series["loss"])
        text = CORRELATION.format(count=count) + (UNDEFINED if bool((matrix != matrix).any()) else "")
        figures.append(markup.figure(plots.heat_map(matrix, list(series["loss"])), text))
    table = markup.table(_rows(teachers, series, metrics))
    return markup.section("By teacher", f"<p>{TEXT}</p>{table}{markup.side_by_side(figures)}")


def _teachers(metrics: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names in the order in which a step's log line has them."""
    logged = log[-1].get("metrics", {}) if log else {}
    keys = [*(key for key in logged if key.partition("/")[0] in LOGGED), *filter(of_teacher, metrics)]
    return list(dict.fromkeys(key.partition("/")[2] for key in keys if "/" in key))


def _rows(
    teachers: Sequence[str], series: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any]
) -> list[list[str]]:
    """Header, a row a teacher, and two to compare with; columns without a number are left out."""
    further = {"val_explained": ["0", "-"], OWN: ["-", _shown(OWN, metrics.get(OWN))]}
    columns = {"teacher": [*teachers, "a constant", "the student's own"]}
    for what, label in EVALUATED.items():
        values = [_shown(what, metrics.get(f"{what}/{name}")) for name in teachers]
        columns[label] = [*values, *further.get(what, ["-", "-"])]
    for what, (label, _) in LOGGED.items():
        values = [_shown(what, _last(series[what].get(name))) for name in teachers]
        columns[f"{label}, training"] = [*values, "-", "-"]
    shown = {label: values for label, values in columns.items() if set(values[: len(teachers)]) != {"-"}}
    return [list(shown), *(list(row) for row in zip(*shown.values(), strict=True))]


def _shown(what: str, value: Any) -> str:
    counts = what.startswith("components") and isinstance(value, float) and value.is_integer()
    return markup.number(int(value) if counts else value)


def _last(series: Series | None) -> float | None:
    return fmean(series[1][-max(1, round(LAST * len(series[1]))) :]) if series else None
