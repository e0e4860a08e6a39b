"""The simplex and the fluid LP laid out for it, against HiGHS as slow and plain reference."""

from __future__ import annotations

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hrl_planner import _simplex
from hrl_planner._highs import new_solver
from hrl_planner.flow import Allocation, FlowParameters, FluidModel
from hrl_planner.routing import DECODE, PREFILL, ROLES
from hrl_planner.spec import BudgetSpec, ClusterSpec
from tests.builders import GPU, cluster, pool

Floats = NDArray[np.float64]

INF = highspy.kHighsInf
MANY = settings(max_examples=1500)


def highs(cost: Floats, low: Floats, high: Floats, rows: list[tuple[float, float, Floats]]):
    """Maximise with HiGHS as exactly as it can; the status and the objective."""
    solver = new_solver(presolve="off", solver="simplex")
    solver.setOptionValue("primal_feasibility_tolerance", 1e-10)
    solver.setOptionValue("dual_feasibility_tolerance", 1e-10)
    solver.addVars(cost.size, low, high)
    columns = np.arange(cost.size, dtype=np.int32)
    solver.changeColsCost(cost.size, columns, -cost)
    for least, most, values in rows:
        solver.addRow(least, most, columns.size, columns, np.asarray(values, np.float64))
    solver.run()
    return solver.getModelStatus(), -solver.getInfo().objective_function_value


def simplex(
    matrix: Floats, limit: Floats, cost: Floats, upper: Floats, equation: NDArray[np.bool_]
):
    """Maximise with the simplex; status, values, duals."""
    rows, columns = matrix.shape
    table = np.zeros((rows + 1, columns + 1))
    table[:-1, :-1], table[:-1, -1], table[-1, :-1] = matrix, limit, cost
    bounds = np.concatenate([np.where(equation, 0.0, np.inf), upper])
    program = _simplex.new_program(table, bounds)
    status = _simplex.solve(program)
    return status, *_simplex.read(program)


def random_program(seed: int, whole: bool):
    """Draw a program; with small whole numbers most of its corners are degenerate."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(1, 12), rng.integers(1, 20)
    matrix = rng.integers(-2, 4, (rows, columns)).astype(np.float64)
    matrix *= rng.random((rows, columns)) < 0.6
    limit = rng.integers(0, 4, rows).astype(np.float64)
    cost = rng.integers(-3, 5, columns).astype(np.float64)
    upper = np.where(rng.random(columns) < 0.6, rng.integers(0, 4, columns), np.inf)
    equation = rng.random(rows) < 0.25
    if not whole:
        matrix *= rng.lognormal(0.0, 1.0, matrix.shape)
        cost *= rng.lognormal(0.0, 1.0, columns)
        upper *= rng.lognormal(0.0, 1.0, columns)
    return matrix, np.where(equation, 0.0, limit), cost, upper, equation


@given(seed=st.integers(0, 2**31), whole=st.booleans())
@MANY
def test_optimum_is_feasible_proved_by_its_duals_and_that_of_highs(seed: int, whole: bool) -> None:
    matrix, limit, cost, upper, equation = random_program(seed, whole)
    low = np.where(equation, limit, -INF)
    rows = list(zip(low, limit, matrix, strict=True))
    expected, best = highs(cost, np.zeros(cost.size), upper, rows)
    status, values, duals = simplex(matrix, limit, cost, upper, equation)
    if expected != highspy.HighsModelStatus.kOptimal:
        assert status == _simplex.UNBOUNDED
        return
    assert status == _simplex.OPTIMAL
    assert cost @ values == pytest.approx(best, rel=1e-7, abs=1e-9)
    assert np.all(values >= -1e-8)
    assert np.all(values <= upper + 1e-8)
    used = matrix @ values
    assert np.all(used <= limit + 1e-7)
    np.testing.assert_allclose(used[equation], 0.0, atol=1e-7)
    # Strong duality: prices of rows and of upper bounds that no column beats are worth as much.
    assert np.all(duals[~equation] >= -1e-8)
    excess = cost - duals @ matrix
    assert np.all(excess[np.isinf(upper)] <= 1e-7)
    bounded = np.isfinite(upper)
    worth = duals @ limit + np.maximum(excess[bounded], 0.0) @ upper[bounded]
    assert worth == pytest.approx(best, rel=1e-7, abs=1e-7)


def test_it_does_not_cycle_where_the_steepest_column_does() -> None:
    # Beale, Cycling in the dual simplex algorithm, Naval Research Logistics Quarterly 2, 1955:
    # the optimum is 1/20; six pivots by the steepest column lead back to the start.
    matrix = np.array([[0.25, -60.0, -0.04, 9.0], [0.5, -90.0, -0.02, 3.0], [0.0, 0.0, 1.0, 0.0]])
    cost = np.array([0.75, -150.0, 0.02, -6.0])
    status, values, _ = simplex(
        matrix, np.array([0.0, 0.0, 1.0]), cost, np.full(4, np.inf), np.zeros(3, np.bool_)
    )
    assert status == _simplex.OPTIMAL
    assert cost @ values == pytest.approx(0.05)


@given(seed=st.integers(0, 2**31), data=st.data())
@settings(max_examples=100)
def test_a_start_at_upper_bounds_leads_to_the_same_objective(
    seed: int, data: st.DataObject
) -> None:
    matrix, limit, cost, upper, equation = random_program(seed, whole=False)
    upper = np.minimum(upper, 10.0)
    _, values, _ = simplex(matrix, limit, cost, upper, equation)
    table = np.zeros((limit.size + 1, cost.size + 1))
    table[:-1, :-1], table[:-1, -1], table[-1, :-1] = matrix, limit, cost
    bounds = np.concatenate([np.where(equation, 0.0, np.inf), upper])
    program = _simplex.new_program(table, bounds)
    for column in data.draw(st.lists(st.integers(0, cost.size - 1), unique=True)):
        _simplex.flip_where_feasible(program, column)
    assert np.all(table[:-1, -1] >= 0.0)
    assert _simplex.solve(program) == _simplex.OPTIMAL
    assert cost @ _simplex.read(program)[0] == pytest.approx(cost @ values, rel=1e-7, abs=1e-9)


# ---- The fluid LP -------------------------------------------------------------------------------


def small_cluster(watts: float | None) -> ClusterSpec:
    return cluster(
        pool("prefill", replicas=0, max_replicas=8),
        pool("decode", replicas=0, max_replicas=8),
        budget=BudgetSpec(gpus={GPU: 6}, watts=watts),
    )


SPECS = [small_cluster(None), small_cluster(450.0)] + [
    ClusterSpec.load(name) for name in ("small", "reference", "large")
]


PARAMETERS = [
    FlowParameters(),
    FlowParameters(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    FlowParameters(stop_weight=0.05, stop_weight_decode=0.5),
    FlowParameters(stop_weight=0.5, stop_weight_decode=0.05),
]


class Instance:
    """Numbers of one problem; whole ones where `whole`, so that many optima tie."""

    def __init__(self, spec: ClusterSpec, seed: int, whole: bool) -> None:
        rng = np.random.default_rng(seed)
        C, P = len(spec.slo_classes), len(spec.pools)
        model = FluidModel(spec)
        arrays = model.arrays
        self.demand = rng.integers(0, 12, C).astype(np.float64)
        self.cap = rng.integers(0, 4, (C, P)).astype(np.float64)
        self.share = rng.integers(0, 3, (C, P)) / 2.0
        self.current = rng.integers(0, arrays.maximum + 2).astype(np.float64)
        self.budget = rng.integers(0, arrays.type_budget + 1).astype(np.float64)
        if not whole:
            self.demand *= rng.lognormal(0.0, 1.5, C)
            self.cap *= rng.lognormal(0.0, 1.5, (C, P))
            self.share *= rng.random((C, P))
        self.low = np.minimum(arrays.minimum, rng.integers(0, 2, P)).astype(np.float64)
        self.high = self.low + rng.integers(0, arrays.maximum + 1)
        self.offered = np.maximum(self.demand * rng.random(C), 0.1)
        self.spare = np.minimum(rng.integers(0, 3, P), self.current).astype(np.float64)

    def solve(self, model: FluidModel) -> Allocation | None:
        return model.solve(
            self.demand, self.cap, self.share, self.current,
            low=self.low, high=self.high, type_budget=self.budget, offered=self.offered,
            spare=self.spare,
        )  # fmt: skip


def reference_optimum(spec: ClusterSpec, p: FlowParameters, x: Instance) -> float | None:
    """Solve the problem as `flow.py` states it: columns n, up, down, down of spare, flows."""
    C, P = x.cap.shape
    role = np.array([ROLES.index(q.role) for q in spec.pools])
    arrays = FluidModel(spec, p).arrays
    headroom = np.array([p.headroom_prefill, p.headroom_decode, p.headroom_aggregated])[role]
    share = arrays.gpus / arrays.type_budget.sum()
    cost = np.zeros(4 * P + C * P)
    cost[:P] = -weighted_price(spec, p)
    stop = np.where(role == DECODE, p.stop_weight_decode, p.stop_weight)
    cost[P : 2 * P], cost[2 * P : 3 * P] = -p.start_weight * share, -stop * share
    cost[3 * P : 4 * P] = -np.minimum(stop, p.stop_weight) * share
    value = np.array([c.value for c in spec.slo_classes])
    flow = 4 * P + np.arange(C * P).reshape(C, P)
    gain = value[:, None] * np.where(role == DECODE, x.share - 1.0, x.share)
    cost[flow] = gain / max(value @ x.offered, 1e-6)
    high = np.concatenate(
        [x.high, np.full(2 * P, INF), x.spare, np.where(x.cap > 0, INF, 0.0).ravel()]
    )
    low = np.concatenate([x.low, np.zeros(3 * P + C * P)])
    rows = []

    def row(least: float, most: float, columns: Floats, values: Floats) -> None:
        line = np.zeros(cost.size)
        line[columns] = values
        rows.append((least, most, line))

    for i in range(P):
        load = 1.0 / np.where(x.cap[:, i] > 0, x.cap[:, i], 1.0)
        row(-INF, 0.0, np.append(flow[:, i], i), np.append(load, headroom[i] - 1.0))
        changes = np.array([i, P + i, 2 * P + i, 3 * P + i])
        row(x.current[i], x.current[i], changes, np.array([1, -1, 1, 1]))
    for c in range(C):
        row(0.0, 0.0, flow[c], np.where(role == PREFILL, 1, np.where(role == DECODE, -1, 0)))
        row(-INF, x.demand[c], flow[c], role != DECODE)
    for kind, limit in enumerate(x.budget):
        row(-INF, limit, np.arange(P), arrays.gpus * (arrays.type_index == kind))
    row(-INF, min(arrays.total_gpus, 1e9), np.arange(P), arrays.gpus)
    row(-INF, min(arrays.watts, 1e9), np.arange(P), arrays.watts_per_replica)
    status, best = highs(cost, low, high, rows)
    return best if status == highspy.HighsModelStatus.kOptimal else None


def weighted_price(spec: ClusterSpec, p: FlowParameters) -> Floats:
    price = np.array([q.price_per_gpu_hour for q in spec.pools])
    dearest = [
        max(q.price_per_gpu_hour for q in spec.pools if q.gpu_type == kind)
        for kind in spec.gpu_types
    ]
    whole = sum(spec.budget.gpus[k] * d for k, d in zip(spec.gpu_types, dearest, strict=True))
    return p.price_weight * price * [q.gpus_per_replica for q in spec.pools] / max(whole, 1e-9)


def objective(spec: ClusterSpec, p: FlowParameters, x: Instance, found: Allocation) -> float:
    role = np.array([ROLES.index(q.role) for q in spec.pools])
    value = np.array([c.value for c in spec.slo_classes])
    gain = np.where(role == DECODE, x.share - 1.0, x.share) * found.flows
    gpus = np.array([q.gpus_per_replica for q in spec.pools])
    change = found.replicas - x.current
    stop = np.where(role == DECODE, p.stop_weight_decode, p.stop_weight)
    stopped = np.maximum(-change, 0.0)
    of_spare = np.minimum(stopped, x.spare)
    moved = p.start_weight * np.maximum(change, 0.0) + stop * (stopped - of_spare)
    moved += np.minimum(stop, p.stop_weight) * of_spare
    worth = max(value @ x.offered, 1e-6)
    return float(
        (value @ gain).sum() / worth
        - weighted_price(spec, p) @ found.replicas
        - gpus @ moved / sum(spec.budget.gpus.values())
    )


@given(
    which=st.integers(0, len(SPECS) - 1),
    seed=st.integers(0, 2**31),
    whole=st.booleans(),
    parameters=st.sampled_from(PARAMETERS),
)
@MANY
def test_allocation_is_feasible_and_as_good_as_that_of_highs(
    which: int, seed: int, whole: bool, parameters: FlowParameters
) -> None:
    spec = SPECS[which]
    model = FluidModel(spec, parameters)
    x = Instance(spec, seed, whole)
    found = x.solve(model)
    best = reference_optimum(spec, parameters, x)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert objective(spec, parameters, x, found) == pytest.approx(best, rel=1e-7, abs=1e-8)
    check_feasible(model, x, found)
    again = x.solve(model)
    assert again is not None
    np.testing.assert_array_equal(again.flows, found.flows)


def check_feasible(model: FluidModel, x: Instance, found: Allocation) -> None:
    arrays, p = model.arrays, model.parameters
    role = np.array(model._fixed.role)
    headroom = np.array([p.headroom_prefill, p.headroom_decode, p.headroom_aggregated])[role]
    assert np.all(found.replicas >= x.low - 1e-7)
    assert np.all(found.replicas <= x.high + 1e-7)
    assert np.all(found.flows >= 0.0)
    assert np.all(found.flows[x.cap <= 0.0] == 0.0)
    load = (found.flows / np.maximum(x.cap, 1e-9)).sum(axis=0)
    assert np.all(load <= (1.0 - headroom) * found.replicas + 1e-6)
    scale = 1.0 + x.demand
    into, out = found.flows[:, role == PREFILL].sum(1), found.flows[:, role == DECODE].sum(1)
    np.testing.assert_allclose(into / scale, out / scale, atol=1e-7)
    np.testing.assert_allclose(found.served, found.flows[:, role != DECODE].sum(1), atol=1e-9)
    assert np.all(found.served <= x.demand + 1e-7 * scale)
    held = arrays.gpus * found.replicas
    assert np.all(np.bincount(arrays.type_index, held, x.budget.size) <= x.budget + 1e-6)
    assert held.sum() <= arrays.total_gpus + 1e-6
    assert arrays.watts_per_replica @ found.replicas <= arrays.watts + 1e-4


@given(seed=st.integers(0, 2**31))
@settings(max_examples=100)
def test_a_marginal_value_bounds_what_more_of_a_pool_is_worth(seed: int) -> None:
    # The optimum is concave in the capacity of a pool, so its dual lies above the gain of any step.
    spec = SPECS[3]
    x = Instance(spec, seed, whole=False)
    low = x.high = np.minimum(x.low + 1.0, x.high)
    x.low = low
    x.budget = x.budget + 48.0  # room for all of them
    free = FlowParameters(0.25, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0)
    model = FluidModel(spec, free)
    found = x.solve(model)
    assert found is not None
    best = objective(spec, free, x, found)
    for i in range(low.size):
        for step in (0.25, -0.25):
            moved = low.copy()
            moved[i] = max(moved[i] + step, 0.0)
            x.low = x.high = moved
            other = x.solve(model)
            assert other is not None
            gain = objective(spec, free, x, other) - best
            worth = found.marginal[i] * model.arrays.gpus[i] * (moved[i] - low[i])
            assert gain <= worth + 1e-7


@pytest.mark.parametrize(
    "where", ["demand", "offered", "cap", "share", "current", "low", "high", "budget", "spare"]
)
def test_what_is_not_a_number_has_no_solution(where: str) -> None:
    x = Instance(SPECS[3], 1, whole=False)
    x.budget[:] = 16.0
    model = FluidModel(SPECS[3])
    assert x.solve(model) is not None
    getattr(x, where).flat[0] = np.nan
    assert x.solve(model) is None
