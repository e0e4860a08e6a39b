"""`hrl-planner router`: the OpenAI-compatible address in front of all pools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def router(
    config: Annotated[Path, typer.Option(help="Router config, a YAML file: docs/router.md.")],
    envoy: Annotated[
        bool, typer.Option(help="Run Envoy too; without it, only the endpoint picker.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Read the config, say what it means, and end.")
    ] = False,
) -> None:
    """Route requests to the worker that keeps their SLO and knows their prompt.

    Envoy carries requests and tokens; the endpoint picker behind it chooses. SIGTERM drains: no new
    connections, answers under way finish.

    [bold]Example[/bold]

      hrl-planner router --config experiments/router/small.yaml
    """
    from hrl_planner.router.config import RouterConfig

    found = RouterConfig.load(config)
    if check:
        import yaml

        typer.echo(yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False).rstrip())
        return
    found.check_workers()
    from hrl_planner.router.run import run_picker, run_router

    raise typer.Exit(run_router(config, found) if envoy else run_picker(found))
