"""Names, presets, overrides and their errors."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from splatlearn.errors import ConfigError
from splatlearn.registry import BuiltIn, Registry


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 8


@pytest.fixture
def registry() -> Registry:
    made: Registry = Registry("gadgets")

    @made.register("wheel", Config, {"base": {"width": 16}, "tiny": {}})
    class Wheel:
        """A wheel."""

        def __init__(self, config: Config, color: str = "red") -> None:
            self.config, self.color = config, color

    return made


def test_bare_family_is_the_first_preset(registry):
    assert registry.create("wheel").config.width == 16
    assert registry.create("wheel.tiny").config.width == 8


def test_overrides_and_parts(registry):
    wheel = registry.create("wheel.tiny", {"width": 3}, color="blue")
    assert (wheel.config.width, wheel.color) == (3, "blue")


def test_unknown_names_give_the_nearest(registry):
    with pytest.raises(ConfigError, match="gadgets: unknown name 'weel'; did you mean 'wheel'"):
        registry.create("weel")
    with pytest.raises(ConfigError, match="has no preset 'tinny'; did you mean 'tiny'"):
        registry.create("wheel.tinny")
    with pytest.raises(ConfigError, match=r"no preset 'tinny'.*\nwheel.wdth: unknown; did you mean 'width'"):
        registry.create("wheel.tinny", {"wdth": 1})


def test_unknown_option_names_the_family(registry):
    with pytest.raises(ConfigError, match=r"wheel.wdth: unknown; did you mean 'width'"):
        registry.create("wheel", {"wdth": 1})


def test_tiny_is_required(registry):
    with pytest.raises(ConfigError, match="a preset 'tiny'"):
        registry.register("axle", Config, {"base": {}})


def test_names(registry):
    assert registry.names() == ["wheel.base", "wheel.tiny"]
    assert registry.names("*.tiny") == ["wheel.tiny"]


def test_a_taken_name_is_refused(registry):
    class Other:
        """Another wheel."""

    with pytest.raises(ConfigError, match=r"Other cannot be 'wheel', which is test_registry\..*Wheel; give it another"):
        registry.register("wheel", Config, {"tiny": {}})(Other)
    again = registry.family("wheel").cls
    assert registry.register("wheel", Config, {"tiny": {}})(again) is again
    shipped: Registry = Registry("gadgets", {"axle": BuiltIn("splatlearn.axle", ("tiny",), "An axle.")})
    with pytest.raises(ConfigError, match=r"Other cannot be 'axle', which is splatlearn\.axle"):
        shipped.register("axle", Config, {"tiny": {}})(Other)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Puts a package of one entry point on the path: its name, the entry point's name, and its module's source."""

    def put(package: str, name: str, source: str) -> None:
        about = tmp_path / package / f"{package}-0.1.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
        (about / "entry_points.txt").write_text(f"[splatlearn.gadgets]\n{name} = {package}_module:Part\n")
        (tmp_path / package / f"{package}_module.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path / package))
        monkeypatch.delitem(__import__("sys").modules, f"{package}_module", raising=False)

    return put


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nowhere_at_all", "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'. Mend or"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("Part = 3", "registers no 'mine': entry point and family need the same name"),
    ],
)
def test_a_broken_package_is_named(registry, install, source, message):
    install("outside", "mine", source)
    assert registry.families() == ["mine", "wheel"]
    assert registry.create("wheel").config.width == 16
    for ask in (lambda: registry.create("mine"), registry.names):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert str(caught.value).startswith("gadgets: 'mine' of outside 0.1 (outside_module:Part) ")
        assert message in str(caught.value)


def test_two_packages_of_one_name_are_refused(registry, install):
    install("first", "mine", "")
    install("second", "mine", "")
    with pytest.raises(ConfigError, match=r"'mine' of \w+ 0\.1 .* is taken by \w+ 0\.1; rename the entry point"):
        registry.families()


def test_a_package_cannot_hide_behind_a_built_in_name(install):
    registry: Registry = Registry("gadgets", {"mine": BuiltIn("splatlearn.mine", ("tiny",), "Mine.")})
    install("outside", "mine", "")
    with pytest.raises(ConfigError, match=r"'mine' of outside 0\.1 .* is taken by splatlearn itself"):
        registry.families()
