"""Dual encoder: an audio tower and a text tower, of any kinds, that meet in one space of unit vectors.

A tower has `kind`, `width`, `config.to_dict()` and, for audio, `sample_rate` and `draw()`; `AUDIO` and `TEXT` name the known kinds.
A checkpoint is a folder in the Hugging Face layout: config.json (both towers with the front end, the projection size, the
temperature), model.safetensors and the tokenizer's files. `lib.encoders.load` reads it.
"""
from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from lib.encoders.clap import ClapAudio, ClapText
from lib.encoders.passt import PasstConfig, PasstEncoder
from lib.encoders.text import RobertaText, TextConfig
from lib.files import read_json, user_path


def _passt(entry: dict, folder: Path) -> PasstEncoder:
    return PasstEncoder(PasstConfig(**entry))


def _roberta(entry: dict, folder: Path) -> RobertaText:
    network = RobertaModel(RobertaConfig(**entry.pop("network")), add_pooling_layer=False)
    return RobertaText(TextConfig(**entry), PreTrainedTokenizerFast.from_pretrained(folder), network)


# kind: what builds the tower again from its entry in config.json and the folder of its tokenizer, without weights
AUDIO = {"passt": _passt, "clap": ClapAudio.rebuild}
TEXT = {"roberta": _roberta, "clap": ClapText.rebuild}


def unit(x: Tensor) -> Tensor:
    """Rows of x (N, D) at unit length in float32; a zero row stays zero with a finite gradient (eps 1e-6)."""
    return normalize(x.float(), dim=-1, eps=1e-6)


class DualEncoder(nn.Module):
    """Audio clips and captions to unit vectors of one space.

    Args:
        audio: encoder with `width`, called with (waveform (B, samples), durations (B,), draws).
        text: encoder with `width`, called with a list of captions.
        dim: size D of the common space; None: that of the towers, whose features meet there already (both of one CLAP).
        tau: temperature; similarities are divided by |tau|.  train_tau: make it a parameter.
    Raises:
        ValueError: dim None and towers of different widths.
    """

    def __init__(self, audio: nn.Module, text: nn.Module, dim: int | None = 1024, tau: float = 0.05, train_tau: bool = False):
        super().__init__()
        if dim is None and audio.width != text.width:
            raise ValueError(f"dim=None needs towers of one width, the audio tower ({audio.kind}) has {audio.width} and the text "
                             f"tower ({text.kind}) {text.width}; give the size of the common space")
        self.audio, self.text = audio, text
        self.audio_projection = nn.Identity() if dim is None else nn.Linear(audio.width, dim)
        self.text_projection = nn.Identity() if dim is None else nn.Linear(text.width, dim)
        self.tau = nn.Parameter(torch.tensor(float(tau)), requires_grad=train_tau)
        self.dim = dim

    def embed_audio(self, waveform: Tensor, durations: Tensor, draws=None) -> Tensor:
        """Clips (B, samples) with true durations (B,) in seconds to unit vectors (B, D); draws: of `audio.draw`, None: drawn here."""
        return unit(self.audio_projection(self.audio(waveform, durations, draws)))

    def embed_text(self, captions: list[str]) -> Tensor:
        """A list of B captions to unit vectors (B, D)."""
        return unit(self.text_projection(self.text(captions)))

    def forward(self, waveform: Tensor, durations: Tensor, captions: list[str], draws=None,
                chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """Both embeddings at once: (B, D) audio and (B, D) text.

        Args:
            waveform, durations, captions: as for `embed_audio` and `embed_text`.  draws: of `audio.draw`; None: drawn here.
            chunk: rows encoded at a time. Memory then holds the activations of one chunk only: they are dropped and computed again, from
                the same random state, when the gradient arrives (gradient caching, Gao et al., arXiv 2101.06983). Costs one more forward.
        """
        draws = draws or self.audio.draw()
        if chunk is None or chunk >= len(captions) or not torch.is_grad_enabled():
            return self.embed_audio(waveform, durations, draws), self.embed_text(captions)
        audio = [checkpoint(self.embed_audio, wave, seconds, draws, use_reentrant=False)
                 for wave, seconds in zip(waveform.split(chunk), durations.split(chunk))]
        # the parameter is handed over because the devices whose random state is kept are those of the arguments
        text = [checkpoint(lambda _, part: self.embed_text(part), self.tau, captions[i:i + chunk], use_reentrant=False)
                for i in range(0, len(captions), chunk)]
        return torch.cat(audio), torch.cat(text)

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
        folder, config = _checkpoint(folder)
        towers = []
        for side, known in (("audio", AUDIO), ("text", TEXT)):
            entry = dict(config[side])
            kind = entry.pop("kind")
            if kind not in known:
                raise ValueError(f"{folder}/config.json names the {side} encoder {kind!r}, known are {', '.join(known)}")
            towers.append(known[kind](entry, folder))
        model = cls(*towers, config["dim"], config["tau"], config["train_tau"])
        _fill(model, *_weights(folder))
        return model.eval()


def initialise(model: DualEncoder, folder: str | Path, tau: bool = False) -> None:
    """Weights of another checkpoint into a model of the same shape.

    Args:
        model: towers of the checkpoint's kinds and sizes, with its tokenizer; anything else about them (dropout, patchout,
            temperature) stays as it is.
        folder: a folder written by `save_pretrained`.  tau: take the temperature along.
    Raises:
        FileNotFoundError, ValueError: naming the folder, or the first entry that differs, both shapes and the file.
    """
    folder, _ = _checkpoint(folder)
    state, path = _weights(folder)
    _fill(model, state if tau else state | {"tau": model.tau.detach()}, path)
    # the same sizes do not make the same numbers mean the same words
    if PreTrainedTokenizerFast.from_pretrained(folder).get_vocab() != model.text.tokenizer.get_vocab():
        raise ValueError(f"{folder} holds another vocabulary than the model's; build the model with the tokenizer of that folder")


def _checkpoint(folder: str | Path) -> tuple[Path, dict]:
    """The folder of a dual encoder and its config.json; FileNotFoundError, ValueError: where it is none."""
    folder = user_path(folder)
    config = read_json(folder / "config.json")
    if config is None or not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint: config.json and model.safetensors are expected there; "
                                "train one with notebook 10 or give another folder")
    if config.get("model_type") != "workbook-dual-encoder":
        raise ValueError(f"{folder}/config.json describes a {config.get('model_type')!r}, expected 'workbook-dual-encoder'")
    return folder, config


def _weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """What model.safetensors of a folder holds, and its path; ValueError: it cannot be read."""
    path = folder / "model.safetensors"
    try:
        return load_file(path), path
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again, or use another checkpoint") from error


def _fill(model: DualEncoder, state: dict[str, Tensor], path: Path) -> None:
    """Load `state`, which `path` holds. ValueError: the first entry that differs, both shapes and the file."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stored = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in own | stored if own.get(name) != stored.get(name))
    if wrong:
        first = wrong[0]
        raise ValueError(f"{path} does not fit the model in {len(wrong)} entries, first {first}: {stored.get(first, 'missing')} in the "
                         f"file, {own.get(first, 'missing')} in the model; use encoders of the kinds and sizes in its config.json")
    model.load_state_dict(state)
