"""Pods counted as replicas: single ones, groups that labels tell, and groups that nobody tells."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("kubernetes")

from hrl_planner.control.pods import Pod, PodCounts, count_pods, pod_of

LWS, GROVE = "leaderworkerset.sigs.k8s.io", "grove.io"
STATES = ("ready", "starting", "draining", "pending", "ended")


def pod(state: str, labels: dict[str, str] | None = None, size: int | None = None) -> Pod | None:
    """A pod as the API server describes it, and as planners keep it."""
    metadata: dict[str, Any] = {"name": "it", "labels": labels or {}}
    if size is not None:
        metadata["annotations"] = {f"{LWS}/size": str(size)}
    if state == "draining":
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "True" if state == "ready" else "False"}
    placed = {"type": "PodScheduled", "status": "False" if state == "pending" else "True"}
    phase = "Failed" if state == "ended" else "Running"
    return pod_of({"metadata": metadata, "status": {"phase": phase, "conditions": [placed, ready]}})


def lws(state: str, group: int, worker: int, size: int = 2, name: str = "it") -> Any:
    labels = {"name": name, "group-index": str(group), "worker-index": str(worker)}
    return pod(state, {f"{LWS}/{key}": value for key, value in labels.items()}, size)


def grove(state: str, replica: int, clique: str, index: int = 0) -> Any:
    labels = {
        "podcliquescalinggroup": "llm-0-decode",
        "podcliquescalinggroup-replica-index": str(replica),
        "podclique": f"llm-0-decode-{replica}-{clique}",
        "podclique-pod-index": str(index),
    }
    return pod(state, {f"{GROVE}/{key}": value for key, value in labels.items()})


@given(st.lists(st.sampled_from(STATES)))
def test_single_pods_are_counted_by_their_state(states: list[str]) -> None:
    counts = count_pods(map(pod, states))
    assert counts == PodCounts(*(states.count(state) for state in STATES[:4]))


@given(st.lists(st.lists(st.sampled_from(STATES), min_size=3, max_size=3)))
def test_a_group_holds_its_gpus_while_any_pod_of_it_lives(groups: list[list[str]]) -> None:
    pods = [lws(s, g, w, size=3) for g, states in enumerate(groups) for w, s in enumerate(states)]
    counts = count_pods(pods)
    living = [{s for s in states if s != "ended"} for states in groups]
    assert counts.held == sum(map(bool, living))
    assert counts.draining == sum(states == {"draining"} for states in living)
    assert counts.ready == sum(states == ["ready"] * 3 for states in groups)


def test_a_group_of_which_one_pod_finds_no_machine_is_pending() -> None:
    pods = [lws("starting", 0, 0), lws("pending", 0, 1), lws("ready", 1, 0), lws("ready", 1, 1)]
    assert count_pods(pods) == PodCounts(ready=1, pending=1)
    assert count_pods([pod("pending"), pod("ready"), pod("ready")], 3) == PodCounts(pending=1)
    assert count_pods(pods).ledger.live == 2


def test_a_leader_without_all_its_workers_starts_yet() -> None:
    assert count_pods([lws("ready", 0, 0), lws("ready", 1, 0), lws("ready", 1, 1)]) == PodCounts(
        ready=1, starting=1
    )


@pytest.mark.parametrize("size", ["", "x", "2.5"])
def test_a_size_that_is_no_number_tells_nothing(size: str) -> None:
    labels = {f"{LWS}/name": "it", f"{LWS}/group-index": "0", f"{LWS}/worker-index": "0"}
    metadata = {"name": "it", "labels": labels, "annotations": {f"{LWS}/size": size}}
    ready = {"type": "Ready", "status": "True"}
    known = pod_of({"metadata": metadata, "status": {"phase": "Running", "conditions": [ready]}})
    assert count_pods([known]) == PodCounts(ready=1)


def test_a_place_taken_twice_holds_gpus_twice() -> None:
    """Grove names pods by chance, so a new group stands beside the draining one of its index."""
    old = [grove("draining", 0, "leader"), grove("draining", 0, "worker")]
    assert count_pods(old) == PodCounts(draining=1)
    new = [grove("ready", 0, "leader"), grove("ready", 0, "worker")]
    assert count_pods([*old, *new]) == PodCounts(starting=1, draining=1)
    assert count_pods(new) == PodCounts(ready=1)


def test_groups_of_one_index_in_two_sets_are_two() -> None:
    """Dynamo makes a LeaderWorkerSet for every replica of a component that spans nodes."""
    first = [lws("ready", 0, worker) for worker in range(2)]
    second = [lws("ready", 0, worker, name="it-1") for worker in range(2)]
    assert count_pods([*first, *second]) == PodCounts(ready=2)


@pytest.mark.parametrize(
    ("states", "counts"),
    [
        (["ready"] * 4, PodCounts(ready=2)),
        (["ready"] * 3, PodCounts(ready=1, starting=1)),
        (["ready", "ready", "draining"], PodCounts(ready=1, draining=1)),
        (["draining"], PodCounts(draining=1)),
        (["ended"] * 4, PodCounts()),
    ],
)
def test_pods_that_nothing_tells_apart_make_replicas_by_their_number(
    states: list[str], counts: PodCounts
) -> None:
    assert count_pods(map(pod, states), per_replica=2) == counts
