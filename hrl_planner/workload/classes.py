"""Which SLO class each request of a trace belongs to.

A cluster spec says per class how requests come to it: by the trace's label, by ranges of prompt and
output length, or by a share of what is left. The rules are tried in that order, so a labelled trace
keeps its meaning on any spec that knows the label, and an unlabelled one is still divided as the
spec's author wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hrl_planner.errors import TraceError
from hrl_planner.workload.trace import Trace

if TYPE_CHECKING:
    from hrl_planner.spec import AssignSpec, ClusterSpec

UNASSIGNED = -1


def assign_classes(trace: Trace, spec: ClusterSpec, seed: int) -> NDArray[np.int16]:
    """The index of each request's class in ``spec.slo_classes``.

    Rules, first match wins: a class whose ``assign.label`` is the request's label; the first class
    in spec order whose token ranges hold the request; a seeded draw over the classes that name a
    share.

    Raises:
        TraceError: a request that no rule covers.
    """
    classes = spec.slo_classes
    class_id = np.full(len(trace), UNASSIGNED, dtype=np.int16)
    if trace.labels:
        by_label = {c.assign.label: i for i, c in enumerate(classes) if c.assign.label is not None}
        # One slot more than there are labels: index -1 (no label) reads it and stays unassigned.
        of_label = [by_label.get(name, UNASSIGNED) for name in trace.labels] + [UNASSIGNED]
        class_id[:] = np.asarray(of_label, dtype=np.int16)[trace.label]
    for index, slo_class in enumerate(classes):
        if _has_range(slo_class.assign):
            class_id[(class_id == UNASSIGNED) & _in_range(trace, slo_class.assign)] = index
    left = np.flatnonzero(class_id == UNASSIGNED)
    if len(left):
        shares = np.array([c.assign.share or 0.0 for c in classes], dtype=np.float64)
        if shares.sum() <= 0:
            _refuse(trace, spec, int(left[0]))
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(classes), size=len(left), p=shares / shares.sum())
        class_id[left] = drawn.astype(np.int16)
    return class_id


def _has_range(assign: AssignSpec) -> bool:
    return any(
        bound is not None
        for bound in (
            assign.min_isl_tokens,
            assign.max_isl_tokens,
            assign.min_osl_tokens,
            assign.max_osl_tokens,
        )
    )


def _in_range(trace: Trace, assign: AssignSpec) -> NDArray[np.bool_]:
    inside = np.ones(len(trace), dtype=np.bool_)
    if assign.min_isl_tokens is not None:
        inside &= trace.isl_tokens >= assign.min_isl_tokens
    if assign.max_isl_tokens is not None:
        inside &= trace.isl_tokens <= assign.max_isl_tokens
    if assign.min_osl_tokens is not None:
        inside &= trace.osl_tokens >= assign.min_osl_tokens
    if assign.max_osl_tokens is not None:
        inside &= trace.osl_tokens <= assign.max_osl_tokens
    return inside


def _refuse(trace: Trace, spec: ClusterSpec, request: int) -> None:
    label = trace.labels[trace.label[request]] if trace.label[request] >= 0 else "none"
    raise TraceError(
        f"trace {trace.name}: request {request} (label {label}, "
        f"isl_tokens {trace.isl_tokens[request]}, osl_tokens {trace.osl_tokens[request]}) fits no "
        f"class of spec {spec.name}: no label, token range or share covers it "
        "(field slo_classes.assign)"
    )
