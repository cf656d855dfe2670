"""LPIPS on made VGG16 weights: against a plain module twin, and its messages."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from splatlearn.errors import BadData, UserError
from splatlearn.losses import vgg
from splatlearn.losses.photometric import LPIPS

PLAN = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


def twin_features() -> nn.Sequential:
    """VGG16's feature layers, numbered as torchvision numbers them."""
    layers: list[nn.Module] = []
    before = 3
    for entry in PLAN:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(before, entry, 3, padding=1), nn.ReLU()]
            before = entry
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def twin() -> nn.Sequential:
    torch.manual_seed(0)
    return twin_features().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(twin: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file({f"features.{name}": value for name, value in twin.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def loss(weights: Path) -> LPIPS:
    return LPIPS(weights)


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 32, 32, generator=generator), torch.rand(2, 3, 32, 32, generator=generator)


def twin_distance(twin: nn.Sequential, first: Tensor, second: Tensor) -> Tensor:
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, y = ((2 * image - 1 - shift) / scale for image in (first, second))
    total = torch.zeros(len(first))
    ends = [i for i, layer in enumerate(twin) if isinstance(layer, nn.MaxPool2d)] + [len(twin)]
    start = 0
    for level, end in enumerate(ends):
        x, y = twin[start:end](x), twin[start:end](y)
        start = end
        linear = vgg.resolve_linear()[f"linear.{level}"].flatten()
        difference = nn.functional.normalize(x, dim=1) - nn.functional.normalize(y, dim=1)
        total += torch.einsum("vchw,c->vhw", difference.square(), linear).mean((1, 2))
    return total


class TestDistance:
    def test_agrees_with_twin(self, loss: LPIPS, twin: nn.Sequential, pictures) -> None:
        first, second = pictures
        assert torch.allclose(loss.distances(first, second), twin_distance(twin, first, second), rtol=1e-4)
        assert torch.allclose(loss(first, second), twin_distance(twin, first, second).mean(), rtol=1e-4)

    def test_agrees_with_torchmetrics(self, loss: LPIPS, twin: nn.Sequential, pictures) -> None:
        pytest.importorskip("torchvision", reason="torchvision is absent: its VGG16 is the oracle")
        from torchmetrics.functional.image.lpips import _LPIPS

        official = _LPIPS(net="vgg", pnet_rand=True)
        for part in (getattr(official.net, f"slice{number}") for number in range(1, 6)):
            for name, layer in part.named_children():
                layer.load_state_dict(twin[int(name)].state_dict())
        first, second = pictures
        expected = official(first, second, normalize=True).flatten()
        assert torch.allclose(loss.distances(first, second), expected, rtol=1e-4)

    def test_equal_pictures(self, loss: LPIPS, pictures) -> None:
        assert loss(pictures[0], pictures[0]).item() == 0.0

    def test_only_the_prediction_gets_a_gradient(self, loss: LPIPS, pictures) -> None:
        first, second = (picture.clone().requires_grad_() for picture in pictures)
        loss(first, second).backward()
        assert first.grad is not None and bool(first.grad.abs().sum() > 0)
        assert second.grad is None


class TestWeights:
    def test_nothing_of_it_is_trained_or_saved(self, loss: LPIPS) -> None:
        assert not list(loss.parameters())
        assert not loss.state_dict()

    def test_it_moves_with_the_module_but_is_no_buffer(self, weights: Path, pictures) -> None:
        loss = nn.Sequential(LPIPS(weights)).double()[0]
        assert not list(loss.buffers())
        assert all(value.dtype == torch.float64 for value in loss.frozen.values())
        assert loss(*(picture.double() for picture in pictures)).dtype == torch.float64

    def test_origin(self, loss: LPIPS, weights: Path) -> None:
        assert loss.origin == {
            "source": str(weights),
            "digest": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "licence": "unknown",
        }

    def test_pth_gives_the_same(self, loss: LPIPS, twin: nn.Sequential, tmp_path: Path) -> None:
        path = tmp_path / "vgg16.pth"
        torch.save({f"features.{name}": value for name, value in twin.state_dict().items()}, path)
        assert torch.equal(vgg.resolve_vgg16(path).tensors["features.0.weight"], loss.frozen["features.0.weight"])

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(BadData, match=r"nowhere\.pth: no such file of weights"):
            LPIPS(tmp_path / "nowhere.pth")

    def test_wrong_network(self, tmp_path: Path) -> None:
        save_file({"features.0.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "other.safetensors")
        with pytest.raises(BadData, match=r"not VGG16 .*26 of 26 tensors do not fit; first: features.0.weight"):
            LPIPS(tmp_path / "other.safetensors")

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ([torch.zeros(2)], "got list"),
            (torch.zeros(2), "got Tensor"),
            ({"features.0.weight": 3}, "'features.0.weight' is of type int"),
        ],
    )
    def test_other_contents(self, content: object, found: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(BadData, match=rf"other\.pth: named tensors expected,.* {found}"):
            LPIPS(tmp_path / "other.pth")

    def test_pickled_code_is_refused(self, tmp_path: Path) -> None:
        torch.save({"features.0.weight": Path("x")}, tmp_path / "code.pth")
        with pytest.raises(BadData, match="not a file of tensors"):
            LPIPS(tmp_path / "code.pth")

    def test_nothing_cached_and_no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        def absent(*_: object, **__: object) -> str:
            raise LocalEntryNotFoundError("no")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
        with pytest.raises(UserError, match=r"needs VGG16 weights.*leave LPIPS out with weight 0"):
            LPIPS()
