"""Features of clips, computed once and kept: every epoch, run and notebook that hears the clips alike reads them from disk.

Worth its space where the network is small beside its front end. A store is a folder named by what its numbers depend on (clips,
front end, window); float16 keeps log-mel levels to 0.06 dB. Computing that is killed goes on where it was.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lib import distributed
from lib.data.loading import one_thread
from lib.data.manifest import Manifest
from lib.files import alone, digest, read_json, write_json
from lib.media.audio import AudioError
from lib.progress import track
from lib.settings import data_dir

DONE, PROGRESS = "complete.json", "progress.json"
TOGETHER = 16           # clips of one worker's answer


@dataclass(frozen=True)
class FeatureStore:
    """Features of a data set.

    Attributes:
        folder: where they lie.  features: (N, ...) float16, memory-mapped.  rows: clip id -> its row.
        unreadable: clip id -> reason, of clips that could not be read; their features are 0 and mean nothing.
    """

    folder: Path
    features: np.ndarray
    rows: dict[str, int] = field(repr=False)
    unreadable: dict[str, str]

    def of(self, clip_id: str) -> np.ndarray:
        """Features (...) float16 of a clip."""
        return self.features[self.rows[clip_id]]


class _Features(Dataset):
    """Features of the rows of a manifest: pairs of (features, None) and (None, reason)."""

    def __init__(self, front_end: nn.Module, read: Callable[[int], Tensor]):
        self.front_end, self.read = front_end, read

    def __getitem__(self, row: int):
        try:
            with torch.inference_mode():
                return self.front_end(self.read(row)[None])[0].half().numpy(), None
        except (AudioError, OSError) as error:
            return None, str(error)


def feature_store(manifest: Manifest, front_end: nn.Module, read: Callable[[int], Tensor], window: dict, workers: int = 0) -> FeatureStore:
    """The features of every clip, read where they are at hand, otherwise computed.

    Args:
        manifest: N clips.  front_end: Tensor (1, channels, samples) to (1, ...), with a `config` dataclass.
        read: row of the manifest -> waveform (channels, samples); AudioError or OSError where it cannot be read.
        window: JSON-able; all that `read` depends on besides the manifest.  workers: processes that compute; 0: this one.
    """
    key = digest(manifest.fingerprint, json.dumps([asdict(front_end.config), window], sort_keys=True))
    folder = data_dir() / "features" / f"{manifest.name}-{key}"
    if distributed.rank() == 0:
        with alone(folder / ".lock", f"features {folder.name}"):
            if not read_json(folder / DONE):
                _compute(manifest, front_end, read, folder, workers)
    distributed.anywhere([True], torch.device("cuda" if _on_nccl() else "cpu"))         # the others read after the first has written
    done = read_json(folder / DONE)
    return FeatureStore(folder, np.load(folder / "features.npy", mmap_mode="r"),
                        {clip: row for row, clip in enumerate(manifest.table["clip_id"])}, done["unreadable"])


def _on_nccl() -> bool:
    return distributed.world() > 1 and torch.distributed.get_backend() == "nccl"


def _compute(manifest: Manifest, front_end: nn.Module, read: Callable[[int], Tensor], folder: Path, workers: int) -> None:
    state = read_json(folder / PROGRESS) if (folder / "features.npy").is_file() else None
    state = state or {"rows": 0, "unreadable": {}}
    done, kept = state["rows"], None
    loader = DataLoader(_Features(front_end, read), sampler=range(done, len(manifest)), batch_size=TOGETHER, num_workers=workers,
                        collate_fn=list, worker_init_fn=one_thread if workers else None)
    for batch in track(loader, -(-(len(manifest) - done) // TOGETHER), f"computing features ({TOGETHER} clips a step)"):
        for features, reason in batch:
            if features is None:
                state["unreadable"][manifest.table["clip_id"].iat[done]] = reason
            else:
                if kept is None:
                    resumed = {"mode": "r+"} if state["rows"] else {"mode": "w+", "dtype": np.float16, "shape": (len(manifest), *features.shape)}
                    kept = np.lib.format.open_memmap(folder / "features.npy", **resumed)
                kept[done] = features
            done += 1
        if kept is not None and done - state["rows"] >= 64 * TOGETHER:
            kept.flush()            # the rows first, then the note that they are there
            state["rows"] = done
            write_json(folder / PROGRESS, state)
    if kept is None and not (folder / "features.npy").is_file():
        raise AudioError(f"no clip of {manifest.name} could be read; the first: {next(iter(state['unreadable'].values()), 'the data set is empty')}")
    if kept is not None:
        kept.flush()
    write_json(folder / DONE, {"unreadable": state["unreadable"], "clips": len(manifest)})
    (folder / PROGRESS).unlink(missing_ok=True)
