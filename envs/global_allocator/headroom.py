"""The same decision in a third form: how much of each pool's capacity the prior may count on."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.controlled import Run
from envs.global_allocator.level import GlobalLevel
from hrl_planner.planner.allocator import capacity_factors
from hrl_planner.planner.policy import FloatArray


class HeadroomLevel(GlobalLevel):
    """Quotas for all pools: what the prior plans when told other capacities.

    Actions are one number in [-1, 1] per pool, see `hrl_planner.planner.allocator`; 0 everywhere is
    the prior's own plan.
    """

    def capacity_factors(self, action: Any) -> FloatArray | None:
        """Return the factors of all pools, padding included."""
        wanted = np.asarray(action, np.float64)
        return capacity_factors(wanted) if wanted.any() else None

    def command(self, run: Run, action: Any) -> None:
        """Set quotas and the router's weights."""
        plan = run.plan
        assert plan is not None
        run.set_quotas(plan.replicas.astype(np.float64), plan.flows)
