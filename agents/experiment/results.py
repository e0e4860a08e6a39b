"""Finished runs as arrays, and an account of what is missing.

Every table and figure begins here. Arrays have the shape [training seeds, cells, traces] and the
order of the configuration; a run that is not there is NaN. Whoever averages asks `coverage` too,
and says how much of the whole an average stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agents.evaluate.bootstrap import Days
from agents.experiment.config import ExperimentConfig
from agents.experiment.plan import KEPT, Experiment
from agents.experiment.store import Line, RunStore

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of an entry has been run.

    Attributes:
        done: finished runs.
        total: runs of the whole.
        cells: cells in which every run is finished.
        of_cells: cells of the whole.
        seeds: training seeds of which every run is finished.
        of_seeds: training seeds of the whole.
    """

    done: int
    total: int
    cells: int
    of_cells: int
    seeds: int
    of_seeds: int

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.done == self.total

    def __str__(self) -> str:
        if self.complete:
            return f"all {self.total:,} runs"
        if not self.done:
            return f"none of {self.total:,} runs"
        seeds = f" x {self.seeds} of {self.of_seeds} training seeds" if self.of_seeds > 1 else ""
        cells = f"{self.cells} of {self.of_cells} cells"
        return f"{self.done:,} of {self.total:,} runs; {cells}{seeds} complete"


class Results:
    """The runs of an experiment that are finished and belong to it as it is now."""

    def __init__(self, experiment: Experiment, store: RunStore) -> None:
        self.experiment = experiment
        self.config: ExperimentConfig = experiment.config
        self.cells: tuple[str, ...] = tuple(cell.label for cell in experiment.all_cells)
        self.groups: tuple[str, ...] = tuple(
            dict.fromkeys(cell.group for cell in experiment.all_cells)
        )
        self.codes: Counter[str] = Counter()
        self.wall_s = 0.0
        self._arrays = {
            entry.label: self._read(entry.label, store) for entry in self.config.entries
        }

    def _read(self, label: str, store: RunStore) -> dict[str, FloatArray]:
        policies = self.config.entry(label).policies
        shape = (len(policies), len(self.cells), self.config.traces)
        arrays = {name: np.full(shape, np.nan) for name in KEPT}
        # Where a cell and a policy meet, by the key they give together; cells of two groups may be
        # the same in all but name.
        places: dict[tuple[str | None, int], list[int]] = {}
        for at, cell in enumerate(self.experiment.all_cells):
            for seed, policy in enumerate(policies):
                places.setdefault((self.experiment.key(cell, policy), seed), []).append(at)
        for line in store.lines(label):
            if line["trace"] < self.config.traces:
                for at in places.get((line["key"], line["seed"]), ()):
                    self._take(line, arrays, (line["seed"], at, line["trace"]))
        return arrays

    def _take(self, line: Line, arrays: dict[str, FloatArray], at: tuple[int, int, int]) -> None:
        if np.isnan(arrays[KEPT[0]][at]):
            self.codes[line["code"]] += 1
            self.wall_s += line["wall_s"]
        for name in KEPT:
            arrays[name][at] = line.get(name, np.nan)

    def scores(self, entry: str, metric: str = KEPT[0]) -> FloatArray:
        """A metric of every run, [training seeds, cells, traces]."""
        return self._arrays[entry][metric]

    @cached_property
    def days(self) -> Days:
        """Which runs share a day: cells with the same requests do, whatever their budget."""
        names = [cell.source.label for cell in self.experiment.all_cells]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return Days(
            np.array([numbers[name] for name in names], np.int64),
            np.array([self._days_of(name) for name in names], np.int64),
        )

    def _days_of(self, source: str) -> list[int]:
        """Days of every trace; of a recording nobody has seen so far each counts as one."""
        n = self.config.traces
        known = self.experiment.days.get(source, [])
        return known[:n] if len(known) >= n else list(range(n))

    def coverage(self, entry: str, cells: Sequence[int] | None = None) -> Coverage:
        """What has been run of an entry, in all cells or in some."""
        scores = self.scores(entry)
        present = ~np.isnan(scores if cells is None else scores[:, list(cells)])
        return Coverage(
            done=int(present.sum()),
            total=present.size,
            cells=int(present.all(axis=(0, 2)).sum()),
            of_cells=present.shape[1],
            seeds=int(present.all(axis=(1, 2)).sum()),
            of_seeds=present.shape[0],
        )

    @cached_property
    def started(self) -> tuple[str, ...]:
        """Entries with at least one run."""
        labels = (entry.label for entry in self.config.entries)
        return tuple(label for label in labels if self.coverage(label).done)

    def cells_of(self, group: str) -> list[int]:
        """Positions of a group's cells."""
        return [i for i, cell in enumerate(self.experiment.all_cells) if cell.group == group]

    @property
    def violations(self) -> int:
        """Samples of all runs at which a budget was exceeded."""
        found = (self.scores(label, "budget_violations") for label in self._arrays)
        return int(sum(np.nansum(scores) for scores in found))


def paired(scores: FloatArray, baseline: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two entries' scores run against run.

    An entry that was trained once, or not at all, meets every training seed of the other; of two
    that were trained several times the k-th meets the k-th.
    """
    scores, baseline = of_same_seeds(scores, baseline)
    shape = np.broadcast_shapes(scores.shape, baseline.shape)
    return np.broadcast_to(scores, shape), np.broadcast_to(baseline, shape)


def of_same_seeds(scores: FloatArray, baseline: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of two entries that were trained several times, the training seeds that both have."""
    if scores.shape[0] == 1 or baseline.shape[0] == 1:
        return scores, baseline
    both = min(scores.shape[0], baseline.shape[0])
    return scores[:both], baseline[:both]


def in_common(*scores: FloatArray) -> list[FloatArray]:
    """The same arrays, without the traces of a cell that any of them has not run in full.

    Training seeds that have not been run at all are left out rather than waited for.
    """
    begun = [s[~np.isnan(s).all(axis=(1, 2))] if not np.isnan(s).all() else s for s in scores]
    whole = np.logical_and.reduce([~np.isnan(s).any(axis=0) for s in begun])
    return [np.where(whole[None], s, np.nan) for s in begun]
