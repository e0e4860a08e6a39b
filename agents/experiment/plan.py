"""The runs of an experiment, and how one is done: what `agents.evaluate.runner` asks for.

A run has a key, a hash of what it depends on: cluster, workload, budget, truth, policy, and the
content of files that the policy names (weights of a checkpoint). A finished run whose key nobody
asks for any more is not used, so a changed experiment cannot mix with what it was before. What is
found by name among the sources (profiles, tuned thresholds, the checkpoint that ships) is covered
by the digest of the code instead, which stands beside the key.

Checkpoints and recordings need not be at hand where a report is written: their hashes are kept in
RESULTS/NAME.json by whoever ran the experiment or wrote its report, with the days of recordings. A
cell whose recording is not here has its kept hash as long as the experiment says the same of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from agents.evaluate.config import code_digest, policy_key
from agents.evaluate.store import write_atomically
from agents.experiment.cells import Cell, digest, find_cells
from agents.experiment.config import ExperimentConfig, ExperimentError
from agents.experiment.kept import read_kept
from agents.experiment.need import find_needs
from hrl_planner.errors import HrlPlannerError

_OWN_SOURCES = (
    "agents/bounds/**/*.py",
    "agents/experiment/cells.py",
    "agents/experiment/perturb.py",
)
_WARM_UP_S = 30.0
_SIGNIFICANT = 6
# What is kept of a run; everything the report shows comes from these.
KEPT = (
    "value_attainment",
    "attainment",
    "gpu_hours",
    "cost",
    "scaling_actions",
    "reversals",
    "recovery_s",
    "offered",
    "rejected",
    "unfinished",
    "budget_violations",
)


class _Keys(BaseModel):
    """RESULTS/NAME.json."""

    cells: dict[str, str] = {}
    recorded: dict[str, str] = {}
    policies: dict[str, str] = {}
    days: dict[str, list[int]] = {}


@dataclass(frozen=True, slots=True)
class Run:
    """One policy of an entry on one trace of a cell.

    Attributes:
        entry: label of the entry.
        policy: as the registry spells it.
        training_seed: which policy of the entry, 0 where there is only one.
        cell: the cell.
        trace: seed of the trace.
        key: hash of what the result depends on besides trace and code.
    """

    entry: str
    policy: str
    training_seed: int
    cell: Cell
    trace: int
    key: str

    def __str__(self) -> str:
        return (
            f"{self.entry} (training seed {self.training_seed}) on {self.cell.label}, "
            f"trace {self.trace}"
        )


@dataclass(frozen=True)
class Experiment:
    """A configuration made whole: what can be run here, and what cannot and why.

    Attributes:
        config: as the file says.
        all_cells: all cells, those included that cannot be built here.
        needs: by cell label, where known.
        cell_keys: hash of each cell by its label, where known.
        recorded: hash of what is said of each cell of a recording, by its label.
        policy_keys: hash of each policy by its text, where known.
        days: of every trace of a recording by its label, where known, see `Source.day_of`.
        here: labels of entries to run, each with the texts of its policies that can be made here.
        notes: what cannot be run, in words.
        code: digest of the sources runs depend on, and of the data that ships with them.
    """

    config: ExperimentConfig
    all_cells: tuple[Cell, ...]
    needs: dict[str, float]
    cell_keys: dict[str, str]
    recorded: dict[str, str]
    policy_keys: dict[str, str]
    days: dict[str, list[int]]
    here: frozenset[tuple[str, str]]
    notes: tuple[str, ...]
    code: str

    def key(self, cell: Cell, policy: str) -> str | None:
        """What a run of a policy on a cell depends on; None while that is not known."""
        of_cell, of_policy = self.cell_keys.get(cell.label), self.policy_keys.get(policy)
        if of_cell is None or of_policy is None:
            return None
        return digest([of_cell, of_policy, self.config.grace_s])

    def cells(self) -> Sequence[Run]:
        """All runs possible here; traces outermost: what is done first can be compared first."""
        pairs = [
            (entry.label, policy, seed, cell, self.key(cell, policy))
            for cell in self.all_cells
            if cell.label in self.needs and cell.source.is_here
            for entry in self.config.entries
            for seed, policy in enumerate(entry.policies)
            if (entry.label, policy) in self.here
        ]
        return [
            Run(label, policy, seed, cell, trace, key)
            for trace in range(self.config.traces)
            for label, policy, seed, cell, key in pairs
            if key is not None
        ]

    def run(self, cell: Run, on_share: Callable[[float], None]) -> dict[str, Any]:
        """Simulate one run and keep a line of numbers."""
        from agents.evaluate import metrics
        from agents.evaluate.cell import run_case

        case = cell.cell.case(self.needs[cell.cell.label], cell.trace)
        done = run_case(
            case,
            cell.policy,
            cell.trace,
            grace_s=self.config.grace_s,
            on_progress=lambda simulation: on_share(simulation.now_s / case.trace.duration_s),
        )
        row = metrics.compute(done.result)[0]
        line: dict[str, Any] = {
            "cell": cell.cell.label,
            "seed": cell.training_seed,
            "trace": cell.trace,
            "key": cell.key,
            "code": self.code,
            "wall_s": round(done.wall_s, 1),
        }
        return line | {name: float(f"{row[name]:.{_SIGNIFICANT}g}") for name in KEPT}

    def compile(self) -> None:
        """Simulate a few seconds so that the compiled kernel is in the on-disk cache."""
        from agents.evaluate.cell import run_case

        first = self.cells()[0]
        case = first.cell.case(self.needs[first.cell.label], first.trace)
        short = replace(case, trace=case.trace.slice(0.0, _WARM_UP_S), events=())
        run_case(short, "static", 0, grace_s=0.0)

    def keep_keys(self) -> None:
        """Write the hashes down for reports that are made elsewhere."""
        old = _read_keys(self.config)
        here = {cell.label for cell in self.all_cells if cell.source.is_here}
        # Runs of recordings that are elsewhere are not lost, whatever is said of them for now.
        elsewhere = {label: said for label, said in old.recorded.items() if label not in here}
        keys = _Keys(
            cells=self.cell_keys | {k: old.cells[k] for k in elsewhere if k in old.cells},
            recorded={k: said for k, said in self.recorded.items() if k in here} | elsewhere,
            policies=self.policy_keys,
            days=old.days | self.days,
        )
        path = manifest(self.config)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(keys.model_dump(), indent=1, sort_keys=True) + "\n")


def _read_keys(config: ExperimentConfig) -> _Keys:
    return read_kept(manifest(config), TypeAdapter(_Keys), _Keys())


def manifest(config: ExperimentConfig) -> Path:
    """File with the hashes of an experiment's cells and policies."""
    return config.results / f"{config.name}.json"


def prepare(
    config: ExperimentConfig,
    *,
    traces: Path | None = None,
    compute_needs: bool = False,
    only: Sequence[str] = (),
    on_source: Callable[[str], None] = lambda _: None,
) -> Experiment:
    """Find out what can be run.

    Args:
        config: the experiment.
        traces: folder with recordings.
        compute_needs: compute needs that are not known yet; takes a while.
        only: labels of entries to run; none for all.
        on_source: told the name of a workload before its need is computed.

    Raises:
        HrlPlannerError: an entry that is not optional cannot be made, or a cell is at fault.
    """
    cells = find_cells(config, traces)
    kept = _read_keys(config)
    absent = {cell.source.label for cell in cells if not cell.source.is_here}
    notes = [f"recording {name} is not here: give --traces DIR" for name in sorted(absent)]
    here, keys = _find_policies(config, only, notes)
    needs = find_needs(
        cells, config.results / "needs.json", compute=compute_needs, on_source=on_source
    )
    recorded = {cell.label: digest(cell.said()) for cell in cells if cell.source.recording}
    cell_keys, days = _find_keys(config, cells, needs)
    for cell in cells:
        label, source = cell.label, cell.source
        if source.is_here or kept.recorded.get(label) != recorded[label]:
            continue
        if label in kept.cells:
            cell_keys[label] = kept.cells[label]
        if source.label in kept.days:
            days[source.label] = kept.days[source.label]
    return Experiment(
        config=config,
        all_cells=tuple(cells),
        needs=needs,
        cell_keys=cell_keys,
        recorded=recorded,
        policy_keys={**kept.policies, **keys},
        days=days,
        here=frozenset(here),
        notes=tuple(notes),
        code=code_digest(_OWN_SOURCES),
    )


def _find_keys(
    config: ExperimentConfig, cells: Sequence[Cell], needs: dict[str, float]
) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Hashes of cells that can be built here and whose need is known, and days of recordings."""
    keys = {
        cell.label: digest(cell.fingerprint(needs[cell.label]))
        for cell in cells
        if cell.source.is_here and cell.label in needs
    }
    days = {
        source.label: [source.day_of(trace) for trace in range(config.traces)]
        for source in dict.fromkeys(cell.source for cell in cells)
        if source.recording and source.is_here
    }
    return keys, days


def _find_policies(
    config: ExperimentConfig, only: Sequence[str], notes: list[str]
) -> tuple[set[tuple[str, str]], dict[str, str]]:
    """Policies that can be made here by entry, and their hashes; notes on the others are added."""
    from agents.evaluate.cell import check_policy

    here: set[tuple[str, str]] = set()
    keys: dict[str, str] = {}
    for i, entry in enumerate(config.entries):
        problems = []
        for policy in entry.policies:
            try:
                check_policy(policy)
            except (HrlPlannerError, ImportError, OSError) as error:
                if not entry.optional:
                    raise ExperimentError(
                        f"experiment {config.name}: entries[{i}].policy {policy!r}: {error}"
                    ) from error
                problems.append(str(error))
                continue
            keys[policy] = policy_key(policy)
            if not only or entry.label in only:
                here.add((entry.label, policy))
        if problems:
            part = f", {len(problems)} of {entry.seeds} training seeds" if entry.seeds > 1 else ""
            notes.append(f"{entry.label}{part}: cannot be run here ({problems[0]})")
    return here, keys
