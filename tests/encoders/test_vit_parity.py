"""The official DUNE's and UNIC's numbers: students at two sizes, their levels, projectors, gradients, keys."""

import json
import math

import pytest
import torch

from encoders.vit_case import Case
from splatlearn.encoders.layouts import LAYOUTS
from splatlearn.encoders.vit import ViT
from splatlearn.encoders.weights import match_keys
from splatlearn.heads.projectors import (
    LadderProjectorConfig,
    TransformerProjectorConfig,
    create_projector,
    projector_layout,
)
from splatlearn.registry import encoders

LAYOUT = LAYOUTS["vit"]
DUNE = ("student_70px_three_projectors", "student_336_grid_interpolated")


@pytest.mark.parametrize("image", ["image0", "image1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", DUNE)
def test_student(shared_parity, name, dtype, image):
    case = Case(shared_parity / "dune" / name, dtype)
    pixels, last = case.stored[f"in.{image}"], case.about["depth"] - 1
    raw = case.student(norm=False, levels=tuple(range(last + 1)))
    case.check(f"mid.{image}.tokens", raw.embed(pixels))
    maps = raw.look(pixels)
    for level in range(last + 1):
        tokens = case.stored[f"mid.{image}.encoder.blocks.0.{level}"]
        assert torch.allclose(maps.summaries[level], tokens[:, 0], atol=1e-4)
        assert torch.allclose(maps.levels[level].flatten(2).transpose(1, 2), tokens[:, 5:], atol=1e-4)
    normed = case.student(norm=True, levels=(0, last)).look(pixels)
    for level in (0, 1):
        case.check(f"out.{image}.intermediate{level}.patch", normed.levels[level])
        case.check(f"out.{image}.intermediate{level}.cls", normed.summaries[level])
    student = case.student(norm=case.about["apply_last_enc_norm"], levels=(-1,))
    maps = student.look(pixels)
    together = torch.cat([maps.summary[:, None], maps.levels[-1].flatten(2).transpose(1, 2)], 1)
    case.check(f"out.{image}.encoder_output", together)
    for teacher, projector in case.projectors(student).items():
        projected = projector(maps)
        case.check(f"out.{image}.projector.{teacher}.patch", projected.levels[0])
        case.check(f"out.{image}.projector.{teacher}.cls", projected.summary)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", DUNE)
def test_gradients_of_the_student(shared_parity, name, dtype):
    case = Case(shared_parity / "dune" / name, dtype)
    student = case.student(norm=True, levels=(-1,))
    pixels = case.stored[f"in.image{case.about['loss_image']}"].clone().requires_grad_()
    maps = student.look(pixels)
    patches = maps.levels[0].flatten(2).transpose(1, 2)
    loss = (maps.summary * case.stored["in.cotangent_cls"]).sum() + (patches * case.stored["in.cotangent_patch"]).sum()
    loss.backward()
    case.check("encoder.grad.in.image", pixels.grad, gradient=True)
    ours = {key: parameter.grad for key, parameter in student.named_parameters()}
    names = [key for key in case.stored if key.startswith("encoder.grad.w.")]
    assert len(names) == 8
    for stored in names:
        key, _ = LAYOUT.convert(stored.removeprefix("encoder.grad.w."), case.stored[stored])
        case.check(stored, ours[key], gradient=True)


@pytest.mark.parametrize("name", DUNE)
def test_gradients_through_the_projectors(shared_parity, name):
    """Of the plain mean over views and teachers; dropping has tests of its own."""
    case = Case(shared_parity / "dune" / name)
    student = case.student(norm=case.about["apply_last_enc_norm"], levels=(-1,))
    projectors = case.projectors(student)
    maps = student.look(case.stored[f"in.image{case.about['loss_image']}"])
    losses = case.losses({name: projector(maps) for name, projector in projectors.items()}, "train.")
    losses.mean().backward()
    for column, teacher in enumerate(projectors):
        case.check(f"train.mid.loss_per_image.{teacher}", losses[:, column])
    assert check_gradients(case, student, projectors, "train.none.grad.w.") >= 5


def test_the_ladder(shared_parity):
    case = Case(shared_parity / "unic" / "ladder_four_teachers")
    student = case.student(norm=False, levels=tuple(range(case.about["depth"])))
    projectors = case.projectors(student)
    pixels = case.stored["in.image"].clone().requires_grad_()
    maps = student.look(pixels)
    found = {name: projector(maps) for name, projector in projectors.items()}
    for name, projected in found.items():
        case.check(f"out.student.{name}.patch", projected.levels[0].flatten(2).transpose(1, 2))
        case.check(f"out.student.{name}.cls", projected.summary)
    losses = case.losses(found, "")
    coins, kept = iter(case.stored["in.coins"].tolist()), torch.zeros_like(losses)
    for view, row in enumerate(losses):
        for teacher in range(len(row)):
            kept[view, teacher] = teacher == int(row.argmax()) or next(coins) >= case.about["drop_prob"]
    loss = (kept * losses).sum() / kept.sum()
    case.check("out.loss", loss)
    loss.backward()
    case.check("grad.in.image", pixels.grad, gradient=True)
    assert check_gradients(case, student, projectors, "grad.w.") == 11


def check_gradients(case, student, projectors, prefix):
    """All stored gradients; returns how many."""
    names = [name for name in case.stored if name.startswith(prefix)]
    for name in names:
        key, value = name.removeprefix(prefix), case.stored[name]
        teacher = next((teacher for teacher in projectors if f".{teacher}." in key), None)
        part, layout = (projectors[teacher], projector_layout(teacher)) if teacher else (student, LAYOUT)
        ours, _ = layout.convert(key, value)
        gradient = part.get_parameter(ours).grad
        case.check(name, torch.zeros_like(value) if gradient is None else gradient, gradient=True)
    return len(names)


@pytest.mark.parametrize(
    ("manifest", "preset", "millions"),
    [
        ("dune_vitsmall14_336", "s14-336", (21.8, 2.17)),
        ("dune_vitsmall14_448", "s14-448", (21.9, 2.17)),
        ("dune_vitbase14_336", "b14-336", (86.0, 7.88)),
        ("dune_vitbase14_448", "b14-448", (86.3, 7.88)),
        ("unic_vitb16_four_teachers", "b16-224", (85.8, 35.43)),
    ],
)
def test_full_size_manifests(shared_parity, manifest, preset, millions):
    """Every key finds its place in the student, a projector or a standardiser, and parameters add up."""
    about = json.loads((shared_parity / "manifests" / f"{manifest}.json").read_text())
    keys = about["keys"]
    with torch.device("meta"):
        student: ViT = encoders.create(f"vit.{preset}", {"norm": True})
        state = {f"module._orig_mod.{key}": torch.empty(value["shape"]) for key, value in keys.items()}
        _, report = match_keys(student, state, "vit")
        placed = len(report.loaded)
        assert report.complete and placed == len(student.state_dict())
        sizes = [sum(p.numel() for p in student.parameters())]
        config = LadderProjectorConfig() if preset == "b16-224" else TransformerProjectorConfig()
        for teacher in about["config"]["teachers"]:
            projector = create_projector(config, student.channels, 768 if preset == "b16-224" else 1024)
            _, report = match_keys(projector, state, projector_layout(teacher))
            assert report.complete
            placed += len(report.loaded)
            sizes.append(sum(p.numel() for p in projector.parameters()))
    rest = {key for key in keys if key.startswith("teacher_norms.") or key == "encoder.mask_token"}
    assert placed + len(rest) == len(keys)
    mask = math.prod(keys["encoder.mask_token"]["shape"])
    assert sum(sizes) + mask == about["num_parameters"]
    assert (round(sizes[0] / 1e6, 1), round(sizes[1] / 1e6, 2)) == millions
