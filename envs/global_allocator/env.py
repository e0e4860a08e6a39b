"""`hrl_planner/GlobalAllocator-v0`: share the GPU budget among the pools once a minute."""

from __future__ import annotations

from typing import Any

from envs.base import PlannerEnv
from envs.global_allocator.level import GlobalLevel
from hrl_planner.encoding import Layout


class GlobalAllocatorEnv(PlannerEnv):
    """Set the quotas of all pools; a local planner scales each pool within its quota.

    - **Observation**: one float32 vector, see `hrl_planner.encoding`: pools (P x 41: features and
      the prior's plan), mask (P), classes (C x 13), free GPUs by type (T), limits
      (P x 7), time (3).
      `env.unwrapped.layout.split(observation)` gives the parts by name.
    - **Action**: float32 (P,) in [-1, 1], a residual on the prior's allocation:
      `desired = plan + a * max(1, plan / 2)` with the plan before rounding, then projected onto
      the budget. Action 0 is the prior, the fluid LP planner.
    - **Reward**: `envs.reward`: value-weighted share of offered requests attained, minus GPU
      price, minus churn.
    - **Step**: the spec's `intervals.global_s`; inside it the rule-based local planner acts every
      `local_s`.
    - **Ends**: never terminates; truncated at the end of the trace.

    Args:
        prior: name of the policy actions are relative to, as in `make_policy`.
        layout: size of the observation, where specs of several sizes are to fit.
        render_mode: None, "ansi" or "rgb_array".
        options: of episodes, see `envs.episodes.EpisodeOptions`.

    Example:
        >>> import gymnasium, envs
        >>> env = gymnasium.make("hrl_planner/GlobalAllocator-v0", spec="small")
        >>> observation, info = env.reset(seed=0, options={"scenario": "steady-no-flap"})
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    """

    def __init__(
        self,
        prior: str = "lp",
        layout: Layout | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__(GlobalLevel(prior), layout, render_mode, **options)
