"""Spoken digits: short recordings of the words zero to nine in the layout of the Free Spoken Digit Dataset (Z. Jackson, 2016).

Files are called {digit}_{speaker}_{index}.wav, directly in the folder or in recordings/. As published, recordings 0 to 4 of every
speaker and digit are the test split; validation is a share of each speaker's other recordings of each digit, or one whole speaker.
Test and training share their speakers: scores tell nothing about voices that were never heard.
"""
from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path

import pandas as pd

from lib.data import download as transfer
from lib.data import health
from lib.data.manifest import Manifest, fill, sample
from lib.media.audio import SUFFIXES
from lib.settings import data_dir

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
RECORDINGS = 3000           # of version 1.0.10: 6 speakers, 10 digits, 50 each
TEST_INDICES = range(5)
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ["{}", "a person says {}", "the spoken digit {}", "someone speaks the number {}", "a voice saying the word {}"]
_NAME = re.compile(r"([0-9])_([^_/]+)_([0-9]{1,6})")


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            val_share: float = 0.2, val_speaker: str | None = None) -> Manifest:
    """The manifest of the spoken digits that are there.

    Args:
        data_root: the folder (or its parent, as the archive unpacks); None: where `python -m lib.data download digits` puts it.
        seed: chooses the clips when `num_samples` is given; the splits depend on the names of the files only.
        val_share: share of each speaker's recordings of each digit outside the test split that become validation, 0 to 0.9;
            where it is above 0 and there are two or more, at least one.
        val_speaker: all recordings of this speaker outside the test split are validation instead; None: as val_share says.

    Returns:
        Manifest with the label of the digit's word, five captions a clip and the columns speaker and index. Audio files with
        another kind of name are left out and counted in info["left_out"].

    Raises:
        FileNotFoundError, ValueError: naming the folder or option and what was expected.
    """
    if not 0 <= val_share <= 0.9:
        raise ValueError(f"val_share must be from 0 to 0.9, got {val_share}")
    root, folder = _find(data_root)
    names = sorted(f.name for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file() and not f.name.startswith("."))
    rows = [(name, *found.groups()) for name in names if (found := _NAME.fullmatch(Path(name).stem))]
    left_out = {"names that are not digit_speaker_index": len(names) - len(rows)} if len(rows) < len(names) else {}
    if left_out:
        warnings.warn(f"{folder}: left out {len(names) - len(rows)} names that are not digit_speaker_index", stacklevel=2)
    rows = pd.DataFrame(rows, columns=["name", "digit", "speaker", "index"]).astype({"digit": int, "index": int})
    speakers = sorted(set(rows["speaker"]))
    if val_speaker is not None and val_speaker not in speakers:
        raise ValueError(f"val_speaker must be one of the speakers {', '.join(speakers)} of {folder}, got {val_speaker!r}")
    inside = folder.relative_to(root).as_posix()
    table = pd.DataFrame({
        "clip_id": [Path(name).stem for name in rows["name"]],
        "path": [name if inside == "." else f"{inside}/{name}" for name in rows["name"]],
        "start": 0.0,
        "duration": 0.0,        # measured below
        "split": _splits(rows, val_share, val_speaker),
        "captions": [fill(TEMPLATES, WORDS[digit]) for digit in rows["digit"]],
        "labels": [[WORDS[digit]] for digit in rows["digit"]],
        "speaker": rows["speaker"].tolist(),
        "index": rows["index"].tolist(),
    })
    info = {
        "title": "Spoken digits",
        "source": "Z. Jackson and others, Free Spoken Digit Dataset (CC BY-SA 4.0)",
        "classes": [word for digit, word in enumerate(WORDS) if digit in set(rows["digit"])],
        "templates": TEMPLATES,
        "left_out": left_out,
    }
    manifest = sample(Manifest(table, "digits", root, info), num_samples, seed)
    return health.check(health.measure(manifest, workers), workers)


def _splits(rows: pd.DataFrame, val_share: float, val_speaker: str | None) -> list[str]:
    """Split of each row: by index, then a share of each (speaker, digit) by a hash of the names, or all of a speaker."""
    split = pd.Series(["test" if index in TEST_INDICES else "train" for index in rows["index"]], index=rows.index)
    if val_speaker is not None:
        split[(split == "train") & (rows["speaker"] == val_speaker)] = "val"
        return split.tolist()
    for _, group in rows[split == "train"].groupby(["speaker", "digit"]):
        wanted = round(val_share * len(group)) or int(val_share > 0 and len(group) > 1)
        rank = [hashlib.sha256(f"digits validation {Path(name).stem}".encode()).digest() for name in group["name"]]
        split[[row for _, row in sorted(zip(rank, group.index))[:wanted]]] = "val"
    return split.tolist()


def _find(data_root: Path | None) -> tuple[Path, Path]:
    """The folder that paths are relative to, and the one inside it that holds the recordings."""
    start = data_dir() / "digits" if data_root is None else Path(data_root)
    for root in (start, *(sorted(start.iterdir()) if start.is_dir() else ())):
        for folder in (root / "recordings", root):
            if folder.is_dir() and any(_NAME.fullmatch(f.stem) and f.suffix.lower() in SUFFIXES for f in folder.iterdir()):
                return root, folder
    if data_root is None:
        raise FileNotFoundError(f"spoken digits are not in {start}; run `python -m lib.data download digits` (about 16 MB), or set "
                                "data_root to the folder that holds recordings/")
    raise FileNotFoundError(f"data_root: {start} holds no audio file called digit_speaker_index, such as recordings/7_jackson_32.wav; "
                            "set it to the folder that does, or use dataset \"folder\" for audio of your own")


def download() -> Path:
    """Fetch and unpack version 1.0.10 into the data folder. Resumable; returns the folder that `prepare` finds.

    No checksum is published: every entry's CRC and the 3,000 names are verified instead. Written from the published layout; the
    download itself was not run here.
    """
    folder = data_dir() / "digits"
    if not folder.is_dir():
        archive = transfer.fetch(URL, data_dir() / "downloads" / "free-spoken-digit-dataset-1.0.10.zip")
        transfer.extract(archive, folder, max_bytes=2**30, verify=verify)
        archive.unlink()
    return folder


def verify(folder: Path, expected: int = RECORDINGS) -> None:
    """Raise DownloadError unless `folder` holds `expected` recordings."""
    try:
        found = sum(_NAME.fullmatch(f.stem) is not None and f.suffix == ".wav" for f in _find(folder)[1].iterdir())
    except FileNotFoundError:
        found = 0
    if found != expected:
        raise transfer.DownloadError(f"the archive is not the Free Spoken Digit Dataset as published: {found:,} recordings instead of "
                                     f"{expected:,}; remove it and download it again")
