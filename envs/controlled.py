"""Episodes under control: what the single environments and the batched one have in common.

`Episodes` holds n places. In each runs one episode: a simulation, its `Control`, and the planner
without learning (`prior`) that an agent's actions are relative to. A *level* says what an agent
decides: it turns an action into quotas or replicas of one episode (`Level.command`). One step of
all places is: command, let time pass (compiled, with the scenario's events in between), observe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs import book as books
from envs.control import ALL_POOLS, BY_RULE, Control, make_control
from envs.episodes import Episode, EpisodeOptions, EpisodeSource, make_episode
from envs.future import FutureArrivals
from envs.priors import Priors, ProcessPriors
from envs.reward import TERMS, reward_scales
from envs.simulation import Simulation
from hrl_planner.budget import BudgetArrays, project
from hrl_planner.encoding import Layout, write_plan
from hrl_planner.features import FeatureScales
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.loop import current_targets
from hrl_planner.planner.network import Network
from hrl_planner.planner.policy import FloatArray, IntArray, Plan, PlanContext, Terms
from hrl_planner.planner.registry import make_policy
from hrl_planner.spec import ClusterSpec


class Level(Protocol):
    """What an agent decides, and how often.

    Attributes:
        prior: name of the policy that plans beside the agent, None for none.
        one_pool: the observation shows one pool, not all.
        shows_plan: the observation's plan is the prior's; else what the rule wishes.
        scaler: the local planner of pools the agent does not scale; None for the rule.
        penalty: weight of `Run.excess` against the reward where many clusters are stepped.
    """

    prior: str | None
    one_pool: bool
    shows_plan: bool
    scaler: Network | None
    penalty: float

    def action_space(self, layout: Layout) -> spaces.Space[Any]:
        """Return what actions look like."""

    def step_s(self, spec: ClusterSpec) -> float:
        """Return the time between two actions."""

    def command(self, run: Run, action: Any) -> None:
        """Put an action into effect on one episode."""

    def hear(self, run: Run, plan: Plan) -> None:
        """Take in what the prior says between two of its plans, see `Listener`."""


@runtime_checkable
class TermsGiver(Protocol):
    """A level whose actions change the terms the prior plans on, not what it has planned."""

    def terms(self, run: Run, action: Any) -> Terms | None:
        """Return the terms of an episode's pools; None to leave them as they are."""


class Run:
    """One episode on its way.

    Attributes:
        episode: what is simulated.
        simulation: the cluster.
        control: its control arrays.
        budget: its budget.
        scales: of its features.
        pool: index of the pool a local agent scales, or ALL_POOLS.
        step_s: time between two actions.
        plan: the prior's latest plan, None where there is no prior.
        action: the agent's latest, which stands until the next; None before the first.
        excess: GPUs last asked for beyond the budget, over the whole budget.
        next_quotas_s: when a level that acts more often sets quotas again.
        generator: for quotas drawn at random.
        temperament: a standard normal number per pool, for quotas that are off in one direction.
    """

    def __init__(
        self, episode: Episode, level: Level, layout: Layout, generator: np.random.Generator
    ) -> None:
        """Start an episode."""
        spec = episode.spec
        layout.check(spec, level.one_pool)
        self.episode = episode
        self.pool = ALL_POOLS
        if level.one_pool:
            drawn = int(generator.integers(len(spec.pools)))
            self.pool = drawn if episode.pool is None else spec.pool_index(episode.pool)
        self.simulation = Simulation(
            episode.truth or spec, episode.trace, seed=episode.seed, class_id=episode.class_id
        )
        self.step_s = level.step_s(spec)
        self.end_s = episode.trace.duration_s
        scales = reward_scales(spec, episode.class_id, self.end_s / self.step_s, self.step_s)
        self.control: Control = make_control(
            spec,
            scales,
            (layout.max_pools, layout.max_classes, layout.max_types),
            pool=self.pool,
            start_s=episode.start_s,
            blind_pools=episode.blind_pools,
            scaler=level.scaler,
        )
        self.scales = FeatureScales.from_spec(spec)
        self.budget = BudgetArrays.from_spec(spec)
        self._pending = sorted(episode.events, key=lambda event: event.t_s)
        self.plan: Plan | None = None
        self.action: Any = None
        self.next_plan_s = 0.0
        self.next_quotas_s = 0.0
        self.excess = 0.0
        self.generator = generator
        self.temperament = generator.standard_normal(len(spec.pools))

    def context(self) -> PlanContext:
        """Return what a planner of this episode is told at its start."""
        episode = self.episode
        return PlanContext(
            episode.spec,
            seed=episode.seed,
            trace=episode.trace,
            class_id=episode.class_id,
            blind_pools=episode.blind_pools,
        )

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return self.simulation.now_s

    def observation(self) -> ClusterObservation:
        """Return the rows of the last look at the cluster."""
        return ClusterObservation(
            self.now_s, self.control.rows.copy(), self.control.class_rows.copy()
        )

    def set_quotas(self, desired: FloatArray, flows: FloatArray | None) -> IntArray:
        """Project wishes onto the budget and make them the pools' quotas."""
        current = current_targets(self.observation())
        quotas = project(desired, current, self.budget)
        limits = self.budget.type_budget
        asked = np.bincount(self.budget.type_index, self.budget.gpus * desired, limits.size)
        self.excess = float(np.maximum(asked - limits, 0.0).sum() / max(limits.sum(), 1))
        self.control.quota[:] = quotas
        if flows is not None:
            self.simulation.set_flows(flows)
        return quotas

    def hear(self, plan: Plan) -> bool:
        """Take over a plan that the prior makes between two others; say whether it has pools.

        Without them it changes the router's weights, and None as weights changes nothing.
        """
        assert self.plan is not None
        if plan.replicas.size:
            self.plan = plan
            return True
        if plan.flows is not None:
            self.plan = replace(self.plan, flows=plan.flows)
            self.simulation.set_flows(plan.flows)
        return False

    def next_stop_s(self, until_s: float) -> float:
        """Return how far the compiled loop may run: to an event or, under a prior, a tick."""
        stop_s = until_s
        if self.plan is not None:
            clock = self.control.clock[0]
            passed = int((self.now_s - clock["base_s"]) / clock["local_s"] + 1e-6)
            stop_s = min(stop_s, float(clock["base_s"] + (passed + 1) * clock["local_s"]))
        return min(stop_s, self._pending[0].t_s) if self._pending else stop_s

    def at_tick(self) -> bool:
        """Say whether the local planners are about to act."""
        clock = self.control.clock[0]
        ticks = (self.now_s - clock["base_s"]) / clock["local_s"]
        return bool(abs(ticks - round(ticks)) < 1e-6)

    def happen(self) -> None:
        """Carry out the events whose time has come."""
        while self._pending and self._pending[0].t_s <= self.now_s:
            self.simulation.happen(self._pending.pop(0))


class Episodes:
    """A batch of episodes stepped together.

    Args:
        level: what the agents decide.
        layout: size of the observation.
        n: places.
        parallel: step them over threads.
        processes: let this many processes make the priors' plans; 0 makes them here.
        source: makes the episodes.
        future: write behind every observation what will arrive, for a critic.
    """

    def __init__(
        self,
        level: Level,
        layout: Layout,
        n: int,
        parallel: bool,
        processes: int = 0,
        source: EpisodeSource = make_episode,
        future: bool = False,
    ) -> None:
        """See the class."""
        self._source = source
        self._futures: list[FutureArrivals | None] | None = [None] * n if future else None
        self._priors: Priors | ProcessPriors | None = None
        if level.prior is not None:
            make_policy(level.prior)  # an unknown name is refused here and now
            self._priors = (
                ProcessPriors(level.prior, processes) if processes else Priors(level.prior)
            )
        self.level = level
        self.layout = layout
        self._book = books.Book(n)
        self._places: list[Run | None] = [None] * n
        self._parallel = parallel

    def start(
        self, place: int, options: EpisodeOptions, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """Begin an episode in a place and return its first observation."""
        run = Run(self._source(options, generator), self.level, self.layout, generator)
        run.happen()
        if self._futures is not None:
            self._futures[place] = FutureArrivals(run.episode)
        if self._priors is not None:
            self._priors.reset(place, run.context())
        self._places[place] = run
        self._book.enter(place, run.simulation.cluster, run.control)
        first: NDArray[np.float32] = self._look([place])[0]
        return first

    def close(self) -> None:
        """End what plans in other processes."""
        if isinstance(self._priors, ProcessPriors):
            self._priors.close()

    def run(self, place: int) -> Run:
        """Return the episode in a place."""
        run = self._places[place]
        if run is None:
            raise RuntimeError("reset the environment before its first step")
        return run

    def step(
        self, actions: Sequence[Any] | NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Let every place act; return fresh observations and the terms of the rewards."""
        n = len(self._places)
        runs = [self.run(place) for place in range(n)]
        until_s = np.empty(n)
        self._correct(actions)
        for place, run in enumerate(runs):
            run.control.override[:] = BY_RULE
            clock = run.control.clock[0]
            clock["base_s"], clock["tick"] = run.now_s, 0
            run.action = actions[place]
            self.level.command(run, run.action)
            until_s[place] = min(run.now_s + run.step_s, run.end_s)
        while True:
            stops = np.array([run.next_stop_s(end) for run, end in zip(runs, until_s, strict=True)])
            books.for_every_episode(
                books.run_one, self._book.addresses, stops[:, None], self._parallel
            )
            for run in runs:
                run.happen()
            if np.all(stops >= until_s):
                break
            self._listen(stops < until_s)
        observations = self._look(range(n))
        return observations, np.stack([run.control.terms for run in runs])

    def _correct(self, actions: Sequence[Any] | NDArray[Any]) -> None:
        """Let the priors plan again where an action changes the terms."""
        if self._priors is None or not isinstance(self.level, TermsGiver):
            return
        asked = {
            place: terms
            for place, action in enumerate(actions)
            if (terms := self.level.terms(self.run(place), action)) is not None
        }
        for place, plan in self._priors.replan(asked).items():
            if plan is not None:
                self.run(place).plan = plan

    def _listen(self, between: NDArray[np.bool_]) -> None:
        """Let priors see the cluster between their plans, where a local planner is about to act."""
        if self._priors is None:
            return
        due = [place for place in np.flatnonzero(between).tolist() if self.run(place).at_tick()]
        books.look_each(books.addresses_of(self._book, due))
        self._hear(due)

    def _look(self, places: Sequence[int]) -> NDArray[np.float32]:
        """Observe, and let the priors plan for what is seen."""
        seen = np.empty((len(places), self.layout.size), np.float32)
        whole = len(places) == len(self._places)
        addresses = self._book.addresses if whole else books.addresses_of(self._book, places)
        books.for_every_episode(books.read_one, addresses, seen, self._parallel)
        self._replan(places)
        if self.level.shows_plan:
            for row, place in enumerate(places):
                run = self.run(place)
                if run.plan is not None:
                    write_plan(seen[row], self.layout, run.plan, run.scales)
        if self._futures is None:
            return seen
        coming = [self._coming(place) for place in places]
        return np.concatenate([seen, np.stack(coming)], axis=1)

    def _coming(self, place: int) -> NDArray[np.float32]:
        """Return what will arrive in the episode of a place."""
        assert self._futures is not None
        future = self._futures[place]
        assert future is not None
        return future.features(self.run(place).now_s, self.layout.max_classes)

    def _replan(self, places: Sequence[int]) -> None:
        """Ask the priors, if there are any, where an answer is due; let the others see."""
        if self._priors is None:
            return
        runs = {place: self.run(place) for place in places}
        due = {place: run for place, run in runs.items() if run.now_s >= run.next_plan_s}
        plans = self._priors.decide({place: run.observation() for place, run in due.items()})
        for place, run in due.items():
            run.plan = plans[place]
            run.next_plan_s = run.now_s + run.episode.spec.intervals.global_s
        self._hear([place for place in places if place not in due])

    def _hear(self, places: Sequence[int]) -> None:
        """Let priors see what happens between their plans, and what they say take effect."""
        if self._priors is None:
            return
        heard = self._priors.listen({place: self.run(place).observation() for place in places})
        for place, plan in heard.items():
            if plan is not None:
                self.level.hear(self.run(place), plan)


def info_of(run: Run) -> dict[str, Any]:
    """Return what people want to know of an episode so far; none of it is for the agent."""
    spec, cluster = run.episode.spec, run.simulation.cluster
    classes = cluster.classes
    with np.errstate(invalid="ignore", divide="ignore"):
        kept = np.where(classes["offered"] > 0, classes["attained"] / classes["offered"], np.nan)
    info: dict[str, Any] = {
        "time_s": run.now_s,
        "episode_name": run.episode.name,
        "attainment": dict(zip((c.name for c in spec.slo_classes), kept.tolist(), strict=True)),
        "gpu_hours": float(cluster.pools["gpu_seconds"].sum()) / 3600.0,
        "quotas": dict(
            zip((p.name for p in spec.pools), cluster.pools["quota"].tolist(), strict=True)
        ),
        "reward_terms": dict(zip(TERMS, run.control.terms.tolist(), strict=True)),
    }
    if run.pool != ALL_POOLS:
        info["pool"] = spec.pools[run.pool].name
    return info


def steps_of(run: Run) -> int:
    """Return how many steps an episode has."""
    return math.ceil(run.end_s / run.step_s - 1e-9)
