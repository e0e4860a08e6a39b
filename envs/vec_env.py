"""Many clusters as one Stable-Baselines3 `VecEnv`: what training uses.

All clusters advance in one compiled call, over threads, with the GIL released; only the priors'
plans and resets are Python. Every environment draws from its own generator, so that its trajectory
depends neither on the number of environments nor of threads. Arrays returned are fresh: the
learner keeps them. A finished episode is followed in the same step by the next one
(`terminal_observation`, `TimeLimit.truncated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from envs.base import RENDER_MODES, layout_of
from envs.controlled import Episodes, Level, info_of, steps_of
from envs.episodes import EpisodeOptions, EpisodeSource, make_episode
from envs.future import future_size
from envs.reward import TERMS
from envs.spaces import observation_space
from hrl_planner.encoding import Layout
from hrl_planner.errors import ScenarioError


class ClusterVecEnv(VecEnv):
    """A batch of clusters for one level.

    Args:
        level: what the agent decides: `GlobalLevel()`, `LocalLevel()` or `FlatLevel()`.
        n_envs: clusters.
        layout: size of the observation; absent, it fits the cluster of `options`.
        seed: of everything random; environment i uses `seed + i`, as SB3's `seed()` does.
        prior_processes: processes that make the prior's plans, beside this one; worth it where the
            prior is an LP and a core is free. The script then needs a `__main__` guard.
        stagger: end the first episodes early, each at another time, so that later ones do not all
            end in the same step.
        render_mode: None or "rgb_array".
        source: makes the episodes; absent, what `reset` of the single environments does.
        future: write behind every observation what will arrive (`envs.future`).
        per_day: so many neighbours share their seeds, and with them their days and luck.
        options: of episodes, see `envs.episodes.EpisodeOptions`.
    """

    def __init__(
        self,
        level: Level,
        n_envs: int,
        layout: Layout | None = None,
        seed: int = 0,
        prior_processes: int = 0,
        stagger: bool = False,
        render_mode: str | None = None,
        source: EpisodeSource = make_episode,
        future: bool = False,
        per_day: int = 1,
        **options: Any,
    ) -> None:
        """See the class."""
        if n_envs < 1:
            raise ScenarioError(f"n_envs must be at least 1, got {n_envs}")
        if render_mode not in (None, *RENDER_MODES):
            raise ScenarioError(f"render_mode must be one of {RENDER_MODES}, got {render_mode!r}")
        self.render_mode = render_mode  # VecEnv asks for it while it is made
        self.defaults = EpisodeOptions().changed(options)
        self.layout = layout_of(self.defaults, layout, level.one_pool)
        further = future_size(self.layout.max_classes) if future else 0
        space = observation_space(self.layout, further)
        super().__init__(n_envs, space, level.action_space(self.layout))
        self._episodes = Episodes(level, self.layout, n_envs, True, prior_processes, source, future)
        self._size = self.layout.size + further
        self._per_day = per_day
        self._generators = [np.random.default_rng(seed + i // per_day) for i in range(n_envs)]
        self._chosen = [self.defaults] * n_envs
        self._actions: Any = None
        self._steps = np.zeros(n_envs, np.int64)
        self._returns = np.zeros(n_envs)
        self._last_step = np.zeros(n_envs, np.int64)
        self._stagger = stagger
        self._penalty = level.penalty
        self.reward_terms = np.zeros((n_envs, len(TERMS)))
        """The last step's reward by term, (n_envs, len(envs.reward.TERMS))."""

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed all environments from their next reset on; neighbours of a day alike."""
        first = super().seed(seed)[0]
        assert first is not None
        self._seeds = [first + i // self._per_day for i in range(self.num_envs)]
        return list(self._seeds)

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode everywhere; seeds and options set before take effect."""
        observations = np.empty((self.num_envs, self._size), np.float32)
        for i in range(self.num_envs):
            if self._seeds[i] is not None:
                self._generators[i] = np.random.default_rng(self._seeds[i])
            self._chosen[i] = self.defaults.changed(self._options[i])
            observations[i] = self._begin(i)
            if self._stagger:
                share = (i + 1) / self.num_envs
                self._last_step[i] = max(1, round(share * self._last_step[i]))
            self.reset_infos[i] = info_of(self._episodes.run(i))
        self._reset_seeds()
        self._reset_options()
        return observations

    def _begin(self, i: int) -> NDArray[np.float32]:
        observation = self._episodes.start(i, self._chosen[i], self._generators[i])
        self._steps[i] = 0
        self._returns[i] = 0.0
        self._last_step[i] = steps_of(self._episodes.run(i))
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step every cluster; those at their end begin anew."""
        observations, terms = self._episodes.step(self._actions)
        self.reward_terms = terms
        rewards = terms.sum(axis=1)
        if self._penalty > 0.0:
            runs = (self._episodes.run(i) for i in range(self.num_envs))
            rewards -= self._penalty * np.array([run.excess for run in runs])
        self._steps += 1
        self._returns += rewards
        dones = self._steps >= self._last_step
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            infos[i] = info_of(self._episodes.run(int(i)))
            infos[i]["terminal_observation"] = observations[i].copy()
            infos[i]["TimeLimit.truncated"] = True
            infos[i]["episode"] = {"r": float(self._returns[i]), "l": int(self._steps[i])}
            observations[i] = self._begin(int(i))
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """End the processes of the priors, where there are any."""
        self._episodes.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of this object, which all environments share."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Episodes have nothing to set from outside; use `set_options`."""
        raise NotImplementedError("choose episodes with set_options() before reset()")

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the episodes under way."""
        runs = [self._episodes.run(i) for i in self._get_indices(indices)]
        return [getattr(run, method_name)(*args, **kwargs) for run in runs]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Nothing is wrapped inside."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Draw every cluster."""
        from envs import viewer

        return [viewer.picture(self._episodes.run(i)) for i in range(self.num_envs)]
