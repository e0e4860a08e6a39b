"""Scenarios in which something happens to the cluster: GPUs, metrics, profiles, hands."""

from __future__ import annotations

from dataclasses import replace

from hrl_planner._memo import once_per_spec
from hrl_planner.spec import ClusterSpec, PoolSpec
from hrl_planner.workload import curves
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.scenarios.base import ScenarioCase
from hrl_planner.workload.scenarios.demand import immediate_mix, play_shared
from hrl_planner.workload.scenarios.traffic import (
    by_value,
    play,
    sustainable_rps,
)


def held_gpus(spec: ClusterSpec, gpu_type: str) -> int:
    """GPUs of a type that the initial replicas hold."""
    return sum(p.initial * p.gpus_per_replica for p in spec.pools if p.gpu_type == gpu_type)


def dearest_type(spec: ClusterSpec) -> str:
    """The GPU type with the highest price: the one the tightest classes are served on."""
    return max(spec.pools, key=lambda pool: pool.price_per_gpu_hour).gpu_type


def main_pool(spec: ClusterSpec, *roles: str) -> PoolSpec:
    """The pool of a role that may grow the most in GPUs."""
    able = [p for p in spec.pools if p.role in (*roles, "aggregated")]
    return max(able, key=lambda pool: pool.max_replicas * pool.gpus_per_replica)


def pending_pod(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """The load asks for GPUs that do not exist, then vanishes."""
    mix = immediate_mix(spec)
    capacity = sustainable_rps(spec, mix) * load
    curve = curves.steps([0.3 * capacity, 0.9 * capacity, 0.03 * capacity], duration_s)
    kind = dearest_type(spec)
    missing = ClusterEvent(0.0, "inventory", gpu_type=kind, value=held_gpus(spec, kind))
    return ScenarioCase(spec, play_shared(mix, curve, seed), (missing,))


def over_budget_start(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """More runs from the first second on than there are GPUs for."""
    full = fill_budget(spec)
    lost = tuple(
        ClusterEvent(1.0, "inventory", gpu_type=kind, value=held_gpus(full, kind) * 2 // 3)
        for kind in spec.gpu_types
    )
    mix = immediate_mix(spec)
    curve = curves.constant(0.35 * sustainable_rps(spec, mix) * load, duration_s)
    return ScenarioCase(full, play_shared(mix, curve, seed), lost)


def cold_replica_warmup(
    spec: ClusterSpec, seed: int, duration_s: float, load: float
) -> ScenarioCase:
    """Fresh replicas are slow for a minute: their latency must not call for more of them."""
    pools = tuple(
        pool.model_copy(
            update={
                "startup": pool.startup.model_copy(
                    update={"warmup_s": 60.0, "warmup_slowdown": 2.5}
                )
            }
        )
        for pool in spec.pools
    )
    mix = immediate_mix(spec)
    capacity = sustainable_rps(spec, mix) * load
    curve = curves.steps([0.25 * capacity, 0.55 * capacity, 0.55 * capacity], duration_s)
    return ScenarioCase(spec.replace(pools=pools), play_shared(mix, curve, seed))


def priority_reclaim(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """The least valuable class fills the budget; then the most valuable one needs it."""
    mix = immediate_mix(spec)
    order = [i for i in by_value(spec) if any(s.class_index == i for s in mix)]
    streams = [
        replace(next(s for s in mix if s.class_index == i), share=1.0)
        for i in (order[0], order[-1])
    ]
    hungry, spike = (sustainable_rps(spec, [s]) * load for s in streams)
    plays = [
        curves.constant(1.1 * hungry, duration_s),
        curves.steps([0.05 * spike, 0.6 * spike, 0.05 * spike], duration_s),
    ]
    return ScenarioCase(spec, play(streams, plays, seed))


def spill_over(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """The preferred GPU type has run out; the others must take what they can."""
    kind = dearest_type(spec)
    left = held_gpus(spec, kind)
    mix = immediate_mix(spec)
    remaining = {**spec.budget.gpus, kind: left}
    # Some class may not be servable at all on what is left; then take a share of the whole.
    capacity = sustainable_rps(spec, mix, remaining) or 0.3 * sustainable_rps(spec, mix)
    rate = 0.8 * capacity * load
    curve = curves.ramp(rate / 4, rate, duration_s, ramp_s=duration_s / 2)
    event = ClusterEvent(0.0, "inventory", gpu_type=kind, value=left)
    return ScenarioCase(spec, play_shared(mix, curve, seed), (event,))


def metrics_outage(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """No metrics for a sixth of the time, in the middle of a slow swing."""
    mix = immediate_mix(spec)
    high = 0.7 * sustainable_rps(spec, mix) * load
    curve = curves.sinusoid(0.3 * high, high, duration_s, period_s=duration_s)
    silence = ClusterEvent(duration_s / 3, "metrics_outage", value=duration_s / 6)
    return ScenarioCase(spec, play_shared(mix, curve, seed), (silence,))


def missing_profile(spec: ClusterSpec, seed: int, duration_s: float, load: float) -> ScenarioCase:
    """Nobody has profiled the largest prefill and the largest decode pool."""
    mix = immediate_mix(spec)
    high = 0.7 * sustainable_rps(spec, mix) * load
    curve = curves.sinusoid(0.2 * high, high, duration_s, period_s=duration_s)
    names = dict.fromkeys(main_pool(spec, role).name for role in ("prefill", "decode"))
    blind = tuple(ClusterEvent(0.0, "blind_profile", pool=name, value=1) for name in names)
    return ScenarioCase(spec, play_shared(mix, curve, seed), blind)


def hand_edited_replicas(
    spec: ClusterSpec, seed: int, duration_s: float, load: float
) -> ScenarioCase:
    """Somebody scales the largest decode pool to nothing, and later a prefill pool to its limit."""
    mix = immediate_mix(spec)
    curve = curves.constant(0.5 * sustainable_rps(spec, mix) * load, duration_s)
    decode, prefill = main_pool(spec, "decode"), main_pool(spec, "prefill")
    edits = (
        ClusterEvent(duration_s / 3, "set_replicas", pool=decode.name, value=0),
        ClusterEvent(
            2 * duration_s / 3, "set_replicas", pool=prefill.name, value=prefill.max_replicas
        ),
    )
    return ScenarioCase(spec, play_shared(mix, curve, seed), edits)


@once_per_spec
def fill_budget(spec: ClusterSpec) -> ClusterSpec:
    """The spec with as many initial replicas as fit, added one by one in pool order."""
    counts = [pool.initial for pool in spec.pools]
    left = {kind: n - held_gpus(spec, kind) for kind, n in spec.budget.gpus.items()}
    total = sum(left.values())
    if spec.budget.total_gpus is not None:
        total = spec.budget.total_gpus - sum(held_gpus(spec, kind) for kind in left)
    watts = float("inf")
    if spec.budget.watts is not None:
        held_w = sum(n * spec.power_w_per_replica(i) for i, n in enumerate(counts))
        watts = spec.budget.watts - held_w
    grew = True
    while grew:
        grew = False
        for i, pool in enumerate(spec.pools):
            size, power = pool.gpus_per_replica, spec.power_w_per_replica(i)
            fits = min(left[pool.gpu_type], total) >= size and power <= watts
            if fits and counts[i] < pool.max_replicas:
                counts[i] += 1
                left[pool.gpu_type] -= size
                total -= size
                watts -= power
                grew = True
    return spec.replace(
        pools=tuple(
            pool.model_copy(update={"initial_replicas": n})
            for pool, n in zip(spec.pools, counts, strict=True)
        )
    )
