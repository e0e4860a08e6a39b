"""Where planners get the traffic from: a small protocol, and the source that knows nothing.

Replicas and quotas a planner knows from the API server; everything else of an observation comes
from here. What is unknown is NaN, and the policies know what to do without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from hrl_planner.kube.resources import WorkerPool
from hrl_planner.observation import (
    CLASS_FIELDS,
    POOL_FIELDS,
    ClusterObservation,
    Float64Array,
)
from hrl_planner.spec import ClusterSpec


class PoolMetrics(Protocol):
    """A source of metrics."""

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        """Return rows per pool and per SLO class; NaN where nothing is known.

        Their shapes are (P, len(POOL_FIELDS)) and (C, len(CLASS_FIELDS)).

        Args:
            spec: the cluster.
            serving: replicas that serve, by pool, from elsewhere: a pool that has some, none of
                which is heard, has unknown traffic; one that has none has none.
        """


class NoMetrics:
    """Nothing is known of the traffic."""

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        """Return rows of NaN."""
        return (
            np.full((len(spec.pools), len(POOL_FIELDS)), np.nan),
            np.full((len(spec.slo_classes), len(CLASS_FIELDS)), np.nan),
        )


def observe(
    spec: ClusterSpec, pools: Sequence[WorkerPool], metrics: PoolMetrics, now_s: float
) -> ClusterObservation:
    """Return what the policies see: replicas from the pools' statuses, the rest from metrics."""
    # A pool that never reported may serve anything.
    serving = {p.name: 1 if p.status.desired is None else p.status.ready for p in pools}
    rows, classes = metrics.look(spec, serving)
    rows, classes = _legible(rows), _legible(classes)
    by_name = {pool.name: pool for pool in pools}
    for row, described in zip(rows, spec.pools, strict=True):
        pool = by_name[described.name]
        status = pool.status
        known = {
            "target_replicas": status.desired,
            "quota": pool.spec.quota,
            "ready": status.ready,
            "starting": status.starting,
            "draining": status.draining,
            "pending": status.pending,
        }
        for field, value in known.items():
            if value is not None:
                row[POOL_FIELDS.index(field)] = value
        _expect(row, status.starting or 0, described.startup.mean_s)
    return ClusterObservation(round(now_s, 3), rows, classes)


def _legible(rows: Float64Array) -> Float64Array:
    """Return a copy with numbers of seven digits, as many as the features of a network have.

    What is written down then is what was seen, and half as long.
    """
    short = [float(f"{value:.7g}") for value in rows.ravel().tolist()]
    return np.array(short, np.float64).reshape(rows.shape)


def _expect(row: Float64Array, starting: int, mean_s: float) -> None:
    """Write when starting replicas are expected: their age is not told, so half-way on average."""
    fields = ("starting_eta_30s", "starting_eta_60s", "starting_eta_120s", "starting_eta_late")
    expected = np.searchsorted((30.0, 60.0, 120.0), 0.5 * mean_s)
    for index, field in enumerate(fields):
        row[POOL_FIELDS.index(field)] = starting if index == expected else 0.0
