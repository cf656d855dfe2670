"""Errors travel between processes, as a loader worker's do."""

import pickle

import pytest

from splatlearn.errors import BadData, ConfigError, MissingAttribute, MissingData, Problems, UserError


@pytest.mark.parametrize(
    "error",
    [MissingAttribute("normal", "Points", {"label", "color"}), *(kind("x") for kind in (BadData, ConfigError))],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_picklable(error: UserError):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)


def test_a_missing_attribute_is_a_key_error_with_a_plain_message():
    error = MissingAttribute("normal", "Points", {"label", "color"})
    assert isinstance(error, KeyError) and not isinstance(error, MissingData)
    assert str(error) == "Points has no attribute 'normal'; it has: color, label"


def failing(error: Exception):
    def fail() -> None:
        raise error

    return fail


class TestProblems:
    def test_none(self):
        problems = Problems()
        problems.require(True, "not this")
        assert problems.catch(lambda: 3) == 3 and not problems
        problems.tell()

    def test_one_keeps_its_kind(self):
        problems = Problems()
        assert problems.catch(failing(BadData("x.png: truncated"))) is None
        with pytest.raises(BadData, match=r"^x\.png: truncated$"):
            problems.tell()

    def test_several_are_told_once_each(self):
        problems = Problems()
        problems.require(False, "--gap: 1 or more")
        for _ in range(2):
            problems.catch(failing(BadData("no such file")))
        with pytest.raises(ConfigError, match=r"^--gap: 1 or more\nno such file$"):
            problems.tell()

    def test_our_own_errors_are_not_gathered(self):
        with pytest.raises(TypeError):
            Problems().catch(failing(TypeError("ours")))
