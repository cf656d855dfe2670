"""`view`: what is drawn, what it can be coloured by, what is refused; the page, with viser and without."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import splatlearn
from splatlearn.cli import main
from splatlearn.data.scene import Rejected
from splatlearn.errors import UserError
from splatlearn.splatting.files import write_gaussians
from splatlearn.structures import Cameras, Points
from splatlearn.verbs import view_page, view_scene
from splatlearn.verbs.view import draw
from splatlearn.verbs.view_scene import choose_view, load_shown, look_at, spacing
from splatting.files import writers
from tasks import worlds

RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


@pytest.fixture(autouse=True)
def toy_world(monkeypatch):
    worlds.register(monkeypatch)


@pytest.fixture
def splat(tmp_path):
    """A red ball at x = -1 and a blue one at x = 1, 50 Gaussians each."""
    generator = torch.Generator().manual_seed(0)
    means = 0.2 * torch.randn(100, 3, generator=generator) + torch.tensor([[-1.0, 0, 0], [1, 0, 0]]).repeat(50, 1)
    gaussians = view_scene.round_gaussians(means, torch.tensor([RED, BLUE]).repeat(50, 1), 0.1)
    write_gaussians(gaussians, tmp_path / "balls.ply")
    return tmp_path / "balls.ply"


@pytest.fixture
def cloud(tmp_path):
    """A folder of two clouds, each a level grid of 20 x 20 points with labels 0 and 1."""
    x, y = np.meshgrid(np.arange(20) * 0.1, np.arange(20) * 0.1)
    for name in ("hall", "attic"):
        folder = tmp_path / "clouds" / name
        folder.mkdir(parents=True)
        np.save(folder / "coord.npy", np.stack([x, y, 0 * x], -1).reshape(-1, 3).astype(np.float32))
        np.save(folder / "color.npy", np.full((400, 3), (255, 0, 0), np.uint8))
        np.save(folder / "segment.npy", (x.reshape(-1) > 0.95).astype(np.int64))
    return tmp_path / "clouds"


def drawn(data, out, **options):
    """(H W 3) of a picture, and what was told."""
    told = splatlearn.view(str(data), picture=out, **{"size": (96, 72), **options})
    return np.array(Image.open(out)), told


def error(capsys, *words):
    assert main(["view", *map(str, words)]) == 2
    return capsys.readouterr().err


class TestPicture:
    def test_what_is_of_the_page_is_told(self, splat, tmp_path):
        with pytest.warns(UserWarning, match="--port has no effect: --picture opens no page"):
            drawn(splat, tmp_path / "out.png", port=8090)

    def test_a_gaussian_scene(self, splat, tmp_path):
        picture, told = drawn(splat, tmp_path / "a" / "out.png")
        assert picture.shape == (72, 96, 3)
        assert ((picture == 255).all(-1)).mean() > 0.3
        ink = picture[(picture < 200).any(-1)]
        assert (ink[:, 0] > ink[:, 2] + 50).any() and (ink[:, 2] > ink[:, 0] + 50).any()
        assert (told.rows, told.cameras, told.color) == (100, 0, "rgb")
        assert "opacity" in told.choices
        assert not list((tmp_path / "a").glob(".*"))

    def test_a_cloud_closes_and_is_seen_from_above(self, cloud, tmp_path):
        picture, told = drawn(cloud, tmp_path / "out.png", scene="hall")
        red = (picture[..., 0] > 200) & (picture[..., 1] < 60)
        assert red.mean() > 0.05
        rows = red[red.any(1)]
        filled = [row[row.argmax() : len(row) - row[::-1].argmax()].mean() for row in rows]
        assert np.mean(filled) > 0.98, "gaps between the points"
        assert told.name == "hall" and not told.notes
        assert "first of 2 scenes" in str(drawn(cloud, tmp_path / "first.png")[1])

    def test_colors_change_the_picture(self, cloud, tmp_path):
        np.save(tmp_path / "f.npy", np.random.default_rng(0).random((400, 5), dtype=np.float32))
        save_file({"features": np.eye(400, 4, dtype=np.float32)}, tmp_path / "f.safetensors")
        names = ["rgb", "depth", "height", "label", f"features:{tmp_path}/f.npy", f"features:{tmp_path}/f.safetensors"]
        pictures = [drawn(cloud, tmp_path / f"{i}.png", color=name)[0] for i, name in enumerate(names)]
        for i, picture in enumerate(pictures):
            assert picture.std() > 5
            assert all(np.abs(picture.astype(int) - other).mean() > 0.5 for other in pictures[:i])
        labels = [tuple(color) for color in pictures[3].reshape(-1, 3)]
        ids = view_scene.label_colors(torch.tensor([0, 1]))
        for expected in (255 * ids).round().int().tolist():
            assert any(np.abs(np.subtract(color, expected)).max() <= 2 for color in set(labels))

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_further_properties_of_a_ply_are_arrays(self, tmp_path, order):
        raw = writers.cloud(30)
        more = [("label", np.arange(30, dtype="i4") % 3), ("heat", np.linspace(0, 1, 30, dtype="f4"))]
        table = [*writers.columns(raw), *more, ("depth", np.zeros(30, "f4"))]
        path = tmp_path / "a.ply"
        path.write_bytes(writers.header(order, writers.element("vertex", table)) + writers.rows(table, order))
        shown = load_shown(str(path), "", "z", {})
        assert shown.arrays["label"].tolist() == [0, 1, 2] * 10
        assert {"label", "heat"} < set(shown.choices) and shown.choices.count("depth") == 1
        view = choose_view(shown, (40, 30), None)
        assert len(shown.colors("label", view).unique(dim=0)) == 3
        assert len(shown.colors("heat", view).unique(dim=0)) > 20

    def test_a_scan_is_seen_from_outside_and_not_from_its_vehicle(self):
        shown = load_shown("streets.tiny", "", "z", {})
        view = choose_view(shown, (64, 48), None)
        assert shown.is_rig and (view.centers[0] - shown.middle).norm() > shown.radius
        assert view.centers[0, 2] > shown.bounds[1][2]

    def test_depth_is_that_of_the_renderer(self, splat):
        shown = load_shown(str(splat), "", "z", {})
        view = choose_view(shown, (64, 48), None)
        picture = draw(shown, view, "depth")
        assert torch.isfinite(picture).all() and (picture[:, 0, 0] == 0.85).all()

    def test_overlay_draws_axes_and_the_other_cameras(self, tmp_path):
        plain, _ = drawn("patches", tmp_path / "a.png", data_options={"film": True})
        overlay, told = drawn("patches", tmp_path / "b.png", data_options={"film": True}, overlay=True)
        assert (plain != overlay).any() and told.cameras == 3
        assert "3 of 3 frames" in str(told)

    def test_frames_that_cannot_be_read_are_left_out(self, tmp_path, monkeypatch, capsys):
        broken, read = {0}, worlds.FilmScene.frames

        def frames(scene, views, size):
            if broken & set(views):
                raise Rejected("a file cannot be decoded", "film: 0.png: truncated")
            return read(scene, views, size)

        monkeypatch.setattr(worlds.FilmScene, "frames", frames)
        _, told = drawn("patches", tmp_path / "a.png", data_options={"film": True})
        assert "2 of 3 frames are shown; 1 that cannot be read are left out: a file cannot be decoded" in str(told)
        broken |= {1, 2}
        assert "no frame can be read" in error(
            capsys, "patches", "--data.film", "true", "--picture", tmp_path / "b.png"
        )

    def test_a_camera_of_the_scene(self, tmp_path):
        picture, _ = drawn("patches", tmp_path / "a.png", data_options={"film": True}, camera=1)
        assert (np.abs(picture[20:50, 30:60].astype(int) - 128) < 3).all(), "the grey wall fills the middle"

    def test_the_first_colour_is_height_where_there_are_none(self, tmp_path):
        _, told = drawn("patches", tmp_path / "a.png", data_options={"channels": ("normal",)})
        assert told.color == "height" and "rgb" not in told.choices and "normal" in told.choices

    def test_the_real_splat(self, shared_data, tmp_path):
        options = {"up": "-y", "size": (200, 150)}
        plain, _ = drawn(shared_data / "splats" / "biker.ply", tmp_path / "a.png", **options)
        packed, _ = drawn(shared_data / "splats" / "biker.compressed.ply", tmp_path / "b.png", **options)
        assert 0.03 < (plain < 128).all(-1).mean() < 0.4
        assert np.abs(plain.astype(int) - packed).mean() < 0.5


class TestRefusals:
    def test_files_scenes_arrays_cameras(self, splat, cloud, tmp_path, capsys):
        out = ["--picture", tmp_path / "out.png"]
        assert "no such file" in error(capsys, tmp_path / "none.ply", *out)
        assert "no such file or folder" in error(capsys, tmp_path / "none", *out)
        text = error(capsys, cloud, "--scene", "hal", *out)
        assert "did you mean 'hall'" in text and "attic, hall" in text
        text = error(capsys, cloud, "--color", "lable", *out)
        assert "did you mean 'label'" in text and "rgb, depth, height, label, features:FILE" in text
        assert "no such camera" in error(capsys, splat, "--camera", 0, *out)
        assert "one scene" in error(capsys, splat, "--scene", "a", *out)
        assert "--port" in error(capsys, splat, "--port", 0)
        assert "--size" in error(capsys, splat, "--size", "0,3", *out)
        assert not (tmp_path / "out.png").exists()

    def test_an_existing_picture_stays(self, splat, tmp_path, capsys):
        (tmp_path / "out.png").write_text("mine")
        assert "already there" in error(capsys, splat, "--picture", tmp_path / "out.png")
        assert (tmp_path / "out.png").read_text() == "mine"
        assert ".png" in error(capsys, splat, "--picture", tmp_path / "out.jpg")

    def test_features(self, cloud, tmp_path, capsys):
        np.save(tmp_path / "few.npy", np.zeros((399, 4), np.float32))
        np.save(tmp_path / "flat.npy", np.zeros(400, np.float32))
        np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
        np.savez(tmp_path / "other.npz", xyz=np.zeros((400, 3)))
        (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
        (tmp_path / "text.csv").write_text("1,2")
        cases = {
            "few.npy": "399 rows, but attic has 400",
            "flat.npy": "(N, C) numbers expected, got float32 of shape (400,)",
            "objects.npy": "no readable array",
            "other.npz": "no array `features` (it holds: xyz)",
            "broken.safetensors": "no readable array",
            "text.csv": ".npy, .npz, .safetensors expected",
            "absent.npy": "no such file",
        }
        for name, expected in cases.items():
            text = error(capsys, cloud, "--color", f"features:{tmp_path / name}", "--picture", tmp_path / "o.png")
            assert expected in text and name in text

    def test_without_viser(self, splat, monkeypatch, capsys):
        monkeypatch.setitem(__import__("sys").modules, "viser", None)
        text = error(capsys, splat)
        assert "pip install 'splatlearn[view]'" in text and "--picture" in text


class TestGeometry:
    def test_look_at(self):
        eye, target = torch.tensor([3.0, 1, 2]), torch.tensor([0.0, 0, 1])
        pose = look_at(eye, target, torch.tensor([0.0, 0, 1]))
        torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3), atol=1e-6, rtol=0)
        assert torch.linalg.det(pose[:3, :3]) > 0
        x, y, z = (pose[:3, :3] @ target + pose[:3, 3]).tolist()
        assert abs(x) + abs(y) < 1e-5 and z == pytest.approx(float((eye - target).norm()))
        above = pose[:3, :3] @ (target + torch.tensor([0, 0, 0.1])) + pose[:3, 3]
        assert above[1] < 0, "up is up in the picture"
        down = look_at(torch.tensor([0.0, 0, 5]), torch.zeros(3), torch.tensor([0.0, 0, 1]))
        assert torch.isfinite(down).all() and torch.linalg.det(down[:3, :3]) > 0.99

    @pytest.mark.parametrize("up", ["x", "-y", "z"])
    def test_all_is_seen_from_the_corner(self, splat, up):
        shown = load_shown(str(splat), "", up, {})
        view = choose_view(shown, (80, 60), None)
        pixels, z = view.project(shown.gaussians.means, torch.zeros(100, dtype=torch.int64))
        assert (z > 0).all() and (pixels > 0).all() and (pixels < torch.tensor([80, 60])).all()

    def test_spacing(self):
        grid = torch.cartesian_prod(torch.arange(30.0), torch.arange(30.0), torch.zeros(1)) * 0.05
        assert spacing(grid) == pytest.approx(0.05, rel=1e-4)
        assert spacing(torch.rand(3000, 2).mul(torch.tensor([1.0, 1])) @ torch.eye(2, 3)) == pytest.approx(
            3000**-0.5, rel=0.3
        )
        assert spacing(torch.zeros(9, 3)) == 1e-3 and spacing(torch.zeros(1, 3)) == 1e-3

    def test_numbers_that_are_not_finite_are_grey(self):
        colors = view_scene.scalar_colors(torch.tensor([0.0, 1, torch.nan, torch.inf]))
        assert (colors[2:] == 0.75).all() and torch.isfinite(colors).all() and (colors[0] != colors[1]).any()

    def test_covariances_and_quaternions(self):
        scales, wxyz = torch.tensor([[1.0, 2, 3]]), torch.tensor([[2**0.5, 0, 0, 2**0.5]])
        expected = np.diag([4.0, 1, 9])
        np.testing.assert_allclose(view_page.covariances(scales, wxyz)[0], expected, atol=1e-5)
        turned = view_page.quaternion(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
        np.testing.assert_allclose(turned * np.sign(turned[0]), [0.5**0.5, 0, 0, 0.5**0.5], atol=1e-6)


class Control:
    """A control of viser's panel, or a thing in its scene, that remembers what it was given."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def on_update(self, callback):
        self.callback = callback

    def set(self, value):
        self.value = value
        self.callback(None)


class Server:
    """Stands for viser.ViserServer: names and arguments are those of viser 1."""

    def __init__(self, host, port, label, verbose):
        self.host, self.port, self.things, self.controls, self.stopped = host, port, {}, {}, False
        self.scene = SimpleNamespace(
            set_up_direction=lambda direction: setattr(self, "up", direction),
            **{f"add_{kind}": self._adder(kind) for kind in ("frame", "camera_frustum", "point_cloud")},
            add_gaussian_splats=self._adder("gaussian_splats"),
        )
        self.gui = SimpleNamespace(
            configure_theme=lambda **theme: setattr(self, "theme", theme),
            **{f"add_{kind}": self._control for kind in ("dropdown", "checkbox", "slider")},
        )

    def _adder(self, kind):
        def add(name, **values):
            self.things[name] = Control(**{"kind": kind, "visible": True, **values})
            return self.things[name]

        return add

    def _control(self, label, *, initial_value, **values):
        self.controls[label] = Control(value=initial_value, **values)
        return self.controls[label]

    def get_port(self):
        return self.port

    def on_client_connect(self, callback):
        self.connect = callback

    def stop(self):
        self.stopped = True


@pytest.fixture
def fake_viser(monkeypatch):
    monkeypatch.setattr(view_page, "import_viser", lambda: SimpleNamespace(ViserServer=Server))


def page_of(data, color="rgb", **options):
    shown = load_shown(str(data), "", "z", options)
    return view_page.Page(shown, choose_view(shown, (80, 60), None), color, "127.0.0.1", 8099)


class TestControls:
    """The page without a browser, against a stand-in of viser."""

    def test_a_cloud(self, fake_viser, cloud):
        page = page_of(cloud)
        server = page.server
        thing = server.things["/scene"]
        assert thing.kind == "point_cloud" and thing.points.shape == (400, 3) and thing.colors.dtype == np.uint8
        assert page.url == "http://127.0.0.1:8099" and server.theme["show_share_button"] is False
        assert server.request_share_url() is None
        before = thing.colors
        server.controls["Color"].set("label")
        assert (server.things["/scene"].colors != before).any()
        server.controls["Size"].set(2.0)
        assert server.things["/scene"].point_size == pytest.approx(2 * thing.point_size)
        server.controls["Axes"].set(False)
        server.controls["Scene"].set(False)
        assert not server.things["/axes"].visible and not server.things["/scene"].visible
        server.controls["Color"].set("height")
        assert not server.things["/scene"].visible, "a hidden scene stays hidden"
        page.stop()
        assert server.stopped

    def test_gaussians(self, fake_viser, splat):
        page = page_of(splat)
        server, thing = page.server, page.server.things["/scene"]
        assert thing.kind == "gaussian_splats" and thing.opacities.shape == (100, 1)
        assert thing.covariances.shape == (100, 3, 3)
        np.testing.assert_allclose(page.unit**2 * thing.covariances[0], 0.01 * np.eye(3), atol=1e-6)
        np.testing.assert_allclose(page.unit * thing.centers, page.shown.gaussians.means, atol=1e-6)
        assert page.unit == pytest.approx(page.shown.radius / 10)
        assert set(server.controls["Color"].options) == {"rgb", "depth", "height", "opacity", "size"}
        assert "Cameras" not in server.controls

    def test_cameras_are_frusta_and_the_visitor_starts_at_the_first(self, fake_viser):
        page = page_of("patches", film=True)
        frusta = [thing for name, thing in page.server.things.items() if name.startswith("/cameras/")]
        assert len(frusta) == 3 and frusta[0].aspect == pytest.approx(8 / 6)
        assert frusta[0].fov == pytest.approx(2 * np.arctan(3 / 8))
        assert not frusta[0].visible, "nobody starts inside a frustum"
        page.server.controls["Axes"].set(False)
        assert not frusta[0].visible, "another control leaves it alone"
        page.server.controls["Cameras"].set(True)
        assert all(frustum.visible for frustum in frusta)
        page.server.controls["Cameras"].set(False)
        assert not any(frustum.visible for frustum in frusta)
        client = SimpleNamespace(camera=SimpleNamespace())
        page.server.connect(client)
        assert np.allclose(client.camera.position, 0)
        assert page.unit * client.camera.look_at[2] == pytest.approx(2)
        assert client.camera.fov == pytest.approx(np.radians(60))

    def test_the_visitor_looks_along_the_camera_that_was_asked_for(self, fake_viser):
        shown = load_shown("patches", "", "z", {"film": True})
        view = choose_view(shown, (80, 60), 1)
        page = view_page.Page(shown, view, "rgb", "127.0.0.1", 8099)
        camera = SimpleNamespace()
        page.server.connect(SimpleNamespace(camera=camera))
        ahead = np.subtract(camera.look_at, camera.position)
        np.testing.assert_allclose(ahead / np.linalg.norm(ahead), view.world_to_camera[0, 2, :3], atol=1e-5)
        np.testing.assert_allclose(page.unit * np.array(camera.position), view.centers[0], atol=1e-5)
        assert camera.fov == pytest.approx(2 * np.arctan(30 / float(view.intrinsics[0, 1, 1])))

    def test_covariances_stay_finite_in_half_precision(self, fake_viser, tmp_path):
        means = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]).repeat(60, 1)
        gaussians = view_scene.round_gaussians(means, torch.rand(180, 3), 0.1)
        gaussians.scales[0] = 1e4  # a sky
        write_gaussians(gaussians, tmp_path / "sky.ply")
        thing = page_of(tmp_path / "sky.ply").server.things["/scene"]
        assert np.isfinite(thing.covariances.astype(np.float16)).all()

    def test_the_verb_serves_until_it_is_stopped(self, fake_viser, splat, monkeypatch, capsys):
        monkeypatch.setattr(view_page.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["view", str(splat)]) == 0
        streams = capsys.readouterr()
        assert "http://127.0.0.1:8080 (Ctrl-C" in streams.out and not streams.err
        assert main(["view", str(splat), "--host", "0.0.0.0"]) == 0
        assert "other machines can open this page" in capsys.readouterr().err

    def test_an_address_that_cannot_be_listened_on(self, splat, monkeypatch):
        def refuse(**options):
            raise OSError("cannot assign requested address")

        monkeypatch.setattr(view_page, "import_viser", lambda: SimpleNamespace(ViserServer=refuse))
        with pytest.raises(UserError, match=r"--host 127\.0\.0\.1 --port 8099: cannot listen there"):
            page_of(splat)


def test_sets_without_cameras_have_none():
    shown = view_scene.Shown(
        name="one",
        gaussians=view_scene.points_as_gaussians(Points(xyz=torch.zeros(1, 3))),
        arrays={},
        cameras=Cameras(world_to_camera=torch.zeros(0, 4, 4), intrinsics=torch.zeros(0, 3, 3), width=1, height=1),
        colored=False,
        is_cloud=True,
        up=torch.tensor([0.0, 0, 1]),
    )
    picture = draw(shown, choose_view(shown, (40, 30), None), "height", overlay=True)
    assert torch.isfinite(picture).all() and picture.std() > 0, "a single point is something to see"
