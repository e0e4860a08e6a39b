"""What a load run is told: where to send, and how.

Plain frozen data, checked where it is made, so that a bad option is a message and not a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from hrl_planner.errors import LoadError

Api = Literal["completions", "chat"]
PromptForm = Literal["words", "ids"]

# Every token of it is written out before the first request; the largest models know 300,000.
_LEAST_VOCABULARY, _MOST_VOCABULARY = 1000, 1_000_000

WORKER_HEADERS = ("x-hrl-worker", "x-worker", "x-upstream-host")


def _check(holds: bool, name: str, value: object, want: str) -> None:
    if not holds:
        raise LoadError(f"{name} {value}: {want}")


@dataclass(frozen=True)
class Target:
    """The endpoint.

    Attributes:
        url: `http://host:port` of an OpenAI-compatible server.
        model: sent as `model`.
        api: `/v1/completions` or `/v1/chat/completions`.
        prompt: "words" sends text of one token per word, `t12 t873`, for the word tokenizer of mock
            engines and tokenizers like it; "ids" sends token ids, which only completions take.
        headers: sent with every request, as `Authorization`.
        vocabulary: token ids and numbers of words stay below it; 1000 to 1,000,000.
        worker_headers: headers of the answer that may name the worker; the first found counts.
    """

    url: str
    model: str
    api: Api = "completions"
    prompt: PromptForm = "words"
    headers: Mapping[str, str] = field(default_factory=dict)
    vocabulary: int = 32_000
    worker_headers: tuple[str, ...] = WORKER_HEADERS

    def __post_init__(self) -> None:
        """Refuse what cannot be sent."""
        _check(self.api in get_args(Api), "api", self.api, "completions or chat")
        _check(self.prompt in get_args(PromptForm), "prompt", self.prompt, "words or ids")
        _check(
            self.prompt == "words" or self.api == "completions",
            "prompt",
            self.prompt,
            "token ids can be sent to the completions API only",
        )
        _check(
            _LEAST_VOCABULARY <= self.vocabulary <= _MOST_VOCABULARY,
            "vocabulary",
            self.vocabulary,
            f"{_LEAST_VOCABULARY} to {_MOST_VOCABULARY}",
        )
        for name, value in self.headers.items():
            text = f"{name}{value}"
            _check(
                bool(name)
                and text.isascii()
                and not ({"\r", "\n"} & set(text))
                and ":" not in name,
                "header",
                f"{name}: {value}",
                "not a header (ASCII, on one line)",
            )


@dataclass(frozen=True)
class Pace:
    """Open loop: requests are sent when the trace says, whatever becomes of those before.

    Attributes:
        speed: the trace's time runs this many times faster.
    """

    speed: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a speed at which nothing would come."""
        _check(0 < self.speed < math.inf, "speed", self.speed, "a number above 0")


@dataclass(frozen=True)
class Closed:
    """Closed loop: so many requests at a time, each end followed by the next request.

    The trace's arrival times mean nothing; its requests are taken in order, over and over.

    Attributes:
        concurrency: requests at a time.
        requests: stop after so many; None is the trace once, or no bound where `duration_s` is.
        duration_s: send no more after so many seconds.
    """

    concurrency: int
    requests: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse a loop that does nothing."""
        _check(self.concurrency >= 1, "concurrency", self.concurrency, "at least 1")
        _check(self.requests is None or self.requests >= 1, "requests", self.requests, "at least 1")
        _check(
            self.duration_s is None or 0 < self.duration_s < math.inf,
            "duration",
            self.duration_s,
            "a finite number above 0",
        )


@dataclass(frozen=True)
class LoadOptions:
    """How requests are sent and judged.

    Attributes:
        loop: open (`Pace`) or closed (`Closed`).
        stream: whether answers are streamed; if not, TTFT is the time of the whole answer.
        send_slo: whether bodies carry the class's targets (`nvext.router`).
        seed: draws classes and prompts. Runs with one seed send the same prompts, and the second
            finds the prefix caches warm.
        timeout_s: what a request gets, from sending to its last byte.
        grace_s: what running requests get after the last was sent.
        engine_speed: engines run this many times faster than life (mock engines can); measured
            times are multiplied by it before they are judged and reported.
    """

    loop: Pace | Closed = Pace()
    stream: bool = True
    send_slo: bool = True
    seed: int = 0
    timeout_s: float = 600.0
    grace_s: float = 120.0
    engine_speed: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what makes no run."""
        _check(self.seed >= 0, "seed", self.seed, "not negative")
        _check(self.timeout_s > 0, "timeout", self.timeout_s, "above 0 s")
        _check(self.grace_s >= 0, "grace", self.grace_s, "not negative")
        _check(0 < self.engine_speed < math.inf, "engine-speed", self.engine_speed, "above 0")
