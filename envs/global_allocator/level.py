"""What the global allocator decides: a residual on the prior's allocation, per pool."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from envs.controlled import Run
from envs.spaces import Layout
from hrl_planner.planner.policy import FloatArray
from hrl_planner.spec import ClusterSpec


def residual(planned: FloatArray, action: FloatArray) -> FloatArray:
    """Return the replicas an action asks for: `planned + a * max(1, planned / 2)`, at least 0."""
    return np.maximum(planned + action * np.maximum(1.0, planned / 2.0), 0.0)


class GlobalLevel:
    """Quotas for all pools every global interval; the rule scales within them.

    Args:
        prior: the policy the action is relative to.
    """

    one_pool = False

    def __init__(self, prior: str = "lp") -> None:
        """See the class."""
        self.prior: str | None = prior

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
        planned = plan.replicas.astype(np.float64)
        wanted = np.asarray(action, np.float64)[: planned.size]
        run.set_quotas(residual(planned, np.clip(wanted, -1.0, 1.0)), plan.flows)
