"""The embedded data set: synthesised soundscapes with exact ground truth, rendered on this machine.

Scenes come from lib.data.scenes, captions from lib.data.scene_captions, all ranges from soundscapes.yaml. The same scenes
can be rendered to one channel, to four (lib.data.scene_space) or to a video with sound (lib.data.scene_video). The files are
cached in <data folder>/soundscapes/<digest of the ranges, the code, seed, clip length and rendering>; a rendering that was
killed goes on where it stopped, and a file that was damaged since is rendered again.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from lib import files
from lib.audio import ambisonics, signals, synthesis
from lib.audio.signals import SAMPLE_RATE
from lib.data import scenes
from lib.data.manifest import SPLITS, Manifest
from lib.data.rendering import run
from lib.data.scene_captions import captions
from lib.settings import data_dir

BATCH = 16  # scenes a worker renders before it reports
RENDERINGS = {
    "mono": "Soundscapes (synthesised)",
    "foa": "Soundscapes (synthesised), first-order ambisonics in the open",
    "foa_room": "Soundscapes (synthesised), first-order ambisonics in shoebox rooms",
    "video": "Soundscapes (synthesised), video with sound",
    "closeup": "Soundscapes (synthesised), video with sound, near what is heard",
}
VIDEOS = ("video", "closeup")
_SPACES = {"foa": "anechoic", "foa_room": "shoebox"}  # rooms of lib.data.scene_space


def prepare(data_root: str | Path | None = None, *, seed: int = 0, num_samples: int | None = None, workers: int = 0,
            clip_seconds: float = 5.0, rendering: str = "mono", events: int | None = None) -> Manifest:
    """Render the soundscapes that are not there yet and return their manifest.

    Args:
        data_root: folder to write to; None: `soundscapes` in the data folder.
        seed: of the scenes. Scene i of a split is the same whatever num_samples, workers and rendering are.
        num_samples: scenes over all splits (at least 3); None: the total of soundscapes.yaml.
        workers: processes that render; 0: this one.
        clip_seconds: length of a scene, 3 to 30 s.
        rendering: "mono": one channel, FLAC; "foa", "foa_room": four channels (ACN order W, Y, Z, X, SN3D), FLAC, in the
            open or in a shoebox room; "video": MP4 with one channel of sound, a panorama; "closeup": the same near the event,
            of scenes with one (events=1).
        events: only scenes of so many events, the first ones of each split that have them; 1: clips with a single label, for
            classification. None: the scenes as they come.

    Returns:
        Manifest of 48 kHz clips with the extra columns `annotation` (JSON: the Scene and the facts of its captions, see
        lib.data.scene_captions), `audible_key` (equal where the annotation sounds equal) and `group` (cells); except for
        "mono" also `azimuth`, `elevation` (degrees) and `onset` (seconds), lists in the order of `labels`; for videos
        `video`, the same file as `path`. info holds "rendering", "sample_rate", "channels" and, of four, "channel_order".

    Raises:
        ValueError: an argument out of range.
    """
    if rendering not in RENDERINGS:
        raise ValueError(f"rendering must be one of {', '.join(RENDERINGS)}, got {rendering!r}")
    counts = split_counts(scenes.config()["total"] if num_samples is None else num_samples)
    folder = Path(data_root or data_dir() / "soundscapes") / digest(seed, clip_seconds, rendering)
    if events not in (None, *(numbers := scenes.config()["scene"]["events"])):
        raise ValueError(f"events must be one of {', '.join(map(str, numbers))} or None, got {events!r}")
    if rendering == "closeup" and events != 1:
        raise ValueError(f"rendering 'closeup' shows the one event of a scene; use events=1, got {events!r}")
    worlds = [scene for split in SPLITS for scene in _scenes(seed, split, counts[split], clip_seconds, events)]
    _check_cells(worlds)
    clips = {scene: folder / _path(scene, rendering) for scene in worlds}
    _render_missing(clips, rendering, workers)
    from lib.data import health  # here, because it loads torch, which the processes that render do without
    verdicts = health.inspect(map(str, clips.values()), workers)
    damaged = [file for scene, file in clips.items() if verdicts[str(file)].reason
               or verdicts[str(file)].duration < health.TRUNCATED * scene.duration]
    for file in damaged:
        file.unlink(missing_ok=True)
    _render_missing(clips, rendering, workers)
    settings = scenes.config()
    info = {"title": RENDERINGS[rendering], "classes": scenes.classes(), "taxonomy": scenes.taxonomy(),
            "templates": settings["templates"], "phrases": {c: settings["classes"][c]["phrase"] for c in scenes.classes()},
            "seed": seed, "clip_seconds": clip_seconds, "digest": folder.name, "rendering": rendering,
            "sample_rate": SAMPLE_RATE, "channels": 1}
    if rendering in _SPACES:
        info |= {"channels": 4, "channel_order": "ACN W, Y, Z, X, SN3D"}
    table = pd.DataFrame([_row(scene, rendering) for scene in worlds])
    return health.check(Manifest(table, "soundscapes", folder, info), workers)


def split_counts(total: int) -> dict[str, int]:
    """Scenes of each split for `total` scenes: the shares of soundscapes.yaml, but enough to test on where possible."""
    if total < len(SPLITS):
        raise ValueError(f"num_samples must be at least {len(SPLITS)} for soundscapes (one scene a split), got {total}")
    settings = scenes.config()
    floor = max(1, min(settings["smallest_held_out"], total // 4))
    counts = {split: max(floor, round(total * settings["splits"][split])) for split in ("val", "test")}
    return {"train": total - sum(counts.values()), **counts}


def digest(seed: int, clip_seconds: float, rendering: str = "mono") -> str:
    """16 hex digits that change with anything the samples of a scene depend on: ranges, code, seed, clip length, rendering."""
    sources = [scenes.CONFIG, scenes.__file__, signals.__file__, synthesis.__file__]
    values = [seed, float(clip_seconds)]
    if rendering != "mono":
        values.append(rendering)
        here = Path(__file__).parent
        sources += [here / "scene_video.py"] if rendering in VIDEOS else [here / "scene_space.py", ambisonics.__file__]
    total = hashlib.sha256(json.dumps(values).encode())
    for source in sources:
        total.update(Path(source).read_bytes())
    return total.hexdigest()[:16]


def _row(scene: scenes.Scene, rendering: str) -> dict:
    texts, facts = captions(scene)
    path = _path(scene, rendering)
    row = {"clip_id": scene.clip_id, "path": path, "start": 0.0, "duration": scene.duration, "split": scene.split,
           "captions": texts, "labels": [e.label for e in scene.events], "group": " ".join(e.cell for e in scene.events),
           "audible_key": scene.audible_key(), "annotation": json.dumps({**json.loads(scene.to_json()), "facts": facts})}
    if rendering != "mono":
        row |= {name: [getattr(e, name) for e in scene.events] for name in ("azimuth", "elevation", "onset")}
    return row | ({"video": path} if rendering in VIDEOS else {})


def _path(scene: scenes.Scene, rendering: str) -> str:
    return f"video/{scene.clip_id}.mp4" if rendering in VIDEOS else f"audio/{scene.clip_id}.flac"


def _scenes(seed: int, split: str, count: int, seconds: float, events: int | None) -> Iterator[scenes.Scene]:
    """The first `count` scenes of a split, or of those of its scenes with so many events; numbers and files stay."""
    every = (scenes.sample_scene(seed, split, i, seconds) for i in itertools.count())
    return itertools.islice((scene for scene in every if events in (None, len(scene.events))), count)


def _check_cells(worlds: list[scenes.Scene]) -> None:
    """No cell of pitch x rate x timbre may sound in two splits."""
    seen = {split: {e.cell for scene in worlds if scene.split == split for e in scene.events} for split in SPLITS}
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1:]:
            shared = seen[one] & seen[other]
            assert not shared, f"cells {sorted(shared)[:3]} occur in {one} and in {other}"


def _render_missing(clips: dict[scenes.Scene, Path], rendering: str, workers: int) -> None:
    """Render the clips whose file is not there; files appear whole, see `_render`."""
    if all(file.is_file() for file in clips.values()):  # nothing is written, so the folder may be read-only
        return
    folder = next(iter(clips.values())).parent
    with files.alone(folder / ".lock", f"the rendering to {folder}"):
        for part in folder.glob("*.part"):  # of a rendering that was killed, as nobody else holds the lock
            part.unlink(missing_ok=True)
        missing = [(scene, file) for scene, file in clips.items() if not file.is_file()]
        batches = [missing[i:i + BATCH] for i in range(0, len(missing), BATCH)]
        for _ in run(partial(_render, rendering=rendering), batches, workers, f"rendering soundscapes ({BATCH} scenes a step)"):
            pass


def _render(batch: list[tuple[scenes.Scene, Path]], rendering: str) -> None:
    for scene, file in batch:
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        _write(scene, rendering, part)
        os.replace(part, file)


def _write(scene: scenes.Scene, rendering: str, file: Path) -> None:
    if rendering in VIDEOS:
        from lib.data import scene_video  # here and below: each rendering loads only what it needs
        scene_video.write(scene, scenes.render(scene), file, close=rendering == "closeup")
        return
    if rendering == "mono":
        samples = scenes.render(scene)
    else:
        from lib.data import scene_space
        samples = scene_space.render_foa(scene, _SPACES[rendering]).T
    # Rounded to 16 bits here, so that the file does not depend on how the library rounds.
    soundfile.write(file, np.round(samples * 32767).astype(np.int16), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
