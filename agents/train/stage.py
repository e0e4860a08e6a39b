"""One stage of training: environments, learner, and what happens around each update.

A rollout is a round of fresh episodes: before every update all environments begin anew, seeded by
the run's seed, the stage and the number of the update. So the state of training between two
updates is weights, optimiser, generators and counters, nothing inside a simulator, and a resumed
run sees bit by bit the data an uninterrupted one sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.policies.heads import Head, ResidualHead, ScalerHead, TermsHead
from agents.policies.moves import MovesHead
from agents.policies.network import Normaliser
from agents.policies.policy import SetPolicy
from agents.train.config import StageConfig, TrainConfig
from agents.train.paired import PairedEnv, SharedDays
from agents.train.randomise import RandomEpisodes
from envs.cluster import FlatLevel
from envs.controlled import Level
from envs.episodes import EpisodeSource
from envs.global_allocator import GlobalLevel, MovesLevel, TermsLevel
from envs.local_scaler.level import AllPoolsLevel
from envs.vec_env import ClusterVecEnv
from hrl_planner.encoding import CLASS_COLUMNS, POOL_COLUMNS, Layout
from hrl_planner.features import CLASS_FEATURES
from hrl_planner.planner.allocator import N_TERMS
from hrl_planner.planner.network import NetShape, Network
from hrl_planner.planner.scaler import CHANGES
from hrl_planner.spec import ClusterSpec

_LEAST_STD = 0.05
_CLASS_EXISTS = CLASS_FEATURES.index("itl_target")
VALIDATION_SEED = 1_000_000


@dataclass
class Extent:
    """Lowest and highest value of every feature seen so far.

    Attributes:
        pools: (2, N_POOL_COLUMNS).
        classes: (2, N_CLASS_COLUMNS).
    """

    pools: NDArray[np.float32]
    classes: NDArray[np.float32]

    @classmethod
    def empty(cls) -> Extent:
        """Return the extent of nothing."""
        return cls(*(_nothing(len(names)) for names in (POOL_COLUMNS, CLASS_COLUMNS)))

    def include(self, rows: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
        """Widen to rows of pools and of classes."""
        for mine, seen in zip((self.pools, self.classes), rows, strict=True):
            mine[0] = np.minimum(mine[0], seen.min(axis=0))
            mine[1] = np.maximum(mine[1], seen.max(axis=0))

    def join(self, other: Extent) -> Extent:
        """Return the extent of both."""
        both = Extent(self.pools.copy(), self.classes.copy())
        both.include((other.pools, other.classes))
        return both


def _nothing(n: int) -> NDArray[np.float32]:
    return np.stack([np.full(n, np.inf, np.float32), np.full(n, -np.inf, np.float32)])


def existing_rows(
    observations: NDArray[np.float32], layout: Layout
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the rows of pools and classes that exist in a batch of observations."""
    parts = layout.split(observations.reshape(-1, observations.shape[-1]))
    classes = parts["classes"].reshape(-1, len(CLASS_COLUMNS))
    pools = parts["pools"].reshape(-1, len(POOL_COLUMNS))
    return pools[parts["mask"].ravel() > 0.5], classes[classes[:, _CLASS_EXISTS] != 0.0]


def make_level(stage: StageConfig, prior: str, scaler: Network | None) -> Level:
    """Return the level a stage trains.

    Args:
        stage: the stage.
        prior: what the allocator corrects, or who sets a scaler's quotas.
        scaler: the local planner under an allocator.
    """
    if stage.level == "scaler":
        return AllPoolsLevel(prior, stage.quota_noise)
    if stage.level == "flat":
        return FlatLevel(prior)
    if stage.head == "moves":
        return MovesLevel(prior, scaler, stage.penalty, stage.moves)
    made = TermsLevel if stage.head == "terms" else GlobalLevel
    return made(prior, scaler, stage.penalty)


def shape_of(stage: StageConfig, config: TrainConfig) -> NetShape:
    """Return the sizes of a stage's network."""
    net = config.network
    if stage.level == "scaler":
        return NetShape(net.class_hidden, net.scaler_hidden, 0, 0, len(CHANGES))
    shape = NetShape(net.class_hidden, net.hidden, int(net.attention), pooled=1, outputs=1)
    if stage.head == "moves":
        return shape._replace(outputs=max(net.hidden // 2, 1), scorer=1)
    if stage.head == "terms":
        return shape._replace(outputs=N_TERMS)
    return shape


def make_env(
    config: TrainConfig,
    level: Level,
    n_envs: int,
    *,
    future: bool,
    validation: bool,
    source: EpisodeSource | None = None,
    per_day: int = 1,
) -> ClusterVecEnv:
    """Return the clusters of a stage, for training or for validation days.

    Args:
        config: the run.
        level: what is decided.
        n_envs: how many.
        future: see `ClusterVecEnv`.
        validation: they live on validation days.
        source: of their episodes; absent, one of their own.
        per_day: see `ClusterVecEnv`.
    """
    spec = ClusterSpec.load(config.spec)
    return ClusterVecEnv(
        level,
        n_envs,
        Layout.of(spec),
        prior_processes=0 if validation else config.prior_processes,
        source=source or RandomEpisodes(spec, config.randomise, validation),
        future=future,
        per_day=per_day,
        spec=spec,
    )


def make_training(
    config: TrainConfig, stage: StageConfig, level: Level
) -> tuple[ClusterVecEnv, ClusterVecEnv | None]:
    """Return the clusters a stage learns on, and their twins where it learns from the gain."""
    n_days = stage.n_envs // stage.per_day
    random = RandomEpisodes(ClusterSpec.load(config.spec), config.randomise, validation=False)
    days = SharedDays(random, n_days)
    future = config.network.sees_future
    env = make_env(
        config,
        level,
        stage.n_envs,
        future=future,
        validation=False,
        source=days,
        per_day=stage.per_day,
    )
    if not stage.paired:
        return env, None
    return env, make_env(config, level, n_days, future=False, validation=False, source=days)


def update_seed(config: TrainConfig, stage: int, update: int) -> int:
    """Return the seed of the episodes before an update."""
    words = np.random.SeedSequence([config.seed, stage, update]).generate_state(1)
    return int(words[0]) & 0x3FFFFFFF


def measure_features(
    env: ClusterVecEnv, stage: StageConfig, seed: int
) -> tuple[Normaliser, Extent]:
    """Let the planner without learning run a round, and return how its features lie."""
    env.seed(seed)
    seen = [np.asarray(env.reset(), np.float32)]
    space = env.action_space
    idle = np.zeros((env.num_envs, *(space.shape or ())), space.dtype)
    for _ in range(stage.n_steps):
        seen.append(np.asarray(env.step(idle)[0], np.float32))
    rows = existing_rows(np.stack(seen), env.layout)
    extent = Extent.empty()
    extent.include(rows)
    means = [r.mean(axis=0).astype(np.float32) for r in rows]
    # Deviations of columns that hardly move would blow their noise up.
    inverse = [(1.0 / np.maximum(r.std(axis=0), _LEAST_STD)).astype(np.float32) for r in rows]
    return Normaliser(means[0], inverse[0], means[1], inverse[1]), extent


def make_model(
    config: TrainConfig,
    stage: StageConfig,
    env: ClusterVecEnv,
    normaliser: Normaliser,
    twin: ClusterVecEnv | None,
) -> PPO:
    """Return the learner of a stage.

    Args:
        config: the run.
        stage: the stage.
        env: the clusters it learns on.
        normaliser: of the features.
        twin: the same clusters again, where it learns from the gain over action 0.
    """
    ppo = stage.ppo
    learned_on: VecEnv = env if twin is None else PairedEnv(env, twin)
    shape = shape_of(stage, config)
    policy_arguments: dict[str, Any] = {
        "layout": env.layout,
        "shape": shape,
        "normaliser": normaliser,
        "head": make_head(stage, shape),
        "sees_future": config.network.sees_future,
    }
    return PPO(
        SetPolicy,
        VecNormalize(learned_on, norm_obs=False, norm_reward=True, gamma=ppo.gamma),
        learning_rate=ppo.learning_rate,
        n_steps=stage.n_steps,
        batch_size=ppo.batch,
        n_epochs=ppo.epochs,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip,
        ent_coef=ppo.entropy,
        max_grad_norm=ppo.max_grad_norm,
        target_kl=ppo.target_kl,
        policy_kwargs=policy_arguments,
        seed=config.seed,
        device="cpu",
    )


def make_head(stage: StageConfig, shape: NetShape) -> Head:
    """Return what a stage's outputs mean."""
    if stage.level == "scaler":
        return ScalerHead(stage.noise_memory)
    if stage.head == "moves":
        return MovesHead(shape.outputs, stage.moves, stage.stop_odds, stage.noise_memory)
    made = TermsHead if stage.head == "terms" else ResidualHead
    return made(stage.std, stage.noise_memory)


def stage_folder(run: Path, index: int, stage: StageConfig) -> Path:
    """Return where a stage keeps its state, logs and best weights."""
    return run / f"stage-{index + 1}-{stage.level}"
