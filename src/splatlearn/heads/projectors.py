"""From a student's features to a teacher's width, row by row; thrown away after pre-training. Legend: N rows."""

from dataclasses import dataclass

from torch import Tensor, nn

from splatlearn.config import require


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """A linear layer, or two with a ReLU between them.

    Args:
        hidden: width between the two layers, 2048 in ScaLR+ (its code); 0 means one layer (ScaLR).
    """

    hidden: int = 0

    def __post_init__(self) -> None:
        require({f"hidden: 0 or more channels, got {self.hidden}": self.hidden >= 0})


class Projector(nn.Module):
    """Packed rows of a student to the width of a teacher.

    Args:
        config: its settings.
        channels: of the student's features.
        out_channels: of the teacher's.
    """

    def __init__(self, config: ProjectorConfig, channels: int, out_channels: int) -> None:
        super().__init__()
        width = config.hidden or out_channels
        self.layers = nn.Sequential(nn.Linear(channels, width))
        if config.hidden:
            self.layers.extend([nn.ReLU(), nn.Linear(width, out_channels)])

    def forward(self, features: Tensor) -> Tensor:
        """(N channels) to (N out_channels); a row does not see the others."""
        return self.layers(features)
