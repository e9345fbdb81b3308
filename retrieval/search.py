"""Query -> ranked results.

A query is a picture (a path, a PIL image, an array) or a ready vector. Pictures are embedded as the index's were, the
engine finds the nearest records, and the best of them may be rescored on patch tokens.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from indexer.decode_pool import DecodePool
from indexer.errors import PictureError, SeenitError
from indexer.images import decode_file
from indexer.manifest import Manifest, Roots, read_manifest
from indexer.preprocess import MIDDLE, detail_px, preprocess
from indexer.read_picture import Decoded, Job, Outcome
from indexer.store import Hit, Metadata, Store, Where, open_store

if TYPE_CHECKING:
    from indexer.backbone import Backbone
    from indexer.descriptor import Fit
    from indexer.embed import Embedder

Query: TypeAlias = "str | Path | Image.Image | np.ndarray"
Region: TypeAlias = tuple[float, float, float, float]

View: TypeAlias = tuple[np.ndarray, np.ndarray]  # of a query: global vector (G,), patch tokens (K, T)

RERANKED = 50  # candidates at least that are rescored on patch tokens
RERANK_BY_DEFAULT = True
PATCH_WEIGHT = 0.5  # of the patches' score in the fused one; tuned on smvs_dvd_covers and mcv_paintings
QUERIES_AT_ONCE = 128


@dataclass(frozen=True)
class Result:
    """One picture of the index that answers a query.

    rank     from 1
    path     absolute path of the picture; where copies exist, the first that meets the filters
    score    in [-1, 1], higher is more similar: cosine of the global descriptors, fused with the patches' when reranked
    id       content id of the picture
    copies   the other files with the same bytes
    """

    rank: int
    path: str
    score: float
    id: str
    metadata: Metadata
    copies: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class Searcher:
    """An opened index; answers queries until it is closed. The backbone loads with the first picture.

    with Searcher.open("photos/.seenit") as searcher:
        results = searcher.search("query.jpg", top=10)
    """

    def __init__(self, store: Store, manifest: Manifest, say: Callable[[str], None] = lambda line: None) -> None:
        self.store = store
        self.manifest = manifest
        self.roots = Roots(store.location, manifest.roots)
        self._say = say
        self._embedder: Embedder | None = None
        self._fit: Fit | None = None

    @classmethod
    def open(
        cls, index: str | Path, *, wait_s: float = 5.0, say: Callable[[str], None] = lambda line: None
    ) -> "Searcher":
        """Open the index at a folder or a server's URL.

        wait_s  how long to wait for another process that uses the index
        Raises SeenitError where there is no index, LockedError where another process holds it.
        """
        store = open_store(index, wait_s=wait_s)
        try:
            manifest = read_manifest(store)
            if manifest is None:
                raise SeenitError(f"no index at {index}; create one with: seenit index FOLDER --index {index}")
            return cls(store, manifest, say)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def search(
        self,
        query: Query,
        top: int = 10,
        *,
        region: Region | None = None,
        where: Where = Where(),
        rerank: bool = RERANK_BY_DEFAULT,
        exact: bool = False,
        include_self: bool = False,
    ) -> list[Result]:
        """The pictures most like the query, best first; see `search_batch`.

        region  (x, y, width, height) of the part of the query picture that counts: pixels, or fractions if all <= 1
        """
        return self.search_batch(
            [query],
            top,
            regions=[region],
            where=where,
            rerank=rerank,
            exact=exact,
            include_self=include_self,
        )[0]

    def search_batch(
        self,
        queries: Sequence[Query],
        top: int = 10,
        *,
        regions: Sequence[Region | None] | None = None,
        where: Where = Where(),
        rerank: bool = RERANK_BY_DEFAULT,
        exact: bool = False,
        include_self: bool = False,
    ) -> list[list[Result]]:
        """The `top` pictures most like each query, best first; embedded in batches, searched in one call.

        queries       paths, PIL images, uint8 arrays (H, W, 3) or (H, W), or vectors (G,) as `embed` returns them
        where         conditions that the engine applies
        rerank        rescore the best (50 at least) on patch tokens (pictures only; a vector has none)
        exact         compare with every record instead of walking the graph
        include_self  also return the query's own file where the index holds it
        Raises PictureError for a query that cannot be read, SeenitError for another backbone or dimension.
        """
        if not queries:
            return []
        views = self._describe(queries, list(regions or [None] * len(queries)))
        own = [query if isinstance(query, (str, Path)) and not include_self else None for query in queries]
        return self._answers(views, own, top, where, rerank, exact)

    def search_files(
        self,
        paths: Sequence[str | Path],
        top: int = 10,
        *,
        region: Region | None = None,
        where: Where = Where(),
        rerank: bool = RERANK_BY_DEFAULT,
        exact: bool = False,
        include_self: bool = False,
    ) -> Iterator[tuple[str, list[Result] | PictureError]]:
        """Search with any number of picture files; each with its results, or with why it cannot be read, as they come.

        Like `search_batch`, but decoded in worker processes, a bounded number at a time, and a broken file costs only
        its own answer.
        """
        if len(paths) == 1 or region is not None:
            for path in paths:
                try:
                    yield (
                        str(path),
                        self.search(
                            path,
                            top,
                            region=region,
                            where=where,
                            rerank=rerank,
                            exact=exact,
                            include_self=include_self,
                        ),
                    )
                except PictureError as error:
                    yield str(path), error
            return
        embedder, fit = self._ready()
        # as `_pixels` does it
        with DecodePool(resolution=round(embedder.resolution / MIDDLE), patch_size=1) as pool:
            for start in range(0, len(paths), QUERIES_AT_ONCE):
                group = [os.path.abspath(path) for path in paths[start : start + QUERIES_AT_ONCE]]
                outcomes = {outcome.path: outcome for outcome in pool.run(Job(path) for path in dict.fromkeys(group))}
                readable = [path for path in dict.fromkeys(group) if isinstance(outcomes[path], Decoded)]
                answers = self._answers(
                    embedder.describe_twice([outcomes[path].pixels for path in readable], fit),  # type: ignore[union-attr]
                    [None if include_self else path for path in readable],
                    top,
                    where,
                    rerank,
                    exact,
                )
                by_path = dict(zip(readable, answers, strict=True))
                for given, path in zip(paths[start:], group, strict=False):
                    yield str(given), by_path[path] if path in by_path else _why_not(outcomes[path])

    def embed(self, queries: Sequence[Query], regions: Sequence[Region | None] | None = None) -> np.ndarray:
        """Global descriptors (Q, G) float32, L2-normalised, of the whole pictures; each can be a query later on."""
        views = self._describe(queries, list(regions or [None] * len(queries)))
        return np.stack([of_query[0][0] for of_query in views])

    @property
    def dim(self) -> int:
        """Length G of a query vector."""
        schema = self.store.schema()
        return schema.global_dim if schema else 0

    def awaiting_refit(self) -> int:
        """Records whose vectors an older fit made, after a run that was cut short; results are poor until it is run."""
        return self.store.count(Where(not_fit=self.manifest.fit))

    # ---- the steps ----

    def _describe(self, queries: Sequence[Query], regions: Sequence[Region | None]) -> list[list[View]]:
        """The views of each query: of a picture the whole and its middle, of a region or a vector just one."""
        views: list[list[View]] = [[] for _ in queries]
        pictures: dict[int, np.ndarray] = {}
        parts: dict[int, np.ndarray] = {}
        for n, (query, region) in enumerate(zip(queries, regions, strict=True)):
            if isinstance(query, np.ndarray) and query.ndim == 1:
                views[n] = [(_unit(query), np.empty((0, 0), np.float32))]
            else:
                (pictures if region is None else parts)[n] = self._pixels(query, region)
        if pictures or parts:
            embedder, fit = self._ready()
            for n, both in zip(pictures, embedder.describe_twice(list(pictures.values()), fit), strict=True):
                views[n] = both
            for n, view in zip(parts, embedder.describe(list(parts.values()), fit), strict=True):
                views[n] = [view]
        if wrong := {len(vector) for of_query in views for vector, _ in of_query} - {self.dim}:
            raise SeenitError(
                f"a query vector has length {min(wrong)}, the index's have {self.dim}; take those of Searcher.embed"
            )
        return views

    def _pixels(self, query: Query, region: Region | None) -> np.ndarray:
        """The query's pixels (H, W, 3) uint8, cut to the region."""
        resolution = self.manifest.resolution
        whole = round(resolution / MIDDLE)  # leaves the middle as many pixels as the backbone sees
        if isinstance(query, (str, Path)):
            if region is not None:
                size = decode_file(query, target_px=64)
                box = box_in_pixels(region, size.width, size.height)
                return decode_file(query, target_px=detail_px(resolution), region=box).pixels
            pixels = decode_file(query, target_px=detail_px(whole)).pixels
        elif isinstance(query, Image.Image):
            pixels = np.asarray(query.convert("RGB"))
        elif isinstance(query, np.ndarray) and query.dtype == np.uint8 and query.ndim in (2, 3):
            pixels = np.repeat(query[..., None], 3, -1) if query.ndim == 2 else query[..., :3]
        else:
            raise SeenitError("a query is a path, a PIL image, a uint8 array (H, W, 3) or a vector (G,)")
        return cut(pixels, region) if region else preprocess(pixels, "aspect", whole, patch_size=1)

    def _ready(self) -> "tuple[Embedder, Fit]":
        """The backbone that made the index, loaded on first use."""
        if self._embedder is None or self._fit is None:
            from indexer.backbone import Backbone

            self.use(Backbone.load(self.manifest.backbone, say=self._say))
        assert self._embedder is not None and self._fit is not None
        return self._embedder, self._fit

    def use(self, backbone: "Backbone") -> None:
        """Embed queries with an already loaded backbone; SeenitError if another one made the index."""
        from indexer.embed import Embedder, check_backbone, read_fit

        check_backbone(self.manifest, backbone, self.store.location)
        self._embedder = Embedder(backbone, self.manifest.resolution)
        self._fit = read_fit(self.store, self.manifest, self._embedder.recipe)

    def _answers(
        self,
        views: Sequence[Sequence[View]],
        own: Sequence[str | Path | None],
        top: int,
        where: Where,
        rerank: bool,
        exact: bool,
    ) -> list[list[Result]]:
        """Results for each query; `own` is the query's own file where that is to be left out.

        A record's score is that of the view that it resembles most.
        """
        if top < 1:
            raise SeenitError(f"--top {top} asks for nothing; take 1 or more")
        if not views:
            return []
        wanted = max(top + 1, RERANKED if rerank else 0)  # one more, for the query's own file may be among them
        vectors = np.stack([vector for of_query in views for vector, _ in of_query])
        of_views = iter(self.store.search(vectors, wanted, where, exact=exact))
        hits = [_best([next(of_views) for _ in of_query])[:wanted] for of_query in views]
        if rerank:
            hits = self._rescored(hits, views)
        return [
            self._to_results(found, where, os.path.abspath(path) if path is not None else None)[:top]
            for found, path in zip(hits, own, strict=True)
        ]

    def _rescored(self, hits: list[list[Hit]], views: Sequence[Sequence[View]]) -> list[list[Hit]]:
        """Each query's hits with their patches' score fused in, best first; in one call to the engine."""
        asked = [(n, tokens) for n, of_query in enumerate(views) for _, tokens in of_query if len(tokens)]
        ids = [[hit.record.id for hit in hits[n]] for n, _ in asked]
        patch_scores: list[dict[str, float]] = [{} for _ in hits]
        for (n, _), scores in zip(asked, self.store.rescore([tokens for _, tokens in asked], ids), strict=True):
            for record_id, score in scores.items():
                patch_scores[n][record_id] = max(score, patch_scores[n].get(record_id, -1.0))
        return [
            sorted((_fused(hit, scores.get(hit.record.id)) for hit in found), key=lambda hit: -hit.score)
            for found, scores in zip(hits, patch_scores, strict=True)
        ]

    def _to_results(self, hits: Sequence[Hit], where: Where, own: str | None) -> list[Result]:
        """Results of one query; the query's own file is left out, its copies elsewhere are not."""
        results: list[Result] = []
        for hit in hits:
            keys = [file.key for file in hit.record.files]
            if where.under:
                inside = [key for key in keys if any(key.startswith(folder + "/") for folder in where.under)]
                keys = inside + [key for key in keys if key not in inside]
            paths = [self.roots.path(key) for key in keys]
            if own is not None:
                paths = [path for path in paths if not _same_path(path, own)]
            if not paths:
                continue
            results.append(
                Result(
                    rank=len(results) + 1,
                    path=paths[0],
                    score=round(hit.score, 6),
                    id=hit.record.id,
                    metadata=hit.record.metadata,
                    copies=tuple(paths[1:]),
                    tags=hit.record.tags,
                )
            )
        return results


def _fused(hit: Hit, patch_score: float | None) -> Hit:
    """Without a score of its patches (the query is a vector) a hit stays as it is."""
    if patch_score is None:
        return hit
    return replace(hit, score=(1 - PATCH_WEIGHT) * hit.score + PATCH_WEIGHT * patch_score)


def _best(of_views: Sequence[Sequence[Hit]]) -> list[Hit]:
    """The hits of several views of one query as one list, each record with its best score."""
    best: dict[str, Hit] = {}
    for hit in (hit for hits in of_views for hit in hits):
        if hit.record.id not in best or hit.score > best[hit.record.id].score:
            best[hit.record.id] = hit
    return sorted(best.values(), key=lambda hit: -hit.score)


def cut(pixels: np.ndarray, region: Region) -> np.ndarray:
    """The part of a picture (H, W, 3) in a box (x, y, width, height): pixels, or fractions if all are <= 1."""
    left, top, width, height = box_in_pixels(region, pixels.shape[1], pixels.shape[0])
    return pixels[top : top + height, left : left + width]


def box_in_pixels(region: Region, width: int, height: int) -> tuple[int, int, int, int]:
    """A region as whole pixels (x, y, width, height) of a picture of that size, clipped to it."""
    x, y, w, h = region
    if max(region) <= 1:
        x, y, w, h = x * width, y * height, w * width, h * height
    left, top = max(round(x), 0), max(round(y), 0)
    right, bottom = min(round(x + w), width), min(round(y + h), height)
    if right - left < 2 or bottom - top < 2:
        raise SeenitError(
            f"the region {','.join(f'{value:g}' for value in region)} leaves nothing of a picture of {width}x{height}"
            " pixels; give X,Y,W,H inside it"
        )
    return left, top, right - left, bottom - top


def _why_not(outcome: Outcome) -> PictureError:
    """Why a query file gave no picture."""
    reason = getattr(outcome, "reason", None)
    if reason is None:
        reason = {"NotAPicture": "not a picture of a format that is read here", "Vanished": "it is not there"}.get(
            type(outcome).__name__, "it changed while it was read"
        )
    return PictureError(outcome.path, reason)


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0:
        raise SeenitError("a query vector must be finite and not zero")
    return (vector / norm).astype(np.float32)


def _same_path(one: str, other: str) -> bool:
    if os.path.normcase(one) == os.path.normcase(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
