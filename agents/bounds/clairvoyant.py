"""The clairvoyant LP: the best plan in hindsight if requests were a fluid.

One linear program over the whole trace. Per bin t, pool i and kind k (`load.py`) it chooses
replicas held h and serving n, requests admitted a, and flows x; all may be fractions. It maximises

    sum v a / sum v counts  -  w_price * sum price g h / (price of the whole budget throughout)

    sum_k x[t,k,i] / rate[t,k,i]  <=  n[t,i] * length of t
    n[t,i]  <=  h[s,i]  for every bin s from t back to t - start-up time; before 0, the initial ones
    GPUs per type, GPUs in total, watts of h;  minimum <= h <= maximum
    a <= counts;  waiting[t] = waiting[t-1] + a[t] - (flows in t) <= requests still within target

the last line once for prefill and once for decode; aggregated pools count in both. Held replicas
cost from the moment they start, and a start takes its mean time, rounded down to bins.

It bounds what planning can do, given start-up times and budget. It knows no queues inside a bin, no
whole replicas, no draining, no luck of start-ups, no routing by prefix, no events and no failures,
and it knows the future: real planners stay below. It is no theorem: a mix of kinds in a decode pool
counts as if each had its share of the replica for itself, which can be too strict where one kind
fills the KV cache and the other the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import highspy
import numpy as np
from numpy.typing import NDArray

from agents.bounds.load import BinnedLoad, FloatArray, IntArray, binned_load
from hrl_planner._highs import new_solver
from hrl_planner.budget import UNLIMITED, BudgetArrays
from hrl_planner.capacity import AGGREGATED, DECODE, PREFILL, ROLES
from hrl_planner.errors import TraceError
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.reuse import PrefixReuse
from hrl_planner.workload.trace import Trace

BIN_S = 60.0
_PARTS = 2
_LOADED_QUANTILE = 0.95
_NEED_BIN_S = 120.0
_NEED_ROUNDS = 4  # caches depend on the budget, the budget on what is cached
_NEED_RANGE = (0.05, 3.0)


@dataclass(frozen=True)
class ClairvoyantBound:
    """The best plan in hindsight.

    Attributes:
        value_share: value served over value offered, 0 to 1.
        cost_share: price of the GPUs held over that of the whole budget throughout.
        score: value_share - price_weight * cost_share.
        gpu_hours: GPU-hours held.
        class_share: share of each class's requests served, NaN without any, shape (C,).
        bin_s: length of a bin.
        held: replicas that hold GPUs, shape (T, P).
        serving: replicas that serve, shape (T, P).
    """

    value_share: float
    cost_share: float
    score: float
    gpu_hours: float
    class_share: FloatArray
    bin_s: float
    held: FloatArray
    serving: FloatArray


def clairvoyant_bound(
    spec: ClusterSpec,
    trace: Trace,
    class_id: NDArray[np.int16],
    *,
    bin_s: float = BIN_S,
    price_weight: float | None = None,
) -> ClairvoyantBound:
    """Solve the clairvoyant LP.

    Args:
        spec: the cluster.
        trace: the requests it is offered.
        class_id: SLO class of each request, shape (N,).
        bin_s: length of a bin.
        price_weight: weight of the price; absent, the reward's. With 0 the value share bounds the
            value-weighted attainment of any planner, else the score bounds its score.
    """
    cached = PrefixReuse(trace).cached_tokens()
    load = binned_load(spec, trace, class_id, cached, bin_s=bin_s, parts=_PARTS)
    weight = spec.reward.gpu_price_weight if price_weight is None else price_weight
    program = _Program(spec, load)
    program.start_from(np.array([pool.initial for pool in spec.pools], np.float64))
    program.bound_replicas()
    program.bound_budget()
    program.maximise_value(weight)
    x = program.solve(f"trace {trace.name} on spec {spec.name}")
    admitted, held, serving = (x[c] for c in (program.admitted, program.held, program.serving))
    n_classes = len(spec.slo_classes)
    arrived, served = (
        np.bincount(load.kind_class, of.sum(axis=0), n_classes) for of in (load.counts, admitted)
    )
    with np.errstate(invalid="ignore"):
        class_share = np.where(arrived > 0, served / arrived, np.nan)
    value_share = float((program.worth * admitted).sum())
    cost_share = float((program.price * held).sum())
    return ClairvoyantBound(
        value_share=value_share,
        cost_share=cost_share,
        score=value_share - weight * cost_share,
        gpu_hours=float((program.arrays.gpus * held * load.length_s[:, None]).sum() / 3600.0),
        class_share=class_share,
        bin_s=bin_s,
        held=held,
        serving=serving,
    )


def static_plan(
    spec: ClusterSpec, trace: Trace, class_id: NDArray[np.int16], headroom: float
) -> FloatArray:
    """Return the LP's best replicas that never change, fractions, shape (P,).

    Args:
        spec: the cluster.
        trace: the requests.
        class_id: SLO class of each, shape (N,).
        headroom: share of every replica's capacity kept free.
    """
    cached = _kept_prefixes(spec, PrefixReuse(trace), 1.0)
    load = binned_load(spec, trace, class_id, cached, bin_s=BIN_S, quantile=_LOADED_QUANTILE)
    program = _Program(spec, replace(load, rate=(1.0 - headroom) * load.rate))
    program.bound_replicas()
    program.bound_budget()
    program.never_change()
    program.maximise_value(spec.reward.gpu_price_weight)
    x = program.solve(f"trace {trace.name} on spec {spec.name}")
    return np.asarray(x[program.held[0]])


def clairvoyant_need(
    spec: ClusterSpec, trace: Trace, class_id: NDArray[np.int16], share: float = 0.99
) -> float:
    """Return the budget, in multiples of the spec's, with which the LP serves `share` of the value.

    All GPU types shrink or grow together; a total or watts limit too. Asked is what the load needs,
    so the replicas the cluster starts with and `max_replicas` play no part, and requests that no
    pool could serve in time do not count. Unlike the bound this is a measure, not optimistic:
    replicas are loaded until 95 % of a class are in time, and prefix caches have the size of half
    the budget asked for. The answer lies between 0.05 and 3.

    Budget over need is the tightness of a cluster: at 1 a planner that knows the future, with whole
    replicas and no bursts within two minutes, would have just enough.
    """
    reuse = PrefixReuse(trace)
    factor = 1.0
    for _ in range(_NEED_ROUNDS):
        cached = _kept_prefixes(spec, reuse, factor)
        load = binned_load(
            spec, trace, class_id, cached, bin_s=_NEED_BIN_S, quantile=_LOADED_QUANTILE
        )
        factor = _least_factor(spec, load, share)
    return factor


def _kept_prefixes(spec: ClusterSpec, reuse: PrefixReuse, factor: float) -> NDArray[np.int64]:
    """Return each request's cached tokens if half of a budget prefills, its pools sharing it."""
    tokens = 0.0
    for kind, gpus in spec.budget.gpus.items():
        per_gpu = [
            profile.kv_capacity_tokens / pool.gpus_per_replica
            for pool, profile in zip(spec.pools, spec.profiles(), strict=True)
            if pool.gpu_type == kind and pool.role != "decode"
        ]
        tokens += 0.5 * gpus * float(np.mean(per_gpu)) if per_gpu else 0.0
    return reuse.cached_tokens(reuse.retention_s(factor * tokens))


def _least_factor(spec: ClusterSpec, load: BinnedLoad, share: float) -> float:
    """Return the factor on the budget that serves a share of the servable value."""
    program = _Program(spec, load)
    program.bound_budget(scaled=True)
    worth, most = program.worth.ravel(), program.upper[program.admitted].ravel()
    total = float(most @ worth)
    low, high = _NEED_RANGE
    if total <= 0.0:
        return low
    program.row(share * total, np.inf, program.admitted.ravel(), worth)
    program.lower[program.factor], program.upper[program.factor] = low, high
    program.cost[program.factor] = 1.0
    x = program.try_solve()
    return high if x is None else float(x[program.factor])


@dataclass
class _Program:
    """The LP's columns and rows, with what every use of it shares."""

    spec: ClusterSpec
    load: BinnedLoad
    _rows: list[tuple[float, float, IntArray, FloatArray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n_bins, n_kinds = self.load.counts.shape
        n_pools = len(self.spec.pools)
        self.arrays = BudgetArrays.from_spec(self.spec)
        self.role = np.array([ROLES.index(pool.role) for pool in self.spec.pools])
        shapes = [(n_bins, n_pools), (n_bins, n_pools), *[(n_bins, n_kinds)] * 3]
        sizes = [int(np.prod(shape)) for shape in shapes]
        ends = np.cumsum([0, *sizes])
        blocks = [
            np.arange(a, b, dtype=np.int64).reshape(shape)
            for a, b, shape in zip(ends[:-1], ends[1:], shapes, strict=True)
        ]
        self.held, self.serving, self.admitted, self._entering, self._leaving = blocks
        usable = np.flatnonzero(self.load.rate > 0.0)
        flow = np.full(self.load.rate.size, -1, np.int64)
        flow[usable] = ends[-1] + np.arange(usable.size)
        self._flow: IntArray = flow.reshape(self.load.rate.shape)
        self.factor = int(ends[-1] + usable.size)
        self.cost = np.zeros(self.factor + 1)
        self.lower = np.zeros(self.factor + 1)
        self.upper = np.full(self.factor + 1, np.inf)
        self.lower[self.factor] = self.upper[self.factor] = 1.0
        self.upper[self.admitted] = np.where(self.servable, self.load.counts, 0.0)
        self.upper[self._entering] = self.load.entering
        self.upper[self._leaving] = self.load.leaving
        self.lower[self.held] = self.arrays.minimum
        self._serve()
        self._start_up()

    @cached_property
    def servable(self) -> NDArray[np.bool_]:
        """Which kinds have a way through the cluster in which bins, shape (T, K)."""
        usable = self.load.rate > 0.0
        way = usable[:, :, self.role == PREFILL].any(axis=2)
        way &= usable[:, :, self.role == DECODE].any(axis=2)
        return np.asarray(way | usable[:, :, self.role == AGGREGATED].any(axis=2))

    @cached_property
    def price(self) -> FloatArray:
        """Price of a replica held for a bin, over that of the whole budget throughout, (T, P)."""
        price = np.array([pool.price_per_gpu_hour for pool in self.spec.pools]) * self.arrays.gpus
        whole = self.spec.budget_price_per_hour * self.load.length_s.sum()
        return np.asarray(self.load.length_s[:, None] * price / max(whole, 1e-9))

    @cached_property
    def worth(self) -> FloatArray:
        """Value of a request over that of all, shape (T, K)."""
        value = np.array([c.value for c in self.spec.slo_classes])[self.load.kind_class]
        counts = self.load.counts
        return np.broadcast_to(value / max(float(counts.sum(axis=0) @ value), 1e-9), counts.shape)

    def maximise_value(self, price_weight: float) -> None:
        """Ask for value served minus weighted price."""
        self.cost[self.admitted] = -self.worth
        self.cost[self.held] = price_weight * self.price

    def never_change(self) -> None:
        """Hold the same replicas in every bin."""
        for before, after in zip(self.held[:-1].ravel(), self.held[1:].ravel(), strict=True):
            self.row(0.0, 0.0, np.array([before, after]), np.array([1.0, -1.0]))

    def row(self, low: float, high: float, columns: IntArray, values: FloatArray) -> None:
        """Add a row."""
        self._rows.append((low, high, columns, values))

    def start_from(self, initial: FloatArray) -> None:
        """Until started replicas can serve, only those of the beginning do."""
        for i, bins in enumerate(self._startup_bins):
            early = self.serving[:bins, i]
            self.upper[early] = initial[i]

    def bound_replicas(self) -> None:
        """Keep the pools' maximum."""
        self.upper[self.held] = self.arrays.maximum

    def bound_budget(self, scaled: bool = False) -> None:
        """Keep the budget, or if `scaled` the budget times the column `factor`."""
        arrays = self.arrays
        limits = [
            (float(budget), np.where(arrays.type_index == kind, arrays.gpus, 0).astype(np.float64))
            for kind, budget in enumerate(arrays.type_budget)
        ]
        if arrays.total_gpus < UNLIMITED:
            limits.append((float(arrays.total_gpus), arrays.gpus.astype(np.float64)))
        if np.isfinite(arrays.watts):
            limits.append((arrays.watts, arrays.watts_per_replica))
        for limit, weights in limits:
            inside = np.flatnonzero(weights)
            for held in self.held[:, inside]:
                if scaled:
                    self.row(
                        -np.inf,
                        0.0,
                        np.append(held, self.factor),
                        np.append(weights[inside], -limit),
                    )
                else:
                    self.row(-np.inf, limit, held, weights[inside])

    @cached_property
    def _startup_bins(self) -> list[int]:
        bin_s = float(self.load.length_s[0])
        return [int(pool.startup.mean_s // bin_s) for pool in self.spec.pools]

    def _start_up(self) -> None:
        for i, bins in enumerate(self._startup_bins):
            for t in range(len(self.held)):
                for s in range(max(t - bins, 0), t + 1):
                    columns = np.array([self.serving[t, i], self.held[s, i]])
                    self.row(-np.inf, 0.0, columns, np.array([1.0, -1.0]))

    def _serve(self) -> None:
        """Tie flows to replicas and to the requests there are."""
        load = self.load
        for t, flows in enumerate(self._flow):
            for i in range(flows.shape[1]):
                kinds = np.flatnonzero(flows[:, i] >= 0)
                columns = np.append(flows[kinds, i], self.serving[t, i])
                work = 1.0 / load.rate[t, kinds, i]
                self.row(-np.inf, 0.0, columns, np.append(work, -load.length_s[t]))
            for k in range(flows.shape[0]):
                for waiting, role in ((self._entering, PREFILL), (self._leaving, DECODE)):
                    pools = (self.role == role) | (self.role == AGGREGATED)
                    out = flows[k, pools & (flows[k] >= 0)]
                    before = waiting[t - 1 : t, k] if t else np.zeros(0, np.int64)
                    columns = np.concatenate(
                        [waiting[t : t + 1, k], out, before, self.admitted[t, k : k + 1]]
                    )
                    values = np.ones(columns.size)
                    values[1 + out.size :] = -1.0
                    self.row(0.0, 0.0, columns, values)

    def solve(self, what: str) -> FloatArray:
        """Return the columns' values."""
        x = self.try_solve()
        if x is None:
            raise TraceError(f"{what}: the clairvoyant LP has no solution")
        return x

    def try_solve(self) -> FloatArray | None:
        """Return the columns' values, None if no plan meets the rows."""
        solver = new_solver(solver="simplex")
        size = self.cost.size
        solver.addVars(
            size, self.lower, np.where(np.isinf(self.upper), highspy.kHighsInf, self.upper)
        )
        solver.changeColsCost(size, np.arange(size, dtype=np.int32), self.cost)
        low, high, columns, values = zip(*self._rows, strict=True)
        lengths = np.array([c.size for c in columns])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)
        solver.addRows(
            len(low),
            np.array(low),
            np.array(high),
            int(lengths.sum()),
            starts,
            np.concatenate(columns).astype(np.int32),
            np.concatenate(values),
        )
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return np.array(solver.getSolution().col_value)
