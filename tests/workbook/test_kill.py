"""kill -9 at any moment of `make report`: the next one ends what is left and its results are those of a run nobody touched."""
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lib.files import read_json
from lib.settings import ROOT
from lib.workbook import results

VICTIMS = ("report", "everything", "snakemake", "kernel", "runner")
COMMANDS = {"snakemake": "snakemake", "kernel": "ipykernel_launcher", "runner": "lib.workbook.run"}


class Report:
    """`make report` on folders below `root`, as a process that can be killed.

    Args:
        root: receives data, runs and reports.  notebooks: their folder; None: the workbook's own.
        arguments: of `python -m lib.workbook.report`.
    """

    def __init__(self, root: Path, *arguments: str, notebooks: Path | None = None):
        self.root, self.folder, self.arguments = root, root / "reports" / "test", arguments
        self.log, self.marks = root / "log.txt", set()
        self.environment = os.environ | {f"WORKBOOK_{name.upper()}": str(root / name) for name in ("data", "runs", "reports")}
        self.environment |= {"WORKBOOK_NOTEBOOKS": str(notebooks)} if notebooks else {}
        root.mkdir(parents=True, exist_ok=True)

    def start(self) -> subprocess.Popen:
        with open(self.log, "a", encoding="utf-8") as log:
            return subprocess.Popen([sys.executable, "-m", "lib.workbook.report", "--run=test", *self.arguments], stdout=log,
                                    stderr=log, cwd=ROOT, env=self.environment, start_new_session=True)

    def finish(self) -> dict[str, dict]:
        """Run to the end; the results without what differs from run to run. Nothing may be left behind."""
        assert self.start().wait(600) == 0, self.log.read_text()[-4000:]
        assert self.left() == [] and (self.folder / ".lock").read_text() == ""
        assert [p for p in self.folder.rglob(".*.tmp") if ".snakemake" not in p.parts] == []
        documents = {p.stem: results.stable(results.read(p)) for p in sorted((self.folder / "results").glob("*.json"))}
        jobs = [job["id"] for job in read_json(self.folder / "plan.json")["jobs"]]
        assert sorted(documents) == sorted(jobs)
        assert f"{len(jobs)} of {len(jobs)} jobs succeeded" in (self.folder / "index.html").read_text()
        return documents

    def status(self, job: str) -> dict:
        return read_json(self.folder / "status" / f"{job}.json") or {}

    def seconds(self) -> dict[str, float]:
        """Job -> how long it took, in the order in which they were started."""
        states = [read_json(p) for p in (self.folder / "status").glob("*.json")]
        return {state["job"]: state["seconds"] for state in sorted(states, key=lambda s: s["started"])}

    def processes(self) -> list[psutil.Process]:
        """What has been started by the session that holds the lock, or held it when it was killed."""
        content = (self.folder / ".lock").read_text() if (self.folder / ".lock").is_file() else ""
        self.marks |= {json.loads(content)["mark"]} if content else set()
        return [p for p in psutil.process_iter() if _variable(p, "WORKBOOK_SESSION") in self.marks]

    def left(self) -> list[int]:
        return [p.pid for p in self.processes()]

    def victim(self, kind: str, job: str) -> psutil.Process | None:
        for process in self.processes():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            named = ("--job", job) in zip(words, words[1:]) or _variable(process, "WORKBOOK_JOB") == job
            if (named or kind == "snakemake") and words[1:3] == ["-m", COMMANDS[kind]]:
                return process
        return None


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except (psutil.Error, OSError):
        return None


def kill_report(report: Report, seconds: dict[str, float], kills: int, seed: int, victims=VICTIMS) -> list[str]:
    """Start a report and kill it, `kills` times; returns what each kill met, for example "kernel of 10_train after 3.1 of 9.0 s".

    Args:
        seconds: job -> how long it takes, in order, as `Report.seconds` of a run that nobody touched: the kills are spread over
            what is left of that, and each waits until its job has been started, however slow the machine is.
        victims: which processes are killed, each as often as the others, in an order of the seed.
    """
    rng, met = random.Random(seed), []
    kinds = list(itertools.islice(itertools.cycle(rng.sample(victims, len(victims))), kills))
    for number, kind in enumerate(kinds):
        open_jobs = {job: spent for job, spent in seconds.items() if report.status(job).get("state") != "ok"}
        if not open_jobs:                       # a victim had done everything when it was killed: the last job again
            open_jobs = dict(list(seconds.items())[-1:])
            (report.folder / "results" / f"{next(iter(open_jobs))}.json").unlink()
        moment = sum(open_jobs.values()) * min(0.95, rng.uniform(0.2, 1.8) / (kills - number + 1))
        for job, spent in open_jobs.items():
            if moment < spent:
                break
            moment -= spent
        moment *= 0.75                                          # what is resumed takes less time than it took at first
        known, process = report.status(job).get("execution"), report.start()
        while process.poll() is None and report.status(job).get("execution") in (None, known):
            time.sleep(0.005)
        deadline = time.monotonic() + moment
        while process.poll() is None and time.monotonic() < deadline and report.status(job).get("state") == "running":
            time.sleep(0.005)
        if kind in COMMANDS:
            victim = report.victim(kind, job)
            while victim is None and report.status(job).get("state") == "running" and process.poll() is None:
                victim = report.victim(kind, job)                   # there may be no kernel yet
            kind = kind if victim else "report"                     # the job has just ended
        what = f"{kind} of {job} in state {report.status(job).get('state')} after {moment:.1f} of {spent:.1f} s"
        assert process.poll() is None, f"it ended before it could be killed ({what}):\n" + report.log.read_text()[-4000:]
        if kind == "everything":
            for one in (psutil.Process(process.pid), *report.processes()):
                _quietly(one.kill)
        else:
            report.left()                                           # remembers whose processes have to be gone in the end
            _quietly(victim.kill if kind in COMMANDS else process.kill)
        met.append(what)
        codes = {"report": (-9,), "everything": (-9,), "kernel": (0, 1)}.get(kind, (1,))    # 0: all cells were done
        assert process.wait(600) in codes, f"{what}\n" + report.log.read_text()[-4000:]
        time.sleep(rng.choice((0.0, rng.uniform(0.0, 2.0))))       # at once, or when orphans have gone on for a while
    return met


def _quietly(kill) -> None:
    try:
        kill()
    except psutil.NoSuchProcess:
        return  # the processes of a session end each other


STEPPER = """
import hashlib, signal, time
from lib.files import read_json, write_json
from lib.settings import runs_dir
{stubborn}
file, before = runs_dir() / "{name}.json", [results.upstream(n)['metrics'][0]['value'] for n in {after}]
state = read_json(file) or {{"step": 0, "digest": str(before)}}
while state["step"] < {steps}:
    time.sleep(0.1)
    assert read_json(file) in (None, state), "another process writes the same file"
    state = {{"step": state["step"] + 1, "digest": hashlib.sha256(f"{{state}}".encode()).hexdigest()}}
    write_json(file, state)
metric = results.metric("digest", int(state["digest"][:12], 16), n=1, split="test")
results.write("{name}", [metric], artifacts={{"state": "{name}.json"}})
"""


def stepper(write_notebook, folder, name, steps, after=(), stubborn=False):
    """A notebook that writes its result step by step and goes on where it was; it notices a second one at work."""
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else ""
    body = STEPPER.format(name=name, steps=steps, after=list(after), stubborn=ignore)
    write_notebook(folder, name, body, result=False, after=list(after), family=name.split("_")[1])


def digest(steps: int, before: list[float]) -> float:
    state = {"step": 0, "digest": str(before)}
    for _ in range(steps):
        state = {"step": state["step"] + 1, "digest": hashlib.sha256(f"{state}".encode()).hexdigest()}
    return float(int(state["digest"][:12], 16))


def values(documents):
    return {name: document["metrics"][0]["value"] for name, document in documents.items()}


def test_orphans_are_ended_before_anything_is_repeated(tmp_path, write_notebook):
    """The report is killed, its jobs go on and do not want to end; a second report meanwhile is refused; then it is run again."""
    stepper(write_notebook, tmp_path / "notebooks", "10_a", 40, stubborn=True)
    report = Report(tmp_path, notebooks=tmp_path / "notebooks")
    first = report.start()
    file = tmp_path / "runs" / "10_a.json"
    while first.poll() is None and (read_json(file) or {"step": 0})["step"] < 3:
        time.sleep(0.01)
    second = subprocess.run([sys.executable, "-m", "lib.workbook.report", "--run=test"], env=report.environment, cwd=ROOT,
                            capture_output=True, text=True)
    assert second.returncode == 2 and "another `make report` is at work" in second.stderr and str(first.pid) in second.stderr
    assert len(report.left()) >= 3                             # Snakemake, runner, kernel
    first.kill()
    first.wait()
    step = read_json(file)["step"]
    while read_json(file)["step"] < step + 3:                  # nobody has told them
        time.sleep(0.01)
    assert values(report.finish()) == {"10_a": digest(40, [])}
    told = report.log.read_text()
    assert re.search(r"ended [3-9] process", told) and told.index("ended ") < told.rindex("10_a ")
    assert "another process writes" not in told


@pytest.mark.slow
def test_killed_ten_times(tmp_path, write_notebook):
    """Each of report, everything, Snakemake, kernel and runner twice, at random moments."""
    notebooks = tmp_path / "notebooks"
    stepper(write_notebook, notebooks, "10_a", 30)
    stepper(write_notebook, notebooks, "11_a", 30, after=["10_a"])
    stepper(write_notebook, notebooks, "20_b", 40, stubborn=True)
    stepper(write_notebook, notebooks, "30_c", 30, after=["11_a", "20_b"])
    whole, killed = (Report(tmp_path / name, notebooks=notebooks) for name in ("whole", "killed"))
    expected = whole.finish()
    met = kill_report(killed, whole.seconds(), kills=10, seed=3)
    print("\nkilled:", *met, sep="\n  ")
    assert killed.finish() == expected
    a, c = digest(30, []), digest(40, [])
    b = digest(30, [a])
    assert values(expected) == {"10_a": a, "11_a": b, "20_b": c, "30_c": digest(30, [b, c])}
    kinds, jobs = ({line.split(" of ")[k].split()[0] for line in met} for k in (0, 1))
    assert len(kinds) >= 4 and len(jobs) >= 2 and "another process writes" not in killed.log.read_text()


KILLS_ITSELF = """
import os, signal, sys
import lib.files
replace = os.replace
def fatal(source, target):
    if str(target).endswith({target!r}):
        {act}
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
lib.files.os.replace = fatal
from lib.workbook import report
sys.exit(report.main(["--run=test"]))
"""


def test_killed_while_it_writes_its_own_files(tmp_path, write_notebook):
    """Before and after the plan, the parameters and the index are put in place."""
    stepper(write_notebook, tmp_path / "notebooks", "10_a", 1)
    report = Report(tmp_path, notebooks=tmp_path / "notebooks")
    kills = (("10_a.yaml", "pass"), ("plan.json", "pass"), ("plan.json", "replace(source, target)"), ("index.html", "pass"))
    for target, act in kills:
        program = KILLS_ITSELF.format(target=target, act=act)
        run = subprocess.run([sys.executable, "-c", program], env=report.environment, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == -9, run.stdout + run.stderr
    assert list(report.folder.glob(".index.html.*.tmp"))
    (report.folder / ".lock").write_text('{"pid": 1, "mar')                          # cut off by a full disk
    before = report.status("10_a")
    assert values(report.finish()) == {"10_a": digest(1, [])} and report.status("10_a") == before and before["state"] == "ok"
