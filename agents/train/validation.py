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


def judge(
    env: ClusterVecEnv,
    policy: SetPolicy | None,
    seed: int,
    *,
    constant: float = 0.0,
    most_steps: int | None = None,
) -> Judgement:
    """Run one episode in every environment.

    Args:
        env: on the days to judge by.
        policy: None for one action of all pools at all times.
        seed: of the days.
        constant: that action; 0 is the planner without learning.
        most_steps: stop episodes after so many steps; None for their ends.
    """
    env.seed(seed)
    observations = np.asarray(env.reset(), np.float32)
    n = env.num_envs
    terms, steps = np.zeros((n, 3)), np.zeros(n)
    running = np.ones(n, bool)
    space = env.action_space
    always = np.full((n, *(space.shape or ())), constant, space.dtype)
    while running.any() and (most_steps is None or steps.max() < most_steps):
        actions = always
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
