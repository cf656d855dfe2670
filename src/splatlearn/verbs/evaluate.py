"""`evaluate`: what an encoder is worth on a task with labels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from splatlearn.verbs import output_file

if TYPE_CHECKING:
    from splatlearn.tasks.controls import Comparison
    from splatlearn.tasks.evaluation import Evaluation

Options = Mapping[str, Any]


def evaluate(
    task: str = "segmentation",
    *,
    encoder: str,
    data: str,
    probe: Literal["linear", "decoder", "finetune"] = "linear",
    preset: str = "small",
    labels: float = 1.0,
    steps: int | None = None,
    seed: int = 0,
    json: Path | None = None,
    run: Path | None = None,
    data_options: Options | None = None,
    encoder_options: Options | None = None,
    task_options: Options | None = None,
    train_options: Options | None = None,
) -> "Evaluation":
    """Train a probe on an encoder's features and measure it on held-out scenes.

    `linear` and `decoder` keep the encoder frozen; `finetune` trains it too. Controls are asked for by name:
    `random:NAME` is an untrained network (frozen, its batch-norm statistics are set first; with `finetune` this is
    training from scratch): name the run's own preset, as in random:sparse_unet.tiny, to compare like with like. `raw`
    is the same probe on the input attributes.

    Args:
        task: segmentation.
        encoder: run folder, random:NAME, or raw.
        data: rooms, or a folder of labelled clouds.
        probe: what is trained.
        preset: of the task: small or tiny.
        labels: share of the labelled training points that is used, the same points for every method.
        steps: optimiser steps; by default the task's.
        seed: of new weights, order, and the choice of labels.
        json: file for the result, written anew.
        run: folder to keep the probe's log and weights in; by default nothing is kept.
        data_options: options of the data's reader.
        encoder_options: options of a random:NAME encoder.
        task_options: options of the task.
        train_options: options of the training loop.

    Raises:
        UserError: unknown names or options, data without labels or without what the encoder takes, or a `json`
            that cannot be written.
    """
    from splatlearn.engine.runtime import is_main
    from splatlearn.tasks.evaluation import find_encoder, run_probe

    json = output_file(json, "--json") if json is not None else None
    trial = _trial(task, preset, data, data_options, task_options, train_options, probe, labels, steps, seed)
    resolved = find_encoder(trial, encoder, encoder_options)
    result = run_probe(trial, resolved, encoder, run=run, show=True, encoder_options=encoder_options)
    if json is not None and is_main():
        result.write(json)
    return result


def evaluate_table(
    run: Path | str | Sequence[Path | str],
    *,
    data: str,
    task: str = "segmentation",
    preset: str = "tiny",
    seeds: int = 3,
    labels: Sequence[float] = (1.0, 0.1),
    finetune_labels: Sequence[float] = (0.1,),
    finetune_seeds: int | None = None,
    seed: int = 0,
    json: Path | None = None,
    data_options: Options | None = None,
    task_options: Options | None = None,
    train_options: Options | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> "Comparison":
    """A pre-trained encoder beside its controls: random and raw under linear probes, fine-tuned and from scratch.

    Args:
        run: run folder of `pretrain`, or one a seed.
        data: labelled data.
        task: segmentation.
        preset: of the task.
        seeds: number of seeds of every row.
        labels: shares of the labels for the linear probes.
        finetune_labels: shares of the labels for fine-tuning and training from scratch; empty leaves them out.
        finetune_seeds: number of seeds of those two rows; by default all.
        seed: the first seed.
        json: file for all results and the verdict.
        data_options: options of the data's reader.
        task_options: options of the task.
        train_options: options of the training loop.
        tell: gets a line whenever another part begins.

    Raises:
        UserError: as `evaluate`; runs of different encoders.
    """
    from splatlearn.tasks.controls import compare_with_controls

    json = output_file(json, "json") if json is not None else None
    trial = _trial(task, preset, data, data_options, task_options, train_options, seed=seed)
    runs = [run] if isinstance(run, str | Path) else run
    table = compare_with_controls(
        trial,
        [Path(r) for r in runs],
        seeds=seeds,
        labels=labels,
        finetune_labels=finetune_labels,
        finetune_seeds=finetune_seeds,
        tell=tell,
    )
    if json is not None:
        table.write(json)
    return table


def _trial(
    task: str,
    preset: str,
    data: str,
    data_options: Options | None,
    task_options: Options | None,
    train_options: Options | None,
    probe: Literal["linear", "decoder", "finetune"] = "linear",
    labels: float = 1.0,
    steps: int | None = None,
    seed: int = 0,
) -> Any:
    from splatlearn.data.scene import Source
    from splatlearn.errors import ConfigError
    from splatlearn.tasks.evaluation import Trial

    if not 0 < labels <= 1:
        raise ConfigError(f"--labels: a share in (0, 1] is needed, got {labels}")
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps: 1 or more is needed, got {steps}")
    return Trial(
        task=f"{task.partition('.')[0]}.{task.partition('.')[2] or preset}",
        source=Source(name=data, options=dict(data_options or {})),
        probe=probe,
        labels=labels,
        steps=steps or 0,
        seed=seed,
        task_options=dict(task_options or {}),
        train_options=dict(train_options or {}),
    )
