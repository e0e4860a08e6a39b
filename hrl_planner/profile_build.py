"""Profiles from the performance database of NVIDIA's AISimulate, without a GPU.

The SDK predicts the latency of one engine step from kernel timings that were collected on each
system; here it is asked on the grid of our surfaces. It is a large package that pins much, so it
is no dependency of ours: `build_profile` says how to get it when it is not there.
"""

from __future__ import annotations

import importlib.util
import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from hrl_planner.errors import ProfileError
from hrl_planner.profile import Floats, WorkerProfile

BATCHES = (1, 2, 4, 8)
NEW_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
PREFIX_TOKENS = (0, 1024, 4096, 16384)
DECODE_BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
CONTEXT_TOKENS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)

# What an engine leaves for weights and KV cache by default; the same in all profiles that ship.
_MEMORY_FRACTION = 0.9
_MAX_BATCHED_TOKENS = 8192
_MAX_SEQS = 256

_HOW_TO_GET_IT = (
    "building a profile needs NVIDIA's package `aisimulate`, which is not installed. "
    "Get it with: pip install aisimulate==0.13.0.dev202610130000000070  (the release the shipped "
    "profiles were made with), or use one of those (hrl-planner profile list), or bring your own "
    "measurements (hrl-planner profile import)"
)


def build_profile(
    model: str,
    system: str,
    *,
    tp: int = 1,
    backend: str = "vllm",
    moe: bool = False,
    name: str = "",
) -> WorkerProfile:
    """Predict both latency surfaces and the KV capacity of one worker configuration.

    Args:
        model: model id on the hub.
        system: a system of the database, such as `h200_sxm`.
        tp: GPUs one worker shards the model over.
        backend: `vllm`, `sglang` or `trtllm`.
        moe: the model is a mixture of experts; experts are sharded like the rest.
        name: name of the profile; empty makes one from the configuration.

    Raises:
        ProfileError: when the SDK is not installed or its database lacks the configuration.
    """
    if importlib.util.find_spec("aisimulate_core") is None:
        raise ProfileError(_HOW_TO_GET_IT)
    from aisimulate_core.sdk import EngineHandle, estimate_kv_cache
    from aisimulate_core.sdk.perf_database import get_latest_database_version, load_system_spec

    what = f"{model} on {tp} x {system} with {backend}"
    sharding = {"tp_size": tp, **({"moe_tp_size": tp, "moe_ep_size": 1} if moe else {})}
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the SDK warns of every table it interpolates
    try:
        release = get_latest_database_version(system, backend)
        if release is None:
            raise ProfileError(f"{what}: the database has no data for this system and engine")
        engine = EngineHandle.compile(model, system, backend, backend_version=release, **sharding)
        prefill_ms, decode_ms = _surfaces(engine)
        power = float(load_system_spec(system)["gpu"].get("power") or 0.0)
    except ProfileError:
        raise
    except Exception as error:  # the SDK raises whatever its parts raise
        raise ProfileError(f"{what}: {type(error).__name__}: {error}") from error
    else:
        cache = _kv_cache(estimate_kv_cache, model, system, backend, release, sharding)
    finally:
        logging.disable(previous)
    return WorkerProfile(
        name=name or f"{model.rpartition('/')[2].lower()}__{system}__tp{tp}__{backend}",
        model=model,
        system=system,
        tp=tp,
        backend=f"{backend} {release}",
        prefill_batch=np.array(BATCHES, np.float64),
        prefill_new_tokens=np.array(NEW_TOKENS, np.float64),
        prefill_prefix_tokens=np.array(PREFIX_TOKENS, np.float64),
        prefill_ms=prefill_ms,
        decode_batch=np.array(DECODE_BATCHES, np.float64),
        decode_context_tokens=np.array(CONTEXT_TOKENS, np.float64),
        decode_ms=decode_ms,
        kv_capacity_tokens=max(0, int(cache.get("total_kv_size_tokens", 0))),
        kv_bytes_per_token=int(cache.get("kv_size_per_token_bytes", 0)),
        tdp_w_per_gpu=power,
        source=f"aisimulate {_sdk_version()} performance database; predicted, not measured",
    )


def _surfaces(engine: Any) -> tuple[Floats, Floats]:
    prefill = np.empty((len(BATCHES), len(NEW_TOKENS), len(PREFIX_TOKENS)))
    for i, batch in enumerate(BATCHES):
        for j, new in enumerate(NEW_TOKENS):
            for k, prefix in enumerate(PREFIX_TOKENS):
                # The SDK counts all tokens of the prompt, cached ones included.
                prefill[i, j, k] = engine.predict_prefill_latency(batch, new + prefix, prefix)
    decode = np.empty((len(DECODE_BATCHES), len(CONTEXT_TOKENS)))
    for i, batch in enumerate(DECODE_BATCHES):
        for j, context in enumerate(CONTEXT_TOKENS):
            decode[i, j] = engine.predict_decode_latency(batch, context, 2)
    return prefill, decode


def _kv_cache(
    estimate: Any, model: str, system: str, backend: str, release: str, sharding: dict[str, int]
) -> dict[str, Any]:
    """Return the SDK's estimate of the KV cache; empty when the weights do not fit."""
    try:
        return dict(
            estimate(
                model,
                system,
                backend,
                release,
                max_num_tokens=_MAX_BATCHED_TOKENS,
                max_batch_size=_MAX_SEQS,
                memory_fraction_kind="of_free" if backend == "trtllm" else "of_total",
                memory_fraction_value=_MEMORY_FRACTION,
                **sharding,
            )
        )
    except ValueError as error:
        if "no KV budget" in str(error):
            return {}
        raise ProfileError(f"{model} on {system}: {error}") from error


def _sdk_version() -> str:
    try:
        return version("aisimulate")
    except PackageNotFoundError:
        return "(unknown version)"
