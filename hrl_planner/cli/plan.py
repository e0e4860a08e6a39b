"""`hrl-planner plan`: the planner pods, and what they would do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from hrl_planner.collect import Source
    from hrl_planner.control.decision_log import DecisionLog
    from hrl_planner.control.instruments import Instruments
    from hrl_planner.control.metrics import PoolMetrics
    from hrl_planner.control.run import Planner

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

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


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
    _plan(kubeconfig, namespace, group, [], how)


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
    _plan(kubeconfig, namespace, None, [pool], how)


@app.command("all")
def plan_all(
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
    settle_s: SettleS = 30.0,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Run the planners of a group and of all its pools in one process, for small installations.

    Pools that are added later are planned for after a restart.
    """
    how = _How(
        once, dry_run, health_port, settle_s, metrics, tuple(router or ()), look_s, prometheus, log
    )
    _plan(kubeconfig, namespace, group, None, how)


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
    group: str | None,
    pools: list[str] | None,
    how: _How,
) -> None:
    """Make the planners asked for (no list of pools: all of the group) and run them."""
    import time

    from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner
    from hrl_planner.control.instruments import Instruments

    instruments = Instruments()
    api = _client(kubeconfig, instruments)
    where = namespace or _own_namespace()
    connector = Connector(api, where)
    if pools is None:
        pools = [pool.name for pool in connector.pools(group).pools]
    with _metrics(kubeconfig, where, how) as metrics:
        planners: list[tuple[str, Planner]] = [
            (
                "local",
                LocalPlanner(
                    connector,
                    name,
                    metrics,
                    time.monotonic,
                    settle_s=how.settle_s,
                    dry_run=how.dry_run,
                ),
            )
            for name in pools
        ]
        if group is not None:
            planner = GlobalPlanner(connector, group, metrics, time.monotonic, dry_run=how.dry_run)
            planners.append(("global", planner))
        with _decision_log(where, how) as log:
            if not how.one_round:
                _serve(api, where, planners, how.health_port, log, instruments)
                return
            for _, each in planners:
                began_s = time.monotonic()
                done = each.round()
                log.write(each.name, done, time.monotonic() - began_s)


@contextmanager
def _decision_log(namespace: str, how: _How) -> Iterator[DecisionLog]:
    from hrl_planner.control.decision_log import DecisionLog, to_file, to_stdout

    log = DecisionLog(to_stdout() if how.log is None else to_file(how.log), _holder(), namespace)
    try:
        yield log
    finally:
        log.close()


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
    api: ApiClient,
    namespace: str,
    planners: list[tuple[str, Planner]],
    health_port: int,
    log: DecisionLog,
    instruments: Instruments,
) -> None:
    import logging
    import signal
    import time

    from hrl_planner.control.health import Health
    from hrl_planner.control.lease import Lease
    from hrl_planner.control.run import Runner, Task

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    holder = _holder()
    tasks = [
        Task(
            level,
            planner,
            Lease(api, namespace, f"hrl-planner-{level}-{planner.name}", holder, time.monotonic),
        )
        for level, planner in planners
    ]
    runner = Runner(tasks, log, instruments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: runner.stop())
    with Health(health_port, runner.alive, runner.ready, instruments.page):
        runner.run()


def _holder() -> str:
    """Return the name of this process."""
    import os
    import socket

    return f"{socket.gethostname()}-{os.getpid()}"


def _client(kubeconfig: Path | None, instruments: Instruments) -> ApiClient:
    from kubernetes import config

    from hrl_planner.control.counted_api import CountedApiClient
    from hrl_planner.errors import KubeError

    try:
        if kubeconfig is not None:
            config.load_kube_config(str(kubeconfig))  # type: ignore[no-untyped-call]
        elif _POD_NAMESPACE.exists():
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config()  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise KubeError(f"no way to the API server: {error}") from error
    return CountedApiClient(instruments.asked)


def _own_namespace() -> str:
    if _POD_NAMESPACE.exists():
        return _POD_NAMESPACE.read_text(encoding="utf-8").strip()
    return "default"
