"""What a policy is run on: a named scenario or a trace file, made concrete by a seed.

For a scenario the seed generates the trace; for a trace file the requests are fixed and the seed
only draws start-up times and class assignment. Either way the same workload and seed give every
policy exactly the same requests and the same luck, which is what makes runs comparable in pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hrl_planner.errors import ScenarioError, SpecError, TraceError

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec
    from hrl_planner.workload import Trace
    from hrl_planner.workload.scenarios import ScenarioCase


@dataclass(frozen=True, slots=True)
class Workload:
    """Where requests come from.

    Attributes:
        kind: "scenario" or "trace".
        name: name of the scenario, or path of the trace file.
    """

    kind: Literal["scenario", "trace"]
    name: str

    @property
    def label(self) -> str:
        """Short name for tables and file names."""
        return self.name if self.kind == "scenario" else Path(self.name).stem

    def digest(self) -> str:
        """Changes when the requests may have changed: a file's content, a scenario's name."""
        if self.kind == "scenario":
            return f"scenario:{self.name}"
        try:
            content = Path(self.name).read_bytes()
        except OSError as error:
            raise TraceError(f"trace {self.name}: cannot be read: {error.strerror}") from error
        return f"trace:{hashlib.sha256(content).hexdigest()}"


def choose_workloads(scenarios: Sequence[str], traces: Sequence[str]) -> tuple[Workload, ...]:
    """Workloads by what a user named; the scenario "all" stands for every one.

    Raises:
        ScenarioError: nothing was named, or a scenario that does not exist.
    """
    from hrl_planner.workload.scenarios import SCENARIOS

    if not scenarios and not traces:
        raise ScenarioError(
            f"nothing to run: give --trace FILE or --scenario NAME, one of: {', '.join(SCENARIOS)}"
        )
    names = list(SCENARIOS) if "all" in scenarios else scenarios
    for name in names:
        if name not in SCENARIOS:
            raise ScenarioError(
                f"unknown scenario {name!r}; there are: {', '.join(SCENARIOS)}, or all"
            )
    return (
        *(Workload("scenario", name) for name in names),
        *(Workload("trace", path) for path in traces),
    )


def load_spec(name: str | None, workloads: Sequence[Workload]) -> ClusterSpec:
    """The named spec; without a name the one that the scenarios are made for, else "reference".

    Raises:
        SpecError: no name, and the scenarios are made for different specs.
    """
    from hrl_planner.spec import ClusterSpec
    from hrl_planner.workload.scenarios import SCENARIOS

    if name is None:
        own = {SCENARIOS[w.name].spec for w in workloads if w.kind == "scenario"}
        if len(own) > 1:
            raise SpecError(f"--spec: the scenarios are made for {', '.join(own)}; choose one")
        name = own.pop() if own else "reference"
    return ClusterSpec.load(name)


def load_case(
    workload: Workload,
    spec: ClusterSpec,
    seed: int,
    *,
    load: float = 1.0,
    until_s: float | None = None,
) -> ScenarioCase:
    """Requests, events and the (possibly changed) spec of one workload under one seed.

    Args:
        workload: scenario or trace file.
        spec: the cluster.
        seed: generates a scenario's trace; thins or repeats a trace file's requests if `load`
            is not 1.
        load: multiplies the request rate.
        until_s: cut requests and events from this time on; None keeps all.
    """
    from hrl_planner.workload.scenarios import SCENARIOS, ScenarioCase

    if workload.kind == "scenario":
        case = SCENARIOS[workload.name].build(spec, seed, None, load)
    else:
        trace = _read(workload.name)
        if load != 1.0:
            trace = trace.scale(rate=load, seed=seed)
        case = ScenarioCase(spec=spec, trace=trace, events=())
    if until_s is None or until_s >= case.trace.duration_s:
        return case
    return replace(
        case,
        trace=case.trace.slice(0.0, until_s),
        events=tuple(event for event in case.events if event.t_s < until_s),
    )


@lru_cache(maxsize=4)
def _read(path: str) -> Trace:
    """Parsed once per process: every policy and seed uses the same file."""
    from hrl_planner.workload import read_trace

    return read_trace(path)
