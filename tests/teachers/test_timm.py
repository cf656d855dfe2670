"""Teachers of timm: every kind of model in miniature, choice of block and norm, sizes, weights from files."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from splatlearn.errors import BadData, ConfigError, UserError
from splatlearn.structures import Images
from splatlearn.teachers.base import create_teacher
from splatlearn.teachers.timm import MODELS

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64}
KINDS = {
    "vit_small_patch14_dinov2.lvd142m": {**SMALL, "img_size": 56},
    "vit_small_patch14_reg4_dinov2.lvd142m": {**SMALL, "img_size": 56},
    "vit_small_patch16_dinov3.lvd1689m": SMALL,
    "vit_base_patch16_siglip_512.v2_webli": SMALL,
    "vit_pe_spatial_tiny_patch16_512.fb": SMALL,
    "resnet18.tv_in1k": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
    "convnext_atto.d2_in1k": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
}
VIT = "vit_small_patch14_reg4_dinov2.lvd142m"


def make(model: str = VIT, **options):
    return create_teacher(f"random:{model}", {"arguments": KINDS[model], **options})


def pictures(teacher, wide: int = 5, high: int = 2) -> Images:
    generator = torch.Generator().manual_seed(0)
    patch = teacher.info.patch
    return Images(images=torch.rand(2, 3, high * patch, wide * patch, generator=generator))


def normalised(teacher, images: Images) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (teacher.mean, teacher.std))
    return (images.images - mean) / std


@pytest.mark.parametrize("short", MODELS)
def test_short_names_are_published_models(short):
    assert MODELS[short] in timm.list_pretrained(MODELS[short])
    published = timm.models.get_pretrained_cfg(MODELS[short])
    assert published.hf_hub_id == f"timm/{MODELS[short]}" and published.license


@pytest.mark.parametrize("model", KINDS)
def test_every_kind_at_another_shape_than_it_was_made_for(model):
    teacher = make(model, layers=(1, -1))
    maps = teacher(pictures(teacher))
    assert maps.levels[-1].shape == (2, 32, 2, 5) and len(maps.levels) == 2
    published = timm.models.get_pretrained_cfg(model)
    assert (teacher.mean, teacher.std) == (published.mean, published.std)
    assert teacher.info.has_summary == ("dino" in model or "pe_" in model)
    assert teacher(pictures(teacher, 2, 3)).levels[-1].shape == (2, 32, 3, 2)


@pytest.mark.parametrize("model", [name for name in KINDS if name.startswith("vit")])
def test_last_block_with_and_without_the_final_norm(model):
    """Against timm's own whole forward pass, whose tokens are class, registers, patches."""
    teacher, bare = make(model), make(model, norm=False)
    images = pictures(teacher, *[teacher.network.patch_embed.grid_size[0]] * 2)
    with torch.no_grad():
        tokens = teacher.network.forward_features(normalised(teacher, images))
    skipped = teacher.network.num_prefix_tokens
    patches = tokens[:, skipped:].transpose(1, 2).unflatten(2, teacher.network.patch_embed.grid_size)
    maps, raw = teacher(images), bare(images)
    assert torch.allclose(maps.levels[0], patches, atol=1e-5)
    if skipped:
        assert torch.allclose(maps.summary, tokens[:, 0], atol=1e-5)
    again = bare.network.norm(raw.levels[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(again, maps.levels[0], atol=1e-5)
    has_norm = not isinstance(teacher.network.norm, torch.nn.Identity)  # PE-Spatial has none
    assert torch.allclose(raw.levels[0], maps.levels[0], atol=1e-2) != has_norm


def test_levels_are_shallow_to_deep_whatever_the_order():
    teacher = make(layers=(-1, 0), norm=False)
    first, last = (make(layers=(layer,), norm=False)(pictures(teacher)).levels[0] for layer in (0, 2))
    maps = teacher(pictures(teacher))
    assert torch.allclose(maps.levels[0], first, atol=1e-6) and torch.allclose(maps.levels[1], last, atol=1e-6)


def test_position_embeddings_are_resized():
    """The same patches in another place of a larger image give other tokens, and no size is refused."""
    teacher = make()
    row = pictures(teacher, 8, 1)
    assert teacher(row).levels[0].shape == (2, 32, 1, 8)
    assert not torch.allclose(
        teacher(row).levels[0][:, :, 0, 0], teacher(pictures(teacher, 8, 2)).levels[0][:, :, 0, 0]
    )


class TestWeights:
    def test_of_a_file(self, tmp_path):
        published = make(seed=5)
        save_file(published.network.state_dict(), tmp_path / "vit.safetensors")
        options = {"arguments": KINDS[VIT], "weights": str(tmp_path / "vit.safetensors")}
        teacher = create_teacher(VIT, options)
        images = pictures(teacher)
        assert torch.equal(teacher(images).levels[0], published(images).levels[0])
        assert (teacher.info.source, teacher.info.licence) == (options["weights"], "unknown")
        assert teacher.info.digest != published.info.digest and teacher.name == VIT

    def test_that_do_not_fit(self, tmp_path):
        state = make(seed=5).network.state_dict()
        state["blocks.0.norm1.weight"] = torch.ones(7)
        del state["blocks.1.norm1.weight"]
        save_file(state, tmp_path / "vit.safetensors")
        with pytest.raises(UserError, match=r"(?s)vit\.safetensors do not fit vit_small.*blocks\.1\.norm1\.weight"):
            create_teacher(VIT, {"arguments": KINDS[VIT], "weights": str(tmp_path / "vit.safetensors")})

    def test_of_an_empty_file(self, tmp_path):
        save_file({}, tmp_path / "empty.safetensors")
        with pytest.raises(BadData, match="it holds no tensors"):
            create_teacher(VIT, {"weights": str(tmp_path / "empty.safetensors")})

    def test_of_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(BadData, match=r"nowhere\.pth: no such file of weights\. teacher vit_small"):
            create_teacher("dinov2-s", {"weights": str(tmp_path / "nowhere.pth")})

    def test_nowhere(self, monkeypatch):
        import huggingface_hub
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.errors import LocalEntryNotFoundError

        asked = []

        def absent(*arguments, **settings):
            asked.append((*arguments, settings.get("local_files_only", False)))
            raise LocalEntryNotFoundError("no")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
        with pytest.raises(BadData) as caught:
            create_teacher("dinov2-s")
        place = ("timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors")
        assert asked == [(*place, True), (*place, False)]
        for expected in (*place, HF_HUB_CACHE, "from the hub (LocalEntryNotFoundError)", "ask for random weights"):
            assert expected in str(caught.value)

    def test_of_the_cache(self, monkeypatch, tmp_path):
        import huggingface_hub

        save_file(make(seed=5).network.state_dict(), tmp_path / "model.safetensors")
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "model.safetensors"))
        info = create_teacher(VIT, {"arguments": KINDS[VIT]}).info
        assert (info.source, info.licence) == (f"timm/{VIT}", "apache-2.0")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_smal_patch14", {}, "unknown name 'vit_smal_patch14'"),
        ("timm.tiny", {"model": "vit_smal_patch14_dinov2"}, "timm has no .*did you mean 'vit_small_patch14_dinov2'"),
        ("timm.tiny", {"model": "vit_small_patch14_dinov2.nope"}, "timm knows no weights .*dinov2.nope"),
        ("timm.tiny", {"layers": (5,)}, "5 is none of the 2 there are"),
        ("timm.tiny", {"layers": ()}, "name one at least"),
        ("timm.tiny", {"arguments": {"depht": 3}}, "these arguments do not fit"),
        ("timm.dinov2_s", {}, "did you mean 'dinov2-s'"),
    ],
)
def test_names_and_options_that_do_not_fit(name, options, message):
    with pytest.raises(ConfigError, match=message):
        create_teacher(name, options)
