"""Stands in for `agents.bounds` where that is not there: a need of one, a rounded budget."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import agents
from hrl_planner.spec import ClusterSpec

REAL = importlib.util.find_spec("agents.bounds") is not None


def tighten(spec: ClusterSpec, factor: float) -> ClusterSpec:
    """The spec with a scaled budget, never below what it starts with."""
    held = {
        kind: sum(p.initial * p.gpus_per_replica for p in spec.pools if p.gpu_type == kind)
        for kind in spec.gpu_types
    }
    gpus = {kind: max(held[kind], round(n * factor)) for kind, n in spec.budget.gpus.items()}
    return spec.replace(budget=spec.budget.model_copy(update={"gpus": gpus}))


def clairvoyant_need(spec: ClusterSpec, trace: Any, class_id: Any, *, share: float) -> float:
    """One, whatever is asked."""
    return 1.0


def install() -> None:
    """Put the stand-in where the real package would be, unless it is there."""
    if REAL or "agents.bounds" in sys.modules:
        return
    module: Any = ModuleType("agents.bounds")
    module.tighten = tighten
    module.clairvoyant_need = clairvoyant_need
    sys.modules["agents.bounds"] = module
    # As the import system would do: `import agents.bounds` looks here.
    vars(agents)["bounds"] = module
