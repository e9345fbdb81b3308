"""Text that came from a file's name or contents, made safe for a terminal.

A name may hold line breaks, which forge lines of output, and escape sequences, which recolour, retitle or worse. JSON
and pages have quoting of their own and get the exact text.
"""

import re
import shlex

# Control characters, line and paragraph separators, what reverses or hides text, and bytes that are not UTF-8
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(text: str) -> str:
    """The same text where a terminal shows it as it is; else in the shell's $'...', which can be pasted back.

    Bytes that are not UTF-8 (lone surrogates, as os.fsdecode makes them) become \\xNN.
    """
    if not _UNSAFE.search(text):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_UNSAFE.sub(_escape, escaped)}'"


def pasted(text: object) -> str:
    """A path or an address as a word of a command that can be pasted into a shell."""
    text = str(text)
    return quoted(text) if _UNSAFE.search(text) else shlex.quote(text)


def printable(text: str) -> str:
    """A sentence that may hold such a name: unsafe characters are escaped where they stand, line breaks included."""
    return _UNSAFE.sub(_escape, text)


def plural(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def megabytes(count: int) -> str:
    """Bytes as MB, or kB where they are few."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
