"""Heads: from encoder features to Gaussians, through a decoder and attention across views."""

from splatlearn.heads.attention import ImageAttentionConfig
from splatlearn.heads.decoder import FeatureDecoder, gather_pixels
from splatlearn.heads.epipolar import EpipolarConfig, EpipolarTransformer
from splatlearn.heads.gaussians import DepthConfig, DepthHead, GaussianConfig, OffsetConfig, OffsetHead

__all__ = [
    "DepthConfig",
    "DepthHead",
    "EpipolarConfig",
    "EpipolarTransformer",
    "FeatureDecoder",
    "GaussianConfig",
    "ImageAttentionConfig",
    "OffsetConfig",
    "OffsetHead",
    "gather_pixels",
]
