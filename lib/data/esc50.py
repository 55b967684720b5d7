"""ESC-50 and its subset ESC-10: 5 s recordings of environmental sounds in 50 classes (K. J. Piczak, 2015).

The published layout is `meta/esc50.csv` (filename, fold, target, category, esc10, src_file, take) beside `audio/`; the files
may be in any audio format. Clips cut from one source recording share `src_file` and must share a split. One fold is the
test set; validation takes whole sources of the other folds.
"""
from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from lib.data import download as transfer
from lib.data import health
from lib.data.manifest import Manifest, fill, sample
from lib.media.audio import SUFFIXES
from lib.settings import data_dir

URL = "https://github.com/karoldvl/ESC-50/archive/master.zip"
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file")
TEMPLATES = ["{}", "the sound of {}", "a recording of {}", "{} can be heard", "in this clip there is {}"]
SUPER_CATEGORIES = ["animals", "natural soundscapes and water sounds", "human, non-speech sounds", "interior or domestic sounds",
                    "exterior or urban noises"]
# In the order of the published targets: ten classes of each super-category.
PHRASES = {
    "dog": "a dog barking", "rooster": "a rooster crowing", "pig": "a pig grunting", "cow": "a cow mooing",
    "frog": "a frog croaking", "cat": "a cat meowing", "hen": "a hen clucking", "insects": "insects buzzing",
    "sheep": "a sheep bleating", "crow": "a crow cawing",
    "rain": "rain falling", "sea_waves": "sea waves rolling onto the shore", "crackling_fire": "a fire crackling",
    "crickets": "crickets chirping at night", "chirping_birds": "birds singing", "water_drops": "drops of water dripping",
    "wind": "wind blowing", "pouring_water": "water being poured", "toilet_flush": "a toilet flushing",
    "thunderstorm": "thunder rumbling in a storm",
    "crying_baby": "a baby crying", "sneezing": "a person sneezing", "clapping": "people clapping their hands",
    "breathing": "a person breathing", "coughing": "a person coughing", "footsteps": "footsteps of someone walking",
    "laughing": "a person laughing", "brushing_teeth": "someone brushing their teeth", "snoring": "a person snoring",
    "drinking_sipping": "someone sipping a drink",
    "door_wood_knock": "knocking on a wooden door", "mouse_click": "clicks of a computer mouse",
    "keyboard_typing": "typing on a keyboard", "door_wood_creaks": "a wooden door creaking", "can_opening": "a can being opened",
    "washing_machine": "a washing machine running", "vacuum_cleaner": "a vacuum cleaner humming",
    "clock_alarm": "an alarm clock ringing", "clock_tick": "a clock ticking", "glass_breaking": "glass breaking",
    "helicopter": "a helicopter flying", "chainsaw": "a chainsaw cutting", "siren": "a siren wailing",
    "car_horn": "a car horn honking", "engine": "an engine running", "train": "a train passing",
    "church_bells": "church bells ringing",
    "airplane": "an airplane flying over", "fireworks": "fireworks exploding", "hand_saw": "a hand saw sawing wood",
}
TAXONOMY = {category: [SUPER_CATEGORIES[i // 10]] for i, category in enumerate(PHRASES)}


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            esc10_only: bool | None = None, test_fold: int = 4, val_share: float = 0.2,
            val_fold: int | None = None) -> Manifest:
    """The manifest of ESC-50, or of the part of it that is there.

    Args:
        data_root: folder with meta/ and audio/ (or its parent); None: where `python -m lib.data download esc50` puts it.
        seed: chooses the clips when `num_samples` is given; the splits are part of the data set and never depend on it.
        esc10_only: True: the ten classes of ESC-10; False: all of the table; None: the clips whose files are there (the
            others are counted in info["absent"], not as bad files).
        test_fold: the fold that is the test split (ESC-50 has 1-5, the ESC-10 sample of the tests 1-4).
        val_share: share of each class's sources outside the test fold that become validation, 0 to 0.9.
        val_fold: this whole fold is validation instead, without clips that share a source with the others; None: as val_share says.

    Returns:
        Manifest with the further columns fold (int), group (source recording) and five captions a clip.
    """
    if not 0 <= val_share <= 0.9:
        raise ValueError(f"val_share must be from 0 to 0.9, got {val_share}")
    root = _find(data_root)
    rows = _read_table(root)
    if esc10_only:
        rows = rows[rows["esc10"]]
    files = {f.name: f for f in sorted((root / "audio").iterdir()) if f.suffix.lower() in SUFFIXES}
    by_stem = {f.stem: name for name, f in files.items()}
    found = [name if name in files else by_stem.get(Path(name).stem) for name in rows["filename"]]
    rows = rows.assign(path=[f"audio/{f or name}" for f, name in zip(found, rows["filename"])])
    absent = sum(f is None for f in found)
    if esc10_only is None and absent < len(rows):
        rows = rows[[f is not None for f in found]]
    if test_fold not in set(rows["fold"]):
        raise ValueError(f"test_fold must be one of the folds {sorted(set(rows['fold']))} of {root}, got {test_fold}")
    if val_fold is not None and (val_fold not in set(rows["fold"]) or val_fold == test_fold):
        raise ValueError(f"val_fold must be one of the folds {sorted(set(rows['fold']) - {test_fold})} of {root}, got {val_fold}")
    split = _splits(rows, test_fold, val_share) if val_fold is None else _by_fold(rows, test_fold, val_fold)
    table = pd.DataFrame({
        "clip_id": [Path(name).stem for name in rows["filename"]],
        "path": rows["path"].tolist(),
        "start": 0.0,
        "duration": 0.0,  # measured below: published clips last 5 s, but some of ESC-10's own files are shorter
        "split": split,
        "captions": [fill(TEMPLATES, PHRASES[c]) for c in rows["category"]],
        "labels": [[c] for c in rows["category"]],
        "group": rows["src_file"].tolist(),
        "fold": rows["fold"].tolist(),
    })
    classes = [c for c in PHRASES if c in set(rows["category"])]
    info = {
        "title": "ESC-10" if rows["esc10"].all() else "ESC-50",
        "source": "K. J. Piczak, ESC: Dataset for Environmental Sound Classification, 2015 (CC BY-NC 3.0; ESC-10: CC BY 3.0)",
        "classes": classes,
        "taxonomy": {c: TAXONOMY[c] for c in classes},
        "templates": TEMPLATES,
        "phrases": {c: PHRASES[c] for c in classes},
        "absent": absent,
        "left_out_shared_source": split.count(""),
    }
    manifest = Manifest(table[table["split"] != ""], "esc50", root, info)
    return health.check(health.measure(sample(manifest, num_samples, seed), workers), workers)


def _splits(rows: pd.DataFrame, test_fold: int, val_share: float) -> list[str]:
    """Split of each row; "" for a row outside the test fold whose source is also inside it."""
    test_sources = set(rows["src_file"][rows["fold"] == test_fold])
    rest = rows[~rows["src_file"].isin(test_sources)]
    chosen: dict[str, bool] = {}  # source -> is validation; a source of two classes is decided once
    for _, clips in rest.groupby("category", sort=True):
        sources = sorted(set(clips["src_file"]), key=lambda s: hashlib.sha256(f"esc50 validation {s}".encode()).digest())
        wanted = round(val_share * len(sources)) or int(val_share > 0 and len(sources) > 1)
        wanted -= sum(chosen.get(s, False) for s in sources)
        for source in sources:
            if source not in chosen:
                chosen[source] = wanted > 0
                wanted -= 1
    return ["test" if fold == test_fold else "" if source in test_sources else "val" if chosen[source] else "train"
            for fold, source in zip(rows["fold"], rows["src_file"])]


def _by_fold(rows: pd.DataFrame, test_fold: int, val_fold: int) -> list[str]:
    """Split of each row by its fold; "" for a row whose source is also in a fold of a later split."""
    sources = {fold: set(rows["src_file"][rows["fold"] == fold]) for fold in (test_fold, val_fold)}
    return ["test" if fold == test_fold else "" if source in sources[test_fold] else "val" if fold == val_fold
            else "" if source in sources[val_fold] else "train" for fold, source in zip(rows["fold"], rows["src_file"])]


def _find(data_root: Path | None) -> Path:
    start = data_dir() / "esc50" if data_root is None else Path(data_root)
    for folder in (start, *sorted(start.glob("ESC-*"))):
        if (folder / "meta" / "esc50.csv").is_file() and (folder / "audio").is_dir():
            return folder
    if data_root is None:
        raise FileNotFoundError(f"ESC-50 is not in {start}; run `python -m lib.data download esc50` (about 600 MB), or "
                                "set data_root to the folder that holds meta/esc50.csv and audio/")
    raise FileNotFoundError(f"data_root: {start} does not hold meta/esc50.csv and audio/, the published layout of ESC-50; "
                            "set it to the folder that does, or use dataset \"folder\" for audio of your own")


def _read_table(root: Path) -> pd.DataFrame:
    file = root / "meta" / "esc50.csv"
    rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    missing = [c for c in COLUMNS if c not in rows]
    if missing:
        raise ValueError(f"{file}: column {missing[0]!r} is missing; the published table has {', '.join(COLUMNS)}")
    unknown = sorted(set(rows["category"]) - set(PHRASES))
    if unknown:
        raise ValueError(f"{file}: category {unknown[0]!r} is none of ESC-50's; use dataset \"folder\" for classes of your own")
    outside = [name for name in rows["filename"] if not name or "/" in name or "\\" in name or name == ".."]
    if outside:
        raise ValueError(f"{file}: filename {outside[0]!r} must be the name of a file in audio/")
    return rows.assign(fold=rows["fold"].astype(int), esc10=rows["esc10"].str.lower() == "true")


def download() -> Path:
    """Fetch and unpack the published archive into the data folder. Resumable; returns the folder that `prepare` finds.

    The archive is made from a branch, so there is no fixed checksum: every entry's CRC, the 2,000 rows of the table and the
    file of each row are verified instead.
    """
    folder = data_dir() / "esc50"
    if not folder.is_dir():
        archive = transfer.fetch(URL, data_dir() / "downloads" / "ESC-50-master.zip")
        transfer.extract(archive, folder, max_bytes=4 * 2**30, verify=verify)
        archive.unlink()
    return folder


def verify(folder: Path, expected: int = 2000) -> None:
    """Raise DownloadError unless `folder` holds ESC-50 with `expected` rows and the audio file of each."""
    try:
        root = _find(folder)
        rows = _read_table(root)
    except (FileNotFoundError, ValueError) as error:
        raise transfer.DownloadError(f"the archive is not ESC-50 as published: {error}") from error
    there = {f.name for f in (root / "audio").iterdir()}
    absent = [name for name in rows["filename"] if name not in there]
    if len(rows) != expected or absent:
        raise transfer.DownloadError(f"the archive is not ESC-50 as published: {len(rows)} rows instead of {expected}, "
                                     f"{len(absent)} audio files missing; remove it and download it again")
