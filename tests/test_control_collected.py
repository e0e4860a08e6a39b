"""What planners hear of workers that are real engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from hrl_planner.collect import PageSource, PrometheusSource, Source
from hrl_planner.control.collected import CollectedMetrics
from hrl_planner.errors import RouterError
from hrl_planner.load import LoadOptions, Target, replay
from hrl_planner.mock_engine.cluster import MockCluster
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS
from hrl_planner.router.discovery import Snapshot, Worker
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.curves import constant
from hrl_planner.workload.generators import independent_requests
from tests.toy_prometheus import toy_prometheus

pytestmark = pytest.mark.slow


class Told:
    """A discovery that says what it is told."""

    def __init__(self, *workers: Worker) -> None:
        self._workers = workers

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        yield Snapshot(self._workers)
        await asyncio.Event().wait()


class Astray:
    """A discovery that finds no way to an API server."""

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        raise RouterError("no way to a Kubernetes API server")
        yield


class Falters:
    """A discovery that fails in a way nobody has thought of, and goes on when it is asked anew."""

    def __init__(self) -> None:
        self.asked = 0

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        self.asked += 1
        if self.asked == 2:
            yield Snapshot((Worker("new", "decode-h100", "127.0.0.1:1"),))
            await asyncio.Event().wait()
        yield Snapshot(())
        await asyncio.sleep(0.1)
        raise KeyError("containers")


NOBODY = {pool.name: 0 for pool in ClusterSpec.load("small").pools}


def column(rows: np.ndarray, field: str, fields: tuple[str, ...] = POOL_FIELDS) -> np.ndarray:
    return rows[:, fields.index(field)]


def spec() -> ClusterSpec:
    small = ClusterSpec.load("small")
    intervals = {**small.intervals.model_dump(), "scrape_s": 0.5, "scrape_lag_s": 0.0}
    return small.replace(intervals={**intervals, "window_s": 10.0})


@pytest.mark.parametrize("through", ["pages", "prometheus"])
def test_a_planner_sees_the_traffic_of_its_pools_and_nothing_of_those_nobody_told(
    tmp_path: Path, through: str
) -> None:
    async def offer(address: str, model: str) -> None:
        trace = independent_requests(constant(5.0, 6.0, isl=300, osl=20), seed=1)
        result = await replay(trace, Target(f"http://{address}", model), LoadOptions())
        assert result.finished.all()

    async def engines() -> tuple[MockCluster, list[Worker]]:
        cluster = MockCluster(spec(), tmp_path / "workers.yaml", speed=4.0)
        await cluster.start({pool.name: 0 for pool in spec().pools} | {"decode-h100": 1})
        found = [Worker(w.name, w.pool, w.address) for w in cluster.workers.values()]
        return cluster, found

    with asyncio.Runner() as runner:
        cluster, workers = runner.run(engines())
        labels = {w.address: {"pod": w.name, "namespace": "serving"} for w in workers}
        server = toy_prometheus(labels, 0.5)
        toy, url = runner.run(server.__aenter__())

        def source() -> Source:
            if through == "pages":
                return PageSource()
            return PrometheusSource(url, selector='namespace="serving"')

        metrics = CollectedMetrics(Told(*workers), source=source)
        metrics.start()
        try:
            # The first look begins to listen, and waits for an answer of who shares this thread.
            runner.run(asyncio.to_thread(metrics.look, spec(), NOBODY))  # type: ignore[arg-type]
            runner.run(offer(workers[0].address, spec().model))
            rows, classes = metrics.look(spec(), NOBODY | {"decode-h100": 1})
        finally:
            metrics.close()
            runner.run(server.__aexit__(None, None, None))
            runner.run(cluster.stop())
    index = spec().pool_index("decode-h100")
    assert 2.0 < column(rows, "arrivals_rps")[index] < 8.0
    assert 100 < column(rows, "isl_mean_tokens")[index] < 900
    assert column(rows, "output_tokens_per_s")[index] > 20
    assert 0.0 <= column(rows, "metrics_age_s")[index] < 5.0
    assert classes.shape == (2, len(CLASS_FIELDS))
    assert bool(toy.queries) == (through == "prometheus")


def test_planners_without_any_worker_look_at_rows_all_the_same():
    metrics = CollectedMetrics(Told())
    metrics.start()
    try:
        rows, _ = metrics.look(spec(), NOBODY)
    finally:
        metrics.close()
    assert rows.shape == (4, len(POOL_FIELDS))


def test_traffic_of_workers_that_discovery_does_not_know_is_unknown_and_not_none():
    metrics = CollectedMetrics(Told())
    metrics.start()
    try:
        rows, classes = metrics.look(spec(), NOBODY | {"prefill-h100": 2, "decode-h100": 1})
    finally:
        metrics.close()
    unknown = np.isnan(column(rows, "arrivals_rps"))
    assert unknown.tolist() == [pool.gpu_type == "H100" for pool in spec().pools]
    assert np.isnan(column(classes, "arrivals_rps", CLASS_FIELDS)).all()


def test_a_planner_that_cannot_find_workers_says_so_and_does_not_start():
    metrics = CollectedMetrics(Astray())
    with pytest.raises(RouterError, match="no way"):
        metrics.start()
    metrics.close()


def test_workers_are_followed_again_after_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    serving = NOBODY | {"decode-h100": 1}
    index = spec().pool_index("decode-h100")
    discovery = Falters()
    metrics = CollectedMetrics(discovery)
    metrics.start()
    try:
        metrics.look(spec(), NOBODY)
        end_s = time.monotonic() + 20.0
        while discovery.asked < 2 or np.isnan(metrics.look(spec(), serving)[0][index]).all():
            assert time.monotonic() < end_s, "not in time"
            time.sleep(0.05)
    finally:
        metrics.close()
    assert any("KeyError('containers')" in message for message in caplog.messages)
