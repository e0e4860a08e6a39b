"""Clusters that lack one limit, and clusters whose budget is tighter or wider.

A policy run on `unlimited(spec)` or `zero_startup(spec)` bounds what it could do if that limit did
not exist. `tighten` makes the same cluster scarce or rich, for experiments over budget tightness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from hrl_planner.errors import PolicyError, SpecError
from hrl_planner.spec import BudgetSpec, ClusterSpec, PoolSpec, RewardSpec, StartupSpec
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.scenarios import ScenarioCase

_PLENTY = 10
_MOST_REPLICAS = 4096


def unlimited(spec: ClusterSpec) -> ClusterSpec:
    """Return the cluster with ten times the budget and room for it in every pool.

    The reward's weights grow with the budget they are relative to: a GPU costs what it did.
    """
    pools = [
        _with(p, max_replicas=min(p.max_replicas * _PLENTY, _MOST_REPLICAS)) for p in spec.pools
    ]
    reward = RewardSpec(
        gpu_price_weight=spec.reward.gpu_price_weight * _PLENTY,
        churn_weight=spec.reward.churn_weight * _PLENTY,
    )
    budget = _scaled(spec.budget, float(_PLENTY))
    return spec.replace(pools=tuple(pools), budget=budget, reward=reward)


def zero_startup(spec: ClusterSpec) -> ClusterSpec:
    """Return the cluster with replicas that serve at once, at full speed."""
    return spec.replace(pools=tuple(_with(p, startup=StartupSpec(mean_s=0.0)) for p in spec.pools))


TRANSFORMS: dict[str, Callable[[ClusterSpec], ClusterSpec]] = {
    "unlimited": unlimited,
    "zero-startup": zero_startup,
}
"""What may stand behind the @ of a policy."""


def find_transform(name: str) -> Callable[[ClusterSpec], ClusterSpec]:
    """Return what takes a limit away, by its name in TRANSFORMS."""
    if name not in TRANSFORMS:
        raise PolicyError(f"unknown cluster {name!r} behind @; one of {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name]


def relax(case: ScenarioCase, name: str) -> ScenarioCase:
    """Return a case on the cluster without a limit, by its name in TRANSFORMS.

    GPUs that an event leaves in existence grow with the budget, lest it bring the limit back.
    """
    spec = find_transform(name)(case.spec)
    events = scaled_events(case.events, case.spec, spec)
    truth = None if case.truth is None else find_transform(name)(case.truth)
    return replace(case, spec=spec, events=events, truth=truth)


def scaled_events(
    events: Iterable[ClusterEvent], before: ClusterSpec, after: ClusterSpec
) -> tuple[ClusterEvent, ...]:
    """Return events that leave the same share of the GPUs in existence under another budget.

    Left as they are, GPUs that vanish from a wide budget would be none of a tight one.

    Args:
        events: of the cluster before.
        before: the cluster they were made for.
        after: the same with another budget, of the same GPU types.
    """
    return tuple(
        replace(event, value=float(round(event.value * _growth(before, after, event.gpu_type))))
        if event.kind == "inventory"
        else event
        for event in events
    )


def _growth(before: ClusterSpec, after: ClusterSpec, gpu_type: str | None) -> float:
    if gpu_type is None or not before.budget.gpus.get(gpu_type):
        return 1.0
    return after.budget.gpus[gpu_type] / before.budget.gpus[gpu_type]


def tighten(spec: ClusterSpec, factor: float) -> ClusterSpec:
    """Return the cluster with `factor` times the budget.

    GPUs of every type are rounded, and at least what the minimum replicas need. Maximum replicas
    are cut to what the budget holds. Initial replicas that no longer fit are taken away one by one,
    from the pool that holds the most GPUs of those above their minimum.
    """
    if not factor > 0.0:
        raise SpecError(f"spec {spec.name}: the factor on the budget must be above 0, got {factor}")
    budget = _scaled(spec.budget, factor)
    floor = [p.min_replicas for p in spec.pools]
    gpus = {kind: max(n, _held(spec, floor, kind)) for kind, n in budget.gpus.items()}
    total, watts = budget.total_gpus, budget.watts
    budget = BudgetSpec(
        gpus=gpus,
        total_gpus=None if total is None else max(total, _held(spec, floor)),
        watts=None if watts is None else max(watts, _watts(spec, floor)),
    )
    room = [gpus[p.gpu_type] // p.gpus_per_replica for p in spec.pools]
    initial = [min(p.initial, r) for p, r in zip(spec.pools, room, strict=True)]
    while (over := _over(spec, budget, initial)) is not None:
        movable = [i for i in over if initial[i] > floor[i]]
        most = max(movable, key=lambda i: (initial[i] * spec.pools[i].gpus_per_replica, -i))
        initial[most] -= 1
    pools = [
        _with(p, max_replicas=max(min(p.max_replicas, r), 1), initial_replicas=n)
        for p, r, n in zip(spec.pools, room, initial, strict=True)
    ]
    return spec.replace(pools=tuple(pools), budget=budget)


def _with(pool: PoolSpec, **changes: Any) -> PoolSpec:
    fields = {name: getattr(pool, name) for name in PoolSpec.model_fields}
    return PoolSpec(**{**fields, **changes})


def _scaled(budget: BudgetSpec, factor: float) -> BudgetSpec:
    return BudgetSpec(
        gpus={kind: round(n * factor) for kind, n in budget.gpus.items()},
        total_gpus=None if budget.total_gpus is None else max(round(budget.total_gpus * factor), 1),
        watts=None if budget.watts is None else budget.watts * factor,
    )


def _held(spec: ClusterSpec, replicas: list[int], kind: str | None = None) -> int:
    """Return the GPUs that replicas hold, of one type or of all."""
    return sum(
        n * p.gpus_per_replica
        for n, p in zip(replicas, spec.pools, strict=True)
        if kind is None or p.gpu_type == kind
    )


def _watts(spec: ClusterSpec, replicas: list[int]) -> float:
    return sum(n * spec.power_w_per_replica(i) for i, n in enumerate(replicas))


def _over(spec: ClusterSpec, budget: BudgetSpec, replicas: list[int]) -> list[int] | None:
    """Return the pools under the first limit that replicas break, None if they fit."""
    for kind, gpus in budget.gpus.items():
        if _held(spec, replicas, kind) > gpus:
            return [i for i, p in enumerate(spec.pools) if p.gpu_type == kind]
    total = budget.total_gpus
    if total is not None and _held(spec, replicas) > total:
        return list(range(len(spec.pools)))
    if budget.watts is not None and _watts(spec, replicas) > budget.watts:
        return list(range(len(spec.pools)))
    return None
