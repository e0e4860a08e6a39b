"""`hrl-planner mock-engine`: an OpenAI server that behaves like a worker, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_WORKER = "Worker"
_SERVER = "Server"
_HANDOFF = "Prefill/decode hand-off"
_EVENTS = "KV events"
_LIFE = "Life"
_FAULTS = "Faults"


def mock_engine(
    profile: Annotated[
        str,
        typer.Option(
            help="Worker to play: a shipped profile, or path of an .npz file.",
            rich_help_panel=_WORKER,
        ),
    ],
    role: Annotated[
        Literal["prefill", "decode", "aggregated"],
        typer.Option(help="What it is meant for.", rich_help_panel=_WORKER),
    ] = "aggregated",
    max_num_seqs: Annotated[
        int, typer.Option(help="Requests in one batch.", rich_help_panel=_WORKER)
    ] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Tokens in one step.", rich_help_panel=_WORKER)
    ] = 8192,
    block_size: Annotated[
        int, typer.Option(help="Tokens per KV block.", rich_help_panel=_WORKER)
    ] = 16,
    latency_scale: Annotated[
        float, typer.Option(help="Multiplies every step time.", rich_help_panel=_WORKER)
    ] = 1.0,
    speed: Annotated[
        float, typer.Option(help="Divides every time.", rich_help_panel=_WORKER)
    ] = 1.0,
    host: Annotated[
        str, typer.Option(help="Address to listen on.", rich_help_panel=_SERVER)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port of the server; 0: a free one.", rich_help_panel=_SERVER)
    ] = 8000,
    model: Annotated[
        str | None,
        typer.Option(
            help=r"Name to serve under. \[default: the profile's model]",
            show_default=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help=r"Model folder or tokenizer.json. \[default: a token per word]",
            show_default=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    default_osl: Annotated[
        int,
        typer.Option(help="Tokens of an answer without max_tokens.", rich_help_panel=_SERVER),
    ] = 128,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help=r"Tokens of prompt and answer. \[default: what the KV cache holds]",
            show_default=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    kv_bandwidth_gb_per_s: Annotated[
        float, typer.Option(help="Of the link between workers.", rich_help_panel=_HANDOFF)
    ] = 50.0,
    kv_latency_ms: Annotated[
        float, typer.Option(help="Of the link between workers.", rich_help_panel=_HANDOFF)
    ] = 2.0,
    kv_lease_s: Annotated[
        float,
        typer.Option(
            help="How long a prefill worker keeps a KV cache for a decode worker.",
            rich_help_panel=_HANDOFF,
        ),
    ] = 30.0,
    bootstrap_port: Annotated[
        int,
        typer.Option(
            help="Where a prefill worker tells SGLang rooms; 0: a free one.",
            rich_help_panel=_HANDOFF,
        ),
    ] = 0,
    room_timeout_s: Annotated[
        float,
        typer.Option(help="How long a decode worker waits for a room.", rich_help_panel=_HANDOFF),
    ] = 300.0,
    kv_events_port: Annotated[
        int | None,
        typer.Option(help="ZMQ PUB socket; 0: a free port.", rich_help_panel=_EVENTS),
    ] = None,
    kv_replay_port: Annotated[
        int | None,
        typer.Option(help="ZMQ ROUTER socket; 0: a free port.", rich_help_panel=_EVENTS),
    ] = None,
    kv_events_topic: Annotated[
        str, typer.Option(help="First frame of every message.", rich_help_panel=_EVENTS)
    ] = "",
    kv_events_format: Annotated[
        Literal["array", "map"],
        typer.Option(help="As vLLM until June 2026, or since.", rich_help_panel=_EVENTS),
    ] = "array",
    startup_s: Annotated[
        float,
        typer.Option(help="Of the process, until /health says 200.", rich_help_panel=_LIFE),
    ] = 0.0,
    warmup_s: Annotated[
        float, typer.Option(help="From then on, while steps are slow.", rich_help_panel=_LIFE)
    ] = 0.0,
    warmup_slowdown: Annotated[
        float, typer.Option(help="How many times as slow.", rich_help_panel=_LIFE)
    ] = 1.0,
    drain_timeout_s: Annotated[
        float,
        typer.Option(help="What running requests get after SIGTERM.", rich_help_panel=_LIFE),
    ] = 60.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="slow:FACTOR, hang, error:SHARE or die:after=TOKENS; may be repeated.",
            rich_help_panel=_FAULTS,
        ),
    ] = None,
    allow_faults: Annotated[
        bool,
        typer.Option("--allow-faults", help="Serve POST /fault.", rich_help_panel=_FAULTS),
    ] = False,
) -> None:
    """Serve OpenAI requests at the speed of a profile's worker: a vLLM to test routers with.

    Continuous batching, prefix cache, KV events, vLLM's metrics, hand-off between prefill and
    decode workers. Once it listens, one line of JSON on stdout tells the ports.

    [bold]Examples[/bold]

      hrl-planner mock-engine --profile llama31_8b__h100_sxm__tp1__vllm

      hrl-planner mock-engine --profile llama31_8b__l40s__tp1__vllm --role prefill --port 0
      --kv-events-port 0 --kv-replay-port 0
    """
    from hrl_planner.mock_engine.config import (
        EngineConfig,
        EventsConfig,
        LifeConfig,
        ServerConfig,
        TransferConfig,
        WorkerConfig,
    )
    from hrl_planner.mock_engine.process import run

    config = EngineConfig(
        worker=WorkerConfig(
            profile=profile,
            role=role,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            block_size=block_size,
            latency_scale=latency_scale,
            speed=speed,
        ),
        server=ServerConfig(
            host=host,
            port=port,
            model=model or "",
            tokenizer=tokenizer,
            default_osl=default_osl,
            max_model_len=max_model_len,
        ),
        transfer=TransferConfig(
            bandwidth_gb_per_s=kv_bandwidth_gb_per_s,
            latency_ms=kv_latency_ms,
            lease_s=kv_lease_s,
            bootstrap_port=bootstrap_port,
            room_timeout_s=room_timeout_s,
        ),
        events=EventsConfig(
            port=kv_events_port,
            replay_port=kv_replay_port,
            topic=kv_events_topic,
            format=kv_events_format,
        ),
        life=LifeConfig(
            startup_s=startup_s,
            warmup_s=warmup_s,
            warmup_slowdown=warmup_slowdown,
            drain_timeout_s=drain_timeout_s,
        ),
        faults=tuple(fault or ()),
        allow_faults=allow_faults,
    )
    run(config)
