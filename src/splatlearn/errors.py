"""Errors that a user can cause: what is wrong and what to do. The command line turns them into exit code 2."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Something in the input, the configuration or the data that the user can mend."""


class MissingAttribute(UserError, KeyError):
    """An optional, row-aligned tensor was asked for and is not there."""

    def __init__(self, name: str, owner: str, present: Iterable[str]) -> None:
        self._given = (name, owner, tuple(sorted(present)))
        self.message = f"{owner} has no attribute {name!r}; it has: {', '.join(self._given[2]) or 'none'}"
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels between processes; by default it would be made again from the message alone."""
        return type(self), self._given

    def __str__(self) -> str:
        return self.message


class MissingData(UserError):
    """A scene was asked for something (frames, points, boxes...) that is not on disk."""


class BadData(UserError):
    """A file or folder that cannot be read as what it should be."""


class ConfigError(UserError):
    """One or more settings are unknown or invalid; the message lists all of them."""


class Problems:
    """User errors that are gathered, so that they are told together."""

    def __init__(self) -> None:
        self._errors: list[UserError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def require(self, holds: bool, message: str) -> None:
        """A problem where something does not hold."""
        if not holds:
            self._errors.append(ConfigError(message))

    def catch(self, make: Callable[[], T]) -> T | None:
        """What `make` gives; None, and a problem, where it raises a `UserError`."""
        try:
            return make()
        except UserError as error:
            self._errors.append(error)
            return None

    def tell(self) -> None:
        """Complains once about all of them, if there are any.

        Raises:
            UserError: the only one as it was.
            ConfigError: several, each once.
        """
        if len(messages := dict.fromkeys(map(str, self._errors))) > 1:
            raise ConfigError("\n".join(messages))
        if self._errors:
            raise self._errors[0]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest candidate, or an empty string."""
    close = get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
