"""The decoder processes: every file gets one outcome, and a bad one costs nothing but itself."""

import ctypes
import gc
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from made_images import HOSTILE
from PIL import Image

from indexer.errors import SeenitError
from indexer.images.decode import Limits
from indexer.images.find import Unreadable, find_files
from indexer.images.jobs import (
    Accident,
    Batch,
    Broken,
    Changed,
    Decoded,
    Hashed,
    Job,
    NotAnImage,
    Outcome,
    Settings,
    Vanished,
    read_image,
)
from indexer.images.metadata import content_id
from indexer.images.pool import DecodePool

ROOT = Path(__file__).parents[2]


def save(path: Path, size: tuple[int, int] = (64, 48), colour: tuple[int, int, int] = (9, 99, 200)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(2) as pool:
        yield pool


def one(pool: DecodePool, path: str | Path) -> Outcome:
    (outcome,) = pool.run([Job(str(path))])
    return outcome


# Stand-ins for a decoder that misbehaves; each file's name says how, and everything else is read properly


KEPT: list[np.ndarray] = []


def misbehave(job: Job, settings: Settings) -> Outcome:
    name = Path(job.path).name
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("spin"):
        while True:
            pass
    if name.startswith("once"):  # killed in the first process, and never again
        marker = Path(job.path).with_suffix(".killed")
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("half"):  # what two files take is more than the cap
        KEPT.append(np.ones(110 << 20, np.uint8))
    if name.startswith("crash"):
        ctypes.string_at(0)
    if name.startswith("exit"):
        os._exit(7)
    if name.startswith("kill"):
        os.kill(os.getpid(), signal.SIGTERM)  # which is for the parent to answer
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("raise"):
        raise RuntimeError("a plugin's bug")
    if name.startswith("grow"):
        hoard = [np.ones(8 << 20, np.uint8) for _ in range(1000)]
        return Broken(job.path, f"{len(hoard)} blocks fit", 0, 0)
    if name.startswith("modules"):
        return Broken(job.path, " ".join({"torch", "PIL", "qdrant_edge", "qdrant_client"} & set(sys.modules)), 0, 0)
    if name.startswith("swap"):
        return Hashed(job.path + ".other", "0" * 32, 1, 1)
    if name.startswith("print"):
        os.write(1, b"noise on stdout" * 100)
        os.write(2, b"noise on stderr" * 100)
    return read_image(job, settings)


def cannot_be_found(job: Job, settings: Settings) -> Outcome:
    raise AssertionError("never called")


cannot_be_found.__qualname__ = "no_such_function"


def test_an_image_comes_back_whole(pool: DecodePool, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    save(path, (400, 300))
    os.utime(path, ns=(10**18, 10**18 + 123_456_000))
    outcome = one(pool, path)
    assert isinstance(outcome, Decoded)
    assert (outcome.path, outcome.id) == (str(path), content_id(path.read_bytes()))
    assert (outcome.size, outcome.mtime_ns) == (path.stat().st_size, 10**18 + 123_456_000)
    assert outcome.grid == (14, 18) and outcome.pixels.shape == (196, 252, 3) and outcome.pixels.dtype == np.uint8
    assert (outcome.pixels == (9, 99, 200)).all() and outcome.pixels.flags.writeable
    assert (outcome.metadata.width, outcome.metadata.height, outcome.metadata.format) == (400, 300, "PNG")
    assert outcome.metadata.taken_at == datetime(2001, 9, 9, 1, 46, 40, 123_456, tzinfo=UTC)


def test_metadata_survives_the_journey(pool: DecodePool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "Kamera Ünï"
    exif.get_ifd(0x8769)[0x9003] = "2021:07:04 12:30:00"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 30.0, 0.0), 3: "W", 4: (2.0, 15.0, 0.0)})
    Image.new("RGB", (30, 30)).save(tmp_path / "x.jpg", exif=exif)
    outcome = one(pool, tmp_path / "x.jpg")
    assert isinstance(outcome, Decoded)
    here = read_image(Job(outcome.path), pool.settings)
    assert isinstance(here, Decoded) and outcome.metadata == here.metadata
    assert outcome.metadata.gps == (48.5, -2.25)
    assert outcome.metadata.taken_at == datetime(2021, 7, 4, 12, 30, tzinfo=UTC)


def test_each_kind_of_file_has_its_own_outcome(pool: DecodePool, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.txt")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    names = ["photo.txt", "text.jpg", "empty.jpg", "folder.jpg", "gone.jpg"]
    outcomes = {Path(outcome.path).name: outcome for outcome in pool.run(Job(str(tmp_path / name)) for name in names)}
    assert [type(outcomes[name]) for name in names] == [Decoded, NotAnImage, NotAnImage, Unreadable, Vanished]


def test_hashing_only_gives_the_id(pool: DecodePool, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    save(path)
    assert list(pool.run([Job(str(path), "hash")])) == [
        Hashed(str(path), content_id(path.read_bytes()), path.stat().st_size, path.stat().st_mtime_ns)
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_not_waited_for(pool: DecodePool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert one(pool, tmp_path / "pipe.jpg") == Unreadable(str(tmp_path / "pipe.jpg"), "not a regular file")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the system keeps names in Unicode")
def test_names_that_are_not_utf8(pool: DecodePool, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/" + bytes(range(0x80, 0x100)) + b"\n.png"
    save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", raw)
    outcome = one(pool, os.fsdecode(raw))
    assert isinstance(outcome, Decoded) and os.fsencode(outcome.path) == raw


def test_a_file_that_grows_while_it_is_read_is_left_for_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.bmp"
    save(path)
    fstat, calls = os.fstat, []

    def writing(file: int) -> os.stat_result:  # somebody writes between opening and reading
        status = fstat(file)
        calls.append(status.st_size)
        if len(calls) == 2:
            with path.open("ab") as other:
                other.write(b"more")
        return status

    monkeypatch.setattr(os, "fstat", writing)
    assert read_image(Job(str(path)), Settings()) == Changed(str(path))


def test_large_files_and_movies_are_not_read(tmp_path: Path) -> None:
    settings = Settings(limits=Limits(max_file_bytes=1 << 30))
    for name, head in (("movie.mp4", b"\0\0\0\x18ftypmp42"), ("huge.jpg", b"\xff\xd8\xff\xe0")):
        with (tmp_path / name).open("wb") as file:
            file.write(head)
            file.truncate(1 << 34)  # 16 GB with nothing in it
    began = time.process_time()
    assert isinstance(read_image(Job(str(tmp_path / "movie.mp4")), settings), NotAnImage)
    outcome = read_image(Job(str(tmp_path / "huge.jpg")), settings)
    assert isinstance(outcome, Broken) and outcome.reason == "17180 MB, more than the limit of 1074 MB"
    assert time.process_time() - began < 3  # reading 16 GB takes longer


@pytest.mark.slow
def test_hostile_files_cost_only_themselves(pool: DecodePool, tmp_path: Path) -> None:
    for name, make in HOSTILE.items():
        (tmp_path / name).write_bytes(make())
        save(tmp_path / f"good_{name}.png")
    outcomes = list(pool.run(Job(str(path)) for path in sorted(tmp_path.iterdir())))
    assert Counter(type(outcome).__name__ for outcome in outcomes) == {"Broken": len(HOSTILE), "Decoded": len(HOSTILE)}
    assert {Path(outcome.path).name for outcome in outcomes if isinstance(outcome, Broken)} == set(HOSTILE)


@pytest.mark.long
def test_a_decoder_that_dies_or_hangs_costs_one_file(tmp_path: Path) -> None:
    bad = {
        "spin": "took longer than 4 s",
        "crash": "the decoder crashed (SIGSEGV)",
        "exit": "the decoder ended with exit code 7",
        "raise": "internal error: RuntimeError: a plugin's bug",
    }
    if sys.platform == "win32":
        bad = {name: reason for name, reason in bad.items() if name in ("exit", "raise")}
    for number in range(30):
        save(tmp_path / f"good{number}.png")
    accidents = {"hang": "took longer than 4 s", "kill": "the decoder was killed (SIGKILL)"}
    for name in [*bad, *accidents, "print"]:
        save(tmp_path / f"{name}.png")
    with DecodePool(2, work=misbehave, limits=Limits(timeout_s=4)) as pool:
        outcomes = list(pool.run(Job(str(path)) for path in sorted(tmp_path.iterdir())))
    assert sorted(Path(outcome.path).name for outcome in outcomes) == sorted(os.listdir(tmp_path))
    broken = {Path(outcome.path).stem: outcome for outcome in outcomes if isinstance(outcome, Broken)}
    assert {name: outcome.reason for name, outcome in broken.items()} == bad
    assert broken["exit"].size == (tmp_path / "exit.png").stat().st_size
    told = {Path(outcome.path).stem: outcome.reason for outcome in outcomes if isinstance(outcome, Accident)}
    assert told == accidents, "nothing is known against a file whose decoder stood still or was killed"
    assert sum(isinstance(outcome, Decoded) for outcome in outcomes) == 31


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_decoder_that_is_killed_once_costs_nothing(tmp_path: Path) -> None:
    save(tmp_path / "once.png")
    with DecodePool(1, work=misbehave) as pool:
        assert isinstance(one(pool, tmp_path / "once.png"), Decoded)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory reliably")
def test_what_earlier_files_left_behind_costs_no_file(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / f"half{number}.png")
    with DecodePool(1, work=misbehave, limits=Limits(memory_bytes=200 << 20)) as pool:
        outcomes = [one(pool, tmp_path / f"half{number}.png") for number in range(5)]
    assert {type(outcome) for outcome in outcomes} == {Decoded}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory reliably")
@pytest.mark.slow
def test_memory_is_capped(tmp_path: Path) -> None:
    save(tmp_path / "grow.png")
    save(tmp_path / "next.png")
    Image.new("RGB", (5000, 3000)).save(tmp_path / "large.png")
    with DecodePool(1, work=misbehave, limits=Limits(memory_bytes=200 << 20)) as pool:
        outcomes = [one(pool, tmp_path / name) for name in ("grow.png", "large.png", "next.png")]
    assert [type(outcome) for outcome in outcomes] == [Broken, Decoded, Decoded]
    assert isinstance(outcomes[0], Broken) and outcomes[0].reason == "needs more memory than it may take"


@pytest.mark.slow
def test_jobs_are_taken_only_as_outcomes_are_given_back(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    taken = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield Job(path)

    with DecodePool(1, ahead=8) as pool:
        outcomes = pool.run(jobs())
        for _ in range(5):
            next(outcomes)
        time.sleep(0.3)  # a slow caller
        assert taken <= 5 + 8
        del outcomes
        gc.collect()
        assert len(list(pool.run([Job(path)] * 20))) == 20  # nothing of the run left behind comes up in the next


def test_the_jobs_own_error_reaches_the_caller(pool: DecodePool) -> None:
    def jobs() -> Iterator[Job]:
        yield Job("nowhere.jpg")
        raise KeyError("the caller's")

    with pytest.raises(KeyError):
        list(pool.run(jobs()))
    assert list(pool.run([])) == []


@pytest.mark.slow
def test_a_decoder_that_was_killed_while_idle_costs_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    with DecodePool(1) as pool:
        assert isinstance(one(pool, path), Decoded)
        (process,) = pool._running
        process._popen.kill()
        process._popen.wait()
        assert isinstance(one(pool, path), Decoded)


@pytest.mark.slow
def test_a_pool_that_cannot_start_says_so_once(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    with DecodePool(1, work=cannot_be_found) as pool, pytest.raises(SeenitError, match="cannot start") as error:
        list(pool.run([Job(path)]))
    assert "no_such_function" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_closing_ends_hanging_processes_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "hang.png")
    pool = DecodePool(2, work=misbehave)
    outcomes = pool.run([Job(path)] * 4)
    errors: list[SeenitError] = []

    def consume() -> None:
        try:
            list(outcomes)
        except SeenitError as error:
            errors.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    time.sleep(0.5)
    began = time.monotonic()
    pool.close()
    pool.close()
    consumer.join(20)
    assert not consumer.is_alive() and time.monotonic() - began < 20
    assert [str(error) for error in errors] == ["the decoder processes were closed while they had work"]
    assert not any(thread.is_alive() for thread in pool._threads)


@pytest.mark.slow
def test_decoders_load_nothing_heavy(tmp_path: Path) -> None:
    with DecodePool(1, work=misbehave) as pool:
        assert one(pool, tmp_path / "modules") == Broken(str(tmp_path / "modules"), "PIL", 0, 0)


@pytest.mark.slow
def test_a_script_needs_no_guard_and_its_folder_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = save(tmp_path / "photos" / "x.png")
    (tmp_path / "photos" / "json.py").write_text("raise SystemExit('a file beside the photos was run')")
    script = tmp_path / "script.py"  # no `if __name__ == "__main__"`: multiprocessing would start without end here
    script.write_text(
        textwrap.dedent(f"""
            import sys
            sys.path.insert(0, {str(ROOT)!r})
            print("loaded")
            from indexer.images.pool import DecodePool
            from indexer.images.jobs import Job
            with DecodePool(1) as pool:
                print([type(outcome).__name__ for outcome in pool.run([Job({photo!r})])])
        """)
    )
    ran = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path / "photos", capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.split("\n")[:2] == ["loaded", "['Decoded']"], ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_no_process_outlives_its_parent(tmp_path: Path, by: signal.Signals) -> None:
    photo = save(tmp_path / "x.png")
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        import itertools, signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        from indexer.images.pool import DecodePool
        from indexer.images.jobs import Job
        with DecodePool(2) as pool:
            for number, outcome in enumerate(pool.run(Job({photo!r}) for _ in itertools.count())):
                if number == 20:
                    print(*(process._popen.pid for process in pool._running), flush=True)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert children
    if by == signal.SIGINT:
        os.killpg(parent.pid, by)  # as a terminal does: parent and children get it
    else:
        os.kill(parent.pid, by)
    _, complaints = parent.communicate(timeout=60)
    assert complaints.count("Traceback") == (by == signal.SIGINT)  # the parent's KeyboardInterrupt and nothing else
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < deadline, "a decoder process is still there"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_the_hostile_collection_ends_well(shared: Path) -> None:
    files = [file.path for file in find_files([shared / "data" / "hostile"]) if not isinstance(file, Unreadable)]
    with DecodePool(2) as pool:
        outcomes = list(pool.run(Job(path) for path in files))
    assert sorted(outcome.path for outcome in outcomes) == sorted(files) and len(files) >= 240
    assert {type(outcome) for outcome in outcomes} <= {Decoded, NotAnImage, Broken}
    assert all(outcome.reason and len(outcome.reason) < 160 for outcome in outcomes if isinstance(outcome, Broken))
    reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, Broken)]
    assert not [reason for reason in reasons if reason.startswith(("the decoder", "took", "internal"))]
    upright = [outcome for outcome in outcomes if isinstance(outcome, Decoded) and "orientation" in outcome.path]
    first = upright[0].pixels.astype(int)
    assert len(upright) == 9
    for other in upright:  # the same scene with another number in its middle
        assert np.abs(first - other.pixels).mean() < 6


def test_images_in_memory_and_from_a_process_are_the_same(pool: DecodePool, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((900, 600), Image.Resampling.BICUBIC).save(file, "JPEG")
    (tmp_path / "x.jpg").write_bytes(file.getvalue())
    there, here = one(pool, tmp_path / "x.jpg"), read_image(Job(str(tmp_path / "x.jpg")), Settings())
    assert isinstance(there, Decoded) and isinstance(here, Decoded)
    np.testing.assert_array_equal(there.pixels, here.pixels)


@pytest.mark.long
def test_a_batch_has_an_outcome_for_each_file_also_where_one_costs_the_process(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / f"{name}.png", colour=(n, 0, 0)) for n, name in enumerate(("a", "crash", "b", "hang", "c"))
    ]
    paths.append(str(tmp_path / "gone.png"))
    with DecodePool(1, work=misbehave, limits=Limits(timeout_s=8)) as pool:
        outcomes = {one.path: one for one in pool.run([Batch(tuple(Job(path, "hash") for path in paths))])}
        again = list(pool.run([Batch((Job(paths[0], "hash"), Job(paths[2], "hash"))), Job(paths[4])]))
    assert set(outcomes) == set(paths)
    for n in (0, 2, 4):
        outcome = outcomes[paths[n]]
        assert isinstance(outcome, Hashed) and outcome.id == content_id(Path(paths[n]).read_bytes())
    crashed = outcomes[paths[1]]
    assert isinstance(crashed, Broken) and "crashed" in crashed.reason
    assert isinstance(outcomes[paths[3]], Accident) and outcomes[paths[5]] == Vanished(paths[5])
    assert [type(outcome) for outcome in again] == [Hashed, Hashed, Decoded]


@pytest.mark.slow
def test_an_answer_about_another_file_is_none(tmp_path: Path) -> None:
    with DecodePool(1, work=misbehave) as pool:
        outcome = one(pool, tmp_path / "swap.png")
    assert outcome == Vanished(str(tmp_path / "swap.png"))
