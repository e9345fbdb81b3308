"""Attributes: what a caller knows of an image, as a JSON object that is kept with the record and can be filtered by.

Values are compared as texts, for an address and a command line know nothing else: 5, 5.0 and "5" are one value, and
true is "true". A list meets a condition with any of its values. What lies deeper is kept and cannot be asked for.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ..errors import SeenitError

Attributes: TypeAlias = Mapping[str, Any]  # a JSON object
Conditions: TypeAlias = tuple[tuple[str, str], ...]  # names and the values that are asked for, all of them

MAX_BYTES = 64 << 10  # of an image's attributes as JSON; they are read with every record
MAX_TERM = 200  # characters; a longer one is known by its hash, so that no index of an engine grows with captions


def checked_attributes(values: object, whose: str) -> dict[str, Any]:
    """The attributes as plain JSON; SeenitError, which names `whose` they are, where they are none."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) and name for name in values):
        raise SeenitError(f"the attributes of {whose} are no JSON object; give names with values")
    try:
        text = json.dumps(dict(values), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SeenitError(f"the attributes of {whose} are no JSON ({error}); give texts, numbers and lists") from None
    if len(text) > MAX_BYTES:
        raise SeenitError(f"the attributes of {whose} take {len(text):,} bytes as JSON; {MAX_BYTES:,} are the most")
    found: dict[str, Any] = json.loads(text)
    return found


def conditions_of(given: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Conditions:
    """Conditions as a Filter keeps them, out of a mapping or of pairs of a name and a value."""
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple((str(name), as_text(value)) for name, value in pairs)


def as_text(value: object) -> str:
    """A plain value as it is compared."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)


def terms_of(attributes: Attributes) -> list[str]:
    """What an image's attributes meet, a term for each plain value; see `term`."""
    found = {
        term(name, as_text(value))
        for name, values in attributes.items()
        for value in (values if isinstance(values, list) else [values])
        if not isinstance(value, (list, dict))
    }
    return sorted(found)


def term(name: str, text: str) -> str:
    """One condition as one ASCII text, which engines compare whole."""
    whole = json.dumps([name, text])
    return whole if len(whole) <= MAX_TERM else hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()
