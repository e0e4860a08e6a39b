"""The global side of the ledger: which quota writes are safe now, and why others must wait.

A plan says what every pool should have. `settle` compares it with the pools as read and answers
with quotas to lower (safe always), quotas to raise (claimed in the group's book before), and the
book as it should be written before anything else is raised. It knows amounts of named resources
("H200", "total", "watts") and nothing of Kubernetes; the protocol and its proof open the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

_SLACK = 1e-6  # watts are real numbers

Amounts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Claim:
    """An entry of the group's book: a quota about to be raised.

    Attributes:
        pool: name.
        uid: of the pool object; one recreated under the name is another.
        version: of the pool object, the only one at which the quota may be raised.
        quota: to what.
    """

    pool: str
    uid: str
    version: str
    quota: int


@dataclass(frozen=True, slots=True)
class Account:
    """A pool as the API server tells it, at one version.

    Attributes:
        name: of the pool.
        uid: of the object.
        version: of the object.
        quota: replicas granted; None before the first grant.
        reserved: replicas it may hold without a further claim; None if it never said.
        maximum: replicas it could ever have.
        cost: of one replica by resource; a None says that this amount could not be read.
        seen: replicas the reader counted itself.
        leaving: it is being deleted, and must give back everything first.
    """

    name: str
    uid: str
    version: str
    quota: int | None
    reserved: int | None
    maximum: int
    cost: Mapping[str, float | None]
    seen: int = 0
    leaving: bool = False

    @property
    def granted(self) -> int:
        """Replicas it may have; one without a quota is left at what it holds."""
        return (self.reserved or 0) if self.quota is None else self.quota

    @property
    def counts(self) -> int:
        """Replicas that count against the budget, claims on its quota aside."""
        held = self.maximum if self.reserved is None else self.reserved
        return max(self.quota or 0, held, self.seen)


@dataclass(frozen=True, slots=True)
class QuotaWrite:
    """A quota to write, refused by the API server if the pool has another version."""

    pool: str
    uid: str
    version: str
    quota: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What may be done now. Every part is safe whether or not the others succeed.

    Attributes:
        lower: quotas to lower.
        raises: quotas with a claim open, raised if all fits the budget still.
        book: what to write into the book, guarded by the version read; None to leave it.
        release: pools that hold nothing any more and may be let go, guarded by version.
        stale: pools must be read from the API server, after the book, before there is more to say.
        waits: by pool, why it has not got what the plan gives it.
    """

    lower: tuple[QuotaWrite, ...] = ()
    raises: tuple[QuotaWrite, ...] = ()
    book: tuple[Claim, ...] | None = None
    release: tuple[Account, ...] = ()
    stale: bool = False
    waits: Mapping[str, str] = field(default_factory=dict)


def counted(budget: Amounts, accounts: Sequence[Account], claims: Sequence[Claim]) -> Amounts:
    """Return how much of every resource of the budget is granted or held; infinite if unknown."""
    claimed = {claim.pool: claim.quota for claim in open_claims(accounts, claims)}
    used = dict.fromkeys(budget, 0.0)
    for account in accounts:
        replicas = max(account.counts, claimed.get(account.name, 0))
        for resource, each in account.cost.items():
            if replicas and resource in used:
                used[resource] += inf if each is None else replicas * each
    return used


def open_claims(accounts: Sequence[Account], claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """Return the claims that may still act: their pool has the version claimed."""
    present = {(account.name, account.uid, account.version) for account in accounts}
    return tuple(claim for claim in claims if (claim.pool, claim.uid, claim.version) in present)


def settle(
    budget: Amounts,
    accounts: Sequence[Account],
    claims: Sequence[Claim],
    desired: Mapping[str, int],
    *,
    fresh: bool,
) -> Settlement:
    """Return the writes that bring quotas towards a plan and are safe now.

    Args:
        budget: amount of every bounded resource.
        accounts: the group's pools.
        claims: the group's book as read, before the pools.
        desired: quotas of the plan; a pool that is not in it keeps what it has.
        fresh: the pools were read from the API server after the book, not from a watch.
    """
    live = {claim.pool: claim for claim in open_claims(accounts, claims)}
    used = counted(budget, accounts, claims)
    free = {resource: budget[resource] - used[resource] for resource in budget}
    lower: list[QuotaWrite] = []
    raises: list[QuotaWrite] = []
    wanting: dict[str, int] = {}
    for account in accounts:
        want = 0 if account.leaving else desired.get(account.name, account.quota)
        claim = live.get(account.name)
        if want is None:
            continue
        if claim is not None:
            # Written even if it changes no number: the version moves on and the claim is settled.
            most = account.granted if _over(account.cost, free) else claim.quota
            raises.append(_write(account, min(most, want)))
        elif want < account.granted or (account.quota is None and want == account.granted):
            lower.append(_write(account, want))
        elif want > account.granted:
            wanting[account.name] = want
    release = tuple(a for a in accounts if a.leaving and a.name not in live and _empty(a))
    if not fresh:
        stale = bool(wanting) or len(live) < len(claims)
        return Settlement(tuple(lower), tuple(raises), release=release, stale=stale)
    granted, waits = _grant(free, accounts, wanting)
    book = (*live.values(), *granted)
    changed = granted or len(live) < len(claims)
    return Settlement(tuple(lower), tuple(raises), book if changed else None, release, False, waits)


def _empty(account: Account) -> bool:
    return account.quota == 0 and account.reserved == 0 and account.seen == 0


def _write(account: Account, quota: int) -> QuotaWrite:
    return QuotaWrite(account.name, account.uid, account.version, quota)


def _grant(
    free: Amounts, accounts: Sequence[Account], wanting: Mapping[str, int]
) -> tuple[list[Claim], dict[str, str]]:
    """Divide what is free among the pools that want more, the furthest behind first."""
    left = dict(free)
    pools = {account.name: account for account in accounts if account.name in wanting}
    granted = {name: _costs_nothing(pools[name], want, left) for name, want in wanting.items()}
    hungry = {name for name, want in wanting.items() if granted[name] < want}
    while hungry:
        name = min(sorted(hungry), key=lambda n: granted[n] / wanting[n])
        cost = pools[name].cost
        if _lacking(cost, left) is not None:
            hungry.discard(name)
            continue
        for resource, each in cost.items():
            left[resource] -= each or 0.0
        granted[name] += 1
        if granted[name] == wanting[name]:
            hungry.discard(name)
    claims = [
        Claim(name, pools[name].uid, pools[name].version, quota)
        for name, quota in granted.items()
        if quota > pools[name].granted
    ]
    waits = {
        name: _reason(name, pools[name], wanting[name], granted[name], accounts, left)
        for name in wanting
        if granted[name] < wanting[name]
    }
    return claims, waits


def _costs_nothing(account: Account, want: int, free: Amounts) -> int:
    """Return the quota a pool may have for what it counts as already; none if over budget."""
    return account.granted if _over(account.cost, free) else min(want, account.counts)


def _over(cost: Mapping[str, float | None], free: Amounts) -> bool:
    """Say whether more than the budget is taken of a resource; a read failure may take any."""
    return any(each is None or free.get(r, 0.0) < -_SLACK for r, each in cost.items())


def _lacking(cost: Mapping[str, float | None], free: Amounts) -> str | None:
    """Return a resource there is too little of for one more replica; a read failure lacks all."""
    for resource, each in cost.items():
        if each is None or each > free.get(resource, 0.0) + _SLACK:
            return resource
    return None


def _reason(
    name: str,
    account: Account,
    want: int,
    granted: int,
    accounts: Sequence[Account],
    free: Amounts,
) -> str:
    resource = _lacking(account.cost, free)
    if resource is None:  # the loop ends only on a lack; kept for the type checker
        return "nothing is free"
    each = account.cost[resource]
    if each is None:
        return f"{resource} per replica of {name} is unknown"
    others = [a for a in accounts if a.counts and resource in a.cost]
    unreadable = [a.name for a in others if a.cost[resource] is None]
    if unreadable:
        return f"{resource} per replica of {', '.join(unreadable)} is unknown"
    silent = [a.name for a in others if a.reserved is None]
    late = [f"{a.name} ({a.counts} > {a.quota or 0})" for a in others if a.counts > (a.quota or 0)]
    because = f"; has not reported: {', '.join(silent)}" if silent else ""
    if late and not silent:
        because = f"; to be released: {', '.join(late)}"
    return (
        f"{want - granted} of {want} replicas wait for {resource}: one takes {each:g}, "
        f"free are {free.get(resource, 0.0):g}{because}"
    )
