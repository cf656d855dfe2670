"""Convolutional teachers: where their tokens stand, their files, and the real ones where they are there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from splatlearn.errors import BadData, ConfigError, UserError
from splatlearn.structures import Images
from splatlearn.teachers.base import Teacher, create_teacher
from splatlearn.teachers.convolutional import ConvolutionalTeacher
from splatlearn.teachers.networks import PreActivationStage, SqueezeNet

FILES = {
    "resnet50v2": "resnet50_v2_stages1to3_fp16.npz",
    "mobilenetv2": "mobilenet_v2_bnfolded_features.npz",
    "squeezenet": "squeezenet1_1.npz",
}
PICTURES = (
    "rgbd_7scenes_redkitchen/*.color.jpg",
    "instant_ngp_fox/images/*.jpg",
    "mmdetection3d/**/nuscenes/*CAM*.jpg",
)


def average(
    x: Tensor, size: int, stride: int, padding: int = 0, *_: int, ceil_mode: bool = False, **__: bool
) -> Tensor:
    return functional.avg_pool2d(x, size, stride, padding, ceil_mode)


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("family", FILES)
def test_a_token_stands_for_the_middle_of_its_patch(family, layer, monkeypatch):
    """With weights that are all alike, what a token looks at is centred on where it stands."""
    monkeypatch.setattr(functional, "max_pool2d", average)  # the maximum would look at one pixel, anywhere
    teacher = create_teacher(f"{family}.tiny", {"layers": (layer,)})
    for parameter in teacher.network.parameters():
        parameter.fill_(0.02)
    patch = teacher.info.patch
    pixels = torch.ones(1, 3, 15 * patch, 17 * patch, requires_grad=True)
    assert isinstance(teacher, ConvolutionalTeacher)
    level = teacher.look(pixels).levels[0]
    assert level.shape[2:] == (15, 17)
    level[0, :, 7, 8].sum().backward()
    seen = (pixels.grad[0].sum(0) != 0).double()
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in seen.shape)
    center = torch.stack([(seen.sum(0) * columns).sum(), (seen.sum(1) * rows).sum()]) / seen.sum()
    expected = torch.tensor([8.5 * patch, 7.5 * patch], dtype=torch.float64)
    assert float((center - expected).abs().max()) <= max(1.0, 0.1 * patch)


def test_bottleneck_order():
    """The first block written out: norms and ReLU before convolutions, shortcut from the first ReLU."""
    torch.manual_seed(0)
    stage = PreActivationStage(8, 4, 2, 2).requires_grad_(False)
    for norm in stage.norms:
        norm.running_mean.normal_()
        norm.weight.normal_()
    x = torch.randn(1, 8, 6, 6)
    first = stage.norms[0](x).relu()
    y = stage.convs[1](stage.norms[1](stage.convs[0](first)).relu())
    block = stage.convs[2](stage.norms[2](y).relu()) + stage.convs[3](first)
    y = stage.convs[4](stage.norms[3](block).relu())
    y = stage.convs[6](stage.norms[5](stage.convs[5](stage.norms[4](y).relu())).relu())
    assert torch.allclose(stage(x), y + block, atol=1e-6)
    assert stage.convs[1].stride == (2, 2) and stage.convs[5].stride == (1, 1)


def published(family: str, teacher: Teacher) -> dict[str, np.ndarray]:
    """The tiny teacher's weights under the publisher's names."""
    state = {name: value.numpy() for name, value in teacher.network.state_dict().items()}
    if family != "resnet50v2":
        return state
    kinds = {"weight": "gamma", "bias": "beta"}
    named = {"stem.weight": "conv0_weight"}
    for name in state:
        part, _, kind = name.rpartition(".")
        kind = kinds.get(kind, kind)
        if name.startswith("stages."):
            _, stage, what, number = part.split(".")
            whole = "conv{}_weight" if what == "convs" else "batchnorm{}_" + kind
            named[name] = f"stage{int(stage) + 1}_" + whole.format(number)
        elif name != "stem.weight":
            named[name] = {"input": "batchnorm0", "stem": "batchnorm1", "final": "stage4_batchnorm0"}[
                part.removesuffix("_norm")
            ] + f"_{kind}"
    return {named[name]: value for name, value in state.items()}


@pytest.mark.parametrize("family", FILES)
class TestFiles:
    def test_loaded_by_the_publishers_names(self, family, tmp_path):
        other = create_teacher(f"{family}.tiny", {"seed": 3})
        np.savez(tmp_path / "weights.npz", **published(family, other))
        teacher = create_teacher(family, {"weights": str(tmp_path / "weights.npz"), "width": 0.125})
        images = Images(images=torch.rand(1, 3, 64, 96))
        assert torch.equal(teacher(images).levels[0], other(images).levels[0])
        assert teacher.info.source == str(tmp_path / "weights.npz") and teacher.info.licence == "unknown"

    def test_every_key_that_does_not_fit_is_named(self, family, tmp_path):
        state = published(family, create_teacher(f"{family}.tiny"))
        first, second, *_ = sorted(state)
        state[first], state["surplus"] = np.zeros(5, np.float32), state.pop(second)
        np.savez(tmp_path / "weights.npz", **state)
        with pytest.raises(UserError, match=r"1 missing: .*; 1 unexpected: surplus; 1 mismatched: .*\(5,\) found"):
            create_teacher(family, {"weights": str(tmp_path / "weights.npz"), "width": 0.125})

    def test_missing(self, family, tmp_path):
        with pytest.raises(BadData, match=r"nope\.npz: no such file of weights\. teacher"):
            create_teacher(family, {"weights": str(tmp_path / "nope.npz")})
        with pytest.raises(BadData, match="no file of them was named, and they are on no hub"):
            create_teacher(family)

    def test_no_arrays(self, family, tmp_path):
        (tmp_path / "bad.npz").write_bytes(b"PK no zip")
        with pytest.raises(BadData, match=r"bad\.npz: not a readable npz file of arrays"):
            create_teacher(family, {"weights": str(tmp_path / "bad.npz")})

    @pytest.mark.parametrize(
        ("options", "message"), [({"width": 0}, "width: more than 0"), ({"layers": (9,)}, "9 is none of the")]
    )
    def test_options(self, family, options, message):
        with pytest.raises(ConfigError, match=message):
            create_teacher(f"{family}.tiny", options)

    def test_real_pictures_of_one_place_are_alike(self, family, shared_data):
        """Kitchen, fox and street: without what all have in common, alike inside and opposed across."""
        images = pictures(shared_data)
        teacher = create_teacher(family, {"weights": str(real(shared_data, family))})
        summary = teacher(Images(images=images)).summary
        summary = functional.normalize(summary - summary.mean(0), dim=1)
        cosine, place = summary @ summary.t(), torch.arange(9) // 3
        inside = place[:, None] == place
        assert float(cosine[inside].min()) > float(cosine[~inside].max())
        assert float(cosine[inside].mean()) > 0.5 and float(cosine[~inside].mean()) < -0.2


def real(shared: Path, family: str) -> Path:
    return shared / "weights" / "imagenet_onnxzoo" / FILES[family]


def pictures(shared: Path, side: int = 128) -> Tensor:
    """(9 3 side side) three of each place."""
    files = [path for pattern in PICTURES for path in _three(sorted(shared.glob(pattern)))]
    read = [np.array(Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for path in files]
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2) / 255


def _three(files: list[Path]) -> list[Path]:
    return files[:: max(1, len(files) // 3)][:3]


def test_logits_of_squeezenet(shared_data):
    """Against the network written out from the file, and by what they say of a dog-like fox."""
    weights = {key: torch.from_numpy(value) for key, value in np.load(real(shared_data, "squeezenet")).items()}
    teacher = create_teacher("squeezenet", {"weights": str(real(shared_data, "squeezenet"))})
    mean, std = (torch.tensor(values)[:, None, None] for values in (teacher.mean, teacher.std))
    x = (pictures(shared_data, 224)[3:5] - mean) / std

    def conv(x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding).relu()

    y = conv(x, "features.0", 2)
    for number in range(3, 13):
        if f"features.{number - 1}.squeeze.weight" not in weights:
            y = functional.max_pool2d(y, 3, 2, ceil_mode=True)
        if f"features.{number}.squeeze.weight" in weights:
            y = conv(y, f"features.{number}.squeeze")
            wide = conv(y, f"features.{number}.expand3x3", padding=1)
            y = torch.cat([conv(y, f"features.{number}.expand1x1"), wide], 1)
    expected = conv(y, "classifier.1").mean((2, 3))
    network: SqueezeNet = teacher.network
    with torch.no_grad():
        logits = network.logits(x)
    assert torch.allclose(logits, expected, atol=1e-4)
    dogs_and_foxes = range(151, 281)
    assert all(int(best) in dogs_and_foxes for best in logits.argmax(1))
