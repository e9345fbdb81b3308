"""Test sets read from small files: manifests, the revisited Oxford and Paris, ILIAS; and pickles that mean harm."""

import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_photo
from PIL import Image

from indexer import SeenitError
from retrieval.evaluate.evaluate import Variant, evaluate_retrieval
from retrieval.evaluate.ground_truth import (
    JudgedQuery,
    is_neighbour,
    make_task,
    read_distractors,
    read_ground_truth_csv,
    read_tasks,
)
from retrieval.evaluate.plain_pickle import MAX_BYTES, MAX_DEPTH, read_plain_pickle
from retrieval.options import SearchOptions

# ---- manifests ----


def write_manifest(folder: Path, rows: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.csv").write_text("path,role,instance,note\n" + rows, encoding="utf-8")
    return folder / "manifest.csv"


def test_task_of_a_manifest(tmp_path: Path) -> None:
    rows = "g/1.jpg,gallery,1,\ng/2.jpg,gallery,2,\nq.jpg,query,1 2,two in one\n"
    rows += "t.jpg,clean_twin,1,\nn.jpg,query,none,\n"
    other = write_manifest(tmp_path / "others", "d.jpg,distractor,none,\n")
    task = make_task(read_ground_truth_csv(write_manifest(tmp_path / "set", rows)), read_ground_truth_csv(other))
    one, two = tmp_path / "set/g/1.jpg", tmp_path / "set/g/2.jpg"
    assert task.gallery == (one, two, tmp_path / "others/d.jpg")
    both, none = task.queries
    assert both.correct == {one, two} and both.junk == frozenset()
    assert none.correct == frozenset()


def test_leave_one_out_and_the_instance_junk(tmp_path: Path) -> None:
    rows = "a.jpg,both,louvre,\nb.jpg,both,louvre,\nj.jpg,both,junk,\nw.jpg,query,louvre,web\n"
    task = make_task(read_ground_truth_csv(write_manifest(tmp_path / "set", rows)))
    a, b, j, w = (tmp_path / "set" / f"{name}.jpg" for name in "abjw")
    assert task.queries == (
        JudgedQuery(a, frozenset({b}), frozenset({a, j})),
        JudgedQuery(b, frozenset({a}), frozenset({b, j})),
        JudgedQuery(w, frozenset({a, b}), frozenset({j})),
    )


def test_neighbouring_landmarks_are_junk_and_other_numbers_are_not(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,gallery,landmarks/{n:03},\n" for n in range(1, 7)) + "q.jpg,query,landmarks/004,\n"
    (asked,) = make_task(read_ground_truth_csv(write_manifest(tmp_path / "set", rows))).queries
    assert {path.stem for path in asked.correct} == {"4"}
    assert {path.stem for path in asked.junk} == {"2", "3", "5", "6"}
    assert is_neighbour("landmarks/0000", "landmarks/002")
    assert not is_neighbour("dvd_covers/001", "dvd_covers/002") and not is_neighbour("1", "2")


@pytest.mark.parametrize(
    ("content", "says"),
    [("path,role\na,b\n", "no column instance"), ("path,role,instance\na.jpg,gallery\n", "line 2"), (None, "manifest")],
)
def test_a_broken_manifest_is_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "manifest.csv"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(SeenitError, match=says) as error:
        read_ground_truth_csv(file)
    assert "\n" not in str(error.value)


def test_catalogue_images_ask_in_a_task_of_their_own(tmp_path: Path) -> None:
    rows = "shelf.jpg,gallery,tea,\nphone.jpg,query,tea,\nclean.jpg,iconic,tea,\n"
    manifest = write_manifest(tmp_path / "shop", rows)
    others = write_manifest(tmp_path / "others", "d.jpg,distractor,none,\nv.jpg,val,1,\n")
    for name in ("shop/shelf.jpg", "shop/phone.jpg", "shop/clean.jpg", "others/d.jpg", "others/v.jpg"):
        draw_photo(tmp_path / name, 0)
    (tmp_path / "others" / "notes.txt").write_text("no image")
    assert read_distractors(others) == (tmp_path / "others/d.jpg",)
    plain, iconic = read_tasks(manifest.parent, read_distractors(others))
    assert (plain.name, iconic.name) == ("shop", "shop iconic")
    assert [asked.path.name for asked in (*plain.queries, *iconic.queries)] == ["phone.jpg", "clean.jpg"]
    assert plain.gallery == iconic.gallery == (tmp_path / "shop/shelf.jpg", tmp_path / "others/d.jpg")
    assert plain.queries[0].correct == iconic.queries[0].correct == {tmp_path / "shop/shelf.jpg"}
    others.unlink()
    assert read_distractors(others.parent) == (tmp_path / "others/d.jpg", tmp_path / "others/v.jpg")
    (tmp_path / "shop/shelf.jpg").unlink()
    with pytest.raises(SeenitError, match=r"1 of the 3 images .* are not there, the first is .*shelf.jpg"):
        read_tasks(manifest)


@pytest.mark.parametrize("name", ["nothing", "photos", "truth.json"])
def test_what_is_no_test_set_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(SeenitError, match="no test set"):
        read_tasks(tmp_path / name)


# ---- revisited Oxford and Paris ----


def revisited(folder: Path, **changes: Any) -> Path:
    """Five gallery images and two queries, as the authors publish them; images are drawn."""
    gallery, queries = [f"all_souls_{n:06}" for n in range(5)], ["query_a", "query_b"]
    for n, name in enumerate([*gallery, *queries]):
        draw_photo(folder / "jpg" / f"{name}.jpg", n)
    truth = {
        "imlist": gallery,
        "qimlist": queries,
        "gnd": [
            {"bbx": [10.4, 5, 80.6, 60], "easy": [0], "hard": [1, 2], "junk": [3]},
            {"bbx": np.array([0, 0, 96.0, 72.0]), "easy": np.array([4]), "hard": np.array([], int), "junk": []},
        ],
    }
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth | changes, protocol=2))
    return folder / "gnd_roxford5k.pkl"


def names(images: frozenset[Path]) -> set[str]:
    return {path.stem[-1] for path in images}


def test_the_three_protocols(tmp_path: Path) -> None:
    easy, medium, hard = read_tasks(revisited(tmp_path))
    assert [task.name for task in (easy, medium, hard)] == [f"roxford5k {word}" for word in ("easy", "medium", "hard")]
    assert [names(task.queries[0].correct) for task in (easy, medium, hard)] == [{"0"}, {"0", "1", "2"}, {"1", "2"}]
    assert [names(task.queries[0].junk) for task in (easy, medium, hard)] == [{"1", "2", "3"}, {"3"}, {"0", "3"}]
    assert not hard.queries[1].correct and names(hard.queries[1].junk) == {"4"}  # left out of the hard protocol's means
    assert easy.queries[0].region == (10, 5, 71, 55) and easy.queries[1].region == (0, 0, 96, 72)
    assert len(easy.gallery) == 5 and easy.gallery[0] == tmp_path / "jpg" / "all_souls_000000.jpg"


@pytest.mark.slow
def test_only_the_box_of_a_query_is_asked(tmp_path: Path, tiny_backbone: Path) -> None:
    """Both queries are the same image, with gallery image 0 on its left and 4 on its right."""
    boxes = ([0, 0, 96, 72], 0), ([96, 0, 192, 72], 4)
    truth = revisited(tmp_path, gnd=[{"bbx": box, "easy": [n], "hard": [], "junk": []} for box, n in boxes])
    both = Image.new("RGB", (192, 72))
    for (left, *_), n in boxes:
        both.paste(Image.open(tmp_path / "jpg" / f"all_souls_{n:06}.jpg"), (left, 0))
    for name in ("query_a", "query_b"):
        both.save(tmp_path / "jpg" / f"{name}.jpg", quality=95)
    scores = evaluate_retrieval(
        truth, backbone=str(tiny_backbone), resolution=56, variants=[Variant("plain", SearchOptions(rerank=False))]
    )
    assert [one.task.split()[1] for one in scores] == ["easy", "medium", "hard"]
    assert scores[0].quality.recall[1] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"gnd": []},
        {"imlist": ["../../secret"] * 5},
        {"qimlist": ["query_a", "query_a"]},
        {"gnd": [{"bbx": [0, 0, 9, 9], "easy": [7], "hard": [], "junk": []}] * 2},
        {"gnd": [{"bbx": [0, 0, 9, 9], "easy": [-1], "hard": [], "junk": []}] * 2},
        {"gnd": [{"bbx": [0, 0, float("nan"), 9], "easy": [1], "hard": [], "junk": []}] * 2},
        {"gnd": [{"bbx": [0, 0, 9], "easy": [1], "hard": [], "junk": []}] * 2},
        {"gnd": [{"easy": [1], "hard": [], "junk": []}] * 2},
        {"gnd": [{"bbx": [0, 0, 9, 9], "easy": [[1], [2, 3]], "hard": [], "junk": []}] * 2},
        {"gnd": 7},
        {"imlist": None},
    ],
)
def test_a_wrong_ground_truth_is_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(SeenitError, match="no ground truth of the revisited") as error:
        read_tasks(revisited(tmp_path, **changes))
    assert "\n" not in str(error.value)


# ---- ILIAS ----


def ilias(folder: Path, queries: str, positives: str) -> Path:
    (folder / "image_ids").mkdir(parents=True)
    (folder / "image_ids" / "image_query_ids.txt").write_text(queries)
    (folder / "image_ids" / "positive_ids.txt").write_text(positives)
    return folder


def test_lists_of_ilias(tmp_path: Path) -> None:
    places = [f"bold_bimp_000/pos/P000_0{n}.jpg" for n in range(2)] + ["zippy_999/pos/P999_00.jpg"]
    asked = ["bold_bimp_000/query/Q000_00.jpg", "zippy_999/query/Q999_00.jpg"]
    for n, name in enumerate([*places, *asked]):
        draw_photo(tmp_path / "ilias" / "ilias_core" / name, n)
    folder = ilias(
        tmp_path / "ilias", "".join(f"{name},12\n" for name in asked), "".join(f"{name},0.1,3\n" for name in places)
    )
    (task,) = read_tasks(folder)
    core = folder / "ilias_core"
    assert task.gallery == tuple(core / name for name in places)
    assert task.queries == (
        JudgedQuery(core / asked[0], frozenset({core / places[0], core / places[1]}), frozenset()),
        JudgedQuery(core / asked[1], frozenset({core / places[2]}), frozenset()),
    )


@pytest.mark.parametrize("line", ["", "../x/pos/a.jpg,1", "/etc/pos/a.jpg", "a.jpg"])
def test_wrong_lists_of_ilias_are_one_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(SeenitError, match="not one of ILIAS's lists"):
        read_tasks(ilias(tmp_path / "ilias", "a/query/b.jpg,1", line))


# ---- pickles ----

PLAIN = {
    "texts": ["a", "", "b" * 300, "grün", "日本"],
    "numbers": [0, 1, -5, 300, 70_000, 2**70, -(2**70), 3.5, float("inf"), True, False, None],
    "bytes": [b"", b"\x00\xff" * 3, b"x" * 300],
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4, ("in", {"a": {7: []}}))),
    "arrays": [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 4), np.uint8),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.array(["ab", "c"]),
        np.array(5, np.float32),
    ],
    "scalars": [np.float32(2.5), np.int64(7), np.bool_(True)],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back_from_every_protocol(tmp_path: Path, protocol: int) -> None:
    shared = [1, 2]
    file = tmp_path / "plain.pkl"
    file.write_bytes(pickle.dumps(PLAIN | {"twice": [shared, shared]}, protocol))
    read = read_plain_pickle(file)
    np.testing.assert_equal(read, PLAIN | {"twice": [shared, shared]})
    assert read["twice"][0] is read["twice"][1]
    assert [array.dtype for array in read["arrays"]] == [array.dtype for array in PLAIN["arrays"]]  # type: ignore[attr-defined]
    assert [type(scalar) for scalar in read["scalars"]] == [float, int, bool]


def test_what_python_2_wrote(tmp_path: Path) -> None:
    """Its byte strings are texts, an array's bytes are such a string, and NumPy's inner package has its old name."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02tcnumpy\ndtype\n(U\x02i8K\x00K\x01tR"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10" + struct.pack("<qq", 258, -1) + b"tb"
    )
    file = tmp_path / "old.pkl"
    file.write_bytes(b"\x80\x02}(U\x04nameU\x09all_soulsU\x04easy" + array.replace(b"\x89", b"I00\n") + b"u.")
    read = read_plain_pickle(file)
    assert read["name"] == "all_souls" and read["easy"].tolist() == [258, -1]


class Reduced:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


class Plain:
    pass


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def encoding_again_and_again() -> bytes:
    """A long text, turned into bytes thousands of times: gigabytes out of a small file."""
    text = b"x" * 1_000_000
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    return b"\x80\x02X" + struct.pack("<I", len(text)) + text + b"q\x000]" + b"(" + call * 5000 + b"e."


HOSTILE: dict[str, bytes] = {
    "a command": pickle.dumps(Reduced(os.system, ("touch HARM",))),
    "a command, protocol 0": b"cos\nsystem\n(S'touch HARM'\ntR.",
    "an import": b"cantigravity\nfly\n.",
    "eval": pickle.dumps(Reduced(eval, ("open('HARM', 'w')",))),
    "getattr": pickle.dumps([getattr, __import__]),
    "numpy's own file reader": pickle.dumps(Reduced(np.load, ("HARM",))),
    "a name made of two": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "an object": pickle.dumps(Plain()),
    "an old object": b"(ios\nsystem\n.",
    "a persistent id": b"Phello\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a set": pickle.dumps({1, 2}),
    "an array of objects": pickle.dumps(np.array([{}, []], dtype=object)),
    "an array of records": pickle.dumps(np.zeros(2, [("a", "i4")])),
    "an array larger than its bytes": pickle.dumps(np.arange(6)).replace(b"K\x06", b"K\x07"),
    "an array never filled": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR.",
    "a call of what is no name": b"U\x01a(tR.",
    "a state for a list": b"](K\x01tb.",
    "only a name": b"cnumpy\ndtype\n.",
    "gigabytes of bytes": encoding_again_and_again(),
    "a length that lies": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a number without end": b"L" + b"9" * 100_000 + b"L\n.",
    "too deep": pickle.dumps(nested(MAX_DEPTH + 1)),
    "deep tuples": b")" + b"\x85" * 500_000 + b".",
    "deep marks": b"(" * 100_000 + b".",
    "a key of shared tuples": b"}K\x01"
    + b"".join(b"q%c0(" % n + b"h%c" % n * 40 + b"t" for n in range(30))
    + b"K\x01s.",
    "a memo of gigabytes": b"K\x01r\xff\xff\xff\x7f.",
    "a state for a name": b"cnumpy\ndtype\n}U\x01aK\x01sb.",
    "a state that is a pair, for a name": b"cnumpy\ndtype\n(N}U\x01aK\x01stb.",
    "a deep key": b"})" + b"\x85" * 200_000 + b"K\x01s.",
    "too little on the stack": b"\x87.",
    "an unknown memo": b"h\x05.",
    "two values": b"K\x01K\x02.",
    "nothing": b"",
    "no end": b"\x80\x04]",
    "text": b"path,role,instance\n",
    "random": np.random.default_rng(0).bytes(5000),
    "too large": b"\x80\x02X" + struct.pack("<I", MAX_BYTES) + b"x" * MAX_BYTES + b".",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.slow
def test_a_hostile_pickle_is_one_line_and_does_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "hostile.pkl"
    file.write_bytes(HOSTILE[name])
    started = time.process_time()
    with pytest.raises(SeenitError, match=r"hostile\.pkl") as error:
        read_plain_pickle(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert time.process_time() - started < 10
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
def test_every_cut_and_many_flipped_bytes_are_an_answer_or_one_line(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    file = tmp_path / "cut.pkl"
    for protocol in (0, 2, 5):
        whole = pickle.dumps(PLAIN, protocol)
        broken = [whole[:end] for end in range(0, len(whole) - 1, 37)]
        for _ in range(150):
            flipped = bytearray(whole)
            flipped[int(chance.integers(len(whole)))] = int(chance.integers(256))
            broken.append(bytes(flipped))
        refused = 0
        for data in broken:
            file.write_bytes(data)
            try:
                read_plain_pickle(file)
            except SeenitError:
                refused += 1
        assert refused >= len(whole) // 37


def test_a_list_in_itself_is_read_and_ends(tmp_path: Path) -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    file = tmp_path / "loop.pkl"
    file.write_bytes(pickle.dumps(loop))
    read = read_plain_pickle(file)
    assert read[1] is read
