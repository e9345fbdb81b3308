"""Tags and attributes written to a file and read into another index."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from indexer import SyncOptions, sync_folder
from indexer.errors import SeenitError
from indexer.index.index import Index
from indexer.index.tags import export_tags, import_tags

ELSEWHERE = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def index(photos: Path, tmp_path: Path, tiny_backbone: Path) -> Path:
    sync_folder(photos, tmp_path / "index", options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    return tmp_path / "index"


def described(index: Path) -> list[str]:
    """Two ids: the first gets tags and attributes, the second attributes."""
    with Index.open(index, write=True) as opened:
        first, second = [record.id for record in opened.store.scroll()][:2]
        opened.store.set_tags({first: ("b", "a")})
        opened.store.set_attributes({first: {"lens": 35, "of": ["x", "y"]}, second: {"sku": "7"}})
    return [first, second]


@pytest.mark.slow
def test_another_index_gets_them_and_keeps_its_own(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "other")
    first, second = described(index)
    with Index.open(tmp_path / "other", write=True) as opened:
        opened.store.set_tags({first: ("own",)})
        opened.store.set_attributes({first: {"lens": 50}})
    data = export_tags(index)
    assert json.loads(data)["format"] == 2
    done = import_tags(tmp_path / "other", data)
    assert (done.tagged, done.described, done.unknown, done.left_out) == (1, 2, 0, 0)
    with Index.open(tmp_path / "other") as opened:
        assert opened.store.tags_of([first])[first] == ("a", "b", "own")
        assert opened.store.attributes_of([first, second]) == {
            first: {"lens": 50, "of": ["x", "y"]},
            second: {"sku": "7"},
        }
    again = import_tags(tmp_path / "other", data)
    assert (again.tagged, again.described) == (0, 0)


@pytest.mark.slow
def test_without_attributes_the_format_is_as_it_was(index: Path) -> None:
    with Index.open(index, write=True) as opened:
        opened.store.set_tags({next(opened.store.scroll()).id: ("a",)})
    assert json.loads(export_tags(index))["format"] == 1


@pytest.mark.slow
def test_ids_that_are_not_there(index: Path, tmp_path: Path) -> None:
    file = tmp_path / "tags.json"
    file.write_text(json.dumps({"format": 2, "tags": {ELSEWHERE: ["a"]}, "attributes": {ELSEWHERE: {"x": 1}}}))
    done = CliRunner().invoke(cli.app, ["tag", "import", str(file), "--index", str(index)])
    assert done.exit_code == 0 and "tagged 0 images; 1 are not in the index" in done.output
    assert "attributes of 1 image are not kept" in done.output
    with Index.open(index) as opened:
        assert opened.store.remembered_tags() == {ELSEWHERE: ("a",)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 2, "tags": {}}',
        '{"format": 2, "tags": {}, "attributes": []}',
        '{"format": 2, "tags": {}, "attributes": {"a": 1}}',
        '{"format": 2, "tags": {"a": 1}, "attributes": {}}',
        '{"format": 3, "tags": {}, "attributes": {}}',
        '{"format": 2, "tags": {}, "attributes": {"a": {"": 1}}}',
        '{"format": 2, "tags": {}, "attributes": {"a": {"x": "' + "y" * 70_000 + '"}}}',
    ],
)
def test_what_is_no_export_is_refused_in_one_line(index: Path, text: str) -> None:
    with pytest.raises(SeenitError) as caught:
        import_tags(index, text.encode())
    assert "\n" not in str(caught.value)
