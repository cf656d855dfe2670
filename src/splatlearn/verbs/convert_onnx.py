"""Encoders into ONNX files, checked against torch by onnxruntime; part of `convert`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from splatlearn.encoders.base import Encoder
    from splatlearn.encoders.graphs import Graph, Port

INSTALL = 'pip install "splatlearn[export]"'
TOLERANCE = 1e-3
"""Largest difference from torch that is taken, in standard deviations of the output; rounding gives about 1e-5."""
LARGEST = 1_900_000_000
"""Bytes of weights that one file can hold with its graph: protobuf ends at 2 GiB."""
CHECKS = 3
"""Made-up inputs of different sizes that the graph is run on; the first is the one it was traced with."""


@dataclass(frozen=True)
class ExportedEncoder:
    """An encoder that was exported.

    Args:
        source: folder that was read.
        target: file that was written, or would have been; a .json of the same name lies beside it.
        name: of the encoder.
        opset: version of ONNX's operators.
        inputs, outputs: name, shape and type of each.
        megabytes: size of the file.
        difference: largest one between onnxruntime and torch, in standard deviations of the output.
        licence: of the weights, if the folder tells it.
        written: whether the files were.
    """

    source: Path
    target: Path
    name: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    megabytes: float
    difference: float
    licence: str
    written: bool

    def __str__(self) -> str:
        lines = [
            f"{self.source} -> {self.target}{'' if self.written else ' (dry run: nothing was written)'}",
            f"  {self.name}, opset {self.opset}, {self.megabytes:.1f} MB",
            *(f"  in:  {port}" for port in self.inputs),
            *(f"  out: {port}" for port in self.outputs),
            f"  onnxruntime and torch differ by {self.difference:.1e} standard deviations at most, on {CHECKS} sizes",
            *([f"  licence: {self.licence}"] if self.licence else []),
        ]
        if self.written:
            lines.append(f"  {_described(self.target).name} says how its inputs are made")
        return "\n".join(lines)


def convert_onnx(source: Path, target: Path, *, overwrite: bool, dry_run: bool) -> ExportedEncoder:
    """Exports, checks and writes an encoder; arguments as in `convert`.

    Raises:
        UserError: there is no encoder, its family or size is not exported, a library is missing, the target cannot be
            written, or onnxruntime gives other numbers than torch.
    """
    from splatlearn.encoders.graphs import graph_of
    from splatlearn.engine.checkpoint import encoder_digest, encoder_origin, load_encoder
    from splatlearn.errors import UserError

    _check_target(target, overwrite)
    _check_libraries()
    encoder = load_encoder(source)
    graph, size = graph_of(encoder), sum(p.numel() * p.element_size() for p in encoder.state_dict().values())
    if size > LARGEST:
        raise UserError(
            f"{source}: {size / 1e9:.1f} GB of weights; an ONNX file holds 2 GB, and no other is written beside it"
        )
    model = _export(graph)
    data = model.SerializeToString()
    difference = _difference(data, graph, encoder)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{target}: not written: onnxruntime gives other numbers than torch, by {difference:.1e} standard "
            f"deviations of the output ({TOLERANCE:.0e} is allowed); other versions of torch, onnxscript or "
            "onnxruntime may agree"
        )
    opset = next(used.version for used in model.opset_import if not used.domain)
    origin = encoder_origin(source)
    if not dry_run:
        facts = {"opset": opset, "difference": difference, "weights_sha256": encoder_digest(source), "source": origin}
        _write(target, data, describe(encoder, graph, facts))
    takes, gives = (tuple(map(str, ports)) for ports in (graph.takes, graph.gives))
    licence = str(origin.get("licence", ""))
    return ExportedEncoder(
        source, target, encoder.name, opset, takes, gives, len(data) / 1e6, difference, licence, written=not dry_run
    )


def describe(encoder: "Encoder", graph: "Graph", facts: Mapping[str, Any]) -> dict[str, Any]:
    """What lies beside the file: the encoder, its inputs and how they are made, its outputs, and where it came from."""
    from splatlearn.engine.checkpoint import describe_encoder

    def listed(ports: "Sequence[Port]") -> list[dict[str, Any]]:
        return [{"name": p.name, "shape": p.shape, "dtype": p.dtype, "meaning": p.meaning} for p in ports]

    about = {"inputs": listed(graph.takes), "how": graph.recipe, "outputs": listed(graph.gives)}
    return {"format": "splatlearn onnx", **about, "encoder": describe_encoder(encoder), **facts}


def _described(target: Path) -> Path:
    return target.with_suffix(".json")


def _check_target(target: Path, overwrite: bool) -> None:
    """A .json that is not ours is never replaced: `encoder.onnx` beside `encoder.json` would be."""
    from splatlearn.errors import UserError

    beside = _described(target)
    if target.is_dir():
        raise UserError(f"{target}: this is a folder; name a file")
    if beside.exists() and not _is_ours(beside):
        raise UserError(
            f"{target}: {beside.name} beside it would be replaced, and is no description of an ONNX file; name another"
        )
    for path in (target, beside):
        if path.exists() and not overwrite:
            raise UserError(f"{path}: already there; name another, or give --overwrite (overwrite=True) to replace it")


def _is_ours(path: Path) -> bool:
    try:
        return json.loads(path.read_text())["format"] == "splatlearn onnx"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_libraries() -> None:
    """Raises: UserError, with the names of those that are missing."""
    from importlib import import_module

    from splatlearn.errors import UserError

    missing = []
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(f"convert to .onnx: {', '.join(missing)} cannot be imported: {INSTALL}")


def _export(graph: "Graph") -> Any:
    """The model, without the exporter's notes, which hold paths of this machine, and with names for all sides."""
    import logging
    import warnings

    import torch

    from splatlearn.errors import UserError

    inputs, names = graph.inputs(graph.made_up(0)), [port.name for port in graph.gives]
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=names,
                dynamic_shapes=graph.sides(),
                dynamo=True,
                verbose=False,
                external_data=False,
            )
    except torch.onnx.OnnxExporterError as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"torch {torch.__version__} cannot export this encoder; a newer one may: {told}") from error
    finally:
        exporter.setLevel(level)
    assert program is not None
    model = program.model_proto
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:], model.graph.value_info[:]
    for port, value in zip((*graph.takes, *graph.gives), (*model.graph.input, *model.graph.output)):
        del value.metadata_props[:]
        for side, dimension in zip(port.shape, value.type.tensor_type.shape.dim):
            if isinstance(side, str):
                dimension.dim_param = side
    return model


def _difference(data: bytes, graph: "Graph", encoder: "Encoder") -> float:
    """The largest one from torch's own encoder over all sizes and outputs, in standard deviations of the output.

    Infinite where an output is not finite or of another shape.
    """
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    largest = 0.0
    for number in range(CHECKS):
        made = graph.made_up(number)
        with torch.no_grad():
            expected = _outputs(encoder, made)
        found = session.run(None, {name: value.numpy() for name, value in graph.inputs(made).items()})
        for wanted, got in zip(expected, map(torch.as_tensor, found), strict=True):
            if wanted.shape != got.shape or not bool(torch.isfinite(wanted).all() and torch.isfinite(got).all()):
                return float("inf")
            spread = max(float(wanted.std()), torch.finfo(wanted.dtype).tiny)
            largest = max(largest, float((wanted - got).abs().max()) / spread)
    return largest


def _outputs(encoder: "Encoder", made: Any) -> "tuple[Tensor, ...]":
    """Levels and summary of the encoder itself."""
    from splatlearn.structures import Tokens

    result = encoder(made)
    return (*(level.features if isinstance(level, Tokens) else level for level in result.levels), result.summary)


def _write(target: Path, data: bytes, description: Mapping[str, Any]) -> None:
    """Both whole or not at all; the file last, so that one that is there is described."""
    import hashlib

    from splatlearn.engine.checkpoint import replace_file

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(data)
    told = {**description, "file": target.name, "sha256": hashlib.sha256(data).hexdigest()}
    replace_file(_described(target), json.dumps(told, indent=2) + "\n")
    partial.replace(target)
