"""Gaussians to pictures: `render`, its options, and its backends."""

from splatlearn.splatting.render import Rendering, RenderOptions, render

__all__ = ["RenderOptions", "Rendering", "render"]
