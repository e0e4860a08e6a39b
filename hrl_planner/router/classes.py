"""Which SLO class a request belongs to, and the targets it is held to.

A class decides the planner's weights, the value, and whether a hopeless request is refused. The
targets are the class's unless the body brings its own. The class itself comes from the header
`x-slo-class`, else from the body's targets (the class nearest to them), else from the token ranges
of the spec, else it is the class with the largest share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrl_planner.router.request import Refusal, Wish
from hrl_planner.spec import AssignSpec, ClusterSpec, SloClassSpec


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request is promised.

    Attributes:
        class_id: index of the class in the spec.
        ttft_s: time to first token.
        itl_s: mean time between tokens.
        shed_above: refuse when predicted that many times over target; infinite for never.
    """

    class_id: int
    ttft_s: float
    itl_s: float
    shed_above: float


class Classes:
    """The SLO classes of a spec."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._classes = spec.slo_classes
        self.names = tuple(item.name for item in spec.slo_classes)
        self._index = {name: i for i, name in enumerate(self.names)}
        shares = [item.assign.share or 0.0 for item in spec.slo_classes]
        self._default = int(np.argmax(shares))
        self.ttft_s = np.array([item.ttft_ms for item in spec.slo_classes]) * 1e-3
        self.value = np.array([item.value for item in spec.slo_classes])

    def of(self, name: str, wish: Wish, isl_tokens: int) -> Targets:
        """Return the class and targets of a request.

        Args:
            name: header `x-slo-class`, empty without.
            wish: what the body asks for.
            isl_tokens: length of its prompt.

        Raises:
            Refusal: 400 for a class the spec does not know.
        """
        class_id = self._named(name) if name else self._found(wish, isl_tokens)
        item = self._classes[class_id]
        return Targets(
            class_id,
            item.ttft_ms * 1e-3 if wish.ttft_s is None else wish.ttft_s,
            item.itl_ms * 1e-3 if wish.itl_s is None else wish.itl_s,
            math.inf if item.shed_above is None else item.shed_above,
        )

    def weights(
        self, flows: Mapping[str, Mapping[str, float]], spec: ClusterSpec
    ) -> NDArray[np.float64]:
        """Return named class-to-pool weights as an array (C, P); unknown names are left out."""
        table = np.zeros((len(self.names), len(spec.pools)))
        pools = {pool.name: i for i, pool in enumerate(spec.pools)}
        for class_name, row in flows.items():
            for pool_name, weight in row.items():
                if class_name in self._index and pool_name in pools:
                    table[self._index[class_name], pools[pool_name]] = max(0.0, weight)
        return table

    def _named(self, name: str) -> int:
        if name not in self._index:
            known = ", ".join(self.names)
            raise Refusal(400, f"unknown x-slo-class {name!r}; one of: {known}", reason="bad_class")
        return self._index[name]

    def _found(self, wish: Wish, isl_tokens: int) -> int:
        if wish.ttft_s is not None or wish.itl_s is not None:
            return min(range(len(self._classes)), key=lambda i: _distance(self._classes[i], wish))
        for index, item in enumerate(self._classes):
            if _in_range(item.assign, isl_tokens, wish.max_tokens):
                return index
        return self._default


def _distance(item: SloClassSpec, wish: Wish) -> float:
    """How far a class's targets are from the wished ones, in factors."""
    distance = 0.0
    if wish.ttft_s is not None:
        distance += abs(math.log(item.ttft_ms * 1e-3 / wish.ttft_s))
    if wish.itl_s is not None:
        distance += abs(math.log(item.itl_ms * 1e-3 / wish.itl_s))
    return distance


def _in_range(assign: AssignSpec, isl_tokens: int, osl_tokens: int | None) -> bool:
    """Tell whether a class claims requests of this size by the ranges of its spec."""
    bounds = (
        (assign.min_isl_tokens, assign.max_isl_tokens, isl_tokens),
        (assign.min_osl_tokens, assign.max_osl_tokens, osl_tokens),
    )
    claims = False
    for low, high, value in bounds:
        if low is None and high is None:
            continue
        claims = True
        if value is None or not (low or 0) <= value <= (high or math.inf):
            return False
    return claims
