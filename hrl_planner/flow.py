"""The fluid LP: which class flows to which pool, and how many replicas that needs.

Requests are a fluid. With cap[c, i] the rate one replica of pool i sustains for class c
(`capacity.py`), choose replicas n_i and flows x[c, i] >= 0 that maximise

    sum  v_c * share[c, i] * x[c, i] / V                      value of requests served in time
    - w_price * sum  price_i * g_i * n_i / (price of the whole budget)
    - sum  g_i * (w_start * (n_i - current_i)+ + w_stop * (current_i - n_i)+) / (all GPUs)

(V = sum of v_c * demand_c, so that the value of serving all is 1) subject to

    sum_c x[c, i] / cap[c, i]  <=  (1 - headroom_role) * n_i          each pool
    entering flow of class c   <=  demand_c                           prefill and aggregated pools
    flow into prefill pools    =   flow into decode pools             each class
    GPUs per type, GPUs in total, watts;  low_i <= n_i <= high_i.

The terms for changes double as tie-break: of equally good plans the one nearest to what runs wins.
HiGHS solves it; the model is built once per cluster, later solves change only numbers and start
from the last basis. The duals of the pool rows are the marginal value of a GPU in each pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import highspy
import numpy as np
from numpy.typing import NDArray

from hrl_planner._highs import new_solver
from hrl_planner.budget import UNLIMITED, BudgetArrays
from hrl_planner.capacity import AGGREGATED, DECODE, PREFILL, ROLES

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

FloatArray = NDArray[np.float64]

_INFINITY = highspy.kHighsInf
# Serving a request must always be worth its wear on the numbers: HiGHS' tolerances are 1e-7.
_LEAST_DEMAND = 1e-6


@dataclass(frozen=True, slots=True)
class FlowParameters:
    """Weights of the LP.

    Attributes:
        headroom_prefill: share of a prefill pool's capacity kept free.
        headroom_decode: the same for decode pools.
        headroom_aggregated: the same for aggregated pools.
        price_weight: weight of GPU price against value; holding the whole budget costs this.
        start_weight: cost of starting a replica on every GPU once: they hold their GPUs for the
            whole start-up time without serving, so moving GPUs between pools must be worth that.
        stop_weight: cost of stopping them all.
    """

    headroom_prefill: float = 0.1
    headroom_decode: float = 0.15
    headroom_aggregated: float = 0.15
    price_weight: float = 0.1
    start_weight: float = 0.3
    stop_weight: float = 0.02


@dataclass(frozen=True, slots=True)
class Allocation:
    """A solution of the LP.

    Attributes:
        replicas: not whole, shape (P,).
        flows: requests/s, shape (C, P).
        served: requests/s served per class, shape (C,).
        marginal: value of one more GPU in each pool, shape (P,).
    """

    replicas: FloatArray
    flows: FloatArray
    served: FloatArray
    marginal: FloatArray


class FluidModel:
    """The LP of one cluster, solved again and again with other numbers."""

    def __init__(self, spec: ClusterSpec, parameters: FlowParameters | None = None) -> None:
        """See the class."""
        self.parameters = parameters or FlowParameters()
        self.arrays = BudgetArrays.from_spec(spec)
        self._role = np.array([ROLES.index(pool.role) for pool in spec.pools])
        self._value = np.array([c.value for c in spec.slo_classes], np.float64)
        self._n_pools, self._n_classes = self._role.size, self._value.size
        p = self.parameters
        headroom = np.array([p.headroom_prefill, p.headroom_decode, p.headroom_aggregated])
        self._usable = 1.0 - headroom[self._role]
        price = np.array([q.price_per_gpu_hour for q in spec.pools]) * self.arrays.gpus
        dearest = np.zeros(self.arrays.type_budget.size)
        np.maximum.at(dearest, self.arrays.type_index, price / self.arrays.gpus)
        whole = max(float(dearest @ self.arrays.type_budget), 1e-9)
        self._price = p.price_weight * price / whole
        per_gpu = self.arrays.gpus / max(self.arrays.type_budget.sum(), 1)
        self._start, self._stop = p.start_weight * per_gpu, p.stop_weight * per_gpu
        self._solver = self._build()

    def solve(
        self,
        demand: FloatArray,
        cap: FloatArray,
        share: FloatArray,
        current: FloatArray,
        *,
        low: FloatArray | None = None,
        high: FloatArray | None = None,
        type_budget: FloatArray | None = None,
        offered: FloatArray | None = None,
    ) -> Allocation | None:
        """Return the best allocation, None if the bounds leave none.

        Args:
            demand: requests/s per class, shape (C,).
            cap: requests/s per replica, shape (C, P).
            share: part of the requests that is in time, shape (C, P).
            current: replicas that run or start, shape (P,).
            low: least replicas; None for the spec's minimum.
            high: most replicas; None for the spec's maximum.
            type_budget: GPUs per type that can be had; None for the spec's.
            offered: requests/s whose service is worth 1 in all, shape (C,); None for the demand.
                Piled-up work raises the demand, and must not make a request worth less.
        """
        P, C = self._n_pools, self._n_classes
        solver = self._solver
        worth = max(float(self._value @ (demand if offered is None else offered)), _LEAST_DEMAND)
        entry = self._role != DECODE
        gain = self._value[:, None] * np.where(entry, share, share - 1.0) / worth
        solver.changeColsCost(C * P, self._flow_columns, -gain.ravel())
        usable = cap > 1e-9
        top = np.where(usable, np.inf, 0.0).ravel()
        lower = np.concatenate([self.arrays.minimum if low is None else low, np.zeros(C * P)])
        upper = np.concatenate([self.arrays.maximum if high is None else high, top])
        solver.changeColsBounds(lower.size, self._bound_columns, lower, upper)
        load = np.where(usable, 1.0 / np.maximum(cap, 1e-9), 1.0)
        for c in range(C):
            for i in range(P):
                solver.changeCoeff(i, P + c * P + i, load[c, i])
        limit = self.arrays.type_budget if type_budget is None else type_budget
        held = np.asarray(current, np.float64)
        rows_high = np.concatenate([demand, limit.astype(np.float64), held])
        rows_low = np.concatenate([np.full(C + limit.size, -_INFINITY), held])
        for row, a, b in zip(self._moving_rows, rows_low, rows_high, strict=True):
            solver.changeRowBounds(row, a, b)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            solver.clearSolver()
            return None
        return self._read(solver)

    def _read(self, solver: highspy.Highs) -> Allocation:
        P, C = self._n_pools, self._n_classes
        solution = solver.getSolution()
        values = np.array(solution.col_value)
        flows = np.maximum(values[P : P + C * P].reshape(C, P), 0.0)
        duals = -np.array(solution.row_dual[:P]) * self._usable / self.arrays.gpus
        served = flows[:, self._role != DECODE].sum(axis=1)
        return Allocation(np.maximum(values[:P], 0.0), flows, served, np.maximum(duals, 0.0))

    def _build(self) -> highspy.Highs:
        """Lay out columns (n, x, up, down) and rows once; numbers that change come later."""
        P, C = self._n_pools, self._n_classes
        arrays = self.arrays
        solver = new_solver(solver="simplex", presolve="off")
        solver.addVars(P + C * P + 2 * P, np.zeros(P + C * P + 2 * P), np.full(3 * P + C * P, 1e9))
        pools = np.arange(P, dtype=np.int32)
        flow = (P + np.arange(C * P, dtype=np.int32)).reshape(C, P)
        up, down = P + C * P + pools, 2 * P + C * P + pools
        solver.changeColsCost(P, pools, self._price.astype(np.float64))
        solver.changeColsCost(P, up, self._start)
        solver.changeColsCost(P, down, self._stop)

        def row(low: float, high: float, columns: NDArray[np.int32], values: Any) -> None:
            solver.addRow(low, high, columns.size, columns, np.asarray(values, np.float64))

        for i in range(P):
            columns = np.append(flow[:, i], pools[i]).astype(np.int32)
            row(-_INFINITY, 0.0, columns, np.append(np.ones(C), -self._usable[i]))
        prefill = np.flatnonzero(self._role == PREFILL)
        decode = np.flatnonzero(self._role == DECODE)
        both = np.flatnonzero(self._role == AGGREGATED)
        for c in range(C):
            columns = flow[c, np.concatenate([prefill, decode])]
            signs = np.concatenate([np.ones(prefill.size), -np.ones(decode.size)])
            row(0.0, 0.0, columns, signs)
        for c in range(C):
            columns = flow[c, np.concatenate([prefill, both])]
            row(-_INFINITY, 0.0, columns, np.ones(columns.size))
        for kind, budget in enumerate(arrays.type_budget):
            inside = pools[arrays.type_index == kind]
            row(-_INFINITY, float(budget), inside, arrays.gpus[inside])
        for i in range(P):
            columns = np.array([pools[i], up[i], down[i]], np.int32)
            row(0.0, 0.0, columns, np.array([1.0, -1.0, 1.0]))
        if arrays.total_gpus < UNLIMITED:
            row(-_INFINITY, float(arrays.total_gpus), pools, arrays.gpus)
        if np.isfinite(arrays.watts):
            row(-_INFINITY, arrays.watts, pools, arrays.watts_per_replica)
        self._flow_columns = flow.ravel()
        self._bound_columns = np.arange(P + C * P, dtype=np.int32)
        first = P + C
        self._moving_rows = range(first, first + C + arrays.type_budget.size + P)
        return solver
