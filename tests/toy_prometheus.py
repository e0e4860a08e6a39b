"""A Prometheus as a planner sees one: scrapes real pages, answers instant queries for selectors."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, str]
_SELECTOR = re.compile(r"(timestamp\()?(\w*)\{(.*)\}\)?")
_MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|=|!=)\s*"((?:[^"\\]|\\.)*)"\s*,?')


@dataclass
class ToyPrometheus:
    """What it scrapes, and what it found.

    Attributes:
        targets: address to labels.
        queries: that were asked.
    """

    targets: Mapping[str, Labels]
    queries: list[str] = field(default_factory=list)
    _samples: dict[str, tuple[float, list[tuple[Labels, float]]]] = field(default_factory=dict)

    async def scrape(self) -> None:
        """Ask every target once; one that does not answer has no series but `up`."""
        async with aiohttp.ClientSession() as session:
            for address, labels in self.targets.items():
                found = []
                try:
                    async with session.get(f"http://{address}/metrics") as response:
                        page = await response.text()
                    for family in text_string_to_metric_families(page):
                        for s in family.samples:
                            found.append(({"__name__": s.name, **s.labels, **labels}, s.value))
                except aiohttp.ClientError:
                    pass
                up = ({"__name__": "up", **labels}, float(bool(found)))
                self._samples[address] = (time.time(), [up, *found])

    async def answer(self, request: web.Request) -> web.Response:
        query = str((await request.post())["query"])
        self.queries.append(query)
        selector = _SELECTOR.fullmatch(query)
        if selector is None:
            return web.json_response({"status": "error", "errorType": "bad_data"}, status=400)
        of_time, name, text = selector.groups()
        matchers = _MATCHER.findall(text)
        assert not _MATCHER.sub("", text).strip(), f"no selector: {text}"
        if name:
            matchers.append(("__name__", "=", name))
        now_s = time.time()
        rows = []
        for at_s, series in self._samples.values():
            for labels, value in series:
                if all(_matches(labels.get(key, ""), op, want) for key, op, want in matchers):
                    told = {k: v for k, v in labels.items() if not (of_time and k == "__name__")}
                    rows.append({"metric": told, "value": [now_s, str(at_s if of_time else value)]})
        data = {"resultType": "vector", "result": rows}
        return web.json_response({"status": "success", "data": data})


def _matches(value: str, operator: str, text: str) -> bool:
    wanted = text.encode().decode("unicode_escape")
    if operator in ("=~", "!~"):
        return (re.fullmatch(wanted, value) is not None) == (operator == "=~")
    return (value == wanted) == (operator == "=")


@asynccontextmanager
async def toy_prometheus(
    targets: Mapping[str, Labels], interval_s: float
) -> AsyncIterator[tuple[ToyPrometheus, str]]:
    """Serve one that scrapes; yields it and its URL."""
    toy = ToyPrometheus(targets)
    app = web.Application()
    app.router.add_post("/api/v1/query", toy.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async def scrape() -> None:
        while True:
            await toy.scrape()
            await asyncio.sleep(interval_s)

    scraping = asyncio.create_task(scrape())
    try:
        yield toy, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        scraping.cancel()
        await asyncio.gather(scraping, return_exceptions=True)
        await runner.cleanup()
