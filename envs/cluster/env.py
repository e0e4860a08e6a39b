"""`hrl_planner/Cluster-v0`: one agent for all pools at the local interval, without hierarchy."""

from __future__ import annotations

from typing import Any

from envs.base import PlannerEnv
from envs.cluster.level import FlatLevel
from hrl_planner.encoding import Layout


class ClusterEnv(PlannerEnv):
    """Scale all pools directly: the ablation of the hierarchy.

    - **Observation**: as `GlobalAllocatorEnv`.
    - **Action**: float32 (P,) in [-1, 1]: `desired = now + a * max(1, now / 2)`, with the replicas
      asked for now (or the prior's plan), then projected onto the budget. Action 0 holds.
    - **Reward**: `envs.reward`.
    - **Step**: the spec's `intervals.local_s`.
    - **Ends**: never terminates; truncated at the end of the trace.

    Args:
        prior: name of a policy actions are relative to; absent: the present targets.
        layout: size of the observation, where specs of several sizes are to fit.
        render_mode: None, "ansi" or "rgb_array".
        options: of episodes, see `envs.episodes.EpisodeOptions`.

    Example:
        >>> import gymnasium, envs
        >>> env = gymnasium.make("hrl_planner/Cluster-v0", spec="small")
        >>> observation, info = env.reset(seed=0, options={"scenario": "steady-no-flap"})
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    """

    def __init__(
        self,
        prior: str | None = None,
        layout: Layout | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__(FlatLevel(prior), layout, render_mode, **options)
