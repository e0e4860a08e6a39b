"""The linear program behind the clairvoyant bounds: columns, rows, and HiGHS.

Per bin t, pool i and kind k (`load.py`) the columns are replicas held h and serving n, requests
admitted a, flows x, and requests that wait for prefill and for their last token; all may be
fractions, and one more column f multiplies the budget. The rows:

    sum_k x[t,k,i] / rate[t,k,i]  <=  n[t,i] * length of t
    n[t,i]  <=  h[s,i]  for every bin s from t back to t - start-up time
    GPUs per type, GPUs in total, watts of h  <=  f * the budget's;  minimum <= h <= maximum
    a <= counts;  waiting[t] = waiting[t-1] + a[t] - (flows in t) <= requests still within target

the last line once for prefill and once for decode; aggregated pools count in both. A start takes
its mean time, rounded down to bins, and a replica counts against the budget from its first bin on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import highspy
import numpy as np
from numpy.typing import NDArray

from agents.bounds.load import BinnedLoad, FloatArray, IntArray
from hrl_planner._highs import new_solver
from hrl_planner.budget import UNLIMITED, BudgetArrays, price_per_hour
from hrl_planner.errors import TraceError
from hrl_planner.routing import AGGREGATED, DECODE, PREFILL, ROLES
from hrl_planner.spec import ClusterSpec


@dataclass
class Program:
    """Columns and rows; the methods add what not every question asks for.

    Attributes:
        spec: the cluster.
        load: what it is asked for.
        held: columns of replicas that hold GPUs, shape (T, P).
        serving: columns of replicas that serve, shape (T, P).
        admitted: columns of requests served, shape (T, K).
        factor: column of the factor on the budget, 1 unless its bounds are changed.
        cost: objective, least wanted, shape (columns,).
        lower: least values, shape (columns,).
        upper: most, shape (columns,).
    """

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
        self.upper[self.held] = self.arrays.maximum
        self._serve()
        self._start_up()
        self._stay_in_budget()

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
        whole = price_per_hour(self.spec) * self.load.length_s.sum()
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

    def _stay_in_budget(self) -> None:
        arrays = self.arrays
        limits = [
            (float(budget), np.where(arrays.type_index == kind, arrays.gpus, 0))
            for kind, budget in enumerate(arrays.type_budget)
        ]
        if arrays.total_gpus < UNLIMITED:
            limits.append((float(arrays.total_gpus), arrays.gpus))
        if np.isfinite(arrays.watts):
            limits.append((arrays.watts, arrays.watts_per_replica))
        for limit, weights in limits:
            inside = np.flatnonzero(weights)
            values = np.append(weights[inside], -limit).astype(np.float64)
            for held in self.held[:, inside]:
                self.row(-np.inf, 0.0, np.append(held, self.factor), values)

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
