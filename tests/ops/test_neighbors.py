"""Sampling and neighbours against plain loops over all pairs."""

import pytest
import torch

from splatlearn.errors import UserError
from splatlearn.ops.neighbors import (
    _ball_device,
    _nearest_device,
    ball_query,
    farthest_point_sampling,
    hashed_order,
    interpolate,
    interpolation_weights,
    knn,
    three_nearest,
)
from splatlearn.structures import Packed

COUNTS = (900, 0, 600)


@pytest.fixture
def cloud():
    torch.manual_seed(0)
    return torch.rand(1500, 3)


def _sample_slowly(xyz, samples):
    distance, rows = torch.full((len(xyz),), torch.inf), [0]
    while len(rows) < samples:
        distance = torch.minimum(distance, (xyz - xyz[rows[-1]]).square().sum(1))
        rows.append(int(distance.argmax()))
    return rows


def test_farthest_points_are_exact(cloud):
    rows, counts = farthest_point_sampling(cloud, COUNTS, 200)
    assert counts == (200, 0, 200)
    assert rows[:200].tolist() == _sample_slowly(cloud[:900], 200)
    assert (rows[200:] - 900).tolist() == _sample_slowly(cloud[900:], 200)


def test_a_sampling_of_a_sampling_is_its_beginning(cloud):
    rows, _ = farthest_point_sampling(cloud, (1500,), 300)
    again, _ = farthest_point_sampling(cloud[rows], (300,), 100)
    assert again.tolist() == list(range(100))


def test_farthest_points_of_few_and_equal_points():
    rows, counts = farthest_point_sampling(torch.zeros(5, 3), (1, 4), 3)
    assert counts == (1, 3) and rows.tolist() == [0, 1, 2, 3]
    rows, _ = farthest_point_sampling(torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]), (3,), 9)
    assert rows.tolist() == [0, 2, 1]
    with pytest.raises(UserError, match="at least 1"):
        farthest_point_sampling(torch.zeros(5, 3), (5,), 0)


def _ball_slowly(center, xyz, radius, k):
    hits = ((xyz - center).square().sum(1) < radius**2).nonzero()[:, 0].tolist()[:k]
    hits = hits or [int((xyz - center).square().sum(1).argmin())]
    return hits + [hits[0]] * (k - len(hits))


@pytest.mark.parametrize("radius", [0.02, 0.15, 3.0])
def test_ball_query_takes_the_first_in_row_order(cloud, radius):
    centers = torch.cat([cloud[:40], torch.rand(20, 3) * 1.2 - 0.1])
    found = ball_query(centers, (60,), cloud, (1500,), radius, 12)
    assert found.tolist() == [_ball_slowly(c, cloud, radius, 12) for c in centers]
    assert torch.equal(found, _ball_device(centers, cloud, radius, 12))


def test_ball_query_stays_within_items(cloud):
    found = ball_query(cloud[:20].repeat(2, 1), (20, 0, 20), cloud, COUNTS, 0.3, 8)
    assert bool((found[:20] < 900).all()) and bool((found[20:] >= 900).all())
    assert torch.equal(_ball_device(cloud[:3], cloud[:2], 5.0, 4), torch.tensor([[0, 1, 0, 0]] * 3))
    with pytest.raises(UserError, match=r"items \[1\] have queries but no points"):
        ball_query(cloud[:4], (2, 2, 0), cloud, COUNTS, 0.3, 8)


def test_knn_is_exact_on_both_paths(cloud):
    queries = torch.rand(50, 3)
    distances, rows = knn(queries, (30, 0, 20), cloud, COUNTS, 5)
    for part, start, stop in ((slice(0, 30), 0, 900), (slice(30, 50), 900, 1500)):
        expected = torch.cdist(queries[part].double(), cloud[start:stop].double()).topk(5, largest=False)
        assert torch.equal(rows[part] - start, expected.indices)
        assert torch.allclose(distances[part].double(), expected.values, atol=1e-6)
        other = _nearest_device(queries[part], cloud[start:stop], 5)
        assert torch.equal(other[1], expected.indices)


def test_knn_of_too_few_points():
    distances, rows = knn(torch.zeros(1, 3), (1,), torch.ones(2, 3), (2,), 3)
    assert rows[0, 2] == rows[0, 0] and distances[0].isinf().tolist() == [False, False, True]
    with pytest.raises(UserError, match="1 items of queries, 2 of points"):
        knn(torch.zeros(1, 3), (1,), torch.ones(2, 3), (1, 1), 3)


@pytest.mark.parametrize("power", [1, 2])
def test_interpolation_weights_follow_the_inverse_distance(power):
    weights = interpolation_weights(torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, torch.inf]]), power)
    inverse = torch.tensor([1.0, 0.5**power, 0.25**power])
    assert torch.allclose(weights[0], inverse / inverse.sum())
    assert torch.allclose(weights[1], torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)


def test_interpolation_gives_back_the_sources_and_passes_gradients(cloud):
    features = torch.randn(1500, 4, dtype=torch.float64, requires_grad=True)
    rows, weights = three_nearest(cloud[:30], (30,), cloud, (1500,))
    result = interpolate(features, rows, weights.double())
    assert torch.allclose(result, features[:30], atol=1e-3)
    few = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: interpolate(f, rows[:9] % 9, weights[:9].double()), (few,))


def test_hashed_order_depends_on_contents_alone(cloud):
    item = Packed(counts=COUNTS).item
    order = hashed_order(cloud, item)
    shuffle = torch.cat([torch.randperm(900), 900 + torch.randperm(600)])
    again = hashed_order(cloud[shuffle], item)
    assert torch.equal(cloud[order], cloud[shuffle][again])
    assert torch.equal(item[order], item)
    # in such an order, the first half is not one side of the cloud
    assert float((cloud[order[:450]].mean(0) - cloud[:900].mean(0)).abs().max()) < 0.06
