"""`report.html`: what a run was, what it learnt and what it cost, in one file that needs no network.

Everything but the pictures is read from the run folder, so a report can be written again at any time.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from splatlearn.engine import markup, plots
from splatlearn.engine.checkpoint import replace_file
from splatlearn.engine.diagnostics import collect
from splatlearn.engine.loader import Loader
from splatlearn.engine.teachers_report import of_teacher, teachers_section
from splatlearn.engine.trainable import Trainable

STYLE = Path(__file__).with_name("report.css")
METRICS = {
    "val_psnr": "PSNR of the input views, dB",
    "val_psnr_novel": "PSNR of a view that was never an input, dB",
    "val_explained": "share of the variance of the teachers' features that is explained; a constant has 0",
    "miou": "mean IoU",
    "macc": "mean accuracy",
}
"""What well-known metrics are, for a reader who has not seen the code."""

FIT_METRICS = {
    "val_psnr": "PSNR of the held-out views, dB",
    "val_ssim": "SSIM of the held-out views",
    "val_depth_error": "mean error of the held-out depth, m",
    "train_psnr": "PSNR of views that were fitted to, dB",
}
"""The same for a fit, whose views are held out instead of being inputs."""

COMPARED = (
    ("val_psnr", "baseline/depth_warp", "dB against depth warp, on the input views"),
    ("val_psnr_novel", "baseline/own_colour_novel", "dB against own colour, on the view in between"),
    ("val_psnr", "baseline/copy_nearest", "dB against the nearest training frame"),
    ("val_psnr", "val_psnr_shuffled", "dB owed to the features: lost when points exchange them"),
)
"""Metric, what it is held against, and what the difference says; the table has every other pair."""
BASELINES_TEXT = (
    "All rows are measured on the same pairs of frames. <i>Own colour</i> draws the visible points in their "
    "own colour without any learning, <i>depth warp</i> moves the other view by its depth, <i>copy</i> repeats "
    "it. <i>Features shuffled</i> is this run with the encoder's features exchanged between points: what it "
    "loses is what the features carry."
)
FIT_TEXT = (
    "All rows are measured on the same held-out views. <i>Copy nearest</i> repeats the photograph of the training "
    "camera that is nearest, <i>mean colour</i> is that of the training frames."
)
SHORT = {"miou": "mIoU", "macc": "mAcc"}
ORIGINS = {"run": "pre-trained", "random": "random", "raw": "raw inputs"}
"""What evaluations call an encoder's origin, in a reader's words."""

WIDE = 400
"""Pixels: a wider picture takes two columns of four."""


def write_report(
    run: Path,
    pictures: Mapping[str, Tensor] | None = None,
    probes: Iterable[Mapping[str, Any]] = (),
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Writes `run/report.html` from `config.yaml`, `log.jsonl` and `summary.json`, as far as they are there.

    Args:
        run: run folder.
        pictures: `group/caption` -> (3 H W) in [0, 1]; groups become rows, in the order given.
        probes: results of `evaluate` (what it writes as JSON), for a table of means over seeds.
        metrics: more numbers to compare with, measured elsewhere (`baseline/random_frozen` of another run).

    Returns:
        The file.
    """
    settings, summary, log = read_settings(run), read_json(run / "summary.json"), read_log(run / "log.jsonl")
    metrics, fitted = {**summary.get("metrics", {}), **(metrics or {})}, "fit" in settings
    sections = [
        _header(run, settings, summary),
        _verdict(metrics, FIT_METRICS if fitted else METRICS),
        _renders(metrics, fitted),
        _other_metrics(metrics),
        _probes(list(probes)),
        teachers_section(metrics, log),
        _pictures(pictures or {}),
        _curves(log),
        _cost(summary, log),
        markup.details("All settings", markup.pairs(dict(_flatten(settings)))),
        markup.details("Draws rejected", markup.pairs(summary.get("rejected", {}))),
        markup.details("Versions", markup.pairs(summary.get("versions", {}))),
    ]
    body = "\n".join(section for section in sections if section)
    title = escape(f"{_what(settings)}: {run.name}")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE.read_text()}</style></head>\n'
        f"<body><main>{body}</main></body></html>\n"
    )
    path = run / "report.html"
    replace_file(path, page)
    return path


def preview(trainable: Trainable[Any]) -> dict[str, Tensor]:
    """The trainable's pictures of the first validation samples, on the host."""
    loader = Loader({"val": trainable.validation}, {"val": 0}, batch=trainable.previewed)
    batch = next(loader.whole("val", trainable.previewed))
    device = next((parameter.device for parameter in trainable.parameters()), torch.device("cpu"))
    training = trainable.training
    pictures = trainable.eval().preview(batch.to(device))
    trainable.train(training)
    return {title: picture.detach().cpu() for title, picture in pictures.items()}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL log; a line cut short by a crash is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def read_settings(run: Path) -> dict[str, Any]:
    """The settings of a run, from its `config.yaml`; empty where there is none."""
    import yaml

    path = run / "config.yaml"
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


def probe_rows(probes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Header and rows of a probe table: mean of each metric over seeds, and its range, best first
    for each share of labels; with a column of tasks where there are several."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for probe in probes:
        share = f"{100 * float(probe.get('labels', 1)):.3g} %"
        name = ORIGINS.get(probe.get("origin", "")) or _name(probe.get("encoder", ""))
        if projector := probe.get("projector"):
            name = f"{name}, after its projector for {projector}"
        groups[(str(probe.get("task", "")), name, str(probe.get("probe", "")), share)].append(probe)
    names = list(dict.fromkeys(name for probe in probes for name in probe.get("metrics", {})))
    rows = []
    for key, members in groups.items():
        finite = [_finite(member.get("metrics", {})) for member in members]
        values = [[metrics[n] for metrics in finite if n in metrics] for n in names]
        first = fmean(values[0]) if values and values[0] else 0.0
        share_of_labels = float(members[0].get("labels", 1))
        rows.append(((-share_of_labels, -first), [*key, *map(markup.mean_and_range, values), str(len(members))]))
    rows.sort(key=lambda row: row[0])
    header = ["task", "encoder", "probe", "labels", *(SHORT.get(name, name) for name in names), "seeds"]
    table, first = [header, *(row for _, row in rows)], 0 if len({key[0] for key in groups}) > 1 else 1
    return [row[first:] for row in table]


def _what(settings: Mapping[str, Any]) -> str:
    """What was run, in a word."""
    return str(settings.get("recipe") or settings.get("task") or ("fit" if "fit" in settings else "run"))


def _header(run: Path, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    facts = {
        "preset": settings.get("preset"),
        "encoder": _name(settings.get("encoder")),
        "data": _name(settings.get("data")),
        "steps": summary.get("steps"),
        "seed": settings.get("seed", summary.get("seed")),
    }
    chips = "".join(
        f"<span>{escape(name)} <b>{escape(str(value))}</b></span>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    title = f"<h1>{escape(_what(settings))} <small>{escape(run.name)}</small></h1>"
    return f'<header>{title}<p class="chips">{chips}</p></header>'


def _verdict(metrics: Mapping[str, Any], known: Mapping[str, str]) -> str:
    tiles = [markup.tile(markup.number(metrics[key]), text) for key, text in known.items() if key in metrics]
    finite = _finite(metrics)
    for key, other, text in COMPARED:
        if key in finite and other in finite:
            gain = finite[key] - finite[other]
            tiles.append(markup.tile(f"{gain:+.2f}", text, "good" if gain > 0 else "bad"))
    return f'<section class="tiles">{"".join(tiles)}</section>' if tiles else ""


def _baselines(metrics: Mapping[str, Any], suffix: str) -> dict[str, float]:
    """Name -> PSNR of the baselines on the input views (suffix "") or on the view in between ("_novel")."""
    values = {key.removeprefix("baseline/"): v for key, v in metrics.items() if key.startswith("baseline/")}
    chosen = {key: v for key, v in values.items() if key.endswith("_novel") == bool(suffix)}
    return {key.removesuffix("_novel").replace("_", " "): v for key, v in _finite(chosen).items()}


def _renders(metrics: Mapping[str, Any], fitted: bool) -> str:
    """The run's PSNR among the baselines, as a table and as bars."""
    views = "held-out views" if fitted else "input views"
    columns = {views: _compared(metrics, ""), "view in between": _compared(metrics, "_novel")}
    columns = {name: values for name, values in columns.items() if len(values) > 1}
    if not columns:
        return ""
    first = next(iter(columns.values()))
    order = sorted(first, key=lambda name: -first[name])
    rows = [["", *(f"{name}, dB" for name in columns)]]
    rows += [[name, *(markup.number(values.get(name)) for values in columns.values())] for name in order]
    figures = [
        markup.figure(
            plots.bars(_descending(values), "PSNR, dB", ["this run"]), f"PSNR of the {name}; higher is better"
        )
        for name, values in columns.items()
    ]
    text = FIT_TEXT if fitted else BASELINES_TEXT
    return markup.section(
        "Rendered views against baselines",
        f"<p>{text}</p>{markup.table(rows, 'this run')}{markup.side_by_side(figures)}",
    )


def _compared(metrics: Mapping[str, Any], suffix: str) -> dict[str, float]:
    values, finite = _baselines(metrics, suffix), _finite(metrics)
    for key, name in ((f"val_psnr{suffix}", "this run"), (f"val_psnr_shuffled{suffix}", "features shuffled")):
        if key in finite:
            values[name] = finite[key]
    return values


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Without those that were not finite, which files have as null."""
    return {key: float(v) for key, v in metrics.items() if isinstance(v, int | float) and isfinite(v)}


def _descending(values: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda pair: -pair[1]))


def _other_metrics(metrics: Mapping[str, Any]) -> str:
    known = ("baseline/", "val_psnr")
    rest = {
        key: value
        for key, value in metrics.items()
        if not key.startswith(known) and key not in {*METRICS, *FIT_METRICS} and not of_teacher(key)
    }
    return markup.section("Other metrics", markup.pairs({k: markup.number(v) for k, v in rest.items()})) if rest else ""


def _probes(probes: Sequence[Mapping[str, Any]]) -> str:
    if not probes:
        return ""
    text = (
        "Mean over seeds, worst to best in brackets. <i>Random</i> is the same encoder untrained, its batch-norm "
        "statistics set on the data; <i>raw inputs</i> is the same probe on the input attributes; <i>finetune</i> "
        "of a random encoder is training from scratch."
    )
    return markup.section("What a probe finds in the features", f"<p>{text}</p>{markup.table(probe_rows(probes))}")


def _pictures(pictures: Mapping[str, Tensor]) -> str:
    groups: dict[str, list[str]] = defaultdict(list)
    for title, picture in pictures.items():
        group, _, caption = title.partition("/")
        kind = "photo wide" if picture.shape[2] > WIDE else "photo"
        groups[group].append(markup.figure(plots.encode_png(picture), caption, kind))
    rows = [f"<h3>{escape(group)}</h3>{markup.side_by_side(figures)}" for group, figures in groups.items()]
    return markup.section("Pictures", "".join(rows)) if rows else ""


def _curves(log: Sequence[Mapping[str, Any]]) -> str:
    if not log:
        return ""
    parts = {"loss": "loss"} | {key: key for key in _series(log, "losses")}
    losses = collect(log, {name: key for key, name in parts.items()})
    if "loss" in losses and len(losses) == 2:  # the only part is the total
        losses = {"loss": losses["loss"]}
    figures = [markup.figure(plots.curves(losses, "step", "loss"), "Loss: raw values pale, running mean dark")]
    for key, name in (("psnr", "PSNR, dB"), ("accuracy", "accuracy")):
        values = collect(log, {name: key})
        if values:
            figures.append(markup.figure(plots.curves(values, "step", name, log=False), f"{name} on training samples"))
    rate = collect(log, {"learning rate": "learning_rate"})
    if rate:
        figures.append(markup.figure(plots.curves(rate, "step", "learning rate", log=False, smooth=1), "Learning rate"))
    return markup.section("Training", markup.side_by_side(figures))


def _series(log: Sequence[Mapping[str, Any]], group: str) -> list[str]:
    return list(log[-1].get(group, {})) if isinstance(log[-1].get(group), Mapping) else []


def _cost(summary: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    facts = {
        "steps a second": markup.number(summary.get("steps_per_second")),
        "peak memory": f"{summary['peak_memory_mb']:,.0f} MB" if "peak_memory_mb" in summary else "",
        "Gaussians a sample": f"{summary['gaussians_per_sample']:,.0f}" if "gaussians_per_sample" in summary else "",
    }
    facts = {name: value for name, value in facts.items() if value}
    split = summary.get("seconds") or {}
    figures = [markup.figure(plots.shares(split), "Where the time of a step goes")] if split else []
    seconds = collect(log, {"seconds": "seconds"})
    if seconds:
        figures.append(markup.figure(plots.curves(seconds, "step", "seconds a step"), "Duration of a step"))
    if not facts and not figures:
        return ""
    tiles = "".join(markup.tile(value, name) for name, value in facts.items())
    return markup.section("Cost", f'<div class="tiles">{tiles}</div>{markup.side_by_side(figures)}')


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(part: Any) -> str:
    """`sparse_unet` of a name or of `{name: sparse_unet, options: ...}`."""
    return str(part.get("name", "")) if isinstance(part, Mapping) else str(part or "")
