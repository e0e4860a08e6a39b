"""Speed of the environments on the reference spec at 20 requests/s, median of 5.

    python -m benchmarks.bench_env

One environment on one core, then the batched one on one thread, and on two with as many processes
for the plans. Prints a table and, last, one line of JSON. The static prior shows what a step costs
without the LP.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# Idle threads must not spin on the core another process plans on; read when numba starts them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numba
import numpy as np

from envs.global_allocator import GlobalAllocatorEnv, GlobalLevel
from envs.vec_env import ClusterVecEnv
from hrl_planner.workload.curves import constant
from hrl_planner.workload.generators import independent_requests

REPEATS, STEPS, BATCH = 5, 20, 16


def _median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(REPEATS))


def _single(options: dict[str, Any], prior: str) -> float:
    env = GlobalAllocatorEnv(prior, **options)
    action = np.zeros(env.action_space.shape or (1,), np.float32)

    def measure() -> float:
        env.reset(seed=0)
        began = time.perf_counter()
        for _ in range(STEPS):
            env.step(action)
        return STEPS / (time.perf_counter() - began)

    return _median(measure)


def _batched(options: dict[str, Any], prior: str, threads: int, processes: int = 0) -> float:
    numba.set_num_threads(threads)
    env = ClusterVecEnv(GlobalLevel(prior), BATCH, prior_processes=processes, **options)
    actions = np.zeros((BATCH, *(env.action_space.shape or (1,))), np.float32)

    def measure() -> float:
        env.reset()
        began = time.perf_counter()
        for _ in range(STEPS):
            env.step(actions)
        return STEPS * BATCH / (time.perf_counter() - began)

    return _median(measure)


def measure() -> dict[str, float]:
    """Run everything, print a table, return the figures."""
    duration_s = 60.0 * (STEPS + 1)
    trace = independent_requests(constant(20.0, duration_s=duration_s), seed=0)
    options: dict[str, Any] = {"spec": "reference", "trace": trace}
    cores = min(2, numba.config.NUMBA_NUM_THREADS)
    figures = {
        "env_steps_per_s": _single(options, "lp"),
        "env_steps_per_s_static_prior": _single(options, "static:split=initial"),
        "vecenv_steps_per_s_1": _batched(options, "lp", 1),
        f"vecenv_steps_per_s_{cores}": _batched(options, "lp", cores, cores),
        "vecenv_static_prior_1": _batched(options, "static:split=initial", 1),
        f"vecenv_static_prior_{cores}": _batched(options, "static:split=initial", cores),
    }
    figures["vecenv_speedup"] = (
        figures[f"vecenv_steps_per_s_{cores}"] / figures["vecenv_steps_per_s_1"]
    )
    for name, value in figures.items():
        print(f"{name:<32} {value:10.2f}")
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    print(json.dumps(measure()))
