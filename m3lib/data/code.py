"""Which files of m3lib a piece of code imports: a checkpoint, a row's file and the copy of a notebook cover these."""

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def imported_files(*modules: str) -> list[Path]:
    """Sorted paths of the given modules (such as "m3lib.training.trainer") and of all m3lib modules that they import.

    Imports are read from the source, also inside functions; nothing is executed. A package's `__init__` counts only if
    something is imported from the package itself, so a registry that imports lazily does not pull in its entries.
    """
    files, waiting = set(), list(modules)
    while waiting:
        path = module_file(waiting.pop())
        if path and path not in files:
            files.add(path)
            waiting += imports_of(path)
    return sorted(files)


def module_file(module: str) -> Path | None:
    """The file of an m3lib module; None if there is no such module (the name is a function or a class)."""
    base = PACKAGE.parent.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@functools.cache  # one process asks about many files that import the same ones
def imports_of(path: Path) -> tuple[str, ...]:
    """The imports of a file of m3lib."""
    return tuple(imports(ast.parse(path.read_text(encoding="utf-8"))))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted m3lib names that code imports; of `from a import b`, b if it is a module, else a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "m3lib":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if module_file(name) else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "m3lib")


def relative_names(paths: Iterable[Path]) -> list[str]:
    """Paths relative to the repository, as `m3lib/systems/m3net.py`."""
    return [path.relative_to(PACKAGE.parent).as_posix() for path in paths]
