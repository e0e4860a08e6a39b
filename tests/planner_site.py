"""The cluster behind a modelled API server: a group, its pools, deployments and pods, and time.

A deployment's controller works through what it was asked one after another, at most `SETTLE_S`
late; pods drain as late as they like. Writes that clients gave up may still be on their way. For
the ledger's audit all of it is told as the ledger's own model (`ledger_model.World`).
"""

from __future__ import annotations

from random import Random
from typing import Any, Literal

from hrl_planner.control.decision import QUOTA
from hrl_planner.control.local_planner import SETTLE_S
from hrl_planner.kube.crds import FINALIZER, GROUPS, POOLS
from hrl_planner.ledger import Claim, Pods, Reservation, Target
from hrl_planner.ledger.replicas import TargetClaim
from tests.ledger_cluster import fitting
from tests.ledger_model import COSTS, MAXIMUM, NAMES, Backlog, Group, Pool, Send, World
from tests.modelled_kubernetes import DEPLOYMENTS, PODS, Answer, Json, ModelApi, Request

GROUP_NAME, NAMESPACE = "group", "models"
TOLD = "told"  # a policy
MOST_SENT = 6  # more are lost: a late write among many would hardly ever be the next to arrive
GLOBAL_S, LOCAL_S = 20.0, 5.0

Amounts = dict[str, float]
Counts = dict[str, int]
Mood = Literal["leaders", "pool", "any"]


class Site:
    """See the module.

    Args:
        budget: of the group.
        running: replicas of every pool.
        quotas: of every pool; None for one that has none yet.
        booked: whether the books tell of what runs.
        scaler: of the group.
    """

    def __init__(
        self,
        budget: Amounts,
        running: Counts,
        quotas: dict[str, int | None],
        *,
        booked: bool,
        scaler: str,
    ) -> None:
        self.api = ModelApi()
        self.now_s = 0.0
        self.sent: list[Request] = []
        self._made_s: dict[str, float] = {}
        # Of pools that went by force: the claim, as version of the target and replicas.
        self._bereft: dict[str, tuple[str, int]] = {}
        self._seen = dict(running)
        self._asked: dict[str, list[tuple[int, float]]] = {name: [] for name in NAMES}
        self._pods_made = 0
        self.api.create(GROUPS, _group(budget, scaler))
        for name in NAMES:
            target = {"metadata": {"name": name}, "spec": {"replicas": running[name]}}
            self.api.create(DEPLOYMENTS, target | {"status": {"replicas": running[name]}})
            self._start(name, running[name])
            self.create_pool(name, quotas[name], running[name] if booked else None)

    # What is there.

    @property
    def budget(self) -> Amounts:
        spec = self.api.objects[GROUPS][GROUP_NAME]["spec"]["budget"]
        return {**spec["gpus"], "total": spec["totalGpus"], "watts": spec["watts"]}

    @property
    def pools(self) -> dict[str, Json]:
        return self.api.objects[POOLS]

    def replicas(self, name: str) -> int:
        asked: int = self.api.objects[DEPLOYMENTS][name]["spec"]["replicas"]
        return asked

    def pods(self, name: str) -> tuple[list[str], list[str]]:
        """Return the names of live pods and of draining ones."""
        live: list[str] = []
        draining: list[str] = []
        for pod, item in self.api.objects[PODS].items():
            metadata = item["metadata"]
            if metadata["labels"]["app"] == name:
                (draining if "deletionTimestamp" in metadata else live).append(pod)
        return live, draining

    def write(self, request: Request) -> Answer:
        """Carry out a write, and let controllers hear of it."""
        answer = self.api.answer(request)
        for name in NAMES:
            asked = self._asked[name]
            replicas = self.replicas(name)
            if replicas != (asked[-1][0] if asked else self._seen[name]):
                asked.append((replicas, self.now_s))
        return answer

    def create_pool(self, name: str, quota: int | None = None, reserved: int | None = None) -> None:
        item = _pool(name)
        if quota is not None:
            item["spec"]["quota"] = quota
        if reserved is not None:
            item["status"] = {"reserved": reserved, "desired": reserved}
        self.api.create(POOLS, item)
        self._made_s[name] = self.now_s

    def remove_pool(self, name: str) -> None:
        """Delete a pool by force: with it goes its book, and a claim that may be in it."""
        claim = self.pools[name].get("status", {}).get("claim")
        self.api.remove(POOLS, name)
        if claim and claim["version"] == self._version(name):
            _, most = self._bereft.get(name, ("", 0))
            self._bereft[name] = (claim["version"], max(most, claim["to"]))

    def is_bereft(self, request: Request) -> bool:
        """Say whether this is a raise that will be accepted although its claim went with its pool.

        While the pool made anew has no book it counts as the most it may have; from the first
        moment at which its planner may have booked less, the raise is the doing of who deleted.
        """
        name = request.name
        if request.plural != DEPLOYMENTS or name not in self.pools:
            return False
        version, most = self._bereft.get(name, ("", 0))
        if not request.version == version == self._version(name):
            return False
        claim = self.pools[name].get("status", {}).get("claim")
        booked = claim["to"] if claim and claim["version"] == version else self.replicas(name)
        may_be_booked = self.now_s >= self._made_s[name] + SETTLE_S
        replicas = int((request.body or {})["spec"]["replicas"])
        return may_be_booked and booked < replicas <= most

    def _version(self, name: str) -> str:
        return str(self.api.objects[DEPLOYMENTS][name]["metadata"]["resourceVersion"])

    # What passes by itself.

    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        for name in NAMES:
            late = [n for n, since_s in self._asked[name] if since_s + SETTLE_S <= self.now_s]
            for _ in late:
                self.controller_acts(name, catch_up=False)

    def controller_acts(self, name: str, *, catch_up: bool) -> None:
        """It looks at the next thing asked, or at the last."""
        asked = self._asked[name]
        if asked:
            self._seen[name] = asked[-1 if catch_up else 0][0]
            del asked[: len(asked) if catch_up else 1]
        live, _ = self.pods(name)
        for pod in live[self._seen[name] :]:
            self.api.answer(Request("DELETE", PODS, pod))
        self._start(name, self._seen[name] - len(live))

    def status_is_reported(self, name: str) -> None:
        status = {"status": {"replicas": len(self.pods(name)[0])}}
        self.api.patch(DEPLOYMENTS, name, status, "status")

    def replicas_end(self, name: str, count: int) -> None:
        for pod in self.pods(name)[1][:count]:
            self.api.remove(PODS, pod)

    def _start(self, name: str, count: int) -> None:
        for _ in range(count):
            self._pods_made += 1
            metadata = {"name": f"{name}-{self._pods_made}", "labels": {"app": name}}
            self.api.create(PODS, {"metadata": metadata | {"finalizers": ["draining"]}})

    # As the audit knows it.

    def world(self) -> World:
        group = self.api.objects[GROUPS][GROUP_NAME]
        targets, pods, backlog = {}, {}, {}
        for name in NAMES:
            item = self.api.objects[DEPLOYMENTS][name]
            meta = item["metadata"]
            asked = f"{meta['uid']}/{meta['generation']}"
            targets[name] = Target(item["spec"]["replicas"], meta["resourceVersion"], asked)
            live, draining = self.pods(name)
            pods[name] = Pods(len(live), len(draining))
            later = tuple(n for n, _ in self._asked[name])
            backlog[name] = Backlog(self._seen[name], later)
        claims = _claims(group.get("status", {}).get("claims", ()))
        sent = [_send_of(request) for request in self.sent if not self.is_bereft(request)]
        return World(
            group=Group(int(group["metadata"]["resourceVersion"]), self.budget, claims),
            pools={name: _pool_of(item) for name, item in self.pools.items()},
            targets=targets,
            pods=pods,
            backlog=backlog,
            sent=[send for send in sent if send is not None],
        )


def some_site(random: Random, mood: Mood) -> tuple[Site, bool]:
    """Return a cluster to begin with, and whether pools are to take all of their quotas."""
    budget = some_budget(random)
    few = 2 if mood == "leaders" else random.choice([2, 3, 7])
    running = {name: random.randrange(few) for name in NAMES}
    start = "calm" if mood == "leaders" else random.choice(["calm", "calm", "unknown", "any"])
    quotas: dict[str, int | None] = {
        "calm": dict(running),
        "unknown": dict.fromkeys(NAMES),
        "any": {name: random.choice([None, random.randrange(7)]) for name in NAMES},
    }[start]
    booked, scaler = start != "unknown", random.choice([QUOTA, TOLD])
    if mood == "pool":  # one that may have much and wants now this and now that
        quotas = dict(fitting({name: random.randrange(3, 7) for name in NAMES}, budget))
        booked, scaler = True, TOLD
    return Site(budget, running, quotas, booked=booked, scaler=scaler), scaler == QUOTA


def some_budget(random: Random) -> Amounts:
    """Return what a group may have."""
    return {
        "X": float(random.randint(2, 8)),
        "Y": float(random.randint(0, 5)),
        "total": float(random.randint(4, 12)),
        "watts": random.choice([2500.0, 6000.0]),
    }


def _group(budget: Amounts, scaler: str) -> Json:
    spec = {
        "model": "meta-llama/Meta-Llama-3.1-8B",
        "budget": budget_spec(budget),
        "sloClasses": [{"name": "chat", "ttftMs": 1000, "itlMs": 50}],
        "intervals": {"localS": LOCAL_S, "globalS": GLOBAL_S, "windowS": LOCAL_S},
        "policy": {"allocator": TOLD, "scaler": scaler, "mode": "active"},
    }
    return {"metadata": {"name": GROUP_NAME, "namespace": NAMESPACE}, "spec": spec}


def budget_spec(budget: Amounts) -> Json:
    """Return a budget as a group spells it."""
    gpus = {kind: int(budget[kind]) for kind in ("X", "Y")}
    return {"gpus": gpus, "totalGpus": int(budget["total"]), "watts": budget["watts"]}


def _pool(name: str) -> Json:
    kind = next(iter(COSTS[name]))
    gpus = COSTS[name][kind] or 0.0
    spec = {
        "group": GROUP_NAME,
        "role": "aggregated",
        "gpuType": kind,
        "gpusPerReplica": int(gpus),
        "profile": "llama31_8b__h100_sxm__tp1__vllm",
        "maxReplicas": MAXIMUM,
        "powerWPerGpu": (COSTS[name]["watts"] or 0.0) / gpus,
        "scaleTargetRef": {"kind": "Deployment", "name": name},
    }
    return {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def _pool_of(item: Json) -> Pool:
    metadata = item["metadata"]
    return Pool(
        uid=int(metadata["uid"]),
        version=int(metadata["resourceVersion"]),
        quota=item["spec"].get("quota"),
        reservation=_reservation(item.get("status", {})),
        finalizer=FINALIZER in metadata.get("finalizers", ()),
        leaving="deletionTimestamp" in metadata,
    )


def _reservation(status: Json) -> Reservation:
    claim = status.get("claim")
    return Reservation(
        status.get("reserved"),
        claim and TargetClaim(claim["start"], claim["to"], claim["version"], claim["specVersion"]),
    )


def _claims(items: Any) -> tuple[Claim, ...]:
    return tuple(Claim(c["pool"], c["uid"], c["version"], c["quota"]) for c in items)


def _send_of(request: Request) -> Send | None:
    """Return a write on its way as the ledger's model knows it; None if the ledger is not in it."""
    body, version = request.body or {}, int(request.version or 0)
    if request.plural == DEPLOYMENTS:
        return Send("target", request.name, version, body["spec"]["replicas"])
    status = body.get("status", {})
    if request.plural == GROUPS:
        return Send("book", "", version, _claims(status["claims"])) if "claims" in status else None
    if "spec" in body:
        return Send("quota", request.name, version, body["spec"]["quota"])
    if "reserved" in status:
        return Send("reservation", request.name, version, _reservation(status))
    return None if status else Send("release", request.name, version, None)
