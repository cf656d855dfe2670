"""`evaluate`: what an encoder is worth on a task with labels."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from splatlearn.verbs import output_file

if TYPE_CHECKING:
    from splatlearn.errors import Problems
    from splatlearn.tasks.controls import Comparison
    from splatlearn.tasks.evaluation import Evaluation, Trial

Options = Mapping[str, Any]


def evaluate(
    task: str = "segmentation",
    *,
    encoder: str,
    data: str,
    probe: Literal["linear", "decoder", "finetune"] = "linear",
    preset: str = "small",
    labels: float = 1.0,
    robustness: bool = False,
    corrupted: Path | None = None,
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
    is the same probe on the input attributes, or on the pixels.

    Of images, `image_segmentation` takes folders with classes of pixels, `image_depth` recordings with depth, and
    `image_classification` a folder a class, and tells what the nearest neighbours say, too. Their encoder may be a
    teacher, teacher:NAME with --encoder.weights; with --encoder.projector TEACHER the features of a run are those after
    the projector that it learnt for that teacher.

    Args:
        task: segmentation; image_segmentation, image_depth, image_classification.
        encoder: run folder, random:NAME, teacher:NAME, or raw.
        data: rooms, streets, or a folder of labelled clouds, scans or images.
        probe: what is trained.
        preset: of the task: small, tiny; lidar, lidar-tiny for scans.
        labels: share of the labelled training points (lidar: scans) that is used, the same for every method.
        robustness: also measure under the eight corruptions of lidar scans of Robo3D, by our own generators.
        corrupted: folder of SemanticKITTI-C or nuScenes-C, which is then read for --robustness in their place, with
            Robo3D's baseline.
        steps: optimiser steps; by default the task's.
        seed: of new weights, order, and the choice of labels.
        json: file for the result, written anew.
        run: folder to keep the probe's log and weights in; by default nothing is kept.
        data_options: options of the data's reader.
        encoder_options: options of a random:NAME encoder or a teacher; projector of a run.
        task_options: options of the task.
        train_options: options of the training loop.

    Raises:
        UserError: unknown names or options, data without labels or without what the encoder takes, or a `json`
            that cannot be written.
    """
    from splatlearn.encoders.base import Encoder
    from splatlearn.engine.runtime import is_main
    from splatlearn.errors import ConfigError, Problems
    from splatlearn.tasks.encoders import resolve_encoder
    from splatlearn.tasks.evaluation import find_encoder, run_probe

    problems = Problems()
    file = None if json is None else problems.catch(lambda: output_file(json, "--json"))
    trial = _trial(
        task, preset, data, data_options, task_options, train_options, probe, labels, steps, seed, problems=problems
    )
    if problems:
        problems.catch(lambda: resolve_encoder(encoder, encoder_options, kind=Encoder))
    problems.tell()
    robustness = robustness or corrupted is not None
    if robustness:
        if trial.task.partition(".")[0] != "segmentation":
            raise ConfigError(f"--robustness: of segmentation of lidar scans only, and not of {trial.task}")
        from splatlearn.tasks.robustness import check_scans

        check_scans(trial.source, corrupted)
    resolved = find_encoder(trial, encoder, encoder_options)
    then = partial(_robustness, trial, corrupted) if robustness else lambda task: {}
    result = run_probe(trial, resolved, encoder, run=run, show=True, encoder_options=encoder_options, then=then)
    if file is not None and is_main():
        result.write(file)
    return result


def _robustness(trial: "Trial", corrupted: Path | None, task: Any) -> Mapping[str, Any]:
    """The table of corruptions; progress on standard error."""
    from rich.console import Console

    from splatlearn.tasks.robustness import under_corruptions

    tell = Console(stderr=True).print
    return {"robustness": under_corruptions(task, trial.source, trial.seed, tell, corrupted)}


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
    teachers: Mapping[str, Options] | None = None,
    projectors: Sequence[str] = (),
    seed: int = 0,
    json: Path | None = None,
    data_options: Options | None = None,
    task_options: Options | None = None,
    train_options: Options | None = None,
    jobs: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> "Comparison":
    """A pre-trained encoder beside its controls: random and raw under linear probes, fine-tuned and from scratch.

    Args:
        run: run folder of `pretrain`, or one a seed.
        data: labelled data.
        task: segmentation; image_segmentation, image_depth, image_classification.
        preset: of the task.
        seeds: number of seeds of every row.
        labels: shares of the labels for the linear probes.
        finetune_labels: shares of the labels for fine-tuning and training from scratch; empty leaves them out, as do
            tasks that have no such probe.
        finetune_seeds: number of seeds of those two rows; by default all.
        teachers: of images, name -> options (weights...): further rows, what each teacher itself is worth.
        projectors: of images, teachers of the run: further rows, its features after their projectors.
        seed: the first seed.
        json: file for all results and the verdict.
        data_options: options of the data's reader.
        task_options: options of the task.
        train_options: options of the training loop.
        jobs: parts of the table at the same time, in processes that share the cores.
        tell: gets a line whenever another part begins, or is done by one of several `jobs`.

    Raises:
        UserError: as `evaluate`; runs of different encoders.
    """
    from splatlearn.errors import Problems
    from splatlearn.tasks.controls import compare_with_controls

    problems = Problems()
    file = None if json is None else problems.catch(lambda: output_file(json, "json"))
    trial = _trial(task, preset, data, data_options, task_options, train_options, seed=seed, problems=problems)
    problems.tell()
    runs = [run] if isinstance(run, str | Path) else run
    table = compare_with_controls(
        trial,
        [Path(r) for r in runs],
        seeds=seeds,
        labels=labels,
        finetune_labels=finetune_labels,
        finetune_seeds=finetune_seeds,
        teachers=teachers or {},
        projectors=projectors,
        jobs=jobs,
        tell=tell,
    )
    if file is not None:
        table.write(file)
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
    *,
    problems: "Problems",
) -> "Trial":
    """The trial; what is wrong with it goes to `problems`."""
    from splatlearn.data.scene import Source
    from splatlearn.tasks.evaluation import Trial

    problems.require(0 < labels <= 1, f"--labels: a share in (0, 1] is needed, got {labels}")
    problems.require(steps is None or steps >= 1, f"--steps: 1 or more is needed, got {steps}")
    one = (train_options or {}).get("seed", seed) == seed
    problems.require(one, "--train.seed: a probe has one seed; give --seed")
    trial = Trial(
        task=f"{task.partition('.')[0]}.{task.partition('.')[2] or preset}",
        source=Source(name=data, options=dict(data_options or {})),
        probe=probe,
        labels=labels,
        steps=steps or 0,
        seed=seed,
        task_options=dict(task_options or {}),
        train_options=dict(train_options or {}),
    )
    problems.catch(trial.source.reader)
    problems.catch(trial.training)
    return trial
