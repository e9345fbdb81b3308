"""One decoder process, seen from both sides: the parent's handle, `serve` in the process, and what goes between them.

Surprising: the processes are started as `python -c` with two pipes, not by `multiprocessing`. Its spawn method imports
the caller's main script again in every process, which breaks scripts without a `__main__` guard and loads torch where
only Pillow is wanted. Jobs and answers are JSON, pixels are raw bytes after it: a process that a hostile image has
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import import_module
from typing import IO, Any, get_args

import numpy as np

from .decode import NEEDS_MEMORY, Limits
from .jobs import Batch, Cut, Decoded, Job, Outcome, Settings, Work, lost
from .metadata import Metadata

START_TIMEOUT_S = 180.0  # on a machine that is busy with other things
BUSY = 0.2  # share of its time that a decoder must have computed, for its file to be what took too long
FRAME = struct.Struct("<II")  # bytes of JSON, bytes of pixels
OUTCOMES: dict[str, type] = {kind.__name__: kind for kind in get_args(Outcome)}

# Isolated: neither the current folder (it may be the photos') nor PYTHON* variables decide what is imported at first
BOOTSTRAP = """
import json, sys
hello = json.loads(sys.stdin.buffer.readline())
sys.path[:] = hello["sys_path"]
from importlib import import_module
import_module(hello["module"]).serve(hello)
"""


@dataclass(frozen=True)
class Failure:
    """Why a job has no outcome.

    accident  whether something else than the file may well be the cause: a kill, a machine that stood still
    again     whether a fresh process is worth a try even where it is not
    """

    reason: str
    accident: bool = False
    again: bool = True


class DecoderProcess:
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
        self.jobs_done = 0
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

    def ask(self, job: Job, timeout_s: float) -> "Outcome | Failure":
        """The outcome of a job, or why there is none: the process is then dead or to be ended."""
        answer = self._ask([job], timeout_s)
        return answer if isinstance(answer, Failure) else answer[0]

    def ask_batch(self, batch: Batch, timeout_s: float) -> "list[Outcome] | Failure":
        """The outcomes of a batch's jobs in their order; `timeout_s` is for all of them together."""
        return self._ask(batch.jobs, timeout_s)

    def _ask(self, jobs: Sequence[Job], timeout_s: float) -> "list[Outcome] | Failure":
        computed_s = self._computed_s()
        self._write([asdict(job) for job in jobs])
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            busy_s = self._computed_s() - computed_s
            return Failure(f"took longer than {timeout_s:g} s", accident=busy_s < BUSY * timeout_s, again=False)
        if answer is None:
            cause = self._cause_of_death()
            return Failure(cause, accident=not cause.startswith(("the decoder crashed", "the decoder ended")))
        try:
            outcomes = _unpack_all(*answer)
        except (KeyError, TypeError, ValueError, AttributeError):
            return Failure("the decoder's answer makes no sense")
        if [outcome.path for outcome in outcomes] != [job.path for job in jobs]:
            return Failure("the decoder's answer is about another file")
        self.jobs_done += len(jobs)
        return outcomes

    def _computed_s(self) -> float:
        """Processor time that the process has had, in seconds; 0 where the system does not tell."""
        try:
            with open(f"/proc/{self._popen.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError, AttributeError):
            return 0.0

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

    def _write(self, message: dict[str, Any] | list[dict[str, Any]]) -> None:
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


def serve(hello: dict[str, Any]) -> None:
    """A decoder process from its first line to its last; `hello` is what `DecoderProcess` sent."""
    for ending in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a whole group of processes gets them; they are the parent's to answer
        signal.signal(ending, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what a C library prints must not come between the answers
    try:
        work: Work = getattr(import_module(hello["work_module"]), hello["work_name"])
        settings = Settings(**{**hello["settings"], "limits": Limits(**hello["settings"]["limits"])})
        _prepare_process(settings.limits)
    except Exception as error:
        send(answers, {"failure": f"{type(error).__name__}: {error}"})
        return
    send(answers, {})
    for line in requests:  # ends when the parent closes its side, or dies
        # A decoder that hangs after the parent died has nobody to end it
        faulthandler.dump_traceback_later(2 * settings.limits.timeout_s + 10, exit=True, file=sys.stderr)
        outcomes = [_do(work, Job(**job), settings) for job in json.loads(line)]
        faulthandler.cancel_dump_traceback_later()
        try:
            send(answers, *pack_all(outcomes))
        except OSError:
            return  # the parent is gone


def _do(work: Work, job: Job, settings: Settings) -> Outcome:
    try:
        return work(job, settings)
    except MemoryError:
        return lost(job, NEEDS_MEMORY)
    except Exception as error:
        return lost(job, f"internal error: {type(error).__name__}: {error}")


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


def pack(outcome: Outcome) -> tuple[dict[str, Any], np.ndarray | None]:
    """An outcome as JSON's types, and its pixels apart."""
    fields = dict(vars(outcome))
    pixels = fields.pop("pixels", None)
    if pixels is not None:
        fields["shape"] = pixels.shape
    if isinstance(outcome, Decoded):
        fields["metadata"] = dict(vars(outcome.metadata))
        if outcome.metadata.taken_at:
            fields["metadata"]["taken_at"] = outcome.metadata.taken_at.isoformat()
    return {"kind": type(outcome).__name__, **fields}, pixels


def pack_all(outcomes: Sequence[Outcome]) -> tuple[dict[str, Any], np.ndarray | None]:
    """The outcomes of one message; the pixels are those of the first, as only a job of its own gives any."""
    packed = [pack(outcome) for outcome in outcomes]
    return {"outcomes": [fields for fields, _ in packed]}, packed[0][1]


def _unpack_all(fields: dict[str, Any], pixels: np.ndarray) -> list[Outcome]:
    return [_unpack(one, pixels) for one in fields["outcomes"]]


def _unpack(fields: dict[str, Any], pixels: np.ndarray) -> Outcome:
    kind = OUTCOMES[fields.pop("kind")]
    if kind is Decoded:
        metadata = fields["metadata"]
        if metadata["taken_at"]:
            metadata["taken_at"] = datetime.fromisoformat(metadata["taken_at"])
        if metadata["gps"]:
            metadata["gps"] = tuple(metadata["gps"])
        metadata["keywords"] = tuple(metadata["keywords"])
        fields["metadata"] = Metadata(**metadata)
    if kind in (Decoded, Cut):
        fields["grid"] = tuple(fields["grid"])
        fields["pixels"] = pixels.reshape(fields.pop("shape"))
    return kind(**fields)


def send(stream: IO[bytes], fields: dict[str, Any], pixels: np.ndarray | None = None) -> None:
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
    """Let a pipe hold a whole image, where the system can, so that the process need not wait for its reader."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        assert stream is not None
        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
