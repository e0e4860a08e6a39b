"""What every policy promises in closed loop, and how the fluid planner meets awkward moments."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.simulation import Simulation
from hrl_planner.budget import BudgetArrays
from hrl_planner.errors import PolicyError
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, ClusterObservation
from hrl_planner.planner import loop
from hrl_planner.planner.lp import FluidPlanner
from hrl_planner.planner.policy import Plan, PlanContext
from hrl_planner.planner.registry import make_policy
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.trace import Trace

SPEC = ClusterSpec.load("small")
NAMES = (
    "static",
    "hpa",
    "queue-length",
    "wva",
    "rule",
    "lp",
    "lp:rebuild_s=900",
    "lp-oracle",
    "lp+rule",
)


def poisson(rate: float, duration_s: float, seed: int, until_s: float | None = None) -> Trace:
    """Chat-like requests at a constant rate, none after `until_s`."""
    rng = np.random.default_rng(seed)
    end_s = duration_s if until_s is None else until_s
    n = rng.poisson(rate * end_s)
    return Trace(
        name="poisson",
        arrival_s=np.sort(rng.uniform(0.0, end_s, n)),
        isl_tokens=np.clip(rng.lognormal(6.5, 0.6, n), 1, 8000).astype(np.int32),
        osl_tokens=np.clip(rng.lognormal(4.8, 0.5, n), 1, 1000).astype(np.int32),
        duration_s=duration_s,
    )


def closed_loop(
    name: str,
    trace: Trace,
    seed: int = 0,
    events: tuple[ClusterEvent, ...] = (),
    spec: ClusterSpec = SPEC,
) -> tuple[Simulation, list[loop.Step]]:
    simulation = Simulation(spec, trace, seed=seed, events=events)
    policy = make_policy(name)
    policy.reset(PlanContext(spec, seed, trace, simulation.class_id))
    steps: list[loop.Step] = []
    loop.run(simulation, policy, trace.duration_s, steps.append)
    return simulation, steps


@settings(max_examples=15)
@given(
    name=st.sampled_from(NAMES),
    rate=st.floats(0.5, 60.0),
    seed=st.integers(0, 1000),
    edited=st.integers(0, 8),
    edited_pool=st.sampled_from([pool.name for pool in SPEC.pools]),
)
def test_no_policy_ever_exceeds_the_budget(
    name: str, rate: float, seed: int, edited: int, edited_pool: str
) -> None:
    events = (ClusterEvent(100.0, "set_replicas", pool=edited_pool, value=float(edited)),)
    simulation, steps = closed_loop(name, poisson(rate, 300.0, seed), seed, events)
    arrays = BudgetArrays.from_spec(SPEC)
    for step in steps:
        assert arrays.fits(step.applied.replicas)
    timeline = simulation.result().timeline
    held = timeline["ready"] + timeline["starting"] + timeline["draining"]
    for moment in held:
        assert arrays.fits(moment)


def observation(now_s: float, **fields: float) -> ClusterObservation:
    """Initial replicas, everything else as given (a class field is prefixed `class_`)."""
    pools = np.full((len(SPEC.pools), len(POOL_FIELDS)), np.nan)
    pools[:, : POOL_FIELDS.index("arrivals_rps")] = 0.0
    initial = [pool.initial for pool in SPEC.pools]
    for name in ("target_replicas", "ready", "quota"):
        pools[:, POOL_FIELDS.index(name)] = initial
    classes = np.full((len(SPEC.slo_classes), len(CLASS_FIELDS)), np.nan)
    for name, value in fields.items():
        if name.startswith("class_"):
            classes[:, CLASS_FIELDS.index(name.removeprefix("class_"))] = value
        else:
            pools[:, POOL_FIELDS.index(name)] = value
    return ClusterObservation(now_s, pools, classes)


def planner(**parameters: float) -> FluidPlanner:
    policy = FluidPlanner(**parameters)
    policy.reset(PlanContext(SPEC))
    return policy


INITIAL = np.array([pool.initial for pool in SPEC.pools])


def busy(now_s: float, rate: float = 20.0) -> ClusterObservation:
    return observation(
        now_s,
        arrivals_rps=rate,
        class_arrivals_rps=rate,
        class_isl_mean_tokens=1000.0,
        class_isl_std_tokens=500.0,
        class_osl_mean_tokens=150.0,
        class_osl_std_tokens=80.0,
        class_in_system=0.0,
    )


def test_lp_grows_with_traffic() -> None:
    policy = planner()
    little = policy.decide(busy(10.0, rate=1.0)).replicas
    much = policy.decide(busy(20.0, rate=60.0)).replicas
    assert much.sum() > little.sum()


def test_lp_holds_while_metrics_are_missing() -> None:
    policy = planner()
    policy.decide(busy(10.0))
    plan = policy.decide(observation(20.0, class_arrivals_rps=20.0))
    np.testing.assert_array_equal(plan.replicas, INITIAL)
    assert "hold" in plan.reason


def test_lp_leaves_a_long_outage_on_its_mean_plan() -> None:
    policy = planner()
    usual = policy.decide(busy(10.0, rate=60.0)).replicas
    plan = policy.decide(observation(2000.0))
    np.testing.assert_array_equal(plan.replicas, usual)


def test_lp_goes_to_the_floor_without_traffic() -> None:
    policy = planner(hold_s=60.0, idle_s=120.0)
    policy.decide(busy(10.0))
    quiet = busy(200.0, rate=0.0)
    policy.decide(quiet)
    plan = policy.decide(replace(quiet, now_s=400.0))
    np.testing.assert_array_equal(plan.replicas, [pool.min_replicas for pool in SPEC.pools])


def test_lp_releases_nothing_on_the_first_half_empty_windows() -> None:
    policy = planner()
    early = policy.decide(busy(10.0, rate=0.1)).replicas
    assert np.all(early >= INITIAL)


def test_a_minimum_that_finds_no_gpu_holds_up_no_other_pool() -> None:
    policy = planner()
    pool = SPEC.pool_index("decode-h100")
    assert SPEC.pools[pool].min_replicas == 1
    for t_s in range(10, 100, 10):
        seen = busy(float(t_s), rate=10.0 if t_s < 60 else 60.0)
        seen.pools[pool, POOL_FIELDS.index("ready")] = 0.0
        seen.pools[pool, POOL_FIELDS.index("pending")] = 1.0
        plan = policy.decide(seen)
        if t_s == 50:
            before = plan.replicas
    assert "hold" not in plan.reason
    assert plan.replicas[pool] >= 1
    l40s = [i for i, p in enumerate(SPEC.pools) if p.gpu_type == "L40S"]
    assert plan.replicas[l40s].sum() > before[l40s].sum()


def test_lp_stops_asking_for_gpus_that_stay_pending() -> None:
    policy = planner()
    seen = busy(10.0, rate=60.0)
    first = policy.decide(seen).replicas
    h100 = [i for i, pool in enumerate(SPEC.pools) if pool.gpu_type == "H100"]
    stuck = replace(busy(20.0, rate=60.0))
    stuck.pools[h100, POOL_FIELDS.index("pending")] = first[h100] - INITIAL[h100]
    stuck.pools[h100, POOL_FIELDS.index("target_replicas")] = first[h100]
    policy.decide(stuck)
    plan = policy.decide(replace(stuck, now_s=40.0))
    assert plan.replicas[h100].sum() == INITIAL[h100].sum()


def test_a_pool_without_a_profile_is_scaled_by_the_rule() -> None:
    policy = FluidPlanner()
    policy.reset(PlanContext(SPEC, blind_pools=frozenset({2})))
    plan = policy.decide(busy(10.0))
    assert "no profile" in plan.reason
    assert plan.replicas[2] >= 1


@given(
    blind=st.sets(st.integers(0, len(SPEC.pools) - 1), min_size=1, max_size=3),
    total_gpus=st.integers(6, 16),
    held=st.lists(st.integers(0, 8), min_size=len(SPEC.pools), max_size=len(SPEC.pools)),
    rates=st.lists(st.floats(0.0, 80.0), min_size=4, max_size=8),
)
@settings(max_examples=40, deadline=None)
def test_the_rule_never_asks_for_what_leaves_the_lp_no_solution(
    blind: set[int], total_gpus: int, held: list[int], rates: list[float]
) -> None:
    spec = SPEC.replace(budget={"gpus": SPEC.budget.gpus, "total_gpus": total_gpus})
    arrays = BudgetArrays.from_spec(spec)
    policy = FluidPlanner()
    policy.reset(PlanContext(spec, blind_pools=frozenset(blind)))
    now = np.array(held)
    for step, rate in enumerate(rates):
        seen = busy(10.0 + 60.0 * step, rate)
        for name in ("ready", "target_replicas"):
            seen.pools[:, POOL_FIELDS.index(name)] = now
        seen.pools[sorted(blind), POOL_FIELDS.index("waiting")] = 500.0
        plan = policy.decide(seen)
        assert "no solution" not in plan.reason
        assert arrays.fits(plan.replicas)
        now = plan.replicas


def overrun(policy: FluidPlanner, blind: int, held: list[int], steps: int) -> list[Plan]:
    """Plans for a full cluster, minute by minute, with a long queue at a pool without a profile."""
    policy.reset(PlanContext(SPEC, blind_pools=frozenset({blind})))
    plans = []
    for step in range(steps):
        seen = busy(10.0 + 60.0 * step, 60.0)
        for name in ("ready", "target_replicas"):
            seen.pools[:, POOL_FIELDS.index(name)] = held
        seen.pools[blind, POOL_FIELDS.index("waiting")] = 500.0
        plans.append(policy.decide(seen))
    return plans


def test_a_pool_without_a_profile_gains_where_gpus_are_scarce() -> None:
    plans = overrun(FluidPlanner(), 2, [6, 4, 2, 4], 6)
    assert plans[-1].replicas[2] > 2
    assert plans[-1].replicas[0] >= 4, "what serves gives way, and does not give up"


def test_a_mix_with_a_pool_without_a_profile_is_rebuilt_like_others() -> None:
    plans = overrun(FluidPlanner(rebuild_s=900.0), 3, [1, 7, 7, 1], 12)
    assert any("rebuild" in plan.reason for plan in plans)


@pytest.mark.parametrize("rate", [4.0, 12.0])
def test_lp_does_not_flap_under_constant_load(rate: float) -> None:
    _, steps = closed_loop("lp", poisson(rate, 1500.0, seed=3))
    plans = np.array([step.applied.replicas for step in steps if step.t_s > 500.0])
    moves = np.diff(plans, axis=0)
    for pool in moves.T:
        signs = np.sign(pool[pool != 0])
        assert np.sum(signs[1:] != signs[:-1]) <= 2


def test_registry_refuses_what_it_does_not_know() -> None:
    with pytest.raises(PolicyError, match="unknown policy 'best'"):
        make_policy("best")
    with pytest.raises(PolicyError, match="headrom"):
        make_policy("lp:headrom=0.2")
    with pytest.raises(PolicyError, match="headroom"):
        make_policy("lp:headroom=1.5")


def test_parameters_come_from_the_name() -> None:
    assert make_policy("lp:interval_s=30").interval_s == 30


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lp:trend=abc", "trend abc: not a finite number"),
        ("lp:hold_s=nan", "hold_s nan: not a finite number"),
        ("lp:round_up=true", "round_up true: not a finite number"),
        ("lp:spare_s=-inf", "spare_s -inf: not a finite number"),
        ("lp-oracle:price_weight=much", "price_weight much: not a finite number"),
        ("lp+rule:up=high", "up high: not a finite number"),
        ("hpa:decode_running=x", "decode_running x: not a finite number"),
        ("queue-length:waiting=inf", "waiting inf: not a finite number"),
        ("wva:queue_threshold=none", "queue_threshold none: not a finite number"),
        ("learned:shield=False", "shield False: neither true nor false"),
        ("learned:shield=no", "shield no: neither true nor false"),
        ("learned:shield=0", "shield 0: neither true nor false"),
        ("static:replicas=3", "unknown parameter 'replicas'"),
        ("rule:upp=1", "unknown parameter 'upp'; one of up, down"),
        ("static:split=1", "unknown '1'; one of equal, initial"),
    ],
)
def test_a_value_that_a_parameter_does_not_take_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(PolicyError, match=named):
        make_policy(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hpa:decode_kv_use=0", "decode_kv_use 0.0"),
        ("queue-length:prefill_running=-1", "prefill_running -1.0"),
        ("lp:interval_s=0", "interval_s 0.0"),
        ("rule:wait=0", "wait 0.0"),
        ("lp+rule:latency=0", "latency 0.0"),
    ],
)
def test_what_is_divided_by_or_waited_for_is_above_zero(text: str, named: str) -> None:
    with pytest.raises(PolicyError, match=f"{named} must be above 0"):
        make_policy(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lp:stop_weight=-0.1", "stop_weight -0.1"),
        ("lp:start_weight=-1", "start_weight -1.0"),
        ("lp:price_weight=-0.01", "price_weight -0.01"),
        ("lp:hold_s=-600", "hold_s -600.0"),
        ("lp:round_up=3", "round_up 3.0"),
        ("lp:round_up=-0.1", "round_up -0.1"),
    ],
)
def test_the_lp_refuses_what_it_cannot_plan_with(text: str, named: str) -> None:
    with pytest.raises(PolicyError, match=f"policy lp: {named} must be"):
        make_policy(text)


def test_policies_from_above_are_read_by_the_same_rules() -> None:
    import agents.bounds  # noqa: F401  (registers policies)

    make_policy("best-static:simulations=10")
    for value in ("2.5", "few"):
        with pytest.raises(PolicyError, match=f"simulations {value}: not a whole number"):
            make_policy(f"best-static:simulations={value}")


def test_text_stays_text_whatever_it_looks_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "5").write_text("parameters: {up: 0.5}")
    monkeypatch.chdir(tmp_path)
    assert make_policy("thresholds:file=5").parameters.up == 0.5  # type: ignore[attr-defined]


def test_tuned_thresholds_are_finite(tmp_path: Path) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text("parameters: {wait: .nan}")
    with pytest.raises(PolicyError, match="wait: nan is not finite"):
        make_policy(f"thresholds:file={file}")


ONE_DECISION = """
import numpy as np
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, ClusterObservation
from hrl_planner.planner.policy import Plan, PlanContext
from hrl_planner.planner.registry import make_policy
from hrl_planner.spec import ClusterSpec

spec = ClusterSpec.load("small")
policy = make_policy("lp")
policy.reset(PlanContext(spec))
pools = np.zeros((len(spec.pools), len(POOL_FIELDS)))
for name in ("ready", "target_replicas"):
    pools[:, POOL_FIELDS.index(name)] = [pool.initial for pool in spec.pools]
classes = np.full((len(spec.slo_classes), len(CLASS_FIELDS)), 500.0)
classes[:, CLASS_FIELDS.index("arrivals_rps")] = 4.0
classes[:, CLASS_FIELDS.index("prefix_hit_rate")] = 0.25
plan = policy.decide(ClusterObservation(60.0, pools, classes))
answer = [plan.replicas.tolist(), np.round(plan.flows, 6).tolist()]
"""


def test_the_fluid_planner_decides_the_same_without_compiled_code() -> None:
    here: dict[str, object] = {}
    exec(ONE_DECISION, here)
    plain = subprocess.run(
        [sys.executable, "-c", ONE_DECISION + "print(answer)"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert plain.stdout.strip() == str(here["answer"])


@pytest.mark.parametrize("name", ["hpa", "queue-length"])
def test_an_autoscaler_that_has_just_begun_releases_nothing_at_once(name: str) -> None:
    """As Kubernetes' controller does, which counts what it finds among its recommendations."""
    policy = make_policy(name)
    policy.reset(PlanContext(SPEC))
    rows = np.zeros((len(SPEC.pools), len(POOL_FIELDS)))
    for field in ("target_replicas", "ready"):
        rows[:, POOL_FIELDS.index(field)] = 2.0
    idle = ClusterObservation(0.0, rows, np.zeros((len(SPEC.slo_classes), len(CLASS_FIELDS))))
    assert policy.decide(idle).replicas.tolist() == [2] * len(SPEC.pools)
    assert policy.decide(replace(idle, now_s=299.0)).replicas.tolist() == [2] * len(SPEC.pools)
    assert max(policy.decide(replace(idle, now_s=601.0)).replicas) < 2
