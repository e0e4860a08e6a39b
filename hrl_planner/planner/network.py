"""The forward pass of a learned policy, without a learning library.

    classes (C, n) -> dense tanh -> mean and max over classes = context
    pools (P, m) + context + phase -> dense tanh -> dense tanh = h, one row per pool
    attention, where the network has it: h + softmax(q k' / sqrt(H)) v w
    allocator: h + mean and max of h over pools (DeepSets, Zaheer et al., arXiv 1703.06114)
    -> dense tanh -> dense = outputs per pool
    moves: the outputs go on through a scorer, see `moves`

Every pool goes through the same weights and pools meet only in symmetric functions, so permuting
pools permutes the answer, and one network reads any number of pools and classes. All weights are
one float32 vector (`pack` orders it), which makes the same function usable from the simulator's
compiled loop, from numpy alone, and from a checkpoint's file. `agents/policies` holds the torch
twin that is trained; a test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import compiled
from hrl_planner.encoding import N_CLASS_COLUMNS, N_POOL_COLUMNS

Float32Array = NDArray[np.float32]

NORMALISED_LIMIT = 5.0
N_MOVE_INPUTS = 3


class NetShape(NamedTuple):
    """Sizes of a network.

    Attributes:
        class_hidden: width of the class encoder.
        hidden: width of the pool encoder and the head.
        attention: 1 if pools attend to each other.
        pooled: 1 if the head sees all pools (allocator), 0 if only its own (scaler).
        outputs: numbers per pool.
        scorer: 1 if a scorer of moves stands behind the outputs, which `forward` leaves alone.
    """

    class_hidden: int
    hidden: int
    attention: int
    pooled: int
    outputs: int
    scorer: int = 0

    def layers(self) -> dict[str, tuple[int, int]]:
        """Return every dense layer's (inputs, outputs) in the order they are packed."""
        h = self.hidden
        sizes = {
            "classes": (N_CLASS_COLUMNS, self.class_hidden),
            "pools_1": (N_POOL_COLUMNS + 2 * self.class_hidden + 1, h),
            "pools_2": (h, h),
        }
        if self.attention:
            sizes |= {name: (h, h) for name in ("query", "key", "value", "mix")}
        sizes["head_1"] = (3 * h if self.pooled else h, h)
        sizes["head_2"] = (h, self.outputs)
        if self.scorer:
            sizes["move"] = (N_MOVE_INPUTS, self.outputs)
            sizes["pair"] = (self.outputs, 2)
            sizes["stop"] = (2 * self.outputs, 1)
        return sizes

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every named tensor, normaliser first, in packing order."""
        shapes: dict[str, tuple[int, ...]] = {
            "pool_mean": (N_POOL_COLUMNS,),
            "pool_inverse_std": (N_POOL_COLUMNS,),
            "class_mean": (N_CLASS_COLUMNS,),
            "class_inverse_std": (N_CLASS_COLUMNS,),
        }
        for name, (n_in, n_out) in self.layers().items():
            shapes[f"{name}.weight"] = (n_in, n_out)
            shapes[f"{name}.bias"] = (n_out,)
        return shapes


class Network(NamedTuple):
    """A packed network.

    Attributes:
        net: from `pack`.
        shape: its sizes.
    """

    net: Float32Array
    shape: NetShape


NO_NET = np.zeros(0, np.float32)
"""In place of a packed network: there is none."""


def pack(tensors: Mapping[str, NDArray[np.float32]], shape: NetShape) -> Float32Array:
    """Return all tensors as one vector, in the order `forward` reads them.

    Args:
        tensors: by the names of `NetShape.tensors`; weights are (inputs, outputs).
        shape: sizes of the network.

    Raises:
        ValueError: naming a tensor that is missing or of another shape.
    """
    parts = []
    for name, expected in shape.tensors().items():
        if name not in tensors:
            raise ValueError(f"tensor {name} is missing")
        found = np.asarray(tensors[name], np.float32)
        if found.shape != expected:
            raise ValueError(f"tensor {name} has shape {found.shape}, expected {expected}")
        parts.append(found.ravel())
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


def unpack(net: Float32Array, shape: NetShape) -> dict[str, Float32Array]:
    """Return the tensors of a packed network by name, as views."""
    tensors, at = {}, 0
    for name, size in shape.tensors().items():
        end = at + int(np.prod(size))
        tensors[name] = net[at:end].reshape(size)
        at = end
    return tensors


@compiled
def _dense(
    x: Float32Array, net: Float32Array, at: int, n_out: int, squash: bool
) -> tuple[Float32Array, int]:
    """Apply the layer that begins at `at`; return its output and where the next one begins."""
    end = at + x.shape[1] * n_out
    weight = net[at:end].reshape((x.shape[1], n_out))
    y = np.dot(x, weight)
    y += net[end : end + n_out]
    if squash:
        y = np.tanh(y)
    return y, end + n_out


@compiled
def _normalised(x: Float32Array, net: Float32Array, at: int) -> Float32Array:
    n = x.shape[1]
    limit = np.float32(NORMALISED_LIMIT)
    z: Float32Array = (x - net[at : at + n]) * net[at + n : at + 2 * n]
    z = np.minimum(np.maximum(z, -limit), limit)
    return z


@compiled
def _mean_and_max(h: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return the mean and the largest of every column."""
    highest = h[0].copy()
    total = h[0].copy()
    for i in range(1, h.shape[0]):
        highest = np.maximum(highest, h[i])
        total = total + h[i]
    return total / np.float32(h.shape[0]), highest


@compiled
def _attend(h: Float32Array, net: Float32Array, at: int, hidden: int) -> tuple[Float32Array, int]:
    """Add to every row what it attends to in the others."""
    query, at = _dense(h, net, at, hidden, False)
    key, at = _dense(h, net, at, hidden, False)
    value, at = _dense(h, net, at, hidden, False)
    scores = np.dot(query, np.ascontiguousarray(key.T)) / np.float32(np.sqrt(hidden))
    for i in range(scores.shape[0]):
        weights = np.exp(scores[i] - scores[i].max())
        scores[i] = weights / weights.sum()
    mixed, at = _dense(np.dot(scores, value), net, at, hidden, False)
    return h + mixed, at


@compiled
def forward(
    net: Float32Array, shape: NetShape, pools: Float32Array, classes: Float32Array, phase: float
) -> Float32Array:
    """Return the network's outputs, shape (P, outputs).

    Args:
        net: from `pack`.
        shape: its sizes.
        pools: rows of pools that exist, shape (P, N_POOL_COLUMNS).
        classes: rows of classes that exist, shape (C, N_CLASS_COLUMNS).
        phase: position in the global interval, 0 to 1.
    """
    n_pools = pools.shape[0]
    x = _normalised(pools, net, 0)
    at = 2 * N_POOL_COLUMNS
    seen = _normalised(classes, net, at)
    at += 2 * N_CLASS_COLUMNS
    encoded, at = _dense(seen, net, at, shape.class_hidden, True)
    mean, highest = _mean_and_max(encoded)
    wide = np.empty((n_pools, N_POOL_COLUMNS + 2 * shape.class_hidden + 1), np.float32)
    wide[:, :N_POOL_COLUMNS] = x
    wide[:, N_POOL_COLUMNS : N_POOL_COLUMNS + shape.class_hidden] = mean
    wide[:, N_POOL_COLUMNS + shape.class_hidden : -1] = highest
    wide[:, -1] = phase
    h, at = _dense(wide, net, at, shape.hidden, True)
    h, at = _dense(h, net, at, shape.hidden, True)
    if shape.attention == 1:
        h, at = _attend(h, net, at, shape.hidden)
    if shape.pooled == 1:
        mean, highest = _mean_and_max(h)
        joined = np.empty((n_pools, 3 * shape.hidden), np.float32)
        joined[:, : shape.hidden] = h
        joined[:, shape.hidden : 2 * shape.hidden] = mean
        joined[:, 2 * shape.hidden :] = highest
        h = joined
    y, at = _dense(h, net, at, shape.hidden, True)
    out, at = _dense(y, net, at, shape.outputs, False)
    return out
