"""Episodes for training: another load, another cluster, another truth every time.

Days are seeds of the traffic, split for good: 0 to 99 are for tests, 100 to 999 for validation,
1000 and more for training. The clock starts at a random time of day, because the scenarios' shapes
are no days a policy could know by the hour. What planners are told (`Episode.spec`) has the true
start-up times, budget and pools; step times really are (`Episode.truth`) what no profile says
exactly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agents.bounds.specs import scaled_events, tighten
from agents.days import FIRST_TRAINING_DAY, FIRST_VALIDATION_DAY
from agents.train.config import RandomiseConfig
from envs.episodes import Episode, EpisodeOptions, make_episode
from hrl_planner.encoding import DAY_S
from hrl_planner.spec import ClusterSpec, PoolSpec, StartupSpec

_TRAINING_DAYS = 2**30
_STARTUP_S = (30.0, 420.0)
_MTBF_H = 2.0
_AMPLE, _LIGHT = 4.0, 0.25


class RandomEpisodes:
    """An `EpisodeSource` that draws everything a config leaves open.

    Args:
        spec: the cluster to vary.
        config: what to vary, and how far.
        validation: draw validation days instead of training days.
    """

    def __init__(self, spec: ClusterSpec, config: RandomiseConfig, validation: bool) -> None:
        """See the class."""
        self._spec, self._config = spec, config
        self._days = (
            (FIRST_VALIDATION_DAY, FIRST_TRAINING_DAY)
            if validation
            else (FIRST_TRAINING_DAY, FIRST_TRAINING_DAY + _TRAINING_DAYS)
        )

    def __call__(self, options: EpisodeOptions, generator: np.random.Generator) -> Episode:
        """Make the next episode."""
        config = self._config
        least, most = config.load
        scarce = config.tightness
        if config.ample and generator.random() < config.ample:
            least *= _LIGHT
            scarce = (scarce[1], _AMPLE * scarce[1])
        load = float(np.exp(generator.uniform(*np.log((least, most)))))
        tightness = float(generator.uniform(*scarce))
        scenario = str(generator.choice(config.scenarios))
        load *= config.loads.get(scenario, 1.0)
        budget = load * tightness * config.needs.get(scenario, 1.0)
        options = replace(
            options,
            spec=self._spec,
            scenario=scenario,
            duration_s=float(generator.choice(config.durations_s)),
            load=load,
        )
        episode = make_episode(options, generator, day=int(generator.integers(*self._days)))
        start_s = float(generator.uniform(0.0, DAY_S))
        truth = None
        if generator.random() < config.as_told:
            told = tighten(episode.spec, budget)
        else:
            named = frozenset(event.pool for event in episode.events if event.pool is not None)
            told = vary(episode.spec, config, budget, generator, named)
            truth = truth_of(told, config.profile_error, generator)
        events = scaled_events(episode.events, episode.spec, told)
        return replace(episode, spec=told, truth=truth, events=events, start_s=start_s)


def vary(
    spec: ClusterSpec,
    config: RandomiseConfig,
    budget: float,
    generator: np.random.Generator,
    needed: frozenset[str] = frozenset(),
) -> ClusterSpec:
    """Return a cluster with other pools, start-up times, metric lag, failures and budget.

    Args:
        spec: the cluster.
        config: how far things vary.
        budget: factor on its GPUs.
        generator: draws.
        needed: pools that stay, because something will happen to them.
    """
    kept = _pools(spec, config.drop_pool, generator, needed)
    factor = float(np.exp(generator.uniform(*np.log(config.startup))))
    mtbf_h = _MTBF_H if generator.random() < config.failures else None
    pools = tuple(
        pool.model_copy(update={"startup": _slower(pool.startup, factor), "mtbf_h": mtbf_h})
        for pool in kept
    )
    lag_s = float(generator.uniform(*config.scrape_lag_s))
    intervals = spec.intervals.model_copy(update={"scrape_lag_s": lag_s})
    # A routing grid written by hand names pools that may be gone.
    router = spec.router.model_copy(update={"prefill_grid": None, "decode_grid": None})
    varied = spec.replace(pools=pools, intervals=intervals, router=router)
    return tighten(varied, budget)


def truth_of(
    spec: ClusterSpec, deviation: float, generator: np.random.Generator
) -> ClusterSpec | None:
    """Return the cluster with step times that differ from the profiles', pool by pool."""
    if deviation == 0.0:
        return None
    pools = tuple(
        pool.model_copy(
            update={"latency_scale": pool.latency_scale * float(np.exp(error * deviation))}
        )
        for pool, error in zip(spec.pools, generator.standard_normal(len(spec.pools)), strict=True)
    )
    return spec.replace(pools=pools)


def _pools(
    spec: ClusterSpec, chance: float, generator: np.random.Generator, needed: frozenset[str]
) -> tuple[PoolSpec, ...]:
    """Drop pools at random; each role keeps the ones with a guaranteed minimum, or its first."""
    drawn = generator.random(len(spec.pools)) < chance
    needed = needed | {p.name for p in {p.role: p for p in reversed(spec.pools)}.values()}
    keep = tuple(
        pool
        for pool, gone in zip(spec.pools, drawn, strict=True)
        if not gone or pool.min_replicas > 0 or pool.name in needed
    )
    return keep


def _slower(startup: StartupSpec, factor: float) -> StartupSpec:
    mean_s = float(np.clip(startup.mean_s * factor, *_STARTUP_S))
    spread_s = startup.spread_s * mean_s / max(startup.mean_s, 1e-9)
    return startup.model_copy(update={"mean_s": mean_s, "spread_s": min(spread_s, mean_s)})
