"""Concurrent queries become one forward of the backbone and one call of the store.

One thread does all that takes the backbone. It takes the first query that waits, gives others a few milliseconds to
join, and searches them together; while it computes, the next ones gather. So 32 clients cost the backbone a few full
batches, and a single client waits no longer than those few milliseconds.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from ..options import SearchOptions
from ..query.query import Query
from ..results import Result
from .refusal import busy

GATHER_S = 0.005  # how long a query waits for others; a forward takes 20 ms and more
AT_ONCE = 16  # queries in one batch: more gain little, and the first of them would wait for the last
WAITING = 64  # queries that may wait; further ones are told to come back
SHARED_TOP = 50  # up to so many results a reranked query's candidates are the same


@dataclass(frozen=True)
class _Search:
    query: Query
    options: SearchOptions
    answer: "Future[list[Result]]" = field(default_factory=Future)


@dataclass(frozen=True)
class _Call:
    """Anything else that takes the backbone."""

    work: Callable[[], Any]
    answer: "Future[Any]" = field(default_factory=Future)


class Batcher:
    """See the module. `search_batch` is that of a Searcher; `close` answers what waits and ends the thread."""

    def __init__(
        self,
        search_batch: Callable[[Sequence[Query], SearchOptions], list[list[Result]]],
        *,
        waiting: int = WAITING,
        gather_s: float = GATHER_S,
    ) -> None:
        self._search_batch = search_batch
        self._gather_s = gather_s
        self._queue: queue.Queue[_Search | _Call | None] = queue.Queue(waiting)
        self._closed = False
        self.batches = 0  # for measurements: how many there were
        self.queries = 0  # and of how many queries
        self._thread = threading.Thread(target=self._run, name="seenit-search", daemon=True)
        self._thread.start()

    def search(self, query: Query, options: SearchOptions) -> "Future[list[Result]]":
        """The results, once they are there; Refusal 429 where too many wait."""
        return self._put(_Search(query, options)).answer

    def call(self, work: Callable[[], Any]) -> "Future[Any]":
        """What `work` returns, done in the thread that has the backbone; Refusal 429 where too much waits."""
        return self._put(_Call(work)).answer

    def close(self) -> None:
        """No more is taken; what waits is answered first. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _put(self, job: "Any") -> "Any":
        if self._closed:
            raise busy("the server is stopping")
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise busy(f"{self._queue.maxsize} requests wait already") from None
        return job

    def _run(self) -> None:
        last = False
        while not last:
            jobs, last = self._gather()
            searches = [job for job in jobs if isinstance(job, _Search) and job.answer.set_running_or_notify_cancel()]
            for options, group in _groups(searches):
                self._answer(options, group)
            for job in jobs:
                if isinstance(job, _Call) and job.answer.set_running_or_notify_cancel():
                    _settle(job.answer, job.work)

    def _gather(self) -> "tuple[list[_Search | _Call], bool]":
        """What waits and what comes within a few milliseconds, and whether it is the last."""
        jobs: list[_Search | _Call] = []
        until = 0.0
        while len(jobs) < AT_ONCE:
            try:
                job = self._queue.get(timeout=max(until - time.monotonic(), 0) if jobs else None)
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
            if len(jobs) == 1:
                until = time.monotonic() + self._gather_s
        return jobs, False

    def _answer(self, options: SearchOptions, group: "Sequence[_Search]") -> None:
        """One batch; where it fails every query is tried alone, so that one bad query costs only itself."""
        self.batches += 1
        self.queries += len(group)
        try:
            answers = self._search_batch([one.query for one in group], options)
        except Exception as error:
            if len(group) == 1:
                group[0].answer.set_exception(error)
                return
            for one in group:
                self._answer(one.options, [one])
            return
        for one, results in zip(group, answers, strict=True):
            one.answer.set_result(results[: one.options.top])


def _groups(searches: "Sequence[_Search]") -> "list[tuple[SearchOptions, list[_Search]]]":
    """Those that can be searched in one call: the same options, but for how many of the same results are wanted."""
    groups: dict[SearchOptions, list[_Search]] = {}
    for one in searches:
        shared = one.options.rerank and one.options.top <= SHARED_TOP
        groups.setdefault(replace(one.options, top=SHARED_TOP) if shared else one.options, []).append(one)
    return [(replace(key, top=max(one.options.top for one in group)), group) for key, group in groups.items()]


def _settle(answer: "Future[Any]", work: Callable[[], Any]) -> None:
    try:
        answer.set_result(work())
    except Exception as error:
        answer.set_exception(error)
