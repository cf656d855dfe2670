"""DUNE and UNIC: teach one image encoder what several frozen image models see (CVPR 2025, ECCV 2024).

Student and teachers look at the same changed image, on one grid of tokens. For each teacher a projector brings the
student's tokens to its width, where they are compared with its own, standardised; of each image some teachers are
dropped. Numbers are of DUNE's released code, or of UNIC's where that is said; what is ours says so. Legend: T teachers,
B images, P patches of an image, C channels of a teacher, h w tokens of the grid, H W pixels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from splatlearn.config import configure, require
from splatlearn.data.image_groups import ImageGroups, Photos
from splatlearn.data.photo_augment import PhotoAugmentation
from splatlearn.data.scene import Source
from splatlearn.encoders.base import FeatureMaps, ImageEncoder
from splatlearn.encoders.patches import token_grid
from splatlearn.engine import plots
from splatlearn.engine.diagnostics import Spread, spread_of
from splatlearn.engine.trainable import Progress, Recipe, Step, require_kind
from splatlearn.errors import BadData, ConfigError, nearest
from splatlearn.heads.projectors import (
    KINDS,
    AnyProjectorConfig,
    ImageProjector,
    create_projector,
    describe_projector,
)
from splatlearn.losses.distillation import image_losses
from splatlearn.losses.dropping import DroppingConfig, coefficients, gradient_norms, kept_mean, shares
from splatlearn.ops.reduce import global_sum
from splatlearn.registry import recipes
from splatlearn.structures import Images
from splatlearn.teachers.base import Teacher, TeacherInfo, create_teacher
from splatlearn.teachers.standardize import Standardizer, StandardizerConfig, momentum_at

GENERIC = "generic"
"""The group of images that are of no teacher's domain."""
SHOWN = 4
"""Images that the report has pictures of."""
MOST = 0.9
"""Share of the variance that `components90` counts the principal components of."""
Tokens = dict[str, Tensor]
"""By kind: `cls` (B C) where the teacher has a class token, and `patch` (B P C)."""


@dataclass(frozen=True, kw_only=True)
class DuneConfig:
    """Settings of DUNE.

    Args:
        teachers: name of each teacher -> its options.
        projector: of each teacher: transformer (DUNE), simple, or ladder, which reads all the student's levels (UNIC).
        projector_options: of the projector: `TransformerProjectorConfig`, `SimpleProjectorConfig` or
            `LadderProjectorConfig`.
        standardizer: of the teachers' features.
        dropping: which teachers teach which images.
        size: width and height of the images, pixels. A student's position embeddings are brought to square ones.
        augmentation: what is changed at random in training.
        domain: the teacher whose domain the images of `--data` are of; left out, they are generic.
        groups: further images: name of the teacher whose domain they are of, or `generic` -> name or path of each data
            set -> options of its reader; `reader: images` where another one would take the folder.
        balance: `teacher` draws all groups equally often, smaller ones over and over; `size` every image.
        gradients_every: steps between measurements of how strongly each teacher pulls at the student's features, which
            go back through the projectors once more; 0 measures never (our option).
    """

    teachers: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"timm.dinov2-l-reg": {}, "mast3r": {}, "multihmr": {}}
    )
    projector: Literal["transformer", "simple", "ladder"] = "transformer"
    projector_options: dict[str, Any] = field(default_factory=dict)
    standardizer: StandardizerConfig = StandardizerConfig()
    dropping: DroppingConfig = DroppingConfig()
    size: tuple[int, int] = (336, 336)
    augmentation: PhotoAugmentation = PhotoAugmentation()
    domain: str = ""
    groups: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    balance: Literal["teacher", "size"] = "teacher"
    gradients_every: int = 0

    def __post_init__(self) -> None:
        known, named = (*self.teachers, GENERIC), {self.first, *self.groups}
        rules = {
            "teachers: at least one is needed, timm.dinov2-s-reg for instance": bool(self.teachers),
            f"domain: {self.domain!r} does not teach{nearest(self.domain, self.teachers)} "
            f"(known: {', '.join(self.teachers)})": self.first in known,
            "dropping.mode: own_data learns nothing from generic images; --recipe.domain says whose --data are": (
                self.dropping.mode != "own_data" or GENERIC not in named
            ),
            f"gradients_every: 0 or more is needed, got {self.gradients_every}": self.gradients_every >= 0,
        }
        for name, sets in self.groups.items():
            rules[f"groups: {name!r} is no teacher{nearest(name, known)} (known: {', '.join(known)})"] = name in known
            rules[f"groups.{name}: at least one data set is needed"] = bool(sets)
        require(rules)
        self.projector_config()

    @property
    def first(self) -> str:
        """The group of `--data`."""
        return self.domain or GENERIC

    def projector_config(self) -> AnyProjectorConfig:
        """That of every teacher's projector."""
        return configure(KINDS[self.projector], self.projector_options, "projector_options")

    def sources(self, first: Source) -> dict[str, tuple[Source, ...]]:
        """Group -> where its images are, the first being those of `--data`."""
        found: dict[str, tuple[Source, ...]] = {self.first: (first,)}
        for name, sets in self.groups.items():
            further = (Source(name=where, options=options) for where, options in sets.items())
            found[name] = (*found.get(name, ()), *further)
        return found


class Branch(nn.Module):
    """What is learnt from one teacher with: a projector to its width, and the standardisation of its features.

    Args:
        config: the recipe's settings.
        student: the encoder.
        info: of the teacher.
    """

    def __init__(self, config: DuneConfig, student: ImageEncoder, info: TeacherInfo) -> None:
        super().__init__()
        width = info.channels[-1]
        self.kinds = ("cls", "patch") if info.has_summary else ("patch",)
        self.projector = create_projector(config.projector_config(), student.channels, width, info.has_summary)
        self.standardizers = nn.ModuleDict({kind: Standardizer(config.standardizer, width) for kind in self.kinds})

    def tokens(self, maps: FeatureMaps) -> Tokens:
        """The tokens that count, of maps in the teacher's width."""
        tokens = {"cls": maps.summary, "patch": maps.levels[-1].flatten(2).transpose(1, 2)}
        return {kind: tokens[kind] for kind in self.kinds}

    def standardized(self, maps: FeatureMaps, momentum: float = 0.0) -> Tokens:
        """The teacher's tokens, each kind by its own statistics."""
        found = {}
        for kind, tokens in self.tokens(maps).items():
            rows = self.standardizers[kind](tokens.flatten(0, -2), momentum)
            found[kind] = rows.view(tokens.shape)
        return found


@recipes.register(
    "dune",
    DuneConfig,
    presets={"small": {}, "tiny": {}, "paper-336": {}, "paper-448": {}, "imagenet-only": {}, "unic": {}},
)
class Dune(Recipe[Photos]):
    """Teach one image encoder what several image models see (DUNE, UNIC).

    Args:
        config: settings.
        student: the image encoder to pre-train; its position embeddings are brought to the images' size.
        source: where the images are, beside those of `config.groups`.

    Raises:
        ConfigError: the student is no image encoder.
        UserError: its patch does not divide the images.
    """

    student: ImageEncoder
    previewed = 32

    def __init__(self, config: DuneConfig, *, student: ImageEncoder, source: Source) -> None:
        super().__init__()
        require_kind(student, ImageEncoder, "dune", "images, vit.s14-336 for instance")
        self.config, (width, height) = config, config.size
        self.grid = token_grid(config.size, student.patch, f"--recipe.size: encoder {student.name}")
        if width == height:
            student.resize(width)
        self.data = ImageGroups(
            groups=config.sources(source),
            teachers=tuple(config.teachers),
            size=config.size,
            augmentation=config.augmentation,
            balance=config.balance,
        )
        self.validation = replace(self.data, augment=False)
        self.student = student
        self.teachers = nn.ModuleList(create_teacher(name, options) for name, options in config.teachers.items())
        infos = (cast(Teacher, teacher).info for teacher in self.teachers)
        self.branches = nn.ModuleList(Branch(config, student, info) for info in infos)

    @property
    def taught(self) -> list[tuple[str, Teacher, Branch]]:
        """Each teacher's name, the teacher, and what is learnt from it with."""
        parts = cast(Iterable[Teacher], self.teachers), cast(Iterable[Branch], self.branches)
        return list(zip(self.config.teachers, *parts, strict=True))

    @torch.no_grad()
    def setup(self, batches: Iterable[Photos]) -> None:
        """The rotations of PHI-S; other statistics are gathered on the way.

        Raises:
            BadData: a teacher gives values that are not finite.
            ConfigError: there are no batches.
        """
        if self.config.standardizer.mode != "phi-s":
            return
        sums: dict[tuple[str, str], Tensor] = {}
        for batch in batches:
            for name, teacher, branch in self.taught:
                for kind, tokens in branch.tokens(teacher(batch.images, self.grid)).items():
                    found = cast(Standardizer, branch.standardizers[kind]).moments(tokens.flatten(0, -2))
                    sums[name, kind] = sums.get((name, kind), torch.zeros_like(found)) + found
        if not sums:
            raise ConfigError("--train.setup_batches: phi-s is fitted before the first step; 1 or more are needed")
        for name, _, branch in self.taught:
            for kind in branch.kinds:
                if not bool(sums[name, kind].isfinite().all()):
                    raise BadData(f"teacher {name}: its features are not finite; other weights are needed")
                cast(Standardizer, branch.standardizers[kind]).settle(sums[name, kind])

    def targets(self, images: Images, momentum: float = 0.0) -> list[Tokens]:
        """The standardised tokens of each teacher; in training, statistics follow with `momentum`."""
        return [branch.standardized(teacher(images, self.grid), momentum) for _, teacher, branch in self.taught]

    def predict(self, maps: FeatureMaps) -> list[Tokens]:
        """What the projectors make of the student's maps, for each teacher."""
        return [branch.tokens(branch.projector(maps)) for _, _, branch in self.taught]

    def forward(self, batch: Photos, progress: Progress) -> Step:
        """The mean of the losses (T B) that are kept. Every loss stays in the graph, dropped ones with weight 0."""
        images = batch.images
        targets = self.targets(images, momentum_at(progress.fraction))
        maps = self.student(images, self.grid)
        losses = torch.stack([_losses(*both) for both in zip(self.predict(maps), targets, strict=True)])
        coins, group = images["coins"].t(), images["group"]
        kept = coefficients(self.config.dropping, losses.detach(), coins=coins, group=group)
        metrics = {"loss": _means(losses), "share": shares(kept), "finite": _finite(targets)}
        if self.config.gradients_every and progress.step % self.config.gradients_every == 0:
            metrics["gradient"] = gradient_norms(losses, kept, [*maps.levels, maps.summary, *maps.summaries])
        return Step({"distillation": kept_mean(losses, kept)}, self._by_teacher(metrics))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Photos]) -> dict[str, float]:
        """Over all validation images, as means over teachers and by name: `val_loss`, of which nothing is dropped, and
        `val_explained`, the share of the variance of the teacher's standardised patches that is explained: 1 less the
        sum of the squared errors over that of the squared distances from their mean, so that a constant has 0.
        `components90` is how many principal components hold 90 % of the variance: by name, of the teacher's
        standardised patches; `components90_student` of what the student gives for them, and of its own features."""
        fits, own = [_Fit() for _ in self.taught], Spread()
        for batch in batches:
            maps = self.student(batch.images, self.grid)
            own.add(_patches(maps))
            for fit, prediction, target in zip(fits, self.predict(maps), self.targets(batch.images), strict=True):
                fit.add(prediction, target)
        numbers = zip(*(fit.numbers() for fit in fits), strict=True)
        losses, explained, *components = map(torch.stack, numbers)
        each = {"val_loss": losses, "val_explained": explained}
        means = {key: float(values.mean()) for key, values in each.items()}
        each |= dict(zip(("components90", "components90_student"), components, strict=True))
        means["components90_student"] = own.components(MOST)
        return means | {key: float(value) for key, value in self._by_teacher(each).items()}

    @torch.no_grad()
    def preview(self, batch: Photos) -> dict[str, Tensor]:
        """The variance that principal components explain over all images that differ; and a row of pictures of each of
        the first: it, and the components of the student's features, and of each teacher's standardised ones beside
        those that the student gives in their place, in colours of all these images together."""
        images, size = batch.images, tuple(batch.images.images.shape[2:])
        first = [row for row, name in enumerate(batch.names) if name not in batch.names[:row]]
        maps = self.student(images, self.grid)
        tokens = {"student's features": _patches(maps)}
        for name, prediction, target in zip(self.config.teachers, self.predict(maps), self.targets(images)):
            tokens |= {f"{name}: teacher": target["patch"], f"{name}: student": prediction["patch"]}
        tokens = {title: of[first] for title, of in tokens.items()}
        pictures, colors = {}, self._colors({title: of[:SHOWN] for title, of in tokens.items()})
        for number, row in enumerate(first[:SHOWN]):
            group = f"{number + 1}: {batch.names[row].replace('/', ' ')}"
            pictures[f"{group}/photograph"] = images.images[row]
            for title, shown in colors.items():
                picture = functional.interpolate(shown[number][None], size, mode="nearest")[0]
                pictures[f"{group}/{title}"] = picture
        curves = {title: spread_of([of]).cumulative() for title, of in tokens.items()}
        students = [f"{name}: student" for name in self.config.teachers]
        chart = plots.variance_curves(curves, dashed=students, plain=["student's features"])
        count = tokens["student's features"][..., 0].numel()
        caption = f"{count:,} patches of {len(first)} validation images, the teachers' standardised; dotted: 90 %"
        return {f"Variance explained by principal components/{caption}": plots.decode_png(chart), **pictures}

    def _colors(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B 3 h w) of tokens (B P C) by title; what is in a teacher's place has the colours of the teacher's."""
        width, height = self.grid
        colors: dict[str, Tensor] = {}
        for group in [("student's features",), *((f"{n}: teacher", f"{n}: student") for n in self.config.teachers)]:
            rows = torch.cat([tokens[title].float().flatten(0, 1) for title in group])
            parts = plots.pca_colors(rows).t().unflatten(1, (len(group), -1, height, width))
            colors |= dict(zip(group, parts.permute(1, 2, 0, 3, 4)))
        return colors

    def projectors(self) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        """That of every teacher."""
        config = self.config.projector_config()
        modules = (cast(ImageProjector, branch.projector) for _, _, branch in self.taught)
        facts = [describe_projector(config, module) for module in modules]
        return {name: (f"branches.{i}.projector", of) for i, (name, of) in enumerate(zip(self.config.teachers, facts))}

    def describe(self) -> dict[str, Any]:
        """Who teaches, and with whose weights; and how many images each group has."""
        images = {split: {name: len(of) for name, of in self.data.scenes(split).items()} for split in ("train", "val")}
        return {"teachers": {name: teacher.describe() for name, teacher, _ in self.taught}, "images": images}

    def _by_teacher(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`KEY/TEACHER` -> scalar, of (T) values by key."""
        return {f"{key}/{name}": of[i] for key, of in values.items() for i, name in enumerate(self.config.teachers)}


class _Fit:
    """Sums over images: how well a teacher's tokens are predicted."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.spreads = Spread(), Spread()  # of the teacher's, and of what is given for it

    def add(self, prediction: Tokens, target: Tokens) -> None:
        losses, true = _losses(prediction, target).double(), target["patch"].flatten(0, -2).double()
        for spread, tokens in zip(self.spreads, (target, prediction)):
            spread.add(tokens["patch"])
        errors = prediction["patch"].flatten(0, -2).double() - true
        sizes = losses.new_tensor([len(losses), len(true)])
        numbers = torch.stack([losses.sum(), errors.square().sum(), true.square().sum()])
        self.parts.append(torch.cat([sizes, numbers, true.sum(0)]))

    def numbers(self) -> tuple[Tensor, ...]:
        """The mean loss, the explained share of the variance, 0 where there is none, and the components of most of it:
        of the teacher's, and of what is given for it."""
        total = torch.stack(self.parts).sum(0)
        images, patches, losses, errors, squares = total[:5]
        spread = squares - total[5:].square().sum() / patches
        explained = torch.where(spread > 0, 1 - errors / spread, torch.zeros_like(spread))
        return losses / images, explained, *(total.new_tensor(of.components(MOST)) for of in self.spreads)


def _patches(maps: FeatureMaps) -> Tensor:
    """(B P C) of the last level."""
    return maps.levels[-1].flatten(2).transpose(1, 2)


def _losses(prediction: Tokens, target: Tokens) -> Tensor:
    """(B) of one teacher."""
    return image_losses([(prediction[kind], target[kind]) for kind in target])


@torch.no_grad()
def _means(losses: Tensor) -> Tensor:
    """(T) mean loss of each teacher over the images of all ranks, dropped ones too."""
    sums = global_sum(torch.stack([losses.sum(1), torch.full_like(losses[:, 0], losses.shape[1])]))
    return sums[0] / sums[1]


def _finite(targets: Iterable[Tokens]) -> Tensor:
    """(T) 1 where all that a teacher gave on all ranks is finite, else 0: such a step is skipped by the loop."""
    wrong = [torch.stack([(~tokens.isfinite()).any() for tokens in of.values()]).any() for of in targets]
    return (global_sum(torch.stack(wrong).float()) == 0).float()
