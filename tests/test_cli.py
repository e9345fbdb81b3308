"""The command line as a user meets it: what it prints, where, and with which exit status."""

import errno
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
import typer
from conftest import draw_photo
from PIL import Image

import cli
from indexer.index.index import Index
from indexer.store.open import open_store
from indexer.version import VERSION

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
    lines = found.out.splitlines()[-4:]  # above them perhaps that nothing is a match
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


@pytest.mark.slow
def test_info_of_an_image_says_where_its_date_is_from(indexed: Path, seenit: Seenit, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2021:07:04 12:30:00"
    named = draw_photo(indexed / "IMG_20190704_101500.jpg", 20)
    dated = draw_photo(indexed / "dated.jpg", 21, exif=exif)
    copy = Path(shutil.copy(dated, indexed / "copy\n.jpg"))
    old = draw_photo(indexed / "old.jpg", 22)
    os.utime(old, (10**9, 10**9))
    seenit("index", indexed, "--workers", 1)
    seenit("tag", "add", "kept", dated)
    told = {path: json.loads(seenit("info", path, "--json").out) for path in (named, dated, old)}
    assert [(one["taken_at"][:10], one["date_source"]) for one in told.values()] == [
        ("2019-07-04", "name"),
        ("2021-07-04", "exif"),
        ("2001-09-09", "file"),
    ]
    assert set(told[dated]["files"]) == {str(dated), str(copy)} and told[dated]["tags"] == ["kept"]
    assert "2001-09-09 (time of the file)" in seenit("info", old).out
    lines = seenit("info", dated).out.splitlines()
    assert len(lines) == 6 and "copy\\n.jpg" in "".join(lines)
    assert_one_line_error(seenit("info", draw_photo(tmp_path / "other.jpg", 99)), "not in the index")
    assert_one_line_error(seenit("info", tmp_path / "none.jpg"), "none.jpg")
    assert seenit("info", dated, "--skipped").code == 2


@pytest.mark.skipif(os.name != "posix", reason="no such names on this system")
@pytest.mark.slow
def test_no_name_reaches_the_terminal_as_it_is(tiny_backbone: Path, seenit: Seenit, tmp_path: Path) -> None:
    """Line breaks forge lines, escape sequences retitle or recolour: in results, errors, progress and notes."""
    folder = tmp_path / "x\x1b]0;title\x07"
    odd = [
        folder / "new\nline.jpg",
        folder / "red\x1b[31m.jpg",
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")),
    ]
    for n in range(9):
        draw_photo(folder / f"{n}.jpg", n)
    for n, path in enumerate(odd):
        shutil.copy(draw_photo(tmp_path / "one.jpg", 20 + n), path)
    shutil.copy(odd[0], folder / "copy\x1b[2J.jpg")
    (folder / "broken\nhere.jpg").write_bytes(odd[0].read_bytes()[:300])
    (folder / "away\x1b[1m").symlink_to(folder / "nowhere")
    made = seenit("index", folder, "--backbone", tiny_backbone, "--resolution", 56, "--workers", 1)
    runs = [
        made,
        seenit("index", folder, "--verify"),
        seenit("index", folder, "--resolution", 112),
        seenit("index", folder / "no\x1b[5m"),
        seenit("search", odd[0], "--top", 12, "--include-self"),
        seenit("search", folder, "--batch", "--top", 2),
        seenit("search", folder / "broken\nhere.jpg"),
        seenit("search", folder / "none\x1b[5m.jpg"),
        seenit("search", odd[0], "--html", folder / "page\x1b.html", "--sheet", folder / "sheet\x1b.png"),
        seenit("explain", odd[0], odd[1]),
        seenit("explain", odd[0], folder / "broken\nhere.jpg"),
        seenit("info"),
        seenit("info", "--skipped"),
        seenit("info", odd[0]),
        seenit("info", folder / "none\x1b[5m.jpg"),
        seenit("check"),
        seenit("copy", folder / ".seenit", tmp_path / "copy\x1b"),
        seenit("tag", "add", "bold\x1b[1m", odd[0]),
        seenit("tag", "list"),
        seenit("duplicates", folder),
        seenit("duplicates", folder, "--move-to", folder / "spare\x1b"),
    ]
    assert made.code == 0, made.err
    for number, run in enumerate(runs):
        said = run.out + run.err
        assert said and not re.search("[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", said), (number, said)
        assert not any(line.startswith(("line.jpg", "here.jpg")) for line in said.splitlines()), (number, said)
    assert "$'" in runs[4].out and "red\\x1b[31m.jpg'" in runs[4].out
    (answer,) = (json.loads(line) for line in seenit("search", odd[0], "--json", "--include-self").out.splitlines())
    assert str(odd[0]) in [path for one in answer["results"] for path in (one["path"], *one["copies"])]
    (broken,) = json.loads(seenit("info", "--skipped", "--json").out)
    assert broken["path"] == str(folder / "broken\nhere.jpg")


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
        ("search", "x.jpg", "--near", "91,0,1"),
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
    """Every command, those of groups with their group's name before theirs."""
    groups: dict[tuple[str, ...], typer.Typer] = {(): cli.app}
    groups |= {(str(group.name),): group.typer_instance for group in cli.app.registered_groups if group.typer_instance}
    return [
        (*group, command.name or command.callback.__name__)
        for group, app in groups.items()
        for command in app.registered_commands
        if command.callback
    ]


def test_every_group_has_commands_and_a_help(seenit: Seenit) -> None:
    assert {command[0] for command in all_commands() if len(command) > 1} == {"backbone", "evaluate", "tag"}
    for group in ("backbone", "evaluate", "tag"):
        run = seenit(group, "--help")
        assert run.code == 0 and "Commands:" in run.out


@pytest.mark.parametrize("group", [(), ("backbone",), ("evaluate",), ("tag",)], ids=" ".join)
def test_no_description_in_a_list_of_commands_is_cut(
    group: tuple[str, ...], seenit: Seenit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = seenit(*group, "--help").out.split("Commands:\n")[1].splitlines()
    names = {command[len(group)] for command in all_commands() if command[: len(group)] == group}
    assert names <= {line.split()[0] for line in listed}
    assert not [line for line in listed if line.endswith("...") or not line.endswith(".")]


def test_the_version_is_told(seenit: Seenit) -> None:
    run = seenit("--version")
    assert run.code == 0 and run.out == f"seenit {VERSION}\n"


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
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_finishes_the_batch_and_the_next_run_goes_on(
    ending: signal.Signals, tmp_path: Path, tiny_backbone: Path
) -> None:
    folder = tmp_path / "many"
    for n in range(200):
        draw_photo(folder / f"{n}.jpg", n)
    command = [sys.executable, "-m", "cli", "index", str(folder), "--backbone", str(tiny_backbone)]
    command += ["--resolution", "56", "--workers", "1"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    assert "backbone" in process.stderr.readline()
    time.sleep(0.3)
    os.killpg(process.pid, ending)  # as a terminal and systemd do, to the decoders as well
    out, err = process.communicate(timeout=60)
    assert "stopping after the batch in hand" in err and "Traceback" not in err
    assert process.returncode == 130 and "run the same command again" in out
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "200 images" in again.stdout


STOPPED_WHILE_LEARNING = """
import os, signal, sys
import cli
from retrieval import calibrate
calibrate.render_view = lambda *given, __call=calibrate.render_view: (os.kill(os.getpid(), {ending}), __call(*given))[1]
sys.argv = ["seenit", "index", sys.argv[1], "--backbone", sys.argv[2], "--resolution", "56", "--workers", "1"]
cli.main()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are sent otherwise on this system")
@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_learning_probabilities(ending: signal.Signals, photos: Path, tiny_backbone: Path) -> None:
    code = STOPPED_WHILE_LEARNING.replace("{ending}", str(int(ending)))
    command = [sys.executable, "-c", code, str(photos), str(tiny_backbone)]
    stopped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert stopped.returncode == 130 and "8 images" in stopped.stdout, stopped.stderr
    assert "probability of a match remains to be learnt: run the same command again" in stopped.stderr
    again = subprocess.run(
        [sys.executable, "-m", "cli", "index", str(photos)], cwd=ROOT, capture_output=True, text=True
    )
    assert again.returncode == 0 and "remains to be learnt" not in again.stderr
    with Index.open(photos / ".seenit") as index:
        assert index.calibration is not None


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


def test_a_pipe_that_breaks_elsewhere_is_told(seenit: Seenit, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("indexer.index.index.Index.open", broken)
    run = seenit("info", "--index", "x")
    assert (run.code, run.out) == (1, "") and "ended too early" in run.err and run.err.count("\n") == 1


def test_ctrl_c_before_the_work_begins_is_told(seenit: Seenit, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("indexer.index.index.Index.open", interrupted)
    run = seenit("info", "--index", "x")
    assert (run.code, run.out, run.err) == (130, "", "seenit: stopped\n")


@pytest.mark.parametrize("words", [("backbone", "list"), ("--help",)])
def test_a_reader_that_has_seen_enough_is_no_error(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody_reads:
        run = subprocess.run(
            [sys.executable, cli.__file__, *words], stdout=nobody_reads, stderr=subprocess.PIPE, timeout=60
        )
    assert (run.returncode, run.stderr) == (0, b"")
