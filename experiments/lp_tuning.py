"""The strongest LP: parameters of the fluid planner searched on the experiment's validation days.

    .venv/bin/python experiments/lp_tuning.py --minutes 15

A candidate plays some validation days of every cell; its value is the mean of value-weighted
attainment, in points, less `--per-dollar` points for each dollar spent. The defaults come first,
Optuna's TPE goes on from there. Prints every improvement, and last the best candidates as policy
texts: compare those on other days with `lp_cells.py` before believing them.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from lp_cells import jobs_of, measure
from optuna.trial import BaseTrial, FixedTrial

from agents.days import FIRST_VALIDATION_DAY
from hrl_planner.planner.lp import FluidPlanner

RANGES = {  # lowest, highest, whether on a log scale
    "headroom": (0.2, 0.6, False),
    "headroom_prefill": (0.05, 0.5, False),
    "quantile": (0.5, 0.9, False),
    "trend": (0.8, 2.5, False),
    "hold_s": (200.0, 1800.0, True),
    "start_weight": (0.003, 0.3, True),
    "stop_weight": (0.02, 2.0, True),
    "stop_weight_decode": (0.08, 3.0, True),
    "spare_s": (20.0, 600.0, True),
    "round_up": (0.0, 0.3, False),
}


def suggest(trial: BaseTrial) -> str:
    """Return a candidate as a policy text."""
    values = {
        name: trial.suggest_float(name, low, high, log=log)
        for name, (low, high, log) in RANGES.items()
    }
    return "lp:" + ",".join(f"{name}={value:.4g}" for name, value in values.items())


def defaults() -> dict[str, float]:
    """Return what the planner ships with."""
    known = inspect.signature(FluidPlanner).parameters
    return {name: known[name].default for name in RANGES}


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("experiments/experiment/main.yaml"))
    parser.add_argument("--first", type=int, default=FIRST_VALIDATION_DAY)
    parser.add_argument("--seeds", type=int, default=3, help="days of every cell")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--per-dollar", type=float, default=0.2)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    days = range(arguments.first, arguments.first + arguments.seeds)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, n_startup_trials=20)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(defaults())
    jobs_with = partial(jobs_of, arguments.config, days)
    until_s = time.monotonic() + 60.0 * arguments.minutes
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        while time.monotonic() < until_s:
            trial = study.ask()
            text = suggest(trial)
            rows = np.array(list(pool.map(measure, jobs_with([text])[1])))[:, 0]
            attained, cost = rows.mean(axis=0)
            study.tell(trial, float(attained - arguments.per_dollar * cost))
            if study.best_trial.number == trial.number:
                print(f"{trial.number:4} {attained:.2f} % for ${cost:.2f}  {text}", flush=True)
    for best in sorted(study.trials, key=lambda t: -(t.value or 0.0))[:5]:
        print(f"{best.value:.2f}  {suggest(FixedTrial(best.params))}")


if __name__ == "__main__":
    main()
