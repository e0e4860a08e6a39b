"""What the global allocator decides: a residual on the prior's allocation, per pool."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from envs.controlled import Run
from hrl_planner.encoding import Layout
from hrl_planner.planner.allocator import residual, unrounded
from hrl_planner.planner.network import Network
from hrl_planner.planner.policy import Plan
from hrl_planner.spec import ClusterSpec


class GlobalLevel:
    """Quotas for all pools every global interval; local planners scale within them.

    Args:
        prior: the policy the action is relative to.
        scaler: the local planner; None for the rule.
        penalty: taken from the reward for asking for as many GPUs again as the budget has; for
            comparison, the projection holds the budget without it.
    """

    one_pool = False
    shows_plan = True

    def __init__(
        self, prior: str = "lp", scaler: Network | None = None, penalty: float = 0.0
    ) -> None:
        """See the class."""
        self.penalty = penalty
        self.prior: str | None = prior
        self.scaler = scaler

    def action_space(self, layout: Layout) -> spaces.Space[Any]:
        """Return one number in [-1, 1] per pool; those of padded pools do nothing."""
        return spaces.Box(-1.0, 1.0, (layout.max_pools,), np.float32)

    def step_s(self, spec: ClusterSpec) -> float:
        """Return the global interval."""
        return spec.intervals.global_s

    def command(self, run: Run, action: Any) -> None:
        """Set quotas and the router's weights."""
        plan = run.plan
        assert plan is not None
        planned = unrounded(plan)
        wanted = np.asarray(action, np.float64)[: planned.size]
        run.set_quotas(residual(planned, wanted), plan.flows)

    def hear(self, run: Run, plan: Plan) -> None:
        """Let quotas and weights follow the prior's plan, under the action that stands."""
        if run.hear(plan):
            self.command(run, run.action)
