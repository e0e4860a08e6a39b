"""Traffic that fits a cluster: what each SLO class sends, and how much of it the budget sustains.

Every class gets a kind of conversation by what its spec says of it. `sustainable_rps` then answers
how many requests per second of a mix the whole budget carries when it is divided in the best way:
a small linear program over the capacities of `hrl_planner.capacity`, with fractional replicas. It
is an estimate, not a bound, and the unit in which all scenarios give their load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from hrl_planner._highs import new_solver
from hrl_planner._memo import once_per_spec
from hrl_planner.capacity import CapacityModel, ClassLoad, capacity
from hrl_planner.errors import ScenarioError
from hrl_planner.spec import ClusterSpec, SloClassSpec
from hrl_planner.workload.curves import RateCurve
from hrl_planner.workload.generators import sessions
from hrl_planner.workload.lengths import Lengths
from hrl_planner.workload.prefixes import AGENTIC, ASSISTANT, SessionModel, converse
from hrl_planner.workload.trace import Trace
from hrl_planner.workload.transform import merge

BATCH = SessionModel(
    first=Lengths(mean=1_800, cv=1.0, low=16, high=16_384),
    added=Lengths(mean=1),
    output=Lengths(mean=300, cv=0.8, high=4_096),
)
"""Summaries and evaluations: one turn, nothing shared."""

CACHED_PART = 0.75
"""Part of the possible prefix reuse that caches of finite size, spread over workers, deliver."""

UNSHARED_WEIGHT = 0.15
"""Weight in the mix of a class whose spec names no share."""


@dataclass(frozen=True)
class Stream:
    """The requests one SLO class sends.

    Attributes:
        class_index: which class.
        label: written on the requests, so that they are assigned to it.
        model: what the conversations are like.
        share: part of all requests; the streams of a mix add up to 1.
    """

    class_index: int
    label: str
    model: SessionModel
    share: float


def class_model(slo_class: SloClassSpec) -> SessionModel:
    """The kind of conversation a class stands for, by its name, its lengths or its patience."""
    name = f"{slo_class.name} {slo_class.assign.label or ''}".lower()
    if "agent" in name or (slo_class.assign.min_isl_tokens or 0) >= 2048:
        return AGENTIC
    if "batch" in name or slo_class.ttft_ms >= 5000:
        return BATCH
    return ASSISTANT


def single_turn(model: SessionModel) -> SessionModel:
    """The same requests without conversations: the load follows its curve at once."""
    return replace(model, turns_scale=0.0)


def fixed_lengths(isl: float, osl: float) -> SessionModel:
    """Requests of nearly one length, nothing shared: for scenarios that are about lengths."""
    return SessionModel(
        first=Lengths(mean=isl, cv=0.2), added=Lengths(mean=1), output=Lengths(mean=osl, cv=0.2)
    )


@once_per_spec
def default_mix(spec: ClusterSpec) -> tuple[Stream, ...]:
    """One stream per class the cluster can serve, by the shares of the spec."""
    streams = [
        Stream(i, label_of(c), class_model(c), c.assign.share or UNSHARED_WEIGHT)
        for i, c in enumerate(spec.slo_classes)
    ]
    usable = [s for s in streams if sustainable_rps(spec, [replace(s, share=1.0)]) > 0]
    if not usable:
        raise ScenarioError(
            f"spec {spec.name} field slo_classes: no pool meets the targets of any class"
        )
    total = sum(s.share for s in usable)
    return tuple(replace(s, share=s.share / total) for s in usable)


def label_of(slo_class: SloClassSpec) -> str:
    """The label that assigns a request to a class, or its name where labels do not matter."""
    return slo_class.assign.label or slo_class.name


def closest_class(spec: ClusterSpec, ttft_ms: float) -> int:
    """The class whose TTFT target is nearest, in ratio."""
    return min(
        range(len(spec.slo_classes)),
        key=lambda i: abs(np.log(spec.slo_classes[i].ttft_ms / ttft_ms)),
    )


def by_value(spec: ClusterSpec) -> list[int]:
    """Class indices, least valuable first."""
    return sorted(range(len(spec.slo_classes)), key=lambda i: spec.slo_classes[i].value)


def play(streams: Sequence[Stream], curves: Sequence[RateCurve], seed: int) -> Trace:
    """The trace of several streams, each on its own curve."""
    seeds = np.random.SeedSequence(seed).generate_state(len(streams))
    return merge(
        [
            sessions(curve, stream.model, seed=int(s), label=stream.label)
            for stream, curve, s in zip(streams, curves, seeds, strict=True)
        ]
    )


@lru_cache(maxsize=64)
def model_load(model: SessionModel) -> tuple[float, float, float, float, float]:
    """Mean and deviation of prompt and output tokens, and the expected prefix hit rate."""
    rng = np.random.default_rng(0)
    n = 3000
    turns = converse(model, np.zeros(n), np.ones(n), rng)
    counts = np.diff(turns.block_offsets)
    different = len(np.unique(turns.block_ids))
    reuse = 1.0 - different / max(1, int(counts.sum()))
    return (
        float(turns.isl.mean()),
        float(turns.isl.std()),
        float(turns.osl.mean()),
        float(turns.osl.std()),
        CACHED_PART * reuse,
    )


def sustainable_rps(
    spec: ClusterSpec, streams: Sequence[Stream], gpus: dict[str, int] | None = None
) -> float:
    """Requests per second of a mix that the budget carries within the targets; 0 if none.

    Args:
        spec: the cluster.
        streams: the mix.
        gpus: GPUs per type instead of the budget's.
    """
    return _sustainable_rps(spec, tuple(streams), None if gpus is None else tuple(gpus.items()))


@once_per_spec
def _sustainable_rps(
    spec: ClusterSpec, streams: tuple[Stream, ...], gpus: tuple[tuple[str, int], ...] | None
) -> float:
    caps = _capacities(spec, streams)
    available = dict(spec.budget.gpus if gpus is None else gpus)
    solver = new_solver()
    rate = solver.addVariable(lb=0.0)
    replicas = [solver.addVariable(lb=0.0, ub=float(p.max_replicas)) for p in spec.pools]
    used: list[list[Any]] = [[] for _ in spec.pools]
    for caps_of, stream in zip(caps, streams, strict=True):
        for stage in ("prefill", "decode"):
            flows = []
            for i, pool in enumerate(spec.pools):
                if pool.role in (stage, "aggregated") and caps_of[i] > 0:
                    flow = solver.addVariable(lb=0.0)
                    flows.append(flow)
                    # An aggregated replica spends half its time on each stage of a request.
                    part = 0.5 if pool.role == "aggregated" else 1.0
                    used[i].append(flow * float(part / caps_of[i]))
            if not flows:
                return 0.0
            solver.addConstr(sum(flows) == rate * stream.share)
    for i, terms in enumerate(used):
        if terms:
            solver.addConstr(sum(terms) <= replicas[i])
    for gpu_type in spec.gpu_types:
        held = [
            r * float(p.gpus_per_replica)
            for r, p in zip(replicas, spec.pools, strict=True)
            if p.gpu_type == gpu_type
        ]
        if held:
            solver.addConstr(sum(held) <= float(available.get(gpu_type, 0)))
    if spec.budget.total_gpus is not None:
        every = [r * float(p.gpus_per_replica) for r, p in zip(replicas, spec.pools, strict=True)]
        solver.addConstr(sum(every) <= float(spec.budget.total_gpus))
    solver.maximize(rate)
    return float(solver.variableValue(rate))


def _capacities(spec: ClusterSpec, streams: Sequence[Stream]) -> list[list[float]]:
    columns = np.ones((5, len(spec.slo_classes)))
    for stream in streams:
        columns[:, stream.class_index] = model_load(stream.model)
    cap, _ = capacity(CapacityModel.from_spec(spec), ClassLoad(*columns))
    return [[float(value) for value in cap[stream.class_index]] for stream in streams]
