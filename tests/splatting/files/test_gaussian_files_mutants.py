"""Damaged files of every format: one `BadData` that names the file, or a scene of finite numbers, and nothing else.

300 mutants a format; for more:

    SPLATLEARN_MUTANTS=10000 python -m pytest tests/splatting/files/test_gaussian_files_mutants.py
"""

import gzip
import os
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from splatlearn.errors import BadData
from splatlearn.splatting.files import RawGaussians, read_raw
from splatting.files.writers import FIELDS, FILES, cloud, folder, spz_payload

MUTANTS = int(os.environ.get("SPLATLEARN_MUTANTS", "300"))
SECONDS = 5.0
MEMORY = 256 << 20
NUMBERS = (b"0", b"-1", b"1000000000000", b"99999999999999999999", b"nan", b"inf", b"1e999", b"\xff", b"")
FLOATS = np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45]).tobytes()
"""What the number at a place is replaced by, as text and in binary."""

Mutation = Callable[[bytearray, np.random.Generator], bytearray]


def flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        data[place] ^= 1 << int(rng.integers(8))
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: int(rng.integers(len(data)))]


def remove(data: bytearray, rng: np.random.Generator) -> bytearray:
    start = int(rng.integers(len(data)))
    del data[start : start + int(rng.integers(1, 33))]
    return data


def insert(data: bytearray, rng: np.random.Generator) -> bytearray:
    start = int(rng.integers(len(data)))
    data[start:start] = rng.bytes(int(rng.integers(1, 33)))
    return data


def repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    start = int(rng.integers(len(data)))
    data[start:start] = data[start : start + int(rng.integers(1, 257))]
    return data


def swap_float(data: bytearray, rng: np.random.Generator) -> bytearray:
    start = int(rng.integers(max(len(data) - 4, 1)))
    value = 4 * int(rng.integers(6))
    data[start : start + 4] = FLOATS[value : value + 4]
    return data


def swap_word(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A word of a header, or a number of a text, becomes another or an absurd one."""
    words = bytes(data).split(b" ")
    place = int(rng.integers(len(words)))
    pool = (*NUMBERS, words[int(rng.integers(len(words)))], b"double", b"list uchar", b"vertex")
    words[place] = pool[int(rng.integers(len(pool)))]
    return bytearray(b" ".join(words))


def swap_header(data: bytearray, rng: np.random.Generator) -> bytearray:
    """As `swap_word`, in the first bytes alone."""
    size = min(len(data), 400)
    return swap_word(data[:size], rng) + data[size:]


def swap_line(data: bytearray, rng: np.random.Generator) -> bytearray:
    lines = bytes(data).split(b"\n")
    one, other = (int(i) for i in rng.integers(min(len(lines), 40), size=2))
    lines[one], lines[other] = lines[other], lines[one]
    return bytearray(b"\n".join(lines))


MUTATIONS: tuple[Mutation, ...] = (
    flip,
    cut,
    remove,
    insert,
    repeat,
    swap_float,
    swap_word,
    swap_header,
    swap_line,
)


def check(path: Path) -> bool:
    """Whether the file is read; one that is holds finite numbers."""
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            raw = read_raw(path)
            scene = raw.to_gaussians()
    except BadData as error:
        assert str(path) in str(error)
        assert len(str(error).splitlines()) == 1
        return False
    finally:
        assert time.perf_counter() - started < SECONDS
    assert all(np.isfinite(getattr(raw, name)).all() for name in FIELDS)
    for name in ("means", "scales", "quaternions", "opacities", "sh"):
        assert torch.isfinite(getattr(scene, name)).all()
    return True


def attack(
    good: bytes, path: Path, checked: Path, pack: Callable[[bytes], bytes] = bytes, mutants: int = MUTANTS
) -> int:
    """Number of mutants of `good`, written to `path`, with which `checked` is still read."""
    rng = np.random.default_rng(0)
    read, largest = 0, len(good)
    tracemalloc.start()
    try:
        for number in range(mutants):
            data = bytes(MUTATIONS[number % len(MUTATIONS)](bytearray(good), rng))
            largest = max(largest, len(data))
            path.write_bytes(pack(data))
            read += check(checked)
        assert tracemalloc.get_traced_memory()[1] < 4 * largest + MEMORY
    finally:
        tracemalloc.stop()
    return read


def small() -> RawGaussians:
    """Small enough for thousands of mutants, with more than one chunk in a compressed file."""
    return cloud(260, 1)


@pytest.mark.parametrize("kind", FILES)
def test_files(tmp_path, kind):
    suffix, write = FILES[kind]
    path = tmp_path / f"mutant{suffix}"
    good = write(small() if kind == "compressed" else cloud(12, 1))
    path.write_bytes(good)
    assert check(path)
    assert attack(good, path, path) < MUTANTS


@pytest.mark.parametrize("version", [1, 2, 3])
def test_inside_the_gzip_stream(tmp_path, version):
    path = tmp_path / "mutant.spz"
    good = spz_payload(cloud(12, 1), version)
    assert attack(good, path, path, lambda data: gzip.compress(data, 1)) < MUTANTS


def test_folders(tmp_path):
    path = folder(cloud(12, 1), tmp_path / "scene", normals=True)
    assert check(path)
    files = sorted(path.glob("*.npy"))
    for file in files:
        good = file.read_bytes()
        attack(good, file, path, mutants=-(-MUTANTS // len(files)))
        file.write_bytes(good)
