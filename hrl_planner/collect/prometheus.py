"""Samples from a Prometheus that scrapes the workers, for clusters where planners may not.

Per round and 200 targets two queries to `/api/v1/query`:

    {__name__=~"(?:vllm:num_requests_running|...).*", pod=~"a|b|...", SELECTOR}
    timestamp(up{pod=~"a|b|...", SELECTOR})

The first returns what the pages said last, the second when: a planner must not take for fresh what
Prometheus scraped a minute ago. Prometheus itself drops the series of a target whose scrape failed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from hrl_planner.collect.source import Heard, Target
from hrl_planner.errors import HrlPlannerError
from hrl_planner.worker_metrics import Series

log = logging.getLogger(__name__)
_AT_A_TIME = 200


class _Row(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]


class _Data(msgspec.Struct):
    result: list[_Row]


class _Answer(msgspec.Struct):
    data: _Data


_decoder = msgspec.json.Decoder(_Answer)


class PrometheusSource:
    """Asks a Prometheus, or anything with its HTTP API.

    Args:
        url: of the server, without `/api`.
        worker_label: the label that holds a target's name.
        selector: more label matchers, as in PromQL, without braces: `namespace="serving"`.
        headers: sent with every query, for example authorization.
        clock: time of the samples, seconds.
        timeout_s: for one query.

    Raises:
        HrlPlannerError: if the URL is none of a server.
    """

    def __init__(
        self,
        url: str,
        *,
        worker_label: str = "pod",
        selector: str = "",
        headers: dict[str, str] | None = None,
        clock: Callable[[], float] = time.time,
        timeout_s: float = 5.0,
    ) -> None:
        _check(url)
        self._url = url.rstrip("/") + "/api/v1/query"
        self._label = worker_label
        self._selector = f", {selector}" if selector else ""
        self._headers = headers or {}
        self._clock = clock
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._complaints: dict[tuple[str, ...], str] = {}  # by what was asked for

    async def start(self) -> None:
        """See Source."""
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=self._timeout_s)
        )

    async def close(self) -> None:
        """See Source."""
        if self._session is not None:
            await self._session.close()

    async def round(
        self, targets: Sequence[Target], prefixes: tuple[str, ...], within_s: float, heard: Heard
    ) -> None:
        """See Source."""
        names = "|".join(sorted(prefixes))
        complaint = ""
        for first in range(0, len(targets), _AT_A_TIME):
            some = targets[first : first + _AT_A_TIME]
            who = f'{self._label}=~"{"|".join(_literal(t.name) for t in some)}"{self._selector}'
            try:
                ages_s = {
                    row.metric[self._label]: row.value[0] - float(row.value[1])
                    for row in await self._query(f"timestamp(up{{{who}}})")
                    if self._label in row.metric
                }
                rows = await self._query(f'{{__name__=~"(?:{names}).*", {who}}}')
                self._tell(rows, ages_s, self._clock(), heard)
            except (aiohttp.ClientError, OSError, ValueError, msgspec.MsgspecError) as error:
                complaint = str(error) or repr(error)
        if complaint and complaint != self._complaints.get(prefixes):
            log.warning("prometheus does not answer: %s", complaint)
        self._complaints[prefixes] = complaint

    def _tell(
        self, rows: Sequence[_Row], ages_s: dict[str, float], now_s: float, heard: Heard
    ) -> None:
        series: dict[str, list[Series]] = {}
        for row in rows:
            worker = row.metric.get(self._label)
            if worker in ages_s:
                series.setdefault(worker, []).append(_series(row))
        for worker, found in series.items():
            heard(worker, now_s - max(0.0, ages_s[worker]), found)

    async def _query(self, query: str) -> list[_Row]:
        assert self._session is not None, "start() comes first"
        async with self._session.post(self._url, data={"query": query}) as response:
            response.raise_for_status()
            return _decoder.decode(await response.read()).data.result


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none, or half an IPv6 address
        good = False
    if not good:
        raise HrlPlannerError(
            f"prometheus: {url!r} is no URL of a server; it is like http://prometheus:9090"
        )


def _series(row: _Row) -> Series:
    labels = ",".join(
        f'{key}="{_escaped(value)}"' for key, value in row.metric.items() if key != "__name__"
    )
    return Series(row.metric.get("__name__", ""), labels, float(row.value[1]))


def _escaped(value: Any) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _literal(name: str) -> str:
    """Return a regular expression, in a PromQL string, that matches just this name."""
    return "".join(c if c.isalnum() or c in "-_" else f"\\\\x{{{ord(c):x}}}" for c in name)
