"""The run on a cluster: what clients measured, and what a watcher saw of pods and pools."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.agreement.runs import Run, Steps, timeline_of
from agents.evaluate.metrics import STATUS_REJECTED
from envs.kernel.layout import FINISHED
from envs.simulation import SimResult
from hrl_planner.load.result import REJECTED_STATUS
from hrl_planner.localcluster.demo import DemoResult
from hrl_planner.spec import ClusterSpec


def measured(demo: DemoResult) -> Run:
    """Return what came of the cluster."""
    spec, load = demo.spec, demo.load
    t_s, fields = demo.watch.timeline(demo.start_s)
    within = (t_s >= 0.0) & (t_s <= demo.trace.duration_s)
    timeline = timeline_of(t_s[within], {name: rows[within] for name, rows in fields.items()})
    held = sum(timeline[name] for name in ("ready", "starting", "draining"))
    gpus = np.array([pool.gpus_per_replica for pool in spec.pools])
    lasted_s = np.diff(np.append(timeline["t_s"], demo.trace.duration_s))
    steps = np.diff(timeline["target"].astype(np.int64), axis=0)
    rejected = np.isin(load.status, REJECTED_STATUS)
    refused = np.where(rejected, STATUS_REJECTED, 0)
    n = len(load)
    result = SimResult(
        spec=spec,
        duration_s=demo.trace.duration_s,
        arrival_s=load.due_s,
        class_id=load.class_id,
        isl_tokens=load.isl_tokens,
        osl_tokens=np.where(load.finished, load.tokens, load.osl_tokens),
        prefill_pool=np.full(n, -1, np.int32),
        decode_pool=_pools_of(spec, load.worker),
        cached_tokens=load.cached_tokens,
        first_token_s=load.first_token_s,
        finish_s=np.where(load.finished, load.last_token_s, np.nan),
        status=np.where(load.finished, FINISHED, refused).astype(np.int8),
        restarts=np.zeros(n, np.int8),
        timeline=timeline,
        gpu_seconds=(held * lasted_s[:, None]).sum(axis=0) * gpus,
        scale_ups=np.maximum(steps, 0).sum(axis=0),
        scale_downs=np.maximum(-steps, 0).sum(axis=0),
        failures=np.zeros(len(spec.pools), np.int64),
    )
    quota = Steps(t_s[within], fields["quota"][within])
    watch = demo.watch
    return Run("cluster", result, quota, watch.routed.placed, watch.over, watch.samples)


def _pools_of(spec: ClusterSpec, workers: tuple[str, ...]) -> NDArray[np.int32]:
    """Return the pool of each worker by its pod's name, POOL-HASH-ID; -1 for none."""
    index = {pool.name: number for number, pool in enumerate(spec.pools)}
    names = (worker.rsplit("-", 2)[0] for worker in workers)
    return np.array([index.get(name, -1) for name in names], np.int32)
