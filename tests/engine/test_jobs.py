"""Many jobs: order, retries, deaths, signals and the record; here, in processes, and on Ray where it is installed."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path

import pytest

from splatlearn.engine.jobs import Job, Reply, Status, attempt_at, run_jobs, table
from splatlearn.engine.jobs_local import Processes, ThisProcess
from splatlearn.engine.jobs_ray import RayCluster, divide
from splatlearn.engine.runtime import THREAD_VARIABLES
from splatlearn.errors import UserError


def work(kind: str, folder: Path, attempt: int) -> dict[str, float]:
    """`good`; `late` fails at first; `bad` and `wrong` always; `dead` takes its process along; `ended` by a signal."""
    with (folder / "calls").open("a") as calls:
        calls.write(f"{kind} {attempt}\n")
    if kind == "wrong":
        raise UserError("no frames; give some")
    if kind == "bad" or (kind == "late" and attempt == 1):
        raise OSError("the disk is gone")
    if kind == "dead":
        os._exit(9)
    if kind == "ended":
        raise SystemExit(143)
    if kind == "process":
        return {"process": os.getpid(), "interruptible": signal.getsignal(signal.SIGINT) is signal.default_int_handler}
    if kind == "threads":
        return {name: float(os.environ[name]) for name in THREAD_VARIABLES}
    return {"value": len(kind) + attempt / 2}


def jobs(folder: Path, *kinds: str) -> list[Job]:
    return [Job(kind, partial(work, kind, folder)) for kind in kinds]


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def idle(folder: Path, attempt: int) -> dict[str, float]:
    (folder / "pid.new").write_text(str(os.getpid()))
    (folder / "pid.new").rename(folder / "pid")
    time.sleep(60)
    return {}


def begin(folder: str) -> None:
    run_jobs([Job("idle", partial(idle, Path(folder)))], Processes(1))


def _awaited(file: Path) -> str:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return file.read_text()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or "Z" not in state.read_text().split()[2]


class TestHere:
    def test_statuses(self, tmp_path):
        record, seen = tmp_path / "status.json", []
        kinds = ("bad", "good", "late", "wrong")
        found = run_jobs(jobs(tmp_path, *kinds), ThisProcess(), record=record, watch=seen.append)
        assert [(one.name, one.state, one.attempts) for one in found] == [
            ("bad", "failed", 2),
            ("good", "done", 1),
            ("late", "done", 2),
            ("wrong", "failed", 2),
        ]
        assert found[2].metrics == {"value": 5.0}
        assert "Traceback" in found[0].error
        assert found[3].error == "no frames; give some"
        assert found[1].error == found[2].error == ""
        assert seen == found
        assert [Status(**one) for one in json.loads(record.read_text())] == found
        assert [path.name for path in tmp_path.iterdir()].count("status.json") == 1

    @pytest.mark.parametrize("retries", [0, 1, 3])
    def test_retries(self, tmp_path, retries):
        [found] = run_jobs(jobs(tmp_path, "bad"), ThisProcess(), retries=retries)
        assert found.attempts == retries + 1
        assert calls(tmp_path) == [f"bad {number}" for number in range(1, retries + 2)]

    def test_a_signal_ends_it_all(self, tmp_path):
        found = run_jobs(jobs(tmp_path, "good", "ended", "late"), ThisProcess())
        assert [(one.state, one.attempts) for one in found] == [("done", 1), ("stopped", 1), ("stopped", 0)]
        assert calls(tmp_path) == ["good 1", "ended 1"]

    def test_the_record_is_true_at_any_time(self, tmp_path):
        record, states = tmp_path / "status.json", []

        def look(attempt: int) -> dict[str, float]:
            states.append([one["state"] for one in json.loads(record.read_text())])
            return {}

        run_jobs([Job(name, look) for name in "abc"], ThisProcess(), record=record)
        assert states == [["running", *2 * ["waiting"]], ["done", "running", "waiting"], ["done", "done", "running"]]

    def test_nothing_to_do(self, tmp_path):
        assert run_jobs([], ThisProcess()) == []

    def test_ctrl_c(self):
        def interrupted(attempt: int) -> dict[str, float]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_jobs([Job("a", interrupted)], ThisProcess())
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class Scripted:
    """A backend whose attempts end when the test says so: by name, and as it says."""

    def __init__(self, slots: int, script: list[tuple[str, Reply | Exception]]) -> None:
        self.slots, self.script, self.begun, self.most = slots, list(script), [], 0
        self.open: dict[str, Future[Reply]] = {}

    def submit(self, work, attempt):
        future = self.open[work] = Future()
        self.begun.append((work, attempt))
        self.most = max(self.most, len(self.open))
        while self.script and len(self.open) in (self.slots, len(self.script)):
            name, end = self.script.pop(0)
            ended = self.open.pop(name)
            ended.set_exception(end) if isinstance(end, Exception) else ended.set_result(end)
        return future

    def stop(self):
        for future in self.open.values():
            future.set_exception(RuntimeError("cancelled"))
        self.open.clear()


class TestDispatch:
    """Without processes and without Ray: what is begun when."""

    def test_no_more_than_there_are_slots(self):
        done = Reply("done", {"x": 1.0})
        backend = Scripted(2, [("a", done), ("c", done), ("b", done), ("d", done)])
        found = run_jobs([Job(name, name) for name in "abcd"], backend)  # pyright: ignore[reportArgumentType]
        assert [one.state for one in found] == 4 * ["done"]
        assert backend.begun == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]
        assert backend.most == 2

    def test_what_failed_goes_first(self):
        done = Reply("done")
        backend = Scripted(1, [("a", RuntimeError("killed")), ("a", done), ("b", done)])
        found = run_jobs([Job(name, name) for name in "ab"], backend)  # pyright: ignore[reportArgumentType]
        assert backend.begun == [("a", 1), ("a", 2), ("b", 1)]
        assert [one.attempts for one in found] == [2, 1]

    def test_a_death_is_told(self):
        backend = Scripted(1, [("a", RuntimeError("killed\nstack"))])
        [found] = run_jobs([Job("a", "a")], backend, retries=0)  # pyright: ignore[reportArgumentType]
        assert found.state == "failed"
        assert found.error == "its process died, out of memory perhaps (RuntimeError: killed)"

    def test_sigterm_is_handed_on(self):
        backend = Scripted(2, [("a", Reply("done"))])
        begin = backend.submit

        def submit(work, attempt):
            future = begin(work, attempt)
            if work == "c":
                os.kill(os.getpid(), signal.SIGTERM)
            return future

        backend.submit = submit
        found = run_jobs([Job(name, name) for name in "abcd"], backend)  # pyright: ignore[reportArgumentType]
        assert [(one.state, one.attempts) for one in found] == [
            *[("done", 1), ("stopped", 1), ("stopped", 1)],
            ("stopped", 0),
        ]


class TestProcesses:
    def test_a_death_is_that_of_one(self, tmp_path):
        found = run_jobs(jobs(tmp_path, "dead", "good", "late"), Processes(2))
        assert [(one.state, one.attempts) for one in found] == [("failed", 2), ("done", 1), ("done", 2)]
        assert "its process died" in found[0].error
        assert sorted(calls(tmp_path)) == ["dead 1", "dead 2", "good 1", "late 1", "late 2"]

    def test_processes_are_kept(self, tmp_path):
        """Seven jobs in two slots load the libraries twice; the processes go with the backend."""
        backend = Processes(2, keep=True)
        before = {child.pid for child in active_children()}
        found = run_jobs([Job(str(n), partial(work, "process", tmp_path)) for n in range(7)], backend)
        used = {int(one.metrics["process"]) for one in found}
        assert len(used) <= 2
        # Ctrl-C stops each attempt in order, unless the shell has it ignored, as in background jobs
        heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        assert {one.metrics["interruptible"] for one in found} == {heard}
        assert used <= {child.pid for child in active_children()} - before
        del backend
        deadline = time.monotonic() + 20
        while used & {child.pid for child in active_children()}:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_others_serve_once(self, tmp_path):
        """The peak memory that a run tells is its own."""
        found = run_jobs([Job(str(n), partial(work, "process", tmp_path)) for n in range(3)], Processes(1))
        assert len({one.metrics["process"] for one in found}) == 3

    def test_a_process_that_died_between_two_attempts_is_replaced(self, tmp_path):
        backend = Processes(1, keep=True)
        [first] = run_jobs(jobs(tmp_path, "process"), backend)
        os.kill(int(first.metrics["process"]), signal.SIGKILL)
        [second] = run_jobs(jobs(tmp_path, "process"), backend)
        assert second.state == "done"
        assert second.metrics["process"] != first.metrics["process"]

    def test_none_outlives_the_one_that_began_it(self, tmp_path):
        command = f"from engine.test_jobs import begin; begin({str(tmp_path)!r})"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        parent = subprocess.Popen([sys.executable, "-c", command], env=environment)
        child = int(_awaited(tmp_path / "pid"))
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 20
        while _lives(child):
            assert time.monotonic() < deadline, "it works on for nobody"
            time.sleep(0.05)

    def test_each_has_its_share_of_the_cores(self, tmp_path):
        before = dict(os.environ)
        backend = Processes(2)
        (found,) = run_jobs(jobs(tmp_path, "threads"), backend)
        assert set(found.metrics.values()) == {backend.threads}
        assert dict(os.environ) == before


def test_threads():
    import torch

    before = torch.get_num_threads()
    assert attempt_at(lambda attempt: {"threads": torch.get_num_threads()}, 1, before + 1).metrics["threads"] > before
    torch.set_num_threads(before)


def test_table():
    done = Status(name="a", state="done", attempts=1, seconds=90, metrics={"count": 12000, "loss": 0.25, "x": 1.0})
    failed = Status(name="long name", state="failed", attempts=2, error="broken\nTraceback")
    lines = table([done, failed], {"count": "points", "none": "never", "loss": "loss"}).splitlines()
    assert lines[0].split() == ["name", "state", "attempts", "minutes", "points", "loss"]
    assert lines[1].split() == ["a", "done", "1", "1.5", "12,000", "0.250"]
    assert lines[2].split()[-2:] == ["-", "-"]
    assert lines[3] == "long name: broken"


@pytest.mark.parametrize(
    ("machines", "slots", "expected"),
    [
        ([{"CPU": 8}], None, (8, 1, 0)),
        ([{"CPU": 8}], 2, (2, 4, 0)),
        ([{"CPU": 8}, {"CPU": 8}, {"CPU": 4}], 2, (2, 4, 0)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 64}], None, (4, 4, 1)),
        ([{"CPU": 16, "GPU": 4}], 9, (4, 4, 1)),
        ([{"CPU": 2, "GPU": 4}, {"memory": 1e9}], None, (4, 1, 1)),
    ],
)
def test_the_room_of_a_cluster(machines, slots, expected):
    assert divide(machines, slots) == expected


def test_a_cluster_without_room():
    with pytest.raises(UserError, match="no machine with a free core"):
        divide([{"memory": 1e9}], None)


def test_ray_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'splatlearn\[ray\]'"):
        RayCluster()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'splatlearn[ray]'")
def test_ray(tmp_path):
    """In a process of its own, which takes the cluster along when it ends."""
    code = (
        "from pathlib import Path; from engine.test_jobs import jobs; from splatlearn.engine.jobs import run_jobs;"
        "from splatlearn.engine.jobs_ray import RayCluster; import sys, json; from dataclasses import asdict;"
        "kinds = 'bad', 'dead', 'good', 'late', 'wrong';"
        "found = run_jobs(jobs(Path(sys.argv[1]), *kinds), RayCluster(2));"
        "print(json.dumps([asdict(one) for one in found]))"
    )
    here = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    found = {one["name"]: one for one in json.loads(ended.stdout.splitlines()[-1])}
    assert {name: (one["state"], one["attempts"]) for name, one in found.items()} == {
        "bad": ("failed", 2),
        "dead": ("failed", 2),
        "good": ("done", 1),
        "late": ("done", 2),
        "wrong": ("failed", 2),
    }
    assert "the disk is gone" in found["bad"]["error"]
    assert "its process died" in found["dead"]["error"]
    assert found["good"]["metrics"] == {"value": 4.5}
