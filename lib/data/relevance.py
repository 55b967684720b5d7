"""Which clips answer a query, where a data set's captions do not say it all: the challenge's list of queries and all their files."""
from __future__ import annotations

import ast
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from lib.data import captioned
from lib.data import download as transfer
from lib.data.manifest import Manifest
from lib.files import user_path
from lib.settings import data_dir

URL = "https://raw.githubusercontent.com/CPJKU/dcase2025_task6_baseline/HEAD/resources/metadata_eval.csv"
QUERIES = 1037      # of the published list, about Clotho's evaluation split


def download(folder: Path | None = None) -> Path:
    """Fetch the list of DCASE 2025 Task 6 (resumable) beside Clotho; returns the file, which `read_relevance` reads.

    No checksum of it is published: all of it is read, and it must hold 1,037 queries (otherwise a DownloadError).
    """
    file = Path(folder or data_dir() / "clotho") / "metadata_eval.csv"
    if not file.is_file():
        transfer.fetch(URL, file)
    count = len(read_relevance(file))
    if count != QUERIES:
        raise transfer.DownloadError(f"{file}: {count:,} queries, the published list has {QUERIES:,}; remove it, download it again")
    return file


def read_relevance(path: str | Path) -> list[tuple[str, list[str]]]:
    """Queries and the names of their relevant files, from a CSV file with the columns query and audio_filenames.

    Args: path: the second column holds Python lists of texts (DCASE 2025 Task 6: 1,037 queries).
    Raises:
        FileNotFoundError; ValueError: naming the file and the line.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"extra_relevance: {path} does not exist; give the CSV file with the columns query and audio_filenames")
    rows = []
    for number, record in enumerate(captioned.read_csv(path, ("query", "audio_filenames")).to_dict("records"), 2):
        try:
            names = ast.literal_eval(record["audio_filenames"])        # literals only: nothing is run
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            names = None
        if not isinstance(names, list) or not names or any(not isinstance(name, str) for name in names) or not record["query"].strip():
            raise ValueError(f"{path}, row {number}: expected a query and a list of file names such as ['a.wav', 'b.wav'], got "
                             f"{record['query']!r}, {record['audio_filenames']!r}")
        rows.append((record["query"], list(dict.fromkeys(names))))
    return rows


def on_manifest(relevance: list[tuple[str, list[str]]], manifest: Manifest) -> tuple[list[str], Tensor, dict[str, int]]:
    """Queries over the clips of a manifest.

    Args:
        relevance: of `read_relevance`.
        manifest: N clips, found by file name, or by the name without its ending where that fits one clip only.
    Returns:
        Q queries with a relevant clip there; Tensor (Q, N) bool; counts: {"queries": left out, because none of their files is there,
        "files": names that are not there}.
    Raises:
        ValueError: no query is left, or two clips have one file name.
    """
    place: dict[str, int] = {}
    by_stem: dict[str, int | None] = {}
    for i, path in enumerate(manifest.table["path"]):
        name = PurePosixPath(path)
        if place.setdefault(name.name, i) != i:
            raise ValueError(f"{manifest.name}: two clips are called {name.name!r}; a list of file names cannot tell them apart. Score one split")
        stem = captioned.plain(name.stem)
        by_stem[stem] = None if stem in by_stem else i
    queries, rows, lost = [], [], {"queries": 0, "files": 0}
    for query, names in relevance:
        found = [place.get(name, by_stem.get(captioned.plain(PurePosixPath(name).stem))) for name in names]
        lost["files"] += found.count(None)
        hits = [i for i in found if i is not None]
        if not hits:
            lost["queries"] += 1
            continue
        row = torch.zeros(len(manifest), dtype=torch.bool)
        row[hits] = True
        queries.append(query)
        rows.append(row)
    if not queries:
        raise ValueError(f"{manifest.name}: none of the {lost['files']} files of the list is among its {len(manifest)} clips; is it the list of "
                         "this data set and split?")
    return queries, torch.stack(rows), lost
