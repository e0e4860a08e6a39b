"""Reductions of one run to the few thousand numbers its figures need.

A run holds up to millions of requests; a report holds dozens of runs. What is kept per run is
counts per time bin (they add up over seeds, unlike shares), the timeline at bin ends, and
latency quantiles. Everything here is JSON-ready: lists of numbers, None for "never".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.evaluate.metrics import gpus_held, latencies_ms

if TYPE_CHECKING:
    from envs.simulation import SimResult

Curves = dict[str, Any]

TIME_BINS = 160
# Denser towards the tail, where the targets are decided.
QUANTILES = np.unique(
    np.concatenate([np.linspace(0.0, 0.9, 46), np.linspace(0.9, 0.99, 19), [0.995, 0.999, 1.0]])
)


def reduce_run(result: SimResult) -> Curves:
    """Everything the report draws of one run.

    Returns:
        `t_s` (bin centres), `bin_s`, `offered` and `attained` [classes][bins], `timeline_t_s`,
        `gpus` and `ready` [pools][samples], `budget` (GPUs per type), `quantiles`, `ttft_ms` and
        `itl_ms`
        [classes][quantiles].
    """
    spec, duration_s = result.spec, result.duration_s
    edges = np.linspace(0.0, duration_s, TIME_BINS + 1)
    offered, attained = _counts(result, len(spec.slo_classes), edges)
    samples = _sample_index(result.timeline["t_s"], duration_s)
    ttft, itl = latencies_ms(result)
    class_id = result.class_id
    classes = range(len(spec.slo_classes))
    return {
        "t_s": _rounded(edges[:-1] + np.diff(edges) / 2, 2),
        "bin_s": float(edges[1]),
        "offered": offered.tolist(),
        "attained": attained.tolist(),
        "timeline_t_s": _rounded(result.timeline["t_s"][samples], 2),
        "gpus": gpus_held(result)[samples].T.tolist(),
        "ready": result.timeline["ready"][samples].T.tolist(),
        "budget": dict(spec.budget.gpus),
        "quantiles": _rounded(QUANTILES, 4),
        "ttft_ms": [_quantiles(ttft[class_id == c]) for c in classes],
        "itl_ms": [_quantiles(itl[class_id == c]) for c in classes],
    }


def _counts(
    result: SimResult, classes: int, edges: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offered and attained requests per class and bin of arrival time."""
    arrival = result.arrival_s
    class_id = result.class_id.astype(np.int64)
    bins = edges.size - 1
    index = np.clip(np.searchsorted(edges, arrival, side="right") - 1, 0, bins - 1)
    cell = class_id * bins + index
    offered = np.bincount(cell, minlength=classes * bins).reshape(classes, bins)
    met = np.bincount(cell[result.attained], minlength=classes * bins)
    return offered, met.reshape(classes, bins)


def _sample_index(t_s: NDArray[np.float64], duration_s: float) -> NDArray[np.int64]:
    """Timeline samples to keep: at most two per bin, evenly spaced, up to the trace's end."""
    within = np.flatnonzero(t_s <= duration_s)
    if within.size <= 2 * TIME_BINS:
        return within
    return within[np.linspace(0, within.size - 1, 2 * TIME_BINS).astype(np.int64)]


def _quantiles(values: NDArray[np.float64]) -> list[float | None]:
    """Quantiles over offered requests; None where that share was never served."""
    if values.size == 0:
        return [None] * QUANTILES.size
    filled = np.where(np.isnan(values), np.inf, values)
    found = np.quantile(filled, QUANTILES, method="inverted_cdf")
    return [None if np.isinf(x) else round(float(x), 3) for x in found]


def _rounded(values: NDArray[np.float64], digits: int) -> list[float]:
    return [round(float(x), digits) for x in values]
