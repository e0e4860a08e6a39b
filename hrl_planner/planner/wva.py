"""After llm-d's Workload-Variant-Autoscaler: token capacity per role, cheapest variant first.

Implemented is the token-based saturation analyzer ("V2", the default since v0.9.0) with the greedy
limiter per GPU type, and its published thresholds. A pool is a variant. Per role, in tokens:

* demand: tokens in the KV caches plus those of the prompts that wait, peaks of the last minute;
* supply: what a ready replica carries times their number. A replica carries the lesser of
  `kv_threshold` of its KV cache and what it computes: what it held when its queue was last at
  `queue_threshold`, and until that was seen N (I + O/2) tokens with N = min(B O / (I + O), S),
  from lengths I and O, token budget B and sequence limit S;
* above `up` of the supply that is there or on its way replicas are added where a token of capacity
  is cheapest, as far as the type's GPUs go, the role that lacks most tokens first; below `down` of
  the ready supply the dearest replicas go, and one per role stays.

HPA carries the numbers out with its defaults, as documented for WVA. It knows prices and GPUs, no
SLO targets and no latency profiles; GPUs once granted are not taken back for a role in need. Not
here: votes of other analyzers, priorities among models, scale to zero. Pool metrics stand for the
replicas', and a prefill replica's KV cache holds the prompts it works on. Sources: the project's
*Saturation Scaling Configuration* and *Saturation Analyzer* pages, and for the formula of N and the
order of grants its packages saturation_v2 and pipeline
(github.com/llm-d/llm-d-workload-variant-autoscaler).
"""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np
from numpy.typing import NDArray

from hrl_planner.budget import BudgetArrays
from hrl_planner.errors import PolicyError
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.hpa import HpaScaler
from hrl_planner.planner.loop import current_targets
from hrl_planner.planner.policy import FloatArray, IntArray, Plan, PlanContext

_PEAK_WINDOW_S = 60.0
_HISTORY = 10  # saturated moments whose mean is a replica's computing capacity
_OSL_EDGES_TOKENS = (100.0, 500.0)  # short, medium and long answers saturate at other loads


class WvaPolicy:
    """Scales every role on the tokens it holds and is asked for.

    Args:
        kv_threshold: share of a KV cache that may be used.
        queue_threshold: requests waiting per replica from which on it is saturated.
        up: utilisation above which a role grows.
        down: utilisation below which it shrinks.
    """

    name = "wva"

    def __init__(
        self,
        kv_threshold: float = 0.80,
        queue_threshold: float = 5.0,
        up: float = 0.85,
        down: float = 0.70,
    ) -> None:
        """See the class."""
        if not 0.0 < kv_threshold <= 1.0 or not 0.0 < down < up <= 1.0:
            raise PolicyError(
                f"policy wva: kv_threshold {kv_threshold}, down {down} and up {up} must lie in "
                "0..1, down below up"
            )
        self.interval_s = 30.0
        self._kv_threshold, self._queue_threshold = kv_threshold, queue_threshold
        self._up, self._down = up, down

    def reset(self, context: PlanContext) -> None:
        """Read prices, KV caches and engine limits from the spec; forget what was measured."""
        pools, profiles = context.spec.pools, context.spec.profiles()
        self._arrays = BudgetArrays.from_spec(context.spec)
        self._roles = np.array([pool.role for pool in pools])
        # What engines report of themselves, so it is known of a pool without a profile too.
        self._kv_tokens = np.array([p.kv_capacity_tokens for p in profiles], np.float64)
        self._max_tokens = np.array([p.max_num_batched_tokens for p in pools], np.float64)
        self._max_seqs = np.array([p.max_num_seqs for p in pools], np.float64)
        price = np.array([pool.price_per_gpu_hour for pool in pools])
        self._price = price * self._arrays.gpus
        self._isl, self._osl = np.full(len(pools), np.nan), np.full(len(pools), np.nan)
        self._held: dict[tuple[int, int], deque[float]] = defaultdict(
            lambda: deque(maxlen=_HISTORY)
        )
        self._seen: deque[tuple[float, FloatArray, FloatArray]] = deque()
        self._scaler = HpaScaler()

    def decide(self, observation: ClusterObservation) -> Plan:
        """Compare demand with supply role by role; a role with unknown metrics stays as it is."""
        demand, carries = self._measure(observation)
        targets = current_targets(observation)
        ready = np.minimum(observation.pool_field("ready"), targets)
        wanted = targets.copy()
        short: list[tuple[float, NDArray[np.int64]]] = []
        for role in np.unique(self._roles):
            pools = np.flatnonzero(self._roles == role)
            asked = float(demand[pools].sum())
            if np.isnan(asked):
                continue
            supply = float(carries[pools] @ ready[pools])
            required = asked / self._up - float(carries[pools] @ targets[pools])
            if targets[pools].sum() == 0:
                required = max(required, 1.0)  # without a replica a role never shows a load
            if required > 0.0:
                short.append((required, pools))
            else:
                self._remove(supply - asked / self._down, pools, carries, wanted)
        free = self._free_gpus(observation, targets)
        for required, pools in sorted(short, key=lambda entry: -entry[0]):
            self._add(required, pools, carries, wanted, free)
        replicas = self._scaler.limit(
            observation.now_s, wanted.astype(np.float64), targets.astype(np.float64)
        )
        return Plan(replicas, reason="wva")

    def _measure(self, observation: ClusterObservation) -> tuple[FloatArray, FloatArray]:
        """Return per pool the tokens asked for, NaN if unknown, and those a replica carries."""
        ready = observation.pool_field("ready")
        waiting, running = observation.pool_field("waiting"), observation.pool_field("running")
        self._learn_lengths(observation)
        isl = np.nan_to_num(self._isl)
        held = observation.pool_field("kv_use") * self._kv_tokens * ready
        held = np.where(self._roles == "prefill", running * isl, held)
        alive = ready > 0
        self._remember_saturation(waiting / np.maximum(ready, 1.0), held / np.maximum(ready, 1.0))
        self._seen.append((observation.now_s, held, waiting))
        while self._seen[0][0] < observation.now_s - _PEAK_WINDOW_S:
            self._seen.popleft()
        most_held = np.fmax.reduce([tokens for _, tokens, _ in self._seen])
        most_waiting = np.fmax.reduce([requests for _, _, requests in self._seen])
        demand = np.where(np.isnan(held + waiting), np.nan, most_held + most_waiting * isl)
        return np.where(alive, demand, np.nan_to_num(demand)), self._carried_tokens()

    def _learn_lengths(self, observation: ClusterObservation) -> None:
        """Keep the last known lengths; a pool without requests has those of its role."""
        isl, osl = (observation.pool_field(f"{kind}_mean_tokens") for kind in ("isl", "osl"))
        self._isl = np.where(np.isnan(isl), self._isl, isl)
        self._osl = np.where(np.isnan(osl), self._osl, osl)
        for role in np.unique(self._roles):
            pools = self._roles == role
            for lengths in (self._isl, self._osl):
                known = lengths[pools & ~np.isnan(lengths)]
                if known.size:
                    lengths[pools & np.isnan(lengths)] = known.mean()

    def _remember_saturation(self, queue: FloatArray, held: FloatArray) -> None:
        """A replica with a long queue cannot hold more: what it holds is what it can compute."""
        for i in np.flatnonzero((queue >= self._queue_threshold) & (held > 0.0)).tolist():
            self._held[i, self._length_bucket(i)].append(float(held[i]))

    def _length_bucket(self, index: int) -> int:
        return int(np.searchsorted(_OSL_EDGES_TOKENS, self._osl[index], side="right"))

    def _carried_tokens(self) -> FloatArray:
        """Return the tokens one replica of each pool carries, shape (P,)."""
        isl = self._isl
        osl = np.where(self._roles == "prefill", 1.0, self._osl)
        requests = np.minimum(self._max_tokens * osl / (isl + osl), self._max_seqs)
        by_memory = self._kv_threshold * self._kv_tokens
        by_computing = np.fmin(requests * (isl + osl / 2.0), by_memory)
        for i in range(by_computing.size):
            history = self._held.get((i, self._length_bucket(i)))
            if history:
                by_computing[i] = np.mean(history)
        return np.asarray(np.maximum(np.minimum(by_memory, by_computing), 1.0))

    def _free_gpus(self, observation: ClusterObservation, targets: IntArray) -> FloatArray:
        """Return the GPUs per type that no replica holds or is meant to hold."""
        arrays = self._arrays
        live = observation.pool_field("ready") + observation.pool_field("starting")
        held = np.maximum(targets, live) + observation.pool_field("draining")
        used = np.bincount(arrays.type_index, arrays.gpus * held, arrays.type_budget.size)
        return np.asarray(arrays.type_budget - used)

    def _add(
        self,
        required: float,
        pools: NDArray[np.int64],
        carries: FloatArray,
        wanted: IntArray,
        free: FloatArray,
    ) -> None:
        """Cover the tokens required, cheapest token first; updates `wanted` and `free`."""
        arrays = self._arrays
        for i in sorted(pools, key=lambda i: float(self._price[i] / carries[i])):
            kind, gpus = arrays.type_index[i], arrays.gpus[i]
            room = min(int(free[kind] // gpus), int(arrays.maximum[i] - wanted[i]))
            n = min(int(np.ceil(required / carries[i])), room)
            if n > 0:
                wanted[i] += n
                free[kind] -= n * gpus
                required -= n * carries[i]

    def _remove(
        self, spare: float, pools: NDArray[np.int64], carries: FloatArray, wanted: IntArray
    ) -> None:
        """Give back the spare tokens, dearest replica first; updates `wanted`."""
        for i in sorted(pools, key=lambda i: (-self._price[i], carries[i])):
            most = min(wanted[i] - self._arrays.minimum[i], wanted[pools].sum() - 1)
            n = min(int(spare // carries[i]), int(most))
            if n > 0:
                wanted[i] -= n
                spare -= n * carries[i]
