"""Tools for VGGSound: make subsets of its table, copy their videos, drop what is not there, and look at a few clips before a run.

What `python -m lib.data vggsound` runs. Clips without a file are counted by class; with `check_decode` those whose file cannot be
decoded are left out, too. Every function returns its summary as a dict of JSON types; those that write a table also write it
beside that table, as <table>.json.
"""
from __future__ import annotations

import errno
import filecmp
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data import vggsound_table as tables
from lib.data.inspection import SILENCE
from lib.files import user_path, write_json
from lib.progress import track

NAMED = 5  # classes that a message lists
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other file could be written, either


def select_subset(input_csv: str | Path, output_csv: str | Path, video_dir: str | Path, *, num_classes: int = 10,
                  num_train: int = 5, num_test: int = 2, seed: int = tables.SEED, **files) -> dict:
    """Write a table of a few clips of each class, as published (see `lib.data.vggsound_table.select_subset`).

    Args:
        files: file_extension (".mp4"), check_decode (False: a file counts if it is there) and workers (processes that decode).

    Returns:
        Summary: "classes" and "rows" {"asked", "found"}, "missing" and "undecodable" (rows of the chosen classes), "per_class"
        {label: {"asked", "found", "written", "missing", "undecodable"}}, where found are the rows with a file that may be drawn.

    Raises:
        FileNotFoundError, ValueError: an input that is not there or not as published, or nothing to write.
    """
    source = _Source.read(input_csv, video_dir, **files)
    classes = tables.draw_classes(source.table, num_classes, seed)
    chosen = tables.select_subset(source.table, source.present, classes, num_train=num_train, num_test=num_test, seed=seed)
    facts = {"tool": "select-subset", "num_train": num_train, "num_test": num_test, "seed": seed}
    return source.write(output_csv, chosen, classes, num_classes, num_train + num_test, facts)


def select_classes(input_csv: str | Path, output_csv: str | Path, video_dir: str | Path, *, num_classes: int = 10,
                   seed: int = tables.SEED, **files) -> dict:
    """Write a table of all clips of a few classes, as published. Arguments and summary as of `select_subset`."""
    source = _Source.read(input_csv, video_dir, **files)
    classes = tables.draw_classes(source.table, num_classes, seed)
    chosen = tables.select_classes(source.table, source.present, classes)
    return source.write(output_csv, chosen, classes, num_classes, None, {"tool": "select-classes", "seed": seed})


def clean(input_csv: str | Path, output_csv: str | Path, video_dir: str | Path, **files) -> dict:
    """Write the rows that there is a file of, in their order, without those whose start is no number (a warning counts them).
    Arguments and summary as of `select_subset`."""
    source = _Source.read(input_csv, video_dir, drop_bad_starts=True, **files)
    classes = list(dict.fromkeys(source.table["label"]))
    chosen = tables.select_classes(source.table, source.present, classes)
    return source.write(output_csv, chosen, classes, len(classes), None, {"tool": "clean"})


def copy_subset(subset_csv: str | Path, source_video_dir: str | Path, destination_video_dir: str | Path = "video", *,
                file_extension: str = ".mp4") -> dict:
    """Copy the videos of a table, with their times and permissions, into one folder, which is made.

    A file that is there already, with the same time or the same bytes, is left as it is, and a new one appears whole, so that an
    interrupted copy goes on where it stopped.

    Returns:
        Summary: "asked", "found", "copied", "identical" (were there), "missing" (have no file), "failed" {file: why}, "per_class"
        {label: {"asked", "missing"}}.

    Raises:
        FileNotFoundError: no such table or folder, or none of the videos is there. OSError: the disk is full or read-only.
    """
    table, videos = tables.read_table(user_path(subset_csv)), tables.find_videos(user_path(source_video_dir), file_extension)
    table = table[~table["clip_id"].duplicated()]
    wanted = [clip_id for clip_id in table["clip_id"] if clip_id in videos]
    _refuse_none(wanted, table, source_video_dir, file_extension)
    target = user_path(destination_video_dir)
    target.mkdir(parents=True, exist_ok=True)
    counts, failed = Counter(), {}
    for clip_id in track(wanted, len(wanted), "copying videos"):
        name = f"{clip_id}{file_extension}"
        try:
            counts[_copy(user_path(source_video_dir) / videos[clip_id], target / name)] += 1
        except OSError as error:
            if error.errno in FULL:
                raise
            failed[name] = str(error)
    return {"tool": "copy-subset", "subset_csv": str(subset_csv), "source_video_dir": str(source_video_dir),
            "destination_video_dir": str(destination_video_dir), **_missing(table, videos), "copied": counts["copied"],
            "identical": counts["identical"], "failed": failed}


def check(input_csv: str | Path, video_dir: str | Path, *, num_clips: int = 10, clips: Sequence[str] = (),
          seed: int = tables.SEED, file_extension: str = ".mp4") -> dict:
    """Decode a few clips as training does, and tell what they hold.

    Args:
        num_clips: this many are drawn by `seed` from those that there are files of.
        clips: ids (<id>_<start in six digits>) to look at instead.

    Returns:
        Summary: "asked" (clips of the table), "found", "missing", "per_class" {label: {"asked", "missing"}}, "checked", "failed"
        and "clips", for each one "clip_id", "label", "split", "path" (relative to video_dir), "problem" ("" for a good one), and
        where it decodes "frames", "frame_rate", "width", "height", "video_seconds", "sound_seconds", "peak" (share of full scale)
        and "decoding_seconds".

    Raises:
        FileNotFoundError: no such table or folder, or no video is there. ValueError: a clip that is not in the table.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, got {num_clips}")
    table, videos = tables.read_table(user_path(input_csv)), tables.find_videos(user_path(video_dir), file_extension)
    table = table[~table["clip_id"].duplicated()]
    unknown = sorted(set(clips) - set(table["clip_id"]))
    if unknown:
        raise ValueError(f"{input_csv} has no clip {unknown[0]!r}; a clip is given as <id>_<start in six digits>")
    there = table[table["clip_id"].isin(videos.keys())]
    _refuse_none(there, table, video_dir, file_extension)
    if clips:
        rows = table.set_index("clip_id", drop=False).loc[list(dict.fromkeys(clips))]
    else:
        rows = there.iloc[sorted(random.Random(seed).sample(range(len(there)), min(num_clips, len(there))))]
    looks = [{"clip_id": row.clip_id, "label": row.label, "split": row.split, "path": videos.get(row.clip_id, ""),
              **_look(user_path(video_dir), videos.get(row.clip_id))} for row in track(rows.itertuples(), len(rows), "decoding")]
    return {"tool": "check", "input_csv": str(input_csv), "video_dir": str(video_dir), **_missing(table, videos),
            "checked": len(looks), "failed": sum(bool(look["problem"]) for look in looks), "clips": looks}


def _look(folder: Path, path: str | None) -> dict:
    from lib.media import video  # here, because it loads torch, which the other tools do without

    if path is None:
        return {"problem": "missing: there is no such file"}
    begin = time.perf_counter()
    try:
        info, clip = video.probe(folder / path), video.read_clip(folder / path)
    except video.VideoError as error:
        return {"problem": str(error)}
    low, high = (clip.waveform.min(), clip.waveform.max()) if clip.has_audio else (0.0, 0.0)
    problem = "it has no sound" if not clip.has_audio else "it is silent" if (high - low) / 2 <= SILENCE else ""
    return {"problem": problem, "frames": info.frames, "frame_rate": round(info.rate, 3),
            "width": info.width, "height": info.height, "video_seconds": round(info.duration, 3),
            "sound_seconds": round(clip.waveform.shape[1] / 16000, 3),
            "peak": round(float(max(-low, high)), 5), "decoding_seconds": round(time.perf_counter() - begin, 3)}


@dataclass(frozen=True)
class _Source:
    """A table and what there is of its videos.

    present: ids of clips that there are files of; undecodable: likewise, but they were looked at and cannot be used.
    """

    input_csv: str | Path
    video_dir: str | Path
    table: pd.DataFrame
    present: set[str]
    undecodable: set[str]

    @classmethod
    def read(cls, input_csv, video_dir, *, drop_bad_starts: bool = False, file_extension: str = ".mp4",
             check_decode: bool = False, workers: int = 0) -> _Source:
        table = tables.read_table(user_path(input_csv), drop_bad_starts=drop_bad_starts)
        videos = tables.find_videos(user_path(video_dir), file_extension)
        present, bad = set(table["clip_id"]) & videos.keys(), set()
        _refuse_none(present, table, video_dir, file_extension)
        if check_decode:
            from lib.data import health, video_health

            files = {clip: str((user_path(video_dir) / videos[clip]).absolute()) for clip in sorted(present)}
            heard, seen = health.inspect(files.values(), workers), video_health.inspect(files.values(), workers)
            bad = {clip for clip, file in files.items() if heard[file].reason not in ("", "silent") or seen[file]}
        return cls(input_csv, video_dir, table, present - bad, bad)

    def write(self, output_csv, chosen: pd.DataFrame, classes: list[str], num_classes: int, asked: int | None,
              facts: dict) -> dict:
        """Write the chosen rows and the summary. asked: clips of a class; None: all of the table."""
        if not len(chosen):
            more = ", ..." if len(classes) > NAMED else ""
            raise ValueError(f"{output_csv}: not written, as no row is left; of the {len(classes)} chosen classes "
                             f"({', '.join(classes[:NAMED])}{more}) no clip that was asked for is in {self.video_dir}")
        state = np.select([self.table["clip_id"].isin(self.present), self.table["clip_id"].isin(self.undecodable)],
                          ["found", "undecodable"], "missing")
        counts, written = Counter(zip(self.table["label"], state)), Counter(chosen["label"])
        per_class, total = {}, Counter()
        for label in classes:
            states = {name: counts[label, name] for name in ("found", "missing", "undecodable")}
            per_class[label] = {"asked": sum(states.values()) if asked is None else asked, "written": written[label], **states}
            total.update(per_class[label])
        summary = facts | {
            "input_csv": str(self.input_csv), "output_csv": str(output_csv), "video_dir": str(self.video_dir),
            "classes": {"asked": num_classes, "found": len(written)}, "rows": {"asked": total["asked"], "found": len(chosen)},
            "splits": chosen["split"].value_counts().to_dict(), "missing": total["missing"], "undecodable": total["undecodable"],
            "per_class": per_class}
        file = tables.write_table(user_path(output_csv), chosen)
        write_json(file.with_name(f"{file.name}.json"), summary)
        return summary


def _refuse_none(present, table: pd.DataFrame, video_dir, file_extension: str) -> None:
    if not len(present):
        raise FileNotFoundError(f"{video_dir} holds none of the {len(table)} videos of the table, for example no "
                                f"{table['clip_id'].iat[0]}{file_extension}; give the folder that holds them")


def _missing(table: pd.DataFrame, videos: dict[str, str]) -> dict:
    """Numbers of clips, in all and by class."""
    there = table["clip_id"].isin(videos.keys())
    counts = table.assign(there=there).groupby("label", sort=False)["there"].agg(["size", "sum"])
    return {"asked": len(table), "found": int(there.sum()), "missing": int((~there).sum()),
            "per_class": {label: {"asked": int(n), "missing": int(n - found)} for label, n, found in counts.itertuples()}}


def _copy(source: Path, target: Path) -> str:
    # shallow: equal size and time are enough, otherwise the bytes are compared
    if target.is_file() and filecmp.cmp(source, target, shallow=True):
        return "identical"
    part = target.with_name(f"{target.name}.part")
    shutil.copy2(source, part)
    os.replace(part, target)
    return "copied"
