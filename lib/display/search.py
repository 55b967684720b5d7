"""Search a gallery of clips by text or by a recording and listen to what is found, in a panel of JupyterLab or on a static page.

A score is the cosine similarity (-1 to 1) of a query and a clip. It means little alone, so it is shown with what a random clip
of the gallery gets: mean and spread (standard deviation) of the query's scores over all of it.
"""
from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from lib.data.manifest import Manifest
from lib.display import clips
from lib.display.style import CEILING, MODEL
from lib.encoders.store import store
from lib.encoders.text import normalise
from lib.encoders.weights import weights_digest
from lib.families import retrieval
from lib.files import user_path
from lib.media import audio

SECONDS = 10.0          # of a clip that are played
NEAREST = 3             # captions shown for a recording
CAPTIONS = 2            # of a clip that are shown
MOST = 20               # results that a person can ask for
_STYLE = """<style>
.search-answers{display:grid;gap:18px;font:13px/1.45 sans-serif;margin:4px 0 14px}
.search-answers h4{font-size:15px;margin:2px 0 4px;overflow-wrap:anywhere}
.search-answers p{margin:2px 0}.search-name{font-weight:bold}.search-answers .search-note{opacity:.75;font-size:12px}
.search-answers svg{display:block;width:100%;height:34px;margin:6px 0 0}
.search-answers .search-right{color:#027a59;font-weight:bold}
.search-problem{color:#8f1d00;background:#ffe3da;border:1px solid #d55e00;border-radius:3px;padding:6px 8px;\
font:13px/1.45 sans-serif}
</style>"""


@dataclass(frozen=True, eq=False)
class Answer:
    """What one model finds for one query in a gallery of N clips.

    Attributes:
        query: its text, or what the recording is called.  model: name of the model.  gallery: the N clips.
        scores: (N,) float32 cosine similarities, in the order of the gallery.
        right: rows of the clips known to be right because they have the query's caption; possibly none.
        heard: of a recording, the item of `clips.gallery` that plays it; None: the query is a text.
        captions: of a recording, the nearest captions of the gallery with their scores, best first.
        note: a sentence about the query, or "".
    """

    query: str
    model: str
    gallery: Manifest
    scores: np.ndarray
    right: tuple[int, ...] = ()
    heard: dict | None = None
    captions: tuple[tuple[str, float], ...] = ()
    note: str = ""

    @cached_property
    def order(self) -> np.ndarray:
        """Rows of the gallery (N,), best first; of equal scores right clips come last: ties count against the model."""
        return np.lexsort((np.isin(np.arange(len(self.scores)), self.right), -self.scores))

    @property
    def rank(self) -> int | None:
        """Rank of the best right clip, from 1; None when none is known."""
        return int(np.flatnonzero(np.isin(self.order, self.right))[0]) + 1 if self.right else None

    def verdict(self) -> str:
        """What is known about the right answer, in one sentence."""
        if self.right:
            many = len(self.right)
            found = "One clip has this caption, at" if many == 1 else f"{many} clips have this caption, the first of them is at"
            return f"{found} rank {self.rank} of {len(self.scores)}."
        if self.heard and not self.heard["caption"]:
            return "No caption of this recording is known: judge by ear."
        return f"None of these {len(self.scores)} clips has this caption: judge by ear."

    def chance(self) -> str:
        """The best score beside what a random clip gets, in one sentence."""
        best, mean, spread = float(self.scores.max()), float(self.scores.mean()), float(self.scores.std())
        above = f", {(best - mean) / spread:.1f} spreads lower" if spread > 0 else ""
        return f"Rank 1 scores {best:.3f}; a random clip {mean:.3f} ± {spread:.3f} (mean, spread){above}."


class Searcher:
    """One model and a gallery in its embeddings, encoded once and kept in the data folder.

    Args:
        folder: checkpoint of the retrieval family.  gallery: clips to search, at least one.
        device: where the model runs.  workers: processes that decode clips.
        name: what to call the model; the digest of its weights follows it.
    Attributes:
        trained: the configuration that the model was trained with.  digest: of its weights.
        gallery: the clips that can be decoded.  unreadable: clip id -> reason, of those that cannot and are left out.
        audio: Tensor (N, D).  texts: {caption: row of `text`}.  text: Tensor (T, D). Unit vectors.
    Raises:
        FileNotFoundError, ValueError: naming the folder, or a gallery without clips.
    """

    def __init__(self, folder: str | Path, gallery: Manifest, *, device: torch.device | str = "cpu", workers: int = 0,
                 name: str = "model"):
        captions = [caption for captions in gallery.table["captions"] for caption in captions]
        if not captions:
            raise ValueError(f"the gallery holds {len(gallery)} clips of {gallery.name!r} and no caption; choose another split")
        self.model, self.trained = retrieval.load(folder, device)
        self.digest = weights_digest(user_path(folder))
        kept = store(lambda: self.model, gallery, captions, self.digest, seconds=self.trained.clip_seconds,
                     batch_size=self.trained.batch_size, workers=workers)
        readable = [i for i, clip in enumerate(gallery.table["clip_id"]) if clip not in kept.unreadable]
        if not readable:
            raise ValueError(f"none of the {len(gallery)} clips can be decoded any more; prepare {gallery.name!r} again")
        self.unreadable, self.gallery = kept.unreadable, gallery.select(rows=readable)
        self.audio, self.text = torch.from_numpy(kept.audio[readable]), torch.from_numpy(np.array(kept.text))
        self.texts = kept.texts
        self.name = f"{name} {self.digest[:8]}, trained on {self.trained.dataset}"
        self._plain = [{_plain(caption) for caption in captions} for captions in self.gallery.table["captions"]]

    @torch.inference_mode()
    def find(self, query: str) -> Answer:
        """Rank the gallery for a text. ValueError in words for a person when it holds no word."""
        query = query.strip()
        if not _plain(query):
            raise ValueError("Type what you want to hear, for example: a dog barks, then waves break.")
        vector = self.model.embed_text([query])[0].float().cpu()
        return Answer(query, self.name, self.gallery, (self.audio @ vector).numpy(), self._right([query]))

    @torch.inference_mode()
    def find_like(self, path: str | Path, *, name: str | None = None, start: float = 0.0, captions: Sequence[str] = ()) -> Answer:
        """Rank the gallery for a recording, by its first window as the model hears clips.

        Args:
            path: audio file.  name: what to call it; None: the name of the file.  start: seconds.
            captions: of the recording, where they are known.
        Raises:
            AudioError, ValueError: in words for a person, for a file that is no audio, empty or silent.
        """
        path, seconds, rate = user_path(path), self.trained.clip_seconds, self.model.audio.sample_rate
        name = path.name if name is None else name
        waveform = audio.read(path, sample_rate=rate, start=start, duration=seconds)
        _check_sound(waveform, name)
        heard, total = waveform.shape[1] / rate, audio.probe(path).duration - start
        window = torch.nn.functional.pad(waveform, (0, round(seconds * rate) - waveform.shape[1]))
        device = next(self.model.parameters()).device
        vector = self.model.embed_audio(window.to(device), torch.tensor([heard], device=device))[0].float().cpu()
        near, texts = (self.text @ vector).topk(min(NEAREST, len(self.text))), list(self.texts)
        item = {"waveform": waveform, "sample_rate": rate, "title": f"query: {name}", "caption": _few(captions),
                "thumbnail": True}
        return Answer(name, self.name, self.gallery, (self.audio @ vector).numpy(), self._right(captions), item,
                      tuple((texts[i], score) for score, i in zip(near.values.tolist(), near.indices.tolist())),
                      f"The model hears the first {heard:.1f} of {total:.1f} s." if total > heard + 0.1 else "")

    def _right(self, captions: Sequence[str]) -> tuple[int, ...]:
        wanted = {_plain(caption) for caption in captions}
        return tuple(i for i, own in enumerate(self._plain) if own & wanted)


def _check_sound(waveform: Tensor, name: str) -> None:
    if not waveform.numel():
        raise ValueError(f"{name} holds no sound; record or export it again.")
    if not torch.isfinite(waveform).all():
        raise ValueError(f"{name} holds samples that are no numbers; record or export it again.")
    if waveform.abs().max() < 10 ** (clips.SILENCE_DBFS / 20):
        raise ValueError(f"{name} is silent; check the microphone and record it again.")


def _plain(caption: str) -> str:
    """What is compared: a caption without case, punctuation and extra spaces."""
    return " ".join(normalise(caption).split())


def _few(captions: Sequence[str]) -> list[str]:
    return [*captions[:CAPTIONS], *([f"… and {len(captions) - CAPTIONS} more"] if len(captions) > CAPTIONS else [])]


def page(answers: Sequence[Answer], *, shown: int = 5, **where) -> clips.Html:
    """The answers of one or several models to one query, side by side, as static HTML.

    Args:
        answers: of one query, one a model.  shown: clips of each; the best right clip follows when it is not among them.
        where: what else `clips.gallery` takes (byte_budget, folder, link_prefix).
    """
    first, one = answers[0], len(answers) == 1
    asked = [clips.gallery([first.heard], columns=3 if one else 2, **where)] if first.heard else []
    found = [clips.gallery(_items(answer, shown), columns=3 if one else 1, **where) for answer in answers]
    title = f"Sounds like {escape(first.query)}" if first.heard else f"&ldquo;{escape(first.query)}&rdquo;"
    html = [f'{_STYLE}<div class="search-answers" style="grid-template-columns:repeat({len(answers)},minmax(0,1fr))">',
            f'<div style="grid-column:1/-1"><h4>{title}</h4><p class="search-note">{escape(first.note)}</p>',
            *(part.html for part in asked), "</div>",
            *(f"<div>{_facts(answer, shown)}{part.html}</div>" for answer, part in zip(answers, found)), "</div>"]
    parts = asked + found
    return clips.Html("".join(html), sum(part.players for part in parts), sum(part.embedded_bytes for part in parts),
                      tuple(file for part in parts for file in part.linked))


def _facts(answer: Answer, shown: int) -> str:
    """What is to be known before listening."""
    near = "".join(f"<br>{score:.3f} {escape(caption)}" for caption, score in answer.captions)
    return (f'<p class="search-name">{escape(answer.model)}</p><p>{escape(answer.chance())}</p>'
            f'<p class="{"search-right" if answer.right else ""}">{escape(answer.verdict())}</p>'
            + (f"<p>Nearest captions of the gallery:{near}</p>" if near else "") + _histogram(answer, shown))


def _items(answer: Answer, shown: int):
    ranks = list(range(1, min(shown, len(answer.scores)) + 1))
    ranks += [answer.rank] if answer.right and answer.rank not in ranks else []
    for rank in ranks:
        row = int(answer.order[rank - 1])
        entry = answer.gallery.row(row)
        captions = sorted(entry["captions"], key=lambda caption: _plain(caption) != _plain(answer.query))   # the query first
        yield clips.clip(answer.gallery, row, seconds=SECONDS, thumbnail=True, rank=rank, score=float(answer.scores[row]),
                         hit=row in answer.right, title=", ".join(entry["labels"]) or entry["clip_id"], caption=_few(captions))


def _histogram(answer: Answer, shown: int, bins: int = 60) -> str:
    """Scores of the whole gallery as a strip, those shown and those that are right marked."""
    low, high = float(answer.scores.min()), float(answer.scores.max())
    span = max(high - low, 1e-6)        # all scores may be equal
    counts = np.histogram(answer.scores, bins=bins, range=(low, low + span))[0]
    heights = enumerate(24 * counts / counts.max())
    bars = "".join(f"M{2 + 596 * i / bins:.0f} 34v-{height:.1f}h9V34" for i, height in heights if height)
    marks = [(row, MODEL, 6) for row in answer.order[:shown]] + [(row, CEILING, 0) for row in answer.right]
    places = [(f"{2 + 596 * (answer.scores[row] - low) / span:.1f}", colour, top) for row, colour, top in marks]
    lines = "".join(f'<path d="M{x} {top}V34" stroke="{colour}" stroke-width="2"/>' for x, colour, top in places)
    return ('<svg viewBox="0 0 600 34" preserveAspectRatio="none" role="img" aria-label="scores of all clips">'
            f'<path d="{bars}" fill="currentColor" opacity=".3"/>{lines}</svg><p class="search-note">Scores of all '
            f'{len(answer.scores)} clips, {low:.3f} to {high:.3f}; blue: shown{"; green: right" if answer.right else ""}.</p>')


class SearchPanel:
    """A panel to type in or to upload a recording to, for JupyterLab; a cell that returns it shows it.

    Args:
        searchers: one model, or several over one gallery, whose answers stand side by side.
        shown: results at first, 1 to `MOST`.
    """

    def __init__(self, *searchers: Searcher, shown: int = 5):
        self.searchers = searchers
        self.text = widgets.Text(placeholder="a dog barks, then waves break", layout=widgets.Layout(flex="1 1 20em"))
        self.button = widgets.Button(description="Search", icon="search", button_style="primary")
        self.shown = widgets.BoundedIntText(shown, min=1, max=MOST, description="results", layout=widgets.Layout(width="10em"))
        self.upload = widgets.FileUpload(accept="audio/*,video/*", description="By a recording",
                                         tooltip="a wav from your microphone, or any audio file",
                                         layout=widgets.Layout(width="auto"))
        self.answer = widgets.HTML()
        self.answer.add_class("search-found")
        self.text.on_msg(lambda _, content, __: self.search() if content.get("event") == "submit" else None)     # Enter
        self.button.on_click(lambda _: self.search())
        self.upload.observe(lambda change: self.search_upload(), "value")
        controls = widgets.HBox([self.text, self.button, self.shown, self.upload], layout=widgets.Layout(flex_flow="row wrap"))
        self.widget = widgets.VBox([controls, self.answer])
        self.widget.add_class("search-panel")

    def search(self) -> None:
        """Show what is found for the text in the box."""
        self._show(lambda searcher: searcher.find(self.text.value))

    def search_upload(self) -> None:
        """Show what is found for the file that was uploaded."""
        if not self.upload.value:
            return
        file = self.upload.value[0]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "recording")                # its own name is a label only: it may be anything
            path.write_bytes(file["content"])
            self._show(lambda searcher: searcher.find_like(path, name=file["name"]), {str(path): file["name"]})
        self.upload.value = ()                              # the same file can be chosen again

    def _show(self, find, names: Mapping[str, str] = {}) -> None:
        self.button.disabled = True
        try:
            answers = [find(searcher) for searcher in self.searchers]
            self.answer.value = page(answers, shown=self.shown.value, byte_budget=None).html
        except (ValueError, OSError, RuntimeError) as error:     # a traceback would go to the server's log, where nobody looks
            words = str(error)
            for hidden, name in names.items():
                words = words.replace(hidden, name)
            self.answer.value = f'{_STYLE}<div class="search-problem" role="alert">{escape(words)}</div>'
        finally:
            self.button.disabled = False

    def _ipython_display_(self) -> None:
        from IPython.display import display
        display(self.widget)
