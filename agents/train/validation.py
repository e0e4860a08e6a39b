"""How good a policy is on validation days: always the same days, acting without exploration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agents.policies.policy import SetPolicy
from envs.vec_env import ClusterVecEnv


@dataclass(frozen=True)
class Judgement:
    """What a policy reached, one entry per validation episode.

    Attributes:
        reward: mean reward per step, shape (n,).
        attained: value-weighted attainment, shape (n,).
        price: mean price term per step (negative), shape (n,).
    """

    reward: NDArray[np.float64]
    attained: NDArray[np.float64]
    price: NDArray[np.float64]

    @property
    def score(self) -> float:
        """Mean reward per step over all episodes."""
        return float(self.reward.mean())


def judge(env: ClusterVecEnv, policy: SetPolicy | None, seed: int) -> Judgement:
    """Run one episode in every environment.

    Args:
        env: on validation days.
        policy: None for action 0, the planner without learning.
        seed: of the days.
    """
    env.seed(seed)
    observations = np.asarray(env.reset(), np.float32)
    n = env.num_envs
    terms, steps = np.zeros((n, 3)), np.zeros(n)
    running = np.ones(n, bool)
    space = env.action_space
    idle = np.zeros((n, *(space.shape or ())), space.dtype)
    while running.any():
        actions = idle
        if policy is not None:
            with torch.no_grad():
                actions = policy._predict(torch.from_numpy(observations), True).numpy()
        seen, _, dones, _ = env.step(actions)
        observations = np.asarray(seen, np.float32)
        terms[running] += env.reward_terms[running]
        steps[running] += 1.0
        running &= ~dones
    means = terms / steps[:, None]
    return Judgement(means.sum(axis=1), means[:, 0], means[:, 1])
