"""A cell: a workload under a budget that is so and so tight, made concrete by the seed of a trace.

The load stays and the budget is scaled. A tightness of 1 is the *need*: the budget with which
somebody who knows the future, and has fractional replicas that start at once, serves 99 % of the
value. The need is computed once per workload, on validation seeds, and kept (`need.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from agents.evaluate.config import own_profiles
from agents.experiment.config import CellGroup, ExperimentConfig, ExperimentError, Swap, Truth
from agents.experiment.perturb import make_true, swapped
from hrl_planner.errors import HrlPlannerError
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import Trace, read_rate_curve, read_trace
from hrl_planner.workload.curves import RateCurve
from hrl_planner.workload.generators import independent_requests
from hrl_planner.workload.readers import detect_format
from hrl_planner.workload.scenarios import ScenarioCase, find_scenario

_LEAST_S = 60.0  # of a scenario that is built only to see whether it can be
_RECORDED_S = 1800.0  # of a recording where nobody says
_DAY_S = 86_400.0
_WINDOWS = 20  # in which a recording is cut; they overlap where it is short


@dataclass(frozen=True, slots=True)
class Source:
    """Where a cell's requests come from, for which cluster; one need belongs to it.

    Attributes:
        spec: name or file of the cluster.
        scenario: name of a scenario, "" for a recording.
        recording: path of a trace file, "" for a scenario.
        duration_s: None for the scenario's own.
        load: multiplies the rates.
        swap: a GPU type that is replaced.
    """

    spec: str
    scenario: str
    recording: str
    duration_s: float | None
    load: float
    swap: Swap | None

    @property
    def label(self) -> str:
        """Name of the workload."""
        return self.scenario or Path(self.recording).stem

    @property
    def is_here(self) -> bool:
        """Whether it can be read: recordings are not part of the project."""
        return not self.recording or Path(self.recording).is_file()

    def cluster(self) -> ClusterSpec:
        """The cluster under the whole budget of its spec."""
        spec = ClusterSpec.load(self.spec)
        return spec if self.swap is None else swapped(spec, self.swap)

    def fingerprint(self) -> dict[str, Any]:
        """What the requests and the cluster depend on; a file counts by its content."""
        content = ""
        if self.recording:
            content = hashlib.sha256(Path(self.recording).read_bytes()).hexdigest()[:16]
        return self.said() | {"recording": content}

    def said(self) -> dict[str, Any]:
        """The part of it that needs no recording: that one counts by its name."""
        return {
            # Without defaults, so that a field the spec may have some day changes nothing.
            "spec": ClusterSpec.load(self.spec).model_dump(
                mode="json", exclude_defaults=True, exclude={"name", "description"}
            ),
            "scenario": self.scenario,
            "recording": Path(self.recording).name,
            "duration_s": self.duration_s,
            "load": self.load,
            "swap": None if self.swap is None else self.swap.model_dump(mode="json"),
            **own_profiles(self.cluster()),
        }

    def case(self, seed: int) -> ScenarioCase:
        """Requests and cluster under the whole budget of the spec."""
        spec = self.cluster()
        if self.scenario:
            return find_scenario(self.scenario).build(spec, seed, self.duration_s, self.load)
        trace = _recorded(Path(self.recording), self.duration_s or _RECORDED_S, self.load, seed)
        return ScenarioCase(spec, trace)

    def day_of(self, seed: int) -> int:
        """What a seed's requests share with those of other seeds, a number that both then have.

        Every seed of a scenario is a day of its own. A recording has only so many days, and windows
        that overlap for the most part are one stretch of it.
        """
        if not self.recording:
            return seed
        path = Path(self.recording)
        if detect_format(path) == "rates":
            return seed % _n_days(_test_days(path))
        duration_s = self.duration_s or _RECORDED_S
        return round(_window_start_s(_read(str(path)), duration_s, seed) / duration_s)


@dataclass(frozen=True, slots=True)
class Cell:
    """A stratum of the experiment.

    Attributes:
        group: block it belongs to, "" for the main result.
        source: requests and cluster.
        tightness: budget over need.
        given_need: the need where the experiment states it, None where it is computed.
        truth: how the cluster differs from what planners are told.
    """

    group: str
    source: Source
    tightness: float
    given_need: float | None
    truth: Truth

    @property
    def label(self) -> str:
        """Unique name within an experiment."""
        name = f"{self.source.label}@{self.tightness:g}"
        return f"{self.group}/{name}" if self.group else name

    def fingerprint(self, need: float) -> dict[str, Any]:
        """What a run depends on besides its policy and its trace's seed."""
        return {
            **self.source.fingerprint(),
            "budget": round(self.tightness * need, 6),
            "truth": self._truth,
        }

    def said(self) -> dict[str, Any]:
        """What the experiment says of it: the part of the fingerprint that needs no recording."""
        return {
            **self.source.said(),
            "tightness": self.tightness,
            "need": self.given_need,
            "truth": self._truth,
        }

    @property
    def _truth(self) -> dict[str, Any]:
        return self.truth.model_dump(mode="json", exclude_defaults=True)

    def case(self, need: float, seed: int) -> ScenarioCase:
        """The case of one trace."""
        return _case(self, need, seed)


@lru_cache(maxsize=2)
def _case(cell: Cell, need: float, seed: int) -> ScenarioCase:
    """Kept, because all entries meet the same case in a row."""
    from agents.bounds import scaled_events, tighten

    case = cell.source.case(seed)
    believed: ClusterSpec = tighten(case.spec, cell.tightness * need)
    return replace(
        case,
        spec=believed,
        events=scaled_events(case.events, case.spec, believed),
        truth=make_true(believed, cell.truth, seed),
    )


def find_cells(config: ExperimentConfig, traces: Path | None) -> list[Cell]:
    """All cells of an experiment.

    Args:
        config: the experiment.
        traces: folder with recordings.

    Raises:
        ExperimentError: two cells have one label, or a group's cluster or scenario cannot be built.
    """
    for i, group in enumerate(config.cells):
        _check(group, f"experiment {config.name}: cells[{i}]")
    cells = [
        Cell(group.group, source, factor, group.need, group.truth)
        for group in config.cells
        for source in _sources(group, traces)
        for factor in group.tightness
    ]
    labels = [cell.label for cell in cells]
    for label in labels:
        if labels.count(label) > 1:
            raise ExperimentError(f"experiment {config.name}: two cells are called {label}")
    return cells


def _check(group: CellGroup, where: str) -> None:
    """Refuse at once a cluster or scenario whose every run would fail."""
    field = "spec"
    try:
        spec = ClusterSpec.load(group.spec)
        if group.swap is not None:
            field = "swap"
            spec = swapped(spec, group.swap)
        field = "scenarios"
        for name in group.scenarios:
            find_scenario(name).build(spec, 0, _LEAST_S, group.load)
    except HrlPlannerError as error:
        raise ExperimentError(f"{where}.{field}: {error}") from error


def _sources(group: CellGroup, traces: Path | None) -> Iterator[Source]:
    for name in group.scenarios:
        yield Source(group.spec, name, "", group.duration_s, group.load, group.swap)
    for name in group.recordings:
        path = str(Path(name) if traces is None else traces / name)
        yield Source(group.spec, "", path, group.duration_s, group.load, group.swap)


def _recorded(path: Path, duration_s: float, load: float, seed: int) -> Trace:
    """A part of a recording: of days of rates one test day, else one of twenty windows."""
    if detect_format(path) == "rates":
        curve = _test_days(path)
        start_s = (seed % _n_days(curve)) * _DAY_S
        day = curve.slice(start_s, min(start_s + _DAY_S, curve.duration_s))
        squeezed = day.scale(time=duration_s / day.duration_s, rate=load)
        return independent_requests(squeezed, seed=seed, name=path.stem)
    whole = _read(str(path))
    start_s = _window_start_s(whole, duration_s, seed)
    window = whole.slice(start_s, min(start_s + duration_s, whole.duration_s))
    return window.scale(rate=load, seed=seed)


def _n_days(curve: RateCurve) -> int:
    return max(1, round(curve.duration_s / _DAY_S))


def _window_start_s(whole: Trace, duration_s: float, seed: int) -> float:
    spare_s = max(0.0, whole.duration_s - duration_s)
    return spare_s * (seed % _WINDOWS) / (_WINDOWS - 1)


@lru_cache(maxsize=2)
def _test_days(path: Path) -> RateCurve:
    """The last fifth of the days, which nothing was trained or chosen on; all of a single day."""
    curve = read_rate_curve(path)
    if curve.duration_s < 3 * _DAY_S:
        return curve
    return curve.split_by_day()[2]


@lru_cache(maxsize=2)
def _read(path: str) -> Trace:
    return read_trace(path)


def digest(data: Any) -> str:
    """Short hash of plain data."""
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
