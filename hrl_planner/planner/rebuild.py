"""A rebuild: what serves goes at once, where what takes its place is worth the wait.

The LP's plans make before they break: what serves while it is needed goes only once its replacement
is up. Where all is needed, as under scarcity, nothing ever is, and a mix of another hour stays for
good. A rebuild breaks first. It is weighed once, with whole replicas, and then seen through: a
plan that changes its mind between two start-ups pays for both and has neither.

With V the value served per second, and S the start-up time of what is new, it must hold that

    (horizon - S) * (V[new mix] - V[plan])  >  S * (V[what serves] - V[what stays meanwhile])

and that V[new mix] exceeds V[plan] by a share of it, for the present demand and the planned one:
in a ramp a mix that would be better in five minutes may well be the one that is wrong in ten.

Traffic that has just begun looks like a ramp, and plans keep headroom that replicas can give all
the same. So in the first minutes the new mix must serve more of the present demand without any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hrl_planner.budget import BudgetArrays
from hrl_planner.flow import Allocation, FluidModel
from hrl_planner.planner.moment import Moment, Rebuild, Solution, Traffic
from hrl_planner.planner.policy import FloatArray, IntArray
from hrl_planner.routing import DECODE, ROLES

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

_STARTS = 2.0  # start-up times after which a rebuild ends, whether all is up or not
_SLACK_S = 60.0
# Share by which a new mix must serve more of the present demand where nothing is kept free, as long
# as the trend is young.
_GAIN_IN_FULL = 0.02


class Rebuilding:
    """Weighs rebuilds of one cluster.

    Args:
        spec: the cluster.
        flow: its LP.
        horizon_s: how long the demand is taken to last.
        gain: least share by which more value is served.
        whole: makes an allocation whole and fits it to the budget, given the present targets.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        flow: FluidModel,
        *,
        horizon_s: float,
        gain: float,
        whole: Callable[[Allocation, IntArray], IntArray],
    ) -> None:
        """See the class."""
        self._flow, self._horizon_s, self._gain = flow, horizon_s, gain
        self._whole = whole
        self._arrays: BudgetArrays = flow.arrays
        self._decodes = np.array([ROLES.index(pool.role) == DECODE for pool in spec.pools])
        self._value = np.array([c.value for c in spec.slo_classes], np.float64)
        self._startup_s = np.array([pool.startup.mean_s for pool in spec.pools])

    def weigh(
        self, moment: Moment, found: Solution, plan: IntArray, willing: float
    ) -> Rebuild | None:
        """Return a rebuild that is worth more than the plan, if there is one.

        Args:
            moment: what is planned for.
            found: the solution that the plan was made whole from.
            plan: its replicas, shape (P,).
            willing: factor on what another mix serves more.
        """
        if self._horizon_s <= 0.0 or not moment.settled:
            return None
        planned = found.traffic
        served = self._served(plan, planned)
        least = self._gain * served / willing
        if self._all(planned) - served <= least:  # more than all no mix can serve
            return None
        new = self._best_mix(moment, found)
        if new is None:
            return None
        now = replace(planned, demand=moment.demand.now)
        at_once = self._served(new, now) - self._served(plan, now)
        more = min(self._served(new, planned) - served, at_once)
        if more <= least or (moment.young and not self._better_in_full(new, plan, now)):
            return None
        ready = moment.ready
        present = replace(now, cap=moment.rates[0], share=moment.rates[1])
        lost = self._served(ready, present) - self._served(np.minimum(ready, new), present)
        startup_s = self._longest_s(new > ready + moment.starting)
        if (self._horizon_s - startup_s) * willing * more <= startup_s * lost:
            return None
        latest_s = _STARTS * self._longest_s(new > ready) + _SLACK_S
        return Rebuild(new, moment.observation.now_s + latest_s)

    def _better_in_full(self, new: IntArray, plan: IntArray, now: Traffic) -> bool:
        full = replace(now, usable=np.ones_like(now.usable))
        before = self._served(plan, full)
        return self._served(new, full) > (1.0 + _GAIN_IN_FULL) * before

    def _all(self, traffic: Traffic) -> float:
        """Return the value of all requests, in the unit of `_served`."""
        return float(self._value @ traffic.demand) / self._unit(traffic)

    def _best_mix(self, moment: Moment, found: Solution) -> IntArray | None:
        planned = found.traffic
        free = self._flow.solve(
            planned.demand,
            planned.cap,
            planned.share,
            moment.current.astype(np.float64),
            low=found.least,
            high=found.most,
            type_budget=moment.gpus,
            offered=planned.offered,
            usable=planned.usable,
        )
        return None if free is None else self._whole(free, moment.current)

    def _longest_s(self, pools: NDArray[np.bool_]) -> float:
        return float(self._startup_s[pools].max()) if pools.any() else 0.0

    def _served(self, replicas: FloatArray | IntArray, traffic: Traffic) -> float:
        """Return the value served per second by so many replicas, as a share of all of it."""
        fixed = replicas.astype(np.float64)
        arrays = self._arrays
        held = np.bincount(arrays.type_index, arrays.gpus * fixed, arrays.type_budget.size)
        best = self._flow.solve(
            traffic.demand,
            traffic.cap,
            traffic.share,
            fixed,
            low=fixed,
            high=fixed,
            type_budget=held.astype(np.float64),
            offered=traffic.offered,
            usable=traffic.usable,
        )
        return 0.0 if best is None else self._worth(best, traffic)

    def _worth(self, best: Allocation, traffic: Traffic) -> float:
        # As in the LP: a decode pool takes away what it makes late of what prefill has served.
        in_time = np.where(self._decodes, traffic.share - 1.0, traffic.share)
        return float((self._value @ (best.flows * in_time)).sum()) / self._unit(traffic)

    def _unit(self, traffic: Traffic) -> float:
        return max(float(self._value @ traffic.offered), 1e-9)
