"""WavCaps: about 403,000 clips of four sources, each with one caption that a language model wrote (Mei et al., arXiv 2303.17395).

A JSON table a source (json_files/SoundBible/sb_final.json ...), audio in a folder a source, called by its id, in any format. All of it
is training data. Ids are text. Clips of the FreeSound source that are in Clotho's evaluation split are left out: without the list of
their ids the source is refused, because whoever trains on them measures memory. Clips of AudioSet_SL that are in AudioCaps' val
and test splits are left out by a list that WavCaps publishes; without it there is a warning, as a score on Clotho is not touched.
"""
from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from pathlib import Path

from lib.data import captioned
from lib.data import download as transfer
from lib.data.manifest import Manifest
from lib.files import user_path
from lib.settings import data_dir

TABLES = {"FreeSound": "fsd_final.json", "BBC_Sound_Effects": "bbc_final.json", "SoundBible": "sb_final.json", "AudioSet_SL": "as_final.json"}
EXPECTED = {"FreeSound": 262300, "BBC_Sound_Effects": 31201, "SoundBible": 1232, "AudioSet_SL": 108317}
EXCLUDED = "dcase2025_task6_excluded_freesound_ids.csv"
EXCLUDED_IDS = 3079         # numeric ids in the published list; its one other row says "Not found"
EXCLUDED_URL = "https://raw.githubusercontent.com/CPJKU/dcase2025_task6_baseline/HEAD/resources/" + EXCLUDED
IN_AUDIOCAPS = "blacklist_exclude_test_ac.json"     # {"AudioSet": [1,451 names such as Y....wav], "FreeSound": [...]}
BROKEN = frozenset({"YVcu0pVF1npM", "Y06-g5jz-OGc", "Y3sSblRfEG2o", "YWudGD6ZHRoY", "YFli8wjBFV2M", "YmW3S0u8bj58"})
HUB, REVISION = "cvssp/WavCaps", "0930ec11ded28fa0eaa910fde2f6fc3538acbeac"
# the volumes of WavCaps_mp3.7z of the DCASE 2025 Task 6 baseline, in their order
SHARE = "https://cloud.cp.jku.at/index.php/s/{}/download/{}"
VOLUMES = ("BxBp6r6asdsiWK8", "dYMoW7D7nAx2LSE", "6TREKcC4e7nzk2E", "pg47anEan8kPaTD", "4DSTDiC2kWPSgc7", "XZ3s7mkdyn9pZ2K", "fKwb8c5FMS3KYDa",
           "ZW4LgFfxNJS3PGb", "pG2i2fqJBr96EW9", "NfN977dpoirFr9D", "qWoqYiHzeDa7xSw", "8EPsKozRn9WekG4", "8Mri5yQmLPfKKSt", "qc6FRwTSTXw6FX7",
           "mTG3XMirG9EzMEb")
MAX_BYTES = 400 * 2**30


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            subsets: tuple[str, ...] = tuple(TABLES), excluded_ids: str | None = None, max_seconds: float | None = 120.0,
            probe_seconds: float | None = 1.0) -> Manifest:
    """The manifest of WavCaps, or of the sources that are there.

    Args:
        data_root: folder with the tables and the audio below it; None: where `python -m lib.data download wavcaps` puts it.
        seed: chooses the clips when `num_samples` is given.
        subsets: sources to use, names of `TABLES` (or one name).
        excluded_ids: CSV file whose column sound_id lists FreeSound ids that must not be trained on; None: the published list, which
            lies beside the data; "none": leave nothing out (info["excluded_ids"] is then 0, otherwise the number of ids listed).
        max_seconds: longer clips are left out.
        probe_seconds: how much of every file the health check decodes; None: all of it, which takes hours on hundreds of thousands.
    Returns:
        Manifest whose clip ids are subset/id; info["left_out"] counts every rule's clips, info["expected"] are the published
        numbers and info["found"] those of the tables before any rule (fewer: a warning).
    Raises:
        FileNotFoundError, ValueError: naming the folder, table or list and what was expected.
    """
    subsets = (subsets,) if isinstance(subsets, str) else subsets
    unknown = [s for s in subsets if s not in TABLES]
    if unknown or not subsets:
        raise ValueError(f"subsets: {unknown[0]!r} is none of {', '.join(TABLES)}" if unknown else "subsets: name one at least")
    root = captioned.find("wavcaps", data_root)
    files = captioned.Files(root, _source)
    rows, left_out, listed = [], Counter(), Counter()
    info = {"title": "WavCaps", "source": "Mei et al., WavCaps, 2024 (academic use only)", "expected": {s: EXPECTED[s] for s in subsets}}
    for subset in subsets:
        table = files.table(TABLES[subset])
        if table is None:
            continue
        excluded = _excluded(files, excluded_ids) if subset == "FreeSound" else set()
        in_audiocaps = _in_audiocaps(files) if subset == "AudioSet_SL" else set()
        records = read_table(table)
        listed[subset] = len(records)
        overlap = 0
        for record in records:
            name = record["id"].removesuffix(".wav")
            if subset == "FreeSound" and name in excluded:
                overlap += 1
            elif subset == "AudioSet_SL" and name in BROKEN:
                left_out["on the list of broken files"] += 1
            elif name in in_audiocaps:
                left_out["in AudioCaps' val or test split"] += 1
            else:
                rows.append({"clip_id": f"{subset}/{name}", "path": files.path(subset, name + ".wav"), "split": "train",
                             "captions": [record["caption"]] if record["caption"] else [], "seconds": record["duration"]})
        if subset == "FreeSound":
            info["excluded_ids"] = len(excluded)
            left_out["on the list of excluded FreeSound ids"] += overlap
            if excluded and not overlap and len(records) > 1000:
                warnings.warn(f"{table}: none of its {len(records)} clips is among the {len(excluded)} excluded ids; is it the right list?",
                              stacklevel=2)
    if not rows:
        raise FileNotFoundError(f"{root} holds none of {', '.join(TABLES[s] for s in subsets)}; run `python -m lib.data download wavcaps`, or "
                                "set data_root to the folder of WavCaps")
    return captioned.manifest("wavcaps", root, rows, left_out, info, seed=seed, num_samples=num_samples, workers=workers,
                              listed=listed, max_seconds=max_seconds, probe_seconds=probe_seconds)


def read_table(file: Path) -> list[dict]:
    """Clips of one source: dicts with id and caption (texts) and duration (seconds). ValueError: naming the file and the row."""
    try:
        records = json.loads(file.read_text(encoding="utf-8"))["data"]
        return [{"id": str(r["id"]).strip(), "caption": str(r["caption"]).strip(), "duration": float(r.get("duration") or 0)} for r in records]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not a table of WavCaps ({type(error).__name__}: {error}); each entry of \"data\" needs id and caption. "
                         "Download it again") from error


def read_excluded(file: Path) -> set[str]:
    """FreeSound ids of a list (column sound_id) as texts, without rows that are no number ("Not found").

    Raises:
        ValueError: no such column, no number in it, or a list of the published name that has not its 3,079 ids.
    """
    # Read as numbers, ids would never equal the names of files, and nothing would be excluded. Some programs add ".0" to them.
    ids = (re.fullmatch(r"([0-9]+)(?:\.0+)?", value.strip()) for value in captioned.read_csv(file, ("sound_id",))["sound_id"])
    numeric = {found[1] for found in ids if found}
    if not numeric:
        raise ValueError(f"{file}: column sound_id holds no FreeSound id (a whole number)")
    if file.name == EXCLUDED and len(numeric) != EXCLUDED_IDS:
        raise ValueError(f"{file}: {len(numeric):,} ids, the published list has {EXCLUDED_IDS:,}; download it again, or give a list of your "
                         "own another name")
    return numeric


def _excluded(files: captioned.Files, choice: str | None) -> set[str]:
    if choice == "none":
        return set()
    file = user_path(choice) if choice else files.table(EXCLUDED)
    if file is None or not file.is_file():
        raise FileNotFoundError(f"excluded_ids: the FreeSound part of WavCaps overlaps Clotho's evaluation split, and the list of its ids is not "
                                f"at {file or files.root / EXCLUDED}. Get it from {EXCLUDED_URL}, or set excluded_ids to a list of your own, "
                                "or to 'none' when you never score on Clotho")
    return read_excluded(file)


def _in_audiocaps(files: captioned.Files) -> set[str]:
    file = files.table(IN_AUDIOCAPS)
    if file is None:
        warnings.warn(f"{files.root} holds no {IN_AUDIOCAPS}, so that clips of AudioCaps' val and test splits stay in AudioSet_SL; "
                      f"get it from json_files/blacklist/ of {HUB}, or never score on AudioCaps", stacklevel=3)
        return set()
    try:
        return {str(name).removesuffix(".wav") for name in json.loads(file.read_text(encoding="utf-8"))["AudioSet"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not the published list ({type(error).__name__}: {error}), which holds \"AudioSet\": [names]; "
                         "download it again") from error


def _source(folder: str) -> str | None:
    name = folder.removesuffix("_flac").removesuffix("_mp3")
    return name if name in TABLES else None


def download(folder: Path | None = None) -> Path:
    """Fetch tables (Hugging Face), exclusion list and the 15 volumes of mp3 (150 GB), and unpack them. Resumable; returns the folder.

    No checksums of the volumes are published: the archive's CRC of every file is verified while unpacking.
    """
    from huggingface_hub import snapshot_download       # imported late: only here, and it takes a moment
    folder = Path(folder or data_dir() / "wavcaps")
    if not (folder / EXCLUDED).is_file():
        transfer.fetch(EXCLUDED_URL, folder / EXCLUDED)
        read_excluded(folder / EXCLUDED)
    tables = ["json_files/*/*_final.json", f"json_files/blacklist/{IN_AUDIOCAPS}"]
    snapshot_download(HUB, repo_type="dataset", revision=REVISION, allow_patterns=tables, local_dir=folder)
    if not (folder / "WavCaps_mp3").is_dir():
        volumes = []
        for number, share in enumerate(VOLUMES, 1):
            path = folder / f"WavCaps_mp3.7z.{number:03d}"
            volumes.append(path if path.is_file() else transfer.fetch(SHARE.format(share, path.name), path))
        transfer.extract(volumes[0], folder / "WavCaps_mp3", max_bytes=MAX_BYTES)
        for path in volumes:
            path.unlink()
    return folder
