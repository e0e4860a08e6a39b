"""Quicker clusters: the same cluster in less time, so that a demonstration needs no afternoon.

`quick` shortens what a cold start takes and, with it, the planners' clocks. `at_speed` makes every
time of a spec shorter by one factor, engines' included: a cluster that plays the same film faster.
Requests of a trace must then come as much faster, and measured times are stretched again.
"""

from __future__ import annotations

from hrl_planner.spec import ClusterSpec

_QUICK_CLOCKS = {
    "local_s": 2.0, "global_s": 6.0, "scrape_s": 1.0, "scrape_lag_s": 0.5, "window_s": 15.0,
}  # fmt: skip


def quick(spec: ClusterSpec, startup_scale: float) -> ClusterSpec:
    """Return a spec whose replicas start sooner, always in the same time, and its pools by name.

    Planners on Kubernetes know the pools by name, and with no other order; a plan may depend on it
    where two pools are equally good. A scale of 1 leaves the clocks as they are.
    """
    pools = [
        pool.model_copy(
            update={
                "startup": pool.startup.model_copy(
                    update={
                        "distribution": "constant",
                        "spread_s": 0.0,
                        "cv": 0.0,
                        "mean_s": pool.startup.mean_s * startup_scale,
                        "warmup_s": pool.startup.warmup_s * startup_scale,
                    }
                ),
                # The machine's own faults are enough.
                "mtbf_h": None,
            }
        )
        for pool in sorted(spec.pools, key=lambda pool: pool.name)
    ]
    clocks = spec.intervals.model_dump() if startup_scale == 1.0 else _QUICK_CLOCKS
    return spec.replace(pools=pools, intervals=clocks)


def at_speed(spec: ClusterSpec, speed: float) -> ClusterSpec:
    """Return a spec in which everything takes as many times less time."""
    pools = [
        pool.model_copy(
            update={
                "latency_scale": pool.latency_scale / speed,
                "startup": pool.startup.model_copy(
                    update={
                        name: getattr(pool.startup, name) / speed
                        for name in ("mean_s", "spread_s", "warmup_s")
                    }
                ),
                "mtbf_h": None if pool.mtbf_h is None else pool.mtbf_h / speed,
            }
        )
        for pool in spec.pools
    ]
    classes = [
        slo.model_copy(update={"ttft_ms": slo.ttft_ms / speed, "itl_ms": slo.itl_ms / speed})
        for slo in spec.slo_classes
    ]
    link = spec.kv_transfer
    return spec.replace(
        pools=pools,
        slo_classes=classes,
        intervals={name: value / speed for name, value in spec.intervals},
        kv_transfer=link.model_copy(
            update={
                "bandwidth_gb_per_s": link.bandwidth_gb_per_s * speed,
                "latency_ms": link.latency_ms / speed,
            }
        ),
    )
