"""Fixtures that many test files share."""

from __future__ import annotations

import fcntl
import gc
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

# Before NumPy and torch: a test process per core, each with threads for all cores, is slower.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# What a machine is busy with beside the tests says nothing of the code.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")

if TYPE_CHECKING:
    from kubernetes import client

    from hrl_planner.localcluster import ControlPlane, KubeBinaries


@pytest.fixture(scope="session")
def kube_binaries() -> KubeBinaries:
    """The programs of a Kubernetes control plane.

    Skipped where they are absent, unless HRL_PLANNER_KUBE=require, which gets them, by building if
    need be.
    """
    pytest.importorskip("kubernetes")
    from hrl_planner.errors import LocalClusterError
    from hrl_planner.localcluster import find_binaries, obtain_binaries

    if os.environ.get("HRL_PLANNER_KUBE") == "require":
        return obtain_binaries(allow_download=True, allow_build=True)
    try:
        return find_binaries()
    except LocalClusterError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def control_plane(
    tmp_path_factory: pytest.TempPathFactory, kube_binaries: KubeBinaries
) -> Iterator[ControlPlane]:
    """A Kubernetes control plane, one per test process; keep to a namespace of your own.

    A test that stops a server starts it again; one that takes definitions away starts its own.
    """
    from hrl_planner.localcluster import ControlPlane

    with ControlPlane.start(tmp_path_factory.mktemp("kube"), kube_binaries) as plane:
        yield plane


@pytest.fixture(scope="module")
def admin(control_plane: ControlPlane) -> client.ApiClient:
    """An administrator of it, with the definitions of the custom resources installed."""
    from tests.kube_objects import install_definitions

    api = control_plane.client()
    install_definitions(api)
    return api


@pytest.fixture
def ray_alone(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Ray, for one test process at a time: its servers must be up within 30 s of each other."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    # A start that failed and was begun again leaves its Popen objects to the collector.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
