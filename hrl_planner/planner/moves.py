"""Budgeted moves: a few single replicas more or less than planned, each within the budget.

    outputs u of the network, one row per pool (`network.forward`)
    per move: tanh(u + [replicas moved so far, free GPUs of its type, moves left] W) = g per pool
              g V -> the scores of one replica more and one less
              mean and max of g over pools -> the score of stopping, plus log(moves there are)

A decision is up to K moves, one after the other, until it stops: the replicas before decide what
is still `allowed`, so no sequence leaves the budget, and the choice among what is allowed is an
ordinary softmax (autoregressive masked actions; invalid ones have probability 0 as in Huang and
Ontanon, arXiv 2006.14171). Pools meet only in symmetric functions. A pool that grew does not
shrink in the same decision, and the other way round. An action is a number: 0 stops, 1 to P adds a
replica to a pool, P + 1 to 2 P removes one.

`Room` and what is computed from it take numpy arrays and torch tensors alike, of any leading shape:
the mask of training is that of deployment. `agents/policies/moves.py` holds the torch twin of
`best_moves`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner.limits import LIMIT_COLUMNS, LIMIT_SCALES
from hrl_planner.planner.network import Float32Array, Network, unpack

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Array = Any  # numpy or torch: what both can do with operators, `sum` and `round`

STOP = 0
MOVED_SCALE = 4.0
_WATTS = 1.0 - 1e-6  # shares of watts are rounded to float32


class Room(NamedTuple):
    """What bounds the moves of a decision; float64 arrays (..., P), exact where they are counts.

    Attributes:
        planned: replicas of the plan that is moved away from.
        gpus: per replica.
        minimum: replicas.
        maximum: replicas.
        type_gpus: budget of the pool's GPU type.
        total_gpus: budget of all types.
        watts: share of the power budget that a replica draws.
        same_type: (..., P, P), whether two pools share GPUs.
    """

    planned: Array
    gpus: Array
    minimum: Array
    maximum: Array
    type_gpus: Array
    total_gpus: Array
    watts: Array
    same_type: Array

    @classmethod
    def of(cls, limits: Array, plan: Array) -> Room:
        """Read what an observation says.

        Args:
            limits: rows of `hrl_planner.limits`, float64 (..., P, len(LIMIT_COLUMNS)).
            plan: replicas planned, as a share of the maximum, float64 (..., P).
        """
        columns = {name: limits[..., k] * LIMIT_SCALES[k] for k, name in enumerate(LIMIT_COLUMNS)}
        kind = columns.pop("gpu_type")
        return cls(
            planned=(plan * columns["maximum"]).round(),
            same_type=kind[..., :, None] == kind[..., None, :],
            **columns,
        )

    def free_gpus(self, moved: Array) -> Array:
        """Return the GPUs of every pool's type that plan and moves leave, (..., P)."""
        held = self.gpus * (self.planned + moved)
        return self.type_gpus - (self.same_type * held[..., None, :]).sum(-1)

    def allowed(self, moved: Array) -> tuple[Array, Array]:
        """Say which pools may grow and which may shrink by one replica, each bool (..., P).

        Args:
            moved: replicas moved so far, (..., P).
        """
        replicas = self.planned + moved
        held, drawn = (self.gpus * replicas).sum(-1), (self.watts * replicas).sum(-1)
        grow = (
            (replicas < self.maximum)
            & (moved >= 0.0)
            & (self.gpus <= self.free_gpus(moved))
            & (held[..., None] + self.gpus <= self.total_gpus)
            & (drawn[..., None] + self.watts <= _WATTS)
        )
        return grow, (replicas > self.minimum) & (moved <= 0.0)

    def inputs(self, moved: Array, left: float) -> tuple[Array, Array, Array]:
        """Return what a move's scores depend on beside the network's outputs, each (..., P).

        Args:
            moved: replicas moved so far.
            left: share of the moves that are left.
        """
        share = self.free_gpus(moved) / (self.type_gpus + (self.type_gpus == 0.0))
        return moved / MOVED_SCALE, share, 0.0 * moved + left


def change_of(action: int, n_pools: int) -> tuple[int, int]:
    """Return the pool of an action that does not stop, and its replicas more or less."""
    grows = action <= n_pools
    return (action - 1, 1) if grows else (action - 1 - n_pools, -1)


def apply_moves(room: Room, actions: Iterable[int], max_pools: int) -> FloatArray:
    """Return the replicas after a decision, shape (P,); what is not allowed is left out.

    Args:
        room: of one observation, numpy.
        actions: of the decision, until one stops.
        max_pools: pools that actions count.
    """
    moved = np.zeros(room.planned.size)
    for action in actions:
        if action == STOP:
            break
        pool, change = change_of(int(action), max_pools)
        grow, shrink = room.allowed(moved)
        if pool < moved.size and (grow if change > 0 else shrink)[pool]:
            moved[pool] += change
    replicas: FloatArray = room.planned + moved
    return replicas


def best_moves(network: Network, out: Float32Array, room: Room, n_moves: int) -> list[int]:
    """Return a decision without exploration: stop where that is likelier than all moves together.

    Args:
        network: with a scorer.
        out: of `network.forward`, shape (P, outputs).
        room: of the same observation.
        n_moves: most moves.
    """
    scorer = unpack(*network)
    moved = np.zeros(room.planned.size)
    actions: list[int] = []
    for k in range(n_moves):
        grow, shrink = room.allowed(moved)
        there = np.concatenate([grow, shrink])
        if not there.any():
            break
        further = np.stack(room.inputs(moved, 1.0 - k / n_moves), axis=-1).astype(np.float32)
        seen = np.tanh(out + further @ scorer["move.weight"] + scorer["move.bias"])
        pair = seen @ scorer["pair.weight"] + scorer["pair.bias"]
        pooled = np.concatenate([seen.mean(axis=0), seen.max(axis=0)])
        stop = float((pooled @ scorer["stop.weight"] + scorer["stop.bias"])[0])
        scores = np.where(there, pair.T.ravel(), -np.inf)
        # As likely as all moves together where all scores are 0, however many pools there are.
        if stop + np.log(there.sum()) >= np.logaddexp.reduce(scores):
            break
        actions.append(int(scores.argmax()) + 1)
        pool, change = change_of(actions[-1], moved.size)
        moved[pool] += change
    return actions
