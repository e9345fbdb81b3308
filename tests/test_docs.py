"""The documents: what they show is run, what they name is there, what is there is named.

Shell and Python blocks of the README and of docs/ are run in order, each page in a workspace of its own with drawn
photos and a tiny backbone. A block that needs a network, a server or minutes has a comment `<!-- not run: REASON -->`
before its fence; its commands are parsed all the same.
"""

import ast
import doctest
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import draw_photo
from PIL import ExifTags, Image

import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"bash", "python", "text"}  # text is shown and not run
PACKAGES = ("indexer", "retrieval", "trainer")
FENCE = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `not_run` is the reason why it is not run."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Lines of shell as words; continued lines are joined, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["text"], found["reason"])
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


# What is run


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5">
<dc:subject><rdf:Bag><rdf:li>tower</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"""


def make_photos(folder: Path) -> None:
    """Photos of two years in folders, with what filters ask for; one is there twice."""
    for n in range(9):
        year = "2023" if n % 3 else "2022"
        exif = Image.Exif()
        exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Apple", "iPhone 12"
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"{year}:06:0{n + 1} 12:00:00"
        place: dict[int, Any] = exif.get_ifd(ExifTags.IFD.GPSInfo)
        place.update({1: "N", 2: (48.0, 51.0, 0.0), 3: "E", 4: (2.0, 21.0, 0.0)})
        draw_photo(folder / year / f"{n}.jpg", n, exif=exif, xmp=XMP)
    draw_photo(folder / "2023" / "receipts" / "20.jpg", 20)
    shutil.copy(folder / "2023" / "receipts" / "20.jpg", folder / "copy.jpg")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A folder of photos with an index in it, to be copied for each page."""
    from indexer.sync.options import SyncOptions
    from retrieval.build import build_index

    folder = tmp_path_factory.mktemp("indexed") / "Pictures"
    make_photos(folder)
    build_index(folder, options=SyncOptions(resolution=224, workers=1), backbone=tiny_backbone)
    return folder


@pytest.fixture
def workspace(indexed: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder of an example: indexed photos in `photos/` and in ~/Pictures, and images to ask with.

    A tiny backbone lies where the official one would, so that `auto` takes it.
    """
    home, here = tmp_path / "home", tmp_path / "work"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for folder in (home / "Pictures", here / "photos"):
        shutil.copytree(indexed, folder)
    for name, start in {"Scans": 30, "Downloads": 40, "Paintings": 60}.items():
        for n in range(12):
            draw_photo(home / name / f"{n}.jpg", start + n)
    for n, name in enumerate(("photo", "scene", "front", "side", "right", "wrong", "found", "query", "a", "b")):
        draw_photo(here / f"{name}.jpg", n % 7, (192, 144))
    for n in range(3):
        draw_photo(here / "queries" / f"{n}.jpg", n, (128, 96))
        draw_photo(here / "test" / f"{n}.jpg", 80 + n)
    for n in range(12):
        draw_photo(here / "classes" / ("train" if n < 8 else "val") / str(n % 2) / f"{n}.jpg", n)
    (here / "answers").mkdir()
    rows = ["path,role,instance"]
    for n in range(8):
        draw_photo(here / "answers" / f"{n}.jpg", n)
        rows.append(f"{n}.jpg,{'both' if n < 4 else 'distractor'},{n // 2 if n < 4 else 'none'}")
    (here / "answers" / "manifest.csv").write_text("\n".join(rows) + "\n")
    backbones = Path(os.environ["SEENIT_CACHE"]) / "backbones"
    backbones.mkdir(parents=True)
    shutil.copy(tiny_backbone, backbones / "dinov2_vits14.safetensors")
    monkeypatch.chdir(here)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    run_seenit(["index", str(home / "Pictures"), "--workers", "1"], monkeypatch)  # so that it is the last index
    return here


def run_seenit(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["seenit", *words])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def run_shell(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each line: seenit only, with `~` and `> FILE`. Anything else is to be marked as not run."""
    for words in block.commands:
        assert words[0] == "seenit", f"{block.place}: {words[0]} cannot be run here; mark the block as not run"
        words = [os.path.expanduser(word) for word in words[1:]]
        output = io.StringIO()
        if ">" in words:
            *words, _, target = words
            with redirect_stdout(output):
                status = run_seenit(words, monkeypatch)
            Path(target).write_text(output.getvalue(), encoding="utf-8")
        else:
            status = run_seenit(words, monkeypatch)
        none_found = words[0] == "search" and status == 3  # the drawn photos need not meet every condition
        assert status == 0 or none_found, f"{block.place}: seenit {shlex.join(words)} ended with status {status}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_the_examples_of_a_page_run(page: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block for block in blocks_of(ROOT / page) if block.not_run is None and block.language != "text"]
    if not blocks:
        return
    request.getfixturevalue("workspace")
    names: dict[str, Any] = {"__name__": "example"}  # the Python of a page is one program
    for block in blocks:
        if block.language == "bash":
            run_shell(block, monkeypatch)
        else:
            exec(compile("\n" * block.line + block.text, block.page.name, "exec"), names)


DOCTESTS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for package in ("indexer", "retrieval", "trainer")
    for path in (ROOT / package).rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.slow
@pytest.mark.parametrize("module", DOCTESTS)
def test_the_examples_of_docstrings_run(module: str, workspace: Path) -> None:
    found = importlib.import_module(module)
    assert "doctest: +SKIP" not in Path(str(found.__file__)).read_text(encoding="utf-8"), "an example is run or is none"
    failed, run = doctest.testmod(found)
    assert run and not failed


SCRIPTS = [  # with arguments, and what each prints
    ("search_folder.py", ["photos", "query.jpg"], r"^1\. \d\.\d{3} .*\.jpg \("),
    ("find_duplicates.py", ["photos"], r"(20|copy)\.jpg: exact"),
    ("train_and_use.py", ["photos", "run", "steps=2", "batch_size=4"], r"^2 steps.*backbone\.safetensors"),
]


@pytest.mark.slow
@pytest.mark.parametrize("script, words, says", SCRIPTS, ids=[script for script, _, _ in SCRIPTS])
def test_the_example_scripts_run(
    script: str,
    words: list[str],
    says: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    assert re.search(says, capsys.readouterr().out, re.MULTILINE)


def test_every_example_script_is_run_and_named() -> None:
    assert {script for script, _, _ in SCRIPTS} == {file.name for file in (ROOT / "examples").glob("*.py")}


# What is named


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.place}: {block.language!r} is none of {sorted(LANGUAGES)}"
    if block.language == "python":
        ast.parse(block.text)
    if block.language == "bash":
        for words in block.commands if "$(" not in block.text and "'{" not in block.text else []:
            if words[0] == "seenit":
                parse(words[1 : words.index(">")] if ">" in words else words[1:])


def parse(words: list[str]) -> None:
    """A usage error where the command line cannot be parsed."""
    command = typer.main.get_command(cli.app)
    while isinstance(command, typer.core.TyperGroup):
        assert words and words[0] in command.commands, words
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)


def all_commands(command: Any, words: tuple[str, ...] = ("seenit",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from all_commands(below, (*words, name))


@pytest.mark.parametrize(
    "words, command", list(all_commands(typer.main.get_command(cli.app))), ids=lambda one: str(one)
)
def test_a_command_is_in_the_reference_with_all_its_options(words: tuple[str, ...], command: Any) -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {' '.join(words)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{' '.join(words)} is not in docs/reference.md; write it with: python docs/make_pages.py"
    for param in command.params:
        for name in (*param.opts, *param.secondary_opts):
            if param.param_type_name == "option" and name not in ("-h", "--help"):
                assert f"`{name}" in section[1], f"{name} of {' '.join(words)}"


@pytest.mark.parametrize(
    "words, command", list(all_commands(typer.main.get_command(cli.app))), ids=lambda one: str(one)
)
def test_a_command_is_explained_outside_of_the_reference(words: tuple[str, ...], command: Any) -> None:
    if hasattr(command, "commands"):
        return
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "reference.md")
    assert re.search(rf"\b{' '.join(words)}\b", text), " ".join(words)


def test_the_made_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_pages.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_exactly_the_environment_variables_that_are_read_are_documented() -> None:
    code = "".join(file.read_text(encoding="utf-8") for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    read = set(re.findall(r"""["'](SEENIT_[A-Z_]+)["']""", code + (ROOT / "cli.py").read_text(encoding="utf-8")))
    usage = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    assert read == set(re.findall(r"^\| `(SEENIT_[A-Z_]+)` \|", usage, re.MULTILINE))


def test_names_of_the_python_page_are_there() -> None:
    text = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:indexer|retrieval|trainer)(?:\.\w+)+)`", text))
    assert len(named) > 10
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme, page.name


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles[0] == "Unreleased" and re.fullmatch(r"\d+\.\d+\.\d+( - \d{4}-\d{2}-\d{2})?", titles[1])
