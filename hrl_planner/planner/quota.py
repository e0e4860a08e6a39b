"""The local planner that asks for all it may have: quotas become targets."""

from __future__ import annotations

import numpy as np

from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.loop import current_targets
from hrl_planner.planner.policy import Plan, PlanContext

QUOTA = "quota"
WHOLE_QUOTA = "all of the quota"
"""Its reason."""


class QuotaPolicy:
    """See the module. It remembers nothing; a pool that was given no quota keeps what it has."""

    name = QUOTA
    interval_s = 10.0

    def reset(self, context: PlanContext) -> None:
        """Take over the cluster's clock."""
        self.interval_s = context.spec.intervals.local_s

    def decide(self, observation: ClusterObservation) -> Plan:
        """Answer with the quotas."""
        quotas = observation.pool_field("quota")
        kept = np.maximum(current_targets(observation), 0)
        replicas = np.where(np.isfinite(quotas), quotas, kept).astype(np.int64)
        return Plan(replicas, reason=WHOLE_QUOTA)
