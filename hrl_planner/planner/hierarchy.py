"""Two levels: a global planner sets quotas now and then, a local one moves within them.

The same two objects run as separate pods in production; here they share one clock, so that the
pair can be evaluated like any other policy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hrl_planner.observation import POOL_FIELDS, ClusterObservation
from hrl_planner.planner.policy import IntArray, Listener, Plan, PlanContext, Policy

_QUOTA = POOL_FIELDS.index("quota")


class HierarchicalPlanner:
    """A global and a local policy behind one face.

    Args:
        allocator: its replicas become quotas, its flows the router's weights; one that listens
            may change both between its decisions.
        local: decides the replicas; it sees the quota in every pool's row.
    """

    def __init__(self, allocator: Policy, local: Policy) -> None:
        """See the class."""
        self.name = f"{allocator.name}+{local.name}"
        self.interval_s = 10.0
        self._allocator = allocator
        self._local = local
        self._global_s = 60.0
        self._next_s = -np.inf
        self._quotas: IntArray = np.zeros(0, np.int64)

    def reset(self, context: PlanContext) -> None:
        """Reset both levels."""
        self._allocator.reset(context)
        self._local.reset(context)
        self.interval_s = context.spec.intervals.local_s
        self._global_s = context.spec.intervals.global_s
        self._next_s = -np.inf

    def decide(self, observation: ClusterObservation) -> Plan:
        """Let the local policy decide, after new quotas where they are due."""
        flows = None
        reason = ""
        if observation.now_s >= self._next_s:
            plan = self._allocator.decide(observation)
            self._quotas = plan.replicas
            self._next_s = observation.now_s + self._global_s
            flows = plan.flows
            reason = plan.reason + "; "
        elif isinstance(self._allocator, Listener):
            heard = self._allocator.listen(observation)
            if heard is not None:
                flows = heard.flows
                self._quotas = heard.replicas if heard.replicas.size else self._quotas
        pools = observation.pools.copy()
        pools[:, _QUOTA] = self._quotas
        local = self._local.decide(replace(observation, pools=pools))
        replicas = np.minimum(local.replicas, self._quotas)
        return Plan(replicas, flows, quotas=self._quotas, reason=reason + local.reason)
