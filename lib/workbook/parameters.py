"""What can be set where: the parameters cell of a notebook, profiles, and `name=value` from a command line.

Nothing here imports torch or papermill: everything is checked in well under a second, before a job is launched.
"""
from __future__ import annotations

import ast
import json
import os
import re
import shlex
import tokenize
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from io import StringIO
from pathlib import Path


from lib.glossary import PARAMETERS, ParameterError, check, load_yaml, unknown
from lib.settings import ROOT


def notebooks_dir() -> Path:
    """Folder of the notebooks: `WORKBOOK_NOTEBOOKS`, otherwise `notebooks/` of the repository."""
    return Path(os.environ.get("WORKBOOK_NOTEBOOKS") or ROOT / "notebooks").absolute()


@dataclass(frozen=True)
class Notebook:
    """A notebook as the runner sees it: its cells, its parameters and its place among the others.

    `after` (names of notebooks that must come first), `family`, `threads`, `uses` and `given` (parameter -> the notebook of `after`
    that is not needed where it is given) come from the notebook's metadata, entry "workbook".
    """

    path: Path
    cells: list = field(repr=False)
    family: str | None = None
    after: tuple[str, ...] = ()
    threads: int = 1
    uses: tuple[str, ...] = ()
    given: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """File name without `.ipynb`, for example 10_retrieval_train."""
        return self.path.stem

    @cached_property
    def title(self) -> str:
        """The first heading of the notebook, or its name."""
        heading = re.search(r"^#\s+(.+)$", "\n".join(c["source"] for c in self.cells if c["cell_type"] == "markdown"), re.MULTILINE)
        return heading.group(1).strip() if heading else self.name

    @cached_property
    def source(self) -> str:
        """Text of all cells with their types and tags: what a result depends on (no outputs, no counts, no ids)."""
        return json.dumps([[c["cell_type"], c["metadata"].get("tags", []), c["source"]] for c in self.cells])

    @cached_property
    def code(self) -> str:
        """All code cells as one Python text, without lines that only IPython understands."""
        cells = [c["source"] for c in self.cells if c["cell_type"] == "code"]
        return "\n".join(re.sub(r"^\s*[%!].*$", "", cell, flags=re.MULTILINE) for cell in cells)

    @cached_property
    def defaults(self) -> dict[str, object]:
        """Name -> default value, read from the cell tagged `parameters` without running it; empty when there is none."""
        return {name: value for name, (value, _) in self.parameter_lines.items()}

    @cached_property
    def parameter_lines(self) -> dict[str, tuple[object, str]]:
        """Name -> (default value, trailing comment). ParameterError when the cell holds anything but `name = literal` lines."""
        tagged = [c["source"] for c in self.cells if "parameters" in c["metadata"].get("tags", [])]
        if len(tagged) > 1:
            raise ParameterError(f"{self.path.name}: {len(tagged)} cells are tagged `parameters`; keep one")
        text = tagged[0] if tagged else ""
        comments = {token.start[0]: token.string.lstrip("# ")
                    for token in tokenize.generate_tokens(StringIO(text).readline) if token.type == tokenize.COMMENT}
        found: dict[str, tuple[object, str]] = {}
        for node in ast.parse(text).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            try:
                found[target.id] = (ast.literal_eval(node.value), comments.get(node.end_lineno, ""))
            except (AttributeError, ValueError) as error:
                line = text.splitlines()[node.lineno - 1]
                raise ParameterError(f"{self.path.name}: the parameters cell may hold only `name = literal  # comment` lines, "
                                     f"not {line!r}; derive values in the next cell") from error
        return found


def read_notebook(path: Path) -> Notebook:
    """Read one notebook file. ParameterError when the file is missing, is no notebook or has bad "workbook" metadata."""
    if not path.is_file():
        near = get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.ipynb")], n=1)
        raise ParameterError(f"there is no notebook {path}" + (f"; did you mean {near[0]!r}?" if near else ""))
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        cells = [{"cell_type": c["cell_type"], "metadata": c.get("metadata", {}), "source": "".join(c["source"])} for c in document["cells"]]
        place = document.get("metadata", {}).get("workbook", {})
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(f"{path.name}: not readable as a notebook ({error!r}); restore it from git") from error
    bad = sorted(set(place) - {"family", "after", "threads", "uses", "given"})
    if bad:
        raise ParameterError(f'{path.name}: metadata entry "workbook" has unknown key {bad[0]!r}; known: family, after, threads, uses, given')
    return Notebook(path, cells, place.get("family"), tuple(place.get("after", ())), int(place.get("threads", 1)), tuple(place.get("uses", ())),
                    dict(place.get("given", {})))


def read_notebooks(folder: Path) -> dict[str, Notebook]:
    """All notebooks of a folder by name, in order of their numbers; each one's parameters stand in the glossary.

    ParameterError: no notebooks, an `after` that names none of them, a parameter the glossary does not know.
    """
    found = {p.stem: read_notebook(p) for p in sorted(folder.glob("[0-9]*.ipynb"))}
    if not found:
        raise ParameterError(f"no notebooks (NN_topic.ipynb) in {folder}; set WORKBOOK_NOTEBOOKS or restore the folder from git")
    for notebook in found.values():
        check(notebook.defaults, notebook.path.name)
        for parameter, name in notebook.given.items():
            if parameter not in notebook.defaults or name not in notebook.after:
                raise ParameterError(f'{notebook.path.name}: its metadata entry "given" says {parameter!r}: {name!r}; it maps a parameter of the '
                                     "notebook to a notebook of its `after`")
        for name in notebook.after:
            if name not in found:
                raise ParameterError(f'{notebook.path.name}: its metadata says it comes after {name!r}, which is not in {folder.name}/')
    return found


def parse_settings(text: str) -> dict[str, object]:
    """Values from `name=value name="two words"`; each value is read as YAML, so 3, 1e-4, true, null and [1, 2] mean what they say.

    Backslashes stand for themselves (`data_root=C:\\data`); a quote is written within quotes of the other kind.
    """
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise ParameterError(f"SET: {error} in {text!r}; write SET=\"name=value other=value\"") from error
    settings: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ParameterError(f"SET: {word!r} is not name=value; write SET=\"name=value other=value\"")
        settings[name] = load_yaml(value, f"SET {name}")
    return settings


def read_profile(name: str, folder: Path, notebooks: dict[str, Notebook]) -> dict:
    """A profile: {"all": {...}, "sweep": {...}, "notebooks": [...] | None, "NN_topic": {...}, ...}, its names and values checked.

    ParameterError: no such profile, a section that is no notebook, a parameter that its notebook does not have, a bad value.
    """
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in known:
        raise unknown_choice("profile", name, known)
    where = f"profile {name}"
    profile = load_yaml((folder / f"{name}.yaml").read_text(encoding="utf-8"), f"{folder.name}/{name}.yaml") or {}
    if not isinstance(profile, dict):
        raise ParameterError(f"{where}: must be a mapping with the sections all, sweep, notebooks or the name of a notebook")
    anywhere = {p for n in notebooks.values() for p in n.defaults}
    for section, values in profile.items():
        if section == "notebooks":
            for wanted in values:
                if wanted not in notebooks:
                    raise unknown_notebook(wanted, notebooks, where)
            continue
        if section not in ("all", "sweep") and section not in notebooks:
            raise unknown_notebook(section, ["all", "sweep", "notebooks", *notebooks], where)
        if not isinstance(values, dict):
            raise ParameterError(f"{where}: section {section} must map parameters to values, got {values!r}")
        for parameter in values:
            if parameter not in (notebooks[section].defaults if section in notebooks else anywhere):
                raise unknown(parameter, notebooks[section].defaults if section in notebooks else anywhere, f"{where}, section {section}")
        if section != "sweep":
            check(values, f"{where}, section {section}")
            continue
        for parameter, choices in values.items():
            if not isinstance(choices, list) or not choices:
                raise ParameterError(f"{where}: sweep {parameter} must be a list of values, got {choices!r}")
            for value in choices:
                check({parameter: value}, f"{where}, section sweep")
    return profile


def unknown_notebook(name: str, known, where: str) -> ParameterError:
    """The error for a notebook that is not there, with the nearest name."""
    near = get_close_matches(str(name), list(known), n=1)
    return ParameterError(f"{where}: no notebook {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"))


def unknown_choice(kind: str, name: str, known: list[str]) -> ParameterError:
    """The error for a profile, a family or a cluster that is not there, with the nearest name."""
    near = get_close_matches(name, known, n=1)
    return ParameterError(f"{kind.upper()}: unknown {kind} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                          + f"; {'known: ' + ', '.join(known) if known else 'there are none'}")


def resolve_values(values: dict[str, object]) -> dict[str, object]:
    """Values in the form a job gets them: whole numbers for float parameters become floats, paths absolute."""
    resolved = {}
    for name, value in values.items():
        entry = PARAMETERS[name]
        resolved[name] = float(value) if entry.kind is float and value is not None else entry.resolve(value)
    return resolved


def check_family(name: str, notebooks: dict[str, Notebook]) -> None:
    """ParameterError with the nearest name when no notebook belongs to family `name`."""
    families = sorted({n.family for n in notebooks.values() if n.family})
    if name not in families:
        raise unknown_choice("family", name, [*families, "all"])
