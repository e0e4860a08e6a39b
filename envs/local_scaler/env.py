"""`hrl_planner/LocalScaler-v0`: scale one pool within its quota every few seconds."""

from __future__ import annotations

from typing import Any

from envs.base import PlannerEnv
from envs.local_scaler.level import LocalLevel
from hrl_planner.encoding import Layout


class LocalScalerEnv(PlannerEnv):
    """Scale one pool; the others follow the rule, and quotas come from a given policy.

    - **Observation**: one float32 vector, see `hrl_planner.encoding`, with one row of pools: the
      pool that is scaled. Its `plan` is what the rule-based local planner would ask for.
    - **Action**: Discrete(8): 0 does what the rule says, 1 to 6 add -2, -1, 0, 1, 2, 4 replicas to
      the target, 7 goes to the quota; more than the quota or the budget allow is not given.
    - **Reward**: `envs.reward`, of the whole cluster.
    - **Step**: the spec's `intervals.local_s`.
    - **Ends**: never terminates; truncated at the end of the trace.

    Args:
        quotas: name of the policy that sets quotas every `global_s`, or "random".
        layout: size of the observation, where specs of several sizes are to fit.
        render_mode: None, "ansi" or "rgb_array".
        options: of episodes, see `envs.episodes.EpisodeOptions`; `pool` names the pool, which is
            drawn where nobody names it.

    Example:
        >>> import gymnasium, envs
        >>> env = gymnasium.make("hrl_planner/LocalScaler-v0", spec="small", quotas="random")
        >>> observation, info = env.reset(seed=0, options={"scenario": "steady-no-flap"})
        >>> observation, reward, terminated, truncated, info = env.step(0)
    """

    def __init__(
        self,
        quotas: str = "lp",
        layout: Layout | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__(LocalLevel(quotas), layout, render_mode, **options)
