"""Damages copies of a small finished index and sees what whoever reads, writes or checks it gets.

    python tests/benchmarks/fuzz_index.py INDEX WORK --cases 5000

INDEX is made from drawn images where it is not there yet. Beside the index as a run leaves it there is one as a killed
writer leaves it, with a log of three transactions that were not worked in, and the graph of neighbours in the cache.
One file of a copy is damaged, and a forked child, under a time limit, opens, lists, filters, searches, reads tags and
statistics, then writes a tag, and at last checks the index.

    works          the same records, tags and first results
    clean          SeenitError in one line
    older          the log is damaged, and the state is that after one of its earlier transactions
    WRONG          no error, and something else than was written; or a check that finds nothing where reading fails
    traceback, signal N, exit N, hang

A JSON line for each case that is neither of the first three, the totals at the end; exit 1 if there was one.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import draw_photo, save_tiny

from indexer.errors import SeenitError
from indexer.index.index import Index
from indexer.store import neighbours
from indexer.store.open import open_store
from indexer.store.protocol import Filter, Store
from indexer.store.sqlite_check import Checked, check_index
from indexer.sync.options import SyncOptions
from indexer.sync.sync import sync_folder

IMAGES = 24
FOUND = 5  # first results that are compared
KINDS = {"flip": 8, "garbage": 3, "cut": 5, "delete": 2, "empty": 2, "grow": 1, "swap": 2, "zero": 2, "text": 1}
DATABASE = "index.sqlite"
LOG = DATABASE + "-wal"
LOG_SHARE = 0.3  # of the cases on an index that a killed writer left
MARK = "marked by the fuzz"
Answer = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("work", type=Path, help="an empty folder; best in memory, as each case is a copy in it")
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds, of one case")
    parser.add_argument("--seconds", type=float, default=900.0, help="of all cases")
    parser.add_argument("--keep", action="store_true", help="leave the cases that are told")
    args = parser.parse_args()
    neighbours.SCANNED, neighbours.FEW = IMAGES // 2, 2  # so that so few records have a graph, and use it
    os.environ["SEENIT_CACHE"] = str(args.work / "cache")
    closed, killed = make_bases(args.index, args.work)
    truths = [told_by(copied(closed), args.timeout)["works"], *states_of(killed, closed, args.timeout)]
    totals: Counter[str] = Counter()
    began = time.monotonic()
    for number in range(1, args.cases + 1):
        if time.monotonic() - began > args.seconds:
            break
        rng = random.Random(f"{args.seed} {number}")
        base, truth = (killed, truths[-1]) if rng.random() < LOG_SHARE else (closed, truths[0])
        case = args.work / f"case{number}"
        shutil.copytree(base, case)
        kind, file = damage(case, rng)
        verdict, detail = judge(told_by(case, args.timeout), truth, truths if file == LOG else [])
        for key in (verdict, f"{verdict} / {kind}", f"{verdict} / {file.split('-')[0] if '/' in file else file}"):
            totals[key] += 1
        if verdict not in ("works", "clean", "older"):
            told = {"case": number, "kind": kind, "file": file, "verdict": verdict, "detail": str(detail)[-600:]}
            print(json.dumps(told), flush=True)
            if args.keep:
                continue
        elif verdict == "clean":
            totals["told: " + str(detail).replace(str(case), "INDEX")[:90]] += 1
        shutil.rmtree(case, ignore_errors=True)
    print(json.dumps({"cases": number, "seconds": round(time.monotonic() - began), **dict(sorted(totals.items()))}))
    sys.exit(any(key.split(" / ")[0] not in ("works", "clean", "older") for key in totals if "told: " not in key))


# What is damaged


def make_bases(index: Path, work: Path) -> tuple[Path, Path]:
    """The index as a run leaves it, and as a killed writer does; each with its `cache` folder inside."""
    if not index.exists():
        photos = index.with_name(index.name + "-photos")
        for number in range(IMAGES):
            draw_photo(photos / f"{number % 3}" / f"{number}.jpg", number)
        backbone = save_tiny(index.with_name("tiny.safetensors"))
        sync_folder(photos, index, options=SyncOptions(resolution=56, tokens="compact", workers=1), backbone=backbone)
        store = open_store(index, write=True)
        store.set_tags({record.id: ("holiday",) for n, record in enumerate(store.scroll()) if n % 2})
        store.close()
    closed, killed = work / "closed", work / "killed"
    shutil.copytree(index, closed)
    os.environ["SEENIT_CACHE"] = str(closed / "cache")
    store = open_store(closed)
    store.optimize()
    store.close()
    shutil.copytree(closed, killed)
    if not (writer := os.fork()):
        store = open_store(killed, write=True)
        for tag in ("first", "second", "third"):
            store.set_tags({record.id: (tag,) for n, record in enumerate(store.scroll()) if n % 3})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(writer, 0)
    assert (killed / LOG).stat().st_size, "the log was worked in"
    return closed, killed


def states_of(killed: Path, closed: Path, timeout_s: float) -> list[Answer]:
    """What is told after each of the killed writer's transactions, the last state last."""
    last = told_by(copied(killed), timeout_s)["works"]
    assert last["records"] != told_by(copied(closed), timeout_s)["works"]["records"]
    states = []
    for tag in ("first", "second"):
        earlier = json.loads(json.dumps(last).replace('"third"', f'"{tag}"'))
        states.append(earlier)
    return [*states, last]


def copied(base: Path) -> Path:
    shutil.copytree(base, base.with_name("copy"), dirs_exist_ok=False)
    return base.with_name("copy")


def damage(index: Path, rng: random.Random) -> tuple[str, str]:
    """Damage one file; the kind and the file's name within the index."""
    files = sorted(path for path in index.rglob("*") if path.is_file())
    database = [path for path in files if path.name.startswith(DATABASE)]
    path = rng.choice(database if rng.random() < 0.6 else files)
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    data = bytearray(path.read_bytes())
    at = rng.choice([n for n, byte in enumerate(data) if byte] or [0])
    if kind == "flip" and data:
        for _ in range(rng.randint(1, 8)):
            data[at] ^= 1 << rng.randrange(8)
            at = rng.randrange(len(data))
    elif kind == "garbage":
        data[at : at + 64] = rng.randbytes(rng.randint(1, 64))[: max(0, len(data) - at)]
    elif kind == "cut":
        del data[rng.choice([len(data) // 2, rng.randrange(len(data) + 1)]) :]
    elif kind == "empty":
        data.clear()
    elif kind == "grow":
        data += rng.randbytes(rng.randint(1, 5000))
    elif kind == "zero":
        data[at // 4096 * 4096 : at // 4096 * 4096 + 4096] = bytes(min(4096, len(data) - at // 4096 * 4096))
    elif kind == "text":
        data = bytearray(rng.choice([b"[]", b"{}", b'{"format": 1}', b"null", b"[" * 100_000, b"\xff\xfe"]))
    elif kind == "swap":
        other = rng.choice(files)
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        path = other if other.name == LOG else path
        return kind, path.relative_to(index).as_posix()
    if kind == "delete":
        path.unlink()
    else:
        path.write_bytes(data)
    return kind, path.relative_to(index).as_posix()


# What is told of it


def told_by(index: Path, timeout_s: float) -> Answer:
    """What a forked child gets from the index: one of works, clean, traceback, signal, exit, hang, WRONG."""
    out, into = os.pipe()
    if not (child := os.fork()):
        os.close(out)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ["SEENIT_CACHE"] = str(index / "cache")
        with os.fdopen(into, "wb") as pipe:
            pipe.write(json.dumps(_within(index)).encode())
        os._exit(0)
    os.close(into)
    deadline = time.monotonic() + timeout_s
    data, status = b"", None
    os.set_blocking(out, False)
    while status is None and time.monotonic() < deadline:
        done, state = os.waitpid(child, os.WNOHANG)
        status = state if done else None
        try:
            while piece := os.read(out, 1 << 16):
                data += piece
        except BlockingIOError:
            time.sleep(0.001)
    os.close(out)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"hang": timeout_s}
    if os.WIFSIGNALED(status):
        return {"signal": signal.Signals(os.WTERMSIG(status)).name}
    answer: Answer = json.loads(data) if data else {"exit": os.WEXITSTATUS(status)}
    if index.name == "copy":
        shutil.rmtree(index)
    return answer


def _within(index: Path) -> Answer:
    try:
        checked = check_index(index)
    except SeenitError as error:
        checked = Checked(str(index), 0, (str(error),))
    except BaseException as error:
        return {"traceback": "check: " + "".join(traceback.format_exception(error))}
    try:
        with Index.open(index) as opened:
            answer = read_all(opened)
        mark(index, answer["listed"][0][0])
        return {"works": answer}
    except SeenitError as error:
        if not checked.problems:
            return {"WRONG": f"a check finds nothing, but: {error}"}
        return {"clean": str(error)} if "\n" not in str(error) else {"WRONG": f"more than a line: {error}"}
    except BaseException as error:
        return {"traceback": "".join(traceback.format_exception(error))}


def read_all(index: Index) -> Answer:
    """All that an index can be asked, as JSON has it."""
    store: Store = index.store
    records = sorted(store.scroll(vectors=True), key=lambda record: record.id)
    vectors = np.stack([np.asarray(record.global_vector) for record in records])
    answer = {
        "count": store.count(),
        "facts": [index.facts().images, index.whitening.id, len(index.skipped())],
        "listed": sorted((one.id, [file.key for file in one.files]) for one in store.list_files()),
        "records": [
            (
                one.id,
                [(file.key, file.size, file.mtime_ns) for file in one.files],
                one.tags,
                one.whitening_id,
                str(one.metadata),
            )
            for one in records
        ],
        "vectors": float(np.abs(vectors).sum().round(3)),
        "patches": [len(one.patches or b"") for one in records],
        "tagged": store.count(Filter(tags=("holiday",))),
        "under": sum(1 for _ in store.scroll(Filter(under=("0/1",)))),
        "found": [[hit.id for hit in hits] for hits in store.search(vectors[:3], FOUND)],
        "exact": [[hit.id for hit in hits] for hits in store.search(vectors[:3], FOUND, exact=True)],
        "filtered": [[hit.id for hit in hits] for hits in store.search(vectors[:3], FOUND, Filter(under=("0/2",)))],
    }
    whole: Answer = json.loads(json.dumps(answer))
    return whole


def mark(index: Path, id: str) -> None:
    """Write a tag and read it back; SeenitError where the damage forbids it."""
    store = open_store(index, write=True, wait_s=0.5)
    try:
        store.set_tags({id: (MARK,)})
    finally:
        store.close()
    store = open_store(index)
    assert store.tags_of([id]) == {id: (MARK,)}
    store.close()


def judge(told: Answer, truth: Answer, earlier: list[Answer]) -> tuple[str, object]:
    """The verdict and its reason. `earlier`: states that a damaged log may go back to."""
    ((verdict, detail),) = told.items()
    if verdict != "works" or detail == truth:
        return verdict, detail
    if any(detail["records"] == state["records"] for state in earlier):
        return "older", ""
    return "WRONG", {key: (str(detail[key])[:150], str(truth[key])[:150]) for key in truth if detail[key] != truth[key]}


if __name__ == "__main__":
    main()
