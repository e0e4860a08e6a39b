"""The whole of an evaluation in one call: check, run what is missing, write tables and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.evaluate.config import EvaluationConfig
from agents.evaluate.runner import Failure, OnProgress, run_cells
from agents.evaluate.store import Store
from agents.evaluate.summary import Results, collect, write_tables


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation left behind.

    Attributes:
        results: all finished runs; None when every run failed.
        failures: runs that failed.
        report: path of the report; None when every run failed.
    """

    results: Results | None
    failures: Sequence[Failure]
    report: Path | None


def evaluate(
    config: EvaluationConfig,
    folder: Path,
    *,
    workers: int,
    on_progress: OnProgress,
    command: str,
    force: bool = False,
) -> Evaluation:
    """Run every cell that is missing, then write tables and report.

    Args:
        config: what to compare.
        folder: where cells, tables and report go; finished cells found there are used.
        workers: parallel processes.
        on_progress: called several times a second.
        command: shown in the report so that it can be made again.
        force: discard cells of another configuration instead of refusing.

    Raises:
        HrlPlannerError: the configuration or the folder is at fault.
        KeyboardInterrupt: Ctrl-C; finished cells are kept.
    """
    from agents.evaluate.cell import check
    from agents.evaluate.report import write_report

    check(config)
    store = Store(folder)
    store.open(config, force=force)
    failures = run_cells(config, store, workers=workers, on_progress=on_progress)
    finished = [store.read(cell) for cell in config.cells() if store.has(cell)]
    if not finished:
        return Evaluation(None, failures, None)
    results = collect(
        finished,
        config.policies,
        tuple(workload.label for workload in config.workloads),
        tuple(slo_class.name for slo_class in config.spec.slo_classes),
    )
    write_tables(results, folder)
    report = folder / "report.html"
    write_report(report, config, results, failures, command)
    return Evaluation(results, failures, report)
