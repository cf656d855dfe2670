"""Makes parts of a procedural world in a process of its own; the order comes as JSON on standard input."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Reads one order and carries it out."""
    order = json.load(sys.stdin)
    module = import_module(order["module"])
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in order["recipe"].items()}
    recipe = module.Recipe(**fields)
    for index in order["indices"]:
        module.WORKSHOP.make(recipe, index, module.WORKSHOP.folder(Path(order["root"]), index))


if __name__ == "__main__":
    main()
