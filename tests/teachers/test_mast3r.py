"""MASt3R's encoder and Multi-HMR's backbone: rotations, files in their published layouts, sizes, the resize."""

import json
import math
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file

from splatlearn.encoders.weights import match_keys
from splatlearn.errors import BadData, ConfigError, UserError
from splatlearn.structures import Images
from splatlearn.teachers.base import create_teacher
from splatlearn.teachers.mast3r import MAST3R, Mast3rConfig, MultiHmrConfig, RotaryBlock, RotaryViT, rotate

TINY = {
    "mast3r": {"width": 32, "depth": 2, "heads": 2},
    "multihmr": {"width": 32, "depth": 2, "heads": 2, "size": 56},
}
OURS = {"class_token": "cls_token", "positions": "pos_embed"}


def pictures(patch, wide=3, high=2):
    return Images(images=torch.rand(2, 3, high * patch, wide * patch, generator=torch.Generator().manual_seed(0)))


class TestRotation:
    def test_products_follow_differences_of_places_alone(self):
        query, key = torch.randn(2, 1, 3, 12, 16, dtype=torch.float64).unbind(0)
        places = torch.cartesian_prod(torch.arange(3), torch.arange(4))
        here, there = (rotate(query, p) @ rotate(key, p).transpose(2, 3) for p in (places, places + 7))
        assert torch.allclose(here, there, atol=1e-9)
        assert not torch.allclose(here, query @ key.transpose(2, 3), atol=1e-2)

    def test_pairs_and_angles(self):
        """Of 8 channels, 0 and 2, and 1 and 3, turn with the row, the rest with the column, written out."""
        value = torch.randn(1, 1, 1, 8, dtype=torch.float64)
        turned = rotate(value, torch.tensor([[2, 5]]))[0, 0, 0]
        for half, place in enumerate((2, 5)):
            for c in range(2):
                a, b = value[0, 0, 0, 4 * half + c], value[0, 0, 0, 4 * half + c + 2]
                angle = place * 100.0 ** (-2 * c / 4)
                assert math.isclose(turned[4 * half + c], a * math.cos(angle) - b * math.sin(angle), abs_tol=1e-12)
                assert math.isclose(turned[4 * half + c + 2], b * math.cos(angle) + a * math.sin(angle), abs_tol=1e-12)

    def test_a_block_is_blind_to_where_the_image_starts(self):
        block = RotaryBlock(32, 2).double()
        tokens, places = torch.randn(1, 6, 32).double(), torch.cartesian_prod(torch.arange(2), torch.arange(3))
        assert torch.allclose(block(tokens, places), block(tokens, places + 11), atol=1e-9)
        assert not torch.allclose(block(tokens, places), block(tokens, places.flip(0)), atol=1e-6)


def published(name, teacher):
    """A checkpoint as its publishers leave it, with the rest of their network."""
    rest = {"mask_token": torch.zeros(1, 1, 3)}
    if name == "mast3r":
        rest |= {"decoder_embed.weight": torch.zeros(3), "dec_blocks2.0.norm1.weight": torch.zeros(3)}
        rest |= {"downstream_head1.dpt.act.weight": torch.zeros(3), "dec_norm.bias": torch.zeros(3)}
    else:
        rest = {"backbone.encoder.mask_token": torch.zeros(1, 32), "mlp_classif.0.weight": torch.zeros(3)}
        rest |= {"x_attention_head.init_cam": torch.zeros(3), "smpl_layer.neutral.v": torch.zeros(3)}
    state = {}
    for key, value in teacher.network.state_dict().items():
        key = OURS.get(key, key.replace("patches.", "patch_embed.proj."))
        if name == "mast3r":
            key = key.replace("blocks.", "enc_blocks.").replace(".qkv.", ".attn.qkv.")
            key = key.replace(".proj.", ".attn.proj.") if "enc_blocks" in key else key.replace("norm.", "enc_norm.")
        state[key if name == "mast3r" else f"backbone.encoder.{key}"] = value
    entry = "model" if name == "mast3r" else "model_state_dict"
    return {entry: {**state, **rest}, "args": Namespace(model="AsymmetricMASt3R(pos_embed='RoPE100')")}


@pytest.mark.parametrize("name", TINY)
class TestFiles:
    def test_published_layouts(self, tmp_path, name):
        made = create_teacher(f"{name}.tiny", {"seed": 5})
        torch.save(published(name, made), tmp_path / "teacher.pth")
        teacher = create_teacher(name, {**TINY[name], "weights": str(tmp_path / "teacher.pth")})
        images = pictures(teacher.info.patch)
        assert torch.equal(teacher(images).levels[0], made(images).levels[0])
        assert "non-commercial" in teacher.info.licence and teacher.info.source.endswith("teacher.pth")
        assert teacher.name == f"{name}.default" and len(teacher.info.digest) == 64

    def test_that_do_not_fit(self, tmp_path, name):
        state = published(name, create_teacher(f"{name}.tiny"))
        entry = state["model" if name == "mast3r" else "model_state_dict"]
        entry["odd"] = torch.zeros(1)
        entry.pop(next(key for key in entry if key.endswith("1.norm2.bias")))
        torch.save(state, tmp_path / "teacher.pth")
        with pytest.raises(UserError, match=r"1 missing: blocks\.1\.norm2\.bias; 1 unexpected: odd"):
            create_teacher(name, {**TINY[name], "weights": str(tmp_path / "teacher.pth")})

    def test_none(self, name):
        with pytest.raises(BadData, match=f"teacher {name} needs its weights: no file of them was named"):
            create_teacher(name, TINY[name])


def test_published_sizes():
    """303.10 million parameters of MASt3R's encoder, and DINOv2's of Multi-HMR's backbone."""
    with torch.device("meta"):
        network = RotaryViT(Mast3rConfig())
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 303.10
        assert MultiHmrConfig().network().size == 37 * 14
        keys = {"patch_embed.proj.weight": (1024, 3, 16, 16), "enc_blocks.23.attn.qkv.weight": (3072, 1024)}
        found, _ = match_keys(network, {key: torch.empty(shape) for key, shape in keys.items()}, MAST3R)
    assert set(found) == {"patches.weight", "blocks.23.qkv.weight"}


def test_multihmr_is_dinov2s_network():
    """timm's own ViT-L/14 of DINOv2 in miniature has the same numbers from the same weights, at its own size."""
    import timm

    teacher = create_teacher("multihmr.tiny")
    other = timm.create_model(
        "vit_large_patch14_dinov2", num_classes=0, img_size=56, embed_dim=32, depth=2, num_heads=2
    ).eval()
    named = {
        OURS.get(k, k.replace("patches.", "patch_embed.proj.")): v for k, v in teacher.network.state_dict().items()
    }
    other.load_state_dict(named)
    images = pictures(14, 4, 4)
    mean, std = (torch.tensor(values)[:, None, None] for values in (teacher.mean, teacher.std))
    with torch.no_grad():
        tokens = other.forward_features((images.images - mean) / std)[:, 1:]
    assert torch.allclose(teacher(images).levels[0].flatten(2).transpose(1, 2), tokens, atol=1e-5)


@pytest.mark.parametrize("name", ["student_70px_three_projectors", "student_336_grid_interpolated"])
def test_the_official_resize(shared_parity, name):
    """DUNE gives MASt3R 16/14 of the student's image, normalised its own way."""
    folder = shared_parity / "dune" / name
    number = json.loads((folder / "case.json").read_text())["config"]["loss_image"]
    io = load_file(folder / "io.safetensors")
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = io[f"in.image{number}"] * std + mean
    teacher, seen = create_teacher("mast3r.tiny"), []
    teacher.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    grid = (images.shape[3] // 14, images.shape[2] // 14)
    assert teacher(Images(images=images), grid=grid).levels[0].shape[2:] == grid[::-1]
    resized = (seen[0] * 0.5 + 0.5 - mean) / std  # as the case keeps it
    assert torch.allclose(resized, io["train.mid.resized_image.mast3r_vitlarge_16"], atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mast3rConfig(heads=3), "a multiple of 4, got 1024 for 3"),
        (lambda: Mast3rConfig(depth=0), "depth: 1 or more"),
        (lambda: MultiHmrConfig(size=500), "a multiple of the patch of 14"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
