"""A profile as a person sees it: tables in the terminal, a plot in a PNG or HTML file.

The plots need matplotlib (PNG) or plotly (HTML), which the extra `report` brings; they are imported
only when a plot is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hrl_planner.errors import ProfileError
from hrl_planner.profile import Floats, WorkerProfile

_TITLES = ("prefill, one prompt: ms by new tokens", "decode: ms per token by running requests")


def print_profile(profile: WorkerProfile, console: Console | None = None) -> None:
    """Print what the worker is and both of its latency surfaces."""
    console = console or Console()
    console.print(
        f"[bold]{profile.name}[/bold]: {profile.model} on {profile.tp} x {profile.system}"
    )
    console.print(f"engine {profile.backend}, {profile.tdp_w_per_gpu:g} W per GPU")
    if profile.fits:
        console.print(
            f"KV cache {profile.kv_capacity_tokens:,} tokens, "
            f"{profile.kv_bytes_per_token:,} bytes per token and GPU"
        )
    else:
        console.print("[red]the weights do not fit: no KV cache; a spec will refuse this[/red]")
    for i, batch in enumerate(profile.prefill_batch):
        if i in (0, len(profile.prefill_batch) - 1):
            console.print(
                _grid(
                    f"prefill step, ms; {batch:g} request{'s' if batch > 1 else ''} in the batch",
                    "cached",
                    profile.prefill_prefix_tokens,
                    profile.prefill_new_tokens,
                    profile.prefill_ms[i].T,
                )
            )
    console.print(
        _grid(
            "decode step, ms",
            "running",
            profile.decode_batch,
            profile.decode_context_tokens,
            profile.decode_ms,
        )
    )
    console.print(f"[dim]source: {profile.source or 'not stated'}[/dim]")


def write_plot(profile: WorkerProfile, path: Path) -> None:
    """Write both surfaces as curves, to `.png` or `.html` by the ending of `path`."""
    writers = {".png": _write_png, ".html": _write_html}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise ProfileError(f"plot {path}: the ending must be .png or .html")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer(profile, path)


def _grid(title: str, row_name: str, rows: Floats, columns: Floats, values: Floats) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column(row_name, justify="right", style="bold")
    for column in columns:
        table.add_column(f"{column:,.0f}", justify="right")
    for row, line in zip(rows, values, strict=True):
        table.add_row(f"{row:,.0f}", *(f"{ms:.3g}" if ms < 100 else f"{ms:.0f}" for ms in line))
    return table


def _curves(profile: WorkerProfile) -> list[list[tuple[str, Floats, Floats]]]:
    """Return the curves of the two plots as (label, x, y)."""
    prefill = [
        (f"{prefix:,.0f} cached", profile.prefill_new_tokens, profile.prefill_ms[0, :, k])
        for k, prefix in enumerate(profile.prefill_prefix_tokens)
    ]
    decode = [
        (f"context {context:,.0f}", profile.decode_batch, profile.decode_ms[:, k])
        for k, context in enumerate(profile.decode_context_tokens)
    ]
    return [prefill, decode]


def _write_png(profile: WorkerProfile, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it keeps global state and may look for a display.
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{profile.model} on {profile.tp} x {profile.system} ({profile.backend})")
    for axes, title, curves in zip(figure.subplots(1, 2), _TITLES, _curves(profile), strict=True):
        for label, x, y in curves:
            axes.plot(x, y, marker="o", markersize=3, linewidth=1.2, label=label)
        axes.set(title=title, xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=130)


def _write_html(profile: WorkerProfile, path: Path) -> None:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure: Any = make_subplots(rows=1, cols=2, subplot_titles=_TITLES)
    for column, curves in enumerate(_curves(profile), start=1):
        for label, x, y in curves:
            curve = go.Scatter(x=x, y=y, name=label, mode="lines+markers", legendgroup=str(column))
            figure.add_trace(curve, row=1, col=column)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    figure.update_layout(
        title=f"{profile.model} on {profile.tp} x {profile.system} ({profile.backend})",
        template="plotly_white",
    )
    figure.write_html(path, include_plotlyjs=True)
