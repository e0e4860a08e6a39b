"""Dynamo as a policy: what it is told of the cluster, and what comes of its answers.

What is told is tested without Dynamo. The rest needs its interpreter (`make dynamo-venv`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agents.peers  # noqa: F401  (registers the policy)
from agents.dynamo import client
from agents.dynamo.client import Json
from agents.dynamo.deployment import describe
from agents.dynamo.policy import DynamoPolicy
from agents.dynamo.telemetry import Telemetry, Traffic, share
from envs.simulation import Simulation
from hrl_planner.errors import PolicyError
from hrl_planner.observation import (
    CLASS_FIELDS,
    POOL_FIELDS,
    ClusterObservation,
    PoolObservation,
)
from hrl_planner.planner import loop
from hrl_planner.planner.policy import Plan, PlanContext
from hrl_planner.planner.registry import make_policy
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.trace import Trace

SPEC = ClusterSpec.load("small")  # prefill-h100, prefill-l40s, decode-h100, decode-l40s
PREFILL, DECODE = 0, 2

UNKNOWN = PoolObservation(*[float("nan")] * len(POOL_FIELDS))
SETTLED = replace(
    UNKNOWN, target_replicas=2.0, ready=2.0, starting=0.0, draining=0.0, pending=0.0, quota=2.0
)
BUSY = replace(
    SETTLED,
    arrivals_rps=3.0,
    isl_mean_tokens=1000.0,
    osl_mean_tokens=200.0,
    waiting=5.0,
    running=4.0,
    kv_use=0.5,
    prefix_hit_rate=0.25,
    prompt_tokens_per_s=2000.0,
)


def observe(now_s: float, **pools: PoolObservation) -> ClusterObservation:
    """An observation of SPEC; pools not named are settled and have no metrics."""
    rows = [pools.get(pool.name.replace("-", "_"), SETTLED).to_row() for pool in SPEC.pools]
    return ClusterObservation(now_s, np.array(rows), np.full((2, len(CLASS_FIELDS)), np.nan))


def told(index: int, row: PoolObservation, spec: ClusterSpec = SPEC) -> Json:
    name = spec.pools[index].name.replace("-", "_")
    return Telemetry(spec, 180.0).read(observe(60.0, **{name: row}))[index]


# What Dynamo is told


@given(total=st.integers(0, 10_000), parts=st.integers(1, 100))
def test_shares_add_up_and_differ_by_at_most_one(total: int, parts: int) -> None:
    shares = [share(total, parts, k) for k in range(parts)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


@given(ready=st.integers(1, 8), waiting=st.integers(0, 50), running=st.integers(0, 50))
@pytest.mark.parametrize(("index", "kind"), [(PREFILL, "prefill"), (DECODE, "decode")])
def test_workers_together_have_the_requests_of_their_pool(
    index: int, kind: str, ready: int, waiting: int, running: int
) -> None:
    row = replace(
        BUSY, ready=float(ready), waiting=float(waiting), running=float(running), kv_use=0.1
    )
    engines = told(index, row)["engines"]
    assert len(engines) == ready
    for where, count in (("queued", waiting), ("scheduled", running)):
        assert sum(e[where][f"num_{kind}_requests"] for e in engines) == count


def test_a_prefill_pass_computes_what_is_not_cached_and_queues_whole_prompts() -> None:
    engine = told(PREFILL, replace(BUSY, ready=1.0, running=2.0, waiting=3.0))["engines"][0]
    assert engine["scheduled"]["sum_prefill_tokens"] == 2 * 750
    assert engine["scheduled"]["sum_prefill_kv_tokens"] == 2 * 250
    assert engine["queued"]["sum_prefill_tokens"] == 3 * 1000
    assert engine["wall_time"] > 0.0


def test_a_prefill_pass_is_never_larger_than_the_token_budget() -> None:
    engine = told(PREFILL, replace(BUSY, ready=1.0, running=200.0))["engines"][0]
    most = SPEC.pools[PREFILL].max_num_batched_tokens
    assert engine["scheduled"]["sum_prefill_tokens"] == most


def test_a_decode_pass_holds_the_kv_in_use_less_the_answers_still_to_come() -> None:
    # Reserved are prompt and answer, 1,200 tokens a request; on average 100 of 200 are there.
    engine = told(DECODE, replace(BUSY, ready=1.0))["engines"][0]
    reserved = 0.5 * SPEC.profiles()[DECODE].kv_capacity_tokens
    assert engine["scheduled"]["sum_decode_kv_tokens"] == pytest.approx(
        reserved * 1100 / 1200, abs=1.0
    )


def test_an_idle_worker_sends_zeros() -> None:
    for index in (PREFILL, DECODE):
        row = replace(BUSY, waiting=0.0, running=0.0, kv_use=0.0)
        for engine in told(index, row)["engines"]:
            assert engine["wall_time"] == 0.0
            assert not any(engine["scheduled"].values())
            assert not any(engine["queued"].values())


def test_draining_workers_carry_their_share_but_are_not_reported() -> None:
    engines = told(DECODE, replace(BUSY, ready=1.0, draining=1.0, running=10.0))["engines"]
    assert [e["scheduled"]["num_decode_requests"] for e in engines] == [5]


def test_without_metrics_there_is_neither_a_forward_pass_nor_traffic() -> None:
    state = told(PREFILL, SETTLED)
    assert state == {"replicas": 2, "ready": 2, "engines": [], "traffic": None}


def test_a_mixed_pass_lasts_longer_the_more_prompts_come_in() -> None:
    mixed = SPEC.replace(
        pools=tuple(
            pool.model_copy(update={"role": "aggregated"}) if k == DECODE else pool
            for k, pool in enumerate(SPEC.pools)
        )
    )
    quiet, loud = (
        told(DECODE, replace(BUSY, prompt_tokens_per_s=rate), mixed)["engines"][0]
        for rate in (0.0, 4000.0)
    )
    assert quiet["scheduled"]["num_prefill_requests"] == 0
    assert loud["scheduled"]["sum_prefill_tokens"] > 0
    assert loud["wall_time"] > quiet["wall_time"]


def test_traffic_counts_the_last_three_minutes_in_windows_that_do_not_overlap() -> None:
    traffic = Traffic(60.0, 180.0, "decode")
    for now_s in np.arange(5.0, 301.0, 5.0):
        rate = float(now_s // 60)  # the window that ends at k minutes saw k requests/s
        traffic.add(float(now_s), replace(BUSY, arrivals_rps=rate))
    counted = traffic.read()
    assert counted is not None
    assert counted["num_req"] == pytest.approx((3 + 4 + 5) * 60.0)
    assert (counted["isl"], counted["osl"]) == (1000.0, 200.0)


def test_requests_of_a_prefill_pool_end_with_their_first_token() -> None:
    traffic = told(PREFILL, replace(BUSY, osl_mean_tokens=float("nan")))["traffic"]
    assert traffic["osl"] == 1.0
    assert traffic["kv_hit_rate"] == 0.25


def test_no_requests_are_no_reason_to_know_nothing() -> None:
    silent = replace(SETTLED, arrivals_rps=0.0, waiting=0.0, running=0.0, kv_use=0.0)
    assert told(DECODE, silent)["traffic"] == {
        "duration_s": 180.0,
        "num_req": 0.0,
        "isl": 0.0,
        "osl": 0.0,
    }


def test_every_pool_is_a_deployment_with_the_tightest_targets_it_can_hold() -> None:
    spec = ClusterSpec.load("reference")
    pools = {
        pool["name"]: pool for pool in describe(PlanContext(spec), {}, intent_ttl_s=360.0)["pools"]
    }
    assert list(pools) == [pool.name for pool in spec.pools]
    assert pools["prefill-h200-tp1"]["config"]["mode"] == "prefill"
    assert pools["prefill-h200-tp1"]["config"]["ttft_ms"] == 500.0
    assert pools["decode-h200-tp2"]["config"]["itl_ms"] == 25.0  # interactive
    assert pools["decode-a100-tp2"]["config"]["itl_ms"] == 40.0  # too slow for it: agentic
    assert pools["decode-l40s-tp2"]["config"]["max_gpu_budget"] == 8 * 2


def test_an_arbiter_has_the_gpus_of_one_type() -> None:
    spec = ClusterSpec.load("reference")
    assert describe(PlanContext(spec), {}, 360.0)["gpus"] == {"H200": 16, "A100": 16, "L40S": 16}


def test_a_pool_whose_profile_is_unknown_starts_without_one() -> None:
    pools = describe(PlanContext(SPEC, blind_pools=frozenset({DECODE})), {}, 360.0)["pools"]
    assert [pool["profile"] is None for pool in pools] == [False, False, True, False]


# The pipe


def test_without_an_interpreter_the_error_says_how_to_make_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(client.PYTHON_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(PolicyError, match=r"nowhere.*make dynamo-venv.*dynamo_requirements\.txt"):
        DynamoPolicy()


def test_an_interpreter_without_dynamo_is_named_with_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(client.PYTHON_VARIABLE, sys.executable)
    with pytest.raises(PolicyError, match=r"No module named 'dynamo.*dynamo_requirements\.txt"):
        DynamoPolicy().reset(PlanContext(SPEC))


def stub(monkeypatch: pytest.MonkeyPatch, folder: Path, *answers: str) -> client.Connection:
    """A server that says these lines, one per request, and ends."""
    script = folder / "server.py"
    lines = "".join(f"input(); print({answer!r}, flush=True)\n" for answer in answers)
    script.write_text("print('{}', flush=True)\n".replace("{}", '{"ready": true}') + lines)
    monkeypatch.setattr(client, "_SERVER", script)
    return client.Connection(Path(sys.executable))


def test_an_error_of_dynamo_is_an_error_of_the_policy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connection = stub(monkeypatch, tmp_path, json.dumps({"error": "ValueError: ttft_ms"}))
    with pytest.raises(PolicyError, match="ValueError: ttft_ms"):
        connection.ask({"start": {}})
    connection.close()


def test_a_server_that_ends_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connection = stub(monkeypatch, tmp_path)
    with pytest.raises(PolicyError, match="ended"):
        connection.ask({"tick": {}})
    connection.close()


def test_parameters_are_checked_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(client.PYTHON_VARIABLE, sys.executable)
    with pytest.raises(PolicyError, match="predictor 'crystal-ball'; one of arima"):
        make_policy("dynamo:predictor=crystal-ball")
    with pytest.raises(PolicyError, match=r"load_s 2\.5"):
        make_policy("dynamo:load_s=2.5")
    assert make_policy("dynamo:load_s=10,throughput_s=60").interval_s == 10.0


# Theirs


@pytest.fixture
def dynamo() -> None:
    try:
        client.find_python()
    except PolicyError as error:
        pytest.skip(str(error))


def trace(rate: float, duration_s: float) -> Trace:
    rng = np.random.default_rng(0)
    n = int(rate * duration_s)
    return Trace(
        name="steady",
        arrival_s=np.sort(rng.uniform(0.0, duration_s, n)),
        isl_tokens=np.full(n, 1000, np.int32),
        osl_tokens=np.full(n, 200, np.int32),
        duration_s=duration_s,
    )


def drive(
    load: Trace, events: tuple[ClusterEvent, ...] = (), text: str = "dynamo:predictor=constant"
) -> list[loop.Step]:
    simulation = Simulation(SPEC, load, events=events)
    policy = make_policy(text)
    policy.reset(PlanContext(SPEC))
    steps: list[loop.Step] = []
    loop.run(simulation, policy, load.duration_s, steps.append)
    return steps


def replicas(steps: list[loop.Step]) -> np.ndarray:
    return np.array([step.wanted.replicas for step in steps])


@pytest.mark.usefixtures("dynamo")
def test_it_grows_under_load_and_keeps_one_replica_a_pool_when_the_load_is_gone() -> None:
    wanted = replicas(drive(replace(trace(60.0, 300.0), duration_s=900.0)))
    assert wanted.sum(axis=1).max() > wanted[0].sum()
    assert np.all(wanted[-1] == 1)


@pytest.mark.usefixtures("dynamo")
def test_its_arbiters_never_approve_more_gpus_of_a_type_than_there_are() -> None:
    wanted = replicas(drive(trace(80.0, 600.0)))
    for gpu_type, budget in SPEC.budget.gpus.items():
        gpus = [p.gpus_per_replica if p.gpu_type == gpu_type else 0 for p in SPEC.pools]
        assert np.max(wanted @ gpus) <= budget


@pytest.mark.usefixtures("dynamo")
def test_it_holds_while_there_are_no_metrics() -> None:
    outage = ClusterEvent(120.0, "metrics_outage", value=400.0)
    steps = drive(trace(40.0, 400.0), (outage,))
    blind = [s.wanted.replicas for s in steps if np.isnan(s.observation.pool(DECODE).waiting)]
    late = np.array(blind[-20:])
    assert len(late) == 20
    assert np.all(late == late[0])


@pytest.mark.usefixtures("dynamo")
def test_two_clusters_of_one_process_do_not_mix() -> None:
    busy, quiet = DynamoPolicy(predictor="constant"), DynamoPolicy(predictor="constant")
    for policy in (busy, quiet):
        policy.reset(PlanContext(SPEC))
    idle = replace(BUSY, waiting=0.0, running=0.0, kv_use=0.0, ready=1.0, target_replicas=1.0)
    for now_s in (0.0, 5.0):
        grown = busy.decide(observe(now_s, prefill_h100=replace(BUSY, waiting=400.0)))
        still = quiet.decide(observe(now_s, prefill_h100=idle))
    assert grown.replicas[PREFILL] == 3
    assert still.replicas[PREFILL] == 1


@pytest.mark.usefixtures("dynamo")
def test_a_setting_dynamo_refuses_is_the_users_error() -> None:
    policy = make_policy("dynamo:load_s=200")
    with pytest.raises(PolicyError, match="must be shorter than throughput_adjustment_interval"):
        policy.reset(PlanContext(SPEC))


@pytest.mark.usefixtures("dynamo")
def test_it_tells_why() -> None:
    policy = DynamoPolicy(predictor="constant")
    policy.reset(PlanContext(SPEC))
    plan: Plan | None = None
    for now_s in (0.0, 5.0):
        plan = policy.decide(observe(now_s, prefill_h100=replace(BUSY, waiting=400.0)))
    assert plan is not None
    assert policy.why[PREFILL]["load"] == "scale_up"
    assert plan.replicas[PREFILL] == 3
    assert "prefill-h100 3 success" in plan.reason
