"""Speed and memory of the simulator on one core.

    python -m benchmarks.bench_sim

Every figure is the median of five runs after one that is not counted. The clusters are 8 prefill
and 32 decode workers (Qwen3-32B on H200 TP4), loaded to where requests meet in batches but queues
stay short; `plain` routes to the least loaded worker, `kv` by prefix overlap and predicted latency
on conversations fitted to the Mooncake trace.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from envs.simulation import Simulation
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import curves, generators, prefixes
from hrl_planner.workload.lengths import Lengths
from hrl_planner.workload.trace import Trace

PROFILE = "qwen3_32b__h200_sxm__tp4__vllm"
RUNS = 5
PLAIN_REQUESTS = 300_000
PLAIN_RPS_PER_DECODE_WORKER = 5.0
MEMORY_REQUESTS = 1_000_000


def cluster(n_prefill: int, n_decode: int, router: str) -> ClusterSpec:
    """Return a cluster of fixed size."""

    def pool(role: str, replicas: int) -> dict[str, object]:
        return {
            "name": role,
            "role": role,
            "gpu_type": "H200",
            "gpus_per_replica": 4,
            "profile": PROFILE,
            "max_replicas": replicas,
            "initial_replicas": replicas,
            "startup": {"mean_s": 60},
            "price_per_gpu_hour": 3.59,
        }

    return ClusterSpec.from_dict(
        {
            "name": f"{n_prefill}P{n_decode}D",
            "model": "Qwen/Qwen3-32B",
            "pools": [pool("prefill", n_prefill), pool("decode", n_decode)],
            "budget": {"gpus": {"H200": 4 * (n_prefill + n_decode)}},
            "slo_classes": [
                {"name": "all", "ttft_ms": 2000, "itl_ms": 30, "assign": {"share": 1.0}}
            ],
            "router": {"kind": router},
        }
    )


def plain_trace(n_requests: int, rps: float) -> Trace:
    """Return independent requests of about 512 prompt and 200 output tokens."""
    curve = curves.constant(rps, n_requests / rps, isl=512, osl=200)
    return generators.independent_requests(
        curve,
        seed=0,
        isl=Lengths(mean=512, cv=0.8, high=16_384),
        osl=Lengths(mean=200, cv=0.8, high=4_096),
    )


def kv_trace() -> Trace:
    """Return conversations with shared prefixes as in the Mooncake trace (12k prompt tokens)."""
    curve = curves.constant(6.0, 14_400.0, isl=12_000, osl=343)
    return generators.sessions(curve, prefixes.CONVERSATION, seed=0)


def rate(spec: ClusterSpec, trace: Trace) -> float:
    """Return simulated requests per second of one run."""
    simulation = Simulation(spec, trace)
    simulation.advance_to(0.0)
    start = time.perf_counter()
    simulation.finish()
    return len(trace) / (time.perf_counter() - start)


def median_rate(spec: ClusterSpec, trace: Trace) -> float:
    """Return the median of the runs, the first one not counted."""
    return statistics.median([rate(spec, trace) for _ in range(RUNS + 1)][1:])


def scaling(rps_per_worker: float) -> list[tuple[int, float]]:
    """Return (workers, microseconds per request) for clusters that grow with their load."""
    rows = []
    for factor in (1, 2, 4, 8):
        spec = cluster(8 * factor, 32 * factor, "least_loaded")
        trace = plain_trace(200_000, rps_per_worker * 32 * factor)
        rows.append((40 * factor, 1e6 / median_rate(spec, trace)))
    return rows


def peak_of_a_million_mb() -> float:
    """Return the peak memory of a process that simulates a million requests, in MB."""
    code = "from benchmarks.bench_sim import simulate_a_million; simulate_a_million()"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def simulate_a_million() -> None:
    """Simulate a million requests and print this process's peak memory in MB."""
    trace = plain_trace(MEMORY_REQUESTS, PLAIN_RPS_PER_DECODE_WORKER * 32)
    simulation = Simulation(cluster(8, 32, "least_loaded"), trace)
    simulation.finish()
    if not np.all(simulation.result().status == 1):
        raise SystemExit("not every request finished")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure() -> dict[str, float]:
    """Run everything, print a table, return the figures."""
    plain = plain_trace(PLAIN_REQUESTS, PLAIN_RPS_PER_DECODE_WORKER * 32)
    kv = kv_trace()
    figures = {
        "sim_plain_rps": median_rate(cluster(8, 32, "least_loaded"), plain),
        "sim_kv_rps": median_rate(cluster(8, 32, "kv_slo"), kv),
        "sim_1m_requests_peak_mb": peak_of_a_million_mb(),
    }
    print(
        f"plain   8P+32D  {len(plain):>8} requests  {figures['sim_plain_rps']:>12,.0f} requests/s"
    )
    print(f"kv      8P+32D  {len(kv):>8} requests  {figures['sim_kv_rps']:>12,.0f} requests/s")
    print(f"peak    {MEMORY_REQUESTS:,} requests  {figures['sim_1m_requests_peak_mb']:,.0f} MB")
    for workers, micros in scaling(PLAIN_RPS_PER_DECODE_WORKER):
        print(f"workers {workers:>5}  {micros:.2f} us per request")
        figures[f"us_per_request_{workers}_workers"] = round(micros, 3)
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    print(json.dumps(measure()))
