"""KEDA on queue length: the metric is a total, the target an average value per replica.

KEDA polls its triggers and hands HPA `desired = ceil(total / target)` for each, the largest wins;
the rest (limits, stabilisation) is HPA's. Two triggers are set per pool, as the serving stacks'
examples do: requests waiting, and requests running.
"""

from __future__ import annotations

import numpy as np

from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.hpa import HpaScaler, check_targets
from hrl_planner.planner.loop import current_targets
from hrl_planner.planner.policy import Plan, PlanContext


class QueueLengthPolicy:
    """Scales every pool on its queue.

    Args:
        waiting: requests in the queue that one replica answers for.
        prefill_running: prompts in a batch that one prefill replica answers for.
        decode_running: running requests that one decode replica answers for.
    """

    name = "queue-length"

    def __init__(
        self, waiting: float = 4.0, prefill_running: float = 1.0, decode_running: float = 32.0
    ) -> None:
        """See the class."""
        check_targets(
            "queue-length",
            waiting=waiting,
            prefill_running=prefill_running,
            decode_running=decode_running,
        )
        self.interval_s = 30.0  # KEDA's polling interval
        self._waiting = waiting
        self._running_by_role = {
            "prefill": prefill_running,
            "decode": decode_running,
            "aggregated": decode_running,
        }
        self._running = np.zeros(0)
        self._scaler = HpaScaler()

    def reset(self, context: PlanContext) -> None:
        """Forget earlier recommendations."""
        self._scaler = HpaScaler()
        self._running = np.array([self._running_by_role[p.role] for p in context.spec.pools])

    def decide(self, observation: ClusterObservation) -> Plan:
        """Answer the larger of the two triggers; an unknown metric keeps the pool as it is."""
        by_waiting = np.ceil(observation.pool_field("waiting") / self._waiting)
        by_running = np.ceil(observation.pool_field("running") / self._running)
        desired = np.maximum(by_waiting, by_running)
        current = current_targets(observation).astype(np.float64)
        replicas = self._scaler.limit(observation.now_s, desired, current)
        return Plan(replicas, reason="queue length")
