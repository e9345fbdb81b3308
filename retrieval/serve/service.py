"""What a server does, without HTTP: one opened index with everything that answers about it."""

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread

from indexer.errors import ImageError, SeenitError
from indexer.images.decode import Limits
from indexer.images.metadata import ID_PATTERN
from indexer.index.index import Index
from indexer.messages import Say, say_nothing
from indexer.store.protocol import Filter, Record, is_url
from indexer.sync.options import SyncOptions
from indexer.sync.watch import Backoff, FolderWatch
from indexer.version import VERSION

from ..duplicates.choices import default_target
from ..options import SearchOptions
from ..query.feature_cache import IdentifiedImage
from ..query.query import MultiQuery, QueryImage, Region
from ..results import Explained, Result
from ..search import Searcher
from ..show.schema import Asked, AskedImage, Explanation, SearchAnswer, explanation, search_answer
from .answers import InfoAnswer
from .batching import Batcher
from .decoding import Decoder, Source
from .duplicates import DuplicateReview
from .files import ThumbnailCache, sources, thumbnail_size
from .library import Library
from .refusal import Refusal, busy
from .requests import ExplainBody, Filters, IndexBody, Options, QueryBody
from .task import Task
from .task_board import TaskBoard
from .tasks import Handle, Outcome, Stopped, Tasks
from .uploads import MAX_FILE_BYTES, Upload, Uploads

DECODING_THREADS = 16  # that wait for the decoder processes
DECODING_WAITING = 256  # requests that may wait for such a thread: a page asks for a hundred thumbnails at once
MAX_PIXELS = 200_000_000
TAGS_WAIT_S = 3.0  # for another process that writes

Returned = TypeVar("Returned")


@dataclass(frozen=True)
class ServeOptions:
    """How an index is served.

    read_only       nothing of the index or of files is changed
    watch           bring the index in line when files change
    move_to         folder for spare duplicates; None: `.seenit-moved` in the first indexed folder
    workers         decoding processes; None: as many as cores
    max_file_bytes  of one upload
    precision       what the backbone computes in, a `dtype` of `Backbone.load`; `auto` with `watch`: what the index
                    was made in
    """

    read_only: bool = False
    watch: bool = False
    move_to: str | None = None
    workers: int | None = None
    max_file_bytes: int = MAX_FILE_BYTES
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class _Image:
    """One image of a query: what is searched with, and what is told of it."""

    image: QueryImage
    told: AskedImage
    own_paths: tuple[str, ...] = ()


class Service:
    """One opened index, served. Open it with `open`; `close` finishes what runs."""

    def __init__(self, searcher: Searcher, options: ServeOptions = ServeOptions()) -> None:
        self.searcher = searcher
        self.options = options
        self.stopping = threading.Event()
        self.batcher = Batcher(searcher.search_batch)
        limits = Limits(max_pixels=MAX_PIXELS, max_file_bytes=max(options.max_file_bytes, Limits.max_file_bytes))
        self.decoder = Decoder(self.index.manifest.resolution, limits, options.workers)
        self.uploads = Uploads(options.max_file_bytes)
        self.library = Library(self.index, self.refresh)
        self.thumbnails = ThumbnailCache()
        # several processes may serve an index on a server, behind one name
        self._board = TaskBoard(self.index.store) if is_url(self.index.location) else None
        self.tasks = Tasks(self._board)
        self.review = DuplicateReview(self.index, options.move_to or default_target(self.index.roots))
        self.decoding = CapacityLimiter(DECODING_THREADS)
        self._reader = threading.Thread(target=self._read_library, name="seenit-library", daemon=True)
        self._watcher: threading.Thread | None = None
        if options.watch:
            self._watcher = threading.Thread(target=self._watch, name="seenit-watch", daemon=True)
            self._watcher.start()

    @classmethod
    def open(cls, location: str, options: ServeOptions = ServeOptions(), say: Say = say_nothing) -> "Service":
        """Serve the index at a folder or a server's URL; SeenitError where there is none."""
        service = cls(Searcher.open(location, say=say, precision=options.precision), options)
        backbone, made = service.searcher.backbone, service.index.manifest
        precision = made.precision if options.watch else "auto"
        load = partial(backbone.load, made.backbone, precision=precision, ranges=service.index.byte_ranges)
        loading = service.batcher.call(load)  # before any query
        loading.add_done_callback(
            lambda done: say(f"no search will be answered: {e}") if (e := done.exception()) else None
        )
        service._reader.start()
        return service

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def index(self) -> Index:
        return self.searcher.index

    def close(self) -> None:
        """Finish what runs, and close the index; safe to call twice."""
        self.stopping.set()
        self.tasks.close()
        self.batcher.close()
        for thread in (self._watcher, self._reader):
            if thread is not None and thread.is_alive():
                thread.join()
        self.decoder.close()
        self.uploads.close()
        self.searcher.close()

    def refresh(self) -> None:
        """Take over what another process changed; in the thread that searches, so that no search misses it."""
        self.batcher.call(self.index.refresh).result()

    def _read_library(self) -> None:
        """Sort the library before somebody asks; what goes wrong is told to who asks."""
        with suppress(SeenitError, Refusal):
            self.library.listing(Filter())
            if self._board is not None and not self.options.read_only:
                self._board.tidy()

    # ---- searching ----

    async def search(
        self, body: QueryBody, filters: Filters, options: Options, uploads: Sequence[Upload] = ()
    ) -> SearchAnswer:
        """The answer to one query; see `Searcher.search_batch` for what is raised."""
        started = time.monotonic()
        query, asked = await self.decoded(self._query, body, uploads)
        search_options = options.to_options(filters)
        results = await self._results(query, search_options)
        asked = asked.model_copy(
            update={"filters": filters.model_dump(mode="json"), "options": options.model_dump(mode="json")}
        )
        seconds = round(time.monotonic() - started, 4)
        return search_answer(asked.images[0].name, results, asked=asked, seconds=seconds)

    async def _results(self, query: MultiQuery, options: SearchOptions) -> list[Result]:
        return await asyncio.wrap_future(self.batcher.search(query, options))

    async def explain(self, body: ExplainBody, uploads: Sequence[Upload] = ()) -> Explanation:
        """Two images held against each other."""
        query, image = await self.decoded(self._explained_images, body, uploads)
        if isinstance(query.image, np.ndarray) or isinstance(image.image, np.ndarray):
            raise Refusal(404, "the file of an indexed image is not here, and without it nothing can be explained")
        work = partial(self.searcher.explain, query.image, image.image, image_id=image.told.id)
        found: Explained = await asyncio.wrap_future(self.batcher.call(work))
        return explanation(query.told.name, image.told.name, found, similarity=body.similarity)

    async def decoded(self, work: Callable[..., Returned], *arguments: Any) -> Returned:
        """Work that waits for decoder processes, in a thread of few; Refusal 429 where too much waits for one."""
        if self.decoding.statistics().tasks_waiting >= DECODING_WAITING:
            raise busy("too many images wait to be decoded")
        return await to_thread.run_sync(partial(work, *arguments), limiter=self.decoding)

    def _query(self, body: QueryBody, uploads: Sequence[Upload]) -> tuple[MultiQuery, Asked]:
        images: list[_Image] = []

        def region_of_next() -> Region | None:
            return body.region if not images else None

        for upload in uploads:
            if upload.part == "image":
                images.append(self._uploaded(upload, region_of_next()))
        for id in ([body.id] if body.id else []) + list(body.ids):
            images.append(self._indexed(id, region_of_next()))
        if body.path is not None:
            images.append(self._indexed(body.path, region_of_next()))
        if body.vector is not None:
            if body.region is not None and not images:
                raise Refusal(422, "a vector has no region; leave it out, or search with an image")
            images.append(_Image(np.array(body.vector, np.float32), AskedImage(name="vector")))
        if not images:
            raise Refusal(422, "nothing to search with: send an image, an id, the path of an indexed file, or a vector")
        likes = [self._uploaded(one, None) for one in uploads if one.part == "like"]
        likes += [self._indexed(one, None) for one in body.like]
        dislikes = [self._uploaded(one, None) for one in uploads if one.part == "not"]
        dislikes += [self._indexed(one, None) for one in body.unlike]
        query = MultiQuery(
            tuple(one.image for one in images),
            tuple(one.image for one in likes),
            tuple(one.image for one in dislikes),
            tuple(path for one in (*images, *likes) for path in one.own_paths),
        )
        asked = Asked(
            images=tuple(one.told for one in images),
            like=tuple(one.told for one in likes),
            unlike=tuple(one.told for one in dislikes),
            region=body.region,
        )
        return query, asked

    def _explained_images(self, body: ExplainBody, uploads: Sequence[Upload]) -> tuple[_Image, _Image]:
        found: list[_Image] = []
        for part, named, region in (("query", body.query, body.region), ("image", body.image, None)):
            sent = [upload for upload in uploads if upload.part == part]
            if len(sent) + (named is not None) != 1:
                raise Refusal(422, f"name or upload one {part}")
            found.append(self._uploaded(sent[0], region) if sent else self._indexed(named or "", region))
        query, image = found
        if isinstance(image.image, IdentifiedImage):  # its pixels are needed; not to be read by the searching thread
            image = replace(image, image=image.image.read())
        return query, image

    def _uploaded(self, upload: Upload, region: Region | None) -> _Image:
        image = self._identified(upload.source, region)
        indexed = bool(self.index.store.retrieve([image.id]))
        return _Image(image, _told(upload.source.name, image, indexed))

    def _identified(self, source: Source, region: Region | None) -> IdentifiedImage:
        """An image, decoded now unless its features are known from an earlier query; ImageError as `Decoder.query`."""
        known = self.searcher.kept_features(source.id, region)
        if known is not None:
            return IdentifiedImage(source.id, region, known.size, lambda: self.decoder.query(source, region).crop)
        found = self.decoder.query(source, region)
        size = found.metadata.width, found.metadata.height
        return IdentifiedImage(source.id, region, size, lambda: found.crop)

    def _indexed(self, named: str, region: Region | None) -> _Image:
        """An image of the index, by id or path; by its vector alone where its file is not here."""
        record = self.record(named)
        files = sources(self.index, record)
        paths = tuple(source.path for source in files)
        own = (named,) if os.path.isabs(named) else paths  # copies of a file that is named by its path are answers
        name = next(iter(own), record.id)
        why: ImageError | None = None
        for source in files:
            try:
                image = self._identified(source, region)
                return _Image(image, _told(name, image, True), own)
            except ImageError as error:
                why = error
        if region is not None and why is not None:
            raise why
        found = self.index.store.retrieve([record.id], vectors=True)
        if not found or found[0].global_vector is None:
            raise Refusal(404, f"the index let go of {record.id} just now")
        told = AskedImage(
            name=name, id=record.id, indexed=True, width=record.metadata.width, height=record.metadata.height
        )
        return _Image(found[0].global_vector, told, own)

    # ---- looking up ----

    def record(self, named: str) -> Record:
        """An image of the index by its id, or by the path of one of its files; Refusal 404 for another."""
        id = named if re.match(ID_PATTERN, named) else self.library.id_of(named) if os.path.isabs(named) else None
        found = self.index.store.retrieve([id]) if id else []
        if not found:
            raise Refusal(404, f"the index holds no image {named[:300]!r}; name an id, or the path of an indexed file")
        return found[0]

    def thumbnail(self, id: str, asked_px: int) -> bytes:
        """A JPEG of an indexed image; Refusal 404 where it cannot be shown, with the reason."""
        size_px = thumbnail_size(asked_px)
        kept = self.thumbnails.get(id, size_px)
        if kept is not None:
            return kept
        why = "the index names no file"
        for source in sources(self.index, self.record(id)):
            try:
                data = self.decoder.thumbnail(source, size_px)
            except ImageError as error:
                why = error.reason
                continue
            self.thumbnails.put(id, size_px, data)
            return data
        raise Refusal(404, f"cannot show {id}: {why}")

    def where(self, filters: Filters) -> Filter:
        """Conditions as the store takes them."""
        return self.index.with_keys(filters.to_filter())

    def info(self) -> InfoAnswer:
        facts = self.index.facts()
        return InfoAnswer(
            **{**asdict(facts), "dimensions": facts.dimensions.global_dim if facts.dimensions else None},
            version=VERSION,
            read_only=self.options.read_only,
            watching=self.options.watch,
            move_to=None if self.options.read_only else self.review.move_to,
        )

    # ---- changing ----

    def check_writable(self) -> None:
        if self.options.read_only:
            raise Refusal(403, "this server only reads; start it without --read-only")

    def set_tags(self, id: str, change: Callable[[tuple[str, ...]], Sequence[str]]) -> tuple[str, ...]:
        """Change the tags of an image; what it has then. Raises LockedError where another process writes."""
        self.check_writable()
        self.record(id)
        if self.tasks.running == "index" and not is_url(self.index.location):
            raise Refusal(409, "the index is being written; change tags when that is done")
        with Index.open(self.index.location, write=True, wait_s=TAGS_WAIT_S) as opened:
            found = opened.store.retrieve([id])
            if not found:
                raise Refusal(404, f"the index holds no image {id}")
            tags = tuple(sorted(set(change(found[0].tags))))
            if tags != found[0].tags:
                opened.store.set_tags({id: tags})
                self.library.forget()
        return tags

    def start_index(self, body: IndexBody) -> Task:
        """Begin to bring the index in line with its folders."""
        self.check_writable()
        options = SyncOptions(
            allow_empty=body.allow_empty, follow_links=body.follow_links, workers=self.options.workers
        )
        return self.tasks.start("index", partial(self._bring_in_line, options))

    def _bring_in_line(self, options: SyncOptions, handle: Handle) -> Outcome:
        from ..build import build_index

        built = build_index(
            (),
            self.index.location,
            options=options,
            backbone=self.searcher.backbone,
            progress=handle.progress,
            stop=handle.stopped,
            say=handle.say,
        )
        self.refresh()
        self.library.forget()
        if built.interrupted:
            raise Stopped
        changes = built.summary.changes
        message = f"added {changes.added:,}, updated {changes.updated:,}, removed {changes.removed:,}"
        return Outcome(message, asdict(built.summary), (*built.summary.notes, *built.notes))

    def _watch(self) -> None:
        """Start a run after each change below the folders, until the server stops."""
        backoff = Backoff()
        while not self.stopping.is_set():
            watch = FolderWatch(list(self.index.roots.folders.values()), self.index.location)
            try:
                while watch.wait(self.stopping) and not watch.problem:
                    backoff.reset()
                    watch.clear()
                    self._start_when_free()
            finally:
                watch.close()
            self.stopping.wait(backoff.next_s())

    def _start_when_free(self) -> None:
        while not self.stopping.is_set():
            try:
                self.start_index(IndexBody())
                return
            except Refusal:  # something runs; what changed meanwhile is taken up after it
                self.stopping.wait(1.0)


def _told(name: str, image: IdentifiedImage, indexed: bool) -> AskedImage:
    return AskedImage(name=name, id=image.id, indexed=indexed, width=image.size[0], height=image.size[1])
