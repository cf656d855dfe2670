"""Published encoders: what a file of weights is, what it does not say, and the network that it fits.

So far WaffleIron, ScaLR and ScaLR+, as their training code leaves them: checkpoints, or archives of one.
"""

import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from splatlearn.encoders.layouts import waffleiron_activation
from splatlearn.encoders.weights import TORCH_FILES, read_torch_file, read_weights
from splatlearn.errors import BadData, ConfigError, UserError

ARCHIVES = (".tar.gz", ".tgz", ".tar")
ENDINGS = (*TORCH_FILES, *ARCHIVES, ".safetensors")
"""How files of weights end."""
HEAD = "classif."
TEACHER = 256
"""A head of as many channels or more gives features of a teacher (384 and up), not classes."""


@dataclass(frozen=True)
class Published:
    """A file of weights, recognised.

    Args:
        state: published key, without the prefix of several processes -> tensor.
        origin: the file, and what was read of an archive.
        generation: `ScaLR`, `ScaLR+` or `WaffleIron`.
        stage: `distilled`, `segmentation`, or `trunk` where there is no head.
        options: of the encoder's config, as far as shapes tell them.
        activation: why the options have the activation they have.
    """

    state: Mapping[str, Tensor]
    origin: str
    generation: str
    stage: str
    options: Mapping[str, Any]
    activation: str

    @property
    def head(self) -> dict[str, Tensor]:
        """The entries of the head, which is no part of the encoder."""
        return {key: value for key, value in self.state.items() if key.startswith(HEAD)}


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
    state = {key.removeprefix("module."): value for key, value in state.items()}
    options = _shapes(state, path)
    named_plus = re.search(r"scalr[-_ ]?(plus|\+)", f"{path.absolute()} {origin}", re.IGNORECASE) is not None
    options["act"], reason = _activation(state, act, named_plus, path)
    return Published(state, origin, _generation(state, options), _stage(state), options, reason)


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
            f"{path}: no weights of WaffleIron or ScaLR: embed.conv1.weight and waffleiron.channel_mix.0... are "
            f"expected among the keys, which begin with {some}"
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
