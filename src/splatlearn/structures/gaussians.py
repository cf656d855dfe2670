"""3D Gaussians with activated values. Legend: N Gaussians, K spherical-harmonics coefficients. Metres, world."""

from dataclasses import dataclass

from torch import Tensor

from splatlearn.structures.packed import Packed
from splatlearn.structures.points import Points

SH_C0 = 0.28209479177387814
"""Y_00 = 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 * sh[:, 0] for a Gaussian without higher bands."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussians(Packed):
    """Anisotropic 3D Gaussians, activated: no logits, no logarithms.

    Args:
        means: (N 3) metres, world.
        scales: (N 3) standard deviations, metres, > 0.
        quaternions: (N 4) w x y z, Gaussian axes to world; need not be unit, the renderer normalises.
        opacities: (N) in [0, 1].
        sh: (N K 3) spherical-harmonics coefficients, K = (degree + 1)^2, degree 0 to 4.
    """

    means: Tensor
    scales: Tensor
    quaternions: Tensor
    opacities: Tensor
    sh: Tensor

    def to_points(self) -> Points:
        """Centres as points; attributes `color` (N 3) from the DC band, `opacity` (N 1), `quaternion` (N 4),
        `scale` (N 3), besides those already here."""
        color = (0.5 + SH_C0 * self.sh[:, 0]).clamp(0, 1)
        own = {"color": color, "opacity": self.opacities[:, None], "quaternion": self.quaternions}
        return Points(
            xyz=self.means,
            counts=self.counts,
            attributes={**self.attributes, **own, "scale": self.scales},
        )
