"""Reads, hashes and decodes picture files in processes of their own, so that a bad file costs itself and nothing else.

Surprising: the processes are started as `python -c` with two pipes, not by `multiprocessing`. Its spawn method imports
the caller's main script again in every process, which breaks scripts without a `__main__` guard and loads torch where
only Pillow is wanted. Jobs and answers are JSON, pixels are raw bytes after it: a process that a hostile picture has
taken over can then send wrong answers, but no pickle.
"""

import contextlib
import faulthandler
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import IO, Any, Literal

import numpy as np

from .errors import PictureError, SeenitError
from .images import (
    DEFAULT_LIMITS,
    HEIF_MISSING,
    SNIFF_BYTES,
    Limits,
    Unreadable,
    decode,
    heif_installed,
    open_regular,
    os_reason,
    sniff,
)
from .preprocess import Grid, Mode, detail_px, preprocess
from .store import Metadata, content_id

START_TIMEOUT_S = 60.0
START_ATTEMPTS = 3
FRAME = struct.Struct("<II")  # bytes of JSON, bytes of pixels

# Isolated: neither the current folder (it may be the photos') nor PYTHON* variables decide what is imported at first
BOOTSTRAP = """
import json, sys
hello = json.loads(sys.stdin.buffer.readline())
sys.path[:] = hello["sys_path"]
from importlib import import_module
import_module(hello["module"]).serve(hello)
"""


@dataclass(frozen=True)
class Job:
    """`decode`: everything, for a picture to be embedded; `hash`: only the id, to recognise a renamed file."""

    path: str
    kind: Literal["decode", "hash"] = "decode"


@dataclass(frozen=True)
class Settings:
    """How a picture is brought to the ViT's size, and what it may cost."""

    resolution: int = 224
    patch_size: int = 14
    mode: Mode = "aspect"
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True, eq=False)
class Decoded:
    """A picture ready to be embedded.

    pixels  (rows * P, columns * P, 3)  uint8 RGB
    """

    path: str
    id: str  # content_id of the file
    size: int  # bytes
    mtime_ns: int
    pixels: np.ndarray
    grid: Grid  # rows, columns of patches
    metadata: Metadata  # taken_at falls back on the file's time


@dataclass(frozen=True)
class Hashed:
    """The answer to a `hash` job of a file that begins like a picture."""

    path: str
    id: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class NotAPicture:
    """Something else than a picture, told by its first bytes; the rest was not read."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Broken:
    """Damaged, too large, too slow, or the death of its decoder. Worth remembering until the file changes."""

    path: str
    reason: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Vanished:
    """The file was gone when its turn came."""

    path: str


@dataclass(frozen=True)
class Changed:
    """The file was written to while it was read; it is to be taken up next time."""

    path: str


Outcome = Decoded | Hashed | NotAPicture | Broken | Vanished | Changed | Unreadable
Work = Callable[[Job, Settings], Outcome]


def read_picture(job: Job, settings: Settings) -> Outcome:
    """Do one job in this process: the file is read once, told by its first bytes, hashed and decoded from memory."""
    path, limits = job.path, settings.limits
    try:
        with open_regular(path) as file:
            before = os.fstat(file.fileno())
            size, mtime_ns = before.st_size, before.st_mtime_ns
            format_name = sniff(file.read(SNIFF_BYTES))
            if format_name is None:
                return NotAPicture(path, size, mtime_ns)
            if format_name == "HEIF" and not heif_installed():
                return Unreadable(path, HEIF_MISSING)
            if size > limits.max_file_bytes:
                reason = f"{size / 1e6:.0f} MB, more than the limit of {limits.max_file_bytes / 1e6:.0f} MB"
                return Broken(path, reason, size, mtime_ns)
            file.seek(0)
            data = file.read(size + 1)  # one more, to notice that it has grown
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        return Vanished(path)
    except OSError as error:
        return Unreadable(path, os_reason(error))
    if (after.st_size, after.st_mtime_ns, len(data)) != (size, mtime_ns, size):
        return Changed(path)

    file_id = content_id(data)
    if job.kind == "hash":
        return Hashed(path, file_id, size, mtime_ns)
    try:
        picture = decode(data, target_px=detail_px(settings.resolution), limits=limits, path=path)
    except PictureError as error:
        return Broken(path, error.reason, size, mtime_ns)
    pixels = preprocess(picture.image, settings.mode, settings.resolution, settings.patch_size)
    grid = (pixels.shape[0] // settings.patch_size, pixels.shape[1] // settings.patch_size)
    metadata = Metadata(
        picture.width,
        picture.height,
        picture.format,
        picture.taken_at or _utc(mtime_ns),
        picture.camera,
        picture.gps,
    )
    return Decoded(path, file_id, size, mtime_ns, pixels, grid, metadata)


class DecodePool:
    """Decoder processes and the work in flight between them and the caller.

    workers  number of processes; None: one per core
    ahead    the most jobs taken from the caller and not yet given back; bounds memory, and lets the processes work on
             while the caller is busy. None: 64, or 4 per process
    work     a function at a module's top level, in place of `read_picture`

    with DecodePool() as pool:
        for outcome in pool.run(Job(file.path) for file in files): ...

    The processes start at once and end with `close`, with the `with` block, or with this process however it ends.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        resolution: int = 224,
        patch_size: int = 14,
        mode: Mode = "aspect",
        limits: Limits = DEFAULT_LIMITS,
        ahead: int | None = None,
        work: Work = read_picture,
    ) -> None:
        self.workers = workers or os.cpu_count() or 1
        self.settings = Settings(resolution, patch_size, mode, limits)
        self.ahead = ahead or max(64, 4 * self.workers)
        self._work = work
        self._tasks: queue.SimpleQueue[tuple[Job, _Run] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()  # over _closed and _running
        self._running: set[_Process] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self.workers)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """One outcome for each job, in the order in which they are done.

        Jobs are taken as they are needed, in the caller's thread: a caller that stops asking stops the taking, and the
        processes soon after. SeenitError if no decoder process can be started.
        """
        assert not self._closed, "this pool is closed"
        waiting = iter(jobs)
        run = _Run()
        in_flight = 0
        try:
            while True:
                while in_flight < self.ahead and (job := next(waiting, None)) is not None:
                    self._tasks.put((job, run))
                    in_flight += 1
                if not in_flight:
                    return
                outcome = self._next_outcome(run)
                in_flight -= 1
                yield outcome
        finally:
            run.abandoned = True

    def close(self) -> None:
        """End the processes at once, whatever they are doing; safe to call twice."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout=5)

    def _next_outcome(self, run: "_Run") -> Outcome:
        while True:
            try:
                outcome = run.outcomes.get(timeout=0.5)  # so that Ctrl-C is heard on Windows too
            except queue.Empty:
                if self._closed:
                    raise SeenitError("the decoder processes were closed while they had work") from None
                assert all(thread.is_alive() for thread in self._threads), "a thread of the pool has died"
                continue
            if isinstance(outcome, SeenitError):
                raise outcome
            return outcome

    def _serve(self) -> None:
        """One thread for each process: hands it jobs one at a time and replaces it when it dies or takes too long."""
        process: _Process | None = None
        try:
            while True:
                if process is None:
                    process, failure = self._start()
                task = self._tasks.get()
                if task is None or self._closed:
                    return
                job, run = task
                if run.abandoned:
                    continue
                if process is not None and process.is_dead():  # it died idle, which is no file's fault
                    self._end(process)
                    process, failure = self._start()
                if process is None:
                    run.outcomes.put(SeenitError(f"cannot start a decoder process: {failure}"))
                    continue
                answer = process.ask(job, self.settings.limits.timeout_s)
                if isinstance(answer, str):
                    self._end(process)
                    process = None
                    if self._closed:
                        return
                    answer = _lost(job.path, answer)
                run.outcomes.put(answer)
        finally:
            if process is not None:
                self._end(process)

    def _start(self) -> tuple["_Process | None", str]:
        failure = ""
        for attempt in range(START_ATTEMPTS):
            if attempt:
                time.sleep(0.2 * attempt)
            try:
                process = _Process(self._work, self.settings)
            except OSError as error:
                failure = error.strerror or str(error)
                continue
            with self._lock:
                self._running.add(process)
                closed = self._closed
            failure = "" if closed else process.wait_until_ready()
            if not failure and not closed:
                return process, ""
            self._end(process)
            if closed or process.refused:
                break
        return None, failure

    def _end(self, process: "_Process") -> None:
        process.kill()
        with self._lock:
            self._running.discard(process)


def serve(hello: dict[str, Any]) -> None:
    """A decoder process from its first line to its last; `hello` is what `_Process` sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what a C library prints must not come between the answers
    try:
        work: Work = getattr(import_module(hello["work_module"]), hello["work_name"])
        settings = Settings(**{**hello["settings"], "limits": Limits(**hello["settings"]["limits"])})
        _prepare_process(settings.limits)
    except Exception as error:
        _send(answers, {"failure": f"{type(error).__name__}: {error}"})
        return
    _send(answers, {})
    for line in requests:  # ends when the parent closes its side, or dies
        job = Job(**json.loads(line))
        # A decoder that hangs after the parent died has nobody to end it
        faulthandler.dump_traceback_later(2 * settings.limits.timeout_s + 10, exit=True, file=sys.stderr)
        try:
            outcome = work(job, settings)
        except MemoryError:
            outcome = _lost(job.path, "needs more memory than it may take")
        except Exception as error:
            outcome = _lost(job.path, f"internal error: {type(error).__name__}: {error}")
        faulthandler.cancel_dump_traceback_later()
        try:
            _send(answers, *_pack(outcome))
        except OSError:
            return  # the parent is gone


class _Run:
    """One call of `run`: where its outcomes go."""

    def __init__(self) -> None:
        self.outcomes: queue.SimpleQueue[Outcome | SeenitError] = queue.SimpleQueue()
        self.abandoned = False


class _Process:
    """One decoder process; a thread reads its answers, so that waiting for one can time out on every system."""

    def __init__(self, work: Work, settings: Settings) -> None:
        hello = {
            "sys_path": sys.path,
            "module": __name__,
            "work_module": work.__module__,
            "work_name": work.__qualname__,
            "settings": asdict(settings),
        }
        self.refused = False  # whether it told why it cannot work, so that starting another is no use
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-c", BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libtiff and others complain there
            close_fds=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        _widen(self._popen.stdout)
        self._answers: queue.SimpleQueue[tuple[dict[str, Any], np.ndarray] | None] = queue.SimpleQueue()
        threading.Thread(target=_read_answers, args=(self._popen.stdout, self._answers), daemon=True).start()
        self._write(hello)

    def wait_until_ready(self) -> str:
        """Wait for the process's first word; returns why it failed, empty if it did not."""
        try:
            answer = self._answers.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            return f"no answer within {START_TIMEOUT_S:.0f} s"
        if answer is None:
            return self._cause_of_death()
        self.refused = bool(answer[0])
        return answer[0].get("failure", "")

    def ask(self, job: Job, timeout_s: float) -> Outcome | str:
        """The outcome of a job, or why there is none: the process is then dead or to be ended."""
        self._write(asdict(job))
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return f"took longer than {timeout_s:g} s"
        if answer is None:
            return self._cause_of_death()
        try:
            return _unpack(*answer)
        except (KeyError, TypeError, ValueError):
            return "the decoder's answer makes no sense"

    def is_dead(self) -> bool:
        return self._popen.poll() is not None

    def kill(self) -> None:
        """End the process and forget it; safe to call twice and from another thread."""
        with contextlib.suppress(OSError):
            self._popen.kill()
        with contextlib.suppress(OSError):
            assert self._popen.stdin is not None
            self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=5)  # one that hangs in the kernel is left behind

    def _write(self, message: dict[str, Any]) -> None:
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # a dead process shows when its answer is waited for
            self._popen.stdin.write(json.dumps(message).encode() + b"\n")
            self._popen.stdin.flush()

    def _cause_of_death(self) -> str:
        try:
            code = self._popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the decoder stopped answering"
        if code >= 0x8000_0000:  # Windows
            return f"the decoder crashed (0x{code:08X})"
        if code >= 0:
            return f"the decoder ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"the decoder was killed ({name})" if name in ("SIGKILL", "SIGTERM") else f"the decoder crashed ({name})"


def _prepare_process(limits: Limits) -> None:
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the other processes use the other cores
    try:
        import resource

        with open("/proc/self/statm") as file:
            size_now = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return  # no such limit on this system: the limit on pixels must do
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = size_now + limits.memory_bytes
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _lost(path: str, reason: str) -> Outcome:
    """What to say of a file whose decoding gave no answer."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return Vanished(path)
    except OSError as error:
        return Unreadable(path, os_reason(error))
    return Broken(path, reason, status.st_size, status.st_mtime_ns)


def _utc(mtime_ns: int) -> datetime | None:
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=mtime_ns // 1000)
    except OverflowError:
        return None


_OUTCOMES: dict[str, type] = {
    kind.__name__: kind for kind in (Decoded, Hashed, NotAPicture, Broken, Vanished, Changed, Unreadable)
}


def _pack(outcome: Outcome) -> tuple[dict[str, Any], np.ndarray | None]:
    """An outcome as JSON's types, and its pixels apart."""
    fields = dict(vars(outcome))
    pixels = fields.pop("pixels", None)
    if isinstance(outcome, Decoded):
        fields["shape"] = pixels.shape
        fields["metadata"] = dict(vars(outcome.metadata))
        if outcome.metadata.taken_at:
            fields["metadata"]["taken_at"] = outcome.metadata.taken_at.isoformat()
    return {"kind": type(outcome).__name__, **fields}, pixels


def _unpack(fields: dict[str, Any], pixels: np.ndarray) -> Outcome:
    kind = _OUTCOMES[fields.pop("kind")]
    if kind is Decoded:
        metadata = fields["metadata"]
        if metadata["taken_at"]:
            metadata["taken_at"] = datetime.fromisoformat(metadata["taken_at"])
        if metadata["gps"]:
            metadata["gps"] = tuple(metadata["gps"])
        fields["metadata"] = Metadata(**metadata)
        fields["grid"] = tuple(fields["grid"])
        fields["pixels"] = pixels.reshape(fields.pop("shape"))
    return kind(**fields)


def _send(stream: IO[bytes], fields: dict[str, Any], pixels: np.ndarray | None = None) -> None:
    text = json.dumps(fields).encode()
    raw = np.ascontiguousarray(pixels).data.cast("B") if pixels is not None else memoryview(b"")
    for part in (FRAME.pack(len(text), len(raw)) + text, raw):
        rest = memoryview(part)
        while rest:
            rest = rest[stream.write(rest) :]


def _read_answers(stream: IO[bytes], answers: "queue.SimpleQueue[tuple[dict[str, Any], np.ndarray] | None]") -> None:
    """Put every whole answer of a process into the queue, and None when there will be no more."""
    with contextlib.suppress(OSError, ValueError), stream:
        while len(frame := stream.read(FRAME.size)) == FRAME.size:
            text_size, pixel_bytes = FRAME.unpack(frame)
            text = stream.read(text_size)
            pixels = np.empty(pixel_bytes, np.uint8)
            if pixel_bytes and stream.readinto(pixels) != pixel_bytes:  # type: ignore[attr-defined]
                break
            answers.put((json.loads(text), pixels))
    answers.put(None)


def _widen(stream: IO[bytes] | None) -> None:
    """Let a pipe hold a whole picture, where the system can, so that the process need not wait for its reader."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        assert stream is not None
        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
