"""`convert` and `create_encoder` of DUNE's and UNIC's files: small ones, made as their training code leaves them."""

import json
import pickle
import re
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

import splatlearn
from splatlearn.cli import main
from splatlearn.encoders.base import ImageEncoder
from splatlearn.encoders.published import MODELS, create_encoder
from splatlearn.encoders.published_vit import vit_defaults, vit_options
from splatlearn.encoders.vit import ViT, ViTConfig
from splatlearn.encoders.weights import load_weights, read_weights
from splatlearn.engine.checkpoint import load_encoder, load_projector
from splatlearn.errors import BadData, UserError
from splatlearn.heads.projectors import (
    LadderProjectorConfig,
    TransformerProjectorConfig,
    create_projector,
    projector_layout,
)
from splatlearn.heads.published_projectors import read_projectors
from splatlearn.registry import encoders
from splatlearn.tasks.encoders import resolve_encoder

TEACHERS = ("dino2reg_vitlarge_14", "mast3r_vitlarge_16")
OURS = {"class_token": "cls_token", "positions": "pos_embed", "registers": "register_tokens"}
SETTINGS = {"dune": TransformerProjectorConfig(), "unic": LadderProjectorConfig(hidden=8, last_hidden=10)}
SMALL = {"width": 64, "heads": 1, "depth": 4, "levels": (0, 1, 2, 3), "norm": True}


def published(kind, prefix="module."):
    """A state dict under the published names, whose final norm was never trained, and whose second teacher has no
    class token."""
    torch.manual_seed(0)
    config = {"patch": 14, "size": 56} if kind == "dune" else {"patch": 16, "size": 64, "registers": 0}
    student = ViT(ViTConfig(**SMALL, **config, layer_scale=1e-4 if kind == "dune" else 0.0))
    state = {"encoder.mask_token": torch.zeros(1, 64)}
    for key, value in student.state_dict().items():
        name = OURS.get(key, key.replace("patches.", "patch_embed.proj.").replace("blocks.", "blocks.0."))
        state[f"encoder.{name}"] = value
    for teacher in TEACHERS:
        summary = kind == "dune" or teacher == TEACHERS[0]  # DUNE's projectors are the same for all
        for key, value in create_projector(SETTINGS[kind], student.channels, 12, summary).state_dict().items():
            name = (
                f"projectors.{teacher}.{key}" if kind == "dune" else f"lp.heads.{teacher}.{key.removeprefix('kinds.')}"
            )
            state[name] = value
        if kind == "dune":
            for token in ("patch", "cls")[: 2 - TEACHERS.index(teacher)]:
                state[f"teacher_norms.{teacher}.normalizers.{token}.mean"] = torch.zeros(12)
    return student.eval(), {f"{prefix}{key}": value for key, value in state.items()}


def checkpoint(path, state):
    args = Namespace(image_size=56, enc_args={"arch": "vit_small"}, teachers=list(TEACHERS), lr=3e-4, resume=None)
    torch.save({"model": state, "args": args, "iter": 7, "optimizer": {}}, path)
    return path


def pictures(patch):
    return torch.rand(2, 3, 2 * patch, 3 * patch, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("kind", ["dune", "unic"])
def test_the_same_features(tmp_path, capsys, kind, prefix):
    student, state = published(kind, prefix)
    source = checkpoint(tmp_path / "student.pth", state)
    assert main(["convert", str(source), str(tmp_path / "dry"), "--dry-run"]) == 0
    assert not (tmp_path / "dry").exists()
    text = capsys.readouterr().out
    licence = {"dune": "non-commercial use only", "unic": "CC BY-NC-SA 4.0"}[kind]
    for words in (
        f"{kind.upper()}, distilled: vit.",
        "all in place",
        "never trained, and left out",
        licence,
        TEACHERS[0],
    ):
        assert words in text
    splatlearn.convert(source, tmp_path / "raw")
    splatlearn.convert(source, tmp_path / "normed", encoder_options={"norm": True})
    raw, normed = load_encoder(tmp_path / "raw"), load_encoder(tmp_path / "normed")
    images = pictures(student.patch)
    expected = student(images)
    for level, found in zip(expected.levels, normed(images).levels, strict=True):
        assert torch.equal(level, found)
    assert not torch.allclose(raw(images).levels[-1], expected.levels[-1], atol=1e-3)
    assert raw.config.size == student.config.size and raw.config.heads == 1 and not raw.config.norm
    assert licence in json.loads((tmp_path / "raw" / "encoder.json").read_text())["source"]["licence"]


def test_a_norm_that_was_trained_is_kept(tmp_path):
    _, state = published("dune")
    state["module.encoder.norm.bias"] += 1
    done = splatlearn.convert(checkpoint(tmp_path / "a.pth", state), tmp_path / "out")
    assert load_encoder(tmp_path / "out").config.norm and "trained, and so it follows" in done.facts["norm"]


def test_a_projector_of_a_file(tmp_path):
    source = checkpoint(tmp_path / "a.pth", published("dune")[1])
    projector = create_projector(TransformerProjectorConfig(), (64,), 12)
    report = load_weights(projector, source, projector_layout(TEACHERS[1]))
    assert len(report.loaded) == len(projector.state_dict())
    key = f"module.projectors.{TEACHERS[1]}.linear.weight"
    assert torch.equal(projector.get_parameter("linear.weight"), read_weights(source)[key])


class TestProjectors:
    @pytest.mark.parametrize("kind", ["dune", "unic"])
    def test_features_after_them(self, tmp_path, kind):
        """The whole way, against the modules built directly."""
        student, state = published(kind)
        done = splatlearn.convert(checkpoint(tmp_path / "a.pth", state), tmp_path / "out")
        student = ViT(replace(student.config, norm=False)).eval()
        load_weights(student, state, "vit")
        images = pictures(student.patch)
        for teacher in TEACHERS:
            projector = create_projector(SETTINGS[kind], student.channels, 12, teacher == TEACHERS[0]).eval()
            assert len(load_weights(projector, state, projector_layout(teacher)).loaded) == len(projector.state_dict())
            found = resolve_encoder(str(tmp_path / "out"), {"projector": teacher}, kind=ImageEncoder).encoder
            expected, projected = projector(student(images)), found(images)
            assert torch.equal(projected.levels[0], expected.levels[0]) and found.channels == (12,)
            assert torch.equal(projected.summary, expected.summary)
        name = {"dune": "transformer", "unic": "ladder"}[kind]
        for words in (
            f"projectors: {TEACHERS[0]} ({name}, 12 channels, class token and patches), "
            f"{TEACHERS[1]} ({name}, 12 channels, patches); features after one: --encoder.projector TEACHER",
            {"dune": "(teacher_norms) are left out", "unic": "(teacher_ft_stats) are left out"}[kind],
            "of the projectors too",
        ):
            assert words in str(done)

    def test_a_trunk_has_none_and_leaves_none(self, tmp_path):
        _, state = published("dune")
        splatlearn.convert(checkpoint(tmp_path / "a.pth", state), tmp_path / "out")
        assert (tmp_path / "out" / "projectors.safetensors").is_file()
        trunk = checkpoint(tmp_path / "b.pth", {key: value for key, value in state.items() if "encoder." in key})
        done = splatlearn.convert(trunk, tmp_path / "out", overwrite=True)
        assert "projectors: there are none" in str(done) and "statistics" not in str(done)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["encoder.json", "encoder.safetensors"]
        with pytest.raises(UserError, match=r"--encoder\.projector t: no such projector in .* \(it has none\)"):
            resolve_encoder(str(tmp_path / "out"), {"projector": "t"}, kind=ImageEncoder)

    @pytest.mark.parametrize(
        ("kind", "options", "reason"),
        [
            ("dune", {"norm": True}, "it learnt from levels with norm False: leave --encoder.norm out"),
            ("dune", {"levels": (0, 2)}, "it reads block 3, the last, of which the encoder gives no level"),
            ("unic", {"levels": (1, 3)}, "it reads the blocks [0, 1, 2, 3], the encoder's levels are [1, 3]"),
        ],
    )
    def test_options_that_they_cannot_work_with(self, tmp_path, kind, options, reason):
        source = checkpoint(tmp_path / "a.pth", published(kind)[1])
        done = splatlearn.convert(source, tmp_path / "out", encoder_options=options)
        assert f"projectors left out: {', '.join(TEACHERS)}: {reason}" in str(done)
        assert "projectors: " not in str(done) and "of the projectors too" not in str(done)
        assert not (tmp_path / "out" / "projectors.safetensors").exists()

    def test_every_key_is_used_or_told(self, tmp_path):
        _, state = published("dune")
        start = f"module.projectors.{TEACHERS[0]}."
        state[f"{start}odd"], state["module.projectors.alone"] = torch.zeros(1), torch.zeros(1)
        state.pop(f"{start}blocks.0.ls1.gamma")
        state["module.projectors.third.fc.weight"] = torch.zeros(2, 2)
        done = splatlearn.convert(checkpoint(tmp_path / "a.pth", state), tmp_path / "out")
        assert done.facts["projectors"].startswith(f"{TEACHERS[1]} (transformer")
        for words in (
            f"2 unexpected: projectors.{TEACHERS[0]}.blocks.0.ls2.gamma, projectors.{TEACHERS[0]}.odd",
            "third: no projector of DUNE or UNIC: linear.weight is expected, and there are fc.weight",
            "projectors.alone: no projector",
        ):
            assert words in done.facts["projectors left out"]
        facts = json.loads((tmp_path / "out" / "encoder.json").read_text())
        assert list(facts["projectors"]) == [TEACHERS[1]]

    def test_a_ladder_of_some_blocks(self, tmp_path):
        """Those are the levels then."""
        _, state = published("unic")
        some = {key: value for key, value in state.items() if not re.search(r"\.(cls|patch)\.[02]\.", key)}
        splatlearn.convert(checkpoint(tmp_path / "a.pth", some), tmp_path / "out")
        assert load_encoder(tmp_path / "out").config.levels == (1, 3)
        projector = load_projector(tmp_path / "out", TEACHERS[1])
        key = f"module.lp.heads.{TEACHERS[1]}.patch.1.layers.0.weight"
        assert torch.equal(projector.get_parameter("kinds.patch.0.layers.0.weight"), state[key])

    @pytest.mark.parametrize(
        "manifest",
        [
            *(f"dune_vit{size}14_{pixels}" for size in ("small", "base") for pixels in (336, 448)),
            "unic_vitb16_four_teachers",
        ],
    )
    def test_full_size_manifests(self, shared_parity, manifest):
        about = json.loads((shared_parity / "manifests" / f"{manifest}.json").read_text())
        norm = {"encoder.norm.weight": torch.ones, "encoder.norm.bias": torch.zeros}
        state = {
            key: norm[key](value["shape"]) if key in norm else torch.empty(value["shape"], device="meta")
            for key, value in about["keys"].items()
        }
        options = vit_options(state, shared_parity)
        defaults = vit_defaults(state, options)
        with torch.device("meta"):
            read = read_projectors(state, ViT(ViTConfig(**options, **defaults)), defaults["norm"])
        assert not read.refused and sorted(read.found) == sorted(about["config"]["teachers"])
        placed = sum(len(projector.state_dict()) for _, projector in read.found.values())
        assert placed == sum(key.startswith(("projectors.", "lp.")) for key in state)
        if manifest.startswith("unic"):
            assert defaults["levels"] == tuple(range(12))
            config = LadderProjectorConfig()
            assert all(own == config and p.summary and p.out_channels == 768 for own, p in read.found.values())
        else:
            assert {own for own, _ in read.found.values()} == {TransformerProjectorConfig()}
            assert {name.partition("_")[0] for name, (_, p) in read.found.items() if p.summary} == {"dino2reg"}
            assert {p.out_channels for _, p in read.found.values()} == {1024}


class TestRefusals:
    def test_what_does_not_fit(self, tmp_path):
        _, state = published("dune")
        state.pop("module.encoder.blocks.0.2.mlp.fc1.bias")
        state["module.encoder.odd"] = torch.zeros(1)
        with pytest.raises(UserError) as caught:
            splatlearn.convert(checkpoint(tmp_path / "a.pth", state), tmp_path / "out")
        assert "1 missing: blocks.2.mlp.fc1.bias" in str(caught.value)
        assert "1 unexpected: encoder.odd" in str(caught.value)

    def test_tensors_of_another_width_are_all_told(self, tmp_path):
        _, state = published("dune")
        wide = {f"module.encoder.blocks.0.1.{name}": torch.zeros(96) for name in ("norm1.weight", "mlp.fc2.bias")}
        with pytest.raises(UserError) as caught:
            splatlearn.convert(checkpoint(tmp_path / "a.pth", {**state, **wide}), tmp_path / "out")
        for key in ("blocks.1.norm1.weight", "blocks.1.mlp.fc2.bias"):
            assert f"{key}: (96,) found, (64,) expected" in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_options_that_contradict_the_file(self, tmp_path):
        source = checkpoint(tmp_path / "a.pth", published("dune")[1])
        with pytest.raises(UserError, match=r"--encoder\.size 448: .* with size 56; leave it out"):
            splatlearn.convert(source, tmp_path / "out", encoder_options={"size": 448})

    def test_no_square_of_positions(self, tmp_path):
        _, state = published("dune")
        state["module.encoder.pos_embed"] = torch.zeros(1, 6, 64)
        with pytest.raises(UserError, match="no student of DUNE or UNIC: 5 positions, 64 channels and 4 blocks"):
            splatlearn.convert(checkpoint(tmp_path / "a.pth", state), tmp_path / "out")

    def test_code_in_a_file_is_not_run(self, tmp_path):
        class Harm:
            def __reduce__(self):
                return (open, (str(tmp_path / "harm"), "w"))

        for name, args in (("a.pth", Namespace(image_size=Harm())), ("b.pth", Harm())):
            torch.save({"model": published("dune")[1], "args": args}, tmp_path / name)
            with pytest.raises(BadData, match="not a file of tensors"):
                splatlearn.convert(tmp_path / name, tmp_path / "out")
        (tmp_path / "c.pth").write_bytes(pickle.dumps(Harm(), 2))
        with pytest.raises(BadData):
            splatlearn.convert(tmp_path / "c.pth", tmp_path / "out")
        assert not (tmp_path / "harm").exists()


class TestCreateEncoder:
    def test_published_encoders_need_their_weights(self):
        for name, own in MODELS.items():
            assert own in encoders.names("vit.*")
            with pytest.raises(UserError, match=f"{name}: name its file of weights.*is {own}"):
                create_encoder(name)

    def test_of_a_file(self, tmp_path, caplog):
        student, state = published("dune")
        source = checkpoint(tmp_path / "a.pth", state)
        options = {**SMALL, "patch": 14, "size": 56}
        with caplog.at_level("WARNING", "splatlearn"):
            encoder = create_encoder("dune.vits14_336", weights=source, **options)
        assert "non-commercial" in caplog.text and encoder.name == "vit.s14-336" and not encoder.training
        assert torch.equal(encoder(pictures(14)).summary, student(pictures(14)).summary)
        with pytest.raises(UserError, match=r"does not fit ViT in layout 'vit'.*\(64, 3, 14, 14\) found"):
            create_encoder("vit.tiny", weights=source)
        with pytest.raises(UserError, match=r"weights of DUNE, which waffleiron\.tiny is not"):
            create_encoder("waffleiron.tiny", weights=source)

    def test_of_a_file_of_another_size_every_key_is_told(self, tmp_path):
        student, state = published("dune")
        source, own = checkpoint(tmp_path / "a.pth", state), student.state_dict()
        with pytest.raises(UserError) as caught:
            create_encoder("vit.tiny", weights=source, patch=14, size=56, depth=3, width=32, norm=True)
        told, last = str(caught.value), {key for key in own if key.startswith("blocks.3.")}
        assert f"0 keys loaded; {len(last)} unexpected" in told and f"{len(own) - len(last)} mismatched" in told
        assert all(f"encoder.{key.replace('blocks', 'blocks.0')}" in told for key in last)
        assert all(f"{key}: {tuple(value.shape)} found" in told for key, value in own.items() if key not in last)

    def test_untrained(self):
        assert create_encoder("vit.tiny", depth=2, levels=(0, 1)).channels == (32, 32)
