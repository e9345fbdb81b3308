"""What a result says of itself: pixels, dictionaries, tables, one line."""

import json

import numpy as np
import pytest

from indexer.images.metadata import Metadata
from retrieval import Evidence, Result, to_dicts, to_pandas
from retrieval.show.schema import FoundImage

METADATA = Metadata(400, 200, "JPEG", keywords=("tower",), rating=4, title="A title")


def result(box: tuple[float, float, float, float] | None, rank: int = 1) -> Result:
    evidence = Evidence(0.9, True, 3, np.zeros((3, 5), np.float32), box=box)
    return Result(rank, "/photos/a b.jpg", 0.5, "id", METADATA, evidence=evidence)


def test_a_box_in_pixels() -> None:
    assert result((0.25, 0.5, 0.5, 0.25)).box_px == (100, 100, 200, 50)
    assert result((0, 0, 1, 1)).box_px == (0, 0, 400, 200)
    assert result(None).box_px is None
    assert Result(1, "/a.jpg", 0.5, "id", METADATA).box_px is None


@pytest.mark.slow
def test_a_dictionary_and_a_table_hold_what_the_json_does() -> None:
    (values,) = to_dicts([result((0.25, 0.5, 0.5, 0.25))])
    assert FoundImage.model_validate_json(json.dumps(values)).model_dump(mode="json") == values
    assert (values["probability"], values["keywords"], values["rating"]) == (pytest.approx(0.9), ["tower"], 4)
    table = to_pandas([result(None, rank) for rank in (1, 2)])
    assert list(table["rank"]) == [1, 2] and set(table.columns) == set(values)


def test_one_line() -> None:
    assert repr(result(None)) == "Result(1, 0.500, '/photos/a b.jpg', same: 90 % probable, 3 inliers)"
    assert repr(result(None).evidence) == "Evidence('same: 90 % probable, 3 inliers')"
