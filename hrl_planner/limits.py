"""What bounds the replicas of every pool, as rows of numbers that can stand in an observation.

A policy that moves replicas one by one needs the budget exactly, not as a feature: how many GPUs a
replica takes, of which type, how many of them there are. `limit_rows` writes this as float32 within
±5 and loses nothing: counts are divided by powers of two. A budget beyond all the pools could ever
hold is written as what they could hold, which bounds the same replicas.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrl_planner.budget import BudgetArrays

LIMIT_COLUMNS = (
    "gpus",  # per replica
    "minimum",  # replicas
    "maximum",
    "gpu_type",  # its number
    "type_gpus",  # budget of its type
    "total_gpus",  # budget of all types, the same for every pool
    "watts",  # share of the power budget that a replica draws
)
N_LIMIT_COLUMNS = len(LIMIT_COLUMNS)
_MANY_GPUS = 2.0**20
LIMIT_SCALES = (1024.0, 4096.0, 4096.0, 1024.0, _MANY_GPUS, _MANY_GPUS, 1.0)
"""What a row's entries are multiplied by to have them in their units again."""
_MOST_GPUS = 4.0 * _MANY_GPUS
_MOST_WATTS = 2.0  # budgets; above 1 there is no room for a replica


def limit_rows(arrays: BudgetArrays) -> NDArray[np.float64]:
    """Return the rows of all pools, shape (P, len(LIMIT_COLUMNS)); every entry is a float32."""
    n_types = arrays.type_budget.size
    could_hold = np.bincount(arrays.type_index, arrays.gpus * arrays.maximum, n_types)
    held_at_most = np.minimum(could_hold, arrays.type_budget)
    total = min(float(arrays.total_gpus), float(held_at_most.sum()), _MOST_GPUS)
    type_gpus = np.minimum(held_at_most, _MOST_GPUS)[arrays.type_index]
    rows = np.empty((arrays.gpus.size, N_LIMIT_COLUMNS))
    rows[:, 0], rows[:, 1], rows[:, 2] = arrays.gpus, arrays.minimum, arrays.maximum
    rows[:, 3], rows[:, 4], rows[:, 5] = arrays.type_index, type_gpus, total
    rows[:, 6] = np.minimum(arrays.watts_per_replica / arrays.watts, _MOST_WATTS)
    scaled: NDArray[np.float64] = (rows / LIMIT_SCALES).astype(np.float32).astype(np.float64)
    return scaled
