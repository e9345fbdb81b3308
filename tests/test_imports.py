"""The import graph, read from the code: layers, no cycle between modules, and decoding without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
LAYERS: dict[str, set[str]] = {
    "indexer": {"indexer"},
    "retrieval": {"retrieval", "indexer"},
    "trainer": {"trainer", "indexer"},
    "cli": {"cli", "indexer", "retrieval", "trainer"},
}


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {"cli": ROOT / "cli.py"}
    for package in ("indexer", "retrieval", "trainer"):
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def import_statements(tree: ast.AST, deep: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run: at module level, with `deep` those in functions too; never those for type checking only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for branch in node.orelse:
                yield from import_statements(ast.Module([branch], []), deep)
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from import_statements(node, deep)


def imported_names(name: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Dotted names that a statement in module `name` asks for, absolute; a name in a module is one of them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
        base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
    yield from (f"{base}.{alias.name}" for alias in node.names)


def module_of(dotted: str) -> str | None:
    """The module of ours that holds a dotted name; None for other libraries."""
    while dotted and dotted not in MODULES:
        dotted = dotted.rpartition(".")[0]
    return dotted or None


def lazy_homes(name: str) -> set[str]:
    """Modules that a package's `__getattr__` imports on first use, from its `_HOMES`."""
    for node in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            return {f"{name}.{home}" for home in ast.literal_eval(node.value).values()}
    return set()


def arrows(deep: bool) -> dict[str, set[str]]:
    """Module -> the modules it imports. A name that a package loads lazily counts as its home, not the package."""
    graph: dict[str, set[str]] = {}
    for name, file in MODULES.items():
        graph[name] = set()
        for node in import_statements(ast.parse(file.read_text(encoding="utf-8")), deep):
            for dotted in imported_names(name, node):
                target = module_of(dotted)
                if target and target != name:
                    graph[name].add(target)
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module, sorted."""
    reach = {name: reachable(graph, name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return sorted(list(group) for group in groups if len(group) > 1)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, todo = set[str](), [start]
    while todo:
        for target in graph.get(todo.pop(), set()) - seen:
            seen.add(target)
            todo.append(target)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True], ids=["at module level", "in functions too"])
def test_every_layer_imports_only_those_below_it(deep: bool) -> None:
    for name, targets in arrows(deep).items():
        layer = name.split(".")[0]
        crossing = {target for target in targets if target.split(".")[0] not in LAYERS[layer]}
        assert not crossing, f"{name} imports {sorted(crossing)}"


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True], ids=["at module level", "in functions too"])
def test_no_modules_import_each_other_in_a_circle(deep: bool) -> None:
    graph = arrows(deep)
    assert not cycles(graph)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {error.args[1]}")


@pytest.mark.slow
def test_the_graph_is_not_empty_and_finds_a_circle() -> None:
    assert sum(map(len, arrows(deep=False).values())) > len(MODULES)
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize("name", sorted(name for name in MODULES if lazy_homes(name)))
def test_names_loaded_on_first_use_have_a_home(name: str) -> None:
    assert lazy_homes(name) <= set(MODULES)


@pytest.mark.slow
def test_decoding_and_moving_files_load_no_torch() -> None:
    names = sorted(name for name in MODULES if name == "indexer.images" or name.startswith("indexer.images."))
    assert len(names) > 5
    names += ["retrieval.duplicates.move", "retrieval.duplicates.hardlink", "trainer.data.relit_views"]
    code = f"import sys, {', '.join(names)}; print(*sorted({{'torch', 'faiss', 'qdrant_client'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
