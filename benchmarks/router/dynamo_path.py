"""Dynamo's global router path over 2 + 2 pools of its own mock engines, as NVIDIA documents it.

    frontend -> global router -> a KV router per pool -> 2 mockers per pool
    pools: prefill fast and cheap, decode fast and cheap (speed-up 2 and 0.5)

Everything is Dynamo's own code from its own environment (`make dynamo-venv`); ours is only the
model directory (a word tokenizer and the shapes of Llama 8B), the table of the global router and
the load. Discovery is through files and requests go over TCP, so that neither etcd nor NATS is
needed. ZMQ publishers of Dynamo bind all interfaces; everything else stays on loopback.

    python -m benchmarks.router.dynamo_path
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from agents.dynamo.client import PYTHON_VARIABLE, find_python
from benchmarks.router.loads import Measured, Shape, closed_loop, steady
from benchmarks.router.processes import Stack, free_port
from hrl_planner.errors import PolicyError
from hrl_planner.load import SloTarget

MODEL = "tiny"  # also the folder the global router finds the tokenizer in
BLOCK_TOKENS = 16
WORKERS_PER_POOL = 2
POOLS = {
    "pfast": ("prefill", 2.0),
    "pcheap": ("prefill", 0.5),
    "dfast": ("decode", 2.0),
    "dcheap": ("decode", 0.5),
}
DEFAULT_TTFT_MS, DEFAULT_ITL_MS = 300, 30
# Each pair of targets goes to another pair of pools, so that all four have work.
CLASSES = (
    SloTarget("strict", 100.0, 10.0),
    SloTarget("patient-start", 390.0, 10.0),
    SloTarget("patient-stream", 100.0, 39.0),
    SloTarget("patient", 390.0, 39.0),
)
VOCABULARY = 32_000

_START_S = 120.0
# As Dynamo's recipes for pools behind a global router set them.
_ROUTER_OPTIONS = {
    "prefill": ("--no-router-track-active-blocks",),
    "decode": ("--no-router-kv-events", "--no-router-assume-kv-reuse"),
}

GLOBAL_ROUTER = {
    "mode": "disagg",
    "enable_priority_retry": True,
    "num_prefill_pools": 2,
    "num_decode_pools": 2,
    "prefill_pool_dynamo_namespaces": ["pfast", "pcheap"],
    "decode_pool_dynamo_namespaces": ["dfast", "dcheap"],
    "prefill_pool_priorities": [0, 1],
    "decode_pool_priorities": [0, 1],
    "prefill_pool_selection_strategy": {
        "isl_min": 0,
        "isl_max": 4000,
        "isl_resolution": 2,
        "ttft_min_ms": 0,
        "ttft_max_ms": 400,
        "ttft_resolution": 2,
        "prefill_pool_mapping": [[0, 1], [0, 0]],
    },
    "decode_pool_selection_strategy": {
        "context_length_min": 0,
        "context_length_max": 4000,
        "context_length_resolution": 2,
        "itl_min_ms": 0,
        "itl_max_ms": 40,
        "itl_resolution": 2,
        "decode_pool_mapping": [[0, 1], [0, 1]],
    },
}


@dataclass(frozen=True)
class DynamoPath:
    """What Dynamo's path did.

    Attributes:
        version: of ai-dynamo.
        low_rate: a few requests a second.
        closed: by requests at a time.
    """

    version: str
    low_rate: Measured
    closed: dict[int, Measured]

    @property
    def saturated(self) -> Measured:
        """The run with the most requests per second."""
        return max(self.closed.values(), key=lambda run: run.requests_rps)


def measure(
    duration_s: float = 15.0,
    low_rate_rps: float = 3.0,
    concurrencies: Sequence[int] = (64, 128, 256),
) -> DynamoPath | str:
    """Start the stack, load it, stop it; a sentence instead where Dynamo is not installed."""
    found = find()
    if isinstance(found, str):
        return found
    python, version = found
    with serving(python) as (stack, url):

        def engines_cpu_s() -> float:
            return stack.cpu_s("worker-")

        low = steady(
            url, MODEL, Shape(api="chat", classes=CLASSES, seed=1),
            rate_rps=low_rate_rps, duration_s=duration_s,
            cpu_s=stack.cpu_s, engines_cpu_s=engines_cpu_s,
        )  # fmt: skip
        closed = {
            n: closed_loop(
                url, MODEL, Shape(api="chat", classes=CLASSES, seed=n),
                concurrency=n, duration_s=duration_s,
                cpu_s=stack.cpu_s, engines_cpu_s=engines_cpu_s,
            )
            for n in concurrencies
        }  # fmt: skip
    return DynamoPath(version, low, closed)


def find() -> tuple[Path, str] | str:
    """The interpreter with Dynamo and Dynamo's version, or why there is none."""
    how = f"`make dynamo-venv` makes one, {PYTHON_VARIABLE}=/path/to/python names another"
    try:
        python = find_python()
    except PolicyError:
        return f"no interpreter with ai-dynamo; {how}"
    probe = (
        "import importlib.metadata, dynamo.frontend, dynamo.mocker, dynamo.router, "
        "dynamo.global_router; print(importlib.metadata.version('ai-dynamo'))"
    )
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"{python} cannot run Dynamo's routers ({last}); {how}"
    return python, done.stdout.strip().splitlines()[-1]


@contextmanager
def serving(python: Path) -> Iterator[tuple[Stack, str]]:
    """The whole path, up and answering; yields it and the frontend's URL."""
    with tempfile.TemporaryDirectory(prefix="dynamo-path-") as name:
        folder = Path(name)
        write_model(folder / MODEL)
        table = folder / "global_router.json"
        table.write_text(json.dumps(GLOBAL_ROUTER))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with Stack(folder, environment(folder)) as stack:
            for part, module, *options in _parts(table, port):
                stack.start(part, [str(python), "-m", module, *options], _namespace(part))
            stack.wait_for(f"{url}/v1/models", f'"{MODEL}"', _START_S)
            for slo in CLASSES:  # together they meet every pool
                stack.wait_for_post(f"{url}/v1/chat/completions", _probe(slo), _START_S)
            yield stack, url


def _probe(slo: SloTarget) -> bytes:
    promised = {"ttft_target": slo.ttft_ms, "itl_target": slo.itl_ms}
    message = {"role": "user", "content": "t1 t2"}
    body = {"model": MODEL, "max_tokens": 2, "messages": [message], "nvext": {"router": promised}}
    return json.dumps(body).encode()


def environment(folder: Path) -> dict[str, str]:
    """What every process of Dynamo's is told: files and TCP, loopback, no hub."""
    hosts = ("TCP_RPC", "TCP_RESPONSE_STREAM", "EVENT_PLANE", "HTTP", "SYSTEM")
    return {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(folder / "kv"),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        **{f"DYN_{host}_HOST": "127.0.0.1" for host in hosts},
        "HOME": str(folder),  # it writes to ~/.cache
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "DYN_LOG": "warn",
    }


def _namespace(part: str) -> dict[str, str]:
    pool = part.partition("-")[2].rpartition("-")[0]
    return {"DYN_NAMESPACE": pool} if part.startswith("worker-") else {}


def _parts(table: Path, port: int) -> Iterator[tuple[str, ...]]:
    """Name, module and options of every process."""
    block = str(BLOCK_TOKENS)
    yield (
        *("frontend", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)),
        *("--router-mode", "round-robin", "--namespace", "dynamo"),
    )
    for pool, (role, speed) in POOLS.items():
        endpoint = f"{pool}.worker.generate"
        for i in range(WORKERS_PER_POOL):
            yield (
                *(f"worker-{pool}-{i}", "dynamo.mocker", "--model-path", str(table.parent / MODEL)),
                *("--model-name", MODEL, "--block-size", block, "--kv-transfer-bandwidth", "400"),
                *("--endpoint", f"dyn://{endpoint}", "--disaggregation-mode", role),
                *("--speedup-ratio", str(speed)),
            )
        yield (
            *(f"router-{pool}", "dynamo.router", "--endpoint", endpoint),
            *("--router-block-size", block),
            *_ROUTER_OPTIONS[role],
        )
    yield (
        *("global-router", "dynamo.global_router", "--config", str(table), "--model-name", MODEL),
        *("--namespace", "dynamo", "--default-ttft-target-ms", str(DEFAULT_TTFT_MS)),
        *("--default-itl-target-ms", str(DEFAULT_ITL_MS)),
    )


def write_model(folder: Path) -> None:
    """A model directory without weights: one token per word, the shapes of Llama 3.1 8B."""
    folder.mkdir()
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    words = [*special, *(f"t{n}" for n in range(VOCABULARY - len(special)))]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in _MODEL_FILES.items():
        (folder / name).write_text(json.dumps(content))


_MODEL_FILES: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "model_max_length": 131072,
        "chat_template": (
            "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}"
        ),
    },
    "config.json": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    },
    "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "max_new_tokens": 512},
}


def main() -> None:
    """Measure and print, or say what is missing."""
    path = measure()
    if isinstance(path, str):
        print(f"Dynamo's path skipped: {path}")
        return
    print(f"Dynamo {path.version}, low rate: {path.low_rate}")
    for concurrency, run in path.closed.items():
        print(f"Dynamo {path.version}, {concurrency} x 1000/64: {run}")


if __name__ == "__main__":
    main()
