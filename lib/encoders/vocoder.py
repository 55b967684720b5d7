"""A small vocoder: from mel levels to a waveform through the spectrum of an inverse STFT.

The network has Vocos' form (Siuzdak, arXiv 2306.00814): ConvNeXt blocks over frames, at the frame rate throughout, then for every
bin of every frame a magnitude and a phase, then one inverse STFT, which does all the upsampling. Two things make it learn in
minutes rather than days: it predicts by how much magnitudes differ from a smooth spectrum of the given mel levels, and two updates
of least squares bring them back to these levels; and it starts with all phases those of a pulse in the middle of the frame. Its
phases can be refined by Griffin-Lim's iteration. There is no discriminator, hence a buzz that a published vocoder does not have.

Convention: levels (B, T, F) and spectra are relative to the clip's peak, so that loudness is no matter of the network; `sound` gives
it back. Waveforms have (T - 1) * hop samples (n_fft more where frames are not centred), sample by sample beside the original's.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.audio.inversion import griffin_lim, linear_power, samples, spectrum, waveform
from lib.audio.mel import MelConfig, MelFrontEnd, decibels, mel_filters, mel_power
from lib.files import read_json, user_path, write_json
from lib.randomness import derive, generator

# name: (width, blocks). "published" is the 13.5 million parameters of Vocos; "quick" learns on a laptop's CPU in a minute or two
SIZES = {"tiny": (32, 2), "quick": (160, 4), "published": (512, 8)}
MOST_CHANGE = 6.0                   # natural log of a magnitude: 52 dB
FITTED = 2                          # updates that bring the magnitudes back to the mel levels
RESOLUTIONS = ((256, 64), (512, 128), (1024, 256), (2048, 512))   # window and hop of the loss, samples
MODEL_TYPE = "workbook-vocoder"


@dataclass(frozen=True)
class VocoderConfig:
    """Settings of `Vocoder`.

    Args:
        size: a name of SIZES.
        kernel: frames that a block sees (odd).  expansion: width of a block's middle, in widths.
        mel: front end of the levels it reads; a tokenizer's own.
    Raises:
        ValueError: a value out of its range.
    """

    size: str = "quick"
    kernel: int = 7
    expansion: int = 3
    mel: MelConfig = field(default_factory=MelConfig)

    def __post_init__(self):
        if isinstance(self.mel, dict):
            object.__setattr__(self, "mel", MelConfig(**self.mel))
        if self.size not in SIZES:
            raise ValueError(f"vocoder: size {self.size!r} is not known; choose one of {', '.join(SIZES)}")
        if self.kernel < 1 or not self.kernel % 2 or self.expansion < 1:
            raise ValueError(f"vocoder: kernel must be odd and expansion at least 1, got {self.kernel!r} and {self.expansion!r}")

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self) | {"mel": self.mel.to_dict()}


class ConvNeXtBlock(nn.Module):
    """x + scale * (depthwise convolution over time, LayerNorm, two linear layers with GELU): (B, width, T) -> the same."""

    def __init__(self, width: int, kernel: int, expansion: int, scale: float):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.widen, self.narrow = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: Tensor (B, width, T). Returns the same shape."""
        inner = self.norm(self.depthwise(x).transpose(1, 2))
        return x + (self.scale * self.narrow(nn.functional.gelu(self.widen(inner)))).transpose(1, 2)


class Vocoder(nn.Module):
    """Mel levels (B, T, F) in dB relative to the peak -> waveform (B, samples), relative to it too."""

    def __init__(self, config: VocoderConfig = VocoderConfig()):
        super().__init__()
        self.config = config
        (width, blocks), mel = SIZES[config.size], config.mel
        self.embed = nn.Conv1d(mel.mels, width, 7, padding=3)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, config.kernel, config.expansion, 1 / blocks) for _ in range(blocks))
        self.last = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, mel.n_fft + 2)         # log magnitudes, then phases
        for layer in self.modules():
            if isinstance(layer, (nn.Conv1d, nn.Linear)):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        bins = mel.n_fft // 2 + 1
        with torch.no_grad():                               # a pulse in the middle of the window has phase -pi * bin
            self.head.bias[bins:] = math.pi * (torch.arange(bins) % 2)

    def forward(self, levels: Tensor) -> Tensor:
        """Args: levels: Tensor (B, T, F) dB.  Returns: Tensor (B, samples), at least float32.  Raises: ValueError: another shape."""
        magnitude, phase = self.spectrum(levels)
        return waveform(torch.polar(magnitude, phase), self.config.mel)

    def spectrum(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes and phases (radians) of the bins: (B, T, F) -> two Tensors (B, n_fft / 2 + 1, T) float32."""
        mel = self.config.mel
        if levels.ndim != 3 or levels.shape[2] != mel.mels or not levels.shape[1]:
            raise ValueError(f"vocoder: expected levels (B, T, {mel.mels}) of the front end it was built for, got {tuple(levels.shape)}")
        low, high = mel.clamp_range
        levels = levels.clamp(low, high)
        x = self.norm(self.embed((2 * (levels - low) / (high - low) - 1).transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        with torch.autocast(x.device.type, enabled=False):  # a phase needs its digits
            out = self.head(self.last(x.transpose(1, 2)).to(self.head.weight.dtype)).transpose(1, 2)
            change, phase = (part if part.dtype == torch.float64 else part.float() for part in out.chunk(2, dim=1))
            return self._magnitude(change, 10 ** (levels.to(change) / 10)), phase

    def _magnitude(self, change: Tensor, power: Tensor) -> Tensor:
        """Magnitudes that differ from smooth ones and are brought back to the mel power.

        Args: change: (B, bins, T) natural log.  power: (B, T, F).  Returns: (B, bins, T).
        """
        bank = mel_filters(self.config.mel, power.dtype, power.device)
        smooth = linear_power(power, bank, iterations=0)
        start = smooth * (2 * change.transpose(1, 2).clamp(-MOST_CHANGE, MOST_CHANGE)).exp()
        return (linear_power(power, bank, FITTED, start) + 1e-12).sqrt().transpose(1, 2)    # protects the root's slope where nothing is

    @torch.no_grad()
    def sound(self, levels: Tensor, peak: Tensor, refine: int = 0) -> Tensor:
        """Sound at its own loudness.

        Args:
            levels: Tensor (B, T, F) dB.  peak: Tensor (B,) dB.
            refine: iterations of Griffin-Lim that start from the network's phases and keep its magnitudes.
        Returns: Tensor (B, samples).
        """
        magnitude, phase = self.spectrum(levels)
        with torch.autocast(levels.device.type, enabled=False):
            return griffin_lim(magnitude, self.config.mel, refine, phase=phase) * 10 ** (peak.to(magnitude) / 20)[:, None]

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors into `folder` (made if needed). Returns it."""
        folder = Path(folder)
        write_json(folder / "config.json", {"model_type": MODEL_TYPE, **self.config.to_dict()})
        save_file({name: value.detach().contiguous().cpu() for name, value in self.state_dict().items()}, folder / "model.safetensors")
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Vocoder":
        """The vocoder in a folder written by `save_pretrained`, in evaluation mode on the CPU.

        Raises: FileNotFoundError, ValueError: naming the folder, where there is none, another kind of model or a damaged one.
        """
        folder = user_path(folder)
        config = read_json(folder / "config.json")
        if config is None or not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder} is no vocoder: config.json and model.safetensors are expected there")
        if config.pop("model_type", None) != MODEL_TYPE:
            raise ValueError(f"{folder}/config.json describes another kind of model, expected {MODEL_TYPE!r}")
        model = cls(VocoderConfig(**config))
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder}/model.safetensors does not hold the weights of its config.json ({error}); copy it again") from error
        return model.eval()


def vocoder_losses(prediction: Tensor, target: Tensor, mel: MelConfig, magnitudes: tuple[Tensor, Tensor] | None = None,
                   floor: float = 1e-4) -> dict[str, Tensor]:
    """What training minimises; nothing in it compares phases.

    Args:
        prediction, target: Tensor (B, samples), relative to the peak.  mel: the front end.
        magnitudes: of the prediction before the inverse STFT and of the target's spectrum, (B, bins, T) both. Without this term magnitudes
            become too large where phases do not fit and cancel, and no phases could be found for them afterwards.
        floor: magnitude below which nothing is heard (1e-4 is 80 dB below the peak); it protects the logarithms.
    Returns:
        "convergence": mean over RESOLUTIONS and clips of ||difference of magnitudes|| / ||target's magnitudes||; "magnitude": mean absolute
        difference of log magnitudes (natural); "mel": that of mel levels in units of 10 dB; "spectrum" (with
        magnitudes): that of their logarithms; "total": the sum of all.
    Raises:
        ValueError: shapes that differ.
    """
    if prediction.shape != target.shape or target.ndim != 2:
        raise ValueError(f"vocoder: expected two sets of waveforms (B, samples), got {tuple(prediction.shape)} and {tuple(target.shape)}")
    convergence, difference = [], []
    with torch.autocast(prediction.device.type, enabled=False):
        for size, hop in RESOLUTIONS:
            one, other = (_magnitude(x, size, hop, floor) for x in (prediction, target))
            convergence.append(((one - other).norm(dim=(1, 2)) / other.norm(dim=(1, 2))).mean())
            difference.append((one.log() - other.log()).abs().mean())
        half = mel.n_fft // 2
        levels = [decibels(mel_power(nn.functional.pad(x, (half, half)), mel).clamp(min=floor ** 2)) for x in (prediction, target)]
        losses = {"convergence": torch.stack(convergence).mean(), "magnitude": torch.stack(difference).mean(),
                  "mel": (levels[0] - levels[1]).abs().mean() / 10}
        if magnitudes is not None:
            one, other = (x.clamp(min=floor).log() for x in magnitudes)
            losses["spectrum"] = (one - other).abs().mean()
    return losses | {"total": torch.stack(list(losses.values())).sum()}


def _magnitude(x: Tensor, size: int, hop: int, floor: float) -> Tensor:
    window = torch.hann_window(size, device=x.device, dtype=x.dtype)
    found = torch.stft(nn.functional.pad(x, (size // 2, size // 2)), size, hop, window=window, center=False, return_complex=True)
    return (found.real.square() + found.imag.square()).clamp(min=floor ** 2).sqrt()     # before the root: its slope at 0 is infinite


def fit(vocoder: Vocoder, clips: Sequence[Tensor], steps: int, *, batch: int = 8, frames: int = 64, learning_rate: float = 1e-3,
        seed: int = 0, report: Callable[[int, dict[str, float]], None] | None = None) -> dict[str, float]:
    """Train on random excerpts of sounds; the draws depend on the seed and the step only.

    Args:
        vocoder: on the device to train on; it is left in evaluation mode.
        clips: Tensors (samples,) at the front end's sample rate, any lengths.
        steps: of AdamW, learning rate falling to 0 along a cosine.  batch, frames: excerpts a step, and their length.
        report: called with each step's number and losses.
    Returns:
        mean losses of the last tenth of the steps.
    Raises:
        ValueError: no clips, only silent ones, or a loss that is not finite.
    """
    mel, front_end = vocoder.config.mel, MelFrontEnd(vocoder.config.mel)
    device, half = next(vocoder.parameters()).device, mel.n_fft // 2 if mel.centred else 0
    uncentred, scaled = replace(mel, centred=False), []     # excerpts bring their own neighbours
    for clip in clips:
        mels = front_end(clip[None], frames=max(1, mel.frames_of(len(clip))))
        if mels.levels.max() > mel.floor:
            clip = (clip / 10 ** (mels.peak / 20)).float()
            need = samples(frames, mel) - len(clip)
            clip = nn.functional.pad(clip, (0, max(0, need)))
            scaled.append(nn.functional.pad(clip, (half, half)))
    if not scaled:
        raise ValueError("vocoder: nothing to learn from: there are no clips, or all of them are silent")
    optimizer = torch.optim.AdamW(vocoder.parameters(), lr=learning_rate, betas=(0.8, 0.95), weight_decay=0.01)
    history: list[dict[str, float]] = []
    vocoder.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        rng, length = generator(derive(seed, "vocoder"), step), samples(frames, mel)
        excerpts = []
        for index in rng.integers(len(scaled), size=batch):
            places = (len(scaled[index]) - 2 * half - length) // mel.hop + 1
            first = int(rng.integers(places)) * mel.hop
            excerpts.append(scaled[index][first:first + length + 2 * half])
        padded = torch.stack(excerpts).to(device)
        levels = decibels(mel_power(padded, mel)).clamp(*mel.clamp_range)
        magnitude, phase = vocoder.spectrum(levels)
        losses = vocoder_losses(waveform(torch.polar(magnitude, phase), mel), padded[:, half:half + length], mel,
                                (magnitude, spectrum(padded, uncentred).abs()))
        if not torch.isfinite(losses["total"]):
            raise ValueError(f"vocoder: the loss of step {step} is not finite; lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(vocoder.parameters(), 1.0)
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
        if report is not None:
            report(step, history[-1])
    vocoder.eval()
    last = history[-max(1, steps // 10):]
    return {name: sum(entry[name] for entry in last) / len(last) for name in last[0]} if last else {}
