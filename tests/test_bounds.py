"""Bounds: what no planner passes, the budget a load needs, clusters without a limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.bounds import (
    best_static,
    clairvoyant_bound,
    clairvoyant_need,
    relax,
    tighten,
    unlimited,
    zero_startup,
)
from agents.evaluate.cell import Run, run_case, split_policy
from envs.score import score, value_share
from hrl_planner.budget import BudgetArrays
from hrl_planner.errors import PolicyError, SpecError
from hrl_planner.planner.policy import PlanContext
from hrl_planner.planner.registry import make_policy
from hrl_planner.spec import BudgetSpec, ClusterSpec, StartupSpec
from hrl_planner.workload import assign_classes
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.reuse import PrefixReuse
from hrl_planner.workload.scenarios import ScenarioCase
from hrl_planner.workload.trace import Trace
from tests.builders import cluster, linear_profile, pool, profile_file, slo_class, trace
from tests.test_policies import closed_loop, poisson

SMALL = ClusterSpec.load("small")
LIMITED = SMALL.replace(
    budget=BudgetSpec(
        gpus=SMALL.budget.gpus, total_gpus=sum(SMALL.budget.gpus.values()) - 1, watts=9000.0
    )
)
SPECS = (SMALL, LIMITED, ClusterSpec.load("reference"), ClusterSpec.load("large"))


def classes_of(of: Trace, spec: ClusterSpec = SMALL) -> np.ndarray:
    return assign_classes(of, spec, 0)


def ramp(seed: int) -> Trace:
    """A quiet start and a load four times as high from a third of the time on."""
    quiet, busy = poisson(5.0, 900.0, seed), poisson(20.0, 900.0, seed + 1)
    busy = busy.select(busy.arrival_s > 300.0)
    arrival_s = np.concatenate([quiet.arrival_s, busy.arrival_s])
    order = np.argsort(arrival_s)
    return Trace(
        name="ramp",
        arrival_s=arrival_s[order],
        isl_tokens=np.concatenate([quiet.isl_tokens, busy.isl_tokens])[order],
        osl_tokens=np.concatenate([quiet.osl_tokens, busy.osl_tokens])[order],
        duration_s=900.0,
    )


TRACES = (poisson(4.0, 600.0, seed=1), poisson(200.0, 300.0, seed=2), ramp(3))


@pytest.mark.parametrize("offered", TRACES, ids=["light", "overload", "ramp"])
@pytest.mark.parametrize("policy", ["static:split=equal", "wva", "rule", "lp", "lp-oracle"])
def test_no_policy_passes_the_clairvoyant_bound(offered: Trace, policy: str) -> None:
    simulation, _ = closed_loop(policy, offered)
    simulation.finish()
    result = simulation.result()
    most = clairvoyant_bound(SMALL, offered, simulation.class_id, price_weight=0.0)
    best = clairvoyant_bound(SMALL, offered, simulation.class_id)
    assert value_share(result) <= most.value_share + 1e-6
    assert score(result) <= best.score + 1e-6


def test_the_bound_waits_for_replicas_to_start() -> None:
    # One replica is there and prefills 1 request/s; the load is 3/s for ten minutes. What starts at
    # once serves from minute 3 on: (3 + 7 x 3) of 30 bins' worth of requests.
    spec = cluster(
        pool("prefill", linear_profile(10.0), startup=StartupSpec(mean_s=180.0)),
        pool("decode", startup=StartupSpec(mean_s=180.0)),
        slo_classes=(slo_class(ttft_ms=5000.0),),
    )
    offered = trace(np.arange(0.0, 600.0, 1.0 / 3.0), isl_tokens=100, duration_s=600.0)
    bound = clairvoyant_bound(spec, offered, np.zeros(len(offered), np.int16), price_weight=0.0)
    assert bound.value_share == pytest.approx((3 + 7 * 3) / 30, abs=0.02)


@pytest.mark.parametrize("rate", [2.0, 30.0])
def test_the_bound_holds_for_aggregated_pools_too(rate: float) -> None:
    spec = cluster(
        pool(
            "aggregated",
            profile_file(
                prefill_new_tokens=(1, 8000),
                prefill_ms=((((1.0,), (400.0,)),)),
                decode_batch=(1, 256),
                decode_ms=((10.0,), (60.0,)),
            ),
            replicas=2,
        ),
        slo_classes=(slo_class(itl_ms=40.0),),
    )
    offered = poisson(rate, 300.0, seed=6)
    simulation, _ = closed_loop("static:split=initial", offered, spec=spec)
    simulation.finish()
    bound = clairvoyant_bound(spec, offered, simulation.class_id, price_weight=0.0)
    assert 0.0 < value_share(simulation.result()) <= bound.value_share + 1e-6


@settings(max_examples=8)
@given(rate=st.floats(20.0, 200.0), factor=st.floats(0.5, 1.5), more=st.floats(1.1, 2.0))
def test_less_limits_never_lower_the_bound(rate: float, factor: float, more: float) -> None:
    offered = poisson(rate, 240.0, seed=1)

    def value(spec: ClusterSpec) -> float:
        return clairvoyant_bound(spec, offered, classes_of(offered), price_weight=0.0).value_share

    # Maximum and initial replicas are kept: only the budget differs.
    tight = tighten(SMALL, factor)
    wide = tight.replace(
        budget=BudgetSpec(gpus={k: int(np.ceil(n * more)) for k, n in tight.budget.gpus.items()})
    )
    assert value(tight) <= value(wide) + 1e-6
    assert value(tight) <= value(zero_startup(tight)) + 1e-6


def test_the_bound_of_a_cluster_without_limits_is_all_of_the_value() -> None:
    free = zero_startup(unlimited(SMALL))
    offered = ramp(5)
    bound = clairvoyant_bound(free, offered, classes_of(offered), price_weight=0.0)
    assert bound.value_share == pytest.approx(1.0)


def test_the_bound_holds_no_more_than_the_budget() -> None:
    offered = poisson(200.0, 300.0, seed=4)
    bound = clairvoyant_bound(SMALL, offered, classes_of(offered), price_weight=0.0)
    arrays = BudgetArrays.from_spec(SMALL)
    for held in bound.held * arrays.gpus:
        per_type = np.bincount(arrays.type_index, held, arrays.type_budget.size)
        assert np.all(per_type <= arrays.type_budget + 1e-6)
    assert bound.value_share < 1.0


@settings(max_examples=10)
@given(rate=st.floats(2.0, 20.0), more=st.floats(1.3, 3.0), seed=st.integers(0, 100))
def test_more_load_needs_more_budget(rate: float, more: float, seed: int) -> None:
    light = poisson(rate, 600.0, seed)
    heavy = light.scale(rate=more, seed=seed)
    needs = [clairvoyant_need(SMALL, each, classes_of(each)) for each in (light, heavy)]
    assert 0.05 <= needs[0] <= needs[1] <= 3.0


def test_a_load_without_requests_needs_the_least_and_an_absurd_one_the_most() -> None:
    nothing = trace([], [], [], duration_s=600.0)
    flood = poisson(2000.0, 120.0, seed=1)
    assert clairvoyant_need(SMALL, nothing, classes_of(nothing)) == 0.05
    assert clairvoyant_need(SMALL, flood, classes_of(flood)) == 3.0


def test_with_the_budget_needed_the_bound_serves_the_share_asked_for() -> None:
    offered = poisson(12.0, 900.0, seed=2)
    need = clairvoyant_need(SMALL, offered, classes_of(offered))
    enough = zero_startup(tighten(SMALL, 1.2 * need))
    bound = clairvoyant_bound(enough, offered, classes_of(offered), price_weight=0.0)
    assert bound.value_share >= 0.99


@settings(max_examples=60)
@given(spec=st.sampled_from(SPECS), factor=st.floats(0.01, 12.0))
def test_a_tightened_spec_is_valid_and_keeps_its_minimum(spec: ClusterSpec, factor: float) -> None:
    tight = tighten(spec, factor)  # the validator has seen it
    for before, after in zip(spec.pools, tight.pools, strict=True):
        assert after.min_replicas == before.min_replicas
        assert after.initial <= before.initial
        held = after.max_replicas * after.gpus_per_replica
        assert held <= tight.budget.gpus[after.gpu_type] or after.max_replicas == 1
    arrays = BudgetArrays.from_spec(tight)
    assert arrays.fits(np.array([p.initial for p in tight.pools]))


def test_tightening_by_one_changes_no_budget() -> None:
    for spec in SPECS:
        assert tighten(spec, 1.0).budget == spec.budget


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="must be above 0, got 0"):
        tighten(SMALL, 0.0)


def test_prefixes_are_cached_as_long_as_the_cache_has_room() -> None:
    # Two prompts of two blocks take turns every second; each comes back after two seconds.
    offered = trace(
        np.arange(100.0), 33, blocks=[(0, 1), (2, 3)] * 50, block_tokens=16, duration_s=100.0
    )
    reuse = PrefixReuse(offered)
    assert reuse.cached_tokens().sum() == 98 * 32
    assert reuse.cached_tokens(within_s=1.5).sum() == 0
    assert reuse.retention_s(64.0) == np.inf
    # Half of the blocks for half of the time: kept for one second of every two.
    assert reuse.retention_s(32.0) == pytest.approx(1.0, rel=0.05)


def run(policy: str, offered: Trace, *events: ClusterEvent) -> Run:
    return run_case(ScenarioCase(SMALL, offered, events), policy, seed=0, grace_s=300.0)


@pytest.mark.parametrize("offered", [TRACES[1], ramp(7)], ids=["overload", "ramp"])
def test_best_static_is_at_least_as_good_as_the_splits_it_begins_with(offered: Trace) -> None:
    best = run("best-static:simulations=12", offered)
    for split in ("equal", "initial"):
        assert best.score >= run(f"static:split={split}", offered).score


def test_best_static_scores_what_its_search_found_and_keeps_to_its_simulations() -> None:
    offered = ramp(8)
    found = best_static(SMALL, offered, classes_of(offered), simulations=10)
    assert found.simulations <= 10
    assert BudgetArrays.from_spec(SMALL).fits(found.replicas)
    assert run("best-static:simulations=10", offered).score == pytest.approx(found.score)


def test_best_static_knows_the_events_of_its_run() -> None:
    # Of the small cluster's H100s most are gone from the start: replicas on them would be pending.
    offered = poisson(20.0, 600.0, seed=3)
    gone = ClusterEvent(0.0, "inventory", gpu_type=SMALL.gpu_types[0], value=0.0)
    best = run("best-static", offered, gone)
    assert best.score >= run("static:split=equal", offered, gone).score


def test_best_static_needs_a_trace() -> None:
    with pytest.raises(PolicyError, match="needs the trace"):
        make_policy("best-static").reset(PlanContext(SMALL))


@pytest.mark.parametrize("limit", ["unlimited", "zero-startup"])
@pytest.mark.parametrize("offered", [TRACES[1], ramp(9)], ids=["overload", "ramp"])
def test_a_limit_less_is_never_worse(limit: str, offered: Trace) -> None:
    with_limit, without = run("lp-oracle", offered), run(f"lp-oracle@{limit}", offered)
    assert value_share(without.result) >= value_share(with_limit.result) - 0.02
    assert without.score >= with_limit.score - 0.02


def test_a_run_without_a_limit_pays_the_price_of_the_budget_asked_for() -> None:
    offered = poisson(4.0, 300.0, seed=1)
    done = run("static:split=initial@unlimited", offered)
    assert done.result.spec.budget.gpus == {kind: 10 * n for kind, n in SMALL.budget.gpus.items()}
    assert done.score == pytest.approx(run("static:split=initial", offered).score)
    # On its own budget it is the same: weights grew with it.
    assert score(done.result) == pytest.approx(done.score)


def test_events_leave_more_gpus_where_there_are_more() -> None:
    kind = SMALL.gpu_types[0]
    event = ClusterEvent(10.0, "inventory", gpu_type=kind, value=2.0)
    case = ScenarioCase(SMALL, poisson(1.0, 60.0, seed=0), (event,))
    assert relax(case, "unlimited").events[0].value == 20.0
    assert relax(case, "zero-startup").events[0].value == 2.0


def test_what_stands_behind_the_at_sign_is_told_apart() -> None:
    assert split_policy("lp:headroom=0.1@zero-startup") == ("lp:headroom=0.1", "zero-startup")
    assert split_policy("thresholds:file=a@b.yaml") == ("thresholds:file=a@b.yaml", None)
    with pytest.raises(PolicyError, match="'infinite' behind @; one of unlimited, zero-startup"):
        run("lp@infinite", TRACES[0])


def test_an_unknown_policy_is_answered_with_the_bounds_among_those_there_are() -> None:
    with pytest.raises(PolicyError, match="best-static"):
        make_policy("best")
