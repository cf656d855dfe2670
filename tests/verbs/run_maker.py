"""Run folders of image encoders, as `dune` leaves them."""

import json
from pathlib import Path

from safetensors.torch import save_file

from splatlearn import registry
from splatlearn.engine.checkpoint import PROJECTORS, describe_encoder, joined
from splatlearn.heads.projectors import SimpleProjectorConfig, create_projector, describe_projector
from splatlearn.tasks.encoders import seeded
from splatlearn.teachers.base import create_teacher

WIDTH = 12
"""Channels of the teacher."""


def write_weights(path: Path) -> Path:
    """A file of weights for the teacher `squeezenet`, of an eighth of its width."""
    network = create_teacher("random:squeezenet", {"width": 0.125}).network
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path


def write_run(folder: Path, teacher: str, seed: int = 0) -> Path:
    """An untrained `vit.tiny` with a projector to the width of a teacher."""
    config = SimpleProjectorConfig()
    with seeded(seed):
        encoder = registry.encoders.create("vit.tiny")
        encoder.name = "vit.tiny"
        projector = create_projector(config, encoder.channels, WIDTH)
    folder.mkdir(parents=True)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    save_file(joined({teacher: projector.state_dict()}), folder / PROJECTORS)
    facts = describe_encoder(encoder) | {"projectors": {teacher: describe_projector(config, projector)}}
    (folder / "encoder.json").write_text(json.dumps(facts))
    return folder
