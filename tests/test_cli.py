"""The command line as a user meets it: what it prints, where, and with which exit status."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import draw_photo
from PIL import Image

import cli
from indexer.store.open import open_store

ROOT = Path(__file__).parents[1]


class Run:
    """What one command said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Seenit = Callable[..., Run]


@pytest.fixture
def seenit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Seenit:
    """Runs the command in this process."""

    def run(*words: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["seenit", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Run(code, said.out, said.err)

    return run


@pytest.fixture
def indexed(photos: Path, tiny_backbone: Path, seenit: Seenit) -> Path:
    made = seenit("index", photos, "--backbone", tiny_backbone, "--resolution", 56, "--workers", 1)
    assert made.code == 0, made.err
    return photos


def assert_one_line_error(run: Run, *patterns: str) -> None:
    assert run.code == 1, (run.out, run.err)
    lines = [line for line in run.err.splitlines() if not re.search("backbone .* on cpu|using the (last )?index", line)]
    assert len(lines) == 1 and "Traceback" not in run.err, run.err
    for pattern in patterns:
        assert re.search(pattern, lines[0]), lines[0]


@pytest.mark.slow
def test_index_then_search_from_anywhere(indexed: Path, seenit: Seenit, tmp_path: Path) -> None:
    query = shutil.copy(indexed / "a" / "2.jpg", tmp_path / "elsewhere.jpg")
    found = seenit("search", query, "--top", 3)
    assert found.code == 0
    lines = found.out.splitlines()[-4:]  # above them perhaps that nothing is believed to show this
    assert lines[0].split() == ["rank", "score", "verdict", "prob.", "inliers", "path"]
    assert lines[1].split()[0] == "1" and lines[1].endswith(str(indexed / "a" / "2.jpg"))


def test_a_writing_command_waits_as_long_as_told(indexed: Path, seenit: Seenit) -> None:
    holder = open_store(indexed / ".seenit", write=True)
    start = time.monotonic()
    for words in (
        ("index", indexed),
        ("tag", "add", "x", indexed, "--index", indexed / ".seenit"),
        ("tag", "remove", "x", indexed, "--index", indexed / ".seenit"),
    ):
        assert_one_line_error(seenit(*words, "--wait", 0.2), "another process")
    assert 0.6 <= time.monotonic() - start < 6  # 10 s each, unless told
    holder.close()
    assert seenit("tag", "add", "x", indexed, "--index", indexed / ".seenit", "--wait", 0.2).code == 0


@pytest.mark.slow
def test_json_lines(indexed: Path, seenit: Seenit) -> None:
    found = seenit("search", indexed / "a", "--batch", "--json", "--top", 2)
    answers = [json.loads(line) for line in found.out.splitlines()]
    assert [Path(answer["query"]).name for answer in answers] == [f"{n}.jpg" for n in range(4)]
    for answer in answers:
        assert [result["rank"] for result in answer["results"]] == [1, 2]
        assert all(os.path.isabs(result["path"]) and result["id"] for result in answer["results"])
        assert answer["query"] not in [result["path"] for result in answer["results"]]


@pytest.mark.slow
def test_several_images_are_one_query(indexed: Path, seenit: Seenit) -> None:
    first, second, third = (indexed / "a" / f"{n}.jpg" for n in range(3))
    found = seenit("search", first, second, "--like", third, "--top", 9, "--json", "--expand", 2, "--augment", 1)
    (answer,) = (json.loads(line) for line in found.out.splitlines())
    names = [Path(result["path"]).name for result in answer["results"]]
    assert len(names) == 5 and not {"0.jpg", "1.jpg", "2.jpg"} & set(names)
    disliked = seenit("search", first, "--not", third, "--json", "--exact")
    assert str(third) in disliked.out and disliked.code == 0
    assert_one_line_error(seenit("search", first, "--like", indexed / "nowhere.jpg"), "nowhere.jpg")


def opened_width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


@pytest.mark.slow
def test_explain(indexed: Path, seenit: Seenit, tmp_path: Path) -> None:
    first, second = indexed / "a" / "0.jpg", indexed / "a" / "1.jpg"
    same = json.loads(seenit("explain", first, first, "--json").out)
    other = json.loads(seenit("explain", first, second, "--json").out)
    assert same["num_inliers"] > other["num_inliers"] and same["probability"] > other["probability"]
    assert len(same["pairs"]) == same["num_inliers"] and len(same["transform"]) == 2
    drawn, page = tmp_path / "match.png", tmp_path / "match.html"
    run = seenit("explain", first, second, "-o", drawn, "--html", page)
    assert run.code == 0 and "inlier" in run.out, run.err
    assert opened_width(drawn) > 1000 and "<script" not in page.read_text()
    assert seenit("explain", first, "-o", drawn).code == 0 and opened_width(drawn) > 1000
    assert_one_line_error(seenit("explain", first, indexed / "nowhere.jpg"), "nowhere.jpg")
    assert_one_line_error(seenit("explain", first, second, "-o", tmp_path / "no" / "x.png"), "x.png")


@pytest.mark.slow
def test_tokens_are_chosen_once(photos: Path, tiny_backbone: Path, seenit: Seenit) -> None:
    made = seenit("index", photos, "--backbone", tiny_backbone, "--resolution", 56, "--tokens", "compact")
    assert made.code == 0, made.err
    assert seenit("index", photos, "--tokens", "compact").code == 0
    assert_one_line_error(seenit("index", photos, "--tokens", "full"), "--tokens full", "another one")
    assert seenit("search", photos / "a" / "0.jpg").code == 0


@pytest.mark.slow
def test_summary_as_json_and_dry_run(indexed: Path, seenit: Seenit) -> None:
    draw_photo(indexed / "new.jpg", 40)
    dry = json.loads(seenit("index", indexed, "--dry-run", "--json").out)
    assert dry["dry_run"] and dry["changes"]["added"] == 1 and dry["images"] == 8
    done = json.loads(seenit("index", indexed, "--json", "--workers", 1).out)
    assert done["changes"]["added"] == 1 and done["images"] == 9


@pytest.mark.slow
def test_page_and_sheet(indexed: Path, seenit: Seenit, tmp_path: Path) -> None:
    page, sheet = tmp_path / "results.html", tmp_path / "sheet.jpg"
    query = indexed / "a" / "0.jpg"
    run = seenit("search", query, "--html", page, "--sheet", sheet, "--region", "0,0,0.5,0.5")
    assert run.code == 0, run.err
    text = page.read_text()
    assert text.count("data:image/") >= 2 and "http://" not in text.replace("http://www.w3.org", "")
    assert sheet.stat().st_size > 1000


@pytest.mark.slow
def test_filters_and_tags(indexed: Path, seenit: Seenit) -> None:
    assert "tagged 4 images" in seenit("tag", "add", "holiday", indexed / "a").out
    assert seenit("tag", "list").out.split() == ["4", "holiday"]
    query = indexed / "b" / "5.jpg"
    assert seenit("search", query, "--tag", "holiday").out.count(".jpg") == 4
    assert seenit("search", query, "--under", indexed / "a").out.count(".jpg") == 4
    assert seenit("search", query, "--under", "a").out.count(".jpg") == 4
    assert "nothing in the index" in seenit("search", query, "--before", "1999").out
    assert "untagged 1 image" in seenit("tag", "remove", "holiday", indexed / "a" / "1.jpg").out
    assert_one_line_error(seenit("search", query, "--under", "nowhere"), "no folder nowhere", "mirrors")


@pytest.mark.slow
def test_info(indexed: Path, seenit: Seenit) -> None:
    (indexed / "bad.jpg").write_bytes((indexed / "a" / "0.jpg").read_bytes()[:300])
    seenit("index", indexed, "--workers", 1)
    facts = json.loads(seenit("info", "--json").out)
    assert facts["images"] == 8 and facts["skipped"] == 1 and facts["resolution"] == 56 and facts["bytes"]
    assert "8" in seenit("info").out
    assert seenit("info", "--skipped").out.startswith(str(indexed / "bad.jpg") + ": ")


def test_backbones(seenit: Seenit, tiny_backbone: Path) -> None:
    listed = seenit("backbone", "list").out
    assert re.search(r"seenit_vits14 +shipped", listed) and re.search(r"dinov2_vitg14_reg +downloadable", listed)
    assert seenit("backbone", "import", tiny_backbone, "--name", "mine").code == 0
    assert Path(seenit("backbone", "path", "mine").out.strip()).is_file()
    assert_one_line_error(seenit("backbone", "path", "dinov2_vits15"), "dinov2_vits14")


@pytest.mark.slow
def test_copy_to_another_folder(indexed: Path, seenit: Seenit, tmp_path: Path) -> None:
    run = seenit("copy", indexed / ".seenit", tmp_path / "copy")
    assert run.code == 0 and "copied 8 images" in run.out, run.err
    query = indexed / "a" / "0.jpg"
    assert seenit("search", query, "--index", tmp_path / "copy").out == seenit("search", query).out


@pytest.mark.slow
def test_mistakes_are_one_line(indexed: Path, seenit: Seenit, tmp_path: Path) -> None:
    query = indexed / "a" / "0.jpg"
    (tmp_path / "note.jpg").write_text("hello")
    (tmp_path / "empty").mkdir()
    assert_one_line_error(seenit("index", tmp_path / "nowhere"), "nowhere", "not there")
    assert_one_line_error(seenit("index", query), "not a folder")
    assert_one_line_error(seenit("index", tmp_path / "empty"), "no files")
    assert_one_line_error(seenit("index", indexed, tmp_path / "empty"), "--index")
    assert_one_line_error(seenit("index", indexed, "--backbone", "dinov9"), "dinov9")
    assert_one_line_error(seenit("index", indexed, "--resolution", 5), "resolution")
    assert_one_line_error(seenit("search", tmp_path / "nowhere.jpg"), "nowhere.jpg")
    assert_one_line_error(seenit("search", tmp_path / "note.jpg"), "not an image")
    assert_one_line_error(seenit("search", query, "--index", tmp_path / "none"), "no index at")
    assert_one_line_error(seenit("search", query, "--index", "ftp://x/y"), "ftp://x/y")
    assert_one_line_error(seenit("search", query, "--region", "9999,0,5,5"), "region")
    assert_one_line_error(seenit("search", query, "--html", tmp_path / "no" / "page.html"), "page.html")
    assert_one_line_error(seenit("search", tmp_path / "empty", "--batch"), "no images")
    assert not (tmp_path / "empty" / ".seenit").exists() and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("search",),
        ("search", "x.jpg", "--region", "1,2,3"),
        ("search", "x.jpg", "--after", "yesterday"),
        ("search", "x.jpg", "--near", "here"),
        ("search", "x.jpg", "--batch", "--like", "y.jpg"),
        ("explain", "x.jpg"),
        ("explain", "x.jpg", "--json"),
        ("index", ".", "--tokens", "many"),
        ("search", "x.jpg", "--top", "0"),
        ("index", ".", "--colour"),
        ("no-such-command",),
    ],
)
def test_usage_errors_exit_2(words: tuple[str, ...], seenit: Seenit) -> None:
    run = seenit(*words)
    assert run.code == 2 and "Traceback" not in run.err


@pytest.mark.slow
def test_a_broken_query_in_a_batch_costs_only_itself(indexed: Path, seenit: Seenit) -> None:
    (indexed / "a" / "3.jpg").write_bytes((indexed / "a" / "0.jpg").read_bytes()[:300])
    run = seenit("search", indexed / "a", "--batch", "--json")
    answers = [json.loads(line) for line in run.out.splitlines()]
    assert run.code == 1 and len(answers) == 4
    assert [("error" in answer) for answer in answers] == [False, False, False, True]


def all_commands() -> list[tuple[str, ...]]:
    groups = {"backbone": cli.backbone_app, "tag": cli.tag_app}
    inner: list[tuple[str, ...]] = [
        (name, str(command.name)) for name, app in groups.items() for command in app.registered_commands
    ]
    return [*((command.callback.__name__,) for command in cli.app.registered_commands if command.callback), *inner]


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_every_help_has_an_example(command: tuple[str, ...], seenit: Seenit) -> None:
    run = seenit(*command, "--help")
    assert run.code == 0 and "Example: seenit " + " ".join(command) in " ".join(run.out.split())


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["search", "--top", "x"], ["index", "--colour"]])
def test_help_and_usage_errors_load_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys, cli\n"
        f"sys.argv = ['seenit', *{words!r}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'PIL', 'qdrant_edge', 'qdrant_client', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.skipif(os.name != "posix", reason="signals are sent otherwise on this system")
@pytest.mark.slow
def test_interrupt_finishes_the_batch_and_the_next_run_goes_on(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = tmp_path / "many"
    for n in range(200):
        draw_photo(folder / f"{n}.jpg", n)
    command = [sys.executable, "-m", "cli", "index", str(folder), "--backbone", str(tiny_backbone)]
    command += ["--resolution", "56", "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "backbone" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "stopping after the batch in hand" in err and "Traceback" not in err
    assert process.returncode == 130 and "run the same command again" in out
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "200 images" in again.stdout


@pytest.mark.slow
def test_watch_takes_in_what_changes(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "index", str(photos), "--backbone", str(tiny_backbone)]
    command += ["--resolution", "56", "--workers", "1", "--watch"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        assert "added 8" in process.stdout.readline() and "8 images" in process.stdout.readline()
        while "watching" not in process.stderr.readline():
            pass
        time.sleep(1.0)  # the watcher needs a moment to be set up
        draw_photo(photos / "later.jpg", 77)
        assert "added 1" in process.stdout.readline() and "9 images" in process.stdout.readline()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
