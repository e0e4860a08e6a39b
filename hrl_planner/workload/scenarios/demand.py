"""Scenarios made of load alone: how it rises, swings, bursts and changes its nature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hrl_planner._memo import once_per_spec
from hrl_planner.spec import ClusterSpec, StartupSpec
from hrl_planner.workload import curves
from hrl_planner.workload.curves import RateCurve
from hrl_planner.workload.prefixes import SessionModel
from hrl_planner.workload.scenarios.base import ScenarioCase
from hrl_planner.workload.scenarios.traffic import (
    Stream,
    closest_class,
    default_mix,
    fixed_lengths,
    label_of,
    play,
    single_turn,
    sustainable_rps,
)
from hrl_planner.workload.trace import Trace


@once_per_spec
def with_startup(spec: ClusterSpec, startup: StartupSpec) -> ClusterSpec:
    """The spec with one start-up law for all pools."""
    pools = tuple(pool.model_copy(update={"startup": startup}) for pool in spec.pools)
    return spec.replace(pools=pools)


def immediate_mix(spec: ClusterSpec) -> tuple[Stream, ...]:
    """The default mix as single turns: the load follows its curve at once."""
    return tuple(replace(s, model=single_turn(s.model)) for s in default_mix(spec))


def play_shared(streams: Sequence[Stream], curve: RateCurve, seed: int) -> Trace:
    """All streams on one curve, each with its share of it."""
    return play(streams, [curve.scale(rate=s.share) for s in streams], seed)


def one_stream(
    spec: ClusterSpec, ttft_ms: float, isl: float, osl: float
) -> tuple[tuple[Stream, ...], float]:
    """Requests of one length for the class nearest to a TTFT target, and their capacity.

    Where no pool holds that class's targets at this length, the next more patient class is taken.
    """
    first = spec.slo_classes[closest_class(spec, ttft_ms)].ttft_ms
    candidates = sorted(
        (i for i, c in enumerate(spec.slo_classes) if c.ttft_ms >= first),
        key=lambda i: spec.slo_classes[i].ttft_ms,
    )
    model: SessionModel = fixed_lengths(isl, osl)
    streams: tuple[Stream, ...] = ()
    for index in candidates:
        streams = (Stream(index, label_of(spec.slo_classes[index]), model, 1.0),)
        capacity = sustainable_rps(spec, streams)
        if capacity > 0:
            return streams, capacity
    # Nobody can be served within a promise at this length: the default mix is the nearest question.
    mix = immediate_mix(spec)
    return mix, sustainable_rps(spec, mix)


def diurnal_mix(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """A whole day compressed into the duration; every class has its own hours."""
    mix = default_mix(spec)
    # In parts of what the budget carries when the mix is the average one at all hours. Peaks of
    # one class come while others are quiet: enough for all if GPUs follow, short if they stay.
    peak = 1.25 * sustainable_rps(spec, mix) * load
    hours = (0.42, 0.76, 0.94, 0.34)
    heights = (1.0, 1.5, 1.5, 1.0)
    bumps = curves.bursts(1.0, 1.4, duration_s, seed=seed, mean_quiet_s=300, mean_burst_s=40)
    plays = []
    for number, stream in enumerate(mix):
        day = curves.diurnal(
            peak * heights[number % len(heights)] * stream.share,
            duration_s,
            day_s=duration_s,
            trough=0.12,
            peak_at=hours[number % len(hours)],
        )
        plays.append(curves.product(day, bumps) if number == 0 else day)
    return ScenarioCase(spec, play(mix, plays, seed))


def prefill_starved_sinusoid(
    spec: ClusterSpec, seed: int, duration_s: float, load: float
) -> ScenarioCase:
    """Long prompts swing 24-fold while prefill starts at its minimum."""
    streams, capacity = one_stream(spec, ttft_ms=3000, isl=8000, osl=1000)
    high = 0.8 * capacity * load
    curve = curves.sinusoid(high / 24, high, duration_s, period_s=duration_s / 2)
    starved = tuple(
        pool.model_copy(update={"initial_replicas": pool.min_replicas})
        if pool.role == "prefill"
        else pool
        for pool in spec.pools
    )
    return ScenarioCase(spec.replace(pools=starved), play_shared(streams, curve, seed))


def zero_traffic(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """Busy for a third of the time, then nothing at all."""
    mix = immediate_mix(spec)
    busy = 0.6 * sustainable_rps(spec, mix) * load
    curve = curves.steps([busy, 0.0, 0.0], duration_s)
    return ScenarioCase(spec, play_shared(mix, curve, seed))


def steady_no_flap(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """A constant load between two replica counts."""
    mix = immediate_mix(spec)
    curve = curves.constant(0.45 * sustainable_rps(spec, mix) * load, duration_s)
    return ScenarioCase(spec, play_shared(mix, curve, seed))


def cold_start_ramp(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """From a tenth to nearly all the budget carries, faster than a replica starts."""
    slow = with_startup(spec, StartupSpec(distribution="uniform", mean_s=275, spread_s=145))
    mix = immediate_mix(spec)
    high = 0.9 * sustainable_rps(spec, mix) * load
    curve = curves.ramp(
        high / 10, high, duration_s, start_s=duration_s / 4, ramp_s=min(130.0, duration_s / 4)
    )
    return ScenarioCase(slow, play_shared(mix, curve, seed))


def pd_ratio_shift(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """The same rate all along; from reading long prompts to writing long answers."""
    reading, reads = one_stream(spec, ttft_ms=2500, isl=6000, osl=100)
    writing, writes = one_stream(spec, ttft_ms=2500, isl=600, osl=900)
    rate = 0.7 * min(reads, writes) * load
    before = curves.steps([rate, 0.0], duration_s)
    after = curves.steps([0.0, rate], duration_s)
    plays = [before.scale(rate=s.share) for s in reading]
    plays += [after.scale(rate=s.share) for s in writing]
    return ScenarioCase(spec, play((*reading, *writing), plays, seed))


def burst_slow_starters(
    spec: ClusterSpec, seed: int, duration_s: float, load: float
) -> ScenarioCase:
    """Bursts shorter than a start-up: replicas started for one are ready when it is over."""
    slow = with_startup(spec, StartupSpec(distribution="lognormal", mean_s=300, cv=0.2))
    mix = immediate_mix(spec)
    capacity = sustainable_rps(spec, mix) * load
    curve = curves.bursts(
        0.3 * capacity, 0.9 * capacity, duration_s, seed=seed, mean_quiet_s=200, mean_burst_s=60
    )
    return ScenarioCase(slow, play_shared(mix, curve, seed))
