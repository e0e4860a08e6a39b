"""Policies on the cells of an experiment, on validation days: budgets scarce and ample.

    .venv/bin/python experiments/lp_cells.py lp lp:headroom_prefill=0.3,quantile=0.7 --seeds 3

prints value-weighted attainment per cell and policy, in percent, then its mean and the mean paired
difference to the first policy with its standard error over runs. Seeds begin at `--first`; those
below 100 are test days, and are refused.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from agents.evaluate.cell import run_case
from agents.experiment.cells import Cell, find_cells
from agents.experiment.config import ExperimentConfig
from agents.experiment.need import find_needs
from envs.score import value_share

FIRST_VALIDATION_DAY = 100

Job = tuple[Cell, float, int, tuple[str, ...], float]


def measure(job: Job) -> list[float]:
    """Return what each policy attains on one day of one cell, in percent."""
    cell, need, seed, policies, grace_s = job
    case = cell.case(need, seed)
    runs = (run_case(case, policy, seed, grace_s=grace_s) for policy in policies)
    return [100.0 * value_share(run.result) for run in runs]


def main() -> None:
    """Run every policy on every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", nargs="+")
    parser.add_argument("--config", type=Path, default=Path("experiments/experiment/main.yaml"))
    parser.add_argument("--first", type=int, default=FIRST_VALIDATION_DAY)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.first < FIRST_VALIDATION_DAY:
        parser.error(f"--first {arguments.first}: days before {FIRST_VALIDATION_DAY} are for tests")
    config = ExperimentConfig.load(arguments.config)
    cells = find_cells(config, None)
    needs = find_needs(cells, Path(config.results) / "needs.json", compute=True)
    cells = [cell for cell in cells if cell.label in needs]
    jobs = [
        (cell, needs[cell.label], arguments.first + k, tuple(arguments.policy), config.grace_s)
        for cell in cells
        for k in range(arguments.seeds)
    ]
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        rows = np.array(list(pool.map(measure, jobs)))
    table = rows.reshape(len(cells), arguments.seeds, -1)
    for number, policy in enumerate(arguments.policy):
        gains = rows[:, number] - rows[:, 0]
        error = gains.std(ddof=1) / np.sqrt(gains.size)
        print(
            f"{number}  {rows[:, number].mean():.2f}  {gains.mean():+.2f} ({error:.2f})  {policy}"
        )
    print(f"{'':30}" + "".join(f"{number:>7}" for number in range(len(arguments.policy))))
    for cell, line in zip(cells, table.mean(axis=1), strict=True):
        print(f"{cell.label:30}" + "".join(f"{value:7.1f}" for value in line))


if __name__ == "__main__":
    main()
