"""Feeds wandb or SwanLab from a process of its own: `python log_process.py wandb`, started by lib.training.logs.

Standard input brings JSON lines: the run ({"folder", "id", "name", "config", "pid", "seconds", "offline"}), then its rows, each
with a "step", and at last {"success": bool}; an input that ends without that is a run that was killed. Nothing of lib is
imported: starting takes a second, not ten. Exit code 0: all is written; otherwise the last line said is the reason.
"""
import json
import os
import sys
import threading
import time
from pathlib import Path


def wandb(run):
    """Start a run of wandb; returns what adds a row and what finishes."""
    import wandb as library

    settings = library.Settings(console="off", x_stats_pid=run["pid"])
    session = library.init(project=os.environ.get("WANDB_PROJECT", "audio-workbook"), id=run["id"], name=run["name"],
                           dir=str(Path(run["folder"]).parent), config=run["config"], resume="allow", settings=settings)
    first = session.step       # online, a resumed run has the steps before this one, with the same numbers; none may go back

    def add(row):
        if row["step"] >= first:
            session.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])
    return add, lambda success: session.finish(exit_code=0 if success else 1)


def swanlab(run):
    """Start a run of SwanLab; returns what adds a row and what finishes."""
    import swanlab as library

    settings = library.Settings(interactive=False, terminal={"proxy_type": "none"})
    session = library.init(project=os.environ.get("SWANLAB_PROJECT", "audio-workbook"), id=run["id"], name=run["name"],
                           log_dir=run["folder"], config=run["config"], resume="allow", settings=settings)

    def add(row):              # online, SwanLab leaves out the steps that a metric has already
        session.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])
    return add, lambda success: session.finish() if success else session.finish("crashed", error="the training was stopped")


def prepare(kind, folder, offline):
    """Set the variables that the library reads, and put earlier sessions away."""
    os.environ.pop("WANDB_SERVICE", None)      # a wandb session that the user has in the training process is not ours to end
    for name in ("CACHE", "DATA", "ARTIFACT"):
        os.environ[f"WANDB_{name}_DIR"] = str(folder / "cache")             # not in the home folder
    mode = f"{kind.upper()}_MODE"
    if offline:
        os.environ[mode] = "disabled" if os.environ.get(mode) == "disabled" else "offline"
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        for name in [name for name in os.environ if "WEBHOOK" in name]:     # SwanLab calls them offline, too
            del os.environ[name]
    # The new session will hold all rows of those before; uploading them as well would give every step twice.
    for earlier in sorted(folder.glob({"wandb": "offline-run-*", "swanlab": "run-*"}[kind])):
        (folder / "superseded").mkdir(exist_ok=True)
        earlier.rename(folder / "superseded" / earlier.name)


def outlive(parent, seconds):
    """End this process `seconds` after the training, which may have been killed while the library hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(seconds)
    os._exit(1)


def main(kind):
    # A library that asks for an API key must find no terminal, and must not eat the rows.
    rows = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    run = json.loads(rows.readline())
    threading.Thread(target=outlive, args=(run["pid"], run["seconds"]), daemon=True).start()
    prepare(kind, Path(run["folder"]), run["offline"])
    add, finish = {"wandb": wandb, "swanlab": swanlab}[kind](run)
    success = False
    for line in rows:
        message = json.loads(line)
        if "success" in message:
            success = message["success"]
            break
        if message:
            add(message)
    finish(success)


if __name__ == "__main__":
    main(sys.argv[1])
