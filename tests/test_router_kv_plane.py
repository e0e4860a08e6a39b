"""KV events of Dynamo's event plane, from the runtime's own publisher and its own answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import zmq
import zmq.asyncio
from kubernetes.aio.client import ApiClient, ApiextensionsV1Api, CoreV1Api, CustomObjectsApi
from kubernetes.aio.client.exceptions import ApiException
from tokenizers import Tokenizer

from benchmarks.router import dynamo_path
from benchmarks.router.processes import Stack, free_port
from hrl_planner.errors import RouterError
from hrl_planner.kube.access import find_configuration
from hrl_planner.localcluster import ControlPlane
from hrl_planner.router.discovery.base import Worker
from hrl_planner.router.kv import FeedState, KvIndex, blocks_of_ids
from hrl_planner.router.kv.plane.file_store import FileStore
from hrl_planner.router.kv.plane.kubernetes_store import GROUP, PLURAL, VERSION, KubernetesStore
from hrl_planner.router.kv.plane.records import SourceName, Store, find
from tests.dynamo_publisher import ENDPOINT, DynamoPublisher, dynamo_publisher, publisher_process
from tests.kv_publisher import until

BLOCK_TOKENS = 4
PROMPT = list(range(100, 112))  # three blocks
HASHES = blocks_of_ids(PROMPT, BLOCK_TOKENS).hashes
LIVE, APPROXIMATE, LOST = FeedState.LIVE, FeedState.APPROXIMATE, FeedState.LOST
NAME = f"dyn://{ENDPOINT}"


def async_test(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 30.0))

    return run


class Router:
    """The index with one Dynamo worker in slot 3."""

    def __init__(self, store: Store, name: str = NAME) -> None:
        self.index = KvIndex(BLOCK_TOKENS, ttl_s=60.0, silence_s=20.0, dynamo=store)
        worker = Worker("w", "pool", "127.0.0.1:1", kv_events=name)
        self.index.add_worker(3, worker, kv_blocks=1_000)

    @property
    def overlap(self) -> int:
        return self.overlap_with(HASHES)

    def overlap_with(self, hashes: list[int]) -> int:
        out = np.zeros(8, dtype=np.int64)
        self.index.overlap_blocks(hashes, out)
        return int(out[3])

    async def sees(self, state: FeedState, overlap: int) -> None:
        await until(lambda: (self.index.states()["w"], self.overlap) == (state, overlap))


@contextlib.asynccontextmanager
async def routing(store: Path | Store, name: str = NAME) -> AsyncIterator[Router]:
    router = Router(FileStore(store) if isinstance(store, Path) else store, name)
    await router.index.start()
    try:
        yield router
    finally:
        await router.index.close()


class LossyWire:
    """Stands between a publisher and the router, and loses what it is told to."""

    def __init__(self, store: Path) -> None:
        self.losing = False
        self.lost = 0
        self._context = zmq.asyncio.Context()
        (record,) = (store / "v1" / "event_channels").glob("*")
        channel = json.loads(record.read_text())
        self._in = self._context.socket(zmq.XSUB)
        self._in.connect(channel["transport"]["config"]["endpoint"])
        self._out = self._context.socket(zmq.XPUB)
        self._out.bind("tcp://127.0.0.1:*")
        channel["transport"]["config"]["endpoint"] = self._out.getsockopt_string(zmq.LAST_ENDPOINT)
        record.write_text(json.dumps(channel))
        self._tasks = [asyncio.create_task(self._messages()), asyncio.create_task(self._wishes())]

    async def _messages(self) -> None:
        while True:
            frames = await self._in.recv_multipart()
            if self.losing:
                self.lost += 1
            else:
                await self._out.send_multipart(frames)

    async def _wishes(self) -> None:
        while True:
            await self._in.send(await self._out.recv())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)


@contextlib.asynccontextmanager
async def losing_some(
    store: Path, **options: Any
) -> AsyncIterator[tuple[DynamoPublisher, LossyWire, Path]]:
    """A publisher, the wire to it, and the store that leads over the wire."""
    async with dynamo_publisher(store, BLOCK_TOKENS, **options) as publisher:
        view = store.with_name("view")  # the publisher keeps touching its own
        shutil.copytree(store, view)
        wire = LossyWire(view)
        try:
            yield publisher, wire, view
        finally:
            await wire.close()


async def lose(wire: LossyWire, telling: Coroutine[Any, Any, None]) -> None:
    already = wire.lost
    wire.losing = True
    await telling
    await until(lambda: wire.lost > already)
    wire.losing = False


@async_test
async def test_a_router_that_joins_late_learns_the_whole_cache_and_follows(tmp_path: Path) -> None:
    async with dynamo_publisher(tmp_path, BLOCK_TOKENS) as worker:
        await worker.stored([11, -2], PROMPT[:8])  # engines' hashes may be negative
        await worker.stored([13], PROMPT[8:], parent=-2)
        async with routing(tmp_path) as router:
            await router.sees(LIVE, 3)
            await worker.removed([13])
            await router.sees(LIVE, 2)


@async_test
async def test_a_worker_that_comes_after_the_router_is_found_and_empty(tmp_path: Path) -> None:
    async with routing(tmp_path) as router:
        assert router.index.states()["w"] == LOST
        async with dynamo_publisher(tmp_path, BLOCK_TOKENS) as worker:
            await router.sees(LIVE, 0)
            await worker.stored([1], PROMPT[:4])
            await router.sees(LIVE, 1)


@async_test
async def test_a_block_two_requests_have_stored_goes_with_the_last_of_them(tmp_path: Path) -> None:
    async with dynamo_publisher(tmp_path, BLOCK_TOKENS) as worker, routing(tmp_path) as router:
        await router.sees(LIVE, 0)
        await worker.stored([1, 2], PROMPT[:8])
        await worker.stored([1, 2], PROMPT[:8])
        await worker.removed([2])
        await worker.stored([7], [7] * 4)
        await until(lambda: router.index.sizes().event_blocks == 3)
        await worker.removed([2])
        await router.sees(LIVE, 1)


@async_test
async def test_what_depends_on_more_than_tokens_meets_no_prompt(tmp_path: Path) -> None:
    async with dynamo_publisher(tmp_path, BLOCK_TOKENS) as worker, routing(tmp_path) as router:
        await worker.tell("publish_stored", PROMPT[:4], [4], [1], None, None, "an-adapter")
        await worker.stored([2], PROMPT[:4])
        await router.sees(LIVE, 1)
        assert router.index.sizes().event_blocks == 2


@async_test
async def test_a_gap_is_asked_for(tmp_path: Path) -> None:
    async with losing_some(tmp_path / "kv") as (worker, wire, view), routing(view) as router:
        await router.sees(LIVE, 0)
        await worker.stored([1], PROMPT[:4])
        await router.sees(LIVE, 1)
        await lose(wire, worker.stored([2], PROMPT[4:8], 1))
        await worker.stored([3], PROMPT[8:], 2)
        await router.sees(LIVE, 3)


@contextlib.asynccontextmanager
async def heard_from_the_first(
    folder: Path,
) -> AsyncIterator[tuple[DynamoPublisher, LossyWire, Router]]:
    """A publisher that answers nothing, with a router that has heard all its events.

    An event sent before the subscription stands is lost for good, and when it stands nobody is
    told: then another publisher begins.
    """
    for attempt in range(10):
        async with contextlib.AsyncExitStack() as stack:
            publisher = losing_some(folder / str(attempt) / "kv", recovery=False)
            worker, wire, view = await stack.enter_async_context(publisher)
            router = await stack.enter_async_context(routing(view))
            await router.sees(APPROXIMATE, 0)
            while router.overlap < 2:
                await worker.stored([1, 2], PROMPT[:8])
                await asyncio.sleep(0.05)
            if router.index.states()["w"] == LIVE:
                yield worker, wire, router
                return
    raise AssertionError("no router hears a first event")


@async_test
async def test_without_answers_a_gap_starts_the_index_anew(tmp_path: Path) -> None:
    async with heard_from_the_first(tmp_path) as (worker, wire, router):
        await lose(wire, worker.removed([2]))
        await worker.stored([8], [7] * 4)
        await router.sees(APPROXIMATE, 0)
        router.index.routed(3, HASHES, 0.0)
        assert router.overlap == 3


@async_test
async def test_a_worker_that_starts_again_is_found_again_and_empty(tmp_path: Path) -> None:
    async with routing(tmp_path) as router:
        async with dynamo_publisher(tmp_path, BLOCK_TOKENS) as worker:
            await worker.stored([1, 2, 3], PROMPT)
            await router.sees(LIVE, 3)
            await worker.stop()
        await router.sees(LOST, 3)
        async with dynamo_publisher(tmp_path, BLOCK_TOKENS) as worker:
            await router.sees(LIVE, 0)
            await worker.stored([1], PROMPT[:4])
            await router.sees(LIVE, 1)


@async_test
async def test_workers_of_one_endpoint_are_told_apart_by_their_ids(
    tmp_path: Path, caplog: Any
) -> None:
    async with (
        dynamo_publisher(tmp_path, BLOCK_TOKENS) as one,
        dynamo_publisher(tmp_path, BLOCK_TOKENS) as other,
    ):
        await one.stored([1], PROMPT[:4])
        await other.stored([1, 2], PROMPT[:8])
        async with routing(tmp_path, f"{NAME}/{one.worker_id}") as router:
            await router.sees(LIVE, 1)
        async with routing(tmp_path, f"{NAME}/{other.worker_id}") as router:
            await router.sees(LIVE, 2)
        with pytest.raises(RouterError, match=rf"2 publishers.*{ENDPOINT}.*name one as dyn://"):
            await find(FileStore(tmp_path), SourceName.parse(NAME), "127.0.0.1")
        with caplog.at_level(logging.WARNING, "hrl_planner"):
            async with routing(tmp_path) as router:
                await until(lambda: "name one as" in caplog.text)
                assert router.index.states()["w"] == LOST


@async_test
async def test_another_block_size_is_refused_with_one_line(tmp_path: Path, caplog: Any) -> None:
    async with dynamo_publisher(tmp_path, 16), routing(tmp_path) as router:
        with caplog.at_level(logging.ERROR, "hrl_planner"):
            await router.sees(APPROXIMATE, 0)
        assert "its blocks have 16 tokens, the router's 4" in caplog.text


def test_without_the_store_a_worker_on_the_plane_is_approximate(caplog: Any) -> None:
    index = KvIndex(BLOCK_TOKENS)
    index.add_worker(0, Worker("w", "pool", "127.0.0.1:1", kv_events=NAME), kv_blocks=10)
    assert index.states() == {"w": APPROXIMATE}
    assert "needs kv.dynamo in" in caplog.text


# Records in objects of Kubernetes

DEFINITION: dict[str, Any] = {
    "metadata": {"name": f"{PLURAL}.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": PLURAL, "kind": "DynamoWorkerMetadata"},
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    with control_plane.namespace("plane") as name:
        yield name


async def write_card(api: ApiClient, namespace: str, pod: str, worker_id: int) -> None:
    """Add the model's card to a worker's object, once it is there."""
    card = {"card_json": {"kv_cache_block_size": BLOCK_TOKENS}}
    data = {"model_cards": {f"ns/worker/generate/{worker_id:x}": card}}
    while True:
        try:
            await CustomObjectsApi(api).patch_namespaced_custom_object(
                *(GROUP, VERSION, namespace, PLURAL, pod, {"spec": {"data": data}}),
                _content_type="application/merge-patch+json",
            )
            return
        except ApiException as error:
            assert error.status == 404
        await asyncio.sleep(0.05)


@pytest.mark.kube
@async_test
async def test_a_worker_is_found_by_its_object_in_kubernetes(
    control_plane: ControlPlane, namespace: str, caplog: Any
) -> None:
    configuration = await find_configuration(control_plane.kubeconfig)
    store = KubernetesStore(namespace, configuration=configuration)
    async with ApiClient(configuration) as api, routing(store) as router:
        await until(lambda: f"{PLURAL}.{GROUP} in {namespace}: Not Found" in caplog.text)
        kind = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
        await ApiextensionsV1Api(api).create_custom_resource_definition(kind | DEFINITION)
        pod = {
            "metadata": {"name": "worker-0"},
            "spec": {"containers": [{"name": "worker", "image": "none"}]},
        }
        made = await CoreV1Api(api).create_namespaced_pod(namespace, pod)
        in_pod = {
            "DYN_DISCOVERY_BACKEND": "kubernetes",
            "KUBECONFIG": str(control_plane.kubeconfig),
            "POD_NAME": "worker-0",
            "POD_UID": made.metadata.uid,
            "POD_NAMESPACE": namespace,
        }
        async with publisher_process(in_pod, BLOCK_TOKENS) as worker:
            await write_card(api, namespace, "worker-0", worker.worker_id)
            await router.sees(LIVE, 0)
            await worker.stored([1, 2], PROMPT[:8])
            await router.sees(LIVE, 2)


# Dynamo's mocker, a whole worker of its own (`make dynamo-venv`)


CACHE_BLOCKS = 16


@contextlib.contextmanager
def mocker(folder: Path) -> Iterator[str]:
    """A mocker with a small cache behind Dynamo's frontend, whose URL this yields."""
    found = dynamo_path.find()
    if isinstance(found, str):
        pytest.skip(found)
    python, port = str(found[0]), free_port()
    dynamo_path.write_model(folder / dynamo_path.MODEL)
    with Stack(folder, dynamo_path.environment(folder)) as stack:
        stack.start(
            "mocker",
            [python, "-m", "dynamo.mocker", "--endpoint", NAME, "--model-name", dynamo_path.MODEL,
             "--model-path", str(folder / dynamo_path.MODEL), "--block-size", str(BLOCK_TOKENS),
             "--num-gpu-blocks-override", str(CACHE_BLOCKS), "--speedup-ratio", "100"],
        )  # fmt: skip
        stack.start(
            "frontend",
            [python, "-m", "dynamo.frontend", "--router-mode", "round-robin", "--namespace", "ns",
             "--http-host", "127.0.0.1", "--http-port", str(port)],
        )  # fmt: skip
        stack.wait_for(f"http://127.0.0.1:{port}/v1/models", f'"{dynamo_path.MODEL}"')
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
@async_test
async def test_dynamos_mocker_is_followed_through_its_evictions(tmp_path: Path) -> None:
    words = [[f"t{n}" for n in range(start, start + 32)] for start in range(0, 320, 32)]
    with mocker(tmp_path) as url:
        tokenizer = Tokenizer.from_file(str(tmp_path / dynamo_path.MODEL / "tokenizer.json"))
        prompts = [
            blocks_of_ids(tokenizer.encode(" ".join(prompt)).ids, BLOCK_TOKENS).hashes
            for prompt in words
        ]
        store = tmp_path / "kv"
        async with routing(store) as early, aiohttp.ClientSession(url) as client:
            await early.sees(LIVE, 0)
            for prompt, hashes in zip(words, prompts, strict=True):
                body = {"model": dynamo_path.MODEL, "prompt": " ".join(prompt), "max_tokens": 4}
                async with client.post("/v1/completions", json=body) as answer:
                    assert answer.status == 200
                await until(lambda hashes=hashes: early.overlap_with(hashes) == 8)
            assert early.overlap_with(prompts[0]) == 0
            assert 0 < early.index.sizes().event_blocks <= CACHE_BLOCKS
            async with routing(store) as late:
                await until(lambda: late.index.states()["w"] == LIVE)
                assert [late.overlap_with(hashes) for hashes in prompts] == [
                    early.overlap_with(hashes) for hashes in prompts
                ]
