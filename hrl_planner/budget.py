"""Exact integer projection onto the GPU budget: the one gate every plan passes.

Given what a planner desires (real numbers) and what runs now, `project` returns the whole numbers
of replicas that cost least, where cost adds up over pools,

    cost = sum_i  w_i * (g_i * (n_i - desired_i))^2  +  churn * g_i * |n_i - current_i|

(g_i GPUs per replica: the distance is measured in GPUs), among all n that respect

    min_i <= n_i <= max_i,  |n_i - current_i| <= max_step,
    GPUs of every type, GPUs in total, watts.

Whoever asks and whatever is asked, the answer never leaves the budget. Two rules cover the starts
from which that is impossible at once. *Over budget now*: no pool the breached limit covers may
grow, and the step bound gives way downwards. *Still impossible* (the minimum replicas alone exceed
the budget): every pool goes to its minimum, or stays below it.

GPU types are independent and solved in `_projection.py`, exact, compiled and in microseconds. A
total or watts couple them: if they bind, `project` calls the MILP in `budget_milp.py`; compiled
callers of `project_into` get a feasible answer, not always the cheapest, and a status that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner._projection import COUPLED, EXACT, INFEASIBLE, UNLIMITED, project_into

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

__all__ = [
    "COUPLED",
    "EXACT",
    "INFEASIBLE",
    "UNLIMITED",
    "BudgetArrays",
    "price_per_hour",
    "project",
    "project_into",
]


class BudgetArrays(NamedTuple):
    """The fixed side of the projection, as arrays that compiled code can take.

    Attributes:
        minimum: minimum replicas, shape (P,).
        maximum: maximum replicas, shape (P,).
        gpus: GPUs per replica, shape (P,).
        type_index: GPU type of each pool, shape (P,).
        type_budget: GPUs of each type, shape (T,).
        total_gpus: GPUs over all types, UNLIMITED if not bounded.
        watts_per_replica: shape (P,).
        watts: power budget, infinite if not bounded.
    """

    minimum: IntArray
    maximum: IntArray
    gpus: IntArray
    type_index: IntArray
    type_budget: IntArray
    total_gpus: int
    watts_per_replica: FloatArray
    watts: float

    @classmethod
    def from_spec(cls, spec: ClusterSpec) -> BudgetArrays:
        """Collect bounds and budget of a cluster."""
        pools = spec.pools
        budget = spec.budget
        watts = [spec.power_w_per_replica(i) for i in range(len(pools))]
        return cls(
            minimum=np.array([p.min_replicas for p in pools], np.int64),
            maximum=np.array([p.max_replicas for p in pools], np.int64),
            gpus=np.array([p.gpus_per_replica for p in pools], np.int64),
            type_index=np.array([spec.gpu_types.index(p.gpu_type) for p in pools], np.int64),
            type_budget=np.array([budget.gpus[kind] for kind in spec.gpu_types], np.int64),
            total_gpus=UNLIMITED if budget.total_gpus is None else int(budget.total_gpus),
            watts_per_replica=np.array(watts, np.float64),
            watts=np.inf if budget.watts is None else float(budget.watts),
        )

    def fits(self, replicas: IntArray) -> bool:
        """Say whether replicas stay inside every budget (pool bounds are not looked at)."""
        held = self.gpus * replicas
        per_type = np.bincount(self.type_index, held, self.type_budget.size)
        return bool(
            np.all(per_type <= self.type_budget)
            and held.sum() <= self.total_gpus
            and self.watts_per_replica @ replicas <= self.watts
        )


def price_per_hour(spec: ClusterSpec) -> float:
    """Return the price of the whole budget, each GPU at the dearest a pool of its type has."""
    dearest = dict.fromkeys(spec.budget.gpus, 0.0)
    for pool in spec.pools:
        dearest[pool.gpu_type] = max(dearest[pool.gpu_type], pool.price_per_gpu_hour)
    return sum(n * dearest[kind] for kind, n in spec.budget.gpus.items())


def project(
    desired: FloatArray,
    current: IntArray,
    arrays: BudgetArrays,
    *,
    max_step: int | None = None,
    weights: FloatArray | None = None,
    churn: float = 0.0,
) -> IntArray:
    """Return the cheapest replicas within the budget, shape (P,).

    Args:
        desired: replicas wanted; NaN means "as now".
        current: targets in force.
        arrays: bounds and budget.
        max_step: largest change of one pool; None for no bound.
        weights: importance of each pool's distance, >= 0; None for 1.
        churn: cost of each GPU whose replica starts or stops.
    """
    n_pools = arrays.gpus.size
    step = UNLIMITED if max_step is None else max_step
    weight = np.ones(n_pools) if weights is None else np.asarray(weights, np.float64)
    wanted = np.ascontiguousarray(desired, np.float64)
    now = np.ascontiguousarray(current, np.int64)
    result = np.empty(n_pools, np.int64)
    status = project_into(wanted, now, arrays, step, weight, churn, result)
    if status == COUPLED:
        from hrl_planner.budget_milp import solve

        return solve(wanted, now, arrays, step, weight, churn, fallback=result)
    return result
