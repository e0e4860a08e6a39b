"""Our observation in the words of Dynamo's metrics: forward passes, traffic, replicas.

Dynamo reads the last forward pass of every worker (FPM) and, every 180 s, what a pool's router
counted. We know a pool's totals: they are spread evenly over its workers, as a router that balances
load does, in whole requests. Step times come from the pool's latency surface, which is what the
simulated workers take. Idle workers send the zeros Dynamo's engines send when they fall idle.

Unknown stays unknown: without metrics there are no forward passes and no traffic, and Dynamo's
planner then holds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agents.dynamo.client import Json
from agents.dynamo.deployment import pack_pools
from hrl_planner.observation import ClusterObservation, PoolObservation
from hrl_planner.spec import ClusterSpec, PoolSpec
from hrl_planner.surface import Surface, decode_step_s, prefill_step_s


def share(total: int, parts: int, index: int) -> int:
    """Return part `index` of a total split as evenly as whole numbers allow."""
    return total // parts + (index < total % parts)


@dataclass(slots=True)
class Lengths:
    """The last lengths that were known, tokens; a window without requests has none of its own."""

    isl: float = 0.0
    osl: float = 0.0
    hit_rate: float = 0.0

    def update(self, row: PoolObservation) -> None:
        """Take over what the row knows."""
        if np.isfinite(row.isl_mean_tokens):
            self.isl = row.isl_mean_tokens
        if np.isfinite(row.osl_mean_tokens):
            self.osl = row.osl_mean_tokens
        if np.isfinite(row.prefix_hit_rate):
            self.hit_rate = row.prefix_hit_rate


def prefill_pass(
    pool: PoolSpec, surface: Surface, lengths: Lengths, running: int, waiting: int
) -> Json:
    """Return the forward pass of one prefill worker.

    Scheduled tokens are those computed, without cached ones; queued tokens are raw prompt lengths.
    """
    new = min(running * lengths.isl * (1.0 - lengths.hit_rate), float(pool.max_num_batched_tokens))
    new = max(new, float(running))
    cached = running * lengths.isl * lengths.hit_rate
    wall_s = 0.0
    if running:
        wall_s = prefill_step_s(
            surface.record[0], surface.table, float(running), new, cached / running
        )
    return {
        "wall_time": wall_s,
        "scheduled": {
            "num_prefill_requests": running,
            "sum_prefill_tokens": round(new),
            "sum_prefill_kv_tokens": round(cached),
        },
        "queued": {
            "num_prefill_requests": waiting,
            "sum_prefill_tokens": round(waiting * lengths.isl),
        },
    }


def decode_pass(
    surface: Surface, context_tokens: float, isl_tokens: float, running: int, waiting: int
) -> Json:
    """Return the forward pass of one decode worker; requests that wait for KV count as queued."""
    wall_s = 0.0
    if running:
        wall_s = decode_step_s(surface.record[0], surface.table, running, context_tokens)
    return {
        "wall_time": wall_s,
        "scheduled": {
            "num_decode_requests": running,
            "sum_decode_kv_tokens": round(running * context_tokens),
        },
        "queued": {
            "num_decode_requests": waiting,
            "sum_decode_kv_tokens": round(waiting * isl_tokens),
        },
    }


def mixed_pass(
    pool: PoolSpec,
    surface: Surface,
    lengths: Lengths,
    context_tokens: float,
    prompt_tokens_per_s: float,
    running: int,
    waiting: int,
) -> Json:
    """Return the forward pass of one aggregated worker.

    A step decodes every running request, and computes the prompt tokens that come in meanwhile: of
    prefill utilisation u it lasts 1 / (1 - u) of a decode step.
    """
    most = float(pool.max_num_batched_tokens)
    per_token_s = prefill_step_s(surface.record[0], surface.table, 1.0, most, 0.0) / most
    wall_s = new = 0.0
    if running:
        decode_s = decode_step_s(surface.record[0], surface.table, running, context_tokens)
        busy = min(prompt_tokens_per_s * per_token_s, 0.95)
        wall_s = decode_s / (1.0 - busy)
        new = min(prompt_tokens_per_s * wall_s, most - running)
    return {
        "wall_time": wall_s,
        "scheduled": {
            "num_prefill_requests": int(new >= 1.0),
            "sum_prefill_tokens": int(new),
            "num_decode_requests": running,
            "sum_decode_kv_tokens": round(running * context_tokens),
        },
        "queued": {
            "num_prefill_requests": waiting,
            "sum_prefill_tokens": round(waiting * lengths.isl),
        },
    }


def mean_context_tokens(row: PoolObservation, lengths: Lengths, kv_capacity_tokens: int) -> float:
    """Return the mean context of running requests, from the KV their worker reserved.

    Prompt and answer are reserved at admission, and on average half of the answer is there.
    """
    live = row.ready + row.draining
    if row.running < 1.0 or live < 1.0:
        return 0.0
    reserved = row.kv_use * kv_capacity_tokens * live / row.running
    whole = lengths.isl + lengths.osl
    there = (lengths.isl + lengths.osl / 2.0) / whole if whole > 0.0 else 1.0
    return float(reserved * there)


def engines(
    pool: PoolSpec, surface: Surface, kv_capacity_tokens: int, row: PoolObservation, known: Lengths
) -> list[Json]:
    """Return one forward pass per ready worker, none without metrics."""
    ready = int(row.ready)
    live = ready + int(row.draining)
    if np.isnan(row.waiting) or np.isnan(row.running) or ready < 1:
        return []
    waiting, running = round(row.waiting), round(row.running)
    context = mean_context_tokens(row, known, kv_capacity_tokens)
    passes: dict[tuple[int, int], Json] = {}  # loads differ by one request at most
    for load in {(share(running, live, k), share(waiting, live, k)) for k in range(ready)}:
        if pool.role == "prefill":
            passes[load] = prefill_pass(pool, surface, known, *load)
        elif pool.role == "decode":
            passes[load] = decode_pass(surface, context, known.isl, *load)
        else:
            tokens_per_s = row.prompt_tokens_per_s / live
            passes[load] = mixed_pass(pool, surface, known, context, tokens_per_s, *load)
    return [passes[share(running, live, k), share(waiting, live, k)] for k in range(ready)]


@dataclass(slots=True)
class Traffic:
    """What a pool's router counted over the last interval, from rows one window apart.

    Attributes:
        window_s: length of the window a row covers.
        interval_s: length of the interval Dynamo asks for.
        role: of the pool; requests of a prefill pool end with their first token.
    """

    window_s: float
    interval_s: float
    role: str
    _rows: deque[PoolObservation] = field(default_factory=deque)
    _sampled_s: float = 0.0

    def add(self, now_s: float, row: PoolObservation) -> None:
        """Keep the row if it covers time that no kept row covers."""
        if now_s - self._sampled_s < self.window_s - 1e-6:
            return
        self._sampled_s = now_s
        self._rows.append(row)
        while len(self._rows) > max(1, round(self.interval_s / self.window_s)):
            self._rows.popleft()

    def read(self) -> Json | None:
        """Return requests, mean lengths and hit rate; None where a mean is unknown."""
        rows = [row for row in self._rows if np.isfinite(row.arrivals_rps)]
        if not rows:
            return None
        rates = np.array([row.arrivals_rps for row in rows])
        num_req = float(rates.mean() * self.interval_s)
        traffic: Json = {"duration_s": self.interval_s, "num_req": num_req}
        if num_req == 0.0:
            return {**traffic, "isl": 0.0, "osl": 0.0}
        isl = _weighted([row.isl_mean_tokens for row in rows], rates)
        osl = (
            1.0
            if self.role == "prefill"
            else _weighted([row.osl_mean_tokens for row in rows], rates)
        )
        if isl is None or osl is None:
            return None
        traffic |= {"isl": isl, "osl": osl}
        if self.role != "decode":
            traffic["kv_hit_rate"] = _weighted([row.prefix_hit_rate for row in rows], rates)
        return traffic


def _weighted(values: list[float], weights: NDArray[np.float64]) -> float | None:
    known = np.isfinite(values) & (weights > 0.0)
    if not known.any():
        return None
    return float(np.average(np.array(values)[known], weights=weights[known]))


class Telemetry:
    """Turns observations of one cluster into what the server is sent every tick.

    Args:
        spec: the cluster.
        traffic_interval_s: over which Dynamo asks for traffic.
    """

    def __init__(self, spec: ClusterSpec, traffic_interval_s: float) -> None:
        """See the class."""
        self._spec = spec
        self._surfaces = pack_pools(spec)
        self._known = [Lengths() for _ in spec.pools]
        window_s = spec.intervals.window_s
        self._traffic = [Traffic(window_s, traffic_interval_s, pool.role) for pool in spec.pools]

    def read(self, observation: ClusterObservation) -> list[Json]:
        """Return the state of every pool, in pool order."""
        states = []
        for index, pool in enumerate(self._spec.pools):
            row = observation.pool(index)
            known, traffic = self._known[index], self._traffic[index]
            known.update(row)
            traffic.add(observation.now_s, row)
            target = row.target_replicas
            capacity = self._spec.profiles()[index].kv_capacity_tokens
            states.append(
                {
                    "replicas": int(row.ready + row.starting if np.isnan(target) else target),
                    "ready": int(row.ready),
                    "engines": engines(pool, self._surfaces[index], capacity, row, known),
                    "traffic": traffic.read(),
                }
            )
        return states
