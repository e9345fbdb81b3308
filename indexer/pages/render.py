"""Writes HTML pages from Jinja templates: whole files that need nothing else, safe for foreign text.

File names are foreign text. Whatever a template prints is escaped, and what cannot be shown or could lie (control
characters, marks that turn the reading direction, bytes that are no UTF-8) becomes the replacement character. The
base template `page.html` forbids scripts and requests should anything slip through.
"""

import base64
import io
import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from PIL import Image

from ..atomic_file import whole_file

if TYPE_CHECKING:  # a search that writes no page does without
    from jinja2 import Environment

UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def write_page(path: str | Path, templates: Path, name: str, **values: Any) -> None:
    """Write the page of a template to `path`, which appears whole or not at all.

    templates  the folder of the template `name`; it may extend `page.html`, which needs `title` and `made_by`, the
               lines of the footer
    values     what the template names; iterators are taken one by one, so that long pages cost no memory
    Raises SeenitError where the page cannot be written.
    """
    template = environment(templates).get_template(name)
    with whole_file(path) as file:
        for piece in template.generate(**values):
            file.write(piece.encode("utf-8"))


@cache
def environment(templates: Path) -> "Environment":
    """Templates of a folder and those that all pages share."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader([templates, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_showable,
    )
    made.filters["link"] = file_link
    made.filters["name"] = os.path.basename
    made.filters["folder"] = os.path.dirname
    return made


def file_link(path: str, name: str | None = None) -> Markup:
    """The name, leading to the file itself where the path is absolute."""
    label = Markup("<bdi>{}</bdi>").format(_showable(path if name is None else name))
    if not os.path.isabs(path):
        return label
    try:
        return Markup('<a href="{}">{}</a>').format(_showable(Path(path).as_uri()), label)
    except UnicodeEncodeError:  # a name that this system could not have made
        return label


def data_uri(image: Image.Image, quality: int = 82) -> str:
    """The image as the address of itself, a JPEG."""
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode('ascii')}"


def _showable(value: object) -> object:
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return UNSHOWABLE.sub("\ufffd", value)
