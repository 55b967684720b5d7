"""A cluster's folder: what is read and refused; `make report` on a Slurm that is played by a small program."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.files import read_json
from lib.glossary import ParameterError
from lib.settings import ROOT
from lib.workbook import report
from lib.workbook.cluster import OFFLINE, read_cluster
from lib.workbook.parameters import read_notebooks
from lib.workbook.plan import Job, make_jobs
from lib.workbook.processes import Busy, cancel_marked, hold, new_mark, slurm_name
from tests import fake_slurm

PROFILES = ROOT / "notebooks" / "profiles"
CONFIG = "executor: slurm\njobs: 4\nlatency-wait: 5\nslurm-requeue: true\nslurm-status-command: squeue\nslurm-init-seconds-before-status-checks: 1\n"


def cluster(folder: Path, resources: str = "", config: str = CONFIG, notebooks=("10_a", "11_b")):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    (folder / "resources.yaml").write_text(resources)
    return read_cluster(str(folder), PROFILES, notebooks)


def job(notebook="10_a", gpu=0, threads=1, **parameters):
    return Job(notebook, notebook, notebook, None, parameters, {}, [], threads, "key", gpu)


def test_a_notebook_asks_for_what_its_section_says_above_what_all_do(tmp_path):
    there = cluster(tmp_path / "mine", "all: {partition: gpu, memory: 16G, time: 90min, account: null}\n"
                    "10_a: {memory: 1.5T, time: 2d, gpu_model: h100, cpus: 12, extra: --exclusive}")
    assert there.resources(job("11_b", threads=2, workers=3)) == {
        "slurm_partition": "gpu", "mem_mb": 16384, "runtime": 90, "gpu": 0, "cpus_per_task": 5, "slurm_extra": "--open-mode=append"}
    assert there.resources(job(gpu=4, devices=4)) == {"slurm_partition": "gpu", "mem_mb": 1572864, "runtime": 2880, "gpu": 4, "gpu_model": "h100",
                                                      "cpus_per_task": 12, "slurm_extra": "--open-mode=append --exclusive"}
    assert "gpu_model" not in there.resources(job(device="cpu")), "where no GPU is used, none is asked for"


def test_gpus_of_a_section(tmp_path):
    there = cluster(tmp_path / "mine", "10_a: {gpus: 0}\n11_b: {gpus: 2}")
    assert there.resources(job(gpu=1))["gpu"] == 0 and there.resources(job("11_b", gpu=1))["gpu"] == 2
    with pytest.raises(ParameterError, match="11_b: devices=4, and mine/resources.yaml gives it gpus: 2; lower devices"):
        there.resources(job("11_b", gpu=4))


@pytest.mark.parametrize("resources, words", [
    ("10_aa: {}", "resources.yaml: no notebook '10_aa'; did you mean '10_a'"),
    ("10_a: {memroy: 1G}", "section 10_a: unknown parameter 'memroy'; did you mean 'memory'"),
    ("all: {memory: 16}", "section all: memory must be a size such as 800M or 16G, for the whole job, got 16"),
    ("all: {time: 1:30}", "section all: time must be a time such as 30min, 12h or 2d"),
    ("all: {gpus: true}", "gpus must be a whole number from 0"), ("all: {cpus: 0}", "cpus must be a whole number from 1"),
    ("all: {partition: 3}", "partition must be a text, got 3"), ("all: 3", "section all must map names to values, got 3"),
    ("offline: 1", "offline must be true or false, got 1"), ("- all", "resources.yaml must map names to values"),
    ("all: {", "resources.yaml: not readable as YAML")])
def test_what_does_not_fit_is_named(tmp_path, resources, words):
    with pytest.raises(ParameterError, match=re.escape(words)):
        cluster(tmp_path / "mine", resources)


def test_a_folder_that_is_no_cluster_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="CLUSTER: unknown cluster 'slurn'; did you mean 'slurm'"):
        read_cluster("slurn", PROFILES, [])
    with pytest.raises(ParameterError, match=f"{tmp_path} holds no config.yaml.*copy"):
        read_cluster(str(tmp_path), PROFILES, [])
    with pytest.raises(ParameterError, match="must name the executor, for example `executor: slurm`, got None"):
        cluster(tmp_path / "mine", config="jobs: 3")


def test_the_cluster_of_the_workbook_fits_its_notebooks():
    notebooks = read_notebooks(ROOT / "notebooks")
    there = read_cluster("slurm", PROFILES, notebooks)
    asked = {job.id: there.resources(job) for job in make_jobs(notebooks)}
    assert all(one["mem_mb"] and one["runtime"] for one in asked.values()) and not there.offline and there.executor == "slurm"
    assert asked["10_retrieval_train"]["gpu"] == 1 and asked["01_data"]["gpu"] == 0
    on_cpu = [there.resources(job) for job in make_jobs(notebooks, settings={"device": "cpu"})]
    assert not any(one["gpu"] for one in on_cpu)


@pytest.fixture
def slurm(tmp_path, write_notebook, monkeypatch):
    """A report of notebooks 10 -> 11 on a played Slurm whose nodes have no network; 10 waits for a file `go` beside the report."""
    write_notebook(tmp_path / "notebooks", "10_a", f"""
import json, os, time
from ipykernel.connect import get_connection_info
assert json.loads(get_connection_info())["transport"] == "ipc"           # not a TCP port that another kernel may choose, too
assert all(os.environ[name] == value for name, value in {OFFLINE!r}.items()) and os.environ["CUDA_VISIBLE_DEVICES"] == ""
with open({str(tmp_path / 'times')!r}, "a") as file:
    file.write("a")
while not os.path.exists({str(tmp_path / 'go')!r}):
    time.sleep(0.05)""", parameters='device = "auto"  # where', family="a", threads=2, result=False)
    path = tmp_path / "notebooks" / "10_a.ipynb"
    document = json.loads(path.read_text())
    document["cells"].append(document["cells"][-1] | {"id": "last", "source": "results.write('10_a', [])"})
    path.write_text(json.dumps(document))
    write_notebook(tmp_path / "notebooks", "11_b", family="a", after=["10_a"])
    cluster(tmp_path / "mine", "offline: true\nall: {partition: batch, memory: 1G, time: 10min, gpus: 0}\n11_b: {memory: 2G}")
    for name in ("reports", "notebooks"):
        monkeypatch.setenv(f"WORKBOOK_{name.upper()}", str(tmp_path / name))
    notes = fake_slurm.install(tmp_path / "slurm", monkeypatch)

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "lib.workbook.report", f"--cluster={tmp_path / 'mine'}", "--run=test"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return tmp_path, notes, start


def test_each_notebook_is_a_slurm_job_that_asks_for_what_its_section_says(slurm):
    root, notes, start = slurm
    (root / "go").touch()
    said = (process := start()).communicate(timeout=300)[0]
    assert process.returncode == 0, said + (root / "reports/test/logs/snakemake.log").read_text()
    jobs = [read_json(path) for path in sorted(notes.glob("*.json"))]
    assert len(jobs) == 2 and (root / "times").read_text() == "a"
    for one, memory, threads in zip(jobs, (1024, 2048), (2, 1)):
        assert f"--mem {memory} " in one["arguments"] and "-p batch" in one["arguments"] and "-t 10 " in one["arguments"]
        assert f"--cpus-per-task={threads} " in one["arguments"] and "--requeue" in one["arguments"] and "--open-mode=append" in one["arguments"]
        assert "--gpus" not in one["arguments"] and "--gres" not in one["arguments"]
    assert re.search(r"10_a +started on \S+ as Slurm job 1\n", said) and re.search(r"11_b +done in ", said) and "2 of 2 jobs up to date" in said
    assert sorted(p.name for p in (root / "reports" / "test").glob("*.html")) == ["10_a.html", "11_b.html", "index.html"]
    assert "10_a" in "".join(p.read_text() for p in (root / "reports/test/logs/slurm").rglob("*.log"))


def wait_for(what, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("finishes", [False, True])
def test_jobs_that_outlive_a_killed_report_are_not_run_beside_their_copies(slurm, finishes):
    root, notes, start = slurm
    process = start()
    wait_for((root / "times").is_file)
    process.kill()
    process.communicate()
    status = root / "reports" / "test" / "status" / "10_a.json"
    if finishes:        # what the job finishes by itself is accepted
        (root / "go").touch()
        wait_for(lambda: read_json(status)["state"] == "ok")
    second = start()
    if not finishes:
        wait_for(lambda: read_json(notes / "1.json")["state"] == "CANCELLED")
        wait_for(lambda: (root / "times").read_text() == "aa")
        (root / "go").touch()
    said = second.communicate(timeout=300)[0]
    assert second.returncode == 0, said
    assert "an earlier run of this report was killed" in said and (finishes or "cancelled 1 Slurm job(s)" in said)
    assert (root / "times").read_text() == ("a" if finishes else "aa") and ("10_a  " in said) != finishes


@pytest.mark.slow
def test_ctrl_c_cancels_the_slurm_jobs(slurm):
    root, notes, start = slurm
    process = start()
    wait_for((root / "times").is_file)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and read_json(notes / "1.json")["state"] == "CANCELLED", said
    assert (root / "reports" / "test" / ".lock").read_text() == "" and "10_a: it was interrupted" in said


def test_a_job_that_was_done_when_slurm_queued_it_again_is_not_run_twice(tmp_path, write_notebook, monkeypatch):
    path, report_folder = write_notebook(tmp_path, "10_a"), tmp_path / "report"
    marker = report_folder / "results" / "10_a.json"
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def execution() -> str:
        """Which execution the result is of, after `lib.workbook.run` found it removed, as Snakemake does before it runs a job."""
        marker.unlink(missing_ok=True)
        command = [sys.executable, "-m", "lib.workbook.run", f"--notebook={path}", f"--report={report_folder}", "--key=k"]
        assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 0
        return read_json(marker)["provenance"]["execution"]

    first = execution()
    assert execution() == first, "the same Slurm job"
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert execution() != first


def test_only_the_jobs_of_the_session_are_cancelled(tmp_path, monkeypatch):
    notes = fake_slurm.install(tmp_path, monkeypatch, wait=0)
    mark, other = new_mark(), new_mark()
    for one in (mark, other):
        subprocess.run(["sbatch", "--job-name", f"{slurm_name(one)}_x", "--output", "/dev/null", "-D", "/", "--wrap=sleep 60"], check=True)
    wait_for(lambda: len(list(notes.glob("*.json"))) == 2)
    assert cancel_marked(mark) == 1 and cancel_marked(mark) == 0 and cancel_marked(other) == 1
    with pytest.raises(Busy, match="Slurm jobs of this report may still run, and `squeue` does not work here"):
        monkeypatch.setenv("PATH", str(tmp_path))
        cancel_marked(mark)


def test_a_report_that_was_killed_on_another_machine_is_not_begun_beside_what_it_may_have_left(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "login7", "started": 0, "mark": new_mark(), "slurm": True}))
    with pytest.raises(Busy, match="killed on login7.*start this one there, or delete .*lock"):
        with hold(tmp_path, new_mark()):
            pass


def test_without_slurm_here_nothing_is_begun(slurm, capsys, monkeypatch):
    root, _, _ = slurm
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert report.main([f"--cluster={root / 'mine'}", "--run=test"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err and not (root / "reports").exists()
