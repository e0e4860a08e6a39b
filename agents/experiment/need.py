"""How much budget each workload needs, computed once and kept beside the results.

    RESULTS/needs.json    {hash of the source: {"label", "need", "seeds", "share"}}

The need is the median over validation seeds of the smallest factor on the spec's budget with which
a clairvoyant fluid planner serves `SHARE` of the value. Runs depend on it, so it is not computed
again when code changes: remove the file to do so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from pydantic import BaseModel, Field, TypeAdapter

from agents.days import FIRST_VALIDATION_DAY
from agents.evaluate.store import write_atomically
from agents.experiment.cells import Cell, Source, digest
from agents.experiment.kept import read_kept

SHARE = 0.99
SEEDS = tuple(range(FIRST_VALIDATION_DAY, FIRST_VALIDATION_DAY + 3))


class _Need(BaseModel):
    label: str
    need: float = Field(gt=0)
    seeds: list[int]
    share: float


_NEEDS = TypeAdapter(dict[str, _Need])


def find_needs(
    cells: Sequence[Cell],
    path: Path,
    *,
    compute: bool,
    on_source: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Need of each cell, by its label; cells whose need is not known are absent.

    Args:
        cells: of the experiment.
        path: of the file that keeps needs.
        compute: compute what is not there yet, and keep it.
        on_source: told the name of a workload before its need is computed.
    """
    kept = read_kept(path, _NEEDS, {})
    found: dict[str, float] = {}
    keys: dict[Source, str] = {}
    for cell in cells:
        if cell.given_need is not None:
            found[cell.label] = cell.given_need
            continue
        source = cell.source
        if not source.is_here:
            continue
        if source not in keys:
            keys[source] = digest(source.fingerprint())
        key = keys[source]
        if key not in kept and compute:
            on_source(source.label)
            kept[key] = _Need(
                label=source.label, need=_need(source), seeds=list(SEEDS), share=SHARE
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _NEEDS.dump_json(kept, indent=1).decode())
        if key in kept:
            found[cell.label] = kept[key].need
    return found


def _need(source: Source) -> float:
    from agents.bounds import clairvoyant_need
    from hrl_planner.workload import assign_classes

    needs = []
    for seed in SEEDS:
        case = source.case(seed)
        class_id = assign_classes(case.trace, case.spec, seed)
        needs.append(float(clairvoyant_need(case.spec, case.trace, class_id, share=SHARE)))
    return round(median(needs), 4)
