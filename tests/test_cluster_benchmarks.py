"""What the chaos run's verdicts stand on: the observer's rule, flaps, worker pages."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("kubernetes")

from benchmarks.cluster.field import Clocks, quick
from benchmarks.cluster.flaps import Span, flaps, judged
from benchmarks.cluster.observer import Observer, Scaling
from benchmarks.cluster.planners import round_of
from benchmarks.cluster.store import State
from benchmarks.cluster.stored import PodSeen
from benchmarks.cluster.workers import Demand, Workers
from hrl_planner.worker_metrics import read, series_of

SPEC = quick("small", Clocks())


def state(budget: int, pods: int, quota: int = 0, phase: str = "Running") -> State:
    """A group with pods of one H100 pool, each with one GPU."""
    pod = PodSeen("uid", "", "decode-h100", phase, False, True, True)
    spec = {"budget": {"gpus": {"H100": budget, "L40S": 8}}}
    return State(
        pods={f"pod-{i}": pod for i in range(pods)},
        pools={"decode-h100": {"spec": {"quota": quota}}},
        groups={"small": {"spec": spec}},
    )


def over(*states: State, observer: Observer | None = None) -> int:
    observer = observer or Observer(SPEC)
    for each in states:
        observer.on_revision(each, [])
    return observer.counts.over_revisions


def test_a_successor_is_who_leads_not_who_stands_by() -> None:
    line = {"level": "local", "name": "decode-h100", "time": 5.0}
    acts, waits = ({**line, "mode": mode} for mode in ("active", "standby"))
    found = round_of(json.dumps(acts).encode(), "one")
    assert found is not None and found.planner == ("local", "decode-h100")
    assert round_of(json.dumps(waits).encode(), "one") is None
    assert round_of(b"2026-11-01 INFO leads 1", "one") is None


def test_more_pods_than_budget_are_a_violation_and_ended_pods_are_none() -> None:
    assert over(state(8, 8), state(8, 9)) == 1
    assert over(state(8, 8), state(8, 20, phase="Succeeded")) == 0


def test_over_budget_from_the_start_may_only_shrink() -> None:
    assert over(state(8, 11), state(8, 10), state(8, 9)) == 0
    assert over(state(8, 11), state(8, 9), state(8, 10)) == 1


def test_what_was_granted_before_a_budget_was_lowered_may_still_come_and_no_more() -> None:
    assert over(state(8, 5, quota=7), state(4, 5, quota=7), state(4, 7, quota=7)) == 0
    assert over(state(8, 5, quota=7), state(4, 5, quota=7), state(4, 8, quota=8)) == 1
    # Once it was taken back it may not come again.
    assert over(state(8, 5, quota=7), state(4, 5, quota=3), state(4, 6, quota=7)) == 1


def test_the_replacement_of_a_deleted_pod_is_allowed_for_until_the_pod_is_gone() -> None:
    observer = Observer(SPEC)
    drained: list[bool] = []
    observer.on_revision(state(8, 8), [])
    observer.allow("decode-h100", 1, lambda _: bool(drained))
    assert over(state(8, 9), observer=observer) == 0
    drained.append(True)
    assert over(state(8, 9), observer=observer) == 1


def test_a_change_that_is_undone_around_a_fault_is_a_flap() -> None:
    fault = [Span("leader killed", 100.0, 116.0)]
    down, up = Scaling(99.0, "p", 3, 2), Scaling(110.0, "p", 2, 3)
    spans = judged(fault, [], local_s=1.0)
    assert len(flaps(spans, [down, up])) == 1
    assert flaps(spans, [down, Scaling(110.0, "other", 2, 3)]) == []
    assert flaps(spans, [down, Scaling(110.0, "p", 2, 1)]) == []
    assert flaps(spans, [Scaling(90.0, "p", 3, 2), up]) == []


def test_a_fault_while_demand_changes_is_not_judged() -> None:
    fault = [Span("leader killed", 100.0, 116.0)]
    assert judged(fault, [Span("demand", 80.0, 99.0)], local_s=1.0) == []
    assert len(judged(fault, [Span("demand", 60.0, 80.0)], local_s=1.0)) == 1


def test_pages_count_a_pools_share_of_the_demand() -> None:
    ready = {"prefill-h100": 2, "decode-h100": 1}
    workers = Workers(SPEC, lambda: ready, lambda address: None)
    workers.demand = Demand(10.0, 1000, 100)
    read_at = {}
    for now_s in (0.0, 60.0):
        page = workers.page("127.0.0.1", "prefill-h100", now_s)
        read_at[now_s] = read(series_of(page, ("vllm:",)))
    done = read_at[60.0].scalars["finished"] - read_at[0.0].scalars["finished"]
    assert math.isclose(done, 60.0 * 10.0 / 2, abs_tol=1.0)
    assert read_at[60.0].scalars["prompt_tokens"] == 1000 * 300
    workers.health = "nan"
    broken = read(series_of(workers.page("127.0.0.1", "prefill-h100", 61.0), ("vllm:",)))
    assert math.isnan(broken.scalars["finished"])
