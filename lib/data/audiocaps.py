"""AudioCaps: 10 s of YouTube videos in AudioSet, one caption in training, five in validation and test (Kim et al., NAACL 2019).

Tables as published (audiocap_id, youtube_id, start_time, caption; a row a caption) or wide (file_name, caption_1 ... caption_5); audio
in folders train, val and test, called by the video's id, with or without its start time, in any format.
"""
from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from lib.data import captioned
from lib.data import download as transfer
from lib.data.manifest import Manifest
from lib.settings import data_dir

URL = "https://cloud.cp.jku.at/index.php/s/9MiMcrNjJ3Z9FfH/download/AUDIOCAPS.zip"     # mp3 and tables, of the DCASE 2025 Task 6 baseline
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
EXPECTED = {"train": 49838, "val": 495, "test": 975}
PUBLISHED = ("youtube_id", "caption")


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0) -> Manifest:
    """The manifest of AudioCaps, or of the splits that are there. Many videos are gone by now; what is missing is counted.

    Args:
        data_root: folder with train.csv, val.csv, test.csv and the audio below it; None: where `python -m lib.data download audiocaps`
            puts it.
        seed: chooses the clips when `num_samples` is given.
    Returns:
        Manifest whose clip ids are split/youtube_id; info["expected"] are the published numbers of clips and info["found"] those
        of the tables (fewer: a warning), info["left_out"] counts what is missing.
    Raises:
        FileNotFoundError, ValueError: naming the folder or table and what was expected.
    """
    root = captioned.find("audiocaps", data_root)
    files = captioned.Files(root, lambda folder: SPLITS.get(folder.lower()), youtube_id)
    rows = []
    for split in ("train", "val", "test"):
        table = files.table(f"{split}.csv", f"audiocaps_{split}.csv", f"audiocaps_{split}_wide.csv")
        for video, captions in (_captions(table) if table else {}).items():
            path = files.path(split, video + ".wav")
            rows.append({"clip_id": f"{split}/{video}", "path": path, "split": split, "captions": captions})
    if not rows:
        raise FileNotFoundError(f"{root} holds no train.csv, val.csv or test.csv; run `python -m lib.data download audiocaps`, or set "
                                "data_root to the folder of AudioCaps")
    info = {"title": "AudioCaps", "source": "Kim, Kim, Lee, Kim, AudioCaps: generating captions for audios in the wild, 2019",
            "expected": EXPECTED}
    return captioned.manifest("audiocaps", root, rows, Counter(), info, seed=seed, num_samples=num_samples, workers=workers,
                              listed=Counter(row["split"] for row in rows))


def youtube_id(stem: str) -> str:
    """The 11 characters of a video's id in `id`, `Yid`, `id_start` or `Yid_start`; another stem as it is."""
    found = re.fullmatch(r"Y?([\w-]{11})(?:_\d+(?:_\d+)?)?", stem)
    return found[1] if found else stem


def _captions(table: Path) -> dict[str, list[str]]:
    """Captions of each video in a table, in its order."""
    head = captioned.read_csv(table, ())
    if "file_name" in head:
        columns = [c for c in head if re.fullmatch(r"caption(_\d+)?", c)]
        pairs = [(youtube_id(Path(r["file_name"]).stem), r[c]) for r in captioned.read_csv(table, ("file_name", "caption_1")).to_dict("records")
                 for c in columns]
    else:
        pairs = [(r["youtube_id"], r["caption"]) for r in captioned.read_csv(table, PUBLISHED).to_dict("records")]
    captions: dict[str, list[str]] = {}
    for video, caption in pairs:
        captions.setdefault(video, []).extend([caption.strip()] if caption.strip() else [])
    return captions


def download(folder: Path | None = None) -> Path:
    """Fetch and unpack the mp3 archive of the DCASE 2025 Task 6 baseline (3 GB; resumable). Returns the folder that `prepare` reads.

    No checksum of it is published: the CRC of every entry is verified while unpacking.
    """
    folder = Path(folder or data_dir() / "audiocaps")
    if not folder.is_dir():
        fetched = transfer.fetch(URL, folder.with_name("downloads") / "AUDIOCAPS.zip")
        transfer.extract(fetched, folder)
        fetched.unlink()
    return folder
