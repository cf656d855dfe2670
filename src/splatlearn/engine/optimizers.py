"""Optimisers from a `TrainConfig`: parameter groups by name, schedules as functions of the step, clipping, EMA."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from splatlearn.engine.config import TrainConfig
from splatlearn.errors import ConfigError, UserError, nearest


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of the parameters that need a gradient.

    Each group's `scale` multiplies the schedule, and so does its `decay` to the power of the share of the run.

    Raises:
        UserError: nothing can be trained.
        ConfigError: a pattern of `rates`, `decays` or `no_decay` matches no parameter.
    """
    groups, fused = parameter_groups(module, config), config.fused or None
    if config.optimizer == "sgd":
        rest = {"momentum": config.momentum, "nesterov": config.nesterov, "fused": fused}
        return torch.optim.SGD(groups, lr=config.learning_rate, **rest)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=fused)


def parameter_groups(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Groups of equal rate and weight decay, in order of first appearance.

    Returns:
        Dictionaries for a torch optimiser: `params`, `weight_decay`, and besides `scale`, `decay` and `names`.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not named:
        raise UserError(f"{type(module).__name__} has no parameter to train: everything is frozen")
    patterns = {"rates": tuple(config.rates), "decays": tuple(config.decays), "no_decay": config.no_decay}
    _check_patterns(patterns, dict(module.named_parameters()))  # a pattern may name what is frozen in this run
    depth_factors = layer_factors(list(named), config.layer_decay)
    groups: dict[tuple[float, float, float], list[str]] = defaultdict(list)
    for name, parameter in named.items():
        scale = depth_factors[name] * _first_match(config.rates, name)
        plain = parameter.ndim <= 1 or any(fnmatchcase(name, pattern) for pattern in config.no_decay)
        decay = _first_match(config.decays, name)
        groups[scale, decay, 0.0 if plain else config.weight_decay].append(name)
    return [
        {"params": [named[n] for n in names], "weight_decay": shrinking, "scale": scale, "decay": decay, "names": names}
        for (scale, decay, shrinking), names in groups.items()
    ]


def layer_factors(names: list[str], decay: float) -> dict[str, float]:
    """`decay` to the power of the layers that follow, per parameter name; the last layer is the head (BEiT).

    Blocks are the numbered children of modules called `blocks`, counted through in order within each top-level part
    (`student`); what comes before the first counts as a layer below it, what follows a block counts with it.
    """
    seen: dict[str, list[str]] = defaultdict(list)
    depths = {}
    for name in names:
        blocks = seen[name.partition(".")[0]]
        found = re.match(r"(.*\bblocks\.\d+)\.", name)
        if found and found[1] not in blocks:
            blocks.append(found[1])
        depths[name] = blocks.index(found[1]) + 1 if found else len(blocks)
    layers = {part: len(blocks) + 1 if blocks else 0 for part, blocks in seen.items()}
    return {name: decay ** (layers[name.partition(".")[0]] - depth) for name, depth in depths.items()}


def _first_match(rates: Mapping[str, float], name: str) -> float:
    return next((rate for pattern, rate in rates.items() if fnmatchcase(name, pattern)), 1.0)


def _check_patterns(settings: Mapping[str, tuple[str, ...]], named: Mapping[str, Tensor]) -> None:
    unused = [
        f"{setting}: no parameter matches {pattern!r}{nearest(pattern, named)}"
        for setting, patterns in settings.items()
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in named)
    ]
    if unused:
        raise ConfigError("; ".join(unused))


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of a step before a group's factor: a pure function, so nothing of it is in a checkpoint."""
    warmup = round(config.warmup * steps)
    high = config.learning_rate
    if step < warmup:
        if config.schedule == "one-cycle":
            return _cosine(high / config.start_divisor, high, step / warmup)
        return high * (step + 1) / warmup
    passed = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "cosine":
        return _cosine(high, config.min_learning_rate, passed)
    if config.schedule == "one-cycle":
        return _cosine(high, high / config.start_divisor / config.final_divisor, passed)
    if config.schedule == "inverse-sqrt":
        return high * _inverse_sqrt(config, step, steps)
    reached = sum(step >= milestone * steps for milestone in config.milestones)
    return high * config.milestone_factor**reached if config.schedule == "step" else high


def _inverse_sqrt(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the highest rate after the warm-up. In the cooldown it falls from where it was (ScaLR+'s code jumps a
    little there, as it forgets the warm-up)."""
    start, scale = steps - round(config.cooldown * steps), config.timescale * steps
    share = (1 + (min(step, start) - round(config.warmup * steps)) / scale) ** -0.5
    return share if step < start else share * (steps - step - 1) / max(1, steps - start)


def _cosine(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) * (1 + math.cos(math.pi * share)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, fraction: float = 0.0) -> None:
    """Gives every group its share of `rate`, after `fraction` of the run."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"] * group["decay"] ** fraction


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Joint 2-norm of all gradients, a scalar; not finite if any of them is not."""
    return torch.nn.utils.get_total_norm([p.grad for p in _with_gradient(optimizer) if p.grad is not None])


def clip_gradients(optimizer: torch.optim.Optimizer, norm: Tensor, limit: float, each: bool = False) -> None:
    """Scales gradients of joint norm `norm` down to `limit`, or `each` by its own norm; 0 leaves them."""
    if limit > 0 and each:
        for parameter in _with_gradient(optimizer):
            torch.nn.utils.clip_grad_norm_(parameter, limit)
    elif limit > 0:
        torch.nn.utils.clip_grads_with_norm_(_with_gradient(optimizer), limit, norm)


def not_finite(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters whose gradient is not finite."""
    return [n for n, p in _named(optimizer) if p.grad is not None and not bool(torch.isfinite(p.grad).all())]


def _with_gradient(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for _, p in _named(optimizer) if p.grad is not None]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `parameter name/key` -> tensor; what a checkpoint keeps of it."""
    tensors = {}
    for name, parameter in _named(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{name}/{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts `optimizer_tensors` back.

    Raises:
        UserError: a tensor belongs to no parameter of this optimiser.
    """
    by_name: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        by_name[name][key] = value
    names = [name for name, _ in _named(optimizer)]
    unknown = sorted(by_name.keys() - set(names))
    if unknown:
        raise UserError(f"the optimiser state is of other parameters: {', '.join(unknown)}")
    state = {i: by_name[name] for i, name in enumerate(names) if name in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


class WeightAverage:
    """Exponential moving average of a module's state; counters and other integers are copied.

    Args:
        module: whose state is averaged; its state now is the start.
        decay: in the long run; the first steps average over fewer, (1 + n) / (10 + n) (TensorFlow's rule).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """One step of averaging."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    def restore(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continues from a checkpoint's averages."""
        self.updates = updates
        for name, value in state.items():
            self.state[name].copy_(value)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module with the averaged state; its own comes back on leaving, but for buffers set meanwhile, which both
        keep: an evaluation may decide something."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.state)
        try:
            yield
        finally:
            decided = {name: value for name, value in module.named_buffers() if name in self.state}
            for name, value in decided.items():
                if not torch.equal(value, self.state[name]):
                    self.state[name].copy_(value)
                    own[name].copy_(value)
            module.load_state_dict(own)
