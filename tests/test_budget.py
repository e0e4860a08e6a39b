"""The projection onto the budget against brute force, and what it promises in awkward starts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrl_planner.budget import COUPLED, UNLIMITED, BudgetArrays, project, project_into


def arrays_of(
    *,
    minimum: Any,
    maximum: Any,
    gpus: Any,
    type_index: Any,
    type_budget: Any,
    total_gpus: int = UNLIMITED,
    watts_per_replica: Any = None,
    watts: float = np.inf,
) -> BudgetArrays:
    """Build arrays from plain sequences."""
    n_pools = len(gpus)
    power = np.zeros(n_pools) if watts_per_replica is None else watts_per_replica
    return BudgetArrays(
        np.asarray(minimum, np.int64),
        np.asarray(maximum, np.int64),
        np.asarray(gpus, np.int64),
        np.asarray(type_index, np.int64),
        np.asarray(type_budget, np.int64),
        total_gpus,
        np.asarray(power, np.float64),
        watts,
    )


@dataclass(frozen=True)
class Case:
    """One projection problem."""

    desired: np.ndarray
    current: np.ndarray
    arrays: BudgetArrays
    max_step: int | None
    weights: np.ndarray
    churn: float

    def project(self) -> np.ndarray:
        return project(
            self.desired,
            self.current,
            self.arrays,
            max_step=self.max_step,
            weights=self.weights,
            churn=self.churn,
        )

    def cost(self, replicas: np.ndarray) -> float:
        gpus = self.arrays.gpus
        distance = gpus * (replicas - self.desired)
        moves = gpus * np.abs(replicas - self.current)
        return float((self.weights * distance**2).sum() + self.churn * moves.sum())


@st.composite
def cases(draw: st.DrawFn, coupled: bool = False) -> Case:
    """Small problems: up to 4 pools, 2 GPU types, starts inside and outside the budget."""
    n_pools = draw(st.integers(1, 4))

    def each(element: st.SearchStrategy) -> list:
        return draw(st.lists(element, min_size=n_pools, max_size=n_pools))

    minimum = np.array(each(st.integers(0, 2)))
    maximum = minimum + np.array(each(st.integers(0, 5)))
    arrays = arrays_of(
        minimum=minimum,
        maximum=maximum,
        gpus=each(st.sampled_from([1, 2, 3, 4, 8])),
        type_index=each(st.integers(0, 1)),
        type_budget=[draw(st.integers(0, 20)), draw(st.integers(0, 20))],
        total_gpus=draw(st.integers(0, 25)) if coupled else UNLIMITED,
        watts_per_replica=each(st.sampled_from([100.0, 250.0, 700.0])),
        watts=draw(st.sampled_from([700.0, 2000.0, np.inf])) if coupled else np.inf,
    )
    return Case(
        desired=np.array(each(st.floats(-2, 12, allow_nan=False))),
        current=np.array(each(st.integers(0, 8))),
        arrays=arrays,
        max_step=draw(st.sampled_from([None, 1, 2])),
        weights=np.array(each(st.sampled_from([0.5, 1.0, 3.0]))),
        churn=draw(st.sampled_from([0.0, 0.3, 2.0])),
    )


def brute_force(case: Case) -> np.ndarray | None:
    """Try every plan within the bounds and budget; None if there is none."""
    arrays = case.arrays
    step = UNLIMITED if case.max_step is None else case.max_step
    below, above = case.current - step, case.current + step
    low = np.clip(arrays.minimum, below, above)
    high = np.clip(arrays.maximum, below, above)
    best, least = None, np.inf
    for plan in itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True))):
        replicas = np.array(plan)
        if arrays.fits(replicas) and case.cost(replicas) < least:
            best, least = replicas, case.cost(replicas)
    return best


@settings(max_examples=300)
@given(cases())
def test_cheapest_plan_within_budgets_per_type(case: Case) -> None:
    if not case.arrays.fits(case.current):
        return
    best = brute_force(case)
    if best is None:
        return
    found = case.project()
    assert case.arrays.fits(found)
    assert case.cost(found) == pytest.approx(case.cost(best), rel=1e-9, abs=1e-9)


@settings(max_examples=100)
@given(cases(coupled=True))
def test_cheapest_plan_with_total_and_watts(case: Case) -> None:
    if not case.arrays.fits(case.current):
        return
    best = brute_force(case)
    if best is None:
        return
    found = case.project()
    assert case.arrays.fits(found)
    assert case.cost(found) == pytest.approx(case.cost(best), rel=1e-6, abs=1e-6)


def test_a_plan_may_take_the_last_watt() -> None:
    arrays = arrays_of(
        minimum=[0, 0], maximum=[2, 3], gpus=[1, 1], type_index=[0, 0], type_budget=[5, 0],
        total_gpus=4, watts_per_replica=[250.0, 100.0], watts=700.0,
    )  # fmt: skip
    found = project(np.array([3.0, 3.0]), np.array([0, 0]), arrays, weights=np.array([0.5, 0.5]))
    assert found.tolist() == [2, 2]


@settings(max_examples=300)
@given(cases(coupled=True))
def test_never_above_the_budget_unless_the_minimum_is(case: Case) -> None:
    if case.arrays.fits(np.minimum(case.arrays.minimum, case.current)):
        assert case.arrays.fits(case.project())


@settings(max_examples=300)
@given(cases(coupled=True))
def test_a_cluster_over_budget_only_shrinks(case: Case) -> None:
    held = case.arrays.gpus * case.current
    found = case.project()
    for kind in range(2):
        inside = case.arrays.type_index == kind
        if held[inside].sum() > case.arrays.type_budget[kind]:
            assert np.all(found[inside] <= case.current[inside])
    if held.sum() > case.arrays.total_gpus:
        assert np.all(found <= case.current)


@settings(max_examples=200)
@given(cases(coupled=True))
def test_compiled_answer_is_feasible_even_where_types_are_coupled(case: Case) -> None:
    found = np.empty_like(case.current)
    step = UNLIMITED if case.max_step is None else case.max_step
    project_into(case.desired, case.current, case.arrays, step, case.weights, case.churn, found)
    if case.arrays.fits(np.minimum(case.arrays.minimum, case.current)):
        assert case.arrays.fits(found)


@settings(max_examples=100)
@given(cases())
def test_projection_is_idempotent(case: Case) -> None:
    found = case.project()
    again = project(found.astype(float), found, case.arrays)
    if case.arrays.fits(found) and np.all(found >= case.arrays.minimum):
        np.testing.assert_array_equal(np.minimum(found, case.arrays.maximum), again)


def two_pools(budget: int, **changes: object) -> BudgetArrays:
    fields = {
        "minimum": [0, 0],
        "maximum": [10, 10],
        "gpus": [2, 2],
        "type_index": [0, 0],
        "type_budget": [budget],
    }
    return arrays_of(**(fields | changes))


def test_a_plan_that_fits_is_kept() -> None:
    found = project(np.array([3.0, 2.0]), np.array([0, 0]), two_pools(budget=10))
    np.testing.assert_array_equal(found, [3, 2])


def test_scarcity_is_shared_evenly_between_equal_pools() -> None:
    found = project(np.array([4.0, 4.0]), np.array([0, 0]), two_pools(budget=8))
    np.testing.assert_array_equal(found, [2, 2])


def test_the_heavier_pool_keeps_more() -> None:
    weights = np.array([9.0, 1.0])
    found = project(np.array([4.0, 4.0]), np.array([0, 0]), two_pools(8), weights=weights)
    assert found[0] > found[1]


def test_churn_keeps_a_pool_where_it_is() -> None:
    # Moving one replica (2 GPUs) costs churn 3 * 2 = 6 and saves 1 * (2 * 1)^2 = 4.
    found = project(np.array([5.0, 3.0]), np.array([4, 3]), two_pools(budget=20), churn=3.0)
    np.testing.assert_array_equal(found, [4, 3])


def test_unknown_wish_means_hold() -> None:
    found = project(np.array([np.nan, 1.0]), np.array([4, 3]), two_pools(budget=20))
    np.testing.assert_array_equal(found, [4, 1])


def test_infinite_wish_means_all_there_is() -> None:
    found = project(np.array([np.inf, -np.inf]), np.array([0, 1]), two_pools(budget=8))
    np.testing.assert_array_equal(found, [4, 0])


def test_step_bound_gives_way_when_over_budget() -> None:
    found = project(np.array([9.0, 0.0]), np.array([9, 0]), two_pools(budget=8), max_step=1)
    np.testing.assert_array_equal(found, [4, 0])


def test_minimum_above_budget_shrinks_to_the_minimum_and_no_further() -> None:
    arrays = two_pools(budget=4, minimum=[2, 2])
    np.testing.assert_array_equal(project(np.array([9.0, 9.0]), np.array([3, 1]), arrays), [2, 1])


def test_compiled_caller_is_told_when_types_are_coupled() -> None:
    arrays = two_pools(budget=20, total_gpus=4)
    result = np.empty(2, np.int64)
    status = project_into(
        np.array([2.0, 2.0]), np.array([0, 0]), arrays, UNLIMITED, np.ones(2), 0.0, result
    )
    assert status == COUPLED
    assert arrays.fits(result)
