"""The fluid planner: the LP of `flow.py` on a forecast, made whole and kept steady.

On a forecast over the start-up horizon the LP is model-predictive control. Around it stands what a
bare LP lacks: two passes, so that a patient class is not packed behind an impatient one; whole
replicas; routing weights that follow the replicas that serve now, not those planned; and sense
where the model ends. Without metrics it holds, for good reason nobody can see the traffic then,
and after `outage_s` returns to the floor its long-run mean plan sets. GPUs that stay pending
do not exist: the type is planned with what it holds until a retry is due. A pool without a profile
is scaled by the rule and the LP plans the others around it; where not both can be had, both give
way.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hrl_planner.budget import project
from hrl_planner.capacity import CapacityModel, ClassLoad, capacity
from hrl_planner.errors import PolicyError
from hrl_planner.flow import Allocation, FlowParameters, FluidModel
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.blind import BlindPools
from hrl_planner.planner.demand import Demand, DemandSource, ObservedDemand, startup_horizon_s
from hrl_planner.planner.loop import current_targets
from hrl_planner.planner.moment import Moment, Rates, Rebuild, Solution, Traffic
from hrl_planner.planner.policy import Advice, FloatArray, IntArray, Plan, PlanContext, Terms
from hrl_planner.planner.pool_memory import PoolMemory, or_zero
from hrl_planner.planner.rebuild import Rebuilding
from hrl_planner.routing import DECODE

_PRESENT = 0.05  # a class with less of a pool's load does not set the pool's pace
_FEW = 3  # replicas of a pool that the first solve assumes at least
_LEAST_CAPACITY = 1e-9  # requests/s
_LEAST_WORTH = 0.25  # of the planned demand, where next to nothing arrives now


class FluidPlanner:
    """Forecast, LP, rounding.

    Args:
        headroom: share of the capacity of decode and aggregated pools kept free.
        headroom_prefill: the same of prefill pools.
        quantile: share of requests a loaded replica must still serve in time.
        trend: share of the recent slope of the rates that is extrapolated.
        hold_s: how long a passed peak still counts.
        start_weight: cost of starting a replica on every GPU, against the value of all requests.
        stop_weight: the same for stopping prefill and aggregated replicas.
        stop_weight_decode: the same for decode replicas, which take with them what they generate
            and cache.
        spare_s: time without a use after which stopping a decode replica costs no more than others:
            holding what is not needed must not be cheaper than letting it go for ever.
        price_weight: cost of holding the whole budget; absent, the reward's.
        round_up: fractions of a replica above this become a whole one.
        interval_s: time between decisions; absent, the local interval.
        outage_s: time without any metrics after which holding ends.
        idle_s: time without requests after which a pool that is not planned for goes to its floor,
            and without a use after which a replica costs nothing to stop: a GPU needed and absent
            costs about ten times its price during a start-up, so holding it for about ten
            start-ups costs at most twice what is best in hindsight (ski rental).
        rebuild_s: how long the demand is taken to last where a rebuild is weighed (`rebuild.py`);
            0: what serves never goes before its replacement is up.
        rebuild_gain: least share by which a rebuild serves more value than the plan.
    """

    name = "lp"

    def __init__(
        self,
        headroom: float = 0.49,
        headroom_prefill: float = 0.42,
        quantile: float = 0.7,
        trend: float = 1.0,
        hold_s: float = 600.0,
        start_weight: float = 0.007,
        stop_weight: float = 0.17,
        stop_weight_decode: float = 0.74,
        spare_s: float = 60.0,
        price_weight: float | None = None,
        round_up: float = 0.13,
        interval_s: float | None = None,
        outage_s: float = 900.0,
        idle_s: float = 1800.0,
        rebuild_s: float = 0.0,
        rebuild_gain: float = 0.2,
    ) -> None:
        """See the class."""
        headrooms = (headroom, headroom_prefill)
        if not all(0.0 <= h < 1.0 for h in headrooms) or not 0.0 < quantile < 1.0:
            raise PolicyError(
                f"policy lp: headroom {headroom}, headroom_prefill {headroom_prefill} and quantile "
                f"{quantile} must lie in 0..1"
            )
        if not 0.0 <= round_up < 1.0:
            raise PolicyError(f"policy lp: round_up {round_up} must be at least 0 and below 1")
        _refuse_negative(
            trend=trend,
            hold_s=hold_s,
            start_weight=start_weight,
            stop_weight=stop_weight,
            stop_weight_decode=stop_weight_decode,
            spare_s=spare_s,
            price_weight=price_weight,
            outage_s=outage_s,
            idle_s=idle_s,
            rebuild_s=rebuild_s,
            rebuild_gain=rebuild_gain,
        )
        if interval_s is not None and interval_s <= 0.0:
            raise PolicyError(f"policy lp: interval_s {interval_s} must be above 0")
        self._headroom, self._headroom_prefill = headrooms
        self._quantile, self._round_up = quantile, round_up
        self._trend, self._hold_s, self._outage_s = trend, hold_s, outage_s
        self._idle_s, self._spare_s = idle_s, spare_s
        self._start_weight = start_weight
        self._stop_weight, self._stop_weight_decode = stop_weight, stop_weight_decode
        self._price_weight = price_weight
        self._rebuild_s, self._rebuild_gain = rebuild_s, rebuild_gain
        self._interval_s = interval_s
        self.interval_s = 10.0 if interval_s is None else interval_s
        self._ready = False

    def reset(self, context: PlanContext) -> None:
        """Build the models of a cluster."""
        spec = context.spec
        self.interval_s = self._interval_s or spec.intervals.local_s
        price = self._price_weight
        self._flow = FluidModel(
            spec,
            FlowParameters(
                headroom_prefill=self._headroom_prefill,
                headroom_decode=self._headroom,
                headroom_aggregated=self._headroom,
                price_weight=spec.reward.gpu_price_weight if price is None else price,
                start_weight=self._start_weight,
                stop_weight=self._stop_weight,
                stop_weight_decode=self._stop_weight_decode,
            ),
        )
        self._model = CapacityModel.from_spec(spec)
        model = self._model
        self._target_s = np.where(model.role == DECODE, model.itl_s[:, None], model.ttft_s[:, None])
        self._arrays = self._flow.arrays
        self._minimum = self._arrays.minimum.astype(np.float64)
        self._maximum = self._arrays.maximum.astype(np.float64)
        self._demand = self._source(context)
        self._demand.reset(context)
        self._blind = BlindPools(context, self._arrays)
        self._began_s = self._known_s = np.nan
        # The first windows are half empty: too little to release a replica on.
        self._settle_s = 2.0 * spec.intervals.window_s
        # In fewer, a rebuild was begun on what looked like a ramp and was the beginning of traffic.
        self._young_s = 5.0 * spec.intervals.window_s
        self._mean_plan: FloatArray | None = None
        self._moment: Moment | None = None
        self._memory = PoolMemory(
            self._arrays,
            idle_s=self._idle_s,
            spare_s=self._spare_s,
            patience_s=self.interval_s,
            settle_s=self._settle_s,
        )
        self._rebuilding = Rebuilding(
            spec,
            self._flow,
            horizon_s=self._rebuild_s,
            gain=self._rebuild_gain,
            whole=self._rounded,
        )
        self._rebuild: Rebuild | None = None
        self._terms = self._own_terms = Terms.unchanged(len(spec.pools))
        self._ready = True

    def decide(self, observation: ClusterObservation) -> Plan:
        """Plan for the forecast; hold while nothing is known."""
        if not self._ready:
            raise PolicyError(f"policy {self.name}: decide before reset")
        self._terms = self._own_terms
        return self.listen(observation)

    def listen(self, observation: ClusterObservation) -> Plan:
        """Do the same on the terms of the last plan."""
        demand = self._demand.estimate(observation)
        ready = np.ascontiguousarray(observation.pool_field("ready"))
        rates = self._capacity(demand.load, np.fmax(ready, 1.0), None)
        flows = self._route(ready, demand, rates)
        current = current_targets(observation)
        self._moment = self._look(observation, current, demand, rates, flows)
        if self._moment is None:
            # Held or not, requests come, and the router need not go by weights of another hour.
            plan = replace(self._hold(observation, current), flows=flows)
        else:
            plan = self._plan(self._moment, self._terms)
        share = 0.02
        if self._mean_plan is None:
            self._mean_plan = plan.replicas.astype(np.float64)
        self._mean_plan += share * (plan.replicas - self._mean_plan)
        return plan

    def replan(self, terms: Terms) -> Plan | None:
        """Plan for the moment of the last decision again, on other terms.

        Returns:
            The plan; None where the last decision was to hold, for want of metrics.
        """
        self._terms = terms
        if self._moment is None:
            return None
        return self._plan(self._moment, terms)

    def _look(
        self,
        observation: ClusterObservation,
        current: IntArray,
        demand: Demand,
        rates: Rates,
        flows: FloatArray | None,
    ) -> Moment | None:
        """Take in an observation; None where nothing is known of the traffic."""
        if np.isnan(self._known_s):
            self._began_s = self._known_s = observation.now_s
        blackout = np.isnan(observation.pool_field("arrivals_rps")).all()
        if blackout or np.isnan(demand.now).any():
            return None
        self._known_s = observation.now_s
        rebuild, ready = self._rebuild, or_zero(observation.pool_field("ready"))
        if rebuild is not None and not rebuild.under_way(observation.now_s, ready):
            rebuild = None
        return Moment(
            observation,
            current,
            demand,
            rates,
            flows,
            self._memory.idle(observation),
            self._memory.available(observation),
            self._blind.wish(observation),
            *self._memory.spare(observation.now_s, current),
            observation.now_s >= self._began_s + self._settle_s,
            observation.now_s < self._began_s + self._young_s,
            rebuild,
        )

    def _plan(self, moment: Moment, terms: Terms) -> Plan:
        """Solve, make whole, and route."""
        current, demand = moment.current, moment.demand
        found = self._allocate(moment, terms)
        if found is None:
            held = self._projected(current.astype(np.float64), current, "lp: no solution, hold")
            return replace(held, flows=moment.flows)
        best = found.best
        idle = moment.idle & (best.flows.sum(axis=0) <= 0.0)
        replicas = self._made_whole(best, current, idle)
        wish = np.where(idle, self._minimum, best.replicas + 0.5 - self._round_up)
        reason = f"lp: planned {float(demand.planned.sum()):.2f} req/s"
        if self._blind.index.size:
            reason += f"; no profile, by rule: pools {self._blind.index.tolist()}"
        self._rebuild = moment.rebuild or self._rebuilding.weigh(
            moment, found, replicas, terms.rebuild
        )
        if self._rebuild is not None:
            wish = self._rebuild.replicas.astype(np.float64)
            replicas = project(wish, current, self._arrays)
            reason += "; rebuild"
        advice = Advice(wish, best.marginal, demand.planned)
        return Plan(replicas, moment.flows, reason=reason, advice=advice)

    def _made_whole(self, best: Allocation, current: IntArray, idle: NDArray[np.bool_]) -> IntArray:
        whole = np.ceil(best.replicas - self._round_up)
        if not self._arrays.fits(whole.astype(np.int64)):
            whole = best.replicas  # all cannot be rounded up: the projection finds the nearest
        return self._fitted(np.where(idle, self._minimum, whole), best, current)

    def _rounded(self, best: Allocation, current: IntArray) -> IntArray:
        return self._fitted(np.ceil(best.replicas - self._round_up), best, current)

    def _fitted(self, whole: FloatArray, best: Allocation, current: IntArray) -> IntArray:
        weights = 1.0 + best.marginal / max(float(best.marginal.mean()), 1e-9)
        return project(whole, current, self._arrays, weights=weights)

    def _projected(self, desired: FloatArray, current: IntArray, reason: str) -> Plan:
        return Plan(project(desired, current, self._arrays), reason=reason)

    def _source(self, context: PlanContext) -> DemandSource:
        horizon_s = startup_horizon_s(context.spec)
        return ObservedDemand(horizon_s, self._hold_s, 120.0, self._trend)

    def _hold(self, observation: ClusterObservation, current: IntArray) -> Plan:
        """Without metrics: hold, and in a long outage return to the mean plan as a floor."""
        outage_s = observation.now_s - self._known_s
        if outage_s < self._outage_s or self._mean_plan is None:
            reason = f"lp: no metrics for {outage_s:.0f} s, hold"
            return self._projected(current.astype(np.float64), current, reason)
        return self._projected(
            np.ceil(self._mean_plan - 0.5), current, "lp: long outage, mean plan"
        )

    def _allocate(self, moment: Moment, terms: Terms) -> Solution | None:
        """Solve twice: the first flows say which classes meet in a pool.

        What serves now is needed until its replacement does: replicas that carry the present
        demand stay, and only GPUs beyond them move.
        """
        demand, current = moment.demand, moment.current
        to_go = moment.useless > 0.0
        usable = self._flow.usable * terms.capacity
        solve = partial(
            self._flow.solve,
            usable=usable,
            stop=self._flow.stop * terms.stop,
            spare=np.where(to_go, moment.useless, moment.spare),
            stop_spare=np.where(to_go, 0.0, self._flow.stop_spare * terms.stop),
        )
        # Replicas that share a queue carry more each, which the LP cannot see coming: the first
        # solve assumes a few everywhere, the second what the first came to.
        held = current.astype(np.float64)
        servers = np.minimum(np.maximum(held, _FEW), self._maximum)
        low, high = self._minimum.copy(), self._maximum.copy()
        blind = self._blind.index
        low[blind] = moment.by_rule
        least = low = self._blind.fitted(low, current)
        high[blind] = low[blind]
        most = high.copy()
        ready = moment.ready
        needed = solve(
            demand.now,
            *moment.rates,
            ready,
            low=np.minimum(low, ready),
            high=np.minimum(high, ready),
        )
        if needed is not None:
            kept = np.minimum(np.ceil(terms.keep * needed.replicas - self._round_up), current)
            if not moment.settled:
                kept = np.minimum(ready + moment.starting, current)
            low = np.minimum(np.maximum(kept, low), high)
            low = self._blind.fitted(low, current)
            high[blind] = low[blind]
        planned = demand.now + terms.outlook * (demand.planned - demand.now)
        offered = np.maximum(demand.now, _LEAST_WORTH * planned)
        # A replica of a minimum that finds no GPU must not take the answer of all other pools away.
        least_gpus = np.bincount(self._arrays.type_index, self._arrays.gpus * low, moment.gpus.size)
        tightest = None
        for _ in range(2):
            cap, share = self._capacity(demand.load, servers, tightest)
            best = solve(
                planned,
                cap,
                share,
                held,
                low=low,
                high=high,
                type_budget=np.maximum(moment.gpus, least_gpus),
                offered=offered,
            )
            if best is None:
                return None
            tightest = self._tightest(best.flows, cap)
            servers = np.maximum(np.ceil(best.replicas - self._round_up), 1.0)
            filled = (best.flows / np.maximum(cap, _LEAST_CAPACITY)).sum(axis=0)
            self._memory.use(filled / usable - self._round_up)
            solution = Solution(best, Traffic(planned, cap, share, offered, usable), least, most)
        return solution

    def _route(self, ready: FloatArray, demand: Demand, rates: Rates) -> FloatArray | None:
        """Return the flows that suit the replicas serving now."""
        arrays = self._arrays
        held = np.bincount(arrays.type_index, arrays.gpus * ready, arrays.type_budget.size)
        budget = held.astype(np.float64)
        best = self._flow.solve(
            demand.now, *rates, ready, low=ready, high=ready, type_budget=budget
        )
        return None if best is None else best.flows

    def _capacity(self, load: ClassLoad, servers: FloatArray, tightest: IntArray | None) -> Rates:
        """Return capacities; a pool without a profile counts as its role's mean per GPU."""
        cap, share = capacity(
            self._model, load, servers=servers, tightest=tightest, quantile=self._quantile
        )
        for i in self._blind.index:
            peers = self._model.role == self._model.role[i]
            peers[self._blind.index] = False
            if peers.any():
                per_gpu = (cap[:, peers] / self._arrays.gpus[peers]).mean(axis=1)
                cap[:, i] = per_gpu * self._arrays.gpus[i]
            share[:, i] = cap[:, i] > 0.0
        return cap, share

    def _tightest(self, flows: FloatArray, cap: FloatArray) -> IntArray:
        """Return per pool the class with the tightest target among those that load it."""
        load = flows / np.maximum(cap, _LEAST_CAPACITY)
        present = load > _PRESENT * np.maximum(load.sum(axis=0), 1e-9)
        order = np.where(present, self._target_s, np.inf)
        return np.where(present.any(axis=0), order.argmin(axis=0), -1)


def _refuse_negative(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0.0 <= value < np.inf:
            raise PolicyError(f"policy lp: {name} {value} must be finite and at least 0")
