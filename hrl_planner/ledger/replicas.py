"""The local side of the ledger: the one write a pool's planner may make next.

`next_step` is given what was read and what the pool wants, and answers with a single write, with
the wish to read again from the API server, or with nothing to do and why. A raise is two such
steps, the claim in the pool's status and then the target; a planner that died in between, or
another leader, takes the second step when it finds the first. The protocol and its proof open the
package.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Target:
    """A scale target.

    Attributes:
        replicas: asked for.
        version: of the object; the API server refuses a write that names another.
        spec_version: changes whenever what is asked of the target does (uid and generation).
    """

    replicas: int
    version: str
    spec_version: str


MISSING = Target(0, "", "")
"""A target that does not exist."""


@dataclass(frozen=True, slots=True)
class Pods:
    """Replicas that hold or will hold GPUs: live ones, and those on their way out."""

    live: int
    draining: int


@dataclass(frozen=True, slots=True)
class TargetClaim:
    """An entry of the pool's book: a target about to be raised, and at which version of it."""

    start: int
    to: int
    version: str
    spec_version: str


@dataclass(frozen=True, slots=True)
class Reservation:
    """The pool's book.

    Attributes:
        replicas: the most it may hold, an open claim aside; None before it was first counted.
        claim: a raise that may still act.
    """

    replicas: int | None = None
    claim: TargetClaim | None = None

    @property
    def bound(self) -> int | None:
        """The most replicas there may come to be without another claim."""
        if self.replicas is None:
            return None
        return self.replicas + (self.claim.to - self.claim.start if self.claim else 0)


@dataclass(frozen=True, slots=True)
class PoolView:
    """What a local planner read.

    Attributes:
        quota: replicas granted; None before the first grant, and then the pool is left alone.
        reservation: the book.
        target: of the scale.
        pods: of the target.
        settled: the target has been unchanged for longer than its controller lags.
        fresh: the target, and without an open claim the pods, were read from the API server after
            the book, not from a watch; nothing else was asked of the target between the two.
    """

    quota: int | None
    reservation: Reservation
    target: Target
    pods: Pods
    settled: bool
    fresh: bool

    @property
    def holds(self) -> int:
        """Replicas there are or will be: draining ones, and the larger of asked for and live."""
        return self.pods.draining + max(self.pods.live, self.target.replicas)


@dataclass(frozen=True, slots=True)
class WriteTarget:
    """Scale the target, guarded by its version."""

    replicas: int
    version: str


@dataclass(frozen=True, slots=True)
class WriteReservation:
    """Write the book, guarded by the pool's version."""

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class ReadFresh:
    """Read the target, and without an open claim its pods, from the API server; then ask again."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to write now.

    Attributes:
        waits: why the pool has not got what it wants; empty if it has.
    """

    waits: str = ""


Step = WriteTarget | WriteReservation | ReadFresh | Idle


def next_step(view: PoolView, wanted: int) -> Step:
    """Return the next write that brings a pool to the replicas wanted, within its quota."""
    target, book = view.target, view.reservation
    want = target.replicas if view.quota is None else max(min(wanted, view.quota), 0)
    if book.claim is not None:
        step = _with_claim(view, book.claim, want)
        if step is not None:
            return step
    elif (step := _account(view)) is not None:
        return step
    if target == MISSING:
        return Idle("the scale target does not exist" if want else "")
    if want < target.replicas:
        return WriteTarget(want, target.version)
    if want > target.replicas:
        return _raise(view, want)
    return Idle()


def _with_claim(view: PoolView, claim: TargetClaim, want: int) -> Step | None:
    """Settle an open claim: act on it, or find out what became of it."""
    target, book = view.target, view.reservation
    if not view.fresh:
        return ReadFresh()
    if target.version != claim.version:
        acted = target.spec_version != claim.spec_version
        return WriteReservation(Reservation(book.bound) if acted else replace(book, claim=None))
    if want > target.replicas:
        return WriteTarget(min(want, claim.to), target.version)
    in_the_way = view.quota is not None and (book.bound or 0) > view.quota
    if want == target.replicas and in_the_way:
        # Another planner may yet act on the claim. Only a change of the target ends that, and a
        # replica that starts and goes costs less than one that serves.
        return WriteTarget(want + 1, target.version)
    return None


def _account(view: PoolView) -> Step | None:
    """Bring the reservation to what is there: up at once, down when nothing can follow."""
    reserved = view.reservation.replicas
    if reserved is None or view.holds < reserved:
        if not view.settled:
            return None
    elif view.holds == reserved:
        return None
    return WriteReservation(Reservation(view.holds)) if view.fresh else ReadFresh()


def _raise(view: PoolView, want: int) -> Step:
    """Claim as much of a raise as the quota has room for beside all that is reserved."""
    target, reserved = view.target, view.reservation.replicas
    if reserved is None:
        return Idle("waits until the target has settled, to count what it holds")
    room = (view.quota or 0) - reserved
    to = min(want, target.replicas + room)
    if to > target.replicas:
        claim = TargetClaim(target.replicas, to, target.version, target.spec_version)
        return WriteReservation(Reservation(reserved, claim))
    gone = reserved - target.replicas
    return Idle(f"{gone} replicas still draining or starting count against quota {view.quota}")
