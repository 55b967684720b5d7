"""`make report` end to end on small notebooks: what fails, what is repeated, what is refused."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lib.settings import ROOT
from lib.files import write_json
from lib.workbook import report
from lib.workbook.plan import Job
from lib.workbook.run import made as made_by
from tests import fake_slurm


def make_report(root: Path, *arguments: str, program: Path = ROOT) -> tuple[int, str, list[str]]:
    """(exit code, output, jobs started) of the report of the notebooks in root/notebooks, with the lib in `program`."""
    environment = os.environ | {"PYTHONPATH": str(program), "WORKBOOK_NOTEBOOKS": str(root / "notebooks"), "WORKBOOK_REPORTS": str(root / "reports")}
    run = subprocess.run([sys.executable, "-m", "lib.workbook.report", *arguments], env=environment, capture_output=True, text=True, timeout=300, cwd=root)
    output = run.stdout + run.stderr
    return run.returncode, output, sorted(re.findall(r"(\S+) +started$", output, re.MULTILINE))


@pytest.fixture(scope="module")
def failing(tmp_path_factory, write_notebook):
    """A report in which everything goes wrong that can; (folder of the report, exit code, output)."""
    root = tmp_path_factory.mktemp("failing")
    notebooks = root / "notebooks"
    write_notebook(notebooks, "10_raises", "print('made it here')\nraise ValueError('<b>wrong</b> number')", family="a")
    write_notebook(notebooks, "11_after", family="a", after=["10_raises"])
    write_notebook(notebooks, "20_killed", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", family="b")
    write_notebook(notebooks, "30_exits", "import sys\nsys.exit(0)", family="c")
    write_notebook(notebooks, "40_no_result", result=False, family="d")
    write_notebook(notebooks, "50_fine", family="e")
    code, output, started = make_report(root)
    return root / "reports" / "quick", code, output, started


def test_one_failure_does_not_stop_the_others_and_make_fails(failing):
    folder, code, output, started = failing
    assert code == 1, output
    assert started == ["10_raises", "20_killed", "30_exits", "40_no_result", "50_fine"]
    assert [p.stem for p in (folder / "results").glob("*.json")] == ["50_fine"]


@pytest.mark.parametrize("job, words", [("10_raises", "ValueError: <b>wrong</b> number"), ("20_killed", "kernel ended in cell 4"),
                                        ("30_exits", "cell 4 left the notebook with sys.exit"), ("40_no_result", "was not written")])
def test_each_failure_leaves_its_page_and_is_told_in_the_index(failing, job, words):
    folder = failing[0]
    escaped = words.replace("<", "&lt;").replace(">", "&gt;")
    page, index = (folder / f"{job}.html").read_text(), (folder / "index.html").read_text()
    assert json.loads((folder / "status" / f"{job}.json").read_text())["state"] == "failed"
    assert escaped in page and escaped in index
    assert f'href="{job}.html"' in index
    assert "<b>wrong" not in index


def test_partial_page_keeps_what_was_printed_and_log_too(failing):
    assert "made it here" in (failing[0] / "10_raises.html").read_text()
    assert "made it here" in (failing[0] / "logs" / "10_raises.log").read_text()


def test_index_says_what_was_not_run(failing):
    folder, _, output, _ = failing
    assert "not run: it needs 10_raises" in (folder / "index.html").read_text()
    assert "11_after: not run: it needs 10_raises" in output
    assert not (folder / "11_after.html").exists()


def test_pages_need_no_network(failing):
    for page in failing[0].glob("*.html"):
        text = page.read_text()
        assert "<script" not in text
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text), page.name
    assert "<mfrac>" in (failing[0] / "50_fine.html").read_text()


@pytest.fixture(scope="module")
def clone(tmp_path_factory, write_notebook):
    """A copy of the program whose lib may be edited, with a chain 10 -> 11 and a separate 20 that imports lib.extra."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "lib", root / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "requirements.txt"):
        shutil.copy(ROOT / name, root / name)
    (root / "lib" / "extra.py").write_text("VALUE = 1\n")
    write_notebook(root / "notebooks", "10_first", family="a", threads=2)
    write_notebook(root / "notebooks", "11_second", "assert results.upstream('10_first')['metrics'][0]['value'] == 0.5\n"
                   "import os\nassert os.environ['OMP_NUM_THREADS'] == '1'", family="a", after=["10_first"])
    write_notebook(root / "notebooks", "20_other", "from lib.extra import VALUE\nprint('value', VALUE)", family="b")
    return root


def test_only_what_is_missing_or_changed_is_repeated(clone):
    results = clone / "reports" / "quick" / "results"
    code, output, started = make_report(clone, program=clone)
    assert (code, started) == (0, ["10_first", "11_second", "20_other"]), output
    before = {p.stem: p.read_text() for p in results.glob("*.json")}

    began = time.monotonic()
    code, output, started = make_report(clone, program=clone)
    assert (code, started) == (0, []), output
    assert time.monotonic() - began < 30

    (results / "10_first.json").unlink()
    code, output, started = make_report(clone, program=clone)
    assert (code, started) == (0, ["10_first", "11_second"]), output
    from lib.workbook.results import read, stable
    assert stable(read(results / "10_first.json")) == stable(json.loads(before["10_first"]))
    assert read(results / "10_first.json")["provenance"] != json.loads(before["10_first"])["provenance"]

    (clone / "lib" / "extra.py").write_text("VALUE = 2\n")
    code, output, started = make_report(clone, program=clone)
    assert (code, started) == (0, ["20_other"]), output
    assert "value 2" in (results.parent / "logs" / "20_other.log").read_text()


@pytest.fixture
def choices(tmp_path, write_notebook, monkeypatch):
    """Notebooks with a data folder, for commands that have to be refused."""
    lines = 'seed = 0  # the seed\ndataset = "folder"  # data set\ndata_root = None  # its folder'
    write_notebook(tmp_path / "notebooks", "10_train", parameters=lines, family="retrieval")
    (tmp_path / "notebooks" / "profiles").mkdir()
    (tmp_path / "notebooks" / "profiles" / "tiny.yaml").write_text("all: {seed: 1}\n")
    (tmp_path / "notebooks" / "profiles" / "broken.yaml").write_text("10_train: {sead: 1}\n")
    monkeypatch.setenv("WORKBOOK_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("WORKBOOK_REPORTS", str(tmp_path / "reports"))
    return tmp_path


@pytest.mark.parametrize("arguments, words", [
    (["--set=sed=1"], ["'sed'", "did you mean 'seed'"]),
    (["--set=seed=fast"], ["seed", "a whole number", "'fast'"]),
    (["--set=seed=1.5"], ["seed", "a whole number", "1.5"]),
    (["--set=seed=-1"], ["seed", "from 0", "-1"]),
    (["--set=seed"], ["'seed'", "name=value"]),
    (["--dataset=esc500"], ["dataset", "esc50", "'esc500'"]),
    (["--data-root=/no/such folder"], ["data_root", "'/no/such folder' does not exist"]),
    (["--family=retreival"], ["'retreival'", "did you mean 'retrieval'"]),
    (["--profile=tinny"], ["'tinny'", "did you mean 'tiny'"]),
    (["--profile=broken"], ["profile broken", "'sead'", "did you mean 'seed'"]),
    (["--run=../elsewhere"], ["RUN", "'../elsewhere'"]),
    (["--run=interactive"], ["RUN", "'interactive'", "by hand"]),
    (["--jobs=none"], ["JOBS", "'none'"]),
])
def test_bad_commands_are_refused_with_name_and_fix(choices, capsys, arguments, words):
    assert report.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and all(word in message for word in words), message
    assert not (choices / "reports").exists()


def test_more_gpus_than_there_are_are_refused_unless_a_cluster_has_them(choices, write_notebook, capsys, monkeypatch):
    write_notebook(choices / "notebooks", "20_wide", parameters='device = "auto"  # where\ndevices = 3  # processes')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert report.main([]) == 2
    assert "20_wide: devices=3, and 2 GPU(s) are visible; lower devices" in capsys.readouterr().err
    fake_slurm.install(choices / "slurm", monkeypatch)
    monkeypatch.setattr(report, "execute", lambda *arguments: 0)
    assert report.main(["--snakemake=--executor slurm"]) == 1          # not refused; nothing was run, as `execute` is replaced
    assert "2 of 2" not in capsys.readouterr().out


def job(identity, key="k"):
    return Job(identity, identity, identity, None, {"seed": 0}, {}, [], 1, key)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A report with a finished job 10_a that made a checkpoint folder, a sound and a page of its own."""
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / "runs"))
    folder, made = tmp_path / "report", tmp_path / "runs" / "a-1" / "best"
    for path in (made / "model.safetensors", folder / "clips" / "-1.ogg", tmp_path / "table.csv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    artifacts = {"checkpoint": "a-1/best", "tables": [str(tmp_path / "table.csv")], "note": "no file", "none": "",
                 "listen": [{"title": "t", "caption": "c" * 5000, "audio": "clips/-1.ogg"},
                            {"title": "t", "audio": "data:audio/ogg;base64,AA"}]}
    names = made_by({"artifacts": artifacts}, folder)
    assert names == sorted(["a-1/best", str(tmp_path / "table.csv"), "clips/-1.ogg"])

    def marker(state="ok", key="k"):
        """Put marker and status there again; whether planning keeps the marker."""
        write_json(folder / "results" / "10_a.json", {})
        write_json(folder / "status" / "10_a.json", {"state": state, "key": key, "artifacts": names})
        report.write_plan(folder, {"jobs": []}, [job("10_a")])
        return (folder / "results" / "10_a.json").is_file()

    return marker, tmp_path


def test_a_marker_without_its_verdict_or_of_another_plan_is_not_trusted(finished):
    marker, _ = finished
    assert marker() and not marker(state="running") and not marker(state="failed") and not marker(key="other")


@pytest.mark.parametrize("gone", ["runs/a-1/best/model.safetensors", "runs/a-1", "runs", "report/clips/-1.ogg", "table.csv"])
def test_a_job_whose_files_were_deleted_is_repeated(finished, gone, capsys):
    marker, root = finished
    assert marker()
    shutil.rmtree(root / gone) if (root / gone).is_dir() else (root / gone).unlink()
    assert not marker() and "10_a is repeated: " in capsys.readouterr().out


def test_half_written_files_of_a_killed_run_are_cleared_away(finished):
    marker, root = finished
    for name in (".index.html.12.tmp", "status/.10_a.json.12.tmp", "results/.10_a.json.12.tmp"):
        (root / "report" / name).parent.mkdir(exist_ok=True)
        (root / "report" / name).write_text("half")
    assert marker() and not list((root / "report").rglob("*.tmp"))


@pytest.mark.slow
def test_two_jobs_at_a_time_get_a_gpu_each_and_a_deleted_checkpoint_is_made_again(tmp_path, write_notebook, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / "runs"))
    body = """
import os, time
from lib.settings import runs_dir
gpu, name = int(os.environ["CUDA_VISIBLE_DEVICES"]), "{name}"
(runs_dir() / name).mkdir(parents=True, exist_ok=True)
(runs_dir() / name / "model").write_text(str(gpu))
deadline = time.monotonic() + 30
while len(os.listdir(runs_dir())) < 2 and time.monotonic() < deadline:      # until the other one is at work, too
    time.sleep(0.05)
results.write(name, [results.metric("gpu", gpu, n=1, split="test")], artifacts=dict(checkpoint=name))
"""
    for name in ("10_one", "20_two"):
        write_notebook(tmp_path / "notebooks", name, body.format(name=name), 'device = "auto"  # where', False, family=name[3:])
    code, output, started = make_report(tmp_path, "--jobs=2")
    assert (code, started) == (0, ["10_one", "20_two"]), output
    assert sorted((tmp_path / "runs" / name / "model").read_text() for name in started) == ["4", "6"]
    shutil.rmtree(tmp_path / "runs" / "20_two")
    code, output, started = make_report(tmp_path, "--jobs=2")
    assert (code, started) == (0, ["20_two"]) and "20_two is repeated" in output, output
    assert (tmp_path / "runs" / "20_two" / "model").read_text() == "4"


@pytest.mark.slow
def test_sweep_over_texts_with_odd_characters(tmp_path, write_notebook):
    """Each value arrives as it is, each evaluation reads the training of its own combination, and the index groups them."""
    odd = ["{a}'\"$(x) ü <b>%", "-rf/../x"]
    write_notebook(tmp_path / "notebooks", "10_a_train", f"assert text_weights in {odd!r}, repr(text_weights)", family="a",
                   parameters="seed = 0  # seed\ntext_weights = None  # weights")
    body = ("up = results.upstream('10_a_train')['job']\n"
            "results.write('11_a_evaluate', [results.metric('m', 1.0, n=1, split=split, headline=True)], protocol=dict(up=up))")
    lines = 'split = "test"  # split'
    write_notebook(tmp_path / "notebooks", "11_a_evaluate", body, lines, False, family="a", after=["10_a_train"])
    (tmp_path / "notebooks" / "profiles").mkdir()
    profile = {"sweep": {"text_weights": odd, "split": ["test", "val"]}}
    (tmp_path / "notebooks" / "profiles" / "odd.yaml").write_text(yaml.safe_dump(profile))
    code, output, started = make_report(tmp_path, "--profile=odd")
    assert code == 0 and len(started) == 6, output
    folder = tmp_path / "reports" / "odd"
    for job in json.loads((folder / "plan.json").read_text())["jobs"]:
        document = json.loads((folder / "results" / f"{job['id']}.json").read_text())
        assert job["notebook"] != "11_a_evaluate" or [document["protocol"]["up"]] == job["upstream"]
    index = (folder / "index.html").read_text()
    assert index.count("<td>1 of 1</td>") == 6 and index.count("1 of 1 pairs") == 1 and "<b>%" not in index and "{a}&#x27;&quot;$(x) ü" in index


def test_notebook_parameter_that_the_glossary_does_not_know_is_refused(choices, write_notebook, capsys):
    write_notebook(choices / "notebooks", "11_new", parameters="sharpness = 1  # unheard of")
    assert report.main([]) == 2
    assert "11_new.ipynb: unknown parameter 'sharpness'" in capsys.readouterr().err


def test_refusal_is_quick(choices):
    began = time.monotonic()
    code, output, _ = make_report(choices, "--data-root=/no/such/folder")
    assert code == 2 and time.monotonic() - began < 5, output


def test_planning_loads_no_torch(choices):
    program = "import sys, lib.workbook.report; sys.exit('torch' in sys.modules or 'papermill' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_notebook_without_anything_to_do_is_skipped_with_what_reads_it(tmp_path, write_notebook):
    """Neither is a failure; both say why, in page and index, and nothing after the skip runs."""
    notebooks = tmp_path / "notebooks"
    write_notebook(notebooks, "20_train", "results.skip('these clips have <no> labels')\nprint('never printed')", family="a")
    write_notebook(notebooks, "21_evaluate", "results.upstream('20_train')\nprint('never printed')", family="a", after=["20_train"])
    code, output, _ = make_report(tmp_path)
    folder = tmp_path / "reports" / "quick"
    assert code == 0 and "2 of 2 jobs up to date" in output and output.count("skipped: nothing to do") == 2
    index = (folder / "index.html").read_text()
    assert "skipped: these clips have &lt;no&gt; labels" in index and "skipped: 20_train was skipped" in index
    for name in ("20_train", "21_evaluate"):
        page, log = (folder / f"{name}.html").read_text(), (folder / "logs" / f"{name}.log").read_text()
        assert "these clips have &lt;no&gt; labels" in page and "Traceback" not in page and 'workbook-failure"' not in page
        assert "never printed" not in log
