"""What the starters have learnt, on held-out scenes and on recordings that none of them has met.

On ESC-10 (ESC-50's layout) a linear probe reads the frozen embedding of a clip: fitted on folds 1 to 3 without the sources that are
validation, its penalty chosen there, fold 4 scored once. Beside it stand the same probe on mean and deviation of the log-mel
spectrogram (baseline), which needs no model, and on the same network with random weights (control). Models of audio and text are
also asked without any training on ESC-10, by the prompts of its classes.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib import data
from lib.audio import ambisonics
from lib.data.manifest import Manifest, class_prompts
from lib.encoders.store import encode_clips, encode_texts
from lib.encoders.weights import weights_digest
from lib.evaluation import baselines, coding, statistics, tagging
from lib.families import audiovisual, hyperbolic, retrieval, spatial, tokenizer
from lib.files import STARTER
from lib.media import audio
from lib.progress import track
from lib.starters import FAMILIES
from lib.workbook import results

SECONDS = 5.0           # of a clip of ESC-50
BATCH = 16
# family: the notebook that scores it on held-out scenes, and what of it the card shows
HELD_OUT = {
    "retrieval": ("11_retrieval_evaluate", ("R@1", "R@10", "mAP@10")),
    "hyperbolic": ("21_hyperbolic_evaluate", ("hyperbolic: mAP samples", "hyperbolic: acc@1", "hyperbolic: mAP macro")),
    "spatial": ("32_spatial_evaluate", ("temporal, text anchor", "spatial, text anchor", "both, text anchor", "every, text anchor",
                                        "text to audio R@1", "text to audio mAP@10", "error in degrees, two events",
                                        "modality accuracy, fresh linear probe")),
    "audiovisual": ("44_audiovisual_evaluate", ("top-1, both", "top-1, sound only", "top-1, picture only", "both ways R@1",
                                                "audio: loss below predict-the-mean", "video: loss below predict-the-mean")),
    "tokenizer": ("51_tokenizer_evaluate", ("bsq 18 bits: MAE (dB)", "bsq 18 bits: MAE / predict-the-mean", "bsq 18 - scalar 18: MAE (dB)",
                                            "bsq 18 bits: farthest share of ones from 0.5", "bsq 18 bits: STOI",
                                            "bsq 18 bits: STOI, vocoder", "probe of tokens: accuracy", "probe of tokens - of mel"))}
SEEN = {"retrieval": "the clip's embedding", "hyperbolic": "the clip's tangent vector",
        "spatial": "the semantic embedding; the recording is put in front of the listener, windows are averaged",
        "audiovisual": "the state of the sound that the classifier reads, windows averaged",
        "tokenizer": "the mean of every bit in every row of patches"}


def held_out(family: str, report: Path) -> list[dict]:
    """The card's metrics of a family on held-out scenes, as a report of profile `starter_scores` measured them with the starter.

    Raises: FileNotFoundError: no result.  ValueError: a metric is missing, or other weights than the starter's were scored.
    """
    notebook, wanted = HELD_OUT[family]
    document = results.of(report, notebook)
    found, scored = {row["name"]: row for row in document["metrics"]}, document["protocol"].get("weights_digest")
    own = weights_digest(f"{STARTER}{family}")
    if own not in (scored if isinstance(scored, list) else [scored]):
        raise ValueError(f"{notebook} in {report} scored the weights {scored}, those of {STARTER}{family} are {own}; run make report "
                         "PROFILE=starter_scores again")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{notebook} in {report} has no metric {missing[0]!r}")
    return [found[name] for name in wanted]


def as_trained(family: str, report: Path) -> dict[str, float]:
    """The same metrics of the checkpoint in float32, as the report of profile `starter` measured them: name -> value."""
    notebook, wanted = HELD_OUT[family]
    rows = {row["name"]: row["value"] for row in results.of(report, notebook)["metrics"]}
    return {name: rows[name.replace("hyperbolic:", "cones:")] for name in wanted}      # there it goes by the name of its arm


def esc10(family: str, manifest: Manifest, log_mel: np.ndarray, seed: int = 0) -> list[dict]:
    """Metrics of a starter's frozen embedding on ESC-10 or ESC-50.

    Args: manifest: of `lib.data.esc50`.  log_mel: (N, F) of `baselines.clip_statistics`, of its clips.  seed: of resampling.
    """
    told, groups = _told(manifest), manifest.select("test").table["group"].to_numpy()
    right = {"starter": _probe(manifest, vectors(family, manifest)), "log-mel": _probe(manifest, log_mel),
             "untrained": _probe(manifest, vectors(family, manifest, untrained=True))}
    mean = {name: float(values.mean()) for name, values in right.items()}
    rows = [results.metric("linear probe: accuracy", mean["starter"], **told, baseline=mean["log-mel"], control=mean["untrained"],
                           chance=1 / len(manifest.classes), ceiling=1.0, headline=True,
                           interval=statistics.bootstrap_interval(right["starter"], groups, seed=seed))]
    for name in ("log-mel", "untrained"):
        value, *interval = statistics.paired_bootstrap(right["starter"], right[name], groups, seed=seed)
        rows.append(results.metric(f"linear probe - {name}", value, **told, chance=0.0, interval=interval))
    if (scores := zero_shot(family, manifest.select("test"))) is not None:
        hit = tagging.clip_metrics(scores, manifest.select("test").targets(), ks=(1,))["acc@1"]
        rows.append(results.metric("zero-shot by prompts: accuracy", float(hit.mean()), **told, chance=1 / len(manifest.classes),
                                   ceiling=1.0, interval=statistics.bootstrap_interval(hit, groups, seed=seed)))
    return rows


def _told(manifest: Manifest) -> dict:
    return {"n": manifest.splits["test"], "split": "test"}


def _probe(manifest: Manifest, features: np.ndarray) -> np.ndarray:
    """(n,) 0 or 1 for each test clip: whether the probe on features (N, D) names its class."""
    inside = {split: (manifest.table["split"] == split).to_numpy() for split in ("train", "val", "test")}
    targets = manifest.targets()
    parts = ({split: values[rows] for split, rows in inside.items()} for values in (features, targets))
    return coding.linear_probe(*parts)["right"]


def vectors(family: str, manifest: Manifest, untrained: bool = False) -> np.ndarray:
    """The frozen embedding of every clip: (N, D).

    Args: family: whose starter.  untrained: the same network with random weights.
    """
    return {"retrieval": _retrieval, "hyperbolic": _hyperbolic, "spatial": _spatial, "audiovisual": _audiovisual,
            "tokenizer": _tokenizer}[family](manifest, untrained)


def zero_shot(family: str, part: Manifest) -> np.ndarray | None:
    """Similarities (n, C) of clips and the prompts of their classes; None: the family has no text tower that was trained for it."""
    if family not in ("retrieval", "hyperbolic"):
        return None
    model, _ = retrieval.load(f"{STARTER}retrieval")
    classes = tagging.class_embeddings(class_prompts(part), lambda texts: encode_texts(model, texts))
    clips = torch.from_numpy(_retrieval(part))
    if family == "retrieval":
        return (clips @ classes.T).numpy()
    space, _ = hyperbolic.load(f"{STARTER}hyperbolic")
    with torch.inference_mode():
        return space.similarity(*space(clips, classes)).numpy()


def _captions(manifest: Manifest) -> list[str]:
    return [caption for captions in manifest.table["captions"] for caption in captions]


def _retrieval(manifest: Manifest, untrained: bool = False) -> np.ndarray:
    model, config = retrieval.load(f"{STARTER}retrieval")
    model = retrieval.build(config, _captions(manifest)).eval() if untrained else model
    return torch.cat([rows for rows, _ in encode_clips(model, manifest, seconds=config.clip_seconds, batch_size=BATCH)]).numpy()


@torch.inference_mode()
def _hyperbolic(manifest: Manifest, untrained: bool = False) -> np.ndarray:
    space, _ = hyperbolic.load(f"{STARTER}hyperbolic")
    space = hyperbolic.Projection(space.features, space.dim, space.space) if untrained else space
    return space.tangents(torch.from_numpy(_retrieval(manifest, untrained)), "audio").numpy()


@torch.inference_mode()
def _spatial(manifest: Manifest, untrained: bool = False) -> np.ndarray:
    model, config = spatial.load(f"{STARTER}spatial")
    model = spatial.build(config, _captions(manifest)).eval() if untrained else model
    scenes = (torch.stack([ambisonics.encode(window, 0.0, 0.0) for window in windows])
              for windows in _windows(manifest, model.sample_rate, model.samples))
    return np.stack([model.embed_audio(scene, kind="semantic").mean(0).numpy() for scene in scenes])


@torch.inference_mode()
def _audiovisual(manifest: Manifest, untrained: bool = False) -> np.ndarray:
    model, config, picture = audiovisual.load(f"{STARTER}audiovisual")
    model = audiovisual.build(config, model.settings.classes)[0].eval() if untrained else model
    return np.stack([model({"audio": picture(windows)}, mode="states", only="audio")["audio"].mean(0).numpy()
                     for windows in _windows(manifest, config.sample_rate, picture.config.samples)])


def _tokenizer(manifest: Manifest, untrained: bool = False) -> np.ndarray:
    model, config, _ = tokenizer.load(f"{STARTER}tokenizer")
    model = tokenizer.build(config) if untrained else model
    found = coding.describe(model, tokenizer.analysed(config, manifest))
    everything = np.zeros((len(manifest), found["tokens"].shape[1]), dtype=np.float32)      # a silent clip has no tokens
    everything[found["row"]] = found["tokens"]
    return everything


def _windows(manifest: Manifest, sample_rate: int, samples: int) -> Iterator[Tensor]:
    """Of each clip the windows of `samples` samples, one after the other: Tensor (n, samples); a rest below half a window is left out."""
    for row in track(range(len(manifest)), len(manifest), "encoding clips"):
        clip = manifest.row(row)
        wave = audio.read(manifest.file(row), sample_rate=sample_rate, start=clip["start"], duration=clip["duration"])[0]
        pieces = [piece for number, piece in enumerate(wave.split(samples)) if not number or 2 * len(piece) >= samples]
        yield torch.stack([torch.nn.functional.pad(piece, (0, samples - len(piece))) for piece in pieces])


def score(report: Path, trained: Path, data_root: str | Path, families: tuple[str, ...] = tuple(FAMILIES)) -> dict[str, dict]:
    """Score starters on both.

    Args: report: of profile `starter_scores`.  trained: of profile `starter`.  data_root: ESC-10 or ESC-50 in the published layout.
        families: which.
    Returns: family -> what its scores.json holds: "weights_digest", "held_out" and "esc10", each {"metrics", "protocol"}.
    """
    manifest, found = data.prepare("esc50", data_root=data_root), {}
    log_mel = baselines.clip_statistics(manifest, SECONDS)
    for family in families:
        notebook, _ = HELD_OUT[family]
        protocol = results.of(report, notebook)["protocol"]
        found[family] = {
            "weights_digest": weights_digest(f"{STARTER}{family}"),
            "held_out": {"notebook": notebook, "metrics": held_out(family, report), "as_trained": as_trained(family, trained),
                         "protocol": {key: protocol.get(key) for key in ("split", "n", "manifest_fingerprint", "fit_splits")}},
            "esc10": {"metrics": esc10(family, manifest, log_mel),
                      "protocol": {"title": manifest.info["title"], "embedding": SEEN[family], "splits": manifest.splits, "test_fold": 4,
                                   "manifest_fingerprint": manifest.fingerprint}}}
        results.show(found[family]["esc10"]["metrics"])
    return found
