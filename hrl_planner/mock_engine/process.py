"""One mock engine as a process: what is built, what listens, and how it ends.

Starting: the port answers at once, /health says 503 until the process is `startup_s` old. SIGTERM
or SIGINT: /health says 503 and new requests get 503, running ones finish within `drain_timeout_s`,
KV caches kept for decode workers are fetched or run out, then the process ends with status 0. A
second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import uvloop
from aiohttp import web

from hrl_planner.errors import EngineError
from hrl_planner.mock_engine.answers import Outbox
from hrl_planner.mock_engine.config import EngineConfig
from hrl_planner.mock_engine.engine import Engine, Job
from hrl_planner.mock_engine.faults import Faults, parse_faults
from hrl_planner.mock_engine.handoff import Leases, Peers, Rooms
from hrl_planner.mock_engine.identity import Identity, Life
from hrl_planner.mock_engine.kv_events import EventPublisher
from hrl_planner.mock_engine.metrics import EngineMetrics
from hrl_planner.mock_engine.model import Limits, Warmup, Worker
from hrl_planner.mock_engine.server import Link, OpenAIServer, Parts
from hrl_planner.mock_engine.side_channel import listen
from hrl_planner.mock_engine.times import ProfileTimes
from hrl_planner.profile import WorkerProfile
from hrl_planner.prompt import PromptTokenizer, Tokenizer, WordTokenizer

log = logging.getLogger(__name__)

_KILLED_AT_ONCE = 128 + signal.SIGTERM
_DRAIN_POLL_S = 0.02


def run(config: EngineConfig) -> None:
    """Serve until a signal ends it."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    uvloop.run(MockEngine(config).serve())


class LoopClock:
    """The clock of the running event loop."""

    def __init__(self) -> None:
        """Take the running loop."""
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        """Return the loop's monotonic time."""
        return self._loop.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> object:
        """Call back at a time."""
        return self._loop.call_at(when, callback)


def make_limits(config: EngineConfig, profile: WorkerProfile) -> Limits:
    """Return what a profile's worker can take at once; raises when it can take nothing."""
    blocks = profile.kv_capacity_tokens // config.worker.block_size
    if blocks < 1:
        raise EngineError(
            f"--profile {config.worker.profile}: {profile.kv_capacity_tokens} KV tokens are less "
            f"than one block of {config.worker.block_size}; the weights leave no KV cache"
        )
    return Limits(
        max_num_seqs=config.worker.max_num_seqs,
        max_num_batched_tokens=config.worker.max_num_batched_tokens,
        kv_blocks=blocks,
        cache_blocks=blocks,
        cache_block_tokens=config.worker.block_size,
    )


class MockEngine:
    """Builds one engine from its config and serves it.

    Everything that can be wrong with the config is wrong here, before anything listens.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Read profile and tokenizer."""
        self._config = config
        worker = config.worker
        self._profile = WorkerProfile.load(worker.profile)
        self._limits = make_limits(config, self._profile)
        self._faults = parse_faults(config.faults)
        self._times = ProfileTimes(
            self._profile, worker.max_num_seqs, worker.latency_scale / worker.speed
        )
        self._tokenizer: PromptTokenizer = (
            Tokenizer.load(config.server.tokenizer) if config.server.tokenizer else WordTokenizer()
        )
        self._side_channel: asyncio.Server | None = None
        self._ending = asyncio.Event()
        self._signals = 0

    async def serve(self) -> None:
        """Listen, get ready, serve, drain."""
        parts = self._parts()
        runners: list[web.AppRunner] = []
        try:
            ports = await self._listen(parts, runners)
            print(json.dumps(self._announcement(parts, ports)), flush=True)
            await self._live(parts)
        finally:
            await self._close(parts, runners)

    # ---- building

    def _parts(self) -> Parts:
        config, speed = self._config, self._config.worker.speed
        life, transfer = config.life, config.transfer
        clock = LoopClock()
        warm_s = clock.now() + self._until_ready_s() + life.warmup_s / speed
        worker: Worker[Job] = Worker(
            self._limits, self._times, Warmup(warm_s, life.warmup_slowdown)
        )
        identity = self._identity()
        metrics = EngineMetrics(identity.model, identity.max_model_len)
        events = None
        if config.events.port is not None:
            events = EventPublisher(config.events, config.server.host, config.worker.block_size)
        outbox = Outbox(clock.now)
        observers = [outbox.on_step, metrics.on_step, *([events.on_step] if events else [])]
        engine = Engine(worker, clock, observers, on_pause=outbox.flush)
        metrics.watch(engine)
        parts = Parts(
            identity=identity,
            engine=engine,
            tokenizer=self._tokenizer,
            metrics=metrics,
            leases=Leases(uuid.uuid4().hex, transfer.lease_s),
            rooms=Rooms(transfer.lease_s),
            peers=Peers(transfer.room_timeout_s),
            link=Link(
                transfer.latency_ms * 1e-3 / speed,
                self._profile.model_kv_bytes_per_token
                / (transfer.bandwidth_gb_per_s * 1e9)
                / speed,
            ),
            outbox=outbox,
            events=events,
            die=self._die_soon,
        )
        self._set_faults(parts, self._faults)
        if config.allow_faults:
            parts.on_faults = lambda faults: self._set_faults(parts, faults)
        return parts

    def _identity(self) -> Identity:
        config = self._config
        kv_tokens = self._limits.kv_blocks * config.worker.block_size
        longest = config.server.max_model_len or kv_tokens
        return Identity(
            model=config.server.model or self._profile.model,
            role=config.worker.role,
            default_osl=config.server.default_osl,
            max_model_len=min(longest, kv_tokens),
            block_size=config.worker.block_size,
            tp_size=self._profile.tp,
            address=_reachable(config.server.host),
        )

    def _set_faults(self, parts: Parts, faults: Faults) -> None:
        if faults != parts.faults:
            log.warning("faults: %s", faults)
        parts.faults = faults
        self._times.slowdown = faults.slow
        parts.engine.hang(faults.hang)

    def _die_soon(self) -> None:
        # Not at once: the last tokens are still in the loop's hands.
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGKILL)

    # ---- listening

    async def _listen(self, parts: Parts, runners: list[web.AppRunner]) -> dict[str, int | None]:
        server, host = OpenAIServer(parts), self._config.server.host
        port = await _start(server.app(), host, self._config.server.port, "port", runners)
        self._side_channel, parts.side_channel_port = await listen(host, parts.leases.claim)
        bootstrap = None
        if self._config.worker.role == "prefill":
            wanted = self._config.transfer.bootstrap_port
            app = server.bootstrap_app()
            bootstrap = await _start(app, host, wanted, "bootstrap-port", runners)
        return {
            "port": port,
            "side_channel_port": parts.side_channel_port,
            "bootstrap_port": bootstrap,
            "kv_events_port": parts.events.port if parts.events else None,
            "kv_replay_port": parts.events.replay_port if parts.events else None,
        }

    def _announcement(self, parts: Parts, ports: dict[str, int | None]) -> dict[str, object]:
        return {
            "host": self._config.server.host,
            **ports,
            "role": parts.identity.role,
            "model": parts.identity.model,
            "engine_id": parts.leases.engine_id,
            "pid": os.getpid(),
        }

    # ---- living

    async def _live(self, parts: Parts) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        try:
            async with asyncio.timeout(self._until_ready_s()):
                await self._ending.wait()
        except TimeoutError:
            parts.life = Life.READY
            await self._ending.wait()
        parts.life = Life.DRAINING
        await self._drain(parts)

    def _until_ready_s(self) -> float:
        """Starting the interpreter is a part of starting the engine."""
        return max(self._config.life.startup_s / self._config.worker.speed - _age_s(), 0.0)

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            os._exit(_KILLED_AT_ONCE)
        self._ending.set()

    async def _drain(self, parts: Parts) -> None:
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + self._config.life.drain_timeout_s
        while parts.in_flight or len(parts.leases) or len(parts.rooms):
            if loop.time() >= ends_s:
                log.warning("drain timed out: %d requests are cut off", parts.in_flight)
                return
            await asyncio.sleep(_DRAIN_POLL_S)

    async def _close(self, parts: Parts, runners: list[web.AppRunner]) -> None:
        for runner in runners:
            await runner.cleanup()
        if self._side_channel is not None:
            self._side_channel.close()
        await parts.peers.close()
        if parts.events is not None:
            parts.events.close()


def _age_s() -> float:
    """How long this process exists; 0 where the system does not tell."""
    try:
        started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")


async def _start(
    app: web.Application, host: str, port: int, option: str, runners: list[web.AppRunner]
) -> int:
    # handler_cancellation: a client that goes away must free its place. What is still open after
    # the drain is to be cut off.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    runners.append(runner)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise EngineError(
            f"--{option} {port}: cannot listen on {host}: {error.strerror}"
        ) from error
    bound: int = runner.addresses[0][1]
    return bound


def _reachable(host: str) -> str:
    """Return an address others reach this host by; a wildcard is none."""
    if host not in ("0.0.0.0", "::"):
        return host
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        log.warning(
            "this host's name has no address (%s): KV caches are offered on loopback", error
        )
        return "127.0.0.1"
