"""What every task shares: the encoder under test, its probes and controls.

A frozen encoder gets no gradients, stays in eval mode and is in no state dict; `finetune` trains it with the head.
The controls of a table: `random:NAME` frozen, after its batch-norm statistics were set on unlabelled batches;
`raw`, the same head on the input attributes; `random:NAME` with `finetune`, which is training from scratch.

Legend: N points, C channels, K outputs. Metres, world.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from splatlearn import registry
from splatlearn.data.scene import Source
from splatlearn.encoders.base import (
    DERIVED,
    INPUT_CHANNELS,
    PointEncoder,
    PointEncoderConfig,
    PointFeatures,
    input_channels,
    stack_inputs,
)
from splatlearn.engine.trainable import B, Trainable
from splatlearn.errors import ConfigError, UserError, nearest
from splatlearn.ops.norm import PackedBatchNorm
from splatlearn.structures import Points, Tokens

ProbeName = Literal["linear", "decoder", "finetune"]
Levels = Literal["finest", "all"]
RAW_INPUTS = ("color", "normal", "intensity")
RAW_OF_SCANS = ("position", "radius")
"""Inputs that `raw` has besides of lidar scans (points with `reflectance`), whose origin is the sensor."""


class LinearProbe(nn.Module):
    """Standardised features and linear layers, one a learning rate; the task chooses the layer that is used.

    Features of few channels (raw inputs) want a higher rate than those of many, so a single one would favour some
    method; this is the same tuning for every method. The layers share nothing.

    Args:
        channels: C.
        outputs: K.
        heads: number of layers; the loop gives each its rate by its name, `heads.0`...
    """

    best: Tensor

    def __init__(self, channels: int, outputs: int, heads: int = 1) -> None:
        super().__init__()
        self.norm = PackedBatchNorm(channels).requires_grad_(False)
        self.heads = nn.ModuleList(nn.Linear(channels, outputs) for _ in range(heads))
        self.register_buffer("best", torch.zeros((), dtype=torch.int64))

    def each(self, features: Tensor) -> list[Tensor]:
        """(N K) outputs of every layer, from one matrix product: K is small, and C is read once."""
        weight, bias = (torch.cat([getattr(head, name) for head in self.heads]) for name in ("weight", "bias"))
        outputs = functional.linear(self.norm(features), weight, bias)
        return [*outputs.chunk(len(self.heads), 1)]

    def forward(self, features: Tensor) -> Tensor:
        """(N C) -> (N K) by the chosen layer."""
        return self.heads[int(self.best)](self.norm(features))


class TrainedHead(nn.Sequential):
    """Batch norm and one linear layer on an encoder that trains too, (N C) -> (N K)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(PackedBatchNorm(channels), nn.Linear(channels, outputs))


class DecoderProbe(nn.Sequential):
    """A perceptron with one hidden layer on each point's features, (N C) -> (N K).

    It mixes the levels of a point without linearity's limit, and sees no neighbours but through the encoder.
    """

    def __init__(self, channels: int, outputs: int, hidden: int = 128) -> None:
        first = PackedBatchNorm(channels), nn.Linear(channels, hidden, bias=False)
        super().__init__(*first, PackedBatchNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs))


class Task(Trainable[B]):
    """An encoder under test with a probe on its features.

    Args:
        encoder: the network under test; hidden from parameters and state dict unless `probe` is `finetune`.
        probe: `linear` or `decoder` on frozen features, or `finetune`: everything trains, with a linear head.
        outputs: K.
        levels: which of the encoder's levels the head sees: the finest, or all side by side.
        heads: layers of a linear probe, one a learning rate.
    """

    encoder: PointEncoder
    probe: nn.Module

    def __init__(self, encoder: PointEncoder, probe: ProbeName, outputs: int, levels: Levels, heads: int = 1) -> None:
        super().__init__()
        self.frozen = probe != "finetune"
        if self.frozen:
            encoder.requires_grad_(False).eval()
            object.__setattr__(self, "encoder", encoder)
        else:
            self.encoder = encoder.requires_grad_(True)
        self.levels = chosen_levels(encoder, levels)
        width = sum(encoder.channels[level] for level in self.levels)
        if probe == "linear":
            self.probe = LinearProbe(width, outputs, heads)
        else:
            self.probe = (DecoderProbe if probe == "decoder" else TrainedHead)(width, outputs)

    @classmethod
    @abstractmethod
    def training(cls, config: Any, probe: ProbeName) -> dict[str, Any]:
        """Options of the loop's `TrainConfig` for a config and a probe."""

    @classmethod
    @abstractmethod
    def available(cls, source: Source) -> tuple[str, ...]:
        """Attributes of the data that an encoder may take as input."""

    @classmethod
    @abstractmethod
    def unlabelled(cls, config: Any, encoder: PointEncoder, source: Source, seed: int) -> Iterator[Points]:
        """Batches of training data without labels, to set batch-norm statistics on."""

    @classmethod
    @abstractmethod
    def hold(cls, config: Any, encoder: PointEncoder, source: Source) -> Any:
        """Features of a frozen encoder for the argument `held`; None where they would take too much memory."""

    def features(self, points: Points) -> Tensor:
        """(N C) what the probe sees: the attribute `feature` where it was computed before, or the encoder's."""
        if "feature" in points:
            return points["feature"]
        return dense(self.encoder, points, self.levels, gradient=not self.frozen)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> "Task[B]":
        if self.frozen:  # a hidden encoder follows `.to(device)` all the same
            self.encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)


def chosen_levels(encoder: PointEncoder, levels: Levels) -> tuple[int, ...]:
    """Numbers of the finest level, or of all."""
    return tuple(range(len(encoder.channels))) if levels == "all" else (0,)


def dense(encoder: PointEncoder, points: Points, levels: Sequence[int], gradient: bool = False) -> Tensor:
    """(N C) features of every point at the chosen levels.

    Raises:
        UserError: the encoder broke its contract of one row per input point.
    """
    with torch.set_grad_enabled(gradient):
        features = encoder(points).dense(levels)
    if len(features) != len(points):
        raise UserError(f"encoder {encoder.name!r} gave {len(features)} rows for {len(points)} points")
    return features


class RawInputs(PointEncoder):
    """The input attributes as features: the control without any network. It has no parameters.

    Args:
        config: `inputs` name the features, in order.
    """

    def __init__(self, config: PointEncoderConfig) -> None:
        super().__init__()
        self.name, self.config = "raw", config
        self.channels = (input_channels(config.inputs),)

    def embed(self, points: Points) -> Tokens:
        """One token a point: its attributes."""
        features = stack_inputs(points, self.config.inputs)
        return Tokens(counts=points.counts, xyz=points.xyz, features=features)

    def encode(self, tokens: Tokens, points: Points) -> PointFeatures:
        """The tokens as they are; the summary is their mean."""
        means = [rows.features.mean(0) for rows in tokens.split()]
        return PointFeatures(
            levels=(tokens,), summary=torch.stack(means), upsample=lambda _: tokens.features[: len(points)]
        )


class Resolved(NamedTuple):
    """An encoder and where it came from: `run` (pre-trained), `random` or `raw`."""

    encoder: PointEncoder
    origin: Literal["run", "random", "raw"]


def resolve_encoder(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    available: Iterable[str] = RAW_INPUTS,
    seed: int = 0,
) -> Resolved:
    """The encoder that a name on the command line means.

    Args:
        name: a run folder; `random:NAME` for an untrained registered encoder; `raw` for the input attributes.
        options: options of the encoder's config; only for `random:`.
        available: attributes of the data; `raw` takes those it knows, and the height.
        seed: of random weights. The global generator is left as it was.

    Raises:
        UserError: neither of these; random weights are never a fallback.
    """
    kind, _, random_name = name.partition(":")
    if kind == "random" and random_name:
        with seeded(seed):
            encoder = registry.encoders.create(random_name, options)
        encoder.name = encoder.name or random_name
        return Resolved(_of_points(encoder, name), "random")
    if options:
        raise ConfigError(f"--encoder {name}: options {sorted(options)} only go with random:NAME")
    if name == "raw":
        there = set(available)
        inputs = *(i for i in RAW_INPUTS if i in there), "height", *(RAW_OF_SCANS if "reflectance" in there else ())
        return Resolved(RawInputs(PointEncoderConfig(inputs=inputs)), "raw")
    if not Path(name).expanduser().is_dir():
        raise _unresolved(name)
    from splatlearn.engine.checkpoint import load_encoder

    return Resolved(_of_points(load_encoder(Path(name).expanduser()), name), "run")


def _of_points(encoder: Any, name: str) -> PointEncoder:
    if not isinstance(encoder, PointEncoder):
        raise UserError(f"--encoder {name}: {encoder.name!r} does not encode points")
    return encoder


def _unresolved(name: str) -> UserError:
    family = name.partition(".")[0]
    if family in registry.encoders.families():
        return UserError(f"--encoder {name}: untrained weights are asked for by name: random:{name}")
    known = [f"random:{family}" for family in registry.encoders.families()]
    return UserError(
        f"--encoder {name}: no such run folder{nearest(name, known)} "
        f"(a run folder of `splatlearn pretrain`, {', '.join(known)}, or raw)"
    )


def check_inputs(encoder: PointEncoder, points: Points, where: str, up: str = "known") -> None:
    """Whether the points carry all that the encoder takes.

    Raises:
        UserError: attributes are missing, or the encoder needs the height where nobody knows what is up.
    """
    wanted = encoder.config.inputs
    missing = [name for name in wanted if name not in DERIVED and name not in points]
    if missing:
        there = ", ".join(sorted(name for name in points.attributes if name in INPUT_CHANNELS)) or "none"
        raise UserError(
            f"encoder {encoder.name!r} takes {', '.join(missing)}, which {where} does not have "
            f"(it has: {there}); use data with it, or an encoder that was made without (--encoder.inputs of a new one)"
        )
    if "height" in wanted and up == "unknown":
        raise UserError(f"encoder {encoder.name!r} takes the height, but the up axis of {where} is unknown: --data.up")


def device_of(encoder: PointEncoder) -> torch.device:
    """Where an encoder's parameters are; the CPU when it has none."""
    return next((p.device for p in encoder.parameters()), torch.device("cpu"))


def pick_device(name: str) -> str:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error
    return name


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generator starts from `seed` inside, and goes on as before outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
