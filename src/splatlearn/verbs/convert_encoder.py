"""Published weights of encoders, and of their projectors, into folders that `--encoder` takes; part of `convert`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from splatlearn.encoders.base import Encoder, ImageEncoder
    from splatlearn.encoders.published import Published
    from splatlearn.encoders.weights import KeyReport
    from splatlearn.heads.published_projectors import PublishedProjectors

FILES = ("encoder.safetensors", "encoder.json")
SIZES = {"waffleiron": ("depth", "width"), "vit": ("patch", "size", "width", "depth", "registers")}
"""Options that name a preset of a family."""
ASSUMED = {"waffleiron": ("inputs", "voxel", "fov_min", "fov_max", "grids"), "vit": ("heads", "levels", "norm")}
"""Options of a family that no file holds."""
PROJECTOR_FACTS = ("projectors", "projectors left out")


@dataclass(frozen=True)
class ConvertedEncoder:
    """An encoder that was converted.

    Args:
        source: file that was read.
        target: folder that was written, or would have been.
        facts: what `encoder.json` says of where the weights came from.
        name: of the encoder.
        parameters: numbers that are trained.
        assumed: settings that the file does not hold.
        written: whether the folder was.
    """

    source: Path
    target: Path
    facts: Mapping[str, Any]
    name: str
    parameters: int
    assumed: str
    written: bool

    def __str__(self) -> str:
        facts = self.facts
        lines = [
            f"{self.source} -> {self.target}{'' if self.written else ' (dry run: nothing was written)'}",
            f"  {facts['generation']}, {facts['stage']}: {self.name}, {self.parameters:,} parameters, "
            f"{facts['keys']} keys, all in place",
        ]
        told = {**facts, "assumed": self.assumed}
        named = ("activation", "norm", "head", *PROJECTOR_FACTS, "statistics", "assumed", "checked", "licence")
        return "\n".join([*lines, *(f"  {what}: {told[what]}" for what in named if what in told)])


def is_weights(path: Path) -> bool:
    """Whether a file is one of weights, by its name."""
    from splatlearn.encoders.published import ENDINGS

    return path.name.lower().endswith(ENDINGS)


def convert_encoder(
    source: Path, target: Path, *, overwrite: bool, dry_run: bool, options: Mapping[str, Any]
) -> ConvertedEncoder:
    """Reads, recognises, loads strictly, tries and writes an encoder; arguments as in `convert`.

    Raises:
        UserError: the file fits no known network, or an option contradicts it; the target cannot be written.
        BadData: no such file, or a damaged one.
    """
    from splatlearn.config import to_options
    from splatlearn.encoders.published import read_published
    from splatlearn.encoders.weights import load_weights
    from splatlearn.engine.checkpoint import digest
    from splatlearn.registry import encoders

    _check_target(target, overwrite)
    published = read_published(source, options.get("act"))
    for name, value in published.options.items():
        _check_option(name, options.get(name, value), value, source)
    name = f"{published.family}.{_preset(published)}"
    chosen = {key: value for key, value in options.items() if key not in published.options}
    encoder: Encoder = encoders.create(name, {**published.options, **published.defaults, **chosen})
    encoder.name = name
    report: KeyReport = load_weights(encoder, published.state, published.family)
    projectors = _projectors(published, encoder.eval())
    features = _try_all(encoder, projectors, source)
    too = ", of the projectors too" if projectors.found else ""
    facts = {
        "origin": published.origin,
        "sha256": digest(source),
        "generation": published.generation,
        "stage": published.stage,
        **published.facts,
        "keys": len(report.loaded),
        **(_told(projectors) if published.family == "vit" else {"head": _head(published)}),
        "checked": f"finite features that differ from place to place{too}",
    }
    if not dry_run:
        facts["checked"] += ", the same again from what was written"
        _write(encoder, projectors, facts, target, features)
    settings = to_options(encoder.config)
    assumed = ", ".join(f"{name} {settings[name]}" for name in ASSUMED[published.family])
    count = sum(parameter.numel() for parameter in encoder.parameters())
    return ConvertedEncoder(source, target, facts, name, count, f"{assumed} (--encoder.OPTION)", not dry_run)


def _preset(published: "Published") -> str:
    """The first preset with the options that were read, or the first of all, of which every option is given then."""
    from splatlearn.registry import encoders

    presets = encoders.presets(published.family)
    wanted = {name: published.options[name] for name in SIZES[published.family]}
    for preset in presets:
        config = encoders.config(f"{published.family}.{preset}")
        if all(getattr(config, name) == value for name, value in wanted.items()):
            return preset
    return presets[0]


def _check_option(name: str, asked: Any, found: Any, source: Path) -> None:
    from splatlearn.errors import UserError

    if str(asked) != str(found):
        raise UserError(f"--encoder.{name} {asked}: {source} holds a network with {name} {found}; leave it out")


def _head(published: "Published") -> str:
    """What is left out, in words."""
    shapes = [f"{key} {tuple(v.shape)}" for key, v in published.head.items() if key.endswith("weight")]
    return f"left out, it is no part of the encoder ({', '.join(shapes)})" if shapes else "there is none"


def _projectors(published: "Published", encoder: Any) -> "PublishedProjectors":
    from splatlearn.heads.published_projectors import PublishedProjectors, read_projectors

    if published.family != "vit":
        return PublishedProjectors({}, {})
    return read_projectors(published.state, encoder, published.defaults["norm"])


def _told(projectors: "PublishedProjectors") -> dict[str, str]:
    """What there is to say of projectors: whose they are, and which are left out and why."""
    kinds = [
        f"{teacher} ({about['kind']}, {about['out_channels']} channels, "
        f"{'class token and patches' if about['summary'] else 'patches'})"
        for teacher, about in projectors.facts.items()
    ]
    how = "; features after one: --encoder.projector TEACHER"
    told = {"projectors": f"{', '.join(kinds)}{how}" if kinds else "there are none"}
    if projectors.refused:
        reasons = dict.fromkeys(projectors.refused.values())
        who = {why: ", ".join(t for t, other in projectors.refused.items() if other == why) for why in reasons}
        told = {**(told if kinds else {}), "projectors left out": "; ".join(f"{who[why]}: {why}" for why in reasons)}
    return told


def _try_all(encoder: "Encoder", projectors: "PublishedProjectors", source: Path) -> "list[Tensor]":
    """Features of the encoder, and those after each projector; raises as `_try`."""
    from splatlearn.tasks.encoders import ProjectedEncoder

    projected = (ProjectedEncoder(cast("ImageEncoder", encoder), p, t) for t, (_, p) in projectors.found.items())
    return [_try(one, source) for one in (encoder, *projected)]


def _try(encoder: "Encoder", source: Path) -> "Tensor":
    """Features of a made-up scan or image, which always is the same: one row a place.

    Raises:
        BadData: they are not finite, or equal everywhere.
    """
    import torch

    from splatlearn.encoders.base import ImageEncoder
    from splatlearn.errors import BadData

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if isinstance(encoder, ImageEncoder):
            maps = encoder(torch.rand(1, 3, 3 * encoder.patch, 5 * encoder.patch, generator=generator))
            rows = [level.flatten(2)[0].t() for level in maps.levels]
            features = torch.cat([*rows, maps.summary.expand(len(rows[0]), -1)], 1)
        else:
            features = _features_of_a_scan(encoder, generator)
    if not bool(torch.isfinite(features).all()) or not bool(features.std(0).max() > 0):
        raise BadData(f"{source}: the weights give features that are not finite, or equal everywhere")
    return features


def _features_of_a_scan(encoder: Any, generator: "Generator") -> "Tensor":
    import torch

    from splatlearn.encoders.base import DERIVED, INPUT_CHANNELS
    from splatlearn.structures import Points

    xyz = torch.rand(256, 3, generator=generator) * torch.tensor([20.0, 20.0, 2.0]) - torch.tensor([10.0, 10.0, 1.0])
    needed = [name for name in encoder.config.inputs if name not in DERIVED]
    values = {name: torch.rand(256, INPUT_CHANNELS[name], generator=generator) for name in needed}
    return encoder(encoder.config.precompute(Points(xyz=xyz, attributes=values))).dense()


def _check_target(target: Path, overwrite: bool) -> None:
    from splatlearn.engine.checkpoint import PROJECTORS
    from splatlearn.errors import UserError

    if target.suffix or target.is_file():
        raise UserError(f"{target}: an encoder is written as a folder of {' and '.join(FILES)}; name a folder")
    if not target.exists():
        return
    if others := sorted(path.name for path in target.iterdir() if path.name not in (*FILES, PROJECTORS)):
        raise UserError(f"{target}: the folder also holds {others[0]}; it is not replaced, name another")
    if not overwrite and any(target.iterdir()):
        raise UserError(f"{target}: already there; name another, or give --overwrite (overwrite=True) to replace it")


def _write(
    encoder: "Encoder",
    projectors: "PublishedProjectors",
    facts: Mapping[str, Any],
    target: Path,
    features: "list[Tensor]",
) -> None:
    """Written beside its place, loaded and tried, then moved there: a folder that is there is whole."""
    import shutil

    import torch
    from safetensors.torch import save_file

    from splatlearn.engine.checkpoint import PROJECTORS, describe_encoder, joined, load_encoder, load_projector
    from splatlearn.errors import BadData
    from splatlearn.heads.published_projectors import PublishedProjectors

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights, description = (partial / name for name in FILES)
    save_file({key: value.contiguous() for key, value in encoder.state_dict().items()}, weights)
    about = {**describe_encoder(encoder), "source": dict(facts)}
    if projectors.found:
        about["projectors"] = projectors.facts
        states = joined({teacher: projector.state_dict() for teacher, (_, projector) in projectors.found.items()})
        save_file({key: value.contiguous() for key, value in states.items()}, partial / PROJECTORS)
    description.write_text(json.dumps(about, indent=2) + "\n")
    loaded = {teacher: (config, load_projector(partial, teacher)) for teacher, (config, _) in projectors.found.items()}
    again = _try_all(load_encoder(partial), PublishedProjectors(loaded, {}), target)
    if not all(torch.equal(*pair) for pair in zip(again, features, strict=True)):
        raise BadData(f"{target}: what was written does not give the features of what was read")
    target.mkdir(parents=True, exist_ok=True)
    (target / PROJECTORS).unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), reverse=True):  # the description comes last
        path.replace(target / path.name)
    partial.rmdir()
