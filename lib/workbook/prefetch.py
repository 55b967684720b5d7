"""`make prefetch`: get the weights and the data sets that jobs need, where there is a network, for machines that have none.

    python -m lib.workbook.prefetch --family retrieval --profile full

What is there already is not fetched again. Exit codes: 0 all is there; 1 something could not be had (it is listed); 2 refused.
"""
from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

from lib import data
from lib.glossary import ParameterError
from lib.workbook.parameters import notebooks_dir, parse_settings, read_notebooks
from lib.workbook.plan import Job, make_jobs

WEIGHTS = ("audio_weights", "text_weights", "checkpoint", "vit_model_name")      # parameters that may name a model on a hub
MADE = ("soundscapes",)                                                          # data sets that every machine makes for itself


def main(arguments: list[str] | None = None) -> int:
    """Command line of `make prefetch`; see the module docstring for the exit codes."""
    parser = argparse.ArgumentParser(prog="python -m lib.workbook.prefetch", description="Get the weights and data sets that jobs need.")
    for name in ("family", "profile", "dataset", "data-root", "set"):
        parser.add_argument(f"--{name}", default="", help="as for `make report`")
    args = parser.parse_args(arguments)
    try:
        jobs = make_jobs(read_notebooks(notebooks_dir()), family=args.family or None, profile=args.profile or None, dataset=args.dataset or None,
                         data_root=args.data_root or None, settings=parse_settings(args.set))
    except (ParameterError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    items, failures = needed(jobs), {}
    print(f"{len(jobs)} job(s) need {len(items)} data set(s) and models from elsewhere")
    for (kind, name), users in items.items():
        began = time.time()
        try:
            folder = fetch_weights(name) if kind == "weights" else fetch_data(name)
        except Exception as error:  # every hub client and server has failures of its own; all are listed, none hides the others
            failures[kind, name] = f"{type(error).__name__}: {error}"
            print(f"  {kind} {name}: MISSING (for {', '.join(users)})", flush=True)
            continue
        print(f"  {kind} {name}: {'fetched to' if _changed(folder, began) else 'there already,'} {folder}", flush=True)
    for (kind, name), why in failures.items():
        print(f"could not get {kind} {name}: {why}", file=sys.stderr)
    return int(bool(failures))


def needed(jobs: list[Job]) -> dict[tuple[str, str], list[str]]:
    """("weights" | "data", name) -> ids of the jobs that need it, in the order of the jobs; what a path names is there, and left out."""
    items: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        values = job.parameters
        found = [("weights", str(values[name])) for name in WEIGHTS if values.get(name) is not None and not Path(values[name]).exists()]
        if values.get("vit_size") == "published" and values.get("vit_model_name") is None:
            from lib.encoders.vit import PUBLISHED
            found.append(("weights", PUBLISHED))
        names = str(values.get("dataset") or "")
        names = values.get("source", "soundscapes") if names == "triplets" else names      # whose clips are the events
        if values.get("data_root") is None and values.get("parquet_dir") is None:
            found += [("data", name) for name in names.split("+") if name and name not in MADE]
        for item in found:
            items.setdefault(item, []).append(job.id)
    return items


def fetch_weights(source: str) -> Path:
    """Folder or file of published weights: a name of PaSST's, or an id on Hugging Face or ModelScope ("modelscope:owner/name").

    FileNotFoundError, lib.data.download.DownloadError: it is not to be had, and why.
    """
    from lib.encoders import passt, weights

    return passt.published_file(source) or weights.resolve(source)


def fetch_data(name: str) -> Path:
    """Folder of a published data set. FileNotFoundError: it has to be got by hand, and how; DownloadError: it did not come whole."""
    module = import_module(data.DATASETS[name])
    if hasattr(module, "download"):
        return module.download()
    return Path(data.prepare(name, num_samples=1).root)      # handed out to persons only: says where it is expected


def _changed(folder: Path, began: float) -> bool:
    """Whether a file in `folder` (or the file itself) has been written since."""
    return any(path.stat().st_ctime >= began for path in ([folder] if folder.is_file() else folder.rglob("*")) if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
