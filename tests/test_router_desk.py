from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrl_planner.choice import choose_prefill
from hrl_planner.router.discovery import Worker
from hrl_planner.router.flights import Leg
from hrl_planner.router.request import Refusal
from hrl_planner.spec import ClusterSpec
from tests.routers import Bench, aggregated_spec, workers


def test_a_loose_request_goes_to_the_cheap_pool_and_a_tight_one_to_the_fast():
    bench = Bench(aggregated_spec())
    assert bench.pool_of(bench.desk.arrive(bench.ask("loose"), "", 0.0)) == "cheap"
    assert bench.pool_of(bench.desk.arrive(bench.ask("tight"), "", 0.0)) == "fast"


def test_the_planners_weights_win_over_price_where_both_pools_keep_the_target():
    bench = Bench(aggregated_spec(), flows={"loose": {"fast": 3.0, "cheap": 1.0}})
    pools = [
        bench.pool_of(bench.desk.arrive(bench.ask("loose", prompt=i), "", 0.0)) for i in range(8)
    ]
    assert pools.count("fast") == 6


def test_requests_spill_over_when_the_weighted_pool_is_saturated():
    bench = Bench(aggregated_spec(), flows={"loose": {"cheap": 1.0}})
    pools = [
        bench.pool_of(bench.desk.arrive(bench.ask("loose", 8000, prompt=i), "", 0.0))
        for i in range(12)
    ]
    assert pools[0] == "cheap"
    assert "fast" in pools


def test_a_prompt_goes_where_its_prefix_is_cached():
    bench = Bench(aggregated_spec(), workers(aggregated_spec(), each=4))
    first = bench.desk.arrive(bench.ask("loose", prompt=1), "", 0.0)
    assert first is not None
    bench.desk.flights.end(first.leg)
    for _ in range(5):
        again = bench.desk.arrive(bench.ask("loose", prompt=1), "", 0.0)
        assert again is not None and again.leg.place.slot == first.leg.place.slot
        bench.desk.flights.end(again.leg)


def test_a_session_stays_with_its_worker_until_that_would_miss_the_target():
    bench = Bench(aggregated_spec(), workers(aggregated_spec(), each=4))
    first = bench.desk.arrive(bench.ask("tight", prompt=1), "s1", 0.0)
    assert first is not None
    place = first.leg.place
    again = bench.desk.arrive(bench.ask("tight", prompt=2), "s1", 0.0)
    assert again is not None and again.leg.place.slot == place.slot and again.reason == "session"
    bench.desk.flights.book(place, 0.0, new_tokens=200_000, kv_blocks=10, watched=True)
    moved = bench.desk.arrive(bench.ask("tight", prompt=3), "s1", 0.0)
    assert moved is not None and moved.leg.place.slot != place.slot


def test_a_request_that_no_pool_can_serve_in_time_waits_and_one_that_may_not_wait_is_shed():
    spec = aggregated_spec()
    bench = Bench(spec, workers(spec, each=1))
    for place in list(bench.fleet):
        bench.desk.flights.book(place, 0.0, new_tokens=500_000, kv_blocks=10, watched=True)
    assert bench.desk.arrive(bench.ask("tight"), "", 0.0) is None
    impatient = Bench(spec, workers(spec, each=1), admission={"queue": False})
    for place in list(impatient.fleet):
        impatient.desk.flights.book(place, 0.0, new_tokens=500_000, kv_blocks=10, watched=True)
    with pytest.raises(Refusal) as refused:
        impatient.desk.arrive(impatient.ask("tight"), "", 0.0)
    assert refused.value.status == 429 and refused.value.retry_after_s is not None
    # A class that sheds nothing takes the least bad pool.
    assert impatient.desk.arrive(impatient.ask("loose"), "", 0.0) is not None


def test_draining_dead_and_failing_workers_get_no_requests():
    spec = aggregated_spec()
    found = [Worker("fast-0", "fast", "10.0.0.1:1"), Worker("fast-1", "fast", "10.0.0.2:1")]
    bench = Bench(spec, [found[0], Worker("fast-1", "fast", "10.0.0.2:1", draining=True)])
    seat = bench.desk.arrive(bench.ask("tight"), "", 0.0)
    assert seat is not None and seat.leg.place.worker.name == "fast-0"
    bench.fleet.set_alive("fast-0", False, 0.0)
    assert bench.desk.arrive(bench.ask("tight"), "", 0.0) is None
    bench.fleet.set_alive("fast-0", True, 0.0)
    bench.fleet.failed(seat.leg.place, 0.0)
    assert bench.desk.arrive(bench.ask("tight"), "", 0.1) is None
    bench.fleet.wake(1.0)
    assert bench.desk.arrive(bench.ask("tight", arrived_s=1.0), "", 1.0) is not None


def test_a_worker_that_fails_again_and_again_rests_longer_each_time():
    bench = Bench(aggregated_spec(), [Worker("fast-0", "fast", "10.0.0.1:1")])
    place = bench.fleet.place(bench.fleet.slot("fast-0"))
    rests = []
    now = 0.0
    for _ in range(4):
        bench.fleet.failed(place, now)
        start = now
        while not bench.load("fast-0")["accepting"]:
            now += 0.25
            bench.fleet.wake(now)
        rests.append(now - start)
    assert rests == [0.5, 1.0, 2.0, 4.0]


def test_a_slot_that_is_taken_by_another_worker_starts_empty():
    spec = aggregated_spec()
    bench = Bench(spec, [Worker("a", "fast", "10.0.0.1:1")])
    leg = bench.desk.arrive(bench.ask("tight"), "", 0.0).leg  # type: ignore[union-attr]
    bench.apply([Worker("b", "fast", "10.0.0.2:1")])
    assert bench.load("b") == {
        "accepting": 1,
        "active": 0,
        "backlog_tokens": 0,
        "kv_blocks": 0,
    }
    bench.desk.flights.end(leg)
    assert bench.load("b")["active"] == 0


def test_a_decode_worker_that_holds_the_prompt_answers_without_a_prefill_hop():
    spec = ClusterSpec.load("small")
    bench = Bench(spec)
    first = bench.desk.arrive(bench.ask("batch", prompt=5), "", 0.0)
    assert first is not None and first.leg.place.worker.pool.startswith("prefill")
    bench.desk.flights.end(first.leg)
    ask = bench.ask("batch", prompt=5)
    decode = bench.desk.decode(ask, 0.0, prefilled=True)
    assert decode is not None
    bench.desk.flights.end(decode.leg)
    again = bench.desk.arrive(bench.ask("batch", prompt=5), "", 0.0)
    assert again is not None and again.reason == "decode_only"
    assert again.leg.place.slot == decode.leg.place.slot


def test_metrics_that_know_more_requests_than_the_books_add_strangers():
    bench = Bench(aggregated_spec())
    slot = bench.fleet.slot("fast-0")
    bench.desk.flights.correct(slot, 10.0, in_engine=7, kv_use=0.5)
    load = bench.load("fast-0")
    assert load["active"] == 7 and load["kv_blocks"] > 0
    assert bench.desk.flights.correct(slot, 11.0, in_engine=0, kv_use=0.0)
    assert bench.load("fast-0") == {
        "accepting": 1,
        "active": 0,
        "backlog_tokens": 0,
        "kv_blocks": 0,
    }


def test_a_booking_whose_end_was_never_told_is_closed_after_some_scrapes():
    bench = Bench(aggregated_spec())
    seat = bench.desk.arrive(bench.ask("tight"), "", 0.0)
    assert seat is not None
    slot = seat.leg.place.slot
    closed = [bench.desk.flights.correct(slot, 10.0 + i, 0, 0.0) for i in range(3)]
    assert closed == [False, False, True]
    assert bench.fleet.state.load[slot]["active"] == 0


def test_a_prompt_counts_as_computed_when_the_profile_says_so():
    bench = Bench(aggregated_spec())
    seat = bench.desk.arrive(bench.ask("tight", 2000), "", 0.0)
    assert seat is not None
    name = seat.leg.place.worker.name
    assert bench.load(name)["backlog_tokens"] == 2000
    bench.desk.flights.advance(0.001)
    assert bench.load(name)["backlog_tokens"] == 2000
    bench.desk.flights.advance(1.0)
    assert bench.load(name)["backlog_tokens"] == 0
    assert bench.load(name)["active"] == 1


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("aebcxl"), st.integers(0, 30)), max_size=60))
def test_books_never_go_below_nothing_and_end_at_nothing(steps: list[tuple[str, int]]):
    """Arrivals, ends, corrections, time, workers that come and go: load is what is open."""
    spec = aggregated_spec()
    bench = Bench(spec, admission={"queue": False})
    open_legs: list[Leg] = []
    now = 0.0
    for what, number in steps:
        now += 0.05
        if what == "a":
            seat = bench.desk.arrive(bench.ask("loose", 100 + number, prompt=number), "", now)
            if seat is not None:
                open_legs.append(seat.leg)
        elif what == "e" and open_legs:
            bench.desk.flights.end(open_legs.pop(number % len(open_legs)))
        elif what == "b":
            bench.desk.flights.advance(now + number)
        elif what == "c":
            slot = bench.fleet.slot("cheap-0")
            if slot >= 0:
                bench.desk.flights.correct(slot, now + number, number, 0.1)
        elif what == "x":
            bench.apply([w for i, w in enumerate(workers(spec)) if i != number % 4])
        else:
            bench.apply(workers(spec))
        load = bench.fleet.state.load
        assert (load["active"] >= 0).all() and (load["backlog_tokens"] >= 0).all()
        assert (load["kv_blocks"] >= 0).all()
    for leg in open_legs:
        bench.desk.flights.end(leg)
    for place in bench.fleet:
        for k in range(3):
            bench.desk.flights.correct(place.slot, now + 100.0 + k, 0, 0.0)
    for field in ("active", "backlog_tokens", "kv_blocks"):
        assert not bench.fleet.state.load[field].any()


@pytest.mark.parametrize("kind", ["round_robin", "least_loaded", "static_grid"])
def test_every_rule_of_the_simulator_is_selectable(kind: str):
    grid = {"target_edges_ms": [1000], "pools": [["fast", "cheap"]]}
    spec = aggregated_spec(kind=kind, prefill_grid=grid)
    bench = Bench(spec)
    pools = [
        bench.pool_of(bench.desk.arrive(bench.ask("loose", prompt=i), "", 0.0)) for i in range(8)
    ]
    assert pools == ["cheap"] * 8 if kind == "static_grid" else pools.count("fast") == 4


def test_the_choice_is_the_simulators_function_on_the_same_arrays():
    bench = Bench(aggregated_spec())
    ask = bench.ask("loose")
    bench.desk.chooser.look_up(ask, 0.0)
    state = bench.fleet.state
    served = state.served.copy()
    expected = choose_prefill(
        state, 1, ask.isl_tokens, ask.kv_blocks, 4.0, 4.0, 0.1, np.inf, np.inf
    )
    state.served[:] = served
    seat = bench.desk.arrive(ask, "", 0.0)
    assert seat is not None and seat.leg.place.slot == expected
