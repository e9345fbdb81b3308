"""The web page in a real browser, over a real index of drawn scenes: what people do, by pointer and by keyboard.

Every test fails as well when the browser's console reports an error, when a script throws, or when the page asks any
other machine for anything.
"""

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    FileChooser,
    Locator,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from indexer.index.index import Index
from indexer.store.protocol import Record
from retrieval.build import build_index
from retrieval.duplicates.find import find_duplicates
from retrieval.duplicates.present import write_duplicates_page
from retrieval.scenes.draw import draw_scenes

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.long, pytest.mark.skipif(BROWSER is None, reason="no browser is installed")]
ROOT = Path(__file__).parents[2]
MARKUP = "<img src=x onerror=alert(1)> & co.jpg"  # a file's name, not a piece of the page
SMALL = "poster_01_small.jpg"  # a copy of a poster's photo
expect.set_options(timeout=60_000)
BEYOND_THE_EDGE = """() => [...document.querySelectorAll("main *:not(svg *, .unseen, .unseen *, .cell p *)")]
    .filter((one) => one.checkVisibility())
    .filter((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map((one) => one.outerHTML.slice(0, 120))"""
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn photos in folders: `posters` with a small copy of one, `others`, and a file whose name is markup."""
    folder = draw_scenes(tmp_path_factory.mktemp("page") / "demo", instances=3, views=3, distractors=2)
    photos = folder / "photos"
    for name in ("posters", "others"):
        (photos / name).mkdir()
    for file in sorted(photos.glob("*.jpg")):
        file.rename(photos / ("posters" if file.name.startswith("poster") else "others") / file.name)
    (photos / "others" / "other_01_office.jpg").rename(photos / "others" / MARKUP)
    with Image.open(photos / "posters" / "poster_01_cafe.jpg") as image:
        image.resize((image.width // 2, image.height // 2)).save(photos / "posters" / SMALL, quality=80)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and nothing more")
    build_index(photos)
    return folder


@dataclass(frozen=True)
class Served:
    """A running server: its address, and the index it serves."""

    url: str
    index: Path

    def records(self) -> list[Record]:
        with Index.open(self.index) as index:
            return list(index.store.scroll())

    def id_of(self, name: str) -> str:
        """Content id of the image whose file has that name."""
        return next(one.id for one in self.records() if one.files[0].key.endswith(f"/{name}"))


@pytest.fixture(scope="module")
def served(scenes: Path) -> Iterator[Served]:
    """`seenit serve`, as a user starts it."""
    index = scenes / "photos" / ".seenit"
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "serve",
        str(index),
        "--port",
        "0",
        "--move-to",
        str(scenes / "moved"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        told = []
        for line in process.stderr:
            told.append(line)
            if found := re.search(r" at (http://\S+?)/?;", line):
                break
        else:
            pytest.fail(f"the server ended with {process.wait()}: {''.join(told)}")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Served(found[1], index)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Visits:
    """Pages, each in a window of its own, and what went wrong on them unseen."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url
        self.contexts: list[BrowserContext] = []
        self.faults: list[str] = []

    def __call__(self, path: str = "/", *, width: int = 1200, height: int = 800, **options: Any) -> Page:
        """A new page at a path; `options` as Playwright's contexts take them."""
        context = self.browser.new_context(viewport={"width": width, "height": height}, **options)
        self.contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("console", lambda one: self.faults.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda one: self.faults.append(one.url) if _foreign(one.url, self.url) else None)
        page.goto(f"{self.url}{path}")
        expect(page.locator("main > :not(noscript)").first).to_be_visible()
        return page

    def expected(self, *words: str) -> None:
        """Faults with each of these words there must be, and they are none."""
        for word in words:
            assert any(word in fault for fault in self.faults), (word, self.faults)
            self.faults = [fault for fault in self.faults if word not in fault]


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Visits]:
    visits = Visits(browser, served.url)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.faults == []


def _foreign(url: str, own: str) -> bool:
    return not url.startswith((f"{own}/", "blob:", "data:"))


@pytest.fixture
def query(scenes: Path) -> Path:
    return scenes / "queries" / "sign_01_arcade.jpg"


def names(page: Page) -> list[str]:
    """Names of the results in their order, those that are folded as well."""
    return [text.strip() for text in page.locator(".card h4").all_text_contents()]


def search_with(page: Page, *files: Path) -> None:
    page.set_input_files("input[multiple]", list(files))
    expect(page.locator(".card").first).to_be_visible()


def _sent(request: Request) -> dict[str, Any]:
    """The JSON of a request."""
    values: dict[str, Any] = json.loads(request.post_data or "{}")
    return values


def drop_file(page: Page, selector: str, file: Path, kind: str = "drop") -> None:
    """A file comes from outside of the browser: dropped on an element, or pasted there."""
    data = base64.b64encode(file.read_bytes()).decode()
    page.locator(selector).first.evaluate(
        """(element, [data, name, kind]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            const options = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
            element.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options));
        }""",
        [data, file.name, kind],
    )


# ---- search ----


def test_an_image_that_is_dropped_finds_its_like_and_stands_in_the_address(visit: Visits, query: Path) -> None:
    page = visit()
    drop_file(page, ".dropzone", query)
    expect(page.locator(".card").first).to_be_visible()
    assert names(page)[0].startswith("sign_01_")
    expect(page.locator(".results h2")).to_have_text(re.compile(r"^\d match"))
    expect(page.locator(".card .figure strong").first).to_have_text(re.compile(r"^\d\d?\u202f%$"))
    expect(page.locator(".card .overlay .box").first).to_be_visible()
    expect(page.locator(".asked")).to_contain_text(query.name)
    assert UUID.search(page.url)

    found = names(page)
    page.reload()  # the upload stays in the browser
    expect(page.locator(".card").first).to_be_visible()
    assert names(page) == found
    page.click("text=New search")
    recent = page.locator(".recent li")
    expect(recent).to_have_count(1)
    expect(recent.first).to_contain_text(query.name)
    recent.first.locator("a").click()
    expect(page.locator(".card").first).to_be_visible()
    assert names(page) == found
    page.goto(page.url.split("?")[0])
    page.click("text=Forget these")
    expect(recent).to_have_count(0)


def test_what_is_shown_is_whole_and_sorted_by_belief(visit: Visits, query: Path) -> None:
    page = visit()
    search_with(page, query)
    first = page.locator(".card .image img").first
    assert first.evaluate("one => getComputedStyle(one).objectFit") == "contain"
    fold = page.locator("details.fold")
    expect(fold).not_to_have_attribute("open", "")
    words = fold.locator(".badge").all_text_contents()
    assert words and set(words) == {"unlikely"}
    assert "unlikely" not in page.locator(".results > section .badge").all_text_contents()
    assert fold.locator(".overlay").count() == 0  # no box around what is not believed to be there


def test_an_image_can_be_pasted_and_shown_as_a_further_view(visit: Visits, scenes: Path, query: Path) -> None:
    page = visit()
    drop_file(page, "body", query, "paste")
    expect(page.locator(".card").first).to_be_visible()
    drop_file(page, ".more", scenes / "photos" / "others" / "sign_01_alley.jpg")
    expect(page.locator(".views img")).to_have_count(1)
    expect(page.locator(".asked")).to_contain_text("2 views")
    page.locator(".card .image").first.click()
    expect(page.locator(".captions p").first).to_contain_text(query.name)
    chooser = page.get_by_role("group", name="View of the query")
    expect(chooser.get_by_role("button")).to_have_count(2)
    chooser.get_by_role("button", name="Compare view 2").click()
    expect(page.locator(".captions p").first).to_contain_text("sign_01_alley.jpg")
    expect(chooser.get_by_role("button", name="Compare view 2")).to_have_attribute("aria-pressed", "true")
    page.click("text=Back to the results")
    expect(page.locator(".asked")).to_contain_text("2 views")
    page.get_by_role("button", name="Remove the view").click()
    expect(page.locator(".asked")).not_to_contain_text("views")


def test_a_box_on_the_query_is_searched_for(visit: Visits, served: Served, query: Path) -> None:
    page = visit()
    search_with(page, query)
    place = page.locator(".region-picker img").bounding_box()
    assert place
    page.mouse.move(place["x"] + 0.2 * place["width"], place["y"] + 0.1 * place["height"])
    page.mouse.down()
    page.mouse.move(place["x"] + 0.7 * place["width"], place["y"] + 0.8 * place["height"], steps=4)
    with page.expect_response("**/api/search") as answered:
        page.mouse.up()
    assert answered.value.json()["asked"]["region"] == pytest.approx([0.2, 0.1, 0.5, 0.7], abs=0.02)
    expect(page.locator(".asked")).to_contain_text("a box of 50 × 70 %")
    assert names(page)[0].startswith("sign_01_")
    assert "region=" in page.url
    page.locator(".region-picker").focus()
    page.keyboard.press("Escape")
    expect(page.locator(".asked")).not_to_contain_text("box")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".asked")).to_contain_text("a box of 50 × 50 %")
    assert "region=0.27%2C0.25%2C0.5%2C0.5" in page.url


def test_likes_and_dislikes_change_the_search_and_can_be_taken_back(visit: Visits, served: Served) -> None:
    page = visit(f"/?image={served.id_of('poster_01_cafe.jpg')}")
    expect(page.locator(".card").first).to_be_visible()
    card = page.locator(".card").first
    liked = card.get_attribute("data-id")
    with page.expect_request("**/api/search") as sent:
        card.get_by_role("button", name="More like this").click()
    assert _sent(sent.value)["like"] == [liked]
    expect(page.locator(".asked")).to_contain_text("1 liked")
    assert page.locator(f'.card[data-id="{liked}"]').count() == 0  # part of the query now
    page.get_by_role("button", name="Take back: More like").click()
    expect(page.locator(".asked")).not_to_contain_text("liked")
    with page.expect_request("**/api/search") as sent:
        page.locator(f'.card[data-id="{liked}"]').get_by_role("button", name="Not this").click()
    assert (_sent(sent.value)["like"], _sent(sent.value)["not"]) == ([], [liked])
    expect(page.locator(".asked")).to_contain_text("1 not liked")
    page.get_by_role("button", name="Take back: Not like").click()
    expect(page.locator(".asked")).not_to_contain_text("liked")


def test_filters_narrow_the_search_and_can_be_bookmarked(visit: Visits, served: Served) -> None:
    page = visit(f"/?image={served.id_of('poster_01_cafe.jpg')}")
    expect(page.locator(".card").first).to_be_visible()
    assert any(not name.startswith("poster") for name in names(page))
    page.click("text=Filters and options")
    folder = page.get_by_role("combobox", name="Folder")
    offered = page.locator("datalist").first.locator("option")
    expect(offered.first).to_be_attached()
    under = next(one for one in offered.evaluate_all("all => all.map(one => one.value)") if one.endswith("/posters"))
    folder.fill(under)
    folder.press("Enter")
    expect(page.locator(".asked")).to_contain_text("posters")
    found = names(page)
    assert found and all(name.startswith("poster") for name in found)

    again = visit(page.url.removeprefix(served.url))
    expect(again.locator(".card").first).to_be_visible()
    assert names(again) == found
    again.get_by_label("From").fill("2099-01-01")
    expect(again.locator(".results h2")).to_have_text("No image meets these conditions")
    again.click("text=Clear filters")
    expect(again.locator(".asked")).not_to_contain_text("from")
    for label, value in (("Latitude", "48.85"), ("Longitude", "2.35"), ("Radius in km", "10")):
        again.get_by_label(label).fill(value)
    with again.expect_request("**/api/search") as sent:
        again.get_by_label("Radius in km").press("Tab")
    assert _sent(sent.value)["filters"] == {"near": [48.85, 2.35, 10]}


def test_a_result_becomes_the_query_when_it_is_dragged_there(visit: Visits, served: Served) -> None:
    page = visit(f"/?image={served.id_of('sign_01_alley.jpg')}")
    expect(page.locator(".card").first).to_be_visible()
    card = page.locator(".card").first
    id = card.get_attribute("data-id")
    card.drag_to(page.locator(".region-picker"))
    expect(page).to_have_url(f"{served.url}/?image={id}")
    expect(page.locator(".ask .name")).to_have_text("sign_01_old_town.jpg")


def test_a_failure_is_told_and_can_be_tried_again(visit: Visits, served: Served) -> None:
    page = visit("/library")
    answers = iter([(429, {"error": "the queue is full"}), (503, {"error": "the server is stopping"})])

    def refuse(route: Route) -> None:
        status, values = next(answers)
        route.fulfill(status=status, json=values, headers={"Retry-After": "1"})

    page.route("**/api/search", refuse, times=2)
    page.goto(f"{served.url}/?image={served.id_of('sign_01_alley.jpg')}")
    expect(page.get_by_role("alert")).to_contain_text("the server is stopping")
    page.click("text=Try again")
    expect(page.locator(".card").first).to_be_visible()
    visit.expected("429", "503")


# ---- why ----


def test_why_shows_both_images_the_pairs_and_the_similarity(visit: Visits, query: Path) -> None:
    page = visit()
    search_with(page, query)
    page.locator(".card .image").first.click()
    expect(page.locator(".drawing image")).to_have_count(2)
    expect(page.locator(".why-head .figure strong")).to_have_text(re.compile("%"))
    assert page.locator(".match-pair").count() > 5
    line = page.locator(".match-pair line").nth(1)
    expect(line).to_be_hidden()
    page.locator(".match-pair circle").first.hover(force=True)
    expect(page.locator(".match-pair.picked line").nth(1)).to_be_visible()
    expect(page.locator("output")).to_contain_text("cosine")
    page.get_by_role("slider", name="Pair").press("ArrowRight")
    expect(page.locator("output")).to_contain_text("pair 2 of")
    page.get_by_label("All lines").check()
    expect(line).to_be_visible()
    page.get_by_label("Similarity of each patch").check()
    expect(page.locator(".drawing .heat")).to_have_count(2)
    page.click("text=Back to the results")
    expect(page.locator(".card").first).to_be_visible()


# ---- duplicates ----


def test_duplicates_are_reviewed_moved_and_put_back(visit: Visits, scenes: Path) -> None:
    copy = scenes / "photos" / "posters" / SMALL
    page = visit("/duplicates")
    page.get_by_role("button", name="Find duplicates").click()
    group = page.locator(".dup-group")
    expect(group).to_have_count(1, timeout=60_000)
    expect(page.get_by_role("button", name="Review and move")).to_be_disabled()

    page.keyboard.press("ArrowDown")
    expect(group).to_be_focused()
    page.keyboard.press("c")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".pane img")).to_have_count(2)
    page.keyboard.press("b")
    expect(dialog.locator(".layers canvas")).to_have_count(2)
    page.keyboard.press("w")
    dialog.get_by_label("Where the copy begins").fill("20")
    assert "20%" in dialog.locator("canvas").nth(1).evaluate("one => one.style.clipPath")
    dialog.get_by_role("button", name="Difference").click()
    expect(dialog.locator(".layer-controls")).to_contain_text("of 255")
    page.keyboard.press("z")
    with Image.open(scenes / "photos" / "posters" / "poster_01_cafe.jpg") as image:
        assert dialog.locator("canvas").evaluate("one => one.getBoundingClientRect().width") == image.width
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)

    page.keyboard.press("k")
    expect(page.locator(".totals")).to_contain_text("1 group of 1 decided: 0 files")
    group.focus()
    page.keyboard.press("1")
    expect(page.locator(".totals")).to_contain_text("1 file")
    _reload(page, shows="1 file", at=".totals")  # choices last
    assert copy.exists()
    page.get_by_role("button", name="Review and move").click()
    expect(dialog).to_contain_text("Nothing is deleted")
    assert copy.exists()
    dialog.get_by_role("button", name="Move 1 file").click()
    expect(page.get_by_text("moved away", exact=True)).to_be_visible()
    assert not copy.exists()
    page.get_by_role("button", name="Put back").click()
    expect(page.locator(".applied")).to_have_count(0)
    assert copy.exists()
    _settled(page)


def _reload(page: Page, *, shows: str, at: str) -> None:
    """
    Load the page again, until it shows what was chosen on it.

    A browser hands what a page stores to another process, and a page that is loaded again in the same milliseconds may
    be given what was stored before: one of some 150 reloads here. The next reload shows it.
    """
    for _ in range(4):
        page.reload()
        with suppress(AssertionError):
            expect(page.locator(at)).to_contain_text(shows, timeout=10_000)
            return
    pytest.fail(f"after a reload the page does not show {shows!r}")


def _settled(page: Page) -> None:
    """Wait for the run of the index that follows."""
    expect(page.locator(".progress")).to_have_count(0, timeout=60_000)
    expect(page.locator("#index-facts")).to_have_text("9 images", timeout=60_000)


def test_the_page_of_a_file_writes_choices_that_the_command_line_applies(
    browser: Browser, scenes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(scenes / "photos", folder)
    found = find_duplicates(folder / ".seenit", workers=1)
    write_duplicates_page(tmp_path / "page.html", found, ["made by a test"], str(folder / ".seenit-moved"))
    faults: list[str] = []
    with browser.new_context(viewport={"width": 1000, "height": 800}) as context:
        page = context.new_page()
        page.on("console", lambda one: faults.append(one.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request", lambda one: None if one.url.startswith(("file:", "data:", "blob:")) else faults.append(one.url)
        )
        page.goto((tmp_path / "page.html").as_uri())
        assert page.locator("main img").count() == 2
        save = page.get_by_role("button", name="Save choices")
        expect(save).to_be_disabled()
        page.keyboard.press("ArrowDown")
        group = page.locator(".dup-group")
        expect(group).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".totals")).to_contain_text("1 of 1 group decided: 1 file")
        page.keyboard.press("k")
        expect(page.locator(".state")).to_have_text("keeps all")
        page.keyboard.press("0")  # the kept one goes, and its copy stays
        page.keyboard.press("1")
        expect(page.locator(".notice")).to_contain_text("One of them has to stay")
        page.keyboard.press("0")
        page.keyboard.press("1")
        expect(page.locator(".tile.moving h3")).to_contain_text(SMALL)
        _reload(page, shows=SMALL, at=".tile.moving h3")  # what was chosen is kept in the browser
        assert _serious(Axe(), page, "file") == []
        with page.expect_download() as download:
            save.click()
        download.value.save_as(tmp_path / "choices.json")
        expect(page.locator(".next code")).to_contain_text("--apply seenit-choices.json")
    assert faults == []
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "duplicates",
        str(folder),
        "--apply",
        str(tmp_path / "choices.json"),
    ]
    ran = subprocess.run([*command, "--yes"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and "moved 1 file" in ran.stdout, ran.stderr
    assert not (folder / "posters" / SMALL).exists() and len(list((folder / ".seenit-moved").rglob(SMALL))) == 1


# ---- library ----


def test_the_library_shows_folders_images_and_what_was_skipped(visit: Visits, served: Served) -> None:
    page = visit("/library")
    cell = page.locator(".cell", has_text="onerror")
    expect(cell.locator(".cell-name")).to_have_text(MARKUP)  # as text
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    page.get_by_label("Folder").select_option(label=next(
        one for one in page.get_by_label("Folder").locator("option").all_text_contents() if "posters" in one
    ))  # fmt: skip
    expect(page.locator(".library-head .facts")).to_have_text("3 images")
    page.click("text=1 file skipped")
    expect(page.get_by_role("dialog")).to_contain_text("broken.jpg")
    page.keyboard.press("Escape")

    page.locator(".cell").first.click()
    dialog = page.get_by_role("dialog")
    tags = dialog.get_by_label("Tags")
    tags.last.fill("<b>holiday</b>")
    with page.expect_response("**/tags"):
        tags.last.press("Enter")
    expect(dialog.locator(".chips li")).to_have_text("<b>holiday</b>")
    assert [record.tags for record in served.records() if record.tags] == [("<b>holiday</b>",)]
    page.evaluate(
        """import("/tasks.js").then(({ events }) =>
            events.dispatchEvent(new CustomEvent("index", { detail: { images: 9 } })))"""
    )
    expect(page.locator(".cell").first).to_contain_text("#<b>holiday</b>")  # the library below was drawn again
    assert page.locator("dialog").count() == 1
    with page.expect_response("**/tags"):
        dialog.get_by_role("button", name="Remove <b>holiday</b>").click()
    dialog.get_by_role("button", name="Search with this image").click()
    expect(page.locator(".card").first).to_be_visible()


def test_the_index_is_brought_in_line_and_the_page_follows(visit: Visits, scenes: Path) -> None:
    page = visit("/library")
    expect(page.locator("#index-facts")).to_have_text("9 images")
    new = scenes / "photos" / "new.png"
    Image.new("RGB", (64, 48), "teal").save(new)
    try:
        page.get_by_role("button", name="Update the index").click()
        expect(page.locator(".progress")).to_be_visible()
        expect(page.locator(".library-head .facts")).to_have_text("10 images", timeout=60_000)
        shown = "one => one.complete && one.naturalWidth > 0"  # it is in the browser's cache before it is gone
        page.wait_for_function(f"() => [...document.querySelectorAll('.cell img')].filter({shown}).length === 10")
        expect(page.locator("#index-facts")).to_have_text("10 images")
    finally:
        new.unlink()
    page.get_by_role("button", name="Update the index").click()
    _settled(page)
    expect(page.locator(".library-head .facts")).to_have_text("9 images", timeout=60_000)


def test_a_hundred_thousand_images_are_a_few_cells(visit: Visits, served: Served) -> None:
    total, id = 100_000, served.id_of("sign_01_alley.jpg")

    def listed(route: Route) -> None:
        offset = int((re.search(r"offset=(\d+)", route.request.url) or ["", "0"])[1])
        limit = int((re.search(r"limit=(\d+)", route.request.url) or ["", "200"])[1])
        images: list[dict[str, Any]] = [
            {"id": id, "path": f"/p/{n}.jpg", "tags": [], "taken_at": None}
            for n in range(offset, min(total, offset + limit))
        ]
        route.fulfill(json={"total": total, "offset": offset, "images": images, "next_cursor": None})

    page = visit("/duplicates")
    page.route("**/api/images?*", listed)
    page.get_by_role("link", name="Library").click()
    expect(page.locator(".library-head .facts")).to_have_text("100,000 images")
    cell = page.locator(".cell")
    expect(cell.first).to_contain_text("0.jpg")
    assert 0 < cell.count() < 120
    cell.first.focus()
    page.keyboard.press("End")
    last = page.locator(f'.cell[data-index="{total - 1}"]')
    expect(last).to_be_focused()
    expect(last).to_contain_text(f"{total - 1}.jpg")
    assert cell.count() < 120
    started = time.perf_counter()
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    expect(page.locator(".cell .cell-name").nth(10)).to_be_visible()
    assert time.perf_counter() - started < 30


# ---- for everybody ----


def test_all_of_a_search_by_keyboard(visit: Visits, query: Path) -> None:
    page = visit()
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Choose a photo":
            break
    expect(page.get_by_role("button", name="Choose a photo")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    while not choosers:
        page.wait_for_timeout(50)
    choosers[0].set_files(query)
    first = page.locator(".card .image").first
    expect(first).to_be_visible()
    first.focus()
    page.keyboard.press("ArrowRight")
    second = page.locator(".card").nth(1)
    expect(second.locator(".image")).to_be_focused()
    id = second.get_attribute("data-id")
    page.keyboard.press("n")
    expect(page.locator(".asked")).to_contain_text("1 not liked")
    expect(page.locator(f'.card[data-id="{id}"] .image')).to_be_focused()  # wherever it went
    page.keyboard.press("n")
    expect(page.locator(".asked")).not_to_contain_text("liked")
    page.keyboard.press("i")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator(".drawing image")).to_have_count(2)


def test_no_serious_fault_for_those_who_cannot_see_or_point(visit: Visits, query: Path) -> None:
    page = visit()
    axe = Axe()
    faults = _serious(axe, page, "start")
    search_with(page, query)
    page.click("text=Filters and options")
    page.locator("summary", has_text="Options").last.click()
    faults += _serious(axe, page, "search")
    page.locator(".card").first.get_by_role("button", name="About this image").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    faults += _serious(axe, page, "about")
    page.keyboard.press("Escape")
    page.locator(".card .image").first.click()
    expect(page.locator(".drawing image")).to_have_count(2)
    faults += _serious(axe, page, "why")
    page.get_by_role("link", name="Library").click()
    expect(page.locator(".cell img").first).to_be_visible()
    faults += _serious(axe, page, "library")
    page.get_by_role("link", name="Duplicates").click()
    _found(page)
    faults += _serious(axe, page, "duplicates")
    page.locator(".group-head").get_by_role("button", name="Compare").click()
    faults += _serious(axe, page, "compare")
    assert faults == []


def _found(page: Page) -> Locator:
    """The groups of duplicates, looked for where nobody did yet."""
    expect(page.locator(".finder")).to_be_visible()
    if page.locator(".dup-group").count() == 0:
        page.locator(".finder button").click()
    expect(page.locator(".dup-group")).to_have_count(1, timeout=60_000)
    return page.locator(".dup-group")


def _serious(axe: Axe, page: Page, where: str) -> list[str]:
    """What is wrong with the page as it is, light and dark."""
    faults = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        faults += [
            f"{where}, {scheme}: {fault['id']}: {node['html'][:160]}"
            for fault in axe.run(page).response["violations"]
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]
    return faults


def test_nothing_is_cut_off_on_a_phone_in_the_dark(visit: Visits, query: Path) -> None:
    page = visit(width=400, height=740, color_scheme="dark", has_touch=True, is_mobile=True)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background))) < 60
    expect(page.get_by_role("button", name="Take a photo")).to_be_visible()
    assert page.locator("input[capture=environment]").count() == 1
    _fits(page)
    search_with(page, query)
    page.click("text=Filters and options")
    _fits(page)
    page.locator(".card .image").first.click()
    expect(page.locator(".drawing image")).to_have_count(2)
    _fits(page)
    page.get_by_role("link", name="Library").click()
    expect(page.locator(".cell img").first).to_be_visible()
    _fits(page)
    page.get_by_role("link", name="Duplicates").click()
    _found(page)
    _fits(page)


def _fits(page: Page) -> None:
    """Nothing is wider than the window, at two widths of phones."""
    for width in (360, 400):
        page.set_viewport_size({"width": width, "height": 740})
        wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth, document.documentElement.clientWidth]")
        assert wide[0] <= min(wide[1:]), wide
        until = time.monotonic() + 20
        while (beyond := page.evaluate(BEYOND_THE_EDGE)) and time.monotonic() < until:
            page.wait_for_timeout(50)  # a grid is laid out again some frames after the width has changed
        assert beyond == [], width


def test_a_server_that_is_read_only_offers_no_change(visit: Visits, served: Served) -> None:
    page = visit()

    def answer(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "read_only": True})

    page.route("**/api/info", answer)
    page.goto(f"{served.url}/library")
    page.locator(".cell").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("Search with this image")
    assert page.get_by_role("dialog").get_by_label("Tags").count() == 0
    page.keyboard.press("Escape")
    assert page.get_by_role("button", name="Update the index").count() == 0


def test_a_server_with_a_token_asks_for_it(visit: Visits, served: Served) -> None:
    page = visit("/library")
    asked: list[Any] = []

    def session(route: Route) -> None:
        asked.append(route.request.post_data_json)
        page.unroute("**/api/health")
        route.fulfill(status=204)

    page.route(
        "**/api/health", lambda route: route.fulfill(json={"status": "ok", "token_required": True, "authorized": False})
    )
    page.route("**/api/session", session)
    page.reload()
    page.get_by_label("Token").fill("secret")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".cell").first).to_be_visible()
    assert asked == [{"token": "secret"}]
    page.goto(f"{served.url}/?#token=other")
    expect(page.locator(".dropzone")).to_be_visible()
    assert asked[-1] == {"token": "other"} and "token" not in page.url
