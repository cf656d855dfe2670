"""What is installed and active, and why not; and the names of all parts. Nothing heavy is imported."""

import importlib.metadata as metadata
import os
import platform
import re
import shutil
import tempfile
from dataclasses import MISSING, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from splatlearn import __version__
from splatlearn.config import user_cache
from splatlearn.errors import ConfigError, nearest
from splatlearn.registry import Registry
from splatlearn.verbs import columns

EXTRAS = {
    "cuda": ("gsplat",),
    "ray": ("ray",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "shards": ("fsspec", "aiohttp"),
    "track": ("tensorboard", "wandb"),
    "view": ("viser",),
}
"""Extra -> its packages; a test compares them with the project's metadata."""

HINT = "`splatlearn list KIND NAME` shows the options of one; a family alone means its first preset."

Rows = list[tuple[str, str]]


def doctor(*, full: bool = False) -> str:
    """What is installed and active, and why something is not.

    Args:
        full: also import the heavy packages and render a Gaussian on every backend (takes seconds).
    """
    sections = {
        "system": _system(),
        "packages": _packages(),
        "extras": _extras(),
        "rendering backends": _backends(),
        "devices": _devices(),
        "folders": _folders(),
    }
    if full:
        sections["tried just now"] = _trials()
    width = max(len(name) for rows in sections.values() for name, _ in rows) + 2
    return "\n\n".join(
        f"{title}\n{columns([(name.ljust(width - 2), text) for name, text in rows])}"
        for title, rows in sections.items()
    )


def list_names(kind: str = "", name: str = "") -> str:
    """Names of encoders, recipes, tasks and readers; options of one of them.

    Args:
        kind: encoders, recipes, tasks, readers, train (options of the training loop), or fit (of a fit); empty for all.
        name: family, or family.preset; its options are shown, with the preset's values.

    Raises:
        ConfigError: no such kind, family or preset.
    """
    kinds = _registries()
    if kind in ("train", "fit") and not name:
        return _train_options() if kind == "train" else _fit_options()
    if kind and kind not in kinds:
        known = [*kinds, "train", "fit"]
        raise ConfigError(f"unknown kind {kind!r}{nearest(kind, known)} (known: {', '.join(known)})")
    if name:
        return _options(kinds[kind], name)
    chosen = {kind: kinds[kind]} if kind else kinds
    listed = [f"{title}\n{columns(_families(registry))}" for title, registry in chosen.items()]
    return "\n\n".join([*listed, HINT])


def requirements(extra: str = "") -> list[str]:
    """Names of the packages that splatlearn asks for; of one extra when named."""
    lines = metadata.requires("splatlearn") or []
    if extra:
        lines = [line for line in lines if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    else:
        lines = [line for line in lines if "extra ==" not in line]
    return [re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0] for line in lines]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _system() -> Rows:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    told = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS is not set: torch takes every core"
    return [
        ("splatlearn", f"{__version__}, in {Path(__file__).parents[1]}"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("processor", f"{cores} cores usable of {os.cpu_count()}; {told}"),
        ("memory", f"{memory:.1f} GiB"),
    ]


def _packages() -> Rows:
    names = requirements() if _version("splatlearn") else ["torch", "numpy", "numba", "lightning", "timm"]
    return [(name, _version(name) or "MISSING: `pip install splatlearn` brings it") for name in names]


def _extras() -> Rows:
    rows = []
    for extra, packages in EXTRAS.items():
        absent = [package for package in packages if not _version(package)]
        state = f"inactive, {', '.join(absent)} absent: pip install 'splatlearn[{extra}]'" if absent else "active"
        rows.append((extra, state))
    return rows


def _backends() -> Rows:
    """Which one draws what, and why not the others; what only an import can tell is left to --full."""
    numba, absent, hindrance = _version("numba"), _gsplat(), _no_cuda()
    reasons = "; ".join(filter(None, (absent, hindrance)))
    on_cuda = "reference, slow" if absent else "gsplat"
    found = f"installed, {_version('gsplat')}; `splatlearn doctor --full` asks whether it works"
    return [
        ("float32 on the CPU", f"takes {'cpu' if numba else 'reference, slow'}"),
        ("float32 on CUDA", f"would take {on_cuda}; there is none here" if hindrance else f"takes {on_cuda}"),
        ("everything else", "takes reference"),
        ("reference", "active: plain torch, any dtype and device, slow"),
        ("cpu", f"active: Numba {numba}, float32 on the CPU" if numba else "inactive: numba is absent"),
        ("gsplat", f"inactive: {reasons}" if reasons else found),
    ]


def _gsplat() -> str:
    """Why gsplat cannot be imported, or an empty string."""
    return "" if find_spec("gsplat") else "gsplat is absent: pip install 'splatlearn[cuda]'"


def _no_cuda() -> str:
    """Why torch has no CUDA device here, or an empty string, as far as files tell."""
    cuda, driver = _torch_cuda(), Path("/proc/driver/nvidia/version")
    if not cuda:
        return "torch is absent or was built without CUDA"
    if not driver.exists() and not shutil.which("nvidia-smi"):
        return f"torch was built for CUDA {cuda}, but no NVIDIA driver is loaded"
    return ""


def _devices() -> Rows:
    hindrance = _no_cuda()
    loaded = f"torch was built for CUDA {_torch_cuda()}, and a driver is loaded; `splatlearn doctor --full` asks it"
    return [("cpu", "active"), ("cuda", f"inactive: {hindrance}" if hindrance else loaded)]


def _torch_cuda() -> str:
    """CUDA version that torch was built for, read from its files."""
    spec = find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    found = re.search(r"^cuda\b.*= *'([\d.]+)'", file.read_text(), re.M) if file and file.exists() else None
    return found[1] if found else ""


def _folders() -> Rows:
    cache = user_cache()
    hub = Path(os.environ.get("HF_HUB_CACHE", Path(os.environ.get("HF_HOME", cache.parent / "huggingface")) / "hub"))
    beside = Path(__file__).parents[1] / "splatting" / "kernels"
    compiled = beside / "__pycache__" if os.access(beside, os.W_OK) else cache / "kernels"
    return [
        ("worlds", _folder(Path(os.environ.get("SPLATLEARN_CACHE") or cache).expanduser())),
        ("model weights", _folder(hub)),
        ("compiled kernels", _folder(Path(os.environ.get("NUMBA_CACHE_DIR", compiled)))),
        ("temporary files", _folder(Path(tempfile.gettempdir()))),
    ]


def _folder(path: Path) -> str:
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    state = "" if there == path else ", made when needed"
    if not os.access(there, os.W_OK):
        state = f", NOT WRITABLE ({there})"
    return f"{path}{state}; {shutil.disk_usage(there).free / 2**30:.0f} GiB free"


def _trials() -> Rows:
    """Imports what is heavy and renders one Gaussian on every backend."""
    import torch

    from splatlearn.splatting.render import RenderOptions, render
    from splatlearn.splatting.trial import one_gaussian

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = [
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("cuda", ", ".join(devices) or "no device"),
    ]
    for backend in ("reference", "cpu"):
        try:
            light = float(render(*one_gaussian(), options=RenderOptions(backend=backend)).alpha.max())
            rows.append((backend, f"renders (greatest alpha {light:.2f})"))
        except Exception as error:  # whatever is wrong with an installation is what the reader wants to see
            rows.append((backend, f"FAILS: {type(error).__name__}: {error}"))
    return [*rows, ("gsplat", _gsplat_trial())]


def _gsplat_trial() -> str:
    """What gsplat says when it is imported and draws."""
    import torch

    from splatlearn.splatting import gsplat

    if not torch.cuda.is_available():
        return f"not tried: torch finds no CUDA device{'; ' + _gsplat() if _gsplat() else ''}"
    problem = gsplat.problem(torch.device("cuda", torch.cuda.current_device()))
    return f"FAILS: {problem}" if problem else "renders on CUDA"


def _registries() -> dict[str, Registry[Any]]:
    from splatlearn import registry

    parts = (registry.encoders, registry.teachers, registry.recipes, registry.tasks, registry.readers)
    return {r.kind: r for r in parts}


def _families(registry: Registry[Any]) -> Rows:
    """Built-in families by their table; installed ones by their entry points, so that none is imported."""
    rows = []
    for family in registry.families():
        known = registry.builtin.get(family)
        text = f"{known.summary} Presets: {', '.join(known.presets)}." if known else "From an installed package."
        rows.append((family, text))
    return rows


def _options(registry: Registry[Any], name: str) -> str:
    """The options of a family with a preset's values, from its config dataclass."""
    family = registry.family(name)
    flag = {"readers": "data"}.get(registry.kind, registry.kind.removesuffix("s"))
    settings, config = {}, None
    if registry.kind == "recipes":
        from splatlearn.verbs.pretrain import read_preset

        preset = read_preset(name)
        settings = preset.recipe
        rest = [
            ("encoders", ", ".join(preset.encoders)),
            ("data", " ".join([preset.data.name, *(f"{k}={v}" for k, v in preset.data.options.items())])),
            ("train", ", ".join(f"{k}={v}" for k, v in preset.train.items())),
        ]
        config = registry.config(family.name, settings)
    else:
        rest, config = [], registry.config(name)
    presets = f"presets: {', '.join(registry.presets(family.name))}"
    table = columns(describe_options(family.config, f"--{flag}", config))
    shown = [f"{name}: {family.summary}", presets, table]
    if rest:
        shown += [f"beside these, the preset sets\n{columns(rest)}"]
    return "\n\n".join(shown)


def _train_options() -> str:
    from splatlearn.engine.config import TrainConfig

    return f"options of the training loop\n\n{columns(describe_options(TrainConfig, '--train', None))}"


def _fit_options() -> str:
    from splatlearn.tasks.fitting import TRAINING, FitConfig

    rest = columns([("train", ", ".join(f"{k}={v}" for k, v in TRAINING.items()))])
    table = columns(describe_options(FitConfig, "--fit", FitConfig()))
    return f"options of a fit\n\n{table}\n\nbeside these, it sets\n{rest}"


def describe_options(config: type, flag: str, values: Any = None) -> Rows:
    """`--flag.option` and its explanation, type and value for every field of a config dataclass, nested ones too.

    Args:
        config: the dataclass.
        flag: prefix.
        values: an instance whose values are shown; by default the fields' defaults.
    """
    from splatlearn.config import type_name

    explained, rows = _explained(config), []
    for field, hint in ((f, get_type_hints(config)[f.name]) for f in fields(config)):
        value = getattr(values, field.name) if values is not None else _default(field)
        text = explained.get(field.name, "")
        if hasattr(value, "__dataclass_fields__"):
            rows.append((f"{flag}.{field.name}", text))
            rows += describe_options(type(value), f"{flag}.{field.name}", value)
        else:
            rows.append((f"{flag}.{field.name}", f"{text} [{type_name(hint)}; {value}]"))
    return rows


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else "required"


def _explained(config: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of its bases say of each field."""
    from docstring_parser import parse

    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        for param in parse(cls.__doc__ or "").params:
            text = " ".join((param.description or "").split())
            found |= {name.strip(): text for name in param.arg_name.split(",")}
    return found
