"""The local planner of one pool: scales its target within the quota, and keeps the pool's book.

Every round looks at pool, target and pods, asks the policy how many replicas there should be if
it is time to, and takes the ledger's steps until nothing more may be written. What it looks at
first may be as old as a watch; what the ledger wants to know for certain is read from the API
server. What it saw and did it reports in the pool's status; `acknowledged` names the last quota
its target keeps to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from hrl_planner.control.conditions import reason_of
from hrl_planner.control.connector import Connector, UnreadableError
from hrl_planner.control.decide import Scaler, Want, decides_nothing
from hrl_planner.control.decision import Decision, Followed
from hrl_planner.control.local_status import (
    Seen,
    Trouble,
    attainment_of,
    book_of,
    conditions_of,
    no_selector,
    numbers_of,
    selector_of,
)
from hrl_planner.control.metrics import PoolMetrics
from hrl_planner.control.pods import PodCounts
from hrl_planner.control.pool_list import PoolList
from hrl_planner.control.requests import DeniedError, NotFoundError
from hrl_planner.control.targets import TargetError, TargetState
from hrl_planner.control.telling import Telling
from hrl_planner.control.watched import Reader
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import reservation_of
from hrl_planner.kube.resources import ServingGroup, WorkerPool
from hrl_planner.ledger import (
    Idle,
    PoolView,
    ReadFresh,
    Step,
    WriteReservation,
    WriteTarget,
    next_step,
)
from hrl_planner.ledger.replicas import MISSING

SETTLE_S = 30.0
# Of one round: settle a claim, count, lower, claim, scale, each perhaps after reading afresh.
_MOST_STEPS = 12
COMPONENT = "hrl-planner-local"


@dataclass(frozen=True, slots=True)
class LocalRound:
    """What a round read, decided and did.

    Attributes:
        group: of the pool.
        mode: shadow or active.
        wanted: replicas the policy would have; None if it could not be asked.
        reason: of the policy, or why it was not asked.
        waits: why the target has not got what is wanted.
        written: writes that were accepted, in words.
        quota: at the end of the round.
        before: replicas the target was asked for at its beginning.
        target: and at its end.
        pods: of the target.
        held_gpus: by them.
        decision: made in this round; None where the last one still stands, or there is none.
        error: what is in the way.
    """

    group: str
    mode: str
    wanted: int | None
    reason: str
    waits: str
    written: tuple[str, ...]
    quota: int | None
    before: int
    target: int
    pods: PodCounts
    held_gpus: int
    decision: Decision | None = None
    error: str = ""


class _Wants(NamedTuple):
    """What the policy wants, or why it wants nothing, and what kept it from deciding."""

    want: Want | None = None
    reason: str = ""
    trouble: Trouble | None = None

    @property
    def wanted(self) -> int | None:
        return None if self.want is None else self.want.replicas

    @property
    def decision(self) -> Decision | None:
        return None if self.want is None else self.want.decision


class LocalPlanner:
    """See the module.

    Args:
        connector: of the pool's namespace.
        name: of the pool.
        metrics: what is known of the traffic.
        clock: seconds, monotonic.
        look: where to look first; absent: at the API server itself.
        settle_s: how long a target must be unchanged before its pods are all there will be.
        dry_run: write nothing.
    """

    def __init__(
        self,
        connector: Connector,
        name: str,
        metrics: PoolMetrics,
        clock: Callable[[], float],
        *,
        look: Reader | None = None,
        settle_s: float = SETTLE_S,
        dry_run: bool = False,
    ) -> None:
        """See the class."""
        self.name = name
        self.interval_s = 10.0
        self._connector = connector
        self._look_at = look or connector
        self._scaler = Scaler(metrics)
        self._clock = clock
        self._settle_s = settle_s
        self._dry_run = dry_run
        self._unchanged = ("", clock())  # of which pool what is asked of the target, and since when
        self._telling = Telling(connector, "WorkerPool", COMPONENT)
        self.asked: Decision | None = None
        self._wants = _Wants()
        self._next_s = -math.inf  # of a decision

    def round(self) -> LocalRound:
        """Look once, decide, write what is allowed.

        Raises:
            KubeError: if the API server refuses or does not know the pool.
        """
        self.asked = None
        try:
            pool = self._look_at.pool(self.name)
        except UnreadableError as error:
            if not self._dry_run:
                self._telling.unreadable(error, "Decided")
            raise
        listed = self._look_at.pools(pool.spec.group)
        before = self._wants
        active = self._decide(pool, listed)
        wants = self._wants
        rival = listed.taken.get(pool.name)
        troubles = [wants.trouble]
        if rival is not None:
            message = f"workerpool {rival} scales the same target, and is older"
            troubles.append(Trouble("Unhindered", "TargetTaken", message))
        was, seen, step, written, denied = self._act(pool, active=active and rival is None)
        troubles += [seen.trouble, denied]
        told = [trouble for trouble in troubles if trouble is not None]
        waits = step.waits if isinstance(step, Idle) else ""
        if told and told[-1].kind == "Unhindered":
            waits = told[-1].message
        if not self._dry_run:
            self._report(seen, waits, told)
        elif not isinstance(step, Idle):
            written.append(f"would write {step}")
        return LocalRound(
            pool.spec.group,
            "active" if active else "shadow",
            wants.wanted,
            wants.reason,
            waits,
            tuple(written),
            seen.pool.spec.quota,
            was,
            seen.target.target.replicas,
            seen.pods,
            seen.pods.held * (seen.pool.spec.gpus_per_replica or 0),
            None if wants is before else wants.decision,
            "; ".join(trouble.message for trouble in told),
        )

    def follow(self) -> Followed:
        """Decide what the leader decides; errors as those of a round."""
        pool = self._look_at.pool(self.name)
        before = self._wants
        self._decide(pool, self._look_at.pools(pool.spec.group))
        return Followed(pool.spec.group, None if self._wants is before else self._wants.decision)

    def _decide(self, pool: WorkerPool, listed: PoolList) -> bool:
        """Ask the policy if it is time to, and say whether what it decides is carried out.

        A round in between carries out what was decided before.
        """
        group, trouble = self._group(pool)
        if group is None:
            self._wants = _Wants(None, "holds", trouble)
            return False
        self.interval_s = group.spec.intervals.local_s
        active = group.spec.policy.mode == "active"
        mine = next((p for p in listed.pools if p.name == self.name), None)
        # What a policy makes of numbers that are not there yet could be carried out as soon as the
        # quota comes, in this very round.
        if mine is None:
            # Read at the API server, because watches do not know it yet, or not any more.
            self._wants = _Wants(reason="not listed in its group")
            return active
        if mine.spec.quota is None:
            self._wants = _Wants(reason="no quota yet")
            return active
        if mine.status.desired is None:
            self._wants = _Wants(reason="replicas not reported yet")
            return active
        now_s = self._clock()
        if now_s < self._next_s and not decides_nothing(group.spec.policy):
            return active
        self._next_s = now_s + self.interval_s
        try:
            want = self._scaler.want(group, listed, self.name, now_s)
            self._wants, self.asked = _Wants(want, want.reason), want.decision
        except HrlPlannerError as error:
            holds = Trouble("Decided", reason_of(error, "Holds"), str(error))
            self._wants = _Wants(None, "holds", holds)
        return active

    def _group(self, pool: WorkerPool) -> tuple[ServingGroup | None, Trouble | None]:
        """Return the pool's group; without one nobody says how to plan, and nothing is scaled."""
        try:
            return self._look_at.group(pool.spec.group), None
        except NotFoundError:
            message = f"servinggroup {pool.spec.group} does not exist"
            return None, Trouble("Decided", "NoGroup", message)
        except UnreadableError as error:
            return None, Trouble("Decided", "GroupUnreadable", str(error))
        except DeniedError as error:
            return None, Trouble("Decided", "Denied", str(error))

    def _act(
        self, pool: WorkerPool, *, active: bool
    ) -> tuple[int, Seen, Step, list[str], Trouble | None]:
        """Take the ledger's steps until nothing more may be written.

        First comes how many replicas the target was asked for before.
        """
        written: list[str] = []
        step: Step = Idle()
        seen = self._look(pool, self._look_at)
        was = seen.target.target.replicas
        for _ in range(_MOST_STEPS):
            step = Idle() if seen.trouble else self._step(seen, active=active)
            if isinstance(step, ReadFresh):
                seen = self._look_afresh(seen)
                continue
            if self._dry_run or isinstance(step, Idle):
                break
            try:
                done = self._write(seen, step)
            except DeniedError as error:
                return was, seen, step, written, Trouble("Unhindered", "Denied", str(error))
            if done is None:  # somebody else was faster: what is there now?
                pool = self._connector.pool(self.name)
                seen = self._look(pool, self._connector, pods=seen.pods)
                continue
            words, seen = done
            written.append(words)
        return was, seen, step, written, None

    def _look_afresh(self, seen: Seen) -> Seen:
        """Read what the ledger asks for; while a claim is open, that is the target alone."""
        claimed = seen.pool.status.claim is not None
        again = self._look(
            seen.pool,
            self._connector,
            pods=seen.pods if claimed else None,
            count=self._look_at.pods_now,
        )
        if claimed or again.trouble:
            return replace(again, fresh=True)
        # Replicas of a target lowered before its pods were listed would count twice: as asked for,
        # and as draining.
        after = self._look(seen.pool, self._connector, pods=again.pods)
        same = after.target.target.spec_version == again.target.target.spec_version
        return replace(again, fresh=same, trouble=after.trouble)

    def _look(
        self,
        pool: WorkerPool,
        at: Reader,
        *,
        pods: PodCounts | None = None,
        count: Callable[[str, int], PodCounts] | None = None,
    ) -> Seen:
        """Look at what the book, read before, is about; at pods only if they are not given."""
        try:
            target = at.target(pool.spec.scale_target_ref)
        except TargetError as error:
            return Seen(pool, trouble=Trouble("TargetFound", error.reason, str(error)))
        selector = selector_of(pool, target)
        if not selector and target.target != MISSING:
            # Nobody knows what its pods hold, which is not the same as nothing.
            return Seen(pool, target, trouble=no_selector(pool))
        settled = self._settled(target, pool)  # before pods are listed, however long that takes
        try:
            pods = pods or (count or at.pods)(selector, pool.spec.pods_per_replica)
        except DeniedError as error:
            return Seen(pool, target, trouble=Trouble("PodsCounted", "Denied", str(error)))
        return Seen(pool, target, pods, settled, selector=selector)

    def _settled(self, target: TargetState, pool: WorkerPool) -> bool:
        """Say whether the target has been unchanged for longer than its controller lags."""
        asked = target.target.spec_version
        if target.shared:
            # Others change the object, too. That this target was not raised and lowered again
            # between two looks shows in the book: a raise leaves the reservation higher.
            asked = f"{asked.partition('/')[0]}/{target.target.replicas}/{pool.status.reserved}"
        # A pool made anew waits, too: what its predecessor's planner sent may still arrive.
        asked = f"{pool.metadata.uid}/{asked}"
        now_s = self._clock()
        if asked != self._unchanged[0]:
            self._unchanged = (asked, now_s)
        caught_up = target.observed == target.target.replicas
        return caught_up and now_s - self._unchanged[1] >= self._settle_s

    def _step(self, seen: Seen, *, active: bool) -> Step:
        pool, target = seen.pool, seen.target.target
        leaving = pool.metadata.deletion_timestamp is not None
        quota = 0 if leaving else pool.spec.quota
        view = PoolView(
            # A pool without quota is left alone, and so is every pool in shadow mode.
            quota=quota if active else None,
            reservation=reservation_of(pool),
            target=target,
            pods=seen.pods.ledger,
            settled=seen.settled,
            fresh=seen.fresh,
        )
        wanted = self._wants.wanted
        return next_step(view, target.replicas if wanted is None else wanted)

    def _write(self, seen: Seen, step: Step) -> tuple[str, Seen] | None:
        """Carry out a step, and say in words what was done, and how things are then.

        None if there is nothing to write, or if somebody else was faster.
        """
        ref = seen.pool.spec.scale_target_ref
        if isinstance(step, WriteTarget):
            words = f"{ref.kind} {ref.name}: {seen.target.target.replicas} -> {step.replicas}"
            if not self._connector.targets.scale(ref, step.replicas, step.version):
                return None
            self._telling.tell(seen.pool.metadata, "Scaled", words)
            return words, self._look(seen.pool, self._connector, pods=seen.pods)
        if isinstance(step, WriteReservation):
            pool = self._connector.write_pool_status(seen.pool, book_of(step.reservation))
            if pool is None:
                return None
            words = f"reserved {step.reservation.replicas}, claim {step.reservation.claim}"
            # Target and pods were read before this book: not fresh beside it.
            return words, replace(seen, pool=pool, fresh=False)
        return None

    def _report(self, seen: Seen, waits: str, troubles: Sequence[Trouble]) -> None:
        """Bring the pool's status up to date, and tell what changed."""
        pool = seen.pool
        conditions = conditions_of(seen, waits, troubles)
        status: dict[str, Any] = {
            "observedGeneration": pool.metadata.generation,
            "reason": waits or self._wants.reason,
            "conditions": conditions,
        }
        if seen.trouble is None:
            status |= numbers_of(seen, self._wants.wanted)
            status["attainment"] = attainment_of(pool, self._wants.decision)
        now = pool.status.model_dump(mode="json", by_alias=True)
        if all(now.get(name) == value for name, value in status.items()):
            return
        try:
            written = self._connector.write_pool_status(pool, status)
        except DeniedError as error:
            self._telling.denied(pool.metadata, str(error))
            raise
        if written is not None:
            self._telling.conditions(pool.metadata, pool.status.conditions, conditions)
