"""Run one notebook as one job: check, execute, render, judge.

    python -m lib.workbook.run --notebook notebooks/01_data.ipynb --job 01_data --report reports/quick --parameters values.yaml

The report folder receives <job>.ipynb, <job>.html, logs/<job>.log, status/<job>.json and, when the notebook got to its
last cell, results/<job>.json. The exit code is 0 only if papermill saw no error, no cell left the kernel, and the result
was written by this very execution: papermill alone calls a killed kernel and `sys.exit(0)` a success.
"""
from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from lib.glossary import ParameterError, check, unknown
from lib.settings import ROOT, data_dir, runs_dir
from lib.workbook import gpus, results
from lib.files import read_json, write_json, write_text
from lib.workbook.parameters import Notebook, load_yaml, read_notebook
from lib.workbook.processes import Busy, end_marked, new_mark

EXCERPT_LINES = 25
PROGRESS_SECONDS = 20.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class _Log:
    """Keeps all a kernel prints in a file and says the newest line on the terminal every PROGRESS_SECONDS."""

    def __init__(self, file, job: str):
        self.file, self.job, self.said = file, job, time.monotonic()

    def write(self, text: str) -> None:
        self.file.write(text)
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        if lines and time.monotonic() - self.said > PROGRESS_SECONDS:
            say(self.job, lines[-1][:150])
            self.said = time.monotonic()

    def flush(self) -> None:
        self.file.flush()


def say(job: str, text: str) -> None:
    """One line on the terminal, at once and in one piece: jobs that run side by side share it."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {job:<28} {text}\n")
    sys.stdout.flush()


def read_values(notebook: Notebook, path: Path | None) -> dict[str, object]:
    """Values of a YAML file for this notebook, checked by name, type and range; ParameterError naming parameter and fix."""
    if path is None:
        return {}
    if not path.is_file():
        raise ParameterError(f"there is no parameters file {path}")
    values = load_yaml(path.read_text(encoding="utf-8"), path.name) or {}
    if not isinstance(values, dict):
        raise ParameterError(f"{path.name}: must map parameters to values")
    for name in values:
        if name not in notebook.defaults:
            raise unknown(name, notebook.defaults, notebook.path.name)
    check(values, notebook.path.name)
    return values


def run(notebook: Notebook, job: str, report: Path, values: dict[str, object], threads: int | None = None, key: str = "",
        gpu: bool = True) -> str | None:
    """Execute and render one notebook. Returns None on success, otherwise what went wrong (with the end of the traceback).

    Args:
        values: parameters that differ from the notebook's own; already checked.
        threads: of the numerical libraries; default: the notebook's `threads` parameter or metadata.
        key: digest of all the result depends on, kept in the status so that the index can tell an outdated result.
        gpu: False hides the GPUs of the machine, which belong to others.
    """
    for folder in ("results", "status", "logs"):
        (report / folder).mkdir(parents=True, exist_ok=True)
    marker, status, output = report / "results" / f"{job}.json", report / "status" / f"{job}.json", report / f"{job}.ipynb"
    earlier = read_json(status) or {}
    if earlier.get("slurm") and earlier["slurm"] == os.environ.get("SLURM_JOB_ID") and restore(earlier, key, report):
        say(job, "is not repeated: it had come to its end when Slurm queued it again")
        return None
    _end_earlier(earlier)
    execution, began = new_mark(), time.time()
    state = {"job": job, "notebook": notebook.name, "key": key, "state": "running", "started": began, "pid": os.getpid(),
             "execution": execution, "host": platform.node(), "slurm": os.environ.get("SLURM_JOB_ID")}
    write_json(status, state)
    for stale in (marker, output, output.with_suffix(".html")):
        stale.unlink(missing_ok=True)
    say(job, "started")
    changed = {name: value for name, value in values.items() if notebook.defaults.get(name) != value}
    threads = threads or values.get("threads") or notebook.defaults.get("threads") or notebook.threads
    environment = {"WORKBOOK_REPORT": str(report), "WORKBOOK_JOB": job, "WORKBOOK_EXECUTION": execution, "PYTHONHASHSEED": "0",
                   "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
                   **{name: str(threads) for name in _THREAD_VARIABLES}, **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})}
    try:
        with gpus.take(notebook.defaults | values if gpu else {}, say=lambda text: say(job, text)) as taken:
            if taken:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
                say(job, f"on GPU {', '.join(taken)}")
            try:
                failure = _execute(notebook, job, report, output, changed, environment)
                failure = failure or _judge(output, marker, execution)
            finally:
                end_marked("WORKBOOK_EXECUTION", execution)
    except KeyboardInterrupt as error:
        failure = str(error) or "interrupted"
    except (Busy, ParameterError) as error:
        failure = str(error)
    try:
        _render(notebook, output, failure)
    except Exception as error:  # whatever a page fails on, the job has to be reported as failed
        failure = failure or f"the page could not be rendered: {type(error).__name__}: {error}"
    if failure:
        marker.unlink(missing_ok=True)
    elif state["slurm"]:
        write_text(kept(report, job), marker.read_text(encoding="utf-8"))
    seconds = round(time.time() - began, 1)
    write_json(status, state | {"state": "failed" if failure else "ok", "finished": time.time(), "seconds": seconds,
                                "failure": failure, "artifacts": [] if failure else made(results.read(marker), report)})
    done = "skipped: nothing to do with these data" if not failure and marker_says_skipped(marker) else f"done in {seconds:.0f} s"
    say(job, done if not failure else f"FAILED after {seconds:.0f} s: {failure.strip().splitlines()[-1][:200]}")
    return failure


def marker_says_skipped(marker: Path) -> bool:
    """Whether a result tells that its notebook had nothing to do (`results.skip`)."""
    return "skipped" in (read_json(marker) or {}).get("protocol", {})


def made(document: dict, report: Path) -> list[str]:
    """Which texts of a result's `artifacts` name a file or a folder that is there (checkpoints, sounds): all have to stay."""
    texts, waiting = [], list(document["artifacts"].values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, (dict, list)):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and is_there(value, report):
            texts.append(value)
    return sorted(set(texts))


def is_there(artifact: str, report: Path) -> bool:
    """Whether an artifact (absolute, or relative to the runs, data or report folder) is a file or a folder that is not empty."""
    paths = [os.path.join(folder, artifact) for folder in (runs_dir(), data_dir(), report)] if artifact else []
    return any(os.path.isfile(path) or os.path.isdir(path) and any(os.scandir(path)) for path in paths)


def kept(report: Path, job: str) -> Path:
    """A second copy of the result of a Slurm job, which Snakemake does not know: it removes those of jobs that were cut off after their end."""
    return report / "status" / f".{job}.result"


def restore(status: dict, key: str, report: Path) -> bool:
    """Put the result of a job back whose `status` says that it is done and fits `key`; False where there is no copy, or not all it names."""
    if (status.get("state"), status.get("key")) != ("ok", key) or not status.get("slurm") or not kept(report, status["job"]).is_file():
        return False
    if not all(is_there(name, report) for name in status["artifacts"]):
        return False
    write_text(report / "results" / f"{status['job']}.json", kept(report, status["job"]).read_text(encoding="utf-8"))
    return True


def _end_earlier(status: dict) -> None:
    """End and clear away what an execution of this job has left whose runner was killed: a kernel may outlive it for a while."""
    if status.get("state") == "running" and "execution" in status:
        end_marked("WORKBOOK_EXECUTION", status["execution"])
        shutil.rmtree(_scratch(status["execution"]), ignore_errors=True)


def _scratch(execution: str) -> Path:
    return Path(tempfile.gettempdir(), f"workbook-{execution}")


def _execute(notebook: Notebook, job: str, report: Path, output: Path, changed: dict, environment: dict) -> str | None:
    """Run papermill; what it says went wrong, or None."""
    import lib.schemas  # noqa: F401  before papermill, which imports jsonschema: see there
    import papermill
    from traitlets.config import Config

    temporary = _scratch(environment["WORKBOOK_EXECUTION"])
    temporary.mkdir(mode=0o700)
    with open(report / "logs" / f"{job}.log", "w", encoding="utf-8") as file:
        # A kernel of our own: one installed for this user under the same name may start another Python, and the user's
        # IPython profile may run code at start-up or share a history database with jobs that run in parallel.
        kernel = temporary / "kernels" / "python3" / "kernel.json"
        launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        write_json(kernel, {"argv": launch, "display_name": "Python 3", "language": "python"})
        os.environ.update(environment, JUPYTER_PATH=str(temporary), JUPYTER_RUNTIME_DIR=str(temporary / "runtime"),
                          IPYTHONDIR=str(temporary / "ipython"))
        # Sockets in our own folder: kernels that start at the same moment now and then choose the same TCP port, and one of them dies.
        # A socket's path has about 100 characters at most, whatever the folder of temporary files is called.
        sockets = {"transport": "ipc", "ip": str(temporary / "socket")} if len(str(temporary)) < 80 else {}
        log = _Log(file, job)
        try:
            papermill.execute_notebook(notebook.path, output, parameters=changed, kernel_name="python3", language="python",
                                       progress_bar=False, cwd=notebook.path.parent, stdout_file=log, stderr_file=log,
                                       start_timeout=180, config=Config(KernelManager=sockets))
        except papermill.exceptions.PapermillExecutionError as error:
            from lib.workbook.render import plain

            if error.ename == "Skipped" and marker_says_skipped(report / "results" / f"{job}.json"):
                return None
            lines = plain("\n".join(error.traceback)).splitlines()
            return f"cell {error.cell_index + 1} of {notebook.name} failed:\n" + "\n".join(lines[-EXCERPT_LINES:])
        except Exception as error:  # a dead kernel, one that does not start, a full disk: all end as a failed job
            return f"{_where(output)}{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return None


def _judge(output: Path, marker: Path, execution: str) -> str | None:
    """What papermill does not see: a cell that left the kernel, or a result that is missing or not of this execution."""
    for index, cell in enumerate(read_json(output)["cells"]):
        if any(out.get("ename") == "SystemExit" for out in cell.get("outputs", [])):
            return f"cell {index + 1} left the notebook with sys.exit: {_first_line(cell)}"
    if not marker.is_file():
        return (f"{_where(output)}results/{marker.name} was not written: the notebook ended before its last cell, "
                "or that cell does not call results.write")
    try:
        document = results.read(marker)
    except ValueError as error:
        return str(error)
    if document["provenance"].get("execution") != execution:
        return f"results/{marker.name} was not written by this execution"
    return None


def _where(output: Path) -> str:
    """The last cell that was started, from the notebook that papermill saved while it ran."""
    document = read_json(output)
    begun = [(i, c) for i, c in enumerate(document["cells"]) if c.get("metadata", {}).get("papermill", {}).get("start_time")] if document else []
    code = [(i, c) for i, c in begun if c["cell_type"] == "code"]
    return f"the kernel ended in cell {code[-1][0] + 1} ({_first_line(code[-1][1])}). Killed for memory? " if code else ""


def _first_line(cell: dict) -> str:
    return ("".join(cell["source"]).strip().splitlines() or [""])[0][:100]


def _render(notebook: Notebook, output: Path, failure: str | None) -> None:
    from lib.workbook.render import render

    render(output if output.is_file() else notebook.path, output.with_suffix(".html"), source_folder=notebook.path.parent, failure=failure)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0: done, 1: the notebook failed, 2: it was not started (bad parameters)."""
    parser = argparse.ArgumentParser(prog="python -m lib.workbook.run", description="Run one notebook as one job of a report.")
    parser.add_argument("--notebook", type=Path, required=True, help="the .ipynb file")
    parser.add_argument("--job", help="name of the job (default: the notebook's name)")
    parser.add_argument("--report", type=Path, required=True, help="folder that receives page and result")
    parser.add_argument("--parameters", type=Path, help="YAML file of name: value")
    parser.add_argument("--threads", type=int, help="threads of the numerical libraries")
    parser.add_argument("--key", default="", help="digest of what the result depends on")
    parser.add_argument("--no-gpu", dest="gpu", action="store_false", help="stay on the CPU, whatever the machine has")
    args = parser.parse_args(arguments)
    if os.environ.get("SLURM_JOB_ID"):  # half a minute before it kills a job, Slurm says so: time for the page
        signal.signal(signal.SIGTERM, _ended_by_slurm)
    try:
        notebook = read_notebook(args.notebook.absolute())
        values = read_values(notebook, args.parameters)
    except ParameterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if run(notebook, args.job or notebook.name, args.report.absolute(), values, args.threads, args.key, args.gpu) else 0


def _ended_by_slurm(*_) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt(f"Slurm ended job {os.environ['SLURM_JOB_ID']}: it was cancelled or pre-empted, or its time was up")


if __name__ == "__main__":
    sys.exit(main())
