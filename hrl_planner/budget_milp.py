"""The projection when GPU types are coupled by a total or by watts: a small MILP in HiGHS.

Same cost and constraints as `budget.project`. As there, only reductions from each pool's own
optimum are searched. A pool's reduction is an integer spread over steps in [0, 1] priced at their
marginal cost; these rise, so the solver fills them in order and the model is exact.
"""

from __future__ import annotations

import highspy
import numpy as np

from hrl_planner._highs import new_solver
from hrl_planner._projection import UNLIMITED, bounds_into, pool_cost, pool_optimum
from hrl_planner.budget import BudgetArrays, FloatArray, IntArray

# Off the power budget: nothing, and where rounding then made a plan pass that does not fit, the
# solver's own feasibility tolerance. With that alone a plan that takes all of it would be missed.
_WATTS_SLACKS = (0.0, 1e-6)


def solve(
    desired: FloatArray,
    current: IntArray,
    arrays: BudgetArrays,
    max_step: int,
    weights: FloatArray,
    churn: float,
    *,
    fallback: IntArray,
) -> IntArray:
    """Return the cheapest replicas; `fallback` if no plan meets every bound.

    Where the step bound cannot be kept it gives way downwards, as in the compiled projection.
    """
    wanted = np.where(np.isnan(desired), current, desired)
    low, high = np.empty_like(current), np.empty_like(current)
    bounds_into(current, arrays, max_step, low, high)
    for floor in (low, np.minimum(np.minimum(arrays.minimum, current), high)):
        for slack in _WATTS_SLACKS:
            answer = _reductions(wanted, current, arrays, weights, churn, floor, high, slack)
            if answer is not None and arrays.fits(answer):
                return answer
    return fallback


def _reductions(
    desired: FloatArray,
    current: IntArray,
    arrays: BudgetArrays,
    weights: FloatArray,
    churn: float,
    low: IntArray,
    high: IntArray,
    watts_slack: float,
) -> IntArray | None:
    """Solve the MILP from the pools' own optima; None if it has no solution."""
    n_pools = current.size
    costs = list(zip(desired, current, arrays.gpus, weights, strict=True))
    start = np.array(
        [pool_optimum(d, c, g, w, churn, low[i], high[i]) for i, (d, c, g, w) in enumerate(costs)],
        np.int64,
    )
    model = new_solver(mip_rel_gap=0.0, mip_abs_gap=0.0)
    steps = [
        [
            pool_cost(start[i] - k, d, c, g, w, churn)
            - pool_cost(start[i] - k + 1, d, c, g, w, churn)
            for k in range(1, start[i] - low[i] + 1)
        ]
        for i, (d, c, g, w) in enumerate(costs)
    ]
    for i in range(n_pools):
        model.addVar(0, float(len(steps[i])))
        model.changeColIntegrality(i, highspy.HighsVarType.kInteger)
    column = n_pools
    for i, marginal in enumerate(steps):
        columns = np.arange(column, column + len(marginal), dtype=np.int32)
        for price in marginal:
            model.addCol(price, 0.0, 1.0, 0, [], [])
        row = np.append(columns, i).astype(np.int32)
        model.addRow(0.0, 0.0, row.size, row, np.append(np.ones(columns.size), -1.0))
        column += columns.size
    pools = np.arange(n_pools, dtype=np.int32)
    held = arrays.gpus * start
    for kind, limit in enumerate(arrays.type_budget):
        inside = pools[arrays.type_index == kind]
        need = float(held[inside].sum() - limit)
        if need > 0:
            width = arrays.gpus[inside].astype(np.float64)
            model.addRow(need, highspy.kHighsInf, inside.size, inside, width)
    if arrays.total_gpus < UNLIMITED:
        need = float(held.sum() - arrays.total_gpus)
        model.addRow(need, highspy.kHighsInf, n_pools, pools, arrays.gpus.astype(np.float64))
    if np.isfinite(arrays.watts):
        need = float(arrays.watts_per_replica @ start - arrays.watts + watts_slack)
        model.addRow(need, highspy.kHighsInf, n_pools, pools, arrays.watts_per_replica)
    model.run()
    if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    reduction = np.rint(np.array(model.getSolution().col_value[:n_pools])).astype(np.int64)
    answer: IntArray = start - reduction
    return answer
