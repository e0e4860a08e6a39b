"""What a table is, and how numbers are written into it; `tables.py` says what is in which."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from agents.evaluate.metrics import METRICS
from agents.evaluate.statistics import Estimate

_FULL_SHADE = 0.05  # difference in attainment that gets the full colour
DASH = "-"


@dataclass(frozen=True, slots=True)
class Value:
    """One cell of a table.

    Attributes:
        text: the number.
        small: its interval, or another remark.
        shade: -1 (bad) to 1 (good), None for no colour.
    """

    text: str
    small: str = ""
    shade: float | None = None


@dataclass(frozen=True)
class Table:
    """A table ready to print.

    Attributes:
        name: what the command line calls it.
        title: heading.
        about: how to read it.
        headings: of the columns; the first is over the rows' names.
        rows: name and values of each row.
        notes: remarks below, such as what is missing.
    """

    name: str
    title: str
    about: str
    headings: tuple[str, ...]
    rows: list[tuple[str, list[Value]]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [
            "| " + " | ".join(self.headings) + " |",
            "|" + "---|" + "---:|" * (len(self.headings) - 1),
        ]
        for name, values in self.rows:
            cells = [f"{v.text} ({v.small})" if v.small else v.text for v in values]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        notes = "".join(f"\n- {note}" for note in self.notes)
        return "\n".join(lines) + "\n" + (notes + "\n" if notes else "")


def points(found: Estimate, *, shade: bool = True) -> Value:
    """A difference of shares in percentage points."""
    if not found.runs:
        return Value(DASH)
    small = "" if np.isnan(found.low) else f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    colour = float(np.clip(found.value / _FULL_SHADE, -1.0, 1.0)) if shade else None
    return Value(f"{100 * found.value:+.1f}", small, colour)


def plain(found: Estimate, digits: int = 2, scale: float = 1.0, unit: str = "") -> Value:
    """A number with its interval."""
    if not found.runs:
        return Value(DASH)
    low, high = scale * found.low, scale * found.high
    small = "" if np.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"
    return Value(f"{scale * found.value:.{digits}f}{unit}", small)


def measured(name: str, found: Estimate) -> Value:
    """A metric as `METRICS` shows it, with its interval."""
    metric = METRICS[name]
    if not found.runs:
        return Value(DASH)
    known = not np.isnan(found.low)
    small = f"{metric.number(found.low)} to {metric.number(found.high)}" if known else ""
    return Value(metric.number(found.value), small)
