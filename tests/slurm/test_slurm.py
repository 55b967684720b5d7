"""All families through a real Slurm: a job is cancelled, a node is lost and comes back, and nothing is run twice."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from lib.families.retrieval import RetrievalConfig
from lib.files import read_json
from lib.settings import ROOT
from lib.workbook import results
from lib.workbook.parameters import read_notebooks, read_profile
from lib.workbook.processes import cancel_marked, new_mark, slurm_name
from tests.slurm.local_slurm import LocalSlurm, missing

CONFIG = """executor: slurm
jobs: 3
latency-wait: 20
slurm-requeue: true
slurm-init-seconds-before-status-checks: 2
slurm-status-command: squeue
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    assert not missing(), f"{', '.join(missing())}: not there; apt-get install slurm-wlm munge"
    cluster = LocalSlurm(cpus=3)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text(CONFIG)
    (tmp_path / "mine" / "resources.yaml").write_text("offline: true\nall: {partition: batch, time: 20min}\n")
    yield cluster
    cluster.stop()


@pytest.fixture
def report(tmp_path, slurm):
    there = Report(tmp_path, slurm)
    yield there
    for process in there.started:       # a test that failed leaves no report behind
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(120)


class Report:
    """`make report` of all families on profile tiny through the cluster in `root`/mine, with what it makes below `root`."""

    def __init__(self, root: Path, cluster: LocalSlurm):
        self.root, self.folder, self.said = root, root / "reports" / "test", root / "said.txt"
        self.started: list[subprocess.Popen] = []
        self.environment = cluster.environment | {f"WORKBOOK_{name.upper()}": str(root / name) for name in ("data", "runs", "reports")}

    def start(self) -> subprocess.Popen:
        command = ["make", "report", f"VENV={sys.prefix}", "PROFILE=tiny", "RUN=test", f"CLUSTER={self.root / 'mine'}", "SET=device=cpu"]
        with open(self.said, "w", encoding="utf-8") as file:
            self.started.append(subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=file, stderr=file, start_new_session=True))
        return self.started[-1]

    def wait_for(self, what, process: subprocess.Popen, seconds: float = 600):
        """The first true value of `what()`."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert process.poll() is None and time.monotonic() < deadline, self.account()
            time.sleep(0.1)
        return found

    def running(self, job: str) -> dict | None:
        status = read_json(self.folder / "status" / f"{job}.json") or {}
        return status if status.get("state") == "running" else None

    def words(self) -> tuple[Counter, Counter]:
        """How often each job was started and done, as the logs of its Slurm jobs tell."""
        text = "".join(p.read_text(errors="replace") for p in (self.folder / "logs" / "slurm").rglob("*.log"))
        return tuple(Counter(re.findall(rf"^\d\d:\d\d:\d\d  (\S+) +{word}\b", text, re.MULTILINE)) for word in ("started", "done"))

    def account(self) -> str:
        log = self.folder / "logs" / "snakemake.log"
        return self.said.read_text()[-3000:] + (log.read_text()[-3000:] if log.is_file() else "")


def test_all_families_with_a_job_cancelled_and_a_node_lost(slurm, report, tmp_path):
    process, cancelled, lost = report.start(), None, []
    deadline = time.monotonic() + 900
    while not (cancelled and lost):         # whichever comes first
        assert time.monotonic() < deadline, slurm.run("squeue") + report.account()
        if not cancelled and (status := report.running("31_spatial_train")):
            cancelled = status["slurm"]
            slurm.run("scancel", cancelled)
            report.wait_for(lambda: not report.running("31_spatial_train"), process)
        # the node is lost while a model is trained, one epoch of which has been saved
        if not lost and report.running("10_retrieval_train") and list((tmp_path / "runs").glob("retrieval-*/checkpoints/*/manifest.json")):
            lost = [path.stem for path in (report.folder / "status").glob("*.json") if report.running(path.stem)]
            slurm.crash_node()
            slurm.start_node()
        report.wait_for(lambda: True, process)
        time.sleep(0.1)
    assert process.wait(900) != 0
    said = report.said.read_text()
    assert re.search(rf"31_spatial_train: Slurm ended job {cancelled}: it was cancelled", said), report.account()
    assert "32_spatial_evaluate: not run: it needs 31_spatial_train" in said
    assert "Slurm ended job" in (report.folder / "31_spatial_train.html").read_text()
    jobs = {job["id"] for job in read_json(report.folder / "plan.json")["jobs"]}
    waiting = {"31_spatial_train", "32_spatial_evaluate", "90_scoreboard"}       # what was cancelled, and what comes after it
    assert {p.stem for p in (report.folder / "results").glob("*.json")} == jobs - waiting, report.account()
    assert "10_retrieval_train" in lost
    log = (report.folder / "logs" / "10_retrieval_train.log").read_text()
    assert log.count("epoch 1: train") == 1, "of the control; the model's own training went on from its checkpoint"

    process = report.start()                # the cancelled job and what needs it, nothing else
    assert process.wait(600) == 0, report.account()
    started, done = report.words()
    assert done == Counter(jobs), "each job has succeeded once"
    assert started == Counter(jobs) + Counter(lost) + Counter(["31_spatial_train"]), "only what was cut off was begun again"
    for job in jobs:
        assert (report.folder / f"{job}.html").is_file() and results.read(report.folder / "results" / f"{job}.json")["metrics"] is not None
    assert f"{len(jobs)} of {len(jobs)} jobs succeeded" in (report.folder / "index.html").read_text()


def test_jobs_of_a_session_are_cancelled_and_those_of_another_are_not(slurm, tmp_path):
    mark, other = new_mark(), new_mark()
    for one in (mark, mark, other, other):      # two run, the others wait
        slurm.run("sbatch", "--parsable", "-c2", "--output=/dev/null", f"--job-name={slurm_name(one)}_x", "--wrap=sleep 300")
    assert cancel_marked(mark) == 2
    left = slurm.run("squeue", "--noheader", "--format=%j")
    assert mark not in left and left.count(other) == 2 and cancel_marked(mark) == 0 and cancel_marked(other) == 2


def test_training_over_two_nodes(tmp_path, monkeypatch):
    """The batch script for several nodes: one run of two processes, which meet through Slurm."""
    slurm = LocalSlurm(nodes=2)
    try:
        for name in ("data", "runs"):
            monkeypatch.setitem(slurm.environment, f"WORKBOOK_{name.upper()}", str(tmp_path / name))
        values = read_profile("tiny", ROOT / "notebooks" / "profiles", read_notebooks(ROOT / "notebooks"))
        known = {field.name for field in fields(RetrievalConfig)}
        values = {name: value for name, value in (values["all"] | values["10_retrieval_train"] | {"device": "cpu"}).items() if name in known}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        slurm.environment["PYTHONPATH"] = str(ROOT)
        script = ROOT / "notebooks" / "profiles" / "slurm" / "several_nodes.sbatch"
        slurm.run("sbatch", "--wait", "--nodes=2", f"--output={tmp_path / 'said.txt'}", str(script), sys.executable, "retrieval",
                  f"--config={tmp_path / 'config.yaml'}", seconds=300)
    finally:
        slurm.stop()
    said = (tmp_path / "said.txt").read_text()
    (run,) = (tmp_path / "runs").glob("retrieval-*")
    assert said.count('{"checkpoint": ') == 2 and said.count("epoch 2:") == 1, said
    assert (run / "finished.json").is_file()
