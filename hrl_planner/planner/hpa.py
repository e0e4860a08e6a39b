"""Kubernetes' HorizontalPodAutoscaler, one per pool, and KEDA's way of feeding it.

The formula and its defaults are those of the autoscaling/v2 API: desired = ceil(current x metric /
target) per metric, the largest wins; no change within the tolerance; replicas that start count as
if they used nothing when scaling up; scale-up adds at most 4 or doubles per period; scale-down
takes the highest desire of the stabilisation window. Every pool scales for itself: nothing here
knows the budget or the other pools, and the projection cuts what does not fit.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from hrl_planner.errors import PolicyError
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.loop import current_targets
from hrl_planner.planner.policy import FloatArray, IntArray, Plan, PlanContext

TOLERANCE = 0.1
SCALE_UP_PODS = 4
SCALE_UP_FACTOR = 2.0
STABILISATION_DOWN_S = 300.0


def replicas_for_metric(
    total: FloatArray, target_per_replica: FloatArray, ready: FloatArray, starting: FloatArray
) -> FloatArray:
    """Return what the formula asks for, NaN where it says nothing, all of shape (P,).

    Args:
        total: the metric summed over a pool's ready replicas.
        target_per_replica: its target per replica.
        ready: replicas the metric was collected from.
        starting: replicas that are not ready yet.
    """
    current = ready + starting
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = total / (target_per_replica * ready)
        ratio_up = total / (target_per_replica * current)
        # Scaling up, starting replicas count as idle; if that turns the direction, nothing is done.
        used = np.where(ratio > 1.0, np.maximum(ratio_up, 1.0), ratio)
        base = np.where(ratio > 1.0, current, ready)
        desired = np.ceil(used * base - 1e-9)
    desired = np.where(np.abs(used - 1.0) <= TOLERANCE, current, desired)
    return np.where(ready > 0, desired, np.nan)


def check_targets(policy: str, **targets: float) -> None:
    """Refuse targets that a metric cannot be divided by.

    Raises:
        PolicyError: naming the target and its value.
    """
    for name, value in targets.items():
        if not value > 0.0:
            raise PolicyError(f"policy {policy}: {name} {value} must be above 0")


class HpaScaler:
    """Limits and stabilisation between what the formula asks for and what is set."""

    def __init__(self) -> None:
        """Start without a past."""
        self._desires: deque[tuple[float, FloatArray]] = deque()

    def limit(self, now_s: float, desired: FloatArray, current: FloatArray) -> IntArray:
        """Return the replicas to set, shape (P,); NaN desires keep the current ones."""
        wanted = np.where(np.isnan(desired), current, desired)
        if not self._desires:  # as the controller does, so that a new one releases nothing at once
            self._desires.append((now_s, current))
        self._desires.append((now_s, wanted))
        while self._desires[0][0] < now_s - STABILISATION_DOWN_S:
            self._desires.popleft()
        highest = np.max([past for _, past in self._desires], axis=0)
        down = np.minimum(current, highest)
        up = np.minimum(wanted, np.maximum(current + SCALE_UP_PODS, current * SCALE_UP_FACTOR))
        return np.where(wanted > current, up, np.maximum(down, wanted)).astype(np.int64)


class HpaPolicy:
    """HPA on utilisation: requests in flight for prefill, KV use and running for decode.

    Args:
        prefill_inflight: requests waiting or running per prefill replica (Ray Serve's default
            for ongoing requests).
        decode_kv_use: share of the KV cache in use.
        decode_running: running requests per decode replica.
    """

    name = "hpa"

    def __init__(
        self,
        prefill_inflight: float = 2.0,
        decode_kv_use: float = 0.6,
        decode_running: float = 32.0,
    ) -> None:
        """See the class."""
        check_targets(
            "hpa",
            prefill_inflight=prefill_inflight,
            decode_kv_use=decode_kv_use,
            decode_running=decode_running,
        )
        self.interval_s = 15.0
        self._inflight = prefill_inflight
        self._kv_use = decode_kv_use
        self._running = decode_running
        self._scaler = HpaScaler()
        self._prefill = np.zeros(0, np.bool_)

    def reset(self, context: PlanContext) -> None:
        """Forget earlier recommendations."""
        self._scaler = HpaScaler()
        self._prefill = np.array([pool.role == "prefill" for pool in context.spec.pools])

    def decide(self, observation: ClusterObservation) -> Plan:
        """Apply the formula to every pool's metrics; unknown metrics change nothing."""
        ready = observation.pool_field("ready")
        starting = observation.pool_field("starting")
        running = observation.pool_field("running")
        inflight = observation.pool_field("waiting") + running
        kv_use = observation.pool_field("kv_use") * ready
        ones = np.ones_like(ready)
        by_inflight = replicas_for_metric(inflight, self._inflight * ones, ready, starting)
        by_kv = replicas_for_metric(kv_use, self._kv_use * ones, ready, starting)
        by_running = replicas_for_metric(running, self._running * ones, ready, starting)
        desired = np.where(self._prefill, by_inflight, np.maximum(by_kv, by_running))
        current = current_targets(observation).astype(np.float64)
        return Plan(self._scaler.limit(observation.now_s, desired, current), reason="hpa")
