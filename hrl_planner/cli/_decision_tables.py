"""Decisions of a log for people: which to show, a table of them, and how many came out the same."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hrl_planner.errors import DecisionLogError

if TYPE_CHECKING:
    from hrl_planner.control.log_lines import DecisionLine, RoundLine
    from hrl_planner.control.replay import Again, Step

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LEAST_WIDTH = 150  # where there is no terminal to say how wide it is
_COLUMNS = ("time", "planner", "pool", "had", "decided", "got", "again", "GPU worth", "why")


@dataclass(frozen=True)
class Selection:
    """What is shown of all that is replayed.

    Attributes:
        pools: none for all.
        since_s: seconds since 1970.
        within_s: seconds before the last round.
        last: decisions.
    """

    pools: frozenset[str]
    since_s: float | None = None
    within_s: float | None = None
    last: int | None = None

    @staticmethod
    def of(pools: Iterable[str], since: str | None, last: int | None) -> Selection:
        """Read the options of the command.

        Raises:
            DecisionLogError: `since` is neither a time nor a duration.
        """
        chosen = frozenset(pools)
        if since is None:
            return Selection(chosen, last=last)
        duration = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", since)
        if duration is not None:
            within_s = float(duration[1]) * _UNITS_S[duration[2]]
            return Selection(chosen, within_s=within_s, last=last)
        try:
            time = datetime.datetime.fromisoformat(since)
        except ValueError as error:
            raise DecisionLogError(
                f"--since {since}: neither a time like 2026-05-01T12:00Z nor a duration like 30m"
            ) from error
        if time.tzinfo is None:
            time = time.replace(tzinfo=datetime.UTC)
        return Selection(chosen, since_s=time.timestamp(), last=last)

    def of_steps(self, steps: Iterable[Step]) -> list[Step]:
        """Return what is to be shown of steps that come in the order of time."""
        kept: deque[Step] = deque()
        decisions = 0
        for step in steps:
            time_s = step.entry.round.time
            if not self._concerns(step) or time_s < (self.since_s or 0.0):
                continue
            kept.append(step)
            decisions += _decided(step)
            while kept and self._passed(kept[0], time_s, decisions):
                decisions -= _decided(kept.popleft())
        return list(kept)

    def _concerns(self, step: Step) -> bool:
        done = step.entry.round
        said = _decided(step) or done.written or done.error
        ours = not self.pools or done.level == "global" or done.name in self.pools
        return bool(said) and ours

    def _passed(self, step: Step, now_s: float, decisions: int) -> bool:
        old = self.within_s is not None and step.entry.round.time < now_s - self.within_s
        return old or (self.last is not None and decisions > self.last)


def _decided(step: Step) -> bool:
    """Say whether a policy decided, and not only listened."""
    decision = step.entry.round.decision
    return decision is not None and decision.asked == "decide"


@dataclass
class Tally:
    """How the repetitions of decisions came out.

    Attributes:
        verdicts: how many of each.
        first: the first that did not come out as it should have, in words.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    first: str | None = None

    def counting(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Pass steps on and count them."""
        for step in steps:
            if step.again is not None:
                self._count(step, step.again)
            yield step

    def _count(self, step: Step, again: Again) -> None:
        of_another = again.verdict == "different" and not again.logged_policy
        if _decided(step):
            self.verdicts["otherwise" if of_another else again.verdict] += 1
        if self.first is None and again.verdict in ("different", "failed") and not of_another:
            entry = step.entry
            what = f"{entry.round.level} {entry.round.name} at {_clock(entry.round.time)}"
            self.first = f"{entry.file}:{entry.line}: {what}: {'; '.join(again.differences)}"

    def require_decisions(self, logs: Sequence[str]) -> None:
        """Refuse a log in which there is nothing to repeat.

        Raises:
            DecisionLogError: there were no decisions.
        """
        if not self.verdicts.total():
            raise DecisionLogError(f"{', '.join(logs)}: no decision in it")

    def in_words(self, foreign: int) -> str:
        """Return the counts."""
        said = {
            "same": "the same again",
            "otherwise": "otherwise, by the other policy",
            "different": "different",
            "unsettled": "different where the log does not hold what the policy remembered",
            "failed": "could not be made",
        }
        counts = ", ".join(
            f"{self.verdicts[verdict]} {words}"
            for verdict, words in said.items()
            if self.verdicts[verdict]
        )
        passed = f"; {foreign} lines are not of the log" if foreign else ""
        return f"{self.verdicts.total()} decisions: {counts}{passed}"


def as_json_line(step: Step) -> str:
    """Return a round, with names instead of columns, and its repetition."""
    entry, again = step.entry, step.again
    data: dict[str, Any] = {"file": entry.file, "line": entry.line}
    data |= entry.round.model_dump(mode="json", exclude_defaults=True)
    made, cluster = entry.round.decision, entry.cluster
    if made is not None and cluster is not None:
        data["decision"]["pools"] = _named(made.pools, cluster.pool_fields)
        data["decision"]["classes"] = _named(made.classes, cluster.class_fields)
    if again is not None:
        data["again"] = {"verdict": again.verdict, "differences": list(again.differences)}
        if again.decision is not None:
            data["again"] |= {
                "replicas": {
                    name: count
                    for name, count in again.decision.replicas.items()
                    if entry.round.level == "global" or name == entry.round.name
                },
                "flows": again.decision.flows,
                "reason": again.decision.plan.reason,
                "marginal": again.decision.marginal,
            }
    return json.dumps(data)


def _named(rows: Mapping[str, Sequence[Any]], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {name: dict(zip(columns, row, strict=False)) for name, row in rows.items()}


def print_table(steps: Sequence[Step], pools: frozenset[str]) -> None:
    """Print steps, a row per pool."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _LEAST_WIDTH))
    table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[3:8]:
        column.justify = "right"
    table.columns[-1].ratio = 1
    for step in steps:
        for row in _rows(step, pools):
            table.add_row(*map(escape, row))
        table.add_section()
    console.print(table)


def _rows(step: Step, pools: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a round: what was decided and why, its pools, what was written."""
    done, decision = step.entry.round, step.entry.round.decision
    heading = (_clock(done.time), f"{done.level} {done.name}")
    decided = decision is not None and decision.asked == "decide"
    reason = decision.reason if decision is not None and decided else "between decisions"
    yield _note(done.error or reason, heading)
    if decision is not None:
        for entry in decision.shield:
            yield _note(f"shield, {entry.action} ({entry.cause}): {entry.reason}")
        for pool in [done.name] if done.level == "local" else decision.replicas:
            if not pools or pool in pools:
                yield _pool_row(step, done, decision, pool)
    if step.again is not None:
        verdict = step.again.verdict if step.again.logged_policy else "otherwise"
        for difference in step.again.differences:
            yield _note(f"{verdict}: {difference}")
    for words in done.written:
        if not pools or done.level == "local" or any(pool in words for pool in pools):
            yield _note(f"wrote {words}")


def _pool_row(step: Step, done: RoundLine, decision: DecisionLine, pool: str) -> tuple[str, ...]:
    had, got = done.targets or (_quota_seen(step, decision, pool), done.quotas.get(pool))
    made = None if step.again is None else step.again.decision
    again = None if made is None else made.replicas.get(pool)
    worth = decision.marginal.get(pool)
    decided = decision.replicas[pool]
    return (
        "",
        "",
        pool,
        _count(had),
        _count(decided),
        _count(got),
        "=" if again == decided else _count(again),
        "" if worth is None else f"{worth:.2g}",
        done.waits.get(pool, ""),
    )


def _quota_seen(step: Step, decision: DecisionLine, pool: str) -> float | None:
    if step.entry.cluster is None:
        return None
    return dict(zip(step.entry.cluster.pool_fields, decision.pools[pool], strict=False))["quota"]


def _note(words: str, heading: tuple[str, str] = ("", "")) -> tuple[str, ...]:
    return (*heading, *[""] * (len(_COLUMNS) - 3), words)


def _count(replicas: float | None) -> str:
    return "-" if replicas is None else f"{replicas:g}"


def _clock(time_s: float) -> str:
    time = datetime.datetime.fromtimestamp(time_s, datetime.UTC)
    return time.strftime("%Y-%m-%d %H:%M:%S")
