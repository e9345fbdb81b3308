"""A small server for the tests of the web page: its files, and the API over a real index, one request at a time.

It answers what the page asks, in the form of the documented API, and refuses nothing: access, limits and queues are the
server's own tests' matter. Searches, comparisons, duplicates, moves and tags are done by the product's functions.
"""

import io
import json
import mimetypes
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from indexer.images.decode import decode_file
from indexer.images.metadata import content_id
from indexer.index.index import Index
from indexer.store.protocol import Filter, Record
from retrieval.build import build_index
from retrieval.duplicates.find import find_duplicates
from retrieval.duplicates.forget import forget_files
from retrieval.duplicates.move import move_spare, read_moves, undo_moves
from retrieval.duplicates.outcome import Duplicates
from retrieval.options import SearchOptions
from retrieval.query.query import MultiQuery
from retrieval.rerank.evidence import Evidence
from retrieval.results import Result
from retrieval.search import Searcher

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "retrieval" / "serve" / "page"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
Answer = dict[str, Any]


class PagePeer:
    """Serves an index at `url` until it is closed.

    with PagePeer(folder / ".seenit", move_to=tmp_path / "moved") as peer:
        browser.goto(peer.url)
    """

    def __init__(self, index: Path, move_to: Path, port: int = 0) -> None:
        self.index = index
        self.move_to = move_to
        self.lock = threading.Lock()
        self.searcher = Searcher.open(index)
        self.listeners: list[queue.Queue[tuple[str, Answer]]] = []
        self.tasks: list[Answer] = []
        self.found: Duplicates | None = None
        self.searches: list[Answer] = []  # what was asked
        self.gone: set[str] = set()  # keys of files that were moved
        self.server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.searcher.close()

    # ---- images ----

    def records(self, where: Filter = Filter()) -> list[Record]:
        return list(self.searcher.store.scroll(self.searcher.index.with_keys(where)))

    def record(self, id: str) -> Record:
        (record,) = self.searcher.store.retrieve([id])
        return record

    def path(self, record: Record) -> str:
        return self.searcher.roots.path(record.files[0].key)

    def values(self, record: Record) -> Answer:
        paths = [self.searcher.roots.path(file.key) for file in record.files]
        return {
            "id": record.id, "path": paths[0], "copies": paths[1:], **_metadata(record),
            "camera": record.metadata.camera, "gps": record.metadata.gps, "tags": record.tags,
            "bytes": record.files[0].size,
        }  # fmt: skip

    def listed(self, asked: dict[str, list[str]]) -> list[Record]:
        found = self.records(_filter(_of_address(asked)))
        if asked.get("order") == ["path"]:
            return sorted(found, key=self.path)
        dated = sorted((one for one in found if one.metadata.taken_at), key=_taken_at, reverse=True)
        return dated + sorted((one for one in found if not one.metadata.taken_at), key=self.path)

    # ---- searching ----

    def search(self, request: Answer, uploads: list[tuple[str, bytes]]) -> Answer:
        started = time.perf_counter()
        self.searches.append(request)
        ids = [*request.get("ids", [])]
        images: list[Any] = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for _, data in uploads]
        images += [self.path(self.record(id)) for id in ids]
        of = {name: tuple(self.path(self.record(id)) for id in request.get(name, [])) for name in ("like", "not")}
        options = SearchOptions(**request.get("options", {}), where=_filter(request.get("filters", {})))
        region = tuple(request["region"]) if request.get("region") else None
        query = images[0] if len(images) == 1 and not any(of.values()) else MultiQuery(tuple(images), of["like"], of["not"])
        results = self.searcher.search(query, options, region=region)
        known = {record.id for record in self.searcher.store.retrieve([content_id(data) for _, data in uploads])}
        asked = [{"name": name, "id": content_id(data), "indexed": content_id(data) in known} for name, data in uploads]
        asked += [{"name": self.path(self.record(id)), "id": id, "indexed": True} for id in ids]
        return {
            "schema": "seenit.search/1", "query": asked[0]["name"], "note": None,
            "asked": {"images": asked, "like": [], "not": [], "region": region},
            "results": [_result(one) for one in results], "seconds": time.perf_counter() - started,
        }  # fmt: skip

    def explain(self, request: Answer, uploads: list[tuple[str, bytes]]) -> Answer:
        image = self.path(self.record(request["image"]))
        name, query = request.get("query"), None
        if uploads:
            name = uploads[0][0]
            query = np.asarray(Image.open(io.BytesIO(uploads[0][1])).convert("RGB"))
        region = tuple(request["region"]) if request.get("region") else None
        explained = self.searcher.explain(
            query if query is not None else self.path(self.record(str(name))), image, region=region
        )
        maps = (explained.query_similarity, explained.image_similarity)
        evidence = explained.evidence
        shown = [one.tolist() if request.get("similarity") else None for one in maps]
        return {
            "schema": "seenit.explain/1", "query": name, "image": image, **_evidence(evidence),
            "reason": evidence.reason, "pairs": evidence.pairs.tolist(),
            "query_similarity": shown[0], "image_similarity": shown[1],
        }  # fmt: skip

    # ---- tasks ----

    def start(self, kind: str, run: Callable[[Callable[[str, int, int], None]], str]) -> Answer:
        task = {"schema": "seenit.task/1", "id": str(len(self.tasks) + 1), "kind": kind, "state": "running", "stage": "",
                "done": 0, "total": 0, "message": "", "notes": []}  # fmt: skip
        self.tasks.append(task)

        def work() -> None:
            def progress(stage: str, done: int, total: int) -> None:
                task.update(stage=stage, done=done, total=total)
                self.send("task", task)

            with self.lock:
                message = run(progress)
                self.searcher.index.refresh()
            task.update(state="done", message=message)
            self.send("task", task)
            self.send("index", {"schema": "seenit.changed/1", "images": self.searcher.store.count()})

        threading.Thread(target=work, daemon=True).start()
        return task

    def send(self, event: str, values: Answer) -> None:
        for listener in self.listeners:
            listener.put((event, dict(values)))

    def run_index(self, progress: Callable[[str, int, int], None]) -> str:
        progress("reading", 0, 0)
        return f"{build_index(index=self.index, workers=1).summary.images} images"

    def run_duplicates(self, progress: Callable[[str, int, int], None], request: Answer) -> str:
        self.found = find_duplicates(
            self.index, request.get("level", "near"), request.get("keep", "resolution"), workers=1, progress=progress
        )
        self.gone = set()
        return f"{len(self.found.groups)} groups"

    # ---- duplicates ----

    def duplicates(self, offset: int, limit: int) -> Answer:
        found = self.found
        groups = [] if found is None else [self.group(n) for n in range(len(found.groups))]
        spare = [file for group in found.groups for file in group.spare] if found else []
        run = found and {
            "id": str(id(found)), "level": found.level, "keep": found.keep, "images": found.images,
            "seconds": found.seconds, "notes": found.notes, "groups": len(groups), "spare_files": len(spare),
            "spare_bytes": sum(file.size for file in spare),
        }  # fmt: skip
        return {"schema": "seenit.duplicates/1", "run": run, "total": len(groups), "offset": offset,
                "groups": groups[offset : offset + limit], "applied": self.applied()}  # fmt: skip

    def group(self, number: int) -> Answer:
        assert self.found is not None
        group = self.found.groups[number]

        def file_values(record: Record, file: Any) -> Answer:
            return {"file": file.key, "path": file.path, "id": record.id, **_metadata(record), "bytes": file.size,
                    "moved": file.key in self.gone}  # fmt: skip

        members = [
            {
                **file_values(member.record, file), "level": member.level, "similarity": member.similarity,
                "how": member.how, "spare": not member.stays, "why_not": member.stays or None, "transform": None,
                "differs_at": [asdict(one) for one in member.differs_at],
            }
            for member in group.members for file in member.files
        ]  # fmt: skip
        return {"group": number, "keeper": file_values(group.keeper, group.file), "members": members,
                "bytes_freed": sum(file.size for file in group.spare)}  # fmt: skip

    def applied(self) -> list[Answer]:
        manifests = sorted(self.move_to.glob("*.jsonl"), reverse=True) if self.move_to.exists() else []
        moves = [(one.name, [move for move in read_moves(one).moves if Path(move.target).exists()]) for one in manifests]
        return [
            {"manifest": name, "files": len(some), "bytes": sum(move.size for move in some)} for name, some in moves if some
        ]

    def apply(self, request: Answer) -> Answer:
        assert self.found is not None
        chosen = {choice["group"]: set(choice["move"]) for choice in request["choices"]}
        groups = []
        for number, keys in chosen.items():
            group = self.found.groups[number]
            members = tuple(
                replace(one, stays=one.stays or ("" if {file.key for file in one.files} & keys else "kept"))
                for one in group.members
            )
            groups.append(replace(group, members=members))
        some = replace(self.found, groups=tuple(groups))
        spare = [file for group in some.groups for file in group.spare]
        values = {"schema": "seenit.moved/1", "dry_run": request["dry_run"], "to": str(self.move_to), "notes": [],
                  "left": [], "files": len(spare), "bytes": sum(file.size for file in spare)}  # fmt: skip
        if request["dry_run"]:
            return {**values, "manifest": None, "moved": []}
        moved = move_spare(some, self.move_to)
        forget_files(str(self.index), moved.moved)
        self.gone |= set(moved.moved)
        return {**values, "files": moved.files, "bytes": moved.size, "left": moved.left, "moved": moved.moved,
                "manifest": moved.manifest and Path(moved.manifest).name}  # fmt: skip

    def undo(self, request: Answer) -> Answer:
        moved = undo_moves(read_moves(self.move_to / request["manifest"]))
        self.gone = set()
        return {"schema": "seenit.moved/1", "dry_run": False, "files": moved.files, "bytes": moved.size,
                "left": moved.left, "manifest": request["manifest"], "to": "", "moved": [], "notes": []}  # fmt: skip

    # ---- routes ----

    def get(self, path: str, asked: dict[str, list[str]]) -> Answer:
        offset, limit = int(asked.get("offset", ["0"])[0]), int(asked.get("limit", ["200"])[0])
        if path == "/api/health":
            return {"schema": "seenit.health/1", "status": "ok", "token_required": False, "authorized": True}
        if path == "/api/info":
            return {**asdict(self.searcher.index.facts()), "schema": "seenit.info/1", "read_only": False}
        if path == "/api/tags":
            count = Counter(tag for record in self.records() for tag in record.tags)
            return {"tags": [{"tag": tag, "images": images} for tag, images in count.items()]}
        if path == "/api/folders":
            return {"folders": self.folders()}
        if path == "/api/images":
            found = self.listed(asked)
            return {"total": len(found), "offset": offset, "images": [self.values(one) for one in found[offset : offset + limit]],
                    "next_cursor": None}  # fmt: skip
        if path == "/api/dates":
            months = [f"{_taken_at(one):%Y-%m}" if one.metadata.taken_at else None for one in self.listed(asked)]
            return {"months": [{"month": one, "images": n, "offset": months.index(one)} for one, n in Counter(months).items()]}
        if path == "/api/skipped":
            files = [one for one in self.searcher.index.skipped() if one.reason]
            rows = [{"path": self.searcher.roots.path(one.key), "reason": one.reason} for one in files]
            return {"total": len(rows), "offset": offset, "files": rows[offset : offset + limit]}
        if path == "/api/duplicates":
            return self.duplicates(offset, limit)
        _, _, _, id, rest = path.split("/")
        assert rest == "info"
        return {"schema": "seenit.image/1", **self.values(self.record(id))}

    def folders(self) -> list[Answer]:
        tops = set(self.searcher.roots.folders.values())
        count: Counter[str] = Counter()
        for record in self.records():
            parents = {str(one) for file in record.files for one in Path(self.searcher.roots.path(file.key)).parents}
            count.update(one for one in parents if any(one == top or one.startswith(f"{top}/") for top in tops))
        return [
            {"path": one, "name": Path(one).name, "parent": None if one in tops else str(Path(one).parent), "images": n}
            for one, n in sorted(count.items())
        ]

    def post(self, path: str, request: Answer, uploads: list[tuple[str, bytes]]) -> Answer:
        if path == "/api/index":
            return self.start("index", self.run_index)
        if path == "/api/duplicates":
            return self.start("duplicates", lambda progress: self.run_duplicates(progress, request))
        with self.lock:
            if path == "/api/search":
                return self.search(request, uploads)
            if path == "/api/explain":
                return self.explain(request, uploads)
            return self.apply(request) if path == "/api/duplicates/apply" else self.undo(request)

    def put_tags(self, id: str, tags: list[str]) -> Answer:
        with self.lock, Index.open(self.index, write=True) as index:
            index.store.set_tags({id: tuple(sorted(set(tags)))})
        return {"schema": "seenit.image_tags/1", "id": id, "tags": tags}


def _handler(peer: PagePeer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            where = urlsplit(self.path)
            path, asked = unquote(where.path), parse_qs(where.query)
            if path == "/api/tasks/events":
                self.stream()
            elif path.startswith("/api/images/") and not path.endswith("/info"):
                self.image(path.split("/")[3], int(asked.get("size", ["0"])[0]))
            elif path.startswith("/api/"):
                self.answer(lambda: peer.get(path, asked))
            else:
                file = ROOT / "indexer" / "pages" / "theme.css" if path == "/theme.css" else PAGE / path.lstrip("/")
                file = file if file.is_file() else PAGE / "index.html"
                self.send(200, file.read_bytes(), mimetypes.guess_type(file.name)[0] or "text/plain")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind = self.headers.get("Content-Type", "")
            if not kind.startswith("multipart/"):
                self.answer(lambda: peer.post(self.path, json.loads(body or b"{}"), []))
                return
            message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
            request: Answer = {}
            uploads: list[tuple[str, bytes]] = []
            for part in message.iter_parts():  # type: ignore[attr-defined]
                data = part.get_payload(decode=True)
                if part.get_filename() is None:
                    request = json.loads(data)
                else:
                    uploads.append((part.get_filename(), data))
            self.answer(lambda: peer.post(self.path, request, uploads))

        def do_PUT(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(lambda: peer.put_tags(self.path.split("/")[3], body["tags"]))

        def answer(self, act: Callable[[], Answer]) -> None:
            try:
                status, values = 200, act()
            except ValueError as error:
                status, values = 404, {"schema": "seenit.error/1", "error": f"not found: {error}", "details": []}
            self.send(status, json.dumps(values).encode(), "application/json")

        def image(self, id: str, size_px: int) -> None:
            path = peer.path(peer.record(id))
            if not size_px:
                self.send(200, Path(path).read_bytes(), mimetypes.guess_type(path)[0] or "image/jpeg")
                return
            image = Image.fromarray(decode_file(path).pixels)
            image.thumbnail((size_px, size_px))
            packed = io.BytesIO()
            image.save(packed, "JPEG", quality=85)
            self.send(200, packed.getvalue(), "image/jpeg")

        def send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))),
                                ("Content-Security-Policy", POLICY)):  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def stream(self) -> None:
            listener: queue.Queue[tuple[str, Answer]] = queue.Queue()
            peer.listeners.append(listener)
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                for event, values in _events(listener):
                    self.wfile.write(f"event: {event}\ndata: {json.dumps(values)}\n\n".encode())
                    self.wfile.flush()

    return Handler


def _events(listener: "queue.Queue[tuple[str, Answer]]") -> Iterator[tuple[str, Answer]]:
    while True:
        yield listener.get()


def _taken_at(record: Record) -> datetime:
    assert record.metadata.taken_at is not None
    return record.metadata.taken_at


def _metadata(record: Record) -> Answer:
    found = asdict(record.metadata)
    shown = ("width", "height", "format", "date_source", "frames", "raw", "note")
    taken_at = record.metadata.taken_at
    return {name: found[name] for name in shown} | {"taken_at": taken_at.isoformat() if taken_at else None}


def _of_address(asked: dict[str, list[str]]) -> Answer:
    return {"under": asked.get("under", []), "tags": asked.get("tag", [])}


def _filter(given: Answer) -> Filter:
    times = {name: datetime.fromisoformat(f"{given[name]}T00:00:00+00:00") for name in ("after", "before") if given.get(name)}
    near = {"near": tuple(given["near"])} if given.get("near") else {}
    return Filter(
        under=tuple(given.get("under", ())), tags=tuple(given.get("tags", ())), camera=given.get("camera"), **times, **near
    )


def _result(result: Result) -> Answer:
    metadata = result.metadata
    return {
        "rank": result.rank, "id": result.id, "path": result.path, "score": result.score, **_evidence(result.evidence),
        "width": metadata.width, "height": metadata.height, "format": metadata.format, "camera": metadata.camera,
        "taken_at": metadata.taken_at.isoformat() if metadata.taken_at else None, "copies": result.copies,
        "tags": result.tags,
    }  # fmt: skip


def _evidence(evidence: Evidence | None) -> Answer:
    if evidence is None:
        return dict.fromkeys(("verdict", "match", "probability", "num_inliers", "box", "query_box"))
    return {
        "verdict": evidence.verdict, "match": evidence.believed, "probability": evidence.probability,
        "num_inliers": evidence.num_inliers, "box": evidence.box, "query_box": evidence.query_box,
    }  # fmt: skip
