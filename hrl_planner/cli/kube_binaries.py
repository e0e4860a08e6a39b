"""`hrl-planner kube-binaries`: the programs that a cluster on this machine is made of."""

from __future__ import annotations

from typing import Annotated

import typer


def kube_binaries(
    download: Annotated[
        bool, typer.Option("--download", help="Fetch them from the internet where missing.")
    ] = False,
    build: Annotated[
        bool, typer.Option("--build", help="Build them from Debian's sources where missing.")
    ] = False,
) -> None:
    """Show where etcd and the servers of Kubernetes are, for a cluster on this machine.

    Looks in [bold]KUBEBUILDER_ASSETS[/bold], then in the cache. With --download and --build it goes
    on to the internet, and then to a build of 3 to 10 minutes; both fill the cache.

    [bold]Examples[/bold]

      hrl-planner kube-binaries

      hrl-planner kube-binaries --build
    """
    from hrl_planner.localcluster.binaries import PROGRAMS, obtain_binaries

    found = obtain_binaries(
        allow_download=download, allow_build=build, say=lambda line: typer.echo(line, err=True)
    )
    version = ".".join(map(str, found.version()))
    typer.echo(f"Kubernetes {version}, {found.origin}")
    for program in PROGRAMS:
        typer.echo(found.path(program))
