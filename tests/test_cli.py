"""The command line as a user meets it: what it prints, where, and with which exit status."""

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
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
from indexer.progress_bar import progress_bar
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


def test_threads_that_wait_sleep_unless_the_user_says_otherwise(
    seenit: Seenit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    seenit("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    seenit("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.slow
def test_a_writing_command_waits_as_long_as_told(indexed: Path, seenit: Seenit) -> None:
    holder = open_store(indexed / ".seenit", write=True)
    start = time.monotonic()
    for words in (
        ("index", indexed),
        ("tag", "add", "x", indexed, "--index", indexed / ".seenit"),
        ("tag", "remove", "x", indexed, "--index", indexed / ".seenit"),
    ):
        assert_one_line_error(seenit(*words, "--wait", 0.2), "another process")
    assert 0.6 <= time.monotonic() - start < 25  # 10 s each, unless told
    holder.close()
    assert seenit("tag", "add", "x", indexed, "--index", indexed / ".seenit", "--wait", 0.2).code == 0


@pytest.mark.slow
def test_another_backbone_is_refused_before_it_is_fetched(
    indexed: Path, seenit: Seenit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEENIT_OFFLINE")
    monkeypatch.setattr("indexer.backbone.download.Download.run", lambda self: pytest.fail(f"fetches {self.url}"))
    refused = seenit("index", indexed, "--backbone", "dinov2_vitb14")
    assert_one_line_error(refused, "made by backbone .*tiny.* not dinov2_vitb14; leave --backbone out, or .* --index")
    draw_photo(indexed / "new.jpg", 99)
    assert "added 1" in seenit("index", indexed, "--backbone", "auto").out  # auto is the index's own


def test_offline_is_an_option_of_every_command(seenit: Seenit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEENIT_OFFLINE")
    monkeypatch.setenv("SEENIT_DOWNLOAD_BASE", "http://127.0.0.1:9")
    refused = seenit("backbone", "fetch", "dinov2_vits14", "--offline")
    assert_one_line_error(refused, "nothing may be fetched; bring http://127")
    monkeypatch.delenv("SEENIT_OFFLINE")


def test_the_path_of_a_backbone_fetches_nothing(seenit: Seenit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEENIT_OFFLINE")
    monkeypatch.setattr("indexer.backbone.download.Download.run", lambda self: pytest.fail(f"fetches {self.url}"))
    assert_one_line_error(seenit("backbone", "path", "dinov2_vits14"), "seenit backbone fetch dinov2_vits14$")


@pytest.mark.slow
def test_results_for_other_programs(
    indexed: Path, seenit: Seenit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = Path(shutil.copy(indexed / "a" / "2.jpg", tmp_path / "elsewhere.jpg"))
    plain = seenit("search", query, "--top", 3, "--paths-only")
    assert plain.out.splitlines()[0] == str(indexed / "a" / "2.jpg") and len(plain.out.splitlines()) == 3
    assert seenit("search", query, "--top", 3, "-0").out == "".join(f"{path}\0" for path in plain.out.splitlines())
    assert "backbone" not in plain.err and "backbone" in seenit("search", query, "-v").err
    assert seenit("search", query, "-q").err == ""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(query.read_bytes())))
    piped = seenit("search", "-", "--top", 1, "--json")
    answer = json.loads(piped.out)
    assert answer["query"] == "-" and answer["results"][0]["path"] == plain.out.splitlines()[0]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no image")))
    assert_one_line_error(seenit("search", "-"), "standard input: not an image")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/x.jpg"
        assert_one_line_error(seenit("search", address), "own network; to fetch it all the same: --allow-private")
        assert_one_line_error(seenit("search", address, "--allow-private"), "cannot fetch")


@pytest.mark.slow
def test_exit_status_3_and_conditions_on_results(indexed: Path, seenit: Seenit, tmp_path: Path) -> None:
    query = indexed / "a" / "2.jpg"
    assert seenit("search", query, "--after", "2099").code == 3
    assert seenit("search", query, "--min-probability", 0.5, "--no-rerank").code == 1
    shutil.copy(query, tmp_path / "q.jpg")
    with Image.open(query) as image:
        image.save(indexed / "again.jpg", quality=98)
    seenit("index", indexed)
    everything = seenit("search", tmp_path / "q.jpg", "--paths-only").out.splitlines()
    assert {str(query), str(indexed / "again.jpg")} <= set(everything)
    grouped = seenit("search", tmp_path / "q.jpg", "--paths-only", "--group").out.splitlines()
    assert str(query) in grouped and str(indexed / "again.jpg") not in grouped
    sure = seenit("search", tmp_path / "q.jpg", "--min-probability", 1, "--paths-only")
    assert sure.code == (0 if sure.out else 3) and len(sure.out.splitlines()) < len(everything)


@pytest.mark.slow
def test_files_of_results_are_copied_and_linked_and_none_is_overwritten(
    indexed: Path, seenit: Seenit, tmp_path: Path
) -> None:
    query, target = indexed / "a" / "2.jpg", tmp_path / "found"
    target.mkdir()
    for words in (["--copy-to", target], ["--copy-to", target], ["--link-to", target]):
        assert seenit("search", query, "--include-self", "--top", 1, *words).code == 0
    names = sorted(path.name for path in target.iterdir())
    assert names == ["001_2 (2).jpg", "001_2 (3).jpg", "001_2.jpg"]
    assert all(path.read_bytes() == query.read_bytes() for path in target.iterdir())
    assert [path.is_symlink() for path in sorted(target.iterdir())] == [False, True, False]


@pytest.mark.slow
def test_a_folder_names_the_index_in_it_and_advice_can_be_pasted(
    photos: Path, tiny_backbone: Path, seenit: Seenit, tmp_path: Path
) -> None:
    odd = photos.rename(tmp_path / "it's mine")
    made = seenit("index", odd, "--backbone", tiny_backbone, "--resolution", 56, "--workers", 1)
    assert made.code == 0 and "8 images" in made.out
    for words in (("info",), ("tag", "list"), ("index",), ("search", odd / "a" / "1.jpg")):
        assert seenit(*words, "--index", odd).code == 0
    assert not (odd / "index.sqlite").exists()
    (tmp_path / "no index").mkdir()
    refused = seenit("info", "--index", tmp_path / "no index")
    assert shlex.split(refused.err.rpartition("seenit index ")[2]) == ["FOLDER", "--index", str(tmp_path / "no index")]


@pytest.mark.slow
def test_a_region_of_a_few_pixels_is_refused_with_a_reason(indexed: Path, seenit: Seenit) -> None:
    refused = seenit("search", indexed / "a" / "1.jpg", "--region", "2,2,2,2")
    assert_one_line_error(refused, "2 x 2 pixels, which is too little .* at least 14 x 14")


@pytest.mark.slow
def test_options_come_before_variables_and_those_before_the_file(
    indexed: Path, seenit: Seenit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(os.environ["SEENIT_CONFIG"])
    file.write_text(f'index = "{indexed}"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEENIT_STATE", str(tmp_path / "state"))
    assert json.loads(seenit("info", "--json").out)["images"] == 8
    monkeypatch.setenv("SEENIT_INDEX", str(tmp_path / "variable"))
    assert_one_line_error(seenit("info"), "no index at .*variable")
    assert_one_line_error(seenit("info", "--index", tmp_path / "option"), "no index at .*option")
    for text, says in {"index = 3": "index is a text", "indx = 'a'": "unknown key 'indx'", "=": "no TOML"}.items():
        file.write_text(text)
        assert_one_line_error(seenit("info"), says)


def test_off_a_terminal_progress_comes_in_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("indexer.progress_bar.time.monotonic", lambda: now[0])
    with progress_bar(5000, "indexing", "img", True) as bar:
        for _ in range(70):
            now[0] += 1
            bar.update(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["seenit: indexing: 300 of 5,000 img, 10.0/s", "seenit: indexing: 600 of 5,000 img, 10.0/s"]
    with progress_bar(5, "indexing", "img", False) as bar:
        now[0] += 99
        bar.update(1)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_a_shell(shell: str) -> None:
    asked = {"COMP_WORDS": "seenit sea", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "seenit sea"}
    environment = {
        **os.environ,
        **asked,
        "_SEENIT_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    code = "import sys; sys.argv = ['seenit']; import cli; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "search" in done.stdout and "index" not in done.stdout.split(), done


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


@pytest.mark.long
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
def test_an_index_records_its_precision_and_queries_may_have_another(
    photos: Path, tiny_backbone: Path, seenit: Seenit
) -> None:
    made = ("index", photos, "--backbone", tiny_backbone, "--resolution", 56, "--workers", 1)
    assert seenit(*made, "--precision", "float32").code == 0
    assert json.loads(seenit("info", "--json").out)["precision"] == "float32"
    assert "float32" in seenit("info").out
    query = photos / "a" / "1.jpg"
    for precision in ("auto", "int8", "bfloat16", "float32"):
        found = seenit("search", query, "--include-self", "--paths-only", "--precision", precision, "-v")
        assert found.code == 0 and found.out.splitlines()[0] == str(query), found.err
        assert precision in ("auto", "int8") or f"on cpu in {precision}" in found.err
    assert_one_line_error(seenit("index", "--precision", "bfloat16"), "made with --precision float32")
    draw_photo(photos / "new.jpg", 30)
    more = seenit("index", "--workers", 1)
    assert "added 1" in more.out and "on cpu in float32" in more.err


@pytest.mark.slow
def test_info(indexed: Path, seenit: Seenit) -> None:
    (indexed / "bad.jpg").write_bytes((indexed / "a" / "0.jpg").read_bytes()[:300])
    seenit("index", indexed, "--workers", 1)
    facts = json.loads(seenit("info", "--json").out)
    assert facts["images"] == 8 and facts["skipped"] == 1 and facts["resolution"] == 56 and facts["bytes"]
    assert "8" in seenit("info").out
    assert json.loads(seenit("info", indexed, "--json").out) == facts  # by the folder, as `seenit index` takes it
    assert_one_line_error(seenit("info", indexed / "a"), "no index")
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
@pytest.mark.long
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


@pytest.mark.slow
def test_backbones(seenit: Seenit, tiny_backbone: Path) -> None:
    listed = seenit("backbone", "list").out
    assert re.search(r"seenit_vits14 +shipped", listed) and re.search(r"dinov2_vitg14_reg +downloadable", listed)
    assert seenit("backbone", "import", tiny_backbone, "--name", "mine").code == 0
    assert Path(seenit("backbone", "path", "mine").out.strip()).is_file()
    assert_one_line_error(seenit("backbone", "path", "dinov2_vits15"), "dinov2_vits14")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="no such names on this system")
def test_the_cache_may_lie_in_a_folder_of_any_name(
    seenit: Seenit, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEENIT_CACHE", str(tmp_path / "x\x1b[31m"))
    runs = [
        seenit("backbone", "import", tiny_backbone, "--name", "mine"),
        seenit("backbone", "path", "mine"),
        seenit("backbone", "list"),
    ]
    assert [run.code for run in runs] == [0, 0, 0]
    assert all("\x1b" not in run.out + run.err for run in runs)
    assert runs[0].out.startswith("$'") and r"/x\x1b[31m/" in runs[0].out and runs[0].out == runs[1].out


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


@pytest.mark.slow
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


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (("info",), {"torch", "PIL", "faiss", "httpx", "qdrant_client"}),
        (("tag", "list"), {"torch", "PIL", "faiss", "httpx", "qdrant_client"}),
        (("index", ".", "--tokens", "balanced"), {"torch", "faiss", "httpx", "qdrant_client"}),  # nothing is new
        (("search", "a/1.jpg"), {"torch._dynamo", "torch._inductor", "sympy", "httpx", "qdrant_client", "rich"}),
    ],
)
def test_commands_load_only_what_they_need(words: tuple[str, ...], heavy: set[str], indexed: Path) -> None:
    code = (
        "import sys, cli\n"
        f"sys.argv = ['seenit', *{words!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        f"heavy = {heavy!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=indexed, env=environment, check=True, capture_output=True)


@pytest.mark.skipif(os.name != "posix", reason="signals are sent otherwise on this system")
@pytest.mark.long
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
    out, err = process.communicate(timeout=120)
    assert "stopping after the batch in hand" in err and "Traceback" not in err
    assert process.returncode == 130 and "run the same command again" in out
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "200 images" in again.stdout


STOPPED_WHILE_LEARNING = """
import os, signal, sys
import cli
from retrieval import calibrate
calibrate.stored_view = lambda *given, __call=calibrate.stored_view: (os.kill(os.getpid(), {ending}), __call(*given))[1]
sys.argv = ["seenit", "index", sys.argv[1], "--backbone", sys.argv[2], "--resolution", "56", "--workers", "1"]
cli.main()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are sent otherwise on this system")
@pytest.mark.long
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


@pytest.mark.long
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
        process.communicate(timeout=120)
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


@pytest.mark.long
@pytest.mark.parametrize("words", [("backbone", "list"), ("--help",)])
def test_a_reader_that_has_seen_enough_is_no_error(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody_reads:
        run = subprocess.run(
            [sys.executable, cli.__file__, *words], stdout=nobody_reads, stderr=subprocess.PIPE, timeout=120
        )
    assert (run.returncode, run.stderr) == (0, b"")
