"""What a trace asks of a cluster, bin by bin, and what a replica can do for it.

Requests are counted per *kind*: an SLO class, divided at quantiles of its prompt tokens to compute
and of its output tokens, so that a bound may serve the short ones and leave the long ones, as a
planner could. What a replica can do is `capacity.py`'s rate for each kind in each bin, and at most
that with everything taken off that is kept there for safety: nobody waits, prefill is busy all the
time, and the KV cache is full on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrl_planner.capacity import MAX_UTILISATION, CapacityModel, ClassLoad, capacity, decode_context
from hrl_planner.routing import PREFILL
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.trace import Trace

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MANY_SERVERS = 1e6  # of a pool this large nobody waits
_FEW_SERVERS = 3.0
_ANYONE = 0.01  # a pool serves a kind if this share of it could be in time there


@dataclass(frozen=True)
class BinnedLoad:
    """T bins of K kinds on P pools.

    Attributes:
        length_s: length of each bin, the last may be shorter; shape (T,).
        kind_class: SLO class of each kind, shape (K,).
        counts: requests that arrive, shape (T, K).
        entering: requests that arrived by the end of a bin and whose TTFT target is not yet over:
            the most that may have had no prefill and still be in time, shape (T, K).
        leaving: the same for the last token, shape (T, K).
        rate: requests/s of a replica, 0 where it cannot be in time, shape (T, K, P).
    """

    length_s: FloatArray
    kind_class: IntArray
    counts: FloatArray
    entering: FloatArray
    leaving: FloatArray
    rate: FloatArray


def binned_load(
    spec: ClusterSpec,
    trace: Trace,
    class_id: NDArray[np.int16],
    cached_tokens: NDArray[np.int64],
    *,
    bin_s: float,
    parts: int = 1,
    quantile: float | None = None,
) -> BinnedLoad:
    """Count a trace into bins.

    Args:
        spec: the cluster.
        trace: the requests.
        class_id: SLO class of each, shape (N,).
        cached_tokens: prompt tokens of each that need no computing, shape (N,).
        bin_s: length of a bin.
        parts: parts by prompt and by output tokens that each class is divided into.
        quantile: share of requests that a loaded replica still serves in time; None for the most
            it can do.
    """
    n_bins = max(int(np.ceil(trace.duration_s / bin_s - 1e-9)), 1)
    edges = np.minimum(np.arange(n_bins + 1) * bin_s, max(trace.duration_s, 1e-6))
    cached = cached_tokens.astype(np.float64)
    isl, osl = trace.isl_tokens.astype(np.float64), trace.osl_tokens.astype(np.float64)
    n_classes = len(spec.slo_classes)
    kind = class_id.astype(np.int64)
    for length in (isl - cached, osl):
        kind = kind * parts + _part(length, class_id, n_classes, parts)
    n_kinds = n_classes * parts * parts
    at = np.minimum((trace.arrival_s // bin_s).astype(np.int64), n_bins - 1) * n_kinds + kind

    def total(column: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(at, column, n_bins * n_kinds).reshape(n_bins, n_kinds))

    counts = total(np.ones_like(isl))
    load = _mean_load(counts, *(total(x) for x in (isl, isl * isl, osl, osl * osl, cached)))
    kind_class = np.repeat(np.arange(n_classes), parts * parts)
    ttft_s = np.array([c.ttft_ms for c in spec.slo_classes])[class_id] * 1e-3
    itl_s = np.array([c.itl_ms for c in spec.slo_classes])[class_id] * 1e-3

    def pending(deadline_s: FloatArray) -> FloatArray:
        after = np.searchsorted(edges[1:], deadline_s, side="left")
        size = (n_bins + 1) * n_kinds
        change = np.bincount(at, minlength=size) - np.bincount(
            after * n_kinds + kind, minlength=size
        )
        return np.cumsum(change.reshape(n_bins + 1, n_kinds), axis=0)[:-1].astype(np.float64)

    first_s = trace.arrival_s + ttft_s
    return BinnedLoad(
        length_s=np.diff(edges),
        kind_class=kind_class,
        counts=counts,
        entering=pending(first_s),
        leaving=pending(first_s + (osl - 1.0) * itl_s),
        rate=_rate(spec, load, kind_class, quantile),
    )


def _part(length: FloatArray, class_id: NDArray[np.int16], n_classes: int, parts: int) -> IntArray:
    """Return which quantile of its class each length falls into, 0 to parts - 1."""
    part = np.zeros(length.size, np.int64)
    for c in range(n_classes):
        members = class_id == c
        if members.any():
            inner = np.quantile(length[members], np.arange(1, parts) / parts)
            part[members] = np.searchsorted(inner, length[members], side="left")
    return part


def _mean_load(
    counts: FloatArray,
    isl: FloatArray,
    isl_square: FloatArray,
    osl: FloatArray,
    osl_square: FloatArray,
    cached: FloatArray,
) -> ClassLoad:
    """Return lengths per (bin, kind), flattened; an empty bin has those of the last one before."""
    last = np.maximum.accumulate(np.where(counts > 0, np.arange(len(counts))[:, None], -1), axis=0)
    first = np.argmax(counts > 0, axis=0)
    source = np.where(last < 0, first, last)

    def mean(column: FloatArray) -> FloatArray:
        known = column / np.maximum(counts, 1.0)
        return np.asarray(np.take_along_axis(known, source, axis=0).ravel())

    means = {"isl": np.maximum(mean(isl), 1.0), "osl": np.maximum(mean(osl), 1.0)}
    spread = {
        "isl_std": np.sqrt(np.maximum(mean(isl_square) - means["isl"] ** 2, 0.0)),
        "osl_std": np.sqrt(np.maximum(mean(osl_square) - means["osl"] ** 2, 0.0)),
    }
    hit_rate = np.clip(mean(cached) / means["isl"], 0.0, 0.99)
    return ClassLoad(**means, **spread, hit_rate=hit_rate)


def _rate(
    spec: ClusterSpec, load: ClassLoad, kind_class: IntArray, quantile: float | None
) -> FloatArray:
    """Return requests/s per replica, shape (T, K, P)."""
    model = CapacityModel.from_spec(spec)
    n_rows, n_kinds, n_pools = load.isl.size, kind_class.size, len(spec.pools)
    classes = np.tile(kind_class, n_rows // n_kinds)
    # Every bin of every kind is a class of its own: one call answers them all.
    each = model._replace(ttft_s=model.ttft_s[classes], itl_s=model.itl_s[classes])
    servers = np.full(n_pools, _MANY_SERVERS if quantile is None else _FEW_SERVERS)
    wanted = _ANYONE if quantile is None else quantile
    cap, share = capacity(each, load, servers=servers, quantile=wanted)
    cap[share <= 0.0] = 0.0
    if quantile is None:
        reserved = np.array([decode_context(load, row)[1] for row in range(n_rows)])
        slots = model.kv_tokens / reserved[:, None]
        kept = np.clip(slots - np.sqrt(slots), 0.5 * slots, model.max_num_seqs)
        full = np.maximum(np.minimum(slots, model.max_num_seqs) / kept, 1.0)
        cap *= np.where(model.role == PREFILL, 1.0 / MAX_UTILISATION, full)
    return cap.reshape(-1, n_kinds, n_pools)
