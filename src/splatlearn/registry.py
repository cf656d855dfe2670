"""Names for encoders, recipes, tasks, readers and teachers: `family` or `family.preset`.

Built-in families are listed here by module, so that `splatlearn list` names them without importing torch; their
classes register themselves when that module is imported. Other packages add families by entry points in the
groups `splatlearn.encoders`, `splatlearn.recipes`, `splatlearn.tasks`, `splatlearn.readers`,
`splatlearn.teachers`: the name is the family, the value the registered class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from splatlearn.config import configure, merge
from splatlearn.errors import ConfigError, Problems, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Family(Generic[T]):
    """One registered class: its config dataclass, and presets that are options of that config."""

    name: str
    cls: type[Any]
    config: type
    presets: Mapping[str, Mapping[str, Any]]

    @property
    def summary(self) -> str:
        """First line of the class's docstring."""
        return (self.cls.__doc__ or "").strip().split("\n")[0]


@dataclass(frozen=True)
class BuiltIn:
    """Where a built-in family lives, and its presets, the default first (a test compares them)."""

    module: str
    presets: tuple[str, ...]
    summary: str


@dataclass
class Registry(Generic[T]):
    """Families of one kind of part. A built-in or installed family is imported when it is first asked for.

    Args:
        kind: the word used in messages and in the entry-point group (`encoders`).
        builtin: family -> where it lives.
    """

    kind: str
    builtin: Mapping[str, BuiltIn] = field(default_factory=dict)
    _families: dict[str, Family[T]] = field(default_factory=dict)

    def register(
        self, family: str, config: type, presets: Mapping[str, Mapping[str, Any]]
    ) -> Callable[[type[T]], type[T]]:
        """Class decorator. The class is built as `cls(config, **parts)`.

        Args:
            family: name without dots.
            config: its frozen keyword-only dataclass.
            presets: preset -> options of `config`; the first is what the bare family name means; `tiny` is
                required, since the registry-wide tests run it.

        Raises:
            ConfigError: a dot in the name, no `tiny`, or another class has the name.
        """
        if "." in family or "tiny" not in presets:
            raise ConfigError(f"{self.kind}: {family!r} needs a name without dots and a preset 'tiny'")

        def add(cls: type[T]) -> type[T]:
            self._check_free(family, cls)
            self._families[family] = Family(family, cls, config, presets)
            return cls

        return add

    def _check_free(self, family: str, cls: type[Any]) -> None:
        """A module that is imported anew may register its class again; no other may take the name."""
        known, builtin, taken = self._families.get(family), self.builtin.get(family), None
        if known is not None and _place(known.cls) != _place(cls):
            taken = _place(known.cls)
        elif builtin is not None and not cls.__module__.startswith(builtin.module):
            taken = builtin.module
        if taken:
            raise ConfigError(
                f"{self.kind}: {_place(cls)} cannot be {family!r}, which is {taken}; give it another name"
            )

    def families(self) -> list[str]:
        """Every family, built in and installed, without importing any.

        Raises:
            ConfigError: an installed package takes a name that is taken.
        """
        return sorted({*self.builtin, *self._families, *self._installed()})

    def family(self, name: str) -> Family[T]:
        """The family of `family` or `family.preset`, imported when needed.

        Raises:
            ConfigError: no such family (the nearest name is given), or its package cannot be imported.
        """
        family = name.partition(".")[0]
        if family not in self._families:
            self._load(family)
        return self._families[family]

    def presets(self, family: str) -> tuple[str, ...]:
        """Preset names, the default first; imports only what is not built in."""
        if family in self.builtin:
            return self.builtin[family].presets
        return tuple(self.family(family).presets)

    def names(self, pattern: str = "*") -> list[str]:
        """Every `family.preset` that matches a shell-style pattern; imports installed packages.

        Raises:
            ConfigError: an installed package cannot be imported.
        """
        full = [f"{family}.{preset}" for family in self.families() for preset in self.presets(family)]
        return [name for name in full if fnmatch(name, pattern)]

    def config(self, name: str, options: Mapping[str, Any] | None = None, where: str = "") -> Any:
        """The config of `name` with `options` on top of its preset.

        Raises:
            ConfigError: unknown family, preset or keys, invalid values: all of them in one message.
        """
        family = self.family(name)
        preset = name.partition(".")[2] or next(iter(family.presets))
        problems = Problems()
        problems.require(
            preset in family.presets,
            f"{self.kind}: {family.name!r} has no preset {preset!r}{nearest(preset, family.presets)} "
            f"(known: {', '.join(family.presets)})",
        )
        given = merge(family.presets.get(preset, {}), options or {})
        config = problems.catch(lambda: configure(family.config, given, where or family.name))
        problems.tell()
        return config

    def create(self, name: str, options: Mapping[str, Any] | None = None, **parts: Any) -> T:
        """An instance of `name`: `cls(config, **parts)`."""
        return self.family(name).cls(self.config(name, options), **parts)

    def _load(self, family: str) -> None:
        if family in self.builtin:
            import_module(self.builtin[family].module)
        elif point := self._installed().get(family):
            self._load_installed(point)
        else:
            raise ConfigError(
                f"{self.kind}: unknown name {family!r}{nearest(family, self.families())} "
                f"(known: {', '.join(self.families())})"
            )

    def _load_installed(self, point: EntryPoint) -> None:
        about = f"{self.kind}: {point.name!r} of {_package(point)} ({point.value})"
        try:
            point.load()
        except Exception as error:  # whatever is wrong with the package is its user's to mend
            raise ConfigError(
                f"{about} cannot be imported: {type(error).__name__}: {error}. Mend or uninstall that package"
            ) from error
        if point.name not in self._families:
            raise ConfigError(f"{about} registers no {point.name!r}: entry point and family need the same name")

    def _installed(self) -> dict[str, EntryPoint]:
        """Entry points by family.

        Raises:
            ConfigError: one has the name of another, or of a built-in family.
        """
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=f"splatlearn.{self.kind}"):
            if point.name in self.builtin or point.name in found:
                other = _package(found[point.name]) if point.name in found else "splatlearn itself"
                raise ConfigError(
                    f"{self.kind}: {point.name!r} of {_package(point)} ({point.value}) is taken by {other}; rename "
                    "the entry point, or uninstall that package"
                )
            found[point.name] = point
        return found


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"


def _place(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


encoders: Registry[Any] = Registry(
    "encoders",
    {
        "sparse_unet": BuiltIn(
            "splatlearn.encoders.sparse_unet",
            ("small", "tiny", "34c", "res16unet34c"),
            "Sparse convolutional U-Net on voxels.",
        ),
        "pointnet2": BuiltIn(
            "splatlearn.encoders.pointnet2", ("small", "tiny", "votenet"), "PointNet++ set abstraction on points."
        ),
        "waffleiron": BuiltIn(
            "splatlearn.encoders.waffleiron",
            ("12-128", "tiny", "48-256", "48-384", "48-768", "48-768-v1"),
            "WaffleIron: points mixed on 2D grids (ScaLR).",
        ),
        "vit": BuiltIn(
            "splatlearn.encoders.vit",
            ("s14-336", "tiny", "b14-336", "s14-448", "b14-448", "b16-224"),
            "Vision transformers with registers (DUNE), or without (UNIC).",
        ),
    },
)
teachers: Registry[Any] = Registry(
    "teachers",
    {
        "timm": BuiltIn(
            "splatlearn.teachers.timm",
            (
                "dinov2-s",
                "dinov2-b",
                "dinov2-l",
                "dinov2-s-reg",
                "dinov2-b-reg",
                "dinov2-l-reg",
                "dinov3-s",
                "dinov3-b",
                "dinov3-l",
                "siglip2-b",
                "siglip2-l",
                "siglip2-so400m",
                "pe-spatial-s",
                "pe-spatial-b",
                "pe-spatial-l",
                "resnet50",
                "tiny",
            ),
            "Image models of timm: DINOv2, DINOv3, SigLIP 2, PE, ResNets.",
        ),
        "resnet50v2": BuiltIn(
            "splatlearn.teachers.convolutional", ("default", "tiny"), "ResNet-50 v2 without its last stage."
        ),
        "mobilenetv2": BuiltIn("splatlearn.teachers.convolutional", ("default", "tiny"), "MobileNetV2, norms folded."),
        "squeezenet": BuiltIn("splatlearn.teachers.convolutional", ("default", "tiny"), "SqueezeNet 1.1."),
        "mast3r": BuiltIn("splatlearn.teachers.mast3r", ("default", "tiny"), "MASt3R's encoder (DUNE)."),
        "multihmr": BuiltIn("splatlearn.teachers.mast3r", ("default", "tiny"), "Multi-HMR's backbone (DUNE)."),
    },
)
recipes: Registry[Any] = Registry(
    "recipes",
    {
        "gs3": BuiltIn("splatlearn.recipes.gs3", ("small", "tiny", "paper"), "Render masked RGB-D pairs (GS3)."),
        "scalr": BuiltIn(
            "splatlearn.recipes.scalr", ("small", "tiny", "paper", "plus"), "Image models taught to lidar (ScaLR)."
        ),
        "dune": BuiltIn(
            "splatlearn.recipes.dune",
            ("small", "tiny", "paper-336", "paper-448", "imagenet-only", "unic"),
            "Several image models in one (DUNE, UNIC).",
        ),
    },
)
tasks: Registry[Any] = Registry(
    "tasks",
    {
        "segmentation": BuiltIn(
            "splatlearn.tasks.segmentation", ("small", "tiny", "lidar", "lidar-tiny"), "Semantic classes of points."
        ),
        "image_segmentation": BuiltIn(
            "splatlearn.tasks.image_segmentation", ("small", "tiny"), "Semantic classes of pixels."
        ),
        "image_depth": BuiltIn("splatlearn.tasks.image_depth", ("small", "tiny"), "Depth of pixels."),
        "image_classification": BuiltIn(
            "splatlearn.tasks.image_classification", ("small", "tiny"), "Classes of images, linear and by neighbours."
        ),
    },
)
readers: Registry[Any] = Registry(
    "readers",
    {
        "rooms": BuiltIn("splatlearn.data.rooms.scene", ("default", "tiny", "demo"), "Procedural furnished rooms."),
        "streets": BuiltIn(
            "splatlearn.data.streets.scene", ("default", "tiny", "demo"), "Procedural drives through streets."
        ),
        "rgbd": BuiltIn("splatlearn.data.rgbd", ("default", "tiny"), "Posed RGB-D folders (7-Scenes, ScanNet export)."),
        "photos": BuiltIn(
            "splatlearn.data.photos", ("default", "tiny"), "Posed photographs (transforms.json, COLMAP models)."
        ),
        "images": BuiltIn("splatlearn.data.image_folders", ("default", "tiny"), "Folders of images, without cameras."),
        "labelled_images": BuiltIn(
            "splatlearn.data.labelled_images",
            ("default", "tiny"),
            "Images with classes of pixels (CamVid, ADE20K, Cityscapes).",
        ),
        "shards": BuiltIn("splatlearn.data.image_shards", ("default", "tiny"), "WebDataset shards, without cameras."),
        "pointcept": BuiltIn("splatlearn.data.pointcept", ("default", "tiny"), "Labelled clouds of npy files."),
        "nuscenes": BuiltIn("splatlearn.data.nuscenes", ("default", "tiny"), "nuScenes: lidar with six cameras."),
        "kitti": BuiltIn("splatlearn.data.kitti", ("default", "tiny"), "KITTI object folders: lidar with a camera."),
        "semantickitti": BuiltIn("splatlearn.data.kitti", ("default", "tiny"), "SemanticKITTI drives, labelled."),
        "calibrated": BuiltIn("splatlearn.data.lidar", ("default", "tiny"), "Any lidar with cameras, a plain folder."),
        "rangeimage": BuiltIn("splatlearn.data.range_images", ("default", "tiny"), "Labelled lidar range images."),
    },
)
