"""Policies on the cells of an experiment, on validation days: budgets scarce and ample.

    .venv/bin/python experiments/lp_cells.py lp lp:headroom=0.3,headroom_prefill=0.15 --seeds 3

prints per policy value-weighted attainment in percent, the mean paired difference to the first
policy with its standard error over runs, and cost over that of the first; then attainment per cell.
Seeds begin at `--first`; those below 100 are test days, and are refused.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from agents.days import FIRST_VALIDATION_DAY
from agents.evaluate.cell import run_case
from agents.experiment.cells import Cell, find_cells
from agents.experiment.config import ExperimentConfig
from agents.experiment.need import find_needs
from envs.score import value_share

Job = tuple[Cell, float, int, tuple[str, ...], float]


def jobs_of(
    config_path: Path, days: Sequence[int], policies: Sequence[str]
) -> tuple[list[Cell], list[Job]]:
    """Return the cells of an experiment and, cell by cell, what to measure.

    Raises:
        SystemExit: a day is for tests.
    """
    if min(days) < FIRST_VALIDATION_DAY:
        raise SystemExit(f"day {min(days)}: days before {FIRST_VALIDATION_DAY} are for tests")
    config = ExperimentConfig.load(config_path)
    cells = find_cells(config, None)
    needs = find_needs(cells, Path(config.results) / "needs.json", compute=True)
    cells = [cell for cell in cells if cell.label in needs]
    return cells, [
        (cell, needs[cell.label], day, tuple(policies), config.grace_s)
        for cell in cells
        for day in days
    ]


def measure(job: Job) -> list[tuple[float, float]]:
    """Return what each policy attains on one day of one cell, in percent, and its cost in USD."""
    cell, need, seed, policies, grace_s = job
    case = cell.case(need, seed)
    found = []
    for policy in policies:
        result = run_case(case, policy, seed, grace_s=grace_s).result
        price = np.array([pool.price_per_gpu_hour for pool in result.spec.pools])
        found.append((100.0 * value_share(result), float(result.gpu_seconds @ price) / 3600.0))
    return found


def main() -> None:
    """Run every policy on every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", nargs="+")
    parser.add_argument("--config", type=Path, default=Path("experiments/experiment/main.yaml"))
    parser.add_argument("--first", type=int, default=FIRST_VALIDATION_DAY)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    days = range(arguments.first, arguments.first + arguments.seeds)
    cells, jobs = jobs_of(arguments.config, days, arguments.policy)
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        rows = np.array(list(pool.map(measure, jobs)))
    attained, cost = rows[..., 0], rows[..., 1].sum(axis=0)
    for number, policy in enumerate(arguments.policy):
        gains = attained[:, number] - attained[:, 0]
        error = gains.std(ddof=1) / np.sqrt(gains.size)
        print(
            f"{number}  {attained[:, number].mean():.2f}  {gains.mean():+.2f} ({error:.2f})"
            f"  {cost[number] / cost[0]:.3f}  {policy}"
        )
    print(f"{'':30}" + "".join(f"{number:>7}" for number in range(len(arguments.policy))))
    table = attained.reshape(len(cells), arguments.seeds, -1).mean(axis=1)
    for cell, line in zip(cells, table, strict=True):
        print(f"{cell.label:30}" + "".join(f"{value:7.1f}" for value in line))


if __name__ == "__main__":
    main()
