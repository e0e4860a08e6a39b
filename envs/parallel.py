"""Both levels at once, as a PettingZoo parallel environment.

Agent `global` sets quotas; its action counts at every global interval and is passed over between
them. One agent per pool, `pool:<name>`, scales its pool every local interval. All agents get the
one reward of `envs.reward`: they are one team.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from envs.base import RENDER_MODES, layout_of
from envs.controlled import Episodes, Run, info_of
from envs.episodes import EpisodeOptions
from envs.global_allocator.level import GlobalLevel
from envs.local_scaler.level import apply_change
from envs.spaces import observation_space
from hrl_planner.encoding import POOL_COLUMNS, Layout
from hrl_planner.errors import ScenarioError
from hrl_planner.planner.policy import Plan
from hrl_planner.planner.scaler import CHANGES
from hrl_planner.spec import ClusterSpec

GLOBAL_AGENT = "global"
_PLAN = POOL_COLUMNS.index("plan")


class _BothLevels(GlobalLevel):
    """The global level's command at global intervals, the pools' in between as well.

    Args:
        prior: the policy the global action is relative to.
    """

    def __init__(self, prior: str) -> None:
        """See the class."""
        super().__init__(prior)
        self._standing: Any = None

    def step_s(self, spec: ClusterSpec) -> float:
        """Return the local interval."""
        return spec.intervals.local_s

    def command(self, run: Run, action: Any) -> None:
        """Let the global agent's action stand until the next is due, then take the pools'."""
        quotas, changes = action
        if run.now_s >= run.next_quotas_s:
            run.next_quotas_s = run.now_s + run.episode.spec.intervals.global_s
            self._standing = quotas
        super().command(run, self._standing)
        for pool, change in enumerate(changes):
            apply_change(run, pool, int(change))

    def hear(self, run: Run, plan: Plan) -> None:
        """Take the plan for the next command's."""
        run.hear(plan)


class HierarchyParallelEnv(ParallelEnv[str, NDArray[np.float32], Any]):  # type: ignore[misc]
    """One global and P local agents on one cluster.

    - **Observations**: of `global` as in `GlobalAllocatorEnv`; of a pool as in `LocalScalerEnv`.
    - **Actions**: of `global` Box (P,), of a pool Discrete(8), as there.
    - **Rewards**: the same for all, see `envs.reward`.
    - **Ends**: never terminates; all are truncated at the end of the trace.

    Args:
        prior: the policy the global agent's action is relative to.
        render_mode: None, "ansi" or "rgb_array".
        options: of episodes, see `envs.episodes.EpisodeOptions`.

    Example:
        >>> from envs.parallel import HierarchyParallelEnv
        >>> env = HierarchyParallelEnv(spec="small", scenario="steady-no-flap")
        >>> observations, infos = env.reset(seed=0)
        >>> actions = {agent: env.action_space(agent).sample() for agent in env.agents}
        >>> observations, rewards, terminations, truncations, infos = env.step(actions)
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "hrl_planner_hierarchy_v0",
        "render_modes": list(RENDER_MODES),
    }

    def __init__(self, prior: str = "lp", render_mode: str | None = None, **options: Any) -> None:
        """See the class."""
        if render_mode not in (None, *RENDER_MODES):
            raise ScenarioError(f"render_mode must be one of {RENDER_MODES}, got {render_mode!r}")
        self.render_mode = render_mode
        self.defaults = EpisodeOptions().changed(options)
        spec = self.defaults.spec
        self.spec = spec if isinstance(spec, ClusterSpec) else ClusterSpec.load(spec or "reference")
        self.layout = layout_of(self.defaults, None, False)
        self._local = Layout(1, self.layout.max_classes, self.layout.max_types)
        level = _BothLevels(prior)
        self._episodes = Episodes(level, self.layout, 1, parallel=False)
        pools = [f"pool:{pool.name}" for pool in self.spec.pools]
        self.possible_agents = [GLOBAL_AGENT, *pools]
        self.agents: list[str] = []
        self.observation_spaces = dict.fromkeys(pools, observation_space(self._local))
        self.observation_spaces[GLOBAL_AGENT] = observation_space(self.layout)
        self.action_spaces: dict[str, spaces.Space[Any]] = {
            name: spaces.Discrete(len(CHANGES)) for name in pools
        }
        self.action_spaces[GLOBAL_AGENT] = level.action_space(self.layout)
        self._generator = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Box:
        """Return an agent's observation space."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Return an agent's action space."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, dict[str, Any]]]:
        """Begin an episode; options as for the other environments, without `spec`."""
        if options and "spec" in options:
            raise ScenarioError("reset options: the agents follow from spec; choose it when making")
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        # PettingZoo's own checker passes an option of this name and expects it to be passed over.
        known = {name: value for name, value in (options or {}).items() if name != "options"}
        chosen = self.defaults.changed(known)
        observation = self._episodes.start(0, chosen, self._generator)
        self.agents = list(self.possible_agents)
        return self._each(observation), self._infos()

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[
        dict[str, NDArray[np.float32]],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """Let all agents act, and one local interval pass."""
        changes = [actions.get(name, 0) for name in self.possible_agents[1:]]
        quotas = actions.get(GLOBAL_AGENT, np.zeros(self.layout.max_pools))
        observations, terms = self._episodes.step([(quotas, changes)])
        run = self._episodes.run(0)
        ended = run.now_s >= run.end_s
        agents = self.agents
        result = (
            self._each(observations[0]),
            dict.fromkeys(agents, float(terms[0].sum())),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, ended),
            self._infos(),
        )
        if ended:
            self.agents = []
        return result

    def render(self) -> Any:
        """Draw the cluster as text or as a picture, by `render_mode`."""
        from envs import viewer

        run = self._episodes.run(0)
        if self.render_mode is None:
            return None
        return viewer.text(run) if self.render_mode == "ansi" else viewer.picture(run)

    def _infos(self) -> dict[str, dict[str, Any]]:
        info = info_of(self._episodes.run(0))
        return {agent: dict(info) for agent in self.agents}

    def _each(self, whole: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return every agent's view: all pools, or its own."""
        parts = self.layout.split(whole)
        control = self._episodes.run(0).control
        shared = np.concatenate([parts["classes"].ravel(), parts["free"]])
        one = np.ones(1, np.float32)
        views = {GLOBAL_AGENT: whole}
        for i, name in enumerate(self.possible_agents[1:]):
            row = parts["pools"][i].copy()
            row[_PLAN] = control.wish[i] / max(control.maximum[i], 1)
            views[name] = np.concatenate([row, one, shared, parts["limits"][i], parts["time"]])
        return {agent: views[agent] for agent in self.agents}
