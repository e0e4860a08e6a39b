"""One pool's window: rates, gauges and distributions from samples in any order and of any kind."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrl_planner.collect import PoolWindow, Timing, WorkerSample
from hrl_planner.collect.histogram import quantile
from hrl_planner.worker_metrics import HistogramCounts, Reading

TIMING = Timing(window_s=60.0, lag_s=0.0, scrape_s=5.0, grace_s=30.0)
WARM = -math.inf


def sample(at_s: float, requests: float, *, ttft_s: float = 0.2, **scalars: float) -> WorkerSample:
    """An engine that has finished so many requests of 100 prompt and 10 answer tokens."""
    said = {
        "running": 0.0,
        "waiting": 0.0,
        "kv_use": 0.5,
        "finished": requests,
        "prompt_tokens": 100.0 * requests,
        "generated_tokens": 10.0 * requests,
    }
    edges = (0.1, 0.25, 1.0, math.inf)
    counts = tuple(requests if edge >= ttft_s else 0.0 for edge in edges)
    histograms = {"ttft_s": HistogramCounts(edges, counts, ttft_s * requests)}
    made = WorkerSample.of(Reading({**said, **scalars}, histograms), at_s)
    assert made is not None
    return made


def window(timing: Timing = TIMING, since_s: float = 0.0, **ready_since_s: float) -> PoolWindow:
    made = PoolWindow(timing, since_s)
    made.set_workers(ready_since_s)
    return made


def steady(pool: PoolWindow, name: str, times: range, per_s: float = 1.0) -> None:
    """A worker that finishes `per_s` requests each second."""
    for t in times:
        pool.add(name, sample(float(t), per_s * t))


def test_rates_of_workers_add_up():
    pool = window(a=WARM, b=WARM)
    steady(pool, "a", range(0, 101, 5), 1.0)
    steady(pool, "b", range(2, 101, 5), 3.0)
    found = pool.totals(100.0)
    assert found.rates["arrived"] == pytest.approx(4.0)
    assert found.rates["prompt_tokens"] == pytest.approx(400.0)
    assert math.isnan(found.rates["cache_hits"])  # nobody said anything of it
    assert found.age_s == 0.0


def test_requests_that_are_still_in_the_engine_have_arrived():
    pool = window(a=WARM)
    pool.add("a", sample(0.0, 10.0, running=2.0, waiting=1.0))
    pool.add("a", sample(10.0, 14.0, running=5.0, waiting=8.0))
    assert pool.totals(10.0).rates["arrived"] == pytest.approx((4 + 13 - 3) / 10.0)


def test_an_engine_that_counts_arrivals_is_believed():
    pool = window(a=WARM)
    pool.add("a", sample(0.0, 10.0, arrived=50.0))
    pool.add("a", sample(10.0, 10.0, arrived=70.0))
    assert pool.totals(10.0).rates["arrived"] == pytest.approx(2.0)


def test_samples_within_the_lag_are_not_seen_yet():
    pool = window(Timing(60.0, lag_s=7.0), a=WARM)
    steady(pool, "a", range(0, 41, 5))
    pool.add("a", sample(45.0, 1e6, running=99.0))
    found = pool.totals(50.0)
    assert found.rates["arrived"] == pytest.approx(1.0)
    assert found.running == 0.0
    assert found.age_s == 10.0


def test_a_restarted_engine_loses_one_interval_at_most():
    pool = window(a=WARM)
    steady(pool, "a", range(0, 31, 5))
    for t in range(35, 61, 5):  # anew at 32
        pool.add("a", sample(float(t), t - 32.0))
    assert pool.totals(60.0).rates["arrived"] == pytest.approx((60.0 - 2.0) / 60.0)


def test_a_restart_is_cold_again():
    pool = window(a=WARM)
    steady(pool, "a", range(0, 31, 5))
    for t in range(35, 101, 5):  # anew at 32, slow until 60
        slow, edges = min(t - 32.0, 28.0), (0.1, 0.25, 1.0, math.inf)
        fast = t - 32.0 - slow
        ttft = HistogramCounts(edges, (0.0, fast, fast + slow, fast + slow), 0.0)
        made = WorkerSample.of(Reading({"finished": fast + slow}, {"ttft_s": ttft}), float(t))
        assert made is not None
        pool.add("a", made)
    for now_s in (60.0, 90.0, 100.0):
        assert quantile(pool.totals(now_s).histograms["ttft_s"], 1.0) <= 0.25


def test_a_worker_that_went_counts_with_what_it_had_said_and_its_gauges_do_not():
    pool = window(a=WARM, b=WARM)
    steady(pool, "a", range(0, 61, 5))
    steady(pool, "b", range(0, 31, 5))
    pool.add("b", sample(30.0, 30.0, running=7.0, waiting=3.0))
    pool.set_workers({"a": WARM})
    found = pool.totals(60.0)
    # 30 that finished and 10 that were in it
    assert found.rates["arrived"] == pytest.approx((60.0 + 40.0) / 60.0)
    assert found.rates["generated_tokens"] == pytest.approx((600.0 + 300.0) / 60.0)
    assert (found.running, found.waiting) == (0.0, 0.0)
    steady(pool, "a", range(65, 96, 5))
    assert pool.totals(95.0).rates["arrived"] == pytest.approx(1.0)


def test_a_pool_of_which_half_answers_shows_its_whole_traffic():
    pool = window(a=WARM, b=WARM, c=WARM, d=WARM)
    for name in "ab":
        steady(pool, name, range(0, 61, 5))
        pool.add(name, sample(60.0, 60.0, running=4.0))
    found = pool.totals(60.0)
    assert found.rates["prompt_tokens"] == pytest.approx(4 * 100.0)
    assert (found.running, found.kv_use) == (16.0, 0.5)
    assert found.age_s == 0.0  # half of them
    pool.set_workers(dict.fromkeys("abcde", WARM))
    assert pool.totals(60.0).age_s == 60.0  # less than half: since we listen


def test_a_worker_that_joins_counts_for_the_time_it_was_there():
    pool = window(a=WARM)
    steady(pool, "a", range(0, 61, 5))
    pool.set_workers({"a": WARM, "b": 30.0})
    for t in range(35, 61, 5):
        pool.add("b", sample(float(t), t - 30.0))
    assert pool.totals(60.0).rates["arrived"] == pytest.approx((60.0 + 30.0) / 60.0)


def test_the_first_sample_of_an_old_engine_is_no_traffic():
    """A planner that starts anew, or a worker that was not ready for a while."""
    pool = window(since_s=100.0, a=98.0)
    pool.add("a", sample(101.0, 1e6))
    assert math.isnan(pool.totals(102.0).rates["arrived"])
    pool.add("a", sample(106.0, 1e6 + 5.0))
    assert pool.totals(106.0).rates["arrived"] == pytest.approx(1.0)


def test_latencies_of_a_warm_up_are_left_out_and_its_load_is_not():
    pool = window(a=WARM)
    steady(pool, "a", range(0, 61, 5))
    pool.set_workers({"a": WARM, "cold": 20.0})
    for t in range(20, 61, 5):
        slow = 0.9 if t <= 50 else 0.2
        pool.add("cold", sample(float(t), t - 20.0, ttft_s=slow))
    found = pool.totals(50.0)
    assert quantile(found.histograms["ttft_s"], 1.0) <= 0.25
    assert found.rates["arrived"] > 1.5
    alone = window(cold=20.0)
    for t in range(20, 46, 5):
        alone.add("cold", sample(float(t), t - 20.0, ttft_s=0.9))
    assert sum(h.n for h in alone.totals(45.0).histograms["ttft_s"]) == 0.0


def test_a_pool_without_workers_has_no_traffic_and_one_that_nobody_heard_has_unknown():
    nobody = window().totals(30.0)
    assert nobody.rates["arrived"] == nobody.running == nobody.kv_use == 0.0
    silent = window(a=WARM).totals(30.0)
    assert all(math.isnan(rate) for rate in silent.rates.values())
    assert math.isnan(silent.running) and math.isnan(silent.kv_use) and math.isnan(silent.age_s)


def test_zero_traffic_is_zero():
    pool = window(a=WARM)
    for t in range(0, 61, 5):
        pool.add("a", sample(float(t), 1000.0))
    found = pool.totals(60.0)
    assert found.rates["arrived"] == found.rates["generated_tokens"] == 0.0
    assert sum(h.n for h in found.histograms["ttft_s"]) == 0.0


def test_an_outage_ages_and_becomes_unknown():
    pool = window(a=WARM)
    steady(pool, "a", range(0, 31, 5))
    assert pool.totals(80.0).age_s == 50.0
    assert pool.totals(80.0).rates["arrived"] == pytest.approx(1.0)
    later = pool.totals(95.0)
    assert math.isnan(later.age_s) and math.isnan(later.rates["arrived"])
    pool.add("a", sample(200.0, 200.0))
    assert pool.totals(200.0).rates["arrived"] == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_a_number_that_is_none_is_not_said(wrong: float):
    pool = window(a=WARM, b=WARM)
    for t in range(0, 61, 5):
        pool.add("a", sample(float(t), float(t), running=2.0))
        pool.add("b", sample(float(t), wrong, running=wrong, prompt_tokens=1.0 * t))
    found = pool.totals(60.0)
    assert found.rates["arrived"] == pytest.approx(2.0)  # b taken to do what a does
    assert found.rates["prompt_tokens"] == pytest.approx(101.0)
    assert found.running == 4.0


def test_nothing_is_known_before_anybody_listened():
    pool = window(since_s=50.0, a=WARM)
    assert math.isnan(pool.totals(50.0).rates["arrived"])


def test_memory_is_that_of_a_window():
    pool = window(a=WARM)
    steady(pool, "a", range(0, 10_000, 5))
    steady(pool, "gone", range(0, 5_000, 5))
    pool.totals(10_000.0)
    assert {name: len(h.samples) for name, h in pool._workers.items()} == {"a": 18}


# ---- whatever happens

events = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.floats(0.0, 90.0),
        st.one_of(st.floats(0.0, 1e6), st.just(math.nan)),
    ),
    max_size=25,
)


@given(events, st.floats(0.0, 100.0), st.sets(st.sampled_from("abcd")), st.floats(0.0, 20.0))
def test_nothing_is_ever_negative_or_infinite(said, now_s, listed, lag_s):
    pool = PoolWindow(Timing(60.0, lag_s, 5.0, 10.0), 0.0)
    pool.set_workers(dict.fromkeys(listed, WARM))
    for name, at_s, requests in said:
        pool.add(name, sample(at_s, requests, ttft_s=0.2))
    found = pool.totals(now_s)
    for value in (*found.rates.values(), found.running, found.waiting, found.kv_use, found.age_s):
        assert math.isnan(value) or 0.0 <= value < math.inf
    assert math.isnan(found.kv_use) or found.kv_use <= 1.0
    assert all((h.counts >= 0.0).all() for hs in found.histograms.values() for h in hs)


@given(events, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(said, random):
    said = list({(name, at_s): (name, at_s, n) for name, at_s, n in said}.values())
    found = []
    for _ in range(2):
        pool = window(a=WARM, b=20.0, c=WARM)
        for name, at_s, requests in said:
            pool.add(name, sample(at_s, requests))
        found.append(pool.totals(90.0))
        random.shuffle(said)
    assert repr(found[0].rates) == repr(found[1].rates)
    assert repr(found[0]) == repr(found[1])


@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=12),
    st.lists(st.integers(1, 11), max_size=3, unique=True),
)
def test_restarts_lose_what_one_interval_each_held_at_most(per_interval, restarts):
    """A worker does `per_interval` requests between scrapes; restarts come right after one."""
    pool = window(Timing(1000.0), a=WARM)
    count, done, at_most_lost = 0, 0, 0
    pool.add("a", sample(0.0, 0.0))
    for k, n in enumerate(per_interval):
        if k in restarts:
            count = 0
            at_most_lost += n
        count, done = count + n, done + n
        pool.add("a", sample(5.0 * (k + 1), float(count)))
    end_s = 5.0 * len(per_interval)
    found = pool.totals(end_s).rates["arrived"] * end_s
    assert done - at_most_lost - 1e-6 <= found <= done + 1e-6
