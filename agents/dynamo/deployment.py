"""Our pools as a user of Dynamo 1.6 would have to deploy them.

Dynamo's planner takes one component per role and deployment, so every pool is a deployment (DGD)
of its own in mode `prefill`, `decode` or `agg`. Its arbiter counts GPUs in one scalar, so there is
one arbiter per GPU type. Neither knows a limit of GPUs over all types or of watts: those are left
to the projection every plan passes.

A planner has one TTFT and one ITL target: the tightest class its pool can serve at all, or the
loosest where it can serve none. What the profiler would have measured before deployment is sampled
from our worker profile on the grid Dynamo's offline replay uses.
"""

from __future__ import annotations

import numpy as np

from agents.dynamo.client import Json
from hrl_planner.planner.policy import PlanContext
from hrl_planner.planner.rule import RulePools
from hrl_planner.spec import ClusterSpec
from hrl_planner.surface import Surface, decode_step_s, pack, prefill_step_s

# `dynamo.replay.planner`: where Dynamo samples a performance model to start its regression from.
_GRANULARITY = 8
_FIRST_PREFILL_TOKENS = 100
_CONTEXTS_TOKENS = (500, 2000, 4000, 8000)

# Real seconds a plugin call may take: a loaded machine must not change simulated decisions.
_PATIENCE_S = 600.0


def pack_pools(spec: ClusterSpec) -> list[Surface]:
    """Return the packed latency surface of every pool."""
    return [
        pack(profile, pool.max_num_seqs, pool.latency_scale)
        for profile, pool in zip(spec.profiles(), spec.pools, strict=True)
    ]


def describe(context: PlanContext, planner: Json, intent_ttl_s: float) -> Json:
    """Return what the server needs to set up planners and arbiters.

    Args:
        context: the cluster.
        planner: fields of Dynamo's `PlannerConfig` that are the same for every pool.
        intent_ttl_s: how long an arbiter remembers a request it denied.
    """
    spec = context.spec
    targets = RulePools.from_spec(spec, context.blind_pools)
    surfaces = pack_pools(spec)
    pools = []
    for index, pool in enumerate(spec.pools):
        profile = None
        if index not in context.blind_pools:
            sample = _prefill_profile if pool.role == "prefill" else _decode_profile
            profile = sample(spec, index, surfaces[index])
        pools.append(
            {
                "name": pool.name,
                "gpu_type": pool.gpu_type,
                "gpus_per_replica": pool.gpus_per_replica,
                "config": {
                    **planner,
                    **_pool_config(spec, index, targets),
                    "plugin_registration": {"transport": {"request_timeout_seconds": _PATIENCE_S}},
                    "scheduling": {"tick_max_duration_seconds": _PATIENCE_S},
                },
                "capabilities": _capabilities(spec, index),
                "profile": profile,
            }
        )
    return {"pools": pools, "gpus": spec.budget.gpus, "intent_ttl_s": intent_ttl_s}


def _pool_config(spec: ClusterSpec, index: int, targets: RulePools) -> Json:
    pool = spec.pools[index]
    component = "prefill" if pool.role == "prefill" else "decode"
    ttft_ms, itl_ms = float(targets.ttft_target_ms[index]), float(targets.itl_target_ms[index])
    return {
        "environment": "global-planner",
        "global_planner_namespace": f"arbiter-{pool.gpu_type}",
        "namespace": pool.name,
        "model_name": spec.model,
        "mode": "agg" if pool.role == "aggregated" else pool.role,
        "throughput_metrics_source": "router",
        "optimization_target": "sla",
        "ttft_ms": ttft_ms if np.isfinite(ttft_ms) else max(c.ttft_ms for c in spec.slo_classes),
        "itl_ms": itl_ms if np.isfinite(itl_ms) else max(c.itl_ms for c in spec.slo_classes),
        "min_endpoint": max(1, pool.min_replicas),
        "max_gpu_budget": pool.max_replicas * pool.gpus_per_replica,
        f"{component}_engine_num_gpu": pool.gpus_per_replica,
    }


def _capabilities(spec: ClusterSpec, index: int) -> Json:
    pool = spec.pools[index]
    return {
        "num_gpu": pool.gpus_per_replica,
        "gpu_cost_per_replica": pool.gpus_per_replica,
        "max_num_batched_tokens": pool.max_num_batched_tokens,
        "max_num_seqs": pool.max_num_seqs,
        "max_kv_tokens": spec.profiles()[index].kv_capacity_tokens,
        "kv_cache_block_size": spec.kv_block_tokens,
    }


def _prefill_profile(spec: ClusterSpec, index: int, surface: Surface) -> Json:
    """Return `selected_prefill_interpolation/raw_data.npz`: one prompt without cached prefix."""
    most = spec.pools[index].max_num_batched_tokens
    step = max(1, (most - _FIRST_PREFILL_TOKENS) // _GRANULARITY)
    isl = list(range(min(_FIRST_PREFILL_TOKENS, most), most + 1, step))
    ttft = [1e3 * prefill_step_s(surface.record[0], surface.table, 1.0, x, 0.0) for x in isl]
    return {"prefill_isl": isl, "prefill_ttft": ttft}


def _decode_profile(spec: ClusterSpec, index: int, surface: Surface) -> Json:
    """Return `selected_decode_interpolation/raw_data.npz`: ITL over KV use and context."""
    most_kv = spec.profiles()[index].kv_capacity_tokens
    most = spec.pools[index].max_num_seqs
    use, context, itl = [], [], []
    for tokens in _CONTEXTS_TOKENS:
        for batch in range(1, most + 1, max(1, most // _GRANULARITY)):
            if batch * tokens > most_kv:
                break
            use.append(batch * tokens / most_kv)
            context.append(tokens)
            itl.append(1e3 * decode_step_s(surface.record[0], surface.table, batch, tokens))
    return {
        "x_kv_usage": use,
        "y_context_length": context,
        "z_itl": itl,
        "max_kv_tokens": [most_kv],
    }
