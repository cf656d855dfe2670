"""Correlations and spectra are those of made logs and features whose answer is known."""

import numpy as np
import pytest
import torch

from splatlearn.engine.diagnostics import Spread, collect, spread_of, update_correlations

WALK = [1.0, 0.7, 0.9, 0.4, 0.5, 0.1]
FLAT = [0.3] * 6


def series(values, first=0):
    return list(range(first, first + len(values))), list(values)


class TestUpdates:
    def test_known_pairs(self):
        twice, falls = [2 * value + 5 for value in WALK], [-value for value in WALK]
        found, count = update_correlations({"a": series(WALK), "b": series(twice), "c": series(falls)})
        np.testing.assert_allclose(found, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-12)
        assert count == 5

    def test_it_is_of_updates_and_not_of_values(self):
        """Both fall, one on even steps and the other on odd ones."""
        stairs = [3.0, 3, 2, 2, 1, 1, 0, 0, -1], [3.0, 2, 2, 1, 1, 0, 0, -1, -1]
        found, _ = update_correlations({"a": series(stairs[0]), "b": series(stairs[1])})
        assert found[0, 1] == pytest.approx(-1)
        assert np.corrcoef(*stairs)[0, 1] > 0.9

    def test_numpy_says_so_too(self):
        losses = np.random.default_rng(0).normal(size=(3, 50))
        found, count = update_correlations({str(row): series(of) for row, of in enumerate(losses)})
        np.testing.assert_allclose(found, np.corrcoef(np.diff(losses, axis=1)), atol=1e-12)
        assert count == 49

    @pytest.mark.parametrize("constant", [FLAT, [0.1 * step for step in range(6)]])
    def test_a_constant_is_undefined(self, constant):
        """So is one that falls by the same in every step."""
        found, _ = update_correlations({"a": series(WALK), "b": series(constant)})
        assert found[0, 0] == pytest.approx(1)
        assert np.isnan(found[0, 1]) and np.isnan(found[1, 0]) and np.isnan(found[1, 1])

    def test_updates_are_between_steps_that_follow_each_other(self):
        """A jump across steps that one of both has no loss of is none."""
        late = [0, 1, 2, 4, 5, 6], [1.0, 2, 1, 90, 91, 93]
        found, count = update_correlations({"a": series([1.0, 3, 1, 50, 2, 4, 8]), "b": late})
        assert count == 4
        assert found[0, 1] == pytest.approx(np.corrcoef([2, -2, 2, 4], [1, -1, 1, 2])[0, 1])

    @pytest.mark.parametrize("length", [0, 1, 3])
    def test_too_few(self, length):
        found, count = update_correlations({"a": series(WALK[:length]), "b": series(WALK[:length])})
        assert np.isnan(found).all() and found.shape == (2, 2)
        assert count == max(length - 1, 0)


def test_numbers_are_found_wherever_a_line_has_them():
    lines = [{"step": 0, "loss": 1.0}, {"step": 1, "metrics": {"a/b": 2.0}, "validation": {"c": None}}, {"step": 2}]
    names = {"loss": "loss", "ab": "a/b", "c": "c", "none": "d"}
    assert collect(lines, names) == {"loss": ([0], [1.0]), "ab": ([1], [2.0])}


class TestSpread:
    def test_of_known_variances(self):
        generator = torch.Generator().manual_seed(0)
        scales = torch.tensor([3.0, 2, 1, 0])
        tokens = torch.linalg.qr(torch.randn(400, 5, generator=generator)).Q
        tokens = torch.linalg.qr(torch.cat([torch.ones(400, 1), tokens], 1)).Q[:, 1:5] * scales  # centred, orthogonal
        turned = tokens @ torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q + 7
        spread = spread_of(turned.view(4, 10, 10, 4))
        assert spread.tokens == 400
        assert spread.cumulative().tolist() == pytest.approx([9 / 14, 13 / 14, 1, 1], abs=1e-5)
        assert [spread.components(share) for share in (0.6, 0.9, 0.95, 1)] == [1, 2, 3, 3]

    def test_batches_add_up(self):
        tokens = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(spread_of(tokens).cumulative(), spread_of([tokens]).cumulative())

    def test_few_tokens_have_few_components(self):
        curve = spread_of([torch.randn(3, 8, generator=torch.Generator().manual_seed(2))]).cumulative()
        assert curve[0] < 1 and curve[1:].tolist() == pytest.approx([1] * 7)

    @pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e4])
    def test_without_variance(self, value):
        spread = Spread()
        spread.add(torch.full((50, 4), value))
        assert not spread.cumulative().any()
        assert spread.components(0.9) == 0
