"""Images on disk: what is decoded and resized lies where it lay."""

import numpy as np
import pytest
from PIL import Image

from splatlearn.data.imagery import read_color


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
