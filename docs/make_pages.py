"""Write the pages that are made from the code, or check that they are up to date.

    python docs/make_pages.py           write docs/reference.md and docs/file-map.md
    python docs/make_pages.py --check   exit 1 and name the pages that are out of date; write nothing

The reference is made from what `--help` knows, the file map from the first line of each module's docstring.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("indexer", "retrieval", "trainer")
NOTICE = "<!-- made by docs/make_pages.py; do not edit -->"
REFERENCE = """\
# Command reference

Every command with its arguments and options, made from the help texts. `seenit COMMAND --help` prints the same.
[Using seenit](usage.md) explains the commands by task.
"""
FILE_MAP = """\
# File map

Every module with the first line of its docstring. [Architecture](architecture.md) tells how they work together.
"""


def main() -> int:
    """Write or check all pages; returns the exit status."""
    sys.path.insert(0, str(ROOT))
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        print(__doc__, file=sys.stderr)
        return 2
    status = 0
    for name, text in pages().items():
        path = ROOT / "docs" / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"docs/{name} is out of date; write it with: python docs/make_pages.py", file=sys.stderr)
            status = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    return status


def pages() -> dict[str, str]:
    """The text of every made page by its file name in docs/."""
    return {"reference.md": reference(), "file-map.md": file_map()}


def reference() -> str:
    """All commands of the command line, depth first, in the order of the help."""
    import typer

    import cli
    from indexer.common_options import common_options

    rows = [_row(param) for param in common_options()]
    parts = [
        NOTICE,
        REFERENCE,
        "\n".join(["| option of every command | default | what it is |", "|---|---|---|", *rows, ""]),
    ]
    for words, command in commands(typer.main.get_command(cli.app), ("seenit",)):
        parts.append(_section(words, command))
    return "\n".join(parts)


def commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A command and all below it, each with the words that call it: ("seenit", "tag", "add")."""
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


def _section(words: tuple[str, ...], command: Any) -> str:
    name = " ".join(words)
    lines = [f"## {name}", ""]
    below = getattr(command, "commands", {})
    if not below:
        lines += [f"`{' '.join([name, *_usage(command)])}`", ""]
    lines += [_one_paragraph_each(command.help or ""), ""]
    if below:
        lines += ["| command | what it does |", "|---|---|"]
        lines += [f"| [`{one}`](#{'-'.join([*words, one])}) | {_first_line(below[one].help)} |" for one in below]
        lines.append("")
    rows = [_row(param) for param in command.params if param.name != "help" and not getattr(param, "hidden", False)]
    if rows:
        lines += ["| argument or option | default | what it is |", "|---|---|---|", *rows, ""]
    if command.epilog:
        lines += [_example(command.epilog), ""]
    return "\n".join(lines)


def _usage(command: Any) -> Iterator[str]:
    """The words after the command's name."""
    params = [param for param in command.params if param.name != "help"]
    for param in params:
        if param.param_type_name == "option" and param.required:
            yield f"{param.opts[0]} {_value(param)}"
    if any(param.param_type_name == "option" and not param.required for param in params):
        yield "[OPTIONS]"
    for param in params:
        if param.param_type_name == "argument":
            name = _value(param)
            yield name if param.required or name.startswith("[") else f"[{name}]"


def _row(param: Any) -> str:
    if param.param_type_name == "argument":
        name = f"`{_value(param)}`"
    else:
        value = _value(param)
        name = ", ".join(f"`{one} {value}`" if value else f"`{one}`" for one in param.opts)
        name += "".join(f" / `{one}`" for one in param.secondary_opts)
    return f"| {_cell(name)} | {_cell(_default(param))} | {_cell(param.help or '')} |"


def _value(param: Any) -> str:
    """What stands for the value of an argument or option; empty for a flag."""
    if getattr(param, "is_flag", False):
        return ""
    if param.metavar:
        return str(param.metavar)
    if choices := getattr(param.type, "choices", None):
        return "|".join(choices)
    if param.param_type_name == "argument":
        return str(param.name).upper()
    return {"int": "N", "float": "X", "path": "PATH"}.get(param.type.name.split()[0], "TEXT")  # "int range" is one, too


def _default(param: Any) -> str:
    """The default as one would type it; empty for none, for a flag that is off, and where the help tells it."""
    default = param.default
    if param.required or default is None or isinstance(default, (bool, list, tuple)) or callable(default):
        return ""
    return f"`{default}`" if isinstance(default, (str, int, float, Path)) else ""


def _example(epilog: str) -> str:
    """`Example: A        then: B` as a block of commands."""
    text = epilog.removeprefix("Example:")
    parts = [part.strip() for half in text.split("   then:") for part in half.split(";")]
    return "\n".join(["Example:", "", "```text", *parts, "```"])


def _one_paragraph_each(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _first_line(text: str | None) -> str:
    return _cell(" ".join((text or "").split("\n\n")[0].split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def file_map() -> str:
    """All packages and their modules, folder by folder."""
    parts = [NOTICE, FILE_MAP, f"- `cli.py`: {first_docstring_line(ROOT / 'cli.py')}", ""]
    for package in PACKAGES:
        for folder in sorted({file.parent for file in (ROOT / package).rglob("*.py")}):
            parts += [f"## {folder.relative_to(ROOT).as_posix()}/", ""]
            init = folder / "__init__.py"
            if init.is_file() and (line := first_docstring_line(init)):
                parts += [line, ""]
            for file in sorted(folder.glob("*.py")):
                if file != init:
                    parts.append(f"- `{file.name}`: {first_docstring_line(file)}")
            parts.append("")
            parts += page_modules(folder / "page")
    return "\n".join(parts).rstrip() + "\n"


def page_modules(folder: Path) -> list[str]:
    """The scripts of a web page with the first sentence of the comment that each begins with; empty without any."""
    files = sorted(folder.glob("*.js"))
    lines = [f"- `{file.name}`: {first_comment_sentence(file)}" for file in files]
    return [f"## {folder.relative_to(ROOT).as_posix()}/", "", *lines, ""] if files else []


def first_comment_sentence(file: Path) -> str:
    """The first sentence of the comment that a script begins with; empty where it begins otherwise."""
    text = file.read_text(encoding="utf-8")
    if not text.startswith("/**"):
        return ""
    words = " ".join(line.strip(" *") for line in text[3 : text.index("*/")].splitlines()).strip()
    return words.split(". ")[0].rstrip(".") + "."


def first_docstring_line(file: Path) -> str:
    """The first line of a module's docstring; empty where it has none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.splitlines()[0].strip() if docstring else ""


if __name__ == "__main__":
    sys.exit(main())
