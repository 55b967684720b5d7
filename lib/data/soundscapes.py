"""The embedded data set: synthesised soundscapes with exact ground truth, rendered on this machine.

Scenes come from lib.data.scenes, captions from lib.data.scene_captions, all ranges from soundscapes.yaml. The audio is
cached in <data folder>/soundscapes/<digest of the ranges, the code, seed and clip length>; a rendering that was killed
goes on where it stopped.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from lib.audio import signals, synthesis
from lib.audio.signals import SAMPLE_RATE, to_samples
from lib.data import scenes
from lib.data.manifest import SPLITS, Manifest
from lib.progress import track
from lib.data.scene_captions import captions
from lib.settings import data_dir

BATCH = 16  # scenes a worker renders before it reports


def prepare(data_root: str | Path | None = None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            clip_seconds: float = 5.0) -> Manifest:
    """Render the soundscapes that are not there yet and return their manifest.

    Args:
        data_root: folder to write to; None: `soundscapes` in the data folder.
        seed: of the scenes. Scene i of a split is the same whatever num_samples and workers are.
        num_samples: scenes over all splits (at least 3); None: the total of soundscapes.yaml.
        workers: processes that render; 0: this one.
        clip_seconds: length of a scene, 3 to 30 s.

    Returns:
        Manifest with 48 kHz mono FLAC clips and the extra columns `annotation` (JSON: the Scene and the facts of its
        captions, see lib.data.scene_captions), `audible_key` (equal where the annotation sounds equal) and `group` (cells).

    Raises:
        ValueError: an argument out of range.
    """
    counts = split_counts(scenes.config()["total"] if num_samples is None else num_samples)
    folder = Path(data_root or data_dir() / "soundscapes") / digest(seed, clip_seconds)
    worlds = [scenes.sample_scene(seed, split, i, clip_seconds) for split in SPLITS for i in range(counts[split])]
    _check_cells(worlds)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    missing = [scene for scene in worlds if not _is_rendered(folder / _path(scene), scene)]
    batches = [missing[i:i + BATCH] for i in range(0, len(missing), BATCH)]
    rendered = _in_parallel(batches, folder, workers) if workers and missing else (_render(batch, folder) for batch in batches)
    for _ in track(rendered, len(batches), f"rendering soundscapes ({BATCH} scenes a step)"):
        pass
    settings = scenes.config()
    info = {"title": "Soundscapes (synthesised)", "classes": scenes.classes(), "taxonomy": scenes.taxonomy(),
            "templates": settings["templates"], "phrases": {c: settings["classes"][c]["phrase"] for c in scenes.classes()},
            "seed": seed, "clip_seconds": clip_seconds, "digest": folder.name}
    from lib.data.health import check  # here, because it loads torch, which the processes that render do without
    return check(Manifest(pd.DataFrame([_row(scene) for scene in worlds]), "soundscapes", folder, info), workers)


def split_counts(total: int) -> dict[str, int]:
    """Scenes of each split for `total` scenes: the shares of soundscapes.yaml, but enough to test on where possible."""
    if total < len(SPLITS):
        raise ValueError(f"num_samples must be at least {len(SPLITS)} for soundscapes (one scene a split), got {total}")
    settings = scenes.config()
    floor = max(1, min(settings["smallest_held_out"], total // 4))
    counts = {split: max(floor, round(total * settings["splits"][split])) for split in ("val", "test")}
    return {"train": total - sum(counts.values()), **counts}


def digest(seed: int, clip_seconds: float) -> str:
    """16 hex digits that change with anything the samples of a scene depend on: ranges, code, seed, clip length."""
    total = hashlib.sha256(json.dumps([seed, float(clip_seconds)]).encode())
    for source in (scenes.CONFIG, scenes.__file__, signals.__file__, synthesis.__file__):
        total.update(Path(source).read_bytes())
    return total.hexdigest()[:16]


def _row(scene: scenes.Scene) -> dict:
    texts, facts = captions(scene)
    return {"clip_id": scene.clip_id, "path": _path(scene), "start": 0.0, "duration": scene.duration, "split": scene.split,
            "captions": texts, "labels": [e.label for e in scene.events], "group": " ".join(e.cell for e in scene.events),
            "audible_key": scene.audible_key(), "annotation": json.dumps({**json.loads(scene.to_json()), "facts": facts})}


def _path(scene: scenes.Scene) -> str:
    return f"audio/{scene.clip_id}.flac"


def _check_cells(worlds: list[scenes.Scene]) -> None:
    """No cell of pitch x rate x timbre may sound in two splits."""
    seen = {split: {e.cell for scene in worlds if scene.split == split for e in scene.events} for split in SPLITS}
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1:]:
            shared = seen[one] & seen[other]
            assert not shared, f"cells {sorted(shared)[:3]} occur in {one} and in {other}"


def _is_rendered(file: Path, scene: scenes.Scene) -> bool:
    """Files appear whole (see `_render`), so the header tells; a file damaged later is rendered again, too."""
    try:
        found = soundfile.info(str(file))
    except soundfile.LibsndfileError:
        return False
    return (found.frames, found.samplerate, found.channels) == (to_samples(scene.duration), SAMPLE_RATE, 1)


def _render(batch: list[scenes.Scene], folder: Path) -> int:
    for scene in batch:
        file = folder / _path(scene)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        # Rounded to 16 bits here, so that the file does not depend on how the library rounds.
        samples = np.round(scenes.render(scene) * 32767).astype(np.int16)
        soundfile.write(part, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        os.replace(part, file)
    return len(batch)


def _in_parallel(batches: list[list[scenes.Scene]], folder: Path, workers: int) -> Iterator[int]:
    # spawn: a fork would copy the threads and locks of a notebook kernel
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(_render, batch, folder) for batch in batches]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a failure or an interrupt should not wait for all the rest
            raise
