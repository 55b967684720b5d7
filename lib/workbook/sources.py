"""What a result depends on besides its parameters: the lib sources behind a notebook, the lock, and the files of a data folder."""
from __future__ import annotations

import ast
import os
from functools import lru_cache
from pathlib import Path

from lib.glossary import ParameterError
from lib.settings import ROOT
from lib.files import digest
from lib.workbook.parameters import Notebook


def source_digest(notebook: Notebook, root: Path = ROOT) -> str:
    """Digest of the notebook's cells, the lock and every file of lib that the notebook imports, directly or not.

    The metadata entry `uses` adds files or folders that no import statement names (modules imported by name at run time, YAML files);
    a notebook with a `dataset` parameter uses lib/data.
    """
    start, others = set(_modules(notebook.code, package=())), set()
    for used in (*notebook.uses, *(["lib/data"] if "dataset" in notebook.defaults else [])):
        path = root / used
        if not path.exists():
            raise ParameterError(f'{notebook.path.name}: its metadata entry "uses" names {used!r}, which is not there; correct it')
        files = [file for kind in ("*.py", "*.yaml") for file in path.rglob(kind)] if path.is_dir() else [path]
        start |= {tuple(f.relative_to(root).with_suffix("").parts) for f in files if f.suffix == ".py"}
        others |= {file for file in files if file.suffix != ".py"}
    lock = root / "requirements.txt"
    files = sorted(_closure(start, root) | others)
    texts = [part for file in files for part in (str(file.relative_to(root)), file.read_bytes())]
    return digest(notebook.source, lock.read_bytes() if lock.is_file() else b"", *texts)


def data_fingerprint(folder: str | Path) -> str:
    """Digest of the listing of a folder (or of one file): relative names, sizes in bytes and times of last change."""
    root = Path(folder)
    if root.is_file():
        status = root.stat()
        return digest(f"{status.st_size} {status.st_mtime_ns}")
    lines = []
    for parent, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            lines.append(f"{os.path.relpath(path, root)} {status.st_size} {status.st_mtime_ns}")
    return digest("\n".join(lines).encode("utf-8", "surrogateescape"))


def _closure(start: set[tuple[str, ...]], root: Path) -> set[Path]:
    """Files of the modules in `start` and of everything in lib that they import."""
    found: set[Path] = set()
    waiting = list(start)
    while waiting:
        module = waiting.pop()
        for depth in range(1, len(module) + 1):  # importing lib.a.b runs lib and lib.a as well
            for path in (root.joinpath(*module[:depth]).with_suffix(".py"), root.joinpath(*module[:depth], "__init__.py")):
                if path not in found and path.is_file():
                    found.add(path)
                    waiting += _imports_of(path, path.stat().st_mtime_ns, root)
    return found


@lru_cache(maxsize=None)
def _imports_of(path: Path, changed: int, root: Path) -> tuple[tuple[str, ...], ...]:
    parts = path.relative_to(root).with_suffix("").parts
    try:
        return tuple(_modules(path.read_text(encoding="utf-8"), package=parts[:-1]))
    except SyntaxError:
        return ()  # its bytes count all the same, and the job that imports it shows the error


def _modules(source: str, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every lib module that an import statement of `source` may mean; `from lib.a import b` may mean lib.a.b."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found += [base, *(base + (alias.name,) for alias in node.names)]
    return [module for module in found if module[:1] == ("lib",)]
