"""What every registered point encoder must do. Outside packages can run these on their own family."""

import torch
from safetensors.torch import load_file, save_file

from splatlearn.encoders.base import INPUT_CHANNELS, PointEncoder, PointFeatures
from splatlearn.registry import Registry
from splatlearn.structures import Points, Tokens


def make(registry: Registry, family: str, seed: int = 0) -> PointEncoder:
    """The family's `tiny`, with fixed weights and running statistics that are not the initial ones."""
    torch.manual_seed(seed)
    encoder = registry.create(f"{family}.tiny")
    encoder(cloud((300, 200), seed=99))
    return encoder.eval()


def cloud(counts: tuple[int, ...], seed: int = 0, size: float = 2.0) -> Points:
    """Points on three faces of a box of `size` metres, with every attribute that an encoder may ask for."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(counts)
    xyz = torch.rand(rows, 3, generator=generator) * size
    face = torch.randint(0, 3, (rows, 1), generator=generator)
    xyz = xyz.scatter(1, face, 0.0) + 1.0
    attributes = {
        name: torch.rand(rows, *([width] if width > 1 else []), generator=generator)
        for name, width in INPUT_CHANNELS.items()
    }
    return Points(xyz=xyz, counts=counts, attributes=attributes)


def everything(features: PointFeatures) -> torch.Tensor:
    """One row per input point with all levels side by side, then the summaries, in one flat tensor."""
    return torch.cat([features.dense(range(len(features.levels))).flatten(), features.summary.flatten()])


def check_forward(registry: Registry, family: str) -> None:
    encoder, points = make(registry, family), cloud((400, 250))
    features = encoder(points)
    assert isinstance(features, PointFeatures) and isinstance(encoder, PointEncoder)
    assert len(features.levels) == len(encoder.channels)
    for level, (tokens, width) in enumerate(zip(features.levels, encoder.channels)):
        assert isinstance(tokens, Tokens) and len(tokens.counts) == 2
        assert tokens.features.shape == (len(tokens), width)
        assert features.dense([level]).shape == (650, width)
    assert torch.equal(features.dense(), features.dense([0]))
    assert features.summary.ndim == 2 and len(features.summary) == 2
    assert bool(torch.isfinite(everything(features)).all())


def check_blocks_are_named(registry: Registry, family: str) -> None:
    names = [name for name, _ in make(registry, family).named_parameters()]
    assert any("blocks" in name.split(".") for name in names), names


def check_every_parameter_gets_a_gradient(registry: Registry, family: str) -> None:
    encoder = make(registry, family).train()
    output = everything(encoder(cloud((400, 250))))
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert bool(torch.isfinite(parameter.grad).all()), f"{name} has a gradient that is not finite"
        assert bool((parameter.grad != 0).any()), f"{name} has a gradient of zeros"


def check_batch_equals_items_alone(registry: Registry, family: str) -> None:
    encoder, points = make(registry, family), cloud((400, 1, 250))
    together = encoder(points)
    alone = [encoder(item) for item in points.split()]
    for level in range(len(together.levels)):
        separate = torch.cat([a.dense([level]) for a in alone])
        assert torch.allclose(together.dense([level]), separate, atol=1e-4, rtol=1e-3)
    assert torch.allclose(together.summary, torch.cat([a.summary for a in alone]), atol=1e-4, rtol=1e-3)


def check_permuted_input(registry: Registry, family: str) -> None:
    encoder, points = make(registry, family), cloud((400, 250))
    order = torch.cat([torch.randperm(400), 400 + torch.randperm(250)])
    features, permuted = encoder(points), encoder(points.rows(order))
    for level in range(len(features.levels)):
        expected = features.dense([level])[order]
        assert torch.allclose(permuted.dense([level]), expected, atol=1e-4, rtol=1e-3)
    assert torch.allclose(permuted.summary, features.summary, atol=1e-4, rtol=1e-3)


def check_embed_then_encode(registry: Registry, family: str) -> None:
    encoder, points = make(registry, family), cloud((400, 250))
    tokens = encoder.embed(points)
    assert tokens.counts and len(tokens.counts) == 2
    assert torch.equal(everything(encoder.encode(tokens, points)), everything(encoder(points)))


def check_tokens_may_be_added(registry: Registry, family: str) -> None:
    """Tokens beyond those of the points take part, and every input point still has its row."""
    encoder, points = make(registry, family), cloud((400, 250))
    tokens = encoder.embed(points)
    extra = Tokens(
        counts=(7, 0),
        xyz=points.xyz[:7] + 0.35,
        features=torch.randn(7, tokens.features.shape[1]),
        attributes={name: value[:7] for name, value in tokens.attributes.items()},
    )
    parts = [part for pair in zip(tokens.split(), extra.split()) for part in pair]
    joined = Tokens.pack(parts).regroup([n + m for n, m in zip(tokens.counts, extra.counts)])
    features = encoder.encode(joined, points)
    assert len(features.dense()) == 650 and bool(torch.isfinite(everything(features)).all())


def check_degenerate_input(registry: Registry, family: str) -> None:
    """One point, two equal points, all points within a millimetre, an item of one point beside a full one."""
    same = cloud((1,)).rows(torch.tensor([0, 0]))
    for points in (cloud((1,)), same, cloud((50,), size=1e-3), cloud((1, 300))):
        for mode in (False, True):
            encoder = make(registry, family).train(mode)
            output = everything(encoder(points))
            output.sum().backward()
            assert bool(torch.isfinite(output).all())
            gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
            assert all(bool(torch.isfinite(g).all()) for g in gradients)
            assert all(bool(torch.isfinite(b).all()) for b in encoder.buffers())


def check_save_and_load(registry: Registry, family: str, path: str) -> None:
    encoder, points = make(registry, family), cloud((400, 250))
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, path)
    other = make(registry, family, seed=1)
    before = everything(other(points))
    other.load_state_dict(load_file(path))
    assert not torch.equal(before, everything(encoder(points)))
    assert torch.equal(everything(other(points)), everything(encoder(points)))


CHECKS = (
    check_forward,
    check_blocks_are_named,
    check_every_parameter_gets_a_gradient,
    check_batch_equals_items_alone,
    check_permuted_input,
    check_embed_then_encode,
    check_tokens_may_be_added,
    check_degenerate_input,
)
"""All but `check_save_and_load`, which needs a path."""
