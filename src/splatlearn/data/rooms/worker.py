"""Makes rooms in a process of its own; the order comes as JSON on standard input."""

import json
import sys
from pathlib import Path
from typing import Any

from splatlearn.data.rooms.cache import Recipe, make_rooms


def main() -> None:
    """Reads one order and carries it out."""
    order = json.load(sys.stdin)
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in order["recipe"].items()}
    make_rooms(Recipe(**fields), Path(order["root"]), order["indices"])


if __name__ == "__main__":
    main()
