"""Published encoders: what a file of weights is, what it does not say, and the network that it fits.

So far WaffleIron, ScaLR and ScaLR+, DUNE and UNIC, as their training code leaves them: checkpoints, or archives of one.
"""

import io
import logging
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from splatlearn import registry
from splatlearn.encoders.base import Encoder
from splatlearn.encoders.layouts import waffleiron_activation
from splatlearn.encoders.published_vit import HEADS, bare_state, is_vit, vit_defaults, vit_facts, vit_options
from splatlearn.encoders.weights import TORCH_FILES, load_weights, read_torch_file, read_weights
from splatlearn.errors import BadData, ConfigError, UserError

ARCHIVES = (".tar.gz", ".tgz", ".tar")
ENDINGS = (*TORCH_FILES, *ARCHIVES, ".safetensors")
"""How files of weights end."""
log = logging.getLogger("splatlearn")
HEAD = "classif."
TEACHER = 256
"""A head of as many channels or more gives features of a teacher (384 and up), not classes."""


MODELS = {
    "dune.vits14_336": "vit.s14-336",
    "dune.vits14_448": "vit.s14-448",
    "dune.vitb14_336": "vit.b14-336",
    "dune.vitb14_448": "vit.b14-448",
    "dune.vitb14_448_paper": "vit.b14-448",
    "unic.vitb16": "vit.b16-224",
}
"""Published encoders by their publishers' names, and the presets that they fit."""


@dataclass(frozen=True)
class Published:
    """A file of weights, recognised.

    Args:
        state: published key, without the prefix of several processes -> tensor.
        origin: the file, and what was read of an archive.
        family: of the encoder, and the layout of the keys.
        generation: `ScaLR`, `ScaLR+`, `WaffleIron`, `DUNE` or `UNIC`.
        stage: `distilled`, `segmentation`, or `trunk` where there is no head.
        options: of the encoder's config, as far as the file tells them.
        defaults: options that follow from the file, and that may be asked for otherwise.
        heads: beginnings of the keys of what is no part of the encoder.
        facts: what else there is to say, by what it is of (`activation`, `norm`, `licence`).
    """

    state: Mapping[str, Tensor]
    origin: str
    family: str
    generation: str
    stage: str
    options: Mapping[str, Any]
    defaults: Mapping[str, Any]
    heads: tuple[str, ...]
    facts: Mapping[str, str]

    @property
    def head(self) -> dict[str, Tensor]:
        """The entries of the head, which is no part of the encoder."""
        return {key: value for key, value in self.state.items() if key.startswith(self.heads)}


def read_published(path: Path, act: str | None = None) -> Published:
    """Reads and recognises a file.

    Args:
        path: a checkpoint, an archive with one, or safetensors.
        act: activation that the user states, since a file of a segmentation network does not tell it.

    Raises:
        BadData: no such file, or not one of named tensors.
        UserError: tensors of something else, an activation that cannot be right, or none where it is needed.
    """
    state, origin = _read(path)
    state = bare_state(state)
    if is_vit(state):
        options, (generation, stage, facts) = vit_options(state, path), vit_facts(state)
        return Published(state, origin, "vit", generation, stage, options, vit_defaults(state, options), HEADS, facts)
    options = _shapes(state, path)
    named_plus = re.search(r"scalr[-_ ]?(plus|\+)", f"{path.absolute()} {origin}", re.IGNORECASE) is not None
    options["act"], reason = _activation(state, act, named_plus, path)
    facts = {"activation": f"{options['act']}: {reason}"}
    generation = _generation(state, options)
    return Published(state, origin, "waffleiron", generation, _stage(state), options, {}, (HEAD,), facts)


def create_encoder(name: str, weights: str | Path | None = None, **options: Any) -> Encoder:
    """An encoder in eval mode, with published weights or untrained.

    Args:
        name: `family` or `family.preset` of `registry.encoders`, or a published encoder of `MODELS`
            (`dune.vitb14_448`), which needs its weights.
        weights: the publisher's file, in the layout of the family.
        options: of the encoder's config, on top of the preset.

    Raises:
        ConfigError: no such name, or options that do not fit.
        UserError: a published encoder without weights, or weights that do not fit.
    """
    own = MODELS.get(name, name)
    if own != name and weights is None:
        raise UserError(f"{name}: name its file of weights (weights=); an untrained network of its kind is {own}")
    encoder: Encoder = registry.encoders.create(own, options)
    encoder.name = own if "." in own else f"{own}.{registry.encoders.presets(own)[0]}"
    if weights is not None:
        published = read_published(Path(weights), getattr(getattr(encoder, "config", None), "act", None))
        if published.family != own.partition(".")[0]:
            raise UserError(f"{weights}: weights of {published.generation}, which {name} is not")
        load_weights(encoder, published.state, published.family)
        if "licence" in published.facts:
            log.warning("%s: licence of these weights: %s", weights, published.facts["licence"])
    return encoder.eval()


def _activation(state: Mapping[str, Tensor], act: str | None, named_plus: bool, path: Path) -> tuple[str, str]:
    """The activation, and why it is that: what keys prove, the name, what is stated, what heads are usual."""
    told = waffleiron_activation(state)
    reason = {"gelu": "the head is ScaLR+'s", "relu": "batch norms, which only WaffleIron has"}.get(told, "")
    if named_plus and told == "relu":
        raise UserError(f"{path}: the name says ScaLR+, but it has {reason}; rename the file or its folder")
    first = f"{HEAD}weight" in state and _stage(state) == "distilled"
    if named_plus and first and act is None:
        raise UserError(
            f"{path}: the name says ScaLR+, but a head of one layer to a teacher's features is that of ScaLR as first "
            "published: give --encoder.act relu for that one, gelu for ScaLR+"
        )
    if named_plus and not told and not first:
        told, reason = "gelu", "the name says ScaLR+"
    if act and told and act != told:
        raise UserError(
            f"{path}: these weights were trained with {told.upper()} ({reason}); with --encoder.act {act} they would "
            "load without a murmur and give useless features. Leave --encoder.act out"
        )
    if told:
        return told, reason
    if act is None and f"{HEAD}weight" in state:
        return "relu", "a head of one layer, as ScaLR and WaffleIron have it (otherwise --encoder.act gelu)"
    if act is None:
        raise UserError(
            f"{path}: a network like this has no mark of its activation, and with the wrong one its features are "
            "useless: give --encoder.act gelu for ScaLR+, --encoder.act relu for ScaLR and WaffleIron (a file below "
            "a folder called ScaLR_plus is taken for the former)"
        )
    if act not in ("relu", "gelu"):
        raise ConfigError(f"--encoder.act: relu or gelu is needed, got {act}")
    return act, "stated by --encoder.act"


def _generation(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> str:
    if options["act"] == "gelu":
        return "ScaLR+"
    one_layer = f"{HEAD}weight" in state and _stage(state) == "segmentation"
    return "WaffleIron" if one_layer or options["norm"] == "batchnorm" else "ScaLR"


def _stage(state: Mapping[str, Tensor]) -> str:
    for name, stage in ((f"{HEAD}1.weight", "segmentation"), (f"{HEAD}2.weight", "distilled")):
        if name in state:
            return stage
    linear = state.get(f"{HEAD}weight")
    if linear is None:
        return "trunk"
    return "distilled" if len(linear) >= TEACHER else "segmentation"


def _shapes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Depth, width and norm."""
    first = state.get("embed.conv1.weight")
    blocks = {key.split(".")[2] for key in state if key.startswith("waffleiron.channel_mix.") and key.count(".") > 2}
    if first is None or first.ndim < 2 or not blocks:
        some = ", ".join(list(state)[:3]) or "none at all"
        raise UserError(
            f"{path}: no weights of WaffleIron or ScaLR, and none of DUNE or UNIC: embed.conv1.weight and "
            f"waffleiron.channel_mix.0... are expected among the keys, or encoder.patch_embed.proj.weight; they "
            f"begin with {some}"
        )
    norm = "batchnorm" if "waffleiron.channel_mix.0.norm.running_mean" in state else "layernorm"
    return {"depth": len(blocks), "width": first.shape[0], "norm": norm}


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict, and where it came from."""
    if not path.is_file():
        raise BadData(f"weights {path}: no such file")
    if not path.name.lower().endswith(ARCHIVES) or not tarfile.is_tarfile(path):
        return read_weights(path), str(path)
    try:
        with tarfile.open(path) as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            inside = [member for member in members if member.name.endswith(TORCH_FILES)]
            if len(inside) != 1:
                names = ", ".join(member.name for member in inside or members) or "nothing"
                raise UserError(f"{path}: one checkpoint is expected in the archive, which holds {names}; unpack it")
            opened = archive.extractfile(inside[0])
            assert opened is not None, "a file that is listed can be opened"
            name = f"{path}:{inside[0].name}"
            return read_torch_file(Path(name), io.BytesIO(opened.read())), name
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadData(f"weights {path}: a damaged archive ({error})") from error
