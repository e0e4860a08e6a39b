"""Every figure of `make bench`: the simulator, the environments, decisions, a second start.

Prints tables and, last, one JSON object on one line. docs/simulator.md says what is measured where;
run it on an otherwise idle machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from benchmarks import bench_decision, bench_env, bench_sim

_START = [
    *(sys.executable, "-m", "hrl_planner.cli", "simulate"),
    *("--spec", "small", "--scenario", "steady-no-flap", "--policy", "static", "--until", "60"),
]


def second_start_s() -> float:
    """Return the median wall time of a short simulation from a fresh process, code cached."""
    times = []
    for _ in range(bench_sim.RUNS + 1):
        start = time.perf_counter()
        subprocess.run(_START, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print."""
    figures = bench_sim.measure()
    figures |= bench_env.measure()
    figures |= bench_decision.main()
    figures["second_start_s"] = round(second_start_s(), 3)
    print(f"second start of the command line, one minute simulated: {figures['second_start_s']} s")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
