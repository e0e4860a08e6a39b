"""Experiments for tests: invented runs, runs of all, and the command."""

from pathlib import Path

from typer.testing import CliRunner

from agents.evaluate.runner import run_cells
from agents.experiment import Results, prepare
from agents.experiment.plan import KEPT
from agents.experiment.store import RunStore
from hrl_planner.cli import app

SMOKE = Path(__file__).parents[2] / "experiments" / "experiment" / "smoke.yaml"


def invent(config, value, entries=None):
    """Write runs that were never simulated: `value(entry, seed, cell, trace)` per run."""
    experiment = prepare(config)
    store = RunStore(config.results)
    for run in experiment.cells():
        if entries is not None and run.entry not in entries:
            continue
        found = value(run.entry, run.training_seed, run.cell.label, run.trace)
        if found is None:
            continue
        attained, hours = found if isinstance(found, tuple) else (found, 1.0)
        line = dict.fromkeys(KEPT, 0.0) | {
            "value_attainment": attained,
            "gpu_hours": hours,
            "cost": 2.0 * hours,
        }
        line |= {"cell": run.cell.label, "seed": run.training_seed, "trace": run.trace}
        store.write(run, line | {"key": run.key, "code": experiment.code, "wall_s": 1.0})
    return Results(experiment, store)


def run_all(config, **options):
    experiment = prepare(config, **options)
    store = RunStore(config.results)
    seen = []
    failures = run_cells(
        experiment, store, workers=1, on_progress=lambda p: seen.append((p.skipped, p.done))
    )
    return Results(experiment, store), failures, seen


def cli(*arguments):
    done = CliRunner().invoke(app, ["experiment", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done
