"""Parameter groups, schedules against torch's own, averages."""

import math

import pytest
import torch
from torch import nn

from engine.toys import ToyData, ToyRecipe
from splatlearn.config import configure, to_options
from splatlearn.engine.config import TrainConfig
from splatlearn.engine.optimizers import (
    WeightAverage,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    layer_factors,
    learning_rate,
    load_optimizer_tensors,
    not_finite,
    optimizer_tensors,
    parameter_groups,
    set_learning_rate,
)
from splatlearn.errors import ConfigError, UserError


def by_name(module: nn.Module, config: TrainConfig) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(module, config)
    return {name: (group["scale"], group["weight_decay"]) for group in groups for name in group["names"]}


class TestGroups:
    def test_one_dimension_has_no_decay(self):
        found = by_name(ToyRecipe(ToyData()), TrainConfig(weight_decay=0.05, no_decay=("*.stem.*",)))
        assert found["student.blocks.0.0.weight"] == (1, 0.05)
        assert found["head.bias"] == found["student.blocks.0.1.weight"] == (1, 0)
        assert found["student.stem.weight"] == (1, 0)

    def test_every_parameter_once(self):
        recipe = ToyRecipe(ToyData())
        found = by_name(recipe, TrainConfig(rates={"*blocks*": 0.1, "*": 2.0}))
        assert set(found) == dict(recipe.named_parameters()).keys()
        assert found["student.blocks.1.0.weight"][0] == 0.1
        assert found["head.weight"][0] == 2.0

    def test_layer_decay(self):
        found = by_name(ToyRecipe(ToyData()), TrainConfig(layer_decay=0.5))
        scales = [found[f"{n}.weight"][0] for n in ("student.stem", "student.blocks.0.0", "student.blocks.1.0", "head")]
        assert scales == [0.125, 0.25, 0.5, 1]

    def test_layer_decay_counts_through_stages(self):
        names = [
            "net.stem.w",
            "net.down.0.blocks.0.w",
            "net.down.0.blocks.1.w",
            "net.up.0.mix.w",
            "net.up.0.blocks.0.w",
        ]
        assert list(layer_factors(names, 0.5).values()) == [0.0625, 0.125, 0.25, 0.25, 0.5]

    def test_unmatched_pattern(self):
        with pytest.raises(ConfigError, match=r"rates: no parameter matches 'student\.blok.*' *.*no_decay"):
            build_optimizer(ToyRecipe(ToyData()), TrainConfig(rates={"student.blok*": 0.1}, no_decay=("x",)))

    def test_nothing_to_train(self):
        with pytest.raises(UserError, match="no parameter to train"):
            build_optimizer(nn.Linear(2, 2).requires_grad_(False), TrainConfig())

    @pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
    def test_kinds(self, kind):
        module = nn.Linear(3, 2)
        optimizer = build_optimizer(module, TrainConfig(optimizer=kind, rates={"bias": 0.5}, schedule="constant"))
        assert type(optimizer).__name__.lower() == kind
        set_learning_rate(optimizer, 0.1)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]

    def test_decays(self):
        config = TrainConfig(rates={"bias": 0.5}, decays={"weight": 0.01})
        optimizer = build_optimizer(nn.Linear(3, 2), config)
        for fraction, weight in ((0.0, 1.0), (0.5, 0.1), (1.0, 0.01)):
            set_learning_rate(optimizer, 1.0, fraction)
            assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([weight, 0.5])

    def test_decays_of_nothing(self):
        with pytest.raises(ConfigError, match="decays: no parameter matches 'wieght'; did you mean 'weight'"):
            build_optimizer(nn.Linear(3, 2), TrainConfig(decays={"wieght": 0.5}))
        with pytest.raises(ConfigError, match="decays: factors above 0"):
            TrainConfig(decays={"weight": 0.0})

    @pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
    def test_fused(self, kind):
        """The same steps but for rounding."""
        results = []
        for fused in (False, True):
            module = nn.Linear(3, 2)
            with torch.no_grad():
                module.weight.copy_(torch.arange(6.0).view(2, 3))
            optimizer = build_optimizer(module, TrainConfig(optimizer=kind, fused=fused, learning_rate=0.1))
            for step in range(3):
                module.weight.grad = torch.linspace(-1, 2, 6).view(2, 3) * (step + 1)
                module.bias.grad = torch.ones(2)
                optimizer.step()
            results.append(module.weight.detach())
        assert bool(optimizer.param_groups[0]["fused"])
        torch.testing.assert_close(*results)


class TestSchedules:
    def test_one_cycle_is_torch(self):
        config = TrainConfig(schedule="one-cycle", learning_rate=0.3, warmup=0.25, start_divisor=10, final_divisor=100)
        parameter = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=0.3)
        torchs = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.3, total_steps=41, pct_start=0.25, div_factor=10, final_div_factor=100
        )
        for step in (0, 10, 40):  # torch's knees lie at pct * total - 1 and at total - 1
            expected = {0: 0.03, 10: 0.3, 40: 0.0003}[step]
            assert learning_rate(config, step, 40) == pytest.approx(expected)
        assert torchs.get_last_lr()[0] == pytest.approx(learning_rate(config, 0, 40))

    def test_cosine_is_torch(self):
        config = TrainConfig(learning_rate=1e-3, min_learning_rate=1e-5)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
        torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=1e-5)
        for step in range(20):
            assert learning_rate(config, step, 20) == pytest.approx(torchs.get_last_lr()[0])
            optimizer.step()
            torchs.step()

    def test_warmup(self):
        config = TrainConfig(schedule="constant", learning_rate=1.0, warmup=0.2)
        assert [learning_rate(config, s, 20) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]

    def test_inverse_square_root(self):
        config = TrainConfig(schedule="inverse-sqrt", learning_rate=1.0, warmup=0.1, timescale=0.1, cooldown=0.2)
        rates = [learning_rate(config, step, 40) for step in range(40)]
        assert rates[:5] == [0.25, 0.5, 0.75, 1, 1]
        assert rates[16] == pytest.approx((1 + 12 / 4) ** -0.5)
        assert rates[32] == pytest.approx((1 + 28 / 4) ** -0.5 * 7 / 8)
        assert rates[39] == 0
        assert rates[4:] == sorted(rates[4:], reverse=True)

    def test_step(self):
        config = TrainConfig(schedule="step", learning_rate=1.0, milestones=(0.5, 0.75))
        assert [learning_rate(config, s, 8) for s in (3, 4, 6)] == pytest.approx([1, 0.1, 0.01])


class TestGradients:
    def test_clip(self):
        module = nn.Linear(2, 1, bias=False)
        optimizer = build_optimizer(module, TrainConfig())
        module.weight.grad = torch.tensor([[3.0, 4.0]])
        norm = gradient_norm(optimizer)
        clip_gradients(optimizer, norm, 0)
        assert float(norm) == 5
        assert float(module.weight.grad.norm()) == 5
        clip_gradients(optimizer, norm, 1.0)
        assert float(module.weight.grad.norm()) == pytest.approx(1, abs=1e-5)

    def test_each_gradient_by_its_own_norm(self):
        module = nn.Linear(2, 1)
        optimizer = build_optimizer(module, TrainConfig())
        module.weight.grad, module.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([0.5])
        clip_gradients(optimizer, gradient_norm(optimizer), 1.0, each=True)
        assert float(module.weight.grad.norm()) == pytest.approx(1, abs=1e-5)
        assert float(module.bias.grad) == 0.5

    def test_not_finite(self):
        module = nn.Linear(2, 1)
        optimizer = build_optimizer(module, TrainConfig())
        module.weight.grad, module.bias.grad = torch.tensor([[1.0, float("nan")]]), torch.ones(1)
        assert not_finite(optimizer) == ["weight"]
        assert not bool(torch.isfinite(gradient_norm(optimizer)))


class TestState:
    @pytest.mark.parametrize("kind", ["adamw", "sgd"])
    def test_round_trip(self, kind):
        def stepped(module, optimizer):
            optimizer.zero_grad()
            module(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            return module.weight.detach().clone()

        config = TrainConfig(optimizer=kind, learning_rate=0.1)
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        optimizer = build_optimizer(module, config)
        stepped(module, optimizer)
        other = nn.Linear(3, 2)
        other.load_state_dict(module.state_dict())
        resumed = build_optimizer(other, config)
        tensors = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
        load_optimizer_tensors(resumed, tensors)
        assert torch.equal(stepped(module, optimizer), stepped(other, resumed))

    def test_other_parameters(self):
        with pytest.raises(UserError, match="other parameters: nose"):
            load_optimizer_tensors(build_optimizer(nn.Linear(1, 1), TrainConfig()), {"nose/step": torch.ones(())})


class TestAverage:
    def test_formula(self):
        module = nn.BatchNorm1d(1)
        average = WeightAverage(module, 0.5)
        expected = 1.0
        for step, value in enumerate((2.0, 4.0, 8.0), start=1):
            nn.init.constant_(module.weight, value)
            module.num_batches_tracked.add_(1)
            average.update(module)
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
        assert float(average.state["weight"]) == pytest.approx(expected)
        assert int(average.state["num_batches_tracked"]) == 3

    def test_applied_and_taken_back(self):
        module = nn.Linear(2, 2)
        average = WeightAverage(module, 0.9)
        nn.init.constant_(module.weight, 5.0)
        with average.applied(module):
            assert not bool((module.weight == 5).any())
        assert bool((module.weight == 5).all())


class TestConfig:
    def test_all_problems_at_once(self):
        with pytest.raises(ConfigError) as caught:
            TrainConfig(batch=0, warmup=1.5, keep=0, min_learning_rate=1.0, milestones=(0.5, 0.2), seed=-1)
        for name in ("batch", "warmup", "keep", "min_learning_rate", "milestones", "seed"):
            assert f"{name}:" in str(caught.value)

    @pytest.mark.parametrize(
        "options",
        [
            {"rates": {"a": math.inf}},
            {"rates": {"a": math.nan}},
            {"betas": (0.9, 1.0)},
            {"betas": (-0.1, 0.9)},
            {"nesterov": True, "momentum": 0.0},
        ],
    )
    def test_values_out_of_range(self, options):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}: .* needed"):
            TrainConfig(**options)

    def test_options_round_trip(self):
        config = TrainConfig(rates={"*blocks*": 0.1}, milestones=(0.5,), betas=(0.9, 0.95))
        assert configure(TrainConfig, to_options(config), "train") == config

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"momentum": 0.8}, ["--train.momentum 0.8 has no effect: it is of optimizer sgd"]),
            ({"momentum": 0.8, "optimizer": "sgd"}, []),
            ({"betas": (0.9, 0.9), "optimizer": "adam"}, []),
            (
                {"epsilon": 1e-5, "optimizer": "sgd"},
                ["--train.epsilon 1e-05 has no effect: it is of optimizer adam"],
            ),
            ({"milestones": (0.5,)}, ["--train.milestones (0.5,) has no effect: it is of schedule step"]),
            ({"min_learning_rate": 0.0, "schedule": "constant"}, ["--train.min_learning_rate 0.0 has no effect"]),
            ({"epochs": 3.0, "steps": 7}, ["--train.epochs 3 has no effect: --train.steps 7 says how long"]),
            ({"epochs": 3.0}, []),
        ],
        ids=str,
    )
    def test_what_has_no_effect(self, options, told):
        found = TrainConfig(**options).idle()
        assert len(found) == len(told) and all(line.startswith(start) for line, start in zip(found, told))

    def test_epochs(self):
        assert TrainConfig(epochs=100, batch=4).total_steps(10) == 250
        assert TrainConfig(epochs=100, batch=4, steps=7).total_steps(10) == 7
