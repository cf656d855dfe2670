"""Probes of image encoders: what they are shown, what they learn, and what they are scored by."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from data.labelled_maker import write_camvid, write_classes
from splatlearn.data.scene import Source
from splatlearn.encoders.base import ImageEncoder
from splatlearn.engine.report import probe_rows
from splatlearn.errors import BadData, ConfigError, MissingData, UserError
from splatlearn.tasks.controls import compare_with_controls
from splatlearn.tasks.encoders import RAW_PATCH, resolve_encoder
from splatlearn.tasks.evaluation import Trial, find_encoder, run_probe, with_unit
from splatlearn.tasks.image_classification import ImageClassification, ImageClassificationConfig, neighbours
from splatlearn.tasks.image_depth import ImageDepth, ImageDepthConfig
from splatlearn.tasks.image_segmentation import ImageSegmentation, ImageSegmentationConfig
from splatlearn.tasks.shots import Shot
from splatlearn.verbs.pretrain import pretrain

CONFIG = ImageSegmentationConfig(tokens=7, rows=64, steps=30, batch=2)
CLASSES = {"classes": ("a", "b", "c"), "ignore": (11,)}


def encoder(name: str = "raw", **options) -> ImageEncoder:
    return resolve_encoder(name, options or None, kind=ImageEncoder).encoder


def data(folder, **options) -> Source:
    return Source(name=str(write_camvid(folder)), options=CLASSES | options)


def task(source, name="raw", config=CONFIG, **options) -> ImageSegmentation:
    return ImageSegmentation(config, encoder=encoder(name), source=source, **options)


def scores(model) -> dict[str, float]:
    return model.eval().evaluate(model.validation.each("val"))


class TestShots:
    def test_the_grid_follows_the_proportions(self, tmp_path):
        shot = next(task(data(tmp_path)).data.each("train"))
        assert shot.grids == [(10, 7)]
        assert shot.tokens.values.shape == (70, 3 * RAW_PATCH**2)
        assert shot.sizes.values.tolist() == [[10, 7, 0, 0, 40, 28]]

    def test_all_networks_have_the_same_grid(self, tmp_path):
        source = data(tmp_path)
        names = ("raw", "random:vit.tiny", "teacher:squeezenet.tiny")
        grids = [next(task(source, name).data.each("val")).grids for name in names]
        assert grids[0] == grids[1] == grids[2]

    def test_places_are_those_of_the_pixels(self, tmp_path):
        model, rng = task(data(tmp_path)), np.random.default_rng(0)
        scene = model.data.scenes("train")["all"][0]
        shot = model.data.sample(scene, rng)
        column, row = ((shot.truth["place"] * torch.tensor([40, 28])) - 0.5).round().long().t()
        assert torch.equal(scene.truth[row, column].long(), shot.truth.values)

    def test_only_labelled_pixels_are_trained_on(self, tmp_path):
        model, rng = task(data(tmp_path)), np.random.default_rng(0)
        shot = model.data.sample(model.data.scenes("train")["all"][0], rng)
        assert len(shot.truth) == 64 and int(shot.truth.values.min()) >= 0

    def test_read_there_or_enlarged_is_the_same(self, tmp_path):
        model, rng = task(data(tmp_path)).eval(), np.random.default_rng(0)
        shot = model.data.sample(model.data.scenes("train")["all"][0], rng)
        (there, *_), (maps, *_) = model.outputs(shot), model.maps(shot)
        enlarged = functional.interpolate(maps[0], (28, 40), mode="bilinear")[0]
        column, row = ((shot.truth["place"] * torch.tensor([40, 28])) - 0.5).round().long().t()
        assert torch.allclose(there, enlarged[:, row, column].t(), atol=1e-4)

    def test_what_cannot_be_read_or_says_nothing_is_left_out_for_all(self, tmp_path, caplog):
        folder = write_camvid(tmp_path)
        (folder / "train" / "000.png").write_bytes(b"none")
        (folder / "val" / "001.png").write_bytes(b"none")
        Image.fromarray(np.full((28, 40), 11, np.uint8)).save(folder / "trainannot" / "003.png")
        source = Source(name=str(folder), options=CLASSES)
        for memory in (4.0, 0.0):
            model = task(source, config=replace(CONFIG, memory=memory))
            names = {split: [s.name for s in model.data.scenes(split)["all"]] for split in ("train", "tune", "val")}
            assert len(names["val"]) == 2 and "val/001.png" not in names["val"]
            assert not {"train/000.png", "train/003.png"} & {*names["train"], *names["tune"]}
            model.choose()
        assert "3 of 9 images are left out: 2 x an image cannot be read" in caplog.text

    def test_computed_before_or_at_every_step_is_the_same(self, tmp_path):
        source, config = data(tmp_path), replace(CONFIG, memory=0.0)
        held, live = task(source, "random:vit.tiny"), task(source, "random:vit.tiny", config)
        assert held.data.train and not live.data.train
        shots = [next(model.validation.each("val")) for model in (held, live)]
        assert torch.allclose(held.features(shots[0]), live.features(shots[1]), atol=1e-5)
        both = Shot.pack([shots[1], shots[1]])
        assert torch.allclose(live.features(both)[:70], live.features(shots[1]), atol=1e-5)

    def test_shares_and_tuning(self, tmp_path):
        source = Source(name=str(write_camvid(tmp_path, train=12)), options=CLASSES)
        model = task(source, labels=0.5)
        train, tune = (model.data.scenes(split)["all"] for split in ("train", "tune"))
        assert len(train) + len(tune) == 6 and len(tune) == 1
        again = task(source, labels=0.5, seed=1)
        assert {s.name for s in train} != {s.name for s in again.data.scenes("train")["all"]}


class TestSegmentation:
    @pytest.mark.parametrize("probe", ["linear", "decoder"])
    def test_colours_are_learnt(self, tmp_path, probe):
        trial = Trial(task="image_segmentation.tiny", source=data(tmp_path), probe=probe, steps=60)
        trial = replace(trial, task_options={"tokens": 14, "rows": 256, "batch": 2, "decoder_learning_rate": 5e-3})
        found = run_probe(trial, find_encoder(trial, "raw"), "raw")
        assert found.metrics["miou"] > 85 and set(found.per_class) == {"a", "b", "c"}

    def test_the_best_layer_is_taken(self, tmp_path):
        config = replace(CONFIG, learning_rates=(1e3, 1e-2))
        trial = Trial(task="image_segmentation", source=data(tmp_path), steps=40)
        model = task(trial.source, config=config)
        with torch.no_grad():
            model.probe.heads[0].weight.mul_(1e4)
        scores(model)
        assert int(model.probe.best) == 1

    def test_nothing_to_train_everything_with(self):
        trial = Trial(task="image_segmentation", source=Source(name="rooms.tiny"), probe="finetune")
        with pytest.raises(ConfigError, match=r"--probe finetune: image_segmentation has none \(it has: lin"):
            trial.training()

    def test_labels_of_another_size(self, tmp_path):
        source = data(tmp_path)
        Image.fromarray(np.zeros((10, 10), np.uint8)).save(tmp_path / "trainannot" / "000.png")
        with pytest.raises(BadData, match="the image has 40x28 pixels, and its labels 10x10"):
            task(source)

    def test_data_without_labels(self, tmp_path):
        source = Source(name=str(write_classes(tmp_path)))
        with pytest.raises(BadData, match="no labels of pixels are found"):
            task(source)


class TestDepth:
    config = ImageDepthConfig(tokens=6, bins=16, views=3, batch=2, steps=3)

    def model(self, **changes) -> ImageDepth:
        return ImageDepth(replace(self.config, **changes), encoder=encoder(), source=Source(name="rooms.tiny"))

    def test_outputs_are_metres_between_the_bounds(self):
        model = self.model().eval()
        shot = next(model.data.each("val"))
        (maps, *_), (grid,) = model.maps(shot), shot.grids
        depth = model.depths(maps[0]).detach()
        assert depth.shape == (1, 4 * grid[1], 4 * grid[0])
        assert float(depth.min()) > 0 and float(depth.max()) < 10

    def test_the_lattice_is_of_pixels(self):
        model, rng = self.model(), np.random.default_rng(0)
        scene = model.data.scenes("train")["all"][0]
        shot = model.data.sample(scene, rng)
        assert len(shot.truth) == 16 * shot.grids[0][0] * shot.grids[0][1]
        assert set(shot.truth.values.unique().tolist()) <= {0.0, *scene.truth.unique().tolist()}

    def test_the_right_answer_has_no_error(self, monkeypatch):
        model = self.model().eval()
        shots = list(model.validation.each("val"))
        answers = iter(
            [part.values.view(*shot.sizes.values[0, [5, 4]]) for shot in shots for part in shot.truth.split()]
        )
        monkeypatch.setattr(model, "depths", lambda maps: next(answers)[None])
        monkeypatch.setattr(model, "choose", lambda: None)
        numbers = model.evaluate(iter(shots))
        assert numbers["rmse"] < 1e-5 and numbers["rel"] < 1e-5 and numbers["delta1"] == 100

    def test_it_learns_something(self):
        trial = Trial(task="image_depth.tiny", source=Source(name="rooms.tiny"), steps=60)
        trial = replace(trial, task_options={"tokens": 6, "bins": 32, "views": 8, "far": 8.0})
        before = run_probe(replace(trial, steps=1), find_encoder(trial, "raw"), "raw").metrics
        after = run_probe(trial, find_encoder(trial, "raw"), "raw").metrics
        assert after["rmse"] < 0.9 * before["rmse"] and after["delta1"] > before["delta1"]

    def test_data_without_depth(self, tmp_path):
        with pytest.raises(MissingData, match="no camera, and so no depth"):
            ImageDepth(self.config, encoder=encoder(), source=data(tmp_path))

    def test_bounds(self):
        with pytest.raises(ConfigError, match="near < far"):
            replace(self.config, near=10.0, far=1.0)


class TestClassification:
    config = ImageClassificationConfig(tokens=2, steps=40, batch=16)

    def test_colours_are_told_apart(self, tmp_path):
        trial = Trial(task="image_classification.tiny", source=Source(name=str(write_classes(tmp_path))), steps=60)
        found = run_probe(trial, find_encoder(trial, "raw"), "raw").metrics
        assert found["accuracy"] == found["knn"] == found["macc"] == 100

    def test_neighbours_weigh_by_their_cosine(self):
        bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
        label = torch.tensor([0, 1, 1])
        rows = torch.tensor([[5.0, 0.0]])
        assert neighbours(rows, bank, label, 2, 3, 0.07).tolist() == [0]
        assert neighbours(rows, bank, label, 2, 3, 100.0).tolist() == [1]
        assert neighbours(rows, bank, label, 2, 99, 0.07).tolist() == [0]

    def test_classes_that_were_not_trained_on(self, tmp_path):
        write_classes(tmp_path)
        (tmp_path / "train" / "color2").rename(tmp_path / "train" / "other")
        with pytest.raises(BadData, match="folders color2 are only in val"):
            ImageClassification.hold(self.config, encoder(), Source(name=str(tmp_path)))

    def test_images_in_no_folder(self, tmp_path):
        write_camvid(tmp_path / "x")
        source = Source(name=str(tmp_path / "x" / "train"))
        with pytest.raises(BadData, match="lies in no folder that would name its class"):
            ImageClassification.hold(self.config, encoder(), source)

    def test_only_linear(self):
        with pytest.raises(ConfigError, match="--probe decoder: image_classification has none"):
            Trial(task="image_classification", source=Source(name="rooms.tiny"), probe="decoder").training()


class TestTables:
    def test_metres_are_no_percentages(self):
        assert with_unit("rmse", 0.3584) == "0.358 m" and with_unit("miou", 42.04) == "42.0 %"

    def test_a_projector_and_teachers_have_rows_of_their_own(self, tmp_path):
        labelled = str(write_camvid(tmp_path / "camvid"))
        pretrain("dune", preset="tiny", run=tmp_path / "run", data=labelled, steps=2, train_options={"batch": 2})
        source = Source(name=labelled, options=CLASSES)
        trial = Trial(task="image_segmentation.tiny", source=source, steps=2, task_options={"tokens": 4})
        teachers = {"squeezenet.tiny": {"layers": [0]}}
        table = compare_with_controls(
            trial, [tmp_path / "run"], seeds=2, labels=(1.0,), teachers=teachers, projectors=["timm.tiny"]
        )
        methods = [row[0] for row in table.rows()[1:]]
        assert methods == [
            "pre-trained, frozen: linear probe",
            "pre-trained, frozen: linear probe, after its projector for timm.tiny",
            "random, frozen: linear probe",
            "raw inputs: linear probe",
            "teacher squeezenet.tiny: linear probe",
        ]
        own, after = (table.values("run", "linear", 1.0, teacher=name) for name in ("", "timm.tiny"))
        assert len(own) == len(after) == 2 and own != after
        assert "after its projector for timm.tiny on" in "".join(map(str, table.evaluations))
        assert len(probe_rows(table.to_dicts())) == 6

    def test_a_projector_that_the_run_has_not(self, tmp_path):
        run = tmp_path / "run"
        pretrain("dune", preset="tiny", run=run, data=str(write_classes(tmp_path / "data")), steps=1)
        with pytest.raises(UserError, match=r"--encoder\.projector timm\.tinny: no such projector.*did you mean"):
            resolve_encoder(str(run), {"projector": "timm.tinny"}, kind=ImageEncoder)


class TestEncoders:
    def test_teachers_take_options(self):
        found = resolve_encoder("teacher:squeezenet.tiny", {"layers": [0]}, kind=ImageEncoder)
        assert found.origin == "teacher" and len(found.encoder.channels) == 1
        maps = found.encoder(torch.rand(2, 3, 30, 50), (5, 3))
        assert maps.levels[0].shape == (2, found.encoder.channels[0], 3, 5)

    def test_pixels_have_no_projector(self):
        with pytest.raises(ConfigError, match=r"--encoder raw: options \['projector'\] only go with"):
            resolve_encoder("raw", {"projector": "timm.tiny"}, kind=ImageEncoder)

    def test_raw_is_the_pixels(self):
        images = torch.rand(1, 3, 2 * RAW_PATCH, RAW_PATCH)
        maps = encoder()(images).levels[0]
        assert maps.shape == (1, 3 * RAW_PATCH**2, 2, 1)
        mean = torch.tensor(encoder().mean)[:, None, None]
        std = torch.tensor(encoder().std)[:, None, None]
        patch = (images[0, :, :RAW_PATCH] - mean) / std
        assert torch.allclose(maps[0, :, 0, 0], patch.flatten(), atol=1e-6)

    @pytest.mark.parametrize(
        ("name", "kind", "what"),
        [
            ("random:vit.tiny", None, "does not encode points"),
            ("random:pointnet2.tiny", ImageEncoder, "does not encode images"),
            ("squeezenet", ImageEncoder, "a teacher is asked for by name: teacher:squeezenet"),
            ("nowhere", ImageEncoder, "no such run folder.*teacher:NAME"),
        ],
    )
    def test_other_kinds(self, name, kind, what):
        with pytest.raises(UserError, match=what):
            resolve_encoder(name, **({"kind": kind} if kind else {}))
