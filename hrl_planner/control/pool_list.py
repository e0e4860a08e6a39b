"""The pools of a group as they were listed: understood or not, and who scales what.

Every pool counts against the budget, whatever is wrong with it. One that cannot be understood may
hold anything of everything; of two that name one target the older alone scales it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hrl_planner.control.targets import identity
from hrl_planner.kube.convert import accounts_of, budget_of
from hrl_planner.kube.resources import ServingGroup, WorkerPool
from hrl_planner.ledger import Account, Claim


@dataclass(frozen=True, slots=True)
class PoolList:
    """Pools of a group, or of a namespace.

    Attributes:
        pools: by name.
        unreadable: pools that cannot be understood, and why.
        taken: pools whose target an older pool of the namespace names, too, and which.
    """

    pools: tuple[WorkerPool, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)


def taken_targets(pools: Iterable[WorkerPool]) -> dict[str, str]:
    """Return the pools whose target is another's, and the pool that has the right to it."""
    oldest: dict[tuple[str, str, str], str] = {}
    taken = {}
    ages = sorted(pools, key=lambda p: (p.metadata.creation_timestamp or "", p.metadata.uid))
    for pool in ages:
        first = oldest.setdefault(identity(pool.spec.scale_target_ref), pool.name)
        if first != pool.name:
            taken[pool.name] = first
    return taken


def claims_of(group: ServingGroup) -> tuple[Claim, ...]:
    """Return the group's book."""
    return tuple(Claim(c.pool, c.uid, c.version, c.quota) for c in group.status.claims)


def accounts(group: ServingGroup, listed: PoolList) -> list[Account]:
    """Return the pools as the ledger counts them."""
    unknown: dict[str, float | None] = dict.fromkeys(budget_of(group))
    strangers = [
        Account(name, "", "", quota=None, reserved=None, maximum=1, cost=unknown)
        for name in listed.unreadable
    ]
    return [*accounts_of(group, listed.pools), *strangers]
