"""DUNE's and UNIC's files: whose they are, and the vision transformer that they fit."""

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatlearn.errors import UserError

PREFIXES = ("module.", "_orig_mod.")
"""What several processes and a compiler put before keys."""
FIRST = "encoder.patch_embed.proj.weight"
HEADS = ("projectors.", "teacher_norms.", "lp.")
"""Beginnings of the keys of what is no part of the encoder."""
HEAD_WIDTH = 64
"""Channels of an attention head in all of DUNE's and UNIC's students; shapes do not tell it."""
STATISTICS = {"DUNE": "teacher_norms", "UNIC": "teacher_ft_stats"}
"""Where the means and deviations of the teachers' features are."""
LICENCES = {
    "DUNE": "DUNE's, for non-commercial use only (naver/dune)",
    "UNIC": "CC BY-NC-SA 4.0: non-commercial, shared alike, with attribution (naver/unic)",
}


def bare_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without `PREFIXES`."""
    return {_bare(key): value for key, value in state.items()}


def is_vit(state: Mapping[str, Tensor]) -> bool:
    """Whether a file is one of DUNE or UNIC."""
    return FIRST in state


def vit_facts(state: Mapping[str, Tensor]) -> tuple[str, str, dict[str, str]]:
    """Generation, stage, and what there is to say of the norm and the licence; UNIC's have no registers."""
    generation = "DUNE" if "encoder.register_tokens" in state else "UNIC"
    heads = any(key.startswith(("projectors.", "lp.")) for key in state)
    norm = "trained, and so it follows every level" if _norm_was_trained(state) else "never trained, and left out"
    facts = {"norm": f"{norm} (otherwise --encoder.norm)", "licence": LICENCES[generation]}
    if heads:
        where = STATISTICS[generation]
        facts["statistics"] = f"of the teachers' features ({where}) are left out: projectors give standardised ones"
    return generation, "distilled" if heads else "trunk", facts


def vit_options(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Options of `ViTConfig`, by the shapes.

    Raises:
        UserError: no square of positions, or a width that such students do not have.
    """
    width, _, patch, _ = state[FIRST].shape
    positions = state.get("encoder.pos_embed")
    rows = 0 if positions is None else positions.shape[1] - 1
    blocks = {_block(key) for key in state if key.startswith("encoder.blocks.")}
    if rows < 1 or isqrt(rows) ** 2 != rows or width % HEAD_WIDTH or not blocks:
        raise UserError(
            f"{path}: no student of DUNE or UNIC: {rows} positions, {width} channels and {len(blocks)} blocks, where a "
            f"square, a multiple of {HEAD_WIDTH} and one or more are expected"
        )
    registers = state.get("encoder.register_tokens")
    scale = any(key.endswith(".ls1.gamma") and key.startswith("encoder.") for key in state)
    return {
        "patch": patch,
        "size": patch * isqrt(rows),
        "width": width,
        "depth": len(blocks),
        "heads": width // HEAD_WIDTH,
        "registers": 0 if registers is None else registers.shape[1],
        "layer_scale": 1e-4 if scale else 0.0,
    }


def vit_defaults(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """The norm where it was trained, and as levels the blocks that ladders read, or else those after each quarter."""
    depth = options["depth"]
    ladder = {int(match[1]) for key in state if (match := re.match(r"lp\.heads\.[^.]+\.[^.]+\.(\d+)\.", key))}
    quarters = (max(depth * part // 4, 1) - 1 for part in (1, 2, 3, 4))
    return {"norm": _norm_was_trained(state), "levels": tuple(sorted(ladder) or quarters)}


def _norm_was_trained(state: Mapping[str, Tensor]) -> bool:
    """Whether the final norm is not as it began; DUNE and UNIC never use it in training."""
    weight, bias = state.get("encoder.norm.weight"), state.get("encoder.norm.bias")
    if weight is None or bias is None:
        return False
    return not (torch.equal(weight, torch.ones_like(weight)) and torch.equal(bias, torch.zeros_like(bias)))


def _block(key: str) -> str:
    """The number of a block, which may lie in a chunk (`blocks.0.3`)."""
    parts = key.split(".")
    return parts[3] if parts[3].isdigit() else parts[2]


def _bare(key: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    return key
