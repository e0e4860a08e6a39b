"""The strongest LP: all parameters of the fluid planner searched on validation days.

    .venv/bin/python experiments/lp_tuning.py --trials 150

A candidate runs eight scenarios at four loads, from less than they were made for to 2.2 times it,
where GPUs are scarce; its value is the mean of value-weighted attainment - 0.1 x cost over the
budget's price. Prints every improvement, and last the best candidates as policy texts. Optuna's TPE
searches; the first candidate is what shipped before.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import optuna
from lp_parameters import NAMES, VALIDATION_SEED, measure

LOADS = (0.7, 1.0, 1.6, 2.2)
SHIPPED = {
    "headroom": 0.25,
    "headroom_prefill": 0.25,
    "quantile": 0.95,
    "trend": 0.5,
    "hold_s": 600.0,
    "start_weight": 0.3,
    "stop_weight": 0.02,
    "stop_weight_decode": 0.02,
    "price_weight": 0.1,
    "round_up": 0.15,
    "interval_s": 10.0,
}

# The best of a search over the loads 1.0 and 1.6 only, rounded.
FIRST_SEARCH = SHIPPED | {
    "headroom": 0.45,
    "headroom_prefill": 0.45,
    "quantile": 0.8,
    "trend": 1.2,
    "start_weight": 0.05,
    "stop_weight": 0.1,
    "stop_weight_decode": 0.1,
    "round_up": 0.03,
}


def suggest(trial: optuna.Trial) -> str:
    """Return a candidate as a policy text."""
    values = {
        "headroom": trial.suggest_float("headroom", 0.0, 0.5),
        "headroom_prefill": trial.suggest_float("headroom_prefill", 0.0, 0.5),
        "quantile": trial.suggest_float("quantile", 0.6, 0.98),
        "trend": trial.suggest_float("trend", 0.0, 1.5),
        "hold_s": trial.suggest_float("hold_s", 60.0, 2400.0, log=True),
        "start_weight": trial.suggest_float("start_weight", 0.02, 1.0, log=True),
        "stop_weight": trial.suggest_float("stop_weight", 0.002, 0.5, log=True),
        "stop_weight_decode": trial.suggest_float("stop_weight_decode", 0.002, 0.5, log=True),
        "price_weight": trial.suggest_float("price_weight", 0.01, 0.15, log=True),
        "round_up": trial.suggest_float("round_up", 0.0, 0.6),
        "interval_s": trial.suggest_categorical("interval_s", [10.0, 20.0, 30.0, 60.0]),
    }
    return "lp:" + ",".join(f"{name}={round(value, 4)}" for name, value in values.items())


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=150)
    trials = parser.parse_args().trials
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, n_startup_trials=25)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(SHIPPED)
    study.enqueue_trial(FIRST_SEARCH)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for number in range(trials):
            trial = study.ask()
            text = suggest(trial)
            jobs = [
                (name, text, VALIDATION_SEED + k, load)
                for k, load in enumerate(LOADS)
                for name in NAMES
            ]
            rows = np.array(list(pool.map(measure, jobs)))
            value, cost = float(rows[:, 0].mean()), float(rows[:, 1].mean())
            trial.set_user_attr("text", f"{text}  value {value:.4f} cost {cost:.3f}")
            study.tell(trial, value - 0.1 * cost)
            if study.best_trial.number == trial.number:
                print(f"{number:4} {study.best_value:.4f}  {trial.user_attrs['text']}", flush=True)
    for best in sorted(study.trials, key=lambda t: -(t.value or 0.0))[:5]:
        print(f"{best.value:.4f}  {best.user_attrs['text']}")


if __name__ == "__main__":
    main()
