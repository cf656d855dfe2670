"""Order and loader: pure functions of (seed, position), whoever draws."""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.toys import Clouds, ToyData
from splatlearn.data.scene import Rejected
from splatlearn.engine.loader import ATTEMPTS, LOYAL_ATTEMPTS, Loader, Order
from splatlearn.errors import BadData, ConfigError, UserError

SEEDS = {"train": 3, "val": 0}


def make_loader(data: ToyData, **options) -> Loader[Clouds]:
    return Loader({"train": data, "val": data}, SEEDS, **{"batch": 4, **options})


def same(first: Clouds, second: Clouds) -> bool:
    tensors = [(b.points.xyz, b.points["color"], b.points["center"]) for b in (first, second)]
    return first.names == second.names and all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


class TestOrder:
    def test_every_scene_once_an_epoch(self):
        order = Order([3, 4], [], seed=1)
        epochs = [[order[7 * e + i][0] for i in range(7)] for e in range(4)]
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1

    def test_pure(self):
        first, second = Order([5, 5], [1, 2], seed=9), Order([5, 5], [1, 2], seed=9)
        _ = [first[i] for i in (3, 700, 2)]
        for position in (2, 10**12):
            (a, x), (b, y) = first[position], second[position]
            assert a == b
            assert x.random() == y.random()

    def test_seeds_and_positions_differ(self):
        draws = {Order([5], [], seed=s)[p][1].random() for s in range(5) for p in range(5)}
        assert len(draws) == 25

    def test_shares(self):
        order = Order([1, 90, 9], [0.5, 0.0, 1.5], seed=0)
        counts = Counter(order[i][0] for i in range(4000))
        assert not any(1 <= scene < 91 for scene in counts)
        assert counts[0] / 4000 == pytest.approx(0.25, abs=0.03)

    def test_equal_shares_take_turns(self):
        order = Order([3, 4, 5], [2.0, 0.0, 2.0], seed=0)
        scenes = [order[position][0] for position in range(60)]
        assert all(scene < 3 for scene in scenes[::2]) and all(scene >= 7 for scene in scenes[1::2])
        epochs = [tuple(scenes[::2][i : i + 3]) for i in range(0, 30, 3)]
        assert all(len(set(epoch)) == 3 for epoch in epochs) and len(set(epochs)) > 1
        assert {order.draw(1, attempt)[0] for attempt in range(40)} == set(range(7, 12))

    @pytest.mark.parametrize("shares", [[], [0.3, 0.7], [1, 1]])
    def test_redraw(self, shares):
        order = Order([10, 10], shares, seed=2)
        draws = [order.draw(5, attempt) for attempt in range(20)]
        assert len({rng.random() for _, rng in draws}) == 20
        assert len({scene for scene, _ in draws[:LOYAL_ATTEMPTS]}) == 1
        assert len({scene for scene, _ in draws}) > 3

    @pytest.mark.parametrize(
        ("sizes", "shares", "message"),
        [
            ([], [], "no scene"),
            ([0, 0], [], "no scene"),
            ([1, 2], [1], "do not fit 2 groups"),
            ([1, 2], [-1, 2], "do not fit"),
            ([0, 2], [1, 1], r"groups \[0\] have a share"),
        ],
    )
    def test_errors(self, sizes, shares, message):
        with pytest.raises(UserError, match=message):
            Order(sizes, shares, seed=0)


class TestLoader:
    def test_start_anywhere(self):
        loader = make_loader(ToyData(rejecting=0.3))
        whole = list(loader.steps("train", 0, 6))
        assert len(whole) == 6
        for batch, again in zip(whole[4:], make_loader(ToyData(rejecting=0.3)).steps("train", 4, 6), strict=True):
            assert same(batch, again)

    def test_ranks_share_a_batch(self):
        whole = list(make_loader(ToyData()).steps("train", 2, 5))
        ranks = [make_loader(ToyData(), rank=r, ranks=2).steps("train", 2, 5) for r in range(2)]
        for batch, parts in zip(whole, zip(*ranks, strict=True), strict=True):
            assert same(batch, Clouds.pack(list(parts)))

    def test_workers_draw_the_same(self):
        data = ToyData(rejecting=0.3, groups={"a": 1.0, "b": 3.0})
        here, there = make_loader(data), make_loader(data, workers=2)
        for split, start, stop in (("train", 0, 5), ("val", 0, 2), ("train", 3, 6)):
            mine, theirs = here.steps(split, start, stop), there.steps(split, start, stop)
            for ours, other in zip(mine, theirs, strict=True):
                assert same(ours, other)
                assert here.rejected == there.rejected
        assert there.waited > 0

    def test_a_stream_may_be_left(self):
        loader = make_loader(ToyData())
        next(loader.steps("train", 0, 100))
        assert len(list(loader.whole("val", 6))) == 2
        assert [len(batch.names) for batch in loader.whole("val", 6)] == [4, 2]

    def test_every_validation_scene_once(self):
        names = [name for batch in make_loader(ToyData()).whole("val", 7) for name in batch.names]
        assert sorted(names) == [f"scene-{i}" for i in range(1000, 1007)]

    def test_threads_are_left_alone(self):
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            batches = make_loader(ToyData()).steps("train", 0, 2)
            for _ in batches:
                assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Hopeless(ToyData):
    def sample(self, scene, rng: np.random.Generator) -> Clouds:
        raise Rejected("overlap too small" if rng.random() < 0.9 else "no depth")


@dataclass(frozen=True, kw_only=True)
class Wordy(ToyData):
    def sample(self, scene, rng: np.random.Generator) -> Clouds:
        if rng.random() < 0.5:
            raise Rejected("overlap too small", f"{scene.name}: {rng.random():.6%}")
        return super().sample(scene, rng)


@dataclass(frozen=True, kw_only=True)
class WordyHopeless(ToyData):
    def sample(self, scene, rng: np.random.Generator) -> Clouds:
        raise Rejected("overlap too small", f"{scene.name}: 12%")


@dataclass(frozen=True, kw_only=True)
class Broken(ToyData):
    def sample(self, scene, rng: np.random.Generator) -> Clouds:
        raise BadData("color/000012.jpg: truncated JPEG")


@dataclass(frozen=True, kw_only=True)
class Tethered(ToyData):
    callback: object = field(default_factory=lambda: lambda: None)


@dataclass(frozen=True, kw_only=True)
class Unequal(ToyData):
    def sample(self, scene, rng: np.random.Generator) -> Clouds:
        batch = super().sample(scene, rng)
        points = batch.points.with_attributes(normal=batch.points.xyz) if scene.number % 2 else batch.points
        return Clouds(names=batch.names, points=points)


def test_rejections_are_counted_by_kind():
    loader, counted = make_loader(Wordy()), Counter()
    for _ in loader.steps("train", 0, 10):
        counted += loader.rejected
    assert counted.keys() == {"overlap too small"} and counted.total() > 10


class TestErrors:
    def test_no_sample(self):
        with pytest.raises(UserError, match=rf"{ATTEMPTS} attempts.*overlap too small \(\d+ times\), no depth"):
            next(make_loader(Hopeless()).steps("train", 0, 1))

    def test_no_sample_names_an_example(self):
        with pytest.raises(UserError, match=rf"overlap too small \(scene-\d: 12%\) \({ATTEMPTS} times\)$"):
            next(make_loader(WordyHopeless()).steps("train", 0, 1))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_one_clean_message(self, workers):
        with pytest.raises(UserError) as caught:
            next(make_loader(Broken(), workers=workers).steps("train", 0, 1))
        assert str(caught.value).startswith("split train: scene-")
        assert str(caught.value).endswith("color/000012.jpg: truncated JPEG")

    def test_samples_that_do_not_go_together(self):
        with pytest.raises(UserError, match=r"same attributes.*\(samples scene-"):
            next(make_loader(Unequal()).steps("train", 0, 1))

    def test_not_picklable(self):
        with pytest.raises(UserError, match=r"data of split 'train' \(Tethered\) cannot travel.*--train.workers 0"):
            make_loader(Tethered(), workers=1)
        make_loader(Tethered(), workers=0)

    def test_indivisible_batch(self):
        with pytest.raises(ConfigError, match="global batch of 4 cannot be shared equally by 3"):
            make_loader(ToyData(), ranks=3)

    def test_unknown_group(self):
        class Odd(ToyData):
            def scenes(self, split):
                return {"all": next(iter(super().scenes(split).values()))}

        with pytest.raises(ConfigError, match="unknown groups"):
            make_loader(Odd(groups={"b": 1.0}))


SCRIPT = """
from dataclasses import dataclass
import numpy as np
from engine.toys import Clouds, ToyData
from splatlearn.engine.loader import Loader

@dataclass(frozen=True, kw_only=True)
class Mine(ToyData):
    pass

if __name__ == "__main__":
    loader = Loader({"train": Mine()}, {"train": 0}, batch=2, workers=1)
    names = [batch.names for batch in loader.steps("train", 0, 2)]
    print(loader.workers, len(names))
"""


class TestMainModule:
    def run(self, arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
        paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]
        return subprocess.run(
            [sys.executable, *arguments],
            input=text,
            env={"PYTHONPATH": ":".join(paths)},
            capture_output=True,
            text=True,
            timeout=400,
        )

    def test_script(self, tmp_path):
        (tmp_path / "mine.py").write_text(SCRIPT)
        done = self.run([str(tmp_path / "mine.py")])
        assert done.stdout.split() == ["1", "2"], done.stderr

    def test_interactive(self):
        done = self.run(["-"], SCRIPT)
        assert done.stdout.split() == ["0", "2"], done.stderr
        assert "interactive session" in done.stderr
