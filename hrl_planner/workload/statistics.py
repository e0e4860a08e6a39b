"""What a trace is like, in a few numbers: for `trace show` and tests of generators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrl_planner.workload.reuse import PrefixReuse
from hrl_planner.workload.trace import Trace

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """Summary of a trace.

    Attributes:
        requests: number of requests.
        duration_s: length of the trace.
        rate_rps: mean rate.
        peak_rps: highest rate over a window of `window_s`.
        window_s: length of the windows of `rates_rps`.
        rates_rps: rate per window.
        dispersion: variance over mean of the requests per window; 1 for a Poisson process.
        isl: mean, coefficient of variation and `QUANTILES` of the prompt tokens, then the maximum.
        osl: the same of the output tokens.
        sessions: conversations with a known id.
        n_blocks: different prefix blocks.
        reuse: share of prompt tokens that an unlimited shared prefix cache would have saved; NaN
            without prefix data.
    """

    requests: int
    duration_s: float
    rate_rps: float
    peak_rps: float
    window_s: float
    rates_rps: NDArray[np.float64]
    dispersion: float
    isl: tuple[float, ...]
    osl: tuple[float, ...]
    sessions: int
    n_blocks: int
    reuse: float


def describe(trace: Trace, windows: int = 60) -> TraceStatistics:
    """Compute the summary; `windows` is the resolution of rates in time."""
    window_s = trace.duration_s / windows if trace.duration_s > 0 else 1.0
    counts = np.histogram(trace.arrival_s, bins=windows, range=(0.0, windows * window_s))[0]
    mean = float(counts.mean())
    return TraceStatistics(
        requests=len(trace),
        duration_s=trace.duration_s,
        rate_rps=trace.mean_rate_rps,
        peak_rps=float(counts.max()) / window_s,
        window_s=window_s,
        rates_rps=counts / window_s,
        dispersion=float(counts.var() / mean) if mean > 0 else float("nan"),
        isl=_summary(trace.isl_tokens),
        osl=_summary(trace.osl_tokens),
        sessions=len(np.unique(trace.session_id[trace.session_id >= 0])),
        n_blocks=trace.n_blocks,
        reuse=prefix_reuse(trace),
    )


def prefix_reuse(trace: Trace) -> float:
    """Share of prompt tokens whose block was seen before: what an unlimited cache would save."""
    if trace.n_blocks == 0 or len(trace) == 0:
        return float("nan")
    cached = PrefixReuse(trace).cached_tokens()
    return float(cached.sum() / trace.isl_tokens.sum(dtype=np.int64))


def _summary(tokens: NDArray[np.int32]) -> tuple[float, ...]:
    if len(tokens) == 0:
        return (float("nan"),) * (len(QUANTILES) + 3)
    mean = float(tokens.mean())
    quantiles = np.quantile(tokens, QUANTILES)
    return (mean, float(tokens.std() / mean), *(float(q) for q in quantiles), float(tokens.max()))
