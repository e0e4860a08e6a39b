"""Time of one decision of a learned allocator for 16 pools, medians, in microseconds.

    python -m benchmarks.bench_decision

`network` is encoding, forward pass, residual and projection; `lp` the fluid LP whose plan it
corrects. A second process without numba shows what a planner image that has numpy alone needs.
Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

REPEATS = 200
N_POOLS = 16

_WITHOUT_NUMBA = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numba":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import json
from benchmarks.bench_decision import measure
print(json.dumps(measure(30)))
"""


def _median_us(decide: Callable[[], object], repeats: int) -> float:
    decide()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        decide()
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


def measure(repeats: int = REPEATS) -> dict[str, float]:
    """Return the medians of both figures."""
    from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, ClusterObservation
    from hrl_planner.planner import PlanContext
    from hrl_planner.planner.checkpoint import load, shipped
    from hrl_planner.planner.learned import LearnedAllocator
    from hrl_planner.planner.registry import make_policy
    from hrl_planner.spec import ClusterSpec

    large = ClusterSpec.load("large")
    more = tuple(
        pool.model_copy(update={"name": f"{pool.name}-2", "min_replicas": 0, "initial_replicas": 0})
        for pool in large.pools[: N_POOLS - len(large.pools)]
    )
    spec = large.replace(pools=large.pools + more)
    rng = np.random.default_rng(0)
    seen = ClusterObservation(
        0.0,
        rng.uniform(1.0, 3.0, (len(spec.pools), len(POOL_FIELDS))),
        rng.uniform(1.0, 3.0, (len(spec.slo_classes), len(CLASS_FIELDS))),
    )
    checkpoint = load(shipped("reference"))
    manifest = checkpoint.manifest
    learned = LearnedAllocator(
        checkpoint.allocator, make_policy(manifest.prior), manifest.head, manifest.moves
    )
    learned.reset(PlanContext(spec))
    plan = learned.prior.decide(seen)
    return {
        "network_us": _median_us(
            lambda: learned.correct(seen, plan, learned.vector(seen, plan)), repeats
        ),
        "lp_us": _median_us(lambda: learned.prior.decide(seen), repeats),
    }


def main() -> dict[str, float]:
    """Measure with and without numba and print a table."""
    figures = measure()
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_NUMBA], capture_output=True, text=True, check=True
    )
    plain = json.loads(done.stdout.splitlines()[-1])
    figures |= {f"{name.removesuffix('_us')}_numpy_us": value for name, value in plain.items()}
    for name, value in figures.items():
        print(f"{name:<24} {value:10.1f}")
    return {name: round(value, 1) for name, value in figures.items()}


if __name__ == "__main__":
    print(json.dumps(main()))
