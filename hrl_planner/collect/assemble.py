"""From what is known of pools and classes to the observation a policy reads.

Replica states come from the API server and do not lag; everything else comes from `PoolWindow`.
What a role does not do is as in the simulator: a prefill worker's answers and a decode worker's
prompts are unknown (NaN) where a value describes them, and none where it counts them. Without a
router the rows of the classes are made from the pools (`classes_from_pools`); with one, `classes`
reads them off its page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hrl_planner.collect.histogram import Histogram, mean_and_std, quantile, share_below
from hrl_planner.collect.window import PoolTotals
from hrl_planner.observation import (
    CLASS_FIELDS,
    POOL_FIELDS,
    ClassObservation,
    ClusterObservation,
    PoolObservation,
)
from hrl_planner.spec import ClusterSpec, PoolSpec

_ETA_EDGES_S = (30.0, 60.0, 120.0)
_NAN = math.nan


@dataclass(frozen=True, slots=True)
class Replicas:
    """What the API server says of a pool's replicas.

    Attributes:
        target: replicas asked for.
        quota: upper bound set by the global planner.
        ready: replicas that serve.
        draining: replicas that finish their requests and then go.
        pending: replicas asked for that no GPU is free for.
        starting_eta_s: for each replica that holds GPUs and does not serve yet, seconds until it
            is expected to; negative for one that is overdue.
    """

    target: int
    quota: int
    ready: int
    draining: int = 0
    pending: int = 0
    starting_eta_s: tuple[float, ...] = ()

    def etas(self) -> tuple[float, float, float, float]:
        """Return the starting replicas by the time until they are ready."""
        counts = [0.0] * 4
        for eta_s in self.starting_eta_s:
            counts[sum(eta_s > edge for edge in _ETA_EDGES_S)] += 1.0
        return counts[0], counts[1], counts[2], counts[3]


def tightest_s(spec: ClusterSpec) -> tuple[float, float]:
    """Return the tightest TTFT and ITL targets of a spec, in seconds."""
    return (
        min(c.ttft_ms for c in spec.slo_classes) * 1e-3,
        min(c.itl_ms for c in spec.slo_classes) * 1e-3,
    )


def observe_pool(
    pool: PoolSpec, replicas: Replicas, totals: PoolTotals, ttft_s: float, itl_s: float
) -> PoolObservation:
    """Return the row of one pool.

    Args:
        pool: its spec.
        replicas: from the API server.
        totals: from its workers.
        ttft_s: the TTFT target attainment is counted against.
        itl_s: the ITL target.
    """
    prompts, answers = pool.role != "decode", pool.role != "prefill"
    rates, seen = totals.rates, totals.histograms
    ttft = seen.get("ttft_s", ()) if prompts else ()
    itl = seen.get("itl_s", ()) if answers else ()
    hits, queries = rates["cache_hits"], rates["cache_queries"]
    cached = 0.0 if math.isnan(hits) else hits
    computed = max(0.0, rates["prompt_tokens"] - cached)
    isl = mean_and_std(seen.get("prompt_length", ()))
    osl = mean_and_std(seen.get("answer_length", ()) if answers else ())
    eta_30s, eta_60s, eta_120s, eta_late = replicas.etas()
    return PoolObservation(
        target_replicas=replicas.target,
        quota=replicas.quota,
        ready=replicas.ready,
        starting=len(replicas.starting_eta_s),
        draining=replicas.draining,
        pending=replicas.pending,
        starting_eta_30s=eta_30s,
        starting_eta_60s=eta_60s,
        starting_eta_120s=eta_120s,
        starting_eta_late=eta_late,
        arrivals_rps=rates["arrived"],
        isl_mean_tokens=isl[0],
        isl_std_tokens=isl[1],
        osl_mean_tokens=osl[0],
        osl_std_tokens=osl[1],
        waiting=totals.waiting,
        running=totals.running,
        kv_use=totals.kv_use,
        prefix_hit_rate=min(1.0, hits / queries) if prompts and queries > 0.0 else _NAN,
        prompt_tokens_per_s=computed if prompts else 0.0 * rates["prompt_tokens"],
        output_tokens_per_s=rates["generated_tokens"] * (1.0 if answers else 0.0),
        ttft_p50_ms=1e3 * quantile(ttft, 0.5),
        ttft_p90_ms=1e3 * quantile(ttft, 0.9),
        itl_p50_ms=1e3 * quantile(itl, 0.5),
        itl_p90_ms=1e3 * quantile(itl, 0.9),
        ttft_attainment=share_below(ttft, ttft_s),
        itl_attainment=share_below(itl, itl_s),
        metrics_age_s=totals.age_s,
    )


def observe_cluster(
    spec: ClusterSpec,
    now_s: float,
    replicas: Mapping[str, Replicas],
    totals: Mapping[str, PoolTotals],
    classes: Sequence[ClassObservation] | None = None,
) -> ClusterObservation:
    """Return what a policy may look at.

    Args:
        spec: the cluster.
        now_s: time of the observation.
        replicas: of every pool, by name.
        totals: of every pool, by name.
        classes: what the routers counted, in the spec's order; without any, the pools' guess.
    """
    ttft_s, itl_s = tightest_s(spec)
    rows = [
        observe_pool(pool, replicas[pool.name], totals[pool.name], ttft_s, itl_s)
        for pool in spec.pools
    ]
    if classes is None:
        classes = classes_from_pools(spec, totals)
    pools = np.array([row.to_row() for row in rows]).reshape(len(rows), len(POOL_FIELDS))
    columns = [[getattr(row, name) for name in CLASS_FIELDS] for row in classes]
    return ClusterObservation(now_s, pools, np.array(columns, dtype=np.float64))


def classes_from_pools(
    spec: ClusterSpec, totals: Mapping[str, PoolTotals]
) -> list[ClassObservation]:
    """Return rows of classes where no router tells of them.

    Workers do not know classes: every class is taken to be its share of all requests, and all to
    have the same lengths. A class's attainment is the share of prompts within its TTFT target times
    the share of answers within its ITL target.
    """
    prompts = [totals[pool.name] for pool in spec.pools if pool.role != "decode"]
    answers = [totals[pool.name] for pool in spec.pools if pool.role != "prefill"]
    arrivals_rps = _sum_of_rates(prompts, "arrived")
    if math.isnan(arrivals_rps):  # every request passes both sides
        arrivals_rps = _sum_of_rates(answers, "arrived")
    in_system = math.fsum(part.waiting + part.running for part in totals.values())
    isl = mean_and_std(_pooled(prompts, "prompt_length") or _pooled(answers, "prompt_length"))
    osl = mean_and_std(_pooled(answers, "answer_length"))
    ttft, itl = _pooled(prompts, "ttft_s"), _pooled(answers, "itl_s")
    queries = _sum_of_rates(prompts, "cache_queries")
    hits = _sum_of_rates(prompts, "cache_hits")
    return [
        ClassObservation(
            arrivals_rps=arrivals_rps * share,
            isl_mean_tokens=isl[0],
            isl_std_tokens=isl[1],
            osl_mean_tokens=osl[0],
            osl_std_tokens=osl[1],
            prefix_hit_rate=min(1.0, hits / queries) if queries > 0.0 else _NAN,
            attainment=share_below(ttft, kind.ttft_ms * 1e-3)
            * share_below(itl, kind.itl_ms * 1e-3),
            in_system=in_system * share,
        )
        for kind, share in zip(spec.slo_classes, class_shares(spec), strict=True)
    ]


def _sum_of_rates(parts: Sequence[PoolTotals], name: str) -> float:
    return math.fsum(part.rates[name] for part in parts)


def _pooled(parts: Sequence[PoolTotals], name: str) -> list[Histogram]:
    return [histogram for part in parts for histogram in part.histograms.get(name, ())]


def class_shares(spec: ClusterSpec) -> list[float]:
    """Return each class's share of all requests: the spec's, the rest evenly."""
    named = [kind.assign.share for kind in spec.slo_classes]
    silent = named.count(None)
    rest = max(0.0, 1.0 - sum(share or 0.0 for share in named))
    shares = [rest / silent if share is None else share for share in named]
    total = sum(shares)
    return [share / total if total > 0.0 else 1.0 / len(shares) for share in shares]
