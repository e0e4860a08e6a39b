"""What one mock engine is: a worker, its server, its links, its life, its faults.

Plain frozen data, checked where it is made, so that a bad option is a message and not a traceback.
All times are of the simulated worker; `WorkerConfig.speed` divides each of them where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hrl_planner.errors import EngineError

Role = Literal["prefill", "decode", "aggregated"]
EventsFormat = Literal["array", "map"]


def _check(holds: bool, option: str, value: object, want: str) -> None:
    if not holds:
        raise EngineError(f"--{option} {value}: {want}")


@dataclass(frozen=True)
class WorkerConfig:
    """The worker that is played.

    Attributes:
        profile: name of a shipped profile, or path of an .npz file.
        role: what the worker is meant for; every role can serve a plain request.
        block_size: tokens per KV block.
        latency_scale: multiplies every step time, as a pool's in a spec.
        speed: divides every time, so that a long trace takes less of an afternoon.
    """

    profile: str
    role: Role = "aggregated"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    block_size: int = 16
    latency_scale: float = 1.0
    speed: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a worker that cannot exist."""
        _check(self.max_num_seqs >= 1, "max-num-seqs", self.max_num_seqs, "at least 1")
        _check(
            self.max_num_batched_tokens > self.max_num_seqs,
            "max-num-batched-tokens",
            self.max_num_batched_tokens,
            f"must exceed --max-num-seqs {self.max_num_seqs}: each running request takes one token "
            "of the budget, and none would be left for prompts",
        )
        _check(self.block_size >= 1, "block-size", self.block_size, "at least 1 token")
        _check(self.latency_scale > 0, "latency-scale", self.latency_scale, "above 0")
        _check(self.speed > 0, "speed", self.speed, "above 0")


@dataclass(frozen=True)
class ServerConfig:
    """The OpenAI server in front of the worker.

    Attributes:
        port: 0 takes a free one.
        model: name it serves under; the profile's model where empty.
        tokenizer: model directory or tokenizer.json; one token per word where None.
        default_osl: tokens of an answer to a request that names no maximum.
        max_model_len: prompt and answer together; as much as the KV cache holds where None.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model: str = ""
    tokenizer: Path | None = None
    default_osl: int = 128
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        """Refuse a server that cannot exist."""
        _check(0 <= self.port <= 65535, "port", self.port, "0 to 65535")
        _check(self.default_osl >= 1, "default-osl", self.default_osl, "at least 1 token")
        if self.max_model_len is not None:
            _check(self.max_model_len >= 2, "max-model-len", self.max_model_len, "at least 2")


@dataclass(frozen=True)
class TransferConfig:
    """How KV caches move from prefill to decode workers.

    Attributes:
        lease_s: how long a prefill worker keeps a prompt's KV cache for a decode worker.
        bootstrap_port: where a prefill worker tells SGLang rooms; 0 takes a free one.
        room_timeout_s: how long a decode worker waits for its room.
    """

    bandwidth_gb_per_s: float = 50.0
    latency_ms: float = 2.0
    lease_s: float = 30.0
    bootstrap_port: int = 0
    room_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        """Refuse a link that cannot exist."""
        _check(
            self.bandwidth_gb_per_s > 0, "kv-bandwidth-gb-per-s", self.bandwidth_gb_per_s, "above 0"
        )
        _check(self.latency_ms >= 0, "kv-latency-ms", self.latency_ms, "not negative")
        _check(self.lease_s > 0, "kv-lease-s", self.lease_s, "above 0")
        _check(self.room_timeout_s > 0, "room-timeout-s", self.room_timeout_s, "above 0")


@dataclass(frozen=True)
class EventsConfig:
    """Where KV events are published; None is nowhere, 0 takes a free port."""

    port: int | None = None
    replay_port: int | None = None
    topic: str = ""
    format: EventsFormat = "array"
    buffer_batches: int = 10_000  # kept for replay

    def __post_init__(self) -> None:
        """Refuse a replay of nothing."""
        _check(
            self.port is not None or self.replay_port is None,
            "kv-replay-port",
            self.replay_port,
            "there is nothing to replay without --kv-events-port",
        )


@dataclass(frozen=True)
class LifeConfig:
    """From start to end.

    Attributes:
        startup_s: age of the process at which the engine is ready.
        warmup_s: from then on, steps take `warmup_slowdown` times as long.
        drain_timeout_s: what running requests get after SIGTERM.
    """

    startup_s: float = 0.0
    warmup_s: float = 0.0
    warmup_slowdown: float = 1.0
    drain_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse a life that runs backwards."""
        for option in ("startup_s", "warmup_s", "drain_timeout_s"):
            value = getattr(self, option)
            _check(value >= 0, option.replace("_", "-"), value, "not negative")
        _check(self.warmup_slowdown >= 1, "warmup-slowdown", self.warmup_slowdown, "at least 1")


@dataclass(frozen=True)
class EngineConfig:
    """One mock engine."""

    worker: WorkerConfig
    server: ServerConfig = field(default_factory=ServerConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    life: LifeConfig = field(default_factory=LifeConfig)
    faults: tuple[str, ...] = ()
    allow_faults: bool = False
