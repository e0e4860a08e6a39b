"""From observation rows to the numbers a learned policy reads.

Raw rows are in units of the cluster (requests/s, ms, replicas); features are in units of what the
spec allows (share of the maximum, ratio to the target), so that one network serves clusters of any
size. Same function for the simulator's batch of environments and for production: compiled, writes
into the caller's float32 arrays, no state. Unknown values become 0 and the row's `known` feature
says so. Features are finite and stay within a few units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import compiled
from hrl_planner.budget import BudgetArrays
from hrl_planner.limits import limit_rows
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, ClusterObservation

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]

_SHARES = POOL_FIELDS[: POOL_FIELDS.index("arrivals_rps")]  # replica counts, over max_replicas
_LATENCIES = ("ttft_p50_ms", "ttft_p90_ms", "itl_p50_ms", "itl_p90_ms")  # over the tightest target

# Static facts of a pool, the same at every step.
_STATIC = (
    "role_prefill",
    "role_decode",
    "role_aggregated",
    "gpus_per_replica",  # log2, over 3
    "max_share",  # share of the type's GPUs the pool could hold
    "type_share",  # share of all GPUs that are of its type
    "price",  # of a GPU-hour, over the dearest pool's
    "startup",  # mean start-up time, over 300 s
)
POOL_FEATURES: tuple[str, ...] = (
    *_STATIC,
    *_SHARES,
    "arrivals",  # log1p of requests/s
    "arrivals_per_replica",  # log1p of requests/s per ready replica
    "isl",  # log1p of tokens, over 10
    "isl_cv",  # standard deviation over mean
    "osl",
    "osl_cv",
    "waiting_per_replica",  # log1p
    "running_per_replica",  # over max_num_seqs
    "kv_use",
    "prefix_hit_rate",
    "prompt_tokens_per_replica",  # log1p of tokens/s, over 10
    "output_tokens_per_replica",
    *_LATENCIES,  # log1p of the ratio
    "ttft_attainment",
    "itl_attainment",
    "metrics_age",  # over 60 s, at most 5
    "free_gpus",  # share of the type's budget that no replica holds
    "known",  # 1 when traffic metrics were seen
)
CLASS_FEATURES: tuple[str, ...] = (
    "ttft_target",  # log10 of seconds
    "itl_target",  # log10 of ms, over 3
    "value",  # over the largest class value
    "arrivals",
    "isl",
    "isl_cv",
    "osl",
    "osl_cv",
    "prefix_hit_rate",
    "attainment",
    "in_system",  # log1p, over 5
    "known",
)

_N_STATIC = len(_STATIC)
_N_SHARES = len(_SHARES)
_CLASS_STATIC = 3
_LIMIT = 5.0

(
    _TARGET, _QUOTA, _READY, _STARTING, _DRAINING, _PENDING, _ETA_30, _ETA_60, _ETA_120, _ETA_LATE,
    _ARRIVALS, _ISL, _ISL_STD, _OSL, _OSL_STD, _WAITING, _RUNNING, _KV_USE, _HIT, _PROMPT, _OUTPUT,
    _TTFT_50, _TTFT_90, _ITL_50, _ITL_90, _TTFT_OK, _ITL_OK, _AGE,
) = range(len(POOL_FIELDS))  # fmt: skip
(_C_ARRIVALS, _C_ISL, _C_ISL_STD, _C_OSL, _C_OSL_STD, _C_HIT, _C_OK, _C_IN_SYSTEM) = range(
    len(CLASS_FIELDS)
)


class FeatureScales(NamedTuple):
    """What features are measured against; made once per spec.

    Attributes:
        pool_static: the static pool features, shape (P, 8).
        max_replicas: shape (P,).
        max_num_seqs: shape (P,).
        gpus: GPUs per replica, shape (P,).
        type_index: GPU type of each pool, shape (P,).
        type_budget: GPUs of each type, shape (T,).
        class_static: the static class features, shape (C, 3).
        ttft_ms: tightest TTFT target.
        itl_ms: tightest ITL target.
        limits: see `hrl_planner.limits`, shape (P, 7).
    """

    pool_static: Float64Array
    max_replicas: Float64Array
    max_num_seqs: Float64Array
    gpus: Float64Array
    type_index: NDArray[np.int64]
    type_budget: Float64Array
    class_static: Float64Array
    ttft_ms: float
    itl_ms: float
    limits: Float64Array

    @classmethod
    def from_spec(cls, spec: ClusterSpec) -> FeatureScales:
        """Collect the scales of a cluster."""
        pools, classes, budget = spec.pools, spec.slo_classes, spec.budget.gpus
        dearest = max(max(p.price_per_gpu_hour for p in pools), 1e-9)
        total = max(sum(budget.values()), 1)
        static = [
            [
                pool.role == "prefill",
                pool.role == "decode",
                pool.role == "aggregated",
                np.log2(pool.gpus_per_replica) / 3.0,
                pool.max_replicas * pool.gpus_per_replica / max(budget[pool.gpu_type], 1),
                budget[pool.gpu_type] / total,
                pool.price_per_gpu_hour / dearest,
                pool.startup.mean_s / 300.0,
            ]
            for pool in pools
        ]
        most = max(max(c.value for c in classes), 1e-9)
        promises = [
            [np.log10(c.ttft_ms / 1e3), np.log10(c.itl_ms) / 3.0, c.value / most] for c in classes
        ]
        return cls(
            pool_static=np.clip(np.array(static, np.float64), -_LIMIT, _LIMIT),
            max_replicas=np.array([p.max_replicas for p in pools], np.float64),
            max_num_seqs=np.array([p.max_num_seqs for p in pools], np.float64),
            gpus=np.array([p.gpus_per_replica for p in pools], np.float64),
            type_index=np.array([spec.gpu_types.index(p.gpu_type) for p in pools], np.int64),
            type_budget=np.array([budget[kind] for kind in spec.gpu_types], np.float64),
            class_static=np.clip(np.array(promises, np.float64), -_LIMIT, _LIMIT),
            ttft_ms=min(c.ttft_ms for c in classes),
            itl_ms=min(c.itl_ms for c in classes),
            limits=limit_rows(BudgetArrays.from_spec(spec)),
        )


def encode(
    observation: ClusterObservation, scales: FeatureScales
) -> tuple[Float32Array, Float32Array]:
    """Return features of pools (P, len(POOL_FEATURES)) and classes (C, len(CLASS_FEATURES))."""
    pools = np.empty((observation.pools.shape[0], len(POOL_FEATURES)), np.float32)
    classes = np.empty((observation.classes.shape[0], len(CLASS_FEATURES)), np.float32)
    encode_pools(observation.pools, scales, pools)
    encode_classes(observation.classes, scales, classes)
    return pools, classes


@compiled
def _known(value: float) -> float:
    """Return the value, 0 where it is unknown."""
    return 0.0 if np.isnan(value) else value


@compiled
def _log(value: float, scale: float) -> float:
    """Return log1p of a value not below 0, scaled and bounded."""
    return float(min(np.log1p(max(_known(value), 0.0)) / scale, 5.0))


@compiled
def _cv(std: float, mean: float) -> float:
    """Return the coefficient of variation, bounded."""
    return min(_known(std) / max(_known(mean), 1e-9), 5.0)


@compiled
def encode_pools(rows: Float64Array, scales: FeatureScales, out: Float32Array) -> None:
    """Write the features of every pool into `out`, shape (>= P, len(POOL_FEATURES)).

    Args:
        rows: observation rows, shape (P, len(POOL_FIELDS)).
        scales: of the spec the rows belong to.
        out: rows behind the P-th are left as they are (padding).
    """
    free = scales.type_budget.copy()
    for i in range(rows.shape[0]):
        held = _known(rows[i, _READY]) + _known(rows[i, _STARTING]) + _known(rows[i, _DRAINING])
        free[scales.type_index[i]] -= held * scales.gpus[i]
    for i in range(rows.shape[0]):
        row = rows[i]
        ready = max(_known(row[_READY]), 1.0)
        out[i, :_N_STATIC] = scales.pool_static[i]
        for k in range(_N_SHARES):
            out[i, _N_STATIC + k] = min(_known(row[k]) / scales.max_replicas[i], 5.0)
        at = _N_STATIC + _N_SHARES
        out[i, at] = _log(row[_ARRIVALS], 1.0)
        out[i, at + 1] = _log(row[_ARRIVALS] / ready, 1.0)
        out[i, at + 2] = _log(row[_ISL], 10.0)
        out[i, at + 3] = _cv(row[_ISL_STD], row[_ISL])
        out[i, at + 4] = _log(row[_OSL], 10.0)
        out[i, at + 5] = _cv(row[_OSL_STD], row[_OSL])
        out[i, at + 6] = _log(row[_WAITING] / ready, 1.0)
        out[i, at + 7] = min(_known(row[_RUNNING]) / (ready * scales.max_num_seqs[i]), 5.0)
        out[i, at + 8] = _known(row[_KV_USE])
        out[i, at + 9] = _known(row[_HIT])
        out[i, at + 10] = _log(row[_PROMPT] / ready, 10.0)
        out[i, at + 11] = _log(row[_OUTPUT] / ready, 10.0)
        out[i, at + 12] = _log(row[_TTFT_50] / scales.ttft_ms, 1.0)
        out[i, at + 13] = _log(row[_TTFT_90] / scales.ttft_ms, 1.0)
        out[i, at + 14] = _log(row[_ITL_50] / scales.itl_ms, 1.0)
        out[i, at + 15] = _log(row[_ITL_90] / scales.itl_ms, 1.0)
        out[i, at + 16] = _known(row[_TTFT_OK])
        out[i, at + 17] = _known(row[_ITL_OK])
        out[i, at + 18] = min(_known(row[_AGE]) / 60.0, 5.0)
        budget = max(scales.type_budget[scales.type_index[i]], 1.0)
        out[i, at + 19] = max(free[scales.type_index[i]] / budget, -1.0)
        out[i, at + 20] = 0.0 if np.isnan(row[_ARRIVALS]) else 1.0


@compiled
def encode_classes(rows: Float64Array, scales: FeatureScales, out: Float32Array) -> None:
    """Write the features of every class into `out`, shape (>= C, len(CLASS_FEATURES))."""
    for c in range(rows.shape[0]):
        row = rows[c]
        out[c, :_CLASS_STATIC] = scales.class_static[c]
        out[c, 3] = _log(row[_C_ARRIVALS], 1.0)
        out[c, 4] = _log(row[_C_ISL], 10.0)
        out[c, 5] = _cv(row[_C_ISL_STD], row[_C_ISL])
        out[c, 6] = _log(row[_C_OSL], 10.0)
        out[c, 7] = _cv(row[_C_OSL_STD], row[_C_OSL])
        out[c, 8] = _known(row[_C_HIT])
        out[c, 9] = _known(row[_C_OK])
        out[c, 10] = _log(row[_C_IN_SYSTEM], 5.0)
        out[c, 11] = 0.0 if np.isnan(row[_C_ARRIVALS]) else 1.0
