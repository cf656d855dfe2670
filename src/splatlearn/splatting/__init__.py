"""Gaussians to pictures and back: `render`, `lift`, their options, and the backends."""

from splatlearn.splatting.lift import Lifted, lift
from splatlearn.splatting.render import Rendering, RenderOptions, render

__all__ = ["Lifted", "RenderOptions", "Rendering", "lift", "render"]
