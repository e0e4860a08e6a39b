"""`hrl-planner crds`: the custom resource definitions, generated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def crds(
    out: Annotated[
        Path | None,
        typer.Option(help="Write one file each to this folder.", file_okay=False),
    ] = None,
) -> None:
    """Print the definitions of ServingGroup and WorkerPool.

    [bold]Examples[/bold]

      hrl-planner crds | kubectl apply -f -

      hrl-planner crds --out deploy/crds
    """
    from hrl_planner.kube.crds import definitions, to_yaml

    for name, definition in definitions().items():
        if out is None:
            typer.echo("---\n" + to_yaml(definition), nl=False)
            continue
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(to_yaml(definition), encoding="utf-8")
        typer.echo(f"wrote {out / name}")
