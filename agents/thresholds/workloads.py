"""Training workloads for threshold tuning: waves and steps scaled to what the cluster can serve.

Rates are set against the fluid LP's answer to the question how much of a mix the whole budget
sustains, so the same code loads any spec to the same degree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrl_planner.capacity import CapacityModel, ClassLoad, capacity
from hrl_planner.flow import FluidModel
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.trace import Trace

Floats = NDArray[np.float64]

DURATION_S = 2700.0
_PERIOD_S = 1800.0
_LEVELS = (0.35, 0.3)  # mean and amplitude, shares of what the budget sustains
_OSL_TOKENS, _CV = 300.0, 0.7


def sustained(spec: ClusterSpec, load: ClassLoad, mix: Floats) -> float:
    """Return the requests/s of a class mix that the whole budget sustains."""
    model, flow = CapacityModel.from_spec(spec), FluidModel(spec)
    n_pools = len(spec.pools)
    cap, share = capacity(model, load, servers=np.full(n_pools, 2.0))
    low, high = 0.0, 1e4
    for _ in range(25):
        rate = 0.5 * (low + high)
        best = flow.solve(rate * mix, cap, share, np.zeros(n_pools))
        served = 0.0 if best is None else float(best.served.sum())
        low, high = (rate, high) if served >= 0.99 * rate else (low, rate)
    return low


def training_cases(spec: ClusterSpec, seed: int) -> list[Trace]:
    """Return the traces that tuning optimises over: one wave, one staircase."""
    classes = spec.slo_classes
    n = len(classes)
    share = np.array([c.assign.share or 0.2 for c in classes])
    mix = share / share.sum()
    isl = np.array([max(1500.0, 1.5 * (c.assign.min_isl_tokens or 0)) for c in classes])
    isl = np.minimum(isl, [0.8 * (c.assign.max_isl_tokens or 1e9) for c in classes])
    osl = np.full(n, _OSL_TOKENS)
    load = ClassLoad(isl, _CV * isl, osl, _CV * osl, np.zeros(n))
    rate = sustained(spec, load, mix)
    rng = np.random.default_rng(seed)
    traces = []
    for number, wave in enumerate((_swell, _stairs)):
        peak = rate * (_LEVELS[0] + _LEVELS[1])
        t = np.sort(rng.uniform(0.0, DURATION_S, rng.poisson(peak * DURATION_S)))
        t = t[rng.uniform(size=t.size) < rate * wave(t) / peak]
        label = rng.choice(n, size=t.size, p=mix).astype(np.int16)
        traces.append(
            Trace(
                name=f"tuning-{number}",
                arrival_s=t,
                isl_tokens=_lengths(rng, isl[label]),
                osl_tokens=_lengths(rng, osl[label]),
                duration_s=DURATION_S,
                label=label,
                labels=tuple(c.assign.label or c.name for c in classes),
            )
        )
    return traces


def _swell(t: Floats) -> Floats:
    """Return a sinusoidal load."""
    return np.asarray(_LEVELS[0] + _LEVELS[1] * np.sin(2 * np.pi * t / _PERIOD_S))


def _stairs(t: Floats) -> Floats:
    """Return a load that jumps up and down every ten minutes."""
    return np.where((t // 600.0).astype(np.int64) % 2 == 0, 0.2, 0.6)


def _lengths(rng: np.random.Generator, mean: Floats) -> NDArray[np.int32]:
    """Draw lognormal lengths."""
    sigma = np.sqrt(np.log1p(_CV**2))
    drawn = mean * np.exp(rng.normal(-0.5 * sigma**2, sigma, mean.size))
    return np.clip(drawn, 1, 30_000).astype(np.int32)
