"""The picker's HTTP face: what clients ask besides completions, and what operators ask.

`/v1/models` and `/health` are reached through Envoy too; `/metrics` and `/debug/state` only here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from aiohttp import web

from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.router.service import Router
from hrl_planner.routing import AGGREGATED, DECODE, PREFILL


class AdminServer:
    """Answers over one router.

    Args:
        router: whose state is told.
        metrics: its metrics.
        models: names of `/v1/models`.
        before_page: brings the gauges up to date.
    """

    def __init__(
        self,
        router: Router,
        metrics: RouterMetrics,
        models: tuple[str, ...],
        before_page: Callable[[], None],
    ) -> None:
        self._before_page = before_page
        self._router = router
        self._metrics = metrics
        self._created = int(time.time())
        self._models = models
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._list_models),
                web.get("/metrics", self._page),
                web.get("/debug/state", self._state),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        """200 while some way through the pools is open, else 503."""
        fleet = self._router.desk.fleet
        accepting = fleet.state.load["accepting"] != 0
        roles = {int(role) for role in fleet.state.pools["role"][fleet.pool_of[accepting]]}
        serves = AGGREGATED in roles or {PREFILL, DECODE} <= roles or DECODE in roles
        status = {"status": "ok" if serves else "no worker", "workers": int(accepting.sum())}
        return web.json_response(status, status=200 if serves else 503)

    async def _list_models(self, request: web.Request) -> web.Response:
        """OpenAI's list of models."""
        data = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "hrl-planner"}
            for name in self._models
        ]
        return web.json_response({"object": "list", "data": data})

    async def _page(self, request: web.Request) -> web.Response:
        """Prometheus metrics."""
        self._before_page()
        return web.Response(
            body=self._metrics.page(), headers={"content-type": "text/plain; version=0.0.4"}
        )

    async def _state(self, request: web.Request) -> web.Response:
        """What the rules see right now, for people."""
        fleet = self._router.desk.fleet
        state = fleet.state
        pools: list[dict[str, Any]] = []
        for index, pool in enumerate(fleet.spec.pools):
            workers = [
                {
                    "name": place.worker.name,
                    "address": place.worker.address,
                    "draining": place.worker.draining,
                    **{
                        field: int(state.load[place.slot][field])
                        for field in ("accepting", "active", "backlog_tokens", "kv_blocks")
                    },
                }
                for place in fleet
                if place.pool == index
            ]
            pools.append({"name": pool.name, "role": pool.role, "workers": workers})
        flows = {
            slo.name: dict(
                zip((p.name for p in fleet.spec.pools), np.round(row, 4).tolist(), strict=True)
            )
            for slo, row in zip(fleet.spec.slo_classes, state.flows, strict=True)
            if row.any()
        }
        return web.json_response(
            {
                "pools": pools,
                "flows": flows,
                "waiting": len(self._router.waiting),
                "under_way": self._router.under_way,
            }
        )
