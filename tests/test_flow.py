"""The fluid LP on problems small enough to solve by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hrl_planner.flow import FlowParameters, FluidModel
from hrl_planner.spec import BudgetSpec, ClusterSpec
from tests.builders import GPU, cluster, pool

EXACT = FlowParameters(
    0.0, 0.0, 0.0, price_weight=0.1, start_weight=0.0, stop_weight=0.0, stop_weight_decode=0.0
)


def model(
    *, gpus: int = 8, parameters: FlowParameters = EXACT, watts: float | None = None
) -> FluidModel:
    spec = cluster(
        pool("prefill", replicas=0, max_replicas=8),
        pool("decode", replicas=0, max_replicas=8),
        budget=BudgetSpec(gpus={GPU: gpus}, watts=watts),
    )
    return FluidModel(spec, parameters)


CAP = np.array([[2.0, 1.0]])  # requests/s of a prefill and of a decode replica
SHARE = np.ones((1, 2))
NOTHING = np.zeros(2)


def test_prefill_and_decode_are_sized_for_the_same_flow() -> None:
    found = model().solve(np.array([2.0]), CAP, SHARE, NOTHING)
    assert found is not None
    np.testing.assert_allclose(found.replicas, [1.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(found.flows, [[2.0, 2.0]], atol=1e-6)


def test_headroom_asks_for_more_of_the_role() -> None:
    parameters = FlowParameters(
        0.5, 0.2, 0.0, price_weight=0.1, start_weight=0.0, stop_weight=0.0, stop_weight_decode=0.0
    )
    found = model(parameters=parameters).solve(np.array([2.0]), CAP, SHARE, NOTHING)
    assert found is not None
    np.testing.assert_allclose(found.replicas, [2.0, 2.5], atol=1e-6)


def test_scarce_gpus_go_where_both_roles_match() -> None:
    # n_p * 2 = n_d * 1 with n_p + n_d = 3: one prefill, two decode, 2 requests/s.
    found = model(gpus=3).solve(np.array([10.0]), CAP, SHARE, NOTHING)
    assert found is not None
    np.testing.assert_allclose(found.replicas, [1.0, 2.0], atol=1e-6)
    assert found.served == pytest.approx([2.0])


def test_a_scarce_gpu_has_a_marginal_value_and_a_spare_one_has_next_to_none() -> None:
    scarce = model(gpus=3).solve(np.array([10.0]), CAP, SHARE, NOTHING)
    spare = model(gpus=8).solve(np.array([1.0]), CAP, SHARE, NOTHING)
    assert scarce is not None
    assert spare is not None
    assert scarce.marginal.min() > 1.5 * spare.marginal.max()


def test_watts_bind_like_gpus() -> None:
    # The test profile draws 100 W: 300 W are three replicas.
    found = model(watts=300.0).solve(np.array([10.0]), CAP, SHARE, NOTHING)
    assert found is not None
    assert found.replicas.sum() == pytest.approx(3.0)


def test_a_class_no_pool_can_serve_gets_nothing() -> None:
    found = model().solve(np.array([2.0]), np.array([[2.0, 0.0]]), SHARE, NOTHING)
    assert found is not None
    assert found.served == pytest.approx([0.0])
    np.testing.assert_allclose(found.replicas, 0.0, atol=1e-6)


def test_no_traffic_needs_no_replicas() -> None:
    found = model().solve(np.zeros(1), CAP, SHARE, np.array([3.0, 3.0]))
    assert found is not None
    np.testing.assert_allclose(found.replicas, 0.0, atol=1e-6)


def test_small_changes_are_not_worth_their_cost() -> None:
    # Releasing one of 8 GPUs saves 0.1 / 8 of the value and costs 1 / 8 of the stop weight.
    steady = FlowParameters(
        0.0, 0.0, 0.0, price_weight=0.1, start_weight=0.0, stop_weight=0.2, stop_weight_decode=0.2
    )
    found = model(parameters=steady).solve(np.array([2.0]), CAP, SHARE, np.array([2.0, 3.0]))
    assert found is not None
    np.testing.assert_allclose(found.replicas, [2.0, 3.0], atol=1e-6)


def test_impossible_bounds_have_no_solution_and_do_no_lasting_harm() -> None:
    solver = model(gpus=3)
    high = np.array([4.0, 4.0])
    assert solver.solve(np.array([2.0]), CAP, SHARE, NOTHING, low=high, high=high) is None
    again = solver.solve(np.array([2.0]), CAP, SHARE, NOTHING)
    assert again is not None
    np.testing.assert_allclose(again.replicas, [1.0, 2.0], atol=1e-6)


def test_value_decides_who_is_served() -> None:
    spec = ClusterSpec.load("small")
    free = FlowParameters(
        0.0, 0.0, 0.0, price_weight=0.0, start_weight=0.0, stop_weight=0.0, stop_weight_decode=0.0
    )
    solver = FluidModel(spec, free)
    n = len(spec.pools)
    cap = np.ones((2, n))
    found = solver.solve(np.array([100.0, 100.0]), cap, np.ones((2, n)), np.zeros(n))
    assert found is not None
    assert found.served[0] > 7.0
    assert found.served[1] == pytest.approx(0.0, abs=1e-6)
