"""What an evaluation consists of: one spec, workloads, policies, and how many seeds.

A *cell* is one run: one policy on one workload under one seed. Its key holds the policy with the
content of the files it names: a checkpoint that was trained again is another policy. The
fingerprint covers what a finished cell depends on besides its own key, so more seeds, policies or
workloads can be added to an output folder later, while a changed spec or changed simulator code
cannot slip in unseen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.evaluate.cases import Workload
from hrl_planner.spec import ClusterSpec

GRACE_S = 600.0
"""How long after the last arrival requests may still finish; most end long before."""

_ROOT = Path(__file__).parents[2]
# Everything a run's numbers come from. Reports and commands may change without invalidating runs.
_SOURCES = (
    "hrl_planner/**/*.py",
    "envs/**/*.py",
    "agents/bounds/*.py",
    "agents/dynamo/*.py",
    "agents/evaluate/cases.py",
    "agents/evaluate/cell.py",
    "agents/evaluate/metrics.py",
    # Data that policies and clusters find by name, so that no key of a run has its content.
    "hrl_planner/checkpoints/*/manifest.yaml",
    "hrl_planner/checkpoints/*/*.safetensors",
    "hrl_planner/planner/tuned/*.yaml",
    "hrl_planner/profiles/*.npz",
)
_NOT_SOURCES = (
    "envs/viewer",
    "hrl_planner/cli/",
    "hrl_planner/collect/",
    "hrl_planner/control/",
    "hrl_planner/kube/",
    "hrl_planner/ledger",
    "hrl_planner/load/",
    "hrl_planner/localcluster/",
    "hrl_planner/mock_engine/",
    "hrl_planner/prompt",
    "hrl_planner/router/",
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: a policy on a workload under a seed.

    Attributes:
        workload: what it runs on.
        policy: as the registry spells it.
        seed: of the run.
        policy_key: the policy with the content of its files, see `policy_key`.
    """

    workload: Workload
    policy: str
    seed: int
    policy_key: str

    @property
    def name(self) -> str:
        """Unique and safe as a file name; readable first, then a hash of the exact key."""
        key = f"{self.workload.kind}|{self.workload.name}|{self.policy_key}"
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{self.workload.label}__{self.policy}")[:80]
        return f"{readable}__{hashlib.sha256(key.encode()).hexdigest()[:8]}__seed-{self.seed:04d}"

    def __str__(self) -> str:
        return f"{self.policy} on {self.workload.label}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """The whole comparison.

    Attributes:
        spec: the cluster every policy plans for.
        workloads: at least one; each is a stratum of the bootstrap.
        policies: as the registry spells them, e.g. "lp" or "lp:headroom=0.2".
        seeds: number of seeds, 0 to seeds - 1.
        load: multiplies every request rate.
        until_s: cut every workload here; None keeps its own length.
        grace_s: how long after the last arrival requests may still finish.
    """

    spec: ClusterSpec
    workloads: tuple[Workload, ...]
    policies: tuple[str, ...]
    seeds: int
    load: float = 1.0
    until_s: float | None = None
    grace_s: float = GRACE_S

    def cells(self) -> list[Cell]:
        """All runs; seeds outermost, so that what is done first can be compared first."""
        keys = {policy: policy_key(policy) for policy in self.policies}
        return [
            Cell(workload, policy, seed, keys[policy])
            for seed in range(self.seeds)
            for workload in self.workloads
            for policy in self.policies
        ]

    def run(self, cell: Cell, on_share: Callable[[float], None]) -> dict[str, Any]:
        """Simulate one cell; `on_share` is told the share of simulated time that is done."""
        from agents.evaluate import cell as cells

        return cells.run_cell(self, cell, on_share)

    def compile(self) -> None:
        """Bring the compiled simulator into the on-disk cache."""
        from agents.evaluate.cell import compile_simulator

        compile_simulator(self)

    def fingerprint(self) -> dict[str, Any]:
        """What a finished cell depends on, by name."""
        return {
            "spec": self.spec.model_dump(mode="json"),
            "load": self.load,
            "until_s": self.until_s,
            "grace_s": self.grace_s,
            "code": code_digest(),
            "workloads": {w.label: w.digest() for w in self.workloads},
            **own_profiles(self.spec),
        }


def own_profiles(spec: ClusterSpec) -> dict[str, Any]:
    """The content of profiles that a spec names by file, beside what the spec itself says.

    Nothing where all are shipped: those are part of the digest of the code.
    """
    files = sorted({pool.profile for pool in spec.pools if Path(pool.profile).suffix == ".npz"})
    if not files:
        return {}
    return {"profiles": [hashlib.sha256(Path(f).read_bytes()).hexdigest()[:16] for f in files]}


def policy_key(text: str) -> str:
    """The policy with the content of every file and folder that its parameters name."""
    from agents.evaluate.cell import split_policy

    on_its_cluster, _ = split_policy(text)
    parts = on_its_cluster.split("+")
    words = [word.partition("=")[2] for part in parts for word in part.split(",")]
    contents = hashlib.sha256()
    for path in (Path(word) for word in words if word):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in (f for f in files if f.is_file()):
            contents.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"{text}#{contents.hexdigest()[:12]}"


def code_digest(more: tuple[str, ...] = ()) -> str:
    """Hash of the sources and shipped data that decide a run's numbers.

    Args:
        more: patterns of further files, from the root of the sources.
    """
    digest = hashlib.sha256()
    for pattern in (*_SOURCES, *more):
        for path in sorted(_ROOT.glob(pattern)):
            name = path.relative_to(_ROOT).as_posix()
            if not name.startswith(_NOT_SOURCES):
                digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
