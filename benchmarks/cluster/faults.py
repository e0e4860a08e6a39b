"""What is broken on purpose, one thing at a time, and how long it took to be whole again.

Faults take away planners or the API server and are measured: from the kill of a leader to the first
round of its successor, from the API server's return to the first round of every planner. Acts
change what planners must deal with: budget, replicas, pods, pools. Each is recorded with its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from kubernetes import client
from urllib3.exceptions import HTTPError

from benchmarks.cluster.field import Field
from benchmarks.cluster.observer import Observer
from benchmarks.cluster.planners import PlannerId, Planners, first_rounds
from benchmarks.cluster.store import State, wait_until
from hrl_planner.control.lease import DURATION_S
from hrl_planner.localcluster.controlplane import API_SERVER, ETCD

_PATIENCE_S = 90.0
_POOL_PATIENCE_S = 60.0
_LONGEST_OUTAGE_S = 10.0
_LONGEST_PAUSE_S = 20.0


@dataclass
class Record:
    """One thing that was done.

    Attributes:
        kind: what.
        from_s: when it began, seconds since the epoch.
        to_s: when everything was whole again.
        leaders_s: by planner, from the loss of its leader to its successor's first round.
        api_s: by planner, from the API server's return to the next round.
        note: what else there is to say.
    """

    kind: str
    from_s: float
    to_s: float = 0.0
    leaders_s: dict[PlannerId, float] = field(default_factory=dict)
    api_s: dict[PlannerId, float] = field(default_factory=dict)
    note: str = ""


class Monkey:
    """Breaks things.

    Args:
        field: the cluster.
        planners: of it.
        observer: told of acts that hold GPUs by themselves.
        random: what is chosen.
        lease_s: how long a lease lasts without renewal.
    """

    def __init__(
        self,
        field: Field,
        planners: Planners,
        observer: Observer,
        random: Random,
        lease_s: float = DURATION_S,
    ) -> None:
        self._field, self._planners, self._observer = field, planners, observer
        self._random, self._lease_s = random, lease_s
        self._budget = dict(field.spec.budget.gpus)
        self.records: list[Record] = []
        self.faults: dict[str, Callable[[Record], None]] = {
            "leader killed": self._kill_leader,
            "standby killed": self._kill_standby,
            "leader and standby killed": self._kill_both,
            "leader paused beyond its lease": self._pause_leader,
            "API server restarted": self._restart_api,
            "API server killed": self._kill_api,
            "etcd paused": self._pause_etcd,
            "API server and a leader killed": self._kill_api_and_leader,
        }
        self.acts: dict[str, Callable[[Record], None]] = {
            "replicas edited": self._edit_replicas,
            "budget changed": self._change_budget,
            "pods deleted": self._delete_pods,
            "pool deleted and recreated": self._recreate_pool,
        }

    def do(self, kind: str) -> Record:
        """Do a thing of a kind, wait until it is over, and record it."""
        record = Record(kind, time.time())
        self.records.append(record)
        self._observer.during = (*self._observer.during, kind)
        try:
            (self.faults | self.acts)[kind](record)
        except (client.ApiException, HTTPError) as error:
            record.note = f"not done: {str(error)[:200]}"
        finally:
            self._observer.during = tuple(k for k in self._observer.during if k != kind)
            record.to_s = time.time()
        return record

    # ---- planners

    def _kill_leader(self, record: Record) -> None:
        leader = self._some_leader()
        led = self._planners.led_by(leader)
        self._await_leaders(record, led, self._planners.kill(leader))

    def _kill_standby(self, record: Record) -> None:
        planner = self._random.choice(self._planners.ids)
        leaders = {self._planners.leader(each) for each in self._planners.ids}
        others = set(self._planners.replicas_of(planner)) - leaders
        if others:
            self._planners.kill(self._random.choice(sorted(others)))

    def _kill_both(self, record: Record) -> None:
        planner = self._random.choice(self._planners.ids)
        replicas = self._planners.replicas_of(planner)
        led = [each for name in replicas for each in self._planners.led_by(name)]
        at_s = max(self._planners.kill(name) for name in replicas)
        self._await_leaders(record, led, at_s)

    def _pause_leader(self, record: Record) -> None:
        leader = self._some_leader()
        led = self._planners.led_by(leader)
        at_s = self._planners.pause(leader)
        try:
            self._await_leaders(record, led, at_s, but=leader)
            for_s = self._lease_s + self._random.uniform(2.0, 8.0)
            time.sleep(max(0.0, at_s + for_s - time.time()))
        finally:
            self._planners.go_on(leader)
        time.sleep(3.0)  # two leaders, for a moment

    def _some_leader(self) -> str:
        found = [leader for each in self._planners.ids if (leader := self._planners.leader(each))]
        return self._random.choice(found)

    def _await_leaders(
        self, record: Record, led: list[PlannerId], at_s: float, *, but: str = ""
    ) -> None:
        found = self._await_rounds(record, led, at_s, but=but)
        record.leaders_s = {planner: s - at_s for planner, s in found.items()}

    def _await_rounds(
        self, record: Record, ids: list[PlannerId], since_s: float, *, but: str = ""
    ) -> dict[PlannerId, float]:
        """Wait until planners have acted; return when each did first."""

        def all_acted() -> bool:
            return len(first_rounds(self._planners, ids, since_s, but=but)) == len(ids)

        if not wait_until(all_acted, _PATIENCE_S):
            found = first_rounds(self._planners, ids, since_s, but=but)
            missing = [each for each in ids if each not in found]
            record.note = f"no round within {_PATIENCE_S:g} s: {missing}"
            return dict.fromkeys(missing, since_s + _PATIENCE_S)
        rounds = first_rounds(self._planners, ids, since_s, but=but)
        return {planner: each.at_s for planner, each in rounds.items()}

    # ---- API server and store

    def _restart_api(self, record: Record) -> None:
        plane = self._field.plane
        plane.components[API_SERVER].stop()
        plane.restart(API_SERVER)
        self._await_api(record, time.time())

    def _kill_api(self, record: Record) -> None:
        plane = self._field.plane
        plane.kill(API_SERVER)
        outage_s = self._random.uniform(0.0, _LONGEST_OUTAGE_S)
        time.sleep(outage_s)
        plane.restart(API_SERVER)
        record.note = f"{outage_s:.0f} s"
        self._await_api(record, time.time())

    def _pause_etcd(self, record: Record) -> None:
        pause_s = self._random.uniform(2.0, _LONGEST_PAUSE_S)
        record.note = f"{pause_s:.0f} s"
        with self._field.plane.paused(ETCD):
            time.sleep(pause_s)
        self._await_api(record, time.time())

    def _kill_api_and_leader(self, record: Record) -> None:
        plane = self._field.plane
        plane.kill(API_SERVER)
        leader = self._some_leader()
        self._planners.kill(leader)
        time.sleep(self._random.uniform(0.0, 5.0))
        plane.restart(API_SERVER)
        self._await_rounds(record, list(self._planners.ids), time.time())

    def _await_api(self, record: Record, at_s: float) -> None:
        found = self._await_rounds(record, list(self._planners.ids), at_s)
        record.api_s = {planner: s - at_s for planner, s in found.items()}

    # ---- what planners must deal with

    def _edit_replicas(self, record: Record) -> None:
        name = self._some_pool()
        quota = self._field.pool(name)["spec"].get("quota") or 0
        before = self._field.targets()[name]
        after = self._random.choice([n for n in range(quota + 3) if n != before])
        written: list[int] = []

        def over(state: State) -> bool:
            pool = state.pools.get(name, {"spec": {}})
            most = pool["spec"].get("quota") or 0
            pods = [pod for pod in state.pods.values() if pod.pool == name and pod.holds]
            reached = bool(written) and state.revision >= written[0]
            return reached and state.targets[name] <= most and len(pods) <= most

        self._observer.allow(name, max(0, after - before), over)
        written.append(self._field.scale(name, after))
        record.note = f"{name}: {before} -> {after}, quota {quota}"

    def _change_budget(self, record: Record) -> None:
        base = self._field.spec.budget.gpus
        self._budget = {
            kind: max(2, count + self._random.randint(-3, 2)) for kind, count in base.items()
        }
        self._field.patch_group({"spec": {"budget": {"gpus": self._budget}}})
        record.note = str(self._budget)

    def _delete_pods(self, record: Record) -> None:
        with self._field.store.lock:
            pods = {n: p for n, p in self._field.store.state.pods.items() if not p.leaving}
        names = self._random.sample(sorted(pods), min(len(pods), self._random.randint(1, 3)))
        for name in names:
            uid = pods[name].uid
            self._observer.allow(pods[name].pool, 1, _gone(uid))
            self._field.delete_pod(name)
        record.note = ", ".join(names)

    def _recreate_pool(self, record: Record) -> None:
        name = self._some_pool()
        if not self._field.pool(name)["metadata"].get("finalizers"):
            record.note = f"not done: {name} was never granted anything"
            return
        self._field.delete_pool(name)
        gone = wait_until(lambda: name not in self._field.pool_names(), _POOL_PATIENCE_S)
        record.note = name
        if not gone:
            record.note = f"{name} is still there after {_POOL_PATIENCE_S:g} s"
            return
        self._field.create_pool(name)

    def _some_pool(self) -> str:
        return self._random.choice([pool.name for pool in self._field.spec.pools])


def _gone(uid: str) -> Callable[[State], bool]:
    return lambda state: all(pod.uid != uid for pod in state.pods.values())
