"""LibriSpeech: English audiobooks read aloud, 16 kHz (Panayotov, Chen, Povey and Khudanpur, ICASSP 2015; OpenSLR 12, CC BY 4.0).

Published layout: {subset}/{speaker}/{chapter}/{speaker}-{chapter}-{number}.flac beside {speaker}-{chapter}.trans.txt, which holds a
line for each utterance: its name and its words in capitals. Here train-clean-100 is train, dev-clean val and test-clean test; no
speaker is in two of them. The words, in lower case, are the caption.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lib.data import captioned
from lib.data import download as transfer
from lib.data.manifest import Manifest
from lib.media.audio import SUFFIXES
from lib.settings import data_dir

URL = "https://www.openslr.org/resources/12/"
SPLITS = {"train-clean-100": "train", "dev-clean": "val", "test-clean": "test"}
EXPECTED = {"train-clean-100": 28539, "dev-clean": 2703, "test-clean": 2620}        # utterances
MD5 = {     # as published beside the archives
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
}


def prepare(data_root: Path | None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            subsets: tuple[str, ...] = tuple(SPLITS), probe_seconds: float | None = 1.0) -> Manifest:
    """The manifest of LibriSpeech, or of the subsets that are there.

    Args:
        data_root: folder with the subsets, or with LibriSpeech/ around them, as the archives unpack; None: where `python -m lib.data
            download librispeech` puts it.
        seed: chooses the clips when `num_samples` is given.
        subsets: which to use, names of `SPLITS` (or one name).
        probe_seconds: how much of every file the health check decodes; None: all of it, some 10 minutes for 100 hours.

    Returns:
        Manifest whose clip ids are subset/speaker-chapter-number, with the columns speaker and chapter; info["expected"] are the
        published numbers of utterances and info["found"] those of the transcripts (fewer: a warning), info["left_out"] counts what
        is missing: transcripts without a file, and files without a transcript.

    Raises:
        FileNotFoundError, ValueError: naming the folder, transcript or option and what was expected.
    """
    subsets = (subsets,) if isinstance(subsets, str) else tuple(subsets)
    unknown = [s for s in subsets if s not in SPLITS]
    if unknown or not subsets:
        raise ValueError(f"subsets: {unknown[0]!r} is none of {', '.join(SPLITS)}" if unknown else "subsets: name one at least")
    root = captioned.find("librispeech", data_root)
    folders = {subset: folder for subset in subsets if (folder := _find(root, subset))}
    if not folders:
        raise FileNotFoundError(f"{root} holds no folder {' or '.join(subsets)}; run `python -m lib.data download librispeech`, or set "
                                "data_root to the folder that holds LibriSpeech")
    rows, listed, left_out = [], Counter(), Counter()
    for subset, folder in folders.items():
        for transcript in sorted(folder.glob("*/*/*.trans.txt")):
            inside = transcript.parent.relative_to(root).as_posix()
            files = {f.stem: f"{inside}/{f.name}" for f in sorted(transcript.parent.iterdir()) if f.suffix.lower() in SUFFIXES}
            for name, words in _utterances(transcript):
                listed[subset] += 1
                rows.append({"clip_id": f"{subset}/{name}", "path": files.pop(name, None), "split": SPLITS[subset],
                             "captions": [words]})
            left_out["without a transcript"] += len(files)
    info = {"title": "LibriSpeech", "source": "Panayotov, Chen, Povey, Khudanpur, LibriSpeech, 2015 (CC BY 4.0)",
            "expected": {subset: EXPECTED[subset] for subset in subsets}}
    manifest = captioned.manifest("librispeech", root, rows, left_out, info, seed=seed, num_samples=num_samples, workers=workers,
                                  listed=listed, probe_seconds=probe_seconds)
    names = [clip.rpartition("/")[2].split("-") for clip in manifest.table["clip_id"]]
    return replace(manifest, table=manifest.table.assign(speaker=[name[0] for name in names], chapter=[name[1] for name in names]))


def _find(root: Path, subset: str) -> Path | None:
    """The folder of a subset, directly below the root, below LibriSpeech/, or as `download` unpacks it."""
    places = (root / subset / "LibriSpeech" / subset, root / "LibriSpeech" / subset, root / subset)
    return next((folder for folder in places if folder.is_dir()), None)


def _utterances(transcript: Path) -> Iterator[tuple[str, str]]:
    """Names and words, in lower case, of the lines of a transcript. ValueError: a line that is not of its speaker and chapter."""
    start = transcript.name.removesuffix(".trans.txt") + "-"
    for number, line in enumerate(transcript.read_text(encoding="utf-8").splitlines(), 1):
        name, _, words = line.strip().partition(" ")
        if not name:
            continue
        if not name.startswith(start) or not name.removeprefix(start).isdigit() or not words.strip() or start.count("-") != 2:
            raise ValueError(f"{transcript}: line {number} must hold the name of an utterance, {start} and its number, and its words, "
                             f"got {line[:80]!r}; unpack the archive again")
        yield name, words.strip().lower()


def download(folder: Path | None = None, parts: tuple[str, ...] = tuple(SPLITS)) -> Path:
    """Fetch and unpack subsets: train-clean-100 6.4 GB, dev-clean 338 MB, test-clean 347 MB. Returns the folder that `prepare` reads.

    Resumable, also between the subsets; the published MD5, the names inside the archive and the number of utterances are
    verified. Tests run it on small archives from a local server; the published ones were not fetched here.

    Args:
        folder: None: librispeech in the data folder.  parts: which subsets.

    Raises:
        ValueError: an unknown subset. DownloadError: see `lib.data.download`.
    """
    unknown = [part for part in parts if part not in SPLITS]
    if unknown:
        raise ValueError(f"part {unknown[0]!r} of librispeech is unknown; there are {', '.join(SPLITS)}")
    folder = Path(folder or data_dir() / "librispeech")
    for subset in parts:
        if _find(folder, subset) is None:
            archive = transfer.fetch(URL + f"{subset}.tar.gz", folder / f"{subset}.tar.gz", md5=MD5[subset])
            transfer.extract(archive, folder / subset, max_bytes=16 * 2**30, verify=lambda unpacked: verify(unpacked, subset))
            archive.unlink()
    return folder


def verify(unpacked: Path, subset: str) -> None:
    """Raise DownloadError unless a folder holds all utterances of a subset, each with its words."""
    inside = unpacked / "LibriSpeech" / subset
    there = {f.stem for f in inside.glob("*/*/*.flac")}
    try:
        names = {name for transcript in inside.glob("*/*/*.trans.txt") for name, _ in _utterances(transcript)}
    except (ValueError, OSError) as error:
        raise transfer.DownloadError(f"the archive is not {subset} as published: {error}") from error
    if len(there) != EXPECTED[subset] or names != there:
        raise transfer.DownloadError(f"the archive is not {subset} as published: {len(there):,} utterances instead of "
                                     f"{EXPECTED[subset]:,}, {len(there - names):,} without words; remove it and download it again")
