"""Query -> ranked results, and why.

A query is an image (a path, a PIL image, an array) or a ready vector, or several images of one thing. Images are
embedded as the index's were, the engine finds the nearest records, and the best of them are compared patch by patch:
that gives the order, the place of the thing in each result, and how likely it is the same thing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from indexer.backbone.load_once import LoadOnce, load_once
from indexer.errors import ImageError, SeenitError
from indexer.images.jobs import Decoded, Job, Outcome
from indexer.images.metadata import content_id
from indexer.images.pool import DecodePool
from indexer.images.preprocess import MIDDLE
from indexer.index.calibration import Calibration
from indexer.index.index import WAIT_S, Index
from indexer.index.keys import Roots
from indexer.index.manifest import Manifest
from indexer.store.protocol import Filter, Hit, Record, Store

from .query.query import EncodedQuery, Query, QueryImage, Region, as_together, combined, read_query, unit_vector
from .rerank.evidence import Evidence
from .results import Candidate, Explained, Result

if TYPE_CHECKING:
    from indexer.backbone.backbone import Backbone
    from indexer.descriptor.crops import QueryCrop
    from indexer.descriptor.embedder import Embedder
    from indexer.descriptor.features import CropFeatures
    from indexer.descriptor.whitening import Whitening

    from .rerank.rerank import Comparison
    from .show.inspect import Inspection

RERANKED = 100  # candidates at least that are compared patch by patch
RERANKED_EXACT = 10_000  # of them with `exact`
RERANK_BY_DEFAULT = True
QUERIES_AT_ONCE = 128
ALPHA = 3  # power of the cosines in query expansion
PATCHES_AT_ONCE = 20_000  # images whose patches are held in memory while queries are compared, 3 kB each
TRIES = 5  # to describe queries by statistics that hold until their answers are there


class Searcher:
    """An opened index; answers queries until it is closed. The backbone loads with the first image.

    with Searcher.open("photos/.seenit") as searcher:
        results = searcher.search("query.jpg", top=10)
    """

    def __init__(self, index: Index, say: Callable[[str], None] = lambda line: None) -> None:
        self.index = index
        self._say = say
        self._backbone = LoadOnce(say=say)
        self._embedder: Embedder | None = None

    @classmethod
    def open(
        cls, index: str | Path | Index, *, wait_s: float = WAIT_S, say: Callable[[str], None] = lambda line: None
    ) -> "Searcher":
        """Open the index at a folder or a server's URL; SeenitError where there is none."""
        return cls(Index.open(index, wait_s=wait_s), say)

    @property
    def store(self) -> Store:
        return self.index.store

    @property
    def manifest(self) -> Manifest:
        return self.index.manifest

    @property
    def roots(self) -> Roots:
        return self.index.roots

    @property
    def calibration(self) -> Calibration | None:
        return self.index.calibration

    def close(self) -> None:
        self.index.close()

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
        where: Filter = Filter(),
        rerank: bool = RERANK_BY_DEFAULT,
        exact: bool = False,
        include_self: bool = False,
        expand: int = 0,
        augment: int = 0,
    ) -> list[Result]:
        """The images most like the query, best first; see `search_batch`.

        region  (x, y, width, height) of the part of the query image that counts: pixels, or fractions if all <= 1
        """
        return self.search_batch(
            [query],
            top,
            regions=[region],
            where=where,
            rerank=rerank,
            exact=exact,
            include_self=include_self,
            expand=expand,
            augment=augment,
        )[0]

    def search_batch(
        self,
        queries: Sequence[Query],
        top: int = 10,
        *,
        regions: Sequence[Region | None] | None = None,
        where: Filter = Filter(),
        rerank: bool = RERANK_BY_DEFAULT,
        exact: bool = False,
        include_self: bool = False,
        expand: int = 0,
        augment: int = 0,
    ) -> list[list[Result]]:
        """The `top` images most like each query, best first; embedded in batches, searched in one call.

        queries       paths, PIL images, uint8 arrays (H, W, 3) or (H, W), vectors (G,) as `embed` returns them,
                      `Together` for several images of one thing, or what `prepare` made of any of these
        where         conditions that the engine applies
        rerank        compare the best (100 at least) patch by patch (images only; a vector has no patches)
        exact         compare with every record instead of walking the graph, and rerank all of them up to 10,000
        include_self  also return the query's own file where the index holds it
        expand        neighbours that the query takes in before it is asked again: alpha query expansion
        augment       neighbours that each candidate takes in before it is compared: database-side augmentation
        Raises ImageError for a query that cannot be read, SeenitError for another backbone or dimension.
        """
        if not queries:
            return []
        how = self._how(top, where, rerank, exact, expand, augment)
        return self._steady(lambda: self.prepare(queries, regions, include_self=include_self), how)

    def search_files(
        self,
        paths: Sequence[str | Path],
        top: int = 10,
        *,
        region: Region | None = None,
        where: Filter = Filter(),
        rerank: bool = RERANK_BY_DEFAULT,
        exact: bool = False,
        include_self: bool = False,
        expand: int = 0,
        augment: int = 0,
    ) -> Iterator[tuple[str, list[Result] | ImageError]]:
        """Search with any number of image files; each with its results, or with why it cannot be read, as they come.

        Like `search_batch`, but decoded in worker processes, a bounded number at a time, and a broken file costs only
        its own answer.
        """
        how = self._how(top, where, rerank, exact, expand, augment)
        if len(paths) == 1 or region is not None:
            for path in paths:
                prepared = partial(self.prepare, [path], [region], include_self=include_self)
                try:
                    yield str(path), self._steady(prepared, how)[0]
                except ImageError as error:
                    yield str(path), error
            return
        embedder, _ = self._ready()
        # as `_pixels` does it
        with DecodePool(resolution=round(embedder.resolution / MIDDLE), patch_size=1) as pool:
            for start in range(0, len(paths), QUERIES_AT_ONCE):
                group = [os.path.abspath(path) for path in paths[start : start + QUERIES_AT_ONCE]]
                outcomes = {outcome.path: outcome for outcome in pool.run(Job(path) for path in dict.fromkeys(group))}
                pixels = {path: found.pixels for path, found in outcomes.items() if isinstance(found, Decoded)}
                prepared = partial(self._prepare_decoded, pixels, include_self)
                by_path = dict(zip(pixels, self._steady(prepared, how), strict=True))
                for given, path in zip(paths[start:], group, strict=False):
                    yield str(given), by_path[path] if path in by_path else _why_not(outcomes[path])

    def prepare(
        self,
        queries: Sequence[Query],
        regions: Sequence[Region | None] | None = None,
        *,
        include_self: bool = False,
    ) -> list[EncodedQuery]:
        """All that takes the backbone of a search with each query, in batches; see `search_batch` for the arguments.

        The views of an image are those of `query_cuts`; of a region or a vector there is just one.
        """
        regions = regions or [None] * len(queries)
        images: list[tuple[QueryImage, Region | None]] = []  # of all queries, described in one go
        several = [as_together(query) for query in queries]
        for together, region in zip(several, regions, strict=True):
            if together:
                images += [(image, region) for image in together.images]
                images += [(image, None) for image in (*together.likes, *together.dislikes)]
        views = iter(self._describe(images))
        prepared = []
        for query, together in zip(queries, several, strict=True):
            if isinstance(query, EncodedQuery):
                prepared.append(query)
            elif together:
                own = [str(one) for one in (*together.images, *together.likes) if isinstance(one, (str, Path))]
                wanted, likes, unlike = (
                    [next(views) for _ in some] for some in (together.images, together.likes, together.dislikes)
                )
                no_answer = () if include_self else tuple(map(os.path.abspath, own))
                prepared.append(combined(wanted, likes, unlike, no_answer))
        return prepared

    def embed(self, queries: Sequence[Query], regions: Sequence[Region | None] | None = None) -> np.ndarray:
        """Global descriptors (Q, G) float32, L2-normalised, of the whole images; each can be a query later on."""
        asked = self.prepare(queries, regions)
        return np.stack([one.views[0].vector for one in asked])

    def candidates(self, queries: Sequence[Query]) -> "list[list[Candidate]]":
        """All that is compared patch by patch with each query, best first."""
        asked = self.prepare(queries, include_self=True)
        with self.store.snapshot():
            ranked = self._ranked(asked, SearchOptions(RERANKED))
        return [
            [Candidate(hit.id, hit.score, found.consistency(n)) for n, hit in enumerate(found.hits)] for found in ranked
        ]

    def explain(self, query: QueryImage, image: str | Path, *, region: Region | None = None) -> Explained:
        """Why an image is believed to show what the query shows, or not; it need not be in the index.

        region  of the query, as in `search`
        Raises ImageError for a file that cannot be read.
        """
        from .rerank.fuse import fuse_scores
        from .rerank.heat import query_similarity_map, similarity_map
        from .rerank.rerank import Comparison

        embedder, whitening = self._ready()
        (asked,) = self.prepare([query], [region])
        seen = embedder.indexed(self._pixels(image), whitening)
        # where the image is in the index, it is compared as searches do it
        stored = self.store.patches([content_id(Path(image).read_bytes())])
        comparison = Comparison(asked.views, [next(iter(stored.values()), seen.packed)])
        cosine = max(float(view.vector @ seen.view.vector) for view in asked.views)
        score = float(fuse_scores(np.array([cosine]), comparison.inlier_weight, comparison.distinctiveness)[0])
        return Explained(
            self._evidence(comparison, 0, score),
            query_similarity_map(asked.views, seen.view),
            np.max([similarity_map(seen.view, view) for view in asked.views], axis=0),
        )

    def inspect(self, image: QueryImage) -> "Inspection":
        """What the index's descriptor sees in an image, patch by patch."""
        from .show.inspect import inspect_image

        return inspect_image(self._pixels(image), *self._ready())

    @property
    def dim(self) -> int:
        """Length G of a query vector."""
        return self.index.dim

    def awaiting_refit(self) -> int:
        """Records whose vectors an older whitening made, after a run was cut short; until then results are poor."""
        return self.index.awaiting_refit()

    # ---- the steps ----

    def _how(self, top: int, where: Filter, rerank: bool, exact: bool, expand: int, augment: int) -> "SearchOptions":
        if top < 1:
            raise SeenitError(f"--top {top} asks for nothing; take 1 or more")
        return SearchOptions(top, self.index.with_keys(where), rerank, exact, expand, augment)

    def _steady(self, prepared: "Callable[[], list[EncodedQuery]]", how: "SearchOptions") -> list[list[Result]]:
        """Results from one state of the index, with queries that were described by that state's statistics."""
        for _ in range(TRIES):
            self.index.refresh()
            asked = prepared()  # no read is open meanwhile: this takes the backbone
            with self.store.snapshot():
                if not self.index.refresh():
                    return self._answers(asked, how)
        raise SeenitError(f"the index at {self.index.location} is being refitted again and again; search again later")

    def _prepare_decoded(self, pixels: dict[str, np.ndarray], include_self: bool) -> list[EncodedQuery]:
        """Queries whose files were decoded in other processes, by path."""
        embedder, whitening = self._ready()
        views = embedder.describe_queries(list(pixels.values()), whitening)
        return [
            EncodedQuery(tuple(of_path), exclude_paths=() if include_self else (path,))
            for path, of_path in zip(pixels, views, strict=True)
        ]

    def _describe(self, images: "Sequence[tuple[QueryImage, Region | None]]") -> "list[list[CropFeatures]]":
        from indexer.descriptor.features import CropFeatures

        views: list[list[CropFeatures]] = [[] for _ in images]
        wholes: dict[int, np.ndarray] = {}
        parts: dict[int, QueryCrop] = {}
        for n, (image, region) in enumerate(images):
            if isinstance(image, np.ndarray) and image.ndim == 1:
                views[n] = [CropFeatures(unit_vector(image), np.empty((0, 0), np.float32), (0, 0))]
            elif region is None:
                wholes[n] = self._pixels(image)
            else:
                parts[n] = read_query(image, region, self.manifest.resolution)
        if wholes or parts:
            embedder, whitening = self._ready()
            for n, of_image in zip(wholes, embedder.describe_queries(list(wholes.values()), whitening), strict=True):
                views[n] = of_image
            of_parts = embedder.describe([part.pixels for part in parts.values()], whitening)
            for (n, part), view in zip(parts.items(), of_parts, strict=True):
                views[n] = [replace(view, frame=part.frame)]
        if wrong := {len(view.vector) for of_image in views for view in of_image} - {self.dim}:
            raise SeenitError(
                f"a query vector has length {min(wrong)}, the index's have {self.dim}; take those of Searcher.embed"
            )
        return views

    def _pixels(self, image: QueryImage) -> np.ndarray:
        return read_query(image, None, self.manifest.resolution).pixels

    def _ready(self) -> "tuple[Embedder, Whitening]":
        """The backbone that made the index, loaded on first use, and the statistics of today."""
        if self._embedder is None:
            self._embedder = self.index.embedder(self._backbone.load(self.manifest.backbone))
        return self._embedder, self.index.whitening

    def use(self, backbone: "Backbone | LoadOnce") -> None:
        """Embed queries with an already loaded backbone; SeenitError if another one made the index."""
        self._backbone = load_once(backbone, self._say)
        self._embedder = self.index.embedder(self._backbone.load(self.manifest.backbone))

    def _answers(self, asked: "Sequence[EncodedQuery]", how: "SearchOptions") -> list[list[Result]]:
        """Results for each query. A record's cosine is that of the view that it resembles most."""
        if not asked:
            return []
        ranked = self._ranked(asked, how)
        if how.expand:
            asked = [self._expanded(one, found.hits[: how.expand]) for one, found in zip(asked, ranked, strict=True)]
            ranked = self._ranked(asked, how)
        # no more than its own files are left out of each, so these are the records that can be among the results
        best = [found.hits[: how.top + len(one.exclude_paths)] for one, found in zip(asked, ranked, strict=True)]
        ids = dict.fromkeys(hit.id for hits in best for hit in hits)
        records = {record.id: record for record in self.store.retrieve(list(ids))}
        return [
            self._to_results(found, records, how, one.exclude_paths) for one, found in zip(asked, ranked, strict=True)
        ]

    def _ranked(self, asked: "Sequence[EncodedQuery]", how: "SearchOptions") -> "list[_Ranked]":
        """The candidates of each query in their order."""
        wanted = how.top + max(len(one.exclude_paths) for one in asked)  # the query's own files may be among them
        if how.rerank:
            wanted = max(wanted, min(self.store.count(), RERANKED_EXACT) if how.exact else RERANKED)
        vectors = np.stack([view.vector for one in asked for view in one.views])
        of_views = iter(self.store.search(vectors, wanted, how.where, exact=how.exact))
        hits = [_best([next(of_views) for _ in one.views])[:wanted] for one in asked]
        if how.augment:
            hits = [self._augmented(one, found, how) for one, found in zip(asked, hits, strict=True)]
        if not how.rerank:
            return [_Ranked(found) for found in hits]
        from .rerank.rerank import map_threads

        ranked: list[_Ranked] = []
        at_once = max(1, PATCHES_AT_ONCE // max(1, *map(len, hits)))
        for start in range(0, len(asked), at_once):
            some = hits[start : start + at_once]
            packed = self.store.patches(list(dict.fromkeys(hit.id for found in some for hit in found)))
            ranked += map_threads(partial(_compared, packed), asked[start : start + at_once], some)
        return ranked

    def _expanded(self, asked: "EncodedQuery", best: Sequence[Hit]) -> "EncodedQuery":
        """The query with its first neighbours mixed in, weighted by cosine ** ALPHA (Radenovic et al., 2018)."""
        found = self._vectors([hit.id for hit in best])
        if not found:
            return asked
        vectors = np.stack(list(found.values()))  # (E, G)
        views = []
        for view in asked.views:
            weights = np.maximum(vectors @ view.vector, 0) ** ALPHA  # (E,)
            views.append(replace(view, vector=unit_vector(view.vector + weights @ vectors)))
        return replace(asked, views=tuple(views))

    def _augmented(self, asked: "EncodedQuery", hits: list[Hit], how: "SearchOptions") -> list[Hit]:
        """The hits by the cosine of their vectors mixed with those of their own neighbours (Arandjelovic and Zisserman,
        2012), done for the candidates at hand, so that the index need not be made anew as it grows."""
        own = self._vectors([hit.id for hit in hits])
        hits = [hit for hit in hits if hit.id in own]
        if not hits:
            return []
        found = self.store.search(np.stack([own[hit.id] for hit in hits]), how.augment + 1)
        known = own | self._vectors(list({near.id for some in found for near in some} - set(own)))
        scored = []
        for hit, neighbours in zip(hits, found, strict=True):
            vector = own[hit.id]
            others = np.stack([known[near.id] for near in neighbours if near.id in known])  # (A + 1, G), itself as well
            mixed = unit_vector((np.maximum(others @ vector, 0) ** ALPHA) @ others)
            scored.append(replace(hit, score=max(float(view.vector @ mixed) for view in asked.views)))
        return sorted(scored, key=lambda hit: -hit.score)

    def _vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The global vectors of records, in the order asked."""
        records = self.store.retrieve(ids, vectors=True)
        return {record.id: record.global_vector for record in records if record.global_vector is not None}

    def _to_results(
        self, ranked: "_Ranked", records: dict[str, Record], how: "SearchOptions", exclude_paths: Sequence[str]
    ) -> list[Result]:
        """Results of one query; the query's own files are left out, their copies elsewhere are not."""
        results: list[Result] = []
        for n, hit in enumerate(ranked.hits):
            record = records.get(hit.id)
            keys = [file.key for file in record.files] if record else []
            if how.where.under:
                inside = [key for key in keys if any(key.startswith(folder + "/") for folder in how.where.under)]
                keys = inside + [key for key in keys if key not in inside]
            paths = [self.roots.path(key) for key in keys]
            paths = [path for path in paths if not any(_same_path(path, one) for one in exclude_paths)]
            if record is None or not paths:
                continue
            comparison = ranked.comparison
            results.append(
                Result(
                    rank=len(results) + 1,
                    path=paths[0],
                    score=round(hit.score, 6),
                    id=hit.id,
                    metadata=record.metadata,
                    copies=tuple(paths[1:]),
                    tags=record.tags,
                    evidence=None if comparison is None else self._evidence(comparison, ranked.rows[n], hit.score),
                )
            )
            if len(results) == how.top:
                break
        return results

    def _evidence(self, comparison: "Comparison", row: int, score: float) -> Evidence:
        from .rerank.rerank import to_evidence

        known = self.calibration
        probability = known.probability(score, comparison.consistency(row)) if known else None
        return to_evidence(comparison.match(row), probability)


def _compared(packed: dict[str, bytes], asked: "EncodedQuery", hits: list[Hit]) -> "_Ranked":
    """The hits by cosine and patches together; what one has in common with a disliked image does not count.

    packed  patches by id, of the hits that have any
    """
    from .rerank.fuse import fuse_scores
    from .rerank.rerank import Comparison

    views = [view for view in asked.views if len(view.tokens)]
    hits = sorted(hits, key=lambda hit: hit.id not in packed)  # those without patches last
    of_hits = [packed[hit.id] for hit in hits if hit.id in packed]
    if not views or not of_hits:
        return _Ranked(hits)
    comparison = Comparison(views, of_hits)
    by_patches = np.stack([comparison.inlier_weight, comparison.distinctiveness])  # (2, candidates)
    if unlike := [view for view in asked.unlike if len(view.tokens)]:
        against = Comparison(unlike, of_hits)
        by_patches = np.maximum(by_patches - np.stack([against.inlier_weight, against.distinctiveness]), 0)
    by_patches = np.pad(by_patches, ((0, 0), (0, len(hits) - len(of_hits))))
    scores = fuse_scores(np.array([hit.score for hit in hits]), *by_patches)
    order = np.argsort(-scores, kind="stable").tolist()
    return _Ranked([replace(hits[n], score=float(scores[n])) for n in order], comparison, order)


@dataclass(frozen=True)
class SearchOptions:
    """What every query of a call is asked alike."""

    top: int
    where: Filter = Filter()
    rerank: bool = True
    exact: bool = False
    expand: int = 0
    augment: int = 0


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Candidates, best first; `rows` says where each stands in the comparison."""

    hits: list[Hit]
    comparison: "Comparison | None" = None
    rows: Sequence[int] = ()

    def consistency(self, n: int) -> float:
        """Of the patches of hit number n, in [0, 1)."""
        return self.comparison.consistency(self.rows[n]) if self.comparison else 0.0


def _best(of_views: Sequence[Sequence[Hit]]) -> list[Hit]:
    """The hits of several views of one query as one list, each record with its best score."""
    best: dict[str, Hit] = {}
    for hit in (hit for hits in of_views for hit in hits):
        if hit.id not in best or hit.score > best[hit.id].score:
            best[hit.id] = hit
    return sorted(best.values(), key=lambda hit: -hit.score)


def _why_not(outcome: Outcome) -> ImageError:
    """Why a query file gave no image."""
    reason = getattr(outcome, "reason", None)
    if reason is None:
        reason = {"NotAImage": "not an image of a format that is read here", "Vanished": "it is not there"}.get(
            type(outcome).__name__, "it changed while it was read"
        )
    return ImageError(outcome.path, reason)


def _same_path(one: str, other: str) -> bool:
    if os.path.normcase(one) == os.path.normcase(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
