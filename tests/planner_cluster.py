"""Global and local planners, two leaders of each, on a modelled API server that goes wrong.

The planners are those the pods run, and so is the connector between them and the server. Each
leader looks at copies of objects as old as the schedule likes. Before every request of a planner
others may act, whole rounds of other planners included, so that any two requests have anything
between them. A write may be lost, come late, come twice, be refused, or lose its answer; a planner
may die before a write or after it, and begins anew without memory.

What must hold is in `ledger_audit.py`; it is looked at after every write and every other move.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from random import Random
from typing import Any

from urllib3.exceptions import HTTPError

from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.control.local_planner import SETTLE_S
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.crds import GROUPS, POOLS
from tests.ledger_audit import Audit
from tests.ledger_cluster import fitting
from tests.ledger_model import MAXIMUM, NAMES
from tests.modelled_kubernetes import (
    DEPLOYMENTS,
    PODS,
    STORED,
    Answer,
    ModelClient,
    Request,
    Store,
    refusal,
)
from tests.planner_leaders import Leader, Told, Watches
from tests.planner_site import (
    GLOBAL_S,
    GROUP_NAME,
    LOCAL_S,
    MOST_SENT,
    NAMESPACE,
    Mood,
    budget_spec,
    some_budget,
    some_site,
)

LEADERS = 2  # of every planner: one, and one that has not noticed that it is none any more
DEEPEST = 3  # rounds within rounds
SETTLE_ROUNDS = 60
QUIET_S = SETTLE_S + 1.0
FATES = ("lost", "late", "answer lost", "repeated", "refused", "dies before", "dies after")


class Crash(BaseException):
    """The process of a planner is gone."""


class PlannerCluster:
    """One schedule.

    Args:
        random: of all that happens; the smaller its numbers, the less does.
        hands: people are in it, too.
    """

    def __init__(self, random: Random, *, hands: bool) -> None:
        self.random = random
        self.journal: list[str] = []
        self.mood: Mood = random.choice(["leaders", "pool", "any", "any"])
        self.site, self.follows_quota = some_site(random, self.mood)
        self.audit = Audit(self.site.world())
        self._parsed: dict[str, Any] = {}  # by version, which no two objects have in common
        self._client = Connector(ModelClient(self._carry), NAMESPACE)
        self.leaders = [self._leader(name) for name in ("", *NAMES) for _ in range(LEADERS)]
        self._depth = 0
        self._calm = False
        self._others_act = random.choice([0, 5, 20, 40])  # percent, like the next two
        self._fates = [random.choice([0, 0, 2, 5, 15]) for _ in FATES]
        self._late = random.choice([10, 50, 90])  # how often a watch has not caught up
        self._names = random.sample(NAMES, k=1 if self.mood == "pool" else 2)
        if self.mood == "leaders" and self._chance(70):
            self._names = ["a", "b"]  # of one GPU type
        # Each as often as it is to happen; without the first two nothing would come of the others.
        self._kinds = [
            kind
            for i, kind in enumerate(self._may_happen(hands=hands))
            for _ in range(random.choice([3, 12] if i < 2 else [0, 1, 3, 12]))
        ]

    def run(self, *, fewest: int = 10, most: int = 40) -> None:
        """Let things happen, then none that should not, and look at all times.

        Args:
            fewest: moves, those between requests aside.
            most: moves.
        """
        try:
            self.check()
            if self.mood == "leaders":
                self._disagree()
            for _ in range(self.random.randint(fewest, most)):
                self._move()
            self.arrives_at_the_plan()
        except AssertionError as error:
            error.add_note("\n".join(self.journal[-60:]))
            raise

    def check(self) -> None:
        self.audit.check(self.site.world(), in_flight=self._depth > 0)

    # Planners.

    def _leader(self, name: str) -> Leader:
        plan = {n: self.random.randrange(7) for n in NAMES}
        view = self._present()
        look = Watches(view, self._client, self._parsed)

        def make() -> GlobalPlanner | LocalPlanner:
            kind, of = (LocalPlanner, name) if name else (GlobalPlanner, GROUP_NAME)
            return kind(self._client, of, NoMetrics(), lambda: self.site.now_s, look=look)

        return Leader(name, fitting(plan, self.site.budget), view, make)

    def _present(self) -> Store:
        return {kind: dict(self.site.api.objects[kind]) for kind in STORED}

    def _round(self, leader: Leader) -> None:
        if leader.busy:
            return
        outer, Told.plan = Told.plan, leader.plan
        self._depth += 1
        leader.busy = True
        try:
            leader.planner.round()
        except Crash:
            self._note("dead")
            leader.planner = leader.make()
        except (HrlPlannerError, HTTPError) as error:
            self._note(f"gave up: {error}")
        finally:
            self._depth -= 1
            leader.busy = False
            Told.plan = outer
        self.check()

    # Requests.

    def _carry(self, request: Request) -> Answer:
        """Take a planner's request to the server, if nothing happens to it."""
        if self._calm or not request.writes:
            self._others(request)
            return self.site.api.answer(request) if not request.writes else self._write(request)
        self._others(request)
        fate = self._fate()
        if fate == "dies before":
            raise Crash
        if fate == "refused":
            return refusal(self.random.choice([403, 500]), request)
        if fate == "late":
            self.site.sent.append(request)
            del self.site.sent[:-MOST_SENT]
        if fate in ("lost", "late"):
            raise HTTPError(fate)
        answer = self._write(request)
        if fate == "dies after":
            raise Crash
        if fate == "answer lost":
            raise HTTPError(fate)
        return self._write(request) if fate == "repeated" else answer

    def _fate(self) -> str:
        left = self._percentile()
        for fate, share in zip(FATES, self._fates, strict=True):
            left -= share
            if left <= 0:
                return fate
        return "arrives"

    def _others(self, request: Request) -> None:
        if not self._calm and self._depth < DEEPEST and self._chance(self._others_act):
            self._move()

    def _write(self, request: Request) -> Answer:
        quota = (request.body or {}).get("spec", {}).get("quota")
        if self._calm and quota is not None:
            self.audit.check_quota(self.site.world(), request.name, quota)
        before = set(self.site.pools)
        bereft = self.site.is_bereft(request)
        with self._outside() if bereft else nullcontext():
            answer = self.site.write(request)
        self._note(
            f"{request.method} {request.plural} {request.name} {request.part} "
            f"{request.body} -> {answer.status}"
        )
        self.audit.gone(before - set(self.site.pools))
        self.check()
        return answer

    def _chance(self, percent: int) -> bool:
        return self._percentile() <= percent

    def _percentile(self) -> int:
        """One of a hundred; that which hypothesis finds simplest is that of what is rare."""
        return 100 - self.random.randrange(100)

    def _note(self, what: str) -> None:
        self.journal.append(f"{self.site.now_s:g} s: {'  ' * self._depth}{what}")

    # Moves.

    def _move(self) -> None:
        self.random.choice(self._kinds)()
        self.check()

    def _disagree(self) -> None:
        """Each leader would give all it can to another pool, and leave the rest as it is."""
        self.random.shuffle(self._names)
        pools = self.site.pools
        has = {n: pools[n]["spec"].get("quota") or 0 if n in pools else 0 for n in NAMES}
        for leader, favourite in zip(self.leaders[:LEADERS], self._names, strict=True):
            leader.view.update(self._present())
            leader.plan = more = fitting(has, self.site.budget)
            while fitting(more, self.site.budget) == more and more[favourite] <= MAXIMUM:
                leader.plan, more = more, more | {favourite: more[favourite] + 1}
        self._happens(self.site.time_passes, LOCAL_S)

    def _all_but_nothing(self) -> None:
        """A plan that makes room for others."""
        self.leaders[0].plan = dict.fromkeys(NAMES, self.random.randrange(2))
        for _ in range(3):
            self._quiet_round()

    def _may_happen(self, *, hands: bool) -> list[Callable[[], None]]:
        random, site, mood = self.random, self.site, self.mood
        globals_, locals_ = self.leaders[:LEADERS], self.leaders[LEADERS:]
        locals_ = [leader for leader in locals_ if leader.name in self._names]

        def name() -> str:
            return random.choice(self._names)

        def few() -> int:
            return random.randrange(7)

        def budget() -> Any:
            return budget_spec(some_budget(random))

        kinds: list[Callable[[], None]] = []
        if mood != "pool":
            kinds += [
                lambda: self._looks(globals_[0]),
                lambda: self._looks(globals_[1]),
                lambda: self._works(random.choice(globals_)),
            ]
        if mood != "leaders":
            kinds += [
                lambda: self._looks(random.choice(locals_)),
                lambda: self._works(random.choice(locals_)),
                lambda: self._plans(random.choice(locals_)),
                lambda: self._happens(site.controller_acts, name(), catch_up=few() > 2),
                lambda: self._happens(site.status_is_reported, name()),
                lambda: self._happens(site.replicas_end, name(), 1 + few()),
                lambda: self._happens(site.time_passes, SETTLE_S),
            ]
        else:
            kinds += [self._disagree, self._all_but_nothing]
        kinds += [
            self._write_arrives,
            lambda: self._happens(site.time_passes, random.choice([1.0, LOCAL_S, GLOBAL_S])),
        ]
        if mood == "any":
            kinds += [
                self._quiet_round,
                lambda: self._plans(random.choice(globals_)),
                lambda: self._pool_comes_or_goes(name()),
            ]
        if hands:
            kinds += [
                lambda: self._by_hand(DEPLOYMENTS, name(), {"replicas": few()}),
                lambda: self._by_hand(POOLS, name(), {"quota": random.choice([None, few()])}),
                lambda: self._by_hand(GROUPS, GROUP_NAME, {"budget": budget()}),
                lambda: self._book_is_edited(name()),
                lambda: self._pod_is_evicted(name()),
                lambda: self._pool_is_deleted_by_force(name()),
            ]
        return kinds

    def _happens(self, act: Callable[..., None], *args: Any, **how: Any) -> None:
        self._note(f"{act.__name__} {args} {how or ''}")
        act(*args, **how)

    def _looks(self, leader: Leader) -> None:
        """A round on what its watches tell, some of them just now."""
        for kind in STORED:
            if not self._chance(self._late):
                leader.view[kind] = dict(self.site.api.objects[kind])
        self._note(f"round of {leader.name or 'group'}")
        self._round(leader)

    def _works(self, leader: Leader) -> None:
        """A round on the present."""
        leader.view.update(self._present())
        self._note(f"work of {leader.name or 'group'}")
        self._round(leader)

    def _plans(self, leader: Leader) -> None:
        plan = {n: self.random.randrange(7) for n in NAMES}
        leader.plan = plan if leader.name else fitting(plan, self.site.budget)
        self.site.time_passes(LOCAL_S)

    def _write_arrives(self) -> None:
        """Late, in any order, perhaps to arrive again, or never."""
        sent = self.site.sent
        if not sent:
            return
        which = self.random.randrange(len(sent))
        fate = self.random.choice(["arrives", "arrives", "again", "lost"])
        request = sent[which] if fate == "again" else sent.pop(which)
        if fate != "lost":
            self._write(request)

    def _pool_comes_or_goes(self, name: str) -> None:
        pool = self.site.pools.get(name)
        if pool is None:
            self.audit.abandoned.discard(name)
            with self._outside():
                self.site.create_pool(name)
        elif pool["metadata"].get("finalizers"):
            self._write(Request("DELETE", POOLS, name))

    # Hands.

    def _outside(self) -> Any:
        return self.audit.outside(self.site.world, in_flight=self._depth > 0)

    def _by_hand(self, plural: str, name: str, spec: Any) -> None:
        if plural == GROUPS or name in self.site.pools:
            self._note(f"by hand: {plural} {name} {spec}")
            with self._outside():
                self.site.write(Request("PATCH", plural, name, body={"spec": spec}))

    def _book_is_edited(self, name: str) -> None:
        status = self.site.pools.get(name, {}).get("status", {})
        replicas = self.random.choice([None, self.random.randrange(7)])
        if name in self.site.pools and (replicas is not None or "claim" not in status):
            self._note(f"by hand: book of {name} {replicas}")
            body = {"status": {"reserved": replicas}}
            with self._outside():
                self.site.write(Request("PATCH", POOLS, name, "status", body=body))

    def _pod_is_evicted(self, name: str) -> None:
        live, _ = self.site.pods(name)
        if live and name in self.site.pools:
            self._note(f"evicted: {live[0]}")
            with self._outside():
                self.site.api.answer(Request("DELETE", PODS, live[0]))

    def _pool_is_deleted_by_force(self, name: str) -> None:
        if name in self.site.pools:
            self._note(f"by force: {name}")
            self.audit.forgiven.discard(name)
            self.audit.abandoned.add(name)
            with self._outside():
                self.site.remove_pool(name)

    # Without faults.

    def arrives_at_the_plan(self) -> None:
        """Without faults, and in few rounds; what books still keep goes when others may want it."""
        self.site.sent.clear()
        self._calm = True
        first = self.leaders[0]
        first.plan = fitting(first.plan, self.site.budget)
        self._settles()
        if any(pool["status"].get("claim") for pool in self.site.pools.values()):
            first.plan = dict.fromkeys(NAMES, 0)
            self._settles()

    def _settles(self) -> None:
        for _ in range(SETTLE_ROUNDS):
            if self._unfinished() is None:
                return
            self._quiet_round()
        raise AssertionError(self._unfinished())

    def _quiet_round(self) -> None:
        """All see what is there, and the first leaders work."""
        self._note("a quiet round")
        self.site.time_passes(QUIET_S)
        for name in NAMES:
            self.site.controller_acts(name, catch_up=True)
            self.site.replicas_end(name, 99)
            self.site.status_is_reported(name)
        for leader in self.leaders[::LEADERS]:
            leader.view.update(self._present())
            self._round(leader)

    def _unfinished(self) -> str | None:
        for name, pool in self.site.pools.items():
            quota = self.leaders[0].plan[name]
            wish = self.leaders[LEADERS * (1 + NAMES.index(name))].plan[name]
            want = quota if self.follows_quota else min(wish, quota)
            status, replicas = pool.get("status", {}), self.site.replicas(name)
            claim, reserved = status.get("claim"), status.get("reserved")
            # A claim that nobody wants any more stands until its target changes, and `reserved`
            # does not sink meanwhile. While both together fit the quota, which counts anyway, that
            # takes nothing from others; with a lower quota the claim must go (the second plan).
            most = quota - (claim["to"] - claim["start"]) if claim else want
            booked = reserved is not None and want <= reserved <= most
            leaving = "deletionTimestamp" in pool["metadata"]
            has = (pool["spec"].get("quota"), replicas)
            if leaving or not booked or has != (quota, want):
                state = f"{(*has, reserved)}, {claim}"
                return f"{name}: {state} instead of quota {quota}, {want} replicas"
        return None
