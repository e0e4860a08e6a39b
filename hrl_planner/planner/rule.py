"""The rule-based local planner: one pool, its own metrics, and the quota it may move in.

A pool grows when its busiest signal (`pressure`) passes a threshold, counting replicas that are on
their way, and shrinks when the pressure it would have with one replica less stays well below.
Pressure is 1 at the point where a pool just keeps its promises:

* prefill: utilisation (prompt tokens per second over what the profile says a replica computes),
  and p90 of queueing plus prefill against the TTFT target;
* decode: KV use, and p90 of the inter-token latency against the ITL target.

A queue that would take longer than the wait allowed to work off adds to it. The core is one
compiled function over observation rows (`rule_targets`), so that the environments run the same
rule inside their kernel; `RulePolicy` is the face of it, and `thresholds` the same with tuned
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import lean
from hrl_planner._memo import once_per_spec
from hrl_planner.errors import PolicyError
from hrl_planner.observation import POOL_FIELDS, ClusterObservation
from hrl_planner.planner.policy import FloatArray, Plan, PlanContext
from hrl_planner.spec import ClusterSpec
from hrl_planner.surface import decode_step_s, pack, prefill_step_s

_TARGET = POOL_FIELDS.index("target_replicas")
_READY = POOL_FIELDS.index("ready")
_STARTING = POOL_FIELDS.index("starting")
_WAITING = POOL_FIELDS.index("waiting")
_RUNNING = POOL_FIELDS.index("running")
_KV_USE = POOL_FIELDS.index("kv_use")
_PROMPT_TOKENS = POOL_FIELDS.index("prompt_tokens_per_s")
_ISL = POOL_FIELDS.index("isl_mean_tokens")
_TTFT = POOL_FIELDS.index("ttft_p90_ms")
_ITL = POOL_FIELDS.index("itl_p90_ms")

_AT_PRESSURE_1 = ("utilisation", "kv_use", "latency", "wait")  # signals are divided by these

# Requests a promise is checked with: what a pool cannot do for one of them it never can.
_TYPICAL_ISL_TOKENS = 1024.0
_TYPICAL_CONTEXT_TOKENS = 2048.0


@dataclass(frozen=True, slots=True)
class RuleParameters:
    """The thresholds of the rule; every field is a number, so that they can be tuned.

    Attributes:
        up: pressure above which a pool grows.
        down: pressure, predicted for one replica less, below which it shrinks.
        utilisation: prefill utilisation that counts as pressure 1.
        kv_use: KV use that counts as pressure 1.
        latency: share of a latency target that counts as pressure 1.
        wait: requests waiting per ready replica that count as pressure 1.
        growth: most replicas added at once, as a share of the ready ones (at least one).
        up_cooldown_s: least time between two additions to a pool.
        down_cooldown_s: least time from any change of a pool to a removal.
    """

    up: float = 1.0
    down: float = 0.75
    utilisation: float = 0.7
    kv_use: float = 0.75
    latency: float = 0.85
    wait: float = 3.0
    growth: float = 0.5
    up_cooldown_s: float = 20.0
    down_cooldown_s: float = 120.0

    def to_array(self) -> FloatArray:
        """Return the fields in declaration order."""
        return np.array([getattr(self, field.name) for field in fields(self)])


class RulePools(NamedTuple):
    """The fixed side of the rule, as arrays that compiled code can take; all of shape (P,).

    Attributes:
        prefills: 1 where the pool computes prompts.
        decodes: 1 where it generates.
        saturated_s_per_token: prefill seconds per token of a full batch.
        ttft_target_ms: tightest TTFT target the pool can keep at all, infinite if none.
        itl_target_ms: the same for ITL.
        minimum: fewest replicas.
        maximum: most replicas.
    """

    prefills: NDArray[np.int64]
    decodes: NDArray[np.int64]
    saturated_s_per_token: FloatArray
    ttft_target_ms: FloatArray
    itl_target_ms: FloatArray
    minimum: NDArray[np.int64]
    maximum: NDArray[np.int64]

    @staticmethod
    @once_per_spec
    def from_spec(spec: ClusterSpec, blind_pools: frozenset[int] = frozenset()) -> RulePools:
        """Derive the arrays; a pool whose profile is unknown is judged by its queue and KV use."""
        rows = [_pool_row(spec, index, index in blind_pools) for index in range(len(spec.pools))]
        columns = [np.array(column, np.float64) for column in zip(*rows, strict=True)]
        roles = [pool.role for pool in spec.pools]
        return RulePools(
            prefills=np.array([role != "decode" for role in roles], np.int64),
            decodes=np.array([role != "prefill" for role in roles], np.int64),
            saturated_s_per_token=columns[0],
            ttft_target_ms=columns[1],
            itl_target_ms=columns[2],
            minimum=np.array([pool.min_replicas for pool in spec.pools], np.int64),
            maximum=np.array([pool.max_replicas for pool in spec.pools], np.int64),
        )


def _pool_row(spec: ClusterSpec, index: int, blind: bool) -> tuple[float, float, float]:
    """Return seconds per saturated prefill token and the tightest targets a pool can keep."""
    if blind:
        return np.nan, np.inf, np.inf
    pool = spec.pools[index]
    surface = pack(spec.profiles()[index], pool.max_num_seqs, pool.latency_scale)
    record, table = surface.record[0], surface.table
    tokens = float(pool.max_num_batched_tokens)
    per_token_s = prefill_step_s(record, table, 1.0, tokens, 0.0) / tokens
    ttft_ms = 1e3 * prefill_step_s(record, table, 1.0, _TYPICAL_ISL_TOKENS, 0.0)
    itl_ms = 1e3 * decode_step_s(record, table, 1, _TYPICAL_CONTEXT_TOKENS)
    ttft_targets = [c.ttft_ms for c in spec.slo_classes if c.ttft_ms > ttft_ms]
    itl_targets = [c.itl_ms for c in spec.slo_classes if c.itl_ms > itl_ms]
    return per_token_s, min(ttft_targets, default=np.inf), min(itl_targets, default=np.inf)


@lean
def _larger(pressure: float, signal: float) -> float:
    """Return the larger of two, ignoring a signal that is unknown."""
    return max(pressure, signal) if signal == signal else pressure


@lean
def pool_pressure(
    row: FloatArray, pools: RulePools, index: int, parameters: FloatArray, ready: float
) -> float:
    """Return how loaded a pool would be if `ready` replicas did its work; NaN without metrics.

    Latency does not scale with replicas in any simple way and counts only at the present number.
    """
    if row[_WAITING] != row[_WAITING] or ready < 1.0:
        return np.nan
    pressure = float(row[_WAITING] / ready / parameters[5])
    as_now = ready >= row[_READY]
    if pools.prefills[index] == 1:
        busy = row[_PROMPT_TOKENS] * pools.saturated_s_per_token[index] / ready
        pressure = _larger(pressure, busy / parameters[2])
        if as_now:
            pressure = _larger(pressure, row[_TTFT] / pools.ttft_target_ms[index] / parameters[4])
    if pools.decodes[index] == 1:
        use = row[_KV_USE] * row[_READY] / ready
        pressure = _larger(pressure, use / parameters[3])
        if as_now:
            pressure = _larger(pressure, row[_ITL] / pools.itl_target_ms[index] / parameters[4])
        else:
            # Half of a decode step is paid per request: fewer replicas, larger batches.
            stretch = 0.5 + 0.5 * row[_READY] / ready
            latency = row[_ITL] * stretch / pools.itl_target_ms[index]
            pressure = _larger(pressure, latency / parameters[4])
    return pressure


@lean
def rule_targets(
    rows: FloatArray,
    pools: RulePools,
    parameters: FloatArray,
    now_s: float,
    quota: FloatArray,
    changed_s: FloatArray,
    targets: NDArray[np.int64],
) -> None:
    """Write the replicas every pool should have.

    Args:
        rows: observation rows, shape (P, len(POOL_FIELDS)).
        pools: the fixed side.
        parameters: `RuleParameters.to_array()`.
        now_s: time of the observation.
        quota: most replicas per pool, shape (P,).
        changed_s: when each pool was last changed, shape (P,); updated.
        targets: written, shape (P,).
    """
    for i in range(rows.shape[0]):
        row = rows[i]
        current = row[_TARGET]
        wanted = current
        ready = row[_READY]
        since_s = now_s - changed_s[i]
        pressure = pool_pressure(row, pools, i, parameters, ready)
        if ready < 1.0 and row[_STARTING] < 1.0 and current < 1.0 and row[_WAITING] > 0.0:
            wanted = 1.0
        elif pressure > parameters[0] and since_s >= parameters[7]:
            # Replicas under way are part of the answer already.
            needed = ready * min(pressure, 1.0 + parameters[6])
            wanted = max(current, np.ceil(needed - 1e-9), ready + 1.0)
        elif row[_STARTING] < 1.0 and since_s >= parameters[8] and current >= ready:
            fewer = pool_pressure(row, pools, i, parameters, ready - 1.0)
            if fewer < parameters[1] or (ready == 1.0 and row[_RUNNING] + row[_WAITING] == 0.0):
                wanted = current - 1.0
        # A pool that was given GPUs uses at least one replica: without a ready worker no request
        # reaches it, and it would never show a load to grow on.
        least = max(float(pools.minimum[i]), 1.0 if 1.0 <= quota[i] < np.inf else 0.0)
        bounded = min(max(wanted, least), min(quota[i], float(pools.maximum[i])))
        targets[i] = np.int64(max(0.0, bounded))
        if targets[i] != np.int64(current):
            changed_s[i] = now_s


class RulePolicy:
    """The rule over all pools of a cluster.

    Args:
        parameters: the thresholds.
        within_quota: keep every pool at or below the quota a global planner has set.
    """

    name = "rule"

    def __init__(
        self, parameters: RuleParameters | None = None, within_quota: bool = False
    ) -> None:
        """See the class."""
        self.parameters = parameters or RuleParameters()
        self.interval_s = 10.0
        self.within_quota = within_quota
        self._array = self.parameters.to_array()
        if not np.all(np.isfinite(self._array)) or np.any(self._array < 0.0):
            raise PolicyError(f"policy rule: thresholds must be finite and >= 0: {parameters}")
        for name in _AT_PRESSURE_1:
            if getattr(self.parameters, name) == 0.0:
                raise PolicyError(f"policy rule: {name} 0.0 must be above 0")
        self._pools: RulePools | None = None
        self._changed_s = np.zeros(0)

    def reset(self, context: PlanContext) -> None:
        """Derive targets and rates from the spec."""
        self.interval_s = context.spec.intervals.local_s
        self._pools = RulePools.from_spec(context.spec, context.blind_pools)
        self._changed_s = np.full(len(context.spec.pools), -np.inf)

    def decide(self, observation: ClusterObservation) -> Plan:
        """Apply the rule; pools without metrics stay as they are."""
        if self._pools is None:
            raise PolicyError("policy rule: decide before reset")
        n = len(observation.pools)
        quota = np.full(n, np.inf)
        if self.within_quota:
            quota = observation.pool_field("quota")
        targets = np.empty(n, np.int64)
        rule_targets(
            observation.pools,
            self._pools,
            self._array,
            observation.now_s,
            quota,
            self._changed_s,
            targets,
        )
        return Plan(targets, reason="rule")
