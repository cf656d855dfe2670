"""`pretrain`: a recipe, an encoder and data, checked together and trained."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from splatlearn.data.scene import Source
    from splatlearn.encoders.base import Encoder
    from splatlearn.engine.config import TrainConfig
    from splatlearn.engine.loop import Summary
    from splatlearn.engine.trainable import Recipe

Options = Mapping[str, Any]


def pretrain(
    recipe: str,
    *,
    run: Path,
    preset: str = "small",
    data: str | None = None,
    encoder: str | None = None,
    teacher: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    resume: Literal["auto", "never"] = "auto",
    data_options: Options | None = None,
    encoder_options: Options | None = None,
    teacher_options: Options | None = None,
    recipe_options: Options | None = None,
    train_options: Options | None = None,
) -> "Summary":
    """Pre-train an encoder without labels.

    The run folder gets `config.yaml` (every setting, resolved), `log.jsonl`, `checkpoints/`, `summary.json` and
    `report.html`. A preset gives every setting, a config file wins over it, and flags win over both.

    Args:
        recipe: how to learn: gs3, scalr, dune.
        run: folder of the run; one that is there is continued.
        preset: small (one consumer GPU, or an hour on a CPU), tiny (seconds on a CPU), and those of the paper, which
            `splatlearn list recipes NAME` names.
        data: rooms, streets, or a folder of recordings, scans or images; by default what the preset names.
        encoder: sparse_unet, pointnet2, waffleiron, vit, FAMILY.PRESET, or a run folder to start from its weights.
        teacher: image model to learn from, FAMILY.PRESET; several with commas; of recipes that distil.
        steps: optimiser steps; by default the preset's.
        seed: of weights, order, masks and noise; 0 by default.
        resume: auto continues a run folder bit for bit; never refuses one in which a run has begun.
        data_options: options of the data's reader: `splatlearn list readers NAME`.
        encoder_options: options of the encoder: `splatlearn list encoders NAME`.
        teacher_options: options of the teacher: `splatlearn list teachers NAME`.
        recipe_options: options of the recipe: `splatlearn list recipes NAME`.
        train_options: options of the training loop: `splatlearn list train`.

    Raises:
        ConfigError: unknown names, unknown options and invalid values, all in one message.
        UserError: data that cannot be used, or a run folder with other settings.
    """
    from splatlearn.engine.loop import train
    from splatlearn.engine.report import preview, write_report
    from splatlearn.engine.runtime import is_main

    run = Path(run).expanduser()
    job = plan(
        recipe,
        preset=preset,
        data=data,
        encoder=encoder,
        teacher=teacher,
        steps=steps,
        seed=seed,
        data_options=data_options,
        encoder_options=encoder_options,
        teacher_options=teacher_options,
        recipe_options=recipe_options,
        train_options=train_options,
    )
    trainable = job.build()
    if is_main():
        for told in job.idle:
            warnings.warn(told, stacklevel=2)
    summary = train(trainable, job.train, run, resume=resume, settings=job.settings)
    if is_main():
        write_report(run, preview(trainable))
    return summary


@dataclass(frozen=True, kw_only=True)
class DataDefaults:
    """What a preset trains on.

    Args:
        name: of a reader.
        options: of its config.
    """

    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A YAML file of settings, `presets/RECIPE/PRESET.yaml` beside the recipe's module.

    Args:
        recipe: options of the recipe's config.
        encoders: `family.preset`; the first is the default, a bare family on the command line picks its entry.
        data: what is trained on by default.
        train: options of `TrainConfig`.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    encoders: tuple[str, ...] = ()
    data: DataDefaults = DataDefaults()
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked combination of recipe, encoder and data.

    Args:
        recipe: family.
        config: the recipe's config.
        encoder: `family.preset`, or a run folder.
        encoder_config: None where the encoder comes from a run.
        source: data.
        train: the loop's config.
        settings: all of it as a plain nested mapping, for `config.yaml`.
        idle: what to tell of the recipe's settings that were given and have no effect.
    """

    recipe: str
    config: Any
    encoder: str
    encoder_config: Any
    source: "Source"
    train: "TrainConfig"
    settings: dict[str, Any]
    idle: tuple[str, ...] = ()

    def build(self) -> "Recipe[Any]":
        """The recipe with its encoder; weights depend on the seed alone. The global generator is left as it was."""
        import torch

        from splatlearn import registry

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train.seed)
            family = registry.recipes.family(self.recipe)
            return family.cls(self.config, student=self._student(), source=self.source)

    def _student(self) -> "Encoder":
        from splatlearn import registry

        if self.encoder_config is None:
            from splatlearn.engine.checkpoint import load_encoder

            return load_encoder(Path(self.encoder).expanduser())
        student = registry.encoders.family(self.encoder).cls(self.encoder_config)
        student.name = self.encoder
        return student


def plan(
    recipe: str,
    *,
    preset: str = "small",
    data: str | None = None,
    encoder: str | None = None,
    teacher: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    data_options: Options | None = None,
    encoder_options: Options | None = None,
    teacher_options: Options | None = None,
    recipe_options: Options | None = None,
    train_options: Options | None = None,
) -> Job:
    """Checks a combination and resolves every setting; the arguments are those of `pretrain`.

    Raises:
        UserError: everything that is wrong, in one message.
    """
    from splatlearn import registry
    from splatlearn.config import configure, merge, to_options
    from splatlearn.data.scene import Source
    from splatlearn.engine.config import TrainConfig
    from splatlearn.errors import Problems

    problems = Problems()
    found = problems.catch(lambda: read_preset(f"{recipe}.{preset}"))
    defaults = found or Preset()
    given = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    problems.require(steps is None or steps >= 1, f"--steps: 1 or more is needed, got {steps}")
    train = merge(merge(defaults.train, train_options or {}), given)
    name = problems.catch(lambda: pick_encoder(encoder, defaults.encoders)) if encoder or found else None
    source = Source(
        name=data or defaults.data.name,
        options=merge({} if data else defaults.data.options, data_options or {}),
    )
    if source.name:
        problems.catch(source.reader)
    elif found:
        problems.require(False, f"--data: preset {preset!r} of {recipe} names none; give one")
    base = problems.catch(lambda: with_teacher(recipe, defaults.recipe, teacher, teacher_options)) or defaults.recipe
    if "teachers" in (recipe_options or {}):  # they take the place of the preset's, as a name on the command line does
        base = {name: value for name, value in base.items() if name != "teachers"}
    options = merge(base, recipe_options or {})
    config = problems.catch(lambda: registry.recipes.config(recipe, options, where="--recipe"))
    encoder_config = problems.catch(lambda: _encoder_config(name, encoder_options)) if name else None
    weights = problems.catch(lambda: _weights(name)) if name else None
    train_config = problems.catch(lambda: configure(TrainConfig, train, "--train"))
    groups = {f"groups.{group}": sets for group, sets in getattr(config, "groups", {}).items()}
    for option, sets in {"also": getattr(config, "also", {}), **groups}.items():
        for other, reading in sets.items():
            problems.catch(partial(_find_reader, Source(name=other, options=reading), f"--recipe.{option}"))
    problems.tell()
    assert name is not None and train_config is not None
    settings = {
        "recipe": recipe,
        "preset": preset,
        "recipe_options": to_options(config),
        "encoder": {"name": name, "options": to_options(encoder_config) if encoder_config else {}, **(weights or {})},
        "data": {"name": source.name, "options": source.resolved()},
        "train": to_options(train_config),
    }
    return Job(
        recipe=recipe,
        config=config,
        encoder=name,
        encoder_config=encoder_config,
        source=source,
        train=train_config,
        settings=settings,
        idle=_idle(config, registry.recipes.config(recipe, defaults.recipe)),
    )


def _find_reader(source: "Source", where: str) -> None:
    """Further data than those of `--data`: a complaint says whose option they are of."""
    from splatlearn.errors import ConfigError, UserError

    try:
        source.reader()
    except UserError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix('--data ')}") from error


def _idle(config: Any, preset: Any) -> tuple[str, ...]:
    """Sentences about settings of a recipe that differ from its preset and have no effect; configs may have `idle`."""
    reasons = config.idle() if hasattr(config, "idle") else {}
    given = {name: reason for name, reason in reasons.items() if attrgetter(name)(config) != attrgetter(name)(preset)}
    return tuple(f"--recipe.{name} has no effect: {reason}" for name, reason in given.items())


def with_teacher(recipe: str, options: Options, teacher: str | None, given: Options | None) -> Options:
    """The recipe's options with the teachers asked for in place of the preset's.

    A teacher that the preset names, too, keeps its options there; one of the same family as the preset's only teacher
    takes that one's (ScaLR reads a DINOv2 of any size before its final norm).

    Raises:
        ConfigError: the recipe has no teachers, or it is not clear whose the options are.
    """
    from splatlearn import registry
    from splatlearn.errors import ConfigError

    if teacher is None and not given:
        return options
    if "teachers" not in {f.name for f in fields(registry.recipes.family(recipe).config)}:
        raise ConfigError(f"--teacher: {recipe} learns without teachers")
    before: Mapping[str, Options] = options.get("teachers", {})
    names = teacher.split(",") if teacher else list(before)
    if given and len(names) != 1:
        raise ConfigError(f"--teacher.{next(iter(given))}: whose of {len(names)} teachers? Name one with --teacher")
    return {**options, "teachers": {name: {**_as_before(name, before), **(given or {})} for name in names}}


def _as_before(name: str, before: Mapping[str, Options]) -> Options:
    from splatlearn import registry
    from splatlearn.teachers.base import full_name

    def family(teacher: str) -> str:
        first = full_name(teacher).partition(".")[0]
        return first if first in registry.teachers.families() else "timm"

    for known, options in before.items():
        if full_name(known) == full_name(name) or (len(before) == 1 and family(known) == family(name)):
            return options
    return {}


def read_preset(name: str) -> Preset:
    """The preset of `recipe` (its first) or `recipe.preset`.

    A recipe without YAML files registers the options of its config instead, and has no default encoder and data.

    Raises:
        ConfigError: no such recipe or preset, or a file that does not fit `Preset`.
    """
    import yaml

    from splatlearn import registry
    from splatlearn.config import configure
    from splatlearn.errors import ConfigError, nearest

    family = registry.recipes.family(name)
    preset = name.partition(".")[2] or next(iter(family.presets))
    if preset not in family.presets:
        raise ConfigError(
            f"--preset {preset}: {family.name} has none of that name{nearest(preset, family.presets)} "
            f"(known: {', '.join(family.presets)})"
        )
    file = preset_folder(family.cls) / family.name / f"{preset}.yaml"
    if not file.exists():
        return Preset(recipe=dict(family.presets[preset]))
    return configure(Preset, yaml.safe_load(file.read_text()) or {}, f"preset {family.name}.{preset}")


def preset_folder(recipe: type) -> Path:
    """Where the YAML presets of a recipe lie: `presets` beside the module of its class."""
    return Path(inspect.getfile(recipe)).with_name("presets")


def pick_encoder(asked: str | None, offered: tuple[str, ...]) -> str:
    """`family.preset` of what was asked for, or a run folder.

    Args:
        asked: family, family.preset, run folder, or None for the first of `offered`.
        offered: the preset's `family.preset` names.

    Raises:
        ConfigError: nothing asked for and nothing offered, or no such encoder.
    """
    from splatlearn import registry
    from splatlearn.errors import ConfigError, nearest

    if not asked and not offered:
        raise ConfigError("--encoder: the preset names none; give one")
    name = (asked or offered[0]).removeprefix("random:")
    if name.partition(".")[0] not in registry.encoders.families():
        if Path(name).expanduser().is_dir():
            return name
        known = registry.encoders.families()
        raise ConfigError(
            f"--encoder {name}: no such encoder or run folder{nearest(name, known)} (known: {', '.join(known)})"
        )
    if "." in name:
        return name
    first = f"{name}.{registry.encoders.presets(name)[0]}"
    return next((entry for entry in offered if entry.partition(".")[0] == name), first)


def _encoder_config(name: str, options: Options | None) -> Any:
    """The encoder's config; None for a run folder, which has its own."""
    from splatlearn import registry
    from splatlearn.errors import ConfigError

    if name.partition(".")[0] in registry.encoders.families():
        return registry.encoders.config(name, options, where="--encoder")
    if options:
        raise ConfigError(f"--encoder {name}: a run's encoder takes no options, got {', '.join(options)}")
    return None


def _weights(name: str) -> dict[str, str]:
    """What a run started from: the digest of a run folder's encoder; a path says nothing of what lies there."""
    from splatlearn import registry
    from splatlearn.engine.checkpoint import encoder_digest

    known = name.partition(".")[0] in registry.encoders.families()
    return {} if known else {"weights": encoder_digest(Path(name))}
