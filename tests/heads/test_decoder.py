"""The throw-away decoder, and the way to the pixel grid and back."""

import pytest
import torch

from heads.views import cameras_around, masked_points
from splatlearn.errors import UserError
from splatlearn.heads.decoder import FeatureDecoder, gather_pixels
from splatlearn.structures import Packed


@pytest.fixture
def decoder() -> FeatureDecoder:
    torch.manual_seed(0)
    return FeatureDecoder(10, 6)


class TestDecoder:
    def test_one_row_a_point(self, decoder: FeatureDecoder) -> None:
        assert decoder(torch.randn(7, 10)).shape == (7, 6)

    def test_scale_of_the_encoder_does_not_matter(self, decoder: FeatureDecoder) -> None:
        features = torch.randn(7, 10)
        torch.nn.init.zeros_(decoder.layers[0].bias)
        assert torch.allclose(decoder(features), decoder(100 * features), atol=1e-3)


class TestGrid:
    def test_round_trip_and_mask_token(self, decoder: FeatureDecoder) -> None:
        frames, points = masked_points(cameras_around((2,), dtype=torch.float32))
        features = torch.randn(len(points), 6)
        grid = decoder.to_grid(features, points, 32, 24)
        assert grid.shape == (2, 6, 24, 32)
        assert torch.equal(gather_pixels(grid, points), features)
        absent = ~frames["visible"]
        assert torch.equal(grid.permute(0, 2, 3, 1)[absent], decoder.mask_token.expand(int(absent.sum()), 6))

    def test_pixels_are_row_major(self, decoder: FeatureDecoder) -> None:
        rows = Packed(counts=(1, 1), attributes={"pixel": torch.tensor([2, 5])})
        grid = decoder.to_grid(torch.tensor([[1.0] * 6, [2.0] * 6]), rows, 4, 2)
        assert grid[0, 0, 0, 2] == 1 and grid[1, 0, 1, 1] == 2

    def test_gradients(self, decoder: FeatureDecoder) -> None:
        rows = Packed(counts=(2,), attributes={"pixel": torch.tensor([0, 3])})
        features = torch.randn(2, 6, requires_grad=True)
        decoder.to_grid(features, rows, 2, 2).sum().backward()
        assert features.grad is not None and bool((features.grad == 1).all())
        assert decoder.mask_token.grad is not None and bool((decoder.mask_token.grad == 2).all())

    def test_no_points_at_all(self, decoder: FeatureDecoder) -> None:
        rows = Packed(counts=(0, 0), attributes={"pixel": torch.zeros(0, dtype=torch.long)})
        assert decoder.to_grid(torch.zeros(0, 6), rows, 4, 2).shape == (2, 6, 2, 4)

    def test_errors(self, decoder: FeatureDecoder) -> None:
        rows = Packed(counts=(1,), attributes={"pixel": torch.tensor([8])})
        with pytest.raises(UserError, match="pixels 8 to 8 do not fit into 4x2"):
            decoder.to_grid(torch.zeros(1, 6), rows, 4, 2)
        with pytest.raises(UserError, match="2 feature rows, but 1 pixels"):
            decoder.to_grid(torch.zeros(2, 6), rows, 4, 2)
        with pytest.raises(UserError, match="the grid has 2 views, the pixels 1 items"):
            gather_pixels(torch.zeros(2, 6, 2, 4), rows)
