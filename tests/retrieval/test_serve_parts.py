"""The server's parts without HTTP: batches, ranges, cursors, tasks, who may ask."""

import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from indexer.errors import SeenitError
from indexer.images.metadata import Metadata
from indexer.store.protocol import Filter
from retrieval.options import SearchOptions
from retrieval.query.query import MultiQuery, Query
from retrieval.results import Result
from retrieval.serve.batching import Batcher
from retrieval.serve.files import ThumbnailCache, thumbnail_size
from retrieval.serve.refusal import Refusal
from retrieval.serve.security import Access, printed_url
from retrieval.serve.tasks import Handle, Outcome, Stopped, Tasks


class Searches:
    """Stands for a Searcher: counts its calls, and can be held up."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, SearchOptions]] = []
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()

    def __call__(self, queries: Sequence[Query], options: SearchOptions) -> list[list[Result]]:
        self.began.set()
        assert self.go.wait(20)
        self.calls.append((len(queries), options))
        if any(isinstance(query, str) for query in queries):
            raise SeenitError("no such query")
        return [
            [Result(n, f"/{id(query)}", 1.0, "x", Metadata(1, 1, "JPEG")) for n in range(options.top)]
            for query in queries
        ]


def queries(count: int) -> list[MultiQuery]:
    return [MultiQuery(()) for _ in range(count)]


def test_what_waits_is_searched_together_and_every_query_gets_its_own_answer() -> None:
    searches = Searches()
    batcher = Batcher(searches)
    searches.go.clear()
    first = batcher.search(MultiQuery(()), SearchOptions())
    assert searches.began.wait(20)
    asked = queries(6)
    answers = [batcher.search(query, SearchOptions(top=n + 1)) for n, query in enumerate(asked)]
    other = batcher.search(MultiQuery(()), SearchOptions(where=Filter(tags=("x",))))
    plain = batcher.search(MultiQuery(()), SearchOptions(top=3, rerank=False))
    called = batcher.call(lambda: 7)
    searches.go.set()
    for n, (query, answer) in enumerate(zip(asked, answers, strict=True)):
        results = answer.result(20)
        assert len(results) == n + 1 and {result.path for result in results} == {f"/{id(query)}"}
    assert len(first.result(20)) == 10 and len(other.result(20)) == 10 and len(plain.result(20)) == 3
    assert called.result(20) == 7
    batcher.close()
    assert sorted(count for count, _ in searches.calls) == [1, 1, 1, 6]
    assert (batcher.batches, batcher.queries) == (4, 9)


def test_a_bad_query_costs_only_itself() -> None:
    searches = Searches()
    batcher = Batcher(searches)
    searches.go.clear()
    held = batcher.search(MultiQuery(()), SearchOptions(exact=True))
    assert searches.began.wait(20)
    good, bad = batcher.search(MultiQuery(()), SearchOptions()), batcher.search("bad", SearchOptions())
    broken: Future[Any] = batcher.call(lambda: 1 / 0)
    searches.go.set()
    assert len(good.result(20)) == 10 and len(held.result(20)) == 10
    with pytest.raises(SeenitError, match="no such query"):
        bad.result(20)
    with pytest.raises(ZeroDivisionError):
        broken.result(20)
    assert len(batcher.search(MultiQuery(()), SearchOptions()).result(20)) == 10, "the thread goes on"
    batcher.close()


def test_a_full_queue_says_when_to_come_back_and_closing_answers_what_waits() -> None:
    searches = Searches()
    batcher = Batcher(searches, waiting=3)
    searches.go.clear()
    held = batcher.search(MultiQuery(()), SearchOptions())
    assert searches.began.wait(20)
    waiting = [batcher.search(query, SearchOptions()) for query in queries(3)]
    with pytest.raises(Refusal) as refused:
        batcher.search(MultiQuery(()), SearchOptions())
    assert refused.value.status == 429 and refused.value.headers["Retry-After"]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    searches.go.set()
    closing.join(20)
    assert all(len(answer.result(1)) == 10 for answer in (held, *waiting)), "nothing is lost"
    with pytest.raises(Refusal):
        batcher.search(MultiQuery(()), SearchOptions())


# ---- tasks ----


def wait(tasks: Tasks, id: str) -> Any:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        (task,) = [task for task in tasks.all() if task.id == id]
        if task.state != "running":
            return task
        time.sleep(0.01)
    raise AssertionError("the task does not end")


def test_tasks_run_one_at_a_time_and_tell_how_they_ended() -> None:
    tasks, go = Tasks(), threading.Event()

    def work(handle: Handle) -> Outcome:
        handle.progress("reading", 3, 10)
        handle.say("a note")
        assert go.wait(20)
        return Outcome("all done", {"n": 1}, ("another",))

    first = tasks.start("index", work)
    assert tasks.running
    with pytest.raises(Refusal) as refused:
        tasks.start("duplicates", work)
    assert refused.value.status == 409
    go.set()
    done = wait(tasks, first.id)
    assert (done.state, done.message, done.summary) == ("done", "all done", {"n": 1})
    assert (done.stage, done.done, done.total) == ("reading", 3, 10) and set(done.notes) == {"a note", "another"}

    def fails(handle: Handle) -> Outcome:
        raise SeenitError("the disk is full; make room")

    assert wait(tasks, tasks.start("index", fails).id).message == "the disk is full; make room"
    assert wait(tasks, tasks.start("index", lambda handle: 1 / 0).id).message.startswith("internal error")  # type: ignore[arg-type, return-value]

    def until_stopped(handle: Handle) -> Outcome:
        while not handle.stopped():
            time.sleep(0.01)
        raise Stopped

    stopped = tasks.start("duplicates", until_stopped)
    tasks.stop(stopped.id)
    assert wait(tasks, stopped.id).state == "stopped"
    with pytest.raises(Refusal):
        tasks.stop("99")
    last = tasks.start("index", until_stopped)
    tasks.close()
    assert wait(tasks, last.id).state == "stopped"
    with pytest.raises(Refusal):
        tasks.start("index", work)


# ---- thumbnails ----


def test_the_thumbnail_cache_is_bounded() -> None:
    cache = ThumbnailCache(max_bytes=100)
    for n in range(10):
        cache.put(f"{n}", 160, bytes(30))
        assert cache.get("0", 160) is not None, "what is used stays"
        assert cache.bytes <= 100
    assert cache.get("1", 160) is None and cache.get("9", 160) is not None
    cache.put("huge", 160, bytes(1000))
    assert cache.get("huge", 160) is None and cache.bytes == 0
    assert [thumbnail_size(asked) for asked in (1, 160, 161, 4096, 9999)] == [160, 160, 320, 4096, 4096]


# ---- who may ask ----


def test_hosts_that_name_this_machine() -> None:
    loopback = Access("127.0.0.1")
    for header in ("127.0.0.1", "127.0.0.1:8765", "localhost:1", "LOCALHOST", "[::1]:8765", "localhost."):
        assert loopback.allows_host(header), header
    assert not loopback.allows_host(None)
    for header in (
        "",
        "evil.com",
        "127.0.0.1.evil.com",
        "192.168.1.5:8765",
        "localhost.evil.com",
        "[::1",
        "a@b",
        "localhost:x",
    ):
        assert not loopback.allows_host(header), header
    everywhere = Access("0.0.0.0", "a long enough token", ("photos.home",))
    for header in ("192.168.1.5:8765", "photos.home", "PHOTOS.home:80", "localhost"):
        assert everywhere.allows_host(header), header
    assert not everywhere.allows_host("evil.com")


def test_others_need_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "photos.home"):
        with pytest.raises(SeenitError, match="--token"):
            Access(host)
    with pytest.raises(SeenitError, match="12 or more"):
        Access("127.0.0.1", "short")
    access = Access("0.0.0.0", "a long enough token")
    assert "a long enough" not in repr(access) and access.session not in repr(access)
    for given, allowed in (
        ("Bearer a long enough token", True),
        ("bearer a long enough token", True),
        ("Bearer a long enough toke", False),
        ("Bearer", False),
        ("Basic a long enough token", False),
        ("Bearer \xe9", False),
        ("", False),
    ):
        headers = Headers(raw=[(b"authorization", given.encode("latin-1"))])
        assert access.is_authorized(headers, "") is allowed, given
    assert access.is_authorized(Headers({}), access.session) and not access.is_authorized(Headers({}), "")
    code = access.new_code()
    assert access.opens_session(code) and not access.opens_session(code), "once"
    assert access.opens_session("a long enough token") and not access.opens_session("")


def test_addresses_as_printed() -> None:
    assert printed_url("0.0.0.0", 80) == "http://127.0.0.1:80/" and printed_url("::", 80) == "http://[::1]:80/"


@pytest.mark.slow
def test_the_command_refuses_what_makes_no_sense(
    library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cli

    def said(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["seenit", "serve", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    code, line = said(library, "--host", "0.0.0.0", "--port", 0)
    assert code == 1 and "--token" in line and line.count("\n") == 1
    code, line = said(library / "a", "--port", 0)
    assert code == 1 and "no index" in line and line.count("\n") == 1
    assert said(library, "--read-only", "--watch")[0] == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, line = said(library, "--port", taken.getsockname()[1])
    assert code == 1 and "take another --port" in line and line.count("\n") == 1
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, line = said(library, "--port", 0)
    assert code == 1 and "pip install 'seenit[web]'" in line and line.count("\n") == 1


def test_a_port_that_is_taken_is_told() -> None:
    from retrieval.serve.server import listen

    with listen("127.0.0.1", 0) as taken, pytest.raises(SeenitError, match="--port"):
        listen("127.0.0.1", int(taken.getsockname()[1]))
    with pytest.raises(SeenitError, match="--port"):
        listen("nowhere.invalid", 0)
