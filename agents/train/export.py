"""From finished stages to a checkpoint: weights, manifest, model card."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.train.config import TrainConfig
from agents.train.stage import Extent, shape_of
from hrl_planner.encoding import CLASS_COLUMNS, POOL_COLUMNS
from hrl_planner.errors import TrainingError
from hrl_planner.planner import checkpoint as checkpoints
from hrl_planner.planner.checkpoint import Manifest, NetworkInfo, Ranges, RewardNormaliser
from hrl_planner.spec import ClusterSpec

if TYPE_CHECKING:
    from agents.train.run import Trained

_PACKAGES = ("torch", "stable_baselines3", "gymnasium", "numpy", "numba")

_CARD = """# {name}

A global allocator{scaler} for `hrl-planner`, trained on the spec `{spec}`.

| stage | steps | score before | score | value attained before | value attained |
|---|---|---|---|---|---|
{rows}

{final}
Scores are the mean reward per step on validation days (value-weighted attainment minus price minus
churn, see `envs/reward.py`); "before" is action 0, the planner without learning it starts from.

- **Use**: `hrl-planner evaluate --spec {spec} --policy learned:path=FOLDER ...`. It reads what
  `hrl_planner.encoding` describes; the manifest lists every feature with the range training saw.
  Outside of it the shield lets the fluid LP decide.
- **Trained on**: simulated days only, never on a real cluster; scenarios {scenarios}.
- **Not for**: a spec whose pools or classes differ from these much more than the ranges say.
- **Made by**: `hrl-planner train`, config in the manifest, seed {seed}, revision {revision}.
"""


def git_revision() -> str:
    """Return the revision of the sources, `unknown` outside of a repository."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def write(config: TrainConfig, folder: Path, done: list[Trained]) -> Path:
    """Write the checkpoint of the latest allocator (or flat policy) and scaler.

    Raises:
        TrainingError: no allocator has been trained.
    """
    top = next((t for t in reversed(done) if t.stage.level != "scaler"), None)
    if top is None:
        raise TrainingError("a checkpoint needs a trained allocator; the config has no such stage")
    scaler = None
    if top.stage.level == "allocator":
        scaler = next((t for t in reversed(done) if t.stage.level == "scaler"), None)
    extent = top.extent if scaler is None else top.extent.join(scaler.extent)
    mean, var, count = top.reward
    manifest = Manifest(
        format_version=checkpoints.FORMAT_VERSION,
        name=config.name,
        head="flat" if top.stage.level == "flat" else top.stage.head,
        moves=top.stage.moves if top.stage.head == "moves" else 0,
        prior=config.prior,
        allocator=NetworkInfo.of(shape_of(top.stage, config)),
        scaler=None if scaler is None else NetworkInfo.of(shape_of(scaler.stage, config)),
        feature_schema=checkpoints.current_schema(),
        ranges=_ranges(extent),
        reward_normaliser=RewardNormaliser(mean=mean, var=var, count=count),
        spec=ClusterSpec.load(config.spec).model_dump(mode="json", exclude_none=True),
        training=_training(config, done),
        metrics=_metrics(done),
        git_revision=git_revision(),
        versions={name: version(name) for name in _PACKAGES},
    )
    card = _card(config, manifest, done)
    tensors = None if scaler is None else scaler.tensors
    checkpoints.save(folder, manifest, top.tensors, tensors, card)
    return folder


def _ranges(extent: Extent) -> Ranges:
    def named(names: tuple[str, ...], bounds: Any) -> dict[str, tuple[float, float]]:
        columns = bounds.T.tolist()
        return {
            name: (round(low, 4), round(high, 4))
            for name, (low, high) in zip(names, columns, strict=True)
        }

    return Ranges(
        pools=named(POOL_COLUMNS, extent.pools), classes=named(CLASS_COLUMNS, extent.classes)
    )


def _training(config: TrainConfig, done: list[Trained]) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "stages": [
            {
                "level": t.stage.level,
                "steps": t.progress.update * t.stage.n_envs * t.stage.n_steps,
                "best_update": t.progress.best_update,
                "wall_s": round(t.progress.wall_s, 1),
                "env_s": round(t.progress.env_s, 1),
            }
            for t in done
        ],
    }


def _metrics(done: list[Trained]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for number, t in enumerate(done, 1):
        p = t.progress
        for name in ("prior_score", "best_score", "prior_attained", "best_attained"):
            metrics[f"stage_{number}_{name}"] = round(float(getattr(p, name)), 5)
        if t.shrunk is not None:
            for name, value in vars(t.shrunk).items():
                metrics[f"stage_{number}_final_{name}"] = round(float(value), 5)
    return metrics


def _card(config: TrainConfig, manifest: Manifest, done: list[Trained]) -> str:
    rows = "\n".join(
        f"| {t.stage.level} | {t.progress.update * t.stage.n_envs * t.stage.n_steps:,} "
        f"| {t.progress.prior_score:.4f} | {t.progress.best_score:.4f} "
        f"| {t.progress.prior_attained:.4f} | {t.progress.best_attained:.4f} |"
        for t in done
    )
    final = "".join(
        f"The allocator's actions were then scaled by {t.shrunk.scale:g}: on "
        f"{config.validation.final} validation\n"
        f"days that chose nothing else they gain {t.shrunk.gain:+.4f} (standard error "
        f"{t.shrunk.error:.4f})\nin score, {t.shrunk.attained:+.4f} in value attained, over action "
        "0.\n"
        for t in done
        if t.shrunk is not None
    )
    return _CARD.format(
        final=final,
        name=config.name,
        spec=config.spec,
        scaler=" and a local scaler" if manifest.scaler else "",
        rows=rows,
        scenarios=", ".join(config.randomise.scenarios),
        seed=config.seed,
        revision=manifest.git_revision,
    )
