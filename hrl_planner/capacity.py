"""How many requests per second one replica sustains while it keeps a class's promises.

`cap[c, i]` of DESIGN section 4, from the latency profile and what is known of a class's requests
(mean and spread of prompt and output length, prefix hit rate). A replica is loaded until its
weakest promise is about to break:

* **Prefill.** A queue with general service times. Lengths are lognormal, taken at six equally
  likely quantiles. A request's time to first token is wait + its own prefill (in chunks of
  `max_num_batched_tokens`) + KV transfer + the first decode step. The wait of a pool with N
  replicas follows Sakasegawa's approximation, which for N = 1 is the Pollaczek-Khinchine formula:
  P(wait) = u^(sqrt(2(N+1)) - 1) and, given a wait, an exponential of mean
  (1 + cs^2)/2 * s / (N (1 - u)), with u the utilisation, s the mean service time and cs its
  coefficient of variation. The highest u is sought at which the share of requests in time is
  still `quantile` of the share an idle replica reaches.
* **Decode.** Little's law at the largest batch B whose step time keeps the ITL target, whose KV
  reservations fit with room for their fluctuation (K slots on average carry K - sqrt(K)), and
  which `max_num_seqs` allows: B / (osl * step(B)).
* **Aggregated.** Both on one clock: prefill takes the share u of the time, so a decode step lasts
  step(B) / (1 - u).

`share[c, i]` is the part of the class's requests that meets its target there; long prompts can miss
on an idle replica. Where no request can meet it, both are 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner import surface as surfaces
from hrl_planner._compiled import compiled
from hrl_planner._memo import once_per_spec
from hrl_planner.routing import DECODE, PREFILL, ROLES
from hrl_planner.surface import decode_step_s, prefill_step_s

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Standard normal quantiles at 1/12, 3/12, ... 11/12: six equally likely lengths.
_NORMAL = (-1.382994, -0.674490, -0.210428, 0.210428, 0.674490, 1.382994)
MAX_UTILISATION = 0.98
_MIN_SHARE = 0.02  # below this a pool is of no use to a class
_FIRST_STEP_ITLS = 1.5  # a first decode step waits half a step for the running one, then takes one


class ClassLoad(NamedTuple):
    """What a class's requests look like; every field has shape (C,).

    Attributes:
        isl: mean prompt tokens.
        isl_std: their standard deviation.
        osl: mean output tokens.
        osl_std: their standard deviation.
        hit_rate: share of prompt tokens found in prefix caches.
    """

    isl: FloatArray
    isl_std: FloatArray
    osl: FloatArray
    osl_std: FloatArray
    hit_rate: FloatArray


class CapacityModel(NamedTuple):
    """Pools and classes of a spec as compiled code takes them.

    Attributes:
        surface: SURFACE records, shape (P,).
        table: packed step times.
        role: PREFILL, DECODE or AGGREGATED, shape (P,).
        max_num_seqs: shape (P,).
        max_tokens: max_num_batched_tokens, shape (P,).
        kv_tokens: KV capacity of a replica, shape (P,).
        transfer_s: fixed part of a KV transfer.
        transfer_s_per_token: its part per prompt token.
        ttft_s: targets, shape (C,).
        itl_s: targets, shape (C,).
    """

    surface: NDArray[Any]
    table: FloatArray
    role: IntArray
    max_num_seqs: IntArray
    max_tokens: IntArray
    kv_tokens: IntArray
    transfer_s: float
    transfer_s_per_token: float
    ttft_s: FloatArray
    itl_s: FloatArray

    @staticmethod
    @once_per_spec
    def from_spec(spec: ClusterSpec) -> CapacityModel:
        """Pack a cluster."""
        pools, profiles, classes = spec.pools, spec.profiles(), spec.slo_classes
        packed = surfaces.concatenate(
            [
                surfaces.pack(profile, pool.max_num_seqs, pool.latency_scale)
                for pool, profile in zip(pools, profiles, strict=True)
            ]
        )
        link = spec.kv_transfer
        return CapacityModel(
            surface=packed.record,
            table=packed.table,
            role=np.array([ROLES.index(p.role) for p in pools], np.int64),
            max_num_seqs=np.array([p.max_num_seqs for p in pools], np.int64),
            max_tokens=np.array([p.max_num_batched_tokens for p in pools], np.int64),
            kv_tokens=np.array([p.kv_capacity_tokens for p in profiles], np.int64),
            transfer_s=link.latency_ms * 1e-3,
            transfer_s_per_token=spec.kv_bytes_per_token / (link.bandwidth_gb_per_s * 1e9),
            ttft_s=np.array([c.ttft_ms for c in classes], np.float64) * 1e-3,
            itl_s=np.array([c.itl_ms for c in classes], np.float64) * 1e-3,
        )


def capacity(
    model: CapacityModel,
    load: ClassLoad,
    *,
    servers: FloatArray | None = None,
    tightest: IntArray | None = None,
    quantile: float = 0.9,
) -> tuple[FloatArray, FloatArray]:
    """Return `cap` in requests/s per replica and `share` in time, both of shape (C, P).

    Args:
        model: the cluster.
        load: lengths and hit rates per class.
        servers: replicas that share each pool's queue, shape (P,); None for 1. More of them wait
            less at the same utilisation.
        tightest: per pool the class whose targets hold for all classes there, -1 for none; shape
            (P,). A queue is first in, first out: a patient class can fill a pool only as far as
            the impatient one beside it allows.
        quantile: share of the attainable requests that a loaded replica must still serve in time.
    """
    shape = (model.ttft_s.size, model.role.size)
    cap, share = np.zeros(shape), np.zeros(shape)
    n = np.ones(shape[1]) if servers is None else np.maximum(servers, 1.0)
    limit = np.full(shape[1], -1) if tightest is None else tightest
    capacity_into(model, load, n, limit, quantile, cap, share)
    return cap, share


@compiled
def capacity_into(
    model: CapacityModel,
    load: ClassLoad,
    servers: FloatArray,
    tightest: IntArray,
    quantile: float,
    cap: FloatArray,
    share: FloatArray,
) -> None:
    """Compiled `capacity`: write into `cap` and `share`."""
    for i in range(model.role.size):
        m = tightest[i]
        bound = MAX_UTILISATION
        if m >= 0 and model.role[i] == PREFILL:
            bound, _, _ = prefill_limit(model, load, i, m, servers[i], quantile)
        for c in range(model.ttft_s.size):
            itl_s = model.itl_s[c] if m < 0 else min(model.itl_s[c], model.itl_s[m])
            if model.role[i] == PREFILL:
                busy, service_s, in_time = prefill_limit(model, load, i, c, servers[i], quantile)
                cap[c, i] = min(busy, bound) / service_s
                share[c, i] = in_time
            elif model.role[i] == DECODE:
                cap[c, i] = decode_limit(model, load, i, c, itl_s)
                share[c, i] = 1.0 if cap[c, i] > 0.0 else 0.0
            else:
                ttft_s = model.ttft_s[c] if m < 0 else min(model.ttft_s[c], model.ttft_s[m])
                cap[c, i], share[c, i] = aggregated_limit(
                    model, load, i, c, ttft_s, itl_s, servers[i], quantile
                )


@compiled
def prefill_s(
    surface: Any, table: FloatArray, new_tokens: float, cached_tokens: float, max_tokens: float
) -> float:
    """Return the time to prefill one prompt alone, in chunks of at most `max_tokens`."""
    total_s = 0.0
    done = cached_tokens
    left = new_tokens
    while left > 0.0:
        chunk = min(left, max_tokens)
        total_s += prefill_step_s(surface, table, 1.0, chunk, done)
        done += chunk
        left -= chunk
    return total_s


@compiled
def _lengths(mean: float, std: float, lengths: FloatArray) -> None:
    """Write six equally likely lognormal lengths."""
    cv = min(std / max(mean, 1.0), 3.0)
    sigma = np.sqrt(np.log(1.0 + cv * cv))
    total = 0.0
    for k in range(6):
        lengths[k] = np.exp(sigma * _NORMAL[k])
        total += lengths[k]
    for k in range(6):
        lengths[k] = max(mean, 1.0) * lengths[k] * 6.0 / total


@compiled
def prefill_times(
    model: CapacityModel, load: ClassLoad, i: int, c: int, own_s: FloatArray, fixed_s: FloatArray
) -> tuple[float, float]:
    """Write each sampled prompt's own prefill time and the fixed time behind it.

    Returns:
        Mean and squared coefficient of variation of the time the worker spends per request; where
        several prompts fit one step, batching makes that less than a prompt's own time.
    """
    surface, table = model.surface[i], model.table
    mean = 0.0
    square = 0.0
    lengths = np.empty(6)
    _lengths(load.isl[c], load.isl_std[c], lengths)
    for k in range(6):
        isl = lengths[k]
        cached = load.hit_rate[c] * isl
        new = max(isl - cached, 1.0)
        own_s[k] = prefill_s(surface, table, new, cached, model.max_tokens[i])
        fixed_s[k] = model.transfer_s + isl * model.transfer_s_per_token
        n = np.floor(min(model.max_tokens[i] / new, float(model.max_num_seqs[i])))
        busy = own_s[k]
        if n > 1.0:
            busy = min(busy, prefill_step_s(surface, table, n, n * new, cached) / n)
        mean += busy / 6.0
        square += busy * busy / 6.0
    return mean, max(square / (mean * mean) - 1.0, 0.0)


@compiled
def in_time(
    busy: float,
    servers: float,
    service_s: float,
    cv2: float,
    own_s: FloatArray,
    fixed_s: FloatArray,
    target_s: float,
) -> float:
    """Return the share of requests whose wait and own time stay within a target."""
    waits = busy ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0)
    mean_wait_s = 0.5 * (1.0 + cv2) * service_s / (servers * (1.0 - busy))
    total = 0.0
    for k in range(own_s.size):
        left_s = target_s - own_s[k] - fixed_s[k]
        if left_s >= 0.0:
            total += 1.0 - waits * np.exp(-left_s / mean_wait_s)
    return float(total / own_s.size)


@compiled
def prefill_limit(
    model: CapacityModel, load: ClassLoad, i: int, c: int, servers: float, quantile: float
) -> tuple[float, float, float]:
    """Return the utilisation a class allows on a prefill pool, its service time, its share."""
    own_s = np.empty(6)
    fixed_s = np.empty(6)
    service_s, cv2 = prefill_times(model, load, i, c, own_s, fixed_s)
    target_s = model.ttft_s[c] - _FIRST_STEP_ITLS * model.itl_s[c]
    best = in_time(0.0, servers, service_s, cv2, own_s, fixed_s, target_s)
    if best < _MIN_SHARE:
        return 0.0, service_s, 0.0
    low = 0.0
    high = MAX_UTILISATION
    for _ in range(12):
        busy = 0.5 * (low + high)
        reached = in_time(busy, servers, service_s, cv2, own_s, fixed_s, target_s)
        if reached >= quantile * best:
            low = busy
        else:
            high = busy
    return low, service_s, in_time(low, servers, service_s, cv2, own_s, fixed_s, target_s)


@compiled
def decode_context(load: ClassLoad, c: int) -> tuple[float, float]:
    """Return mean context and mean KV reservation over the time requests spend decoding.

    Long outputs stay longer: both are weighted by output length.
    """
    osl = max(load.osl[c], 1.0)
    weighted = osl + min(load.osl_std[c], 3.0 * osl) ** 2 / osl
    return load.isl[c] + 0.5 * weighted, load.isl[c] + weighted


@compiled
def decode_slots(model: CapacityModel, i: int, kv_per_request: float) -> float:
    """Return how many requests a replica holds on average without making others wait."""
    slots = model.kv_tokens[i] / kv_per_request
    if slots < 1.0:
        return 0.0
    return float(min(max(slots - np.sqrt(slots), 0.5 * slots), model.max_num_seqs[i]))


@compiled
def step_between_s(surface: Any, table: FloatArray, batch: float, context: float) -> float:
    """Return the decode step time of a mean batch, linear between whole batches."""
    low = max(int(np.floor(batch)), 1)
    part = max(batch - low, 0.0)
    below = decode_step_s(surface, table, low, context)
    if part <= 0.0:
        return below
    return below + part * (decode_step_s(surface, table, low + 1, context) - below)


@compiled
def decode_limit(model: CapacityModel, load: ClassLoad, i: int, c: int, itl_s: float) -> float:
    """Return the requests/s a decode replica sustains within an ITL target."""
    context, reserved = decode_context(load, c)
    batch = decode_slots(model, i, reserved)
    surface, table = model.surface[i], model.table
    if batch <= 0.0 or decode_step_s(surface, table, 1, context) > itl_s:
        return 0.0
    if step_between_s(surface, table, batch, context) > itl_s:
        low = 1.0
        high = batch
        for _ in range(10):
            middle = 0.5 * (low + high)
            if step_between_s(surface, table, middle, context) <= itl_s:
                low = middle
            else:
                high = middle
        batch = low
    osl = max(load.osl[c], 1.0)
    return float(batch / (osl * step_between_s(surface, table, batch, context)))


@compiled
def aggregated_limit(
    model: CapacityModel,
    load: ClassLoad,
    i: int,
    c: int,
    ttft_s: float,
    itl_s: float,
    servers: float,
    quantile: float,
) -> tuple[float, float]:
    """Return the requests/s an aggregated replica sustains, and the share in time."""
    own_s = np.empty(6)
    fixed_s = np.zeros(6)
    service_s, cv2 = prefill_times(model, load, i, c, own_s, fixed_s)
    fixed_s[:] = 0.0
    context, reserved = decode_context(load, c)
    slots = decode_slots(model, i, reserved)
    surface, table = model.surface[i], model.table
    best = in_time(0.0, servers, service_s, cv2, own_s, fixed_s, ttft_s)
    if slots <= 0.0 or best < _MIN_SHARE or decode_step_s(surface, table, 1, context) > itl_s:
        return 0.0, 0.0
    osl = max(load.osl[c], 1.0)
    low = 0.0
    high = MAX_UTILISATION / service_s
    share = best
    for _ in range(12):
        rate = 0.5 * (low + high)
        left = 1.0 - rate * service_s
        batch = 0.0
        for _ in range(12):
            batch = rate * osl * step_between_s(surface, table, max(batch, 1.0), context) / left
            if batch > slots:
                break
        held = batch <= slots and step_between_s(surface, table, batch, context) / left <= itl_s
        reached = 0.0
        if held:
            # A prompt waits for the running step, and every step carries the running requests.
            step_s = step_between_s(surface, table, max(batch, 1.0), context)
            fixed_s[:] = step_s
            reached = in_time(1.0 - left, servers, service_s, cv2, own_s, fixed_s, ttft_s)
        if held and reached >= quantile * best:
            low = rate
            share = reached
        else:
            high = rate
    return low, share
