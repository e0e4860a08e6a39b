"""Everything random in a simulation, drawn before it starts.

The n-th start of a pool takes the n-th draw of that pool, whatever the policy did before: two
policies compared on one seed meet the same luck (common random numbers).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrl_planner.spec import ClusterSpec, StartupSpec

DRAWS = 1024  # per pool; later starts use them again from the first on


def _startup(startup: StartupSpec, generator: np.random.Generator) -> NDArray[np.float64]:
    if startup.distribution == "uniform":
        spread = startup.spread_s
        return generator.uniform(startup.mean_s - spread, startup.mean_s + spread, DRAWS)
    if startup.distribution == "lognormal":
        # Parameters of the normal below that give the mean and coefficient of variation asked for.
        variance = np.log1p(startup.cv**2)
        mean = np.log(max(startup.mean_s, 1e-9)) - 0.5 * variance
        return generator.lognormal(mean, np.sqrt(variance), DRAWS)
    return np.full(DRAWS, startup.mean_s)


def startup_draws(spec: ClusterSpec, seed: int) -> NDArray[np.float64]:
    """Return start-up times in seconds, shape (P, DRAWS); start n of a pool uses column n."""
    rows = []
    for index, pool in enumerate(spec.pools):
        generator = np.random.default_rng([seed, index, 0])
        rows.append(np.maximum(_startup(pool.startup, generator), 0.0))
    return np.stack(rows)


def lifetime_draws(spec: ClusterSpec, seed: int) -> NDArray[np.float64]:
    """Return times from ready to failure in seconds, shape (P, DRAWS); infinite without mtbf_h."""
    rows = []
    for index, pool in enumerate(spec.pools):
        generator = np.random.default_rng([seed, index, 1])
        if pool.mtbf_h is None:
            rows.append(np.full(DRAWS, np.inf))
        else:
            rows.append(generator.exponential(pool.mtbf_h * 3600.0, DRAWS))
    return np.stack(rows)
