"""The local planner that asks for all it may have: quotas become targets."""

from __future__ import annotations

import numpy as np

from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.policy import Plan, PlanContext

QUOTA = "quota"
WHOLE_QUOTA = "all of the quota"
"""Its reason."""


class QuotaPolicy:
    """See the module. It remembers nothing, and is of no use without somebody who sets quotas."""

    name = QUOTA
    interval_s = 10.0

    def reset(self, context: PlanContext) -> None:
        """Take over the cluster's clock."""
        self.interval_s = context.spec.intervals.local_s

    def decide(self, observation: ClusterObservation) -> Plan:
        """Answer with the quotas; pools without one get nothing."""
        quotas = observation.pool_field("quota")
        known = np.where(np.isnan(quotas), 0.0, quotas).astype(np.int64)
        return Plan(known, reason=WHOLE_QUOTA)
