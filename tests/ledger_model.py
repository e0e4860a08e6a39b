"""A model of the API server and of what lives behind it, for the ledger's state machine.

Objects have versions; a write names the version it was made for and is refused at any other.
Writes travel: they are sent, and then delivered late, twice, out of order or never. A scale
target's controller works through what it was asked one after another, as late as it likes; pods
drain as late as they like. Planners see copies of objects, each as old as the last time it was
refreshed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hrl_planner.ledger import (
    Account,
    Claim,
    Idle,
    Pods,
    PoolView,
    QuotaWrite,
    ReadFresh,
    Reservation,
    Target,
    WriteReservation,
    WriteTarget,
)
from hrl_planner.ledger import quotas as quotas_side
from hrl_planner.ledger import replicas as replicas_side

COSTS: dict[str, dict[str, float | None]] = {
    "a": {"X": 1.0, "total": 1.0, "watts": 500.0},
    "b": {"X": 2.0, "total": 2.0, "watts": 700.0},
    "c": {"Y": 1.0, "total": 1.0, "watts": 300.0},
}
NAMES = tuple(COSTS)
MAXIMUM = 8


class Group(NamedTuple):
    """A ServingGroup: the budget in its spec, the book in its status."""

    version: int
    budget: dict[str, float]
    claims: tuple[Claim, ...] = ()


class Pool(NamedTuple):
    """A WorkerPool."""

    uid: int
    version: int
    quota: int | None
    reservation: Reservation = Reservation()
    finalizer: bool = False
    leaving: bool = False


class Backlog(NamedTuple):
    """What a target's controller acts on, and what it was asked since."""

    seen: int
    later: tuple[int, ...] = ()


class Send(NamedTuple):
    """A write on its way."""

    kind: str  # book, quota, release, reservation, target
    pool: str
    version: int
    value: object


@dataclass
class World:
    """The API server's objects, and pods."""

    group: Group
    pools: dict[str, Pool]
    targets: dict[str, Target]
    pods: dict[str, Pods]
    backlog: dict[str, Backlog]
    version: int = 100
    sent: list[Send] = field(default_factory=list)

    def next_version(self) -> int:
        self.version += 1
        return self.version

    def touch_target(self, name: str, replicas: int | None = None) -> None:
        """Change a target: what is asked of it, or only its status."""
        target = self.targets[name]
        version = str(self.next_version())
        if replicas is None or replicas == target.replicas:
            if replicas is None:
                self.targets[name] = replace(target, version=version)
            return
        self.targets[name] = Target(replicas, version, f"generation {version}")
        seen, later = self.backlog[name]
        self.backlog[name] = Backlog(seen, (*later, replicas))

    def touch_neighbour(self, name: str) -> None:
        """Scale another target that shares its object with this one, as components of a DGD do."""
        version = str(self.next_version())
        target = self.targets[name]
        self.targets[name] = Target(target.replicas, version, f"generation {version}")

    def touch_pool(self, name: str, **changes: object) -> None:
        pool = self.pools[name]._replace(**changes)  # type: ignore[arg-type]
        self.pools[name] = pool._replace(version=self.next_version())

    def touch_group(self, **changes: object) -> None:
        group = self.group._replace(**changes)  # type: ignore[arg-type]
        self.group = group._replace(version=self.next_version())

    def deliver(self, write: Send) -> bool:
        """Carry out a write if the object still has the version it names."""
        if write.kind == "book":
            if self.group.version != write.version:
                return False
            self.touch_group(claims=write.value)
            return True
        if write.kind == "target":
            if self.targets[write.pool].version != str(write.version):
                return False
            assert isinstance(write.value, int)
            self.touch_target(write.pool, write.value)
            return True
        pool = self.pools.get(write.pool)
        if pool is None or pool.version != write.version:
            return False
        if write.kind == "quota":
            self.touch_pool(write.pool, quota=write.value, finalizer=True)
        elif write.kind == "release":
            del self.pools[write.pool]
        else:
            self.touch_pool(write.pool, reservation=write.value)
        return True

    def controller(self, name: str, *, catch_up: bool) -> None:
        """Let a target's controller look (at the next thing asked, or at the last) and act."""
        seen, later = self.backlog[name]
        if later:
            seen, later = (later[-1], ()) if catch_up else (later[0], later[1:])
        self.backlog[name] = Backlog(seen, later)
        live, draining = self.pods[name].live, self.pods[name].draining
        surplus = max(live - seen, 0)
        self.pods[name] = Pods(max(live - surplus, seen), draining + surplus)

    def may_exist(self, name: str) -> int:
        """Replicas there may come to be if no more is asked of the target: the proof's E."""
        live, draining = self.pods[name].live, self.pods[name].draining
        total, at = draining + live, live
        for asked in (self.backlog[name].seen, *self.backlog[name].later):
            total, at = total + max(asked - at, 0), asked
        return total

    def may_be_raised(self, name: str) -> int:
        """What a claim or writes on their way may still add to a target: one, by its version."""
        target = self.targets[name]
        claim = self.pools[name].reservation.claim
        claimed = claim.to - claim.start if claim and claim.version == target.version else 0
        on_their_way = [
            write.value - target.replicas
            for write in self.sent
            if write.kind == "target" and write.pool == name
            and str(write.version) == target.version and isinstance(write.value, int)
        ]  # fmt: skip
        return max([claimed, *on_their_way])

    def quota_may_be(self, name: str) -> int:
        """The largest quota that is written, claimed, or on its way and will be accepted."""
        pool = self.pools[name]
        on_their_way = [
            write.value
            for write in self.sent
            if write.kind == "quota" and write.pool == name and write.version == pool.version
            and isinstance(write.value, int)
        ]  # fmt: skip
        return max([pool.quota or 0, *on_their_way, *self._claimed(name, self.group.claims)])

    def quota_may_be_claimed(self, name: str) -> int:
        """The same, with books on their way. Of several only one will be accepted."""
        books = [
            write.value
            for write in self.sent
            if write.kind == "book" and write.version == self.group.version
            and isinstance(write.value, tuple)
        ]  # fmt: skip
        claimed = (self._claimed(name, book) for book in books)
        return max([self.quota_may_be(name), *(n for quotas in claimed for n in quotas)])

    def _claimed(self, name: str, claims: tuple[Claim, ...]) -> list[int]:
        pool = self.pools[name]
        return [
            claim.quota
            for claim in claims
            if (claim.pool, claim.uid, claim.version) == (name, str(pool.uid), str(pool.version))
        ]

    def bound_may_be(self, name: str) -> int:
        """The most the pool's book says or will say when writes on their way are accepted."""
        return max([self.pools[name].reservation.bound or 0, *self._bounds_sent(name)])

    def _bounds_sent(self, name: str) -> list[int]:
        version = self.pools[name].version
        return [
            write.value.bound or 0
            for write in self.sent
            if write.kind == "reservation" and write.pool == name and write.version == version
            and isinstance(write.value, Reservation)
        ]  # fmt: skip

    def may_be_booked(self, name: str) -> int | None:
        """The least the pool's book says or will say when writes on their way are accepted."""
        book, target = self.pools[name].reservation, self.targets[name]
        claim, bound = book.claim, book.bound
        if claim and claim.version != target.version and claim.spec_version == target.spec_version:
            bound = book.replicas
        return min([*self._bounds_sent(name), *([] if bound is None else [bound])], default=None)

    def settled(self, name: str) -> bool:
        """What waiting for longer than the controller lags makes sure of."""
        return not self.backlog[name].later


class GlobalPlanner:
    """A leader, or one that believes it is: a plan, copies of the group and of the pools.

    Whether it counts pods itself must not matter to safety.
    """

    def __init__(self, world: World, plan: dict[str, int], *, counts_pods: bool) -> None:
        self.plan = plan
        self.counts_pods = counts_pods
        self.refresh(world)

    def refresh(self, world: World, what: str = "all") -> None:
        if what in ("all", "group"):
            self.group = world.group
        if what in ("all", "pools"):
            self.pools = dict(world.pools)
            self.seen = {name: pods.live + pods.draining for name, pods in world.pods.items()}

    def step(self, world: World) -> list[Send]:
        """Return the writes of one look, in any order."""
        settlement = self._settle(fresh=False)
        if settlement.stale:
            self.pools = dict(world.pools)
            settlement = self._settle(fresh=True)
        quotas: tuple[QuotaWrite, ...] = (*settlement.lower, *settlement.raises)
        sends = [Send("quota", w.pool, int(w.version), w.quota) for w in quotas]
        sends += [Send("release", a.name, int(a.version), None) for a in settlement.release]
        if settlement.book is not None:
            sends.append(Send("book", "", self.group.version, settlement.book))
        return sends

    def _settle(self, *, fresh: bool) -> quotas_side.Settlement:
        seen = self.seen if self.counts_pods else dict.fromkeys(self.seen, 0)
        accounts = [account(name, pool, seen[name]) for name, pool in self.pools.items()]
        group = self.group
        return quotas_side.settle(group.budget, accounts, group.claims, self.plan, fresh=fresh)


def account(name: str, pool: Pool, seen: int = 0) -> Account:
    return Account(
        name=name,
        uid=str(pool.uid),
        version=str(pool.version),
        quota=pool.quota,
        reserved=pool.reservation.bound,
        maximum=MAXIMUM,
        cost=COSTS[name],
        seen=seen,
        leaving=pool.leaving,
    )


class LocalPlanner:
    """A pool's planner: copies of its pool, target and pods."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.refresh(world)

    def refresh(self, world: World, what: str = "all") -> None:
        if what in ("all", "pool"):
            self.pool = world.pools.get(self.name)
        if what in ("all", "target"):
            self.look(world)

    def look(self, world: World, *, pods: bool = True) -> None:
        self.target = world.targets[self.name]
        if pods:
            self.pods = world.pods[self.name]

    def step(self, world: World, wanted: int) -> list[Send]:
        if self.pool is None:
            return []
        step = self._next(world, wanted, fresh=False)
        if isinstance(step, ReadFresh):
            self.look(world, pods=self.pool.reservation.claim is None)
            step = self._next(world, wanted, fresh=True)
        if isinstance(step, WriteTarget):
            return [Send("target", self.name, int(step.version), step.replicas)]
        if isinstance(step, WriteReservation):
            return [Send("reservation", self.name, self.pool.version, step.reservation)]
        assert isinstance(step, Idle), step
        return []

    def _next(self, world: World, wanted: int, *, fresh: bool) -> replicas_side.Step:
        assert self.pool is not None
        view = PoolView(
            quota=0 if self.pool.leaving else self.pool.quota,
            reservation=self.pool.reservation,
            target=self.target,
            pods=self.pods,
            settled=world.settled(self.name),
            fresh=fresh,
        )
        return replicas_side.next_step(view, wanted)
