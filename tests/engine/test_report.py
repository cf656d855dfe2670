"""The report is one file that says what the run's files say; pictures and charts are what they claim."""

import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from splatlearn.engine import plots
from splatlearn.engine.report import preview, probe_rows, read_log, write_report
from splatlearn.engine.trainable import Step, Trainable
from splatlearn.structures import Batch, Cameras, Frames, Points

METRICS = {
    "val_psnr": 24.3,
    "val_psnr_novel": 22.8,
    "val_psnr_shuffled": 21.0,
    "baseline/depth_warp": 20.6,
    "baseline/own_colour": 23.6,
    "baseline/own_colour_novel": 22.9,
    "val_odd": 0.25,
}


@pytest.fixture
def run(tmp_path):
    """A made-up run folder."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "config.yaml").write_text("recipe: gs3\npreset: tiny\nseed: 3\nencoder: {name: sparse_unet.tiny}\n")
    parts = [{"mse": 0.5 / (i + 1), "lpips": 0.1} for i in range(50)]
    lines = [{"step": i, "loss": sum(p.values()), "losses": p, "seconds": 0.1} for i, p in enumerate(parts)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 50, "lo')
    summary = {"steps": 50, "metrics": METRICS, "steps_per_second": 9.5, "peak_memory_mb": 1234.5}
    summary |= {"gaussians_per_sample": 9600, "seconds": {"data": 0.01, "forward": 0.05, "backward": 0.04}}
    (folder / "summary.json").write_text(json.dumps({**summary, "versions": {"torch": "9.9"}, "rejected": {"dark": 3}}))
    return folder


def picture(height: int = 6, width: int = 8) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


class TestReport:
    def test_holds_what_the_run_says(self, run):
        pictures = {"inputs/view 1": picture(), "inputs/mask": picture(), "epipolar lines/wide": picture(100, 480)}
        page = write_report(run, pictures).read_text()
        for text in ("gs3", "sparse_unet.tiny", "24.30", "+3.70", "-0.10", "+3.30", "own colour", "9.50", "1,234"):
            assert text in page, text
        for text in ("9,600", "view 1", "Where the time of a step goes", "torch", "dark", "val_odd", "0.2500"):
            assert text in page, text
        assert page.count('class="photo') == 3
        assert page.count('class="photo wide"') == 1

    def test_is_one_file_without_network(self, run):
        page = write_report(run, {"a/b": picture()}).read_text()
        assert not re.search(r"https?://|<script|<link|url\(", page)
        assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]+)', page))
        assert [p.name for p in run.glob("report*")] == ["report.html"]

    def test_numbers_of_other_runs_join_the_table(self, run):
        page = write_report(run, metrics={"baseline/random_frozen": 19.9}).read_text()
        assert "random frozen" in page
        assert "19.90" in page

    def test_names_are_escaped(self, run):
        page = write_report(run, {"<b>x/<i>y": picture()}).read_text()
        assert "<b>x" not in page
        assert "&lt;i&gt;y" in page

    def test_of_an_empty_folder(self, tmp_path):
        assert "<h1>run" in write_report(tmp_path).read_text()

    def test_a_log_line_cut_short_is_left_out(self, run):
        assert len(read_log(run / "log.jsonl")) == 50

    def test_not_finite_numbers(self, run):
        summary = json.loads((run / "summary.json").read_text())
        summary["metrics"]["val_odd"] = float("nan")
        (run / "summary.json").write_text(json.dumps(summary))
        assert "val_odd" in write_report(run).read_text()

    @pytest.mark.parametrize("name", ["val_psnr", "baseline/own_colour"])
    def test_a_metric_that_is_not_finite_is_left_out(self, run, name):
        summary = json.loads((run / "summary.json").read_text())
        summary["metrics"][name] = None
        (run / "summary.json").write_text(json.dumps(summary))
        probe = {"encoder": "a", "probe": "linear", "metrics": {"miou": 40.0}}
        page = write_report(run, probes=[probe, {**probe, "metrics": {"miou": None}}]).read_text()
        assert all(text in page for text in ("40.0", "9.50"))
        assert not re.search(r">\+?(nan|None)<", page)


def test_probe_table_groups_by_origin_and_sorts_by_the_first_metric():
    made = [("run", "runs/a", 40.0), ("run", "runs/b", 44.0), ("random", "random:x", 30.0), ("raw", "raw", 35.0)]
    probes = [
        {"encoder": name, "origin": origin, "probe": "linear", "labels": 0.1, "metrics": {"miou": value}}
        for origin, name, value in made
    ]
    header, *rows = probe_rows(probes)
    assert header == ["encoder", "probe", "labels", "mIoU", "seeds"]
    assert rows[0] == ["pre-trained", "linear", "10 %", "42.0 (40.0 to 44.0)", "2"]
    assert [row[0] for row in rows] == ["pre-trained", "raw inputs", "random"]


class Counting(Trainable[Batch]):
    """Shows how often it was asked, and for what."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        scene = SimpleNamespace(name="room")
        self.validation = SimpleNamespace(
            scenes=lambda split: {"all": [scene]},
            shares=dict,
            sample=lambda scene, rng: Batch(names=(scene.name,)),
        )

    def forward(self, batch, progress):
        return Step({"loss": self.weight})

    def preview(self, batch):
        assert batch.names == ("room",)
        return {"a/b": self.weight.expand(3, 2, 2) * (0.5 if self.training else 1)}


def test_preview_is_of_a_validation_sample_in_evaluation_mode():
    trainable = Counting().train()
    shown = preview(trainable)["a/b"]
    assert torch.equal(shown, torch.ones(3, 2, 2))
    assert not shown.requires_grad
    assert trainable.training


class TestColors:
    def test_pca_finds_the_directions_of_spread(self):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(500, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0])
        features = hidden @ torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q[:3] + 5
        colors = plots.pca_colors(features)
        assert colors.shape == (500, 3)
        assert colors.min() >= 0
        assert colors.max() <= 1
        for axis in range(3):
            correlation = np.corrcoef(colors[:, axis], hidden[:, axis])[0, 1]
            assert abs(correlation) > 0.97

    def test_pca_is_stable_under_permutation(self):
        features = torch.randn(100, 6, generator=torch.Generator().manual_seed(1))
        order = torch.randperm(100, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(plots.pca_colors(features[order]), plots.pca_colors(features)[order])

    @pytest.mark.parametrize(
        "features", [torch.zeros(0, 4), torch.ones(5, 4), torch.rand(5, 1), torch.full((3, 4), torch.nan)]
    )
    def test_pca_of_what_has_no_spread(self, features):
        colors = plots.pca_colors(features)
        assert colors.shape == (len(features), 3)
        assert torch.isfinite(colors).all()

    def test_error_map_grows_with_the_error(self):
        target = torch.zeros(3, 1, 3)
        shown = plots.error_map(torch.tensor([0.0, 0.1, 0.3]).expand(3, 1, 3), target).sum(0)[0]
        assert shown[0] < shown[1] < shown[2]

    def test_depth_colors_tell_near_from_far_and_none(self):
        depth = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        shown = plots.depth_colors(depth)
        assert torch.equal(shown[:, 0, 0], torch.full((3,), 0.85))
        assert shown[0, 0, 1] > shown[2, 0, 1]  # near is red
        assert shown[2, 0, 3] > shown[0, 0, 3]  # far is blue
        assert plots.depth_colors(torch.zeros(2, 2)).eq(0.85).all()

    def test_scan_from_above_and_from_the_side(self):
        xyz = torch.tensor([[10.0, 20.0, 0.0], [0.0, 1.0, 5.0], [0.0, 1.0, 5.0], [99.0, 0.0, 0.0]])
        values = {"intensity": torch.tensor([1.0, 0.0, 0.5, 1.0]), "label": torch.tensor([0, -1, 1, 1])}
        shown = plots.scan_picture(Points(xyz=xyz, attributes=values), full=1.0, size=60)
        drawn = (shown[:, :60] < 1).any(0).nonzero().tolist()
        assert drawn == [[10, 40], [29, 30]] and shown.shape == (3, 78, 60)
        assert (shown[:, 64:] < 1).any(0).nonzero().tolist() == [[4, 30]]
        assert shown[0, 29, 30] == shown[0, 68, 30] == pytest.approx(0.86)  # without a class, and on top
        empty = Points(xyz=torch.zeros(0, 3), attributes={"intensity": torch.zeros(0)})
        assert plots.scan_picture(empty, size=60)[:, :60].eq(1).all()

    def test_png_round_trip(self):
        image = picture()
        image[0, 0, 0] = torch.nan
        again = np.asarray(Image.open(io.BytesIO(plots.encode_png(image))))
        np.testing.assert_array_equal(again, plots.to_uint8(image))
        assert again.shape == (6, 8, 3)


class TestEpipolar:
    @pytest.fixture
    def frames(self):
        """Two cameras side by side, 0.5 m apart, looking at a wall 2 m away."""
        pose = torch.eye(4).repeat(2, 1, 1)
        pose[1, 0, 3] = -0.5
        intrinsics = torch.tensor([[40.0, 0, 32], [0, 40, 24], [0, 0, 1]]).expand(2, 3, 3)
        cameras = Cameras(counts=(2,), world_to_camera=pose, intrinsics=intrinsics, width=64, height=48)
        depth = torch.full((2, 48, 64), 2.0)
        return Frames(counts=(2,), images=torch.rand(2, 3, 48, 64), cameras=cameras, attributes={"depth": depth})

    def test_a_point_lies_on_its_line(self, frames):
        line, place = plots._epipolar_line(frames, 0, 1, 20, 40)
        assert place == pytest.approx((40.5 - 40 * 0.5 / 2, 20.5), abs=1e-3)
        assert all(abs(y - 20.5) < 1e-3 for _, y in line)
        xs = [x for x, _ in line]
        assert min(xs) < place[0] < max(xs)
        assert xs[-1] == pytest.approx(40.5 - 40 * 0.5 / plots.FAR, abs=1e-2)

    def test_pictures(self, frames):
        pairs = SimpleNamespace(view=torch.tensor([0, 1]), other=torch.tensor([1, 0]))
        pictures = plots.epipolar_pictures(frames, pairs)
        assert [p.shape for p in pictures.values()] == [(3, 144, 192)] * 2
        assert all(title.startswith("epipolar lines/") for title in pictures)

    def test_without_pairs_or_depth(self, frames):
        none = SimpleNamespace(view=torch.zeros(0, dtype=torch.long), other=torch.zeros(0, dtype=torch.long))
        assert plots.epipolar_pictures(frames, none) == {}
        dark = frames.with_attributes(depth=torch.zeros(2, 48, 64))
        pairs = SimpleNamespace(view=torch.tensor([0]), other=torch.tensor([1]))
        assert len(plots.epipolar_pictures(dark, pairs)) == 2


class TestCharts:
    def test_running_mean_leaves_out_what_is_not_finite(self):
        np.testing.assert_allclose(plots.running_mean([1, 2, 3, 4], 2), [1, 1.5, 2.5, 3.5])
        np.testing.assert_allclose(plots.running_mean([1, float("nan"), 3], 3), [1, 1, 2])
        assert np.isnan(plots.running_mean([float("inf")], 1)).all()

    def test_charts_are_png(self):
        assert size(plots.curves({"a": ([0, 1], [1.0, 0.5]), "b": ([0, 1], [-1.0, 1.0])}, "x", "y"))[0] > 500
        assert size(plots.bars({"this": 3.0, "that": 2.0}, "dB", ["this"]))[0] > 500
        assert size(plots.shares({"forward": 1.0, "backward": 0.0}))[0] > 500
        assert size(plots.shares({"forward": 0.0}))[0] > 500
        assert size(plots.heat_map(np.array([[1, np.nan], [np.nan, 1]]), ["a", "b"]))[0] > 500

    def test_a_chart_as_a_picture(self):
        curves = {"a": torch.tensor([0.5, 1.0]), "a, again": torch.tensor([0.7, 1.0]), "b": torch.tensor([1.0])}
        png = plots.variance_curves(curves, dashed=["a, again"], plain=["b"])
        shown = plots.decode_png(png)
        assert shown.shape == (3, *reversed(size(png)))
        assert plots.to_uint8(shown).tobytes() == np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).tobytes()
