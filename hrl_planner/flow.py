"""The fluid LP: which class flows to which pool, and how many replicas that needs.

Requests are a fluid. With cap[c, i] the rate one replica of pool i sustains for class c
(`capacity.py`), choose replicas n_i and flows x[c, i] >= 0 that maximise

    sum  v_c * share[c, i] * x[c, i] / V                      value of requests served in time
    - w_price * sum  price_i * g_i * n_i / (price of the whole budget)
    - sum  g_i * (w_start * (n_i - current_i)+ + w_stop * (current_i - n_i)+) / (all GPUs)

(V = sum of v_c * demand_c, so that the value of serving all is 1; w_stop is another for decode
pools) subject to

    sum_c x[c, i] / cap[c, i]  <=  (1 - headroom_role) * n_i          each pool
    entering flow of class c   <=  demand_c                           prefill and aggregated pools
    flow into prefill pools    =   flow into decode pools             each class
    GPUs per type, GPUs in total, watts;  low_i <= n_i <= high_i.

The terms for changes double as tie-break: of equally good plans the one nearest to what runs wins.
They are convex and bend at current_i, so n_i is low_i plus bounded columns, up to there and
beyond; what is known to be spare may be cheaper to stop, and has a column of its own. No flow and
n = low is feasible if anything is: `_simplex.py` starts from there, in microseconds. The duals of
the pool rows are the marginal value of a GPU in each pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner import _simplex
from hrl_planner._compiled import compiled
from hrl_planner.budget import UNLIMITED, BudgetArrays
from hrl_planner.routing import DECODE, PREFILL, ROLES

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.int64]

# Serving a request must always be worth its wear on the numbers.
_LEAST_DEMAND = 1e-6
_LEAST_CAPACITY = 1e-9  # requests/s; a pool below that serves no request of the class
_KEPT, _SPARE, _ADDED = -3, -2, -1  # columns of replicas: needed so far, spare, and new ones
_SLACK = 1e-7  # GPUs; a lower bound may exceed a budget by that, as it comes from arithmetic


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
        stop_weight: cost of stopping all prefill and aggregated replicas.
        stop_weight_decode: the same for decode replicas, unless they are spare.
    """

    headroom_prefill: float = 0.1
    headroom_decode: float = 0.15
    headroom_aggregated: float = 0.15
    price_weight: float = 0.1
    start_weight: float = 0.3
    stop_weight: float = 0.02
    stop_weight_decode: float = 0.02


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


class _Fixed(NamedTuple):
    """What all problems of a cluster share.

    Attributes:
        role: PREFILL, DECODE or AGGREGATED, shape (P,).
        value: of a request in time, shape (C,).
        price: weighted cost of holding a replica, shape (P,).
        start: weighted cost of starting one, shape (P,).
        type_index: GPU type of each pool, shape (P,).
        gpus: GPUs per replica, shape (P,).
        sums: what a replica takes of the limits on all pools together, shape (S, P).
        sum_limits: those limits, shape (S,): GPUs in total and watts, where they are bounded.
    """

    role: IntArray
    value: FloatArray
    price: FloatArray
    start: FloatArray
    type_index: IntArray
    gpus: FloatArray
    sums: FloatArray
    sum_limits: FloatArray


class FluidModel:
    """The LP of one cluster, solved again and again with other numbers.

    Attributes:
        usable: share of each pool's capacity that the headroom leaves to plan with, shape (P,).
        stop: weighted cost of stopping a replica of each pool, shape (P,).
        stop_spare: the same of one that was spare for long, shape (P,).
    """

    def __init__(self, spec: ClusterSpec, parameters: FlowParameters | None = None) -> None:
        """See the class."""
        self.parameters = p = parameters or FlowParameters()
        self.arrays = arrays = BudgetArrays.from_spec(spec)
        role = np.array([ROLES.index(pool.role) for pool in spec.pools])
        headroom = np.array([p.headroom_prefill, p.headroom_decode, p.headroom_aggregated])
        per_gpu_hour = np.array([pool.price_per_gpu_hour for pool in spec.pools])
        dearest = np.zeros(arrays.type_budget.size)
        np.maximum.at(dearest, arrays.type_index, per_gpu_hour)
        whole = max(float(dearest @ arrays.type_budget), 1e-9)
        share = arrays.gpus / max(arrays.type_budget.sum(), 1)
        gpus = arrays.gpus.astype(np.float64)
        limits = np.array([arrays.total_gpus, arrays.watts], np.float64)
        bounded = limits < [UNLIMITED, np.inf]
        self._fixed = _Fixed(
            role=role,
            value=np.array([c.value for c in spec.slo_classes], np.float64),
            price=p.price_weight * per_gpu_hour * arrays.gpus / whole,
            start=p.start_weight * share,
            type_index=arrays.type_index,
            gpus=gpus,
            sums=np.stack([gpus, arrays.watts_per_replica])[bounded],
            sum_limits=limits[bounded],
        )
        self.usable: FloatArray = 1.0 - headroom[role]
        stop_weight = np.where(role == DECODE, p.stop_weight_decode, p.stop_weight)
        self.stop: FloatArray = stop_weight * share
        self.stop_spare: FloatArray = np.minimum(p.stop_weight, stop_weight) * share
        self._minimum = arrays.minimum.astype(np.float64)
        self._maximum = arrays.maximum.astype(np.float64)
        self._type_budget = arrays.type_budget.astype(np.float64)
        self._nothing = np.zeros(arrays.gpus.size)

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
        usable: FloatArray | None = None,
        stop: FloatArray | None = None,
        spare: FloatArray | None = None,
        stop_spare: FloatArray | None = None,
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
            usable: share of each pool's capacity to plan with, shape (P,); None for what the
                headroom leaves.
            stop: cost of stopping a replica of each pool, shape (P,); None for the weight's.
            spare: how many of the current replicas are spare, shape (P,); None for none.
            stop_spare: cost of stopping one of these, at most `stop`; None for the weight's.
        """
        found, replicas, flows, served, marginal = _allocate(
            self._fixed,
            _contiguous(demand),
            _contiguous(demand if offered is None else offered),
            _contiguous(cap),
            _contiguous(share),
            _contiguous(current),
            self._minimum if low is None else _contiguous(low),
            self._maximum if high is None else _contiguous(high),
            self._type_budget if type_budget is None else _contiguous(type_budget),
            self.usable if usable is None else _contiguous(usable),
            self.stop if stop is None else _contiguous(stop),
            self._nothing if spare is None else _contiguous(spare),
            self.stop_spare if stop_spare is None else _contiguous(stop_spare),
        )
        return Allocation(replicas, flows, served, marginal) if found else None


def _contiguous(values: FloatArray) -> FloatArray:
    return np.ascontiguousarray(values, np.float64)


@compiled
def _allocate(
    fixed: _Fixed,
    demand: FloatArray,
    offered: FloatArray,
    cap: FloatArray,
    share: FloatArray,
    current: FloatArray,
    low: FloatArray,
    high: FloatArray,
    type_budget: FloatArray,
    usable: FloatArray,
    stop: FloatArray,
    spare: FloatArray,
    stop_spare: FloatArray,
) -> tuple[bool, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return whether there is a solution; replicas, flows, flows served, marginal values."""
    C, P = cap.shape
    replicas, flows, served, marginal = low.copy(), np.zeros((C, P)), np.zeros(C), np.zeros(P)
    pool_of, class_of, width = _columns(demand, cap, current, low, high, spare)
    first = P + 2 * C  # rows: pools, balance of each class, demand of each class, limits
    last = first + type_budget.size + fixed.sum_limits.size
    table = np.zeros((last + 1, pool_of.size + 1))
    for i in range(P):
        table[i, -1] = usable[i] * low[i]
    feasible = _limits(fixed, low, type_budget, table[first:last, -1])
    if not (
        feasible
        and _are_numbers(demand, offered, cap, share, current, high - low, usable, stop)
        and np.all(spare >= 0.0)
        and np.all(stop_spare >= 0.0)
    ):
        return False, replicas, flows, served, marginal
    _fill(fixed, demand, offered, cap, share, usable, stop, stop_spare, pool_of, class_of, table)
    upper = np.full(last + pool_of.size, np.inf)
    upper[P : P + C] = 0.0
    upper[last:] = width
    program = _simplex.new_program(table, upper)
    for column in range(pool_of.size):
        if class_of[column] in (_KEPT, _SPARE):  # the optimum is seldom far from what runs
            _simplex.flip_where_feasible(program, column)
    if _simplex.solve(program) != _simplex.OPTIMAL:
        return False, replicas, flows, served, marginal
    values, duals = _simplex.read(program)
    for column in range(pool_of.size):
        i, c, much = pool_of[column], class_of[column], max(values[column], 0.0)
        if c < 0:
            replicas[i] += much
        else:
            flows[c, i] = much * cap[c, i]
            if fixed.role[i] != DECODE:
                served[c] += flows[c, i]
    for i in range(P):
        marginal[i] = max(duals[i], 0.0) * usable[i] / fixed.gpus[i]
    return True, replicas, flows, served, marginal


@compiled
def _are_numbers(
    demand: FloatArray,
    offered: FloatArray,
    cap: FloatArray,
    share: FloatArray,
    current: FloatArray,
    room: FloatArray,
    usable: FloatArray,
    stop: FloatArray,
) -> bool:
    """Say whether every number is one, none negative; what is not a number fails all of these."""
    return bool(
        np.all(demand >= 0.0)
        and np.all(offered >= 0.0)
        and np.all(cap >= 0.0)
        and np.all(share >= 0.0)
        and np.all(current >= 0.0)
        and np.all(room >= 0.0)
        and np.all(usable >= 0.0)
        and np.all(stop >= 0.0)
    )


@compiled
def _columns(
    demand: FloatArray,
    cap: FloatArray,
    current: FloatArray,
    low: FloatArray,
    high: FloatArray,
    spare: FloatArray,
) -> tuple[IntArray, IntArray, FloatArray]:
    """Return each column's pool, its class (or _KEPT, _SPARE, _ADDED), and its upper bound.

    What can only be 0 gets no column. Flows are measured in the replicas they fill.
    """
    C, P = cap.shape
    pool_of = np.empty((C + 3) * P, np.int64)
    class_of = np.empty((C + 3) * P, np.int64)
    width = np.full((C + 3) * P, np.inf)
    k = 0
    for i in range(P):
        bend = min(max(current[i], low[i]), high[i])
        kept = max(min(bend, current[i] - spare[i]), low[i])
        if kept > low[i]:
            pool_of[k], class_of[k], width[k] = i, _KEPT, kept - low[i]
            k += 1
        if bend > kept:
            pool_of[k], class_of[k], width[k] = i, _SPARE, bend - kept
            k += 1
        if high[i] > bend:
            pool_of[k], class_of[k], width[k] = i, _ADDED, high[i] - bend
            k += 1
    for c in range(C):
        for i in range(P):
            if demand[c] > 0.0 and cap[c, i] > _LEAST_CAPACITY:
                pool_of[k], class_of[k] = i, c
                k += 1
    return pool_of[:k], class_of[:k], width[:k]


@compiled
def _limits(fixed: _Fixed, low: FloatArray, type_budget: FloatArray, left: FloatArray) -> bool:
    """Write what the least replicas leave of each limit; False if that is less than nothing."""
    kinds = type_budget.size
    left[:kinds] = type_budget
    left[kinds:] = fixed.sum_limits
    for i in range(low.size):
        left[fixed.type_index[i]] -= fixed.gpus[i] * low[i]
        for k in range(fixed.sum_limits.size):
            left[kinds + k] -= fixed.sums[k, i] * low[i]
    feasible = True
    for k in range(left.size):
        feasible = feasible and left[k] >= -_SLACK
        left[k] = max(left[k], 0.0)
    return feasible


@compiled
def _fill(
    fixed: _Fixed,
    demand: FloatArray,
    offered: FloatArray,
    cap: FloatArray,
    share: FloatArray,
    usable: FloatArray,
    stop: FloatArray,
    stop_spare: FloatArray,
    pool_of: IntArray,
    class_of: IntArray,
    table: FloatArray,
) -> None:
    """Write the columns' coefficients and the demands."""
    C, P = cap.shape
    first = P + 2 * C
    sums = table.shape[0] - 1 - fixed.sum_limits.size
    worth = 0.0
    fastest = np.zeros(C)  # a class's rows count in replicas of its fastest pool
    for c in range(C):
        worth += fixed.value[c] * offered[c]
        for i in range(P):
            fastest[c] = max(fastest[c], cap[c, i])
        if fastest[c] > 0.0:
            table[P + C + c, -1] = demand[c] / fastest[c]
    worth = max(worth, _LEAST_DEMAND)
    for k in range(pool_of.size):
        i, c = pool_of[k], class_of[k]
        if c < 0:
            table[i, k] = -usable[i]
            table[first + fixed.type_index[i], k] = fixed.gpus[i]
            for s in range(fixed.sum_limits.size):
                table[sums + s, k] = fixed.sums[s, i]
            change = -fixed.start[i]
            if c != _ADDED:
                change = stop[i] if c == _KEPT else stop_spare[i]
            table[-1, k] = change - fixed.price[i]
            continue
        rate = cap[c, i] / fastest[c]
        gain = fixed.value[c] * cap[c, i] / worth
        table[i, k] = 1.0
        if fixed.role[i] == DECODE:
            table[P + c, k] = -rate
            table[-1, k] = gain * (share[c, i] - 1.0)
        else:
            table[P + c, k] = rate if fixed.role[i] == PREFILL else 0.0
            table[P + C + c, k] = rate
            table[-1, k] = gain * share[c, i]
