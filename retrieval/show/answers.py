"""Answers of a search as the command line gives them: printed as they come, their files collected, a page written."""

import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from indexer.errors import ImageError
from indexer.printable import plural
from indexer.terminal import complain, say

from ..query.query import Region
from ..results import Result
from ..search import Searcher
from .collect import collect_results
from .contact_sheet import contact_sheet
from .results_page import PageQuery, write_results_page
from .text import json_line, page_query, results_table

Form = Literal["table", "json", "paths", "null"]


@dataclass
class ShownAnswers:
    """How answers are printed and where their files go, and what came of it so far.

    names   of the query files, as they were given
    failed  queries that could not be read
    found   results of all queries
    """

    form: Form
    batch: bool
    names: dict[str, str]
    copy_to: Path | None
    link_to: Path | None
    failed: int = 0
    found: int = 0

    def show(self, path: str, answer: list[Result] | ImageError, number: int) -> bool:
        """Print one answer; whether its query could be read."""
        name = self.names.get(path, path)
        if self.form == "json":
            print(json_line(name, answer), flush=True)
        if isinstance(answer, ImageError):
            self.failed += 1
            complain(str(answer))
            return False
        if self.form in ("paths", "null"):
            for result in answer:
                print(result.path, end="\0" if self.form == "null" else "\n")
            sys.stdout.flush()
        elif self.form == "table":
            print(results_table(name, answer, heading=self.batch), flush=True)
        self.found += len(answer)
        for folder, link in ((self.copy_to, False), (self.link_to, True)):
            if folder is not None:
                made = collect_results(answer, folder, link=link, prefix=f"{number:04}_" if self.batch else "")
                say(f"{'linked' if link else 'copied'} {plural(len(made), 'file')} to {folder}")
        return True


def show_answers(
    answers: Iterator[tuple[str, list[Result] | ImageError]],
    searcher: Searcher,
    shown: ShownAnswers,
    html: Path | None,
    open_page: bool,
    sheet: Path | None,
    region: Region | None,
) -> None:
    """Print every answer as it comes, and write the page."""

    def readable() -> Iterator[tuple[str, list[Result]]]:
        for number, (path, answer) in enumerate(answers, start=1):
            if shown.show(path, answer, number):
                assert isinstance(answer, list)
                yield path, answer

    def page_queries() -> Iterator[PageQuery]:
        for number, (path, answer) in enumerate(readable()):
            query = page_query(path, answer, region)
            if sheet is not None and number == 0:
                contact_sheet(query, sheet)
                say(f"wrote {sheet}")
            yield query

    if html is None and open_page:
        html = Path(tempfile.mkdtemp(prefix="seenit-")) / "results.html"
    if html is not None:
        made_by = f"index {searcher.store.location}, backbone {searcher.manifest.backbone}"
        write_results_page(html, page_queries(), made_by=[made_by, f"{datetime.now():%Y-%m-%d %H:%M}"])
        say(f"wrote {html}")
        if open_page:
            webbrowser.open(html.resolve().as_uri())
    else:
        for _ in readable() if sheet is None else page_queries():
            pass
