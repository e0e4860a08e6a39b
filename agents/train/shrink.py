"""How much of a trained residual to believe: a line search on days that chose nothing before.

The best weights of a stage were picked on a few validation days, and what was picked for being good
there is partly luck. So the residual's last layer is scaled by each of `SCALES` and judged on more
days, beside action 0 on the same ones; the best is kept, 0 included, which is the planner without
learning. The gain and its standard error go into the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.policies.policy import SetPolicy
from agents.train.validation import judge
from envs.vec_env import ClusterVecEnv

SCALES = (0.25, 0.5, 0.75, 1.0)
FINAL_SEED = 5_000_000

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Shrunk:
    """What the search came to.

    Attributes:
        scale: factor on the residual, 0 if none gained.
        gain: mean reward per step over that of action 0.
        error: standard error of the gain over days.
        attained: gain in value-weighted attainment.
    """

    scale: float
    gain: float
    error: float
    attained: float


def scaled(tensors: Tensors, factor: float) -> Tensors:
    """Return weights whose residual is `factor` times as large."""
    last = {name: tensors[name] * np.float32(factor) for name in ("head_2.weight", "head_2.bias")}
    return {**tensors, **last}


def shrink(env: ClusterVecEnv, policy: SetPolicy, best: Tensors) -> tuple[Tensors, Shrunk]:
    """Return the weights to keep, and what they gain.

    Args:
        env: clusters on validation days, many of them.
        policy: of the stage; its actor's weights are replaced.
        best: the stage's best weights.
    """
    idle = judge(env, None, FINAL_SEED)
    kept, found = scaled(best, 0.0), Shrunk(0.0, 0.0, 0.0, 0.0)
    for scale in SCALES:
        candidate = scaled(best, scale)
        policy.actor.load(candidate)
        result = judge(env, policy, FINAL_SEED)
        gains = result.reward - idle.reward
        if gains.mean() > found.gain:
            error = float(gains.std(ddof=1) / np.sqrt(gains.size))
            attained = float((result.attained - idle.attained).mean())
            kept, found = candidate, Shrunk(scale, float(gains.mean()), error, attained)
    return kept, found
