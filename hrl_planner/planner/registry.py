"""Policies by name: `lp`, `static:split=initial`, `rule:up=0.9,down=0.6`, `lp+rule`.

A name may carry parameters behind a colon; two names joined by `+` are a global allocator and the
local planner below it. Names that are not here are refused with a list of those that are. A value
is read as what the maker of the policy says it takes, so that one of another kind is refused here,
by name, and not in the middle of a simulation.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from hrl_planner.errors import PolicyError
from hrl_planner.planner.hierarchy import HierarchicalPlanner
from hrl_planner.planner.hpa import HpaPolicy
from hrl_planner.planner.lp import FluidPlanner
from hrl_planner.planner.oracle import OracleFluidPlanner
from hrl_planner.planner.policy import Policy
from hrl_planner.planner.queue_length import QueueLengthPolicy
from hrl_planner.planner.quota import QUOTA, QuotaPolicy
from hrl_planner.planner.rule import RuleParameters, RulePolicy
from hrl_planner.planner.static import StaticPolicy
from hrl_planner.planner.thresholds import ThresholdsPolicy
from hrl_planner.planner.wva import WvaPolicy


def _rule(**parameters: float) -> Policy:
    return RulePolicy(RuleParameters(**parameters))


def _learned(
    path: str | None = None,
    shield: bool = True,
    local: str = "learned",
    prior: str | None = None,
) -> Policy:
    from hrl_planner.planner.deployed import DeployedPlanner

    folder = None if path is None else Path(path)
    return DeployedPlanner(folder, shield=shield, local=local, prior=prior)


_POLICIES: dict[str, tuple[Callable[..., Policy], str]] = {
    "static": (StaticPolicy, "a fixed split of the budget"),
    "hpa": (HpaPolicy, "Kubernetes' HPA per pool, on utilisation"),
    "queue-length": (QueueLengthPolicy, "KEDA per pool, on queue length"),
    "wva": (WvaPolicy, "llm-d's variant autoscaler: token capacity per role, cheapest first"),
    "lp": (FluidPlanner, "the fluid LP on a forecast over the start-up horizon"),
    "lp-oracle": (OracleFluidPlanner, "the fluid LP with perfect foresight (a bound)"),
    "rule": (_rule, "thresholds on utilisation, KV use, queue and latency"),
    "learned": (_learned, "a trained checkpoint over the LP, shielded; path=FOLDER"),
    "thresholds": (ThresholdsPolicy, "the rule, its thresholds tuned for the spec by CMA-ES"),
}


def register_policy(name: str, maker: Callable[..., Policy], about: str) -> None:
    """Add a policy that lives in a package above this one; those of this package stay theirs.

    Args:
        name: what users write.
        maker: called with the parameters behind the colon; those it annotates as bool, int, float
            or str (or None) can be given.
        about: a line on what it is.
    """
    if name in _POLICIES and _POLICIES[name][0] is not maker:
        raise PolicyError(f"policy {name!r} exists already")
    _POLICIES[name] = (maker, about)


def policy_names() -> dict[str, str]:
    """Return every name with a line on what it is."""
    return {name: about for name, (_, about) in _POLICIES.items()}


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    value = _finite(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)


# By what a maker may ask for: how it is read, and what is wrong with text that cannot be.
_READERS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (_switch, "neither true nor false"),
    int: (_whole, "not a whole number"),
    float: (_finite, "not a finite number"),
    str: (str, "not text"),
}


def _parameters(maker: Callable[..., Policy]) -> dict[str, type]:
    """Return the names of what can stand behind the colon, each with its key in `_READERS`."""
    described = RuleParameters if maker is _rule else maker
    found: dict[str, type] = {}
    for name, parameter in inspect.signature(described, eval_str=True).parameters.items():
        members = get_args(parameter.annotation) or (parameter.annotation,)
        kinds = [kind for kind in _READERS if kind in members]
        if kinds:
            found[name] = kinds[0]
    return found


def _value(policy: str, key: str, text: str, kind: type) -> Any:
    if not text:
        raise PolicyError(f"policy {policy}, {key}: no value given")
    read, wrong = _READERS[kind]
    try:
        return read(text)
    except ValueError as error:
        raise PolicyError(f"policy {policy}: {key} {text}: {wrong}") from error


def _make(text: str) -> Policy:
    name, _, rest = text.partition(":")
    if name not in _POLICIES:
        raise PolicyError(f"unknown policy {name!r}; one of {', '.join(sorted(_POLICIES))}")
    maker = _POLICIES[name][0]
    known = _parameters(maker)
    parameters: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise PolicyError(f"policy {name}: {item!r} is not of the form key=value")
        key = key.strip()
        if key not in known:
            raise PolicyError(
                f"policy {name}: unknown parameter {key!r}; one of {', '.join(known) or 'none'}"
            )
        parameters[key] = _value(name, key, value.strip(), known[key])
    try:
        return maker(**parameters)
    except (TypeError, ValueError) as error:
        raise PolicyError(f"policy {text}: {error}") from error


def make_policy(text: str) -> Policy:
    """Build a policy from its name and parameters.

    Raises:
        PolicyError: for an unknown name or parameter, naming it and those there are, and for a
            value that is not what the parameter takes.
    """
    levels = text.split("+")
    if len(levels) == 1:
        return _make(text)
    if len(levels) != 2:
        raise PolicyError(f"policy {text!r}: at most one '+', between allocator and local planner")
    local = QuotaPolicy() if levels[1] == QUOTA else _make(levels[1])
    if isinstance(local, RulePolicy):
        # So that the rule's cool-down does not count moves that the quota then prevents.
        local.within_quota = True
    return HierarchicalPlanner(_make(levels[0]), local)
