"""`hrl-planner mock-cluster`: mock engines for every worker of a spec, and a workers file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def mock_cluster(
    workers_file: Annotated[
        Path, typer.Option(help="Where to write what a router's file discovery reads.")
    ],
    spec: Annotated[
        str, typer.Option(help="Cluster: a .yaml file, or small, reference, large.")
    ] = "small",
    replicas: Annotated[
        list[str] | None,
        typer.Option(
            help=r"POOL=NUMBER, may be repeated. \[default: the spec's initial replicas]",
            show_default=False,
        ),
    ] = None,
    speed: Annotated[float, typer.Option(help="Divides all times of the engines.")] = 1.0,
    events: Annotated[bool, typer.Option(help="Publish KV events.")] = True,
    engine: Annotated[
        Literal["vllm", "sglang"], typer.Option(help="Hand-off the router should use.")
    ] = "vllm",
    faults: Annotated[bool, typer.Option(help="Let engines serve POST /fault.")] = False,
) -> None:
    """Run mock engines for a whole cluster until Ctrl-C.

    [bold]Example[/bold]

      hrl-planner mock-cluster --spec small --replicas prefill-h100=2 --workers-file workers.yaml
    """
    import asyncio
    import signal

    from hrl_planner.mock_engine.cluster import MockCluster
    from hrl_planner.spec import ClusterSpec

    cluster = ClusterSpec.load(spec)
    counts = _counts(replicas or [])
    for name in counts:
        cluster.pool_index(name)

    async def run() -> None:
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        engines = MockCluster(
            cluster,
            workers_file,
            events=events,
            speed=speed,
            engine=engine,
            options=["--allow-faults"] if faults else [],
        )
        try:
            await engines.start(counts)
            typer.echo(f"{len(engines.workers)} engines run, listed in {workers_file}")
            await ended.wait()
        finally:
            await engines.stop()

    asyncio.run(run())


def _counts(replicas: list[str]) -> dict[str, int]:
    from hrl_planner.errors import EngineError

    counts = {}
    for item in replicas:
        pool, _, number = item.partition("=")
        if not number.isdigit():
            raise EngineError(f"--replicas {item}: wanted is POOL=NUMBER")
        counts[pool] = int(number)
    return counts
