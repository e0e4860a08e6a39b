"""The requests of a trace as bytes to send: prompts with the prefixes the trace tells of.

A block id of a trace stands for a whole prefix, so its tokens are a pure function of the id (and of
the run's seed): whoever begins with the same ids begins with the same tokens. What no block covers
is unique to the request and, where a closed loop goes through the trace again, to the round. The
function is a counter-based hash, so nothing is stored and any process gives the same.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hrl_planner.load.connection import Address
from hrl_planner.load.options import LoadOptions, PromptForm, Target
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import Trace, assign_classes

_RESERVED_IDS = 256  # tokenizers keep their special tokens there
_CACHED_BLOCKS = 4096  # some 12 MB of words at 512 tokens a block

# What is hashed besides the seed, so that blocks and single requests never meet.
_OF_BLOCK, _OF_REQUEST = 1, 2

CLASS_HEADER = "x-slo-class"


@dataclass(frozen=True, slots=True)
class SloTarget:
    """What a kind of requests was promised.

    Attributes:
        name: sent as `x-slo-class`, which is left out where the name is empty.
        ttft_ms: infinite is no promise.
        itl_ms: infinite is no promise.
    """

    name: str = ""
    ttft_ms: float = float("inf")
    itl_ms: float = float("inf")


@dataclass(frozen=True, eq=False)
class Offered:
    """A trace with a promise for every request.

    Attributes:
        trace: the requests.
        classes: the promises.
        class_id: int16 (N,), index in `classes`.
    """

    trace: Trace
    classes: tuple[SloTarget, ...]
    class_id: NDArray[np.int16]


def offer(trace: Trace, spec: ClusterSpec, seed: int) -> Offered:
    """Give every request its class by a spec, as the simulator does with the same seed."""
    classes = tuple(SloTarget(c.name, c.ttft_ms, c.itl_ms) for c in spec.slo_classes)
    return Offered(trace, classes, assign_classes(trace, spec, seed))


def offer_as(trace: Trace, target: SloTarget) -> Offered:
    """Give every request one promise."""
    return Offered(trace, (target,), np.zeros(len(trace), dtype=np.int16))


class Prompts:
    """The prompts of a trace, written out.

    Args:
        trace: prefix blocks and prompt lengths.
        form: "words" or "ids".
        vocabulary: token ids, and numbers of words, stay below it.
        seed: other prompts for another seed.
    """

    def __init__(self, trace: Trace, form: PromptForm, vocabulary: int, seed: int) -> None:
        self._trace = trace
        self._seed = seed
        self._separator = b" " if form == "words" else b","
        self._different = vocabulary - _RESERVED_IDS
        pattern = b"t%d" if form == "words" else b"%d"
        self._tokens = [pattern % n for n in range(_RESERVED_IDS, vocabulary)]
        self._block = lru_cache(maxsize=_CACHED_BLOCKS)(self._write_block)

    def text(self, row: int, round_: int = 0) -> bytes:
        """The prompt of a request: what its blocks stand for, then what is its own.

        Args:
            row: request of the trace.
            round_: how often the trace has been gone through; blocks stay, the rest is new.
        """
        trace = self._trace
        length, block_tokens = int(trace.isl_tokens[row]), trace.block_tokens
        begin, end = trace.block_offsets[row : row + 2].tolist()
        blocks = trace.block_ids[begin:end].tolist()
        whole = min(len(blocks), length // block_tokens)
        parts = [self._block(i) for i in blocks[:whole]]
        rest = length - whole * block_tokens
        if rest and whole < len(blocks):  # the last block of a prompt may only be begun
            parts.append(self._write(_OF_BLOCK, blocks[whole], rest))
        elif rest:
            parts.append(self._write(_OF_REQUEST, round_ * len(trace) + row, rest))
        return self._separator.join(parts)

    def _write_block(self, block_id: int) -> bytes:
        return self._write(_OF_BLOCK, block_id, self._trace.block_tokens)

    def _write(self, space: int, key: int, count: int) -> bytes:
        start = _mix(_mix(self._seed * 4 + space) ^ key)
        counter = np.arange(count, dtype=np.uint64) + np.uint64(start)
        drawn = (_mix_all(counter) % np.uint64(self._different)).tolist()
        return self._separator.join([self._tokens[n] for n in drawn])


# The finaliser of splitmix64 (Steele, Lea, Flood 2014), on one number and on many.
_GOLDEN, _M1, _M2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1


def _mix(value: int) -> int:
    z = (value + _GOLDEN) & _WORD
    z = ((z ^ (z >> 30)) * _M1) & _WORD
    z = ((z ^ (z >> 27)) * _M2) & _WORD
    return z ^ (z >> 31)


def _mix_all(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = values + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_M1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_M2)
    return z ^ (z >> np.uint64(31))


class RequestWriter:
    """Writes the requests of a trace as HTTP/1.1.

    Args:
        offered: requests and promises.
        target: where they go.
        options: what they ask for.
    """

    def __init__(self, offered: Offered, target: Target, options: LoadOptions) -> None:
        trace = offered.trace
        self._osl: list[int] = trace.osl_tokens.tolist()
        self._class_id: list[int] = offered.class_id.tolist()
        self._prompts = Prompts(trace, target.prompt, target.vocabulary, options.seed)
        chat = target.api == "chat"
        if chat:
            self._open, self._close = b'"messages":[{"role":"user","content":"', b'"}]'
        elif target.prompt == "words":
            self._open, self._close = b'"prompt":"', b'"'
        else:
            self._open, self._close = b'"prompt":[', b"]"
        self._bodies = [_body_start(target, options, slo) for slo in offered.classes]
        path = "/v1/chat/completions" if chat else "/v1/completions"
        self._heads = [_head_start(target, path, slo) for slo in offered.classes]

    def write(self, row: int, round_: int = 0) -> bytes:
        """The bytes of one request; see `Prompts.text`."""
        class_id = self._class_id[row]
        body = b'%b"max_tokens":%d,%b%b%b}' % (
            self._bodies[class_id],
            self._osl[row],
            self._open,
            self._prompts.text(row, round_),
            self._close,
        )
        return b"%bcontent-length: %d\r\n\r\n%b" % (self._heads[class_id], len(body), body)


def _body_start(target: Target, options: LoadOptions, slo: SloTarget) -> bytes:
    body: dict[str, object] = {
        "model": target.model,
        "stream": options.stream,
        "ignore_eos": True,
    }
    if options.stream:
        body["stream_options"] = {"include_usage": True}
    promised = {
        name: ms
        for name, ms in (("ttft_target", slo.ttft_ms), ("itl_target", slo.itl_ms))
        if math.isfinite(ms)
    }
    if promised and options.send_slo:
        body["nvext"] = {"router": promised}
    return json.dumps(body, separators=(",", ":")).encode()[:-1] + b","


def _head_start(target: Target, path: str, slo: SloTarget) -> bytes:
    headers = {
        "host": Address.parse(target.url).authority,
        "content-type": "application/json",
        **({CLASS_HEADER: slo.name} if slo.name else {}),
        **{name.lower(): value for name, value in target.headers.items()},
    }
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join((*lines, "")).encode("utf-8")
