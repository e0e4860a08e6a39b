"""The clairvoyant LP: the best plan in hindsight if requests were a fluid, and the budget it needs.

One linear program over the whole trace (`program.py`), with start-up times and budget,
maximises

    value served / value offered  -  w_price * price of the GPUs held / price of the whole budget

It bounds what planning can do. It knows no queues inside a bin, no whole replicas, no draining, no
luck of start-ups, no routing by prefix, no events and no failures, and it knows the future: real
planners stay below. It is no theorem. Kinds that meet in a decode pool divide its replicas between
them, which is too strict where one fills the KV cache and the other the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agents.bounds.load import BinnedLoad, FloatArray, binned_load
from agents.bounds.program import Program
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.reuse import PrefixReuse
from hrl_planner.workload.trace import Trace

BIN_S = 60.0
_PARTS = 2
_LOADED_QUANTILE = 0.95
_NEED_BIN_S = 120.0
_NEED_ROUNDS = 4  # caches depend on the budget, the budget on what is cached
_NEED_CHANGE = 0.01
_NEED_RANGE = (0.05, 3.0)


@dataclass(frozen=True)
class ClairvoyantBound:
    """The best plan in hindsight.

    Attributes:
        value_share: value served over value offered, 0 to 1.
        cost_share: price of the GPUs held over that of the whole budget throughout.
        score: value_share - price_weight * cost_share.
        gpu_hours: GPU-hours held.
        class_share: share of each class's requests served, NaN without any, shape (C,).
        bin_s: length of a bin.
        held: replicas that hold GPUs, shape (T, P).
        serving: replicas that serve, shape (T, P).
    """

    value_share: float
    cost_share: float
    score: float
    gpu_hours: float
    class_share: FloatArray
    bin_s: float
    held: FloatArray
    serving: FloatArray


def clairvoyant_bound(
    spec: ClusterSpec,
    trace: Trace,
    class_id: NDArray[np.int16],
    *,
    bin_s: float = BIN_S,
    price_weight: float | None = None,
) -> ClairvoyantBound:
    """Solve the clairvoyant LP.

    Args:
        spec: the cluster.
        trace: the requests it is offered.
        class_id: SLO class of each request, shape (N,).
        bin_s: length of a bin.
        price_weight: weight of the price; absent, the reward's. With 0 the value share bounds the
            value-weighted attainment of any planner, else the score bounds its score.
    """
    cached = PrefixReuse(trace).cached_tokens()
    load = binned_load(spec, trace, class_id, cached, bin_s=bin_s, parts=_PARTS)
    weight = spec.reward.gpu_price_weight if price_weight is None else price_weight
    program = Program(spec, load)
    program.start_from(np.array([pool.initial for pool in spec.pools], np.float64))
    program.maximise_value(weight)
    x = program.solve(f"trace {trace.name} on spec {spec.name}")
    admitted, held, serving = (x[c] for c in (program.admitted, program.held, program.serving))
    n_classes = len(spec.slo_classes)
    arrived, served = (
        np.bincount(load.kind_class, of.sum(axis=0), n_classes) for of in (load.counts, admitted)
    )
    with np.errstate(invalid="ignore"):
        class_share = np.where(arrived > 0, served / arrived, np.nan)
    value_share = float((program.worth * admitted).sum())
    cost_share = float((program.price * held).sum())
    return ClairvoyantBound(
        value_share=value_share,
        cost_share=cost_share,
        score=value_share - weight * cost_share,
        gpu_hours=float((program.arrays.gpus * held * load.length_s[:, None]).sum() / 3600.0),
        class_share=class_share,
        bin_s=bin_s,
        held=held,
        serving=serving,
    )


def static_plan(
    spec: ClusterSpec, trace: Trace, class_id: NDArray[np.int16], headroom: float
) -> FloatArray:
    """Return the LP's best replicas that never change, fractions, shape (P,).

    Args:
        spec: the cluster.
        trace: the requests.
        class_id: SLO class of each, shape (N,).
        headroom: share of every replica's capacity kept free.
    """
    cached = _kept_prefixes(spec, PrefixReuse(trace), 1.0)
    load = binned_load(spec, trace, class_id, cached, bin_s=BIN_S, quantile=_LOADED_QUANTILE)
    program = Program(spec, replace(load, rate=(1.0 - headroom) * load.rate))
    program.never_change()
    program.maximise_value(spec.reward.gpu_price_weight)
    x = program.solve(f"trace {trace.name} on spec {spec.name}")
    return np.asarray(x[program.held[0]])


def clairvoyant_need(
    spec: ClusterSpec, trace: Trace, class_id: NDArray[np.int16], share: float = 0.99
) -> float:
    """Return the budget, in multiples of the spec's, with which the LP serves `share` of the value.

    All GPU types shrink or grow together; a total or watts limit too. Asked is what the load needs,
    so the replicas the cluster starts with and `max_replicas` play no part, and requests that no
    pool could serve in time do not count. Unlike the bound this is a measure, not optimistic:
    replicas are loaded until 95 % of a class are in time, and prefix caches have the size of half
    the budget asked for. The answer lies between 0.05 and 3.

    Budget over need is the tightness of a cluster: at 1 a planner that knows the future, with whole
    replicas and no bursts within two minutes, would have just enough.
    """
    reuse = PrefixReuse(trace)
    factor = 1.0
    for _ in range(_NEED_ROUNDS):
        cached = _kept_prefixes(spec, reuse, factor)
        load = binned_load(
            spec, trace, class_id, cached, bin_s=_NEED_BIN_S, quantile=_LOADED_QUANTILE
        )
        before, factor = factor, _least_factor(spec, load, share)
        if trace.n_blocks == 0 or abs(factor - before) < _NEED_CHANGE * factor:
            break
    return factor


def _kept_prefixes(spec: ClusterSpec, reuse: PrefixReuse, factor: float) -> NDArray[np.int64]:
    """Return each request's cached tokens if half of a budget prefills, its pools sharing it."""
    tokens = 0.0
    for kind, gpus in spec.budget.gpus.items():
        per_gpu = [
            profile.kv_capacity_tokens / pool.gpus_per_replica
            for pool, profile in zip(spec.pools, spec.profiles(), strict=True)
            if pool.gpu_type == kind and pool.role != "decode"
        ]
        tokens += 0.5 * gpus * float(np.mean(per_gpu)) if per_gpu else 0.0
    return reuse.cached_tokens(reuse.retention_s(factor * tokens))


def _least_factor(spec: ClusterSpec, load: BinnedLoad, share: float) -> float:
    """Return the factor on the budget that serves a share of the servable value."""
    program = Program(spec, load)
    program.upper[program.held] = np.inf
    worth, most = program.worth.ravel(), program.upper[program.admitted].ravel()
    total = float(most @ worth)
    low, high = _NEED_RANGE
    if total <= 0.0:
        return low
    program.row(share * total, np.inf, program.admitted.ravel(), worth)
    program.lower[program.factor], program.upper[program.factor] = low, high
    program.cost[program.factor] = 1.0
    x = program.try_solve()
    return high if x is None else float(x[program.factor])
