"""The compiled kernel and the plain reference agree on random small clusters, request by request.

The kernel leaps over iterations and keeps its state in flat arrays; the reference steps through
every iteration with objects. Both were written from one description (docs/simulator.md). Times
agree to 1e-6 relative, everything else exactly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.simulation import SimResult, Simulation
from tests.random_clusters import ROUTERS, Case, Features, cases, features, make_case
from tests.reference import ReferenceSimulation
from tests.reference.simulation import RESULT_COLUMNS

GRACE_S = 60.0
SAMPLED = ("target", "ready", "starting", "draining", "pending", "waiting", "running")


def run_kernel(case: Case) -> SimResult:
    """Play a case on the compiled kernel."""
    simulation = Simulation(case.spec, case.trace, seed=case.features.seed, events=case.events)
    for time_s, plan in case.plans:
        simulation.advance_to(time_s)
        simulation.apply(plan)
    simulation.advance_to(case.trace.duration_s + GRACE_S)
    return simulation.result()


def run_reference(
    case: Case, sample_s: np.ndarray
) -> tuple[ReferenceSimulation, dict[str, np.ndarray]]:
    """Play a case on the reference and count replicas and requests at the sample times."""
    simulation = ReferenceSimulation(case.spec, case.trace, case.features.seed, case.events)
    plans = list(case.plans)
    samples: dict[str, list[list[int]]] = {name: [] for name in SAMPLED}
    for until_s in [*sample_s, case.trace.duration_s + GRACE_S]:
        while plans and plans[0][0] <= until_s:
            time_s, plan = plans.pop(0)
            simulation.advance_to(time_s)
            simulation.apply(plan)
        simulation.advance_to(until_s)
        counts = [simulation.counts(pool) for pool in simulation.pools]
        for name, rows in samples.items():
            rows.append([count[name] for count in counts])
    return simulation, {name: np.array(rows[:-1]) for name, rows in samples.items()}


def assert_agreement(case: Case) -> None:
    """Compare every request, the timeline and the bill."""
    kernel = run_kernel(case)
    reference, samples = run_reference(case, kernel.timeline["t_s"])
    rows = reference.rows()
    for name in RESULT_COLUMNS:
        np.testing.assert_allclose(
            getattr(kernel, name), rows[name], rtol=1e-6, atol=0.0, err_msg=name
        )
    for name, expected in samples.items():
        np.testing.assert_array_equal(kernel.timeline[name], expected, err_msg=name)
    np.testing.assert_allclose(kernel.gpu_seconds, reference.gpu_seconds, rtol=1e-6)


@pytest.mark.parametrize("router", ROUTERS)
@settings(max_examples=100)
@given(data=st.data())
def test_every_request_agrees(router: str, data: st.DataObject) -> None:
    """All features at random, each router as often as the others."""
    assert_agreement(data.draw(cases((router,))))


@settings(max_examples=100)
@given(chosen=features(("kv_slo", "round_robin")))
def test_prefix_caches_under_pressure_agree(chosen: Features) -> None:
    """Caches of a few prompts, and prompts in chunks: blocks go while their users still wait."""
    calm = replace(chosen, kills=False, failures=False, scaling=False, hand_edits=False)
    assert_agreement(make_case(replace(calm, prefixes=True, tight_kv=True, chunked=True)))
