"""Settings of the loop; light to import, so that the command line can list them."""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from splatlearn.errors import ConfigError

RESULT_FREE = ("workers", "checkpoint_every", "keep", "evaluate_every", "tensorboard", "wandb")
"""Settings that may change when a run is continued, since no loss and no weight depends on them."""
ONLY_WITH = {
    **dict.fromkeys(("momentum", "nesterov"), ("optimizer", ("sgd",))),
    **dict.fromkeys(("betas", "epsilon"), ("optimizer", ("adam", "adamw"))),
    "min_learning_rate": ("schedule", ("cosine",)),
    **dict.fromkeys(("timescale", "cooldown"), ("schedule", ("inverse-sqrt",))),
    **dict.fromkeys(("start_divisor", "final_divisor"), ("schedule", ("one-cycle",))),
    **dict.fromkeys(("milestones", "milestone_factor"), ("schedule", ("step",))),
}
"""Setting -> the other setting, and the values of it, that it belongs to."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How anything is trained. Numbers without a source are our defaults.

    Args:
        steps: optimiser steps; 0 takes them from `epochs`.
        epochs: passes over the training scenes, one sample of a scene in each; only where `steps` is 0.
        batch: samples of a step over all processes.
        seed: of order, sampling and noise inside the model.
        workers: processes that draw samples; 0 draws them in the training process. The samples are the same.
        device: `auto` takes a GPU where there is one.
        precision: `bf16` runs the model under autocast; weights and losses stay float32. `f64` keeps a recipe's weights
            and computes its networks in float64 (geometry and rendering stay float32): in about twice the time on a
            CPU, rounding then is too small to part runs on different numbers of processes. The encoder that is
            exported is float32 in any case.
        deterministic: choose kernels whose sums have a fixed order; resuming bit for bit needs it.
        optimizer: `adam` couples weight decay with the gradient, `adamw` does not.
        learning_rate: the highest of the schedule.
        weight_decay: none on 1-D parameters (norms, biases) and on those of `no_decay`.
        betas: of Adam and AdamW.
        fused: let one kernel do the whole step of the optimiser: with millions of parameters on a CPU it takes a
            fifth of the time; the last digits differ.
        epsilon: of Adam and AdamW. Gradients far below it move nothing: where some are mere rounding (the rotations
            of round Gaussians), 1e-8 turns them into steps of full length.
        momentum: of SGD.
        nesterov: of SGD.
        schedule: after the warm-up. `cosine` falls to `min_learning_rate`; `one-cycle` also rises by a cosine,
            from `learning_rate / start_divisor`, and falls to that over `final_divisor`; `step` multiplies at
            `milestones`; `inverse-sqrt` divides by sqrt(1 + time / timescale) and falls to zero in the cooldown.
        min_learning_rate: at the end of `cosine`.
        warmup: share of the steps in which the rate rises (linearly, but for `one-cycle`).
        timescale: share of the steps; `inverse-sqrt` only (ScaLR+: 0.45 of 65 epochs).
        cooldown: share of the steps, the last ones, in which the rate falls linearly to zero; `inverse-sqrt` only
            (ScaLR+: 2 of 65 epochs).
        start_divisor: `one-cycle` only (Pointcept: 10).
        final_divisor: `one-cycle` only (Pointcept: 1000).
        milestones: shares of the steps; `step` only.
        milestone_factor: what the rate is multiplied with at each milestone; `step` only.
        rates: pattern of parameter names (`*` matches anything) -> factor of the learning rate; the first that
            matches holds.
        decays: pattern of parameter names -> factor that the rate has come down to at the end of the run, by the same
            share every step, on top of the schedule; the first that matches holds.
        layer_decay: factor of the rate per block, counted from the head, so that the last block has it once; 1 is off
            (BEiT: 0.65 to 0.9).
        no_decay: patterns of parameter names without weight decay.
        clip_norm: gradients are scaled down to this norm; 0 is off.
        clip_each: every parameter's gradient to that norm by itself, instead of all of them together (DUNE).
        ema: decay of averaged weights, which are then evaluated and exported; 0 is off.
        setup_batches: batches that the trainable may look at before the first step.
        evaluate_every: steps between evaluations; 0 evaluates at the end only.
        validation_samples: samples of an evaluation; 0 is one of every validation scene.
        checkpoint_every: steps between checkpoints; the last step has one anyway.
        keep: checkpoints kept, the newest.
        tensorboard: also write TensorBoard files to the run folder (extra `track`).
        wandb: also log to this Weights & Biases project (extra `track`); empty is off.
    """

    steps: int = 0
    epochs: float = 100.0
    batch: int = 4
    seed: int = 0
    workers: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32", "bf16", "f64"] = "32"
    deterministic: bool = True
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    fused: bool = False
    epsilon: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["cosine", "one-cycle", "constant", "step", "inverse-sqrt"] = "cosine"
    min_learning_rate: float = 1e-6
    warmup: float = 0.0
    timescale: float = 0.007
    cooldown: float = 0.03
    start_divisor: float = 10.0
    final_divisor: float = 1000.0
    milestones: tuple[float, ...] = ()
    milestone_factor: float = 0.1
    rates: dict[str, float] = field(default_factory=dict)
    decays: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    no_decay: tuple[str, ...] = ()
    clip_norm: float = 0.0
    clip_each: bool = False
    ema: float = 0.0
    setup_batches: int = 50
    evaluate_every: int = 0
    validation_samples: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    tensorboard: bool = False
    wandb: str = ""

    def __post_init__(self) -> None:
        problems = [f"{name}: {allowed}, got {value}" for name, value, allowed in self._violations()]
        if problems:
            raise ConfigError("; ".join(problems))

    def _violations(self) -> list[tuple[str, object, str]]:
        positive = ("epochs", "batch", "learning_rate", "epsilon", "timescale", "layer_decay")
        positive = (*positive, "start_divisor", "final_divisor")
        counts = ("steps", "seed", "workers", "setup_batches", "evaluate_every", "validation_samples")
        amounts = ("weight_decay", "min_learning_rate", "clip_norm", "milestone_factor")
        wrong: list[tuple[str, object, str]] = []
        for names, holds, allowed in (
            (positive, lambda v: v > 0 and math.isfinite(v), "above 0 is needed"),
            ((*counts, *amounts), lambda v: v >= 0 and math.isfinite(v), "0 or more is needed"),
            (("checkpoint_every", "keep"), lambda v: v >= 1, "1 or more is needed"),
            (("warmup", "ema", "momentum", "cooldown"), lambda v: 0 <= v < 1, "a number in [0, 1) is needed"),
        ):
            wrong += [(name, getattr(self, name), allowed) for name in names if not holds(getattr(self, name))]
        if self.min_learning_rate > self.learning_rate and self.schedule == "cosine":
            wrong.append(("min_learning_rate", self.min_learning_rate, f"at most {self.learning_rate} is allowed"))
        if self.schedule == "inverse-sqrt" and self.warmup + self.cooldown > 1:
            wrong.append(("cooldown", self.cooldown, f"at most {1 - self.warmup:g} is left by the warm-up"))
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            wrong.append(("milestones", self.milestones, "ascending shares in (0, 1) are needed"))
        if not all(0 <= beta < 1 for beta in self.betas):
            wrong.append(("betas", self.betas, "numbers in [0, 1) are needed"))
        if self.nesterov and not self.momentum:
            wrong.append(("nesterov", self.nesterov, "momentum above 0 is needed with it"))
        if not all(0 <= rate < math.inf for rate in self.rates.values()):
            wrong.append(("rates", self.rates, "factors of 0 or more are needed"))
        if any(not 0 < factor < math.inf for factor in self.decays.values()):
            wrong.append(("decays", self.decays, "factors above 0 are needed"))
        return wrong

    def idle(self) -> list[str]:
        """What to tell of settings that were changed and have no effect beside the others."""
        changed = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        told = [
            f"--train.{name} {changed[name]} has no effect: it is of {choice} {' or '.join(values)}"
            for name, (choice, values) in ONLY_WITH.items()
            if name in changed and getattr(self, choice) not in values
        ]
        if self.clip_each and not self.clip_norm:
            told.append("--train.clip_each has no effect: --train.clip_norm is 0, which is off")
        if "epochs" in changed and self.steps:
            told.append(f"--train.epochs {self.epochs:g} has no effect: --train.steps {self.steps} says how long")
        return told

    def total_steps(self, scenes: int) -> int:
        """Steps of a run over `scenes` training scenes."""
        return self.steps or max(1, round(self.epochs * scenes / self.batch))
