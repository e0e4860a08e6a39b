"""What a scenario is: a recipe that makes a trace and events to measure for a given cluster.

A scenario fixes the *shape* of what happens (a ramp steeper than any start-up, GPUs that vanish,
metrics that fall silent); rates follow from what the spec can sustain, so that the same scenario
is as hard on 16 GPUs as on 512.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hrl_planner.errors import ScenarioError
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.trace import Trace

DEFAULT_SPEC = "reference"


@dataclass(frozen=True)
class ScenarioCase:
    """A scenario made to measure.

    Attributes:
        spec: the cluster, with whatever the scenario changes about it.
        trace: the requests, labelled for the classes of the spec.
        events: what else happens, by time.
        truth: the cluster as it is, where that differs from the `spec` planners are told: start-up
            times, step times and metric lag may; pools, budget and classes may not.
    """

    spec: ClusterSpec
    trace: Trace
    events: tuple[ClusterEvent, ...] = ()
    truth: ClusterSpec | None = None

    def __post_init__(self) -> None:
        """Refuse a truth that is another cluster than the one plans are made for."""
        if self.truth is None:
            return
        same = ("budget", "slo_classes", "reward")
        for field in same:
            if getattr(self.truth, field) != getattr(self.spec, field):
                raise ScenarioError(f"truth of spec {self.spec.name} field {field}: differs")
        shapes = [
            [(p.name, p.role, p.gpu_type, p.gpus_per_replica, p.min_replicas, p.max_replicas)
             for p in spec.pools]
            for spec in (self.spec, self.truth)
        ]  # fmt: skip
        if shapes[0] != shapes[1]:
            raise ScenarioError(f"truth of spec {self.spec.name} field pools: other pools")

    @property
    def actual(self) -> ClusterSpec:
        """The cluster that is simulated."""
        return self.spec if self.truth is None else self.truth


Recipe = Callable[[ClusterSpec, int, float, float], ScenarioCase]
"""(spec, seed, duration in seconds, load factor) -> case."""


@dataclass(frozen=True)
class Scenario:
    """One named situation.

    Attributes:
        name: what the command line calls it.
        title: one line for tables.
        source: the number in the suite and the reports it comes from.
        description: what happens and what a good planner does.
        recipe: makes it.
        duration_s: how long it takes where nobody says.
        spec: name of the spec it runs on where nobody says.
    """

    name: str
    title: str
    source: str
    description: str
    recipe: Recipe
    duration_s: float = 1800.0
    spec: str = DEFAULT_SPEC

    def build(
        self,
        spec: ClusterSpec | None = None,
        seed: int = 0,
        duration_s: float | None = None,
        load: float = 1.0,
    ) -> ScenarioCase:
        """Make the case.

        Args:
            spec: the cluster; None for the scenario's own.
            seed: of the requests; the shape of the load does not depend on it, except for bursts.
            duration_s: None for the scenario's own; the shape is stretched with it.
            load: multiplies all rates.
        """
        length = self.duration_s if duration_s is None else duration_s
        for field, value in (("duration_s", length), ("load", load)):
            if not 0 < value < float("inf"):
                raise ScenarioError(f"scenario {self.name} field {field}: must be > 0, got {value}")
        cluster = ClusterSpec.load(self.spec) if spec is None else spec
        case = self.recipe(cluster, seed, length, load)
        ordered = tuple(sorted(case.events, key=lambda event: event.t_s))
        return replace(case, trace=case.trace.renamed(self.name), events=ordered)
