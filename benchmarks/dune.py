"""What a step of DUNE takes: its parts, projectors, numbers of teachers, stored maps against teachers, and memory.

    python benchmarks/dune.py [--sizes 112 224] [--batch 4] [--repeats 5] [--teachers 4] [--batches 2 4 8] [--only step]

The student is ViT-S/14. Teachers are untrained: three convolutional networks (ResNet-50 v2, MobileNetV2, SqueezeNet),
and timm's ViT-S/14; images are noise. Times are medians of calls that follow one which is not counted, all in this
process; a ratio is one of times of the same run. Peaks of memory are of processes of their own.
"""

import argparse
import gc
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import median
from typing import Any

import machine
import torch
from workloads import table

from splatlearn import registry
from splatlearn.config import configure
from splatlearn.data.image_groups import Photos
from splatlearn.data.scene import Source
from splatlearn.encoders.base import FeatureMaps
from splatlearn.engine.config import TrainConfig
from splatlearn.engine.optimizers import build_optimizer
from splatlearn.engine.trainable import Progress
from splatlearn.heads.projectors import KINDS, create_projector
from splatlearn.losses.distillation import image_losses
from splatlearn.losses.dropping import coefficients, kept_mean
from splatlearn.recipes.dune import Branch, Dune, DuneConfig, Tokens
from splatlearn.structures import Images
from splatlearn.teachers.prepared import PreparedMaps

TEACHERS = ("resnet50v2", "mobilenetv2", "squeezenet", "timm.dinov2-s-reg")
SHORT = {"simple": "SP", "transformer": "TP", "ladder": "LP"}
PARTS = ("teachers", "student", "projectors", "loss", "backward", "optimizer")
MIDDLE = Progress(1, 2)


def build(size: int, teachers: Sequence[str], projector: str = "transformer") -> Dune:
    """The recipe with that many teachers."""
    given = {
        "teachers": {name: {"weights": "random"} for name in teachers},
        "projector": projector,
        "size": [size, size],
    }
    torch.manual_seed(0)
    student = registry.encoders.create("vit.s14-336")
    student.name = "vit.s14-336"
    return Dune(configure(DuneConfig, given, "recipe"), student=student, source=Source(name="none")).train()


def photos(size: int, batch: int, teachers: int) -> Photos:
    """Images of noise."""
    draw = torch.Generator().manual_seed(0)
    given = {"group": torch.full((batch,), -1), "coins": torch.rand(batch, teachers, generator=draw)}
    images = Images(images=torch.rand(batch, 3, size, size, generator=draw), attributes=given)
    return Photos(names=tuple(map(str, range(batch))), images=images)


def repeated(call: Callable[[], Mapping[str, float]], repeats: int) -> dict[str, float]:
    """Medians of the seconds of each part."""
    call()
    gc.collect()
    found = [call() for _ in range(repeats)]
    return {part: median(seconds[part] for seconds in found) for part in found[0]}


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median of the whole."""

    def timed() -> dict[str, float]:
        start = time.perf_counter()
        call()
        return {"all": time.perf_counter() - start}

    return repeated(timed, repeats)["all"]


def step(recipe: Dune, batch: Photos, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Seconds of each part of a step, as `Dune.forward` and the loop do it, without clipping."""
    marks = [time.perf_counter()]
    targets = recipe.targets(batch.images, 0.5)
    marks.append(time.perf_counter())
    maps = recipe.student(batch.images, recipe.grid)
    marks.append(time.perf_counter())
    predictions = recipe.predict(maps)
    marks.append(time.perf_counter())
    losses = torch.stack([losses_of(*both) for both in zip(predictions, targets, strict=True)])
    kept = coefficients(recipe.config.dropping, losses.detach(), coins=batch.images["coins"].t())
    loss = kept_mean(losses, kept)
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    marks.append(time.perf_counter())
    return {part: end - start for part, start, end in zip(PARTS, marks, marks[1:])}


def losses_of(prediction: Tokens, target: Tokens) -> torch.Tensor:
    """(B) of one teacher."""
    return image_losses([(prediction[kind], target[kind]) for kind in target])


def optimizer_of(recipe: Dune) -> torch.optim.Optimizer:
    """AdamW as the loop has it."""
    return build_optimizer(recipe, TrainConfig(steps=1))


def steps(sizes: Sequence[int], batch: int, repeats: int) -> None:
    """(a) A step by part, with three convolutional teachers and with a vision transformer as well."""
    table("A step by part, ms", f"| image | teachers | {' | '.join(PARTS)} | step | images/s |")
    totals: dict[tuple[int, int], float] = {}
    for size in sizes:
        for count in (3, 4):
            recipe, images = build(size, TEACHERS[:count]), photos(size, batch, count)
            optimizer = optimizer_of(recipe)
            parts = repeated(lambda r=recipe, i=images, o=optimizer: step(r, i, o), repeats)
            total = totals[size, count] = sum(parts.values())
            cells = " | ".join(f"{1e3 * value:.1f} ({value / total:.0%})" for value in parts.values())
            print(f"| {size} | {count} | {cells} | {1e3 * total:.0f} | {batch / total:.2f} |", flush=True)
    if len(sizes) > 1:
        least, most = min(sizes), max(sizes)
        power = log(totals[most, 3] / totals[least, 3]) / log((most / least) ** 2)
        print(
            f"\nFrom {least} to {most} pixels, with three teachers, a step grows as the number of patches to the ",
            end="",
        )
        print(f"{power:.2f} (1: in proportion)")


def projectors(sizes: Sequence[int], batch: int, repeats: int) -> None:
    """(b) Each projector of ViT-S/14's maps to 1024 channels with a class token; the ladder reads all 12 levels."""
    table("Projectors, ViT-S/14 to 1024 channels", "| image | projector | parameters, M | ms | x SP | kept MB | x SP |")
    for size in sizes:
        first: tuple[float, float] | None = None
        for name, short in SHORT.items():
            levels = 12 if name == "ladder" else 1
            projector = create_projector(KINDS[name](), (384,) * levels, 1024)
            side = size // 14
            maps = [torch.randn(batch, 384, side, side, requires_grad=True) for _ in range(levels)]
            tokens = [torch.randn(batch, 384, requires_grad=True) for _ in range(levels)]
            given = FeatureMaps(levels=tuple(maps), summary=tokens[-1], summaries=tuple(tokens))

            def both(project: Any = projector, of: FeatureMaps = given) -> None:
                found = project(of)
                (found.levels[-1].square().mean() + found.summary.square().mean()).backward()

            time_, kept = seconds(both, repeats), saved_bytes(lambda p=projector, g=given: p(g))
            first = first or (time_, kept)
            million = sum(value.numel() for value in projector.parameters()) / 1e6
            ratios = time_ / first[0], kept / first[1]
            print(f"| {size} | {short} | {million:.2f} | {1e3 * time_:.1f} | {ratios[0]:.2f} | ", end="")
            print(f"{kept / 1e6:.1f} | {ratios[1]:.2f} |", flush=True)


def saved_bytes(call: Callable[[], object]) -> float:
    """What autograd keeps of a forward pass, each storage once, inputs and parameters included."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = call()
        del result
    return float(sum(kept.values()))


def stored(sizes: Sequence[int], repeats: int) -> None:
    """(c) A teacher's maps of one image read from files against the teacher's forward pass.

    Both give maps of the recipe's grid. Preparing costs a forward pass and a write, and every epoch a read, of files in
    the system's cache: a slow disk, or more maps than memory, is not measured.
    """
    print("\nStored maps are of images that are not changed at random: what they save is paid with the augmentation.")
    head = "| image | teacher | KiB an image | teacher, ms | write, ms | read, ms | teacher/read | pays from epoch |"
    table("Stored maps against teachers, one image", head)
    for size in sizes:
        recipe = build(size, TEACHERS)
        for name, teacher, _ in recipe.taught:
            edge = teacher.info.patch * recipe.grid[0]
            fitted = photos(edge, 1, 1).images
            with tempfile.TemporaryDirectory() as folder:
                prepared, maps = PreparedMaps.of(teacher, (edge, edge), Path(folder)), teacher(fitted)
                looked = seconds(lambda t=teacher, f=fitted: t(f), repeats)
                written = seconds(lambda p=prepared, m=maps: p.write("scene", 0, m, 0), repeats)
                read = seconds(lambda p=prepared, f=fitted: p.attach(f, "scene", [0]), repeats)
                kib = prepared.path("scene", 0).stat().st_size / 1024
            saved = looked - read
            epoch = f"{int((looked + written) // saved) + 1}" if saved > 0 else "never"
            ratio = looked / read
            print(f"| {size} | {name} | {kib:.0f} | {1e3 * looked:.1f} | {1e3 * written:.2f} | ", end="")
            print(f"{1e3 * read:.2f} | {ratio:.1f} | {epoch} |", flush=True)


def numbers(size: int, batch: int, most: int, repeats: int) -> None:
    """(d) Images a second against the number of teachers, beside the sum of parts measured alone."""
    recipe, images = build(size, TEACHERS[:most]), photos(size, batch, most)
    alone = [seconds(lambda t=teacher: t(images.images, recipe.grid), repeats) for _, teacher, _ in recipe.taught]
    rest = [rest_of(recipe, images, branch, repeats) for _, _, branch in recipe.taught]
    empty = build(size, TEACHERS[:1])
    student = seconds(lambda: student_alone(empty, images), repeats)
    head = "| teachers | step, ms | sum of parts, ms | step/sum | images/s | x one teacher |"
    table(f"Number of teachers, {size} pixels, batch {batch}", head)
    first = 0.0
    for count in range(1, most + 1):
        recipe, images = build(size, TEACHERS[:count]), photos(size, batch, count)
        optimizer = optimizer_of(recipe)

        def whole(r: Dune = recipe, i: Photos = images, o: torch.optim.Optimizer = optimizer) -> None:
            r(i, MIDDLE).losses["distillation"].backward()
            o.step()
            o.zero_grad(set_to_none=True)

        taken = seconds(whole, repeats)
        first, parts = first or taken, student + sum(alone[:count]) + sum(rest[:count])
        print(
            f"| {count} | {1e3 * taken:.0f} | {1e3 * parts:.0f} | {taken / parts:.2f} | {batch / taken:.2f} | ", end=""
        )
        print(f"{taken / first:.2f} |", flush=True)


def student_alone(recipe: Dune, images: Photos) -> None:
    """The student's forward and backward pass and its optimiser's step."""
    optimizer = recipe.__dict__.setdefault("_own", build_optimizer(recipe.student, TrainConfig(steps=1)))
    maps = recipe.student(images.images, recipe.grid)
    (maps.levels[-1].square().mean() + maps.summary.square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def rest_of(recipe: Dune, images: Photos, branch: Branch, repeats: int) -> float:
    """What a teacher adds beside its own pass: standardisation, projector, loss, their backward pass and optimiser."""
    with torch.no_grad():
        maps = recipe.student(images.images, recipe.grid)
        teacher = next(teacher for _, teacher, of in recipe.taught if of is branch)
        seen = teacher(images.images, recipe.grid)
    leaf = type(maps)(
        levels=tuple(level.detach().requires_grad_() for level in maps.levels),
        summary=maps.summary.detach().requires_grad_(),
    )
    optimizer = build_optimizer(branch, TrainConfig(steps=1))

    def taught() -> None:
        target = branch.standardized(seen, 0.5)
        losses_of(branch.tokens(branch.projector(leaf)), target).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return seconds(taught, repeats)


def peaks(size: int, batches: Sequence[int], most: int) -> None:
    """(e) Peak memory of a step, in a process each; what is loaded and made before the first step apart."""
    head = "| teachers | batch | built, MB | step adds, MB | an image, MB | x smallest batch | x one teacher |"
    table(f"Peak memory of a step, {size} pixels", head)
    of_one: dict[int, float] = {}
    slopes = []
    for count in range(1, most + 1):
        first = added = float("nan")
        for batch in batches:
            words = ["--peak", str(size), str(batch), str(count)]
            out = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
            built, added = map(float, out.stdout.split()[-2:])
            added = added or float("nan")
            first = added if batch == batches[0] else first
            ratios = added / first, added / of_one.setdefault(batch, added)
            print(f"| {count} | {batch} | {built:.0f} | {added:.0f} | {added / batch:.1f} | ", end="")
            print(f"{ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)
        if len(batches) > 1:
            slopes.append((added - first) / (batches[-1] - batches[0]))
    if slopes:
        words = ", ".join(f"{slope:.1f} with {count + 1}" for count, slope in enumerate(slopes))
        print(f"\nA further image of a batch takes {words} teachers (MB)")


def peak(size: int, batch: int, count: int) -> None:
    """Prints resident memory before, and what two steps add to it at their peak; 0 if building took more than that."""
    recipe, images = build(size, TEACHERS[:count]), photos(size, batch, count)
    optimizer, before, highest = optimizer_of(recipe), resident("VmRSS"), resident("VmHWM")
    for _ in range(2):
        step(recipe, images, optimizer)
    after = resident("VmHWM")
    print(before, after - before if after > highest else 0.0)


def resident(key: str) -> float:
    """MB of this process now (VmRSS) or at most so far (VmHWM). `getrusage` may tell those of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) * 1024 / 1e6


PART_NAMES = ("step", "projectors", "stored", "numbers", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[112, 224], help="sides of the images, multiples of 112"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 8], help="of the peaks of memory, rising")
    parser.add_argument("--teachers", type=int, default=len(TEACHERS), help="at most so many")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PART_NAMES, default=PART_NAMES)
    parser.add_argument("--peak", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # that teachers are random is said above
    if options.peak:
        peak(*options.peak)
        return
    print(machine.name())
    run = {
        "step": lambda: steps(options.sizes, options.batch, options.repeats),
        "projectors": lambda: projectors(options.sizes, options.batch, options.repeats),
        "stored": lambda: stored(options.sizes, options.repeats),
        "numbers": lambda: numbers(options.sizes[0], options.batch, options.teachers, options.repeats),
        "memory": lambda: peaks(options.sizes[0], options.batches, options.teachers),
    }
    for name in options.only:
        run[name]()


if __name__ == "__main__":
    main()
