"""Embeddings of a frozen model, encoded once and kept: every later run, notebook or epoch reads them from disk.

A store is a folder named by what its numbers depend on (weights, window, clips, texts). It holds audio.npy, a row a clip, and
text.npy, a row a different text, both memory-mapped. Encoding that is killed goes on where it was; several processes share it.
"""
from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import distributed
from lib.data.loading import ClipDataset, batches, count_batches
from lib.data.manifest import Manifest
from lib.files import alone, digest, read_json, write_json
from lib.progress import track
from lib.settings import data_dir

SAVED_EVERY = 15        # seconds between notes of how far encoding is
DONE, PROGRESS = "complete.json", "progress.json"


@torch.inference_mode()
def encode_clips(model, manifest: Manifest, *, seconds: float, batch_size: int, workers: int = 0,
                 first_batch: int = 0) -> Iterator[tuple[Tensor, list[dict | None]]]:
    """Batches of clips as unit vectors, in the order of the manifest, with progress; several processes share each batch.

    Args:
        model: with `embed_audio(waveform, durations)`, `.audio.sample_rate` and parameters, in evaluation mode.
        seconds: window from each clip's start.  first_batch: go on from this one.
    Yields:
        Tensor (b, D) float32 on the CPU, and of each row None or {"clip_id", "reason"} where the clip could not be read (its
        vector is that of silence and means nothing).
    """
    device = next(model.parameters()).device
    dataset = ClipDataset(manifest, sample_rate=model.audio.sample_rate, seconds=seconds)
    source = batches(dataset, batch_size, workers=workers, first_batch=first_batch)
    for batch in track(source, count_batches(dataset, batch_size) - first_batch, "encoding clips"):
        durations = torch.tensor(batch["duration"], device=device)
        rows = distributed.gather(model.embed_audio(batch["waveform"].to(device), durations))
        yield rows.float().cpu(), distributed.gather_list(batch["failed"])


@torch.inference_mode()
def encode_texts(model, texts: Sequence[str], chunk: int = 256) -> Tensor:
    """Texts to unit vectors (T, D) float32 on the CPU; a text that occurs several times is encoded once, in evaluation mode."""
    distinct = sorted(set(texts))
    rows = [model.embed_text(distinct[i:i + chunk]).float().cpu()
            for i in track(range(0, len(distinct), chunk), -(-len(distinct) // chunk), "encoding texts")]
    place = {text: i for i, text in enumerate(distinct)}
    return torch.cat(rows)[[place[text] for text in texts]]


@dataclass(frozen=True)
class Store:
    """Embeddings of a data set by one model.

    Attributes:
        folder: where they lie.  audio: (N, D) float32, memory-mapped, rows as in the manifest.
        text: (T, D) float32, memory-mapped.  texts: text -> its row.
        unreadable: clip id -> reason, of clips that could not be read; their rows of `audio` mean nothing.
    """

    folder: Path
    audio: np.ndarray
    text: np.ndarray
    texts: dict[str, int] = field(repr=False)
    unreadable: dict[str, str]


def store(model: Callable[[], nn.Module], manifest: Manifest, texts: Sequence[str], weights: str, *, seconds: float, batch_size: int = 32,
          workers: int = 0) -> Store:
    """The embeddings of every clip and text, read where they are at hand, otherwise encoded.

    Args:
        model: gives a frozen model as `lib.encoders.load` returns it, in evaluation mode; called only where something has to be encoded.
        weights: digest of its weights.
        manifest: N clips.  texts: captions or prompts.  seconds: window from each clip's start.
    """
    texts = sorted(set(texts))
    key = digest(weights, manifest.fingerprint, json.dumps([seconds, texts]))
    folder = data_dir() / "embeddings" / f"{manifest.name.replace('+', '-')}-{key}"
    first = distributed.rank() == 0
    with alone(folder / ".lock", f"embeddings {folder.name}") if first else nullcontext():
        state = distributed.gather_list([[_state(folder, batch_size)]] if first else [])[0][0]   # what the first process found holds for all
        if not state["complete"]:
            _encode(model(), manifest, texts, folder, state, seconds, batch_size, workers)
    done = read_json(folder / DONE)
    return Store(folder, np.load(folder / "audio.npy", mmap_mode="r"), np.load(folder / "text.npy", mmap_mode="r"),
                 {text: i for i, text in enumerate(texts)}, done["unreadable"])


def _state(folder: Path, batch_size: int) -> dict:
    """How far encoding is: complete, or the number of batches of this size that are done."""
    if read_json(folder / DONE):
        return {"complete": True}
    found = read_json(folder / PROGRESS)
    if found and found["batch_size"] == batch_size and (folder / "audio.npy").is_file():
        return found | {"complete": False}
    return {"complete": False, "batches": 0, "rows": 0, "batch_size": batch_size, "unreadable": {}}


def _encode(model, manifest: Manifest, texts: list[str], folder: Path, state: dict, seconds: float, batch_size: int, workers: int) -> None:
    first, saved = distributed.rank() == 0, time.monotonic()
    text = encode_texts(model, texts)
    audio = None
    for rows, failed in encode_clips(model, manifest, seconds=seconds, batch_size=batch_size, workers=workers, first_batch=state["batches"]):
        if not first:
            continue
        if audio is None:
            resumed = {"mode": "r+"} if state["batches"] else {"mode": "w+", "dtype": np.float32, "shape": (len(manifest), rows.shape[1])}
            audio = np.lib.format.open_memmap(folder / "audio.npy", **resumed)
        audio[state["rows"]:state["rows"] + len(rows)] = rows.numpy()
        state["rows"] += len(rows)
        state["batches"] += 1
        state["unreadable"] |= {entry["clip_id"]: entry["reason"] for entry in failed if entry}
        if time.monotonic() - saved > SAVED_EVERY:
            audio.flush()           # the rows first, then the note that they are there
            write_json(folder / PROGRESS, {name: value for name, value in state.items() if name != "complete"})
            saved = time.monotonic()
    if first:
        if audio is not None:
            audio.flush()
        np.save(folder / "text.npy", text.numpy())
        write_json(folder / DONE, {"unreadable": state["unreadable"], "clips": len(manifest), "texts": len(texts)})
        (folder / PROGRESS).unlink(missing_ok=True)
    distributed.anywhere([True], torch.device(next(model.parameters()).device))          # the others read after the first has written
