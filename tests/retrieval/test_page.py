"""The results page and the contact sheet: whole, safe against foreign text, small in memory."""

import base64
import io
import json
import os
import re
import sys
import tracemalloc
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.errors import ImageError, SeenitError
from indexer.images.metadata import Metadata
from retrieval.rerank.evidence import Evidence
from retrieval.results import NO_MATCH, NOTHING, Result
from retrieval.show.contact_sheet import contact_sheet
from retrieval.show.results_page import PageQuery, PageResult, write_results_page
from retrieval.show.schema import json_schemas
from retrieval.show.text import json_line, page_query, results_table


class Read(HTMLParser):
    """What a browser would find in the page: tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def photo(folder: Path, name: str, size: tuple[int, int] = (320, 240), colour: str = "teal") -> str:
    path = folder / name
    Image.new("RGB", size, colour).save(path)
    return str(path)


def written(folder: Path, *queries: PageQuery, **options: object) -> Read:
    path = folder / "page.html"
    assert write_results_page(path, queries, **options) == len(queries)  # type: ignore[arg-type]
    read = Read(path.read_text(encoding="utf-8"))
    assert not read.open, f"left open: {read.open}"
    return read


def test_shows_query_results_and_footer(tmp_path: Path) -> None:
    query = PageQuery(
        [
            PageResult(photo(tmp_path, "a.jpg"), 1, 0.9, ("14 May 2023", "Fjord F2"), verdict="same"),
            PageResult(photo(tmp_path, "b.png"), 2, 0.25),
        ],
        path=photo(tmp_path, "query.jpg"),
    )
    read = written(tmp_path, query, title="Holiday", made_by=["backbone small, 0.1 s"])
    for text in ("Holiday", "query.jpg", "a.jpg", "b.png", "0.900", "0.250", "14 May 2023", "Fjord F2", "same"):
        assert text in read.text
    assert "backbone small, 0.1 s" in read.text
    assert len(read.all("image")) == 3
    assert {"header", "main", "footer", "h1"} <= {tag for tag, _ in read.tags}
    assert all(svg["aria-label"] for svg in read.all("svg"))
    bars = [span["style"] for span in read.all("span") if span.get("style")]
    assert bars == ["width:90.0%", "width:25.0%"]


def test_needs_and_asks_for_nothing_else(tmp_path: Path) -> None:
    read = written(tmp_path, PageQuery([PageResult(photo(tmp_path, "a.jpg"), 1, 0.5)], path=photo(tmp_path, "q.jpg")))
    policy = next(meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "script-src" not in policy and "http" not in policy
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in read.tags}
    for image in read.all("image"):
        assert (image["href"] or "").startswith("data:image/jpeg;base64,")
    style = (tmp_path / "page.html").read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>.jpg",
        "\"' onload='x' x=\".jpg",
        "]]>--></svg></style>.jpg",
        "&lt;b&gt;.jpg",
        "not utf-8 \udcff.jpg",
        "line\nbreak\x1b[31m\x00.jpg",
        "turned \u202egnp.jpg",
        "lone \ud800.jpg",
    ],
)
def test_foreign_text_stays_text(tmp_path: Path, name: str) -> None:
    folder = "/photos/" + name
    plain = written(tmp_path, PageQuery([PageResult("/photos/x/y.jpg", 1, 0.5, ("c",))], "/photos/x/q.jpg", note="n"))
    read = written(
        tmp_path,
        PageQuery([PageResult(f"{folder}/{name}", 1, 0.5, (name,), verdict=name)], f"{folder}/{name}", note=name),
        title=name,
        made_by=[name],
    )
    added = [tag for tag, _ in read.tags]
    expected = [tag for tag, _ in plain.tags]
    for tag in ("script", "b"):
        assert tag not in added
    assert len([tag for tag in added if tag not in ("span", "p", "a")]) == len(
        [tag for tag in expected if tag not in ("span", "p", "a")]
    )
    known = {
        "aria-hidden",
        "aria-label",
        "aria-labelledby",
        "charset",
        "class",
        "content",
        "height",
        "href",
        "http-equiv",
    }
    known |= {"id", "lang", "name", "role", "style", "viewbox", "width"}
    assert {attribute for _, attrs in read.tags for attribute in attrs} <= known
    assert not re.search("[\u202a-\u202e\x00\x1b]", read.text)


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff nothing more")
    text = tmp_path / "letter.jpg"
    text.write_text("dear reader")
    results = [
        PageResult(str(path), n, 0.5) for n, path in enumerate((tmp_path / "gone.jpg", broken, text, tmp_path), 1)
    ]
    read = written(tmp_path, PageQuery(results, path=photo(tmp_path, "q.jpg")))
    assert len(read.all("image")) == 1
    assert read.text.count("Cannot be shown") == 4
    assert "not an image" in read.text


def test_query_from_memory_and_no_results(tmp_path: Path) -> None:
    read = written(
        tmp_path,
        PageQuery([], image=np.zeros((40, 60), np.uint8)),
        PageQuery([], image=Image.new("RGBA", (60, 40), (255, 0, 0, 90))),
        PageQuery([], note="a vector"),
    )
    assert len(read.all("image")) == 2
    assert read.text.count("Nothing found") == 3 and "a vector" in read.text


def test_box_lies_at_its_fractions(tmp_path: Path) -> None:
    result = PageResult(photo(tmp_path, "a.png", (400, 200)), 1, 0.5, box=(0.25, 0.5, 0.5, 0.25))
    read = written(tmp_path, PageQuery([result]))
    box = next(rect for rect in read.all("rect") if rect["class"] == "box")
    width, height = (float(side) for side in (read.all("svg")[0]["viewbox"] or "").split()[2:])
    place = [float(box[key] or "nan") for key in ("x", "y", "width", "height")]
    assert place == pytest.approx([0.25 * width, 0.5 * height, 0.5 * width, 0.25 * height], abs=0.2)


def test_sideways_photo_is_shown_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (320, 160), "teal").save(tmp_path / "a.jpg", exif=exif)
    read = written(tmp_path, PageQuery([PageResult(str(tmp_path / "a.jpg"), 1, 0.5)]))
    assert read.all("svg")[0]["viewbox"] == "0 0 160 320"


def test_an_image_is_embedded_once(tmp_path: Path) -> None:
    path = photo(tmp_path, "a.jpg")
    read = written(tmp_path, *[PageQuery([PageResult(path, 1, 0.5)]) for _ in range(5)])
    (image,) = read.all("image")
    assert [use["href"] for use in read.all("use")] == [f"#{image['id']}"] * 4
    data = base64.b64decode((image["href"] or "").split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (320, 240)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_page(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)

    def queries(count: int) -> Iterator[PageQuery]:
        for n in range(count):
            yield PageQuery([PageResult(str(tmp_path / "gone.jpg"), 1, 0.5)], image=np.roll(noise, n, 0))

    peaks, sizes = [], []
    for count in (5, 80):
        tracemalloc.start()
        write_results_page(tmp_path / "page.html", queries(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append((tmp_path / "page.html").stat().st_size)
    assert sizes[1] > 3_000_000 and sizes[1] > 10 * sizes[0]
    assert peaks[1] < peaks[0] + 300_000


def test_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("the page before")

    def breaks_off() -> Iterator[PageQuery]:
        yield PageQuery([])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results_page(path, breaks_off())
    assert path.read_text() == "the page before"
    assert os.listdir(tmp_path) == ["page.html"]


def test_unwritable_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SeenitError, match=r"cannot write .*name another file"):
        write_results_page(tmp_path / "no such folder" / "page.html", [])
    with pytest.raises(SeenitError, match="cannot write"):
        contact_sheet(PageQuery([]), tmp_path / "no such folder" / "sheet.jpg")


@pytest.mark.skipif(sys.platform == "win32", reason="names there are not bytes")
def test_file_whose_name_is_not_utf8_is_shown(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.png")
    try:
        Image.new("RGB", (20, 20)).save(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    read = written(tmp_path, PageQuery([PageResult(path, 1, 0.5)]))
    assert len(read.all("image")) == 1
    assert "caf\ufffd.png" in read.text
    assert (read.all("a")[0]["href"] or "").endswith("/caf%E9.png")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_contact_sheet_shows_query_and_results(tmp_path: Path, suffix: str) -> None:
    results = [
        PageResult(photo(tmp_path, f"{n}.png", colour="#2060ff"), n, 1 - n / 10, verdict="same") for n in range(1, 6)
    ]
    results.append(PageResult(str(tmp_path / "gone \udcff.jpg"), 6, -0.5, box=(0, 0, 1, 1)))
    target = tmp_path / f"sheet{suffix}"
    contact_sheet(PageQuery(results, path=photo(tmp_path, "q.png", colour="#ff2020")), target)
    pixels = np.asarray(Image.open(target).convert("RGB")).astype(int)
    red = (abs(pixels - (255, 32, 32)).sum(-1) < 30).mean()
    blue = (abs(pixels - (32, 96, 255)).sum(-1) < 30).mean()
    assert red > 0.1 and blue > 0.1
    assert pixels.shape[1] == 1400


@pytest.mark.slow
def test_contact_sheet_keeps_to_its_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    query = PageQuery([PageResult(str(tmp_path / "noise.png"), n, 0.5) for n in range(1, 7)], image=noise)
    sizes = []
    for most in (10_000_000, 200_000):
        contact_sheet(query, tmp_path / "sheet.jpg", max_bytes=most)
        sizes.append((tmp_path / "sheet.jpg").stat().st_size)
    assert sizes[1] <= 200_000 < sizes[0]


# ---- results with evidence, in every form ----


def result(rank: int, probability: float | None, path: str = "/photos/a.jpg", compared: bool = True) -> Result:
    """A result whose upper left quarter shows the thing; a match from one half on."""
    is_match = probability is not None and probability >= 0.5
    proof = Evidence(probability, is_match, 12, np.zeros((12, 5), np.float32), box=(0, 0, 0.5, 0.5))
    metadata = Metadata(400, 200, "JPEG")
    return Result(rank, path, 1 - rank / 10, f"id{rank}", metadata, evidence=proof if compared else None)


def test_table_tells_what_is_a_match() -> None:
    lines = results_table(
        "q.jpg", [result(1, 0.97), result(2, 0.3), result(3, 0.01), result(4, None)], heading=False
    ).split("\n")
    assert [line.split() for line in lines] == [
        ["rank", "score", "verdict", "prob.", "inliers", "path"],
        ["1", "0.900", "same", "97", "%", "12", "/photos/a.jpg"],
        ["2", "0.800", "perhaps", "30", "%", "12", "/photos/a.jpg"],
        ["3", "0.700", "no", "match", "1", "%", "12", "/photos/a.jpg"],
        ["4", "0.600", "-", "-", "12", "/photos/a.jpg"],
    ]
    assert len({line.index("/photos") for line in lines[1:]} | {lines[0].index("path")}) == 1, "columns stand in line"


def test_table_without_evidence_has_no_columns_for_it() -> None:
    assert results_table("q.jpg", [result(1, 0.9, compared=False)], heading=False).split("\n")[0].split() == [
        "rank",
        "score",
        "path",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "results, note",
    [
        ([], NOTHING),
        ([result(1, 0.3), result(2, 0.01)], NO_MATCH),
        ([result(1, 0.3), result(2, 0.9)], ""),
        ([result(1, None)], ""),  # nothing is calibrated, so nothing can be said
        ([result(1, 0.3), result(2, 0.1, compared=False)], ""),  # one was never compared
    ],
)
def test_no_match_is_said_in_every_form(results: list[Result], note: str, tmp_path: Path) -> None:
    for text in (NOTHING, NO_MATCH):
        assert (text in results_table("q.jpg", results, heading=True)) == (text == note)
    query = page_query(photo(tmp_path, "q.jpg"), results, None)
    assert query.note == note
    assert (note or "q.jpg") in written(tmp_path, query).text
    contact_sheet(query, tmp_path / "sheet.png")
    contact_sheet(PageQuery(query.results, query.path), tmp_path / "plain.png")
    assert (Image.open(tmp_path / "sheet.png").tobytes() != Image.open(tmp_path / "plain.png").tobytes()) == bool(note)


def test_page_shows_verdict_reason_and_box(tmp_path: Path) -> None:
    path = photo(tmp_path, "a.png", (400, 200))
    results = [result(n, probability, path) for n, probability in enumerate((0.97, 0.3, 0.01), 1)]
    read = written(tmp_path, page_query(photo(tmp_path, "q.jpg"), results, None))
    badges = [span["class"] for span in read.all("span") if (span.get("class") or "").startswith("badge")]
    assert badges == ["badge same", "badge perhaps", "badge other"]
    for text in ("same", "perhaps", "no match", "97 % probable, 12 inliers", "1 % probable"):
        assert text in read.text
    boxes = [rect for rect in read.all("rect") if rect.get("class") == "box"]
    assert len(boxes) == 2, "no box where there is no match"


def test_json_is_as_its_schema_says() -> None:
    line = json.loads(json_line("q.jpg", [result(1, 0.97), result(2, None), result(3, 0.1, compared=False)]))
    assert line["schema"] == "seenit.search/1" and line["query"] == "q.jpg" and line["note"] is None
    first, second, third = line["results"]
    assert (first["match"], first["probability"], first["num_inliers"]) == (True, 0.97, 12)
    assert first["verdict"] == "same" and first["box"] == [0, 0, 0.5, 0.5], "fractions, as everywhere"
    assert second["match"] is None and second["probability"] is None and second["num_inliers"] == 12
    assert [third[name] for name in ("match", "probability", "num_inliers", "box")] == [None] * 4
    wanted = json_schemas()["seenit.search/1"]
    assert set(line) == set(wanted["properties"]) and set(first) == set(wanted["$defs"]["FoundImage"]["properties"])


def test_json_keeps_names_that_are_no_text() -> None:
    name = os.fsdecode(b"/photos/caf\xe9.jpg")
    line = json_line(name, [result(1, 0.97, name)])
    assert line.isascii() and json.loads(line)["results"][0]["path"] == name
    failed = json.loads(json_line(name, ImageError(name, "damaged")))
    assert failed["schema"] == "seenit.error/1" and failed["query"] == name and "damaged" in failed["error"]
