"""`fit`: posed frames to a 3D Gaussian scene; many scenes one after another, side by side, in shares, or on Ray."""

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from splatlearn.verbs import warn_idle

if TYPE_CHECKING:
    from splatlearn.verbs.fit_scenes import Fits, Plan

Options = Mapping[str, Any]


def fit(
    data: str,
    *,
    run: Path,
    scene: str | None = None,
    holdout: str | None = None,
    side: int | None = None,
    gaussians: int | None = None,
    refine_poses: bool = False,
    exposure: bool = False,
    steps: int | None = None,
    seed: int | None = None,
    on: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    retries: int = 1,
    shard: str = "1/1",
    resume: Literal["auto", "never"] = "auto",
    data_options: Options | None = None,
    fit_options: Options | None = None,
    train_options: Options | None = None,
) -> "Fits":
    """Fit 3D Gaussian scenes to posed frames.

    The run folder gets `scene.ply`, `report.html` (held-out photographs beside renders), `summary.json`, and what a run
    needs to be continued. Of several scenes each gets a folder in it, and `status.json` says what became of each; one
    that fails is tried once more, and the others go on.

    Args:
        data: a folder of recordings, or a world's name.
        run: folder of the run; one that is there is continued.
        scene: only the scene of this name; by default all.
        holdout: views to measure and not to fit to: every:N, block:N (in the middle), none, or auto, the default: the
            test (or else val) views of a source that states a split, and every:8 of another.
        side: longer side of the images in pixels; 320 by default.
        gaussians: at most so many; 150000 by default.
        refine_poses: also learn a small motion of each camera.
        exposure: also learn a gain and an offset of each colour in each view.
        steps: views rendered; 4500 by default.
        seed: of the first Gaussians, order and noise; 0 by default.
        on: where the scenes are fitted: processes of this machine, or a Ray cluster: that of RAY_ADDRESS, or else a
            new one here (needs splatlearn[ray]; its machines must see the same folders).
        jobs: scenes at the same time, each in a process of its own with its share of the cores; 1 by default, on Ray
            as many as there are GPUs, or else cores.
        retries: attempts after the first at a scene that fails, where there are several.
        shard: i/n, the i-th of n shares of the scenes, for job arrays; the first is 1/n.
        resume: auto continues a run folder bit for bit; never refuses one in which a run has begun.
        data_options: options of the data's reader: `splatlearn list readers NAME`.
        fit_options: options of the fit: `splatlearn list fit`.
        train_options: options of the training loop: `splatlearn list train`.

    Returns:
        What became of each scene.

    Raises:
        ConfigError: unknown names, unknown options and invalid values, all in one message.
        UserError: data that cannot be used, a folder with other settings or other things, or a scene that failed in
            every attempt.
    """
    from splatlearn.verbs.fit_scenes import fit_scenes, parse_shard

    share, shares = parse_shard(shard)
    given = {"holdout": holdout, "side": side, "gaussians": gaussians}
    given |= {"refine_poses": refine_poses or None, "exposure": exposure or None}
    plan = plan_fit(
        data,
        steps=steps,
        seed=seed,
        resume=resume,
        data_options=data_options,
        fit_options={**(fit_options or {}), **{name: value for name, value in given.items() if value is not None}},
        train_options=train_options,
    )
    for name, reason in plan.config.idle().items():
        value = attrgetter(name)
        warn_idle({f"--fit.{name}": value(plan.config) != value(type(plan.config)())}, reason)
    return fit_scenes(
        plan,
        Path(run).expanduser(),
        scene=scene,
        on=on,
        jobs=jobs,
        retries=retries,
        share=share,
        shares=shares,
    )


def plan_fit(
    data: str,
    *,
    steps: int | None = None,
    seed: int | None = None,
    resume: Literal["auto", "never"] = "auto",
    data_options: Options | None = None,
    fit_options: Options | None = None,
    train_options: Options | None = None,
) -> "Plan":
    """Checks the settings and resolves them; the arguments are those of `fit`.

    Raises:
        ConfigError: everything that is wrong, in one message.
    """
    from splatlearn.config import configure, merge
    from splatlearn.data.scene import Source
    from splatlearn.engine.config import TrainConfig
    from splatlearn.errors import ConfigError, UserError
    from splatlearn.tasks.fitting import TRAINING, FitConfig
    from splatlearn.verbs.fit_scenes import Plan

    problems: list[str] = []
    if steps is not None and steps < 1:
        problems.append(f"--steps: 1 or more is needed, got {steps}")
    chosen = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    rates = _rates(train_options or {})
    training = merge(merge({**TRAINING, **rates}, _without(train_options or {}, rates)), chosen)
    source = Source(name=data, options=dict(data_options or {}))
    built: dict[str, Any] = {}
    makers = {
        "config": lambda: configure(FitConfig, fit_options or {}, "--fit"),
        "train": lambda: configure(TrainConfig, training, "--train"),
        "reader": source.reader,
    }
    for name, make in makers.items():
        try:
            built[name] = make()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return Plan(source=source, config=built["config"], train=built["train"], resume=resume)


def _rates(options: Options) -> dict[str, Any]:
    """Rates and decays of single parameters on top of the usual ones: their names have dots, which `merge` parts."""
    from splatlearn.tasks.fitting import TRAINING

    given = {name: options[name] for name in ("rates", "decays") if isinstance(options.get(name), Mapping)}
    return {name: {**TRAINING[name], **values} for name, values in given.items()}


def _without(options: Options, names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
