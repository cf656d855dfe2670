"""A scene in the browser: the only file that knows viser (extra `[view]`).

The page has a unit of its own, a tenth of the scene's radius: viser keeps covariances in half precision, where squares
of millimetres in metres vanish, and its near plane, far plane and speed are fixed numbers.

Legend: N Gaussians or points, V cameras.
"""

import io
import threading
import time
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import numpy as np
import torch

from splatlearn.errors import UserError
from splatlearn.splatting.projection import rotations
from splatlearn.structures import Cameras
from splatlearn.verbs.view_scene import Shown

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FRUSTA = 100
"""At most so many cameras are drawn, evenly over a recording."""
_FRUSTUM = 0.3
"""Page units: the size of a frustum."""
_WIDEST = 200.0
"""Page units: a greater standard deviation has no finite square in half precision."""


def import_viser() -> Any:
    """The package viser.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module("viser")
    except ImportError as error:
        raise UserError(
            f"view: the browser page needs viser ({error}): pip install 'splatlearn[view]'; "
            "--picture FILE.png draws without it"
        ) from error


class Page:
    """A page that serves a scene until it is stopped. Every control redraws what it changes.

    Args:
        shown: the scene.
        view: one camera, where the visitor starts; depth is measured from it.
        color: what the scene is coloured by first.
        host: address to listen on.
        port: first port that is tried; the next free one is taken.

    Attributes:
        url: where the page is.
        unit: length of the page's unit in the scene's.

    Raises:
        UserError: viser is not installed, or the address cannot be listened on.
    """

    def __init__(self, shown: Shown, view: Cameras, color: str, host: str, port: int) -> None:
        viser = import_viser()
        try:
            with redirect_stdout(io.StringIO()):  # the address is told once, by the verb
                self.server = viser.ViserServer(host=host, port=port, label=f"splatlearn: {shown.name}", verbose=False)
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: cannot listen there ({error})") from error
        self.shown, self.view, self.unit, self._lock = shown, view, 0.1 * shown.radius, threading.Lock()
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server.get_port()}"
        # viser can publish a page through its makers' relay when a visitor asks; what is local stays local.
        self.server.request_share_url = lambda verbose=True: None
        self.server.gui.configure_theme(show_share_button=False, show_logo=False)
        self._add_fixed()
        self._add_controls(color)
        self._draw()
        self.server.on_client_connect(self._place)

    def wait(self) -> None:
        """Serves until Ctrl-C."""
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            self.stop()

    def stop(self) -> None:
        """Ends the page."""
        with redirect_stdout(io.StringIO()):
            self.server.stop()

    def _add_fixed(self) -> None:
        """Axes and frusta, sized by the scene. Frusta about the visitor's own eye would be all that is seen: they show
        once the control of cameras is used."""
        scene = self.server.scene
        scene.set_up_direction(tuple(self.shown.up.tolist()))
        self._axes = scene.add_frame("/axes", axes_length=2.0, axes_radius=0.04)
        cameras = self.shown.cameras
        self._frusta = []
        for view in sorted({round(v) for v in np.linspace(0, len(cameras) - 1, min(len(cameras), _FRUSTA))}):
            pose = cameras.camera_to_world[view].double().numpy()
            apart = np.linalg.norm(pose[:3, 3] - self.view.centers[0].double().numpy()) / self.unit
            frustum = scene.add_camera_frustum(
                f"/cameras/{view}",
                fov=field_of_view(cameras, view),
                aspect=cameras.width / cameras.height,
                scale=_FRUSTUM,
                color=(37, 99, 235),
                wxyz=quaternion(pose[:3, :3]),
                position=pose[:3, 3] / self.unit,
                visible=bool(apart > 2 * _FRUSTUM),
            )
            self._frusta.append(frustum)

    def _add_controls(self, color: str) -> None:
        gui, shown = self.server.gui, self.shown
        self.color = gui.add_dropdown("Color", options=tuple(shown.choices), initial_value=color)
        self.visible = gui.add_checkbox("Scene", initial_value=True)
        self.axes = gui.add_checkbox("Axes", initial_value=True)
        self.size = gui.add_slider("Size", min=0.1, max=3.0, step=0.1, initial_value=1.0)
        self.color.on_update(lambda event: self._draw())
        self.size.on_update(lambda event: self._draw())
        self.visible.on_update(lambda event: self._show())
        self.axes.on_update(lambda event: self._show())
        if self._frusta:
            self.cameras = gui.add_checkbox("Cameras", initial_value=True)
            self.cameras.on_update(lambda event: self._show_cameras())

    def _draw(self) -> None:
        """The scene again, under the same name, as the controls say."""
        with self._lock:
            gaussians = self.shown.gaussians
            colors = self.shown.colors(self.color.value, self.view).numpy()
            means, scales = gaussians.means.numpy() / self.unit, float(self.size.value) / self.unit * gaussians.scales
            if self.shown.is_cloud:
                self._scene = self.server.scene.add_point_cloud(
                    "/scene",
                    points=means,
                    colors=(colors * 255).round().astype(np.uint8),
                    point_size=2 * float(scales[0, 0]),
                    precision="float32",
                    visible=self.visible.value,
                )
            else:
                self._scene = self.server.scene.add_gaussian_splats(
                    "/scene",
                    centers=means,
                    covariances=covariances(scales.clamp_max(_WIDEST), gaussians.quaternions),
                    rgbs=colors,
                    opacities=gaussians.opacities[:, None].numpy(),
                    visible=self.visible.value,
                )

    def _show(self) -> None:
        with self._lock:
            self._scene.visible, self._axes.visible = self.visible.value, self.axes.value

    def _show_cameras(self) -> None:
        for frustum in self._frusta:
            frustum.visible = self.cameras.value

    def _place(self, client: Any) -> None:
        """Puts a new visitor's camera where the view is, with its angle; it turns about a point ahead, at the depth of
        the scene's middle."""
        eye, ahead = self.view.centers[0].float(), self.view.world_to_camera[0, 2, :3].float()
        depth = max(float((self.shown.middle - eye) @ ahead), self.unit)
        client.camera.position = tuple((eye / self.unit).tolist())
        client.camera.look_at = tuple(((eye + depth * ahead) / self.unit).tolist())
        client.camera.fov = field_of_view(self.view, 0)


def field_of_view(cameras: Cameras, view: int) -> float:
    """Radians from the upper to the lower edge of a camera's picture."""
    return 2 * float(np.arctan(cameras.height / 2 / float(cameras.intrinsics[view, 1, 1])))


def covariances(scales: torch.Tensor, quaternions: torch.Tensor) -> np.ndarray:
    """(N 3 3) float32 covariances of Gaussians.

    Args:
        scales: (N 3) standard deviations.
        quaternions: (N 4) w x y z, of any length.
    """
    half = rotations(quaternions) * scales[:, None]
    return (half @ half.mT).numpy()


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(4) w x y z of a (3 3) rotation."""
    from scipy.spatial.transform import Rotation

    return np.roll(Rotation.from_matrix(rotation).as_quat(), 1)
