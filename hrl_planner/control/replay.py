"""Decisions of a log, made again: by the same policy, or by another one, which did not happen.

Rounds of one planner share a policy's memory, so they are shown again in their order, from a
decision at which the policy had none (`turn` 0). Where the log begins later, or has lost a line,
the policy is asked all the same, but that it answers otherwise proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from hrl_planner.control.decision import Choice, Decider, Decision, Flows, decides_pool_by_pool
from hrl_planner.control.log_lines import ClusterLine, DecisionLine
from hrl_planner.control.log_reader import Entry
from hrl_planner.errors import DecisionLogError, HrlPlannerError

Verdict = Literal["same", "different", "unsettled", "failed"]
_FLOW_TOLERANCE_RPS = 1e-5  # numbers of the log have six decimals


@dataclass(frozen=True, slots=True)
class Instead:
    """Who is asked in place of whom the log names.

    Attributes:
        allocator: a policy for the global level.
        scaler: a policy for the local level.
        checkpoint: a folder or the name of the spec one ships for, for both.
    """

    allocator: str | None = None
    scaler: str | None = None
    checkpoint: str | None = None

    def choice(self, logged: Choice) -> Choice:
        """Return who is asked."""
        if self.checkpoint is not None:
            return replace(logged, checkpoint=self.checkpoint)
        policy = self.allocator if logged.level == "allocator" else self.scaler
        return logged if policy is None else replace(logged, policy=policy, checkpoint=None)


@dataclass(frozen=True, slots=True)
class Again:
    """A decision and its repetition.

    Attributes:
        verdict: `same` or `different`; `unsettled` if different where the log does not hold all
            that the policy remembered; `failed` if it could not be asked.
        differences: what differs, in words; or why it failed.
        decision: the repetition.
        logged_policy: whether it is the policy of the log that was asked.
    """

    verdict: Verdict
    differences: tuple[str, ...]
    decision: Decision | None
    logged_policy: bool


@dataclass(frozen=True, slots=True)
class Step:
    """A round of the log and, where it has a decision, its repetition."""

    entry: Entry
    again: Again | None


class Replayer:
    """Asks again.

    Args:
        instead: who is asked in place of whom the log names.
    """

    def __init__(self, instead: Instead | None = None) -> None:
        """See the class."""
        self._instead = instead or Instead()
        self._streams: dict[tuple[str, ...], _Stream] = {}

    def steps(self, entries: Iterable[Entry]) -> Iterator[Step]:
        """Repeat the decisions of rounds, in their order."""
        for entry in entries:
            logged = entry.round.decision
            yield Step(entry, None if logged is None else self._again(entry, logged))

    def _again(self, entry: Entry, logged: DecisionLine) -> Again:
        stream = self._streams.setdefault(entry.round.stream, _Stream())
        whole = stream.follows(logged.turn)
        if entry.cluster is None:
            why = f"cluster {logged.cluster} is not described in {entry.file} before this line"
            stream.lose()
            return Again("failed", (why,), None, True)
        before = logged.choice(entry.round.level)
        choice = self._instead.choice(before)
        try:
            _require_rows(choice, logged, entry.cluster)
            made = _ask(stream, choice, logged, entry.cluster)
        except HrlPlannerError as error:
            stream.lose()
            return Again("failed", (str(error),), None, choice == before)
        if made is None:  # another policy, which does not want to listen
            return Again("same", (), None, choice == before)
        same_policy = _same_policy(before, choice, logged.digest, made.digest)
        differences = compare(logged, made, _scope(entry))
        if not differences:
            return Again("same", (), made, same_policy)
        if choice == before and made.digest != logged.digest:
            differences = (f"checkpoint {logged.digest} is now {made.digest}", *differences)
        if others := entry.cluster.other_profiles():
            differences = (f"other numbers here in profile {', '.join(others)}", *differences)
        verdict: Verdict = "different" if whole or not same_policy else "unsettled"
        return Again(verdict, differences, made, same_policy)


class _Stream:
    """A planner's policy, and whether it has seen all that the logged one had seen."""

    def __init__(self) -> None:
        self.decider = Decider()
        self._turn: int | None = None

    def follows(self, turn: int) -> bool:
        if turn == 0:
            self.decider = Decider()
        elif self._turn is None or turn != self._turn + 1:
            self._turn = None
            return False
        self._turn = turn
        return True

    def lose(self) -> None:
        self._turn = None


def _require_rows(choice: Choice, logged: DecisionLine, cluster: ClusterLine) -> None:
    """Refuse to ask a policy that looks at pools whose rows are not in the log."""
    whole = len(logged.pools) == len(cluster.cluster.pools)
    if not whole and not decides_pool_by_pool(choice):
        asked = choice.checkpoint or choice.policy
        raise DecisionLogError(
            f"{asked} looks at all pools; {logged.policy} looked at one, and no other row was "
            "written down"
        )


def _ask(
    stream: _Stream, choice: Choice, logged: DecisionLine, cluster: ClusterLine
) -> Decision | None:
    decider, seen = stream.decider, logged.observation(cluster)
    if logged.asked == "listen":
        return decider.listen(cluster.cluster, choice, seen)
    return decider.decide(cluster.cluster, choice, seen)


def _scope(entry: Entry) -> str | None:
    """Return the pool that a decision is about; None for all."""
    return entry.round.name if entry.round.level == "local" else None


def _same_policy(logged: Choice, asked: Choice, logged_digest: str, asked_digest: str) -> bool:
    """Say whether the same policy was asked: a checkpoint is what it holds, not where it lies."""
    if logged.checkpoint is None or asked.checkpoint is None:
        return asked == logged
    return logged_digest == asked_digest


def compare(logged: DecisionLine, made: Decision, pool: str | None = None) -> tuple[str, ...]:
    """Return what differs between a logged decision and another one, in words.

    Args:
        logged: the one.
        made: the other.
        pool: the only one that matters; absent, all do, and their flows.
    """
    found = [
        f"{name}: {logged.replicas.get(name)} in the log, {made.replicas.get(name)} now"
        for name in sorted({*logged.replicas, *made.replicas})
        if pool in (None, name) and logged.replicas.get(name) != made.replicas.get(name)
    ]
    if pool is None:
        found += _flow_differences(logged.flows, made.flows)
    return tuple(found)


def _flow_differences(logged: Flows | None, made: Flows | None) -> list[str]:
    if logged is None or made is None:
        return [] if logged == made else ["flows: only one of the two has any"]
    found = []
    for name in sorted({*logged, *made}):
        one: Mapping[str, float] = logged.get(name, {})
        other: Mapping[str, float] = made.get(name, {})
        for pool in sorted({*one, *other}):
            a, b = one.get(pool, 0.0), other.get(pool, 0.0)
            if abs(a - b) > _FLOW_TOLERANCE_RPS:
                found.append(f"flow of {name} to {pool}: {a:g}/s in the log, {b:g}/s now")
    return found
