"""Which parameters the fluid planner ships with: policies on validation seeds of eight scenarios.

    .venv/bin/python experiments/lp_parameters.py lp lp:hold_s=300 lp:hold_s=1200 lp:headroom=0.4

prints, per scenario and policy, value-weighted attainment, cost over the price of the whole budget,
and replicas moved; last the means with value - 0.1 x cost. Seeds begin at 100, so that comparisons
made with `hrl-planner evaluate` (seeds from 0) are not the data that parameters were chosen on.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from agents.evaluate.cell import run_case
from envs.score import cost_share, value_share
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.scenarios import SCENARIOS

SPEC = "reference"
VALIDATION_SEED = 100
GRACE_S = 300.0
NAMES = (
    "diurnal-mix",
    "prefill-starved-sinusoid",
    "priority-reclaim",
    "cold-start-ramp",
    "pd-ratio-shift",
    "burst-slow-starters",
    "steady-no-flap",
    "zero-traffic",
)


def measure(job: tuple[str, str, int, float]) -> tuple[float, float, int]:
    """Return value-weighted attainment, share of the budget's price, and replicas moved."""
    scenario, policy, seed, load = job
    spec = ClusterSpec.load(SPEC)
    case = SCENARIOS[scenario].build(spec, seed, None, load)
    result = run_case(case, policy, seed, grace_s=GRACE_S).result
    moved = int(result.scale_ups.sum() + result.scale_downs.sum())
    return value_share(result), cost_share(result), moved


def main() -> None:
    """Run every policy on every scenario and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--load", type=float, default=1.0, help="factor on all rates")
    arguments = parser.parse_args()
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + arguments.seeds)
    jobs = [
        (name, policy, seed, arguments.load)
        for name in NAMES
        for policy in arguments.policy
        for seed in seeds
    ]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        rows = np.array(list(pool.map(measure, jobs)))
    table = rows.reshape(len(NAMES), len(arguments.policy), arguments.seeds, 3).mean(axis=2)
    print(f"{'':26}" + "".join(f"{policy[-24:]:>26}" for policy in arguments.policy))
    for name, line in zip(NAMES, table, strict=True):
        print(f"{name:26}" + "".join(f"{v:14.3f}{c:6.2f}{n:6.0f}" for v, c, n in line))
    means = table.mean(axis=0)
    print(f"{'mean':26}" + "".join(f"{v:14.3f}{c:6.2f}{v - 0.1 * c:6.3f}" for v, c, _ in means))


if __name__ == "__main__":
    main()
