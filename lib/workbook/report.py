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
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from lib.glossary import ParameterError
from lib.settings import ROOT, reports_dir
from lib.files import read_json, write_json, write_text
from lib.workbook import gpus
from lib.workbook.parameters import notebooks_dir, parse_settings, read_notebooks
from lib.workbook.plan import Job, make_jobs
from lib.workbook.processes import Busy, end_marked, hold, new_mark
from lib.workbook.run import is_there


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
        limit = 0 if {"--executor", "-e"} & set(extra) else len(gpus.visible())  # 0: no GPUs, or a cluster that has its own
        for job in jobs:
            if limit and job.gpu > limit:
                raise ParameterError(f"{job.id}: devices={job.gpu}, and {limit} GPU(s) are visible; lower devices, or device=cpu")
    except (ParameterError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    plan = {"run": name, "family": args.family or None, "profile": args.profile or None, "dataset": args.dataset or None,
            "notebooks": str(notebooks_dir()), "jobs": [job.as_dict() for job in jobs]}
    mark = new_mark()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as on Ctrl-C, the jobs are ended and the index is built
        signal.signal(ending, signal.default_int_handler)
    try:
        with hold(report, mark):
            write_plan(report, plan, jobs)
            print(f"report {name}: {len(jobs)} job(s), {cores} core(s); those that are up to date are not repeated", flush=True)
            code = execute(report, cores, limit, mark, extra)
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


def write_plan(report: Path, plan: dict, jobs: list[Job]) -> None:
    """Write plan.json and one YAML file of parameters a job into the report folder, and remove the markers that are not of this plan.

    Snakemake would repeat those jobs as well (their `key` changed), unless its own notes were lost or the runner was killed
    between writing a result and judging it. It does not know of the files that a result names and that somebody deleted since.
    """
    for folder in (report, *(report / name for name in ("parameters", "status", "results"))):
        for half_written in folder.glob(".*.tmp"):
            half_written.unlink()
    for job in jobs:
        status, marker = read_json(report / "status" / f"{job.id}.json") or {}, report / "results" / f"{job.id}.json"
        gone = [name for name in status.get("artifacts", []) if not is_there(name, report)]
        if gone and marker.is_file():
            print(f"{job.id} is repeated: {gone[0]}, which it had made, is no longer there")
        if gone or (status.get("state"), status.get("key")) != ("ok", job.key):
            marker.unlink(missing_ok=True)
        write_text(report / "parameters" / f"{job.id}.yaml", yaml.safe_dump(job.parameters, sort_keys=False))
    write_json(report / "plan.json", plan)


def execute(report: Path, cores: int, limit: int, mark: str, extra: list[str]) -> int:
    """Run Snakemake on the plan in `report`, on `cores` cores and `limit` GPUs (0: no limit).

    Returns its exit code; 130 when interrupted.
    What jobs say goes to the terminal, what Snakemake says to logs/snakemake.log (shown when no job explains a failure).
    """
    log = report / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # --nolock: our own lock is held, and Snakemake's would outlive a kill. greedy: no solver program is needed.
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(report), "--config", "plan=plan.json",
               "--cores", str(cores), "--keep-going", "--rerun-incomplete", "--rerun-triggers", "mtime", "params", "input", "--nolock",
               "--scheduler", "greedy", "--profile", "none", "--workflow-profile", "none",
               *(["--resources", f"gpu={limit}"] if limit else []), *extra]
    environment = os.environ | {"WORKBOOK_SESSION": mark, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    began = time.time()
    with open(log, "w", encoding="utf-8") as file:
        # A session of its own: Ctrl-C reaches only this process, which then ends everything in order.
        try:
            snakemake = subprocess.Popen(command, stderr=file, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
            code = snakemake.wait()
        except KeyboardInterrupt:
            print("interrupted: ending the jobs; the next run continues from here", flush=True)
            return 130
        finally:
            end_marked("WORKBOOK_SESSION", mark)
    if code and not any(p.stat().st_mtime >= began for p in (report / "status").glob("*.json")):
        print("Snakemake failed before any job was started:\n" + "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.workbook.report", description="Run the notebooks and build the report.")
    parser.add_argument("--family", default="", help="only this family, what it needs and the notebooks of no family")
    parser.add_argument("--profile", default="", help="a file of notebooks/profiles (default: the notebooks' own quick settings)")
    parser.add_argument("--dataset", default="", help="for every notebook with a `dataset` parameter")
    parser.add_argument("--data-root", default="", help="folder of the data set")
    parser.add_argument("--set", default="", help="\"name=value other=value\" for every notebook that has the parameter")
    parser.add_argument("--run", default="", help="name of the report (default: from family, profile and data set)")
    parser.add_argument("--jobs", default="", help="CPU cores to use at most (default: all)")
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
