"""Progress: silent at first, a line now and then where nobody watches, a bar in a terminal."""

import pytest

from splatlearn.data import progress as module
from splatlearn.data.procedural import cache
from splatlearn.data.progress import PATIENCE, PLAIN_SECONDS, progress
from splatlearn.verbs.check import check


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_where_the_output_is_no_terminal(clock, capsys):
    begun = clock[0]
    with progress("making rooms", 100) as tell:
        for done in range(1, 101):
            clock[0] = begun + done / 4
            tell(done)
    lines = capsys.readouterr().err.splitlines()
    first, step = int(PATIENCE * 4), int(PLAIN_SECONDS * 4)
    assert lines == [f"making rooms: {done} of 100" for done in (first, first + step, first + 2 * step)]


def test_short_work_is_silent(clock, capsys):
    with progress("checking", 3) as tell:
        for done in range(1, 4):
            tell(done)
    assert capsys.readouterr() == ("", "")


def test_a_bar_in_a_terminal(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with progress("checking data", 3) as tell:
        clock[0] += PATIENCE
        tell(2)
    assert "checking data" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_rooms_tell_how_many_there_are(tmp_path, monkeypatch, capsys, workers):
    """However they are made; and `check` counts each view and the cloud."""
    monkeypatch.setenv("SPLATLEARN_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(cache, "_LOOK", 0.05)
    check("rooms.tiny", data_options={"rooms": 3, "frames": 6, "workers": workers})
    lines = capsys.readouterr().err.splitlines()
    made = [int(line.split()[2]) for line in lines if line.startswith("making rooms")]
    assert made == sorted(made) and {1, 2} & set(made), lines
    checked = [line for line in lines if line.startswith("checking")]
    assert checked == [f"checking rooms.tiny: {done} of 21" for done in range(1, 22)]
