"""The version of seenit, as its package says; indexes and backbones record it."""

from importlib.metadata import PackageNotFoundError, version


def _version() -> str:
    try:
        return version("seenit")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"


VERSION = _version()
