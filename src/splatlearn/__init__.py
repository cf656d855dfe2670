"""splatlearn: pre-train encoders of 2D and 3D data without labels, and prove what they learnt.

Every verb of the command line is a function here (`splatlearn.pretrain("gs3", run="runs/first")`), imported when
it is first used; `splatlearn.load("runs/first").encode(xyz, color=...)` encodes arrays.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "check",
    "compare",
    "convert",
    "demo",
    "doctor",
    "encode",
    "evaluate",
    "fit",
    "load",
    "prepare",
    "pretrain",
    "view",
]

if TYPE_CHECKING:
    from splatlearn.verbs.check import check
    from splatlearn.verbs.compare import compare
    from splatlearn.verbs.convert import convert
    from splatlearn.verbs.demo import demo
    from splatlearn.verbs.doctor import doctor
    from splatlearn.verbs.encode import encode, load
    from splatlearn.verbs.evaluate import evaluate
    from splatlearn.verbs.fit import fit
    from splatlearn.verbs.prepare import prepare
    from splatlearn.verbs.pretrain import pretrain
    from splatlearn.verbs.view import view


def __getattr__(name: str) -> Any:
    from splatlearn.verbs import VERBS, verb

    if name == "load":
        from splatlearn.verbs.encode import load

        return load
    if name in VERBS:
        return verb(name)
    raise AttributeError(f"module 'splatlearn' has no attribute {name!r}")
