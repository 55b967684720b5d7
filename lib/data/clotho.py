"""Clotho v2.1: 15 to 30 s recordings from FreeSound with five captions each (Drossos et al., arXiv 1910.09387).

Development, validation and evaluation are train, val and test. Read from the published archives' layout (development/*.wav beside
clotho_captions_development.csv) or from a folder that aac-datasets made (clotho_audio_files/, clotho_csv_files/).
"""
from __future__ import annotations

from collections import Counter
from pathlib import Path

from lib.data import captioned
from lib.data import download as transfer
from lib.data.manifest import Manifest
from lib.settings import data_dir

URL = "https://zenodo.org/records/4783391/files/"
SPLITS = {"development": ("train", 3839), "validation": ("val", 1045), "evaluation": ("test", 1045)}
CAPTIONS = tuple(f"caption_{k}" for k in range(1, 6))
MD5 = {     # as published beside the files
    "clotho_audio_development.7z": "c8b05bc7acdb13895bb3c6a29608667e", "clotho_captions_development.csv": "d4090b39ce9f2491908eebf4d5b09bae",
    "clotho_audio_validation.7z": "7dba730be08bada48bd15dc4e668df59", "clotho_captions_validation.csv": "5879e023032b22a2c930aaa0528bead4",
    "clotho_audio_evaluation.7z": "4569624ccadf96223f19cb59fe4f849f", "clotho_captions_evaluation.csv": "1b16b9e57cf7bdb7f13a13802aeb57e2",
}
METADATA_MD5 = {"clotho_metadata_development.csv": "170d20935ecfdf161ce1bb154118cda5",
                "clotho_metadata_validation.csv": "2e010427c56b1ce6008b0f03f41048ce",
                "clotho_metadata_evaluation.csv": "13946f054d4e1bf48079813aac61bf77"}


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0) -> Manifest:
    """The manifest of Clotho, or of the splits that are there.

    Args:
        data_root: folder with the captions' tables and the audio below it; None: where `python -m lib.data download clotho` puts it.
        seed: chooses the clips when `num_samples` is given.
    Returns:
        Manifest with five captions a clip; info["expected"] are the published numbers of clips and info["found"] those of the
        tables (fewer: a warning), info["left_out"] counts what is missing.
    Raises:
        FileNotFoundError, ValueError: naming the folder or table and what was expected.
    """
    root = captioned.find("clotho", data_root)
    files = captioned.Files(root, lambda folder: folder if folder in SPLITS else None, captioned.plain)
    rows = []
    for part, (split, _) in SPLITS.items():
        table = files.table(f"clotho_captions_{part}.csv")
        if table is None:
            continue
        for record in captioned.read_csv(table, ("file_name", *CAPTIONS)).to_dict("records"):
            name = record["file_name"]
            captions = [record[c].strip() for c in CAPTIONS if record[c].strip()]
            rows.append({"clip_id": f"{part}/{name}", "path": files.path(part, name), "split": split, "captions": captions})
    if not rows:
        raise FileNotFoundError(f"{root} holds no clotho_captions_development.csv, ..._validation.csv or ..._evaluation.csv; run `python -m "
                                "lib.data download clotho`, or set data_root to the folder of Clotho v2.1")
    info = {"title": "Clotho v2.1", "source": "Drossos, Lipping, Virtanen, Clotho: an audio captioning dataset, 2020",
            "expected": {split: count for split, count in SPLITS.values()}}
    return captioned.manifest("clotho", root, rows, Counter(), info, seed=seed, num_samples=num_samples, workers=workers,
                              listed=Counter(row["split"] for row in rows))


def download(folder: Path | None = None, metadata: bool = False) -> Path:
    """Fetch and unpack the published archives and tables (8 GB; resumable, MD5 verified). Returns the folder that `prepare` reads.

    metadata: also the tables of each clip's FreeSound id, keywords, author and licence, which `prepare` does not need.
    """
    folder = Path(folder or data_dir() / "clotho")
    for table, md5 in METADATA_MD5.items() if metadata else ():
        if not (folder / table).is_file():
            transfer.fetch(URL + table, folder / table, md5=md5)
    for part in SPLITS:
        table, archive = f"clotho_captions_{part}.csv", f"clotho_audio_{part}.7z"
        if not (folder / table).is_file():
            transfer.fetch(URL + table, folder / table, md5=MD5[table])
        if not (folder / part).is_dir():
            fetched = transfer.fetch(URL + archive, folder / archive, md5=MD5[archive])
            transfer.extract(fetched, folder / part)
            fetched.unlink()
    return folder
