"""An index's own 8-bit ranges: kept with it, the same for its queries, refused where they are not what they were."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from small_network import needs_vnni, network

from indexer import Backbone, Index, SyncOptions, copy_index, embed_into_shards, sync_folder
from indexer.backbone.byte_ranges import FORMAT, PLACES, ByteRanges
from indexer.backbone.checkpoint import save_checkpoint
from indexer.backbone.load_once import LoadOnce
from indexer.cluster.embed_actor import ActorSpec, EmbedActor
from indexer.errors import SeenitError
from indexer.index.statistics import RANGES_BLOB
from retrieval import Searcher, SearchOptions

DEPTH, DIM, HIDDEN = 3, 128, 512
SELF = SearchOptions(include_self=True)


def ranges(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    places = {}
    for name in PLACES:
        values = torch.randn(DEPTH, 3, HIDDEN if name == "hidden" else DIM, generator=generator)
        places[name] = values.sort(dim=1).values[:, [0, 2, 1]].half()  # least, greatest, mean
    return places | changed


def saved(places: dict[str, torch.Tensor], form: str = FORMAT) -> bytes:
    return safetensors.torch.save(places, {"format": form})


def test_ranges_are_read_as_they_were_written_and_told_apart() -> None:
    made = ByteRanges(ranges())
    again = ByteRanges.load(made.save())
    assert again.id == made.id and len(made.id) == 32
    assert all(torch.equal(again.places[name], made.places[name]) for name in PLACES)
    assert ByteRanges(ranges(key=ranges()["key"] * 2)).id != made.id
    assert made.fit(DEPTH, DIM, HIDDEN) and not made.fit(DEPTH, DIM, DIM) and not made.fit(DEPTH + 1, DIM, HIDDEN)


def test_values_beyond_half_precision_are_the_largest_it_has() -> None:
    block = {name: values[0].float() for name, values in ranges().items()}
    block["hidden"][1, 0] = 1e6
    made = ByteRanges.load(ByteRanges.of_blocks([block]).save())
    assert made.places["hidden"][0, 1, 0] == torch.finfo(torch.float16).max


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        saved(ranges(), "another"),
        saved({name: values for name, values in ranges().items() if name != "key"}),
        saved(ranges(more=torch.zeros(1))),
        saved(ranges(key=torch.zeros(DEPTH, 3, DIM))),
        saved(ranges(key=torch.zeros(DEPTH, 2, DIM).half())),
        saved(ranges(key=torch.zeros(DEPTH, 3, 0).half())),
        saved(ranges(hidden=torch.zeros(DEPTH - 1, 3, HIDDEN).half())),
        saved(ranges(key=torch.full((DEPTH, 3, DIM), torch.nan).half())),
        saved(ranges(key=torch.full((DEPTH, 3, DIM), torch.inf).half())),
        saved(ranges(key=ranges()["key"][:, [1, 0, 2]])),
        (n := len(json.dumps({"__metadata__": []}))).to_bytes(8, "little") + json.dumps({"__metadata__": []}).encode(),
    ],
)
def test_what_are_no_ranges_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(SeenitError, match="8-bit ranges are damaged") as told:
        ByteRanges.load(data)
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = network()
    file = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_checkpoint(file, model.state_dict(), model.architecture, name="small")
    return file


@pytest.mark.slow
@needs_vnni
def test_ranges_of_photos_bring_a_network_nearer_to_itself(small_backbone: Path) -> None:
    """By photos that drawn images are unlike: of one colour each, faint stripes on them."""
    rng = np.random.default_rng(0)
    stripes = (np.indices((70, 70)).sum(0) % 7)[None, :, :, None] * 2
    images = (rng.integers(0, 240, (24, 1, 1, 3)) + stripes).astype(np.uint8)
    drawn = Backbone.load(small_backbone, device="cpu", dtype="int8")
    own = drawn.with_own_ranges(list(images[:16]))
    assert drawn.ranges is None and own.ranges is not None and own.precision == "int8"
    exact = Backbone.load(small_backbone, device="cpu", dtype="float32").intermediate(images[16:], [2])[0]
    apart = []
    for backbone in (drawn, own):
        found = backbone.intermediate(images[16:], [2])[0]
        cosine = torch.cosine_similarity(found.patches.mean(1), exact.patches.mean(1), dim=-1)
        apart.append(1 - float(cosine.mean()))
    assert apart[1] < 0.8 * apart[0]
    again = Backbone.load(small_backbone, device="cpu", dtype="int8", ranges=ByteRanges.load(own.ranges.save()))
    assert torch.equal(again.intermediate(images[:2], [2])[0].cls, own.intermediate(images[:2], [2])[0].cls)


@pytest.mark.slow
@needs_vnni
def test_an_index_in_8_bits_keeps_the_ranges_of_its_images(photos: Path, small_backbone: Path, tmp_path: Path) -> None:
    location, options = tmp_path / "index", SyncOptions(resolution=70)
    sync_folder(photos, location, backbone=LoadOnce(small_backbone, precision="int8"), options=options)
    image = photos / "a" / "0.jpg"
    with Index.open(location) as index:
        kept = index.byte_ranges()
        assert kept is not None and kept.id == index.manifest.ranges and kept.fit(DEPTH, DIM, HIDDEN)
    with Searcher.open(location, precision="int8") as searcher:
        best = searcher.search(image, SELF)[0]
        assert best.path == str(image) and best.score > 0.9
        used = searcher.backbone.load("").ranges
        assert used is not None and used.id == kept.id
    with Searcher.open(location) as searcher:  # in another precision
        assert searcher.search(image, SELF)[0].path == str(image) and searcher.backbone.load("").ranges is None

    (photos / "more.jpg").write_bytes(image.read_bytes() + b"\0")
    later = LoadOnce()
    assert sync_folder(photos, location, backbone=later).embedded == 1
    loaded = later.load("").ranges
    assert loaded is not None and loaded.id == kept.id

    copy_index(location, tmp_path / "copy")
    with Index.open(tmp_path / "copy", write=True) as copied:
        there = copied.byte_ranges()
        assert there is not None and there.id == kept.id
        copied.store.write_blob(RANGES_BLOB, ByteRanges(ranges()).save())
    refused = r"cannot be used in 8 bits.*not the ones it names.*--precision bfloat16"
    with Searcher.open(tmp_path / "copy", precision="int8") as searcher, pytest.raises(SeenitError, match=refused):
        searcher.search(image)
    with Searcher.open(tmp_path / "copy", precision="float32") as searcher:
        assert searcher.search(image, SELF)[0].path == str(image)


@pytest.mark.slow
@needs_vnni
def test_shards_and_actors_of_a_cluster_have_them_too(photos: Path, small_backbone: Path, tmp_path: Path) -> None:
    once, options = LoadOnce(small_backbone, precision="int8"), SyncOptions(resolution=70)
    embed_into_shards(photos, tmp_path / "shards", backbone=once, options=options)
    copy_index(tmp_path / "shards", tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        kept, manifest = index.byte_ranges(), index.manifest
    assert kept is not None and manifest.ranges == kept.id
    spec = ActorSpec(
        manifest.backbone, manifest.backbone_hash, 70, manifest.descriptor, None, "int8", ranges=kept.save()
    )
    pixels = np.random.default_rng(0).integers(0, 256, (1, 70, 70, 3), dtype=np.uint8)
    by_actor = EmbedActor(spec).pooled(list(pixels))
    with Searcher.open(tmp_path / "index", precision="int8") as searcher:
        here = searcher._ready()[0].pooled(list(pixels))
    assert torch.equal(by_actor.parts, here.parts)


@pytest.mark.slow
@needs_vnni
def test_few_images_are_no_measure(tmp_path: Path, photos: Path, small_backbone: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    next(photos.rglob("*.jpg")).rename(one / "a.jpg")
    sync_folder(one, backbone=LoadOnce(small_backbone, precision="int8"), options=SyncOptions(resolution=70))
    with Index.open(one / ".seenit") as index:
        assert index.manifest.precision == "int8" and index.manifest.ranges == "" and index.byte_ranges() is None


def test_ranges_of_another_network_are_refused(small_backbone: Path) -> None:
    other = ByteRanges({name: values[:, :, :64] for name, values in ranges().items()})
    with pytest.raises(SeenitError, match=r"not of small.*--precision bfloat16"):
        Backbone.load(small_backbone, device="cpu", dtype="int8", ranges=other)
