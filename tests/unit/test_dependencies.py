"""Dependencies run one way: from the process down to the runtime, and from the command down to linear algebra."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each folder or module may import what stands in a later row, and from the ground; nothing of its own row or before.
SERVER = [
    {"app.__main__"},
    {"app.process"},
    {"app.application"},
    {"app.http", "app.grpc"},
    {"app.reports", "app.benchmark"},
    {"app.service"},
    {"app.repository"},
    {"app.engine"},
    {"app.runtime"},
]
SERVER_GROUND = [{"app.telemetry", "app.config", "app.cluster"}, {"app.system"}, {"app.errors"}]
LIBRARY = [
    {"panther.cli"},
    {"panther.huggingface"},
    {"panther.compression"},
    {"panther.quantize"},
    {"panther.train", "panther.export", "panther.convert"},
    {"panther.runs"},
    {"panther.analysis", "panther.checkpoint"},
    {"panther.nn"},
    {"panther.nn.kernels"},
    {"panther.linalg", "panther.counting"},
]
# Where no fast path applies, and for second derivatives, the kernels use the formula itself.
ALLOWED = {
    ("panther.nn.kernels.cuda", "panther.nn"),
    ("panther.nn.kernels.dispatch", "panther.nn"),
    ("panther.nn.kernels.dispatch", "panther.nn.functional"),
    ("panther.nn.kernels.cuda", "panther.nn.functional"),
}
PUBLIC_PATHS = {"panther", "panther.sketch", "panther.svd", "panther.bits", "panther.efficiency"}
VERSION_ONLY = {"app", "panther"}  # the package itself holds the version number


def modules(package: str) -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, within functions too; ``from folder import module`` is the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def row_of(module: str, rows: list[set[str]]) -> int | None:
    """The row of the longest name that the module lies in."""
    found = [
        (len(name), index)
        for index, row in enumerate(rows)
        for name in row
        if module == name or module.startswith(f"{name}.")
    ]
    return max(found)[1] if found else None


def arrows(package: str) -> list[tuple[str, str]]:
    known = modules(package)
    return [(module, target) for module, path in known.items() for target in imports(path, known) if target != module]


def folder_of(module: str, rows: list[set[str]]) -> str:
    names = [name for row in rows for name in row if module == name or module.startswith(f"{name}.")]
    return max(names, key=len)


def backwards(package: str, rows: list[set[str]]) -> list[str]:
    wrong = []
    for module, target in arrows(package):
        if module in PUBLIC_PATHS or target in VERSION_ONLY or (module, target) in ALLOWED:
            continue
        here, there = row_of(module, rows), row_of(target, rows)
        assert here is not None, f"{module} lies in no folder of the architecture"
        assert there is not None, f"{target} lies in no folder of the architecture"
        if there < here or (there == here and folder_of(module, rows) != folder_of(target, rows)):
            wrong.append(f"{module} imports {target}")
    return wrong


def test_the_server_depends_one_way():
    assert backwards("app", [*SERVER, *SERVER_GROUND]) == []


def test_the_library_depends_one_way():
    assert backwards("panther", LIBRARY) == []


def cycles(package: str) -> list[list[str]]:
    """Import cycles among modules, imports within functions and for type checkers included."""
    graph: dict[str, set[str]] = {}
    for module, target in arrows(package):
        if module not in PUBLIC_PATHS and target not in VERSION_ONLY and target not in PACKAGES:
            graph.setdefault(module, set()).add(target)
    found, state, path = [], {}, []

    def visit(module: str) -> None:
        state[module] = "open"
        path.append(module)
        for target in sorted(graph.get(module, ())):
            if state.get(target) == "open":
                found.append([*path[path.index(target) :], target])
            elif target not in state:
                visit(target)
        path.pop()
        state[module] = "done"

    for module in sorted(graph):
        if module not in state:
            visit(module)
    return found


# The front doors of packages import their modules, which is no cycle: modules import one another and not the door.
PACKAGES = {
    module for package in ("app", "panther") for module, path in modules(package).items() if path.name == "__init__.py"
}


@pytest.mark.parametrize("package", ["app", "panther"])
def test_no_module_imports_itself_by_a_detour(package):
    assert cycles(package) == []


@pytest.mark.parametrize("module", [name for name in modules("panther") if name != "panther.nn.kernels.triton_kernels"])
def test_each_module_can_be_imported(module):
    assert importlib.import_module(module).__name__ == module


def test_the_rule_would_see_an_arrow_that_runs_backwards():
    rows = [{"app.http"}, {"app.engine"}]
    assert row_of("app.http.routes.oip", rows) < row_of("app.engine.queue", rows)
    assert row_of("panther.nn.kernels.cuda", LIBRARY) > row_of("panther.nn.linear", LIBRARY)
