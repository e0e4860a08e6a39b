"""What a planner sees of the cluster: one row of numbers per pool and one per SLO class.

The simulator writes these rows from its counters and the production scraper writes them from
Prometheus metrics; everything downstream (policies, feature encoding, dashboards) reads only
this module and cannot tell the two apart. Unknown values are NaN, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import compiled

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PoolObservation:
    """Metrics of one pool over the observation window, as collected from its workers.

    Attributes:
        target_replicas: replicas asked for by the last decision.
        quota: upper bound set by the global planner.
        ready: replicas that serve requests.
        starting: replicas that hold GPUs but do not serve yet.
        draining: replicas that finish their requests and then go.
        pending: replicas asked for that no GPU is free for.
        starting_eta_30s: starting replicas that are ready within 30 s.
        starting_eta_60s: ... between 30 and 60 s.
        starting_eta_120s: ... between 60 and 120 s.
        starting_eta_late: ... later than that.
        arrivals_rps: requests entering the pool per second.
        isl_mean_tokens: mean prompt length.
        isl_std_tokens: its standard deviation.
        osl_mean_tokens: mean output length of finished requests.
        osl_std_tokens: its standard deviation.
        waiting: requests queued at the workers.
        running: requests in a prefill batch or decode batch.
        kv_use: share of KV blocks in use, mean over ready workers, 0 to 1.
        prefix_hit_rate: share of prompt tokens found in the prefix cache, 0 to 1.
        prompt_tokens_per_s: prompt tokens computed per second (cached ones not counted).
        output_tokens_per_s: tokens generated per second.
        ttft_p50_ms: median of queueing plus prefill at the worker.
        ttft_p90_ms: its 90th percentile.
        itl_p50_ms: median over requests of the mean inter-token latency.
        itl_p90_ms: its 90th percentile.
        ttft_attainment: share below the tightest TTFT target of the spec.
        itl_attainment: share below the tightest ITL target of the spec.
        metrics_age_s: age of the newest sample.
    """

    target_replicas: float
    quota: float
    ready: float
    starting: float
    draining: float
    pending: float
    starting_eta_30s: float
    starting_eta_60s: float
    starting_eta_120s: float
    starting_eta_late: float
    arrivals_rps: float
    isl_mean_tokens: float
    isl_std_tokens: float
    osl_mean_tokens: float
    osl_std_tokens: float
    waiting: float
    running: float
    kv_use: float
    prefix_hit_rate: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    itl_p50_ms: float
    itl_p90_ms: float
    ttft_attainment: float
    itl_attainment: float
    metrics_age_s: float

    def to_row(self) -> Float64Array:
        """Return the fields in declaration order, shape (len(POOL_FIELDS),)."""
        return np.array([getattr(self, name) for name in POOL_FIELDS], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class ClassObservation:
    """What the router counted for one SLO class over the observation window.

    Attributes:
        arrivals_rps: offered requests per second.
        isl_mean_tokens: mean prompt length.
        isl_std_tokens: its standard deviation.
        osl_mean_tokens: mean output length of finished requests.
        osl_std_tokens: its standard deviation.
        prefix_hit_rate: share of prompt tokens found in a prefix cache.
        attainment: share of resolved requests that met both targets.
        in_system: requests offered and not yet resolved.
    """

    arrivals_rps: float
    isl_mean_tokens: float
    isl_std_tokens: float
    osl_mean_tokens: float
    osl_std_tokens: float
    prefix_hit_rate: float
    attainment: float
    in_system: float


POOL_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(PoolObservation))
CLASS_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(ClassObservation))


@dataclass(frozen=True, slots=True)
class ClusterObservation:
    """Everything a policy may look at.

    Attributes:
        now_s: time of the observation.
        pools: shape (P, len(POOL_FIELDS)).
        classes: shape (C, len(CLASS_FIELDS)).
    """

    now_s: float
    pools: Float64Array
    classes: Float64Array

    def pool(self, index: int) -> PoolObservation:
        """Return one pool's row with names."""
        return PoolObservation(*self.pools[index].tolist())

    def pool_field(self, name: str) -> Float64Array:
        """Return one field over all pools, shape (P,)."""
        return self.pools[:, POOL_FIELDS.index(name)]

    def class_field(self, name: str) -> Float64Array:
        """Return one field over all classes, shape (C,)."""
        return self.classes[:, CLASS_FIELDS.index(name)]


@compiled
def histogram_quantile(counts: Float64Array, upper_edges: Float64Array, quantile: float) -> float:
    """Return a quantile of a histogram, linear inside its bucket, as Prometheus does.

    Args:
        counts: observations per bucket, not cumulative, shape (K,).
        upper_edges: upper edge of each bucket, ascending, shape (K,); the first starts at 0.
        quantile: between 0 and 1.

    Returns:
        The quantile in the unit of the edges, NaN for an empty histogram.
    """
    total = counts.sum()
    if total <= 0.0:
        return np.nan
    rank = quantile * total
    seen = 0.0
    for k in range(counts.size):
        if seen + counts[k] >= rank and counts[k] > 0.0:
            low = upper_edges[k - 1] if k > 0 else 0.0
            return float(low + (upper_edges[k] - low) * (rank - seen) / counts[k])
        seen += counts[k]
    return float(upper_edges[-1])
