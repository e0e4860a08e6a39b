"""The simulator reproduces what queueing theory knows about the clusters it can solve.

Deterministic systems are compared exactly. For stochastic ones the expected value is a textbook
formula, derived in the docstring, and the tolerance is several standard errors of the simulated
mean at the given number of requests (seeds are fixed, so a test cannot fail by chance).

Notation: arrival rate L, service time S, utilisation rho = L E[S].
"""

from __future__ import annotations

import numpy as np
import pytest

from envs.simulation import SimResult, Simulation
from hrl_planner.spec import ClusterSpec, KvTransferSpec
from hrl_planner.workload.trace import Trace
from tests.builders import cluster, constant_profile, linear_profile, pool, profile_file, trace


def run(spec: ClusterSpec, requests: Trace) -> SimResult:
    """Simulate a trace to its end, with time for the last requests to finish."""
    simulation = Simulation(spec, requests)
    simulation.advance_to(requests.duration_s)
    simulation.finish(grace_s=10_000.0)
    result = simulation.result()
    assert np.all(result.status == 1)
    return result


def poisson(rate_rps: float, n: int, isl: object = 100, osl: object = 1, seed: int = 1) -> Trace:
    """n requests that arrive at random at a rate."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate_rps, n)
    return trace(np.cumsum(gaps), isl, osl)


def one_at_a_time(profile: str, replicas: int = 1) -> ClusterSpec:
    """Workers that serve one request after the other and answer with a single token."""
    return cluster(pool("aggregated", profile, replicas, max_num_seqs=1))


def batches(profile: str) -> ClusterSpec:
    """One worker that takes everything that waits into its next prefill step."""
    return cluster(pool("aggregated", profile, max_num_seqs=4096, max_num_batched_tokens=1_000_000))


def decode_only(decode_ms: float = 10.0, **fields: object) -> ClusterSpec:
    """A prefill worker of negligible time in front of one decode worker."""
    return cluster(
        pool("prefill", constant_profile(prefill_ms=1e-6), max_num_batched_tokens=1_000_000),
        pool("decode", constant_profile(decode_ms=decode_ms), **fields),
    )


def decode_residence_s(result: SimResult) -> np.ndarray:
    """Time from arrival to the last token, per request."""
    return result.finish_s - result.arrival_s


class TestDeterministic:
    def test_an_unhurried_single_server_never_lets_anyone_wait(self) -> None:
        """D/D/1 with rho = 1/2: every request takes exactly its service time."""
        result = run(one_at_a_time(constant_profile(prefill_ms=10.0)), trace(np.arange(50) * 0.02))
        np.testing.assert_allclose(result.ttft_s, 0.01, rtol=1e-9)

    def test_an_overloaded_single_server_queues_linearly(self) -> None:
        """D/D/1 with rho = 2: request n waits n (S - 1/L)."""
        result = run(one_at_a_time(constant_profile(prefill_ms=10.0)), trace(np.arange(50) * 0.005))
        np.testing.assert_allclose(result.ttft_s, 0.01 + np.arange(50) * 0.005, rtol=1e-9)

    def test_round_robin_over_c_servers_carries_c_times_the_load(self) -> None:
        """D/D/3 with rho = 5/6 per server: nobody waits; with rho = 5/3 the queue grows."""
        spec = one_at_a_time(constant_profile(prefill_ms=10.0), replicas=3)
        calm = run(spec, trace(np.arange(60) * 0.004))
        np.testing.assert_allclose(calm.ttft_s, 0.01, rtol=1e-9)
        hasty = run(spec, trace(np.arange(60) * 0.002))
        np.testing.assert_allclose(hasty.ttft_s, 0.01 + (np.arange(60) // 3) * 0.004, rtol=1e-9)

    def test_requests_of_one_moment_share_a_step(self) -> None:
        """An idle worker looks at its queue when all that arrives at the same time is in it."""
        spec = cluster(pool("aggregated", linear_profile(prefill_ms_per_token=0.1)))
        result = run(spec, trace([1.0, 1.0, 1.0], [100, 300, 600], 1))
        np.testing.assert_allclose(result.ttft_s, 0.1, rtol=1e-9)

    def test_a_lone_answer_takes_one_step_per_token(self) -> None:
        result = run(decode_only(decode_ms=7.0), trace([0.0], 100, 64))
        assert result.ttft_s[0] == pytest.approx(0.007, rel=1e-6)
        assert result.itl_s[0] == pytest.approx(0.007, rel=1e-9)

    def test_decode_step_times_follow_the_growing_context(self) -> None:
        """With step time c context the answer takes c (isl + ... + isl + osl - 1)."""
        profile = profile_file(
            prefill_ms=(((1e-12,),),),
            decode_context_tokens=(1, 100_001),
            decode_ms=((0.01, 1000.01),),
        )
        result = run(
            cluster(pool("prefill", profile), pool("decode", profile)), trace([0], 300, 50)
        )
        expected_ms = 0.01 * np.arange(300, 350).sum()
        assert decode_residence_s(result)[0] == pytest.approx(1e-3 * expected_ms, rel=1e-6)

    def test_a_kv_transfer_adds_its_latency_and_its_bytes_over_the_bandwidth(self) -> None:
        """2 ms + 1000 tokens x 1 MB / 10 GB/s = 102 ms on top of prefill and the first step."""
        profile = constant_profile(prefill_ms=20.0, decode_ms=5.0)
        link = KvTransferSpec(latency_ms=2.0, bandwidth_gb_per_s=10.0, bytes_per_token=1_000_000)
        spec = cluster(pool("prefill", profile), pool("decode", profile), kv_transfer=link)
        result = run(spec, trace([1.0], 1000, 1))
        assert result.ttft_s[0] == pytest.approx(0.020 + 0.102 + 0.005, rel=1e-9)

    def test_a_prompt_longer_than_the_token_budget_takes_a_step_per_chunk(self) -> None:
        """2,500 tokens in chunks of 1,000, 1,000 and 500 at 0.1 ms each."""
        spec = cluster(
            pool(
                "aggregated", linear_profile(prefill_ms_per_token=0.1), max_num_batched_tokens=1000
            )
        )
        result = run(spec, trace([0.0], 2500, 1))
        assert result.ttft_s[0] == pytest.approx(0.25, rel=1e-9)


class TestSingleServer:
    N = 200_000

    @pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
    def test_m_d_1_mean_wait(self, rho: float) -> None:
        """M/D/1: E[W] = rho S / (2 (1 - rho))."""
        service_s = 0.01
        spec = one_at_a_time(constant_profile(prefill_ms=1e3 * service_s))
        result = run(spec, poisson(rho / service_s, self.N))
        wait_s = result.ttft_s - service_s
        assert wait_s.mean() == pytest.approx(rho * service_s / (2 * (1 - rho)), rel=0.03)

    def test_m_d_1_probability_of_no_wait(self) -> None:
        """PASTA: an arrival finds the server idle with probability 1 - rho."""
        result = run(one_at_a_time(constant_profile(prefill_ms=10.0)), poisson(60.0, self.N))
        assert np.mean(result.ttft_s < 0.010 + 1e-9) == pytest.approx(0.4, abs=0.01)

    def test_m_g_1_mean_wait_with_random_prompts(self) -> None:
        """Pollaczek-Khinchine: E[W] = L E[S^2] / (2 (1 - rho)), S = 0.1 ms x prompt length."""
        isl = np.random.default_rng(2).geometric(1 / 100, self.N)
        service_s = 1e-4 * isl
        rate = 0.7 / service_s.mean()
        spec = one_at_a_time(linear_profile(prefill_ms_per_token=0.1))
        result = run(spec, poisson(rate, self.N, isl))
        expected = rate * np.mean(service_s**2) / (2 * (1 - 0.7))
        assert (result.ttft_s - service_s).mean() == pytest.approx(expected, rel=0.05)

    def test_round_robin_turns_poisson_into_erlang_arrivals(self) -> None:
        """With two servers each sees E2 arrivals: less wait than M/D/1, more than D/D/1.

        Kingman's bound for GI/G/1 with arrival CV^2 = 1/2 and constant service, rho = 0.8:
        E[W] <= rho S CV^2 / (2 (1 - rho)) = S.
        """
        result = run(one_at_a_time(constant_profile(10.0), replicas=2), poisson(160.0, self.N))
        wait_s = (result.ttft_s - 0.01).mean()
        assert 0.5 * 0.01 < wait_s < 0.01

    def test_a_busy_batch_server_lets_each_request_wait_half_a_step(self) -> None:
        """Steps of constant time S take all that waits; at L S = 20 the worker never rests.

        Then a request waits the rest of the running step, S / 2 on average, and takes its own.
        """
        result = run(batches(constant_profile(prefill_ms=10.0)), poisson(2000.0, self.N))
        assert result.ttft_s.mean() == pytest.approx(0.015, rel=0.005)


class TestDecode:
    N = 100_000

    def test_one_sequence_at_a_time_is_m_d_1(self) -> None:
        """max_num_seqs = 1: service is osl steps, and a free worker starts at once."""
        service_s = 20 * 0.005
        result = run(decode_only(5.0, max_num_seqs=1), poisson(0.7 / service_s, self.N, osl=20))
        wait_s = decode_residence_s(result) - service_s
        assert wait_s.mean() == pytest.approx(0.7 * service_s / (2 * 0.3), rel=0.05)

    def test_a_request_joins_a_busy_worker_half_a_step_later(self) -> None:
        """Always busy (40 running on average): the rest of the running step is uniform."""
        result = run(decode_only(20.0), poisson(100.0, self.N, osl=20))
        busy = result.ttft_s[1000:-1000]
        assert busy.mean() == pytest.approx(0.030, rel=0.005)
        assert np.quantile(busy, 0.9) == pytest.approx(0.020 + 0.9 * 0.020, rel=0.01)

    def test_time_per_token_is_the_step_time_whatever_the_load(self) -> None:
        result = run(decode_only(20.0), poisson(100.0, 5_000, osl=20))
        np.testing.assert_allclose(result.itl_s, 0.020, rtol=1e-6)

    def test_steps_as_long_as_the_batch_share_the_processor(self) -> None:
        """M/G/1-PS: residence is E[S] / (1 - rho) for any service distribution.

        An iteration of n requests takes n x 0.1 ms, so each gets 1/n of the worker, in quanta far
        shorter than a request. Geometric answers of 200 tokens: E[S] = 20 ms alone.
        """
        seqs = np.arange(1, 513)
        profile = profile_file(
            prefill_ms=(((1e-9,),),), decode_batch=seqs, decode_ms=0.1 * seqs[:, None]
        )
        spec = cluster(pool("prefill", profile), pool("decode", profile, max_num_seqs=512))
        osl = np.random.default_rng(3).geometric(1 / 200, self.N)
        result = run(spec, poisson(0.6 / (osl.mean() * 1e-4), self.N, isl=1, osl=osl))
        assert decode_residence_s(result).mean() == pytest.approx(0.02 / 0.4, rel=0.05)

    def test_kv_capacity_bounds_the_batch_like_max_num_seqs(self) -> None:
        """Room for the blocks of one request makes the same M/D/1 as one sequence."""
        load = poisson(7.0, 20_000, isl=100, osl=20)
        spec = decode_only(5.0, max_num_seqs=1)
        tight = cluster(
            spec.pools[0],
            pool("decode", constant_profile(decode_ms=5.0, kv_capacity_tokens=239)),
        )
        np.testing.assert_allclose(run(tight, load).finish_s, run(spec, load).finish_s, rtol=1e-9)


class TestLittlesLaw:
    @pytest.mark.parametrize("rate_rps", [2.0, 8.0])
    def test_requests_in_the_system_are_rate_times_residence(self, rate_rps: float) -> None:
        """L = lambda W, the left side from the timeline's samples, the right from the requests."""
        profile = profile_file(
            prefill_new_tokens=(1, 1000),
            prefill_ms=(((5.0,), (80.0,)),),
            decode_batch=(1, 64),
            decode_ms=((10.0,), (40.0,)),
        )
        spec = cluster(pool("prefill", profile), pool("decode", profile, max_num_seqs=64))
        rng = np.random.default_rng(4)
        n = int(4000 * rate_rps)
        load = poisson(rate_rps, n, isl=rng.integers(1, 1000, n), osl=rng.integers(1, 200, n))
        result = run(spec, load)
        during = result.timeline["t_s"] < load.duration_s
        in_system = (result.timeline["waiting"] + result.timeline["running"])[during].sum(axis=1)
        residence_s = decode_residence_s(result).mean()
        assert in_system.mean() == pytest.approx(rate_rps * residence_s, rel=0.05)

    def test_gpu_seconds_are_replicas_times_time(self) -> None:
        load = poisson(5.0, 100)
        result = run(one_at_a_time(constant_profile(), replicas=3), load)
        np.testing.assert_allclose(result.gpu_seconds, 3 * load.duration_s, rtol=1e-9)
