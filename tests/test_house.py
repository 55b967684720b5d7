"""The rules of the house that no single module can break or keep alone."""
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from lib import settings
from lib.glossary import PARAMETERS
from lib.settings import ROOT
from lib.workbook.parameters import read_notebook, read_notebooks, read_profile
from lib.workbook.sources import source_digest

LAYERS = [{"data", "media", "audio"}, {"encoders", "geometry", "quantize", "losses"},
          {"evaluation"}, {"families"}, {"training"}, {"display"}, {"workbook", "performance"}, {"starters"}]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(p.relative_to(ROOT) for p in (ROOT / "lib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def imports(path):
    """Modules of lib that a file imports, as tuples of names."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.parts[:-1][:len(path.parts) - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from (base + (alias.name,) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_downward(path):
    here = path.parts[1] if len(path.parts) > 2 else None
    assert here is None or here in LEVEL, f"lib/{here} has no layer; add it to LAYERS and to the design"
    for module in (m for m in imports(path) if m[0] in ("lib", "notebooks", "tests")):
        assert module[0] == "lib", f"{path} imports {'.'.join(module)}: lib imports lib only"
        there = module[1] if len(module) > 1 else None
        if here is None:
            assert there not in LEVEL, f"{path} is the ground floor and imports lib.{there}"
        elif there in LEVEL:
            assert LEVEL[there] <= LEVEL[here], f"{path} imports upward: {'.'.join(module)}"
            if here == there == "families" and len(module) > 2:
                assert module[2] == path.stem or not (ROOT / "lib/families" / f"{module[2]}.py").is_file(), f"{path} imports another family"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_sources_avoid_what_the_house_forbids(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for pattern in (r"weights_only\s*=\s*False", r"\bpickle\.load", r"shell\s*=\s*True", r"os\.system", r"except[^\n]*:\s*pass\b", r"/(work|root|home)/"):
        assert not re.search(pattern, text), f"{path}: {pattern}"
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), f"{path} has no docstring"


def test_there_are_notebooks():
    assert {"00_start_here", "01_data"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_without_outputs(path):
    document = json.loads(path.read_text(encoding="utf-8"))
    assert "papermill" not in document["metadata"] and "widgets" not in document["metadata"]
    for cell in document["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")
        assert "execution" not in cell["metadata"] and "papermill" not in cell["metadata"]
        assert not re.search(r"/(root|home|work|tmp|Users)/", "".join(cell["source"])), "a path of one machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_parameters_are_inspectable_explained_and_in_the_glossary(path):
    notebook = read_notebook(path)
    assert notebook.parameter_lines or path.stem == "00_start_here", "a cell tagged `parameters` is missing"
    for name, (value, comment) in notebook.parameter_lines.items():
        assert name in PARAMETERS and PARAMETERS[name].problem(value) is None, f"{name}: {PARAMETERS.get(name)}"
        assert comment, f"{name} has no trailing comment"
    if re.search(r"_(train|evaluate)$", path.stem):
        assert {"device", "dataset", "data_root", "seed", "num_samples"} <= notebook.defaults.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_starts_with_a_title_and_ends_with_a_result(path):
    notebook = read_notebook(path)
    code = [c["source"] for c in notebook.cells if c["cell_type"] == "code"]
    assert notebook.cells[0]["cell_type"] == "markdown" and notebook.title != notebook.name
    assert re.search(rf"\bstart\(['\"]{path.stem}['\"]\)", code[0]), f"the first code cell calls workbook.start({path.stem!r})"
    assert re.search(r"\bresults\.write\(", code[-1]), "the last code cell calls results.write"
    assert source_digest(notebook)  # what its metadata says it uses is there
    for cell in notebook.cells:  # the parameters cell is a list, as long as it has to be
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            assert len([line for line in cell["source"].splitlines() if line.strip()]) <= 20, f"a long cell: {cell['source'][:60]}"


def test_notebooks_and_profiles_fit_together():
    notebooks = read_notebooks(ROOT / "notebooks")
    for profile in (ROOT / "notebooks" / "profiles").glob("*.yaml"):
        assert read_profile(profile.stem, profile.parent, notebooks)


def test_every_result_has_the_one_schema():
    """Nothing but lib.workbook.results writes results: no notebook and no module makes such a file on its own."""
    for path in (*MODULES, *(p.relative_to(ROOT) for p in NOTEBOOKS)):
        if path.parts[:2] != ("lib", "workbook"):
            assert not re.search(r"""results["']?\s*/|["']results/""", (ROOT / path).read_text(encoding="utf-8")), path


def readme_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|shell|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_readme_commands_exist():
    commands = readme_commands()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"\b([A-Z_]+)\b", " ".join(re.findall(r"^export [A-Z].*$", makefile, re.MULTILINE)))) | {"VENV", "TESTS"}
    used = [re.findall(r"(?:^|\s)make((?:\s+[A-Z_]+=(?:\"[^\"]*\"|'[^']*'|\S+)|\s+[a-z]+)+)", command) for command in commands]
    calls = [call for found in used for call in found]
    assert any(" report" in call for call in calls) and any(" test" in call for call in calls), "README shows make report and make test"
    for call in calls:
        unquoted = re.sub(r"=(\"[^\"]*\"|'[^']*'|\S+)", "=", call)
        for word in unquoted.split():
            assert word[:-1] in variables if word.endswith("=") else word in targets, f"README: make{call}: {word}"
    for command in commands:
        for module in re.findall(r"-m (lib[\w.]*)", command):
            assert importlib.util.find_spec(module), f"README: {module}"
        for file in re.findall(r"\b(notebooks/[\w/.-]+)", command):
            assert (ROOT / file).exists(), f"README: {file}"


@pytest.mark.parametrize("variable, function", [("WORKBOOK_DATA", settings.data_dir), ("WORKBOOK_RUNS", settings.runs_dir), ("WORKBOOK_REPORTS", settings.reports_dir)])
def test_folders_can_be_moved(monkeypatch, tmp_path, variable, function):
    monkeypatch.setenv(variable, str(tmp_path / "else where"))
    assert function() == tmp_path / "else where"
    monkeypatch.delenv(variable)
    assert function().parent == ROOT


def test_reports_folder_is_explained_and_nothing_else_of_it_is_committed():
    assert "index.html" in (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git working copy")
    tracked = subprocess.run(["git", "ls-files", "reports", "runs", "data", ".venv"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert {path for path in tracked if not path.startswith("reports/pictures/")} <= {"reports/README.md"}


def test_license_and_ci_call_what_people_call():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8") and os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_what_it_does_and_hands_values_over_unread(tmp_path):
    """A value with spaces, quotes and shell characters reaches the program as it is, and a given VENV installs nothing."""
    program = tmp_path / "environment" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport sys, os\nprint([a for a in sys.argv[1:] if '=' in a and not a.endswith('=')], os.environ['PYTHONPATH'])\n")
    program.chmod(0o755)
    root = 'a "b" \'c\' `id` ;x'
    # under `make test` the variables of the outer make would reach the inner one, and add lines of its own
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GNUMAKEFLAGS")}
    command = ["make", "report", f"VENV={tmp_path / 'environment'}", f"DATA_ROOT={root}", "SET=seed=1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=plain)
    assert run.returncode == 0, run.stderr
    said, handed = run.stdout.strip().splitlines()
    assert said.startswith("make report: ") and handed == f"{[f'--data-root={root}', '--set=seed=1']} {ROOT}"
    words = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(f"make {target}" in words for target in ("report", "test", "lab", "clean"))
