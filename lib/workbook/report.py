"""`make report`: check everything, run the notebooks through Snakemake, build the index whatever happened.

    python -m lib.workbook.report --family retrieval --profile esc10 --data-root /data/esc10 --set "seed=1 epochs=5"

Exit codes: 0 all notebooks succeeded; 1 some failed (the index shows them); 2 refused before anything was started;
130 interrupted.
"""
from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import yaml

from lib.glossary import ParameterError
from lib.settings import ROOT, reports_dir
from lib.files import read_json, write_json, write_text
from lib.workbook import cluster, gpus
from lib.workbook.parameters import notebooks_dir, parse_settings, read_notebooks
from lib.workbook.plan import Job, make_jobs
from lib.workbook.processes import Busy, end_session, hold, new_mark, slurm_name
from lib.workbook.run import is_there, restore, say


def main(arguments: list[str] | None = None) -> int:
    """Command line of `make report`; see the module docstring for the exit codes."""
    began = time.monotonic()
    args = _parser().parse_args(arguments)
    try:
        notebooks = read_notebooks(notebooks_dir())
        jobs = make_jobs(notebooks, family=args.family or None, profile=args.profile or None, dataset=args.dataset or None,
                         data_root=args.data_root or None, settings=parse_settings(args.set))
        name = _report_name(args)
        cores = _cores(args.jobs)
        report = reports_dir() / name
        extra = shlex.split(args.snakemake)
        target = cluster.read_cluster(args.cluster, notebooks_dir() / "profiles", notebooks) if args.cluster else None
        executor = target.executor if target else _executor(extra)
        if executor == "slurm" and not shutil.which("sbatch"):
            raise ParameterError("there is no sbatch here: Slurm jobs can be handed in on a login node of the cluster only")
        limit = 0 if executor else len(gpus.visible())  # 0: no GPUs, or a cluster that has its own
        for job in jobs:
            if limit and job.gpu > limit:
                raise ParameterError(f"{job.id}: devices={job.gpu}, and {limit} GPU(s) are visible; lower devices, or device=cpu")
        demands = {job.id: {"resources": target.resources(job)} if target else {} for job in jobs}
    except (ParameterError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    plan = {"run": name, "family": args.family or None, "profile": args.profile or None, "dataset": args.dataset or None,
            "notebooks": str(notebooks_dir()), "jobs": [job.as_dict() | demands[job.id] for job in jobs]}
    mark, slurm = new_mark(), executor == "slurm"
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as on Ctrl-C, the jobs are ended and the index is built
        signal.signal(ending, signal.default_int_handler)
    try:
        with hold(report, mark, slurm) as killed:
            write_plan(report, plan, jobs, killed)
            where = f"through {target.folder.name}" if target else f"{cores} core(s)"
            print(f"report {name}: {len(jobs)} job(s), {where}; those that are up to date are not repeated", flush=True)
            options = _options(report, mark, executor, target, cores, args.jobs, limit)
            code = execute(report, mark, [*options, *extra], cluster.OFFLINE if target and target.offline else {}, executor)
            from lib.workbook.index import build

            page, unfinished = build(report, plan)
    except Busy as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while it was being prepared or the index was built
        print("interrupted; the next run continues from here")
        return 130
    shown = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
    print(f"{len(jobs) - len(unfinished)} of {len(jobs)} jobs up to date in {time.monotonic() - began:.0f} s; open {shown}")
    for job, why in unfinished.items():
        print(f"  {job}: {why}")
    return 130 if code == 130 else 1 if code or unfinished else 0


def write_plan(report: Path, plan: dict, jobs: list[Job], killed: bool = False) -> None:
    """Write plan.json and one YAML file of parameters a job into the report folder, and remove the markers that are not of this plan.

    What is left are results that were judged good with this very `key`, also by a job that went on when its `make report` was
    killed, and whose files are still there. Snakemake's own notes know less, and are not asked.

    Args:
        killed: the run before this one was killed, and its Snakemake may have removed results when its Slurm jobs were cancelled.
    """
    for folder in (report, *(report / name for name in ("parameters", "status", "results"))):
        for half_written in folder.glob(".*.tmp"):
            half_written.unlink()
    for job in jobs:
        status, marker = read_json(report / "status" / f"{job.id}.json") or {}, report / "results" / f"{job.id}.json"
        if killed and not marker.is_file():
            restore(status, job.key, report)
        gone = [name for name in status.get("artifacts", []) if not is_there(name, report)]
        if gone and marker.is_file():
            print(f"{job.id} is repeated: {gone[0]}, which it had made, is no longer there")
        if gone or (status.get("state"), status.get("key")) != ("ok", job.key):
            marker.unlink(missing_ok=True)
        write_text(report / "parameters" / f"{job.id}.yaml", yaml.safe_dump(job.parameters, sort_keys=False))
    write_json(report / "plan.json", plan)


def execute(report: Path, mark: str, options: list[str], variables: dict[str, str], executor: str | None) -> int:
    """Run Snakemake on the plan in `report`. Returns its exit code; 130 when interrupted.

    Args:
        mark: of the session.  options: where and how many at a time.  variables: environment of the jobs.
        executor: None: the jobs run here, and their words reach the terminal by themselves.

    What jobs say goes to the terminal, what Snakemake says to logs/snakemake.log (shown when no job explains a failure).
    """
    log = report / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # --nolock: our own lock is held, and Snakemake's would outlive a kill. greedy: no solver program is needed.
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(report), "--config", "plan=plan.json",
               "--keep-going", "--ignore-incomplete", "--rerun-triggers", "mtime", "--nolock", "--scheduler", "greedy",
               "--workflow-profile", "none", *options]
    environment = os.environ | variables | {"WORKBOOK_SESSION": mark, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    began = time.time()
    with open(log, "w", encoding="utf-8") as file:
        # A session of its own: Ctrl-C reaches only this process, which then ends everything in order.
        try:
            snakemake = subprocess.Popen(command, stdout=file if executor else None, stderr=file, stdin=subprocess.DEVNULL, env=environment,
                                         start_new_session=True)
            with _followed(report) if executor else nullcontext():
                code = snakemake.wait()
        except KeyboardInterrupt:
            print("interrupted: ending the jobs; the next run continues from here", flush=True)
            return 130
        finally:
            end_session(mark, executor == "slurm")
    if code and not any(p.stat().st_mtime >= began for p in (report / "status").glob("*.json")):
        print("Snakemake failed before any job was started:\n" + "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]))
    return code


@contextmanager
def _followed(report: Path, seconds: float = 2.0):
    """Say on the terminal which jobs begin and end on other machines, as their status files tell."""
    ended, folder = threading.Event(), report / "status"
    known = {path.stem: read_json(path) for path in folder.glob("*.json")}

    def follow() -> None:
        last = False
        while not last:
            last = ended.wait(seconds)
            for path in sorted(folder.glob("*.json")):
                before, now = known.get(path.stem) or {}, read_json(path) or {}
                if now.get("execution") != before.get("execution"):
                    say(path.stem, f"started on {now['host']}" + (f" as Slurm job {now['slurm']}" if now["slurm"] else ""))
                if now.get("state") != "running" and now != before:
                    say(path.stem, f"done in {now['seconds']:.0f} s" if now["state"] == "ok" else
                        f"FAILED after {now['seconds']:.0f} s: {now['failure'].strip().splitlines()[-1][:200]}")
                known[path.stem] = now

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _options(report: Path, mark: str, executor: str | None, target: cluster.Cluster | None, cores: int, jobs: str, limit: int) -> list[str]:
    """Snakemake's options that say where jobs run, and how many of them at a time."""
    options = ["--profile", str(target.folder) if target else "none"]
    options += (["--jobs", jobs] if jobs else []) if target else ["--cores", str(cores)]
    options += ["--resources", f"gpu={limit}"] if limit else []
    if executor == "slurm":
        options += ["--slurm-jobname-prefix", slurm_name(mark), "--slurm-logdir", str(report / "logs" / "slurm"), "--slurm-keep-successful-logs"]
    return options


def _executor(arguments: list[str]) -> str | None:
    """The executor that arguments for Snakemake name; None: it runs the jobs here."""
    for word, after in zip(arguments, [*arguments[1:], ""]):
        if word in ("--executor", "-e"):
            return after
        if word.startswith("--executor="):
            return word.partition("=")[2]
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.workbook.report", description="Run the notebooks and build the report.")
    parser.add_argument("--family", default="", help="only this family, what it needs and the notebooks of no family")
    parser.add_argument("--profile", default="", help="a file of notebooks/profiles (default: the notebooks' own quick settings)")
    parser.add_argument("--dataset", default="", help="for every notebook with a `dataset` parameter")
    parser.add_argument("--data-root", default="", help="folder of the data set")
    parser.add_argument("--set", default="", help="\"name=value other=value\" for every notebook that has the parameter")
    parser.add_argument("--run", default="", help="name of the report (default: from family, profile and data set)")
    parser.add_argument("--jobs", default="", help="CPU cores to use at most (default: all); on a cluster, jobs at a time")
    parser.add_argument("--cluster", default="", help="a folder of notebooks/profiles with config.yaml, such as slurm, or the path of your own")
    parser.add_argument("--snakemake", default="", help="further arguments for Snakemake, for example \"--executor slurm --jobs 8\"")
    return parser


def _report_name(args: argparse.Namespace) -> str:
    name = args.run or "-".join(filter(None, [args.family, args.profile, args.dataset])) or "quick"
    if name == "interactive":
        raise ParameterError("RUN: 'interactive' is where notebooks run by hand put their results; choose another name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ParameterError(f"RUN: {name!r} cannot name a folder; use letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return name


def _cores(text: str) -> int:
    if text and not (text.isdigit() and int(text) > 0):
        raise ParameterError(f"JOBS: must be a whole number from 1 (CPU cores to use at most), got {text!r}")
    return int(text) if text else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
