"""Two walls of the same brick are not the same wall: what is a match among pairs that share a texture."""

from pathlib import Path

import pytest
from texture_scenes import texture_pairs

from indexer import sync_folder
from retrieval import Searcher
from retrieval.calibrate import calibrate
from retrieval.options import SearchOptions

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_texture_alone_is_no_match(tmp_path: Path) -> None:
    """With the shipped backbone; random weights tell nothing of textures."""
    pairs = texture_pairs(tmp_path / "drawn", 11, controls=11)
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for pair in pairs:
        pair.first.rename(gallery / pair.first.name)
    sync_folder(gallery, tmp_path / "index", backbone="seenit_vits14")
    assert calibrate(tmp_path / "index") is not None
    with Searcher.open(tmp_path / "index") as searcher:
        answers = searcher.search_batch([pair.second for pair in pairs], SearchOptions(len(pairs)))
    for pair, results in zip(pairs, answers, strict=True):
        (own,) = (result for result in results if Path(result.path).name == pair.first.name)
        assert own.evidence is not None
        if pair.same:
            assert own.rank == 1 and own.evidence.is_match, pair
        else:
            assert not own.evidence.is_match, pair
