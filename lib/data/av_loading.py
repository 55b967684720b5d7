"""Clips with sound and picture as fixed windows: both come from one decode pass, and a pair never slips out of alignment.

Decoding happens where the items are made, in the loader's processes, never in a model. An item always holds frames and a
waveform of full size; `has_audio` and `has_video` say which of the two mean something. What is absent is zeros, for the caller
to leave out. Items are addressed by (epoch, row) like those of `lib.data.loading.ClipDataset`, and `lib.data.loading.batches`
makes the batches. `stored_windows` decodes a data set once and keeps the windows on disk, for runs whose network is small beside
the decoder.
"""
from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib import distributed, randomness
from lib.data.inspection import SILENCE
from lib.data.loading import REPLACEMENTS, ClipDataset, one_thread
from lib.data.manifest import Manifest
from lib.files import alone, digest, read_json, stamp, write_json
from lib.media import audio, video
from lib.progress import track
from lib.settings import data_dir

NEEDS = {"both": {"audio", "video"}, "audio": {"audio"}, "video": {"video"}, "any": set()}
VERSION = 1             # of what a store holds: a change makes all of them anew
DONE, PROGRESS = "complete.json", "progress.json"
SAVED_EVERY = 15.0      # seconds between notes of how far a store is
TOGETHER = 8            # clips of one worker's answer


@dataclass(frozen=True)
class Window:
    """One window of a file.

    frames: (F, 3, size, size) uint8, red, green, blue, or None. waveform: (n,) float32, one channel, n > 0, all finite, or
    None. missing: why there is none, {"audio": reason, "video": reason}; without keys where both are there. silent: there is
    sound, and it never moves by more than what the health check takes for silence.
    """

    frames: Tensor | None = None
    waveform: Tensor | None = None
    missing: dict[str, str] = field(default_factory=dict)
    silent: bool = False


def read_window(path: str | Path, *, frames: int, size: int, sample_rate: int, start: float = 0.0,
                duration: float | None = None) -> Window:
    """Frames and sound of one window, as `lib.media.video.read_clip` reads them; what is broken does not take the other with it.

    Args:
        path: a file with video, sound or both.  frames, size: how many, and pixels of their side.  sample_rate: Hz.
        start, duration: seconds; duration None: to the end.
    Raises:
        ValueError: an argument out of range. A file that cannot be read is no error, see `Window.missing`.
    """
    try:
        clip = video.read_clip(path, count=frames, size=size, sample_rate=sample_rate, start=start, duration=duration)
        pictures, sound, missing = clip.frames, clip.waveform, {}
    except (video.VideoError, OSError):     # only such files are looked at again, for the half that is whole
        missing = {}
        window = dict(start=start, duration=duration)
        pictures = _attempt(lambda: video.read_frames(path, count=frames, size=size, **window), "video", missing)
        sound = _attempt(lambda: audio.read(path, sample_rate=sample_rate, **window), "audio", missing)
    where = f"{path}: from {start:.3f} s on it "
    if pictures is not None and not len(pictures):
        pictures, missing["video"] = None, where + "shows no picture"
    if sound is not None and not (sound.shape[1] and torch.isfinite(sound).all()):
        missing["audio"] = where + ("holds values that are no finite numbers" if sound.shape[1] else "holds no sound")
        sound = None
    silent = sound is not None and bool((sound.max() - sound.min()) / 2 <= SILENCE)
    return Window(None if pictures is None else pictures.mul(255).round().byte(), None if sound is None else sound[0],
                  missing, silent)


def _attempt(read: Callable[[], Tensor], what: str, missing: dict[str, str]) -> Tensor | None:
    try:
        return read()
    except (video.VideoError, audio.AudioError, OSError) as error:
        missing[what] = str(error)
        return None


class AudioVisualDataset(ClipDataset):
    """Clips of a manifest as frames and sound, one row a clip.

    Args:
        manifest: the clips.
        frames, size: frames of a window, spread evenly from its first to its last one, and pixels of their side.
        sample_rate: Hz.  seconds: window length.
        train: of long clips windows drawn by (seed, epoch, row), and replacement; otherwise the window at the clip's start.
        need: what a clip must have: "both" (pairs), "audio", "video", or "any" of the two.
        seed: of windows and replacements.  shares: see ClipDataset.
        store: of `stored_windows`, to read instead of the files. It holds the windows at the clips' starts, also for training.

    An item is a dict: clip_id, row (of the manifest), label (place of the clip's only label in `manifest.classes`; -1: it has
    none, or several), frames (Tensor (frames, 3, size, size) uint8), waveform (Tensor (samples,) float32, zero-padded on the
    right), has_audio, has_video (bool; what is False goes with zeros), silent, missing (see `Window`) and failed: None, or
    {"clip_id", "reason"} of a clip that lacks what is needed.

    In training another row, drawn by (seed, epoch, row), then stands in its place with everything that belongs to it, and clips
    in `skipped` are not even tried; otherwise the item is the clip itself with what it has, for the caller to leave out.

    Raises:
        ValueError: an unknown `need`; a store that was made with other settings or lacks a clip.
    """

    def __init__(self, manifest: Manifest, *, frames: int = 16, size: int = 224, sample_rate: int = 16000,
                 seconds: float = 10.0, train: bool = False, need: str = "both", seed: int = 0,
                 shares: dict[str, float] | None = None, store: "WindowStore | None" = None):
        super().__init__(manifest, sample_rate=sample_rate, seconds=seconds, train=train, seed=seed, shares=shares)
        if need not in NEEDS:
            raise ValueError(f"need must be one of {', '.join(NEEDS)}, got {need!r}")
        self.frames, self.size, self.need, self.store = frames, size, need, store
        if store is not None:
            _check_store(store, manifest, self.settings())
        place = {name: number for number, name in enumerate(manifest.classes)}
        self.labels = [place[labels[0]] if len(labels) == 1 else -1 for labels in manifest.table["labels"]]

    def settings(self) -> dict:
        """What decides the content of a window, besides the clip."""
        return {"frames": self.frames, "size": self.size, "sample_rate": self.sample_rate, "seconds": float(self.seconds)}

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        failed, window = None, Window()
        for row in self._candidates(epoch, index):
            clip = self.manifest.row(row)
            rng = randomness.generator(self.seed, "window", epoch, index, *([] if row == index else [row]))
            if clip["clip_id"] in self.skipped:
                reason = "on the list"
            else:
                window = self._window(row, clip, rng)
                reason = self._lacks(window)
                if reason is None:
                    break
            failed = failed or {"clip_id": clip["clip_id"], "reason": reason}
        else:
            if self.train:
                raise video.VideoError(f"{failed['reason']}; nor could {REPLACEMENTS} other clips be used in its place "
                                       f"(need={self.need!r}): is the disk still there, and has the data set what is needed?")
        frames, wave = window.frames, window.waveform
        return {"clip_id": clip["clip_id"], "row": row, "label": self.labels[row],
                "frames": torch.zeros(self.frames, 3, self.size, self.size, dtype=torch.uint8) if frames is None else frames,
                "waveform": _pad(torch.zeros(0) if wave is None else wave, self.samples), "has_audio": wave is not None,
                "has_video": frames is not None, "silent": window.silent, "missing": window.missing, "failed": failed}

    def _lacks(self, window: Window) -> str | None:
        """Why a window is not enough; None: it is."""
        lacking = NEEDS[self.need] & window.missing.keys()
        if self.need == "any" and len(window.missing) == 2:
            lacking = window.missing.keys()
        return "; ".join(dict.fromkeys(window.missing[what] for what in sorted(lacking))) or None

    def _window(self, row: int, clip: dict, rng: np.random.Generator) -> Window:
        if self.store is not None:
            return self.store.window(clip["clip_id"])
        spare = clip["duration"] - self.seconds
        offset = rng.uniform(0, spare) if self.train and spare > 0 else 0.0
        return read_window(self.manifest.file(row), frames=self.frames, size=self.size, sample_rate=self.sample_rate,
                           start=clip["start"] + offset, duration=min(self.seconds, clip["duration"]))


def _pad(waveform: Tensor, samples: int) -> Tensor:
    """(n,) -> (samples,): zeros behind what is shorter, what is longer is cut."""
    return torch.nn.functional.pad(waveform, (0, samples - len(waveform)))


def count_clips(has_audio: Iterable[bool], has_video: Iterable[bool], silent: Iterable[bool]) -> dict[str, int]:
    """How many clips have what, from the flags of items: {"clips", "both", "no sound", "no picture", "neither", "silent"}.

    "no sound" and "no picture" have the other one; "silent" counts among those with sound.
    """
    heard, seen, quiet = (np.asarray(list(flags), dtype=bool) for flags in (has_audio, has_video, silent))
    masks = {"clips": heard | True, "both": heard & seen, "no sound": seen & ~heard, "no picture": heard & ~seen,
             "neither": ~(heard | seen), "silent": heard & quiet}
    return {name: int(mask.sum()) for name, mask in masks.items()}


@dataclass(frozen=True)
class WindowStore:
    """Decoded windows of a data set.

    Attributes:
        folder: where they lie.  settings: of AudioVisualDataset, with which they were made.
        frames: (N, F, 3, size, size) uint8.  sound: (N, samples) int16 in units of scale: (N,) float32, so that the largest
            sample of each clip is 32767. All are memory-mapped.
        rows: clip id -> its row.
        missing: clip id -> why it has no sound or no picture, see `Window`; what is missing is 0.  silent: clip ids.
    """

    folder: Path
    settings: dict
    frames: np.ndarray
    sound: np.ndarray
    scale: np.ndarray
    rows: dict[str, int] = field(repr=False)
    missing: dict[str, dict[str, str]] = field(repr=False)
    silent: frozenset[str] = field(repr=False)

    def window(self, clip_id: str) -> Window:
        """The window at a clip's start, padded; a sample is off by at most 1/65534 of the clip's largest one."""
        row, missing = self.rows[clip_id], self.missing.get(clip_id, {})
        frames = None if "video" in missing else torch.from_numpy(np.array(self.frames[row]))
        sound = None if "audio" in missing else torch.from_numpy(self.sound[row] * self.scale[row])
        return Window(frames, sound, missing, clip_id in self.silent)

    def counts(self) -> dict[str, int]:
        """How many clips have what, see `count_clips`."""
        has = {what: [what not in self.missing.get(clip, {}) for clip in self.rows] for what in ("audio", "video")}
        return count_clips(has["audio"], has["video"], [clip in self.silent for clip in self.rows])


def stored_windows(manifest: Manifest, *, frames: int = 16, size: int = 224, sample_rate: int = 16000,
                   seconds: float = 10.0, workers: int = 0) -> WindowStore:
    """The windows at the starts of all clips, read where they are at hand, otherwise decoded; goes on where it was killed.

    A clip takes frames * 3 * size**2 + 2 * seconds * sample_rate bytes. A file that changes (size or time) makes a new store.

    Args:
        manifest: N clips.  frames, size, sample_rate, seconds: as in AudioVisualDataset.
        workers: processes that decode; 0: this one.
    Raises:
        ValueError: an argument out of range, or not a single clip can be read. OSError: the disk is too full for it.
    """
    source = AudioVisualDataset(manifest, frames=frames, size=size, sample_rate=sample_rate, seconds=seconds, need="any")
    stamps = [stamp(manifest.file(row)) for row in range(len(manifest))]
    key = digest(manifest.fingerprint, json.dumps([VERSION, source.settings(), stamps]))
    folder = data_dir() / "windows" / f"{manifest.name.replace('+', '-')}-{key}"
    if distributed.rank() == 0:
        with alone(folder / ".lock", f"windows {folder.name}"):
            if not read_json(folder / DONE):
                _decode_all(source, folder, workers)
    on_nccl = distributed.world() > 1 and torch.distributed.get_backend() == "nccl"
    distributed.anywhere([True], torch.device("cuda" if on_nccl else "cpu"))    # the others read after the first has written
    arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("frames", "sound", "scale"))
    rows, done = {clip: row for row, clip in enumerate(manifest.table["clip_id"])}, read_json(folder / DONE)
    return WindowStore(folder, source.settings(), *arrays, rows, done["missing"], frozenset(done["silent"]))


class _Rows(Dataset):
    """Rows of a data set as they are stored: (frames, sound, scale, missing, silent)."""

    def __init__(self, source: AudioVisualDataset):
        self.source = source

    def __getitem__(self, row: int) -> tuple:
        item = self.source[0, row]
        scale = np.float32(item["waveform"].abs().max().item() / 32767)
        sound = np.rint(item["waveform"].numpy() / (scale or 1)).clip(-32767, 32767).astype(np.int16)
        return item["frames"].numpy(), sound, scale, item["missing"], item["silent"]


def _decode_all(source: AudioVisualDataset, folder: Path, workers: int) -> None:
    clips = source.manifest.table["clip_id"]
    arrays = {"frames": np.dtype((np.uint8, (source.frames, 3, source.size, source.size))),
              "sound": np.dtype((np.int16, source.samples)), "scale": np.dtype(np.float32)}
    state = read_json(folder / PROGRESS) or {"rows": 0, "missing": {}, "silent": []}
    if not state["rows"]:
        needed, free = sum(kind.itemsize for kind in arrays.values()) * len(clips), shutil.disk_usage(folder).free
        if needed > free:       # writing to a memory-mapped file on a full disk ends the process without a word
            raise OSError(f"{folder}: the decoded windows of {len(clips)} clips take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB "
                          "are free; make room, use fewer frames or clips, or do without a store")
    mode = "r+" if state["rows"] else "w+"
    kept = {name: np.lib.format.open_memmap(folder / f"{name}.npy", mode, kind.base, (len(clips), *kind.shape))
            for name, kind in arrays.items()}
    done, saved = state["rows"], time.monotonic()
    loader = DataLoader(_Rows(source), sampler=range(done, len(clips)), batch_size=TOGETHER, num_workers=workers,
                        collate_fn=list, worker_init_fn=one_thread if workers else None)
    for batch in track(loader, -(-(len(clips) - done) // TOGETHER), f"decoding clips ({TOGETHER} a step)"):
        for *values, missing, silent in batch:
            for array, value in zip(kept.values(), values):
                array[done] = value
            state["missing"] |= {clips.iat[done]: missing} if missing else {}
            state["silent"] += [clips.iat[done]] if silent else []
            done += 1
        if time.monotonic() - saved > SAVED_EVERY:
            _flush(kept)        # the rows first, then the note that they are there
            state["rows"] = done
            write_json(folder / PROGRESS, state)
            saved = time.monotonic()
    if sum(len(missing) == 2 for missing in state["missing"].values()) == len(clips):
        reason = next(iter(state["missing"].values()), {"video": "the data set is empty"})["video"]
        raise ValueError(f"no clip of {source.manifest.name} could be read; the first: {reason}")
    _flush(kept)
    write_json(folder / DONE, {"clips": len(clips), "settings": source.settings(), "missing": state["missing"],
                               "silent": state["silent"]})
    (folder / PROGRESS).unlink(missing_ok=True)


def _flush(arrays: dict[str, np.memmap]) -> None:
    for array in arrays.values():
        array.flush()


def _check_store(store: WindowStore, manifest: Manifest, settings: dict) -> None:
    if store.settings != settings:
        raise ValueError(f"store {store.folder}: it was made with {store.settings}, and {settings} are asked for; make one with "
                         "stored_windows")
    lost = [clip for clip in manifest.table["clip_id"] if clip not in store.rows]
    if lost:
        raise ValueError(f"store {store.folder}: {len(lost)} clips of {manifest.name!r} are not in it, such as {lost[0]!r}; make "
                         "one for them with stored_windows")
