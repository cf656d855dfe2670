"""Robo3D's arithmetic against published tables, corrupted sets on disk, and a probe under all corruptions."""

from functools import partial
from shutil import rmtree

import pytest
import torch

from data.scan_maker import write_corrupted, write_kitti, write_nuscenes, write_semantic_kitti
from splatlearn.data.corruptions import CORRUPTIONS, CorruptedScene
from splatlearn.data.sampling import split_scenes
from splatlearn.data.scene import Scene, Source
from splatlearn.errors import BadData, UserError
from splatlearn.structures import Points
from splatlearn.tasks.encoders import resolve_encoder
from splatlearn.tasks.robustness import (
    BASELINES,
    LAYOUTS,
    RobustnessTable,
    check_complete,
    check_scans,
    corruption_errors,
    evaluate_robustness,
    generated,
    mean_corruption_error,
    mean_resilience_rate,
    official,
    official_kind,
    resilience_rates,
    segmentation_score,
)
from splatlearn.tasks.segmentation import Segmentation, SegmentationConfig
from tasks import worlds

PUBLISHED = {
    ("nuScenes-C", "WaffleIron"): (
        (106.73, 72.78, 76.07),
        (56.07, 73.93, 49.59, 59.46, 65.19, 33.12, 61.51, 44.01),
    ),
    ("nuScenes-C", "MinkUNet34"): (
        (96.37, 75.08, 76.90),
        (56.91, 74.93, 37.50, 75.24, 70.10, 29.32, 64.96, 52.96),
    ),
    ("nuScenes-C", "GFNet"): ((92.55, 83.31, 76.79), (69.59, 75.52, 71.83, 59.43, 64.47, 66.78, 61.86, 42.30)),
    ("SemanticKITTI-C", "WaffleIron"): (
        (109.54, 72.18, 66.04),
        (45.52, 58.55, 49.30, 33.02, 59.28, 22.48, 58.55, 54.62),
    ),
    ("SemanticKITTI-C", "CENet34"): (
        (103.41, 81.29, 62.55),
        (42.70, 57.34, 53.64, 52.71, 55.78, 45.37, 53.40, 45.84),
    ),
}
"""(mCE, mRR, clean mIoU) and mIoU by corruption: the tables in the README of ldkong1205/Robo3D."""
SEVERAL = {
    "fog": (54.57, 49.31, 32.67),
    "wet_ground": (62.55, 59.56, 53.54),
    "snow": (49.60, 49.41, 48.88),
    "motion_blur": (37.61, 32.75, 28.69),
    "beam_missing": (63.76, 59.46, 54.63),
    "crosstalk": (26.66, 22.02, 18.76),
    "incomplete_echo": (62.55, 59.56, 53.54),
    "cross_sensor": (63.34, 59.77, 40.74),
}
"""WaffleIron on SemanticKITTI-C by severity: docs/results/WaffleIron.md of ldkong1205/Robo3D. Its mRR from these
rounded numbers is 72.174, its published one 72.18; that wet ground and incomplete echo are
alike is so in the source."""
RATES = (68.93, 88.66, 74.65, 50.00, 89.76, 34.04, 88.66, 82.71)


def by_name(row) -> dict[str, list[float]]:
    return {name: [value] for name, value in zip(CORRUPTIONS, row)}


class TestArithmetic:
    @pytest.mark.parametrize("key", PUBLISHED, ids=" ".join)
    def test_published_rows(self, key):
        (mce, mrr, clean), row = PUBLISHED[key]
        assert mean_corruption_error(by_name(row), BASELINES[key[0]]) == pytest.approx(mce, abs=0.006)
        assert mean_resilience_rate(by_name(row), clean) == pytest.approx(mrr, abs=0.006)

    @pytest.mark.parametrize(("kind", "mrr"), [("SemanticKITTI-C", 81.90), ("nuScenes-C", 74.44)])
    def test_the_baseline_against_itself(self, kind, mrr):
        baseline = BASELINES[kind]
        own = {name: [baseline[name]] for name in CORRUPTIONS}
        assert list(corruption_errors(own, baseline).values()) == pytest.approx([100.0] * 8)
        assert mean_resilience_rate(own, baseline["clean"]) == pytest.approx(mrr, abs=0.006)

    def test_three_severities_give_what_their_mean_gives(self):
        rates = resilience_rates(SEVERAL, 66.04)
        assert list(rates.values()) == pytest.approx(RATES, abs=0.01)
        assert mean_corruption_error(SEVERAL, BASELINES["SemanticKITTI-C"]) == pytest.approx(109.54, abs=0.01)

    def test_by_hand(self):
        half = {name: [50.0, 40.0, 60.0] for name in CORRUPTIONS}
        assert mean_corruption_error(half, dict.fromkeys(CORRUPTIONS, 75.0)) == pytest.approx(200)
        assert mean_resilience_rate(half, 80.0) == pytest.approx(62.5)


class TestErrors:
    def test_missing_and_unknown(self):
        some = {name: [50.0] for name in CORRUPTIONS if name not in ("snow", "crosstalk")}
        with pytest.raises(UserError, match="need all eight corruptions; missing: snow, crosstalk"):
            corruption_errors(some, BASELINES["nuScenes-C"])
        with pytest.raises(UserError, match=r"baseline: .*missing: snow"):
            corruption_errors(SEVERAL, {k: v for k, v in BASELINES["nuScenes-C"].items() if k != "snow"})
        with pytest.raises(UserError, match="no corruption 'foggy'; did you mean 'fog'"):
            check_complete({**SEVERAL, "foggy": [1.0]})

    @pytest.mark.parametrize("values", [[], [1.0, 2.0], [101.0], [-1.0], [float("nan")]])
    def test_values(self, values):
        with pytest.raises(UserError, match="snow: one mIoU in percent for each of light, moderate, heavy"):
            check_complete({**SEVERAL, "snow": values})

    @pytest.mark.parametrize("clean", [0.0, -1.0, 100.5, float("nan")])
    def test_clean(self, clean):
        with pytest.raises(UserError, match="clean mIoU above 0"):
            mean_resilience_rate(SEVERAL, clean)


class TestTable:
    def test_numbers_and_text(self):
        table = RobustnessTable(clean=66.04, corrupted=SEVERAL, baseline=BASELINES["SemanticKITTI-C"], name="KITTI")
        assert table.metrics["mce"] == pytest.approx(109.54, abs=0.01)
        assert table.metrics["mrr"] == pytest.approx(72.18, abs=0.01)
        assert table.metrics["miou/fog"] == pytest.approx(45.52, abs=0.01)
        text = str(table)
        assert "robustness, KITTI, %" in text and "109.54" in text and "72.17" in text and "32.67" in text
        assert table.to_dict()["corrupted"]["fog"] == [54.57, 49.31, 32.67]

    def test_without_baseline(self):
        table = RobustnessTable(clean=66.04, corrupted=SEVERAL, baseline={})
        assert "mce" not in table.metrics and table.errors == {} and "72.17" in str(table)
        again = RobustnessTable(clean=66.04, corrupted=SEVERAL, baseline=table.means())
        assert again.metrics["mce"] == pytest.approx(100)


WRITERS = {
    "SemanticKITTI-C": write_semantic_kitti,
    "nuScenes-C": partial(write_nuscenes, drives=5, version="v1.0-trainval"),
}
"""By corrupted set: who writes the original one."""


@pytest.fixture(params=LAYOUTS)
def original(request, tmp_path):
    """The kind of a corrupted set, the original data, their validation scans, and an empty folder for the set."""
    WRITERS[request.param](tmp_path / "clean")
    source = Source(name=str(tmp_path / "clean"))
    return request.param, source, split_scenes(source.scenes(), "val"), tmp_path / "spoilt"


class TestOfficialSets:
    def test_their_scans_and_labels_are_read(self, original):
        kind, source, scenes, root = original
        write_corrupted(root, kind, scenes)
        assert official_kind(source) == kind
        corrupt = official(scenes, root, kind)
        for corruption, known in (("fog", 0), ("snow", 100)):
            found = corrupt(corruption, "heavy")
            assert [scene.name for scene in found] == [scene.name for scene in scenes]
            for scene, clean in zip(found, scenes):
                points = scene.points()
                assert torch.equal(points.xyz, clean.points().xyz[:100]) and len(clean.points()) > 100
                assert int((points["label"] >= 0).sum()) == known
                assert scene.scan.is_relative_to(root / corruption / "heavy")

    def test_what_is_missing_is_named(self, original):
        kind, source, scenes, root = original
        write_corrupted(root, kind, scenes)
        lost = root / "snow/heavy" / LAYOUTS[kind].scans / scenes[-1].scan.name
        lost.unlink()
        with pytest.raises(BadData, match=f"validation scans are missing: {lost.relative_to(root)}$"):
            check_scans(source, root)
        rmtree(root / "fog/light")
        with pytest.raises(BadData, match=r"fog/light/\S+, fog/light/\S+$"):
            check_scans(source, root)
        with pytest.raises(BadData, match="and 44 more"):
            check_scans(source, root / "fog")

    def test_other_data_have_none(self, tmp_path):
        write_kitti(tmp_path / "clean")
        with pytest.raises(UserError, match=r"SemanticKITTI-C and nuScenes-C; --data .* is of neither"):
            check_scans(Source(name=str(tmp_path / "clean")), tmp_path)


class Lidar(Scene):
    """A cloud of the toy world with an intensity."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.name, self.split = scene, scene.name, scene.split

    def points(self) -> Points:
        points = self.scene.points()
        return points.with_attributes(intensity=torch.linspace(0.1, 0.9, len(points)))


class TestEvaluation:
    def test_every_corruption_at_every_severity(self):
        seen, told = [], []

        def score(scenes) -> float:
            seen.append([(s.corruption, s.severity, s.seed) for s in scenes if isinstance(s, CorruptedScene)])
            return 80.0 if not seen[-1] else 40.0

        scenes = [Lidar(worlds.PatchScene(n, 50, True, ("normal",))) for n in range(2)]
        table = evaluate_robustness(
            score, scenes, generated(scenes, seed=5), baseline=BASELINES["nuScenes-C"], tell=told.append
        )
        assert seen[0] == [] and len(seen) == len(told) == 25
        assert seen[1] == [("fog", "light", 5)] * 2 and seen[-1] == [("cross_sensor", "heavy", 5)] * 2
        assert table.metrics["mrr"] == 50 and table.clean == 80

    def test_no_scenes(self):
        with pytest.raises(UserError, match="no scenes"):
            evaluate_robustness(lambda scenes: 1.0, [], generated([]))

    @pytest.mark.parametrize("probe", ["linear", "finetune"])
    def test_a_task_is_scored_as_it_scores_itself(self, monkeypatch, probe):
        worlds.register(monkeypatch)
        source = Source(name="patches")
        encoder = resolve_encoder("random:pointwise", available=("color", "normal")).encoder
        config = SegmentationConfig(voxel=0.05, rows=64, crop=100, learning_rates=(0.1,))
        task = Segmentation(config, encoder=encoder, source=source, probe=probe).eval()
        score = segmentation_score(task, source)
        scenes = [Lidar(scene) for scene in split_scenes(source.scenes(), "val")]
        assert score(scenes) == pytest.approx(task.evaluate(task.validation.each("val"))["miou"])
        table = evaluate_robustness(score, scenes, generated(scenes, classes=task.classes))
        assert all(0 <= value <= 100 for values in table.corrupted.values() for value in values)
        assert table.metrics == evaluate_robustness(score, scenes, generated(scenes, classes=task.classes)).metrics
