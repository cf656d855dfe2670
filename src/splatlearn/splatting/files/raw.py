"""Gaussians as files store them: logits, logarithms, quaternions of any length. What every codec reads and writes.

Legend: N Gaussians, K = (degree + 1)^2 spherical-harmonics coefficients. Lengths in the unit of the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from splatlearn.errors import BadData, UserError
from splatlearn.splatting.harmonics import degree_of
from splatlearn.structures import Gaussians
from splatlearn.structures.gaussians import SH_C0

Floats = npt.NDArray[np.floating]

OPACITY_MARGIN = 1e-7
"""Opacities are kept this far from 0 and 1, so that their logits are finite (at most 16.2)."""
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scales below it are written as it, so that their logarithms are finite (-87.3)."""
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_LOG_SCALE = 88.72  # exp of it is just below the largest float32
_FIELDS = {
    "means": ("x", "y", "z"),
    "logits": ("opacity",),
    "log_scales": ("scale_0", "scale_1", "scale_2"),
    "quaternions": ("rot_0", "rot_1", "rot_2", "rot_3"),
    "sh": ("red", "green", "blue"),
}
"""Field -> what its columns are called in errors: the properties of a 3DGS .ply."""
NORMALS = ("nx", "ny", "nz")


@dataclass(frozen=True, kw_only=True, eq=False)
class RawGaussians:
    """The record that all codecs share; a .ply comes back bit for bit.

    Args:
        means: (N 3) positions.
        logits: (N) opacities before the sigmoid.
        log_scales: (N 3) natural logarithms of the standard deviations.
        quaternions: (N 4) w x y z, not normalised.
        sh: (N K 3) spherical-harmonics coefficients.
        properties: name -> (N) further numbers of each Gaussian (`nx`, `ny`, `nz` of a normal, a label), which only a
            .ply can hold.
        left_out: names of what the file has besides and no record holds.
    """

    means: Floats
    logits: Floats
    log_scales: Floats
    quaternions: Floats
    sh: Floats
    properties: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Gaussians."""
        return len(self.means)

    @property
    def degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 4."""
        return degree_of(self.sh.shape[1])

    @property
    def normals(self) -> npt.NDArray[np.generic] | None:
        """(N 3) from the properties nx ny nz; None where absent, or all zero as most trainers write them."""
        if not set(NORMALS) <= set(self.properties):
            return None
        normals = np.stack([self.properties[name] for name in NORMALS], 1)
        with np.errstate(invalid="ignore"):  # of a signalling NaN, which `check` refuses
            return normals if normals.any() else None

    def check(self, where: object) -> "RawGaussians":
        """The record itself, when every number is usable.

        Args:
            where: the file, for the message.

        Raises:
            BadData: a number is NaN, infinite or beyond float32, or a scale overflows.
        """
        for name, columns in _FIELDS.items():
            limit = _LARGEST_LOG_SCALE if name == "log_scales" else _LARGEST
            _check_range(getattr(self, name), limit, columns, where)
        if (normals := self.normals) is not None:
            _check_range(normals, _LARGEST, NORMALS, where)
        return self

    def to_gaussians(self) -> Gaussians:
        """Activated float32 Gaussians, one item; a normal becomes the attribute `normal` (N 3)."""
        normals = self.normals
        attributes = {} if normals is None else {"normal": _tensor(normals)}
        return Gaussians(
            means=_tensor(self.means),
            scales=torch.from_numpy(self.log_scales).double().exp().clamp_min(SMALLEST_SCALE).float(),
            quaternions=_tensor(self.quaternions),
            opacities=torch.from_numpy(self.logits).double().sigmoid().float(),
            sh=_tensor(self.sh),
            attributes=attributes,
        )

    @classmethod
    def from_gaussians(cls, gaussians: Gaussians) -> "RawGaussians":
        """The record of activated Gaussians; of the attributes, `normal` is kept.

        Raises:
            UserError: several items, opacities outside [0, 1], negative scales.
            BadData: numbers that are not finite as float32.
        """
        _check_writable(gaussians)
        g = gaussians.detach().to("cpu")
        normals = g["normal"].float().numpy() if "normal" in g else np.empty((len(g), 0), np.float32)
        others = tuple(f"attribute {name}" for name in g.attributes if name != "normal")
        return cls(
            means=g.means.float().numpy(),
            logits=logits(g.opacities.double().numpy()),
            log_scales=logarithms(g.scales.double().numpy()),
            quaternions=g.quaternions.float().numpy(),
            sh=g.sh.float().numpy(),
            properties=dict(zip(NORMALS, normals.T)),
            left_out=others,
        ).check("the Gaussians to write")


def logits(opacities: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Finite logits of opacities in [0, 1]."""
    inside = opacities.clip(OPACITY_MARGIN, 1 - OPACITY_MARGIN)
    return (np.log(inside) - np.log1p(-inside)).astype(np.float32)


def logarithms(scales: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Finite logarithms of scales, which are 0 or more."""
    return np.log(scales.clip(SMALLEST_SCALE)).astype(np.float32)


def harmonics(colors: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """(N 1 3) first coefficients of colours (N 3) in [0, 1]."""
    with np.errstate(over="ignore"):  # `check` names what is beyond float32
        return ((colors - 0.5) / SH_C0).astype(np.float32)[:, None]


def colors(raw: RawGaussians) -> npt.NDArray[np.uint8]:
    """(N 3) RGB of the first coefficients, clipped to 0..255."""
    return bytes_of((0.5 + SH_C0 * raw.sh[:, 0].astype(np.float64)) * 255)


def opacities(raw: RawGaussians) -> npt.NDArray[np.float64]:
    """(N) after the sigmoid."""
    return 1 / (1 + np.exp(-raw.logits.astype(np.float64).clip(-700)))


def unit_quaternions(raw: RawGaussians) -> npt.NDArray[np.float64]:
    """(N 4) of length 1 with w >= 0; one of length 0 becomes no rotation."""
    quaternions = raw.quaternions.astype(np.float32).astype(np.float64)  # so that no square vanishes
    quaternions[~quaternions.any(1)] = 1, 0, 0, 0
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return np.where(quaternions[:, :1] < 0, -quaternions, quaternions)


def bytes_of(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The nearest of 0..255."""
    return values.round().clip(0, 255).astype(np.uint8)


def smallest_three(largest: npt.NDArray[np.integer], three: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Unit quaternions of which the largest component, which is positive, was left out.

    Args:
        largest: (N) its index, 0 to 3.
        three: (N 3) the others, in ascending order of their indices.

    Returns:
        (N 4) in the component order of the indices.
    """
    rest = np.sqrt((1 - np.square(three).sum(1)).clip(0))
    quaternions = np.empty((len(three), 4), np.float32)
    for index in range(4):
        rows = np.flatnonzero(largest == index)
        quaternions[rows, index] = rest[rows]
        for column, other in enumerate(i for i in range(4) if i != index):
            quaternions[rows, other] = three[rows, column]
    return quaternions


def reduced(raw: RawGaussians, *, keep: tuple[str, ...] = ()) -> list[str]:
    """What a format without spherical harmonics and further properties loses."""
    lost = [f"spherical harmonics of degree 1 to {raw.degree}"] if raw.degree else []
    lost += other_properties(raw, keep=keep)
    base = 0.5 + SH_C0 * raw.sh[:, 0]
    outside = int(((base < 0) | (base > 1)).any(1).sum())
    return lost + ([f"colours outside 0 to 1, clipped in {outside} Gaussians"] if outside else [])


def other_properties(raw: RawGaussians, *, keep: tuple[str, ...] = ()) -> list[str]:
    """What a format without further properties loses."""
    properties = [name for name in raw.properties if name not in keep]
    if raw.normals is None:
        properties = [name for name in properties if name not in NORMALS]  # zeros say nothing
    return [f"properties {', '.join(properties)}"] if properties else []


def _tensor(values: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _check_range(values: npt.NDArray, limit: float, columns: tuple[str, ...], where: object) -> None:
    """Raises: BadData: a value that is not finite, below float32, or above `limit`."""
    with np.errstate(invalid="ignore"):
        if not values.size or (values.min() >= -_LARGEST and values.max() <= limit):  # NaN compares as false
            return
        wrong = ~((values >= -_LARGEST) & (values <= limit))
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    name = columns[index[-1] if values.ndim > 1 else 0]
    name = f"spherical harmonics {index[1]} ({name})" if values.ndim == 3 else name
    raise BadData(
        f"{where}: {name} of Gaussian {index[0]} is {values[index]:g} ({int(wrong.sum())} such values); "
        f"finite numbers up to {limit:.3g} expected"
    )


def _check_writable(gaussians: Gaussians) -> None:
    degree_of(gaussians.sh.shape[1])
    if len(gaussians.counts) != 1:
        raise UserError(f"a file holds one scene; got a batch of {len(gaussians.counts)}, write them one by one")
    opacities = gaussians.opacities
    if bool(((opacities < 0) | (opacities > 1)).any()):
        raise UserError("opacities of the Gaussians to write must lie in [0, 1]; these are activated values, no logits")
    if bool((gaussians.scales < 0).any()):
        raise UserError("scales of the Gaussians to write must be 0 or more; these are lengths, no logarithms")
