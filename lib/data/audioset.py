"""AudioSet as parquet shards: about 10 s of YouTube videos in 527 classes that form a hierarchy (Gemmeke et al., ICASSP 2017).

Folders of shards: train_balanced/ and eval/, or data/bal_train/ and data/eval/ as Hugging Face's agkphysics/AudioSet has them,
or one such folder by itself. A row is a clip: `audio` (see `lib.media.shards`), `human_labels` (names) and, where they are there,
`labels` (MIDs) and `video_id`. Names of classes hold commas: a text is one label unless it is a list in JSON or Python.

Only labels and ids are read here, never the column of audio; a clip's path is shard#row, which `lib.media.audio` reads. The
training folder is divided by a hash of the video, the same for any order of files and any sample. A video of the eval folder
never trains.
"""
from __future__ import annotations

import ast
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lib.data import download as transfer
from lib.data import health
from lib.data.manifest import SPLITS, Manifest, fill, sample
from lib.data.taxonomy import class_table, read_ontology
from lib.files import user_path
from lib.media.shards import COLUMN, Row
from lib.progress import track
from lib.settings import data_dir

HUB, REVISION = "agkphysics/AudioSet", "0c609e8302cf139307f639c57652032af0a88041"
CLASSES_URL = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/class_labels_indices.csv"
ONTOLOGY_URL = "https://raw.githubusercontent.com/audioset/ontology/master/ontology.json"
FOLDERS = {"train": ("train_balanced", "data/bal_train", "bal_train"), "eval": ("eval", "data/eval")}
PUBLISHED = ("train_balanced", "bal_train", "eval")
CLASS_TABLES = tuple(f"{start}class_labels_indices.{end}" for end in ("csv", "json") for start in ("", "audioset_"))
ONTOLOGIES = ("ontology.json", "audioset_ontology.json")
EXPECTED = {"train": 18685, "eval": 17142}  # clips in the repository; the other videos of 2017 were gone when it was made
CLASSES = 527
TEMPLATES = ["This is a sound of {}."]
LARGEST = 2**30  # bytes of audio in a row group: reading may take three times as much, and a process that checks clips has 4 GiB
LISTED = 1000  # labels, and clips, that info lists; it counts all of them
NO_LABEL, IN_EVAL = "without a label that is in the class table", "of a video that is in eval, too"


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0, train_ratio: float = 0.8,
            split_seed: int = 42, class_labels: str | None = None, ontology: str | None = None,
            array_sample_rate: int | None = None, probe_seconds: float | None = None, splits: tuple[str, ...] = SPLITS) -> Manifest:
    """The manifest of AudioSet, or of the shards that are there.

    Args:
        data_root: the folder that holds the two folders of shards, or one of these (called eval: all clips are test; otherwise
            train and val); None: where `python -m lib.data download audioset` puts it.
        seed: chooses the clips when `num_samples` is given.
        train_ratio: share of the training folder that is trained on, between 0 and 1; the rest is validation.
        split_seed: another number divides it in another way.
        class_labels: class table (see `lib.data.taxonomy.class_table`); None: one of `CLASS_TABLES` in data_root or above it.
        ontology: AudioSet's ontology.json; None: one of `ONTOLOGIES` in the same places, otherwise there is no hierarchy.
        array_sample_rate: Hz of arrays that do not state it; None: they cannot be read, and are counted.
        probe_seconds: how much of every clip the health check decodes; None: all of it (some 20 ms a clip).
        splits: the ones that are wanted; num_samples is of these.
    Returns:
        Manifest with the columns video_id, shard and row. Labels are display names in the row's order, one caption each. In info:
        "classes", "ontology", "unmatched" {label that is no class: times}, "left_out" {rule: clips}, "left_out_clips" {rule:
        video ids}, "repeated" {video id: clips, of videos with several}, "found" and "expected" clips of each folder.
    Raises:
        FileNotFoundError, ValueError: naming the folder, shard or table, what was expected and how to get it.
    """
    if not 0 < train_ratio < 1:
        raise ValueError(f"train_ratio must lie between 0 and 1, got {train_ratio}")
    if array_sample_rate is not None and array_sample_rate < 1:
        raise ValueError(f"array_sample_rate must be at least 1 Hz, got {array_sample_rate}")
    root, folders = _find(data_root)
    classes = class_table(_class_table(root, class_labels))
    ontology_file = user_path(ontology) if ontology else _beside(root, ONTOLOGIES)
    taxonomy = read_ontology(ontology_file, classes).to_info() if ontology_file else None
    shards = [(part, shard) for part, folder in folders.items() for shard in _shards(folder)]
    rows = [row for part, shard in track(shards, len(shards), "reading labels")
            for row in _rows(root, part, shard, array_sample_rate)]
    tested = {row["video_id"] for row in rows if row["part"] == "eval"}
    if folders == {"train": root}:  # the eval folder beside it is no part of the manifest, but its videos never train either
        tested |= {row["video_id"] for shard in _shards(root.parent / "eval") for row in _rows(root.parent, "eval", shard, None)}
    info = {"title": "AudioSet", "source": f"Gemmeke et al., Audio Set, ICASSP 2017; shards of {HUB} (CC BY 4.0)",
            "classes": [name for _, name in classes], "mids": {name: mid for mid, name in classes if mid},
            "templates": TEMPLATES, "ontology": taxonomy,
            "found": {part: sum(row["part"] == part for row in rows) for part in folders},
            "expected": {part: EXPECTED[part] for part, folder in folders.items() if folder.name in PUBLISHED}}
    rows = _matched(rows, classes, tested, root, info)
    several = Counter(row["video_id"] for row in rows)
    info["repeated"] = dict([(video, times) for video, times in several.items() if times > 1][:LISTED])
    for row in rows:
        video = row["video_id"]
        spot = row.pop("spot")
        row["clip_id"] = video if several[video] == 1 else f"{video} ({spot})"
        row["split"] = "test" if row.pop("part") == "eval" else "train" if _place(video, split_seed) < train_ratio else "val"
        row["captions"] = [text for label in row["labels"] for text in fill(TEMPLATES, label)]
    rows = [row for row in rows if row["split"] in splits]
    if not rows:
        raise ValueError(f"{root}: none of its clips is in {', '.join(splits)}; a folder called eval is the test split, any other gives train and val")
    part = sample(Manifest(pd.DataFrame(rows).assign(start=0.0, duration=0.0), "audioset", root, info), num_samples, seed)
    return health.check(health.measure(part, workers, probe_seconds), workers, seconds=probe_seconds)


def parse_labels(cell: object) -> list[str]:
    """The labels in a cell, without blanks and repetitions: a list of texts, or a text that is one label unless it is a list in
    JSON or Python. None, NaN and "" hold none."""
    if isinstance(cell, bytes):
        cell = cell.decode(errors="replace")
    if isinstance(cell, str):
        cell = _list(cell.strip())
    elif not isinstance(cell, (list, tuple, np.ndarray)):
        cell = [cell]
    items = (str(item.decode(errors="replace") if isinstance(item, bytes) else item).strip() for item in cell
             if item is not None and item == item)
    return list(dict.fromkeys(item for item in items if item))


def _list(text: str) -> list:
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                found = parse(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):  # ['a'] is no JSON, and [live] is neither
                continue
            if isinstance(found, list):
                return found
    return [text]


def _matched(rows: list[dict], classes: list[tuple[str, str]], tested: set[str], root: Path, info: dict) -> list[dict]:
    """The rows that stay, with their labels; what is left out and what is no class goes into `info`."""
    match, unmatched, kept, left_out = _matcher(classes), Counter(), [], {}
    for row in rows:
        row["labels"], unknown = match(row.pop("mids"), row.pop("names"))
        unmatched.update(unknown)
        rule = NO_LABEL if not row["labels"] else IN_EVAL if row["part"] == "train" and row["video_id"] in tested else None
        (kept if rule is None else left_out.setdefault(rule, [])).append(row)
    if not any(row["labels"] for row in rows):
        raise ValueError(f"{root}: no label of its {len(rows)} clips is in the class table, for example "
                         f"{', '.join(map(repr, list(unmatched)[:3])) or 'none at all'}; give the table that belongs to them by "
                         "class_labels")
    if not kept:
        rules = ", ".join(f"{len(some)} {rule}" for rule, some in left_out.items())
        raise ValueError(f"{root}: all its {len(rows)} clips are left out: {rules}")
    info |= {"unmatched": dict(unmatched.most_common(LISTED)), "left_out": {rule: len(some) for rule, some in left_out.items()},
             "left_out_clips": {rule: [row["video_id"] for row in some[:LISTED]] for rule, some in left_out.items()}}
    return kept


def _matcher(classes: list[tuple[str, str]]) -> Callable[[list[str], list[str]], tuple[list[str], list[str]]]:
    """A function from the MIDs and the names of a clip to its display names, and to what is no class."""
    known = {name.casefold(): name for _, name in classes} | {mid: name for mid, name in classes if mid}

    def match(mids: list[str], names: list[str]) -> tuple[list[str], list[str]]:
        # as many of both are parallel, and the MID decides; otherwise each list speaks for itself
        pairs = list(zip(mids, names)) if len(mids) == len(names) else [(text, text) for text in (*mids, *names)]
        found = [(known.get(mid) or known.get(name) or known.get(name.casefold()), name) for mid, name in pairs]
        return list(dict.fromkeys(name for name, _ in found if name)), [text for name, text in found if not name]
    return match


def _place(video: str, split_seed: int) -> float:
    """Where a video lies between 0 and 1, for the split."""
    return int.from_bytes(hashlib.sha256(f"audioset {split_seed} {video}".encode()).digest()[:8], "big") / 2**64


def _rows(root: Path, part: str, shard: Path, array_sample_rate: int | None) -> Iterator[dict]:
    """Id and labels of every row of a shard, in order; the audio is not touched."""
    file = shard.relative_to(root).as_posix()
    try:
        with pq.ParquetFile(shard) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            wanted = [name for name in ("video_id", "labels", "human_labels") if name in schema.names]
            if COLUMN not in schema.names or wanted in ([], ["video_id"]):
                missing = COLUMN if COLUMN not in schema.names else "human_labels"
                raise ValueError(f"{shard}: column {missing!r} is missing, it has {', '.join(schema.names) or 'none'}; a shard "
                                 "of AudioSet has audio, human_labels and, if possible, labels (MIDs) and video_id")
            _check_row_groups(shard, metadata)
            cells = parquet.read(columns=wanted, use_threads=False).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{shard}: not a whole parquet file ({error}); fetch it again") from error
    kind = schema.field(COLUMN).type
    holds_arrays = pa.types.is_nested(kind) and (not pa.types.is_struct(kind) or kind.get_field_index("array") >= 0)
    rate = array_sample_rate if holds_arrays else None
    nothing = [None] * metadata.num_rows
    columns = (cells.get(column, nothing) for column in ("video_id", "labels", "human_labels"))
    for number, (video, mids, names) in enumerate(zip(*columns)):
        video = video.decode(errors="replace") if isinstance(video, bytes) else video
        spot = f"{shard.parent.name}/{shard.name}#{number}"  # the same when this folder is prepared by itself
        video = "" if video is None else str(video).strip()
        yield {"path": str(Row(file, number, rate)), "shard": file, "row": number, "part": part, "spot": spot,
               "video_id": video or spot, "mids": parse_labels(mids), "names": parse_labels(names)}


def _check_row_groups(shard: Path, metadata: pq.FileMetaData) -> None:
    """ValueError for a file that no process could read a row of."""
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        columns = (group.column(c) for c in range(group.num_columns))
        size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema.split(".")[0] == COLUMN)
        if size > LARGEST:
            raise ValueError(f"{shard}: row group {g} holds {size:,} bytes of audio in {group.num_rows} rows, which takes too "
                             "much memory to read; write it again with pyarrow.parquet.write_table(table, file, "
                             "row_group_size=100)")


def _find(data_root: Path | None) -> tuple[Path, dict[str, Path]]:
    """The data set's folder, and its folders of shards ("train", "eval")."""
    root = data_dir() / "audioset" if data_root is None else Path(data_root)
    found = {part: next((root / name for name in names if _shards(root / name)), None) for part, names in FOLDERS.items()}
    found = {part: folder for part, folder in found.items() if folder}
    if not found and _shards(root):
        return root, {"eval" if root.name.lower() == "eval" else "train": root}
    if not found:
        empty = [f"nor in {name}/" for names in FOLDERS.values() for name in names if (root / name).is_dir()]
        raise FileNotFoundError(f"AudioSet: no .parquet shards in {', '.join([str(root), *empty])}; expected train_balanced/ and "
                                "eval/, or data/bal_train/ and data/eval/, or shards in the folder itself. Run `python -m "
                                "lib.data download audioset` (50 GB), or set data_root to the folder that has them")
    if len(found) == 1:
        warnings.warn(f"AudioSet: of the folders of shards, {root} has {next(iter(found.values())).name}/ only, so there is no "
                      f"{'test split' if 'train' in found else 'train and no val split'}", stacklevel=4)
    return root, found


def _shards(folder: Path) -> list[Path]:
    """Its parquet files in the order of their names."""
    return sorted(file for file in folder.glob("*.parquet") if file.is_file() and not file.name.startswith("."))


def _beside(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the files that is in the folder, above it, or above that (the root of data/bal_train)."""
    return next((folder / name for folder in (root, *root.parents[:2]) for name in names if (folder / name).is_file()), None)


def _class_table(root: Path, class_labels: str | None) -> Path:
    file = user_path(class_labels) if class_labels else _beside(root, CLASS_TABLES)
    if file is None:
        raise FileNotFoundError(f"AudioSet's class table is not there: none of {', '.join(CLASS_TABLES)} is in "
                                f"{', '.join(map(str, (root, *root.parents[:2])))}. Get it from {CLASSES_URL}, or name yours by "
                                "class_labels")
    return file


def download(folder: Path | None = None) -> Path:
    """Fetch class table, ontology and the shards of the balanced and the eval part (50 GB). Resumable; returns the folder.

    Checked by the numbers of classes and clips. Never run where this was written, for want of a network: the addresses and the
    revision that holds parquet files are those that the projects publish and people report.
    """
    from huggingface_hub import snapshot_download  # imported late: only here, and it takes a moment

    folder = Path(folder or data_dir() / "audioset")
    table, ontology = folder / CLASS_TABLES[0], folder / ONTOLOGIES[0]
    for url, file in ((CLASSES_URL, table), (ONTOLOGY_URL, ontology)):
        if not file.is_file():
            transfer.fetch(url, file)
    classes = class_table(table)
    if len(classes) != CLASSES:
        raise transfer.DownloadError(f"{table}: {len(classes)} classes, the published one has {CLASSES}; remove it and try again")
    read_ontology(ontology, classes)
    again = "check the connection (and that HF_HUB_OFFLINE is not set) and run the same command again: it goes on"
    wanted = {part: names[1] for part, names in FOLDERS.items()}
    try:
        snapshot_download(HUB, repo_type="dataset", revision=REVISION, local_dir=folder,
                          allow_patterns=[f"{name}/*.parquet" for name in wanted.values()])
    except (OSError, ValueError) as error:
        raise transfer.DownloadError(f"{HUB} cannot be fetched from Hugging Face ({error}); {again}") from error
    for part, name in wanted.items():  # without a connection, what is there is returned as if it were complete
        clips = sum(pq.read_metadata(shard).num_rows for shard in _shards(folder / name))
        if clips != EXPECTED[part]:
            raise transfer.DownloadError(f"{folder / name}: {clips:,} of {EXPECTED[part]:,} clips came; {again}")
    return folder
