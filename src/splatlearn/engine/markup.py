"""Pieces of a report's HTML: sections, tables, figures, and how numbers are written."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from statistics import fmean
from typing import Any

Table = Sequence[Sequence[str]]


def section(title: str, body: str) -> str:
    """A card with a heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def details(title: str, body: str) -> str:
    """A card that opens; nothing where there is nothing in it."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def tile(value: str, text: str, mood: str = "") -> str:
    """A large number and what it is; `mood` is good or bad."""
    return f'<div class="tile {mood}"><b>{escape(value)}</b><span>{escape(text)}</span></div>'


def figure(png: bytes, caption: str, kind: str = "chart") -> str:
    """A picture in the page itself; `kind` is its class, and so how wide it is."""
    data = base64.b64encode(png).decode()
    alt = escape(caption, quote=True)
    return (
        f'<figure class="{kind}"><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def side_by_side(figures: Sequence[str]) -> str:
    """Figures, as many in a row as fit."""
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""


def table(rows: Table, highlight: str = "") -> str:
    """Numbers are aligned to the right; the first row is the header."""
    head = "".join(f"<th{_align(name, rows, i)}>{escape(name)}</th>" for i, name in enumerate(rows[0]))
    body = []
    for row in rows[1:]:
        cells = "".join(f"<td{_align(cell, rows, i)}>{escape(cell)}</td>" for i, cell in enumerate(row))
        body.append(f"<tr{' class=mark' if row[0] == highlight else ''}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _align(cell: str, rows: Table, column: int) -> str:
    numeric = all(not row[column] or row[column].lstrip("+-")[:1].isdigit() or row[column] == "-" for row in rows[1:])
    return ' class="number"' if numeric and column else ""


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in values.items())
    return f'<table class="pairs">{rows}</table>' if rows else ""


def number(value: Any) -> str:
    """With two digits from 1 on, four below; `-` of none and of what is not finite."""
    if not isinstance(value, int | float) or not isfinite(value):
        return "-" if value is None or isinstance(value, float) else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


def mean_and_range(values: Sequence[float]) -> str:
    """`MEAN (LEAST to MOST)`; the value of a single one."""
    if not values:
        return "-"
    digits = 1 if max(map(abs, values)) > 1.5 else 3  # percent, or a share
    mean, low, high = (f"{value:.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"
