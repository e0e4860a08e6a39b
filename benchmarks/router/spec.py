"""The simplest cluster a router can have: one pool of engines that answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hrl_planner.spec import ClusterSpec


def one_pool(folder: Path, model: str, addresses: Sequence[str]) -> dict[str, Any]:
    """Write spec and workers file to a folder; return the router's config.

    Args:
        folder: where to.
        model: name clients ask for.
        addresses: `ip:port` of each engine.
    """
    small = ClusterSpec.load("small")
    pool = small.pools[small.pool_index("decode-h100")].model_dump()
    spec = small.replace(
        name="one-pool",
        pools=[
            {**pool, "name": "all", "role": "aggregated", "max_num_seqs": 1024,
             "max_num_batched_tokens": 8192, "min_replicas": 0, "initial_replicas": 1}
        ],
        # Throughput is measured, so nothing is promised and nothing refused.
        slo_classes=[
            {"name": "any", "ttft_ms": 600_000, "itl_ms": 10_000, "assign": {"share": 1.0}}
        ],
        router={"kind": "kv_slo"},
    )  # fmt: skip
    (folder / "spec.yaml").write_text(
        yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False)
    )
    workers = [
        {"name": f"engine-{k}", "pool": "all", "address": address}
        for k, address in enumerate(addresses)
    ]
    (folder / "workers.yaml").write_text(yaml.safe_dump({"workers": workers}))
    return {
        "spec": "spec.yaml",
        "models": [model],
        "discovery": {"kind": "file", "path": "workers.yaml"},
        "admission": {"queue": False},
    }
