"""`hrl-planner checkpoint`: look into trained planners."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look into trained planners.")


@app.command()
def show(
    path: Annotated[str, typer.Argument(help="a checkpoint's folder, or the spec one ships for")],
    features: Annotated[bool, typer.Option(help="list every feature's training range")] = False,
) -> None:
    """Say what a checkpoint is, after checking that it loads here."""
    from rich.console import Console
    from rich.table import Table

    from hrl_planner.planner.checkpoint import find, load

    checkpoint = load(find(path))
    manifest = checkpoint.manifest
    table = Table(show_header=False, box=None)
    spec = manifest.spec
    weights = checkpoint.allocator.net.size
    rows = {
        "name": manifest.name,
        "folder": str(checkpoint.path),
        "format": str(manifest.format_version),
        "feature schema": manifest.feature_schema.hash,
        "trained on": f"{spec.get('name')}, {len(spec.get('pools', ()))} pools",
        "corrects": f"{manifest.prior}, {manifest.head} head"
        + (f", at most {manifest.moves} a decision" if manifest.moves else ""),
        "allocator": f"{weights:,} numbers, {manifest.allocator.hidden} wide"
        + (", attention" if manifest.allocator.attention else ""),
        "scaler": "the rule"
        if checkpoint.scaler is None or manifest.scaler is None
        else f"{checkpoint.scaler.net.size:,} numbers, {manifest.scaler.hidden} wide",
        "revision": manifest.git_revision,
        "seed": str(manifest.training.get("config", {}).get("seed")),
        "made with": ", ".join(f"{k} {v}" for k, v in manifest.versions.items()),
        **{name: f"{value:.4f}" for name, value in manifest.metrics.items()},
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    if features:
        ranges = Table("feature", "lowest", "highest", title="what training saw")
        for what, entries in (("pool", manifest.ranges.pools), ("class", manifest.ranges.classes)):
            for name, (low, high) in entries.items():
                ranges.add_row(f"{what} {name}", f"{low:.3f}", f"{high:.3f}")
        console.print(ranges)
