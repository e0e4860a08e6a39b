"""A whole spec as mock engines: one process per worker, and the file by which a router finds them.

For trying a router, and for the tests and benchmarks of ours. Engines are started together, their
ports read from the line each prints, and all end with this process or when `stop` is called.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hrl_planner.errors import EngineError
from hrl_planner.spec import ClusterSpec, PoolSpec

_STOP_S = 10.0


@dataclass
class MockWorker:
    """A running engine.

    Attributes:
        name: `POOL-NUMBER`.
        pool: its pool.
        ports: what it printed at its start: `port`, `kv_events_port`, ...
        process: the process.
        draining: what the workers file says.
    """

    name: str
    pool: str
    ports: dict[str, int]
    process: asyncio.subprocess.Process
    draining: bool = False

    @property
    def address(self) -> str:
        """`ip:port` of its OpenAI server."""
        return f"127.0.0.1:{self.ports['port']}"

    def entry(self, engine: str) -> dict[str, object]:
        """Return its entry of a workers file."""
        found: dict[str, object] = {
            "name": self.name,
            "pool": self.pool,
            "address": self.address,
            "draining": self.draining,
            "engine": engine,
        }
        for key in ("kv_events", "kv_replay"):
            if self.ports.get(f"{key}_port"):
                found[key] = f"tcp://127.0.0.1:{self.ports[f'{key}_port']}"
        if self.ports.get("bootstrap_port"):
            found["bootstrap"] = f"127.0.0.1:{self.ports['bootstrap_port']}"
        return found


@dataclass
class MockCluster:
    """The engines of a spec.

    Attributes:
        spec: the cluster.
        workers_file: written after every change.
        events: whether engines publish KV events.
        speed: divides all times.
        engine: hand-off the router should use, `vllm` or `sglang`.
        options: more options for every engine.
        flows: class-to-pool weights for the workers file.
    """

    spec: ClusterSpec
    workers_file: Path
    events: bool = True
    speed: float = 1.0
    engine: str = "vllm"
    options: Sequence[str] = ()
    flows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    workers: dict[str, MockWorker] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    async def start(self, counts: Mapping[str, int] | None = None) -> None:
        """Start `counts` engines per pool, as many as the spec begins with where it is silent."""
        wanted = {pool.name: pool.initial for pool in self.spec.pools} | dict(counts or {})
        pools = [pool for pool in self.spec.pools for _ in range(wanted[pool.name])]
        await asyncio.gather(*(self._launch(pool) for pool in pools))
        self.write()

    async def add(self, pool_name: str, *options: str) -> MockWorker:
        """Start one more engine of a pool."""
        worker = await self._launch(self.spec.pools[self.spec.pool_index(pool_name)], *options)
        self.write()
        return worker

    async def drain(self, name: str) -> None:
        """Let an engine finish its requests and end, as a pod that is deleted does."""
        worker = self.workers[name]
        worker.draining = True
        self.write()
        worker.process.send_signal(signal.SIGTERM)
        await worker.process.wait()
        self.forget(name)

    def kill(self, name: str) -> None:
        """Kill an engine; the workers file still names it until `forget`."""
        self.workers[name].process.kill()

    def forget(self, name: str) -> None:
        """Take an engine out of the workers file."""
        del self.workers[name]
        self.write()

    async def stop(self) -> None:
        """End all engines."""
        for worker in self.workers.values():
            if worker.process.returncode is None:
                worker.process.kill()
        for worker in self.workers.values():
            await asyncio.wait_for(worker.process.wait(), _STOP_S)
        self.workers.clear()

    def write(self) -> None:
        """Write the workers file, in one step."""
        data = {
            "workers": [self.workers[name].entry(self.engine) for name in sorted(self.workers)],
            "flows": {name: dict(row) for name, row in self.flows.items()},
        }
        self.workers_file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.workers_file.with_suffix(".tmp")
        draft.write_text(yaml.safe_dump(data, sort_keys=False))
        draft.replace(self.workers_file)

    async def _launch(self, pool: PoolSpec, *options: str) -> MockWorker:
        number = self._numbers.get(pool.name, 0)
        self._numbers[pool.name] = number + 1
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hrl_planner.cli",
            *engine_command(self.spec, pool, self.speed, self.events),
            *self.options,
            *options,
            stdout=asyncio.subprocess.PIPE,
            # One engine is one busy loop: threads of numeric libraries would only wait.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise EngineError(
                f"an engine of pool {pool.name} ended with status {await process.wait()}"
            )
        name = f"{pool.name}-{number}"
        worker = MockWorker(name, pool.name, json.loads(line), process)
        self.workers[name] = worker
        return worker


def engine_command(spec: ClusterSpec, pool: PoolSpec, speed: float, events: bool) -> list[str]:
    """Return the arguments of `hrl-planner` that run one worker of a pool."""
    arguments = [
        "mock-engine",
        "--port=0",
        f"--profile={pool.profile}",
        f"--role={pool.role}",
        f"--model={spec.model}",
        f"--max-num-seqs={pool.max_num_seqs}",
        f"--max-num-batched-tokens={pool.max_num_batched_tokens}",
        f"--latency-scale={pool.latency_scale}",
        f"--block-size={spec.kv_block_tokens}",
        f"--kv-bandwidth-gb-per-s={spec.kv_transfer.bandwidth_gb_per_s}",
        f"--kv-latency-ms={spec.kv_transfer.latency_ms}",
        f"--speed={speed}",
    ]
    if events:
        arguments += ["--kv-events-port=0", "--kv-replay-port=0"]
    return arguments
