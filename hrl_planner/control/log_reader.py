"""Reading decision logs: the rounds of many files in the order of time, and what cannot be read.

A planner's pod writes messages beside its decisions and may be killed in the middle of a line, so a
reader skips what is not of the log, names what is broken, and goes on.
"""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from hrl_planner._spec_file import describe
from hrl_planner.control.log_lines import ClusterLine, RoundLine
from hrl_planner.errors import DecisionLogError


@dataclass(frozen=True, slots=True)
class Flaw:
    """A line that is broken."""

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.file}:{self.line}: {self.why}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A round, where it stands, and the cluster its decision names if the file describes it."""

    file: str
    line: int
    round: RoundLine
    cluster: ClusterLine | None


@dataclass
class DecisionLogs:
    """Files of the decision log.

    Attributes:
        paths: `-` is standard input.
        flaws: broken lines, as far as was read.
        foreign: lines that are no JSON objects, such as messages of the same process.
    """

    paths: Sequence[str]
    flaws: list[Flaw] = field(default_factory=list)
    foreign: int = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield rounds, oldest first.

        Raises:
            DecisionLogError: a file cannot be opened.
        """
        files = [self._entries(path) for path in self.paths]
        return heapq.merge(*files, key=lambda entry: entry.round.time)

    def _entries(self, path: str) -> Iterator[Entry]:
        clusters: dict[str, ClusterLine] = {}
        try:
            opened = (
                nullcontext(sys.stdin)
                if path == "-"
                else Path(path).open(encoding="utf-8", errors="replace")
            )
        except OSError as error:
            raise DecisionLogError(f"{path}: {error.strerror}") from error
        with opened as file:
            for number, text in enumerate(file, 1):
                if not text.startswith("{"):
                    self.foreign += bool(text.strip())
                    continue
                line = self._parsed(path, number, text)
                if isinstance(line, ClusterLine):
                    clusters[line.hash] = line
                elif line is not None:
                    named = "" if line.decision is None else line.decision.cluster
                    yield Entry(path, number, line, clusters.get(named))

    def _parsed(self, path: str, number: int, text: str) -> ClusterLine | RoundLine | None:
        try:
            data = json.loads(text)
        except ValueError:
            cut = "" if text.endswith("\n") else ", the last line: it was cut off"
            self.flaws.append(Flaw(path, number, f"no JSON{cut}"))
            return None
        version = data.get("format")
        if version != 1:
            self.flaws.append(Flaw(path, number, f"format is {version!r}; this version reads 1"))
            return None
        model = ClusterLine if data.get("kind") == "cluster" else RoundLine
        try:
            return model.model_validate(data)
        except ValidationError as error:
            self.flaws.append(Flaw(path, number, describe(error, "the line")))
            return None
