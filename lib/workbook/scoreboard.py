"""All results of one report or several in one table: every number with its protocol, and only equal protocols in one column.

Published numbers (published.yaml, beside this file) stand in the same table, marked by their source. They enter a column of ours
only where their protocol is stated and equal; on the embedded data it never is.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from lib.files import read_json, write_text
from lib.glossary import load_yaml
from lib.settings import report_folder
from lib.workbook import protocols, results

OURS = "ours"
TIMED = "performance"  # times differ from machine to machine: that family has a notebook of its own
_ROW = ("report", "job", "family", "notebook", "data", "scored", "metric", "protocol", "value", "low", "high", *results.REFERENCES, "n", "split", "seeds",
        "headline", "higher_is_better", "source")


@dataclass
class Board:
    """What reports hold.

    table: DataFrame, one row a metric: report, job, family, notebook, data, scored (which of a result's models), metric, protocol
        (short name), value, low and high (95 %), chance, baseline, control, ceiling, n, split, seeds, headline, higher_is_better,
        source ("ours", or what published it).
    protocols: short name -> protocol.  documents: (report, job) -> result.  jobs: report -> its jobs as planned.
    skipped: (report, job) -> why it has nothing.
    """

    table: pd.DataFrame
    protocols: dict[str, dict] = field(default_factory=dict)
    documents: dict[tuple[str, str], dict] = field(default_factory=dict)
    jobs: dict[str, dict] = field(default_factory=dict)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)


def folders(reports: Sequence[str]) -> list[Path]:
    """The folder of this report, where it holds results, and those of the named ones (see `lib.settings.report_folder`)."""
    own = results.report_dir()
    named = [report_folder(name) for name in reports]
    return [folder for folder in dict.fromkeys([own, *named]) if folder != own or (folder / "results").is_dir()]


def gather(folders: Sequence[Path]) -> Board:
    """Read the results of report folders, in their order; of a report with a plan those that it plans.

    A result without a family (environment, data) or of the family "performance" (its times are of one machine) is left out.

    Raises:
        FileNotFoundError: a folder that is no report. ValueError: a result that cannot be read, or two reports of one name.
    """
    board, rows = Board(pd.DataFrame(columns=list(_ROW))), []
    for folder in map(Path, folders):
        if not (folder / "results").is_dir():
            raise FileNotFoundError(f"there is no report in {folder} (no folder results): give names below reports/, or whole paths")
        if folder.name in board.jobs:
            raise ValueError(f"two reports are called {folder.name!r}: copy one of them under another name")
        files = {path.stem: path for path in sorted((folder / "results").glob("*.json"))}
        plan = read_json(folder / "plan.json")
        planned = {job["id"]: job for job in plan["jobs"]} if plan else {name: {"combination": {}} for name in files}
        jobs = board.jobs[folder.name] = {}
        for name, job in planned.items():
            document = results.read(files[name]) if name in files else None
            known = job if plan else document          # a skipped result has no family
            if known["family"] in (None, TIMED):
                continue
            jobs[name] = {"notebook": known["notebook"], "combination": job["combination"]}
            if document and "skipped" in document["protocol"]:
                board.skipped[folder.name, name] = document["protocol"]["skipped"]
            elif document:
                board.documents[folder.name, name] = document
                rows += [_row(board, folder.name, name, document, metric) for metric in document["metrics"]]
    if rows:
        board.table = pd.DataFrame(rows, columns=list(_ROW)).sort_values(["family", "notebook", "report", "job"], kind="stable", ignore_index=True)
    return board


def _row(board: Board, report: str, job: str, document: dict, metric: dict) -> dict:
    protocol = protocols.identity(document, metric)
    name = protocols.short(protocol)
    board.protocols[name] = protocol
    model, label = protocols.scored(metric["name"])
    low, high = metric["interval"] or (None, None)
    seeds = " ".join(map(str, document["protocol"].get("seeds", [])))
    return {"report": report, "job": job, "family": document["family"], "notebook": document["notebook"], "data": document["dataset"],
            "scored": model, "metric": label, "protocol": name, "low": low, "high": high, "seeds": seeds, "source": OURS,
            **{key: metric[key] for key in ("value", *results.REFERENCES, "n", "split", "headline", "higher_is_better")}}


def compare(board: Board, metric: str, **chosen: str) -> pd.DataFrame:
    """One metric of several models and runs side by side, published rows of the same protocol included.

    Args:
        metric: as in the table, "mAP@10".  chosen: columns of the table -> value, to tell rows apart ("split", "data", "notebook").

    Returns:
        DataFrame with a row a model or run (report, job, scored), columns value, low, high, chance, baseline, control, ceiling, n.

    Raises:
        ProtocolError: naming the entries in which their protocols differ.  KeyError: there is no such metric.
    """
    rows = board.table[board.table["metric"] == metric]
    for column, value in chosen.items():
        rows = rows[rows[column] == value]
    if not len(rows):
        raise KeyError(f"no result has the metric {metric!r}" + (f" with {chosen}" if chosen else "")
                       + f"; there are: {', '.join(sorted(set(board.table['metric'])))}")
    named = {f"{row.report}/{row.job} ({row.protocol})": board.protocols[row.protocol]
             for row in rows.drop_duplicates("protocol").itertuples()}
    protocols.refuse_different(named)
    both = pd.concat([rows, published_under(board, rows["protocol"].iloc[0])])
    return both.set_index(["report", "job", "scored", "source"])[["value", "low", "high", *results.REFERENCES, "n"]]


def columns(board: Board, family: str, headline_only: bool = True) -> pd.DataFrame:
    """The family's results with one column a protocol, one row a model or run, then chance, baseline, control and ceiling.

    Args:
        headline_only: only protocols in which some metric is a headline one, and of training notebooks only where nothing was evaluated.

    Returns:
        DataFrame of texts: value with its interval, "" where a model was not scored under that protocol. Columns: metric, what it was
        measured on, and the short name of the protocol, which tells apart what differs elsewhere.
    """
    rows = board.table[board.table["family"] == family]
    if headline_only:
        rows = rows[rows["protocol"].isin(rows.loc[rows["headline"].astype(bool), "protocol"])]
        held_out = ~rows["split"].isin(["train", "val"])
        rows = rows[held_out] if held_out.any() else rows
    found: dict[tuple[str, str, str], dict[tuple, str]] = {}
    for name, part in rows.groupby("protocol", sort=False):
        protocol = board.protocols[name]
        column = found.setdefault((protocol["metric"], f"{protocol['dataset']} {protocol['split']}, n={protocol['n']}", name), {})
        for row in pd.concat([part, published_under(board, name)]).itertuples():
            who = row.job if row.source == OURS else row.source
            column[row.report, who, row.scored] = shown(row.value, row.low, row.high)
        for kind in results.REFERENCES:
            if part[kind].notna().any():
                values = sorted({f"{value:.3f}" for value in part[kind].dropna()})
                column["", kind, ""] = values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
    order = dict.fromkeys(key for column in found.values() for key in column)
    index = [key for key in order if key[0]] + [("", kind, "") for kind in results.REFERENCES if ("", kind, "") in order]
    return pd.DataFrame([[column.get(key, "") for column in found.values()] for key in index],
                        index=pd.MultiIndex.from_tuples(index, names=["report", "run", "scored"]),
                        columns=pd.MultiIndex.from_tuples(found, names=["metric", "measured on", "protocol"]))


def shown(value: float, low: float | None = None, high: float | None = None) -> str:
    """A number with its interval: "0.657 [0.614, 0.701]"."""
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and low == low else "")


@cache
def published() -> tuple[dict, ...]:
    """Rows of published.yaml: family, model, metric, value, protocol (only what the source states), source, note."""
    rows = load_yaml(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"), "published.yaml")
    return tuple({**{key: value for key, value in group.items() if key != "rows"}, **row} for group in rows for row in group["rows"])


def examples(rows: Sequence[dict], family: str, most: int = 6) -> list[dict]:
    """Published shares to draw beside `rows` (with a "name" each): one a model, first those of a metric that is drawn as well."""
    names = " ".join(row["name"] for row in rows)
    some = sorted((row for row in published() if row["family"] == family and 0 <= row["value"] <= 1), key=lambda row: row["metric"] not in names)
    first = {row["model"]: row for row in reversed(some)}
    return [{"name": f"{row['model']}: {row['metric']}", "value": row["value"]} for row in some if first[row["model"]] is row][:most]


def published_table(family: str | None = None) -> pd.DataFrame:
    """Published rows for people: family, model, metric, value, protocol in words, source, note."""
    rows = [{"family": row["family"], "model": row["model"], "metric": row["metric"], "value": row["value"],
             "protocol": ", ".join(f"{key} {value}" for key, value in row["protocol"].items()), "source": row["source"], "note": row.get("note", "")}
            for row in published() if family in (None, row["family"])]
    return pd.DataFrame(rows, columns=["family", "model", "metric", "value", "protocol", "source", "note"])


def published_under(board: Board, name: str) -> pd.DataFrame:
    """Published rows whose protocol is ours in every entry but the fingerprint, which no paper gives: the counts stand for it."""
    ours = {key: value for key, value in board.protocols[name].items() if key != "manifest_fingerprint"}
    rows = [dict.fromkeys(_ROW) | {"report": "published", "job": row["model"], "family": row["family"], "data": ours["dataset"], "scored": "",
                                  "metric": row["metric"], "protocol": name, "value": row["value"], "n": ours["n"], "split": ours["split"],
                                  "source": f"{row['model']} (published)"}
            for row in published() if {"metric": row["metric"], **row["protocol"]} == ours]
    return pd.DataFrame(rows, columns=list(_ROW)) if rows else board.table.iloc[:0]


def write(board: Board, folder: Path) -> list[str]:
    """Write the whole table as scoreboard.csv and, with the protocols and published rows, scoreboard.json; their names.

    Neither holds times, hosts, commits or folders: the same runs give the same bytes on every clone.
    """
    write_text(folder / "scoreboard.csv", board.table.to_csv(index=False, lineterminator="\n"))
    rows = json.loads(board.table.to_json(orient="records", double_precision=15))
    document = {"rows": rows, "protocols": board.protocols, "published": published(), "skipped": {"/".join(key): why for key, why in board.skipped.items()}}
    write_text(folder / "scoreboard.json", json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
    return ["scoreboard.csv", "scoreboard.json"]
