"""One request's way through the router: read, choose, hand off, name the destination.

`Router.route` turns a `Call` into a `Routed`: the worker whose address Envoy sends the request to,
another one should that fail before it answers, and a new body where a prefill worker computed the
prompt. What is booked on workers meanwhile is taken off in `ended`, which the access log calls when
an answer is over, in whatever way. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from hrl_planner.router.chooser import Ask
from hrl_planner.router.classes import Classes
from hrl_planner.router.config import RouterConfig
from hrl_planner.router.desk import Desk, Seat
from hrl_planner.router.flights import Leg
from hrl_planner.router.handoff import Handoff, PrefillError
from hrl_planner.router.hasher import PromptHasher
from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.router.osl import OutputLengths
from hrl_planner.router.request import Call, Refusal, Wish, no_worker, read
from hrl_planner.router.waiting import WaitingRoom
from hrl_planner.routing import NOBODY, fits_somewhere

log = logging.getLogger(__name__)

# No answer takes longer; one whose worker has left, or does not know it any more, not even that.
_FORGET_S = 4 * 3600.0
_CLOSED_S = 3600.0


@dataclass(frozen=True, slots=True)
class Flight:
    """A request whose answer is under way, until the access log tells of its end.

    Attributes:
        call: the request.
        ask: what it asked of the rules.
        wish: what its body asks for.
        leg: its booking at the worker that answers.
        predicted_ttft_s: since it arrived here.
        predicted_itl_s: between tokens.
    """

    call: Call
    ask: Ask
    wish: Wish
    leg: Leg
    predicted_ttft_s: float
    predicted_itl_s: float


@dataclass(frozen=True, slots=True)
class Routed:
    """Where a request goes.

    Attributes:
        flight: number that the access log hands back at the end.
        destination: `ip:port`.
        fallback: `ip:port` of the worker to try next; the same one when there is no other.
        body: a new body, or None to leave it as it is.
        worker: name of the worker, for people.
    """

    flight: int
    destination: str
    fallback: str
    body: bytes | None
    worker: str


class Router:
    """The router's one verb, and the answers under way."""

    def __init__(
        self,
        config: RouterConfig,
        desk: Desk,
        classes: Classes,
        hasher: PromptHasher,
        handoff: Handoff,
        metrics: RouterMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._models = config.served_models()
        self._block_tokens = desk.fleet.spec.kv_block_tokens
        self._classes = classes
        self._hasher = hasher
        self._handoff = handoff
        self._metrics = metrics
        self._clock = clock
        self.desk = desk
        self.lengths = OutputLengths(len(classes.names))
        self.waiting: WaitingRoom[Seat] = WaitingRoom(
            config.admission, desk.place, lambda seat: desk.flights.end(seat.leg)
        )
        self._for_decode: list[asyncio.Future[None]] = []
        self._numbers = itertools.count(1)
        self._flights: dict[int, Flight] = {}
        # Of flights: those that SGLang workers still compute, with the answer already on its way.
        self._prompts: dict[int, asyncio.Task[bytes]] = {}

    @property
    def under_way(self) -> int:
        """Answers under way."""
        return len(self._flights)

    @property
    def somebody_waits(self) -> bool:
        """Whether requests wait for a place."""
        return bool(self._for_decode) or len(self.waiting) > 0

    async def route(self, call: Call) -> Routed:
        """Choose where a request goes.

        Raises:
            Refusal: it goes nowhere; the client is told why.
        """
        now_s = self._clock()
        wish = read(call, self._models)
        try:
            blocks = await self._hasher.blocks(wish.prompt)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, str(error), reason="bad_prompt") from None
        targets = self._classes.of(call.slo_class, wish, blocks.isl_tokens)
        osl = self.lengths.expected(targets.class_id, wish.max_tokens)
        kv_blocks = math.ceil((blocks.isl_tokens + osl) / self._block_tokens)
        ask = Ask(blocks, kv_blocks, targets, now_s)
        if not fits_somewhere(self.desk.fleet.state.pools, ask.isl_tokens, kv_blocks):
            raise Refusal(
                400,
                f"{ask.isl_tokens} prompt tokens and {osl} of the answer fit no worker's KV cache",
                reason="context_length_exceeded",
            )
        self._metrics.offered(targets.class_id, ask.isl_tokens)
        try:
            return await self._send(call, ask, wish, now_s)
        except BaseException:  # refused, or its client left
            self._metrics.resolved(targets.class_id)
            raise

    async def _send(self, call: Call, ask: Ask, wish: Wish, now_s: float) -> Routed:
        """Give a request its place, and its answer on the way."""
        seat = self.desk.arrive(ask, call.session, now_s)
        self._metrics.decided(self._clock() - now_s)
        if seat is None:
            seat = await self._wait(ask, wish.priority, now_s)
        if self.desk.fleet.answers(seat.leg.place.slot):
            return self._depart(call, ask, wish, seat, seat.predicted_ttft_s, None)
        return await self._through_prefill(call, ask, wish, seat)

    def ended(self, flight: int) -> Flight | None:
        """Take an answer that is over off the books; None if it was already."""
        found = self._flights.pop(flight, None)
        if found is not None:
            self.desk.flights.end(found.leg)
            self._metrics.resolved(found.ask.targets.class_id)
        prompt = self._prompts.get(flight)
        if prompt is not None:  # nobody waits for it any more
            prompt.cancel()
        return found

    def sweep(self) -> None:
        """Forget answers whose end was never told: metrics have closed their bookings long ago."""
        now_s = self._clock()
        lost = [
            number
            for number, flight in self._flights.items()
            if now_s - flight.leg.since_s > (_FORGET_S if flight.leg.open else _CLOSED_S)
        ]
        for number in lost:
            self.ended(number)

    def failed(self, flight: Flight) -> None:
        """Note that the worker of an answer broke it."""
        self.desk.fleet.failed(flight.leg.place, self._clock())

    def served(self, flight: Flight) -> None:
        """Note that the worker of an answer did well."""
        self.desk.fleet.served(flight.leg.place)

    def look(self) -> None:
        """Let time pass: due prompts, workers whose pause is over, requests that wait."""
        now_s = self._clock()
        self.desk.flights.advance(now_s)
        self.desk.fleet.wake(now_s)
        self.waiting.look(now_s)
        waiters, self._for_decode = self._for_decode, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self, ask: Ask, priority: float, now_s: float) -> Seat:
        self._metrics.queued(ask.targets.class_id)
        deadline_s = ask.arrived_s + ask.targets.ttft_s
        best_s = self.desk.chooser.best_case_ttft_s(ask)
        # Without any worker nothing says when it would be too late.
        latest_s = deadline_s - best_s if math.isfinite(best_s) else deadline_s
        return await self.waiting.wait(ask, priority, now_s, latest_s)

    async def _through_prefill(self, call: Call, ask: Ask, wish: Wish, seat: Seat) -> Routed:
        """Let prefill workers try, then decode; where all fail the decode worker does both."""
        attempts = self._config.handoff.prefill_attempts
        for attempt in range(attempts):
            try:
                body, prompt = await self._prefill(call, seat.leg)
            except PrefillError as error:
                self._prefill_failed(ask, seat.leg, error)
            else:
                to_decode = self._to_decode(call, ask, wish, seat, body)
                return await (to_decode if prompt is None else self._meeting(prompt, to_decode))
            if attempt + 1 < attempts:
                again = self.desk.another_prefill(ask, self._clock())
                if again is None:
                    break
                seat = again
                if self.desk.fleet.answers(seat.leg.place.slot):
                    return self._depart(call, ask, wish, seat, seat.predicted_ttft_s, None)
        return await self._to_decode(call, ask, wish, seat, None)

    async def _meeting(
        self, prompt: asyncio.Task[bytes], to_decode: Coroutine[Any, Any, Routed]
    ) -> Routed:
        """Let a prompt go on for as long as somebody waits for it."""
        try:
            routed = await to_decode
        except BaseException:  # refused, or its client left
            prompt.cancel()
            raise
        self._prompts[routed.flight] = prompt
        prompt.add_done_callback(lambda _: self._prompts.pop(routed.flight, None))
        return routed

    async def _prefill(self, call: Call, leg: Leg) -> tuple[bytes, asyncio.Task[bytes] | None]:
        """Let one worker compute a prompt; its booking ends with it.

        Returns:
            The decode worker's body, and the prompt where it is still being computed.
        """
        worker = leg.place.worker
        started_s = self._clock()
        prompt = None
        try:
            if worker.engine == "vllm":
                body = await self._handoff.through_vllm(worker, call)
                self._metrics.prefilled(leg.place, self._clock() - started_s)
            else:
                body, prompt = await self._handoff.through_sglang(worker, call)
                # Both workers are at it now: the booking ends when the prompt does.
                prompt.add_done_callback(lambda task: self._met(leg, task))
        finally:
            if prompt is None:
                self.desk.flights.end(leg)
        self.desk.fleet.served(leg.place)
        return body, prompt

    def _met(self, leg: Leg, prompt: asyncio.Task[bytes]) -> None:
        self.desk.flights.end(leg)
        if not prompt.cancelled() and prompt.exception() is not None:
            self.desk.fleet.failed(leg.place, self._clock())
            log.warning(
                "prefill failed after its decode worker was told",
                extra={"worker": leg.place.worker.name, "error": str(prompt.exception())},
            )
        self.look()

    def _prefill_failed(self, ask: Ask, leg: Leg, error: PrefillError) -> None:
        """Note a failed prefill worker; a request that all would refuse goes back to its client."""
        if error.is_the_clients:
            raise Refusal(error.status, str(error), reason="engine_refused", answer=error.body)
        self.desk.fleet.failed(leg.place, self._clock())
        ask.avoid.append(leg.place)
        self._metrics.prefill_failed(leg.place)
        log.warning("prefill failed", extra={"worker": leg.place.worker.name, "error": str(error)})

    async def _to_decode(
        self, call: Call, ask: Ask, wish: Wish, seat: Seat, body: bytes | None
    ) -> Routed:
        until_s = self._clock() + self._config.admission.max_wait_s
        while True:
            found = self.desk.decode(ask, self._clock(), prefilled=body is not None)
            if found is not None:
                break
            if self._clock() > until_s:
                raise no_worker("decode worker")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._for_decode.append(waiter)
            await waiter
        predicted_s = seat.predicted_ttft_s if body is not None else found.predicted_ttft_s
        return self._depart(call, ask, wish, found, predicted_s, body)

    def _depart(
        self,
        call: Call,
        ask: Ask,
        wish: Wish,
        seat: Seat,
        predicted_ttft_s: float,
        body: bytes | None,
    ) -> Routed:
        place = seat.leg.place
        chooser = self.desk.chooser
        second = chooser.second(place.slot, ask)
        address = place.worker.address
        other = address if second == NOBODY else self.desk.fleet.place(second).worker.address
        number = next(self._numbers)
        self._flights[number] = Flight(
            call, ask, wish, seat.leg, predicted_ttft_s, chooser.predicted_itl_s(place.slot, ask)
        )
        return Routed(number, address, other, body, place.worker.name)
