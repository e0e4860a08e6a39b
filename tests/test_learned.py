"""What is trained is what is deployed: environments and the deployed planner decide the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.base import PlannerEnv
from envs.global_allocator import GlobalLevel
from envs.local_scaler.level import AllPoolsLevel
from envs.simulation import SimResult, Simulation
from hrl_planner.budget import BudgetArrays, project
from hrl_planner.encoding import Layout
from hrl_planner.errors import PolicyError
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner import PlanContext, loop
from hrl_planner.planner.allocator import N_TERMS, residual, unrounded
from hrl_planner.planner.learned import LearnedAllocator, LearnedScaler
from hrl_planner.planner.lp import FluidPlanner
from hrl_planner.planner.network import NetShape
from hrl_planner.planner.policy import Advice, Plan, Policy
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.scaler import CHANGES, TO_QUOTA, outputs_of, target_of
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.trace import Trace
from tests.networks import ALLOCATOR, SCALER, network, write_checkpoint, zeros
from tests.test_envs import requests

SPEC = ClusterSpec.load("small")
LAYOUT = Layout.of(SPEC)
INITIAL = np.array([pool.initial for pool in SPEC.pools], np.int64)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return requests(duration_s=600.0, busy_s=500.0)


def drive(policy: Policy, trace: Trace, seed: int) -> SimResult:
    simulation = Simulation(SPEC, trace, seed=seed)
    policy.reset(PlanContext(SPEC, seed=seed, class_id=simulation.class_id))
    loop.run(simulation, policy, trace.duration_s)
    return simulation.result()


def assert_same(one: SimResult, other: SimResult) -> None:
    np.testing.assert_array_equal(one.finish_s, other.finish_s)
    np.testing.assert_array_equal(one.gpu_seconds, other.gpu_seconds)
    np.testing.assert_array_equal(one.scale_ups, other.scale_ups)


def test_an_untrained_checkpoint_is_the_lp_over_the_rule(tmp_path: Path, trace: Trace) -> None:
    path = write_checkpoint(tmp_path / "zero", zeros(ALLOCATOR), zeros(SCALER))
    learned = drive(make_policy(f"learned:path={path}"), trace, 3)
    assert_same(learned, drive(make_policy("lp+rule"), trace, 3))


def test_another_prior_may_be_corrected_than_the_one_of_training(
    tmp_path: Path, trace: Trace
) -> None:
    path = write_checkpoint(tmp_path / "zero", zeros(ALLOCATOR), zeros(SCALER))
    learned = drive(make_policy(f"learned:path={path},prior=lp:headroom=0.1"), trace, 3)
    assert_same(learned, drive(make_policy("lp:headroom=0.1+rule"), trace, 3))
    with pytest.raises(PolicyError, match="unknown policy 'magic'"):
        make_policy(f"learned:path={path},prior=magic")


def test_a_trained_allocator_decides_in_the_environment_as_deployed(
    tmp_path: Path, trace: Trace
) -> None:
    path = write_checkpoint(tmp_path / "random")
    level = GlobalLevel("lp", network(SCALER, 2))
    env = PlannerEnv(level, spec=SPEC, trace=trace)
    observation, _ = env.reset(seed=3)
    net, shape = network(ALLOCATOR, 1)
    ended = False
    moved = 0.0
    while not ended:
        action = outputs_of(net, shape, observation, len(SPEC.pools), len(SPEC.slo_classes))[:, 0]
        moved += float(np.abs(action).sum())
        observation, _, _, ended, _ = env.step(action)
    policy = make_policy(f"learned:path={path},shield=false")
    assert moved > 0.0
    assert_same(env.run.simulation.result(), drive(policy, trace, env.run.episode.seed))


def test_a_trained_scaler_decides_in_the_compiled_loop_as_an_agent_would(trace: Trace) -> None:
    """The packed network inside `control.tick`, and the same network as agent of all pools."""
    net, shape = network(SCALER, 2)
    inside = PlannerEnv(
        GlobalLevel("static:split=equal", network(SCALER, 2)), spec=SPEC, trace=trace
    )
    inside.reset(seed=3)
    ended = False
    idle = np.zeros(LAYOUT.max_pools, np.float32)
    while not ended:
        *_, ended, _ = inside.step(idle)
    agent = PlannerEnv(AllPoolsLevel("static:split=equal"), spec=SPEC, trace=trace)
    observation, _ = agent.reset(seed=3)
    ended = False
    while not ended:
        scores = outputs_of(net, shape, observation, len(SPEC.pools), len(SPEC.slo_classes))
        observation, _, _, ended, _ = agent.step(scores.argmax(axis=1))
    one, other = inside.run.simulation.result(), agent.run.simulation.result()
    assert other.scale_ups.sum() + other.scale_downs.sum() > 0
    assert_same(one, other)


def test_actions_stay_between_one_replica_and_the_quota() -> None:
    for action in range(1, len(CHANGES)):
        for target in range(5):
            for quota in range(5):
                chosen = target_of(action, 9, target, float(quota), 0, 4)
                assert min(1, quota) <= chosen <= quota or action == TO_QUOTA
                assert chosen <= quota
    assert target_of(TO_QUOTA, 0, 1, 3.0, 0, 8) == 3
    assert target_of(0, 5, 1, 3.0, 0, 8) == 5


class CountedLp(FluidPlanner):
    """The LP, and how often it planned on its own terms."""

    decided = 0

    def decide(self, observation: ClusterObservation) -> Plan:
        self.decided += 1
        return super().decide(observation)


def looks(trace: Trace, every_s: float, count: int) -> list[ClusterObservation]:
    simulation = Simulation(SPEC, trace, seed=3)
    seen = []
    for i in range(count):
        simulation.advance_to(every_s * i)
        seen.append(simulation.observe())
    return seen


def test_a_decision_before_its_time_is_one_like_any_other(trace: Trace) -> None:
    """Planner pods decide early when pools or budget change."""
    lp, alone = CountedLp(), FluidPlanner()
    terms = NetShape(class_hidden=6, hidden=12, attention=0, pooled=1, outputs=N_TERMS)
    learned = LearnedAllocator(network(terms, 4), lp, head="terms")
    for policy in (learned, alone):
        policy.reset(PlanContext(SPEC, seed=3))
    inputs = []
    for seen in looks(trace, 20.0, 4):  # a third of a global interval
        learned.decide(seen)
        shown = learned.vector(seen, alone.decide(seen))
        inputs.append(LAYOUT.split(shown)["time"])
    assert lp.decided == 4
    assert all(np.array_equal(one, inputs[0]) for one in inputs), "as at the interval's beginning"


def test_a_scaler_sees_the_same_whatever_the_clock_of_its_pod(trace: Trace) -> None:
    seen = looks(trace, 10.0, 12)
    shown = []
    for up_s in (0.0, 12_345.0):
        scaler = LearnedScaler(network(SCALER, 2))
        scaler.reset(PlanContext(SPEC))
        for look in seen:
            moved = replace(look, now_s=look.now_s + up_s)
            shown.append((scaler.vector(moved, INITIAL), scaler.decide(moved).replicas))
    half = len(seen)
    for (vector, replicas), (later, the_same) in zip(shown[:half], shown[half:], strict=True):
        np.testing.assert_array_equal(vector, later)
        np.testing.assert_array_equal(replicas, the_same)


def test_the_scaler_counts_global_intervals_from_the_first_look_also_in_the_shield(
    tmp_path: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first look there are no metrics, and the shield holds."""
    shown: list[tuple[float, float]] = []
    vector = LearnedScaler.vector

    def spied(
        self: LearnedScaler, seen: ClusterObservation, wish: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        made = vector(self, seen, wish)
        shown.append((seen.now_s, float(made[-1])))
        return made

    monkeypatch.setattr(LearnedScaler, "vector", spied)
    path = write_checkpoint(tmp_path / "c")
    drive(make_policy(f"learned:path={path}"), trace, 3)
    assert len(shown) > 20 and {phase for _, phase in shown} >= {0.0}
    assert all(phase == pytest.approx(now_s % 60.0 / 60.0) for now_s, phase in shown)


def test_parameters_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c")
    with pytest.raises(PolicyError, match="local: unknown 'other'"):
        make_policy(f"learned:path={path},local=other")
    with pytest.raises(PolicyError, match="decide before reset"):
        make_policy(f"learned:path={path}").decide(Simulation(SPEC, requests()).observe())


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 7), st.floats(-2.0, 9.0)), min_size=4, max_size=4))
def test_no_action_gives_the_plan_however_it_was_rounded(
    pools: list[tuple[int, float]],
) -> None:
    arrays = BudgetArrays.from_spec(SPEC)
    wanted = np.array([float(n) for n, _ in pools])
    replicas = project(wanted, np.zeros(4, np.int64), arrays)
    wish = np.array([x for _, x in pools])
    advice = Advice(wish, np.zeros(4), np.zeros(len(SPEC.slo_classes)))
    desired = residual(unrounded(Plan(replicas, advice=advice)), np.zeros(4))
    np.testing.assert_array_equal(project(desired, replicas, arrays), replicas)


def test_a_small_action_moves_what_was_rounded_nearly_the_other_way() -> None:
    replicas = np.array([2, 2, 2, 2])
    wish = np.array([2.45, 2.0, 1.55, 2.0])
    plan = Plan(replicas, advice=Advice(wish, np.zeros(4), np.zeros(len(SPEC.slo_classes))))
    arrays = BudgetArrays.from_spec(SPEC)
    desired = residual(unrounded(plan), np.array([0.1, 0.1, -0.1, -0.1]))
    moved = project(desired, replicas, arrays) - replicas
    assert moved.tolist() == [1, 0, -1, 0]


def test_between_its_plans_the_global_planner_still_sees_the_load_and_routes_it() -> None:
    spec = SPEC.replace(intervals=SPEC.intervals.model_copy(update={"global_s": 120.0}))
    simulation = Simulation(spec, requests(duration_s=300.0, busy_s=300.0), seed=0)
    policy = make_policy("lp+rule")
    policy.reset(PlanContext(spec, class_id=simulation.class_id))
    flows = 0
    for k in range(12):
        simulation.advance_to(10.0 * (k + 1))
        plan = policy.decide(simulation.observe())
        flows += plan.flows is not None
    assert flows == 12
