"""What must hold of a modelled cluster, whoever its planners are.

For every resource:

* what may exist in a pool, writes on their way included, is at most what its book says;
* quotas that are written or on their way and what pools may hold fit the budget together, or, where
  something outside brought them above it, never come to exceed it by more.

What is outside are the hands of people. Where planners are in the middle of a round meanwhile, what
they go on to write is of what they had read before: that may add what a hand added, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.ledger_model import COSTS, MAXIMUM, NAMES, World

Amounts = dict[str, float]


def cost(name: str, resource: str) -> float:
    return COSTS[name].get(resource) or 0.0


class Audit:
    """Checks a cluster after every move.

    Attributes:
        forgiven: pools whose books something outside made wrong, until they are right again.
        abandoned: pools gone by force or by a false book, whatever they hold.
        level: of every resource, what may be granted or held: the budget, or what was caused.
    """

    def __init__(self, world: World) -> None:
        self.forgiven: set[str] = set()
        self.abandoned: set[str] = set()
        used = self.counted(world)
        self.level = {r: max(amount, used[r]) for r, amount in world.group.budget.items()}

    def check(self, world: World, *, in_flight: bool = False) -> None:
        """Look whether all holds.

        Args:
            world: as it is.
            in_flight: planners are in the middle of rounds.
        """
        self._books_tell_the_truth(world, in_flight=in_flight)
        used = self.counted(world)
        promised = None
        for resource, amount in world.group.budget.items():
            level = self.level[resource]
            assert used[resource] <= max(level, amount), (
                f"{resource}: {used[resource]:g} granted or held, budget {amount:g} ({level:g})"
            )
            if level > amount and not self.forgiven and not in_flight:
                promised = promised or self.counted(world, with_writes_sent=True)
                self.level[resource] = max(amount, min(level, promised[resource]))

    def check_quota(self, world: World, name: str, quota: int) -> None:
        """Look at a quota that is about to be written by a planner that sees all there is."""
        pool, used = world.pools[name], _booked(world)
        granted = (pool.reservation.bound or 0) if pool.quota is None else pool.quota
        for resource, amount in world.group.budget.items():
            over = cost(name, resource) > 0.0 and used[resource] > amount
            assert quota <= granted or not over, (
                f"{name}: quota {granted} raised to {quota}, although of {resource} "
                f"{used[resource]:g} are granted or held, budget {amount:g}"
            )

    @contextmanager
    def outside(self, look: Callable[[], World], *, in_flight: bool = False) -> Iterator[None]:
        """An act nobody can book: it may bring the cluster above budget, and books may be wrong."""
        world = look()
        was, budget = _booked(world), dict(world.group.budget)
        existed = {name: may_exist(world, name) for name in world.pools}
        yield
        world = look()
        grown = dict.fromkeys(budget, 0.0)
        for name in world.pools:
            exists = may_exist(world, name)
            growth = max(exists - existed.get(name, exists), 0) if in_flight else 0
            _add(grown, name, growth)
            if growth or exists > will_say(world, name):
                self.forgiven.add(name)
        hidden, granted, now = _hidden(world), _booked(world), _booked(world, with_books_sent=True)
        for resource, amount in world.group.budget.items():
            level = max(amount, now[resource]) + hidden[resource]
            if in_flight:
                before = max(self.level[resource], budget[resource])
                added = max(granted[resource] - was[resource], 0.0) + grown[resource]
                level = max(level, before + added)
            self.level[resource] = level

    def gone(self, names: set[str]) -> None:
        """Note pools that planners let go: whose book was falsified may be so too early."""
        self.abandoned |= names & self.forgiven

    def counted(self, world: World, *, with_writes_sent: bool = False) -> Amounts:
        """What is granted or may be held, by the truth of the world and not by the books alone."""
        quota_of = world.quota_may_be_claimed if with_writes_sent else world.quota_may_be
        used = dict.fromkeys(world.group.budget, 0.0)
        for name, pool in world.pools.items():
            sent = world.bound_may_be(name) if with_writes_sent else 0
            bound = max(pool.reservation.bound or 0, sent)
            _add(used, name, max(may_exist(world, name), quota_of(name), bound))
        for name in set(NAMES) - world.pools.keys() - self.abandoned:
            _add(used, name, world.may_exist(name))
        return used

    def _books_tell_the_truth(self, world: World, *, in_flight: bool) -> None:
        for name, pool in world.pools.items():
            bound, truth = pool.reservation.bound, may_exist(world, name)
            if will_say(world, name) >= truth and not in_flight:
                self.forgiven.discard(name)
            if bound is not None and bound < truth and name not in self.forgiven:
                raise AssertionError(f"{name}: {truth} replicas may come to be, booked are {bound}")


def may_exist(world: World, name: str) -> int:
    """What there may come to be of a pool, writes on their way included."""
    return world.may_exist(name) + world.may_be_raised(name)


def will_say(world: World, name: str) -> int:
    """What the book says or is about to; a pool without counts as the most it should have."""
    says = world.may_be_booked(name)
    return MAXIMUM if says is None else says


def _hidden(world: World) -> Amounts:
    """What may exist beside what books say."""
    hidden = dict.fromkeys(world.group.budget, 0.0)
    for name in world.pools:
        exists = may_exist(world, name)
        _add(hidden, name, exists - min(will_say(world, name), exists))
    return hidden


def _booked(world: World, *, with_books_sent: bool = False) -> Amounts:
    """What quotas and books take, or will; with books on their way, which others may forestall."""
    quota_of = world.quota_may_be_claimed if with_books_sent else world.quota_may_be
    booked = dict.fromkeys(world.group.budget, 0.0)
    for name in world.pools:
        says = min(will_say(world, name), may_exist(world, name))
        _add(booked, name, max(quota_of(name), world.bound_may_be(name), says))
    return booked


def _add(amounts: Amounts, name: str, replicas: int) -> None:
    for resource in amounts:
        amounts[resource] += replicas * cost(name, resource)
