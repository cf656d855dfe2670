"""The encoder that a name on the command line means, and the controls of a table.

`random:NAME` is an untrained network (frozen, after its batch-norm statistics were set on unlabelled batches; with
`finetune`, this is training from scratch), `raw` the same head on the input itself, `teacher:NAME` a frozen image
model.

Legend: N points, V views, C channels, h w tokens of a map. Metres, world.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from splatlearn import registry
from splatlearn.encoders.base import (
    Encoder,
    FeatureMaps,
    ImageEncoder,
    PointEncoder,
    PointEncoderConfig,
    PointFeatures,
    input_channels,
    stack_inputs,
)
from splatlearn.engine.checkpoint import load_encoder, load_projector
from splatlearn.errors import ConfigError, UserError, nearest
from splatlearn.heads.projectors import ImageProjector
from splatlearn.structures import Images, Points, Tokens
from splatlearn.teachers.base import Teacher, create_teacher

RAW_INPUTS = ("color", "normal", "intensity")
RAW_OF_SCANS = ("position", "radius")
"""Inputs that `raw` has besides of lidar scans (points with `reflectance`), whose origin is the sensor."""
RAW_PATCH = 14
"""Pixels between the tokens that `raw` makes of images, as DUNE's students have them."""
KINDS: Mapping[type, str] = {PointEncoder: "points", ImageEncoder: "images", Encoder: "anything"}
Origin = Literal["run", "random", "raw", "teacher"]


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


class RawPixels(ImageEncoder):
    """The pixels of every patch as features: the control without any network. It has no parameters."""

    name, patch, channels = "raw", RAW_PATCH, (3 * RAW_PATCH**2,)

    def look(self, pixels: Tensor) -> FeatureMaps:
        """One token a patch: its colours; the summary is their mean."""
        maps = functional.pixel_unshuffle(pixels, self.patch)
        return FeatureMaps(levels=(maps,), summary=maps.mean((2, 3)))


class TeacherEncoder(ImageEncoder):
    """A teacher where an image encoder is asked for.

    Args:
        teacher: the frozen model.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher, self.name = teacher, f"teacher:{teacher.name}"
        self.patch, self.channels = teacher.info.patch, teacher.info.channels
        self.register_buffer("place", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor | Images, grid: tuple[int, int] | None = None) -> FeatureMaps:
        """As the teacher sees them, which normalises for itself."""
        return self.teacher(images if isinstance(images, Images) else Images(images=images), grid)

    def look(self, pixels: Tensor) -> FeatureMaps:
        """Features of images that the teacher has normalised."""
        return self.teacher.look(pixels)


class ProjectedEncoder(ImageEncoder):
    """A student and the projector that it learnt for a teacher: tokens in the teacher's width.

    DUNE's numbers for segmentation are of such tokens, after DINOv2's projector.

    Args:
        student: the encoder.
        projector: to the teacher's width.
        teacher: its name.
    """

    def __init__(self, student: ImageEncoder, projector: ImageProjector, teacher: str) -> None:
        super().__init__()
        self.student, self.projector = student, projector
        self.name, self.patch, self.channels = f"{student.name} for {teacher}", student.patch, (projector.out_channels,)
        self.mean, self.std = student.mean, student.std

    def look(self, pixels: Tensor) -> FeatureMaps:
        """One level, in the teacher's width."""
        return self.projector(self.student.look(pixels))


class Resolved(NamedTuple):
    """An encoder and where it came from: `run` (pre-trained), `random`, `raw`, or `teacher`."""

    encoder: Any
    origin: Origin


def resolve_encoder(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    available: Iterable[str] = RAW_INPUTS,
    seed: int = 0,
    kind: type[Encoder] = PointEncoder,
) -> Resolved:
    """The encoder that a name on the command line means.

    Args:
        name: a run folder; `random:NAME` for an untrained registered encoder; `teacher:NAME` for a frozen image model;
            `raw` for the input itself.
        options: of the config of a `random:` encoder, or of a teacher; of a run, `projector`, the name of a teacher:
            features are then those after its projector.
        available: attributes of the data; of points, `raw` takes those it knows, and the height.
        seed: of random weights. The global generator is left as it was.
        kind: what is wanted: `PointEncoder`, `ImageEncoder`, or `Encoder` for either; `raw` then is of points.

    Raises:
        UserError: neither of these, or an encoder of another kind; random weights are never a fallback.
    """
    given, (prefix, _, rest) = dict(options or {}), name.partition(":")
    if prefix == "random" and rest:
        with seeded(seed):
            encoder = registry.encoders.create(rest, given)
        encoder.name = encoder.name or rest
        return Resolved(_of_kind(encoder, name, kind), "random")
    if prefix == "teacher" and rest:
        return Resolved(_of_kind(TeacherEncoder(create_teacher(rest, given)), name, kind), "teacher")
    projector = given.pop("projector", "") if kind is not PointEncoder and name != "raw" else ""
    if given:
        raise ConfigError(
            f"--encoder {name}: options {sorted(given)} only go with random:NAME and teacher:NAME (of a run of images: "
            "projector)"
        )
    if name == "raw":
        return Resolved(RawPixels() if kind is ImageEncoder else _raw(available), "raw")
    run = Path(name).expanduser()
    if not run.is_dir():
        raise _unresolved(name, kind)
    encoder = _of_kind(load_encoder(run), name, ImageEncoder if projector else kind)
    if projector:
        encoder = ProjectedEncoder(encoder, load_projector(run, projector), projector)
    return Resolved(encoder, "run")


def _raw(available: Iterable[str]) -> RawInputs:
    there = set(available)
    inputs = *(i for i in RAW_INPUTS if i in there), "height", *(RAW_OF_SCANS if "reflectance" in there else ())
    return RawInputs(PointEncoderConfig(inputs=inputs))


def _of_kind(encoder: Any, name: str, kind: type[Encoder]) -> Any:
    if not isinstance(encoder, kind):
        raise UserError(f"--encoder {name}: {encoder.name!r} does not encode {KINDS[kind]}")
    return encoder


def _unresolved(name: str, kind: type[Encoder]) -> UserError:
    family = name.partition(".")[0]
    if family in registry.encoders.families():
        return UserError(f"--encoder {name}: untrained weights are asked for by name: random:{name}")
    if family in registry.teachers.families():
        return UserError(f"--encoder {name}: a teacher is asked for by name: teacher:{name}")
    known = [f"random:{family}" for family in registry.encoders.families()]
    more = ", teacher:NAME" if kind is not PointEncoder else ""
    return UserError(
        f"--encoder {name}: no such run folder{nearest(name, known)} "
        f"(a run folder of `splatlearn pretrain`, {', '.join(known)}{more}, or raw)"
    )


def device_of(encoder: Encoder) -> torch.device:
    """Where an encoder's parameters or buffers are; the CPU when it has none."""
    return next((value.device for value in (*encoder.parameters(), *encoder.buffers())), torch.device("cpu"))


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
