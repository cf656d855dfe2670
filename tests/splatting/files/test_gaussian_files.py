"""Every variant that is read, round trips through what is written, and the real scene in both of its forms."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from splatlearn.errors import UserError
from splatlearn.splatting.files import RawGaussians, read_gaussians, read_raw, write_gaussians, write_raw
from splatlearn.structures import Gaussians
from splatting.files.writers import (
    FIELDS,
    angles,
    cloud,
    columns,
    compressed_ply,
    element,
    folder,
    header,
    make,
    rows,
    spz,
)


def same(a: RawGaussians, b: RawGaussians) -> None:
    """Equal bit for bit, types included."""
    for name in FIELDS:
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == other.dtype, name
        assert one.shape == other.shape, name
        assert one.tobytes() == other.tobytes(), name


def gaussians(count: int = 6, degree: int = 1, seed: int = 0) -> Gaussians:
    return cloud(count, degree, seed).to_gaussians()


class TestPly:
    @pytest.mark.parametrize("order", ["<", ">", ""])
    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    @pytest.mark.parametrize("degree", range(5))
    def test_degrees_types_and_orders(self, tmp_path, order, dtype, degree):
        raw = cloud(7, degree, dtype=dtype)
        table = columns(raw, normals=degree % 2 == 0)
        path = tmp_path / "a.ply"
        path.write_bytes(header(order, element("vertex", table)) + rows(table, order))
        found = read_raw(path)
        same(found, raw)
        assert found.degree == degree

    def test_any_order_and_further_properties(self, tmp_path):
        raw = cloud(9, 2)
        table = columns(raw, normals=False)
        table += [("label", np.arange(9, dtype="i4")), ("red", np.arange(9, dtype="u1")), ("weight", np.ones(9))]
        table = [table[i] for i in np.random.default_rng(0).permutation(len(table))]
        path = tmp_path / "a.ply"
        path.write_bytes(header("<", element("vertex", table)) + rows(table, "<"))
        found = read_raw(path)
        same(found, raw)
        assert set(found.properties) == {"label", "red", "weight"}
        assert write_raw(found, tmp_path / "b.ply") == ()
        again = read_raw(tmp_path / "b.ply")
        same(again, raw)
        for name, values in found.properties.items():
            assert again.properties[name].dtype == values.dtype
            np.testing.assert_array_equal(again.properties[name], values)

    @pytest.mark.parametrize(("coding", "name"), [("utf-8", "größe"), ("utf-8", "温度"), ("latin-1", "größe")])
    def test_names_that_are_not_ascii(self, tmp_path, coding, name):
        """UTF-8 is kept; of another coding only what is ASCII."""
        table = [*columns(cloud(4, 0)), ("NAME", np.arange(4, dtype="f4"))]
        start = header("<", element("vertex", table)).replace(b"NAME", name.encode(coding))
        (tmp_path / "a.ply").write_bytes(start + rows(table, "<"))
        write_raw(read_raw(tmp_path / "a.ply"), tmp_path / "b.ply")
        expected = name.encode(coding).decode("utf-8", "replace")
        assert list(read_raw(tmp_path / "b.ply").properties)[-1] == expected
        assert f"property float {expected}\n".encode() in (tmp_path / "b.ply").read_bytes()

    @pytest.mark.parametrize("order", ["<", ""])
    def test_other_elements_and_windows_lines(self, tmp_path, order):
        raw = cloud(5, 0)
        table = columns(raw)
        camera = [("fx", np.float32([1, 2])), ("fy", np.float32([3, 4]))]
        face = ["element face 1", "property list uchar int vertex_indices"]
        start = header(
            order, element("camera", camera), element("vertex", table), face, newline="\r\n", comment="element x"
        )
        end = b"\x03" + struct.pack("<3i", 0, 1, 2) if order else b"3 0 1 2\n"
        (tmp_path / "a.ply").write_bytes(start + rows(camera, order) + rows(table, order) + end)
        found = read_raw(tmp_path / "a.ply")
        same(found, raw)
        assert found.left_out == ("element camera", "element face")

    def test_what_is_written_is_the_usual_form(self, tmp_path):
        raw = cloud(4, 3)
        path = make("plain", raw, tmp_path)
        write_raw(read_raw(path), tmp_path / "b.ply")
        assert (tmp_path / "b.ply").read_bytes() == path.read_bytes().replace(b"comment made by a test\n", b"")

    def test_no_gaussians(self, tmp_path):
        for degree in (0, 2):
            for order in "<", "":
                table = columns(cloud(0, degree))
                (tmp_path / "a.ply").write_bytes(header(order, element("vertex", table)))
                found = read_raw(tmp_path / "a.ply")
                assert (len(found), found.degree) == (0, degree)
                write_raw(found, tmp_path / "b.ply", overwrite=True)
                same(read_raw(tmp_path / "b.ply"), found)

    def test_normals_become_an_attribute_unless_zero(self, tmp_path):
        g = gaussians().with_attributes(normal=torch.nn.functional.normalize(torch.randn(6, 3), dim=1))
        write_gaussians(g, tmp_path / "a.ply")
        found = read_gaussians(tmp_path / "a.ply")
        assert torch.equal(found["normal"], g["normal"])
        assert "normal" not in read_gaussians(make("plain", cloud(), tmp_path))


class TestCompressed:
    @pytest.mark.parametrize("colored", [True, False])
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("degree", range(4))
    def test_within_the_step(self, tmp_path, colored, order, degree):
        raw = cloud(600, degree)
        path = tmp_path / "a.ply"
        path.write_bytes(compressed_ply(raw, colored=colored, order=order))
        found = read_raw(path)
        assert np.abs(found.means - raw.means).max() <= 8 / 1023 / 2 + 1e-6
        assert np.abs(found.log_scales - raw.log_scales).max() <= 8 / 1023 / 2 + 1e-6
        assert angles(found.quaternions, raw.quaternions).max() <= 4 * np.sqrt(2) / 1023
        close_colors(found, raw, 1 / 255)
        assert np.abs(found.sh[:, 1:] - raw.sh[:, 1:]).max(initial=0) <= 1 / 64 + 1e-6

    def test_the_outer_buckets_of_harmonics(self, tmp_path):
        raw = cloud(3, 1)
        raw.sh[0, 1:], raw.sh[1, 1:] = -5, 5
        (tmp_path / "a.ply").write_bytes(compressed_ply(raw))
        found = read_raw(tmp_path / "a.ply").sh
        assert (found[0, 1:] == -4).all()
        assert (found[1, 1:] == 4).all()


class TestQuantised:
    def test_splat(self, tmp_path):
        raw = cloud(50, 2)
        found = read_raw(make("splat", raw, tmp_path))
        np.testing.assert_array_equal(found.means, raw.means)
        np.testing.assert_allclose(found.log_scales, raw.log_scales, atol=2e-6)
        assert angles(found.quaternions, raw.quaternions).max() <= 4 / 128
        close_colors(found, raw, 1 / 255)
        assert found.degree == 0

    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize("degree", range(5))
    def test_spz(self, tmp_path, version, degree):
        raw = cloud(50, degree)
        (tmp_path / "a.spz").write_bytes(spz(raw, version))
        found = read_raw(tmp_path / "a.spz")
        assert np.abs(found.means - raw.means).max() <= (2**-9 if version == 1 else 2**-13) + 1e-6
        assert np.abs(found.log_scales - raw.log_scales).max() <= 1 / 32 + 1e-6
        expected = np.abs(raw.quaternions[:, 0]) / np.linalg.norm(raw.quaternions, axis=1) > 0.3
        rows = expected if version < 3 else slice(None)  # w from x, y, z is vague where it is small
        assert angles(found.quaternions, raw.quaternions)[rows].max() <= (0.04 if version < 3 else 0.006)
        inside = np.abs(raw.sh[:, 0]) < 0.5 / 0.15
        assert np.abs(found.sh[:, 0] - raw.sh[:, 0])[inside].max() <= 0.5 / 255 / 0.15 + 1e-6
        close_opacities(found, raw, 1 / 255)
        assert np.abs(found.sh[:, 1:] - raw.sh[:, 1:]).max(initial=0) <= 1 / 256 + 1e-6

    def test_spz_fraction_bits_and_signs(self, tmp_path):
        raw = cloud(4, 0)
        raw.means[:] = [[-1000.5, 0, 1000.5], [-0.25, 0.25, -0.5], [0, 0, 0], [1, -1, 1]]
        (tmp_path / "a.spz").write_bytes(spz(raw, 3, fraction=8))
        np.testing.assert_array_equal(read_raw(tmp_path / "a.spz").means, raw.means)

    def test_spz_extensions_are_skipped_and_told(self, tmp_path):
        record = struct.pack("<II", 0xADBE0002, 12) + bytes(12)
        (tmp_path / "a.spz").write_bytes(spz(cloud(5, 1), flags=2, extra=record))
        assert read_raw(tmp_path / "a.spz").left_out == ("extension 0xadbe0002",)

    def test_scenesplat_folder(self, tmp_path):
        raw = cloud(30, 0)
        path = folder(raw, tmp_path / "scene", normals=True)
        np.save(path / "segment.npy", np.zeros(30, int))
        found = read_raw(path)
        np.testing.assert_array_equal(found.means, raw.means)
        np.testing.assert_allclose(found.log_scales, raw.log_scales, atol=2e-6)
        assert angles(found.quaternions, raw.quaternions).max() <= 1e-6
        close_colors(found, raw, 1 / 255, opacity=1e-6)
        assert found.left_out == ("segment.npy",)
        assert read_gaussians(path)["normal"][0].tolist() == pytest.approx([0, 0.6, 0.8])

    def test_scenesplat_columns_and_fractions(self, tmp_path):
        path = folder(cloud(30, 0), tmp_path / "scene")
        expected = read_gaussians(path)
        np.save(path / "opacity.npy", np.load(path / "opacity.npy")[:, None])
        np.save(path / "color.npy", np.asfortranarray(np.load(path / "color.npy") / 255))
        found = read_gaussians(path)
        assert torch.equal(found.opacities, expected.opacities)
        assert torch.equal(found.sh, expected.sh)


def close_opacities(found: RawGaussians, raw: RawGaussians, step: float) -> None:
    """Within half a step."""
    ours, theirs = (1 / (1 + np.exp(-r.logits.astype(float))) for r in (found, raw))
    assert np.abs(ours - theirs).max() <= step / 2 + 1e-6
    assert np.isfinite(found.logits).all()


def close_colors(found: RawGaussians, raw: RawGaussians, step: float, opacity: float | None = None) -> None:
    """Colours and opacities within half a step; colours outside [0, 1] are clipped by some formats."""
    ours, theirs = ((0.5 + 0.28209479177387814 * r.sh[:, 0].astype(float)).clip(0, 1) for r in (found, raw))
    assert np.abs(ours - theirs).max() <= step / 2 + 1e-6
    close_opacities(found, raw, step if opacity is None else opacity)


CLOUDS = st.builds(
    lambda count, degree, seed: gaussians(count, degree, seed),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(0, 10**6),
)
ONCE = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class TestRoundTrips:
    @given(arrays("<f4", (4, 14 + 9), elements=st.floats(-80, 80, width=32)))
    @ONCE
    def test_ply_to_ply_is_bit_identical(self, tmp_path, numbers):
        raw = RawGaussians(
            means=numbers[:, :3].copy(),
            logits=numbers[:, 3].copy(),
            log_scales=numbers[:, 4:7].copy(),
            quaternions=numbers[:, 7:11].copy(),
            sh=numbers[:, 11:].reshape(4, 4, 3).copy(),
        )
        for name in ("a.ply", "b.ply"):
            write_raw(raw, tmp_path / name, overwrite=True)
            found = read_raw(tmp_path / name)
            same(found, raw)
            raw = found

    @given(CLOUDS, st.floats(1e-7, 1e3), st.sampled_from([0.0, 1.0, 0.5, 1e-6, 1 - 1e-6]))
    @ONCE
    def test_gaussians_through_ply(self, tmp_path, scene, scale, opacity):
        scene.scales[0] = scale
        scene.opacities[0] = opacity
        write_gaussians(scene, tmp_path / "a.ply", overwrite=True)
        assert np.isfinite(read_raw(tmp_path / "a.ply").logits).all()
        found = read_gaussians(tmp_path / "a.ply")
        assert torch.equal(found.means, scene.means)
        assert torch.equal(found.sh, scene.sh)
        assert (found.opacities - scene.opacities).abs().max() <= 1e-6
        assert (found.scales / scene.scales - 1).abs().max() <= 1.1e-6
        assert angles(found.quaternions.numpy(), scene.quaternions.numpy()).max() <= 1e-6

    @given(CLOUDS)
    @ONCE
    def test_gaussians_through_quantised_formats(self, tmp_path, scene):
        raw = RawGaussians.from_gaussians(scene)
        for name, angle in (("a.splat", 4 / 128), ("a", 1e-6)):
            write_gaussians(scene, tmp_path / name, overwrite=True)
            found = read_gaussians(tmp_path / name)
            assert torch.equal(found.means, scene.means)
            assert (found.scales / scene.scales - 1).abs().max() <= 2e-6
            assert angles(found.quaternions.numpy(), scene.quaternions.numpy()).max() <= angle
            close_colors(read_raw(tmp_path / name), raw, 1 / 255)

    def test_degenerate_values_stay_finite(self, tmp_path):
        scene = gaussians(3)
        scene.scales[0], scene.quaternions[1] = 0, 0
        scene.opacities[:] = torch.tensor([0.0, 1.0, 0.5])
        for name in ("a.ply", "a.splat", "a.spz", "folder"):
            write_gaussians(scene, tmp_path / name)
            found = read_gaussians(tmp_path / name)
            for field in ("means", "scales", "quaternions", "opacities", "sh"):
                assert torch.isfinite(getattr(found, field)).all()
            assert (found.opacities[:2] - scene.opacities[:2]).abs().max() <= 1e-6

    def test_what_is_lost_is_told(self, tmp_path):
        scene = gaussians(3, 2).with_attributes(normal=torch.ones(3, 3), label=torch.zeros(3))
        scene.sh[0, 0] = 4
        assert write_gaussians(scene, tmp_path / "a.ply") == ("attribute label",)
        told = " ".join(write_gaussians(scene, tmp_path / "a.splat"))
        for expected in ("degree 1 to 2", "nx, ny, nz", "clipped in 1", "1/255", "1/128"):
            assert expected in told
        assert "nx" not in " ".join(write_gaussians(scene, tmp_path / "a"))


class TestWriting:
    def test_refusals(self, tmp_path):
        scene = gaussians()
        (tmp_path / "there.ply").write_text("mine")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "notes.txt").write_text("mine")
        (tmp_path / "file").write_text("mine")
        for name, overwrite, message in (
            ("there.ply", False, "already there"),
            ("full", True, r"also holds notes\.txt"),
            ("file", True, "this is a file"),
            ("a.compressed.ply", False, "not written"),
            ("a.plly", False, r"did you mean '\.ply'"),
        ):
            with pytest.raises(UserError, match=message):
                write_gaussians(scene, tmp_path / name, overwrite=overwrite)
        assert (tmp_path / "there.ply").read_text() == "mine"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "there.ply"]

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("opacities", 1.5, "no logits"),
            ("scales", -1.0, "no logarithms"),
            ("means", torch.nan, "Gaussians to write: x of Gaussian 0 is nan"),
            ("sh", torch.inf, r"spherical harmonics 0 \(red\) of Gaussian 0 is inf"),
            ("normal", torch.nan, "nx of Gaussian 0 is nan"),
        ],
    )
    def test_wrong_gaussians(self, tmp_path, field, value, message):
        scene = gaussians().with_attributes(normal=torch.ones(6, 3))
        (scene[field] if field == "normal" else getattr(scene, field))[0] = value
        with pytest.raises(UserError, match=message):
            write_gaussians(scene, tmp_path / "a.ply")
        assert not list(tmp_path.iterdir())

    def test_doubles_beyond_float32(self, tmp_path):
        scene = gaussians()
        with pytest.raises(UserError, match="x of Gaussian 0 is inf"):
            write_gaussians(replace(scene, means=1e300 * torch.ones(6, 3).double()), tmp_path / "a.ply")
        raw = cloud(6, 0, dtype="f8")
        raw.quaternions[0] = 1e-200, 0, 0, 0
        for name in ("a.splat", "a.spz", "a"):
            write_raw(raw, tmp_path / name)
            np.testing.assert_allclose(read_raw(tmp_path / name).quaternions[0], [1, 0, 0, 0], atol=0.01)

    def test_a_batch_and_an_empty_splat(self, tmp_path):
        with pytest.raises(UserError, match="batch of 2"):
            write_gaussians(Gaussians.pack([gaussians(), gaussians()]), tmp_path / "a.ply")
        with pytest.raises(UserError, match="without Gaussians"):
            write_raw(cloud(0), tmp_path / "a.splat")
        assert not list(tmp_path.iterdir())

    def test_a_file_onto_itself_and_parents(self, tmp_path):
        write_gaussians(gaussians(), tmp_path / "new" / "a.ply")
        raw = read_raw(tmp_path / "new" / "a.ply")
        write_raw(raw, tmp_path / "new" / "a.ply", overwrite=True)
        same(read_raw(tmp_path / "new" / "a.ply"), raw)
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.ply"]

    def test_a_folder_is_replaced_whole(self, tmp_path, monkeypatch):
        """Also where the one before cannot be removed."""
        write_raw(cloud(5, 0), tmp_path / "a")
        monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors=False: None)
        write_raw(cloud(7, 0), tmp_path / "a", overwrite=True)
        assert len(read_raw(tmp_path / "a")) == 7
        monkeypatch.undo()
        write_raw(cloud(9, 0), tmp_path / "b")
        write_raw(cloud(9, 0), tmp_path / "b", overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir())[1:] == ["a", "b"]


class TestRealScene:
    def test_both_forms_are_the_same(self, shared_data):
        """The usual form was made of the compressed one with opacities kept 1e-4 from 1."""
        plain, packed = (read_gaussians(shared_data / "splats" / f"biker{s}.ply") for s in ("", ".compressed"))
        assert len(plain) == len(packed) == 152_746
        assert torch.equal(plain.means, packed.means)
        assert (plain.scales / packed.scales - 1).abs().max() <= 1e-6
        assert angles(plain.quaternions.numpy(), packed.quaternions.numpy()).max() <= 1e-6
        assert (plain.sh - packed.sh).abs().max() <= 1e-6
        below = packed.opacities < 0.9999
        assert (plain.opacities - packed.opacities)[below].abs().max() <= 1e-6
        assert (plain.opacities - packed.opacities).abs().max() <= 1.01e-4

    def test_survives_every_conversion(self, shared_data, tmp_path):
        raw = read_raw(shared_data / "splats" / "biker.ply")
        for name in ("a.ply", "a.splat", "folder"):
            write_raw(raw, tmp_path / name)
            found = read_raw(tmp_path / name)
            np.testing.assert_array_equal(found.means, raw.means)
            np.testing.assert_allclose(found.log_scales, raw.log_scales, atol=2e-6)
            assert angles(found.quaternions, raw.quaternions).max() <= (4 / 128 if name == "a.splat" else 1e-6)
            close_colors(found, raw, 1 / 255)
        assert (tmp_path / "a.ply").read_bytes() == (shared_data / "splats" / "biker.ply").read_bytes()
