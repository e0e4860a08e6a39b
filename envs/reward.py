"""The reward: one definition, in one place, for every environment and every batch of them.

    reward = attained + price + churn

* `attained`: value of the requests that finished within both targets during the step, over the
  mean value offered per step of the episode. Its mean over an episode is the value-weighted share
  of offered requests that were attained: rejected, late and unfinished ones count as missed.
* `price`: minus `gpu_price_weight` times the price of the GPUs held, starting and draining replicas
  included, over the price of the whole budget held for a step.
* `churn`: minus `churn_weight` times the GPUs whose replicas decisions added or removed, over all
  GPUs of the budget.

Weights are the spec's (`spec.reward`), values those of its SLO classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from envs.kernel.layout import Cluster
from envs.kernel.lifecycle import meter
from hrl_planner._compiled import lean
from hrl_planner.budget import price_per_hour

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

FloatArray = NDArray[np.float64]

TERMS = ("attained", "price", "churn")


def reward_scales(
    spec: ClusterSpec, class_id: NDArray[np.int16], n_steps: float, step_s: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return what counts are multiplied with, made once per episode.

    Args:
        spec: the cluster.
        class_id: SLO class of every request of the episode, shape (N,).
        n_steps: steps of the episode.
        step_s: length of a step.

    Returns:
        Reward per attained request of each class (C,), per GPU-second of each pool (P,), and per
        replica added or removed of each pool (P,).
    """
    value = np.array([c.value for c in spec.slo_classes], np.float64)
    offered = np.bincount(class_id, minlength=value.size)
    per_step = max(float(value @ offered) / n_steps, 1e-9)
    price = np.array([p.price_per_gpu_hour for p in spec.pools], np.float64)
    gpus = np.array([p.gpus_per_replica for p in spec.pools], np.float64)
    whole = price_per_hour(spec)
    per_gpu_s = -spec.reward.gpu_price_weight * price / max(whole * step_s, 1e-9)
    per_replica = -spec.reward.churn_weight * gpus / max(sum(spec.budget.gpus.values()), 1)
    return value / per_step, per_gpu_s, per_replica


@lean
def collect(
    cluster: Cluster,
    per_attained: FloatArray,
    per_gpu_s: FloatArray,
    per_replica: FloatArray,
    counted: FloatArray,
    terms: FloatArray,
) -> None:
    """Write the reward's terms since the last call.

    Args:
        cluster: the cluster.
        per_attained: see `reward_scales`.
        per_gpu_s: see `reward_scales`.
        per_replica: see `reward_scales`.
        counted: totals up to the last call, shape (C + 2 P,), 0 at first; updated.
        terms: written, in the order of TERMS.
    """
    n_classes = cluster.classes.size
    n_pools = cluster.pools.size
    terms[:] = 0.0
    for c in range(n_classes):
        attained = cluster.classes[c].attained
        terms[0] += per_attained[c] * (attained - counted[c])
        counted[c] = attained
    for i in range(n_pools):
        meter(cluster, i, cluster.g[0].now_s)
        pool = cluster.pools[i]
        at = n_classes + i
        terms[1] += per_gpu_s[i] * (pool.gpu_seconds - counted[at])
        counted[at] = pool.gpu_seconds
        at += n_pools
        moved = float(pool.scale_ups + pool.scale_downs)
        terms[2] += per_replica[i] * (moved - counted[at])
        counted[at] = moved
