"""The first page of a report: what ran, what failed and why, the headline numbers, and something to listen to."""
from __future__ import annotations

import statistics
import time
from html import escape
from pathlib import Path
from urllib.parse import quote

from lib.workbook import results, sweeps
from lib.workbook.protocols import ProtocolError
from lib.files import read_json, write_text

_STYLE = """
:root { color-scheme: light; --line: #d9dee3; --soft: #5b6670; --accent: #1f5f8b; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2328; background: #fff; max-width: 70rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1.05rem; margin: 0; }
a { color: var(--accent); } .soft { color: var(--soft); font-size: .9rem; } .missing { color: #b3261e; }
.card { border: 1px solid var(--line); border-left: 5px solid #8a949c; border-radius: 6px; padding: .8rem 1rem; margin: .8rem 0; }
.card.ok { border-left-color: #2e7d4f; } .card.failed { border-left-color: #b3261e; } .card.waiting { border-left-color: #b7791f; }
.state { float: right; font-size: .85rem; font-weight: 600; }
.ok .state { color: #2e7d4f; } .failed .state { color: #b3261e; } .waiting .state { color: #8a5a12; }
table { border-collapse: collapse; margin: .6rem 0 0; font-size: .93rem; }
th, td { text-align: right; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); } th:first-child, td:first-child { text-align: left; } td.value { font-weight: 600; }
.scroll { overflow-x: auto; } pre { background: #fbeceb; padding: .6rem .8rem; overflow-x: auto; font-size: .82rem; white-space: pre-wrap; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: .8rem; }
figure { border: 1px solid var(--line); border-radius: 6px; padding: .7rem .8rem; margin: 0; } figure audio, figure video { width: 100%; margin-top: .4rem; }
"""


def build(report: Path, plan: dict) -> tuple[Path, dict[str, str]]:
    """Write `index.html` of a report folder.

    Returns:
        (path of the page, job id -> why it is not up to date, for those that are not).
    """
    jobs = {job["id"]: job for job in plan["jobs"]}
    states = judge(report, jobs)
    documents = {name: results.read(report / "results" / f"{name}.json") for name, (state, _) in states.items() if state == "ok"}
    finished = sum(state == "ok" for state, _ in states.values())
    choice = ", ".join(f"{key} {plan[key]}" for key in ("family", "profile", "dataset") if plan.get(key)) or "quick settings of the notebooks"
    body = [f"<h1>Audio workbook: {escape(plan['run'])}</h1>",
            f'<p class="soft">{finished} of {len(jobs)} jobs succeeded · {escape(choice)} · built {time.strftime("%Y-%m-%d %H:%M")}</p>']
    body += _groups(jobs, documents)
    body += ["<h2>Notebooks</h2>", *(_card(report, job, *states[name], documents.get(name)) for name, job in jobs.items())]
    body += _listen(jobs, documents)
    body += _origin(documents)
    page = ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(plan['run'])}: audio workbook</title><style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n")
    unfinished = {name: why.strip().splitlines()[-1] for name, (state, why) in states.items() if state != "ok"}
    return write_text(report / "index.html", page), unfinished


def judge(report: Path, jobs: dict[str, dict]) -> dict[str, tuple[str, str]]:
    """Job id -> (state, why): ok, failed, or waiting (not run, or its result is older than what it depends on)."""
    states: dict[str, tuple[str, str]] = {}
    times: dict[str, dict] = {}
    for name, job in jobs.items():
        status = times[name] = read_json(report / "status" / f"{name}.json") or {}
        blocked = [before for before in job["upstream"] if states[before][0] != "ok"]
        current = status.get("key") == job["key"]
        if blocked:  # whatever lies there from an earlier run, it does not belong to what has just been tried
            states[name] = ("waiting", f"not run: it needs {', '.join(blocked)}")
        elif current and status["state"] == "failed":
            states[name] = ("failed", status["failure"])
        elif current and status["state"] == "running":
            states[name] = ("failed", "it was interrupted, or its runner was killed")
        elif not current or not (report / "results" / f"{name}.json").is_file():
            states[name] = ("waiting", "not run: the report ended before its turn")
        elif any(times[before]["finished"] > status["started"] for before in job["upstream"]):
            states[name] = ("waiting", "out of date: what it needs has been run again since")
        else:
            states[name] = ("ok", "")
    return states


def _card(report: Path, job: dict, state: str, why: str, document: dict | None) -> str:
    words = {"ok": "succeeded", "failed": "failed", "waiting": "not up to date"}[state]
    status = read_json(report / "status" / f"{job['id']}.json") or {}
    page = f"{job['id']}.html"
    title = escape(job["title"] + (f" ({_words(job['combination'])})" if job["combination"] else ""))
    linked = f'<a href="{quote(page)}">{title}</a>' if (report / page).is_file() else title
    spent = f" · {status['seconds']:.0f} s" if state != "waiting" and "seconds" in status else ""
    peak = f" · {document['provenance']['peak_memory_mb']:.0f} MB" if document else ""
    rows = [f'<div class="card {state}"><span class="state">{words}</span><h3>{linked}</h3>',
            f'<div class="soft">{escape(job["id"])}{" · " + escape(job["family"]) if job["family"] else ""}{spent}{peak}</div>']
    if why:
        rows.append(f"<pre>{escape(why)}</pre>" if state == "failed" else f'<p class="soft">{escape(why)}</p>')
    if document and "skipped" in document["protocol"]:
        rows.append(f'<p class="soft">skipped: {escape(document["protocol"]["skipped"])}</p>')
    if document:
        rows.append(_headline(document))
    return "\n".join(rows) + "</div>"


def _headline(document: dict) -> str:
    rows = [m for m in document["metrics"] if m["headline"]]
    return results.table(rows) if rows else ""


def _groups(jobs: dict[str, dict], documents: dict[str, dict]) -> list[str]:
    """Sweeps: each variant with mean and 95 % t interval over its seeds, and its difference to the first one, paired by seed.

    Runs without a result stay out of the mean, and their number is told beside it.
    """
    lines = []
    for group in sweeps.groups({name: job for name, job in jobs.items() if job["combination"]}):
        members = list(group.runs.values())
        title = escape(" · ".join(filter(None, [jobs[members[0]]["title"], _words(group.variant)])))
        keys = dict.fromkeys((m["name"], m["split"]) for name in members if name in documents
                             for m in documents[name]["metrics"] if m["headline"])
        for key in keys:
            runs = [row for _, row in sweeps.values(group, documents, key).values()]
            value, interval = sweeps.mean([m["value"] for m in runs])
            chance = [m["chance"] for m in runs if m["chance"] is not None]
            cells = [results.number(statistics.mean(chance)) if len(chance) == len(runs) else "", results.between(interval),
                     ", ".join(results.number(m["value"]) for m in runs), _count(len(runs), len(members)), _difference(group, documents, key)]
            lines.append(f"<tr><td>{title}</td><td>{escape(key[0])} ({escape(key[1])})</td>"
                         f'<td class="value">{results.number(value)}</td>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        if not keys and not any(name in documents for name in members):
            lines.append(f'<tr><td>{title}</td><td colspan="5"></td><td>{_count(0, len(members))}</td><td></td></tr>')
    if not lines:
        return []
    head = "".join(f"<th>{name}</th>" for name in ("", "metric", "mean", "chance", "95 % interval of the mean", "each", "runs",
                                                   "minus the first variant, paired by seed"))
    return ["<h2>Over several runs</h2>", f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>']


def _difference(group: sweeps.Group, documents: dict[str, dict], key: tuple[str, str]) -> str:
    """Cell of a variant's difference to the first one; empty for the first itself."""
    if group is group.first:
        return ""
    try:
        found = sweeps.difference(group, documents, key)
    except ProtocolError as error:
        return f'<span class="missing" title="{escape(str(error), quote=True)}">not compared: other protocol</span>'
    if found is None:
        return '<span class="missing">no seed has both</span>'
    value, interval, pairs = found
    between = f" [{results.between(interval)}]" if interval else ""
    return f"{value:+.3f}{between} {_count(pairs, len(group.runs), 'pairs')}"


def _count(there: int, wanted: int, what: str = "") -> str:
    text = f"{there} of {wanted} {what}".rstrip()
    return text if there == wanted else f'<strong class="missing">{text}: {wanted - there} missing</strong>'


def _listen(jobs: dict[str, dict], documents: dict[str, dict]) -> list[str]:
    body = []
    for name, document in documents.items():
        clips = document["artifacts"].get("listen", [])
        if clips:
            body += [f'<h3>{escape(jobs[name]["title"])} <a class="soft" href="{quote(name)}.html">{escape(name)}</a></h3>',
                     f'<div class="clips">{"".join(map(_clip, clips))}</div>']
    return ["<h2>Listen</h2>", *body] if body else []


def _clip(clip: dict) -> str:
    audio, score = clip["audio"], clip.get("score")
    if not audio.startswith("data:audio/"):  # otherwise a file of the report; the quoting leaves no way to name a protocol
        audio = quote(audio)
    shown = f' <span class="soft">score {results.number(score)}</span>' if score is not None else ""
    kind = "video" if audio.endswith(".mp4") else "audio"
    return (f'<figure><strong>{escape(clip["title"])}</strong>{shown}<div>{escape(clip.get("caption", ""))}</div>'
            f'<{kind} controls preload="none" src="{escape(audio, quote=True)}"></{kind}></figure>')


def _origin(documents: dict[str, dict]) -> list[str]:
    """Commits and versions behind the numbers; more than one of either is worth seeing."""
    commits = sorted({d["provenance"]["commit"][:12] + (" with local changes" if d["provenance"]["dirty"] else "") for d in documents.values()})
    versions = sorted({f"{k} {v}" for d in documents.values() for k, v in d["versions"].items()})
    return [f'<h2>Made with</h2><p class="soft">commit {escape(", ".join(commits))} · {escape(", ".join(versions))}</p>'] if documents else []


def _words(combination: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in combination.items())
