"""Dual encoder: an audio tower and a text tower that meet in one space of unit vectors.

A checkpoint is a folder in the Hugging Face layout: config.json (both towers with the front end, the projection size, the
temperature), model.safetensors and the tokenizer's files. `lib.encoders.load` reads it.
"""
from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from lib.encoders.passt import PasstConfig, PasstEncoder
from lib.encoders.text import RobertaText, TextConfig
from lib.files import user_path


def unit(x: Tensor) -> Tensor:
    """Rows of x (N, D) at unit length in float32; a zero row stays zero with a finite gradient (eps 1e-6)."""
    return normalize(x.float(), dim=-1, eps=1e-6)


class DualEncoder(nn.Module):
    """Audio clips and captions to unit vectors of one space.

    Args:
        audio: encoder with `width`, called with (waveform (B, samples), durations (B,)).
        text: encoder with `width`, called with a list of captions.
        dim: size D of the common space.
        tau: temperature; similarities are divided by |tau|.  train_tau: make it a parameter.
    """

    def __init__(self, audio: PasstEncoder, text: RobertaText, dim: int = 1024, tau: float = 0.05, train_tau: bool = False):
        super().__init__()
        self.audio, self.text = audio, text
        self.audio_projection = nn.Linear(audio.width, dim)
        self.text_projection = nn.Linear(text.width, dim)
        self.tau = nn.Parameter(torch.tensor(float(tau)), requires_grad=train_tau)
        self.dim = dim

    def embed_audio(self, waveform: Tensor, durations: Tensor) -> Tensor:
        """Clips (B, samples) with true durations (B,) in seconds to unit vectors (B, D)."""
        return unit(self.audio_projection(self.audio(waveform, durations)))

    def embed_text(self, captions: list[str]) -> Tensor:
        """A list of B captions to unit vectors (B, D)."""
        return unit(self.text_projection(self.text(captions)))

    def forward(self, waveform: Tensor, durations: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Both embeddings at once: (B, D) audio and (B, D) text."""
        return self.embed_audio(waveform, durations), self.embed_text(captions)

    def logits(self, audio: Tensor, text: Tensor) -> Tensor:
        """Similarities (A, T) of unit vectors (A, D), (T, D), divided by the temperature, in float32."""
        with torch.autocast(audio.device.type, enabled=False):
            return audio.float() @ text.float().T / self.tau.float().abs()

    def config(self) -> dict:
        """What config.json says: everything needed to build the same model again."""
        return {"model_type": "workbook-dual-encoder", "dim": self.dim, "tau": float(self.tau.detach()),
                "train_tau": self.tau.requires_grad,
                "audio": {"kind": self.audio.kind, **self.audio.config.to_dict()},
                "text": {"kind": self.text.kind, **self.text.config.to_dict(), "network": self.text.network.config.to_dict()}}

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json, model.safetensors and the tokenizer into `folder` (made if needed)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.text.tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(self.config(), indent=1, sort_keys=True, default=str))
        save_file({k: v.detach().contiguous().cpu() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DualEncoder":
        """Read a folder written by `save_pretrained`.

        Raises:
            FileNotFoundError / ValueError: naming the folder, when files are missing or belong to another kind of model.
        """
        folder = user_path(folder)
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder} is no checkpoint: config.json and model.safetensors are expected there; "
                                    "train one with notebook 10 or give another folder")
        config = json.loads((folder / "config.json").read_text())
        if config.get("model_type") != "workbook-dual-encoder":
            raise ValueError(f"{folder}/config.json describes a {config.get('model_type')!r}, expected 'workbook-dual-encoder'")
        audio, text = dict(config["audio"]), dict(config["text"])
        kinds = audio.pop("kind"), text.pop("kind")
        if kinds != (PasstEncoder.kind, RobertaText.kind):
            raise ValueError(f"{folder}/config.json names encoders {kinds}, known are ('passt', 'roberta')")
        network = RobertaModel(RobertaConfig(**text.pop("network")), add_pooling_layer=False)
        model = cls(PasstEncoder(PasstConfig(**audio)),
                    RobertaText(TextConfig(**text), PreTrainedTokenizerFast.from_pretrained(folder), network),
                    config["dim"], config["tau"], config["train_tau"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()
