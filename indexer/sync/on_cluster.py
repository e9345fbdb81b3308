"""The decoding and embedding of a run on a Ray cluster; the books stay here, so that nothing is lost or done twice.

The driver hands chunks of jobs to decoding tasks. What comes back to it is small; pixels stay with the workers. It
enters the outcomes into the ledger as on one machine, and of the images that have no vectors yet an actor makes
records. An actor writes to a server's collection by content id, and shards by a number that the driver gives: a call
that is repeated, because a worker was killed, writes the same once more. A driver that was killed begins with what the
store holds. An index in a folder has one writer, the driver.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ..cluster.decode_task import decode_jobs
from ..cluster.embed_actor import ActorSpec, EmbedActor
from ..cluster.session import Cluster, open_cluster
from ..cluster.shard_parts import ShardParts, ShardTarget
from ..descriptor.embedder import Embedder
from ..descriptor.pooling import PooledFeatures
from ..descriptor.whitening import Whitening, save_whitening
from ..errors import SeenitError
from ..images.jobs import Decoded, Job, Outcome
from ..index.records import what_was_said, with_what_was_said
from ..store.protocol import Record, Schema, is_url
from ..store.shard_store import ShardStore
from .scan import Run

CHUNK = 32  # images in a task; so much is decoded again when a worker is lost
CHUNKS_PER_CPU = 2  # begun and not taken yet; bounds what pixels take, some 5 MB a chunk
CALLS_PER_ACTOR = 2

Enter = Callable[[str, Outcome], bool]  # books an outcome; whether it is an image that is to be embedded


class ClusterEmbedder(Embedder):
    """An embedder whose forwards run on an actor: for the sample that statistics are fitted on."""

    def __init__(self, own: Embedder, cluster: Cluster, actor: Any) -> None:
        super().__init__(own.backbone, own.resolution, own.config)
        self._cluster, self._actor = cluster, actor

    def pooled(self, pixels: Sequence[np.ndarray]) -> PooledFeatures:
        pooled = self._cluster.result(self._actor.pooled.remote(list(pixels)))
        assert isinstance(pooled, PooledFeatures)
        return pooled


class ClusterWork:
    """A cluster and its actors for one run; see `open_work`."""

    def __init__(self, cluster: Cluster, spec: ActorSpec, gpus_per_actor: float, num_actors: int) -> None:
        self._cluster, self._spec = cluster, spec
        self._actors = [cluster.actor(EmbedActor, spec, gpus=gpus_per_actor) for _ in range(num_actors)]

    def embedder(self, own: Embedder) -> ClusterEmbedder:
        return ClusterEmbedder(own, self._cluster, self._actors[0])

    def embed(
        self,
        run: Run,
        whitening: Whitening,
        patch_size: int,
        keys: Iterator[str],
        enter: Enter,
        report: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> tuple[int, bool]:
        """Decode, embed and write images; how many were written, and whether `stop` cut it short.

        keys    of the images, taken as workers become free
        report  gets how many more are done
        """
        assert run.store is not None
        dim = whitening.global_dim
        run.store.ensure(Schema(dim))
        fitted = save_whitening(whitening)
        parts = None
        if self._spec.shards is not None:
            run.store.optimize()  # the sample, which is then kept whatever follows
            parts = ShardParts(_shards_of(run), also_old=not run.ledger.has_stale())
        merging = dict[Any, tuple[list[int], int]]()
        chunks = iter(lambda: [run.job(key, "decode") for key in islice(keys, CHUNK)], list[Job]())
        decoding: dict[Any, Any] = {}
        embedding = dict[Any, int]()  # with the number of the shard that is written
        most_decoding, most_embedding = CHUNKS_PER_CPU * self._cluster.cpus, CALLS_PER_ACTOR * len(self._actors)
        written = calls = 0
        interrupted = False
        while True:
            interrupted = interrupted or stop()
            while not interrupted and len(decoding) < most_decoding and len(embedding) < most_embedding:
                if not (jobs := next(chunks, None)):
                    break
                arguments = (jobs, self._spec.resolution, patch_size)
                light, pixels = self._cluster.task(decode_jobs, *arguments, returns=2)
                decoding[light] = pixels
            at_end = not decoding and not embedding
            if parts is not None and (due := parts.due(at_end=at_end)):
                calls += 1
                merging[self._actors[calls % len(self._actors)].merge.remote(*due, dim)] = due
            if at_end and not merging:
                return written, interrupted
            for done in self._cluster.wait([*decoding, *embedding, *merging], 0.5):
                if done in embedding:
                    written += self._book(run, self._cluster.result(done), parts, embedding.pop(done))
                    continue
                if done in merging:
                    merge = merging.pop(done)
                    if self._cluster.result(done) and parts is not None:
                        parts.merged(*merge)
                    continue
                pixels = decoding.pop(done)
                outcomes = self._cluster.result(done)
                images = [one for one in outcomes if enter(run.key(one), one) and isinstance(one, Decoded)]
                report(len(outcomes))
                if images:
                    files = {image.id: run.ledger.files(image.id) for image in images}
                    number = 0 if parts is None else parts.next_number()
                    said = {} if parts is None else what_was_said(run.store, [image.id for image in images])
                    actor = self._actors[calls % len(self._actors)]
                    embedding[actor.embed.remote(fitted, images, files, pixels, number, said)] = number
                    calls += 1

    @staticmethod
    def _book(run: Run, records: list[Record], parts: ShardParts | None, number: int) -> int:
        """Enter what an actor wrote; what it could not write comes with vectors."""
        assert run.store is not None
        whole = [record for record in records if record.global_vector is not None]
        if whole:
            run.store.upsert(with_what_was_said(run.store, whole))
        elif parts is not None:
            parts.wrote(number, [record.id for record in records])
        for record in records:
            run.ledger.wrote(record.id, record.files)
        return len(records)


def _shards_of(run: Run) -> ShardStore:
    assert isinstance(run.store, ShardStore)
    return run.store


class open_work:
    """`with open_work(run, embedder) as work:` the cluster that the run's options name, with its actors."""

    def __init__(self, run: Run, embedder: Embedder) -> None:
        options = run.options
        assert options.ray is not None and run.store is not None
        self._options = options
        location = run.store.location
        self._spec = ActorSpec(
            embedder.backbone.spec,
            embedder.backbone.hash,
            embedder.resolution,
            embedder.config.settings,
            location if is_url(location) else None,
            embedder.backbone.precision,
            ShardTarget.of(run.store) if isinstance(run.store, ShardStore) else None,
            None if embedder.backbone.ranges is None else embedder.backbone.ranges.save(),
        )
        self._session = open_cluster(options.ray, options.workers)

    def __enter__(self) -> ClusterWork:
        cluster = self._session.__enter__()
        try:
            gpus = self._options.gpus_per_actor
            if gpus > cluster.gpus:
                raise SeenitError(f"the cluster has {cluster.gpus:g} GPUs, --gpus-per-actor {gpus:g} asks for more")
            usual = int(cluster.gpus / gpus) if gpus else max(1, cluster.cpus // 4)
            actors = min(self._options.actors or usual, max(1, cluster.cpus - 1))  # a core is left for decoding
            return ClusterWork(cluster, self._spec, gpus, actors)
        except BaseException as error:
            self._session.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, *error: Any) -> None:
        self._session.__exit__(*error)
