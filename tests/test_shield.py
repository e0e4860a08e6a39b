"""The shield lets the network decide only where it was trained to, and says so otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.simulation import Simulation
from hrl_planner.budget import BudgetArrays
from hrl_planner.encoding import CLASS_COLUMNS, POOL_COLUMNS
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, ClusterObservation
from hrl_planner.planner import Plan, PlanContext, loop
from hrl_planner.planner.checkpoint import Ranges
from hrl_planner.planner.learned import LearnedAllocator, LearnedScaler
from hrl_planner.planner.lp import FluidPlanner
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.rule import RulePolicy
from hrl_planner.planner.shield import Interventions, ShieldedAllocator, ShieldedScaler
from hrl_planner.spec import ClusterSpec
from tests.networks import ALLOCATOR, SCALER, network, wide_ranges, write_checkpoint
from tests.test_envs import requests

SPEC = ClusterSpec.load("small")
CONTEXT = PlanContext(SPEC)


@pytest.fixture(scope="module")
def seen() -> ClusterObservation:
    """A cluster under load, as a scraper sees it."""
    simulation = Simulation(SPEC, requests(duration_s=300.0, busy_s=280.0), seed=0)
    simulation.advance_to(120.0)
    return simulation.observe()


def with_pool(seen: ClusterObservation, **fields: Any) -> ClusterObservation:
    pools = seen.pools.copy()
    for name, value in fields.items():
        pools[:, POOL_FIELDS.index(name)] = value
    return replace(seen, pools=pools)


def with_class(seen: ClusterObservation, **fields: Any) -> ClusterObservation:
    classes = seen.classes.copy()
    for name, value in fields.items():
        classes[:, CLASS_FIELDS.index(name)] = value
    return replace(seen, classes=classes)


def shielded(
    ranges: Ranges | None = None, prior: Any = None, rule: Any = None, net: Any = None
) -> tuple[ShieldedAllocator, Interventions]:
    log = Interventions()
    learned = LearnedAllocator(net or network(ALLOCATOR, 1), prior or make_policy("lp"))
    policy = ShieldedAllocator(learned, rule or RulePolicy(), ranges or wide_ranges(), log)
    policy.reset(CONTEXT)
    return policy, log


class Broken:
    """A policy that fails."""

    name, interval_s = "broken", 10.0

    def reset(self, context: PlanContext) -> None:
        pass

    def decide(self, observation: ClusterObservation) -> Plan:
        raise RuntimeError("no licence")


def lp_plan(seen: ClusterObservation) -> np.ndarray:
    lp = make_policy("lp")
    lp.reset(CONTEXT)
    return lp.decide(seen).replicas


def targets(seen: ClusterObservation) -> np.ndarray:
    return seen.pool_field("target_replicas").astype(int)


def test_where_all_is_well_the_network_decides(seen: ClusterObservation) -> None:
    policy, log = shielded()
    plan = policy.decide(seen)
    bare = LearnedAllocator(network(ALLOCATOR, 1), make_policy("lp"))
    bare.reset(CONTEXT)
    np.testing.assert_array_equal(plan.replicas, bare.decide(seen).replicas)
    assert not log.latest


def test_missing_metrics_hold_what_runs(seen: ClusterObservation) -> None:
    policy, log = shielded()
    blind = with_class(with_pool(seen, arrivals_rps=np.nan, waiting=np.nan), arrivals_rps=np.nan)
    plan = policy.decide(blind)
    np.testing.assert_array_equal(plan.replicas, targets(seen))
    assert log.latest[0].action == "hold"
    assert "no arrival metrics" in log.latest[0].reason
    assert "no arrival metrics" in plan.reason


def test_between_decisions_the_prior_plans_where_there_are_metrics_and_only_there(
    seen: ClusterObservation,
) -> None:
    policy, _ = shielded()
    blind = with_class(with_pool(seen, arrivals_rps=np.nan), arrivals_rps=np.nan)
    policy.decide(replace(blind, now_s=120.0))
    still_blind = policy.listen(replace(blind, now_s=130.0))
    assert still_blind is None or not still_blind.replicas.size
    back = policy.listen(replace(seen, now_s=140.0))
    assert back is not None
    np.testing.assert_array_equal(back.replicas, lp_plan(seen))


def test_what_the_rule_planned_stands_until_the_next_decision(seen: ClusterObservation) -> None:
    class FailsOnce(FluidPlanner):
        def decide(self, observation: ClusterObservation) -> Plan:
            if observation.now_s < 130.0:
                raise RuntimeError("no licence")
            return super().decide(observation)

    policy, log = shielded(prior=FailsOnce())
    policy.decide(replace(seen, now_s=120.0))
    assert log.counts == {"allocator:rule": 1}
    between = policy.listen(replace(seen, now_s=150.0))
    assert between is not None
    assert not between.replicas.size
    policy.decide(replace(seen, now_s=180.0))
    after = policy.listen(replace(seen, now_s=190.0))
    assert after is not None
    assert after.replicas.size


def test_stale_metrics_are_not_followed(seen: ClusterObservation) -> None:
    policy, log = shielded()
    policy.decide(with_pool(seen, metrics_age_s=600.0))
    assert log.counts == {"allocator:hold": 1}
    assert "600 s old" in log.latest[0].reason


def test_features_outside_the_training_range_let_the_lp_decide(seen: ClusterObservation) -> None:
    narrow = wide_ranges()
    narrow = narrow.model_copy(update={"pools": {**narrow.pools, "kv_use": (0.0, 0.5)}})
    policy, log = shielded(narrow)
    plan = policy.decide(with_pool(seen, kv_use=0.9))
    np.testing.assert_array_equal(plan.replicas, lp_plan(with_pool(seen, kv_use=0.9)))
    assert log.latest[0].action == "plan"
    assert "kv_use is 0.9, training saw -0.05 to 0.55" in log.latest[0].reason


def test_a_network_that_answers_nan_is_replaced_by_the_lp(seen: ClusterObservation) -> None:
    bad = network(ALLOCATOR, 1)
    bad.net[-1] = np.nan
    policy, log = shielded(net=bad)
    np.testing.assert_array_equal(policy.decide(seen).replicas, lp_plan(seen))
    assert "not finite" in log.latest[0].reason


def test_a_failing_lp_is_replaced_by_the_rule_and_a_failing_rule_by_holding(
    seen: ClusterObservation,
) -> None:
    policy, log = shielded(prior=Broken())
    rule = RulePolicy()
    rule.reset(CONTEXT)
    np.testing.assert_array_equal(policy.decide(seen).replicas, rule.decide(seen).replicas)
    assert log.latest[0].action == "rule"
    assert "RuntimeError: no licence" in log.latest[0].reason
    policy, log = shielded(prior=Broken(), rule=Broken())
    np.testing.assert_array_equal(policy.decide(seen).replicas, targets(seen))
    assert log.latest[0].action == "hold"


def shielded_scaler(
    ranges: Ranges | None = None, rule: Any = None, net: Any = None
) -> tuple[ShieldedScaler, Interventions]:
    log = Interventions()
    learned = LearnedScaler(net or network(SCALER, 2))
    policy = ShieldedScaler(
        learned, rule or RulePolicy(within_quota=True), ranges or wide_ranges(), log
    )
    policy.reset(CONTEXT)
    return policy, log


def quotas_unlike_targets(seen: ClusterObservation) -> np.ndarray:
    return targets(seen) + np.array([1, -1, *[0] * (len(SPEC.pools) - 2)])


def test_features_outside_the_training_range_let_pools_take_their_quota(
    seen: ClusterObservation,
) -> None:
    narrow = wide_ranges()
    narrow = narrow.model_copy(
        update={"pools": {**narrow.pools, "waiting_per_replica": (0.0, 0.1)}}
    )
    policy, log = shielded_scaler(narrow)
    quota = quotas_unlike_targets(seen)
    plan = policy.decide(with_pool(seen, waiting=50.0, quota=quota))
    np.testing.assert_array_equal(plan.replicas, quota)
    assert log.counts == {"scaler:quota": 1}
    assert "waiting_per_replica" in plan.reason


def test_a_scaler_that_answers_nan_or_a_failing_rule_leave_the_quota(
    seen: ClusterObservation,
) -> None:
    quota = quotas_unlike_targets(seen)
    bad = network(SCALER, 2)
    bad.net[-1] = np.nan
    for policy, log in (shielded_scaler(net=bad), shielded_scaler(rule=Broken())):
        plan = policy.decide(with_pool(seen, quota=quota))
        np.testing.assert_array_equal(plan.replicas, quota)
        assert log.counts == {"scaler:quota": 1}


def test_a_pool_without_a_quota_keeps_what_it_has(seen: ClusterObservation) -> None:
    policy, _ = shielded_scaler(rule=Broken())
    quota = quotas_unlike_targets(seen).astype(float)
    quota[1:] = np.nan
    plan = policy.decide(with_pool(seen, quota=quota))
    np.testing.assert_array_equal(plan.replicas, [quota[0], *targets(seen)[1:]])


def test_blind_scalers_hold_whatever_the_quota(seen: ClusterObservation) -> None:
    policy, log = shielded_scaler()
    blind = with_class(with_pool(seen, quota=quotas_unlike_targets(seen)), arrivals_rps=np.nan)
    np.testing.assert_array_equal(policy.decide(blind).replicas, targets(seen))
    assert log.counts == {"scaler:hold": 1}


def test_on_a_cluster_unlike_the_trained_ones_the_planner_is_the_lp(
    tmp_path: Path,
) -> None:
    """Out of range at both levels, every target is the LP's, minute after minute."""
    nothing = Ranges(
        pools=dict.fromkeys(POOL_COLUMNS, (-9.0, -9.0)),
        classes=dict.fromkeys(CLASS_COLUMNS, (-9.0, -9.0)),
    )
    write_checkpoint(tmp_path, ranges=nothing)
    trajectories = []
    for name in ("lp", f"learned:path={tmp_path}"):
        policy = make_policy(name)
        policy.reset(CONTEXT)
        simulation = Simulation(SPEC, requests(30.0, busy_s=500.0), seed=0)
        applied: list[list[int]] = []
        loop.run(
            simulation,
            policy,
            600.0,
            lambda step, to=applied: to.append(list(step.applied.replicas)),
        )
        trajectories.append(applied)
    assert trajectories[0] == trajectories[1]
    assert len({tuple(replicas) for replicas in trajectories[0]}) > 1


def test_the_shield_is_off_only_where_that_is_said(tmp_path: Path) -> None:
    """Out of range everywhere: a shield would step in at the first decision."""
    nothing = Ranges(
        pools=dict.fromkeys(POOL_COLUMNS, (-9.0, -9.0)),
        classes=dict.fromkeys(CLASS_COLUMNS, (-9.0, -9.0)),
    )
    write_checkpoint(tmp_path, ranges=nothing)
    counts = []
    for shield in ("true", "false"):
        policy = make_policy(f"learned:path={tmp_path},shield={shield}")
        policy.reset(CONTEXT)
        loop.run(Simulation(SPEC, requests(), seed=0), policy, 60.0)
        counts.append(policy.interventions.counts.total())  # type: ignore[attr-defined]
    assert counts[0] > 0
    assert counts[1] == 0


def test_absurd_lengths_keep_no_planner_busy(seen: ClusterObservation) -> None:
    # Chunk by chunk, 1e12 tokens would take minutes.
    policy, _ = shielded()
    policy.decide(with_class(seen, isl_mean_tokens=1e12, osl_mean_tokens=1e12))


wild = st.one_of(
    st.just(np.nan), st.just(np.inf), st.just(-np.inf), st.floats(-1e12, 1e12, width=64)
)


@settings(max_examples=150)
@given(st.data())
def test_whatever_is_seen_a_plan_comes_out_within_the_budget(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """NaN, infinite, negative and absurd observations, in any field and any number of them."""
    folder = tmp_path_factory.getbasetemp() / "adversarial"
    if not folder.exists():
        write_checkpoint(folder)
    policy = make_policy(f"learned:path={folder}")
    policy.reset(CONTEXT)
    arrays = BudgetArrays.from_spec(SPEC)
    simulation = Simulation(SPEC, requests(), seed=0)
    for k in range(data.draw(st.integers(1, 4))):
        simulation.advance_to(30.0 * (k + 1))
        honest = simulation.observe()
        pools, classes = honest.pools.copy(), honest.classes.copy()
        for rows in (pools, classes):
            for _ in range(data.draw(st.integers(0, 6))):
                row = data.draw(st.integers(0, rows.shape[0] - 1))
                first = POOL_FIELDS.index("arrivals_rps") if rows is pools else 0
                column = data.draw(st.integers(first, rows.shape[1] - 1))
                rows[row, column] = data.draw(wild)
        shown = ClusterObservation(honest.now_s, pools, classes)
        applied = loop.within_budget(policy.decide(shown), honest, arrays)
        assert np.all(applied.replicas >= 0)
        assert arrays.fits(applied.replicas)
