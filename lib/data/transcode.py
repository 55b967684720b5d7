"""A folder of large audio files to one of small mp3 files: `python -m lib.data transcode SOURCE TARGET`.

The defaults give the mp3 version of WavCaps that published retrieval models were trained on (1.5 TB of flac to 150 GB): mono,
32 kHz, constant 48 kb/s. (The script of the DCASE 2025 Task 6 baseline states no bit rate; LAME then chooses this one.) The codec
delays the sound and pads its end; the LAME header written here states by how much, so that `lib.media.audio` gives the samples of
the source, as many and at the same places.

The folder keeps its layout. A file appears under its name when it is complete and its length has been verified, and is then
written down in an index (sizes and times of source and target, settings): after a kill, the same command goes on from there.
"""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from lib.data.inspection import TRUNCATED
from lib.data.workers import Lost, ask_all, serve, still_working
from lib.files import alone, stamp, write_json
from lib.media import audio
from lib.progress import track

BITRATE, SAMPLE_RATE = 48_000, 32_000  # bits a second, Hz
BITRATES = {  # kb/s that mp3 knows
    **dict.fromkeys((32000, 44100, 48000), (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)),
    **dict.fromkeys((16000, 22050, 24000), (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)),
}
FRAME, DELAY = 1152, 1105  # samples of an mp3 frame; samples by which encoding and decoding with LAME delay the sound
HUNG, CRASHED = "its decoder got stuck for {} s and was ended", "its decoder crashed, or took more memory than a clip can need"
STUCK = 30  # seconds without a decoded block after which a file is given up
REPORT, INTERNAL = "transcode.json", ".transcode"  # in the target: the report; a folder for the index and unfinished files


@dataclass(frozen=True)
class Report:
    """What a run did: number of source files, transcoded now, finished before; why others failed; its own file."""

    found: int
    transcoded: int
    skipped: int
    failed: dict[str, str]
    path: Path


def transcode(source: str | Path, target: str | Path, *, bitrate: int = BITRATE, sample_rate: int = SAMPLE_RATE,
              workers: int = 0, suffix: str = ".flac", stuck: int = STUCK) -> Report:
    """Transcode every file in `source`, folders in it included, to `target`, name.flac to name.mp3; finished files are skipped.

    A file is finished when its mp3 has been decoded from end to end and is as long as its source, to one mp3 frame and the
    codec's delay (2,257 samples, where none is the rule), and neither of the two has changed since. One that fails (unreadable,
    broken off, not finite, or with a decoder that hangs or crashes) stops none of the others; target/transcode.json says why, and
    the next run tries it again.

    Args:
        bitrate: bits a second, one that mp3 knows for the `sample_rate` (Hz); see BITRATES.
        workers: processes; 0: one for every core.
        suffix: which files, by the end of their names, in whatever case.
        stuck: seconds without a decoded block (6 s of sound at 44.1 kHz) after which a file is given up.

    Raises:
        ValueError: an argument that is impossible, or no file to transcode. FileNotFoundError: no such folder.
    """
    source, target = Path(os.path.abspath(source)), Path(os.path.abspath(target))
    if not source.is_dir():
        raise FileNotFoundError(f"source: {source} is not a folder; give the folder of the {suffix} files")
    if bitrate / 1000 not in BITRATES.get(sample_rate, ()):
        known = BITRATES.get(sample_rate)
        raise ValueError(f"bitrate: {bitrate} is none of mp3; choose from {', '.join(str(1000 * k) for k in known)}" if known else
                         f"sample_rate: {sample_rate} Hz is none of mp3; choose from {', '.join(map(str, sorted(BITRATES)))}")
    if suffix.lower() == ".mp3" and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"target: {target} lies in {source}, so its mp3 files would be taken for sources; choose another")
    if workers < 0:
        raise ValueError(f"workers: {workers} processes are impossible; give 0 for one on every core, or more")
    names = list(_names(source, suffix))
    if not names:
        raise ValueError(f"source: no file in {source} ends in {suffix!r}; correct the folder or the suffix")
    with alone(target / INTERNAL / "lock", f"transcoding to {target}"):
        return _run(source, target, names, [bitrate, sample_rate], workers or len(os.sched_getaffinity(0)), stuck)


def _names(source: Path, suffix: str) -> Iterator[str]:
    for folder, folders, files in os.walk(source):
        folders.sort()
        found = (file for file in sorted(files) if file.lower().endswith(suffix.lower()))
        yield from (os.path.relpath(os.path.join(folder, file), source) for file in found)


def _run(source: Path, target: Path, names: list[str], settings: list[int], workers: int, stuck: int) -> Report:
    for left in (target / INTERNAL).glob("parts-*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)  # a process of that run may live, and write, for a moment yet
    index, sources, failed, transcoded = _read_index(target / INTERNAL / "index.jsonl"), {}, {}, 0
    for name in names:
        result = os.path.splitext(name)[0] + ".mp3"
        if result in sources:
            failed[name] = f"would be written to {result}, as {sources[result]} is; rename one of them"
        else:
            sources[result] = name
    stamps = {result: stamp(source / name) for result, name in sources.items()}
    todo = [result for result, made_of in stamps.items() if index.get(result) != [made_of, stamp(target / result), settings]]
    parts = target / INTERNAL / f"parts-{os.getpid()}"
    parts.mkdir(exist_ok=True)
    requests = ([result, str(source / sources[result]), str(parts / f"{number}.mp3"), *settings, stuck]
                for number, result in enumerate(todo))
    with open(target / INTERNAL / "index.jsonl", "a", encoding="ascii") as file, \
            closing(ask_all("lib.data.transcode", requests, workers)) as answers:
        file.write("\n")  # ends a line that a kill cut short
        for (result, _, part, *_), reason in track(answers, len(todo), "transcode"):
            if isinstance(reason, Lost):
                reason = HUNG.format(stuck) if reason.hanging else CRASHED
            if not reason:
                reason = _put(part, target / result)
            if reason:
                failed[sources[result]] = reason
                continue
            transcoded += 1
            file.write(json.dumps([result, stamps[result], stamp(target / result), settings]) + "\n")
            file.flush()
    shutil.rmtree(parts, ignore_errors=True)
    failed = {_readable(name): _readable(failed[name]) for name in names if name in failed}
    report = Report(len(names), transcoded, len(sources) - len(todo), failed, target / REPORT)
    write_json(report.path, {"source": _readable(str(source)), "bitrate": settings[0], "sample_rate": settings[1],
                             "found": report.found, "transcoded": transcoded, "skipped": report.skipped, "failed": failed})
    return report


def _put(part: str, path: Path) -> str:
    """Move a finished file to its place; returns why that failed, or ""."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, path)
    except OSError as error:
        return str(error)
    return ""


def _read_index(path: Path) -> dict[str, list]:
    index = {}
    for line in path.read_text(encoding="ascii").splitlines() if path.is_file() else ():
        try:
            result, *entry = json.loads(line)
        except ValueError:  # cut short by a kill: that file is made again
            continue
        index[result] = entry
    return index


def _readable(text: str) -> str:
    """Names may hold bytes that are no UTF-8, which no text file takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _answer(_: str, source: str, part: str, bitrate: int, sample_rate: int, stuck: int) -> str:
    """In a process of its own: transcode one file to `part`; returns why that failed, or ""."""
    try:
        still_working(stuck)
        expected = encode(source, part, bitrate, sample_rate, lambda: still_working(stuck))
        decoded = 0
        for block in audio.blocks(part):
            still_working(stuck)
            decoded += len(block)
        if abs(decoded - expected) > FRAME + DELAY:
            return f"the mp3 has {decoded} samples instead of {expected}"
    except (audio.AudioError, av.FFmpegError, OSError, ValueError, MemoryError) as error:
        return str(error).removeprefix(f"{source}: ").replace(part, "its mp3") or repr(error)
    return ""


def encode(source: str, target: str, bitrate: int = BITRATE, sample_rate: int = SAMPLE_RATE, progress=lambda: None) -> int:
    """Write the mean of the channels of an audio file as an mp3 file of constant bit rate; `progress` is called after each block.

    Returns:
        the samples that the result should have.

    Raises:
        AudioError: the source cannot be read. ValueError: it holds no sound, breaks off, or its samples are not finite.
    """
    info, samples = audio.probe(source), 0
    with open(target, "wb") as file, av.open(file, "w", format="mp3") as container:  # a file of Python's takes names of any kind
        stream = container.add_stream("libmp3lame", rate=sample_rate, layout="mono")
        stream.bit_rate = bitrate
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=sample_rate, frame_size=FRAME)
        for block in audio.blocks(source):
            progress()
            if not np.isfinite(block).all():
                raise ValueError("it holds samples that are no finite numbers")
            frame = av.AudioFrame.from_ndarray(audio.fold(block.T), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = info.sample_rate, samples, Fraction(1, info.sample_rate)
            samples += len(block)
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        if samples == 0:
            raise ValueError("it holds no sound")
        if samples < TRUNCATED * info.duration * info.sample_rate:
            raise ValueError(f"it breaks off after {samples / info.sample_rate:.1f} of the {info.duration:.1f} s that it states")
        for part in resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return -(-samples * sample_rate // info.sample_rate)


if __name__ == "__main__":
    serve(_answer)
