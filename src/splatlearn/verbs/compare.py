"""`compare`: runs and evaluations side by side, as a table and as a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from splatlearn.verbs import output_file

Rows = list[list[str]]
FIRST_METRICS = ("val_psnr", "val_psnr_novel", "miou", "macc")


@dataclass(frozen=True)
class Run:
    """What is known of one run folder or evaluation file.

    Args:
        name: short and unique among those compared.
        path: where it is.
        summary: `summary.json`, or empty.
        evaluations: results of `evaluate` found there.
        losses: the log's losses by step.
    """

    name: str
    path: Path
    summary: Mapping[str, Any]
    evaluations: tuple[Mapping[str, Any], ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Compared:
    """Runs side by side.

    Args:
        runs: in the order asked for.
        page: the HTML file, if one was written.
    """

    runs: tuple[Run, ...]
    page: Path | None = None

    def tables(self) -> dict[str, Rows]:
        """Title -> header and rows; a table without rows is left out."""
        both = {"Pre-training": training_rows(self.runs), "Evaluation": evaluation_rows(self.runs)}
        return {title: rows for title, rows in both.items() if len(rows) > 1}

    def __str__(self) -> str:
        from splatlearn.tasks.evaluation import draw

        parts = [draw(title, rows[0], rows[1:]) for title, rows in self.tables().items()]
        return "\n\n".join([*parts, *([f"page: {self.page}"] if self.page else [])])


def compare(*runs: str, out: Path | None = None) -> Compared:
    """Put runs side by side: one table, and one page.

    Args:
        runs: run folders of `pretrain`, files or folders of `evaluate --json` results.
        out: HTML file to write.

    Raises:
        UserError: nothing to compare, or a path without a run's or an evaluation's results.
    """
    from splatlearn.errors import ConfigError

    if not runs:
        raise ConfigError("compare: name the runs or evaluation files to compare")
    out = output_file(out, "--out") if out is not None else None
    paths = [Path(run).expanduser() for run in runs]
    names = _short_names(paths)
    compared = Compared(tuple(read_run(path, name) for path, name in zip(paths, names)), out)
    if out is not None:
        from splatlearn.engine.checkpoint import replace_file

        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, _page(compared))
    return compared


def read_run(path: Path, name: str) -> Run:
    """Reads a run folder, or evaluation results.

    Raises:
        BadData: no such path, unreadable JSON, or neither kind of result in it.
    """
    from splatlearn.errors import BadData

    if not path.exists():
        raise BadData(f"compare: {path} does not exist")
    folder = path.is_dir()
    summary = _read(path / "summary.json") if folder and (path / "summary.json").exists() else {}
    files = sorted([*path.glob("*.json"), *path.glob("evaluations/*.json")]) if folder else [path]
    found = [result for file in files if file.name != "summary.json" for result in _evaluations(_read(file))]
    if not summary and not found and (path / "config.yaml").exists():
        raise BadData(f"compare: the run {path} is not finished; the command that began it continues it")
    if not summary and not found:
        what = "summary.json of a finished run, nor a result of `evaluate --json`"
        raise BadData(f"compare: {path} holds neither the {what}")
    return Run(name, path, summary, tuple(found), _losses(path / "log.jsonl") if folder else ())


def training_rows(runs: Sequence[Run]) -> Rows:
    """A column a run, since metrics are many: encoder, data, steps, every metric that a run has, speed and memory."""
    ran = [run for run in runs if run.summary]
    metrics = _ordered(name for run in ran for name in run.summary.get("metrics", {}))
    columns = [["", "encoder", "data", "steps", *metrics, "steps/s", "peak MB"]]
    for run in ran:
        s = run.summary
        facts = [_name(s.get("encoder")), _name(s.get("data")), _number(s.get("steps"))]
        values = [_number(s.get("metrics", {}).get(name)) for name in metrics]
        cost = [_number(s.get(name)) for name in ("steps_per_second", "peak_memory_mb")]
        columns.append([run.name, *facts, *values, *cost])
    return [list(row) for row in zip(*columns)] if ran else []


def evaluation_rows(runs: Sequence[Run]) -> Rows:
    """Header and one row an evaluation."""
    found = [(run, result) for run in runs for result in run.evaluations]
    metrics = _ordered(name for _, result in found for name in result["metrics"])
    rows = [["run", "task", "encoder", "probe", "labels", "data", "seed", *metrics]]
    for run, result in found:
        labels = f"{100 * float(result.get('labels', 1)):g} %"
        encoder = _name(result.get("encoder"))
        if projector := result.get("projector"):
            encoder = f"{encoder}, after its projector for {projector}"
        who = [run.name, str(result["task"]), encoder, str(result["probe"]), labels]
        values = [_number(result["metrics"].get(name)) for name in metrics]
        rows.append([*who, _name(result.get("data")), _number(result.get("seed")), *values])
    return rows


def _ordered(names: Any) -> list[str]:
    """Without repetition, well-known metrics first."""
    rest = list(dict.fromkeys(names))
    return [name for name in FIRST_METRICS if name in rest] + [name for name in rest if name not in FIRST_METRICS]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]


def _read(path: Path) -> Any:
    from splatlearn.errors import BadData

    try:
        return json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise BadData(f"compare: {path} is not readable as JSON ({error})") from error


def _evaluations(value: Any) -> list[Mapping[str, Any]]:
    """Evaluations in a file: one, a list, or the table of several with its verdict; other JSON has none."""
    if isinstance(value, Mapping) and isinstance(value.get("evaluations"), list):
        value = value["evaluations"]
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, Mapping) and {"task", "probe", "metrics"} <= set(v)]


def _losses(path: Path) -> tuple[float, ...]:
    from splatlearn.engine.report import read_log

    return tuple(float(line["loss"]) for line in read_log(path) if line.get("loss") is not None)


def _name(part: Any) -> str:
    return str(part.get("name", "")) if isinstance(part, Mapping) else str(part or "")


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _page(compared: Compared) -> str:
    from splatlearn.engine.report import STYLE

    sections = [f"<h2>{title}</h2>{_table(rows)}" for title, rows in compared.tables().items()]
    if chart := _curves(compared.runs):
        sections.append(f"<h2>Loss</h2>{chart}")
    body = "".join(f"<section>{section}</section>" for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Runs compared</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE.read_text()}</style></head>\n'
        f"<body><main><header><h1>Runs compared</h1></header>{body}</main></body></html>\n"
    )


def _table(rows: Rows) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows[1:]]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _curves(runs: Sequence[Run]) -> str:
    import base64

    from splatlearn.engine.plots import curves

    series = {run.name: (range(len(run.losses)), run.losses) for run in runs if len(run.losses) > 1}
    if not series:
        return ""
    smooth = max(1, max(len(losses) for _, losses in series.values()) // 50)
    picture = base64.b64encode(curves(series, "step", "loss", smooth=smooth)).decode()
    return f'<figure><img alt="loss by step" src="data:image/png;base64,{picture}"></figure>'
