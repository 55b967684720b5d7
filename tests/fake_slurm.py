"""What `make report` asks of Slurm, in one small program: jobs are processes, noted in the folder $FAKE_SLURM. `install` puts it on PATH.

A job runs without the session's mark in its environment, as one on another machine would. `sbatch` waits $FAKE_SLURM_WAIT seconds for
the job's end before it returns, so that the first look at the queue finds it finished.
"""
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("sbatch", "squeue", "scancel", "srun", "scontrol", "sinfo", "sacct")


def install(folder: Path, monkeypatch, wait: float = 60) -> Path:
    """Put the programs on PATH; returns the folder of the jobs' notes (<id>.json: name, arguments, pid, state)."""
    (folder / "bin").mkdir(parents=True)
    (folder / "notes").mkdir()
    for name in NAMES:
        program = folder / "bin" / name
        program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -S '{__file__}' {name} \"$@\"\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder / "notes"))
    monkeypatch.setenv("FAKE_SLURM_WAIT", str(wait))
    return folder / "notes"


def _note(number: str, **changes) -> dict:
    path = Path(os.environ["FAKE_SLURM"], f"{number}.json")
    note = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    if changes:
        path.with_suffix(f".{os.getpid()}").write_text(json.dumps(note))
        os.replace(path.with_suffix(f".{os.getpid()}"), path)
    return note


def _submit(arguments: list[str]) -> None:
    folder, said = Path(os.environ["FAKE_SLURM"]), " ".join(arguments)
    for number in range(1, 1000):
        try:
            (folder / f"{number}.taken").touch(exist_ok=False)
            break
        except FileExistsError:
            continue
    value = {name: after for name, after in zip(arguments, arguments[1:])}
    wrapped = next(word.partition("=")[2] for word in arguments if word.startswith("--wrap="))
    environment = {name: text for name, text in os.environ.items() if name != "WORKBOOK_SESSION"} | {"SLURM_JOB_ID": str(number)}
    supervisor = os.fork()
    if supervisor == 0:
        os.setsid()
        with open(value["--output"].replace("%j", str(number)), "ab") as log:
            job = subprocess.Popen(["bash", "-c", wrapped], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=value["-D"],
                                   start_new_session=True)
            for descriptor in (0, 1, 2):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            _note(str(number), name=value["--job-name"], arguments=said, pid=job.pid, state="RUNNING")
            code = job.wait()
        if _note(str(number))["state"] == "RUNNING":
            _note(str(number), state="FAILED" if code else "COMPLETED")
        os._exit(0)
    deadline = time.monotonic() + float(os.environ["FAKE_SLURM_WAIT"])
    while time.monotonic() < deadline and _note(str(number)).get("state", "RUNNING") == "RUNNING":
        time.sleep(0.05)
    print(number)


def _main(name: str, arguments: list[str]) -> None:
    numbers = sorted(path.stem for path in Path(os.environ["FAKE_SLURM"]).glob("*.json"))
    if name == "sbatch":
        _submit(arguments)
    elif name == "srun":
        command = next(i for i, word in enumerate(arguments) if not word.startswith("-"))
        os.execvp(arguments[command], arguments[command:])
    elif name == "squeue":
        for number in numbers:
            note = _note(number)
            if "--states=all" in arguments or note["state"] == "RUNNING":
                print(f"{number}|{note['name'] if '--me' in arguments else note['state']}")
    elif name == "scancel":
        for number in arguments:
            os.killpg(_note(number, state="CANCELLED")["pid"], signal.SIGKILL)
    elif name == "scontrol":
        print("MinJobAge = 300 sec")
    elif name == "sinfo":
        print("batch*")
    else:
        sys.exit(f"{name}: no accounts are kept")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
