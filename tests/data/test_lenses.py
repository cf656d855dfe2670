"""Lenses: COLMAP's formulas, the ideal pinhole, resampling of pictures whose undistorted form is known."""

from math import atan, hypot

import numpy as np
import pytest
import torch

from data.photo_maker import FOCAL, OPENCV, SIZE, lens
from splatlearn.data.lenses import MODELS, WIDEST, Lens, reading_size, undistort, undistort_depth

VALUES = {
    "f": FOCAL,
    "fx": FOCAL,
    "fy": 84.0,
    "cx": 50.0,
    "cy": 34.0,
    "k1": -0.12,
    "k2": 0.03,
    "p1": 0.004,
    "p2": -0.006,
    "k3": 0.01,
    "k4": -0.02,
    "k5": 0.015,
    "k6": 0.004,
    "sx1": 0.005,
    "sy1": -0.003,
}
SUPPORTED = [name for name, model in MODELS.items() if model.fisheye is not None]
BENT = [name for name in SUPPORTED if "PINHOLE" not in name]
POINTS = [(0.0, 0.0), (0.3, -0.2), (-0.45, 0.1), (0.2, 0.4)]


def made(name: str, **changes: float) -> Lens:
    values = {key: VALUES[key] for key in MODELS[name].parameters} | changes
    return lens(name, SIZE, **values)


def colmap_pixel(name: str, u: float, v: float) -> tuple[float, float]:
    """COLMAP's formulas written out, one model at a time, with the values above."""
    g = VALUES
    fx, fy = (g["fx"], g["fy"]) if "fx" in MODELS[name].parameters else (g["f"], g["f"])
    if "FISHEYE" in name and (r := hypot(u, v)) > 0:
        u, v = u * atan(r) / r, v * atan(r) / r
    r2 = u * u + v * v
    match name:
        case "SIMPLE_PINHOLE" | "PINHOLE" | "SIMPLE_FISHEYE" | "FISHEYE":
            du, dv = 0.0, 0.0
        case "SIMPLE_RADIAL" | "SIMPLE_RADIAL_FISHEYE":
            du, dv = u * g["k1"] * r2, v * g["k1"] * r2
        case "RADIAL" | "RADIAL_FISHEYE":
            radial = g["k1"] * r2 + g["k2"] * r2**2
            du, dv = u * radial, v * radial
        case "OPENCV":
            radial = g["k1"] * r2 + g["k2"] * r2**2
            du = u * radial + 2 * g["p1"] * u * v + g["p2"] * (r2 + 2 * u * u)
            dv = v * radial + 2 * g["p2"] * u * v + g["p1"] * (r2 + 2 * v * v)
        case "FULL_OPENCV":
            radial = (1 + g["k1"] * r2 + g["k2"] * r2**2 + g["k3"] * r2**3) / (
                1 + g["k4"] * r2 + g["k5"] * r2**2 + g["k6"] * r2**3
            )
            du = u * radial + 2 * g["p1"] * u * v + g["p2"] * (r2 + 2 * u * u) - u
            dv = v * radial + 2 * g["p2"] * u * v + g["p1"] * (r2 + 2 * v * v) - v
        case "OPENCV_FISHEYE" | "THIN_PRISM_FISHEYE":
            radial = g["k1"] * r2 + g["k2"] * r2**2 + g["k3"] * r2**3 + g["k4"] * r2**4
            du, dv = u * radial, v * radial
            if name == "THIN_PRISM_FISHEYE":
                du += 2 * g["p1"] * u * v + g["p2"] * (r2 + 2 * u * u) + g["sx1"] * r2
                dv += 2 * g["p2"] * u * v + g["p1"] * (r2 + 2 * v * v) + g["sy1"] * r2
        case _:
            raise AssertionError(name)
    return fx * (u + du) + g["cx"], fy * (v + dv) + g["cy"]


class TestFormulas:
    @pytest.mark.parametrize("name", SUPPORTED)
    def test_are_those_of_colmap(self, name):
        found = made(name).project(np.array(POINTS))
        expected = np.array([colmap_pixel(name, u, v) for u, v in POINTS])
        assert np.abs(found - expected).max() < 1e-9

    def test_a_published_number(self):
        """(0.5, 0) through k1 = 0.1 is 0.5 (1 + 0.1 * 0.25) = 0.5125."""
        camera = lens("SIMPLE_RADIAL", SIZE, f=100, cx=48, cy=36, k1=0.1)
        assert camera.project(np.array([0.5, 0.0])).tolist() == pytest.approx([99.25, 36])

    def test_numbers_and_parameters_are_those_of_the_format(self):
        numbers = dict(enumerate(["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE"]))
        assert all(MODELS[model].number == number for number, model in numbers.items())
        assert len({model.number for model in MODELS.values()}) == len(MODELS)
        counts = {"SIMPLE_PINHOLE": 3, "OPENCV": 8, "FULL_OPENCV": 12, "THIN_PRISM_FISHEYE": 12, "RADIAL_FISHEYE": 5}
        assert all(len(MODELS[model].parameters) == count for model, count in counts.items())

    def test_another_size(self):
        slopes = np.array(POINTS)
        half = made("OPENCV").resize((SIZE[0] // 2, SIZE[1] // 2))
        assert np.allclose(half.project(slopes), made("OPENCV").project(slopes) / 2)


class TestPinhole:
    @pytest.mark.parametrize("name", SUPPORTED)
    def test_covers_every_pixel_and_no_less_than_it_could(self, name):
        camera = made(name)
        matrix = camera.pinhole()
        assert matrix is not None
        if not camera.bends:
            assert np.array_equal(matrix[[0, 1, 0, 1], [0, 1, 2, 2]], [*camera.focal, *camera.centre])
            return
        x, y = np.meshgrid(np.linspace(0, SIZE[0], 97), np.linspace(0, SIZE[1], 73))
        slopes = np.stack([x - matrix[0, 2], y - matrix[1, 2]], -1) / matrix[[0, 1], [0, 1]]
        pixels = camera.project(slopes)
        slack = min(pixels.min(), (np.array(SIZE) - pixels).min())
        assert slack > -0.02, "no pixel outside the photograph"
        widest = np.degrees(np.arctan(np.linalg.norm(slopes, axis=-1).max()))
        assert slack < 0.05 or abs(widest - WIDEST) < 0.1, "as much of the photograph as there can be"

    def test_barrel_and_pincushion(self):
        focal = [made("SIMPLE_RADIAL", k1=k).pinhole()[0, 0] / FOCAL for k in (-0.2, 0.2)]
        assert focal[0] < 1 < focal[1]

    def test_a_wide_fisheye_ends_at_60_degrees(self):
        camera = lens("OPENCV_FISHEYE", (200, 200), fx=60, fy=60, cx=100, cy=100, k1=0, k2=0, k3=0, k4=0)
        matrix = camera.pinhole()
        corner = np.degrees(np.arctan(np.hypot(100, 100) / matrix[0, 0]))
        assert corner == pytest.approx(WIDEST, abs=0.01)

    def test_folding_is_not_seen_twice(self):
        """r (1 - r^2 / 3) turns back at r = 1: the pinhole must end before."""
        camera = lens("SIMPLE_RADIAL", (100, 100), f=20, cx=50, cy=50, k1=-1 / 3)
        matrix = camera.pinhole()
        assert np.hypot(50, 50) / matrix[0, 0] <= 1.1

    @pytest.mark.parametrize("changes", [{"k1": -1e5}, {"k1": 1e300}, {"cx": 300.0}, {"k1": 1e9, "k2": -1e9}], ids=str)
    def test_none(self, changes):
        assert made("RADIAL", **changes).pinhole() is None


class TestBadParameters:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"fx": 0.0}, "camera: focal lengths of 0 and 82 px for 96x72"),
            ({"fy": -5.0}, "camera: focal lengths of 80 and -5 px for 96x72"),
            ({"fx": 1e300}, "camera: focal lengths of 1e+300"),
            ({"k1": float("nan")}, "camera: a parameter is not finite"),
            ({"cx": float("inf")}, "camera: a parameter is not finite"),
            ({"cy": 1e6}, "camera: principal point (49, 1e+06) for 96x72"),
        ],
    )
    def test_told(self, changes, reason):
        assert reason in str(Lens.of("OPENCV", SIZE, OPENCV | changes))

    @pytest.mark.parametrize("size", [(0, 72), (96, -1), (10**12, 72), (96, 10**300)])
    def test_sizes(self, size):
        assert "a size in pixels expected" in str(Lens.of("OPENCV", size, OPENCV))

    def test_models_without_a_formula(self):
        for name, model in MODELS.items():
            if model.fisheye is None:
                assert f"model {name} is not removed" in str(Lens.of(name, SIZE, {}))


def picture(slopes: np.ndarray) -> np.ndarray:
    """(H W 3) smooth colours of a direction."""
    u, v = slopes[..., 0], slopes[..., 1]
    return np.stack([0.5 + 0.4 * np.sin(9 * u + 1), 0.5 + 0.4 * np.cos(8 * v), 0.5 + 0.3 * np.sin(6 * u * v + u)], -1)


def equidistant(size: tuple[int, int], focal: float) -> np.ndarray:
    """(H W 2) slopes of the pixels of a fisheye without coefficients, in closed form: r = f times the angle."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5 - size[0] / 2, np.arange(size[1]) + 0.5 - size[1] / 2)
    angle = np.hypot(x, y) / focal
    return np.stack([x, y], -1) / focal * (np.tan(angle) / angle)[..., None]


def radial(size: tuple[int, int], focal: float, k: float) -> np.ndarray:
    """(H W 2) slopes of the pixels of SIMPLE_RADIAL, in closed form: Cardano's root of k r^3 + r = d."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5 - size[0] / 2, np.arange(size[1]) + 0.5 - size[1] / 2)
    d = np.hypot(x, y) / focal
    p, q = 1 / (3 * k), d / (2 * k)
    root = np.cbrt(q + np.sqrt(q * q + p**3)) + np.cbrt(q - np.sqrt(q * q + p**3))
    return np.stack([x, y], -1) / focal * (root / d)[..., None]


def seen(matrix: np.ndarray, native: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(H W 2) slopes of an ideal pinhole's pixels at another size."""
    x, y = np.meshgrid(
        (np.arange(size[0]) + 0.5) * native[0] / size[0], (np.arange(size[1]) + 0.5) * native[1] / size[1]
    )
    return np.stack([x - matrix[0, 2], y - matrix[1, 2]], -1) / matrix[[0, 1], [0, 1]]


CLOSED = {
    "fisheye": (lens("SIMPLE_FISHEYE", (160, 120), f=100, cx=80, cy=60), equidistant((160, 120), 100)),
    "pincushion": (lens("SIMPLE_RADIAL", (160, 120), f=120, cx=80, cy=60, k1=0.3), radial((160, 120), 120, 0.3)),
}


class TestResampling:
    @pytest.mark.parametrize("name", CLOSED)
    @pytest.mark.parametrize("size", [(160, 120), (80, 60), (53, 91)])
    def test_a_picture_known_in_closed_form(self, name, size):
        camera, slopes = CLOSED[name]
        image = (picture(slopes) * 255).round().astype(np.uint8)
        found = undistort(image, camera, size).numpy().transpose(1, 2, 0)
        expected = picture(seen(camera.pinhole(), camera.size, size))
        wrong = picture(
            seen(np.array([[camera.focal[0], 0, 80], [0, camera.focal[1], 60], [0, 0, 1]]), (160, 120), size)
        )
        assert np.abs(found - expected).mean() < 0.004 and np.abs(found - expected).max() < 0.03
        assert np.abs(wrong - expected).max() > 0.1, "the lens matters in this picture"

    def test_straight_lines_are_straight(self):
        camera, slopes = CLOSED["fisheye"]
        line = (slopes @ np.array([0.6, 0.8]) > 0.11).astype(np.uint8)[..., None].repeat(3, -1) * 255
        found = undistort(line, camera, camera.size)[0].numpy()
        edge = seen(camera.pinhole(), camera.size, camera.size) @ np.array([0.6, 0.8]) - 0.11
        far = np.abs(edge) > 2 / camera.pinhole()[0, 0]
        assert np.array_equal(found[far] > 0.5, edge[far] > 0)

    def test_depth_is_never_invented(self):
        camera, slopes = CLOSED["pincushion"]
        depth = np.where(slopes[..., 0] > 0.1, np.float32(3), np.float32(0)) + np.float32(1)
        found = undistort_depth(depth, camera, (71, 40))
        assert set(np.unique(found)) == {1.0, 4.0}
        expected = seen(camera.pinhole(), camera.size, (71, 40))[..., 0]
        clear = np.abs(expected - 0.1) > 1 / camera.focal[0]
        assert np.array_equal(found[clear] == 4, expected[clear] > 0.1)

    def test_depth_at_another_size_than_the_photograph(self):
        camera, _ = CLOSED["pincushion"]
        depth = np.full((30, 40), 2.0, np.float32)
        assert undistort_depth(depth, camera, (16, 12)).tolist() == [[2.0] * 16] * 12

    def test_photographs_are_decoded_no_larger_than_needed(self):
        camera, _ = CLOSED["pincushion"]
        assert reading_size(camera, (160, 120)) == (160, 120)
        width, height = reading_size(camera, (20, 15))
        assert 40 <= width < 60 and 30 <= height < 45
        small = undistort(np.full((height, width, 3), 128, np.uint8), camera, (20, 15))
        assert small.shape == (3, 15, 20) and torch.allclose(small, torch.tensor(128 / 255))
