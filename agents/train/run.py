"""A training run from its config to a checkpoint: stage after stage, resumable at every update.

out/train/<name>/
config.yaml            what is trained; a folder belongs to one config
status.json            how far it is
stage-1-scaler/        state.pt (training continues from it), TensorBoard logs
stage-2-allocator/     the same
under-allocator/       checkpoint of the stages so far, for a scaler with `quotas: learned`
stage-3-scaler/
checkpoint/            the result
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from agents.policies.network import Normaliser
from agents.policies.policy import SetPolicy
from agents.train import export
from agents.train.alone import alone
from agents.train.callbacks import Progress, StageCallback
from agents.train.config import StageConfig, TrainConfig
from agents.train.many import STATUS_FILE
from agents.train.shrink import Shrunk, shrink
from agents.train.stage import (
    VALIDATION_SEED,
    Extent,
    make_env,
    make_level,
    make_model,
    make_training,
    measure_features,
    shape_of,
    stage_folder,
    update_seed,
)
from agents.train.state import read_state, restore
from agents.train.validation import judge
from envs.vec_env import ClusterVecEnv
from hrl_planner._spec_file import read_mapping
from hrl_planner.errors import HrlPlannerError, TrainingError
from hrl_planner.planner.network import Network, pack
from hrl_planner.planner.policy import Policy, Replanner
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.scaler import BY_RULE, TO_QUOTA
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.scenarios import find_scenario

Tensors = dict[str, NDArray[np.float32]]
# Seeds of what happens before the first update, apart from those of all updates.
_FEATURES_UPDATE, _CONSTANT_UPDATE = 2**31, 2**31 + 1
_CONFIG_FILE = "config.yaml"
# The shortest episode a config may ask for: enough to see whether a scenario fits a spec.
_LEAST_S = 60.0


@dataclass
class Trained:
    """What a finished stage leaves to the next.

    Attributes:
        stage: its config.
        tensors: best weights.
        network: the same, packed.
        extent: of the features seen.
        progress: how it went.
        reward: mean, variance and count of the reward's normaliser.
        shrunk: how much of a residual was kept and what it gains; None where there is none.
    """

    stage: StageConfig
    tensors: Tensors
    network: Network
    extent: Extent
    progress: Progress
    reward: tuple[float, float, float]
    shrunk: Shrunk | None


OnProgress = Callable[[int, StageConfig, Progress, int], None]
"""Told the stage's number, its config, where it stands, and the updates there are in all."""


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool,
    on_progress: OnProgress,
    only: int | None = None,
) -> Path | None:
    """Train every stage that is not finished and write the checkpoint.

    Args:
        config: the run.
        folder: of the run.
        resume: continue what is there.
        on_progress: called after every update.
        only: train no stage beyond this one (from 1).

    Returns:
        The checkpoint's folder; None where stages are left to train.

    Raises:
        TrainingError: the folder holds another run, or one and `resume` is not given; another
            call trains in it; the config names what there is not, see `check`.
        KeyboardInterrupt: Ctrl-C; the last finished update is saved.
    """
    check(config, folder)
    _open(config, folder, resume)
    with alone(folder, "training folder", "run.lock"):
        return _train_stages(config, folder, on_progress, only)


def _train_stages(
    config: TrainConfig, folder: Path, on_progress: OnProgress, only: int | None
) -> Path | None:
    numba.set_num_threads(min(config.threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(1)
    done: list[Trained] = []
    for index in range(len(config.stages) if only is None else min(only, len(config.stages))):
        done.append(_train_stage(config, folder, index, done, on_progress))
    if len(done) < len(config.stages):
        return None
    return export.write(config, folder / "checkpoint", done)


def check(config: TrainConfig, folder: Path) -> None:
    """Refuse what would come out only after a folder was begun, which then belongs to the mistake.

    Args:
        config: the run.
        folder: of the run, or one above it.

    Raises:
        TrainingError: naming the config, the field and the value.
    """
    with _field(config, "spec"):
        spec = ClusterSpec.load(config.spec)
    with _field(config, "randomise.scenarios"):
        for name in config.randomise.scenarios:
            find_scenario(name).build(spec, 0, _LEAST_S, config.randomise.load[0])
    with _field(config, "prior"):
        prior = make_policy(config.prior)
        if any(stage.head == "terms" for stage in config.stages):
            _check_replans(config.prior, prior)
    for i, stage in enumerate(config.stages):
        if stage.level == "scaler":
            with _field(config, f"stages.{i}.quotas"):
                _check_quotas(stage.quotas, folder)


@contextmanager
def _field(config: TrainConfig, field: str) -> Iterator[None]:
    try:
        yield
    except HrlPlannerError as error:
        raise TrainingError(f"training config {config.name}: {field}: {error}") from error


def _check_replans(name: str, prior: Policy) -> None:
    if not isinstance(prior, Replanner):
        raise TrainingError(
            f"{name} cannot plan again on other terms, which head: terms is about; lp can"
        )


def _check_quotas(quotas: str, folder: Path) -> None:
    if quotas not in ("random", "learned"):
        make_policy(quotas)
    if quotas == "learned" and any(sign in str(folder) for sign in ",+"):
        raise TrainingError(
            f"learned names the run's folder in a policy, where ',' and '+' separate; choose an "
            f"--out without them, got {str(folder)!r}"
        )


def _open(config: TrainConfig, folder: Path, resume: bool) -> None:
    path = folder / _CONFIG_FILE
    whole = config.model_dump(mode="json")
    if path.is_file():
        if not resume:
            raise TrainingError(
                f"training folder {folder}: holds a run already; continue it with --resume, or "
                "choose another --out"
            )
        if read_mapping(path, "training config", TrainingError) != whole:
            raise TrainingError(
                f"training folder {folder}: was begun with another config (see {path}); "
                "choose another --out"
            )
        return
    if folder.is_dir() and any(entry != _fresh(path) for entry in folder.iterdir()):
        raise TrainingError(f"training folder {folder}: is not empty and holds no {path.name}")
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(path, yaml.safe_dump(whole, sort_keys=False))


def _write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, in place of what was there."""
    _fresh(path).write_text(text, encoding="utf-8")
    os.replace(_fresh(path), path)


def _fresh(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _prior_of(config: TrainConfig, folder: Path, stage: StageConfig, done: list[Trained]) -> str:
    """Return who plans beside the agent of a stage."""
    if stage.level != "scaler":
        return config.prior
    if stage.quotas != "learned":
        return stage.quotas
    path = export.write(config, folder / "under-allocator", done)
    return f"learned:path={path},shield=false,local=none"


def _latest(done: list[Trained], level: str) -> Trained | None:
    return next((t for t in reversed(done) if t.stage.level == level), None)


def _train_stage(
    config: TrainConfig, run: Path, index: int, done: list[Trained], on_progress: OnProgress
) -> Trained:
    stage = config.stages[index]
    folder = stage_folder(run, index, stage)
    folder.mkdir(exist_ok=True)
    below = _latest(done, "scaler")
    level = make_level(
        stage, _prior_of(config, run, stage, done), None if below is None else below.network
    )
    future = config.network.sees_future
    env, twin = make_training(config, stage, level)
    n_days = config.validation.episodes
    validation = make_env(config, level, n_days, future=future, validation=True)
    state = read_state(folder)
    extent = Extent.empty()
    normaliser = Normaliser.identity()
    if state is None:
        seed = update_seed(config, index, _FEATURES_UPDATE)
        normaliser, extent = measure_features(env, stage, seed)
    model = make_model(config, stage, env, normaliser, twin)
    training = model.get_env()
    assert isinstance(training, VecNormalize)
    model.set_logger(configure(str(folder), ["tensorboard"]))
    policy = model.policy
    assert isinstance(policy, SetPolicy)
    progress = Progress()
    best: Tensors = {}
    average: Tensors = {}
    if state is None:
        if not _warm_start(policy, stage, done) and stage.level == "scaler":
            _favour(policy, stage, env, update_seed(config, index, _CONSTANT_UPDATE))
        progress, best = _first_judgement(policy, validation)
        average = policy.export()
    else:
        extent = restore(model, state)
        saved = dict(state["progress"])
        best, average = _as_numpy(saved.pop("best")), _as_numpy(saved.pop("average"))
        progress = Progress(**saved)

    def on_update(now: Progress, updates: int) -> None:
        _write_status(run, index, stage, now, updates)
        on_progress(index, stage, now, updates)

    callback = StageCallback(
        config, stage, index, folder, validation, progress, extent, best, average, on_update
    )
    try:
        _learn(model, callback)
    finally:
        model.logger.close()
        training.close()
        validation.close()
    shrunk = None
    if stage.level != "scaler" and stage.head != "moves":
        many = make_env(config, level, config.validation.final, future=future, validation=True)
        best, shrunk = shrink(many, policy, best)
        many.close()
    rms = training.ret_rms
    reward = (float(rms.mean), float(rms.var), float(rms.count))
    network = Network(pack(best, shape_of(stage, config)), shape_of(stage, config))
    return Trained(stage, best, network, extent, progress, reward, shrunk)


def _as_numpy(tensors: dict[str, torch.Tensor]) -> Tensors:
    return {name: value.numpy() for name, value in tensors.items()}


def _write_status(
    run: Path, index: int, stage: StageConfig, progress: Progress, updates: int
) -> None:
    """Say how far the run is, for whoever watches many of them."""
    status = {
        "stage": index + 1,
        "level": stage.level,
        "update": progress.update,
        "updates": updates,
        "best_score": progress.best_score,
        "prior_score": progress.prior_score,
    }
    _write_whole(run / STATUS_FILE, json.dumps(status))


def _warm_start(policy: SetPolicy, stage: StageConfig, done: list[Trained]) -> bool:
    """Begin with the weights of an earlier stage of the same level, if there was one."""
    before = _latest(done, stage.level)
    if before is None or before.stage.head != stage.head:
        return False
    policy.load_actor(before.tensors)
    policy.critic.encoder.load_state_dict(
        {**policy.critic.encoder.state_dict(), **_normaliser_state(policy)}
    )
    return True


def _favour(policy: SetPolicy, stage: StageConfig, env: ClusterVecEnv, seed: int) -> None:
    """Begin at the rule, or at taking the quota where that does better on training days."""
    favourite = BY_RULE
    if stage.try_quota:
        by_rule, to_quota = (
            judge(env, None, seed, constant=action, most_steps=stage.n_steps).score
            for action in (BY_RULE, TO_QUOTA)
        )
        favourite = TO_QUOTA if to_quota > by_rule else BY_RULE
    with torch.no_grad():
        policy.actor.head_2.bias[favourite] = stage.odds


def _normaliser_state(policy: SetPolicy) -> dict[str, torch.Tensor]:
    return {name: value for name, value in policy.actor.encoder.named_buffers()}


def _first_judgement(policy: SetPolicy, validation: ClusterVecEnv) -> tuple[Progress, Tensors]:
    """Judge what the stage starts from, and the planner without learning."""
    prior = judge(validation, None, VALIDATION_SEED)
    start = judge(validation, policy, VALIDATION_SEED)
    progress = Progress(
        best_score=start.score,
        best_attained=float(start.attained.mean()),
        prior_score=prior.score,
        prior_attained=float(prior.attained.mean()),
        history=[[0, start.score]],
    )
    return progress, policy.export()


def _learn(model: PPO, callback: StageCallback) -> None:
    """Run the updates that are left; SB3 collects and learns, one update per call.

    SB3 would write the log between the two, so that what an update came to appeared with the next
    one; the callback writes it once the update is judged.
    """
    steps = callback.stage.n_envs * callback.stage.n_steps
    while callback.progress.update < callback.n_updates:
        # None keeps SB3 from writing; its annotation knows numbers only.
        model.learn(steps, callback=callback, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
        callback.after_update()
