"""Reads, hashes and decodes image files in processes of their own, so that a bad file costs itself and nothing else.

Surprising: each process has a thread of its own that hands it one job at a time. So it is always known which file a
process was at when it died, hung or ran out of memory. The file is tried once more in a fresh process: it is broken
where that one fails by the file's own doing (a crash, all of its memory, seconds of computing), and an accident where
it is killed or stands still as well.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from ..errors import SeenitError
from .decode import DEFAULT_LIMITS, NEEDS_MEMORY, Limits
from .jobs import Batch, Broken, Job, Outcome, Settings, Work, lost, read_image
from .preprocess import Mode
from .worker import DecoderProcess, Failure

START_ATTEMPTS = 3


class DecodePool:
    """Decoder processes and the work in flight between them and the caller.

    workers  number of processes; None: one per core
    ahead    the most jobs taken from the caller and not yet given back; bounds memory, and lets the processes work on
             while the caller is busy. None: 64, or 4 per process
    work     a function at a module's top level, in place of `read_image`

    with DecodePool() as pool:
        for outcome in pool.run(Job(file.path) for file in files): ...

    The processes start at once and end with `close`, with the `with` block, or with this process however it ends.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        resolution: int = 224,
        patch_size: int = 14,
        mode: Mode = "aspect",
        limits: Limits = DEFAULT_LIMITS,
        ahead: int | None = None,
        work: Work = read_image,
    ) -> None:
        self.workers = workers or os.cpu_count() or 1
        self.settings = Settings(resolution, patch_size, mode, limits)
        self.ahead = ahead or max(64, 4 * self.workers)
        self._work = work
        self._tasks: queue.SimpleQueue[tuple[Job | Batch, _Run] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()  # over _closed and _running
        self._running: set[DecoderProcess] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self.workers)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, jobs: Iterable[Job | Batch]) -> Iterator[Outcome]:
        """One outcome for each job, those of a batch included, in the order in which they are done.

        Jobs are taken as they are needed, in the caller's thread: a caller that stops asking stops the taking, and the
        processes soon after. SeenitError if no decoder process can be started.
        """
        assert not self._closed, "this pool is closed"
        waiting = iter(jobs)
        run = _Run()
        in_flight = 0
        try:
            while True:
                while in_flight < self.ahead and (job := next(waiting, None)) is not None:
                    self._tasks.put((job, run))
                    in_flight += 1
                if not in_flight:
                    return
                outcomes = self._next_outcomes(run)
                in_flight -= 1
                yield from outcomes
        finally:
            run.abandoned = True

    def close(self) -> None:
        """End the processes at once, whatever they are doing; safe to call twice."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout=5)

    def _next_outcomes(self, run: "_Run") -> list[Outcome]:
        while True:
            try:
                outcomes = run.outcomes.get(timeout=0.5)  # so that Ctrl-C is heard on Windows too
            except queue.Empty:
                if self._closed:
                    raise SeenitError("the decoder processes were closed while they had work") from None
                assert all(thread.is_alive() for thread in self._threads), "a thread of the pool has died"
                continue
            if isinstance(outcomes, SeenitError):
                raise outcomes
            return outcomes

    def _serve(self) -> None:
        """One thread for each process: hands it one message at a time, and replaces one that dies or hangs."""
        seat = _Seat(self._start, self._end)
        try:
            seat.refill()
            while (task := self._tasks.get()) is not None and not self._closed:
                work, run = task
                if run.abandoned:
                    continue
                try:
                    outcomes = self._do_batch(seat, work) if isinstance(work, Batch) else [self._do(seat, work)]
                except SeenitError as error:
                    if self._closed:
                        return
                    run.outcomes.put(error)
                    continue
                except _Closed:
                    return
                run.outcomes.put(outcomes)
        finally:
            seat.empty()

    def _do(self, seat: "_Seat", job: Job) -> Outcome:
        process = seat.process()
        answer = process.ask(job, self.settings.limits.timeout_s)
        if _worth_another_try(answer, process) and not self._closed:
            fresh = seat.refill()
            answer = fresh.ask(job, self.settings.limits.timeout_s) if fresh else answer
        if isinstance(answer, Failure):
            seat.empty()
            if self._closed:
                raise _Closed
            return lost(job, answer.reason, accident=answer.accident)
        return answer

    def _do_batch(self, seat: "_Seat", batch: Batch) -> list[Outcome]:
        answer = seat.process().ask_batch(batch, self.settings.limits.timeout_s)
        if isinstance(answer, Failure):
            seat.empty()
        elif not any(isinstance(outcome, Broken) for outcome in answer):
            return answer
        if self._closed:
            raise _Closed
        return [self._do(seat, job) for job in batch.jobs]  # now it shows which of them it is

    def _start(self) -> tuple[DecoderProcess | None, str]:
        failure = ""
        for attempt in range(START_ATTEMPTS):
            if attempt:
                time.sleep(0.2 * attempt)
            try:
                process = DecoderProcess(self._work, self.settings)
            except OSError as error:
                failure = error.strerror or str(error)
                continue
            with self._lock:
                self._running.add(process)
                closed = self._closed
            failure = "" if closed else process.wait_until_ready()
            if not failure and not closed:
                return process, ""
            self._end(process)
            if closed or process.refused:
                break
        return None, failure

    def _end(self, process: DecoderProcess) -> None:
        process.kill()
        with self._lock:
            self._running.discard(process)


def _worth_another_try(answer: Outcome | Failure, process: DecoderProcess) -> bool:
    """Whether a fresh process may do better: this one was killed or stood still, crashed, or was no longer fresh.

    The cap on memory counts what earlier files have left behind.
    """
    if isinstance(answer, Failure):
        return answer.again or answer.accident
    return isinstance(answer, Broken) and answer.reason == NEEDS_MEMORY and process.jobs_done > 1


class _Closed(Exception):
    """The pool was closed while this thread had work."""


class _Seat:
    """The process of one thread, or none."""

    def __init__(
        self, start: Callable[[], tuple[DecoderProcess | None, str]], end: Callable[[DecoderProcess], None]
    ) -> None:
        self._start = start
        self._end = end
        self._process: DecoderProcess | None = None
        self._failure = ""

    def process(self) -> DecoderProcess:
        """One that lives; SeenitError where none can be started."""
        process = self._process
        if process is None or process.is_dead():  # it died idle, which is no file's fault
            process = self.refill()
        if process is None:
            raise SeenitError(f"cannot start a decoder process: {self._failure}")
        return process

    def refill(self) -> DecoderProcess | None:
        """A fresh process in place of the one before."""
        self.empty()
        self._process, self._failure = self._start()
        return self._process

    def empty(self) -> None:
        if self._process is not None:
            self._end(self._process)
            self._process = None


class _Run:
    """One call of `run`: where its outcomes go."""

    def __init__(self) -> None:
        self.outcomes: queue.SimpleQueue[list[Outcome] | SeenitError] = queue.SimpleQueue()
        self.abandoned = False
