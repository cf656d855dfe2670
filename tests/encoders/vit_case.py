"""A stored case of DUNE's or UNIC's official code: weights, numbers, the student and its projectors."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from splatlearn.encoders.base import FeatureMaps
from splatlearn.encoders.vit import ViT, ViTConfig
from splatlearn.encoders.weights import load_weights
from splatlearn.heads.projectors import (
    ImageProjector,
    LadderProjectorConfig,
    TransformerProjectorConfig,
    create_projector,
    projector_layout,
)


class Case:
    """A case in `dtype`, and the tolerance it states."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float64) -> None:
        facts = json.loads((folder / "case.json").read_text())
        self.about, self.dtype = facts["config"], dtype
        self.exact = {name: about.get("float32_vs_float64") or 0.0 for name, about in facts["tensors"].items()}
        self.stored, self.weights = (
            {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(folder / name).items()}
            for name in ("io.safetensors", "weights.safetensors")
        )

    def student(self, norm: bool, levels: tuple[int, ...]) -> ViT:
        config = ViTConfig(
            patch=self.about.get("patch", 14),
            size=self.about["image_size"],
            width=self.about["embed_dim"],
            depth=self.about["depth"],
            heads=self.about["num_heads"],
            registers=self.about.get("registers", 4),
            layer_scale=0.0 if "init_values" in self.about else 1e-4,
            norm=norm,
            levels=levels,
        )
        student = ViT(config).to(self.dtype)
        self.report = load_weights(student, self.weights, "vit")
        return student

    def projectors(self, student: ViT) -> dict[str, ImageProjector]:
        """By the teacher's name, sorted."""
        ladder = self.about.get("lp_args")
        config = TransformerProjectorConfig(heads=self.about["num_heads"])
        if ladder:
            config = LadderProjectorConfig(hidden=ladder["hidden_dim"], last_hidden=ladder["last_hidden_dim"])
        made = {}
        for name in sorted({key.split(".")[2 if ladder else 1] for key in self.weights if key[:2] in ("pr", "lp")}):
            width = self.stored[f"in.teacher.{name}.patch"].shape[-1]
            made[name] = create_projector(config, student.channels, width).to(self.dtype)
            load_weights(made[name], self.weights, projector_layout(name))
        return made

    def losses(self, maps: dict[str, FeatureMaps], prefix: str) -> Tensor:
        """(V T) the published loss of every view and teacher, against the stored standardised features."""
        columns = []
        for name, found in maps.items():
            kinds = {"patch": found.levels[0].flatten(2).transpose(1, 2), "cls": found.summary[:, None]}
            parts = []
            for kind, tokens in kinds.items():
                target = self.stored.get(f"{prefix}mid.normalised_teacher.{name}.{kind}")
                if target is None:
                    continue
                target = target.reshape(tokens.shape)
                cosine = 1 - functional.cosine_similarity(tokens, target, dim=-1)
                smooth = functional.smooth_l1_loss(tokens, target, reduction="none").mean(-1)
                parts.append((0.5 * cosine + 0.5 * smooth).mean(1))
            columns.append(torch.stack(parts).mean(0))
        return torch.stack(columns, 1)

    def check(self, name: str, value: Tensor, gradient: bool = False) -> None:
        expected = self.stored[name]
        absolute, relative = (1e-4, 1e-3) if gradient else (1e-5, 1e-4)
        allowed = absolute + relative * float(expected.abs().max())
        if self.dtype == torch.float64:
            allowed = 1e-6 + 4 * self.exact[name]
        error = float((value.detach().reshape(expected.shape) - expected).abs().max())
        assert error <= allowed, f"{name}: off by {error}, {allowed} allowed"
