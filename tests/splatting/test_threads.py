"""The `cpu` backend gives the same bits from run to run, and on any number of threads.

In a process of its own: Numba makes its threads once, and the tests' processes have one each.
"""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import hashlib, numba, torch
from splatlearn.splatting import RenderOptions, lift, render
from splatting.scenes import assemble, random_cameras, random_gaussians, tensors_of

cloud, cameras = random_gaussians(1200, items=2, degree=1), random_cameras(2, 60, 44, items=2)
maps, rows = torch.randn(4, 90, 11, 15), torch.randn(2400, 140)
assert numba.config.NUMBA_NUM_THREADS == 2
for threads in (1, 1, 2, 2):
    torch.set_num_threads(threads)
    tensors, features = tensors_of(cloud, cameras, torch.float32), rows.clone().requires_grad_()
    seen = render(*assemble(tensors, cloud, cameras), features, options=RenderOptions(backend="cpu"))
    sum((layer * layer.detach().cos()).sum() for layer in seen).backward()
    assert torch.get_num_threads() == threads, "Numba's threads are not torch's"
    found = [*seen, *(t.grad for t in tensors.values()), features.grad, *lift(maps, cloud, cameras)]
    print(hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in found)).hexdigest())
"""


def test_the_same_bits_from_run_to_run_and_on_any_number_of_threads():
    folder = str(Path(__file__).parents[1])
    paths = os.pathsep.join([folder, *sys.path])
    env = {**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "PYTHONPATH": paths}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    digests = run.stdout.split()
    assert len(digests) == 4
    assert len(set(digests)) == 1
