"""One run as tables: for the terminal by class and by pool, for disk by request and by sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agents.evaluate.metrics import METRICS, compute, gpus_held

if TYPE_CHECKING:
    from rich.table import Table

    from envs.simulation import SimResult

_CLASS_COLUMNS = (
    "offered",
    "attainment",
    "ttft_attainment",
    "itl_attainment",
    "ttft_p50_ms",
    "ttft_p95_ms",
    "itl_p50_ms",
    "itl_p95_ms",
    "prefix_hit_rate",
    "unfinished",
    "rejected",
)
_REQUEST_COLUMNS = (
    "arrival_s",
    "class_id",
    "isl_tokens",
    "osl_tokens",
    "prefill_pool",
    "decode_pool",
    "cached_tokens",
    "first_token_s",
    "finish_s",
    "status",
    "restarts",
    "ttft_s",
    "itl_s",
    "attained",
)


def class_table(result: SimResult) -> Table:
    """Metrics down, classes across, the whole run first."""
    from rich.table import Table

    rows = compute(result)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("by class")
    for row in rows:
        table.add_column(str(row["class"]), justify="right")
    for name in _CLASS_COLUMNS:
        metric = METRICS[name]
        table.add_row(metric.label, *(metric.format(float(row[name])) for row in rows))
    table.add_section()
    total = rows[0]
    for name in ("value_attainment", "gpu_hours", "cost", "cost_per_1k", "scaling_actions",
                 "reversals", "recovery_s", "budget_violations"):  # fmt: skip
        table.add_row(METRICS[name].label, METRICS[name].format(float(total[name])))
    return table


def pool_table(result: SimResult) -> Table:
    """One row per pool: what it held, what it served, how often it was scaled."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("by pool", no_wrap=True)
    for heading in ("mean GPUs", "most", "GPU-hours", "cost", "served", "KV use", "ups", "downs"):
        table.add_column(heading, justify="right")
    within = result.timeline["t_s"] <= result.duration_s
    held = gpus_held(result)[within]
    kv_use = result.timeline["kv_use"][within]
    for index, pool in enumerate(result.spec.pools):
        hours = result.gpu_seconds[index] / 3600.0
        served = int(((result.prefill_pool == index) | (result.decode_pool == index)).sum())
        use = kv_use[held[:, index] > 0, index]
        table.add_row(
            pool.name,
            f"{held[:, index].mean():.1f}",
            f"{held[:, index].max()}",
            f"{hours:.1f}",
            f"${hours * pool.price_per_gpu_hour:,.2f}",
            f"{served:,}",
            f"{100 * use.mean():.0f} %" if use.size else "-",
            f"{result.scale_ups[index]}",
            f"{result.scale_downs[index]}",
        )
    return table


def write_run(result: SimResult, folder: Path) -> list[Path]:
    """Write requests.parquet (a row per request) and timeline.parquet (per sample and pool)."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "requests.parquet", folder / "timeline.parquet"]
    requests = pd.DataFrame({name: getattr(result, name) for name in _REQUEST_COLUMNS})
    names = [slo_class.name for slo_class in result.spec.slo_classes]
    requests.insert(2, "class", np.array(names)[result.class_id])
    requests.to_parquet(paths[0], index=False)
    samples, pools = result.timeline.size, len(result.spec.pools)
    columns = {
        "t_s": np.repeat(result.timeline["t_s"], pools),
        "pool": np.tile([pool.name for pool in result.spec.pools], samples),
    }
    fields = [name for name in result.timeline.dtype.names or () if name != "t_s"]
    columns |= {name: result.timeline[name].ravel() for name in fields}
    pd.DataFrame(columns).to_parquet(paths[1], index=False)
    return paths
