"""What the flat agent decides: the replicas of all pools, without a hierarchy."""

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


class FlatLevel:
    """All pools every local interval.

    Args:
        prior: the policy the action is relative to; None: the replicas asked for now.
    """

    one_pool = False
    shows_plan = True
    scaler: Network | None = None
    penalty = 0.0

    def __init__(self, prior: str | None = None) -> None:
        """See the class."""
        self.prior = prior

    def action_space(self, layout: Layout) -> spaces.Space[Any]:
        """Return one number in [-1, 1] per pool; those of padded pools do nothing."""
        return spaces.Box(-1.0, 1.0, (layout.max_pools,), np.float32)

    def step_s(self, spec: ClusterSpec) -> float:
        """Return the local interval."""
        return spec.intervals.local_s

    def command(self, run: Run, action: Any) -> None:
        """Set the replicas of all pools; quotas are the same."""
        targets = run.simulation.cluster.pools["target"].astype(np.float64)
        planned = targets if run.plan is None else unrounded(run.plan)
        wanted = np.asarray(action, np.float64)[: planned.size]
        flows = None if run.plan is None else run.plan.flows
        run.control.override[:] = run.set_quotas(residual(planned, wanted), flows)

    def hear(self, run: Run, plan: Plan) -> None:
        """Take the plan for the next action's."""
        run.hear(plan)
