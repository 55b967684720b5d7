"""The one form of a result: metrics with what they are to be judged by, the protocol they were measured under, where from.

A notebook's last cell calls `write`; the file it makes, `<report>/results/<job>.json`, is also the sign that the notebook
got to its end. `WORKBOOK_REPORT` and `WORKBOOK_JOB` say where; without them (a notebook open in JupyterLab) it is the
report "interactive" and the notebook's name.
"""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path

from lib.settings import reports_dir
from lib.workbook import provenance
from lib.files import read_json, write_json

REFERENCES = ("chance", "baseline", "control", "ceiling")         # what a metric is judged by
_NUMBER = {"type": ["number", "null"]}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["notebook", "job", "family", "dataset", "parameters", "protocol", "metrics", "artifacts", "versions", "provenance"],
    "properties": {
        "notebook": {"type": "string", "pattern": r"^[0-9]{2}_[a-z0-9_]+$"},
        "job": {"type": "string"},
        "family": {"type": ["string", "null"]},
        "dataset": {"type": ["string", "null"]},
        "parameters": {"type": "object"},
        "protocol": {"type": "object"},
        "metrics": {"type": "array", "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name", "value", "n", "split", "chance", "ceiling", "baseline", "control", "interval", "headline", "higher_is_better"],
            "properties": {
                "name": {"type": "string", "minLength": 1}, "value": {"type": "number"}, "n": {"type": "integer", "minimum": 1},
                "split": {"type": "string", "minLength": 1}, "chance": _NUMBER, "ceiling": _NUMBER, "baseline": _NUMBER, "control": _NUMBER,
                "interval": {"type": ["array", "null"], "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
                "headline": {"type": "boolean"}, "higher_is_better": {"type": "boolean"}}}},
        "artifacts": {"type": "object", "properties": {"listen": {"type": "array", "items": {
            "type": "object", "additionalProperties": False, "required": ["title", "audio"],
            "properties": {"title": {"type": "string"}, "caption": {"type": "string"}, "audio": {"type": "string"}, "score": _NUMBER}}}}},
        "versions": {"type": "object", "additionalProperties": {"type": "string"}},
        "provenance": {"type": "object", "required": ["commit", "dirty", "host", "started", "finished",
                                                      "wall_seconds", "cpu_seconds", "peak_memory_mb"]},
    },
}


def metric(name: str, value: float, *, n: int, split: str, chance: float | None = None, ceiling: float | None = None,
           baseline: float | None = None, control: float | None = None, interval: Sequence[float] | None = None,
           headline: bool = False, higher_is_better: bool = True) -> dict:
    """One measured number with what it is to be judged by.

    Args:
        name: what was measured, for example "mAP@10".
        n: how many queries, clips or events the value is over. split: where they come from (train, val, test).
        chance, ceiling, baseline, control: the same number for guessing, for the best possible ranking, for a simple
            method and for a model that lacks what is being tested; None: not measured.
        interval: (low, high), 95 %.
        headline: shown on the report's first page.

    Raises:
        ValueError: naming the metric, when a number is not finite or the interval does not hold low <= high.
    """
    numbers = {"value": value, "chance": chance, "ceiling": ceiling, "baseline": baseline, "control": control}
    for key, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise ValueError(f"metric {name!r}: {key} is {number}; results hold finite numbers only")
    if interval is not None:
        low, high = (float(x) for x in interval)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"metric {name!r}: interval must be (low, high) with finite low <= high, got {tuple(interval)}")
        interval = [low, high]
    numbers = {key: None if number is None else float(number) for key, number in numbers.items()}
    return {"name": name, **numbers, "n": int(n), "split": split, "interval": interval,
            "headline": bool(headline), "higher_is_better": bool(higher_is_better)}


def metrics(values: Mapping[str, float], *, n: int, split: str, headline: Sequence[str] = (), **beside: Mapping) -> list[dict]:
    """Several numbers of one protocol: `metric` for every entry of `values`.

    Args:
        values: name -> value.  n, split: of all of them.  headline: names shown on the report's first page.
        beside: chance, ceiling, baseline, control, interval, each name -> number (or interval); a name may be absent.
    """
    return [metric(name, value, n=n, split=split, headline=name in headline, **{key: column.get(name) for key, column in beside.items()})
            for name, value in values.items()]


def show(rows: Sequence[dict]) -> None:
    """Show metrics, each beside what it is to be judged by: a table in a notebook, a line each elsewhere."""
    if rows:
        from IPython.display import display

        display(_Shown(rows))


class _Shown:
    """Metrics as IPython shows them."""

    def __init__(self, rows: Sequence[dict]):
        self.rows = rows

    def __repr__(self) -> str:
        width, lines = max(len(row["name"]) for row in self.rows), []
        for row in self.rows:
            low_high = f" [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]" if row["interval"] else ""
            beside = "".join(f"  {key} {row[key]:.3f}" for key in REFERENCES if row[key] is not None)
            lines.append(f"{row['name']:{width}s} {row['value']:.3f}{low_high}{beside}  ({row['split']}, n={row['n']})")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return table(self.rows)


def table(rows: Sequence[dict]) -> str:
    """Metrics as an HTML table: value, 95 % interval, and the columns of `REFERENCES` that any of them has."""
    columns = [name for name in REFERENCES if any(row[name] is not None for row in rows)]
    head = "".join(f"<th>{name}</th>" for name in ("", "value", "95 % interval", *columns, "split", "n"))
    lines = []
    for row in rows:
        arrow = "" if row["higher_is_better"] else ' <span class="soft">lower is better</span>'
        lines.append(f'<tr><td style="text-align: left">{escape(row["name"])}{arrow}</td><td class="value">{number(row["value"])}</td>'
                     f'<td>{between(row["interval"])}</td>' + "".join(f"<td>{number(row[name])}</td>" for name in columns)
                     + f'<td>{escape(row["split"])}</td><td>{row["n"]}</td></tr>')
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def between(interval: Sequence[float] | None) -> str:
    """An interval for a table: "0.614 to 0.701"; "" for None."""
    return " to ".join(map(number, interval)) if interval else ""


def number(value: float | None) -> str:
    """A number for a table: three decimals, four digits from 100 on; "" for None."""
    return "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def report_dir() -> Path:
    """Folder of the report that this process belongs to (`WORKBOOK_REPORT`; otherwise the report "interactive")."""
    return Path(os.environ.get("WORKBOOK_REPORT") or reports_dir() / "interactive")


def write(notebook: str, metrics: Sequence[dict], *, family: str | None = None, dataset: str | None = None, protocol: Mapping | None = None,
          artifacts: Mapping | None = None, parameters: Mapping | None = None) -> Path:
    """Validate a result and write it to `<report>/results/<job>.json`, atomically.

    Args:
        notebook: its name, "10_retrieval_train". metrics: from `metric`.
        protocol: how it was measured: split, prompts, front_end, weights_digest, manifest_fingerprint, seeds, n, ...
        artifacts: what else was made, for example {"checkpoint": path}; "listen": [{"title", "caption", "audio": data URI
            or path relative to the report, "score"}] is played on the report's first page.
        parameters: name -> value, as they were used.

    Returns:
        The path of the file.

    Raises:
        ValueError: naming the entry that does not fit (a NaN, a value JSON has no form for, a metric not made by `metric`).
    """
    job = os.environ.get("WORKBOOK_JOB") or notebook
    document = {"notebook": notebook, "job": job, "family": family, "dataset": dataset, "parameters": parameters or {}, "protocol": protocol or {},
                "metrics": list(metrics), "artifacts": artifacts or {}, "versions": provenance.versions(), "provenance": provenance.measure()}
    document = _plain(document, "result")
    validate(document)
    path = write_json(report_dir() / "results" / f"{job}.json", document)
    print(f"result of {job} written ({len(document['metrics'])} metrics)")
    return path


class Skipped(Exception):
    """A notebook stops because there is nothing for it to do with these data. In a notebook only the reason is shown."""

    def _render_traceback_(self) -> list[str]:       # what IPython asks an exception for
        return [f"Skipped: {self}"]


def skip(reason: str) -> None:
    """End a notebook that does not apply to its data: its job succeeds with an empty result that says why, in the report, too.

    Raises: Skipped, always. Notebooks that read this one's result with `upstream` are skipped as well.
    """
    name = (os.environ.get("WORKBOOK_JOB") or "").partition(".")[0]
    if name:                                        # nobody reads the result of a notebook that is run by hand
        write(name, [], protocol={"skipped": reason})
    raise Skipped(reason)


def read(path: str | Path) -> dict:
    """Read and validate a result. FileNotFoundError or ValueError naming the file."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        validate(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete it and run its notebook again") from error
    return document


def of(report: str | Path, job: str) -> dict:
    """The result of a job in a report's folder. FileNotFoundError: it has none; ValueError: as `read`."""
    path = Path(report) / "results" / f"{job}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{job} has no result in {path.parent}: run `make report` with a profile that holds it")
    return read(path)


def validate(document: dict) -> None:
    """ValueError naming the first entry of `document` that does not fit SCHEMA."""
    error = next(iter(sorted(_validator().iter_errors(document), key=lambda e: list(map(str, e.path)))), None)
    if error is not None:
        where = ".".join(str(part) for part in error.path) or "result"
        raise ValueError(f"{where}: {error.message[:300]}")


def stable(document: dict) -> dict:
    """The document without what differs from run to run (times, memory, host, commit, folders): equal for equal runs.

    Where times are the result itself (its protocol says "measures": "times"), what was measured is left: names, not numbers.
    """
    kept = {key: value for key, value in document.items() if key != "provenance"}
    if document["protocol"].get("measures") == "times":
        kept |= {"metrics": sorted({row["name"] for row in document["metrics"]}), "artifacts": {}}
    return kept


def upstream(notebook: str) -> dict:
    """The result of a notebook that this one comes after, from the same report and, in a sweep, of this job's combination.

    FileNotFoundError with the fix when that notebook has not been run, ValueError when this job gathers several runs of it; Skipped
    when it was skipped, and so is this one.
    """
    folder, job = report_dir() / "results", os.environ.get("WORKBOOK_JOB")
    jobs = (read_json(report_dir() / "plan.json") or {"jobs": []})["jobs"]
    mine = next((entry["combination"] for entry in jobs if entry["id"] == job), {})
    runs = {entry["id"]: entry["combination"] for entry in jobs if job and entry["notebook"] == notebook}
    fitting = [name for name, combination in runs.items() if combination.items() <= mine.items()] or list(runs) or [notebook]
    if len(fitting) > 1:
        raise ValueError(f"{job} gathers {len(fitting)} runs of {notebook}: read them from {folder} one by one "
                         f"({', '.join(fitting)})")
    path = folder / f"{fitting[0]}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{notebook} has no result in {folder}: run notebook {notebook} first, "
                                "or run both with `make report`")
    document = read(path)
    if "skipped" in document["protocol"]:
        skip(f"{notebook} was skipped: {document['protocol']['skipped']}")
    return document


@cache
def _validator():
    from lib.schemas import jsonschema

    return jsonschema.Draft202012Validator(SCHEMA)


def _plain(value: object, where: str) -> object:
    """`value` as plain JSON types: paths become strings, tuples lists, numpy and torch scalars numbers."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, f"{where}.{index}") for index, entry in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy or torch, scalar or array
        return _plain(value.tolist(), where)
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{where}: {value!r} ({type(value).__name__}) cannot stand in a result; give a finite number, text, list or mapping")

