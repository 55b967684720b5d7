"""Inline audio and video players for notebooks and HTML reports: static HTML, no script, nothing fetched from a network.

Convention: a waveform is (channels, samples) or (samples,), floating point with full scale +-1, numpy or torch. The gain is
fixed at one: what is quiet stays quiet, what passes +-1 is cut there and says so, so that two players can be compared by
ear. Sound travels as Ogg Vorbis, which every current browser plays (32 kHz mono: about 10 kB and 4 ms of encoding a second
of sound on one core); a video as the MP4 file that it is. Captions, titles and file names are data from outside and are escaped, quotes included.
"""
from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile
import torch
from tqdm.auto import tqdm

from lib.audio.ambisonics import stereo
from lib.data.manifest import Manifest
from lib.display.spectrograms import thumbnail_png
from lib.media import audio

BYTE_BUDGET = 8_000_000
VIDEO_BYTES = 4_000_000  # of a video that a page carries
SAMPLE_RATES = (4_000, 192_000)  # what libvorbis encodes; above, libsndfile 1.2.2 crashes the process instead of refusing
SILENCE_DBFS = -90.0
_BLOCK = 65_536  # frames a write: libsndfile 1.2.2 overflows its stack when minutes of sound come at once
_STYLE = """<style>
.clip-gallery{display:grid;gap:10px;margin:6px 0;font:13px/1.4 sans-serif}
.clip-card{border:1px solid rgba(128,128,128,.4);border-left:5px solid rgba(128,128,128,.4);border-radius:4px;padding:7px 9px;\
min-width:0;overflow-wrap:anywhere}
.clip-card.clip-hit{border-left-color:#029e73;background:rgba(2,158,115,.09)}
.clip-card .clip-head{display:flex;gap:8px;align-items:baseline}
.clip-card .clip-title{font-weight:bold;flex:1}
.clip-card .clip-rank,.clip-card .clip-score{font-variant-numeric:tabular-nums}
.clip-card .clip-badge{color:#fff;background:#027a59;border-radius:3px;padding:0 6px;font-size:11px}
.clip-card .clip-bad{color:#8f1d00;background:#ffe3da;border:1px solid #d55e00;border-radius:3px;padding:6px 8px;margin:5px 0}
.clip-card .clip-flag{font-weight:bold}
.clip-card .clip-facts{opacity:.72;font-size:11px}
.clip-card audio{width:100%;height:34px;display:block;margin:5px 0}
.clip-card video{width:100%;display:block;margin:5px 0;background:#000}
.clip-card img{width:100%;height:44px;display:block;margin-top:5px;image-rendering:auto}
</style>"""


@dataclass(frozen=True)
class Html:
    """A piece of static HTML that notebooks show.

    Args:
        html: the text, complete with its style sheet.
        players, embedded_bytes: number of clips; characters of embedded sound and pictures.
        linked: files written beside the page because the byte budget was used up.
    """

    html: str
    players: int = 1
    embedded_bytes: int = 0
    linked: tuple[Path, ...] = ()

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<{self.players} clip(s), {self.embedded_bytes / 1e3:.0f} kB embedded, {len(self.linked)} linked>"


def player(waveform, sample_rate: int, *, caption: str | Sequence[str] = "", score: float | None = None,
           rank: int | None = None, title: str = "", hit: bool | None = None, thumbnail: bool = False,
           video: str | os.PathLike | None = None) -> Html:
    """One clip with its player.

    Args:
        waveform: (channels, samples) or (samples,), floating point, full scale +-1; mono or stereo. NaN, infinity or no samples
            give an error box in place of the player.
        sample_rate: Hz, 4000 to 192000.
        caption: text below the player; a list of captions is shown line by line.
        score, rank: of this clip for its query; rank 1 is the best.
        hit: True highlights the clip as ground truth.
        thumbnail: also draw a small log-mel picture (fixed scale, -100 to -20 dB of full scale a mel band).
        video: an MP4 file that is played, with its own sound, in place of the waveform.

    Raises:
        ValueError, TypeError: a shape, type or sample rate that cannot be played, with the way out.
    """
    return gallery([dict(waveform=waveform, sample_rate=sample_rate, caption=caption, score=score, rank=rank, title=title,
                         hit=hit, thumbnail=thumbnail, video=video)], columns=1, byte_budget=None)


def gallery(items: Iterable[Mapping], *, columns: int = 3, byte_budget: int | None = BYTE_BUDGET,
            folder: str | os.PathLike | None = None, link_prefix: str | None = None) -> Html:
    """Clips side by side.

    Args:
        items: the arguments of `player`, one mapping a clip; a generator is read one clip at a time.
        columns: clips a row.
        byte_budget: characters of embedded sound and pictures in the page; None embeds everything. A clip that would pass it
            is written to `folder` and linked; without a folder a note stands in place of its player.
        folder: where linked files go (created when needed); their names depend on their sound alone.
        link_prefix: the folder as seen from the page; by default its last name, for a folder beside the page.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    prefix = (Path(folder).name if link_prefix is None else link_prefix).rstrip("/") if folder is not None else ""
    cards, linked, used = [], [], 0
    for number, item in enumerate(tqdm(items, desc="Encoding clips", unit="clip", delay=3, leave=False)):
        try:
            clip = _Clip(**item)
        except (TypeError, ValueError) as error:
            error.add_note(f"clip number {number} of the gallery, title {item.get('title', '')!r}")
            raise
        picture, sound = clip.picture(), clip.encode()
        used += len(picture)
        if sound is None:
            body = f'<div class="clip-bad" role="alert"><b>Not playable:</b> {escape(clip.problem)}</div>'
        elif byte_budget is None or used + 4 * math.ceil(len(sound) / 3) <= byte_budget:
            source = f"data:{clip.media};base64,{base64.b64encode(sound).decode()}"
            used += len(source)
            body = _playable(source, clip)
        elif folder is None:
            body = '<div class="clip-bad">Not embedded: the byte budget of this page is used up (give a folder to link to).</div>'
        else:
            linked.append(_write(Path(folder), clip, sound))
            body = _playable(quote(f"{prefix}/{linked[-1].name}" if prefix else linked[-1].name), clip)
        cards.append(clip.card(picture + body))
    grid = f'<div class="clip-gallery" style="grid-template-columns:repeat({columns},minmax(0,1fr))">'
    return Html(_STYLE + grid + "".join(cards) + "</div>", len(cards), used, tuple(linked))


def clip(manifest: Manifest, row: int, *, sample_rate: int = 32000, seconds: float = 10.0, **shown) -> dict:
    """A clip of a manifest as an item of `gallery`: its first `seconds`, its labels as title and its captions; ambisonics in
    stereo, a video (up to `VIDEO_BYTES`) with its picture.

    Args:
        row: of the manifest.  sample_rate: Hz.  shown: what else `player` takes (score, rank, hit, thumbnail), or other captions.
    """
    entry = manifest.row(row)
    spatial, video = manifest.info.get("channels") == 4, manifest.root / entry["video"] if entry.get("video") else None
    waveform = audio.read(manifest.file(row), sample_rate=sample_rate, start=entry["start"], duration=min(seconds, entry["duration"]),
                          mono=not spatial)
    if video is not None and video.stat().st_size <= VIDEO_BYTES:
        shown = {"video": video, **shown}
    return {"waveform": stereo(waveform) if spatial else waveform, "sample_rate": sample_rate, "title": ", ".join(entry["labels"]),
            "caption": entry["captions"], **shown}


def listen_entry(item: Mapping, folder: str | os.PathLike) -> dict:
    """An item of `gallery` as an entry of the "listen" section of the report's index.

    Args:
        item: the arguments of `player`.
        folder: of the report; the sound is written to its subfolder `clips` under a name that depends on the samples alone,
            so that equal runs have equal results.

    Returns:
        dict of JSON types: title and caption (plain text: whoever writes HTML escapes it), audio (path relative to `folder`; "" when
        the sound is not playable, and then the caption says why) and score (None when there is none or it is not finite).
    """
    clip = _Clip(**item)
    sound = clip.encode()
    text, score = clip.caption, item.get("score")
    return {"title": str(clip.title), "caption": text if sound else f"Not playable: {clip.problem}. {text}".strip(),
            "audio": f"clips/{_write(Path(folder) / 'clips', clip, sound).name}" if sound else "",
            "score": float(score) if score is not None and math.isfinite(score) else None}


class _Clip:
    """A checked waveform (channels, samples) float32 with what is said about it."""

    def __init__(self, waveform, sample_rate, *, caption="", score=None, rank=None, title="", hit=None, thumbnail=False, video=None):
        self.waveform, self.sample_rate = _checked(waveform), _checked_rate(sample_rate)
        self.caption = str(caption) if isinstance(caption, str) or caption is None else "\n".join(map(str, caption))
        self.score, self.rank, self.title, self.hit, self.thumbnail = score, rank, str(title), hit, thumbnail
        self.video, self.media = video, "audio/ogg" if video is None else "video/mp4"
        bad = int(np.count_nonzero(~np.isfinite(self.waveform)))
        self.problem = "" if self.waveform.size else "no samples"
        if bad:
            self.problem = f"{bad} of {self.waveform.size} samples are NaN or infinite"

    def encode(self) -> bytes | None:
        """The sound as Ogg Vorbis at its own level and sample rate (or the video's file), or None when there is a problem."""
        if self.problem:
            return None
        if self.video is not None:
            return Path(self.video).read_bytes()
        # Beyond full scale every device cuts; cutting here makes all of them cut alike.
        frames = np.clip(self.waveform, -1.0, 1.0).T
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", self.sample_rate, frames.shape[1], format="OGG", subtype="VORBIS") as file:
            for start in range(0, len(frames), _BLOCK):
                file.write(frames[start:start + _BLOCK])
        return buffer.getvalue()

    def picture(self) -> str:
        if not self.thumbnail or self.problem:
            return ""
        png = base64.b64encode(thumbnail_png(self.waveform.mean(0), self.sample_rate)).decode()
        return f'<img alt="log-mel spectrogram" src="data:image/png;base64,{png}">'

    def card(self, body: str) -> str:
        """HTML of the clip around its player; every text from outside is escaped here."""
        head = f'<span class="clip-rank">#{int(self.rank)}</span>' if self.rank is not None else ""
        head += f'<span class="clip-title">{escape(self.title)}</span>'
        head += '<span class="clip-badge">&#10003; ground truth</span>' if self.hit else ""
        head += f'<span class="clip-score" title="score">{float(self.score):.3f}</span>' if self.score is not None else ""
        caption = "<br>".join(escape(line) for line in self.caption.splitlines())
        return (f'<div class="clip-card{" clip-hit" if self.hit else ""}"><div class="clip-head">{head}</div>{body}'
                f'<div class="clip-caption">{caption}</div><div class="clip-facts">{self.facts()}</div></div>')

    def facts(self) -> str:
        channels, samples = self.waveform.shape
        kind = "mono" if channels == 1 else "stereo"
        text = f"{samples / self.sample_rate:.2f} s &middot; {self.sample_rate / 1000:g} kHz &middot; {kind}"
        if self.problem:
            return text
        peak = float(np.abs(self.waveform).max())
        over = int(np.count_nonzero(np.abs(self.waveform) > 1))
        level = 20 * math.log10(peak) if peak else -math.inf
        if level < SILENCE_DBFS:
            return text + f' &middot; <span class="clip-flag">silent</span> (peak below {SILENCE_DBFS:.0f} dBFS)'
        note = f' &middot; <span class="clip-flag">clipped</span> ({over} samples beyond &plusmn;1)' if over else ""
        return text + f" &middot; peak {level:+.1f} dBFS{note}"


def _checked(waveform) -> np.ndarray:
    """(channels, samples) float32, mono or stereo, or an error that says what to do."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.dtype == torch.bfloat16 else waveform).numpy()  # numpy has no bfloat16
    array = np.asarray(waveform)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"waveform is {array.dtype}, expected floating point with full scale +-1 "
                        "(divide 16-bit integers by 32768)")
    if array.ndim not in (1, 2):
        raise ValueError(f"waveform has shape {array.shape}, expected (channels, samples) or (samples,): pass one clip of "
                         "a batch, batch[0]")
    array = array.reshape(1, -1) if array.ndim == 1 else array
    channels, samples = array.shape
    if channels > 8 or 0 < samples < channels:
        raise ValueError(f"waveform has shape {array.shape}, expected (channels, samples); this looks like (time, channels): "
                         "transpose it with waveform.T")
    if channels == 4:
        raise ValueError("waveform has 4 channels, which looks like first-order ambisonics: decode it first with "
                         "lib.audio.ambisonics.stereo, or play its omnidirectional channel, waveform[:1]")
    if channels not in (1, 2):
        raise ValueError(f"waveform has {channels} channels, expected 1 or 2: choose two, or fold them with waveform.mean(0)")
    return array.astype(np.float32)


def _checked_rate(sample_rate) -> int:
    low, high = SAMPLE_RATES
    if not low <= sample_rate <= high or int(sample_rate) != sample_rate:
        raise ValueError(f"sample_rate must be a whole number of Hz from {low} to {high} (Ogg Vorbis), got {sample_rate!r}: "
                         "resample the clip")
    return int(sample_rate)


def _playable(source: str, clip: _Clip) -> str:
    kind = clip.media.partition("/")[0]
    return f'<{kind} controls preload="metadata" aria-label="{escape(clip.title or "clip")}" src="{escape(source)}"></{kind}>'


def _write(folder: Path, clip: _Clip, sound: bytes) -> Path:
    """Write `sound`, replacing a file of the same clip in one step. Ogg files carry a random serial number, so the name is
    taken from the samples: the same clip gets the same file on every run."""
    digest = hashlib.sha256(clip.waveform.tobytes() + str((clip.sample_rate, clip.waveform.shape)).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        file.write(sound)
    os.chmod(temporary, 0o644)  # mkstemp makes private files; a report is to be served
    final = folder / f"{digest}.{'ogg' if clip.video is None else 'mp4'}"
    os.replace(temporary, final)
    return final
