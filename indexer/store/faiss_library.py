"""FAISS, loaded by whoever first compares vectors: what lists or describes an index answers without it."""

from typing import Any


def faiss() -> Any:
    """The module; untyped, since its own types do not know what its Python classes take."""
    import faiss

    return faiss
