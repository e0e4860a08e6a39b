"""Random schedules over the ledger: planners, faults and hands, and what must hold after every step.

After every rule, for every resource:

* what may exist in a pool, writes on their way included, is at most what its book says;
* quotas that are written or on their way and what pools may hold fit the budget together, or, where
  something outside brought them above it, never come to exceed it by more.

At the end all faults stop, and the cluster must arrive at the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hrl_planner.ledger import Pods, Reservation, Target
from tests.ledger_model import (
    COSTS,
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

LEADERS = 2  # of every planner: one, and one that has not noticed it is none any more
FEW = st.integers(0, 6)
NAME = st.sampled_from(NAMES)
LEADER = st.integers(0, LEADERS - 1)
BUDGETS = st.fixed_dictionaries(
    {
        "X": st.integers(0, 8).map(float),
        "Y": st.integers(0, 5).map(float),
        "total": st.integers(4, 12).map(float),
        "watts": st.sampled_from([2500.0, 6000.0]),
    }
)
PLANS = st.fixed_dictionaries(dict.fromkeys(NAMES, FEW))
SETTLE_ROUNDS = 60


def cost(name: str, resource: str) -> float:
    return COSTS[name].get(resource) or 0.0


def fitting(plan: dict[str, int], budget: dict[str, float]) -> dict[str, int]:
    """Cut a plan until it fits, as the projection would see to."""
    plan = dict(plan)
    for resource, amount in budget.items():
        while sum(n * cost(name, resource) for name, n in plan.items()) > amount:
            name = max(plan, key=lambda n: plan[n] * cost(n, resource))
            plan[name] -= 1
    return plan


class LedgerMachine(RuleBasedStateMachine):
    """See the module. `hands` lets people edit objects behind the planners' backs."""

    hands = False

    @initialize(budget=BUDGETS, plan=PLANS, running=PLANS, known=st.booleans(), data=st.data())
    def start(
        self,
        budget: dict[str, float],
        plan: dict[str, int],
        running: dict[str, int],
        known: bool,
        data: st.DataObject,
    ) -> None:
        """A cluster in any state, over budget or not, known to the books or not."""
        self.world = World(
            group=Group(1, budget, fitting(plan, budget)),
            pools={
                name: Pool(
                    uid=i,
                    version=10 + i,
                    quota=data.draw(st.none() | FEW) if known else None,
                    reservation=Reservation(running[name] if known else None),
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
        self.globals = [GlobalPlanner(self.world) for _ in range(LEADERS)]
        self.locals = {name: [LocalPlanner(self.world, name) for _ in "ab"] for name in NAMES}
        self.forgiven: set[str] = set()
        self.level = {r: max(amount, self.counted()[r]) for r, amount in budget.items()}

    # Planners.

    @rule(leader=LEADER, refresh=st.booleans(), arrive=st.integers(0, 4))
    def global_planner_looks(self, leader: int, refresh: bool, arrive: int) -> None:
        """Its writes are sent; some arrive at once and the others some time."""
        planner = self.globals[leader]
        if refresh:
            planner.refresh(self.world)
        sends, _ = planner.step(self.world)
        self.send(sends, arrive)

    @rule(name=NAME, leader=LEADER, refresh=st.booleans(), arrive=st.booleans())
    def local_planner_looks(self, name: str, leader: int, refresh: bool, arrive: bool) -> None:
        planner = self.locals[name][leader]
        if refresh:
            planner.refresh(self.world)
        self.send(planner.step(self.world, self.wish[name]), int(arrive))

    @rule(name=NAME, leader=LEADER, steps=st.integers(2, 4))
    def local_planner_works(self, name: str, leader: int, steps: int) -> None:
        """An interval without faults."""
        for _ in range(steps):
            self.local_planner_looks(name, leader, True, True)

    @rule(leader=LEADER, steps=st.integers(2, 3))
    def global_planner_works(self, leader: int, steps: int) -> None:
        for _ in range(steps):
            self.global_planner_looks(leader, True, 99)

    @rule(leader=LEADER)
    def watch_of_a_global_planner_catches_up(self, leader: int) -> None:
        self.globals[leader].refresh(self.world)

    @rule(name=NAME, leader=LEADER)
    def watch_of_a_local_planner_catches_up(self, name: str, leader: int) -> None:
        self.locals[name][leader].refresh(self.world)

    @rule(plan=PLANS)
    def plan_changes(self, plan: dict[str, int]) -> None:
        self.world.touch_group(plan=fitting(plan, self.world.group.budget))

    @rule(name=NAME, wish=FEW)
    def load_changes(self, name: str, wish: int) -> None:
        self.wish[name] = wish

    # The network.

    @precondition(lambda self: self.world.sent)
    @rule(which=st.integers(0, 1000), again=st.booleans())
    def write_arrives(self, which: int, again: bool) -> None:
        """Late, in any order, and perhaps twice."""
        write = self.world.sent[which % len(self.world.sent)]
        if not again:
            self.world.sent.remove(write)
        self.arrive(write)

    @precondition(lambda self: self.world.sent)
    @rule(which=st.integers(0, 1000))
    def write_is_lost(self, which: int) -> None:
        self.world.sent.pop(which % len(self.world.sent))

    # What lives behind the targets.

    @rule(name=NAME, catch_up=st.booleans())
    def controller_acts(self, name: str, catch_up: bool) -> None:
        self.world.controller(name, catch_up=catch_up)
        self.world.touch_target(name)

    @rule(name=NAME, count=st.integers(1, 6))
    def replicas_finish_draining(self, name: str, count: int) -> None:
        pods = self.world.pods[name]
        self.world.pods[name] = Pods(pods.live, max(pods.draining - count, 0))

    @rule(name=NAME)
    def target_reports_status(self, name: str) -> None:
        self.world.touch_target(name)

    @rule(name=NAME)
    def pool_reports_status(self, name: str) -> None:
        if name in self.world.pools:
            self.world.touch_pool(name)

    @rule(name=NAME)
    def pool_is_deleted(self, name: str) -> None:
        pool = self.world.pools.get(name)
        if pool is not None and pool.finalizer:
            self.world.touch_pool(name, leaving=True)

    @rule(name=NAME)
    def pool_is_created(self, name: str) -> None:
        if name not in self.world.pools:
            version = self.world.next_version()
            with self.outside():
                self.world.pools[name] = Pool(uid=version, version=version, quota=None)

    # Hands.

    @precondition(lambda self: self.hands)
    @rule(name=NAME, replicas=FEW)
    def target_is_scaled_by_hand(self, name: str, replicas: int) -> None:
        with self.outside():
            self.world.touch_target(name, replicas)

    @precondition(lambda self: self.hands)
    @rule(name=NAME, quota=st.none() | FEW)
    def quota_is_edited(self, name: str, quota: int | None) -> None:
        if name in self.world.pools:
            with self.outside():
                self.world.touch_pool(name, quota=quota)

    @precondition(lambda self: self.hands)
    @rule(name=NAME, replicas=st.none() | FEW)
    def status_is_edited(self, name: str, replicas: int | None) -> None:
        if name in self.world.pools:
            book = self.world.pools[name].reservation
            if replicas is None and book.claim is not None:
                return
            with self.outside():
                self.world.touch_pool(name, reservation=Reservation(replicas, book.claim))

    @precondition(lambda self: self.hands)
    @rule(name=NAME)
    def pod_is_evicted(self, name: str) -> None:
        pods = self.world.pods[name]
        if pods.live:
            with self.outside():
                self.world.pods[name] = Pods(pods.live - 1, pods.draining + 1)

    @precondition(lambda self: self.hands)
    @rule(budget=BUDGETS)
    def budget_is_changed(self, budget: dict[str, float]) -> None:
        with self.outside():
            plan = fitting(self.world.group.plan, budget)
            self.world.touch_group(budget=budget, plan=plan)

    @precondition(lambda self: self.hands)
    @rule(name=NAME)
    def pool_is_deleted_by_force(self, name: str) -> None:
        with self.outside():
            self.world.pools.pop(name, None)

    # What must hold.

    @invariant()
    def books_tell_the_truth(self) -> None:
        if not hasattr(self, "world"):
            return
        for name, pool in self.world.pools.items():
            bound = pool.reservation.bound
            if bound is None:
                self.forgiven.discard(name)
                continue
            truth = self.world.may_exist(name) + self.world.may_be_raised(name)
            if bound >= truth:
                self.forgiven.discard(name)
            assert name in self.forgiven or truth <= bound, (
                f"{name}: {truth} replicas may come to be, its book says {bound}"
            )

    @invariant()
    def budget_holds(self) -> None:
        if not hasattr(self, "world"):
            return
        used = self.counted()
        for resource, amount in self.world.group.budget.items():
            level = self.level[resource]
            assert used[resource] <= max(level, amount), (
                f"{resource}: {used[resource]:g} granted or held, budget {amount:g}, level {level:g}"
            )
            if not self.forgiven:
                self.level[resource] = max(amount, min(level, used[resource]))

    def teardown(self) -> None:
        """Without faults the cluster arrives at the plan, in few rounds."""
        if not hasattr(self, "world"):
            return
        self.world.sent.clear()
        for _ in range(SETTLE_ROUNDS):
            if self.unfinished() is None:
                break
            self.quiet_round()
        assert self.unfinished() is None, self.unfinished()

    # Their parts.

    def counted(self) -> dict[str, float]:
        """What is granted or may be held, by the truth of the world and not by the books alone."""
        used = dict.fromkeys(self.world.group.budget, 0.0)
        for name, pool in self.world.pools.items():
            exists = self.world.may_exist(name) + self.world.may_be_raised(name)
            bound = pool.reservation.bound
            replicas = max(exists, self.world.quota_may_be(name), bound or 0)
            for resource in used:
                used[resource] += replicas * cost(name, resource)
        return used

    @contextmanager
    def outside(self) -> Iterator[None]:
        """An act nobody can book: it may bring the cluster above budget, and books may be wrong."""
        yield
        used = self.counted()
        hidden = dict.fromkeys(used, 0.0)
        for name, pool in self.world.pools.items():
            exists = self.world.may_exist(name) + self.world.may_be_raised(name)
            bound = pool.reservation.bound
            if bound is not None and exists > bound:
                self.forgiven.add(name)
                for resource in used:
                    unseen = max(exists - max(bound, pool.quota or 0), 0)
                    hidden[resource] += unseen * cost(name, resource)
        for resource, amount in self.world.group.budget.items():
            booked = used[resource] - hidden[resource]
            self.level[resource] = max(amount, booked) + hidden[resource]

    def send(self, writes: list[Send], arrive: int) -> None:
        for i, write in enumerate(writes):
            if i < arrive:
                self.arrive(write)
            else:
                self.world.sent.append(write)

    def arrive(self, write: Send) -> None:
        """Nothing a planner sends is more than allowed, whatever became of the world since."""
        self.world.deliver(write)
        self.books_tell_the_truth()
        self.budget_holds()

    def quiet_round(self) -> None:
        for name in NAMES:
            self.controller_acts(name, True)
            self.replicas_finish_draining(name, 99)
            for _ in range(4):
                self.local_planner_looks(name, 0, True, True)
        for _ in range(4):
            self.global_planner_looks(0, True, 99)

    def unfinished(self) -> str | None:
        """What is not yet as planned."""
        group = self.world.group
        for name, pool in self.world.pools.items():
            state: tuple[Any, ...] = (pool.quota, self.world.targets[name].replicas)
            state += (pool.reservation.bound, pool.reservation.claim)
            quota = group.plan[name]
            want = min(self.wish[name], quota)
            if pool.leaving or state != (quota, want, want, None):
                return f"{name}: {state} instead of quota {quota}, {want} replicas"
        return None
