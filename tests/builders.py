"""The smallest clusters and traces that show a point.

Every builder has defaults for what a test does not care about: round-robin routing, one GPU per
replica, start-up at once, no KV transfer time, one SLO class that takes every request.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hrl_planner.profile import WorkerProfile
from hrl_planner.spec import (
    AssignSpec,
    BudgetSpec,
    ClusterSpec,
    KvTransferSpec,
    PoolSpec,
    RouterSpec,
    SloClassSpec,
    StartupSpec,
)
from hrl_planner.workload.trace import Trace

GPU = "test-gpu"
MODEL = "test-model"
PLENTY_OF_KV = 10_000_000


@functools.cache
def _profile_dir() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="hrl-planner-profiles-")


def profile_file(
    *,
    prefill_batch: ArrayLike = (1,),
    prefill_new_tokens: ArrayLike = (1,),
    prefill_prefix_tokens: ArrayLike = (0,),
    prefill_ms: ArrayLike = (((10.0,),),),
    decode_batch: ArrayLike = (1,),
    decode_context_tokens: ArrayLike = (1,),
    decode_ms: ArrayLike = ((10.0,),),
    kv_capacity_tokens: int = PLENTY_OF_KV,
    kv_bytes_per_token: int = 0,
    tdp_w_per_gpu: float = 100.0,
) -> str:
    """Write a profile with these grids and return its path, the same path for the same grids."""
    grids = {
        "prefill_batch": prefill_batch,
        "prefill_new_tokens": prefill_new_tokens,
        "prefill_prefix_tokens": prefill_prefix_tokens,
        "prefill_ms": prefill_ms,
        "decode_batch": decode_batch,
        "decode_context_tokens": decode_context_tokens,
        "decode_ms": decode_ms,
    }
    arrays = {name: np.asarray(values, np.float64) for name, values in grids.items()}
    numbers = (kv_capacity_tokens, kv_bytes_per_token, tdp_w_per_gpu)
    content = repr(numbers).encode() + b"".join(
        repr(array.shape).encode() + array.tobytes() for array in arrays.values()
    )
    path = Path(_profile_dir().name) / f"{hashlib.sha256(content).hexdigest()[:20]}.npz"
    if not path.exists():
        WorkerProfile(
            name=path.stem,
            model=MODEL,
            system=GPU,
            tp=1,
            backend="test",
            kv_capacity_tokens=kv_capacity_tokens,
            kv_bytes_per_token=kv_bytes_per_token,
            tdp_w_per_gpu=tdp_w_per_gpu,
            source="made by a test",
            **arrays,
        ).save(path)
    return str(path)


def constant_profile(
    prefill_ms: float = 10.0, decode_ms: float = 10.0, kv_capacity_tokens: int = PLENTY_OF_KV
) -> str:
    """A worker whose prefill steps and decode iterations all take the same time.

    The prefill grid is so long that no batch stretches it.
    """
    return profile_file(
        prefill_new_tokens=(PLENTY_OF_KV,),
        prefill_ms=(((prefill_ms,),),),
        decode_ms=((decode_ms,),),
        kv_capacity_tokens=kv_capacity_tokens,
    )


def linear_profile(
    prefill_ms_per_token: float = 0.1,
    decode_ms: float = 10.0,
    kv_capacity_tokens: int = PLENTY_OF_KV,
) -> str:
    """A worker whose prefill steps take time in proportion to their new tokens."""
    return profile_file(
        prefill_ms=(((prefill_ms_per_token,),),),
        decode_ms=((decode_ms,),),
        kv_capacity_tokens=kv_capacity_tokens,
    )


def pool(role: str, profile: str | None = None, replicas: int = 1, **fields: Any) -> PoolSpec:
    """A pool named after its role with `replicas` ready at time 0."""
    defaults: dict[str, Any] = {
        "name": role,
        "role": role,
        "gpu_type": GPU,
        "gpus_per_replica": 1,
        "profile": profile or constant_profile(),
        "max_replicas": max(replicas, 4),
        "initial_replicas": replicas,
        "startup": StartupSpec(mean_s=0.0),
        "price_per_gpu_hour": 1.0,
    }
    return PoolSpec(**{**defaults, **fields})


def slo_class(name: str = "any", ttft_ms: float = 1000.0, **fields: Any) -> SloClassSpec:
    """A class that takes every request."""
    defaults: dict[str, Any] = {"itl_ms": 100.0, "assign": AssignSpec(share=1.0)}
    return SloClassSpec(name=name, ttft_ms=ttft_ms, **{**defaults, **fields})


def cluster(*pools: PoolSpec, router: str = "round_robin", **fields: Any) -> ClusterSpec:
    """A cluster of these pools with GPUs for every slot and an infinitely fast link."""
    slots = sum(pool.max_replicas * pool.gpus_per_replica for pool in pools)
    defaults: dict[str, Any] = {
        "name": "test",
        "model": MODEL,
        "pools": pools,
        "budget": BudgetSpec(gpus={GPU: slots}),
        "slo_classes": (slo_class(),),
        "router": RouterSpec(kind=router),
        "kv_transfer": KvTransferSpec(latency_ms=0.0, bytes_per_token=0),
    }
    return ClusterSpec(**{**defaults, **fields})


def trace(
    arrival_s: ArrayLike,
    isl_tokens: ArrayLike = 100,
    osl_tokens: ArrayLike = 1,
    *,
    blocks: Sequence[Sequence[int]] | None = None,
    block_tokens: int = 16,
    duration_s: float | None = None,
) -> Trace:
    """A trace; one length stands for all requests."""
    arrivals = np.asarray(arrival_s, np.float64)
    prefixes: dict[str, Any] = {}
    if blocks is not None:
        prefixes["block_ids"] = np.array([b for row in blocks for b in row], np.int32)
        prefixes["block_offsets"] = np.cumsum([0, *map(len, blocks)])
    return Trace(
        name="test",
        arrival_s=arrivals,
        isl_tokens=np.broadcast_to(isl_tokens, arrivals.shape),
        osl_tokens=np.broadcast_to(osl_tokens, arrivals.shape),
        duration_s=float(arrivals[-1]) if duration_s is None else duration_s,
        block_tokens=block_tokens,
        **prefixes,
    )
