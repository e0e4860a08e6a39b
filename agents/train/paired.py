"""Every cluster beside its twin: the reward is what an agent gains over action 0 on the same day.

Most of what a day brings is the same whatever an agent does: its requests, its start-up times. A
twin runs the planner without learning through the same day with the same luck, and its reward of
the same step is taken off. The twin knows nothing of the agent's actions, so the expectation of
the policy's gradient stays what it is and the day's share of its variance goes: an exact
input-dependent baseline (Mao et al., ICLR 2019) by common random numbers, at twice the simulation;
less where several agents, with exploration of their own, share a day and its twin.

Making a day takes as long as simulating minutes of it, so those who share one share its requests:
`SharedDays`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnvWrapper

from envs.episodes import Episode, EpisodeOptions, EpisodeSource
from envs.vec_env import ClusterVecEnv


class SharedDays:
    """A source that makes an episode once for all who ask for the same.

    Args:
        source: makes episodes; the generator's state decides which, so all who share this ask with
            the same options.
        keep: how many to remember.
    """

    def __init__(self, source: EpisodeSource, keep: int) -> None:
        """See the class."""
        self._source, self._keep = source, keep
        self._made: OrderedDict[str, tuple[Episode, Any]] = OrderedDict()

    def __call__(self, options: EpisodeOptions, generator: np.random.Generator) -> Episode:
        """Return the episode, and leave the generator as making it does."""
        bits = generator.bit_generator
        key = repr(bits.state)
        found = self._made.get(key)
        if found is not None:
            episode, bits.state = found
            return episode
        episode = self._source(options, generator)
        self._made[key] = (episode, bits.state)
        while len(self._made) > self._keep:
            self._made.popitem(last=False)
        return episode


class PairedEnv(VecEnvWrapper):
    """Clusters whose reward is the difference to their twins'.

    Args:
        env: where the agent acts.
        twin: a cluster of the same kind for each of its days, for action 0.
    """

    def __init__(self, env: ClusterVecEnv, twin: ClusterVecEnv) -> None:
        """See the class."""
        super().__init__(env)
        self._twin = twin
        self._per_day = env.num_envs // twin.num_envs
        space = twin.action_space
        self._idle = np.zeros((twin.num_envs, *(space.shape or ())), space.dtype)

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Give both the same days at their next reset."""
        self._twin.seed(seed)
        seeds: list[int | None] = list(self.venv.seed(seed))
        return seeds

    def reset(self) -> Any:
        """Begin the same day on both sides."""
        self._twin.reset()
        return self.venv.reset()

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step both; return the agent's side, and its gain as reward."""
        observations, rewards, dones, infos = self.venv.step_wait()
        _, idle_rewards, _, _ = self._twin.step(self._idle)
        return observations, rewards - np.repeat(idle_rewards, self._per_day), dones, infos

    def close(self) -> None:
        """Close both."""
        self._twin.close()
        super().close()
