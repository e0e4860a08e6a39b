"""A mock engine: an OpenAI server whose timing follows a worker profile.

For whoever builds or tests a router: continuous batching, prefix cache, the prefill/decode hand-off
of vLLM and SGLang, KV events, vLLM's metrics and faults on demand, without a GPU. `model` is one
worker step by step, `engine` plays it against a clock, `server` speaks HTTP, `process` is the whole
under one set of options (`config`). docs/mock-engine.md is the page for users.
"""

from hrl_planner.mock_engine.config import (
    EngineConfig,
    EventsConfig,
    LifeConfig,
    ServerConfig,
    TransferConfig,
    WorkerConfig,
)

__all__ = [
    "EngineConfig",
    "EventsConfig",
    "LifeConfig",
    "ServerConfig",
    "TransferConfig",
    "WorkerConfig",
]
