"""CLAP's two towers (Wu et al., arXiv 2211.06687) through transformers, behind the interfaces of PaSST and RoBERTa.

Both end in CLAP's own projections, so that their features meet in one space (512 numbers as published) without any training.
Clips are cut into segments of the model's one input length; a segment that is not full is filled as the published feature
extractor says, with the audio repeated. No random crop: a clip has one embedding. Checkpoints with feature fusion take the same
path, the one their extractor takes for clips of at most one segment.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    ClapAudioConfig, ClapAudioModelWithProjection, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig,
    ClapTextModelWithProjection, PreTrainedTokenizerFast)
from transformers.audio_utils import mel_filter_bank

from lib.encoders import weights
from lib.encoders.text import normalise
from lib.files import read_json

CLIPS_TOGETHER = 4                                # on a CPU; see `lib.audio.logmel`
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CONSTANTS = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")    # old files lack some of them


@dataclass(frozen=True)
class ClapMelConfig:
    """Front end of a CLAP checkpoint; the defaults are those of laion/larger_clap_general.

    Args:
        sample_rate: Hz.  seconds: the model's one input length.  n_fft, hop: samples.  mels: number of bands.
        fmin, fmax: band edges in Hz.
        filters: "slaney", or "htk" (checkpoints with feature fusion).
        padding: how a short segment is filled: "repeatpad" (whole repetitions, then zeros), "repeat" (repetitions) or "pad" (zeros).
    Raises:
        ValueError: another word for `filters` or `padding`.
    """

    sample_rate: int = 48000
    seconds: float = 10.0
    n_fft: int = 1024
    hop: int = 480
    mels: int = 64
    fmin: float = 50.0
    fmax: float = 14000.0
    filters: str = "slaney"
    padding: str = "repeatpad"

    def __post_init__(self):
        for name, known in (("filters", ("slaney", "htk")), ("padding", ("repeatpad", "repeat", "pad"))):
            if getattr(self, name) not in known:
                raise ValueError(f"CLAP front end: {name} is {getattr(self, name)!r}, known are {', '.join(known)}")

    @property
    def samples(self) -> int:
        """Samples of one segment."""
        return round(self.seconds * self.sample_rate)

    @classmethod
    def from_published(cls, folder: Path) -> "ClapMelConfig":
        """What a folder's preprocessor_config.json (or processor_config.json) says.

        Raises:
            FileNotFoundError, ValueError: naming the folder.
        """
        if not (folder / "preprocessor_config.json").is_file() and not (folder / "processor_config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no preprocessor_config.json, which describes CLAP's front end; take it from where "
                                    "the weights were published")
        extractor = ClapFeatureExtractor.from_pretrained(folder)
        try:
            return cls(extractor.sampling_rate, float(extractor.max_length_s), extractor.fft_window_size, extractor.hop_length,
                       extractor.feature_size, float(extractor.frequency_min), float(extractor.frequency_max),
                       "htk" if extractor.truncation == "fusion" else "slaney", extractor.padding)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error


class ClapMel(nn.Module):
    """ClapFeatureExtractor's log-mel spectrogram in dB on the device of the waveform: (N, samples) -> (N, frames, mels) float32.

    Silence gives -100. No gradient flows through it.
    """

    def __init__(self, config: ClapMelConfig = ClapMelConfig()):
        super().__init__()
        self.config = config
        bank = mel_filter_bank(config.n_fft // 2 + 1, config.mels, config.fmin, config.fmax, config.sample_rate,
                               norm="slaney" if config.filters == "slaney" else None, mel_scale=config.filters)
        self.register_buffer("filters", torch.from_numpy(bank.T.copy()), persistent=False)
        self.register_buffer("hann", torch.hann_window(config.n_fft, dtype=torch.float64), persistent=False)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Args: waveform: Tensor (N, samples). Returns: Tensor (N, samples // hop + 1, mels) float32."""
        together = CLIPS_TOGETHER if waveform.device.type == "cpu" else len(waveform)
        with torch.autocast(waveform.device.type, enabled=False):
            return torch.cat([self._mel(part) for part in waveform.split(together)])

    def _mel(self, x: Tensor) -> Tensor:
        # float64, as in the extractor: beside a loud tone the rounding of a float32 transform is heard (0.1 dB), as is that of TF32
        spectrum = torch.stft(x.double(), self.config.n_fft, self.config.hop, window=self.hann, center=True, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return 10 * (self.filters @ power).clamp(min=1e-10).log10().transpose(1, 2).float()       # 1e-10 protects the log of silence


@dataclass(frozen=True)
class ClapAudioSettings:
    """Settings of `ClapAudio`.  front_end: a `ClapMelConfig`.  network: what transformers' ClapAudioConfig takes."""

    front_end: ClapMelConfig = field(default_factory=ClapMelConfig)
    network: dict = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.front_end, dict):
            object.__setattr__(self, "front_end", ClapMelConfig(**self.front_end))

    def to_dict(self) -> dict:
        """JSON-able form, front end included."""
        return asdict(self)


class ClapAudio(nn.Module):
    """Waveforms to CLAP's projected audio features, one vector a clip.

    Batch statistics of the network stay the published ones in training too: an embedding never depends on the rest of the batch.

    Args:
        config: a `ClapAudioSettings`.  network: transformers' audio tower with projection; None: randomly initialised.
    Attributes:
        width: feature size (512 published).  sample_rate: Hz.
    Raises:
        ValueError: a front end that does not fit the network.
    """

    kind = "clap"

    def __init__(self, config: ClapAudioSettings, network: ClapAudioModelWithProjection | None = None):
        super().__init__()
        self.config = config
        self.front_end = ClapMel(config.front_end)
        self.network = network or ClapAudioModelWithProjection(ClapAudioConfig(**config.network))
        size, mels = self.network.config.spec_size, self.network.config.num_mel_bins
        frames, longest = config.front_end.samples // config.front_end.hop + 1, size * (size // mels)
        if config.front_end.mels != mels or frames > longest:
            raise ValueError(f"CLAP's front end makes {frames} frames of {config.front_end.mels} mel bands, its network takes at most "
                             f"{longest} frames of {mels}; preprocessor_config.json and config.json must be of one checkpoint")
        encoder = self.network.audio_model.audio_encoder
        if encoder.enable_fusion:       # used for longer clips only, which are cut here: a gradient would never arrive
            encoder.patch_embed.fusion_model.requires_grad_(False)
            encoder.patch_embed.mel_conv2d.requires_grad_(False)
        self.width, self.sample_rate = self.network.config.projection_dim, config.front_end.sample_rate

    @classmethod
    def from_published(cls, source: str | Path, dropout: float | None = None, drop_path: float | None = None) -> "ClapAudio":
        """The audio tower of a published CLAP.

        Args:
            source: as for `load_clap`.  dropout, drop_path: None: as published.
        Raises:
            FileNotFoundError, ValueError: naming the source and what is wrong with it.
        """
        return cls._of(*_published(source, audio={"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
                                                  "drop_path_rate": drop_path}))

    @classmethod
    def _of(cls, folder: Path, model: ClapModel) -> "ClapAudio":
        config = model.config.audio_config
        with torch.device("meta"):       # no random weights for what is replaced
            network = ClapAudioModelWithProjection(config)
        network.audio_model, network.audio_projection = model.audio_model, model.audio_projection
        return cls(ClapAudioSettings(ClapMelConfig.from_published(folder), config.to_dict()), network)

    @classmethod
    def rebuild(cls, entry: dict, folder: Path) -> "ClapAudio":
        """The tower that a checkpoint's config.json describes, without its weights."""
        return cls(ClapAudioSettings(**entry))

    def train(self, mode: bool = True) -> "ClapAudio":
        """As for every module, but BatchNorm keeps and uses the statistics it came with."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def draw(self) -> None:
        """None: nothing is drawn for a whole batch (see `PasstEncoder.draw`)."""

    def forward(self, waveform: Tensor, durations: Tensor, draws: None = None) -> Tensor:
        """Encode clips.

        Args:
            waveform: Tensor (B, samples), zero-padded on the right.
            durations: Tensor (B,) seconds of audio in each row before padding.
            draws: what `draw` returned.
        Returns:
            Tensor (B, width): mean over the segments that hold audio, weighted by how much they hold. A last segment of a few
            milliseconds, which is repeated until it is full, must not count as much as ten seconds.
        """
        size = self.config.front_end.samples
        samples = (durations.to(waveform.device).double() * self.sample_rate).round().long().clamp(0, waveform.shape[1])
        waveform = nn.functional.pad(waveform, (0, -waveform.shape[1] % size if waveform.shape[1] else size))
        segments = waveform.unflatten(1, (-1, size))                                                   # (B, S, size)
        first = torch.arange(0, waveform.shape[1], size, device=waveform.device)
        held = (samples[:, None] - first).clamp(0, size)                                               # (B, S) samples of audio
        weight = held.clone()
        weight[:, 0] += held[:, 0] == 0                    # a clip without audio is one segment of silence
        kept = weight > 0
        features = self.features(segments[kept], held[kept])
        placed = features.new_zeros(*kept.shape, self.width)       # placing, then summing, is deterministic on a GPU as well
        placed[kept] = features
        return (placed * (weight / weight.sum(dim=1, keepdim=True)).to(features.dtype)[..., None]).sum(dim=1)

    def features(self, segments: Tensor, samples: Tensor) -> Tensor:
        """Segments (N, segment samples) with their samples of audio (N,) to projected features (N, width)."""
        mel = self.front_end(self.fill(segments, samples))[:, None]
        longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=mel.device)
        return self.network(input_features=mel, is_longer=longer).audio_embeds

    def fill(self, segments: Tensor, samples: Tensor) -> Tensor:
        """Segments (N, size) filled up from their first `samples` (N,) as the front end's `padding` says; the rest is overwritten."""
        size, length = segments.shape[1], samples[:, None].clamp(min=1)
        position = torch.arange(size, device=segments.device)
        padding = self.config.front_end.padding
        end = {"repeatpad": size // length * length, "repeat": torch.full_like(length, size), "pad": length}[padding]
        return torch.where((position < end) & (samples[:, None] > 0), segments.gather(1, position % length), 0.0)


@dataclass(frozen=True)
class ClapTextSettings:
    """Settings of `ClapText`.  max_tokens: longer captions are cut.  network: what transformers' ClapTextConfig takes.  plain: captions
    are lower-cased and freed of punctuation first (a tokenizer from scratch has seen no other)."""

    max_tokens: int = 512
    network: dict = field(default_factory=dict)
    plain: bool = False

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)


class ClapText(nn.Module):
    """Captions, as they are written unless `plain`, to CLAP's projected text features, one vector each.

    Args:
        config: a `ClapTextSettings`.  tokenizer: the checkpoint's.
        network: transformers' text tower with projection; None: randomly initialised.
    Attributes:
        width: feature size (512 published).
    """

    kind = "clap"

    def __init__(self, config: ClapTextSettings, tokenizer, network: ClapTextModelWithProjection | None = None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.network = network or ClapTextModelWithProjection(ClapTextConfig(**config.network))
        self.width = self.network.config.projection_dim

    @classmethod
    def from_published(cls, source: str | Path, dropout: float | None = None, max_tokens: int | None = None) -> "ClapText":
        """The text tower of a published CLAP.

        Args:
            source: as for `load_clap`.  dropout: None: as published.  max_tokens: None: as many as the network has positions for.
        Raises:
            FileNotFoundError, ValueError: naming the source and what is wrong with it.
        """
        return cls._of(*_published(source, text={"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}), max_tokens)

    @classmethod
    def _of(cls, folder: Path, model: ClapModel, max_tokens: int | None = None) -> "ClapText":
        config = model.config.text_config
        positions = config.max_position_embeddings - config.pad_token_id - 1          # RoBERTa counts from behind the padding's number
        if max_tokens is not None and not 3 <= max_tokens <= positions:
            raise ValueError(f"max_tokens is {max_tokens}, the text tower of {folder} takes 3 to {positions}")
        tokenizer = weights.read_tokenizer(folder)
        if len(tokenizer) > config.vocab_size or tokenizer.pad_token_id != config.pad_token_id:
            raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} entries and pads with {tokenizer.pad_token_id}, the text tower "
                             f"{config.vocab_size} and {config.pad_token_id}; its files and config.json must be of one checkpoint")
        with torch.device("meta"):
            network = ClapTextModelWithProjection(config)
        network.text_model, network.text_projection = model.text_model, model.text_projection
        return cls(ClapTextSettings(max_tokens or positions, config.to_dict()), tokenizer, network)

    @classmethod
    def rebuild(cls, entry: dict, folder: Path) -> "ClapText":
        """The tower that a checkpoint's config.json describes, with the tokenizer in its folder and without its weights."""
        return cls(ClapTextSettings(**entry), PreTrainedTokenizerFast.from_pretrained(folder))

    def forward(self, captions: list[str]) -> Tensor:
        """Captions (a list of B texts) to Tensor (B, width)."""
        device = self.network.device
        captions = [normalise(caption) for caption in captions] if self.config.plain else list(captions)
        tokens = self.tokenizer(captions, padding=True, truncation=True, max_length=self.config.max_tokens, return_tensors="pt")
        return self.network(input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)).text_embeds


def load_clap(source: str | Path):
    """A published CLAP as a dual encoder in its own space, in evaluation mode on the CPU: usable frozen, or to train on.

    Its embeddings are the unit vectors of ClapModel's get_audio_features and get_text_features (for clips of at most one segment),
    its temperature the geometric mean of the two that CLAP learned.

    Args:
        source: a folder in the published layout, "laion/larger_clap_general" on Hugging Face, "modelscope:<owner>/<name>", or what
            ModelScope's snapshot_download returned.
    Returns:
        a `lib.encoders.dual.DualEncoder` with `dim` None.
    Raises:
        FileNotFoundError, ValueError: naming the source and what is wrong with it.
    """
    from lib.encoders.dual import DualEncoder         # which knows this module
    folder, model = _published(source)
    tau = math.exp(-(model.logit_scale_a.item() + model.logit_scale_t.item()) / 2)
    return DualEncoder(ClapAudio._of(folder, model), ClapText._of(folder, model), dim=None, tau=tau).eval()


def _published(source: str | Path, audio: dict | None = None, text: dict | None = None) -> tuple[Path, ClapModel]:
    """Folder and float32 model of a published CLAP; `audio` and `text` change settings of the towers where they are not None."""
    folder = weights.resolve(source)
    if (read_json(folder / "config.json") or {}).get("model_type") != "clap":
        raise ValueError(f"{folder} is no CLAP: a config.json with model_type 'clap' is expected there; give a folder in the layout of "
                         "laion/larger_clap_general")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise FileNotFoundError(f"{folder} holds no weights: model.safetensors or pytorch_model.bin is expected there; copy or download "
                                "it again")
    config = ClapConfig.from_pretrained(folder)
    for part, changes in ((config.audio_config, audio), (config.text_config, text)):
        for name, value in (changes or {}).items():
            if value is not None:
                setattr(part, name, value)
    try:
        model, report = ClapModel.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True)
    except Exception as error:     # broken files and other shapes come as errors of several libraries; the cause stays attached
        raise ValueError(f"{folder}: the weights cannot be read ({type(error).__name__}: {error}); copy or download them again, with the "
                         "config.json they were published with") from error
    missing = sorted(name for name in report["missing_keys"] if not name.endswith(CONSTANTS))
    if missing:                    # transformers would go on with random numbers in their place
        raise ValueError(f"{folder}: {len(missing)} entries are missing in the weights, such as {missing[0]}; they are no whole CLAP, or "
                         "that of another config.json")
    return folder, model
