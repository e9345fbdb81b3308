import gc
import subprocess
import sys

import pytest

import cli
from indexer.collector import collector_at_rest, wake_collector


def test_rests_within_and_wakes_when_asked() -> None:
    with collector_at_rest():
        assert not gc.isenabled()
        wake_collector()
        assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), collector_at_rest():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_only_commands_that_end_soon_keep_it_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, bool] = {}
    for words in (["info"], ["search", "x.jpg"], ["check"]):

        def look(*_: object, name: str = words[0], **__: object) -> None:
            seen[name] = gc.isenabled()
            raise ZeroDivisionError

        monkeypatch.setattr("sys.argv", ["seenit", *words, "--index", "nowhere"])
        monkeypatch.setattr("indexer.index.find_index.find_index", look)
        with pytest.raises(ZeroDivisionError):
            cli.main()
    assert seen == {"info": False, "search": False, "check": True}


def test_what_is_registered_for_the_end_still_runs() -> None:
    code = (
        "import atexit, gc\n"
        "from indexer.collector import collector_at_rest\n"
        "with collector_at_rest(): pass\n"
        "atexit.register(lambda: print('end', gc.get_freeze_count()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "end 0\n"  # frozen after everything else
