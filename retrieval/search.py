"""Query -> ranked results, and why.

A query is an image (a path, a PIL image, an array) or a ready vector, or several images of one thing. Images are
embedded as the index's were, the engine finds the nearest records, and the best of them are compared patch by patch:
that gives the order, the place of the thing in each result, and how likely it is the same thing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from indexer.backbone.load_once import LoadOnce, load_once
from indexer.errors import ImageError, SeenitError
from indexer.images.decode import read_image_file
from indexer.images.metadata import content_id
from indexer.index.calibration import Calibration
from indexer.index.index import WAIT_S, Index
from indexer.index.keys import Roots
from indexer.index.manifest import Manifest
from indexer.messages import Say, say_nothing
from indexer.store.protocol import Hit, Record, Store

from .options import SearchOptions
from .query.encoder import QueryEncoder
from .query.feature_cache import FeatureCache, FeatureKey, KeptFeatures
from .query.query import EncodedQuery, Query, QueryImage, Region
from .rerank.evidence import CONVINCING_SCORE, MATCH_PROBABILITY, Evidence
from .results import Explained, Result

if TYPE_CHECKING:
    from indexer.backbone.backbone import Backbone
    from indexer.descriptor.embedder import Embedder
    from indexer.descriptor.whitening import Whitening

    from .rerank.ranking import Ranked
    from .show.inspect import Inspection

# Candidates at least that are compared patch by patch: 100 of up to 1,000 images, by the cube root more up to 200 at
# 8,000. Among 10,974 the first 100 lack a right one for 8 of 100 covers, 200 for 4; 400 bring nothing more in the end
RERANKED, MOST_RERANKED = 100, 200
# Of them as many as are asked for, and these at least, are compared by all patches and by place, after a glance at all.
# On covers, landmarks and paris the best 40 give the results that all give, the best 30 lose .01 recall@1 of covers
COMPARED_DEEPLY = 40
RERANKED_EXACT = 10_000  # of them with `exact`; not tuned
QUERIES_AT_ONCE = 128  # that are decoded and embedded together; not tuned
PATCHES_AT_ONCE = 20_000  # images whose patches are held in memory while queries are compared, 3 kB each
# Near-copies of a better result: chosen on 85 photos of buildings and covers, group_threshold.py. Cosines:
# resized copies .87 and more, cropped ones .53 to .8 (nine of ten over .62), different photos .51 at most
GROUP_COSINE = 0.6
GROUPED_FROM = 10  # times as many candidates as results are looked at for a better spread; not tuned
TRIES = 5  # to describe queries by statistics that hold until their answers are there


class Searcher:
    """An opened index; answers queries until it is closed. The backbone loads with the first image.

    with Searcher.open("photos/.seenit") as searcher:
        results = searcher.search("query.jpg", SearchOptions(top=10))
    """

    def __init__(self, index: Index, say: Say = say_nothing, precision: str = "auto") -> None:
        self.index = index
        self._say = say
        self._backbone = LoadOnce(say=say, precision=precision)
        self._embedder: Embedder | None = None
        self._features = FeatureCache()

    @classmethod
    def open(
        cls, index: str | Path | Index, *, wait_s: float = WAIT_S, say: Say = say_nothing, precision: str = "auto"
    ) -> "Searcher":
        """Open the index at a folder or a server's URL; SeenitError where there is none.

        precision  of the backbone, a `dtype` of `Backbone.load`; it need not be the one that made the index
        """
        return cls(Index.open(index, wait_s=wait_s), say, precision)

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

    @cached_property
    def encoder(self) -> QueryEncoder:
        """Made for the first query, since the vectors' length is asked of the store."""
        return QueryEncoder(self._ready, self.manifest.resolution, self.dim, self._features)

    def close(self) -> None:
        self.index.close()

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Searcher({self.index!r})"

    def search(
        self, query: Query, options: SearchOptions = SearchOptions(), *, region: Region | None = None
    ) -> list[Result]:
        """The images most like the query, best first; see `search_batch`.

        region  (x, y, width, height) of the part of the query image that counts: pixels, or fractions if all <= 1
        """
        return self.search_batch([query], options, regions=[region])[0]

    def search_batch(
        self,
        queries: Sequence[Query],
        options: SearchOptions = SearchOptions(),
        *,
        regions: Sequence[Region | None] | None = None,
    ) -> list[list[Result]]:
        """The `options.top` images most like each query, best first; embedded in batches, searched in one call.

        queries  paths, PIL images, uint8 arrays (H, W, 3) or (H, W), vectors (G,) as `embed` returns them, `MultiQuery`
                 for several images of one thing, or what `encode` made of any of these
        regions  of each query, as in `search`
        Raises ImageError for a query that cannot be read, SeenitError for another backbone or dimension.
        """
        if not queries:
            return []
        encode = partial(self.encode, queries, regions, include_self=options.include_self)
        return self._steady(encode, options)

    def search_files(
        self,
        paths: Sequence[str | Path],
        options: SearchOptions = SearchOptions(),
        *,
        region: Region | None = None,
    ) -> Iterator[tuple[str, list[Result] | ImageError]]:
        """Search with any number of image files; each with its results, or with why it cannot be read, as they come.

        Like `search_batch`, but decoded in worker processes, a bounded number at a time, and a broken file costs only
        its own answer.
        """
        if len(paths) == 1 or region is not None:
            for path in paths:
                try:
                    yield str(path), self.search(path, options, region=region)
                except ImageError as error:
                    yield str(path), error
            return
        with self.encoder.query_pool() as pool:
            for start in range(0, len(paths), QUERIES_AT_ONCE):
                group = [os.path.abspath(path) for path in paths[start : start + QUERIES_AT_ONCE]]
                files = self.encoder.decode_files(group, pool, include_self=options.include_self)
                answers: dict[str, list[Result] | ImageError] = dict(files.unread)
                answers |= zip(files.pixels, self._steady(files.encode, options), strict=True)
                for given, path in zip(paths[start:], group, strict=False):
                    yield str(given), answers[path]

    def encode(
        self,
        queries: Sequence[Query],
        regions: Sequence[Region | None] | None = None,
        *,
        include_self: bool = False,
    ) -> list[EncodedQuery]:
        """All that takes the backbone of a search with each query, in batches; see `search_batch` for the arguments."""
        return self.encoder.encode(queries, regions, include_self=include_self)

    def kept_features(self, id: str, region: Region | None = None) -> KeptFeatures | None:
        """What is known of an `IdentifiedImage` with this content id and region, from any thread.

        None where it must be decoded. What is known now may be forgotten, or outdated by a refit, when it is searched.
        """
        return self._features.get(FeatureKey(id, region, self.manifest.whitening_id))

    def embed(self, queries: Sequence[Query], regions: Sequence[Region | None] | None = None) -> np.ndarray:
        """Global descriptors (Q, G) float32, L2-normalised, of the whole images; each can be a query later on."""
        asked = self.encode(queries, regions)
        return np.stack([one.views[0].vector for one in asked])

    def explain(
        self, query: QueryImage, image: QueryImage, *, region: Region | None = None, image_id: str | None = None
    ) -> Explained:
        """Why an image is a match for the query or none; it need not be in the index.

        region    of the query, as in `search`
        image_id  content id of the image where it is known, so that it is compared as searches do it; of a path it is
                  found out
        Raises ImageError for a file that cannot be read.
        """
        from .rerank.heat import query_similarity_map, similarity_map
        from .rerank.neighbours import best_cosine
        from .rerank.ranking import rank_by_patches

        embedder, whitening = self._ready()
        (asked,) = self.encode([query], [region])
        seen = embedder.indexed(self.encoder.pixels(image), whitening)
        id = image_id or (content_id(read_image_file(image)) if isinstance(image, (str, Path)) else "")
        # where the image is in the index, it is compared as searches do it
        packed = self.store.patches([id] if id else []).get(id, seen.packed)

        def compare(asked: EncodedQuery) -> "Ranked":
            return rank_by_patches({id: packed}, asked, [Hit(id, best_cosine(asked, seen.view.vector))])

        ranked, views = compare(asked), asked.views
        if asked.sources and not self._match_at(ranked, 0):
            (turned,) = self.encoder.turned([asked])
            by_turned = compare(turned)
            if self._match_at(by_turned, 0):
                ranked, views = by_turned, (*views, *turned.views)
        evidence = self._evidence(ranked, 0)
        assert evidence is not None, "both are images, which have patches"
        return Explained(
            evidence,
            query_similarity_map(views, seen.view),
            np.max([similarity_map(seen.view, view) for view in views], axis=0),
        )

    def inspect(self, image: QueryImage) -> "Inspection":
        """What the index's descriptor sees in an image, patch by patch."""
        from .show.inspect import inspect_image

        return inspect_image(self.encoder.pixels(image), *self._ready())

    @property
    def dim(self) -> int:
        """Length G of a query vector."""
        return self.index.dim

    def awaiting_refit(self) -> int:
        """Records whose vectors an older whitening made, after a run was cut short; until then results are poor."""
        return self.index.awaiting_refit()

    # ---- the steps ----

    def _steady(self, encode: Callable[[], list[EncodedQuery]], options: SearchOptions) -> list[list[Result]]:
        """Results from one state of the index, with queries that were encoded by that state's whitening."""
        options = replace(options, where=self.index.with_keys(options.where))
        for _ in range(TRIES):
            self.index.refresh()
            asked = encode()  # no read is open meanwhile: this takes the backbone
            if not asked:
                return []
            with self.store.snapshot():
                if self.index.refresh():
                    continue
                ranked = self._ranked(asked, options)
                doubtful = self._doubtful(asked, ranked, options)
                if not doubtful:
                    return self._answers(asked, ranked, options)
            turned = self.encoder.turned([asked[n] for n in doubtful])
            with self.store.snapshot():
                if self.index.refresh():
                    continue
                self._take_turned(asked, ranked, doubtful, turned, options)
                return self._answers(asked, ranked, options)
        raise SeenitError(f"the index at {self.index.location} is being refitted again and again; search again later")

    def _ready(self) -> "tuple[Embedder, Whitening]":
        """The backbone that made the index, loaded on first use, and the statistics of today."""
        if self._embedder is None:
            made_by = self.manifest.backbone
            self._embedder = self.index.embedder(self._backbone.load(made_by, ranges=self.index.byte_ranges))
        return self._embedder, self.index.whitening

    @property
    def backbone(self) -> LoadOnce:
        """What made the index; loads on first use, and may be handed to a run that brings the index in line."""
        return self._backbone

    def use(self, backbone: "Backbone | LoadOnce") -> None:
        """Embed queries with an already loaded backbone; SeenitError if another one made the index."""
        self._backbone = load_once(backbone, self._say)
        self._embedder = self.index.embedder(self._backbone.load(self.manifest.backbone))

    def _doubtful(self, asked: Sequence[EncodedQuery], ranked: "Sequence[Ranked]", options: SearchOptions) -> list[int]:
        """Which queries are to be looked at turned: those with an image and no match, where patches can prove one."""
        if not options.rerank:
            return []
        matches = {
            n: [hit.id for place, hit in enumerate(ranked[n].hits) if self._match_at(ranked[n], place)]
            for n, one in enumerate(asked)
            if one.sources
        }
        # a query's own files are no match; of more matches than it has files one is another's, and nobody has to look
        unsure = {n: ids for n, ids in matches.items() if 0 < len(ids) <= len(asked[n].exclude_paths)}
        ids = list(dict.fromkeys(id for some in unsure.values() for id in some))
        files = {record.id: [file.key for file in record.files] for record in self.store.retrieve(ids)} if ids else {}
        for n, some in unsure.items():
            exclude_paths = asked[n].exclude_paths
            matches[n] = [id for id in some if self._other_paths(files.get(id, []), exclude_paths)]
        return [n for n, some in matches.items() if not some]

    def _take_turned(
        self,
        asked: list[EncodedQuery],
        ranked: "list[Ranked]",
        doubtful: Sequence[int],
        turned: Sequence[EncodedQuery],
        options: SearchOptions,
    ) -> None:
        """Add to the doubtful queries and their candidates what their turned crops prove, in place."""
        from .rerank.turned import take_proven

        if not doubtful:
            return
        for n, query, found in zip(doubtful, turned, self._ranked(turned, options), strict=True):
            ranked[n] = both = take_proven(ranked[n], found, self._match_at)
            places = [place for place in range(len(both.hits)) if self._match_at(both, place)]
            turns = {match.turn for match in map(both.match, places) if match is not None}
            views = tuple(view for view in query.views if view.turn in turns)
            asked[n] = replace(asked[n], views=asked[n].views + views)  # for what expansion asks again

    def _match_at(self, ranked: "Ranked", n: int) -> bool:
        known = self.calibration
        if known and known.most_probable(ranked.hits[n].score, ranked.consistency(n)) < MATCH_PROBABILITY:
            return False  # as nearly all candidates, whose colours need not be compared
        return self._trust(ranked, n) >= MATCH_PROBABILITY

    def _trust(self, ranked: "Ranked", n: int) -> float:
        """The probability that hit number n is a match; 1 or 0, by its score, where nothing is calibrated."""
        probability = self._probability(ranked, n)
        return float(ranked.hits[n].score >= CONVINCING_SCORE) if probability is None else probability

    def _probability(self, ranked: "Ranked", n: int) -> float | None:
        """That hit number n is a match; None where nothing is calibrated."""
        if self.calibration is None:
            return None
        return self.calibration.probability(ranked.hits[n].score, ranked.consistency(n), ranked.colour_difference(n))

    def _answers(
        self, asked: Sequence[EncodedQuery], ranked: "list[Ranked]", options: SearchOptions
    ) -> list[list[Result]]:
        """Results for each query from its candidates, with query expansion where that is asked for."""
        if options.expand:
            asked = [self._expanded(one, found, options.expand) for one, found in zip(asked, ranked, strict=True)]
            ranked = self._ranked(asked, options)
        if options.rerank or options.like_kind:
            from .like_kind import KindOrder

            order = KindOrder(self.index, self._match_at, self._trust)
            ranked = order.ordered(asked, ranked, options.where, like_kind=options.like_kind)
        # no more than its own files are left out of each, so these are the records that can be among the results
        most = options.top * (GROUPED_FROM if options.group else 1)
        best = [found.hits[: most + len(one.exclude_paths)] for one, found in zip(asked, ranked, strict=True)]
        ids = dict.fromkeys(hit.id for hits in best for hit in hits)
        records = {record.id: record for record in self.store.retrieve(list(ids), vectors=options.group)}
        return [
            self._to_results(found, records, options, one.exclude_paths)
            for one, found in zip(asked, ranked, strict=True)
        ]

    def _ranked(self, asked: Sequence[EncodedQuery], options: SearchOptions) -> "list[Ranked]":
        """The candidates of each query in their order. A record's cosine is that of the crop that it resembles most."""
        from .rerank.ranking import Ranked, rank_by_patches
        from .rerank.rerank import map_threads

        wanted = options.top * (GROUPED_FROM if options.group else 1) + max(
            len(one.exclude_paths) for one in asked
        )  # its own files may be among them
        deep = max(wanted, COMPARED_DEEPLY)
        if options.rerank:
            wanted = max(wanted, min(self.store.count(), RERANKED_EXACT) if options.exact else self._reranked)
        vectors = np.stack([view.vector for one in asked for view in one.views])
        of_views = iter(self.store.search(vectors, wanted, options.where, exact=options.exact))
        hits = [_best([next(of_views) for _ in one.views])[:wanted] for one in asked]
        if options.augment:
            hits = [self._augmented(one, found, options.augment) for one, found in zip(asked, hits, strict=True)]
        if not options.rerank:
            return [Ranked(found) for found in hits]
        ranked: list[Ranked] = []
        at_once = max(1, PATCHES_AT_ONCE // max(1, *map(len, hits)))
        for start in range(0, len(asked), at_once):
            some = hits[start : start + at_once]
            packed = self.store.patches(list(dict.fromkeys(hit.id for found in some for hit in found)))
            ranked += map_threads(partial(rank_by_patches, packed, deep=deep), asked[start : start + at_once], some)
        return ranked

    @cached_property
    def _reranked(self) -> int:
        return reranked_of(self.store.count())  # as it was at the first search, near enough

    def _expanded(self, asked: EncodedQuery, ranked: "Ranked", num_results: int) -> EncodedQuery:
        """The query with the vectors of its first results mixed in."""
        from .rerank.neighbours import expand_query

        found = self._vectors([hit.id for hit in ranked.hits[:num_results]])
        return expand_query(asked, np.stack(list(found.values()))) if found else asked

    def _augmented(self, asked: EncodedQuery, hits: Sequence[Hit], num_neighbours: int) -> list[Hit]:
        """The hits by the cosine of their vectors mixed with those of their own neighbours."""
        from .rerank.neighbours import augment_vector, best_cosine

        of_hits = self._vectors([hit.id for hit in hits])
        hits = [hit for hit in hits if hit.id in of_hits]
        if not hits:
            return []
        found = self.store.search(np.stack([of_hits[hit.id] for hit in hits]), num_neighbours + 1)
        known = of_hits | self._vectors(list({near.id for some in found for near in some} - set(of_hits)))
        scored = []
        for hit, neighbours in zip(hits, found, strict=True):
            others = np.stack([known[near.id] for near in neighbours if near.id in known])  # (A + 1, G), itself as well
            scored.append(replace(hit, score=best_cosine(asked, augment_vector(of_hits[hit.id], others))))
        return sorted(scored, key=lambda hit: -hit.score)

    def _vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The global vectors of records, in the order asked."""
        records = self.store.retrieve(ids, vectors=True)
        return {record.id: record.global_vector for record in records if record.global_vector is not None}

    def _to_results(
        self, ranked: "Ranked", records: dict[str, Record], options: SearchOptions, exclude_paths: Sequence[str]
    ) -> list[Result]:
        """Results of one query; the query's own files are left out, their copies elsewhere are not."""
        results: list[Result] = []
        shown: list[np.ndarray] = []  # vectors of the results, where near-copies are left out
        for n, hit in enumerate(ranked.hits):
            record = records.get(hit.id)
            keys = [file.key for file in record.files] if record else []
            if options.where.under:
                inside = [key for key in keys if any(key.startswith(folder + "/") for folder in options.where.under)]
                keys = inside + [key for key in keys if key not in inside]
            paths = self._other_paths(keys, exclude_paths)
            if record is None or not paths:
                continue
            evidence = self._evidence(ranked, n)
            if options.min_probability and ((evidence and evidence.probability) or 0) < options.min_probability:
                continue
            if options.group and record.global_vector is not None:
                if any(float(record.global_vector @ other) >= GROUP_COSINE for other in shown):
                    continue
                shown.append(record.global_vector)
            results.append(
                Result(
                    rank=len(results) + 1,
                    path=paths[0],
                    score=round(hit.score, 6),
                    id=hit.id,
                    metadata=record.metadata,
                    copies=tuple(paths[1:]),
                    tags=record.tags,
                    attributes=record.attributes,
                    evidence=evidence,
                )
            )
            if len(results) == options.top:
                break
        return results

    def _other_paths(self, keys: Sequence[str], exclude_paths: Sequence[str]) -> list[str]:
        paths = [self.roots.path(key) for key in keys]
        return [path for path in paths if not any(_same_path(path, one) for one in exclude_paths)]

    def _evidence(self, ranked: "Ranked", n: int) -> Evidence | None:
        """Of hit number n; None where patches were not compared."""
        match = ranked.match(n)
        if match is None:
            return None
        from .rerank.rerank import to_evidence

        return to_evidence(match, self._probability(ranked, n))


def reranked_of(count: int) -> int:
    """How many candidates at least are compared in an index of so many images."""
    return min(MOST_RERANKED, max(RERANKED, round(RERANKED * (count / 1000) ** (1 / 3))))


def _best(of_views: Sequence[Sequence[Hit]]) -> list[Hit]:
    """The hits of several views of one query as one list, each record with its best score."""
    best: dict[str, Hit] = {}
    for hit in (hit for hits in of_views for hit in hits):
        if hit.id not in best or hit.score > best[hit.id].score:
            best[hit.id] = hit
    return sorted(best.values(), key=lambda hit: -hit.score)


def _same_path(one: str, other: str) -> bool:
    if os.path.normcase(one) == os.path.normcase(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
