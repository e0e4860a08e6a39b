"""The budget ledger: why GPUs are never promised twice, whoever crashes, repeats, or reads late.

Everything a planner knows about the budget it reads from the API server; nothing is kept in memory.
Two planners write numbers that make GPUs be held, each guarded by a book in another object:

    level    number that grants             book
    global   WorkerPool.spec.quota          ServingGroup.status.claims
    local    target.spec.replicas           WorkerPool.status.{reserved, claim}

**Booking.** A number is raised in two writes. First a claim is put into the book: which object,
to what, and *at which version of that object*. The write of the book is refused if the book has
changed since it was read. Then the number is raised by a write that is refused unless the object
still has the version claimed. Lowering needs no book, but is guarded by version too: a lowering
that arrives late must not raise.

**Lemma.** Read the book at version b; then read the object, from the API server and not from a
watch. If a write of the book guarded by b succeeds, then until that write nobody raised the
number except by claims that stand in the book at b, and such a claim can still act only if the
object still has the version claimed. *Proof.* A new claim would have changed the version of the
book. The versions of an object never return. Hence a claim whose version has passed is dead, and
may be struck out; one whose version stands is counted as if it had acted. Whether a dead claim
acted before it died shows in the object: a quota is simply read; a target whose `spec_version`
(uid and generation) is still the one claimed was never changed, so the claim did not act.

**Pool.** R = `reserved` + the growth an open claim may still bring. Let E be the replicas that
may come to exist without another write to the target: those draining, plus the larger of those
alive and those asked for, plus what the target's controller has not caught up with. Then E <= R:

* a raise by d replicas adds at most d to E, and added d to R before;
* lowering the target, and replicas that start, drain or end, never add to E;
* what is asked of the target is the same before and after its pods are listed, so that no replica
  counts as asked for and as draining, and a count alone never raises `reserved` above R;
* `reserved` is lowered only to what a list of pods taken after reading the book shows, with no
  claim open and the target *settled*: unchanged for longer than its controller lags behind. By
  the lemma nobody raised the target meanwhile.

Draining replicas stay in R although the target forgot them, so lowering and raising a target in
quick succession cannot stack new replicas on draining ones. A claim is refused if it brings R
above `spec.quota`; as quota and reservation are one object, the quota compared is the one in
force when the claim is written. So R never rises above the larger of itself and the present
quota: a lowered quota binds from the moment it is written, and `reserved` sinking to it is the
proof that the local planner followed. That is what other designs need an acknowledgement for, and
why a late local planner that still believes in an old quota can do nothing with it: its claim is
refused.

**Group.** A pool counts max(quota, R, open claims on its quota). By the paragraph above only
quota raises make this grow. A raise is claimed only if all pools, listed after reading the book,
together still fit the budget with it; by the lemma nothing was granted in between, by this leader
or another. Hence, for every GPU type, the total and the watts: sum over pools of max(quota, R) x
cost <= budget. GPUs are released before they are granted because R counts until pods are gone.

**What outside acts do.** Nobody can keep a hand from scaling a target, a node from evicting a pod
that then drains beside its replacement, or a user from lowering the budget. What was not booked is
found and booked afterwards (`reserved` rises to what is seen); while the sum exceeds the budget
nothing is granted, open claims on quotas are ended without a raise, and the plan, which fits, only
takes away. A pool that does not say what it holds, or whose GPUs per replica are unknown, counts as
all it may hold and gets nothing. A deleted pool keeps its entry, by a finalizer, until its replicas
are gone; one recreated by force has another uid, so old claims and late writes miss it, and it
counts as all it may until it has reported.

`quotas.py` is the global side, `replicas.py` the local side; both are pure functions of what was
read and say what may be written *now*. Called again after every write they go on from any crash.
"""

from hrl_planner.ledger.quotas import Account, Claim, QuotaWrite, Settlement, counted, settle
from hrl_planner.ledger.replicas import (
    Idle,
    Pods,
    PoolView,
    ReadFresh,
    Reservation,
    Step,
    Target,
    TargetClaim,
    WriteReservation,
    WriteTarget,
    next_step,
)

__all__ = [
    "Account",
    "Claim",
    "Idle",
    "Pods",
    "PoolView",
    "QuotaWrite",
    "ReadFresh",
    "Reservation",
    "Settlement",
    "Step",
    "Target",
    "TargetClaim",
    "WriteReservation",
    "WriteTarget",
    "counted",
    "next_step",
    "settle",
]
