"""Capacities against numbers worked out by hand, and one against the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from envs.simulation import Simulation
from hrl_planner.capacity import CapacityModel, ClassLoad, capacity
from hrl_planner.spec import AssignSpec, ClusterSpec
from tests.builders import cluster, linear_profile, pool, profile_file, slo_class, trace


def load(isl: float = 1000, osl: float = 100, hit: float = 0.0, **std: float) -> ClassLoad:
    return ClassLoad(
        isl=np.array([isl]),
        isl_std=np.array([std.get("isl_std", 0.0)]),
        osl=np.array([osl]),
        osl_std=np.array([std.get("osl_std", 0.0)]),
        hit_rate=np.array([hit]),
    )


def batch_profile(kv_capacity_tokens: int = 10_000_000) -> str:
    """Prefill 0.1 ms per token; a decode step of B requests takes 10 + B ms."""
    batches = np.arange(1, 201)
    return profile_file(
        prefill_ms=(((0.1,),),),
        decode_batch=batches,
        decode_ms=(10.0 + batches)[:, None],
        kv_capacity_tokens=kv_capacity_tokens,
    )


def disaggregated(
    profile: str | None = None, ttft_ms: float = 1000.0, itl_ms: float = 50.0
) -> ClusterSpec:
    profile = profile or batch_profile()
    return cluster(
        pool("prefill", profile, max_num_batched_tokens=1000),
        pool("decode", profile),
        slo_classes=(slo_class(ttft_ms=ttft_ms, itl_ms=itl_ms),),
    )


def test_prefill_is_loaded_until_one_in_ten_waits_too_long() -> None:
    # Prompts of 1000 tokens take s = 0.1 s; 1 - 0.1 - 1.5 * 0.05 = 0.825 s are left to wait.
    # One server, no spread: P(wait > t) = u exp(-2 (1 - u) t / s) must be 0.1.
    cap, share = capacity(CapacityModel.from_spec(disaggregated()), load())
    u = cap[0, 0] * 0.1
    assert u * np.exp(-2 * (1 - u) * 0.825 / 0.1) == pytest.approx(0.1, rel=0.01)
    assert share[0, 0] == pytest.approx(0.9, abs=0.001)


def test_cached_prefixes_cost_nothing() -> None:
    model = CapacityModel.from_spec(disaggregated(ttft_ms=60_000))
    cold, _ = capacity(model, load())
    warm, _ = capacity(model, load(hit=0.5))
    assert warm[0, 0] == pytest.approx(2 * cold[0, 0], rel=0.01)


def test_long_prompts_are_chunked_and_still_take_their_time() -> None:
    # 4000 tokens at most 1000 at a time: 4 steps of 0.1 s. A patient class loads up to 0.98.
    cap, _ = capacity(CapacityModel.from_spec(disaggregated(ttft_ms=60_000)), load(isl=4000))
    assert cap[0, 0] == pytest.approx(0.98 / 0.4, rel=0.02)


def test_a_pool_too_slow_for_a_class_is_of_no_use_to_it() -> None:
    cap, share = capacity(CapacityModel.from_spec(disaggregated(ttft_ms=150)), load())
    assert cap[0, 0] == 0.0
    assert share[0, 0] == 0.0


def test_spread_prompts_meet_the_target_in_part() -> None:
    model = CapacityModel.from_spec(disaggregated(ttft_ms=200))
    cap, share = capacity(model, load(isl_std=1000.0))
    assert cap[0, 0] > 0.0
    assert 0.0 < share[0, 0] < 0.9


def test_replicas_that_share_a_queue_carry_more() -> None:
    model = CapacityModel.from_spec(disaggregated(ttft_ms=300))
    one, _ = capacity(model, load())
    four, _ = capacity(model, load(), servers=np.array([4.0, 4.0]))
    assert four[0, 0] > 1.3 * one[0, 0]


def test_decode_runs_the_largest_batch_within_the_itl_target() -> None:
    # 10 + B <= 50 ms: B = 40 requests of 100 tokens, 5 s each: 8 per second.
    cap, _ = capacity(CapacityModel.from_spec(disaggregated()), load())
    assert cap[0, 1] == pytest.approx(8.0, rel=0.01)


def test_decode_leaves_room_for_kv_fluctuation() -> None:
    # 1100 tokens per request, 100 slots: 100 - sqrt(100) = 90 on average; a step of 90 takes
    # 100 ms: 90 / (100 * 0.1 s) = 9 per second.
    spec = disaggregated(batch_profile(kv_capacity_tokens=110_000), itl_ms=1000.0, ttft_ms=60_000)
    cap, _ = capacity(CapacityModel.from_spec(spec), load())
    assert cap[0, 1] == pytest.approx(9.0, rel=0.01)


def test_decode_too_slow_even_alone() -> None:
    cap, _ = capacity(CapacityModel.from_spec(disaggregated(itl_ms=10.5)), load())
    assert cap[0, 1] == 0.0


def test_a_request_larger_than_the_cache_has_no_capacity() -> None:
    spec = disaggregated(batch_profile(kv_capacity_tokens=1000))
    cap, _ = capacity(CapacityModel.from_spec(spec), load())
    assert cap[0, 1] == 0.0


def test_aggregated_replicas_share_the_clock() -> None:
    # A patient class, ITL 50 ms, decode step 10 + B: at rate r prefill takes u = 0.1 r, the rest
    # of the time decodes B = r * 100 * itl with itl = (10 + B) / (1 - u) = 50 ms. So B = 5 r and
    # 10 + 5 r = 50 (1 - 0.1 r): r = 4.
    spec = cluster(
        pool("aggregated", batch_profile(), max_num_batched_tokens=1000),
        slo_classes=(slo_class(ttft_ms=60_000, itl_ms=50.0),),
    )
    cap, _ = capacity(CapacityModel.from_spec(spec), load())
    assert cap[0, 0] == pytest.approx(4.0, rel=0.02)


def test_a_patient_class_is_held_back_by_the_impatient_one_beside_it() -> None:
    spec = cluster(
        pool("prefill", batch_profile(), max_num_batched_tokens=1000),
        pool("decode", batch_profile()),
        slo_classes=(
            slo_class("tight", ttft_ms=300, itl_ms=20.0, assign=AssignSpec(share=0.5)),
            slo_class("patient", ttft_ms=60_000, itl_ms=500.0, assign=AssignSpec(share=0.5)),
        ),
    )
    model = CapacityModel.from_spec(spec)
    both = ClassLoad(*(np.repeat(field, 2) for field in load()))
    alone, _ = capacity(model, both)
    mixed, _ = capacity(model, both, tightest=np.array([0, 0]))
    assert np.all(mixed[1] < alone[1])
    np.testing.assert_allclose(mixed[0], alone[0])
    np.testing.assert_allclose(mixed[1], alone[0], rtol=0.01)


def test_a_replica_loaded_to_capacity_keeps_its_promise_in_the_simulator() -> None:
    spec = cluster(
        pool("prefill", linear_profile(), max_num_batched_tokens=1000),
        pool("decode", linear_profile(decode_ms=1.0), replicas=4),
        slo_classes=(slo_class(ttft_ms=400, itl_ms=10.0),),
    )
    cap, share = capacity(CapacityModel.from_spec(spec), load(osl=2))
    arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / cap[0, 0], 20_000))
    simulation = Simulation(spec, trace(arrivals, 1000, 2))
    simulation.finish()
    assert simulation.result().attained.mean() == pytest.approx(share[0, 0], abs=0.04)
