"""What a training step of GS3 costs on this machine: seconds by part, and memory.

Run: python benchmarks/gs3.py [--preset small|paper] [--encoder NAME] [--steps N] [--data NAME_OR_DIR] [--workers N]

One pair a step. `data` is what a step waits for its sample: without workers, the drawing itself. `paper` runs
with LPIPS on random VGG16 weights, made here: they cost what published ones cost, and their values mean nothing.
"""

import argparse
import platform
import tempfile
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from splatlearn.engine.loop import train
from splatlearn.engine.report import read_log
from splatlearn.losses.vgg import SLICES, WIDTHS
from splatlearn.verbs.pretrain import plan

PARTS = ("data", "forward", "backward", "optimizer")


def random_vgg(path: Path) -> str:
    """A file of random VGG16 weights with torchvision's names."""
    tensors, before = {}, 3
    for group, width in zip(SLICES, WIDTHS):
        for number in group:
            tensors[f"features.{number}.weight"] = torch.randn(width, before, 3, 3) * (2 / (9 * before)) ** 0.5
            tensors[f"features.{number}.bias"] = torch.zeros(width)
            before = width
    save_file(tensors, path)
    return str(path)


def main() -> None:
    """Prints one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--encoder", default="sparse_unet")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--data", default="rooms.demo")
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = {"lpips_weights": random_vgg(Path(folder) / "vgg.safetensors")} if given.preset == "paper" else {}
        job = plan(
            "gs3",
            preset=given.preset,
            encoder=given.encoder,
            data=given.data,
            steps=given.steps,
            recipe_options=options,
            train_options={"batch": 1, "workers": given.workers, "validation_samples": 1},
        )
        summary = train(job.build(), job.train, Path(folder) / "run", settings=job.settings)
        log = read_log(Path(folder) / "run" / "log.jsonl")[1:]
    parts = {part: median(line["time"][part] for line in log) for part in PARTS}
    width, height = job.config.size
    print(
        f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print("| preset | encoder | size | workers | s a step | " + " | ".join(PARTS) + " | peak memory |")
    print("|---|---|---|---|---|" + "---|" * len(PARTS) + "---|")
    print(
        f"| {given.preset} | {job.encoder} | {width}x{height} | {given.workers} | {sum(parts.values()):.2f} | "
        + " | ".join(f"{parts[part]:.3f}" for part in PARTS)
        + f" | {summary.peak_memory_mb / 1024:.2f} GiB |"
    )


if __name__ == "__main__":
    main()
