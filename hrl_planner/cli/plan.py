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
    from hrl_planner.control.metrics import PoolMetrics

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
HealthHost = Annotated[str, typer.Option(help="Address on which they are answered.")]
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
    health_host: HealthHost = "0.0.0.0",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Divide a group's budget among its pools: one of these per group (and one to take over).

    [bold]Examples[/bold]

      hrl-planner plan global --group qwen --once --dry-run
    """
    how = _How(
        once,
        dry_run,
        (health_host, health_port),
        30.0,
        metrics,
        tuple(router or ()),
        look_s,
        prometheus,
        log,
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
    health_host: HealthHost = "0.0.0.0",
    settle_s: SettleS = 30.0,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Scale one pool within its quota: one of these per pool.

    [bold]Examples[/bold]

      hrl-planner plan local --pool decode-h200 --once --dry-run
    """
    how = _How(
        once,
        dry_run,
        (health_host, health_port),
        settle_s,
        metrics,
        tuple(router or ()),
        look_s,
        prometheus,
        log,
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
    health_host: HealthHost = "0.0.0.0",
    settle_s: SettleS = 30.0,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Run the planners of all groups of a namespace, and of all their pools, in one process.

    Groups and pools that come later are planned for, too.

    [bold]Examples[/bold]

      hrl-planner plan all --namespace serving
    """
    how = _How(
        once,
        dry_run,
        (health_host, health_port),
        settle_s,
        metrics,
        tuple(router or ()),
        look_s,
        prometheus,
        log,
    )
    _plan(kubeconfig, namespace, group or [], None, how)


@dataclass(frozen=True)
class _How:
    """What all three commands are told alike."""

    once: bool
    dry_run: bool
    health: tuple[str, int]
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
    import logging
    import signal
    import time
    from functools import partial

    from hrl_planner.control import Connector
    from hrl_planner.control.counted_api import CountedApiClient
    from hrl_planner.control.fleet import GLOBAL, LOCAL, Planners, wanted
    from hrl_planner.control.instruments import Instruments
    from hrl_planner.control.run import Key
    from hrl_planner.control.serve import Service
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
        planners = Planners(
            connector,
            metrics,
            settle_s=how.settle_s,
            dry_run=how.dry_run,
            patient=not how.one_round,
        )
        if how.one_round:
            with _answering(connector):
                if keys is None:
                    keys = wanted(connector.groups(), connector.pools().pools, groups)
                for key in keys:
                    began_s = time.monotonic()
                    done = planners.make(key, connector).round()
                    log.write(key.name, done, time.monotonic() - began_s)
            return
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        service = Service(
            connector, planners, kubeconfig, keys, groups, log=log, instruments=instruments
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        service.run(*how.health)


@contextmanager
def _answering(connector: Connector) -> Iterator[None]:
    """Turn an API server that does not answer into one line: nobody tries again."""
    from urllib3.exceptions import HTTPError

    from hrl_planner.errors import KubeError

    try:
        yield
    except HTTPError as error:
        host, reason = connector.api.configuration.host, " ".join(str(error).split())
        raise KubeError(f"the API server {host} does not answer: {reason}") from error


@contextmanager
def _decision_log(namespace: str, how: _How) -> Iterator[DecisionLog]:
    from hrl_planner.control.decision_log import DecisionLog, to_file, to_stdout
    from hrl_planner.control.serve import this_process

    to = to_stdout() if how.log is None else to_file(how.log)
    log = DecisionLog(to, this_process(), namespace)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def _metrics(kubeconfig: Path | None, namespace: str, how: _How) -> Iterator[PoolMetrics]:
    """Follow the workers of the namespace while the block runs."""
    from functools import partial

    from hrl_planner.control import NoMetrics

    if not how.metrics:
        yield NoMetrics()
        return
    from hrl_planner.collect import PageSource, PrometheusSource
    from hrl_planner.control.collected import CollectedMetrics
    from hrl_planner.kube.access import find_configuration
    from hrl_planner.router.discovery.kubernetes import KubernetesDiscovery

    listen_s = how.look_s if how.one_round else 0.0

    def source() -> Source:
        if how.prometheus is None:
            return PageSource()
        return PrometheusSource(how.prometheus, selector=f'namespace="{namespace}"')

    source()  # says now if there can be none
    workers = KubernetesDiscovery(namespace, configuration=partial(find_configuration, kubeconfig))
    found = CollectedMetrics(workers, how.routers, listen_s, source)
    found.start()
    try:
        yield found
    finally:
        found.close()
