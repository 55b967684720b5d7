"""From a manifest to batches: decode only the window that is used, pad, keep the true duration.

What a batch holds is a function of (seed, epoch, position) alone: the same whatever the number of workers, and after a resume.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib import distributed, randomness
from lib.data.manifest import Manifest
from lib.files import stamp
from lib.media import audio

REPLACEMENTS = 20       # rows tried in the place of one that cannot be read


class ClipDataset(Dataset):
    """Clips of a manifest as fixed windows.

    Args:
        manifest: the clips.
        sample_rate: Hz of the waveforms.  seconds: window length.
        every_caption: one row per (clip, caption) pair; otherwise one row per clip, in training with a caption drawn anew in
            every epoch, else with its first one.
        train: random windows of long clips, and the augmentation below; otherwise the window at the clip's start, or with `centred` in its
            middle.
        gain_db: random gain, uniform in +- this many dB.  shift: random circular shift in time (only for data without order).
        seed: of windows and augmentation.
        cache_bytes: keep decoded waveforms of clips that are used whole, up to this many bytes; further data sets of this process in the
            same folder share them.
        shares: of a mixture, how much of an epoch each data set gets (column `source` -> a positive number, in any unit); None: every
            row comes once. An epoch keeps its length: rows of a set come several times, or some of them wait for a later epoch.

    An item is addressed by (epoch, row) and is a dict: clip_id, caption, captions, labels, row (of the manifest),
    waveform (Tensor (samples,) float32, zero-padded on the right), duration (seconds of audio in it), failed.

    `failed` is None, or {"clip_id", "reason"} of a clip that could not be read. In training another row, drawn by (seed, epoch, row),
    then stands in its place with everything that belongs to it (rule: bad media is counted, pairs never slip out of alignment), and
    clips in `skipped` are not even tried; otherwise the item is silence, for the caller to leave out.
    """

    def __init__(self, manifest: Manifest, *, sample_rate: int, seconds: float, every_caption: bool = False, train: bool = False,
                 gain_db: float = 0.0, shift: bool = False, seed: int = 0, cache_bytes: int = 0,
                 shares: dict[str, float] | None = None, centred: bool = False):
        self.manifest, self.sample_rate, self.seconds = manifest, sample_rate, seconds
        self.train, self.gain_db, self.shift, self.seed, self.centred = train, gain_db, shift, seed, centred
        self.samples = round(seconds * sample_rate)
        self.pairs = [(row, k) for row, captions in enumerate(manifest.table["captions"])
                      for k in (range(len(captions)) if every_caption else [None])]
        self.shares = shares and _check_shares(shares, manifest)
        self.skipped: frozenset[str] = frozenset()
        self._decoded = shared_cache((sample_rate, self.samples), manifest.root, cache_bytes) if cache_bytes else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        failed, wave = None, None
        for chosen in self._candidates(epoch, index):
            row, which = self.pairs[chosen]
            clip = self.manifest.row(row)
            # draws of its own for each candidate: the same whether one before it was tried or known to be bad
            rng = randomness.generator(self.seed, "window", epoch, index, *([] if chosen == index else [chosen]))
            try:
                if clip["clip_id"] not in self.skipped:
                    wave = self._read(row, clip, rng)
                    break
                failed = failed or {"clip_id": clip["clip_id"], "reason": "on the list"}
            except (audio.AudioError, OSError) as error:
                failed = failed or {"clip_id": clip["clip_id"], "reason": str(error)}
        if wave is None and self.train:
            raise audio.AudioError(f"{failed['reason']}; nor could {REPLACEMENTS} other clips be read in its place: is the disk still there?")
        wave = torch.zeros(0) if wave is None else wave
        duration = len(wave) / self.sample_rate
        if self.train and self.gain_db:
            wave = wave * float(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        if self.train and self.shift:
            wave = torch.roll(wave, int(rng.integers(len(wave))))
        captions = list(clip["captions"]) or [""]
        if which is None:
            which = randomness.generator(self.seed, "caption", epoch, index).integers(len(captions)) if self.train else 0
        return {"clip_id": clip["clip_id"], "row": row, "caption": captions[which], "captions": captions,
                "labels": list(clip["labels"]), "duration": duration, "failed": failed,
                "waveform": torch.nn.functional.pad(wave, (0, self.samples - len(wave)))}

    def order(self, epoch: int, seed: int, shuffle: bool) -> np.ndarray:
        """Rows of an epoch in their order, (len(self),) int64: a function of (seed, epoch) alone."""
        if not (shuffle and self.shares):
            return randomness.epoch_order(len(self), seed, epoch, shuffle)
        source = self.manifest.table["source"].to_numpy()[[row for row, _ in self.pairs]]
        counts = _shared_out(len(self), list(self.shares.values()))
        drawn = []
        for name, count in zip(self.shares, counts):
            rows = np.flatnonzero(source == name)
            # one endless stream of permutations a set: none of its rows comes a second time before all have come once
            begin = epoch * count
            rounds = range(begin // len(rows), (begin + count - 1) // len(rows) + 1)
            stream = np.concatenate([rows[randomness.generator(seed, "mixture", name, k).permutation(len(rows))] for k in rounds])
            drawn.append(stream[begin - rounds[0] * len(rows):][:count])
        return np.concatenate(drawn)[randomness.epoch_order(len(self), seed, epoch)]

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """The row itself and, in training, the rows that would stand in for it, in their order."""
        yield index
        if self.train:
            yield from randomness.generator(self.seed, "replacement", epoch, index).integers(len(self.pairs), size=REPLACEMENTS).tolist()

    def _read(self, row: int, clip: dict, rng: np.random.Generator) -> Tensor:
        spare = clip["duration"] - self.seconds
        offset = (rng.uniform(0, spare) if self.train else spare / 2 if self.centred else 0.0) if spare > 0 else 0.0
        file = self.manifest.file(row)
        place = None if self._decoded is None else self.place(row)
        if place is not None and place in self._decoded:
            return self._decoded[place]
        wave = audio.read(file, sample_rate=self.sample_rate, start=clip["start"] + offset,
                          duration=min(self.seconds, clip["duration"]))[0][:self.samples]
        if not len(wave) or not torch.isfinite(wave).all():
            raise audio.AudioError(f"{file}: from {clip['start'] + offset:.3f} s on it holds " + (
                "values that are no finite numbers" if len(wave) else "no sound") + "; check the data set again with python -m lib.data check")
        if place is not None:
            self._decoded.keep(place, wave, wave.nbytes)
        return wave

    def place(self, row: int) -> tuple | None:
        """Key of a clip of the manifest that is used whole: file with size and time of change, start and duration. None of one that windows
        are drawn from."""
        clip, file = self.manifest.row(row), self.manifest.file(row)
        return (file, *(stamp(file) or ()), clip["start"], clip["duration"]) if clip["duration"] <= self.seconds else None


class Cache(dict):
    """What was made of whole clips, by `ClipDataset.place`, up to a number of bytes.  free: those that are left."""

    def __init__(self, free: int):
        super().__init__()
        self.free = free

    def keep(self, place: tuple, value: object, size: int) -> None:
        """Keep `value` of `size` bytes if there is room for it."""
        if size <= self.free:
            self[place] = value
            self.free -= size


@lru_cache(maxsize=2)
def shared_cache(what: Hashable, root: Path, budget: int) -> Cache:
    """One for all data sets of this process in a folder, so that validation after every epoch, and trainings one after another, make nothing
    again; the two used last stay.  what: how it was made.  budget: bytes."""
    return Cache(budget)


def _check_shares(shares: dict[str, float], manifest: Manifest) -> dict[str, float]:
    found = set(manifest.table["source"]) if "source" in manifest.table else set()
    if set(shares) != found:
        raise ValueError(f"shares are given for {sorted(shares)}, the training clips come from {sorted(found) or 'one data set'}; "
                         "give one share to each set of a mixture such as clotho+audiocaps")
    if any(not share > 0 for share in shares.values()):
        raise ValueError(f"shares must be positive, got {shares}; leave a data set out of the mixture instead")
    return shares


def _shared_out(total: int, shares: list[float]) -> list[int]:
    """`total` rows in proportion to `shares`, at least one each (largest remainders get what rounding left)."""
    exact = np.array(shares) / sum(shares) * total
    counts = np.maximum(exact.astype(int), 1)
    for i in np.argsort(counts - exact)[:max(total - counts.sum(), 0)]:
        counts[i] += 1
    counts[counts.argmax()] -= counts.sum() - total
    return counts.tolist()


def collate(items: list[dict]) -> dict:
    """List of dicts to dict of lists; tensors of one shape are stacked, other values stay lists (one collate for all families)."""
    batch = {}
    for name in items[0]:
        values = [item[name] for item in items]
        same = all(isinstance(v, Tensor) for v in values) and len({v.shape for v in values}) == 1
        batch[name] = torch.stack(values) if same else values
    return batch


def batches(dataset: ClipDataset, batch_size: int, *, epoch: int = 0, seed: int = 0, shuffle: bool = False, drop_last: bool = False,
            first_batch: int = 0, workers: int = 0, skipped: Iterable[str] = ()) -> Iterator[dict]:
    """Batches of one epoch, optionally from the middle; with several processes, this process's share of each.

    Args:
        dataset: what is batched.  batch_size: clips a batch, over all processes.  epoch, seed: determine the order when `shuffle`.
        drop_last: leave out an incomplete last batch.  first_batch: start at this batch (resume).
        workers: decoding processes; 0 decodes in this process.
        skipped: clip ids that are known to be bad (training only).
    """
    dataset.skipped = frozenset(skipped)
    order = dataset.order(epoch, seed, shuffle)
    groups = [[(epoch, int(i)) for i in order[begin:end][distributed.share(end - begin)]]
              for begin, end in bounds(len(order), batch_size, drop_last)[first_batch:]]
    # one worker thread each: the main process owns the cores
    start = one_thread if workers else None
    return iter(DataLoader(dataset, batch_sampler=groups, num_workers=workers, collate_fn=collate, worker_init_fn=start,
                           generator=torch.Generator().manual_seed(0)))


def count_batches(dataset: ClipDataset, batch_size: int, drop_last: bool = False) -> int:
    """Number of batches of an epoch."""
    return len(bounds(len(dataset), batch_size, drop_last))


def bounds(rows: int, batch_size: int, drop_last: bool = False) -> list[tuple[int, int]]:
    """Where each batch begins and ends. A last batch that would hold less than an eighth joins the one before: contrasts among a
    handful of rows are mostly noise, and every process needs a row."""
    full, rest = divmod(rows, batch_size)
    found = [(k * batch_size, (k + 1) * batch_size) for k in range(full)]
    if rest and not drop_last:
        if found and rest < max(batch_size // 8, distributed.world()):
            found[-1] = (found[-1][0], rows)
        else:
            found.append((full * batch_size, rows))
    if found and found[-1][1] - found[-1][0] < distributed.world():
        raise ValueError(f"{rows} rows in batches of {batch_size} cannot be shared by {distributed.world()} processes: lower devices")
    return found


def one_thread(worker: int) -> None:
    """What a decoding process does first: several of them must not each take all cores."""
    torch.set_num_threads(1)
