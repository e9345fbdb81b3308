"""The house keeps its own rules: where young libraries are imported, no pickle, a package that says what it needs."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("indexer", "retrieval", "trainer")


@pytest.mark.parametrize(
    "module, owners",
    [
        ("xformers", "indexer/backbone/attention.py"),
        ("apsw", "indexer/store/sqlite_*.py"),
        ("qdrant_client", "indexer/store/qdrant_*.py"),
        ("ray", "indexer/cluster/session.py"),
        ("fsspec", "indexer/sources/remote.py"),
    ],
)
def test_a_young_or_optional_library_is_imported_in_one_place(module: str, owners: str) -> None:
    importers = {
        file.relative_to(ROOT).as_posix()
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        if re.search(rf"^\s*(import|from) {module}\b", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importers and all(fnmatch(importer, owners) for importer in importers), importers


def test_no_pickle_is_ever_loaded() -> None:
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            imports = re.findall(r"^\s*(?:import|from) pickle\b.*", text, re.MULTILINE)
            assert imports == (["import pickle"] if file.name == "plain_pickle.py" else []), file
            assert set(re.findall(r"\bpickle\.(\w+)", text)) <= {"Unpickler"}, file  # with `find_class` of its own
            assert ("pickle.Unpickler" in text) <= ("def find_class(" in text), file
            for call in re.findall(r"(?<!safetensors\.)torch\.load\((?:[^()]|\([^()]*\))*\)", text):
                assert "weights_only=True" in call, f"{file}: {call}"


def test_the_package_says_what_it_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = set(project["tool"]["setuptools"]["packages"])
    there = {
        ".".join(init.parent.relative_to(ROOT).parts) for room in ROOMS for init in (ROOT / room).rglob("__init__.py")
    }
    assert packages == there
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    names = {name.lower().replace("_", "-") for name in pinned}
    for need in project["project"]["dependencies"]:
        assert re.split(r"[^a-z0-9-]", need)[0] in names, need
