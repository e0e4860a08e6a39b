"""`hrl-planner plan`: the planner pods, and what they would do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hrl_planner.collect import Source
    from hrl_planner.control import Connector
    from hrl_planner.control.decision_log import DecisionLog
    from hrl_planner.control.instruments import Instruments
    from hrl_planner.control.metrics import PoolMetrics
    from hrl_planner.control.run import Key, Planner
    from hrl_planner.control.watched import Reader

app = typer.Typer(
    no_args_is_help=True,
    help="Plan quotas and replicas of a serving group on Kubernetes.",
)

Namespace = Annotated[
    str | None, typer.Option(help="Of group and pools. [default: the pod's, else default]")
]
Once = Annotated[bool, typer.Option("--once", help="One round, without election, then end.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")]
HealthPort = Annotated[
    int, typer.Option(min=0, max=65535, help="Of /healthz, /readyz and /metrics.")
]
SettleS = Annotated[
    float, typer.Option(min=0.0, help="A target's controller lags at most so many seconds.")
]
Metrics = Annotated[
    bool, typer.Option(help="Ask worker pods for their metrics; without, policies know no traffic.")
]
Routers = Annotated[
    list[str] | None,
    typer.Option("--router", help="ip:port of a router's metrics, for classes; may be repeated."),
]
LookS = Annotated[
    float, typer.Option(min=0.0, help="With --once or --dry-run: listen so long before the round.")
]
Prometheus = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Ask this server for workers' metrics instead of the pods."),
]
LogFile = Annotated[
    Path | None,
    typer.Option("--log", help="File for decisions, rotated at 64 MiB. [default: standard output]"),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(help="Absent: the pod's service account, else KUBECONFIG or ~/.kube/config."),
]


@app.command("global")
def plan_global(
    group: Annotated[str, typer.Option(help="Name of the ServingGroup.")],
    namespace: Namespace = None,
    once: Once = False,
    dry_run: DryRun = False,
    metrics: Metrics = True,
    router: Routers = None,
    prometheus: Prometheus = None,
    log: LogFile = None,
    look_s: LookS = 20.0,
    health_port: HealthPort = 8081,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Divide a group's budget among its pools: one of these per group (and one to take over).

    [bold]Examples[/bold]

      hrl-planner plan global --group qwen --once --dry-run
    """
    how = _How(
        once, dry_run, health_port, 30.0, metrics, tuple(router or ()), look_s, prometheus, log
    )
    _plan(kubeconfig, namespace, [group], [], how)


@app.command("local")
def plan_local(
    pool: Annotated[str, typer.Option(help="Name of the WorkerPool.")],
    namespace: Namespace = None,
    once: Once = False,
    dry_run: DryRun = False,
    metrics: Metrics = True,
    router: Routers = None,
    prometheus: Prometheus = None,
    log: LogFile = None,
    look_s: LookS = 20.0,
    health_port: HealthPort = 8081,
    settle_s: SettleS = 30.0,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Scale one pool within its quota: one of these per pool.

    [bold]Examples[/bold]

      hrl-planner plan local --pool decode-h200 --once --dry-run
    """
    how = _How(
        once, dry_run, health_port, settle_s, metrics, tuple(router or ()), look_s, prometheus, log
    )
    _plan(kubeconfig, namespace, [], [pool], how)


@app.command("all")
def plan_all(
    group: Annotated[
        list[str] | None,
        typer.Option(help="Name of a ServingGroup; may be repeated. Absent: all groups."),
    ] = None,
    namespace: Namespace = None,
    once: Once = False,
    dry_run: DryRun = False,
    metrics: Metrics = True,
    router: Routers = None,
    prometheus: Prometheus = None,
    log: LogFile = None,
    look_s: LookS = 20.0,
    health_port: HealthPort = 8081,
    settle_s: SettleS = 30.0,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Run the planners of all groups of a namespace, and of all their pools, in one process.

    Groups and pools that come later are planned for, too.

    [bold]Examples[/bold]

      hrl-planner plan all --namespace serving
    """
    how = _How(
        once, dry_run, health_port, settle_s, metrics, tuple(router or ()), look_s, prometheus, log
    )
    _plan(kubeconfig, namespace, group or [], None, how)


@dataclass(frozen=True)
class _How:
    """What all three commands are told alike."""

    once: bool
    dry_run: bool
    health_port: int
    settle_s: float
    metrics: bool
    routers: tuple[str, ...]
    look_s: float
    prometheus: str | None
    log: Path | None

    @property
    def one_round(self) -> bool:
        return self.once or self.dry_run


def _plan(
    kubeconfig: Path | None,
    namespace: str | None,
    groups: list[str],
    pools: list[str] | None,
    how: _How,
) -> None:
    """Make the planners asked for (no list of pools: all of the groups) and run them."""
    import time
    from functools import partial

    from hrl_planner.control import Connector
    from hrl_planner.control.counted_api import CountedApiClient
    from hrl_planner.control.fleet import GLOBAL, LOCAL, wanted
    from hrl_planner.control.instruments import Instruments
    from hrl_planner.control.run import Key
    from hrl_planner.kube.access import blocking_client, own_namespace

    instruments = Instruments()
    api = blocking_client(kubeconfig, partial(CountedApiClient, told=instruments.asked))
    connector = Connector(api, namespace or own_namespace())
    keys = None
    if pools is not None:
        keys = [Key(LOCAL, name) for name in pools] + [Key(GLOBAL, name) for name in groups]
    with (
        _decision_log(connector.namespace, how) as log,
        _metrics(kubeconfig, connector.namespace, how) as metrics,
    ):
        if not how.one_round:
            _serve(connector, kubeconfig, groups, keys, metrics, how, log, instruments)
            return
        if keys is None:
            keys = wanted(connector.groups(), connector.pools().pools, groups)
        for key in keys:
            planner = _made(key, connector, connector, metrics, how)
            began_s = time.monotonic()
            done = planner.round()
            log.write(key.name, done, time.monotonic() - began_s)


@contextmanager
def _decision_log(namespace: str, how: _How) -> Iterator[DecisionLog]:
    from hrl_planner.control.decision_log import DecisionLog, to_file, to_stdout

    log = DecisionLog(to_stdout() if how.log is None else to_file(how.log), _holder(), namespace)
    try:
        yield log
    finally:
        log.close()


def _holder() -> str:
    """Return the name of this process."""
    import os
    import socket

    return f"{socket.gethostname()}-{os.getpid()}"


def _made(key: Key, connector: Connector, look: Reader, metrics: PoolMetrics, how: _How) -> Planner:
    import time

    from hrl_planner.control import GlobalPlanner, LocalPlanner
    from hrl_planner.control.fleet import GLOBAL

    if key.level == GLOBAL:
        return GlobalPlanner(
            connector, key.name, metrics, time.monotonic, look=look, dry_run=how.dry_run
        )
    return LocalPlanner(
        connector, key.name, metrics, time.monotonic,
        look=look, settle_s=how.settle_s, dry_run=how.dry_run,
    )  # fmt: skip


@contextmanager
def _metrics(kubeconfig: Path | None, namespace: str, how: _How) -> Iterator[PoolMetrics]:
    """Follow the workers of the namespace while the block runs."""
    import os

    from hrl_planner.control import NoMetrics

    if not how.metrics:
        yield NoMetrics()
        return
    from hrl_planner.collect import PageSource, PrometheusSource
    from hrl_planner.control.collected import CollectedMetrics
    from hrl_planner.router.discovery.kubernetes import KubernetesDiscovery

    if kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(kubeconfig)  # where discovery looks, too
    listen_s = how.look_s if how.one_round else 0.0

    def source() -> Source:
        if how.prometheus is None:
            return PageSource()
        return PrometheusSource(how.prometheus, selector=f'namespace="{namespace}"')

    found = CollectedMetrics(KubernetesDiscovery(namespace), how.routers, listen_s, source)
    found.start()
    try:
        yield found
    finally:
        found.close()


def _serve(
    connector: Connector,
    kubeconfig: Path | None,
    groups: list[str],
    keys: list[Key] | None,
    metrics: PoolMetrics,
    how: _How,
    log: DecisionLog,
    instruments: Instruments,
) -> None:
    """Run planners until a signal: those of the keys, or (no keys) of the groups there are."""
    import logging
    import signal
    import time
    from functools import partial

    from hrl_planner.control.election import EachItsOwn, Elector, OneHeartbeat
    from hrl_planner.control.fleet import Fleet
    from hrl_planner.control.health import Health
    from hrl_planner.control.lease import Leases
    from hrl_planner.control.mirrors import Mirrors
    from hrl_planner.control.run import Key, Runner
    from hrl_planner.control.watched import Watched
    from hrl_planner.kube.access import find_configuration

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    leases = Leases(connector.api, connector.namespace, _holder(), time.monotonic)
    with Mirrors(partial(find_configuration, kubeconfig)) as mirrors:
        watched = Watched(
            connector,
            mirrors,
            whole=keys is None,
            wake=lambda level, name: runner.wake(level, name),
        )

        def make(level: str, name: str) -> Planner:
            return _made(Key(level, name), connector, watched, metrics, how)

        with Elector(OneHeartbeat(leases) if keys is None else EachItsOwn(leases)) as elector:
            if keys is None:
                runner = Runner(Fleet(watched, make, groups).planners, elector, log, instruments)
            else:
                planners = {key: make(*key) for key in keys}
                runner = Runner(lambda: planners, elector, log, instruments)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: runner.stop())
            with Health(how.health_port, runner.alive, runner.ready, instruments.page):
                runner.run()
