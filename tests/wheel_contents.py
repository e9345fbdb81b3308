"""Checks a built wheel: its top level is our packages and nothing else, and what the packages need travels along.

python tests/wheel_contents.py dist/seenit-0.1.0-py3-none-any.whl
"""

import sys
import zipfile

EXPECTED = {"cli.py", "indexer", "retrieval", "trainer"}
NEEDED = {"indexer/assets/seenit_vits14.safetensors", "retrieval/scenes/draw.py", "retrieval/serve/page/index.html"}


def wheel_faults(path: str) -> list[str]:
    """What is wrong with the wheel, a line each."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    faults = [f"unexpected at the top level: {name}" for name in sorted(top - EXPECTED)]
    faults += [f"missing at the top level: {name}" for name in sorted(EXPECTED - top)]
    faults += [f"missing: {name}" for name in sorted(NEEDED - set(names))]
    faults += [
        f"missing from the metadata: {name}"
        for name in ("LICENSE", "NOTICE")
        if not any(entry.endswith(f"/{name}") for entry in names)
    ]
    return faults


if __name__ == "__main__":
    found = wheel_faults(sys.argv[1])
    print("\n".join(found) or "the wheel holds what it should")
    sys.exit(bool(found))
