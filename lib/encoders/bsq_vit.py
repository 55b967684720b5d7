"""Audio BSQ-ViT: a mel spectrogram in dB to bits and back.

Conventions: spectrograms (B, T, F) are in dB within `clamp_range`; the scaling of that range to -1 .. 1 and back is inside the model.
Tokens (B, N, L) are in the order of `lib.encoders.spectrogram_config`. A state of the encoder is projected to L values, brought to
unit length, quantized to L signs and projected back for the decoder. Projection to unit length and quantizer run in float32
outside autocast (float64 stays float64), so that the bits do not depend on the precision around them.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from lib.encoders.spectrogram_config import SpectrogramConfig
from lib.encoders.spectrogram_transformer import AudioTransformerDecoder, AudioTransformerEncoder, StackState, valid_tokens
from lib.files import read_json, user_path, write_json
from lib.quantize import quantizer as make_quantizer

MODEL_TYPE = "audio-bsq-vit"
UNIT_EPS = 1e-12        # protects the division by the length of a zero vector, which stays zero


class Variant(NamedTuple):
    """Sizes of a model; layers and heads of each of encoder and decoder."""

    embed_dim: int
    width: int
    layers: int
    heads: int
    head_width: int = 3072


VARIANTS = {
    "tiny": Variant(9, 32, 1, 2, 64),           # for tests
    "quick": Variant(18, 64, 1, 2, 512),        # from scratch on a laptop's CPU, in minutes
    "small": Variant(9, 512, 6, 8),
    "standard": Variant(18, 768, 12, 12),
    "large": Variant(36, 1024, 24, 16),
}


@dataclass
class TokenStream:
    """Where a stream of spectrogram frames, or of tokens, stands. One stream serves encoding and decoding, which do not touch each other.

    chunk: columns that are computed together; frames or tokens that do not fill a chunk wait in `frames` or `codes`, so that the result
    does not depend, not even in the last bit, on the pieces they arrive in.
    """

    chunk: int
    encoder: StackState
    decoder: StackState
    frames: list[Tensor] = field(default_factory=list)
    codes: list[Tensor] = field(default_factory=list)


class AudioBSQModel(nn.Module):
    """Encoder, quantizer and decoder of mel spectrograms.

    Args:
        audioconfig: a `SpectrogramConfig` or the seed's dictionary of it.
        embed_dim: L, bits of a token.
        daudioconfig: of the decoder, with the same patches; None: as the encoder's.
        l2_norm: project vectors to unit length before the quantizer ("bsq" only; the others do as they need).
        post_q_l2_norm: codes are +-1 / sqrt(L), of unit length; False: +-1.
        embed_group_size: bits of a group, see `lib.quantize.bsq`.  persample_entropy_compute: "analytical" or "group".
        cb_entropy_compute: "group".  beta, gamma0, gamma, zeta: weights of commitment, per-sample entropy, codebook entropy and of both.
        inv_temperature: inverse temperature of the entropies; at 1 the per-sample term has no gradient on the unit sphere.
        clamp_range: (low, high) in dB.  grad_checkpointing: as `gradient_checkpointing` in audioconfig, for encoder and decoder.
        quantizer: "bsq", or a baseline of `lib.quantize`.  quantizer_options: further options of that quantizer.
        masked_pretraining: adds a learned vector that stands for patches hidden from the encoder.
    Attributes:
        config, decoder_config: `SpectrogramConfig`s.  embed_dim: L.
    Raises:
        ValueError: an unknown or impossible value, by name.
    """

    def __init__(self, audioconfig: SpectrogramConfig | Mapping, embed_dim: int, daudioconfig: SpectrogramConfig | Mapping | None = None,
                 l2_norm: bool = True, post_q_l2_norm: bool = True, embed_group_size: int = 1,
                 persample_entropy_compute: str = "analytical", cb_entropy_compute: str = "group", beta: float = 0.0,
                 gamma0: float = 1.0, gamma: float = 1.0, zeta: float = 1.0, inv_temperature: float = 1.0,
                 clamp_range: tuple[float, float] = (-80.0, 0.0), grad_checkpointing: bool = False, quantizer: str = "bsq",
                 quantizer_options: Mapping | None = None, masked_pretraining: bool = False):
        super().__init__()
        configs = [SpectrogramConfig.of(values) for values in (audioconfig, audioconfig if daudioconfig is None else daudioconfig)]
        if grad_checkpointing:
            configs = [SpectrogramConfig.of(config.to_dict() | {"gradient_checkpointing": True}) for config in configs]
        self.config, self.decoder_config = configs
        for name in ("input_size", "input_length", "patches", "causal"):
            ours, theirs = getattr(self.config, name), getattr(self.decoder_config, name)
            if ours != theirs:
                raise ValueError(f"encoder and decoder share their tokens: {name} is {ours} in audioconfig and {theirs} in daudioconfig")
        low, high = clamp_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"clamp_range is {tuple(clamp_range)}, expected (low, high) in dB, low < high, such as (-80, 0)")
        self.embed_dim, self.clamp_range, self.l2_norm, self.quantizer_name = embed_dim, (float(low), float(high)), l2_norm, quantizer
        options = dict(quantizer_options or {})
        if quantizer == "bsq":
            options = {"group_size": embed_group_size, "inverse_temperature": inv_temperature, "entropy": persample_entropy_compute,
                       "codebook_entropy": cb_entropy_compute, "post_l2_norm": post_q_l2_norm, "beta": beta, "gamma0": gamma0,
                       "gamma": gamma, "zeta": zeta} | options
        self.settings = {"audioconfig": self.config.to_dict(), "embed_dim": embed_dim, "daudioconfig": self.decoder_config.to_dict(),
                         "l2_norm": l2_norm, "post_q_l2_norm": post_q_l2_norm, "embed_group_size": embed_group_size,
                         "persample_entropy_compute": persample_entropy_compute, "cb_entropy_compute": cb_entropy_compute, "beta": beta,
                         "gamma0": gamma0, "gamma": gamma, "zeta": zeta, "inv_temperature": inv_temperature,
                         "clamp_range": list(self.clamp_range), "quantizer": quantizer, "quantizer_options": dict(quantizer_options or {}),
                         "masked_pretraining": masked_pretraining}
        self.encoder = AudioTransformerEncoder(self.config, masked_pretraining)
        self.quantizer = make_quantizer(quantizer, embed_dim, **options)
        self.to_code = nn.Linear(self.config.width, self.quantizer.dim)
        self.from_code = nn.Linear(self.quantizer.dim, self.decoder_config.width)
        self.decoder = AudioTransformerDecoder(self.decoder_config)

    @classmethod
    def from_variant(cls, name: str, audioconfig: Mapping | None = None, **options) -> AudioBSQModel:
        """A model of a named size.

        Args: name: of `VARIANTS`.  audioconfig: what differs from it.  options: of the model, also embed_dim.
        Raises: ValueError: an unknown name.
        """
        if name not in VARIANTS:
            raise ValueError(f"variant {name!r} is unknown; there are {', '.join(VARIANTS)}")
        sizes = VARIANTS[name]._asdict()
        embed_dim = sizes.pop("embed_dim")
        return cls(sizes | dict(audioconfig or {}), options.pop("embed_dim", embed_dim), **options)

    def forward(self, x: Tensor, mask: Tensor | None = None, valid: Tensor | None = None, skip_quantize: bool = False
                ) -> tuple[Tensor, Tensor, dict]:
        """Encode, quantize, decode.

        Args:
            x: Tensor (B, T, F) or (B, 1, T, F), dB.
            mask: Tensor (B, N) bool, True where a patch is hidden from the encoder (with masked_pretraining).
            valid: Tensor (B, T) bool, False where a frame is padding. Padding is encoded like all else, but tokens of nothing else
                count in no statistics and in no term of the quantizer's loss.
            skip_quantize: the decoder sees the vectors before quantization: what the bits cost.
        Returns:
            reconstruction: Tensor of the shape of x, dB; limited to clamp_range in evaluation only: a limit has no gradient.
            quant_loss: scalar.
            info: as `encode`.
        Raises:
            ValueError: shapes that do not fit.
        """
        codes, loss, info = self.encode(x, mask, valid, skip_quantize)
        return self.decode(codes, valid).view(x.shape), loss, info

    def encode(self, x: Tensor, mask: Tensor | None = None, valid: Tensor | None = None, skip_quantize: bool = False
               ) -> tuple[Tensor, Tensor, dict]:
        """Spectrograms to codes; arguments as `forward`.

        Returns:
            codes: Tensor (B, N, dim); for "bsq" dim = L, and a code is +-1 / sqrt(L).
            loss: scalar.
            info: "H", codebook entropy (nats); "used_codes": different indices in the batch (evaluation only, otherwise None);
                "indices" (B, N) int64, None above 63 bits; "group_indices" (B, N, groups); "avg_prob" (groups, codes of a group);
                "quantized": the quantizer's `Quantized`; "vectors" (B, N, dim): before quantization. With skip_quantize all but
                the vectors are None, and the loss is 0.
        """
        x = self._levels(x)
        vectors = self._vectors(self.encoder(self._scale(x), mask, valid))
        if skip_quantize:
            return vectors, vectors.new_zeros(()), dict.fromkeys(
                ("H", "used_codes", "indices", "group_indices", "avg_prob", "quantized")) | {"vectors": vectors}
        real = None if valid is None else valid_tokens(valid, self.config.grids(x.shape[1]))
        found = self.quantizer(vectors, real)
        used = None
        if not self.training and found.indices is not None:
            used = (found.indices if real is None else found.indices[real]).unique()
        return found.codes, found.loss, {"H": found.codebook_entropy, "used_codes": used, "indices": found.indices,
                                         "group_indices": found.group_indices, "avg_prob": found.average_probability, "quantized": found,
                                         "vectors": vectors}

    def decode(self, quantized: Tensor, valid: Tensor | None = None) -> Tensor:
        """Codes (B, N, dim) to spectrograms (B, T, F) in dB, limited to clamp_range in evaluation.

        Raises: ValueError: codes of another size, or so many that they fill no spectrogram.
        """
        return self._unscale(self.decoder(self._states(quantized), valid))

    def stream(self, chunk: int = 8) -> TokenStream:
        """A new stream for `encode_chunk` and `decode_chunk`.

        Args: chunk: columns of patches that are computed together: more are faster, and wait longer. Part of what makes two encodings
            equal to the bit.
        Raises: ValueError: a model that is no causal one with rotary positions and an attention window, or that trains.
        """
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}, expected at least 1 column of patches")
        if self.training:
            raise ValueError("a stream is encoded in evaluation mode: call model.eval() first")
        return TokenStream(chunk, self.encoder.stack.start(), self.decoder.stack.start())

    @torch.no_grad()
    def encode_chunk(self, stream: TokenStream, frames: Tensor, last: bool = False) -> Tensor:
        """Encode what arrived of a long spectrogram; memory does not grow with what was encoded before.

        Args:
            stream: of `stream()`; brought up to date.
            frames: Tensor (B, t, F) dB, any t, also 0; B may not change.
            last: nothing comes after it: frames that fill no column are padded with the lowest level.
        Returns:
            codes: Tensor (B, n, dim) of the columns that are complete, all of them with `last`. Up to rounding those of `encode` of the
                whole, and equal to the bit however the frames are cut into pieces, for one chunk and batch size.
        """
        low, (time, _) = self.clamp_range[0], self.config.patches[0]
        if frames.ndim != 3 or frames.shape[2] != self.config.input_size:
            raise ValueError(f"frames have shape {tuple(frames.shape)}, expected (clips, frames, input_size = {self.config.input_size} "
                             "bands)")
        waiting = torch.cat([*stream.frames, frames], dim=1)
        if last and waiting.shape[1] % time:
            waiting = nn.functional.pad(waiting, (0, 0, 0, -waiting.shape[1] % time), value=low)
        parts, stream.frames = _pieces(waiting, stream.chunk * time, last)
        codes = [self._quantize(self.encoder(self._scale(part), state=stream.encoder)) for part in parts]
        return torch.cat(codes, dim=1) if codes else frames.new_zeros(len(frames), 0, self.quantizer.dim)

    @torch.no_grad()
    def decode_chunk(self, stream: TokenStream, quantized: Tensor, last: bool = False) -> Tensor:
        """Decode what arrived of a long row of codes.

        Args: stream: as in `encode_chunk`.  quantized: Tensor (B, n, dim), any n.  last: nothing comes after it.
        Returns: Tensor (B, t, F) dB of the chunks that are complete, with `last` of all whole columns.
        Raises: ValueError: codes of another size; with `last`, codes that fill no column.
        """
        rows = self.config.input_size // self.config.patches[0][1]
        waiting = torch.cat([*stream.codes, quantized], dim=1)
        if last and waiting.shape[1] % rows:
            raise ValueError(f"{waiting.shape[1]} codes are left at the end, but a column has {rows}: some are missing")
        parts, stream.codes = _pieces(waiting, stream.chunk * rows, last)
        frames = [self._unscale(self.decoder(self._states(part), state=stream.decoder)) for part in parts]
        return torch.cat(frames, dim=1) if frames else quantized.new_zeros(len(quantized), 0, self.config.input_size)

    def to_dict(self) -> dict:
        """JSON-able form of everything that `from_dict` needs to build the same model (without weights)."""
        return {"model_type": MODEL_TYPE} | self.settings

    @classmethod
    def from_dict(cls, values: Mapping) -> AudioBSQModel:
        """A model with random weights from `to_dict`'s form (beside which a checkpoint's front end may stand). ValueError: another kind of
        model."""
        values = {name: value for name, value in values.items() if name != "front_end"}
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise ValueError(f"model_type is {kind!r}, expected {MODEL_TYPE!r}: a tokenizer of the workbook")
        return cls(**values)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors into `folder` (made if needed)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.to_dict())
        save_file({name: value.detach().contiguous().cpu() for name, value in self.state_dict().items()}, folder / "model.safetensors")
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AudioBSQModel:
        """Read a folder of `save_pretrained`, in evaluation mode. FileNotFoundError, ValueError: naming the folder and what is wrong."""
        folder = user_path(folder)
        entry = read_json(folder / "config.json")
        if entry is None or not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder.absolute()} is no tokenizer: config.json and model.safetensors are expected there")
        try:
            model = cls.from_dict(entry)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder}/config.json: {error}") from error
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()

    def _levels(self, x: Tensor) -> Tensor:
        """(B, T, F) of (B, T, F) or (B, 1, T, F)."""
        if x.ndim == 4 and x.shape[1] == 1:
            x = x[:, 0]
        if x.ndim != 3 or not x.is_floating_point():
            raise ValueError(f"a spectrogram is {x.dtype} of shape {tuple(x.shape)}, expected numbers in dB of shape (clips, frames, "
                             "bands) or (clips, 1, frames, bands)")
        return x

    def _scale(self, levels: Tensor) -> Tensor:
        low, high = self.clamp_range
        return (levels - low) * (2 / (high - low)) - 1

    def _unscale(self, scaled: Tensor) -> Tensor:
        low, high = self.clamp_range
        scaled = scaled if scaled.dtype == torch.float64 else scaled.float()        # in bfloat16 levels would have steps of 0.25 dB
        levels = (scaled + 1) * ((high - low) / 2) + low
        return levels if self.training else levels.clamp(low, high)

    def _vectors(self, states: Tensor) -> Tensor:
        """Encoder states (B, N, width) to what the quantizer takes (B, N, dim)."""
        with torch.autocast(states.device.type, enabled=False):
            vectors = self.to_code(states.to(self.to_code.weight.dtype))
            return normalize(vectors, dim=-1, eps=UNIT_EPS) if self.l2_norm and self.quantizer.unit_input else vectors

    def _quantize(self, states: Tensor) -> Tensor:
        return self.quantizer(self._vectors(states)).codes

    def _states(self, quantized: Tensor) -> Tensor:
        """Codes (B, N, dim) to the decoder's input (B, N, width)."""
        if quantized.ndim != 3 or quantized.shape[2] != self.quantizer.dim:
            raise ValueError(f"codes have shape {tuple(quantized.shape)}, expected (clips, tokens, {self.quantizer.dim})")
        return self.from_code(quantized)


def _pieces(waiting: Tensor, size: int, last: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Cut (B, n, ...) into pieces of `size`; what is left over is a piece too with `last`, otherwise it waits, as a copy of its own."""
    pieces = list(waiting.split(size, dim=1)) if waiting.shape[1] else []
    if last or not pieces or pieces[-1].shape[1] == size:
        return pieces, []
    return pieces[:-1], [pieces[-1].clone()]
