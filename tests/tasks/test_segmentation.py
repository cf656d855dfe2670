from dataclasses import replace

import numpy as np
import pytest
import torch

from splatlearn.data.scene import Rejected, Source
from splatlearn.encoders.base import PointEncoderConfig
from splatlearn.engine.trainable import Progress
from splatlearn.errors import BadData, ConfigError, UserError
from splatlearn.structures import Points
from splatlearn.tasks.clouds import Cloud, CloudData, keep_for_tuning, keep_labels, thin_rows
from splatlearn.tasks.encoders import resolve_encoder
from splatlearn.tasks.scores import Scores
from splatlearn.tasks.segmentation import Segmentation, SegmentationConfig
from tasks import worlds

CONFIG = SegmentationConfig(voxel=0.05, rows=64, crop=100)


@pytest.fixture(autouse=True)
def toy_world(monkeypatch):
    worlds.register(monkeypatch)


def source(**options) -> Source:
    return Source(name="patches", options=options)


def task(probe="linear", config=CONFIG, encoder="random:pointwise", labels=1.0, **options) -> Segmentation:
    resolved = resolve_encoder(encoder, available=("color", "normal")).encoder
    return Segmentation(config, encoder=resolved, source=source(**options), probe=probe, labels=labels)


def scene_of(data, split="train"):
    return data.scenes(split)["all"][0]


def evaluate(model: Segmentation) -> dict[str, float]:
    return model.eval().evaluate(model.validation.each("val"))


class TestThinning:
    def test_one_point_a_voxel_and_each_point_its_own_voxel(self):
        xyz = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
        kept, stands_for = thin_rows(xyz, 0.2)
        cells = ((xyz - xyz.amin(0)) / 0.2).floor().long()
        assert len(torch.unique(cells, dim=0)) == len(kept)
        assert torch.equal(cells[kept][stands_for], cells)
        assert torch.equal(stands_for[kept], torch.arange(len(kept)))

    def test_the_kept_point_is_nearest_to_the_mean(self):
        xyz = torch.tensor([[0.0, 0, 0], [0.05, 0, 0], [0.09, 0, 0]])
        assert thin_rows(xyz, 0.1)[0].tolist() == [1]

    def test_zero_keeps_all(self):
        kept, stands_for = thin_rows(torch.zeros(4, 3), 0.0)
        assert kept.tolist() == stands_for.tolist() == [0, 1, 2, 3]


class TestLabels:
    points = Points(xyz=torch.zeros(100, 3), attributes={"label": torch.arange(100) % 11 - 1})

    def test_share_is_exact_seeded_and_by_cloud(self):
        limited = keep_labels(self.points, 0.1, "a", 0)["label"]
        kept = limited >= 0
        assert int(kept.sum()) == round(0.1 * int((self.points["label"] >= 0).sum()))
        assert torch.equal(limited[kept], self.points["label"][kept])
        assert torch.equal(limited, keep_labels(self.points, 0.1, "a", 0)["label"])
        assert not torch.equal(limited, keep_labels(self.points, 0.1, "b", 0)["label"])
        assert not torch.equal(limited, keep_labels(self.points, 0.1, "a", 1)["label"])

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
    def test_bad_share(self, share):
        with pytest.raises(UserError, match=r"share in \(0, 1\]"):
            keep_labels(self.points, share, "a", 0)

    def test_the_same_points_for_every_method(self):
        frozen, trained = task(labels=0.2), task("finetune", labels=0.2, config=replace(CONFIG, crop=10**6))
        held = scene_of(frozen.data).cloud.points
        clouds = trained.data
        drawn = replace(clouds, augment="none").sample(scene_of(clouds), np.random.default_rng(0)).points
        assert torch.equal(held["label"], drawn["label"])
        assert torch.equal(held.xyz, drawn.xyz)


class TestTuning:
    def test_clouds_are_apart_and_spread(self):
        train, tune = keep_for_tuning([*range(20)], 0.2)
        assert len(tune) == 4 and sorted([*train, *tune]) == [*range(20)]
        assert tune == [2, 7, 12, 17]

    def test_few_clouds_decide_themselves(self):
        assert keep_for_tuning([1, 2, 3, 4], 0.5) == ([1, 2, 3, 4], [1, 2, 3, 4])
        assert keep_for_tuning([*range(9)], 0.0)[0] == [*range(9)]

    @pytest.mark.parametrize("memory", [4.0, 0.0])
    def test_the_layer_with_least_loss_on_kept_clouds_is_used(self, memory):
        model = task(config=replace(CONFIG, memory=memory, learning_rates=(1.0, 0.1, 0.01)), scenes=12, labels=0.5)
        names = {split: {s.name for s in model.data.scenes(split)["all"]} for split in ("train", "tune", "val")}
        assert len(names["tune"]) == 2 and not names["tune"] & (names["train"] | names["val"])
        with torch.no_grad():
            good = model.probe.heads[1]
            for head in model.probe.heads:
                head.weight.zero_()
            labels = torch.cat([cloud.points["label"] for cloud in model.data.each("tune")])
            good.bias.copy_(torch.stack([(labels == c).double().mean() for c in range(3)]).log())
            model.probe.heads[0].bias.copy_(torch.tensor([9.0, 0, 0]))
            model.probe.heads[2].bias.copy_(torch.tensor([0, 0, 9.0]))
        evaluate(model)
        assert int(model.probe.best) == 1


class TestCloudData:
    def test_train_sample_is_a_seeded_crop(self):
        data = CloudData(
            source=source(), encoder=PointEncoderConfig(inputs=("color", "height")), crop=50, augment="indoor"
        )
        first, again, other = (data.sample(scene_of(data), np.random.default_rng(s)) for s in (1, 1, 2))
        assert len(first.points) == 50 and len(first.full) == 0
        assert set(first.points.attributes) == {"color", "height", "label"}
        assert torch.equal(first.points.xyz, again.points.xyz)
        assert not torch.equal(first.points.xyz, other.points.xyz)
        packed = Cloud.pack([first, other])
        assert packed.points.counts == (50, 50) and packed.full.counts == (0, 0)

    def test_height_is_that_of_the_whole_cloud(self):
        data = CloudData(source=source(), encoder=PointEncoderConfig(inputs=("height",)), crop=30)
        for seed in range(4):
            points = data.sample(scene_of(data), np.random.default_rng(seed)).points
            torch.testing.assert_close(points["height"], points.xyz[:, 2], atol=0.02, rtol=0)

    def test_splits_are_disjoint(self):
        data = CloudData(source=source())
        names = [{s.name for s in data.scenes(split)["all"]} for split in ("train", "val")]
        assert names[0] and names[1] and not names[0] & names[1]

    def test_unlabelled_crop_is_redrawn(self):
        data = CloudData(source=source(), labels=0.001, crop=10)
        drawn = 0
        for seed in range(30):
            try:
                data.sample(scene_of(data), np.random.default_rng(seed))
                drawn += 1
            except Rejected:
                pass
        assert 0 < drawn < 30

    def test_label_outside_the_classes(self):
        data = CloudData(source=source(), classes=2)
        with pytest.raises(BadData, match=r"patch\d: labels from -1 to 2; -1 \(ignored\) and 0 to 1 are allowed"):
            data.thin(scene_of(data))

    def test_a_mended_cloud_is_seen_by_the_next_source(self, tmp_path):
        found = []
        for points in (30, 40):
            for name in ("a", "b"):
                xyz = np.random.default_rng(0).random((points, 3))
                np.savez(tmp_path / f"{name}.npz", xyz=xyz, label=np.zeros(points, int))
            data = CloudData(source=Source(name=str(tmp_path)), voxel=0.0)
            found.append(sum(len(cloud.full) for split in ("train", "val") for cloud in data.each(split)))
            assert data.thin(scene := scene_of(data)) is data.thin(scene)
        assert found == [60, 80]


class TestScores:
    def test_against_hand_count(self):
        truth = torch.tensor([0, 0, 0, 1, 1, -1, 3])
        guess = torch.tensor([0, 0, 1, 1, 2, 2, 3])
        scores = Scores(5, "point")
        scores.update(guess[:3], truth[:3])
        scores.update(guess[3:], truth[3:])
        numbers = scores.compute(["a", "b", "c", "d", "e"])
        assert {k for k in numbers if k.startswith("iou/")} == {"iou/a", "iou/b", "iou/d"}
        assert numbers["iou/a"] == pytest.approx(100 * 2 / 3)
        assert numbers["iou/b"] == pytest.approx(100 / 3)
        assert numbers["miou"] == pytest.approx(100 * (2 / 3 + 1 / 3 + 1) / 3)
        assert numbers["macc"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)
        assert numbers["accuracy"] == pytest.approx(100 * 4 / 6)

    def test_nothing_labelled(self):
        scores = Scores(2, "point")
        scores.update(torch.tensor([0, 1]), torch.tensor([-1, -1]))
        with pytest.raises(BadData, match="no point is labelled"):
            scores.compute(["a", "b"])

    @pytest.mark.parametrize(("strict", "warn_only"), [(False, False), (True, False), (True, True)])
    def test_the_settings_of_determinism_come_back(self, strict, warn_only):
        try:
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            Scores(2, "point").update(torch.tensor([0, 1]), torch.tensor([0, 1]))
            assert torch.are_deterministic_algorithms_enabled() == strict
            assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
        finally:
            torch.use_deterministic_algorithms(False)


class TestConfig:
    def test_all_wrong_values_are_told_together(self):
        with pytest.raises(ConfigError, match=r"voxel: zero or more .*; tuning: a share in \[0, 1\)"):
            SegmentationConfig(voxel=-1, tuning=1.0)

    @pytest.mark.parametrize("name", ["rows", "learning_rates", "finetune_learning_rate", "memory", "weight_decay"])
    def test_each(self, name):
        with pytest.raises(ConfigError, match=name):
            SegmentationConfig(**{name: () if name == "learning_rates" else -1})


class TestSegmentation:
    @pytest.mark.parametrize("probe", ["linear", "decoder", "finetune"])
    def test_learns(self, probe):
        torch.manual_seed(0)
        model = task(probe)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, 0.02)
        before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
        for step in range(60):
            scenes = model.data.scenes("train")["all"]
            batch = Cloud.pack([model.data.sample(scenes[i], np.random.default_rng([step, i])) for i in range(2)])
            optimizer.zero_grad()
            sum(model(batch, Progress(step, 60)).losses.values()).backward()
            optimizer.step()
        numbers = evaluate(model)
        assert numbers["miou"] > 70
        after = model.encoder.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before) == (probe != "finetune")

    def test_frozen_encoder_is_no_parameter_but_moves(self):
        model = task()
        assert not any(name.startswith("encoder") for name in model.state_dict())
        assert not any(p.requires_grad for p in model.encoder.parameters())
        model.train()
        assert not model.encoder.training
        model.to(torch.float64)
        assert model.encoder.get_parameter("first.weight").dtype == torch.float64
        assert any(name.startswith("encoder.") for name in task("finetune").state_dict())

    def test_features_on_the_fly_equal_held_ones(self):
        held, fly = task(), task(config=replace(CONFIG, memory=0.0))
        fly.probe.load_state_dict(held.probe.state_dict())
        assert not isinstance(fly.data, type(held.data))
        assert evaluate(held) == pytest.approx(evaluate(fly))

    def test_every_point_is_predicted_once_in_a_pack(self):
        model = task().eval()
        one, two = (model.validation.sample(s, np.random.default_rng(0)) for s in model.data.scenes("train")["all"][:2])
        apart = torch.cat([model.predict(one), model.predict(two)])
        assert torch.equal(model.predict(Cloud.pack([one, two])), apart)
        assert len(apart) == len(one.full) + len(two.full) == 800

    def test_raw_inputs(self):
        assert task(encoder="raw").probe.heads[0].in_features == 7

    def test_classes_without_names(self):
        assert task(named=False).classes == ("class 0", "class 1", "class 2")

    def test_lovasz_joins(self):
        model = task(config=replace(CONFIG, lovasz=0.5))
        batch = model.data.sample(scene_of(model.data), np.random.default_rng(0))
        assert set(model(batch, Progress(0, 1)).losses) == {"cross_entropy", "lovasz"}

    def test_unlabelled_batches(self):
        encoder = resolve_encoder("random:pointwise").encoder
        batches = list(Segmentation.unlabelled(replace(CONFIG, calibration=9, crop=70), encoder, source(), 0))
        assert len(batches) == 9
        assert {len(points) for points in batches} == {70}

    def test_missing_labels_or_inputs(self):
        with pytest.raises(BadData, match=r"patch. has no labels, which segmentation needs"):
            task(labelled=False)
        bare = worlds.PatchScene(1, 400, False, ("color", "normal"))
        with pytest.raises(BadData, match=r"patch1: the cloud has no labels; label it, or take it out"):
            task("finetune").data.thin(bare)
        with pytest.raises(UserError, match=r"takes normal, which patches \(patch.\) does not have"):
            task(channels="[color]")

    def test_bad_config(self):
        with pytest.raises(UserError, match="steps: at least 1"):
            SegmentationConfig(steps=0)
