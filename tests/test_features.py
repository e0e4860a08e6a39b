"""Features are finite, named, scaled by the spec, and say when they do not know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrl_planner.features import CLASS_FEATURES, POOL_FEATURES, FeatureScales, encode
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, ClusterObservation
from hrl_planner.spec import ClusterSpec

SPEC = ClusterSpec.load("small")
SCALES = FeatureScales.from_spec(SPEC)
N_POOLS, N_CLASSES = len(SPEC.pools), len(SPEC.slo_classes)


def observation(fill: float) -> ClusterObservation:
    return ClusterObservation(
        0.0,
        np.full((N_POOLS, len(POOL_FIELDS)), fill),
        np.full((N_CLASSES, len(CLASS_FIELDS)), fill),
    )


def feature(values: np.ndarray, name: str) -> np.ndarray:
    names = POOL_FEATURES if values.shape[1] == len(POOL_FEATURES) else CLASS_FEATURES
    return values[:, names.index(name)]


def test_shapes_match_the_names() -> None:
    pools, classes = encode(observation(1.0), SCALES)
    assert pools.shape == (N_POOLS, len(POOL_FEATURES))
    assert classes.shape == (N_CLASSES, len(CLASS_FEATURES))
    assert pools.dtype == classes.dtype == np.float32
    assert len(set(POOL_FEATURES)) == len(POOL_FEATURES)


def test_unknown_metrics_become_zero_and_are_marked() -> None:
    pools, classes = encode(observation(np.nan), SCALES)
    assert np.all(feature(pools, "known") == 0.0)
    assert np.all(feature(classes, "known") == 0.0)
    assert np.all(feature(pools, "kv_use") == 0.0)


@settings(max_examples=50)
@given(st.floats(0, 1e9, allow_nan=False))
def test_features_stay_within_a_few_units(fill: float) -> None:
    for values in encode(observation(fill), SCALES):
        assert np.all(np.isfinite(values))
        if fill <= 1.0 or values.shape[1] == len(CLASS_FEATURES):
            continue
        for name in ("arrivals", "isl", "waiting_per_replica", "ttft_p90_ms", "metrics_age"):
            assert np.all(np.abs(feature(values, name)) <= 5.0)


def test_replicas_count_as_shares_of_the_maximum() -> None:
    seen = observation(0.0)
    seen.pools[:, POOL_FIELDS.index("ready")] = [p.max_replicas for p in SPEC.pools]
    pools, _ = encode(seen, SCALES)
    assert feature(pools, "ready") == pytest.approx(1.0)


def test_free_gpus_count_all_pools_of_the_type() -> None:
    seen = observation(0.0)
    h100 = [i for i, p in enumerate(SPEC.pools) if p.gpu_type == "H100"]
    seen.pools[h100, POOL_FIELDS.index("starting")] = 2  # 2 pools of one-GPU replicas: 4 of 8 GPUs
    pools, _ = encode(seen, SCALES)
    assert feature(pools, "free_gpus")[h100] == pytest.approx(0.5)


def test_latency_is_a_ratio_to_the_tightest_target() -> None:
    seen = observation(0.0)
    seen.pools[:, POOL_FIELDS.index("ttft_p90_ms")] = min(c.ttft_ms for c in SPEC.slo_classes)
    pools, _ = encode(seen, SCALES)
    assert feature(pools, "ttft_p90_ms") == pytest.approx(np.log1p(1.0))
