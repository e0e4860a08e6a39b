"""A load run for people: tables in the terminal, a row per request on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from hrl_planner.load import LoadResult, Summary

# Metrics that a simulated run has as well are shown as there.
_SHARED = (
    "offered", "attainment", "ttft_attainment", "itl_attainment", "goodput_rps",
    "ttft_p50_ms", "ttft_p95_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms",
    "prefix_hit_rate", "rejected", "unfinished",
)  # fmt: skip
_OWN = {
    "failed": ("Failed", "", 0),
    "stall_p99_ms": ("Longest gap p99", "ms", 1),
    "requests_rps": ("Finished", "req/s", 2),
    "tokens_per_s": ("Output", "tokens/s", 0),
}
_SHOWN_ERROR_CHARS = 200
_SHOWN_WORKERS = 32


def print_summary(summary: Summary) -> None:
    """Print the table by class, then what else there is to say."""
    from rich.console import Console

    console = Console()
    console.print(_class_table(summary))
    outcomes = ", ".join(f"{count:,} {kind}" for kind, count in summary.outcomes.items())
    console.print(f"\noutcomes: {outcomes}", highlight=False)
    for kind, detail in summary.errors.items():
        console.print(f"  {kind}: {detail[:_SHOWN_ERROR_CHARS]}", markup=False, highlight=False)
    if summary.workers:
        shown = list(summary.workers.items())[:_SHOWN_WORKERS]
        workers = ", ".join(f"{name} {count:,}" for name, count in shown)
        console.print(f"workers: {workers}", markup=False, highlight=False)
    client = summary.client
    console.print(
        f"client: {client.cpu_share:.0%} of a core, p99 {client.lag_ms:.1f} ms late with sending, "
        f"{client.stall_ms:.1f} ms with reading; {summary.wall_s:.1f} s",
        highlight=False,
    )
    for warning in summary.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)


def _class_table(summary: Summary) -> Table:
    from rich.table import Table

    from agents.evaluate.metrics import METRICS, Metric

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("by class")
    for row in summary.rows:
        table.add_column(str(row["class"]), justify="right")
    own = {
        name: Metric(name, label, unit, 0, digits, True, "")
        for name, (label, unit, digits) in _OWN.items()
    }
    for name in (*_SHARED, *_OWN):
        metric = own.get(name) or METRICS[name]
        table.add_row(metric.label, *(metric.format(float(row[name])) for row in summary.rows))
    return table


def write_requests(result: LoadResult, path: Path) -> None:
    """Write a row per request, as the ending of the name says: .parquet or .jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        result.write_jsonl(path)
        return
    import pandas as pd

    pd.DataFrame(result.columns()).to_parquet(path, index=False)
