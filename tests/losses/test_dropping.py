"""Losses by image and dropped teachers: formulas, gradients, two ranks, and the official DUNE and UNIC numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ranks import on_two_ranks
from splatlearn.errors import ConfigError, UserError
from splatlearn.losses.distillation import cosine_and_smooth_l1, image_losses
from splatlearn.losses.dropping import DroppingConfig, coefficients, gradient_norms, kept_mean, shares

LOSSES = torch.tensor([[1.0, 5.0, 2.0, 0.5], [3.0, 1.0, 2.5, 0.2], [2.0, 4.0, 9.0, 0.1]])
COINS = torch.tensor([[0.4, 0.0, 0.6, 0.0], [0.0, 0.9, 0.5, 0.1], [0.5, 0.1, 0.0, 0.7]])
GROUP = torch.tensor([2, 0, 1, -1])


def tokens(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 7, 5, generator=generator), torch.randn(3, 7, 5, generator=generator)


class TestImageLosses:
    def test_a_mean_of_tokens_then_of_kinds(self):
        student, teacher = tokens()
        summary, target = student[:, 0], teacher[:, 0]
        found = image_losses([(summary, target), (student[:, 1:], teacher[:, 1:])])
        for image in range(3):
            of_class = cosine_and_smooth_l1(summary[image : image + 1], target[image : image + 1])
            of_patches = cosine_and_smooth_l1(student[image, 1:], teacher[image, 1:])
            torch.testing.assert_close(found[image], (of_class + of_patches) / 2)

    def test_gradients(self):
        student, teacher = (value.double() for value in tokens())
        assert torch.autograd.gradcheck(lambda x: image_losses([(x, teacher)]), (student.requires_grad_(),))

    def test_errors(self):
        with pytest.raises(UserError, match="at least one kind of token"):
            image_losses([])
        with pytest.raises(UserError, match=r"got \(21, 5\) of the student and \(21, 4\)"):
            image_losses([(torch.zeros(3, 7, 5), torch.zeros(3, 7, 4))])


class TestCoefficients:
    def test_the_worst_stays_and_a_coin_decides_of_the_others(self):
        kept = coefficients(DroppingConfig(), LOSSES, coins=COINS)
        assert kept.tolist() == [[0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1]]

    @pytest.mark.parametrize(("chance", "most"), [(0.0, 12), (1.0, 4)])
    def test_certain_chances(self, chance, most):
        kept = coefficients(DroppingConfig(chance=chance), LOSSES, coins=torch.rand(3, 4))
        assert kept.sum() == most and bool(kept.gather(0, LOSSES.argmax(0, keepdim=True)).all())

    def test_a_coin_drops_by_its_chance(self):
        losses = torch.tensor([[2.0], [1.0]]).expand(2, 20000)
        coins = torch.rand(2, 20000, generator=torch.Generator().manual_seed(0))
        kept = coefficients(DroppingConfig(chance=0.3), losses, coins=coins)
        assert bool(kept[0].all()) and float(kept[1].mean()) == pytest.approx(0.7, abs=0.01)

    def test_none(self):
        assert bool((coefficients(DroppingConfig(mode="none"), LOSSES) == 1).all())

    def test_own_data(self):
        kept = coefficients(DroppingConfig(mode="own_data"), LOSSES, group=GROUP)
        assert kept.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]

    def test_generic_data_teach_from_all(self):
        kept = coefficients(DroppingConfig(mode="own+generic"), LOSSES, group=GROUP, generic=[0])
        assert kept.tolist() == [[0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 0, 1]]

    def test_errors(self):
        with pytest.raises(UserError, match=r"lowest_loss needs coins of shape \(3, 4\), got none"):
            coefficients(DroppingConfig(), LOSSES)
        with pytest.raises(UserError, match=r"own_data needs group of shape \(4,\), got \(3,\)"):
            coefficients(DroppingConfig(mode="own_data"), LOSSES, group=GROUP[:3])
        with pytest.raises(ConfigError, match=r"a chance in \[0, 1\] is needed, got 1.5"):
            DroppingConfig(chance=1.5)


class TestMean:
    def test_over_what_is_kept(self):
        kept = coefficients(DroppingConfig(), LOSSES, coins=COINS)
        assert float(kept_mean(LOSSES, kept)) == pytest.approx(float(LOSSES[kept > 0].mean()))
        torch.testing.assert_close(shares(kept), torch.tensor([3, 3, 3]) / 9)

    def test_nothing_kept(self):
        losses = LOSSES.clone().requires_grad_()
        mean = kept_mean(losses, torch.zeros_like(losses))
        mean.backward()
        assert float(mean.detach()) == 0 and not losses.grad.any() and not shares(torch.zeros(3, 4)).any()

    def test_no_gradient_where_a_teacher_is_dropped(self):
        losses = LOSSES.clone().requires_grad_()
        kept = coefficients(DroppingConfig(), losses, coins=COINS)
        kept_mean(losses, kept).backward()
        torch.testing.assert_close(losses.grad, kept / kept.sum())

    def test_nan_is_not_hidden(self):
        losses = LOSSES.clone()
        losses[1, 2] = torch.nan
        assert bool(kept_mean(losses, coefficients(DroppingConfig(), losses, coins=COINS)).isnan())


def pull(images: slice) -> dict[str, Tensor]:
    """The loss of some images, its gradient on their features, and what each teacher does."""
    generator = torch.Generator().manual_seed(1)
    features, targets = torch.randn(4, 6, 5, generator=generator), torch.randn(3, 4, 6, 5, generator=generator)
    features = features[images].requires_grad_()
    losses = torch.stack([image_losses([(features * (n + 1), targets[n, images])]) for n in range(3)])
    kept = coefficients(DroppingConfig(), losses, coins=COINS[:, images])
    norms, loss = gradient_norms(losses, kept, [features]), kept_mean(losses, kept)
    loss.backward()
    return {"loss": loss, "gradient": features.grad, "norms": norms, "shares": shares(kept), "kept": kept}


def rank(number: int) -> dict[str, Tensor]:
    return pull((slice(0, 1), slice(1, 4))[number])


def test_two_ranks_equal_one():
    one, (first, second) = pull(slice(0, 4)), on_two_ranks(rank)
    for name in ("loss", "norms", "shares"):
        torch.testing.assert_close(first[name], one[name].detach())
        torch.testing.assert_close(second[name], one[name].detach())
    gradient = torch.cat([first["gradient"], second["gradient"]]) / 2  # as averaged over ranks
    torch.testing.assert_close(gradient, one["gradient"])
    assert torch.equal(torch.cat([first["kept"], second["kept"]], 1), one["kept"])


def test_norms_are_those_of_each_teachers_part():
    found = pull(slice(0, 4))
    features = torch.randn(4, 5, requires_grad=True)
    losses = torch.stack([features.square().mean(1), 3 * features.mean(1), torch.ones(4)])
    norms = gradient_norms(losses, torch.ones(3, 4), [features])
    assert norms.tolist() == pytest.approx([float((2 * features.detach() / 60).norm()), 3 / 60 * 20**0.5, 0])
    assert bool((found["norms"] > 0).all())


def in_image_order(coins: Tensor, losses: Tensor) -> Tensor:
    """(T B) of the official coins, drawn image by image for every teacher but the worst."""
    spread, drawn = torch.zeros_like(losses), iter(coins.tolist())
    for image, worst in enumerate(losses.argmax(0).tolist()):
        for teacher in range(len(losses)):
            if teacher != worst:
                spread[teacher, image] = next(drawn)
    return spread


MODES = {"own+generic_data": "own+generic"}
DUNE = ("dino2reg_vitlarge_14", "mast3r_vitlarge_16", "multihmr_vitlarge_14_672")
OWN = {"agora": 2, "ARKitScenesV2": 1, "gldv2": 0, "in1k": 0}


@pytest.mark.parametrize("run", range(5))
@pytest.mark.parametrize("case", ["student_70px_three_projectors", "student_336_grid_interpolated"])
def test_equals_dune(shared_parity: Path, case: str, run: int) -> None:
    folder = shared_parity / "dune" / case
    about = json.loads((folder / "case.json").read_text())["config"]
    stored, weights = load_file(folder / "io.safetensors"), load_file(folder / "weights.safetensors")
    phase, mode, chance = about["loss_runs"][run]
    outputs = {}
    for teacher in DUNE:
        for kind in ("cls", "patch") if teacher == DUNE[0] else ("patch",):
            student = stored[f"out.image{about['loss_image']}.projector.{teacher}.{kind}"].requires_grad_()
            target = stored[f"in.teacher.{teacher}.{kind}"]
            if phase == "train":
                target = stored[f"train.mid.normalised_teacher.{teacher}.{kind}"]
            else:
                state = f"teacher_norms.{teacher}.normalizers.{kind}"
                target = (target - weights[f"{state}.mean"]) / weights[f"{state}.std"].clamp_min(1e-3)
            outputs[teacher, kind] = student, target
    losses = torch.stack(
        [image_losses([(flat(s), t) for (name, _), (s, t) in outputs.items() if name == teacher]) for teacher in DUNE]
    )
    prefix = f"{phase}.{mode}.out."
    for number, teacher in enumerate(DUNE):
        if phase == "train":
            close(losses[number], stored[f"train.mid.loss_per_image.{teacher}"])
        close(losses[number].mean(), stored[f"{prefix}metric.loss/dist_{teacher}"])
    kept = coefficients(
        DroppingConfig(mode=MODES.get(mode, mode), chance=chance),
        losses,
        coins=in_image_order(stored["in.coins"], losses),
        group=torch.tensor([OWN[name] for name in about["datasets"]]),
        generic=[0],
    )
    expected = [float(stored[f"{prefix}metric.t_coeff_{teacher}"]) for teacher in DUNE]
    assert shares(kept).tolist() == pytest.approx(expected)
    loss = kept_mean(losses, kept)
    close(loss, stored[f"{prefix}loss"][0])
    loss.backward()
    bias = outputs[DUNE[2], "patch"][0].grad.sum((0, 2, 3))
    close(bias, stored[f"{phase}.{mode}.grad.w.projectors.{DUNE[2]}.linear.bias"])


def test_equals_unic(shared_parity: Path) -> None:
    folder = shared_parity / "unic" / "ladder_four_teachers"
    about = json.loads((folder / "case.json").read_text())["config"]
    stored, teachers = load_file(folder / "io.safetensors"), sorted(about["teachers"])
    student = {key: value.requires_grad_() for key, value in stored.items() if key.startswith("out.student.")}
    losses = torch.stack(
        [
            image_losses(
                [
                    (student[f"out.student.{teacher}.{kind}"], stored[f"mid.normalised_teacher.{teacher}.{kind}"])
                    for kind in ("cls", "patch")
                ]
            )
            for teacher in teachers
        ]
    )
    close(losses, torch.stack([stored[f"mid.loss_per_image.{teacher}"] for teacher in teachers]))
    coins = in_image_order(stored["in.coins"], losses)
    kept = coefficients(DroppingConfig(chance=about["drop_prob"]), losses, coins=coins)
    expected = [float(stored[f"out.metric.t_coeff_{teacher}"]) for teacher in teachers]
    assert shares(kept).tolist() == pytest.approx(expected)
    loss = kept_mean(losses, kept)
    close(loss, stored["out.loss"][0])
    loss.backward()
    # every block's last bias is added to the same output
    bias = student["out.student.ibot_vitbase_16.patch"].grad.sum((0, 1))
    close(bias, stored["grad.w.lp.heads.ibot_vitbase_16.patch.3.layers.2.bias"])


def flat(maps: Tensor) -> Tensor:
    """(B T C) of the projector's (B C h w); a class token as it is."""
    return maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps


def close(found: Tensor, expected: Tensor) -> None:
    """Within the tolerance that the cases state."""
    expected = expected.reshape(found.shape)
    assert float((found.detach() - expected).abs().max()) <= 1e-5 + 1e-4 * float(expected.abs().max())
