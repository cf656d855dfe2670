"""The one loop that trains recipes and tasks.

A step is a function of the weights and of (seed, step): its samples, its noise and its learning rate depend on
nothing else, so a checkpoint of weights, averages, optimiser state and one integer continues bit for bit.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal

import torch
from torch import Tensor

from splatlearn.config import to_options
from splatlearn.engine.checkpoint import (
    LOG,
    SUMMARY,
    RunFolder,
    describe_encoder,
    environment,
    joined,
    load_checkpoint,
    newest_checkpoint,
    prefixed,
    replace_file,
    save_checkpoint,
    single,
    versions,
    warn_about_changes,
)
from splatlearn.engine.config import TrainConfig
from splatlearn.engine.loader import Loader
from splatlearn.engine.logs import (
    Display,
    JsonLines,
    Stopwatch,
    TensorBoard,
    Tracker,
    WeightsAndBiases,
    flatten,
    peak_memory_mb,
)
from splatlearn.engine.optimizers import (
    WeightAverage,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    learning_rate,
    load_optimizer_tensors,
    not_finite,
    optimizer_tensors,
    set_learning_rate,
)
from splatlearn.engine.runtime import (
    Termination,
    add_over_ranks,
    deterministic,
    gather_from_ranks,
    launch,
    on_main,
    reseed,
)
from splatlearn.engine.summary import Summary
from splatlearn.engine.trainable import B, Progress, Recipe, Step, Trainable
from splatlearn.errors import ConfigError, UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["Summary", "Terminated", "TrainConfig", "train"]

SKIPS_IN_A_ROW = 3
"""Skipped steps in a row that stop a run."""
VALIDATION_SEED = 0
"""Validation samples are the same whatever the seed of the run."""
NOISE, SETUP, VALIDATION, AFTER_STEP = range(4)


class Terminated(SystemExit):
    """SIGTERM came and a checkpoint was saved; the exit code is 143, as the signal's own would be."""

    def __init__(self, step: int, run: Path) -> None:
        super().__init__(143)
        self.message = f"stopped by SIGTERM after step {step}, checkpoint saved; --resume auto continues {run}"

    def __str__(self) -> str:
        return self.message


def train(
    trainable: Trainable[B],
    config: TrainConfig,
    run: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    resume: Literal["auto", "never"] = "auto",
    show: bool = True,
) -> Summary:
    """Trains to the last step, or continues a run that was interrupted, and writes the run folder.

    Under torchrun or SLURM every process calls this, and they share each global batch. Each evaluates all
    validation samples, so that any metric is exact.

    Args:
        trainable: recipe or task, freshly built with the seed that is in `config` or `settings`.
        config: of the loop.
        run: the folder; made when absent, never overwritten.
        settings: what the run depends on besides `config` (names and options of recipe, encoder and data, as plain
            data): written to `config.yaml`, compared on resume; `encoder` and `data` are repeated in the summary.
        resume: `auto` continues what is there, `never` refuses it.
        show: progress on standard error.

    Returns:
        The summary, the same on every rank. The trainable then holds the weights that were evaluated: the averaged
        ones where they are kept.

    Raises:
        UserError: the folder, the data or the numbers of the run are not as they must be, or another process runs
            there. A new run that cannot draw its first samples writes nothing.
        Terminated: SIGTERM came; a checkpoint was saved.
    """
    folder = RunFolder(Path(run).expanduser(), {**(settings or {}), "train": to_options(config)})
    folder.check(resume)
    fabric = launch(config)
    if fabric.is_global_zero:
        for told in config.idle():
            warnings.warn(told, stacklevel=2)
    with folder.lock, deterministic(config.deterministic), Termination() as termination:
        on_main(fabric, lambda: folder.claim(resume))
        summary = _Run(trainable, config, folder, fabric, show, termination).complete()
        if termination.received:  # after the last step; whoever called is to stop, too
            terminated = Terminated(summary.steps, folder.path)
            Display(summary.steps, active=show and fabric.is_global_zero).message(str(terminated))
            raise terminated
        return summary


class _Run(Generic[B]):
    """A run in memory: what a step needs, and what it changes."""

    def __init__(
        self,
        trainable: Trainable[B],
        config: TrainConfig,
        folder: RunFolder,
        fabric: "Fabric",
        show: bool,
        termination: Termination,
    ) -> None:
        self.trainable, self.config, self.folder, self.fabric = trainable, config, folder, fabric
        self.device, self.main, self.show = fabric.device, fabric.is_global_zero, show and fabric.is_global_zero
        self.termination, self.terminating = termination, False
        self.loader = Loader(
            {"train": trainable.data, "val": trainable.validation},
            {"train": config.seed, "val": VALIDATION_SEED},
            batch=config.batch,
            workers=config.workers,
            rank=fabric.global_rank,
            ranks=fabric.world_size,
            pin=self.device.type == "cuda",
        )
        self.steps = config.total_steps(self.loader.size("train"))
        self.step = self.skips_in_a_row = 0
        if config.precision == "f64":
            if not isinstance(trainable, Recipe):
                raise ConfigError("precision: f64 is for recipes (pretrain); 32 or bf16 is needed here")
            trainable.double()
        fabric.strategy.module_to_device(trainable)
        self.optimizer = build_optimizer(trainable, config)
        self.encoder, self.projectors = None, {}
        if isinstance(trainable, Recipe):
            self.projectors = trainable.projectors()
            facts = {name: facts for name, (_, facts) in self.projectors.items()}
            self.encoder = describe_encoder(trainable.student) | ({"projectors": facts} if facts else {})
        self.log = JsonLines(folder.path / LOG)
        self.watch = Stopwatch(self.device)

    def complete(self) -> Summary:
        """The steps that are left, then the summary; averaged weights, where they are kept, stay in the trainable."""
        resumed = self._restore()
        if self.step == self.steps and (self.folder.path / SUMMARY).exists():
            summary = Summary.read(self.folder.path / SUMMARY)
        else:
            self._begin()
            self._train(resumed)
            summary = self._summarize()
        if self.average:
            self.trainable.load_state_dict(self.average.state)
        return summary

    def _begin(self) -> None:
        """Draws a sample of each split, then makes the folder or cuts its log: what cannot start changes nothing."""
        for split in ("val", "train"):
            next(self.loader.whole(split, 1))
        self.fabric.barrier()  # all have looked before one writes
        on_main(self.fabric, self.folder.begin)
        if self.main:
            self.log.cut(self.step)

    def _train(self, resumed: bool) -> None:
        """The steps that are left, and what comes after the last."""
        self.module = self.fabric.strategy.setup_module(self.trainable)
        with ExitStack() as stack:
            display = stack.enter_context(Display(self.steps, self.step, self.show))
            stack.enter_context(self._told_of_interruption(display))
            if resumed:
                display.message(f"continued from step {self.step} of {self.steps}")
            trackers = self._trackers(stack)
            batches = self._batches()
            while self.step < self.steps:
                line = self._train_step(next(batches))
                if self.step < self.steps and self._due(self.config.evaluate_every):
                    line["validation"] = self._evaluate()
                    batches = self._batches()
                self._record(line, display, trackers)
                if self.terminating or self._due(self.config.checkpoint_every):
                    self._save()
                if self.terminating:
                    terminated = Terminated(self.step, self.folder.path)
                    display.message(str(terminated))
                    raise terminated
            self._evaluate_last(display, trackers)

    @contextmanager
    def _told_of_interruption(self, display: Display) -> Iterator[None]:
        """Ctrl-C ends within a step, of which nothing can be saved; it is told what is there."""
        try:
            yield
        except KeyboardInterrupt:
            there = newest_checkpoint(self.folder.checkpoints)
            kept = f"{there.name} stays, and --resume auto continues from it" if there else "nothing was saved yet"
            display.message(f"interrupted after step {self.step}: {kept} ({self.folder.path})")
            raise

    def _batches(self) -> Iterator[B]:
        """This rank's batches from the next step on, on the device; the stopwatch starts where waiting does."""
        stream = self.loader.steps("train", self.step, self.steps)
        while True:
            self.watch.start()
            batch = next(stream)
            yield batch.to(self.device, non_blocking=True)

    def _train_step(self, batch: B) -> dict[str, Any]:
        """One step. Weights change only if loss and gradients are finite on every rank. Returns its log line."""
        rate, progress = learning_rate(self.config, self.step, self.steps), Progress(self.step, self.steps)
        set_learning_rate(self.optimizer, rate, progress.fraction)
        reseed(self.config.seed, NOISE, self.step, self.fabric.global_rank)
        self.trainable.train()
        buffers = {name: buffer.clone() for name, buffer in self.trainable.named_buffers()}
        self.watch.lap("data")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            result: Step = self.module(batch, progress)
        loss = torch.stack([value.float() for value in result.losses.values()]).sum()
        self.watch.lap("forward")
        self.optimizer.zero_grad()
        loss.backward()
        self.watch.lap("backward")
        norm = gradient_norm(self.optimizer)
        bad = not bool(torch.isfinite(loss.detach()) & torch.isfinite(norm))
        own = [bad, self.termination.received, self.loader.rejected.total()]
        bad_ranks, terminations, rejections = add_over_ranks([float(value) for value in own], self.device)
        self.terminating = terminations > 0
        if not bad_ranks:
            clip_gradients(self.optimizer, norm, self.config.clip_norm, self.config.clip_each)
            self.optimizer.step()
            reseed(self.config.seed, AFTER_STEP, self.step)
            self.trainable.after_step(self.optimizer, progress)
            if self.average:
                self.average.update(self.trainable)
        self.watch.lap("optimizer")
        line = self._line(result, loss, norm, rate)
        if rejections:
            line["rejected"] = dict(sum(gather_from_ranks(self.loader.rejected), Counter()))
        if bad_ranks:
            self._skip(batch, line, buffers)
        self.skips_in_a_row = self.skips_in_a_row + 1 if bad_ranks else 0
        self.step += 1
        return line

    def _line(self, result: Step, loss: Tensor, norm: Tensor, rate: float) -> dict[str, Any]:
        time = self.watch.seconds()
        return {
            "step": self.step,
            "loss": float(loss.detach()),
            "losses": {name: float(value.detach()) for name, value in result.losses.items()},
            "metrics": {name: float(value.detach()) for name, value in result.metrics.items()},
            "gradient_norm": float(norm),
            "learning_rate": rate,
            "seconds": sum(time.values()),
            "time": time,
        }

    def _skip(self, batch: B, line: dict[str, Any], buffers: Mapping[str, Tensor]) -> None:
        """Undoes what the forward pass did to statistics, and dumps what is known; three in a row end the run."""
        line["skipped"] = True
        with torch.no_grad():
            for name, buffer in self.trainable.named_buffers():
                buffer.copy_(buffers[name])
        names = [name for names in gather_from_ranks(batch.names) for name in names]
        path = self.folder.path / "skipped" / f"{self.step}.json"
        if self.main:
            path.parent.mkdir(exist_ok=True)
            facts = {"samples": names, "parameters": not_finite(self.optimizer)}
            numbers = {name: str(value) for name, value in flatten(line).items()}
            replace_file(path, json.dumps({"step": self.step, **facts, **numbers}, indent=2) + "\n")
        if self.skips_in_a_row + 1 >= SKIPS_IN_A_ROW:
            raise UserError(
                f"loss or gradient was not finite in {SKIPS_IN_A_ROW} steps in a row, the last being {self.step} "
                f"(samples {', '.join(names)}); the weights are untouched, see {path.parent}. Check the data "
                "(splatlearn check), lower --train.learning_rate or set --train.clip_norm"
            )

    def _due(self, every: int) -> bool:
        return self.step == self.steps or bool(every and self.step % every == 0)

    def _evaluate(self) -> dict[str, float]:
        """Numbers of the validation samples, with averaged weights where they are kept; the same on every rank."""
        reseed(self.config.seed, VALIDATION, self.step)
        samples = self.config.validation_samples or self.loader.size("val")
        batches = (batch.to(self.device) for batch in self.loader.whole("val", samples))
        self.trainable.eval()
        with torch.no_grad(), self.average.applied(self.trainable) if self.average else nullcontext():
            return {name: float(value) for name, value in self.trainable.evaluate(batches).items()}

    def _evaluate_last(self, display: Display, trackers: list[Tracker]) -> None:
        """The evaluation after the last step, which is logged and saved already: what stops it costs no training."""
        validation = self._evaluate()
        self._save()  # again, as a trainable may decide something by its evaluation
        if not self.main:
            return
        self.log.amend({"validation": validation})
        self._tell(validation, display)
        for tracker in trackers:
            tracker.log(self.step - 1, flatten({"validation": validation}))

    def _tell(self, validation: Mapping[str, float], display: Display) -> None:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in validation.items())
        if numbers:
            display.message(f"step {self.step}: {numbers}")

    def _record(self, line: dict[str, Any], display: Display, trackers: list[Tracker]) -> None:
        if not self.main:
            return
        self.log.append(line)
        parts = line["losses"] if len(line["losses"]) > 1 else {}
        display.step(line["step"], {"loss": line["loss"], **parts})
        self._tell(line.get("validation", {}), display)
        if line.get("skipped"):
            display.message(f"step {line['step']} skipped: loss or gradient not finite")
        for tracker in trackers:
            tracker.log(line["step"], flatten(line))

    def _trackers(self, stack: ExitStack) -> list[Tracker]:
        trackers: list[Tracker] = []
        if self.main and self.config.tensorboard:
            trackers.append(TensorBoard(self.folder.path / "tensorboard", self.step))
        if self.main and self.config.wandb:
            trackers.append(WeightsAndBiases(self.config.wandb, self.folder.path, self.folder.settings))
        for tracker in trackers:
            stack.callback(tracker.close)
        return trackers

    def _environment(self) -> dict[str, Any]:
        facts = environment(self.trainable.describe().get("teachers"))
        scenes = {split: self.loader.size(split) for split in ("train", "val")}
        return {**facts, "device": self.device.type, "ranks": self.fabric.world_size, "scenes": scenes}

    def _restore(self) -> bool:
        """Continues from the newest whole checkpoint, or sets up a new run; whether it continues."""
        with warnings.catch_warnings(action="default" if self.main else "ignore"):
            found = newest_checkpoint(self.folder.checkpoints)
        if found is not None:
            checkpoint = load_checkpoint(found)
            if self.main and not (self.folder.path / SUMMARY).is_file():  # else it is over already
                warn_about_changes(checkpoint.state["environment"], self._environment())
            self.trainable.load_state_dict(checkpoint.tensors["model"])
            load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
            self.step, self.skips_in_a_row = checkpoint.state["step"], checkpoint.state["skips_in_a_row"]
            self._keep_steps(checkpoint.state.get("steps", self.steps))
        else:
            reseed(self.config.seed, SETUP, self.fabric.global_rank)
            batches = self.loader.steps("train", 0, self.config.setup_batches)
            self.trainable.setup(batch.to(self.device) for batch in batches)
        self.average = WeightAverage(self.trainable, self.config.ema) if self.config.ema else None
        if self.average and found is not None:
            self.average.restore(checkpoint.tensors["average"], checkpoint.state["averaged"])
        return found is not None

    def _keep_steps(self, steps: int) -> None:
        """A run has the number of steps that it began with, even if there are other scenes now."""
        if steps != self.steps and self.main:
            warnings.warn(
                f"the run has {steps} steps and keeps them; with the scenes that are there now --train.epochs "
                f"{self.config.epochs:g} would be {self.steps}: to train so long, begin another run",
                stacklevel=2,
            )
        self.steps = steps

    def _save(self) -> None:
        if self.main:
            self.log.sync()
            model = self.trainable.state_dict()
            tensors = {"model": model, "optimizer": optimizer_tensors(self.optimizer)}
            if self.average:
                tensors["average"] = self.average.state
            if self.encoder:
                weights = tensors.get("average", model)
                tensors["encoder"] = single(prefixed(weights, "student"))
                if self.projectors:
                    parts = {name: prefixed(weights, place) for name, (place, _) in self.projectors.items()}
                    tensors["projectors"] = single(joined(parts))
            state = {
                "step": self.step,
                "steps": self.steps,
                "skips_in_a_row": self.skips_in_a_row,
                "averaged": self.average.updates if self.average else 0,
                "environment": self._environment(),
                "settings": self.folder.settings,
            }
            save_checkpoint(self.folder.checkpoints, state, tensors, self.encoder, self.config.keep)
        self.fabric.barrier()

    def _summarize(self) -> Summary:
        """Writes the summary of rank 0, whose log is the only one, and gives it to all."""
        summary: Any = None
        if self.main:
            settings = self.folder.settings
            repeated = {name: settings[name] for name in ("encoder", "data") if name in settings}
            summary = Summary.of_log(
                self.log.records(),
                peak_memory_mb=peak_memory_mb(self.device),
                seed=self.config.seed,
                versions=versions(),
                facts={**repeated, **self.trainable.describe()},
            )
            replace_file(self.folder.path / SUMMARY, summary.to_json())
        return self.fabric.broadcast(summary)
