"""What happens around each update: fresh episodes, validation, saving, progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from agents.policies.policy import SetPolicy
from agents.train.config import StageConfig, TrainConfig
from agents.train.stage import VALIDATION_SEED, Extent, existing_rows, update_seed
from agents.train.state import snapshot, write_state
from agents.train.validation import judge
from envs.vec_env import ClusterVecEnv


@dataclass
class Progress:
    """How far a stage is; plain values, saved with its state.

    Attributes:
        update: updates begun.
        best_update: the update whose weights are the best so far, 0 for untrained ones.
        best_score: their mean reward per step on validation days.
        best_attained: their value-weighted attainment.
        prior_score: of action 0, what the stage starts from.
        prior_attained: its value-weighted attainment.
        env_s: wall time in the environments.
        wall_s: wall time in all.
        history: (update, score) of every validation.
    """

    update: int = 0
    best_update: int = 0
    best_score: float = -np.inf
    best_attained: float = 0.0
    prior_score: float = 0.0
    prior_attained: float = 0.0
    env_s: float = 0.0
    wall_s: float = 0.0
    history: list[list[float]] = field(default_factory=list)


OnUpdate = Callable[[Progress, int], None]
"""Told the progress and the updates there are in all."""


class StageCallback(BaseCallback):
    """Everything between two updates of one stage.

    Args:
        config: the run.
        stage: the stage.
        index: its number.
        folder: where its state goes.
        validation: clusters on validation days.
        progress: where the stage stands.
        extent: of the features seen so far, widened.
        best: exported weights of the best update.
        average: exported mean weights so far, see `StageConfig.average`.
        on_update: for a progress bar.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        index: int,
        folder: Path,
        validation: ClusterVecEnv,
        progress: Progress,
        extent: Extent,
        best: dict[str, NDArray[np.float32]],
        average: dict[str, NDArray[np.float32]],
        on_update: OnUpdate,
    ) -> None:
        """See the class."""
        super().__init__()
        self.config, self.stage, self.index = config, stage, index
        self.folder, self.validation = folder, validation
        self.progress, self.extent, self.best, self.average = progress, extent, best, average
        self.n_updates = -(-stage.steps // (stage.n_envs * stage.n_steps))
        self._on_update = on_update
        self._began_s = self._rollout_s = 0.0

    @property
    def policy(self) -> SetPolicy:
        """The policy that learns."""
        policy = self.model.policy
        assert isinstance(policy, SetPolicy)
        return policy

    def _on_training_start(self) -> None:
        self._began_s = time.perf_counter()

    def _on_rollout_start(self) -> None:
        """Begin new episodes everywhere: data depend on the update's number alone."""
        self._rollout_s = time.perf_counter()
        env = self.model.get_env()
        assert env is not None
        env.seed(update_seed(self.config, self.index, self.progress.update))
        self.model._last_obs = env.reset()  # type: ignore[assignment]
        self.model._last_episode_starts = np.ones(env.num_envs, bool)
        self.policy.head.forget()
        actor_learns = self.progress.update >= self.stage.critic_only
        for parameter in self.policy.actor_parameters():
            parameter.requires_grad_(actor_learns)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.progress.env_s += time.perf_counter() - self._rollout_s
        seen = self.model.rollout_buffer.observations  # type: ignore[attr-defined]
        self.extent.include(existing_rows(seen, self.validation.layout))
        self.logger.record("train/update", self.progress.update)

    def after_update(self) -> None:
        """Count, validate where it is due, log, save."""
        progress = self.progress
        progress.update += 1
        kept = self.stage.average
        for name, value in self.policy.export().items():
            self.average[name] = kept * self.average[name] + np.float32(1.0 - kept) * value
        if progress.update % self.config.validation.every == 0 or progress.update == self.n_updates:
            self._validate()
        now_s = time.perf_counter()
        progress.wall_s += now_s - self._began_s
        self._began_s = now_s
        self.model.dump_logs()
        self.save()
        self._on_update(progress, self.n_updates)

    def save(self) -> None:
        """Write the state training continues from."""
        plain: dict[str, Any] = {
            **vars(self.progress),
            "best": as_torch(self.best),
            "average": as_torch(self.average),
        }
        write_state(self.folder, snapshot(self.model, self.extent, plain))  # type: ignore[arg-type]

    def _validate(self) -> None:
        latest = self.policy.export()
        self.policy.load_actor(self.average)
        result = judge(self.validation, self.policy, VALIDATION_SEED)
        self.policy.load_actor(latest)
        progress = self.progress
        progress.history.append([progress.update, result.score])
        self.logger.record("validation/score", result.score)
        self.logger.record("validation/gain", result.score - progress.prior_score)
        self.logger.record("validation/attained", float(result.attained.mean()))
        if result.score > progress.best_score:
            progress.best_update, progress.best_score = progress.update, result.score
            progress.best_attained = float(result.attained.mean())
            self.best.clear()
            self.best.update(self.average)


def as_torch(tensors: dict[str, NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """Return exported weights as a state file holds them."""
    return {name: torch.from_numpy(value) for name, value in tensors.items()}
