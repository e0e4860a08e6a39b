"""What is collected from engines' pages agrees with what the simulator says of the same traffic.

The engines are the mock's, in virtual time, with their own metrics code; the pages are text; the
simulator scrapes the same workers at the same moments. Request by request both agree to 1e-6
(tests/test_mock_engine_timing.py), so whatever differs here is how it was measured: the engine's
coarser buckets, and lengths that are counted at the end of a request instead of its beginning.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from envs.simulation import Simulation
from hrl_planner.collect import PoolWindow, Replicas, Timing, WorkerSample, observe_cluster
from hrl_planner.mock_engine.engine import Engine, Job
from hrl_planner.mock_engine.metrics import _ITL_S, _TTFT_S, EngineMetrics
from hrl_planner.mock_engine.model import Limits, Worker
from hrl_planner.mock_engine.times import ProfileTimes
from hrl_planner.observation import PoolObservation
from hrl_planner.profile import WorkerProfile
from hrl_planner.spec import ClusterSpec, PoolSpec
from hrl_planner.worker_metrics import read, series_of
from hrl_planner.workload.trace import Trace
from tests.builders import cluster, pool, slo_class, trace
from tests.virtual_clock import VirtualClock

PROFILE = "llama31_8b__l40s__tp1__vllm"
MODEL = "meta-llama/Meta-Llama-3.1-8B"
BLOCK = 16
LONGEST = 8192


def engine_of(spec: PoolSpec, clock: VirtualClock) -> tuple[Engine, EngineMetrics]:
    profile = WorkerProfile.load(spec.profile)
    blocks = profile.kv_capacity_tokens // BLOCK
    limits = Limits(spec.max_num_seqs, spec.max_num_batched_tokens, blocks, blocks, BLOCK)
    metrics = EngineMetrics(MODEL, LONGEST)
    times = ProfileTimes(profile, spec.max_num_seqs, spec.latency_scale)
    engine = Engine(Worker(limits, times), clock, [metrics.on_step])
    metrics.watch(engine)
    return engine, metrics


def conversations(duration_s: float, rate_rps: float, seed: int) -> Trace:
    """Poisson arrivals, log-normal lengths; half of the prompts begin like an earlier one."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1.0 / rate_rps, int(2 * duration_s * rate_rps)))
    arrivals = arrivals[arrivals < duration_s]
    prompts: list[list[int]] = []
    fresh = itertools.count()
    for _ in arrivals:
        old = prompts[rng.integers(len(prompts))] if prompts and rng.random() < 0.5 else []
        shared = old[: rng.integers(min(len(old), 100) + 1)]
        prompts.append([*shared, *itertools.islice(fresh, int(rng.lognormal(3.5, 0.6)) + 1)])
    isl = np.array([BLOCK * len(p) + rng.integers(BLOCK) for p in prompts])
    osl = np.clip(rng.lognormal(4.0, 0.8, arrivals.size).astype(int), 1, 1000)
    return trace(arrivals, isl, osl, blocks=prompts, duration_s=duration_s)


@dataclass
class Twins:
    """A simulation, and engines under the same trace whose pages are read at the same moments."""

    spec: ClusterSpec
    requests: Trace

    def __post_init__(self) -> None:
        self.simulation = Simulation(self.spec, self.requests)
        self.clock = VirtualClock()
        self.windows = {
            p.name: PoolWindow(Timing.of(self.spec.intervals, 0.0), 0.0) for p in self.spec.pools
        }
        self.engines: dict[str, tuple[str, Engine, EngineMetrics]] = {}
        for p in self.spec.pools:
            for k in range(p.initial):
                self.engines[f"{p.name}-{k}"] = (p.name, *engine_of(p, self.clock))
            names = {name: -math.inf for name, e in self.engines.items() if e[0] == p.name}
            self.windows[p.name].set_workers(names)
        self.turns = {role: itertools.cycle(self.of(role)) for role in ("aggregated", "prefill")}
        self.decode_turn = itertools.cycle(self.of("decode"))
        for row, at_s in enumerate(self.requests.arrival_s):
            self.clock.call_at(float(at_s), lambda row=row: self.arrive(row))
        for k in range(int(self.requests.duration_s / self.spec.intervals.scrape_s) + 1):
            self.clock.call_at(k * self.spec.intervals.scrape_s, self.scrape)

    def of(self, role: str) -> list[Engine]:
        roles = {p.name: p.role for p in self.spec.pools}
        return [e for name, e, _ in self.engines.values() if roles[name] == role]

    def job(self, row: int) -> Job:
        low, high = self.requests.block_offsets[row : row + 2]
        isl, osl = int(self.requests.isl_tokens[row]), int(self.requests.osl_tokens[row])
        blocks = self.requests.block_ids[low:high].tolist()
        kv_blocks = -(-(isl + osl) // BLOCK)
        return Job(isl=isl, osl=osl, blocks=blocks, kv_blocks=kv_blocks, token_ids=[],
                   on_token=lambda n: None)  # fmt: skip

    def arrive(self, row: int) -> None:
        job = self.job(row)
        if self.of("aggregated"):
            next(self.turns["aggregated"]).compute(job)
            return
        prompt = self.job(row)
        prompt.decodes_here = False
        prompt.on_token = lambda _: next(self.decode_turn).receive(job)
        next(self.turns["prefill"]).compute(prompt)

    def scrape(self) -> None:
        for name, (pool_name, _, metrics) in self.engines.items():
            page = metrics.exposition().decode()
            sample = WorkerSample.of(read(series_of(page, ("vllm:",))), self.clock.now())
            assert sample is not None
            self.windows[pool_name].add(name, sample)

    def observe(self, now_s: float) -> list[tuple[PoolObservation, PoolObservation]]:
        """Return what was collected and what the simulator says, pool by pool."""
        self.clock.run(now_s)
        self.simulation.advance_to(now_s)
        replicas = {
            p.name: Replicas(target=p.initial, quota=p.initial, ready=p.initial)
            for p in self.spec.pools
        }
        totals = {name: window.totals(now_s) for name, window in self.windows.items()}
        collected = observe_cluster(self.spec, now_s, replicas, totals)
        simulated = self.simulation.observe()
        return [(collected.pool(k), simulated.pool(k)) for k in range(len(self.spec.pools))]


EXACT = (
    *("target_replicas", "quota", "ready", "starting", "draining", "pending"),
    *("arrivals_rps", "waiting", "running", "kv_use", "prefix_hit_rate"),
    *("prompt_tokens_per_s", "metrics_age_s"),
)


def bucket_of(value: float, edges: tuple[float, ...], scale: float) -> tuple[float, float]:
    """Return the bucket, in milliseconds, that a value lies in."""
    uppers = np.array([0.0, *edges]) * scale
    k = int(np.searchsorted(uppers, value))
    return float(uppers[max(0, k - 1)]), float(uppers[min(k, uppers.size - 1)])


def assert_agree(
    mine: PoolObservation, theirs: PoolObservation, unsure: dict[str, float] | None = None
) -> None:
    """Compare two rows; `unsure` are tolerances of attainments, 0.01 where there is none."""
    unsure = {"ttft": 0.01, "itl": 0.01, **(unsure or {})}
    for name in EXACT:
        a, b = getattr(mine, name), getattr(theirs, name)
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9, nan_ok=True), name
    # The simulator books a leap's tokens at its end, the engine every step's.
    assert mine.output_tokens_per_s == pytest.approx(theirs.output_tokens_per_s, rel=0.01)
    # Lengths of requests that end within the window, not of those that begin in it.
    assert mine.isl_mean_tokens == pytest.approx(theirs.isl_mean_tokens, rel=0.03)
    assert mine.isl_std_tokens == pytest.approx(theirs.isl_std_tokens, rel=0.15)
    assert mine.osl_mean_tokens == pytest.approx(theirs.osl_mean_tokens, rel=1e-6, nan_ok=True)
    assert mine.osl_std_tokens == pytest.approx(theirs.osl_std_tokens, rel=0.06, nan_ok=True)
    for what, edges in (("ttft", _TTFT_S), ("itl", _ITL_S)):
        for q in ("p50", "p90"):
            a, b = getattr(mine, f"{what}_{q}_ms"), getattr(theirs, f"{what}_{q}_ms")
            assert math.isnan(a) == math.isnan(b), (what, q)
            if not math.isnan(a):
                # Both interpolate: one bucket of the one, half an octave of the other.
                low, high = bucket_of(a, edges, 1e3)
                assert low / math.sqrt(2.0) <= b <= high * math.sqrt(2.0), (what, q)
        a, b = getattr(mine, f"{what}_attainment"), getattr(theirs, f"{what}_attainment")
        assert a == pytest.approx(b, abs=unsure[what], nan_ok=True), what


# 50 ms is an edge of the engine's buckets; 30 ms is within one that holds most requests.
@pytest.mark.parametrize(("itl_ms", "unsure"), [(50.0, 0.01), (30.0, 0.35)])
def test_aggregated_workers(itl_ms: float, unsure: float) -> None:
    worker = pool("aggregated", PROFILE, 2, max_num_seqs=64, max_num_batched_tokens=2048)
    kind = slo_class(ttft_ms=300.0, itl_ms=itl_ms)
    twins = Twins(
        cluster(worker, model=MODEL, slo_classes=(kind,)), conversations(200.0, 8.0, seed=3)
    )
    for now_s in (20.0, 63.0, 131.0, 200.0):
        for mine, theirs in twins.observe(now_s):
            assert_agree(mine, theirs, {"itl": unsure})


def test_prefill_and_decode_workers() -> None:
    """The side a pool does not serve is unknown in both."""
    prefill = pool("prefill", PROFILE, 2, max_num_batched_tokens=4096)
    decode = pool("decode", PROFILE, 2, max_num_seqs=64)
    twins = Twins(
        cluster(prefill, decode, model=MODEL, slo_classes=(slo_class(ttft_ms=250.0, itl_ms=30.0),)),
        conversations(140.0, 8.0, seed=4),
    )
    for now_s in (64.0, 140.0):
        for mine, theirs in twins.observe(now_s):
            assert_agree(mine, theirs)


def test_traffic_that_ends_is_zero_and_not_unknown() -> None:
    worker = pool("aggregated", PROFILE, 1)
    requests = conversations(60.0, 4.0, seed=5)
    quiet = trace(requests.arrival_s, requests.isl_tokens, requests.osl_tokens, duration_s=200.0)
    twins = Twins(cluster(worker, model=MODEL), quiet)
    twins.observe(60.0)
    ((mine, theirs),) = twins.observe(200.0)
    assert mine.arrivals_rps == theirs.arrivals_rps == 0.0
    assert (mine.waiting, mine.running, mine.kv_use) == (0.0, 0.0, 0.0)
    assert mine.output_tokens_per_s == mine.prompt_tokens_per_s == 0.0
    for name in ("isl_mean_tokens", "osl_mean_tokens", "ttft_p90_ms", "itl_attainment"):
        assert math.isnan(getattr(mine, name)) and math.isnan(getattr(theirs, name))
