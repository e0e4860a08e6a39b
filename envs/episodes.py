"""Where episodes come from: which cluster, which requests, which events, how long.

`EpisodeOptions` is what `reset(options=...)` understands; `make_episode` turns it into arrays.
Everything random follows from one seed. What nobody says is drawn: a scenario of `TRAINING`, on the
reference cluster, for an hour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner.errors import ScenarioError
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import ClusterEvent, Trace, assign_classes, read_trace
from hrl_planner.workload.events import blind_pools
from hrl_planner.workload.scenarios import find_scenario

TRAINING = (
    "diurnal-mix",
    "cold-start-ramp",
    "priority-reclaim",
    "pd-ratio-shift",
    "burst-slow-starters",
    "steady-no-flap",
)
DEFAULT_DURATION_S = 3600.0


@dataclass(frozen=True)
class EpisodeOptions:
    """What may be chosen of an episode.

    Attributes:
        spec: a cluster, its name or file; absent, the reference one (or the scenario's).
        scenario: name of a scenario; absent and without a trace, one of TRAINING is drawn.
        trace: requests, or a file of them; excludes a scenario.
        events: what else happens, besides the scenario's events.
        start_s: where in the trace the episode begins.
        duration_s: how long it takes; absent, an hour for scenarios, the rest of a trace.
        load: multiplies all rates.
        pool: the pool a LocalScaler scales, by name; absent, one is drawn.
    """

    spec: ClusterSpec | str | Path | None = None
    scenario: str | None = None
    trace: Trace | str | Path | None = None
    events: tuple[ClusterEvent, ...] = ()
    start_s: float = 0.0
    duration_s: float | None = None
    load: float = 1.0
    pool: str | None = None

    def changed(self, options: Mapping[str, Any] | None) -> EpisodeOptions:
        """Return these options with others in their place.

        Raises:
            ScenarioError: for an option there is not, or a value it cannot have.
        """
        if not options:
            return self
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                raise ScenarioError(
                    f"reset options: unknown option {name!r}; one of {', '.join(known)}"
                )
        changes = dict(options)
        # Whoever names a trace does not want the scenario of before, and the other way round.
        if changes.get("trace") is not None and "scenario" not in changes:
            changes["scenario"] = None
        if changes.get("scenario") is not None and "trace" not in changes:
            changes["trace"] = None
        merged = replace(self, **changes)
        merged.check()
        return merged

    def check(self) -> None:
        """Refuse values no episode can have."""
        if self.scenario is not None and self.trace is not None:
            raise ScenarioError("reset options: give scenario or trace, not both")
        limits = {"start_s": (self.start_s, 0.0), "load": (self.load, 1e-9)}
        if self.duration_s is not None:
            limits["duration_s"] = (self.duration_s, 1e-9)
        for name, (value, least) in limits.items():
            if not math.isfinite(value) or value < least:
                bound = "positive" if least else ">= 0"
                raise ScenarioError(f"reset options: {name} must be {bound}, got {value!r}")


@dataclass(frozen=True)
class Episode:
    """What is simulated.

    Attributes:
        name: of the scenario or trace.
        spec: the cluster.
        trace: the requests.
        class_id: their SLO classes, shape (N,).
        events: what else happens.
        seed: of start-up times and failures.
        start_s: time of day at the beginning.
        pool: see `EpisodeOptions`.
        truth: the cluster as it really is, where that differs from what planners are told.
    """

    name: str
    spec: ClusterSpec
    trace: Trace
    class_id: NDArray[np.int16]
    events: tuple[ClusterEvent, ...]
    seed: int
    start_s: float
    pool: str | None
    truth: ClusterSpec | None = None

    @property
    def blind_pools(self) -> frozenset[int]:
        """Pools whose profile planners must not use from the start."""
        return blind_pools(self.events, self.spec)


EpisodeSource = Callable[[EpisodeOptions, np.random.Generator], Episode]
"""Makes the next episode of a place; everything random comes from the generator."""


def make_episode(
    options: EpisodeOptions, generator: np.random.Generator, day: int | None = None
) -> Episode:
    """Make an episode; the same generator state and options make the same one.

    Args:
        options: what is chosen of it.
        generator: draws the rest.
        day: seed of the traffic and of start-up times; absent, drawn.

    Raises:
        HrlPlannerError: naming what is wrong with an option.
    """
    options.check()
    seed = int(generator.integers(2**31)) if day is None else day
    scenario = options.scenario
    if scenario is None and options.trace is None:
        scenario = TRAINING[int(generator.integers(len(TRAINING)))]
    spec = options.spec
    cluster = spec if isinstance(spec, ClusterSpec) else ClusterSpec.load(spec or "reference")
    events: tuple[ClusterEvent, ...] = ()
    if scenario is not None:
        duration_s = options.duration_s or DEFAULT_DURATION_S
        whole_s = options.start_s + duration_s
        case = find_scenario(scenario).build(
            cluster if spec is not None else None, seed, whole_s, options.load
        )
        cluster, trace, events = case.spec, case.trace, case.events
    else:
        trace = _trace(options, seed)
    trace = _cut(trace, options)
    moved = [replace(e, t_s=max(0.0, e.t_s - options.start_s)) for e in events]
    return Episode(
        name=scenario or trace.name,
        spec=cluster,
        trace=trace,
        class_id=assign_classes(trace, cluster, seed),
        events=(*moved, *options.events),
        seed=seed,
        start_s=options.start_s,
        pool=options.pool,
    )


def _trace(options: EpisodeOptions, seed: int) -> Trace:
    source = options.trace
    trace = source if isinstance(source, Trace) else read_trace(Path(str(source)))
    return trace if options.load == 1.0 else trace.scale(rate=options.load, seed=seed)


def _cut(trace: Trace, options: EpisodeOptions) -> Trace:
    if options.start_s >= trace.duration_s:
        raise ScenarioError(
            f"reset options: start_s {options.start_s:g} is behind the end of trace "
            f"{trace.name} ({trace.duration_s:g} s)"
        )
    left_s = trace.duration_s - options.start_s
    length_s = left_s if options.duration_s is None else min(left_s, options.duration_s)
    if options.start_s == 0.0 and length_s == trace.duration_s:
        return trace
    return trace.slice(options.start_s, options.start_s + length_s)


__all__ = [
    "DEFAULT_DURATION_S",
    "TRAINING",
    "Episode",
    "EpisodeOptions",
    "EpisodeSource",
    "make_episode",
]
