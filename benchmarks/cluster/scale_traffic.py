"""Five hundred pools and their traffic, for `scale`: clusters, and metrics that rise and fall.

Every group has ten pools of twenty replicas. Its requests swing by a tenth around what those
replicas can carry, each group at its own time, so the allocator moves quotas and scalers move
replicas all the while. Numbers come from nowhere: no worker runs, and none is asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, Float64Array
from hrl_planner.spec import ClusterSpec

GROUPS, POOLS_EACH, REPLICAS = 50, 10, 20
PERIOD_S = 600.0
_SWING = 0.1
_RPS = 800.0
_SLACK = 1.1  # of the budget, over what runs at first


def cluster(index: int) -> ClusterSpec:
    """Return a group's cluster: ten of the pools of `large`, and GPUs for a little more."""
    large = ClusterSpec.load("large")
    chosen = [p for p in large.pools if p.role == "prefill"][: POOLS_EACH // 2]
    chosen += [p for p in large.pools if p.role == "decode"][: POOLS_EACH // 2]
    gpus: dict[str, int] = {}
    for pool in chosen:
        held = math.ceil(_SLACK * REPLICAS * pool.gpus_per_replica)
        gpus[pool.gpu_type] = gpus.get(pool.gpu_type, 0) + held
    pools = [
        pool.model_copy(update={"name": f"g{index:02}-{pool.name}", "max_replicas": 2 * REPLICAS})
        for pool in chosen
    ]
    router = large.router.model_copy(update={"prefill_grid": None, "decode_grid": None})
    return large.replace(
        name=f"g{index:02}",
        pools=[pool.model_dump() for pool in pools],
        budget={"gpus": gpus},
        router=router.model_dump(),
    )


class Traffic:
    """A source of metrics for planners; see the module.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        """Return rows per pool and per SLO class."""
        phase = 2.0 * math.pi * (self._clock() / PERIOD_S + int(spec.name[1:]) / GROUPS)
        level = 1.0 + _SWING * math.sin(phase)
        pools = np.zeros((len(spec.pools), len(POOL_FIELDS)))
        for row, pool in zip(pools, spec.pools, strict=True):
            values = {
                "arrivals_rps": _RPS * level * 2.0 / POOLS_EACH,
                "isl_mean_tokens": 1500.0,
                "isl_std_tokens": 900.0,
                "osl_mean_tokens": 250.0,
                "osl_std_tokens": 120.0,
                "running": 30.0 * level,
                "kv_use": 0.55 * level,
                "prefix_hit_rate": 0.2,
                "ttft_p50_ms": 120.0 * level,
                "ttft_p90_ms": 220.0 * level,
                "itl_p50_ms": 14.0 * level,
                "itl_p90_ms": 16.0 * level,
                "ttft_attainment": 0.95,
                "itl_attainment": 0.95,
                "output_tokens_per_s": 500.0 if pool.role == "decode" else 0.0,
            }
            for name, value in values.items():
                row[POOL_FIELDS.index(name)] = value
        classes = np.zeros((len(spec.slo_classes), len(CLASS_FIELDS)))
        for row, kind in zip(classes, spec.slo_classes, strict=True):
            share = kind.assign.share or 1.0 / len(spec.slo_classes)
            row[:] = (_RPS * level * share, 1500.0, 900.0, 250.0, 120.0, 0.2, 0.95, 50.0)
        return pools, classes
