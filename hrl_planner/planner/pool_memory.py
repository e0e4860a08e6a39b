"""What the fluid planner remembers of pools: which are idle, which replicas spare, what is pending.

None of it can be seen in one observation, and all of it is there to let go, or not to ask again:
by the LP alone what stopping costs more than holding stays for ever, and GPUs that nobody can have
are planned with every time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrl_planner.budget import BudgetArrays
from hrl_planner.observation import POOL_FIELDS, ClusterObservation
from hrl_planner.planner.demand import Recent
from hrl_planner.planner.policy import FloatArray, IntArray

_PENDING_RETRY_S = 300.0
_HOLDING = [POOL_FIELDS.index(name) for name in ("ready", "starting", "draining")]


class PoolMemory:
    """What was seen of the pools of one cluster, and planned for them.

    Args:
        arrays: the cluster's limits.
        idle_s: time without requests after which a pool counts as idle, and a replica without a
            use as useless.
        spare_s: time without a use after which a replica counts as spare.
        patience_s: how long replicas may be pending before their GPUs count as not to be had.
        settle_s: time at first in which nothing counts as spare.
    """

    def __init__(
        self,
        arrays: BudgetArrays,
        *,
        idle_s: float,
        spare_s: float,
        patience_s: float,
        settle_s: float,
    ) -> None:
        """See the class."""
        self._arrays = arrays
        self._idle_s, self._spare_s = idle_s, spare_s
        self._patience_s, self._settle_s = patience_s, settle_s
        n_pools, n_types = arrays.gpus.size, arrays.type_budget.size
        self._idle_since_s = np.full(n_pools, np.inf)
        self._pending_since_s = np.full(n_types, np.inf)
        self._first_s = np.inf
        self._uses = Recent(n_pools)
        self._in_use: FloatArray | None = None

    def use(self, replicas: FloatArray) -> None:
        """Note how many replicas of each pool the plan in force has a use for, shape (P,)."""
        self._in_use = replicas

    def idle(self, observation: ClusterObservation) -> NDArray[np.bool_]:
        """Say which pools have had nothing to do for long, shape (P,)."""
        at_work = observation.pool_field("arrivals_rps")
        for name in ("running", "waiting"):
            at_work = at_work + or_zero(observation.pool_field(name))
        since = self._idle_since_s
        since[np.isinf(since)] = observation.now_s
        since[~(at_work <= 0.0)] = np.inf  # unknown is not idle
        return observation.now_s - since >= self._idle_s

    def spare(self, now_s: float, targets: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return how many replicas of each pool no plan used in `spare_s`, in `idle_s`, (P,) each.

        To be asked once at every look.

        Args:
            now_s: time of the look.
            targets: replicas asked for so far, shape (P,).
        """
        self._first_s = min(self._first_s, now_s)
        if self._in_use is not None:
            self._uses.add(now_s, self._in_use)
        self._uses.forget(now_s - max(self._spare_s, self._idle_s))
        spare = self._unused(targets, now_s, self._spare_s)
        return spare, self._unused(targets, now_s, self._idle_s)

    def _unused(self, targets: IntArray, now_s: float, for_s: float) -> FloatArray:
        recent = self._uses.t_s >= now_s - for_s
        if not recent.any() or now_s < self._first_s + self._settle_s + for_s:
            return np.zeros(targets.size)
        used: FloatArray = np.ceil(self._uses.rows[recent].max(axis=0))
        return np.maximum(targets - used, 0.0)

    def available(self, observation: ClusterObservation) -> FloatArray:
        """Return GPUs per type, shape (T,); where replicas stay pending, only what is held."""
        arrays, now_s = self._arrays, observation.now_s
        n_types = arrays.type_budget.size
        pending = or_zero(observation.pool_field("pending"))
        waits = np.bincount(arrays.type_index, pending, n_types) > 0
        since = self._pending_since_s
        since[waits & np.isinf(since)] = now_s
        # Once replanned the pending replicas are gone: remember the shortage until a retry is due.
        since[now_s - since > _PENDING_RETRY_S] = np.inf
        held = or_zero(observation.pools[:, _HOLDING]).sum(axis=1)
        used = np.bincount(arrays.type_index, arrays.gpus * held, n_types)
        short = now_s - since >= self._patience_s
        return np.where(short, np.minimum(used, arrays.type_budget), arrays.type_budget)


def or_zero(values: FloatArray) -> FloatArray:
    """Return values with zeros where nothing is known."""
    return np.where(np.isnan(values), 0.0, values)
