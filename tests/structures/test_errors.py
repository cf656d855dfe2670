"""Errors travel between processes, as a loader worker's do."""

import pickle

import pytest

from splatlearn.errors import BadData, ConfigError, MissingAttribute, MissingData, UserError


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
