"""From a manifest to batches: decode only the window that is used, pad, keep the true duration.

What a batch holds is a function of (seed, epoch, position) alone: the same whatever the number of workers, and after a resume.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib import randomness
from lib.data.manifest import Manifest
from lib.media import audio


class ClipDataset(Dataset):
    """Clips of a manifest as fixed windows.

    Args:
        manifest: the clips.
        sample_rate: Hz of the waveforms.  seconds: window length.
        every_caption: one row per (clip, caption) pair; otherwise one row per clip, in training with a caption drawn anew in
            every epoch, else with its first one.
        train: random windows of long clips, and the augmentation below; otherwise the window at the clip's start.
        gain_db: random gain, uniform in +- this many dB.  shift: random circular shift in time (only for data without order).
        seed: of windows and augmentation.
        cache_bytes: keep decoded waveforms of clips that are used whole, up to this many bytes a process.

    An item is addressed by (epoch, row) and is a dict: clip_id, caption, captions, labels, row (of the manifest),
    waveform (Tensor (samples,) float32, zero-padded on the right), duration (seconds of audio in it).
    """

    def __init__(self, manifest: Manifest, *, sample_rate: int, seconds: float, every_caption: bool = False, train: bool = False,
                 gain_db: float = 0.0, shift: bool = False, seed: int = 0, cache_bytes: int = 0):
        self.manifest, self.sample_rate, self.seconds = manifest, sample_rate, seconds
        self.train, self.gain_db, self.shift, self.seed = train, gain_db, shift, seed
        self.samples = round(seconds * sample_rate)
        self.pairs = [(row, k) for row, captions in enumerate(manifest.table["captions"])
                      for k in (range(len(captions)) if every_caption else [None])]
        self._cache: dict[int, Tensor] = {}
        self._cache_free = cache_bytes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        row, which = self.pairs[index]
        clip = self.manifest.row(row)
        rng = randomness.generator(self.seed, "window", epoch, index)
        wave = self._read(row, clip, rng)
        duration = len(wave) / self.sample_rate
        if self.train and self.gain_db:
            wave = wave * float(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        if self.train and self.shift:
            wave = torch.roll(wave, int(rng.integers(len(wave))))
        captions = list(clip["captions"]) or [""]
        if which is None:
            which = randomness.generator(self.seed, "caption", epoch, index).integers(len(captions)) if self.train else 0
        return {"clip_id": clip["clip_id"], "row": row, "caption": captions[which], "captions": captions,
                "labels": list(clip["labels"]), "duration": duration,
                "waveform": torch.nn.functional.pad(wave, (0, self.samples - len(wave)))}

    def _read(self, row: int, clip: dict, rng: np.random.Generator) -> Tensor:
        spare = clip["duration"] - self.seconds
        offset = rng.uniform(0, spare) if self.train and spare > 0 else 0.0
        if row in self._cache:
            return self._cache[row]
        wave = audio.read(self.manifest.file(row), sample_rate=self.sample_rate, start=clip["start"] + offset,
                          duration=min(self.seconds, clip["duration"]))[0][:self.samples]
        size = wave.numel() * wave.element_size()
        if spare <= 0 and size <= self._cache_free:
            self._cache[row] = wave
            self._cache_free -= size
        return wave


def collate(items: list[dict]) -> dict:
    """List of dicts to dict of lists; tensors of one shape are stacked, other values stay lists (one collate for all families)."""
    batch = {}
    for name in items[0]:
        values = [item[name] for item in items]
        same = all(isinstance(v, Tensor) for v in values) and len({v.shape for v in values}) == 1
        batch[name] = torch.stack(values) if same else values
    return batch


def batches(dataset: ClipDataset, batch_size: int, *, epoch: int = 0, seed: int = 0, shuffle: bool = False, drop_last: bool = False,
            first_batch: int = 0, workers: int = 0) -> Iterator[dict]:
    """Batches of one epoch, optionally from the middle.

    Args:
        dataset: what is batched.  batch_size: clips a batch.  epoch, seed: determine the order when `shuffle`.
        drop_last: leave out an incomplete last batch.  first_batch: start at this batch (resume).
        workers: decoding processes; 0 decodes in this process.
    """
    order = randomness.epoch_order(len(dataset), seed, epoch, shuffle)
    groups = [[(epoch, int(i)) for i in order[k:k + batch_size]] for k in range(0, len(order), batch_size)]
    if drop_last and groups and len(groups[-1]) < batch_size:
        groups.pop()
    # one worker thread each: the main process owns the cores
    start = _one_thread if workers else None
    return iter(DataLoader(dataset, batch_sampler=groups[first_batch:], num_workers=workers, collate_fn=collate, worker_init_fn=start,
                           generator=torch.Generator().manual_seed(0)))


def count_batches(dataset: ClipDataset, batch_size: int, drop_last: bool = False) -> int:
    """Number of batches of an epoch."""
    return len(dataset) // batch_size if drop_last else -(-len(dataset) // batch_size)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
