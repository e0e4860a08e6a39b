"""Planners of 500 pools in 50 groups with 10,000 pods: what one process of `plan all` needs.

    python -m benchmarks.cluster.scale [--groups 50] [--seconds 150] [--keep FOLDER]

A real API server and etcd; pods as objects without machines (`scale_pods`); the planners as a
process of their own, with traffic that makes quotas and replicas move (`scale_traffic`). After a
warm-up everything is counted for a while. Requests are counted by the planners' own clients, and
those to resources that nobody else touches by the API server, too. Prints a table and, last, one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from kubernetes import client

from benchmarks.cluster.scale_pods import Pods
from benchmarks.cluster.scale_traffic import GROUPS, POOLS_EACH, REPLICAS, cluster
from benchmarks.router.processes import cpu_s
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.crds import GROUP, POOLS, VERSION
from hrl_planner.kube.crds import GROUPS as GROUP_PLURAL
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.localcluster import ControlPlane
from hrl_planner.localcluster.credentials import ADMIN
from hrl_planner.localcluster.demo_objects import install_definitions
from hrl_planner.router.discovery.kubernetes import POOL_LABEL

WARM_UP_S = 180.0
_START_S = 1200.0
_LOCAL_S = 10.0
_POLICY = {"mode": "active", "allocator": "lp:hold_s=60", "scaler": "rule"}
# What nobody but the planners touches.
_OURS = {"workerpools", "servinggroups", "leases", "events", "deployments/scale"}
_TOTAL = re.compile(r"apiserver_request_total\{(.*)\} ([0-9.e+]+)")


def create(admin: client.ApiClient, namespace: str, groups: int) -> None:
    """Create groups, pools and the Deployments they scale."""
    apps: Any = client.AppsV1Api(admin)
    objects = client.CustomObjectsApi(admin)
    for index in range(groups):
        spec = cluster(index)
        targets = {p.name: ScaleTargetRef(kind="Deployment", name=p.name) for p in spec.pools}
        for pool in spec.pools:
            labels = {POOL_LABEL: pool.name, "app.kubernetes.io/part-of": spec.name}
            container = {"name": "engine", "image": "none"}
            template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
            body = {
                "metadata": {"name": pool.name},
                "spec": {
                    "replicas": REPLICAS,
                    "selector": {"matchLabels": {POOL_LABEL: pool.name}},
                    "template": template,
                },
            }
            apps.create_namespaced_deployment(namespace, body)
        group, *pools = manifests_of(spec, targets, namespace)
        group["spec"]["policy"] |= _POLICY
        for plural, item in [(GROUP_PLURAL, group), *((POOLS, pool) for pool in pools)]:
            objects.create_namespaced_custom_object(GROUP, VERSION, namespace, plural, item)
        for pool in pools:
            # As planners leave it that have been running: every pool was counted once.
            objects.patch_namespaced_custom_object_status(
                GROUP, VERSION, namespace, POOLS, pool["metadata"]["name"],
                {"status": {"reserved": REPLICAS}}, _content_type="application/merge-patch+json",
            )  # fmt: skip


def server_counts(plane: ControlPlane) -> Counter[str]:
    """Return the API server's own count of requests, as `VERB resource`."""
    who = {"Authorization": f"Bearer {plane.credentials.tokens[ADMIN]}"}
    request = urllib.request.Request(f"{plane.credentials.server}/metrics", headers=who)
    context = ssl.create_default_context(cafile=str(plane.credentials.ca))
    with urllib.request.urlopen(request, context=context, timeout=30.0) as answer:
        text = answer.read().decode()
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        match = _TOTAL.match(line)
        if match is None:
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
        sub = f"/{labels['subresource']}" if labels.get("subresource") else ""
        verb = {"POST": "POST", "APPLY": "PATCH"}.get(labels["verb"], labels["verb"])
        counts[f"{verb} {labels['resource']}{sub}"] += round(float(match[2]))
    return counts


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def changed(after: Counter[str], before: Counter[str]) -> Counter[str]:
    """Return what came since."""
    return Counter({name: n - before[name] for name, n in after.items() if n != before[name]})


class Planners:
    """The process under measurement.

    Args:
        plane: what it plans on.
        namespace: where.
        folder: for its log and statistics.
    """

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self._statistics = folder / "statistics.json"
        self.decisions = folder / "decisions.jsonl"
        command = [sys.executable, "-m", "benchmarks.cluster.scale_planners"]
        command += [str(plane.kubeconfig), namespace, str(self._statistics)]
        with self.decisions.open("wb") as out, (folder / "planners.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=out, stderr=log)
        self.pid = self._process.pid

    def __enter__(self) -> Planners:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def told(self) -> dict[str, Any]:
        """Return its statistics so far."""
        if self._process.poll() is not None:
            raise SystemExit(f"the planners ended: see {self.decisions.parent}")
        found: dict[str, Any] = json.loads(self._statistics.read_text())
        return found


def measure(plane: ControlPlane, planners: Planners, pods: Pods, seconds: float) -> Any:
    """Count for a while."""
    before, server, began_s = planners.told(), server_counts(plane), time.monotonic()
    used_s, written = cpu_s(planners.pid), planners.decisions.stat().st_size
    rss, least = rss_mb(planners.pid), pods.ready
    while time.monotonic() - began_s < seconds:
        time.sleep(1.0)
        rss, least = max(rss, rss_mb(planners.pid)), min(least, pods.ready)
    wall_s = time.monotonic() - began_s
    used_s = cpu_s(planners.pid) - used_s
    after, server = planners.told(), changed(server_counts(plane), server)
    requests = changed(Counter(after["requests"]), Counter(before["requests"]))
    took = {
        level: values[len(before["took_s"].get(level, ())) :]
        for level, values in after["took_s"].items()
    }
    with planners.decisions.open() as file:
        file.seek(written)
        lines = [json.loads(line) for line in file if line.endswith("\n")]
        lines = [line for line in lines if line["kind"] == "round"]
    waited = changed(Counter(after["waited_s"]), Counter(before["waited_s"]))
    mean_ms = {name: round(1e3 * waited[name] / n, 1) for name, n in requests.items() if n}
    return report(requests, server, took, lines, after["watches"], wall_s) | {
        "answer_mean_ms": {name: ms for name, ms in mean_ms.items() if ms},
        "cores": round(used_s / wall_s, 3),
        "rss_mb": round(rss),
        "pods_least": least,
    }


def report(
    requests: Counter[str],
    server: Counter[str],
    took: dict[str, list[float]],
    lines: list[dict[str, Any]],
    watches: int,
    wall_s: float,
) -> dict[str, Any]:
    """Return the figures but for those of the process."""
    verbs: Counter[str] = Counter()
    for name, number in requests.items():
        verbs[name.split()[0]] += number
    sweeps = wall_s / _LOCAL_S
    ours = {name: n for name, n in requests.items() if _is_ours(name)}
    theirs = {name: n for name, n in server.items() if _is_ours(name)}
    written = {
        level: [
            text for line in lines if line["level"] == level for text in line.get("written", ())
        ]
        for level in ("local", "global")
    }
    figures: dict[str, Any] = {
        "seconds": round(wall_s),
        "watches": watches,
        "requests_per_s": round(sum(requests.values()) / wall_s, 2),
        "requests_per_sweep": {verb: round(n / sweeps, 1) for verb, n in sorted(verbs.items())},
        "requests": dict(requests.most_common()),
        "own_resources_by_client": sum(ours.values()),
        "own_resources_by_server": sum(theirs.values()),
        "by_server": dict(Counter(theirs).most_common()),
        "rescaled": sum(" -> " in text for text in written["local"]),
        "quotas": sum("quota" in text for text in written["global"]),
        "decisions": sum("decision" in line for line in lines),
        "errors": sum("error" in line for line in lines),
        "log_kb_per_s": round(sum(len(json.dumps(line)) for line in lines) / 1e3 / wall_s, 1),
    }
    for level in ("local", "global"):
        walls, cpus = sorted(took[level]), took[f"{level} cpu"]
        figures[level] = {
            "rounds": len(walls),
            "median_ms": round(1e3 * walls[len(walls) // 2], 2),
            "p99_ms": round(1e3 * walls[int(0.99 * len(walls))], 1),
            "cpu_mean_ms": round(1e3 * sum(cpus) / len(cpus), 2),
            "sweep_s": round(sum(walls) / sweeps, 3),
        }
    return figures


def _is_ours(name: str) -> bool:
    verb, resource = name.split()
    first, _, sub = resource.partition("/")
    return verb != "WATCH" and (resource in _OURS or (first in _OURS and sub == "status"))


def main() -> None:
    """Build everything up, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=GROUPS)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S)
    parser.add_argument("--keep", type=Path, help="folder for logs; absent: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = run(folder, args.groups, args.seconds, args.warm_up)
    for name, value in figures.items():
        print(f"{name:<26} {value if not isinstance(value, dict) else json.dumps(value)}")
    print(json.dumps(figures))


def run(folder: Path, groups: int, seconds: float, warm_up_s: float) -> dict[str, Any]:
    """Return the figures."""
    count = groups * POOLS_EACH * REPLICAS
    with ControlPlane.start(folder / "plane", controllers=False) as plane:
        admin = plane.client()
        install_definitions(admin)
        with plane.namespace("scale") as namespace, Pods(plane, namespace) as pods:
            began_s = time.monotonic()
            create(admin, namespace, groups)
            while pods.ready < count:
                if time.monotonic() - began_s > _START_S:
                    raise SystemExit(f"only {pods.ready} of {count} pods after {_START_S:g} s")
                time.sleep(1.0)
            print(f"{count} pods after {time.monotonic() - began_s:.0f} s", file=sys.stderr)
            with Planners(plane, namespace, folder) as planners:
                time.sleep(warm_up_s)
                figures = measure(plane, planners, pods, seconds)
    return {"groups": groups, "pools": groups * POOLS_EACH, "pods_at_start": count} | figures


if __name__ == "__main__":
    main()
