"""`view`: a Gaussian scene, a cloud, or photographs as a network sees them, in the browser or as a picture."""

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
    from splatlearn.verbs.similarity import Similarity
    from splatlearn.verbs.view_scene import Shown

HOST, PORT = "127.0.0.1", 8080
SIZE = (960, 720)
"""Width and height of a scene's picture."""
IMAGES = 12
"""Photographs on a page."""
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
    size: tuple[int, int] | None = None,
    camera: int | None = None,
    overlay: bool = False,
    up: Up = "z",
    encoder: str = "",
    teacher: str = "",
    at: tuple[int, int, int] | None = None,
    images: int = IMAGES,
    page: Path | None = None,
    device: str = "auto",
    host: str = HOST,
    port: int = PORT,
    encoder_options: Mapping[str, Any] | None = None,
    teacher_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
) -> Viewed | Similarity:
    """Show a Gaussian scene, a cloud or photographs in the browser, or as a picture.

    The page of a scene needs the extra `[view]`; a page ends with Ctrl-C, and only this machine can open it unless
    `--host` says otherwise. `--picture` draws with the project's own renderer. Colours of numbers span their 2nd to
    98th percentile.

    With `--encoder`, `--teacher` or both, photographs are shown: a click on a place in one colours every patch of all
    by the cosine of its features and those of the patch there; principal components may be shown, too.

    Args:
        data: a .ply, .splat or .spz file, a SceneSplat folder, or a world's name, folder or file as --data takes it;
            for an encoder or a teacher, an image, too.
        scene: name of one scene of a data source; by default the first.
        color: rgb, depth along the view axis, height, the name of an array, or features:FILE (the three principal
            components of what `encode` wrote); auto is rgb, or height where there are no colours.
        picture: write this .png and open no page.
        size: width and height of the picture, 960,720 by default; of photographs those that networks see, by default
            the nearest multiples of the patch for a longer side of 448.
        camera: look through this camera of the scene; by default at its middle, from the place of the first camera,
            or from a corner where there is none, or only those of a vehicle. The page starts there too, upright.
        overlay: draw world axes and cameras into the picture too; the page has them anyway.
        up: the axis that points up (files of Gaussians often have `--up=-y`).
        encoder: run folder, random:NAME or teacher:NAME of an encoder of images.
        teacher: its name, as of `prepare`; beside an encoder, both see the same photographs.
        at: number of a photograph, x and y in its pixels: the place that is compared with first.
        images: photographs at most, evenly spaced among all.
        page: write the page of photographs to this .html, which needs nothing else, and open none.
        device: where the networks run: auto, cpu, cuda...
        host: address that the page listens on; 0.0.0.0 lets other machines in.
        port: of the page; the next free one where it is taken.
        encoder_options: options of a random:NAME encoder or of a teacher; of a run, projector: a teacher's name.
        teacher_options: options of the teacher.
        data_options: options of the data's reader.

    Raises:
        UserError: nothing there, an unknown scene, array or camera, features of another count, a place outside a
            photograph, the picture or page exists, or viser is absent.
    """
    from splatlearn.errors import ConfigError
    from splatlearn.verbs.view_scene import choose_view, load_shown

    if size is not None:
        check_size(size)
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port: 1 to 65535 is needed, got {port}")
    if encoder or teacher:
        from splatlearn.verbs.similarity import look
        from splatlearn.verbs.similarity_page import show_similarity

        of_scenes = {
            "--color": color != "auto",
            "--camera": camera is not None,
            "--overlay": overlay,
            "--up": up != "z",
        }
        warn_idle(of_scenes, "--encoder and --teacher show photographs")
        if picture or page:
            warn_idle({"--host": host != HOST, "--port": port != PORT}, "--picture and --page open no page")
        picture = new_file(picture, "--picture", ".png") if picture else None
        page = new_file(page, "--page", ".html") if page else None
        found = look(
            data,
            encoder=encoder,
            teacher=teacher,
            scene=scene,
            size=size,
            images=images,
            device=device,
            encoder_options=encoder_options,
            teacher_options=teacher_options,
            data_options=data_options,
        )
        return show_similarity(found, at, picture, page, host, port)
    if page is not None or at is not None:
        raise ConfigError("--page and --at show photographs to networks: give --encoder, --teacher or both")
    of_photographs = {"--images": images != IMAGES, "--device": device != "auto"}
    warn_idle(of_photographs, "they are of --encoder and --teacher, which are not given")
    size = size or SIZE
    if picture is None:
        from splatlearn.verbs.view_page import import_viser

        import_viser()
    else:
        picture = new_file(picture, "--picture", ".png")
        warn_idle({"--host": host != HOST, "--port": port != PORT}, "--picture opens no page")
    shown = load_shown(data, scene, up, dict(data_options or {}))
    color = shown.check_choice(("rgb" if shown.colored else "height") if color == "auto" else color)
    looking = choose_view(shown, size, camera)
    if picture is None:
        return _serve(shown, looking, color, host, port)
    write_file(picture, _png(draw(shown, looking, color, overlay=overlay)))
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
    from splatlearn.verbs.view_page import Page

    page = Page(shown, view, color, host, port)
    tell_address(shown.name, page.url, host)
    page.wait()
    return _viewed(shown, color, page.url)


def _viewed(shown: Shown, color: str, where: str) -> Viewed:
    rows, cameras = len(shown.gaussians), len(shown.cameras)
    return Viewed(shown.name, rows, cameras, color, where, tuple(shown.choices), shown.notes)


def tell_address(what: str, url: str, host: str) -> None:
    """Says where a page is, and that others can open it."""
    import sys

    from splatlearn.verbs.view_page import LOOPBACK

    if host not in LOOPBACK:
        sys.stderr.write(f"splatlearn: --host {host}: other machines can open this page\n")
    sys.stdout.write(f"{what} at {url} (Ctrl-C ends it)\n")
    sys.stdout.flush()


def new_file(path: Path, flag: str, suffix: str) -> Path:
    """Where a picture or page can be written.

    Raises:
        UserError: it has another suffix, exists, or cannot be made there.
    """
    from splatlearn.errors import UserError

    path = output_file(path, flag)
    if path.suffix.lower() != suffix:
        raise UserError(f"{flag} {path}: {flag[2:]}s are {suffix} files; give the name that suffix")
    if path.exists():
        raise UserError(f"{flag} {path}: already there and not overwritten; name another")
    return path


def _png(picture: Tensor) -> bytes:
    from splatlearn.engine.plots import encode_png

    return encode_png(picture)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
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
