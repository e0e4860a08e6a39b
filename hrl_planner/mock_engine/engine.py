"""The engine: a worker played against a clock, step after step.

Requests come in by `compute` (the prompt is to be computed here) or `receive` (its KV cache is on
another worker and must be pulled). A step is formed at its boundary; when it ends, every request
in it is told its token and the next step begins at that boundary, not at the later moment the
timer woke us: lateness of timers does not add up. Only when the process cannot keep up at all
(`MAX_LAG_S`) does the engine start counting from now.

The clock is a parameter: the event loop's in a server, a heap of events in a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hrl_planner.mock_engine.model import Request, Step, StepEnd, Worker

MAX_LAG_S = 0.05


class Clock(Protocol):
    """Time and timers; `call_at` never calls back before it has returned."""

    def now(self) -> float:
        """Return the time in seconds since any fixed moment."""

    def call_at(self, when: float, callback: Callable[[], None]) -> object:
        """Call back at a time, or as soon as possible when it has passed."""


@dataclass(eq=False, kw_only=True)
class Job(Request):
    """A request in an engine.

    Attributes:
        token_ids: the prompt.
        on_token: called with the number of each token, from 1, when it is out. A prompt that is
            handed over has one token, that of its prefill.
        transfer_s: time its KV cache takes to arrive, where it comes from another worker.
    """

    token_ids: Sequence[int]
    on_token: Callable[[int], None]
    arrival_s: float = 0.0
    started_s: float | None = None  # when its first step began
    transfer_s: float = 0.0
    under_way: bool = False


class StepReport(NamedTuple):
    """One step that has ended.

    Attributes:
        began_s: boundary it began at.
        ended_s: boundary it ended at.
        step: what was computed.
        end: what came of it.
    """

    began_s: float
    ended_s: float
    step: Step[Job]
    end: StepEnd[Job]


class Engine:
    """Plays one worker.

    Args:
        worker: the worker.
        clock: time and timers.
        observers: told of every step after its tokens are out.
        on_pause: called between steps while the next one is not due: not for each of those that
            are made up for one after another.

    Attributes:
        jobs: every request that is not finished.
        lag_s: seconds given up because the process could not keep up.
    """

    def __init__(
        self,
        worker: Worker[Job],
        clock: Clock,
        observers: Sequence[Callable[[StepReport], None]] = (),
        on_pause: Callable[[], None] = lambda: None,
    ) -> None:
        """Start idle."""
        self.worker = worker
        self.clock = clock
        self.jobs: set[Job] = set()
        self.lag_s = 0.0
        self._observers = tuple(observers)
        self._on_pause = on_pause
        self._began_s = 0.0
        self._ends_s: float | None = None  # of the step under way
        self._waking = False
        self._hung = False

    @property
    def n_waiting(self) -> int:
        """Requests that no step has taken up: queued, or with their KV cache on the way."""
        under_way = sum(job.under_way for job in self.jobs)
        return len(self.worker.fifo) + len(self.worker.waiting) + under_way - self._n_prompts

    @property
    def n_running(self) -> int:
        """Requests in the decode batch, and prompts in the step under way."""
        return len(self.worker.running) + self._n_prompts

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that is reserved, 0 to 1."""
        return self.worker.reserved / self.worker.limits.kv_blocks

    def compute(self, job: Job) -> None:
        """Take a request whose prompt is to be computed here."""
        self._accept(job)
        self.worker.fifo.append(job)
        self._wake()

    def receive(self, job: Job) -> None:
        """Take a request whose KV cache is elsewhere.

        The engine pulls: the transfer starts when the step in progress ends.
        """
        self._accept(job)
        job.under_way = True
        starts_s = self.clock.now()
        if job.transfer_s > 0.0 and self._ends_s is not None:
            starts_s = max(starts_s, self._ends_s)
        self.clock.call_at(starts_s + job.transfer_s, lambda: self._arrived(job))

    def cancel(self, job: Job) -> None:
        """Forget a request; nobody reads its answer any more."""
        if job in self.jobs:
            self.jobs.remove(job)
            job.under_way = False
            self.worker.cancel(job)
            self._wake()

    def hang(self, hung: bool) -> None:
        """Stop ending steps, or go on."""
        was_hung, self._hung = self._hung, hung
        if was_hung and not hung:
            self._wake()
            if self._ends_s is not None:
                self._end_at(self._ends_s)

    @property
    def _n_prompts(self) -> int:
        return 0 if self.worker.step is None else len(self.worker.step.chunks)

    def _accept(self, job: Job) -> None:
        job.arrival_s = self.clock.now()
        self.jobs.add(job)

    def _arrived(self, job: Job) -> None:
        if job in self.jobs:
            job.under_way = False
            self.worker.waiting.append(job)
            self._wake()

    def _wake(self) -> None:
        """Let an idle worker look at its queues when all that arrives now is in them."""
        if self._ends_s is None and not self._waking and not self._hung:
            self._waking = True
            self.clock.call_at(self.clock.now(), self._look)

    def _look(self) -> None:
        self._waking = False
        if self._ends_s is None:
            self._begin(self.clock.now())

    def _begin(self, boundary_s: float) -> float | None:
        """Begin a step, where there is something to do; return when it ends."""
        late_s = self.clock.now() - boundary_s
        if late_s > MAX_LAG_S:
            self.lag_s += late_s
            boundary_s += late_s
        seconds = self.worker.begin_step(boundary_s)
        if seconds is None:
            self._ends_s = None
            return None
        self._began_s = boundary_s
        self._ends_s = boundary_s + seconds
        self._end_at(self._ends_s)
        return self._ends_s

    def _end_at(self, ends_s: float) -> None:
        self.clock.call_at(ends_s, lambda: self._end(ends_s))

    def _end(self, due_s: float) -> None:
        # A step that hung for less than its length is called twice: by its own timer as well.
        if self._hung or due_s != self._ends_s:
            return
        began_s, ended_s = self._began_s, due_s
        step = self.worker.step
        assert step is not None
        for job, _ in step.chunks:
            if job.started_s is None:
                job.started_s = began_s
        end = self.worker.end_step(ended_s)
        self.jobs.difference_update(end.finished)
        for job in step.decoding:
            if job.started_s is None:
                job.started_s = began_s
            job.on_token(job.generated)
        for job in end.completed:
            if not job.decodes_here:
                job.first_token_s = ended_s
                self.jobs.discard(job)
            job.on_token(1)
        report = StepReport(began_s, ended_s, step, end)
        for observe in self._observers:
            observe(report)
        next_s = self._begin(ended_s)
        if next_s is None or next_s > self.clock.now():
            self._on_pause()
