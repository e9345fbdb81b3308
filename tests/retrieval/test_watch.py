"""`seenit index --watch` through what passes by itself: a locked index, a drive that is away, an odd file."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import draw_photo

from indexer.backbone.load_once import LoadOnce
from indexer.errors import AwayError, DownloadError, LockedError, SeenitError, StoreError, UnusableError, may_pass
from indexer.index.index import Index
from indexer.store.open import open_store
from indexer.store.sqlite_schema import DATABASE_NAME
from indexer.sync import watch as sync_watch
from indexer.sync.options import SyncOptions
from indexer.sync.watch import Backoff, FolderWatch
from retrieval.build import Built
from retrieval.watch import watch_index


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_watch, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(sync_watch, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(sync_watch, "SETTLE_MS", 100)
    monkeypatch.setattr(sync_watch, "LOOK_EVERY_MS", 100)


class Watching:
    """One `watch_index` in a thread: what it did, said and raised."""

    def __init__(self, folders: list[Path], index: Path, backbone: Path, options: SyncOptions) -> None:
        self.stop = threading.Event()
        self.rounds: list[Built] = []
        self.said: list[str] = []
        self.error: Exception | None = None
        self.interrupted: bool | None = None
        self._work = lambda: watch_index(
            folders,
            index,
            options=options,
            backbone=LoadOnce(str(backbone)),
            stop=self.stop,
            tell=self.rounds.append,
            say=self.said.append,
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.interrupted = self._work()
        except Exception as error:
            self.error = error

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert self.error is None, self.error
            assert time.monotonic() < end, f"{what}; said: {self.said}"
            time.sleep(0.02)

    def until_said(self, words: str) -> None:
        self.until(lambda: any(words in line for line in self.said), words)

    def until_images(self, count: int) -> None:
        self.until(lambda: bool(self.rounds) and self.rounds[-1].summary.images == count, f"{count} images")


@contextmanager
def watching(
    folders: list[Path], index: Path, backbone: Path, options: SyncOptions | None = None
) -> Iterator[Watching]:
    one = Watching(folders, index, backbone, options or SyncOptions(resolution=56, workers=1, wait_s=0.05))
    try:
        yield one
    finally:
        one.stop.set()
        one.thread.join(30)
        assert not one.thread.is_alive()


@pytest.mark.slow
def test_goes_on_through_a_lock_and_a_drive_that_is_away(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    index, away = tmp_path / "index", tmp_path / "away"
    with watching([photos], index, tiny_backbone) as one:
        one.until_images(8)
        one.until_said("watching for changes")
        holder = open_store(index, write=True)
        draw_photo(photos / "9.jpg", 9)
        one.until_said("another process")
        holder.close()
        one.until_images(9)
        photos.rename(away)
        one.until_said("it is not there; nothing was changed; trying again in")
        away.rename(photos)
        draw_photo(photos / "10.jpg", 10)
        one.until_images(10)
        draw_photo(photos / "11.jpg", 11)  # the folder that came back is watched
        one.until_images(11)
    assert one.error is None and one.interrupted is False


@pytest.mark.slow
def test_an_index_that_went_away_with_its_drive_is_not_made_anew(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    index, away = tmp_path / "index", tmp_path / "index.away"
    with watching([photos], index, tiny_backbone) as one:
        one.until_images(8)
        one.until_said("watching for changes")
        index.rename(away)
        draw_photo(photos / "9.jpg", 9)
        one.until_said("is not there; bring its drive back")
        assert not index.exists()
        away.rename(index)
        one.until_images(9)
    assert one.error is None


@pytest.mark.slow
def test_odd_files_cost_themselves(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    with watching([photos], tmp_path / "index", tiny_backbone) as one:
        one.until_images(8)
        one.until_said("watching for changes")
        (photos / "bad.jpg").write_bytes((photos / "a" / "0.jpg").read_bytes()[:300])
        os.mkfifo(photos / "pipe.jpg")
        (photos / "nowhere.jpg").symlink_to(photos / "gone")
        draw_photo(photos / "9.jpg", 9)
        one.until_images(9)
        one.until_said("looking again at what was not readable")  # the link's target may be on a drive that is away
        draw_photo(photos / "gone", 10, format="JPEG")
        one.until_images(10)
    assert one.error is None


@pytest.mark.slow
def test_an_empty_folder_is_waited_for_and_patterns_are_asked_for_once(tmp_path: Path, tiny_backbone: Path) -> None:
    folder, index = tmp_path / "camera", tmp_path / "index"
    folder.mkdir()
    options = SyncOptions(resolution=56, workers=1, exclude=("*.tif",))
    with watching([folder], index, tiny_backbone, options) as one:
        one.until_said("no files in")
        draw_photo(folder / "0.jpg", 0)
        one.until_images(1)
    forget = SyncOptions(workers=1, no_exclude=("*.tif",), verify=True)
    with watching([folder], index, tiny_backbone, forget) as one:
        one.until_images(1)
        one.until_said("watching for changes")
        draw_photo(folder / "1.jpg", 1)
        one.until_images(2)
        assert "read again" in one.rounds[0].summary.notes[0] and one.rounds[-1].summary.notes == ()
    with Index.open(index) as opened:
        assert opened.manifest.exclude == ()


@pytest.mark.long
@pytest.mark.parametrize("damage", ["another resolution", "database", "pattern"])
def test_ends_for_what_cannot_pass(damage: str, photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    with watching([photos], index, tiny_backbone) as one:
        one.until_images(8)
    options = SyncOptions(workers=1)
    if damage == "another resolution":
        options = SyncOptions(resolution=112)
    elif damage == "pattern":
        options = SyncOptions(no_exclude=("never.asked",))
    else:
        (index / DATABASE_NAME).write_bytes(b"something else" * 1000)
    with watching([photos], index, tiny_backbone, options) as one:
        one.thread.join(30)
        assert isinstance(one.error, SeenitError) and not may_pass(one.error)


def test_what_may_pass() -> None:
    for error in (LockedError(), StoreError(), AwayError(), DownloadError(), OSError(5, "io"), MemoryError()):
        assert may_pass(error)
    for other in (SeenitError(), UnusableError(), KeyError(), AssertionError()):
        assert not may_pass(other)


def test_pauses_grow_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_watch, "FIRST_PAUSE_S", 5.0)
    monkeypatch.setattr(sync_watch, "LONGEST_PAUSE_S", 30.0)
    backoff = Backoff()
    assert [backoff.next_s() for _ in range(5)] == [5, 10, 20, 30, 30]
    backoff.reset()
    assert backoff.next_s() == 5


@pytest.mark.slow
def test_a_watch_hears_from_its_first_moment_and_not_of_the_index(tmp_path: Path) -> None:
    stop = threading.Event()
    watch = FolderWatch([str(tmp_path)], str(tmp_path / "own"))
    try:
        (tmp_path / ".seenit").mkdir()
        (tmp_path / "own").mkdir()
        (tmp_path / ".seenit" / "index.sqlite").touch()
        assert not watch.wait(stop, 0.6)
        (tmp_path / "new.jpg").touch()
        assert watch.wait(stop, 60)
        watch.clear()
        assert not watch.wait(stop, 0.6) and watch.problem is None
        shutil.rmtree(tmp_path)
        assert watch.wait(stop, 60)
        end = time.monotonic() + 60
        while watch.problem is None and time.monotonic() < end:
            time.sleep(0.05)
        assert watch.problem == "a folder went away or was replaced"
    finally:
        watch.close()
    gone = FolderWatch([str(tmp_path / "never")], str(tmp_path / "own"))
    assert gone.problem and gone.wait(stop, 1)
    gone.close()
