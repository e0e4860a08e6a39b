"""The planners' Prometheus metrics, all named `hrl_planner_*`, in a registry of their own.

Counters and histograms are of the process. Gauges belong to one planner: what its round does not
set again is gone, so a pool that was deleted, or a planner that no longer leads, leaves nothing
behind. The global planner tells of budgets, quotas and classes, local ones each of their pool, so
that in separate pods no number is told twice. Times are told as points in time: an age keeps
growing when the process that would have to update it hangs.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Collection, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from hrl_planner.control.decision import Decision
from hrl_planner.control.global_planner import GlobalRound
from hrl_planner.control.local_planner import LocalRound
from hrl_planner.kube.convert import WATTS
from hrl_planner.observation import CLASS_FIELDS

Result = Literal["done", "held", "failed"]
_ROUND_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_DECISION_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_POOL = ("group", "pool")

# Name: what it says, labels.
_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "decision_timestamp_seconds": ("When a policy decided last.", ("level", "name")),
    "group_active": ("1 if decisions are carried out, 0 in shadow mode.", ("group",)),
    "budget_gpus": ("GPUs there are, by type and in total.", ("group", "resource")),
    "granted_gpus": ("GPUs granted or still held; infinite if unknown.", ("group", "resource")),
    "budget_watts": ("Watts there are.", ("group",)),
    "granted_watts": ("Watts granted or still held; infinite if unknown.", ("group",)),
    "pool_planned_replicas": ("Quota by the plan in force.", _POOL),
    "pool_quota_replicas": ("Quota in force.", _POOL),
    "pool_marginal_value_per_gpu": (
        "Value of one GPU more, where serving all requests is worth 1.",
        _POOL,
    ),
    "pool_quota_waits": ("1 while the ledger keeps a pool from its plan.", _POOL),
    "class_attainment_ratio": ("Share of requests within their targets.", ("group", "class")),
    "class_requests_per_second": ("Offered requests.", ("group", "class")),
    "class_planned_requests_per_second": (
        "Rate that was planned for.",
        ("group", "class"),
    ),
    "pool_wanted_replicas": ("Replicas the policy would have.", _POOL),
    "pool_desired_replicas": ("Replicas the target is asked for.", _POOL),
    "pool_replicas": ("Replicas by state: ready, starting, draining, pending.", (*_POOL, "state")),
    "pool_held_gpus": ("GPUs held, draining replicas included.", _POOL),
    "pool_scale_waits": ("1 while the ledger keeps a target from its replicas.", _POOL),
    "pool_attainment_ratio": ("Share of requests within the tightest targets.", _POOL),
    "pool_requests_per_second": ("Requests entering the pool.", _POOL),
    "pool_metrics_timestamp_seconds": ("When workers of the pool were heard last.", _POOL),
}


class Instruments:
    """What is counted and shown.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """See the class."""
        self._clock = clock
        self._lock = threading.Lock()  # a page is never of half a round
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)
        Gauge("hrl_planner_build_info", "1; what runs.", ("version", "python"), registry=r).labels(
            _version(), platform.python_version()
        ).set(1)
        self._rounds = Counter(
            "hrl_planner_rounds",
            "Rounds: done; held, without a decision that was due; failed at the API server.",
            ("level", "result"),
            registry=r,
        )
        self._round_s = Histogram(
            "hrl_planner_round_duration_seconds",
            "Of a round, reads and writes included.",
            ("level",),
            buckets=_ROUND_S,
            registry=r,
        )
        self._decision_s = Histogram(
            "hrl_planner_decision_duration_seconds",
            "How long a policy thought.",
            ("level",),
            buckets=_DECISION_S,
            registry=r,
        )
        self._requests = Counter(
            "hrl_planner_api_requests",
            "Requests to the API server; a 409 was outdated and is tried anew.",
            ("verb", "resource", "code"),
            registry=r,
        )
        self._shield = Counter(
            "hrl_planner_shield_interventions",
            "Decisions that were not the network's: what was done instead, and why.",
            ("level", "action", "cause"),
            registry=r,
        )
        self._leader = Gauge(
            "hrl_planner_leader", "Whether this process acts.", ("level", "name"), registry=r
        )
        self._gauges = {
            name: Gauge(f"hrl_planner_{name}", text, labels, registry=r)
            for name, (text, labels) in _GAUGES.items()
        }
        self._planners: dict[tuple[str, str], _Series] = {}

    def page(self) -> bytes:
        """Return everything in Prometheus's text format."""
        with self._lock:
            return generate_latest(self.registry)

    def asked(self, verb: str, resource: str, code: str) -> None:
        """Count a request to the API server."""
        self._requests.labels(verb, resource, code).inc()

    def led(self, level: str, name: str, leads: bool) -> None:
        """Say whether a planner acts; one that does not shows nothing else."""
        with self._lock:
            if not leads:
                self._series(level, name).forget()
            self._leader.labels(level, name).set(leads)

    def ended(self, level: str, name: str) -> None:
        """Forget a planner."""
        with self._lock:
            self._series(level, name).forget()
            del self._planners[level, name]
            self._leader.remove(level, name)

    def failed(self, level: str, name: str, took_s: float, *, gone: bool) -> None:
        """Count a round that came to no end; what it is about may not exist any more."""
        with self._lock:
            self._ended(level, "failed", took_s)
            if gone:
                self._series(level, name).forget()

    def rounded(self, level: str, name: str, done: GlobalRound | LocalRound, took_s: float) -> None:
        """Count a round and show what it saw and did."""
        with self._lock:
            self._ended(level, "held" if done.error else "done", took_s)
            series = self._series(level, name)
            made = done.decision
            if made is not None:
                series.seen = made
                if made.asked == "decide":
                    series.decision, series.decided_s = made, self._clock()
                self._count(level, made)
            series.begin()
            if isinstance(done, GlobalRound):
                _show_global(series, name, done)
            else:
                _show_local(series, name, done)
            series.end()

    def _ended(self, level: str, result: Result, took_s: float) -> None:
        self._rounds.labels(level, result).inc()
        self._round_s.labels(level).observe(took_s)

    def _count(self, level: str, made: Decision) -> None:
        if made.asked == "decide":
            self._decision_s.labels(level).observe(made.took_s)
        for entry in made.interventions:
            self._shield.labels(level, entry.action, entry.cause).inc()

    def _series(self, level: str, name: str) -> _Series:
        return self._planners.setdefault((level, name), _Series(self._gauges, level, name))


class _Series:
    """The gauges of one planner.

    Attributes:
        seen: what the policy was shown last.
        decision: the last one.
        decided_s: when it was made, seconds since 1970.
        heard_s: of a local planner, when workers were heard last.
    """

    def __init__(self, gauges: dict[str, Gauge], level: str, name: str) -> None:
        self._gauges, self._who = gauges, (level, name)
        self._shown: set[tuple[str, tuple[str, ...]]] = set()
        self._before = self._shown
        self.seen: Decision | None = None
        self.decision: Decision | None = None
        self.decided_s = 0.0
        self.heard_s: float | None = None

    def begin(self) -> None:
        self._before, self._shown = self._shown, set()
        if self.decision is not None:
            self.set("decision_timestamp_seconds", self.decided_s, *self._who)

    def set(self, name: str, value: float | None, *labels: str) -> None:
        """Show a number; one that is not known is not shown."""
        if value is not None and value == value:
            self._gauges[name].labels(*labels).set(value)
            self._shown.add((name, labels))

    def end(self) -> None:
        self._remove(self._before - self._shown)

    def forget(self) -> None:
        self._remove(self._shown)
        self._shown, self.seen, self.decision = set(), None, None

    def _remove(self, series: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        for name, labels in series:
            self._gauges[name].remove(*labels)


def _show_global(series: _Series, group: str, done: GlobalRound) -> None:
    series.set("group_active", done.mode == "active", group)
    for what, amounts in (("budget", done.budget), ("granted", done.used)):
        for resource, amount in amounts.items():
            if resource == WATTS:
                series.set(f"{what}_watts", amount, group)
            else:
                series.set(f"{what}_gpus", amount, group, resource)
    for pool, quota in done.quotas.items():
        series.set("pool_quota_replicas", quota, group, pool)
        series.set("pool_planned_replicas", done.planned.get(pool), group, pool)
        series.set("pool_quota_waits", pool in done.settlement.waits, group, pool)
    if series.decision is not None:
        _show_plan(series, group, series.decision, done.quotas.keys())
    seen = series.seen
    if seen is None:
        return
    for index, cls in enumerate(seen.spec.slo_classes):
        row = dict(zip(CLASS_FIELDS, seen.observation.classes[index].tolist(), strict=True))
        series.set("class_attainment_ratio", row["attainment"], group, cls.name)
        series.set("class_requests_per_second", row["arrivals_rps"], group, cls.name)


def _show_plan(series: _Series, group: str, made: Decision, pools: Collection[str]) -> None:
    for pool, value in made.marginal.items():
        if pool in pools:
            series.set("pool_marginal_value_per_gpu", value, group, pool)
    if made.plan.advice is not None:
        planned = made.plan.advice.planned_rps.tolist()
        for cls, rate in zip(made.spec.slo_classes, planned, strict=True):
            series.set("class_planned_requests_per_second", rate, group, cls.name)


def _show_local(series: _Series, pool: str, done: LocalRound) -> None:
    who = (done.group, pool)
    series.set("pool_wanted_replicas", done.wanted, *who)
    series.set("pool_desired_replicas", done.target, *who)
    for state in ("ready", "starting", "draining", "pending"):
        series.set("pool_replicas", getattr(done.pods, state), *who, state)
    series.set("pool_held_gpus", done.held_gpus, *who)
    series.set("pool_scale_waits", bool(done.waits), *who)
    made = series.decision
    if made is None:
        return
    seen = made.observation.pool(made.spec.pool_index(pool))
    series.set("pool_attainment_ratio", made.attainment(pool), *who)
    series.set("pool_requests_per_second", seen.arrivals_rps, *who)
    if seen.metrics_age_s == seen.metrics_age_s:  # else nobody was heard since
        series.heard_s = series.decided_s - seen.metrics_age_s
    series.set("pool_metrics_timestamp_seconds", series.heard_s, *who)


def _version() -> str:
    try:
        return version("hrl-planner")
    except PackageNotFoundError:
        return "unknown"
