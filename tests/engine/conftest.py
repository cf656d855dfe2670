"""Fixtures of the engine's tests."""

import multiprocessing
import time
from multiprocessing.context import ForkServerContext

import pytest


@pytest.fixture(scope="session")
def context() -> ForkServerContext:
    """Processes forked from a clean one that has only imported what runs need: each starts in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engine.toys", "splatlearn.engine.loop", "lightning.fabric.strategies.ddp"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")  # threads that spin are slow on a busy machine
        process = context.Process(target=time.sleep, args=(0,))
        process.start()
        process.join()
    return context
