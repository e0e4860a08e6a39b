"""The compiled core of `budget.project`: exact integer projection per GPU type.

No optimal n_i exceeds the optimum n*_i of its own cost within its own bounds, because going back to
n*_i costs less and frees GPUs. So only reductions from n* are searched. Pools of equal width (GPUs
per replica) share one convex reduction cost, cheapest steps first; the few widths of a GPU type are
combined by a knapsack over freed GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import compiled

if TYPE_CHECKING:
    from hrl_planner.budget import BudgetArrays

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

EXACT, COUPLED, INFEASIBLE = 0, 1, 2  # statuses of project_into
UNLIMITED = 2**40


@compiled
def pool_cost(
    n: int, desired: float, current: int, gpus: int, weight: float, churn: float
) -> float:
    """Return the cost of one pool at n replicas."""
    distance = gpus * (n - desired)
    return weight * distance * distance + churn * gpus * abs(n - current)


@compiled
def pool_optimum(
    desired: float, current: int, gpus: int, weight: float, churn: float, low: int, high: int
) -> int:
    """Return the cheapest replicas of one pool alone in [low, high]; fewer on ties."""
    if weight <= 0.0:
        return min(max(current, low), high)
    shift = churn / (2.0 * weight * gpus)
    if desired > current + shift:
        best = desired - shift
    elif desired < current - shift:
        best = desired + shift
    else:
        best = float(current)
    best = min(max(best, float(low)), float(high))
    n = int(np.floor(best))
    if n < high and pool_cost(n + 1, desired, current, gpus, weight, churn) < pool_cost(
        n, desired, current, gpus, weight, churn
    ):
        n += 1
    return n


@compiled
def bounds_into(
    current: IntArray, arrays: BudgetArrays, max_step: int, low: IntArray, high: IntArray
) -> None:
    """Write each pool's bounds: min and max, the step bound, no growth where over budget."""
    n_pools = current.size
    used = np.zeros(arrays.type_budget.size, np.int64)
    total = 0
    watts = 0.0
    for i in range(n_pools):
        used[arrays.type_index[i]] += arrays.gpus[i] * current[i]
        total += arrays.gpus[i] * current[i]
        watts += arrays.watts_per_replica[i] * current[i]
    all_over = total > arrays.total_gpus or watts > arrays.watts
    for i in range(n_pools):
        below = current[i] - max_step
        above = current[i] + max_step
        low[i] = min(max(arrays.minimum[i], below), above)
        high[i] = min(max(arrays.maximum[i], below), above)
        kind = arrays.type_index[i]
        if all_over or used[kind] > arrays.type_budget[kind]:
            high[i] = min(high[i], current[i])
            low[i] = min(low[i], high[i])


@compiled
def project_into(
    desired: FloatArray,
    current: IntArray,
    arrays: BudgetArrays,
    max_step: int,
    weights: FloatArray,
    churn: float,
    result: IntArray,
) -> int:
    """Compiled `project`: write the replicas into `result` and return a status.

    Returns:
        EXACT; COUPLED when the total or the watts bind (the result is feasible, not always the
        cheapest); INFEASIBLE when even the minimum exceeds a budget (the result only shrinks).
    """
    n_pools = current.size
    low = np.empty(n_pools, np.int64)
    high = np.empty(n_pools, np.int64)
    wanted = np.empty(n_pools)
    for i in range(n_pools):
        wanted[i] = current[i] if np.isnan(desired[i]) else desired[i]
    bounds_into(current, arrays, max_step, low, high)
    status = EXACT
    for kind in range(arrays.type_budget.size):
        if not _fit_type(kind, wanted, current, arrays, weights, churn, low, high, result):
            for i in range(n_pools):
                if arrays.type_index[i] == kind:
                    low[i] = min(arrays.minimum[i], current[i], high[i])
            if not _fit_type(kind, wanted, current, arrays, weights, churn, low, high, result):
                status = INFEASIBLE
    total = 0
    watts = 0.0
    for i in range(n_pools):
        total += arrays.gpus[i] * result[i]
        watts += arrays.watts_per_replica[i] * result[i]
    if total <= arrays.total_gpus and watts <= arrays.watts:
        return status
    _shrink_coupled(wanted, current, arrays, weights, churn, total, watts, result)
    return COUPLED if status == EXACT else status


@compiled
def _fit_type(
    kind: int,
    desired: FloatArray,
    current: IntArray,
    arrays: BudgetArrays,
    weights: FloatArray,
    churn: float,
    low: IntArray,
    high: IntArray,
    result: IntArray,
) -> bool:
    """Write the cheapest replicas of one GPU type's pools; False if they cannot fit."""
    spare = arrays.type_budget[kind]
    for i in range(current.size):
        if arrays.type_index[i] == kind:
            spare -= arrays.gpus[i] * low[i]
    excess = -max(spare, 0)
    for i in range(current.size):
        if arrays.type_index[i] == kind:
            top = min(high[i], low[i] + max(spare, 0) // arrays.gpus[i])
            result[i] = pool_optimum(
                desired[i], current[i], arrays.gpus[i], weights[i], churn, low[i], top
            )
            excess += arrays.gpus[i] * (result[i] - low[i])
    if spare >= 0 and excess > 0:
        _reduce(kind, excess, desired, current, arrays, weights, churn, low, result)
    return bool(spare >= 0)


@compiled
def _reduce(
    kind: int,
    excess: int,
    desired: FloatArray,
    current: IntArray,
    arrays: BudgetArrays,
    weights: FloatArray,
    churn: float,
    low: IntArray,
    result: IntArray,
) -> None:
    """Free at least `excess` GPUs of one type at least cost, by a knapsack over widths."""
    widths = _widths_of(kind, arrays)
    # order[w, k]: the pool that gives up the k-th replica of width w; price[w, k]: cost of k
    # replicas.
    order = np.empty((widths.size, excess + 1), np.int64)
    price = np.empty((widths.size, excess + 1))
    count = np.empty(widths.size, np.int64)
    left = result.copy()
    for w in range(widths.size):
        count[w] = _cheapest_steps(
            kind, widths[w], excess, desired, current, arrays, weights, churn, low, left,
            order[w], price[w],
        )  # fmt: skip
    replicas = _knapsack(excess, widths, count, price)
    for w in range(widths.size):
        for k in range(1, replicas[w] + 1):
            result[order[w, k]] -= 1


@compiled
def _widths_of(kind: int, arrays: BudgetArrays) -> IntArray:
    """Return the distinct GPUs per replica of a type's pools, widest first."""
    widths = np.empty(arrays.gpus.size, np.int64)
    n_widths = 0
    bound = UNLIMITED
    while True:
        widest = 0
        for i in range(arrays.gpus.size):
            if arrays.type_index[i] == kind and widest < arrays.gpus[i] < bound:
                widest = arrays.gpus[i]
        if widest == 0:
            return widths[:n_widths]
        widths[n_widths] = widest
        n_widths += 1
        bound = widest


@compiled
def _knapsack(excess: int, widths: IntArray, count: IntArray, price: FloatArray) -> IntArray:
    """Return how many replicas of each width to give up so that `excess` GPUs come free.

    Wide pools come first: they leave few reachable states for the narrow ones.
    """
    n_widths = widths.size
    best = np.full(excess + 1, np.inf)  # least cost to free f GPUs; f = excess: or more
    best[0] = 0.0
    taken = np.zeros((n_widths, excess + 1), np.int64)
    came_from = np.empty((n_widths, excess + 1), np.int64)
    for w in range(n_widths):
        came_from[w] = np.arange(excess + 1)
        merged = best.copy()
        for freed in range(excess):
            if best[freed] == np.inf:
                continue
            for k in range(1, count[w] + 1):
                f = min(excess, freed + k * widths[w])
                cost = best[freed] + price[w, k]
                if cost < merged[f]:
                    merged[f] = cost
                    taken[w, f] = k
                    came_from[w, f] = freed
                if f == excess:
                    break
        best = merged
    replicas = np.empty(n_widths, np.int64)
    f = excess
    for w in range(n_widths - 1, -1, -1):
        replicas[w] = taken[w, f]
        f = came_from[w, f]
    return replicas


@compiled
def _cheapest_steps(
    kind: int,
    width: int,
    excess: int,
    desired: FloatArray,
    current: IntArray,
    arrays: BudgetArrays,
    weights: FloatArray,
    churn: float,
    low: IntArray,
    left: IntArray,
    order: IntArray,
    price: FloatArray,
) -> int:
    """Order the reductions of equally wide pools by cost; return how many there are."""
    n_pools = current.size
    marginal = np.full(n_pools, np.inf)
    for i in range(n_pools):
        if arrays.type_index[i] == kind and arrays.gpus[i] == width and left[i] > low[i]:
            marginal[i] = _step_cost(i, left[i], desired, current, arrays, weights, churn)
    price[0] = 0.0
    k = 0
    while k * width < excess:
        cheapest = 0
        for i in range(1, n_pools):
            if marginal[i] < marginal[cheapest]:
                cheapest = i
        if marginal[cheapest] == np.inf:
            break
        k += 1
        order[k] = cheapest
        price[k] = price[k - 1] + marginal[cheapest]
        left[cheapest] -= 1
        if left[cheapest] > low[cheapest]:
            marginal[cheapest] = _step_cost(
                cheapest, left[cheapest], desired, current, arrays, weights, churn
            )
        else:
            marginal[cheapest] = np.inf
    return k


@compiled
def _step_cost(
    i: int,
    n: int,
    desired: FloatArray,
    current: IntArray,
    arrays: BudgetArrays,
    weights: FloatArray,
    churn: float,
) -> float:
    """Return the cost of going from n to n - 1 replicas."""
    gpus = arrays.gpus[i]
    after = pool_cost(n - 1, desired[i], current[i], gpus, weights[i], churn)
    return after - pool_cost(n, desired[i], current[i], gpus, weights[i], churn)


@compiled
def _shrink_coupled(
    desired: FloatArray,
    current: IntArray,
    arrays: BudgetArrays,
    weights: FloatArray,
    churn: float,
    total: int,
    watts: float,
    result: IntArray,
) -> None:
    """Give up the cheapest replica per GPU until the total and the watts fit."""
    while total > arrays.total_gpus or watts > arrays.watts:
        chosen = -1
        lowest = np.inf
        for i in range(current.size):
            if result[i] > min(arrays.minimum[i], current[i]):
                cost = _step_cost(i, result[i], desired, current, arrays, weights, churn)
                if cost / arrays.gpus[i] < lowest:
                    lowest = cost / arrays.gpus[i]
                    chosen = i
        if chosen < 0:
            return
        result[chosen] -= 1
        total -= arrays.gpus[chosen]
        watts -= arrays.watts_per_replica[chosen]
