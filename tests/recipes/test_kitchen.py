"""GS3 on a real recording: the whole path from files to a report, in seconds."""

import json

from splatlearn.verbs.pretrain import pretrain


def test_a_few_steps_on_a_real_recording(shared_data, tmp_path):
    summary = pretrain(
        "gs3", preset="tiny", data=str(shared_data / "rgbd_7scenes_redkitchen"), run=tmp_path / "run", steps=20, seed=0
    )
    metrics = summary.metrics
    assert 17 < metrics["baseline/depth_warp"] < 24
    assert metrics["baseline/mean_colour"] < metrics["baseline/copy"] < metrics["baseline/depth_warp"]
    assert metrics["val_psnr"] > metrics["baseline/mean_colour"] + 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["data"]["name"].endswith("redkitchen")
    assert "epipolar" in (tmp_path / "run" / "report.html").read_text().lower()
