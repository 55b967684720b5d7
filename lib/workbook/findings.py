"""What each family showed, in a sentence: written from the numbers by rules, whatever they say.

A number is better (or worse) than what it is judged by only where its whole 95 % interval lies on that side; an interval that
holds the other number, or 0 of a difference, is no difference; a number without an interval is not judged.
"""
from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape

from lib.workbook import protocols, results, sweeps
from lib.workbook.scoreboard import Board, published_under, shown

# family -> (name, question, evaluation notebook, metrics in the order in which they are told: a pattern and what it stands for)
FAMILIES: dict[str, tuple[str, str, str, tuple[tuple[str, str], ...]]] = {
    "retrieval": ("Retrieval", "which clip fits this sentence?", "11_retrieval_evaluate", (
        (r"mAP@10", "text to audio mAP@10"),
        (r"control: captions of other clips mAP@10", "a model taught the captions of other clips"),
        (r"class accuracy", "class accuracy"))),
    "hyperbolic": ("Hyperbolic CLAP", "does hyperbolic geometry help text-prompted tagging?", "21_hyperbolic_evaluate", (
        (r"\w+ - cosine: mAP samples", "mAP beside the same map with cosine"),
        (r"\w+ - frozen: mAP samples", "beside the frozen model"),
        (r"hyperbolic: mAP samples", "hyperbolic mAP itself"),
        (r"cones: parents nearer the origin", "parents nearer the origin, with cones"))),
    "spatial": ("Spatial-temporal", "which sound came first, and from where?", "32_spatial_evaluate", (
        (r"temporal, text anchor", "order"), (r"spatial, text anchor", "place"), (r"every, text anchor", "every member as anchor"),
        (r"error in degrees, two events", "error in degrees, two events"))),
    "audiovisual": ("Audio-visual", "do masked autoencoding and contrastive alignment help?", "44_audiovisual_evaluate", (
        (r"few labels, gain of stage 1 only", "gain by masked autoencoding alone"),
        (r"few labels, gain of stage 2 only", "by contrastive alignment alone"),
        (r"few labels, gain of stages 1 \+ 2", "by both"), (r"top-1, both", "top-1 from sound and picture"))),
    "tokenizer": ("Tokenizer", "how few bits does a spectrogram need?", "51_tokenizer_evaluate", (
        (r".+ bits: MAE \(dB\)", "error in dB"), (r".+ - vq \d+: MAE \(dB\)", "beside learned codebooks"),
        (r".+ - scalar \d+: MAE \(dB\)", "beside scalar quantization of equal bits"))),
}
# 2/3: who tells the order alone, or the places alone, answers two members of a triplet in three.
_REFERENCES = {"every, text anchor": ("what one ability gives", 2 / 3)}


def sentences(board: Board) -> list[str]:
    """One sentence a family, in the order of the notebooks; one more for every further report or variant of a sweep."""
    return [text for family in FAMILIES for text in _family(board, family)]


def as_html(texts: Sequence[str]) -> str:
    """The sentences as a list, the name of the family in bold."""
    items = (text.partition(": ") for text in texts)
    return "<ul>" + "".join(f"<li><b>{escape(name)}</b>: {escape(rest)}</li>" for name, _, rest in items) + "</ul>"


def _family(board: Board, family: str) -> list[str]:
    name, question, notebook, wanted = FAMILIES[family]
    told = []
    for where, documents in _variants(board, notebook):
        rows = [row for pattern, text in wanted for row in _fitting(documents, pattern, text)]
        parts = [f"{text} {judged(row)}" if row else f"{text}: not averaged, the runs' protocols differ" for text, row in rows]
        data = "+".join(sorted({str(document["dataset"]) for document in documents}))
        told.append(f"{name}: {question} On {data}{f' ({where})' if where else ''} "
                    + ("; ".join(parts) if parts else f"{notebook} measured none of the metrics that answer it") + ".")
    why = dict.fromkeys(reason for (report, job), reason in board.skipped.items() if board.jobs[report][job]["notebook"] == notebook)
    missing = f"{notebook} was skipped: {'; '.join(why)}." if why else f"{notebook} has no result here, so nothing is shown."
    return told or [f"{name}: {question} {missing}"]


def drawn(board: Board, family: str) -> list[dict]:
    """Rows for `lib.display.scoreboard_figures.family`: headline metrics of held-out clips and those told in the sentences.

    Runs that differ in their seed only are one row. Training notebooks are there only where nothing was evaluated.
    """
    patterns = [pattern for pattern, _ in FAMILIES[family][3]]
    found: list[dict] = []
    for notebook in dict.fromkeys(board.table.loc[board.table["family"] == family, "notebook"]):
        for where, documents in _variants(board, notebook):
            names = dict.fromkeys(row["name"] for document in documents for row in document["metrics"]
                                  if row["headline"] or any(re.fullmatch(pattern, row["name"]) for pattern in patterns))
            for name in names:
                (text, row), = _fitting(documents, re.escape(name), name)
                if row:
                    low, high = row["interval"] or (None, None)
                    same = protocols.short(protocols.identity(documents[0], row))
                    found.append({**row, "name": text + (f" ({where})" if where else ""), "low": low, "high": high,
                                  "difference": protocols.is_difference(name), "published": list(published_under(board, same)["value"])})
    return [row for row in found if row["split"] not in ("train", "val")] or found


def _variants(board: Board, notebook: str):
    """(which report and variant in words, results) of every variant of a notebook that has any result."""
    for report, jobs in board.jobs.items():
        for group in sweeps.groups({job: entry for job, entry in jobs.items() if entry["notebook"] == notebook}):
            documents = [board.documents[report, job] for job in group.runs.values() if (report, job) in board.documents]
            where = [report] * (len(board.jobs) > 1) + [f"{key} {value}" for key, value in group.variant.items()]
            if len(group.runs) > 1:
                missing = f" of {len(group.runs)}, the others are missing" if len(documents) < len(group.runs) else ""
                where.append(f"mean of {len(documents)} seeds{missing}; interval over seeds, not clips")
            if documents:
                yield ", ".join(where), documents


def _fitting(documents: Sequence[Mapping], pattern: str, text: str) -> list[tuple[str, dict | None]]:
    """(text, metric averaged over the results) of every metric whose name fits; None where their protocols differ."""
    names = dict.fromkeys(row["name"] for document in documents for row in document["metrics"] if re.fullmatch(pattern, row["name"]))
    found = []
    for name in names:
        rows = [(document, row) for document in documents for row in document["metrics"] if row["name"] == name]
        alike = len({json.dumps(protocols.identity(*one), sort_keys=True) for one in rows}) == 1
        found.append((f"{text} ({protocols.scored(name)[0]})" if len(names) > 1 else text, averaged([row for _, row in rows]) if alike else None))
    return found


def averaged(rows: Sequence[Mapping]) -> dict:
    """One metric of several runs as one: means, and the t interval over the runs; of one run as it is."""
    row = dict(rows[0])
    if len(rows) > 1:
        row["value"], row["interval"] = sweeps.mean([one["value"] for one in rows])
        for key in results.REFERENCES:
            known = [one[key] for one in rows if one[key] is not None]
            row[key] = sum(known) / len(known) if len(known) == len(rows) else None
    return row


def judged(row: Mapping) -> str:
    """A metric in words: its number, what it is better or worse than, and what else it stands beside."""
    name, number = row["name"], shown(row["value"], *(row["interval"] or ()))
    if protocols.is_difference(name):
        return f"{'+' * (row['value'] > 0)}{number}, {verdict(row, 0.0, 'no difference shown', '{}')}"
    references = [(key, row[key]) for key in ("chance", "baseline")] + [_REFERENCES.get(name, ("", None))]
    words = [verdict(row, other, f"not told from {key} {other:.3f}", f"{{}} than {key} {other:.3f}") for key, other in references if other is not None]
    beside = [f"{key} {row[key]:.3f}" for key in ("control", "ceiling") if row[key] is not None]
    return ", ".join([number, *words]) + (f" ({', '.join(beside)})" if beside else "")


def verdict(row: Mapping, other: float, same: str, different: str) -> str:
    """`same` where the interval holds `other`, else `different` with "better" or "worse" put in; no verdict without an interval."""
    if row["interval"] is None:
        return f"beside {other:.3f}, no interval and so no verdict"
    low, high = row["interval"]
    if low <= other <= high:
        return same
    return different.format("better" if (low > other) == row["higher_is_better"] else "worse")
