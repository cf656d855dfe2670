"""Heads: from encoder features to Gaussians, through a decoder and attention across views, or to a teacher's width."""

from splatlearn.heads.attention import ImageAttentionConfig
from splatlearn.heads.decoder import FeatureDecoder, gather_pixels
from splatlearn.heads.epipolar import EpipolarConfig, EpipolarTransformer
from splatlearn.heads.gaussians import DepthConfig, DepthHead, GaussianConfig, OffsetConfig, OffsetHead
from splatlearn.heads.projectors import (
    AnyProjectorConfig,
    ImageProjector,
    LadderProjectorConfig,
    Projector,
    ProjectorConfig,
    SimpleProjectorConfig,
    TransformerProjectorConfig,
    create_projector,
)

__all__ = [
    "AnyProjectorConfig",
    "DepthConfig",
    "DepthHead",
    "EpipolarConfig",
    "EpipolarTransformer",
    "FeatureDecoder",
    "GaussianConfig",
    "ImageAttentionConfig",
    "ImageProjector",
    "LadderProjectorConfig",
    "OffsetConfig",
    "OffsetHead",
    "Projector",
    "ProjectorConfig",
    "SimpleProjectorConfig",
    "TransformerProjectorConfig",
    "create_projector",
    "gather_pixels",
]
