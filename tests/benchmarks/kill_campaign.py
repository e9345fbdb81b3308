"""Kills `seenit` at random moments, and checks what is left of the index.

    python tests/benchmarks/kill_campaign.py WORK --kills 1000

    store   a process that only writes to a store: upsert, set_tags, set_files, delete; half of the time beside a reader
    index   runs on a finished index, between which files come, go, change, and are renamed and copied
    new     the first run of a new index
    refit   the index has outgrown its statistics, and everything is embedded anew
    tag     `seenit tag add` of a new word to every image
    copy    `seenit copy` into another folder
    watch   `seenit index --watch`

The process group is killed, or the process alone (do its helpers end?), or it is told to stop (TERM, INT). Each write
that returned is acknowledged in a pipe or file by the process itself. After each kill: its helpers end, the index
opens, every acknowledged write is there, `seenit check` finds nothing, no traceback was printed. At a mode's end a
whole run brings the index in line with the folder. A JSON line a kill, the totals at the end; exit 1 after a fault.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import draw_photo, save_tiny
from stored_records import RECORDS, SCHEMA, make_record

from indexer.errors import SeenitError
from indexer.store.open import open_store
from indexer.store.protocol import Record, StoredFile
from indexer.store.sqlite_check import check_index
from indexer.sync.embedding import OUTGROWN

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"store": 0.84, "index": 0.06, "new": 0.02, "refit": 0.02, "tag": 0.03, "copy": 0.02, "watch": 0.01}
SIGNALS = ("KILL group",) * 5 + ("KILL",) * 3 + ("TERM", "INT")
PHOTOS = 40
EARLIEST = 0.3  # of a command's whole time; before that, Python is still loading
STORE_LIFE_S = 0.3  # of a process that writes to a store, at most
WITH_ACKNOWLEDGEMENTS = """
import json, os, sys
from indexer.store.sqlite_store import SqliteStore
file = os.open(os.environ["ACKNOWLEDGED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def acknowledging(name, told):
    write = getattr(SqliteStore, name)
    def written(self, what):
        write(self, what)
        if self.location == os.environ["ACKNOWLEDGED_OF"]:
            os.write(file, (json.dumps([name, told(what)]) + "\\n").encode())
    setattr(SqliteStore, name, written)
acknowledging("upsert", lambda records: [[one.id, one.whitening_id] for one in records])
acknowledging("set_tags", lambda tags: [[id, list(words)] for id, words in tags.items()])
acknowledging("delete", lambda ids: [[id, None] for id in ids])
import cli
sys.argv[0] = "seenit"
cli.main()
"""
Acknowledged = list[tuple[str, list[list[object]]]]


@dataclass
class Campaign:
    work: Path
    rng: random.Random
    totals: Counter[str] = field(default_factory=Counter)
    faults: int = 0

    def fault(self, what: str, detail: object) -> None:
        self.faults += 1
        print(json.dumps({"FAULT": what, "detail": str(detail)[-600:]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="an empty folder")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(SHARES), help="modes, with commas between them")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ.update(SEENIT_CACHE=str(args.work / "cache"), SEENIT_STATE=str(args.work / "state"), SEENIT_OFFLINE="1")
    os.environ["PYTHONPATH"] = str(ROOT)
    campaign = Campaign(args.work.resolve(), random.Random(args.seed))
    save_tiny(campaign.work / "tiny.safetensors")
    modes = args.only.split(",")
    began = time.monotonic()
    for mode in modes:
        kills = max(1, round(args.kills * SHARES[mode] / sum(SHARES[one] for one in modes)))
        MODES[mode](campaign, kills)
    totals = {"seconds": round(time.monotonic() - began), "faults": campaign.faults, **sorted_counts(campaign.totals)}
    print(json.dumps(totals))
    sys.exit(campaign.faults > 0)


def sorted_counts(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


# The store alone


def kill_store(campaign: Campaign, kills: int) -> None:
    """Forked writers that acknowledge each write in a pipe; what they write follows from a seed."""
    for number in range(kills):
        index = campaign.work / f"store{number % 4}"
        if number % 40 < 4:  # begin anew now and then: creating an index is killed, too
            shutil.rmtree(index, ignore_errors=True)
            known: dict[str, Record] = {}
            (campaign.work / f"{index.name}.known").unlink(missing_ok=True)
        known = read_store(index)
        reader = _forked(partial(_read_on, index)) if campaign.rng.random() < 0.5 else None
        out, into = os.pipe()
        seed = campaign.rng.randrange(1 << 40)
        writer = _forked(partial(_write_on, index, seed, into, known))
        os.close(into)
        time.sleep(campaign.rng.uniform(0.0, STORE_LIFE_S))
        os.kill(writer, signal.SIGKILL)
        _, status = os.waitpid(writer, 0)
        with os.fdopen(out, "rb") as pipe:
            acknowledged = len(pipe.read())
        if reader is not None:
            _, of_reader = os.waitpid(reader, 0)
            if os.waitstatus_to_exitcode(of_reader):
                campaign.fault("store: a reader failed", os.waitstatus_to_exitcode(of_reader))
        if not os.WIFSIGNALED(status):
            campaign.fault("store: the writer ended by itself", os.waitstatus_to_exitcode(status))
        states = [known]
        for step in _steps(seed, known):
            if len(states) > acknowledged + 1:
                break
            states.append(_after(states[-1], step))
        found = read_store(index)
        if found not in (states[acknowledged], states[min(acknowledged + 1, len(states) - 1)]):
            campaign.fault("store: neither the acknowledged state nor the next", f"{index} {acknowledged} {seed}")
        _check(campaign, "store", index)
        campaign.totals["store kills"] += 1
        campaign.totals["store kills in mid-work"] += acknowledged > 0
        campaign.totals["store writes acknowledged"] += acknowledged
        print(
            json.dumps({"mode": "store", "kill": number, "acknowledged": acknowledged, "held": len(found)}), flush=True
        )


Step = tuple[str, list[int], int]  # what is called, records by number, a word for tags and files


def _steps(seed: int, known: dict[str, Record]) -> "list[Step]":
    """The calls of one writer, drawn from its seed."""
    rng = random.Random(seed)
    names = rng.choices(["upsert", "set_tags", "set_files", "delete"], [4, 3, 2, 1], k=400)
    return [(name, rng.sample(range(60), rng.randint(1, 12)), rng.randrange(1 << 30)) for name in names]


def _written(step: Step) -> list[Record]:
    _, numbers, word = step
    return [replace(make_record(number), whitening_id=f"fit-{word}", tags=(f"tag {word}",)) for number in numbers]


def _after(state: dict[str, Record], step: Step) -> dict[str, Record]:
    """What a store holds after one more call."""
    name, _, word = step
    state = dict(state)
    for record in _written(step):
        if name == "upsert":
            state[record.id] = _plain(record)
        elif name == "delete":
            state.pop(record.id, None)
        elif record.id in state:
            there = state[record.id]
            files = (StoredFile(f"0/moved/{word} {record.id}.jpg", word, word),)
            state[record.id] = replace(there, tags=record.tags) if name == "set_tags" else replace(there, files=files)
    return state


def _plain(record: Record) -> Record:
    """As it is compared; vectors are held against their checksum by the check."""
    return replace(record, global_vector=None)


def _write_on(index: Path, seed: int, pipe: int, known: dict[str, Record]) -> None:
    with closing(open_store(index, write=True, wait_s=5)) as store:
        store.ensure(SCHEMA)
        for step in _steps(seed, known):
            records = _written(step)
            name, _, word = step
            if name == "upsert":
                store.upsert(records)
            elif name == "set_tags":
                store.set_tags({record.id: record.tags for record in records})
            elif name == "set_files":
                store.set_files(
                    {record.id: (StoredFile(f"0/moved/{word} {record.id}.jpg", word, word),) for record in records}
                )
            else:
                store.delete([record.id for record in records])
            os.write(pipe, b".")
        time.sleep(60)


def _read_on(index: Path) -> None:
    """Read for a while; each answer must be one state."""
    deadline = time.monotonic() + STORE_LIFE_S
    while time.monotonic() < deadline:
        if not (index / "index.sqlite").exists():
            continue
        try:
            store = open_store(index)
        except SeenitError as error:
            if "is empty" in str(error):  # its maker was killed before the first table
                continue
            raise
        with closing(store):
            while store.schema() is not None and time.monotonic() < deadline:
                with store.snapshot():
                    held = list(store.scroll(vectors=True))
                    assert len(held) == store.count()
                    assert {record.id for record in held} == {one.id for one in store.retrieve([r.id for r in held])}
                (hits,) = store.search(RECORDS[0].global_vector[None], 5)  # type: ignore[index]
                assert len(hits) <= 5


def read_store(index: Path) -> dict[str, Record]:
    """All that an index holds; nothing where there is none yet."""
    try:
        store = open_store(index)
    except SeenitError as error:
        if "no index at" in str(error) or "is empty" in str(error):
            return {}
        raise
    with closing(store):
        return {record.id: _plain(record) for record in store.scroll(vectors=True)} if store.schema() else {}


def _forked(work: Callable[[], None]) -> int:
    """A child that does the work and ends; 1 is its exit status after an exception, which it prints."""
    if not (child := os.fork()):
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return child


def _check(campaign: Campaign, mode: str, index: Path) -> None:
    with suppress(FileNotFoundError):
        if not (index / "index.sqlite").stat().st_size:
            return
        try:
            checked = check_index(index)
        except SeenitError as error:
            return campaign.fault(f"{mode}: cannot be checked", error)
        problems = [one for one in checked.problems if "is empty" not in one and "no index at" not in one]
        if problems:
            campaign.fault(f"{mode}: damaged", problems)


# The command line


def command(campaign: Campaign, index: Path, *args: object) -> "subprocess.Popen[bytes]":
    (campaign.work / "acknowledged").unlink(missing_ok=True)
    environment = {
        **os.environ,
        "ACKNOWLEDGED": str(campaign.work / "acknowledged"),
        "ACKNOWLEDGED_OF": str(index),
        "OMP_NUM_THREADS": "1",
    }
    with open(campaign.work / "stderr", "wb") as said:
        return subprocess.Popen(
            [sys.executable, "-c", WITH_ACKNOWLEDGEMENTS, *map(str, args)],
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=environment,
            start_new_session=True,
        )


def index_args(campaign: Campaign, photos: Path, index: Path) -> list[object]:
    backbone = campaign.work / "tiny.safetensors"
    fixed = ["--resolution", 56, "--tokens", "compact", "--workers", 1, "--allow-empty"]
    return ["index", photos, "--index", index, "--backbone", backbone, *fixed]


def whole_run(campaign: Campaign, mode: str, index: Path, args: Sequence[object]) -> float:
    """Run to the end; the seconds it took."""
    began = time.monotonic()
    process = command(campaign, index, *args)
    if process.wait(300):
        campaign.fault(f"{mode}: a whole run fails", (campaign.work / "stderr").read_text(errors="replace"))
    return time.monotonic() - began


def kill_command(campaign: Campaign, mode: str, index: Path, args: Sequence[object], longest_s: float) -> None:
    """Start, kill, and check all that must hold then."""
    how = campaign.rng.choice(SIGNALS)
    process = command(campaign, index, *args)
    delay = campaign.rng.uniform(EARLIEST * longest_s, longest_s)
    try:
        process.wait(delay)
        how = "ended before"
    except subprocess.TimeoutExpired:
        if how == "KILL group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(getattr(signal, f"SIG{how}"))
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        campaign.fault(f"{mode}: does not end after {how}", args)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 6
    while (left := _of_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        campaign.fault(f"{mode}: helpers live on after {how}", left)
        os.killpg(process.pid, signal.SIGKILL)
    said = (campaign.work / "stderr").read_text(errors="replace")
    if "Traceback" in said:
        campaign.fault(f"{mode}: a traceback after {how}", said)
    acknowledged = read_acknowledged(campaign.work / "acknowledged")
    verify(campaign, mode, index, acknowledged)
    campaign.totals[f"{mode} {how}"] += 1
    campaign.totals[f"{mode} kills in mid-work"] += bool(acknowledged) and how != "ended before"
    line = {"mode": mode, "how": how, "after_s": round(delay, 2), "acknowledged": len(acknowledged)}
    print(json.dumps(line), flush=True)


def read_acknowledged(path: Path) -> Acknowledged:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def verify(campaign: Campaign, mode: str, index: Path, acknowledged: Acknowledged) -> None:
    """The index opens, and the last acknowledged write of each record is there."""
    try:
        held = read_store(index)
    except SeenitError as error:
        return campaign.fault(f"{mode}: the index does not open", error)
    last = {str(id): (name, value) for name, items in acknowledged for id, value in items}
    for id, (name, value) in last.items():
        if name == "delete":
            lost = id in held
        elif name == "upsert":
            lost = id not in held or held[id].whitening_id != value
        else:
            lost = id in held and list(held[id].tags) != value
        if lost:
            campaign.fault(f"{mode}: an acknowledged {name} is lost", id)
    campaign.totals["command writes held against the index"] += len(last)
    _check(campaign, mode, index)


def _of_session(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{int(name)}/stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(name))
    return found


def draw(folder: Path, count: int) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(count):
        draw_photo(folder / f"s{number % 5}" / f"{number}.jpg", number)
    return folder


def change_folder(campaign: Campaign, photos: Path) -> None:
    """A few files come, go, change; bytes behind the end make another content of the same image."""
    rng = campaign.rng
    for _ in range(rng.randint(1, 20)):
        file = rng.choice(sorted(photos.rglob("*.jpg")))
        other = photos / f"s{rng.randrange(5)}" / f"{rng.randrange(10**9)}.jpg"
        what = rng.choice(["rename", "delete", "copy", "change", "new", "new"])
        if what == "rename":
            file.rename(other)
        elif what == "copy":
            shutil.copy(file, other)
        elif what == "delete":
            file.unlink()
        else:
            (file if what == "change" else other).write_bytes(file.read_bytes() + rng.randbytes(5))


def against_folder(campaign: Campaign, mode: str, photos: Path, index: Path) -> None:
    """A whole run, and then the index is what the folder is."""
    whole_run(campaign, mode, index, index_args(campaign, photos, index))
    want: dict[str, set[str]] = {}
    for file in photos.rglob("*.jpg"):
        id = str(uuid.UUID(bytes=hashlib.sha256(file.read_bytes()).digest()[:16]))
        want.setdefault(id, set()).add("0/" + file.relative_to(photos).as_posix())
    held = {id: {file.key for file in record.files} for id, record in read_store(index).items()}
    if held != want:
        campaign.fault(f"{mode}: the index is not the folder", f"{len(held)} records, {len(want)} contents")
    left = [path.name for path in index.iterdir() if path.name.endswith(".part")]
    campaign.totals[f"{mode} unfinished files left"] += len(left)


def kill_index(campaign: Campaign, kills: int, mode: str = "index", more: Sequence[object] = ()) -> None:
    photos, index = draw(campaign.work / mode, PHOTOS), campaign.work / f"{mode}.index"
    args = index_args(campaign, photos, index)
    longest_s = whole_run(campaign, mode, index, args)
    for _ in range(kills):
        change_folder(campaign, photos)
        kill_command(campaign, mode, index, [*args, *more], longest_s)
    against_folder(campaign, mode, photos, index)


def kill_watch(campaign: Campaign, kills: int) -> None:
    kill_index(campaign, kills, "watch", ["--watch"])


def kill_new(campaign: Campaign, kills: int) -> None:
    photos, index = draw(campaign.work / "new", PHOTOS), campaign.work / "new.index"
    longest_s = whole_run(campaign, "new", index, index_args(campaign, photos, index))
    for _ in range(kills):
        if campaign.rng.random() < 0.7:
            shutil.rmtree(index)
        kill_command(campaign, "new", index, index_args(campaign, photos, index), longest_s)
        index.mkdir(exist_ok=True)
    against_folder(campaign, "new", photos, index)


def kill_refit(campaign: Campaign, kills: int) -> None:
    few, index = draw(campaign.work / "refit", PHOTOS // OUTGROWN), campaign.work / "refit.index"
    whole_run(campaign, "refit", index, index_args(campaign, few, index))
    small = campaign.work / "refit.small"
    shutil.copytree(index, small)
    photos = draw(few, PHOTOS)
    longest_s = 8.0
    for number in range(kills):
        if number % 2 == 0:
            shutil.rmtree(index)
            shutil.copytree(small, index)
        kill_command(campaign, "refit", index, index_args(campaign, photos, index), longest_s)
    against_folder(campaign, "refit", photos, index)


def kill_tag(campaign: Campaign, kills: int) -> None:
    photos, index = draw(campaign.work / "tag", PHOTOS), campaign.work / "tag.index"
    whole_run(campaign, "tag", index, index_args(campaign, photos, index))
    longest_s = whole_run(campaign, "tag", index, ["tag", "add", "first", photos, "--index", index])
    for number in range(kills):
        kill_command(campaign, "tag", index, ["tag", "add", f"word{number}", photos, "--index", index], longest_s)
    whole_run(campaign, "tag", index, ["tag", "add", "last", photos, "--index", index])
    if any("last" not in record.tags or "first" not in record.tags for record in read_store(index).values()):
        campaign.fault("tag: the last run's tags are not there", index)


def kill_copy(campaign: Campaign, kills: int) -> None:
    photos, index = draw(campaign.work / "copy", PHOTOS), campaign.work / "copy.index"
    whole_run(campaign, "copy", index, index_args(campaign, photos, index))
    held, target = read_store(index), campaign.work / "copy.target"
    longest_s = whole_run(campaign, "copy", target, ["copy", index, target])
    for _ in range(kills):
        if campaign.rng.random() < 0.7:
            shutil.rmtree(target, ignore_errors=True)
        kill_command(campaign, "copy", target, ["copy", index, target], longest_s)
        if read_store(index) != held:
            campaign.fault("copy: the source changed", index)
    whole_run(campaign, "copy", target, ["copy", index, target])
    if read_store(target) != held:
        campaign.fault("copy: not the same as its source", target)


MODES: dict[str, Callable[[Campaign, int], None]] = {
    "store": kill_store,
    "index": kill_index,
    "new": kill_new,
    "refit": kill_refit,
    "tag": kill_tag,
    "copy": kill_copy,
    "watch": kill_watch,
}

if __name__ == "__main__":
    main()
