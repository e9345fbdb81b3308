"""Records that are made anew keep what users said of them, wherever they are made."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.backbone.backbone import Backbone
from indexer.cluster import embed_actor
from indexer.cluster.embed_actor import ActorSpec, EmbedActor
from indexer.descriptor.config import config_named
from indexer.descriptor.whitening import save_whitening
from indexer.images.jobs import Decoded
from indexer.images.metadata import Metadata, content_id
from indexer.index.records import make_records, with_what_was_said
from indexer.store.open import open_store
from indexer.store.protocol import Record, Schema, Store, StoredFile

FILES = (StoredFile("0/a.jpg", 3, 0),)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(tmp_path / "index", write=True)) as opened:
        yield opened


def test_tags_and_attributes_outlive_a_record_that_is_made_anew(
    store: Store, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.load(tiny_backbone)
    spec = ActorSpec(
        str(tiny_backbone), backbone.hash, 56, config_named("compact").settings, "http://there", backbone.precision
    )
    monkeypatch.setattr(embed_actor, "open_store", lambda location: store)
    actor = EmbedActor(spec)
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    image = Decoded("a.jpg", content_id(b"a"), 3, 0, pixels, (4, 4), Metadata(56, 56, "JPEG"))
    pooled = actor.pooled([pixels])
    whitening = actor._embedder.fit_whitening([pooled])
    store.ensure(Schema(whitening.global_dim))
    (made,) = make_records([image], pooled, whitening, lambda id: FILES)
    assert (made.tags, made.attributes, made.files) == ((), {}, FILES)
    store.upsert([replace(made, tags=("holiday",), attributes={"lens": 35})])

    def said(record: Record) -> tuple[object, ...]:
        return record.tags, record.attributes

    assert said(with_what_was_said(store, [made])[0]) == (("holiday",), {"lens": 35})
    actor.embed(save_whitening(whitening), [image], {image.id: FILES}, {"a.jpg": pixels})
    (written,) = store.retrieve([image.id])
    assert said(written) == (("holiday",), {"lens": 35})
