"""`summary.json`: what a finished run amounts to."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from math import isfinite, nan
from pathlib import Path
from typing import Any, Self

from splatlearn.errors import BadData


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `summary.json` holds.

    Args:
        steps: of the run.
        loss: of the last step that was not skipped.
        metrics: the last evaluation; what was not finite is NaN here and null in files.
        steps_per_second: over all steps, evaluation and checkpoints apart.
        seconds: mean seconds of a step by part: `data` (waiting), `forward`, `backward`, `optimizer`.
        skipped: steps left out because a loss or gradient was not finite.
        rejected: reason -> sample draws rejected for it.
        peak_memory_mb: of the process, in units of 2^20 bytes.
        seed: of the run.
        versions: of Python and libraries.
        facts: what the trainable says of itself, and `encoder` and `data` of the settings; on the top level of the
            file.
    """

    steps: int
    loss: float | None
    metrics: dict[str, float]
    steps_per_second: float
    seconds: dict[str, float]
    skipped: int
    rejected: dict[str, int]
    peak_memory_mb: float
    seed: int
    versions: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_log(cls, records: Iterable[Mapping[str, Any]], **rest: Any) -> Self:
        """Adds up the lines of `log.jsonl`; `rest` are the fields that are not in it."""
        metrics: Mapping[str, float | None] = {}
        parts: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        steps, total, skipped, loss = 0, 0.0, 0, None
        for record in records:
            steps, total = steps + 1, total + record["seconds"]
            parts.update(record["time"])
            rejected.update(record.get("rejected", {}))
            metrics = record.get("validation", metrics)
            skipped += bool(record.get("skipped"))
            loss = loss if record.get("skipped") else record["loss"]
        return cls(
            steps=steps,
            loss=loss,
            metrics=_numbers(metrics),
            steps_per_second=steps / total if total else 0.0,
            seconds={name: seconds / steps for name, seconds in parts.items()},
            skipped=skipped,
            rejected=dict(rejected),
            **rest,
        )

    def __str__(self) -> str:
        head = f"{self.steps} steps, {self.steps_per_second:.2f} a second"
        width = max(map(len, self.metrics), default=0)
        shown = {name: f"{value:.4g}" if isfinite(value) else "-" for name, value in self.metrics.items()}
        return "\n".join([head, *(f"  {name:{width}}  {value}" for name, value in shown.items())])

    def to_json(self) -> str:
        """The text of `summary.json`."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "facts"}
        own["metrics"] = {name: value if isfinite(value) else None for name, value in self.metrics.items()}
        return json.dumps({**self.facts, **own}, indent=2, default=str) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """The summary in a file.

        Raises:
            BadData: it is no summary.
        """
        try:
            values = json.loads(path.read_text())
            own = {f.name: values.pop(f.name) for f in fields(cls) if f.name != "facts"}
            own["metrics"] = _numbers(own["metrics"])
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise BadData(f"{path}: not a readable summary ({error!r})") from error
        return cls(**own, facts=values)


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Null is NaN again."""
    return {name: nan if value is None else value for name, value in metrics.items()}
