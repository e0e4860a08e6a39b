"""Half a minute of chaos on a real API server: the budget holds, and everybody comes back.

The long version is `python -m benchmarks.cluster.chaos --minutes 30` (docs/chaos.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("kubernetes")

from benchmarks.cluster.chaos import MACHINES, Pace, figures, stage, table, torment
from benchmarks.cluster.field import Clocks, kubelet, quick
from benchmarks.cluster.store import wait_until
from hrl_planner.localcluster import ControlPlane

pytestmark = [pytest.mark.kube, pytest.mark.slow]

FOR_S = float(os.environ.get("CHAOS_S", "20"))
# The quick ones, so that there are several: others wait for a lease to run out.
KINDS = (
    "standby killed",
    "leader killed",
    "API server killed",
    "etcd paused",
    "replicas edited",
    "budget changed",
    "pods deleted",
)


def test_gpus_held_never_exceed_the_budget_whatever_is_broken(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    clocks = Clocks()
    spec = quick("small", clocks)
    with (
        kubelet(control_plane, MACHINES, site="chaos"),
        stage(control_plane, spec, clocks, tmp_path, together=True, site="chaos") as staged,
    ):
        run = torment(*staged, FOR_S, Random(), Pace(phase_s=10.0, acts=1), kinds=KINDS)
        assert wait_until(lambda: bool(run.observer.scalings), 30.0), "no replica moved"
    found = figures(run, spec)
    print(table(run))
    assert found["violations"] == 0, run.observer.violations[0].to_json()
    assert found["never_recovered"] == 0, run.records
    assert found["came_to_rest"]
