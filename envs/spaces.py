"""Spaces of observations; what is in an observation is `hrl_planner.encoding`'s business."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from hrl_planner.encoding import LIMIT, Layout


def observation_space(layout: Layout, further: int = 0) -> spaces.Box:
    """Return the space of a layout's observations.

    Args:
        layout: sizes of the observation.
        further: numbers behind it that only a critic sees (`envs.future`).
    """
    return spaces.Box(-LIMIT, LIMIT, (layout.size + further,), np.float32)
