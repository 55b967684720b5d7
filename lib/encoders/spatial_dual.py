"""The spatial-temporal audio-language model: SALM's dual-branch audio encoder with a temporal encoder, and RoBERTa beside it.

SALM (arXiv 2507.16724) embeds first-order ambisonics into a space of captions that say what sounds and from where; the temporal
encoder and the modality classifier are those of its triplet successor. Embeddings leave this module as they are; each is brought
to unit length once, right before a similarity is taken.
"""
from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import ClapTextModelWithProjection, RobertaModel

from lib.audio.foa import FoaMel, FoaMelConfig
from lib.encoders import weights
from lib.encoders.clap import CONSTANTS, ClapText, ClapTextSettings
from lib.encoders.htsat import HtsatConfig
from lib.encoders.spatial_audio import SpatialAudio
from lib.encoders.text import SIZES, train_tokenizer
from lib.files import read_json, user_path, write_json
from lib.losses.adversarial import ModalityClassifier

MODEL_TYPE = "workbook-spatial"
LARGEST_LOG_SCALE = math.log(100)       # as in CLIP


class SpatialDual(nn.Module):
    """Audio tower, text tower, temperature and modality classifier.

    Args:
        audio: arguments of `SpatialAudio`, "config" as those of `HtsatConfig`.  text: a `ClapText`, whose projection ends in the audio's dimension.
        front_end: a `FoaMelConfig`.  seconds: window of a clip.  classifier_hidden: widths of the classifier's hidden layers; (): D/2 to D/16.
        classifier_unit: it sees directions, not lengths (`ModalityClassifier`).
        raw_temperature: multiply similarities by the logarithm that is learned itself, as the reference does, not by its exponential.
    """

    def __init__(self, audio: dict, text: ClapText, front_end: FoaMelConfig = FoaMelConfig(), seconds: float = 10.0,
                 classifier_hidden: tuple[int, ...] = (), raw_temperature: bool = False, classifier_unit: bool = False):
        super().__init__()
        self.audio_settings = audio
        self.audio, self.text, self.front_end = SpatialAudio(**audio | {"config": HtsatConfig(**audio["config"])}), text, FoaMel(front_end)
        self.seconds, self.sample_rate, self.raw_temperature = seconds, front_end.sample_rate, raw_temperature
        self.audio.sample_rate = front_end.sample_rate
        self.classifier_hidden = tuple(classifier_hidden)
        self.classifier = ModalityClassifier(self.audio.dim, self.classifier_hidden or None, classifier_unit)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return round(self.seconds * self.sample_rate)

    def forward(self, sound: Tensor, captions: list[str], semantic_captions: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Everything a training step compares.

        Args:
            sound: waveforms Tensor (N, 4, samples) or features Tensor (N, 7, frames, mels).
            captions: N spatial-temporal captions.  semantic_captions: N plain ones.
        Returns:
            audio: what `SpatialAudio` returns.  text: {"spatial", "semantic"} Tensors (N, D).
        """
        distinct = list(dict.fromkeys([*captions, *semantic_captions]))       # members of a triplet share their plain caption
        row = {caption: i for i, caption in enumerate(distinct)}
        rows = self.text(distinct)
        text = {name: rows[[row[c] for c in some]] for name, some in (("spatial", captions), ("semantic", semantic_captions))}
        return self.audio(self.features(sound)), text

    def features(self, sound: Tensor) -> Tensor:
        """Waveforms (N, 4, samples) to features (N, 7, frames, mels); features pass, in float32."""
        return self.front_end(sound) if sound.ndim == 3 else sound.float()

    def scale(self) -> Tensor:
        """What cosine similarities are multiplied by (the learned logarithm is first brought back into [0, ln 100])."""
        with torch.no_grad():
            self.log_scale.clamp_(0, LARGEST_LOG_SCALE)
        return self.log_scale if self.raw_temperature else self.log_scale.exp()

    def logits(self, audio: Tensor, text: Tensor) -> Tensor:
        """Scaled cosine similarities (A, T) of embeddings of any length (A, D), (T, D), in float32."""
        with torch.autocast(audio.device.type, enabled=False):
            return self.scale().float() * normalize(audio.float(), dim=-1) @ normalize(text.float(), dim=-1).T

    def embed_audio(self, waveform: Tensor, durations: Tensor | None = None, kind: str = "joint") -> Tensor:
        """Clips (B, 4, samples) to unit vectors (B, D): of `kind` "joint", "triplet", "semantic" or "spatial"."""
        return normalize(self.audio(self.features(waveform))[kind].float(), dim=-1)

    def embed_text(self, captions: list[str]) -> Tensor:
        """A list of B captions to unit vectors (B, D)."""
        return normalize(self.text(captions).float(), dim=-1)

    def config(self) -> dict:
        """What config.json says: everything needed to build the same model again."""
        return {"model_type": MODEL_TYPE, "audio": self.audio_settings, "text": self.text.config.to_dict() | {
            "network": self.text.network.config.to_dict()}, "front_end": asdict(self.front_end.config), "seconds": self.seconds,
            "classifier_hidden": list(self.classifier_hidden), "raw_temperature": self.raw_temperature,
            "classifier_unit": self.classifier.unit}

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json, model.safetensors and the tokenizer into `folder` (made if needed)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.text.tokenizer.save_pretrained(folder)
        write_json(folder / "config.json", json.loads(json.dumps(self.config(), default=str)))
        save_file({name: value.detach().contiguous().cpu() for name, value in self.state_dict().items()}, folder / "model.safetensors")
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "SpatialDual":
        """Read a folder written by `save_pretrained`, in evaluation mode. FileNotFoundError, ValueError: naming the folder."""
        folder = user_path(folder)
        entry = read_json(folder / "config.json")
        if entry is None or not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder.absolute()} is no checkpoint: config.json and model.safetensors are expected there; train one "
                                    "with notebook 31, or give another folder")
        if entry.get("model_type") != MODEL_TYPE:
            raise ValueError(f"{folder}/config.json describes a {entry.get('model_type')!r}, expected {MODEL_TYPE!r}: a checkpoint of notebook 31")
        model = cls(entry["audio"], ClapText.rebuild(entry["text"], folder),
                    FoaMelConfig(**entry["front_end"]), entry["seconds"], tuple(entry["classifier_hidden"]), entry["raw_temperature"],
                    entry["classifier_unit"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()


def scratch_text(size: str, captions: list[str], dim: int, max_tokens: int = 77, dropout: float = 0.1, vocabulary: int = 1000) -> ClapText:
    """A RoBERTa with random weights and CLAP's projection behind its pooling layer (width -> dim -> dim, ReLU).

    Args: size: a name of `lib.encoders.text.SIZES`.  captions: training captions, for the tokenizer.  dim: of the embedding.
    """
    width, layers, heads, wide = SIZES[size]
    tokenizer = train_tokenizer(captions, vocabulary)
    network = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=wide,
                   max_position_embeddings=max_tokens + 2, vocab_size=len(tokenizer), projection_dim=dim, hidden_dropout_prob=dropout,
                   attention_probs_dropout_prob=dropout, initializer_range=width ** -0.5 if width < 768 else 0.02,
                   bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    return ClapText(ClapTextSettings(max_tokens, network, plain=True), tokenizer)


def published_text(source: str | Path, dim: int, max_tokens: int = 77, dropout: float = 0.1) -> ClapText:
    """The text tower of a CLAP, or a plain RoBERTa with an untrained projection behind it.

    Args:
        source: hub id or folder of either.  dim: of the embedding; a CLAP brings its own (512).
    Raises:
        FileNotFoundError, ValueError: naming the source and what is wrong with it.
    """
    folder = weights.resolve(source)
    if (read_json(folder / "config.json") or {}).get("model_type") == "clap":
        text = ClapText.from_published(folder, dropout, max_tokens)
        if text.width != dim:
            raise ValueError(f"{folder}: CLAP's text projection ends in {text.width} numbers, embedding_dim is {dim}; set embedding_dim={text.width}")
        return text
    tokenizer = weights.read_tokenizer(folder)
    roberta, report = RobertaModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    missing = sorted(n for n in report["missing_keys"] if not n.endswith("position_ids") and not n.startswith("pooler."))
    if missing:             # roberta-base is published without its pooling layer; anything else must be there
        raise ValueError(f"{folder}: {len(missing)} entries are missing in the weights, such as {missing[0]}; they are no whole RoBERTa")
    network = roberta.config.to_dict() | {"projection_dim": dim, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    network.pop("model_type", None)
    text = ClapText(ClapTextSettings(max_tokens, network), tokenizer)
    constants = {name: value for name, value in text.network.text_model.state_dict().items() if name.endswith(CONSTANTS)}
    text.network.text_model.load_state_dict(constants | roberta.state_dict())
    return text
