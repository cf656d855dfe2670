"""Damaged and malformed Gaussian scene files: one error that names the file and what is wrong."""

import gzip
import struct
import tracemalloc
import warnings

import numpy as np
import pytest

from splatlearn.errors import BadData
from splatlearn.splatting.files import read_gaussians, read_raw
from splatting.files.writers import (
    FILES,
    cloud,
    folder,
    make,
    spz,
    spz_payload,
)


class TestBadFiles:
    @pytest.mark.parametrize("kind", FILES)
    @pytest.mark.parametrize("what", ["empty", "cut", "text", "longer"])
    def test_damaged(self, tmp_path, kind, what):
        path = make(kind, cloud(300), tmp_path)
        data = path.read_bytes()
        bad = {
            "empty": b"",
            "cut": data[:-50],
            "text": b"hello, this is no splat\n" * 99,
            "longer": data + b"1 2 3 4 5",
        }
        path.write_bytes(bad[what])
        with pytest.raises(BadData, match=str(path)) as caught:
            read_raw(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("order", ["<", ""])
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("element vertex 20", "element vertex 1000000000000", "1000000000000 vertex"),
            ("element vertex 20", "element vertex -3", "header line 4"),
            ("element vertex 20", "element vertex 1e3", "header line 4"),
            ("element vertex 20", "element point 20", "no element 'vertex'"),
            ("property float opacity", "property uint opacity", r"wrong type: opacity \(u4\)"),
            ("property float opacity", "property float alpha", "lacks opacity"),
            ("property float opacity", "property flot opacity", "not understood.*flot"),
            ("property float opacity", "property float x", "not understood or repeats"),
            ("f_rest_8", "f_rest_9", "9 properties f_rest"),
            ("property float f_rest_8\n", "property float extra\n", "8 properties f_rest"),
            ("property float rot_3", "property list uchar float rot_3", "rot_3 .list"),
            ("ply\n", "plyy\n", "first line"),
            (" 1.0\n", " 2.0\n", "header line 2"),
            ("end_header", "end_of_header", "header line|no line 'end_header'"),
        ],
    )
    def test_headers(self, tmp_path, order, old, new, message):
        path = make("plain" if order else "ascii", cloud(), tmp_path)
        path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
        with pytest.raises(BadData, match=message):
            read_raw(path)

    @pytest.mark.parametrize("kind", ["plain", "big_endian", "ascii"])
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("means", np.nan, r"x of Gaussian 2 is nan"),
            ("logits", np.inf, r"opacity of Gaussian 2 is inf"),
            ("log_scales", 89, r"scale_0 of Gaussian 2 is 89"),
            ("quaternions", -np.inf, r"rot_0 of Gaussian 2"),
            ("sh", np.nan, r"spherical harmonics 0 \(red\) of Gaussian 2"),
        ],
    )
    def test_numbers_that_are_not_finite(self, tmp_path, kind, field, value, message):
        raw = cloud()
        getattr(raw, field)[2] = value
        with pytest.raises(BadData, match=message):
            read_raw(make(kind, raw, tmp_path))

    def test_a_double_beyond_float32(self, tmp_path):
        raw = cloud(dtype="f8")
        raw.means[0, 1] = 1e300
        with pytest.raises(BadData, match=r"y of Gaussian 0 is 1e\+300"):
            read_raw(make("plain", raw, tmp_path))

    def test_text_where_binary_is_said(self, tmp_path):
        path = make("ascii", cloud(), tmp_path)
        path.write_bytes(path.read_bytes().replace(b"format ascii", b"format binary_little_endian"))
        with pytest.raises(BadData, match="the data are text"):
            read_raw(path)

    def test_binary_where_text_is_said(self, tmp_path):
        path = make("plain", cloud(300), tmp_path)
        path.write_bytes(path.read_bytes().replace(b"format binary_little_endian", b"format ascii"))
        with pytest.raises(BadData, match="vertex"):
            read_raw(path)

    def test_ascii_rows(self, tmp_path):
        path = make("ascii", cloud(), tmp_path)
        good = path.read_bytes()
        for bad, message in (
            (good.replace(b"element vertex 20", b"element vertex 19"), "more than the 19 rows"),
            (good.replace(b"element vertex 20", b"element vertex 21"), "21 vertex|20 rows"),
            (good[:-1] + b" 7\n", "columns"),
            (good.replace(b"\n0.0", b"\nzero", 1) if b"\n0.0" in good else good[:-3] + b"x1\n", "convert"),
        ):
            path.write_bytes(bad)
            with pytest.raises(BadData, match=message):
                read_raw(path)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (b"element chunk 2", b"element chunk 3", "chunk"),
            (b"property uint packed_scale", b"property float packed_scale", "packed_scale"),
            (b"property float max_x", b"property float most_x", "lacks max_x"),
            (b"property uchar f_rest_3", b"property uchar g_rest_3", "lacks f_rest_3"),
        ],
    )
    def test_compressed_headers(self, tmp_path, old, new, message):
        path = make("compressed", cloud(300), tmp_path)
        path.write_bytes(path.read_bytes().replace(old, new, 1))
        with pytest.raises(BadData, match=message):
            read_raw(path)

    def test_bounds_of_a_chunk(self, tmp_path):
        path = make("compressed", cloud(300), tmp_path)
        data = path.read_bytes()
        start = data.index(b"end_header\n") + 11
        path.write_bytes(data[:start] + struct.pack("<f", np.nan) + data[start + 4 :])
        with pytest.raises(BadData, match="min_x of chunk 0 is nan"):
            read_raw(path)

    @pytest.mark.parametrize(("offset", "value"), [(4, np.nan), (12, -1.0), (16, np.inf)])
    def test_splat_numbers(self, tmp_path, offset, value):
        path = make("splat", cloud(3), tmp_path)
        data = bytearray(path.read_bytes())
        data[32 + offset : 36 + offset] = struct.pack("<f", value)
        path.write_bytes(data)
        with pytest.raises(BadData, match="of Gaussian 1"):
            read_raw(path)

    @pytest.mark.parametrize(
        ("offset", "new", "message"),
        [
            (0, b"XXXX", "field magic"),
            (4, b"\x04", "version is 4"),
            (8, b"\xff\xff\xff\xff", "numPoints is 4294967295"),
            (8, b"\x15", "numPoints"),
            (8, b"\x13", "more data"),
            (12, b"\x05", "shDegree is 5"),
            (13, b"\x63", "fractionalBits is 99"),
        ],
    )
    def test_spz_headers(self, tmp_path, offset, new, message):
        data = bytearray(spz_payload(cloud()))
        data[offset : offset + len(new)] = new
        (tmp_path / "a.spz").write_bytes(gzip.compress(data))
        with pytest.raises(BadData, match=message):
            read_raw(tmp_path / "a.spz")

    def test_spz_later_versions_and_changed_harmonics(self, tmp_path):
        path = tmp_path / "a.spz"
        path.write_bytes(b"NGSP\x04\0\0\0" + bytes(99))
        with pytest.raises(BadData, match="version 4"):
            read_raw(path)
        path.write_bytes(spz(cloud(), flags=2, extra=struct.pack("<II", 0xADBE0001, 8) + bytes(8)))
        with pytest.raises(BadData, match="sh_quantization"):
            read_raw(path)
        path.write_bytes(spz(cloud(), flags=2, extra=struct.pack("<II", 0xADBE0002, 99) + bytes(8)))
        with pytest.raises(BadData, match="extensions"):
            read_raw(path)

    def test_a_stream_that_inflates_too_much(self, tmp_path):
        import zlib

        head = struct.pack("<4sIIBBBB", b"NGSP", 3, 10**7, 0, 12, 0, 0)
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        parts = [packer.compress(head), *(packer.compress(bytes(10**7)) for _ in range(20)), packer.flush()]
        (tmp_path / "a.spz").write_bytes(b"".join(parts))
        with pytest.raises(BadData, match="numPoints is 10000000"):
            read_raw(tmp_path / "a.spz")

    @pytest.mark.parametrize("degree", [0, 4])
    def test_the_most_that_a_small_stream_may_claim(self, tmp_path, degree):
        """What is believed of a file of some kilobytes stays within 4 times the file + 256 MB, activated too."""
        path, width = tmp_path / "a.spz", 20 + 3 * ((degree + 1) ** 2 - 1)
        count = ((24 << 20) - 16) // width
        path.write_bytes(
            gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 3, count, degree, 12, 0, 0) + bytes(count * width))
        )
        tracemalloc.start()
        try:
            assert len(read_gaussians(path)) == count
            assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size + (256 << 20)
        finally:
            tracemalloc.stop()
        path.write_bytes(gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 3, 2 * count, degree, 12, 0, 0)))
        with pytest.raises(BadData, match="numPoints"):
            read_raw(path)

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("coord", lambda a: a[:-1], "different lengths"),
            ("coord", lambda a: a.astype(object), "no readable array"),
            ("coord", lambda a: np.where(a > 9, 0, np.nan), "row 0 has nan"),
            ("opacity", lambda a: a + 1, r"opacity\.npy: row 0"),
            ("scale", lambda a: -a, r"scale\.npy: row 0"),
            ("quat", lambda a: a[:, :3], r"\(N, 4\) numbers expected"),
            ("color", lambda a: a.astype(str), "numbers expected"),
            ("color", lambda a: a.astype(int) * 9 + 300, r"color\.npy: row"),
        ],
    )
    def test_folders(self, tmp_path, name, change, message):
        path = folder(cloud(), tmp_path / "scene")
        np.save(path / f"{name}.npy", change(np.load(path / f"{name}.npy")), allow_pickle=True)
        with pytest.raises(BadData, match=message):
            read_raw(path)

    @pytest.mark.parametrize(
        "bad", [lambda d: b"", lambda d: d[:-1], lambda d: d + b"0", lambda d: d.replace(b"(20, 3)", b"(10**12, 3)")]
    )
    def test_arrays(self, tmp_path, bad):
        path = folder(cloud(), tmp_path / "scene") / "coord.npy"
        path.write_bytes(bad(path.read_bytes()))
        with pytest.raises(BadData, match=r"coord\.npy"):
            read_raw(path.parent)

    def test_a_header_of_an_absurd_length(self, tmp_path):
        path = folder(cloud(), tmp_path / "scene") / "coord.npy"
        data = path.read_bytes()
        path.write_bytes(data[:6] + b"\x03\0" + struct.pack("<I", 2**32 - 1) + data[10:])
        with pytest.raises(BadData, match="length at offset 8 is 4294967295"):
            read_raw(path.parent)

    def test_a_signalling_nan_in_a_normal(self, tmp_path):
        path = make("plain", cloud(), tmp_path)
        data = path.read_bytes()
        start = data.index(b"end_header\n") + 11 + 12
        path.write_bytes(data[:start] + b"\1\0\x80\x7f" + data[start + 4 :])
        with warnings.catch_warnings(), pytest.raises(BadData, match="nx of Gaussian 0 is nan"):
            warnings.simplefilter("error")
            read_raw(path)

    def test_an_array_of_an_absurd_length(self, tmp_path):
        path = folder(cloud(), tmp_path / "scene") / "coord.npy"
        data = path.read_bytes()
        path.write_bytes(data.replace(b"(20, 3), }             ", b"(1000000000000, 3), }  "))
        assert path.read_bytes() != data
        with pytest.raises(BadData, match=r"coord\.npy"):
            read_raw(path.parent)

    def test_no_such_thing(self, tmp_path):
        (tmp_path / "a.obj").write_text("")
        for path, message in (
            (tmp_path / "a.obj", "no format has the suffix"),
            (tmp_path / "absent.ply", "no such file"),
            (tmp_path, r"coord\.npy.* missing"),
        ):
            with pytest.raises(BadData, match=message):
                read_gaussians(path)
