import pytest
import torch

from splatlearn.encoders.base import PointEncoderConfig, calibrate, stack_inputs
from splatlearn.errors import UserError
from splatlearn.structures import Points
from splatlearn.tasks.encoders import RawInputs, resolve_encoder
from splatlearn.tasks.points import check_inputs, dense
from splatlearn.tasks.probes import LinearProbe
from tasks import worlds


@pytest.fixture(autouse=True)
def toy_world(monkeypatch):
    worlds.register(monkeypatch)


def cloud(*counts: int, names: tuple[str, ...] = ("color", "normal")) -> Points:
    total = sum(counts)
    generator = torch.Generator().manual_seed(total)
    values = {name: torch.rand(total, 3, generator=generator) for name in names}
    return Points(xyz=torch.rand(total, 3, generator=generator), counts=counts, attributes=values)


class TestResolve:
    def test_random_is_seeded_and_leaves_the_generator(self):
        torch.manual_seed(7)
        expected = torch.rand(1)
        torch.manual_seed(7)
        first, again, other = (resolve_encoder("random:pointwise", seed=s).encoder for s in (3, 3, 4))
        assert torch.equal(torch.rand(1), expected)
        weight, same, different = (e.get_parameter("first.weight") for e in (first, again, other))
        assert torch.equal(weight, same)
        assert not torch.equal(weight, different)
        assert first.name.startswith("pointwise")

    def test_options_reach_the_config(self):
        resolved = resolve_encoder("random:pointwise", {"width": "5", "inputs": "[color]"})
        assert resolved.origin == "random"
        assert resolved.encoder.channels == (5, 4)
        assert resolved.encoder.config.inputs == ("color",)

    def test_raw_takes_what_is_there(self):
        resolved = resolve_encoder("raw", available=("normal", "label"))
        assert resolved.origin == "raw"
        assert resolved.encoder.config.inputs == ("normal", "height")

    def test_a_bare_name_is_never_random(self):
        with pytest.raises(UserError, match=r"asked for by name: random:sparse_unet.tiny"):
            resolve_encoder("sparse_unet.tiny")

    def test_unknown(self, tmp_path):
        with pytest.raises(UserError, match=r"no such run folder.*random:sparse_unet"):
            resolve_encoder(str(tmp_path / "absent"))
        with pytest.raises(UserError, match="only go with random:NAME"):
            resolve_encoder("raw", {"voxel": 1})


class TestRawInputs:
    def test_rows_are_the_inputs(self):
        points = cloud(5, 3)
        encoder = RawInputs(PointEncoderConfig(inputs=("normal", "color")))
        features = encoder(points)
        expected = torch.cat([points["normal"], points["color"] * 2 - 1], 1)
        assert torch.equal(features.dense(), expected)
        torch.testing.assert_close(features.summary[1], expected[5:].mean(0))
        assert encoder.channels == (6,)

    def test_of_no_points(self):
        assert stack_inputs(cloud(0), ("color", "height")).shape == (0, 4)


class TestCheckInputs:
    def test_missing_channel(self):
        encoder = resolve_encoder("random:pointwise").encoder
        with pytest.raises(UserError, match=r"takes normal, which room 1 does not have \(it has: color\)"):
            check_inputs(encoder, cloud(4, names=("color",)), "room 1")

    def test_height_needs_up(self):
        encoder = RawInputs(PointEncoderConfig(inputs=("height",)))
        check_inputs(encoder, cloud(4), "room 1", up="estimated")
        with pytest.raises(UserError, match="the up axis of room 1 is unknown"):
            check_inputs(encoder, cloud(4), "room 1", up="unknown")


class TestCalibrate:
    def test_statistics_are_the_mean_over_batches(self):
        encoder = resolve_encoder("random:pointwise").encoder.eval()
        before = encoder.get_parameter("first.weight").clone()
        batches = [cloud(20), cloud(30)]
        assert calibrate(encoder, batches) == 2
        values = [
            encoder.get_submodule("first")(torch.cat([b["color"] * 2 - 1, b["normal"], b.xyz[:, 2:]], 1))
            for b in batches
        ]
        norm = encoder.get_submodule("norm")
        torch.testing.assert_close(norm.running_mean, torch.stack([v.mean(0) for v in values]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([v.var(0) for v in values]).mean(0))
        assert norm.momentum == 0.1 and not encoder.training
        assert torch.equal(before, encoder.get_parameter("first.weight"))
        assert all(p.grad is None for p in encoder.parameters())


class TestLinearProbe:
    def test_the_chosen_layer_is_used_and_saved(self):
        probe, features = LinearProbe(3, 2, heads=3).eval(), torch.randn(5, 3)
        assert torch.allclose(probe(features), probe.each(features)[0])
        probe.best.fill_(2)
        assert torch.allclose(probe(features), probe.each(features)[2])
        assert int(probe.state_dict()["best"]) == 2

    def test_layers_share_nothing(self):
        probe = LinearProbe(3, 2, heads=2)
        assert {name.partition(".")[0] for name, p in probe.named_parameters() if p.requires_grad} == {"heads"}


class TestDense:
    def test_levels_side_by_side(self):
        encoder = resolve_encoder("random:pointwise").encoder.eval()
        assert dense(encoder, cloud(4, 6), (0, 1)).shape == (10, 16)

    def test_a_lost_row_is_an_error(self):
        encoder = resolve_encoder("random:pointwise").encoder.eval()
        whole = encoder.encode
        encoder.encode = lambda tokens, points: whole(tokens.rows(torch.arange(3)), points)
        with pytest.raises(UserError, match="gave 3 rows for 4 points"):
            dense(encoder, cloud(4), (0,))
