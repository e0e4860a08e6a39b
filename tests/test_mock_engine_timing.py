"""The engine in virtual time answers every request when the simulator says it would."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest

from envs.simulation import SimResult, Simulation
from hrl_planner.mock_engine.engine import Engine, Job, StepReport
from hrl_planner.mock_engine.kv_events import block_hashes
from hrl_planner.mock_engine.model import Limits, Warmup, Worker
from hrl_planner.mock_engine.times import ProfileTimes
from hrl_planner.profile import WorkerProfile
from hrl_planner.spec import ClusterSpec, KvTransferSpec, PoolSpec
from hrl_planner.workload.trace import Trace
from tests.builders import cluster, linear_profile, pool, profile_file, trace
from tests.virtual_clock import LateClock, VirtualClock

PROFILE = "llama31_8b__l40s__tp1__vllm"
MODEL = "meta-llama/Meta-Llama-3.1-8B"
BLOCK = 16


@dataclass
class Outcome:
    """What became of each request of a trace."""

    first_token_s: dict[int, float] = field(default_factory=dict)
    finish_s: dict[int, float] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)

    def agree_with(self, result: SimResult) -> None:
        rows = range(result.arrival_s.size)
        assert np.all(result.status == 1)
        for name in ("first_token_s", "finish_s", "cached_tokens"):
            mine = getattr(self, name)
            np.testing.assert_allclose(
                [mine[row] for row in rows], getattr(result, name), rtol=1e-6, err_msg=name
            )


def engine_of(spec: PoolSpec, clock: VirtualClock, block: int = BLOCK) -> Engine:
    """An engine that plays the one worker of a pool."""
    profile = WorkerProfile.load(spec.profile)
    blocks = profile.kv_capacity_tokens // block
    limits = Limits(spec.max_num_seqs, spec.max_num_batched_tokens, blocks, blocks, block)
    times = ProfileTimes(profile, spec.max_num_seqs, spec.latency_scale)
    return Engine(Worker(limits, times), clock)


def conversations(n: int, rate_rps: float, seed: int) -> Trace:
    """Requests at random moments; half of them share the beginning of another's prompt."""
    rng = np.random.default_rng(seed)
    prompts: list[list[int]] = []
    fresh = itertools.count()
    for _ in range(n):
        old = prompts[rng.integers(len(prompts))] if prompts and rng.random() < 0.5 else []
        shared = old[: rng.integers(min(len(old), 160) + 1)]
        prompts.append([*shared, *itertools.islice(fresh, 40)])
    isl = np.array([BLOCK * len(p) + rng.integers(BLOCK) for p in prompts])
    return trace(
        np.cumsum(rng.exponential(1.0 / rate_rps, n)),
        isl,
        rng.integers(1, 150, n),
        blocks=prompts,
    )


def simulated(spec: ClusterSpec, requests: Trace) -> SimResult:
    simulation = Simulation(spec, requests)
    simulation.advance_to(requests.duration_s)
    simulation.finish(grace_s=10_000.0)
    return simulation.result()


def make_job(requests: Trace, row: int, outcome: Outcome, clock: VirtualClock) -> Job:
    low, high = requests.block_offsets[row : row + 2]
    isl, osl = int(requests.isl_tokens[row]), int(requests.osl_tokens[row])

    def on_token(n: int) -> None:
        if n == 1:
            outcome.first_token_s[row] = clock.now()
        if n == osl:
            outcome.finish_s[row] = clock.now()

    return Job(
        isl=isl,
        osl=osl,
        blocks=requests.block_ids[low:high].tolist(),
        kv_blocks=-(-(isl + osl) // BLOCK),
        token_ids=[],
        on_token=on_token,
    )


@pytest.mark.parametrize(("rate_rps", "batched_tokens"), [(2.0, 8192), (8.0, 1024)])
def test_an_aggregated_worker_agrees_with_the_simulator(
    rate_rps: float, batched_tokens: int
) -> None:
    """Calm, and with prompts in chunks under a queue that holds many."""
    worker = pool("aggregated", PROFILE, max_num_seqs=32, max_num_batched_tokens=batched_tokens)
    requests = conversations(200, rate_rps, seed=1)
    clock, outcome = VirtualClock(), Outcome()
    engine = engine_of(worker, clock)
    jobs = [make_job(requests, row, outcome, clock) for row in range(len(requests))]
    for job, arrival_s in zip(jobs, requests.arrival_s, strict=True):
        clock.call_at(float(arrival_s), lambda job=job: engine.compute(job))
    clock.run()
    outcome.cached_tokens = {row: job.cached_tokens for row, job in enumerate(jobs)}
    result = simulated(cluster(worker, model=MODEL), requests)
    assert result.cached_tokens.sum() > 0
    outcome.agree_with(result)
    assert not engine.jobs
    assert engine.kv_usage == 0.0
    assert engine.lag_s == 0.0


def test_a_prefill_and_a_decode_worker_agree_with_the_simulator() -> None:
    """The decode worker pulls the KV cache over a slow link at its step boundaries."""
    prefill = pool("prefill", PROFILE, max_num_batched_tokens=2048)
    decode = pool("decode", PROFILE, max_num_seqs=16)
    link = KvTransferSpec(latency_ms=3.0, bandwidth_gb_per_s=5.0)
    spec = cluster(prefill, decode, model=MODEL, kv_transfer=link)
    requests = conversations(200, 4.0, seed=2)
    clock, outcome = VirtualClock(), Outcome()
    first, second = engine_of(prefill, clock), engine_of(decode, clock)

    def start(row: int) -> None:
        job = make_job(requests, row, outcome, clock)
        job.transfer_s = 3e-3 + job.isl * spec.kv_bytes_per_token / 5e9

        def handed_over(_: int) -> None:
            outcome.cached_tokens[row] = prompt.cached_tokens
            second.receive(job)

        prompt = make_job(requests, row, outcome, clock)
        prompt.decodes_here = False
        prompt.on_token = handed_over
        first.compute(prompt)

    for row in range(len(requests)):
        clock.call_at(float(requests.arrival_s[row]), lambda row=row: start(row))
    clock.run()
    outcome.agree_with(simulated(spec, requests))
    assert not first.jobs
    assert not second.jobs


class TestEngine:
    def job(self, isl: int = 100, osl: int = 10, **fields: object) -> Job:
        defaults = {
            "blocks": block_hashes(range(isl), BLOCK),
            "kv_blocks": -(-(isl + osl) // BLOCK),
            "token_ids": range(isl),
            "on_token": lambda n: None,
        }
        return Job(isl=isl, osl=osl, **{**defaults, **fields})

    def test_a_request_that_is_cancelled_frees_its_place_and_kv_at_once(self) -> None:
        clock = VirtualClock()
        engine = engine_of(pool("aggregated", linear_profile(), max_num_seqs=1), clock)
        told: list[float] = []
        gone, next_one = self.job(osl=1000), self.job(osl=1, on_token=lambda n: told.append(n))
        engine.compute(gone)
        clock.run(0.5)
        assert engine.n_running == 1
        engine.compute(next_one)
        assert engine.n_waiting == 1
        engine.cancel(gone)
        assert engine.kv_usage == 0.0
        clock.run()
        assert told == [1]

    def test_a_transfer_that_is_cancelled_never_arrives(self) -> None:
        clock = VirtualClock()
        engine = engine_of(pool("decode", linear_profile()), clock)
        job = self.job(transfer_s=1.0)
        engine.receive(job)
        assert engine.n_waiting == 1
        engine.cancel(job)
        clock.run()
        assert engine.n_waiting == engine.n_running == 0
        assert job.generated == 0

    @pytest.mark.parametrize("hangs_s", [0.001, 5.0])
    def test_a_hang_delays_and_loses_nothing(self, hangs_s: float) -> None:
        """Within a step of 10 ms a hang is not seen; a long one ends the step when it is over."""
        clock = VirtualClock()
        profile = linear_profile(decode_ms=10.0)
        engine = engine_of(pool("decode", profile), clock)
        times: list[float] = []
        engine.receive(self.job(osl=5, on_token=lambda n: times.append(clock.now())))
        clock.run(0.012)
        engine.hang(True)
        clock.call_at(0.012 + hangs_s, lambda: engine.hang(False))
        clock.run()
        steps = np.diff(times)
        assert len(times) == 5
        assert np.sum(steps > 0.011) == (hangs_s > 1.0)
        np.testing.assert_allclose(np.sort(steps)[:-1], 0.01)

    def test_a_step_can_begin_slow_and_get_fast(self) -> None:
        clock = VirtualClock()
        profile = WorkerProfile.load(profile_file(decode_ms=((10.0,),)))
        limits = Limits(8, 64, 1000, 1000, BLOCK)
        worker: Worker[Job] = Worker(limits, ProfileTimes(profile, 8), Warmup(0.05, 3.0))
        engine = Engine(worker, clock)
        times: list[float] = []
        engine.receive(self.job(osl=4, on_token=lambda n: times.append(clock.now())))
        clock.run()
        np.testing.assert_allclose(times, [0.03, 0.06, 0.07, 0.08])

    def test_late_timers_do_not_add_up_but_a_stalled_process_starts_anew(self) -> None:
        """Ten steps of 10 ms, each timer 4 ms late, and then one that is 2 s late."""
        clock = LateClock(0.004)
        reports: list[StepReport] = []
        worker = engine_of(pool("decode", linear_profile(decode_ms=10.0)), clock).worker
        engine = Engine(worker, clock, [reports.append])
        job = self.job(osl=1000)
        engine.receive(job)
        while len(reports) < 10:
            clock.step()
        first = reports[0].began_s
        np.testing.assert_allclose(
            [report.ended_s - first for report in reports], 0.01 * np.arange(1, 11)
        )
        clock.late_s = 2.0
        clock.step()
        assert engine.lag_s == 0.0  # this timer was set before
        clock.step()
        assert engine.lag_s == pytest.approx(2.0)
        clock.late_s = 0.0
        clock.step()
        assert reports[-1].began_s == pytest.approx(reports[-2].ended_s + 2.0)

    def test_steps_made_up_for_one_after_another_have_no_pause_between_them(self) -> None:
        clock = LateClock(0.025)  # two steps and a half
        ended: list[str] = []
        worker = engine_of(pool("decode", linear_profile(decode_ms=10.0)), clock).worker
        engine = Engine(
            worker, clock, [lambda _: ended.append("step")], on_pause=lambda: ended.append("pause")
        )
        engine.receive(self.job(osl=6))
        while len(ended) < 3:
            clock.step()
        assert ended == ["step"] * 3
        clock.late_s = 0.0
        clock.run()
        assert ended[-3:] == ["step", "step", "pause"]
        assert ended.count("step") == 6

    def test_observers_see_every_token(self) -> None:
        clock = VirtualClock()
        reports: list[StepReport] = []
        spec = pool("aggregated", linear_profile())
        engine = engine_of(spec, clock)
        engine = Engine(engine.worker, clock, [reports.append])
        engine.compute(self.job(osl=7))
        clock.run()
        tokens = sum(len(r.step.decoding) + len(r.end.completed) for r in reports)
        assert tokens == 7
