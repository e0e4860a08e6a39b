"""Reports of other planners' troubles, replayed with the real programs on a real API server.

Planners run as `plan all`; worker pods answer for engines of the spec's profiles, under a demand
that a test sets; all clocks are short. Each test names the report it comes from.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("kubernetes")

from benchmarks.cluster.field import Clocks, Field, field, kubelet, quick
from benchmarks.cluster.observer import Observer
from benchmarks.cluster.planners import Planners
from benchmarks.cluster.store import State, Write, wait_until
from benchmarks.cluster.workers import Demand
from hrl_planner.localcluster import ControlPlane

pytestmark = [pytest.mark.kube, pytest.mark.slow]

CLOCKS = Clocks(window_s=4.0, startup_s=2.0, drain_s=1.0)
SPEC = quick("small", CLOCKS)
POOLS = [pool.name for pool in SPEC.pools]
FLOOR = {pool.name: pool.min_replicas for pool in SPEC.pools}
POLICY = {
    "allocator": "lp:hold_s=4,idle_s=6,spare_s=4,trend=0,outage_s=8",
    "scaler": "rule:up_cooldown_s=2,down_cooldown_s=4",
}
IDLE, BUSY = Demand(0.0, 1000, 100), Demand(80.0, 2000, 200)


@dataclass
class Scene:
    """A cluster with its planners, watched."""

    field: Field
    planners: Planners
    observer: Observer

    @property
    def held(self) -> int:
        return sum(self.field.holding().values())

    def until(self, holds: Callable[[], bool], what: str, patience_s: float = 60.0) -> None:
        """Wait for something; what there is instead is the message."""
        if wait_until(holds, patience_s):
            return
        log = self.planners.log(self.planners.replicas_of(("global", SPEC.name))[0])
        status = self.field.group().get("status", {})
        raise AssertionError(
            f"not within {patience_s:g} s: {what}\ntargets {self.field.targets()}\n"
            f"held {self.field.holding()}\nstatus {status}\n{log}"
        )

    def demand(self, demand: Demand) -> None:
        self.field.workers.demand = demand

    def reason(self) -> str:
        return str(self.field.group().get("status", {}).get("reason", ""))

    def condition(self, kind: str) -> tuple[str, str]:
        conditions = self.field.group()["status"]["conditions"]
        return next((c["status"], c.get("message", "")) for c in conditions if c["type"] == kind)

    def is_settled(self, for_s: float = 4.0) -> bool:
        scalings = self.observer.scalings
        return not scalings or time.time() - scalings[-1].at_s > for_s

    def grown(self) -> None:
        """Put load on it and wait until it has grown to it."""
        self.demand(BUSY)
        self.until(
            lambda: sum(self.field.targets().values()) >= 7 and self.is_settled(), "grows to load"
        )


@pytest.fixture(scope="module")
def roomy(control_plane: ControlPlane) -> Iterator[None]:
    """Machines with more GPUs than the budget."""
    with kubelet(control_plane, {"H100": 16, "L40S": 16}, site="roomy"):
        yield


@pytest.fixture(scope="module")
def cramped(control_plane: ControlPlane) -> Iterator[None]:
    """Machines with fewer GPUs than the budget."""
    with kubelet(control_plane, {"H100": 3, "L40S": 3}, site="cramped"):
        yield


@contextlib.contextmanager
def scene(
    plane: ControlPlane,
    folder: Path,
    site: str,
    *,
    policy: Mapping[str, str] = POLICY,
    replicas: Mapping[str, int] | None = None,
    demand: Demand = IDLE,
    before: Callable[[Field], None] = lambda made: None,
) -> Iterator[Scene]:
    observer, begun = Observer(SPEC), threading.Event()

    def tell(state: State, writes: list[Write]) -> None:
        if begun.is_set():  # what there is at first is nobody's doing
            observer.on_revision(state, writes)

    with field(plane, SPEC, CLOCKS, policy, site=site, replicas=replicas, on_revision=tell) as made:
        made.workers.demand = demand
        before(made)
        with made.store.lock:
            begun.set()
            observer.on_revision(made.store.state, [])
        with (
            observer,
            Planners(
                SPEC.name, POOLS, made.namespace, plane.kubeconfig, folder,
                replicas=1, together=True, settle_s=1.5,
            ) as planners,
        ):  # fmt: skip
            found = Scene(made, planners, observer)
            found.until(lambda: all(map(planners.leader, planners.ids)), "planners act")
            yield found
        assert made.store.error is None
        assert observer.counts.over_revisions == 0, observer.violations[0].to_json()


@pytest.mark.usefixtures("roomy")
def test_s2_without_traffic_and_with_latencies_that_are_none_pools_go_to_their_floor(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """ai-dynamo/dynamo#6985: no scale-down at zero traffic."""
    with scene(control_plane, tmp_path, "roomy") as s:
        s.grown()
        s.demand(IDLE)
        s.until(lambda: s.field.targets() == FLOOR, "targets at the floor")
        s.until(lambda: s.field.holding() == FLOOR, "pods at the floor")


@pytest.mark.usefixtures("cramped")
def test_s3_replicas_that_found_no_machine_are_cancelled_when_the_load_is_gone(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """ai-dynamo/dynamo#14251: a pending pod freezes the planner."""
    with scene(control_plane, tmp_path, "cramped") as s:

        def unbound() -> int:
            with s.field.store.lock:
                return sum(not pod.bound for pod in s.field.store.state.pods.values() if pod.holds)

        s.demand(BUSY)
        s.until(lambda: unbound() >= 1, "a replica finds no machine")
        s.demand(IDLE)
        s.until(lambda: unbound() == 0, "pending replicas are cancelled")
        s.until(lambda: s.field.holding() == FLOOR, "pods at the floor")


@pytest.mark.usefixtures("roomy")
def test_s5_over_budget_at_the_start_only_shrinks_until_it_fits(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """ai-dynamo/dynamo#11220, #13465, #8583: a budget that fails open."""
    at_start = {"prefill-h100": 5, "decode-h100": 6, "prefill-l40s": 1, "decode-l40s": 1}
    kinds = {pool.name: pool.gpu_type for pool in SPEC.pools}
    budget = SPEC.budget.gpus["H100"]

    def started(made: Field) -> None:
        assert wait_until(lambda: made.holding() == at_start, 30.0)

    with scene(
        control_plane, tmp_path, "roomy", replicas=at_start, demand=BUSY, before=started
    ) as s:

        def h100s() -> int:
            return sum(n for name, n in s.field.holding().items() if kinds[name] == "H100")

        s.until(lambda: h100s() <= budget, "fits the budget")
        s.until(lambda: s.condition("WithinBudget")[0] == "True", "says so")
        assert s.observer.counts.most["H100"] == 11 > budget
        raised = [x for x in s.observer.scalings if kinds[x.pool] == "H100" and x.after > x.before]
        lowered = [x for x in s.observer.scalings if kinds[x.pool] == "H100" and x not in raised]
        total, totals = sum(at_start[name] for name in POOLS if kinds[name] == "H100"), []
        for each in sorted([*raised, *lowered], key=lambda x: x.at_s):
            total += each.after - each.before
            totals.append(total)
        above = [n for n in totals if n > budget]
        assert above == sorted(above, reverse=True), "the sum asked for only fell"


@pytest.mark.usefixtures("roomy")
def test_s5_a_gpu_count_nobody_can_read_stops_raises_and_is_named(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """ai-dynamo/dynamo#11220: an unreadable GPU shape counts as none."""

    def forget_shape(made: Field) -> None:
        made.patch_pool("decode-h100", {"spec": {"gpusPerReplica": None}})

    h100 = ["prefill-h100", "decode-h100"]
    with scene(control_plane, tmp_path, "roomy", before=forget_shape) as s:
        s.until(lambda: s.condition("AllPoolsPlanned")[0] == "False", "the pool is named")
        assert "decode-h100" in s.condition("AllPoolsPlanned")[1]
        s.demand(BUSY)
        s.until(lambda: s.field.targets()["decode-l40s"] > 1, "a pool of another type grows")
        assert [s.field.targets()[name] for name in h100] == [1, 1]
        s.field.patch_pool("decode-h100", {"spec": {"gpusPerReplica": 1}})
        s.until(lambda: s.field.targets()["decode-h100"] > 1, "it grows once it can be read")


@pytest.mark.usefixtures("roomy")
def test_s6_replicas_that_are_slow_at_first_do_not_call_for_more(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """ai-dynamo/dynamo#12430: samples of cold engines."""
    steady = Demand(50.0, 2000, 150)
    with scene(control_plane, tmp_path, "roomy", demand=steady) as s:
        s.until(lambda: sum(s.field.targets().values()) > 4 and s.is_settled(), "grows")
        enough = s.field.targets()
        s.demand(Demand(5.0, 2000, 150))
        s.until(lambda: sum(s.field.targets().values()) <= 4 and s.is_settled(), "shrinks")
        s.field.workers.cold_s, s.field.workers.cold_factor = 8.0, 20.0
        again_s, few = time.time(), s.field.targets()
        s.demand(steady)
        s.until(lambda: time.time() > again_s + 10.0 and s.is_settled(3.0), "comes to rest", 90.0)
        peak, now = by_role(few), dict(few)
        for scaling in s.observer.scalings:
            if scaling.at_s > again_s:
                now[scaling.pool] = scaling.after
                peak = {role: max(n, peak[role]) for role, n in by_role(now).items()}
        # Of a role, as one GPU type may take the place of another.
        assert all(peak[role] <= n + 1 for role, n in by_role(enough).items()), (peak, enough)


def by_role(targets: Mapping[str, int]) -> dict[str, int]:
    roles = dict.fromkeys((pool.role for pool in SPEC.pools), 0)
    for pool in SPEC.pools:
        roles[pool.role] += targets[pool.name]
    return roles


@pytest.fixture(scope="module")
def busy(
    control_plane: ControlPlane, roomy: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """A cluster that has grown to its load; each test leaves it so."""
    with scene(control_plane, tmp_path_factory.mktemp("busy"), "roomy") as s:
        s.grown()
        yield s


def test_s11_without_metrics_planners_hold_then_fall_back_and_come_back(busy: Scene) -> None:
    """kserve/kserve#6018: an outage of metrics under load."""
    s = busy
    before = sum(s.field.targets().values())
    s.field.workers.health = "silent"
    try:
        s.until(lambda: "no metrics" in s.reason(), "the outage is seen")
        held, seen_s = s.field.targets(), time.time()
        s.until(lambda: "mean plan" in s.reason(), "a long outage has its fallback")
        changed = [x for x in s.observer.scalings if seen_s < x.at_s < time.time() - 1.0]
        assert changed == [], f"holds {held} at first"
    finally:
        s.field.workers.health = "well"
    s.until(lambda: "planned" in s.reason() and s.is_settled(), "plans again")
    s.until(lambda: s.held >= before - 1, "what is needed is there")


def test_s14_replicas_and_quotas_edited_by_hand_are_brought_back(busy: Scene) -> None:
    """ai-dynamo/dynamo#4420: replicas edited by hand leave a dead state."""
    s = busy
    name = max(POOLS, key=lambda pool: s.field.targets()[pool])
    before = s.field.targets()[name]
    quota = s.field.pool(name)["spec"]["quota"]
    s.observer.allow(name, 3, lambda state: False)
    s.field.scale(name, quota + 3)
    s.until(lambda: s.field.targets()[name] <= quota, "a raise is taken back")
    s.until(lambda: s.field.holding()[name] <= quota, "its pods go")
    s.field.scale(name, 0)
    s.until(lambda: s.field.targets()[name] >= before - 1, "what is needed comes back")
    s.until(lambda: s.field.store.ready().get(name, 0) >= before - 1, "and serves")
    s.field.patch_pool(name, {"spec": {"quota": 0}})
    s.until(lambda: s.field.targets()[name] >= before - 1, "so does a quota that was edited")
    assert s.condition("WithinBudget")[0] == "True"
