"""What a user waits for at the start: answers of the command line, and a world of rooms.

Run: python benchmarks/start.py [--rooms N]

Commands are timed in new processes, the median of five after one to warm the disk's cache. Rooms are made in a
temporary folder, by as many processes as `rooms` takes by itself.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from statistics import median

COMMANDS = ("--help", "pretrain --help", "list", "list encoders sparse_unet.tiny", "doctor")


def answer(command: str) -> float:
    """Seconds of one command in a new process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "splatlearn", *command.split()], check=True, capture_output=True)
    return time.perf_counter() - start


def rooms(count: int) -> float:
    """Seconds to make so many rooms, imports included."""
    code = f"from splatlearn.data.scene import Source; Source(name='rooms', options={{'rooms': {count}}}).scenes()"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "SPLATLEARN_CACHE": cache}
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)
        return time.perf_counter() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=100)
    count = parser.parse_args().rooms
    print(f"{platform.machine()} CPU, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | seconds |\n|---|---|")
    for command in COMMANDS:
        answer(command)
        print(f"| `splatlearn {command}` | {median(answer(command) for _ in range(5)):.2f} |", flush=True)
    print(f"| {count} rooms | {rooms(count):.0f} |")


if __name__ == "__main__":
    main()
