"""Clusters that differ from the one trained on, and truths that differ from what is believed.

A swap of a GPU type is known to everyone: it changes the spec that planners are told. A `Truth` is
known to nobody: it makes a second spec, which only the simulator gets.
"""

from __future__ import annotations

import numpy as np

from agents.experiment.config import ExperimentError, Swap, Truth
from hrl_planner.spec import ClusterSpec, PoolSpec

_TRUTH_STREAM = 77  # keeps these draws apart from others made from a trace's seed


def swapped(spec: ClusterSpec, swap: Swap) -> ClusterSpec:
    """The spec with all GPUs of one type replaced by another.

    Raises:
        ExperimentError: the spec has no such type, or has the new one already; a pool's profile
            is of another system.
    """
    if swap.gpu_type not in spec.budget.gpus or swap.to in spec.budget.gpus:
        raise ExperimentError(
            f"swap of {swap.gpu_type} for {swap.to}: spec {spec.name} "
            f"has {', '.join(spec.gpu_types)}"
        )
    for pool in spec.pools:
        if pool.gpu_type == swap.gpu_type and swap.system[0] not in pool.profile:
            raise ExperimentError(
                f"swap of {swap.gpu_type} for {swap.to}: system: {swap.system[0]!r} is not in "
                f"profile {pool.profile} of pool {pool.name}"
            )
    pools = tuple(
        pool.model_copy(
            update={
                "gpu_type": swap.to,
                "profile": pool.profile.replace(*swap.system),
                "price_per_gpu_hour": swap.price_per_gpu_hour,
                "power_w_per_gpu": None,
            }
        )
        if pool.gpu_type == swap.gpu_type
        else pool
        for pool in spec.pools
    )
    gpus = {swap.to if t == swap.gpu_type else t: n for t, n in spec.budget.gpus.items()}
    return spec.replace(pools=pools, budget=spec.budget.model_copy(update={"gpus": gpus}))


def make_true(believed: ClusterSpec, truth: Truth, seed: int) -> ClusterSpec | None:
    """The spec of the cluster as it is; None where it is as planners believe.

    Args:
        believed: what planners are told.
        truth: how the cluster differs.
        seed: of the errors of step times, one per pool.
    """
    if truth.is_told:
        return None
    rng = np.random.default_rng([seed, _TRUTH_STREAM])
    errors = rng.uniform(-truth.latency_error, truth.latency_error, len(believed.pools))
    pools = tuple(
        _true_pool(pool, truth.startup, 1.0 + float(error))
        for pool, error in zip(believed.pools, errors, strict=True)
    )
    intervals = believed.intervals
    if truth.scrape_lag_s is not None:
        intervals = intervals.model_copy(update={"scrape_lag_s": truth.scrape_lag_s})
    return believed.replace(pools=pools, intervals=intervals)


def _true_pool(pool: PoolSpec, startup: float, latency: float) -> PoolSpec:
    law = pool.startup
    slower = law.model_copy(
        update={"mean_s": startup * law.mean_s, "spread_s": startup * law.spread_s}
    )
    return pool.model_copy(
        update={"startup": slower, "latency_scale": latency * pool.latency_scale}
    )
