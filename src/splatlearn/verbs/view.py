"""`view`: a Gaussian scene or a cloud in the browser, or as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from splatlearn.verbs import check_size, output_file, warn_idle

if TYPE_CHECKING:
    from torch import Tensor

    from splatlearn.structures import Cameras, Gaussians
    from splatlearn.verbs.view_scene import Shown

HOST, PORT = "127.0.0.1", 8080
Up = Literal["x", "y", "z", "-x", "-y", "-z"]


@dataclass(frozen=True)
class Viewed:
    """What was shown.

    Args:
        name: of the scene.
        rows: Gaussians or points.
        cameras: how many the scene has.
        color: what it was coloured by.
        where: the picture, or the page's address.
        choices: everything that `color` can be.
        notes: what was chosen, in sentences for people.
    """

    name: str
    rows: int
    cameras: int
    color: str
    where: str
    choices: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f"{self.name}: {self.rows:,} rows, {self.cameras} cameras, color {self.color}: {self.where}"
        return "\n  ".join([first, *self.notes, f"--color knows: {', '.join(self.choices)}, features:FILE"])


def view(
    data: str,
    *,
    scene: str = "",
    color: str = "auto",
    picture: Path | None = None,
    size: tuple[int, int] = (960, 720),
    camera: int | None = None,
    overlay: bool = False,
    up: Up = "z",
    host: str = HOST,
    port: int = PORT,
    data_options: Mapping[str, Any] | None = None,
) -> Viewed:
    """Show a Gaussian scene or a cloud in the browser, or as a picture.

    The page needs the extra `[view]` and ends with Ctrl-C; only this machine can open it unless `--host` says
    otherwise. `--picture` draws with the project's own renderer. Colours of numbers span their 2nd to 98th percentile.

    Args:
        data: a .ply, .splat or .spz file, a SceneSplat folder, or a world's name, folder or file as --data takes it.
        scene: name of one scene of a data source; by default the first.
        color: rgb, depth along the view axis, height, the name of an array, or features:FILE (the three principal
            components of what `encode` wrote); auto is rgb, or height where there are no colours.
        picture: write this .png and open no page.
        size: width and height of the picture.
        camera: look through this camera of the scene; by default at its middle, from the place of the first camera,
            or from a corner where there is none, or only those of a vehicle. The page starts there too, upright.
        overlay: draw world axes and cameras into the picture too; the page has them anyway.
        up: the axis that points up (files of Gaussians often have `--up=-y`).
        host: address that the page listens on; 0.0.0.0 lets other machines in.
        port: of the page; the next free one where it is taken.
        data_options: options of the data's reader.

    Raises:
        UserError: nothing there, an unknown scene, array or camera, features of another count, the picture exists,
            or viser is absent.
    """
    from splatlearn.errors import ConfigError
    from splatlearn.verbs.view_scene import choose_view, load_shown

    check_size(size)
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port: 1 to 65535 is needed, got {port}")
    if picture is None:
        from splatlearn.verbs.view_page import import_viser

        import_viser()
    else:
        picture = _new_picture(picture)
        warn_idle({"--host": host != HOST, "--port": port != PORT}, "--picture opens no page")
    shown = load_shown(data, scene, up, dict(data_options or {}))
    color = shown.check_choice(("rgb" if shown.colored else "height") if color == "auto" else color)
    looking = choose_view(shown, size, camera)
    if picture is None:
        return _serve(shown, looking, color, host, port)
    _write(picture, draw(shown, looking, color, overlay=overlay))
    return _viewed(shown, color, str(picture))


def draw(shown: Shown, view: Cameras, color: str, *, overlay: bool = False) -> Tensor:
    """(3 H W) picture in [0, 1] over white.

    Args:
        shown: the scene.
        view: one camera.
        color: one of `shown.choices`; `depth` is the depth of every pixel.
        overlay: with world axes and cameras.
    """
    from splatlearn.engine.plots import depth_colors
    from splatlearn.splatting import RenderOptions, render

    gaussians = shown.recolored("height" if color == "depth" else color, view)
    if overlay:
        gaussians = _joined(gaussians, _markers(shown, view))
    near = min(0.01, 1e-3 * shown.radius)
    rendering = render(
        gaussians, view, options=RenderOptions(background=(1.0, 1.0, 1.0), depth="normalized", near=near)
    )
    if color == "depth":
        return depth_colors(rendering.depth[0, 0].where(rendering.alpha[0, 0] > 0.5, 0))
    return rendering.color[0].clamp(0, 1)


def _serve(shown: Shown, view: Cameras, color: str, host: str, port: int) -> Viewed:
    import sys

    from splatlearn.verbs.view_page import LOOPBACK, Page

    page = Page(shown, view, color, host, port)
    if host not in LOOPBACK:
        sys.stderr.write(f"splatlearn: --host {host}: other machines can open this page\n")
    sys.stdout.write(f"{shown.name} at {page.url} (Ctrl-C ends it)\n")
    sys.stdout.flush()
    page.wait()
    return _viewed(shown, color, page.url)


def _viewed(shown: Shown, color: str, where: str) -> Viewed:
    rows, cameras = len(shown.gaussians), len(shown.cameras)
    return Viewed(shown.name, rows, cameras, color, where, tuple(shown.choices), shown.notes)


def _new_picture(path: Path) -> Path:
    """Where a picture can be written.

    Raises:
        UserError: it is no .png, exists, or cannot be made there.
    """
    from splatlearn.errors import UserError

    path = output_file(path, "--picture")
    if path.suffix.lower() != ".png":
        raise UserError(f"--picture {path}: pictures are .png files; give the name that suffix")
    if path.exists():
        raise UserError(f"--picture {path}: already there and not overwritten; name another")
    return path


def _write(path: Path, picture: Tensor) -> None:
    """Writes a picture whole or not at all."""
    from splatlearn.engine.plots import encode_png

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(encode_png(picture))
    temporary.replace(path)


def _markers(shown: Shown, view: Cameras) -> Gaussians:
    """World axes (x red, y green, z blue) at the origin, and as frusta the cameras that do not stand before the view's
    own eye."""
    import torch

    from splatlearn.verbs.view_scene import round_gaussians

    size = 0.1 * shown.radius
    starts, ends, colors = [torch.zeros(3, 3)], [2 * size * torch.eye(3)], [torch.eye(3)]
    apart = (shown.cameras.centers.float() - view.centers).norm(dim=1) > 2 * size
    if apart.any():
        start, end = _frusta(shown.cameras.rows(apart), 0.6 * size)
        starts, ends = [*starts, start], [*ends, end]
        colors.append(torch.tensor([0.15, 0.39, 0.92]).expand(len(start), 3))
    steps = torch.linspace(0, 1, 40)[:, None]
    first, last = torch.cat(starts)[:, None], torch.cat(ends)[:, None]
    means = (first + steps * (last - first)).flatten(0, 1)
    tint = torch.cat(colors).repeat_interleave(len(steps), 0)
    return round_gaussians(means, tint, 0.02 * size)


def _joined(gaussians: Gaussians, others: Gaussians) -> Gaussians:
    """Both as one item, without attributes; `others` have no view-dependent colour."""
    from dataclasses import replace

    from torch.nn.functional import pad

    from splatlearn.structures import Gaussians

    more = replace(others, sh=pad(others.sh, (0, 0, 0, gaussians.sh.shape[1] - others.sh.shape[1])))
    both = Gaussians.pack([replace(gaussians, attributes={}), more])
    return both.regroup((len(both),))


def _frusta(cameras: Cameras, size: float) -> tuple[Tensor, Tensor]:
    """(8V 3) starts and (8V 3) ends of the edges of pyramids whose height is `size`."""
    import torch

    chosen = cameras.rows(torch.arange(0, len(cameras), max(1, len(cameras) // 12)))
    width, height = float(chosen.width), float(chosen.height)
    corners = torch.tensor([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]])
    rays = torch.einsum("vij,kj->vki", torch.linalg.inv(chosen.intrinsics.float()), corners) * size
    pose = chosen.camera_to_world.float()
    base = torch.einsum("vij,vkj->vki", pose[:, :3, :3], rays) + pose[:, None, :3, 3]
    tip = pose[:, None, :3, 3].expand_as(base)
    return torch.cat([tip, base], 1).flatten(0, 1), torch.cat([base, base.roll(1, 1)], 1).flatten(0, 1)
