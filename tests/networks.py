"""Networks with random weights, and checkpoints made of them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from hrl_planner.encoding import CLASS_COLUMNS, POOL_COLUMNS
from hrl_planner.planner import checkpoint as checkpoints
from hrl_planner.planner.checkpoint import Manifest, NetworkInfo, Ranges
from hrl_planner.planner.network import NetShape, Network, pack
from hrl_planner.planner.scaler import CHANGES

ALLOCATOR = NetShape(class_hidden=6, hidden=12, attention=0, pooled=1, outputs=1)
SCALER = NetShape(class_hidden=4, hidden=8, attention=0, pooled=0, outputs=len(CHANGES))


def tensors(shape: NetShape, seed: int = 0, scale: float = 0.4) -> checkpoints.Tensors:
    rng = np.random.default_rng(seed)
    made = {
        name: rng.normal(0.0, scale, size).astype(np.float32)
        for name, size in shape.tensors().items()
    }
    for name in ("pool_inverse_std", "class_inverse_std"):
        made[name] = np.abs(made[name]) + np.float32(0.5)
    return made


def zeros(shape: NetShape) -> checkpoints.Tensors:
    """Weights before training: whatever is seen, the answer is 0."""
    made = tensors(shape)
    made["head_2.weight"][:] = 0.0
    made["head_2.bias"][:] = 0.0
    return made


def network(shape: NetShape, seed: int = 0) -> Network:
    return Network(pack(tensors(shape, seed), shape), shape)


def wide_ranges(limit: float = 10.0) -> Ranges:
    return Ranges(
        pools=dict.fromkeys(POOL_COLUMNS, (-limit, limit)),
        classes=dict.fromkeys(CLASS_COLUMNS, (-limit, limit)),
    )


def manifest(
    scaler: bool = True,
    ranges: Ranges | None = None,
    head: Literal["residual", "flat"] = "residual",
) -> Manifest:
    return Manifest(
        format_version=checkpoints.FORMAT_VERSION,
        name="test",
        head=head,
        prior="lp",
        allocator=NetworkInfo.of(ALLOCATOR),
        scaler=NetworkInfo.of(SCALER) if scaler else None,
        feature_schema=checkpoints.current_schema(),
        ranges=ranges or wide_ranges(),
        spec={"name": "small"},
    )


def write_checkpoint(
    folder: Path,
    allocator: checkpoints.Tensors | None = None,
    scaler: checkpoints.Tensors | None = None,
    ranges: Ranges | None = None,
    head: Literal["residual", "flat"] = "residual",
) -> Path:
    """A checkpoint with the weights given, random ones where none are."""
    checkpoints.save(
        folder,
        manifest(ranges=ranges, head=head),
        tensors(ALLOCATOR, 1) if allocator is None else allocator,
        tensors(SCALER, 2) if scaler is None else scaler,
        "a card",
    )
    return folder
