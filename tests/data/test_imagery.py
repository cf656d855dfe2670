"""Images on disk: what is decoded and resized lies where it lay, and every kind of file is converted or refused."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splatlearn.data.imagery import UnreadableImage, probe, read_color, read_upright
from splatlearn.data.photo_augment import PhotoAugmentation, augment_photo, centre_photo

COLOR = (200, 100, 40)
GREY_16, RGB_16, GREY_ALPHA_16, RGBA_16 = 0, 2, 4, 6


@pytest.mark.parametrize("size", [(16, 12), (17, 13), (18, 14), (32, 24), (137, 105), (200, 150)])
def test_a_jpeg_reads_as_the_png_of_the_same_picture(tmp_path, size):
    """Its sides are no multiples of 8, to which a reduced JPEG is rounded up."""
    across, down = np.meshgrid(np.linspace(0, 240, 137), np.linspace(0, 240, 105))
    picture = Image.fromarray(np.stack([across, down, 240 - across], -1).astype(np.uint8))
    picture.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    picture.save(tmp_path / "a.png")
    jpeg, png = (read_color(tmp_path / f"a.{suffix}", size).astype(float) for suffix in ("jpg", "png"))
    assert jpeg.shape == (size[1], size[0], 3)
    shift_right = (jpeg - png)[:, -3:, 0].mean() / 240 * size[0]
    shift_down = (jpeg - png)[-3:, :, 1].mean() / 240 * size[1]
    assert max(abs(shift_right), abs(shift_down)) < 0.25, "pixels, at the edges that are far from the origin"


def png_16(kind: int, pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write but for grey; `pixels` (H W C)."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    image.save(buffer := BytesIO(), kind, **options)
    return buffer.getvalue()


def middle(data: bytes) -> list[int]:
    """The pixel in the middle of 8x8, read from bytes."""
    pixels = read_upright(BytesIO(data))
    assert pixels.dtype == np.uint8 and pixels.shape == (8, 8, 3)
    return pixels[4, 4].tolist()


def without_adobe(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


class TestKinds:
    def test_cmyk_as_adobe_writes_it(self):
        data = saved(Image.new("CMYK", (8, 8), (55, 155, 215, 0)), "JPEG", quality=100)
        assert b"Adobe" in data and middle(data) == pytest.approx(COLOR, abs=3)

    def test_cmyk_without_the_mark_is_ink(self, tmp_path):
        """Pillow writes values turned round; so these are turned beforehand, and the mark is cut out."""
        turned = Image.new("CMYK", (8, 8), (200, 100, 40, 255))
        data = without_adobe(saved(turned, "JPEG", quality=100))
        assert middle(data) == pytest.approx(COLOR, abs=3)
        (tmp_path / "a.jpg").write_bytes(data)
        assert read_color(tmp_path / "a.jpg")[4, 4].tolist() == pytest.approx(COLOR, abs=3)

    @pytest.mark.parametrize(
        ("kind", "values", "wanted"),
        [
            (GREY_16, [0x8080], [128] * 3),
            (GREY_16, [0x0101], [1] * 3),
            (GREY_16, [0xFFFF], [255] * 3),
            (RGB_16, [0xC8C8, 0x6464, 0x2828], COLOR),
            (RGB_16, [0xFFFF, 0x8000, 0], [255, 128, 0]),
            (GREY_ALPHA_16, [0x4040, 0xFFFF], [64] * 3),
            (RGBA_16, [0xC8C8, 0x6464, 0x2828, 0], [255] * 3),
        ],
    )
    def test_16_bits_are_scaled(self, kind, values, wanted):
        assert middle(png_16(kind, np.full((8, 8, len(values)), values))) == list(wanted)

    def test_palette(self):
        assert middle(saved(Image.new("RGB", (8, 8), COLOR).quantize(4), "PNG")) == list(COLOR)

    def test_palette_with_a_transparent_colour(self):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([*COLOR, 10, 20, 30])
        assert middle(saved(image, "PNG", transparency=0)) == [255] * 3
        assert middle(saved(image, "PNG", transparency=1)) == list(COLOR)

    @pytest.mark.parametrize(("alpha", "wanted"), [(0, (255,) * 3), (51, (244, 224, 212)), (255, COLOR)])
    def test_alpha_is_laid_on_white(self, alpha, wanted):
        image = Image.new("RGBA", (8, 8), (*COLOR, alpha))
        assert middle(saved(image, "PNG")) == pytest.approx(wanted, abs=1)
        assert middle(saved(image, "WEBP", lossless=True, exact=True)) == pytest.approx(wanted, abs=1)

    def test_grey_with_alpha(self):
        assert middle(saved(Image.new("LA", (8, 8), (60, 0)), "PNG")) == [255] * 3
        assert middle(saved(Image.new("LA", (8, 8), (60, 255)), "PNG")) == [60] * 3

    @pytest.mark.parametrize("bit", [0, 1])
    def test_one_bit(self, bit):
        assert middle(saved(Image.new("1", (8, 8), bit), "PNG")) == [255 * bit] * 3

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation(self, orientation):
        """A white quarter ends where the camera says, in all eight cases."""
        pixels = np.zeros((16, 24), np.uint8)
        pixels[:8, :12] = 255
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = read_upright(BytesIO(saved(Image.fromarray(pixels), "JPEG", exif=exif, quality=100)))[:, :, 0] > 127
        turned = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]  # quarter turns to the left
        mirrored = pixels[:, ::-1] if orientation in (2, 4, 5, 7) else pixels
        assert np.array_equal(found, np.rot90(mirrored, turned) > 127)

    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (5, 3)])
    def test_narrow_and_small_ones_are_enlarged(self, size):
        pixels = read_upright(BytesIO(saved(Image.new("RGB", size, COLOR), "PNG")))
        image = torch.tensor(pixels).permute(2, 0, 1) / 255
        for seed in range(5):
            sample = augment_photo(image, (16, 12), PhotoAugmentation(), np.random.default_rng(seed))
            assert sample.shape == (3, 12, 16) and bool(sample.isfinite().all())
        centre = centre_photo(image, (16, 12))
        assert (centre.amax((1, 2)) * 255).tolist() == pytest.approx(COLOR, abs=1)


class TestDamage:
    def refused(self, path: Path, data: bytes, why: str) -> None:
        path.write_bytes(data)
        for read in (read_upright, lambda p: read_upright(BytesIO(p.read_bytes()))):
            with pytest.raises(UnreadableImage, match=why):
                read(path)

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
    def test_cut_jpeg(self, tmp_path, share):
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        data = saved(Image.fromarray(noise), "JPEG")
        self.refused(tmp_path / "a.jpg", data[: int(share * len(data))], "cannot be decoded")
        with pytest.raises(UnreadableImage, match="ends early"):
            probe(tmp_path / "a.jpg")

    def test_empty(self, tmp_path):
        self.refused(tmp_path / "a.jpg", b"", "of no known format")
        with pytest.raises(UnreadableImage, match="the file is empty"):
            probe(tmp_path / "a.jpg")

    def test_text(self, tmp_path):
        self.refused(tmp_path / "a.jpg", b"<html>404 Not Found</html>", "of no known format")

    def test_absurd_size(self, tmp_path):
        """A header of 3.6 thousand million pixels, of which nothing is decoded."""
        data = bytearray(png_16(RGB_16, np.zeros((1, 1, 3))))
        data[16:24] = struct.pack(">II", 60000, 60000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        self.refused(tmp_path / "a.png", bytes(data), r"exceeds limit of \d+ pixels")
        with pytest.raises(UnreadableImage, match="exceeds limit"):
            probe(tmp_path / "a.png")
