"""A modelled cluster with its planners, and everything that may happen to it.

What must hold after every move is in `ledger_audit.py`. When all faults stop, the cluster must
arrive at the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from random import Random
from typing import Any, Literal

from hrl_planner.ledger import Pods, Reservation, Target
from tests.ledger_audit import Amounts, Audit, cost
from tests.ledger_model import (
    MAXIMUM,
    NAMES,
    Backlog,
    GlobalPlanner,
    Group,
    LocalPlanner,
    Pool,
    Send,
    World,
)

LEADERS = 2  # of every planner: one, and one that has not noticed that it is none any more
SETTLE_ROUNDS = 60
MOST_SENT = 6  # more are lost: a late write among many would hardly ever be the next to arrive

Counts = dict[str, int]
Start = Literal["unknown", "calm", "any"]
Mood = Literal["leaders", "pool", "any"]


def fitting(plan: Counts, budget: Amounts) -> Counts:
    """Cut a plan until it fits, as the projection would see to."""
    plan = dict(plan)
    for resource, amount in budget.items():
        while sum(n * cost(name, resource) for name, n in plan.items()) > amount:
            plan[max(plan, key=lambda n: plan[n] * cost(n, resource))] -= 1
    return plan


class Cluster:
    """See the module.

    Args:
        budget: of the group.
        plans: of the two leaders, who need not agree.
        running: replicas of every pool.
        start: `unknown` to the books, `calm` with quotas and books as things are, or `any` quotas.
        quotas: for `any`.
        counts_pods: the global planners count pods themselves.
    """

    def __init__(
        self,
        budget: Amounts,
        plans: tuple[Counts, ...],
        running: Counts,
        start: Start,
        quotas: dict[str, int | None],
        counts_pods: bool,
    ) -> None:
        granted = {"unknown": dict.fromkeys(NAMES), "calm": running, "any": quotas}[start]
        self.world = World(
            group=Group(1, budget),
            pools={
                name: Pool(
                    uid=i,
                    version=10 + i,
                    quota=granted[name],
                    reservation=Reservation(None if start == "unknown" else running[name]),
                )
                for i, name in enumerate(NAMES)
            },
            targets={
                name: Target(running[name], f"{20 + i}", "generation 1")
                for i, name in enumerate(NAMES)
            },
            pods={name: Pods(running[name], 0) for name in NAMES},
            backlog={name: Backlog(running[name]) for name in NAMES},
        )
        self.wish = dict.fromkeys(NAMES, MAXIMUM)
        self.globals = [
            GlobalPlanner(self.world, fitting(plan, budget), counts_pods=counts_pods)
            for plan in plans
        ]
        self.locals = {
            name: [LocalPlanner(self.world, name) for _ in range(LEADERS)] for name in NAMES
        }
        self.audit = Audit(self.world)

    # Planners.

    def global_looks(self, leader: int, refresh: str, arrive: int) -> None:
        """Its writes are sent; some arrive at once and the others some time."""
        planner = self.globals[leader]
        planner.refresh(self.world, refresh)
        self._send(planner.step(self.world), arrive)

    def global_plans(self, leader: int, refresh: str, plan: Counts) -> None:
        planner = self.globals[leader]
        planner.refresh(self.world, refresh)
        planner.plan = fitting(plan, planner.group.budget)

    def global_works(self, leader: int) -> None:
        """An interval without faults."""
        for _ in range(4):
            self.global_looks(leader, "all", 99)

    def local_looks(self, name: str, leader: int, refresh: str, arrive: bool) -> None:
        planner = self.locals[name][leader]
        planner.refresh(self.world, refresh)
        self._send(planner.step(self.world, self.wish[name]), int(arrive))

    def local_works(self, name: str, leader: int) -> None:
        for _ in range(4):
            self.local_looks(name, leader, "all", True)

    # Writes on their way.

    def write_arrives(self, which: int, fate: str) -> None:
        """Late, in any order, perhaps to arrive again, or never."""
        sent = self.world.sent
        if not sent:
            return
        write = sent[which % len(sent)] if fate == "again" else sent.pop(which % len(sent))
        if fate != "lost":
            self._arrive(write)

    # What lives behind the targets.

    def controller_acts(self, name: str, catch_up: bool) -> None:
        self.world.controller(name, catch_up=catch_up)
        self.world.touch_target(name)

    def replicas_end(self, name: str, count: int) -> None:
        pods = self.world.pods[name]
        self.world.pods[name] = Pods(pods.live, max(pods.draining - count, 0))

    def status_is_reported(self, name: str, what: str) -> None:
        if what == "target":
            self.world.touch_target(name)
        elif name in self.world.pools:
            self.world.touch_pool(name)

    def neighbour_is_scaled(self, name: str) -> None:
        self.world.touch_neighbour(name)

    def pool_comes_or_goes(self, name: str) -> None:
        pool = self.world.pools.get(name)
        if pool is None:
            version = self.world.next_version()
            self.audit.abandoned.discard(name)
            with self.outside():
                self.world.pools[name] = Pool(uid=version, version=version, quota=None)
        elif pool.finalizer:
            self.world.touch_pool(name, leaving=True)

    # Hands.

    def target_is_scaled(self, name: str, replicas: int) -> None:
        if name in self.world.pools:
            with self.outside():
                self.world.touch_target(name, replicas)

    def quota_is_edited(self, name: str, quota: int | None) -> None:
        if name in self.world.pools:
            with self.outside():
                self.world.touch_pool(name, quota=quota)

    def status_is_edited(self, name: str, replicas: int | None) -> None:
        pool = self.world.pools.get(name)
        if pool is not None and (replicas is not None or pool.reservation.claim is None):
            with self.outside():
                book = Reservation(replicas, pool.reservation.claim)
                self.world.touch_pool(name, reservation=book)

    def pod_is_evicted(self, name: str) -> None:
        pods = self.world.pods[name]
        if pods.live and name in self.world.pools:
            with self.outside():
                self.world.pods[name] = Pods(pods.live - 1, pods.draining + 1)

    def pool_is_deleted_by_force(self, name: str) -> None:
        self.audit.forgiven.discard(name)
        if name in self.world.pools:
            self.audit.abandoned.add(name)
            with self.outside():
                del self.world.pools[name]

    def budget_is_edited(self, budget: Amounts) -> None:
        with self.outside():
            self.world.touch_group(budget=budget)

    # Many of these at random.

    def moves(self, random: Random, mood: Mood, *, hands: bool) -> Iterator[Callable[[], None]]:
        """Return moves: in a mood some of what may happen happens often, and some not at all."""
        names = random.sample(NAMES, k=1 if mood == "pool" else 2)
        if mood == "leaders":
            for _ in range(2):
                self.globals[0].plan = dict.fromkeys(NAMES, random.randrange(2))
                yield self._quiet_round
            yield lambda: self._disagree(names)
        kinds = self._kinds(random, names, mood, hands=hands)
        weights = [random.choice([0.0, 0.3, 1.0, 4.0]) for _ in kinds]
        while any(weights):
            yield random.choices(kinds, weights)[0]

    def _quotas(self) -> Counts:
        quotas = {name: pool.quota or 0 for name, pool in self.world.pools.items()}
        return dict.fromkeys(NAMES, 0) | quotas

    def _disagree(self, names: list[str]) -> None:
        """Each leader would give all it can to another pool, and leave the rest as it is."""
        for leader, favourite in enumerate(names):
            self.global_plans(leader, "all", self._quotas())
            plan = self.globals[leader].plan
            while plan[favourite] < MAXIMUM:
                more = plan | {favourite: plan[favourite] + 1}
                if fitting(more, self.world.group.budget) != more:
                    break
                plan[favourite] += 1

    def _kinds(
        self, random: Random, names: list[str], mood: Mood, *, hands: bool
    ) -> list[Callable[[], None]]:
        def name() -> str:
            return random.choice(names)

        def few() -> int:
            return random.randrange(7)

        def leader() -> int:
            return random.randrange(LEADERS)

        def one(*of: Any) -> Any:
            return random.choice(of)

        def plan() -> Counts:
            if one(True, False):
                return {n: few() for n in NAMES}
            return self._quotas() | {name(): few()}

        kinds: list[Callable[[], None]] = [
            lambda: self.write_arrives(few(), one("arrives", "arrives", "again", "lost")),
            lambda: self.global_works(leader()),
        ]
        if mood != "pool":
            kinds += [
                lambda: self.global_looks(leader(), one("group", "none"), 0),
                lambda: self.global_looks(leader(), one("group", "none"), one(1, 9)),
            ]
        if mood == "any":
            kinds += [
                lambda: self.global_plans(leader(), one("all", "group", "none"), plan()),
                lambda: self.pool_comes_or_goes(name()),
            ]
        if mood != "leaders":
            kinds += [
                lambda: self.local_works(name(), leader()),
                lambda: self.replicas_end(name(), 1 + few()),
                lambda: self.status_is_reported(name(), one("target", "pool")),
            ]
            watches = ("all", "pool", "target", "none")
            kinds += [
                lambda: self.local_looks(name(), 0, one(*watches), one(True, True, False)),
                lambda: self.local_looks(name(), 1, one(*watches), one(True, True, False)),
                lambda: self.wish.update({name(): few()}),
                lambda: self.controller_acts(name(), one(True, False)),
                lambda: self.neighbour_is_scaled(name()),
            ]
        if hands:
            kinds += [
                lambda: self.target_is_scaled(name(), few()),
                lambda: self.quota_is_edited(name(), one(None, few())),
                lambda: self.status_is_edited(name(), one(None, few())),
                lambda: self.pod_is_evicted(name()),
                lambda: self.pool_is_deleted_by_force(name()),
            ]
        return kinds

    # What must hold.

    def check(self) -> None:
        self.audit.check(self.world)

    def arrives_at_the_plan(self) -> None:
        """Without faults, and in few rounds."""
        self.world.sent.clear()
        first = self.globals[0]
        first.plan = fitting(first.plan, self.world.group.budget)
        for _ in range(SETTLE_ROUNDS):
            if self._unfinished() is None:
                return
            self._quiet_round()
        raise AssertionError(self._unfinished())

    def _quiet_round(self) -> None:
        for name in NAMES:
            self.controller_acts(name, True)
            self.replicas_end(name, 99)
            self.local_works(name, 0)
        self.global_works(0)

    def _unfinished(self) -> str | None:
        for name, pool in self.world.pools.items():
            quota = self.globals[0].plan[name]
            want = min(self.wish[name], quota)
            book = pool.reservation
            state = (pool.quota, self.world.targets[name].replicas, book.bound, book.claim)
            if pool.leaving or state != (quota, want, want, None):
                return f"{name}: {state} instead of quota {quota}, {want} replicas"
        return None

    # Their parts.

    def outside(self) -> AbstractContextManager[None]:
        """An act of somebody that nobody can book."""
        return self.audit.outside(lambda: self.world)

    def _send(self, writes: list[Send], arrive: int) -> None:
        for write in writes[:arrive]:
            self._arrive(write)
        self.world.sent += writes[arrive:]
        del self.world.sent[:-MOST_SENT]

    def _arrive(self, write: Send) -> None:
        before = set(self.world.pools)
        self.world.deliver(write)
        self.audit.gone(before - self.world.pools.keys())
        self.check()
