"""Audio BSQ-ViT tokenizer: mel spectrograms to a few bits a patch and back.

Configuration, model, training step and evaluation; defaults are the original project's, with an absolute learning rate. Levels are
in dB within the front end's range everywhere, padding counts in no loss and no metric. `python -m lib.families.tokenizer encode`
and `decode` turn sounds into token files and back (`lib.encoders.tokenizer_files`).
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lib import data, distributed, randomness
from lib.audio.mel import MelConfig, MelFrontEnd, Mels, mask_spectrogram, preset
from lib.config import RunConfig
from lib.data.loading import ClipDataset, batches, count_batches, shared_cache
from lib.data.manifest import Manifest
from lib.distributed import gather_list
from lib.encoders import tokenizer_files
from lib.encoders.bsq_vit import VARIANTS, AudioBSQModel
from lib.encoders.bsq_yaml import from_yaml
from lib.encoders.patch_discriminator import PatchDiscriminator
from lib.encoders.spectrogram_config import SpectrogramConfig
from lib.encoders.spectrogram_transformer import valid_tokens
from lib.encoders.weights import model_digest
from lib.files import read_json, user_path, write_json
from lib.glossary import ParameterError
from lib.losses.adversarial_spectrogram import discriminator_loss, generator_loss, gradient_penalty, lazy_r1
from lib.losses.spectrogram import multi_resolution_loss, reconstruction_loss
from lib.progress import track
from lib.quantize.statistics import CodebookStatistics

__all__ = ["ARMS", "Tokenizer", "TokenizerConfig", "analysed", "arm", "from_yaml", "load", "predict_mean", "reconstruct", "tokens"]

CACHE_BYTES = 1 << 30       # of decoded waveforms, and of levels, a process
MEL_NAMES = {"sample_rate": "sample_rate", "n_mels": "mels", "n_fft": "n_fft", "hop": "hop", "frames": "frames",
             "clamp_range": "clamp_range", "reference": "reference"}
VARIANT_NAMES = ("embed_dim", "width", "layers", "heads", "head_width")
AUDIO_NAMES = ("patch_size", "time_patch_size", "freq_patch_size", "mlp_ratio", "drop_rate", "attn_drop_rate", "drop_path_rate",
               "ls_init_value", "ln_pre", "ln_post", "use_conv_module", "conv_kernel_size", "conv_kernel_2d", "mask_type", "mask_block_size", "conv_axis",
               "positions", "patch_sizes", "causal", "attention_window")
MODEL_NAMES = ("l2_norm", "post_q_l2_norm", "embed_group_size", "persample_entropy_compute", "cb_entropy_compute", "beta", "gamma0",
               "gamma", "zeta", "inv_temperature", "grad_checkpointing", "quantizer")
# what may differ from a checkpoint whose weights are used: it changes how a model learns, not what its weights mean
FREE = ("drop_rate", "attn_drop_rate", "drop_path_rate", "gradient_checkpointing", "masked_pretraining", "beta", "gamma0", "gamma", "zeta",
        "inv_temperature", "embed_group_size", "persample_entropy_compute", "cb_entropy_compute", "quantizer_options")
# what is compared on the same data, epochs and batches: other quantizers of as many bits, and one thing changed at a time
ARMS = {"bsq": {}, "vq": {"quantizer": "vq"}, "lfq": {"quantizer": "lfq"}, "temperature_1": {"inv_temperature": 1.0},
        "temperature_10": {"inv_temperature": 10.0}, "temperature_100": {"inv_temperature": 100.0}, "no_conv": {"use_conv_module": False},
        "conv_time": {"conv_axis": "time"}, "conv_2d": {"conv_axis": "2d"}, "ln_pre": {"ln_pre": True},
        "no_l2": {"l2_norm": False}}


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(RunConfig):
    """Parameters of the family; meaning and range of each: `lib.glossary.PARAMETERS`. Sizes that are None are the preset's or the
    variant's. The model's input_size and input_length are n_mels and frames."""

    dataset: str = "librispeech"
    scene_seconds: float = 5.0
    preset: str = "default"
    sample_rate: int | None = None
    n_mels: int | None = None
    n_fft: int | None = None
    hop: int | None = None
    frames: int | None = None
    clamp_range: tuple[float, ...] | None = None
    reference: float | None = None
    centred: bool = True

    variant: str = "standard"
    embed_dim: int | None = None
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    head_width: int | None = None
    decoder_width: int | None = None
    decoder_layers: int | None = None
    decoder_heads: int | None = None
    patch_size: int = 16
    time_patch_size: int | None = None
    freq_patch_size: int | None = None
    patch_sizes: tuple[int, ...] | None = None
    mlp_ratio: float = 4.0
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    ls_init_value: float | None = None
    ln_pre: bool = True
    ln_post: bool = True
    use_conv_module: bool = True
    conv_kernel_size: int = 31
    conv_kernel_2d: tuple[int, ...] = (7, 3)
    conv_axis: str = "flat"
    mask_type: str | None = "none"
    mask_block_size: int | None = None
    positions: str = "flat"
    causal: bool = False
    attention_window: int | None = None
    grad_checkpointing: bool = False
    quantizer: str = "bsq"
    l2_norm: bool = True
    post_q_l2_norm: bool = True
    embed_group_size: int = 1
    persample_entropy_compute: str = "analytical"
    cb_entropy_compute: str = "group"
    inv_temperature: float = 1.0
    beta: float = 0.0
    gamma0: float = 1.0
    gamma: float = 1.0
    zeta: float = 1.0
    initial_checkpoint: str | None = None

    rec_loss: str = "l1"
    reconstruct_weight: float = 1.0
    mel_loss_weight: float = 0.0
    codebook_weight: float = 0.1
    codebook_rampup_multiplier: float = 3.0
    codebook_rampup_steps: int = 2000
    disc_weight: float = 0.0
    disc_start: int = 0
    disc_loss: str = "hinge"
    disc_reg_freq: int = 16
    disc_reg_r1: float = 10.0
    disc_ndf: int = 64
    disc_num_layers: int = 4
    augment: bool = True
    augment_target: bool = False
    mask_ratio: float = 0.0

    # 500,000 steps of 32 clips, 5,000 of them to warm up, for the 28,539 clips of train-clean-100
    epochs: int = 560
    batch_size: int = 32
    learning_rate: float = 1e-4
    start_learning_rate: float = 1e-5
    floor_learning_rate: float = 5e-5
    warmup_epochs: float = 5.6
    decay_epochs: float | None = 554.4
    weight_decay: float = 1e-4
    betas: tuple[float, ...] = (0.9, 0.99)
    gradient_clip: float | None = 1.0

    def __post_init__(self):
        super().__post_init__()
        try:
            mel, audio = self.mel, SpectrogramConfig.of(self.audioconfig)
            SpectrogramConfig.of(self.daudioconfig)
        except ValueError as error:
            raise ParameterError(f"TokenizerConfig: {error} (input_length is frames, input_size is n_mels)") from error
        if self.mask_ratio and len(audio.patches) > 1:
            raise ParameterError("TokenizerConfig: mask_ratio hides patches of one size; with patch_sizes another scale would show them")
        smallest = 3 * 2 ** self.disc_num_layers
        if self.disc_weight and min(mel.frames, mel.mels) < smallest:
            raise ParameterError(f"TokenizerConfig: disc_num_layers={self.disc_num_layers} needs {smallest} frames and mel bands, got "
                                 f"{mel.frames} and {mel.mels}; lower disc_num_layers")

    @property
    def mel(self) -> MelConfig:
        """The front end's settings: the preset, changed by what is given."""
        given = {theirs: getattr(self, ours) for ours, theirs in MEL_NAMES.items() if getattr(self, ours) is not None}
        return preset(self.preset, centred=self.centred, **given)

    def size(self, name: str) -> int:
        """One of embed_dim, width, layers, heads, head_width: as given, or the variant's."""
        own = getattr(self, name)
        return getattr(VARIANTS[self.variant], name) if own is None else own

    @property
    def audioconfig(self) -> dict:
        """The encoder's settings under their published names."""
        mel = self.mel
        return {"input_size": mel.mels, "input_length": mel.frames} | {name: self.size(name) for name in VARIANT_NAMES[1:]} | {
            name: getattr(self, name) for name in AUDIO_NAMES}

    @property
    def daudioconfig(self) -> dict:
        """The decoder's."""
        given = {name: getattr(self, f"decoder_{name}") for name in ("width", "layers", "heads")}
        return self.audioconfig | {name: value for name, value in given.items() if value is not None}

    def prepare(self) -> Manifest:
        """The data set's manifest, prepared or read."""
        options = {"clip_seconds": self.scene_seconds} if "soundscapes" in self.dataset.split("+") else {}
        return data.prepare(self.dataset, data_root=self.data_root, num_samples=self.num_samples, workers=self.threads, **options)

    def inputs(self) -> tuple[str, ...]:
        """Digest of the checkpoint that training starts from."""
        return (f"start {model_digest(user_path(self.initial_checkpoint))}",) if self.initial_checkpoint else ()


def arm(config: TokenizerConfig, name: str, bits: int) -> TokenizerConfig:
    """The configuration of one of the models that are compared.  Args: name: one of ARMS.  bits: of a token."""
    return replace(config, embed_dim=bits, **ARMS[name])


def build(config: TokenizerConfig) -> AudioBSQModel:
    """The model of a configuration, with random weights or those of `initial_checkpoint`. ValueError: it does not fit."""
    folder = user_path(config.initial_checkpoint) if config.initial_checkpoint else None
    if folder is not None:
        check_structure(config, folder)
    randomness.seed_all(config.seed, "model")
    model = AudioBSQModel(config.audioconfig, config.size("embed_dim"), config.daudioconfig, clamp_range=config.mel.clamp_range,
                          masked_pretraining=config.mask_ratio > 0, **{name: getattr(config, name) for name in MODEL_NAMES})
    if folder is not None:
        weights = load_file(folder / "model.safetensors")
        token = "encoder.mask_token"                    # of masked pre-training only
        kept = {token: model.state_dict()[token]} if config.mask_ratio and token not in weights else {}
        model.load_state_dict({name: value for name, value in weights.items() if config.mask_ratio or name != token} | kept)
    return model


def check_structure(config: TokenizerConfig, folder: Path) -> None:
    """Raise ValueError unless the weights in a checkpoint's folder are those of a model of this configuration: naming the option, both
    values and the file.

    FileNotFoundError: the folder is no checkpoint of this family.
    """
    stored = read_json(folder / "config.json")
    if stored is None or "front_end" not in stored or not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint of a tokenizer: config.json with a front end and model.safetensors are expected "
                                "there")
    ours = {name: SpectrogramConfig.of(getattr(config, name)).to_dict() for name in ("audioconfig", "daudioconfig")} | {
        "embed_dim": config.size("embed_dim"), "clamp_range": list(config.mel.clamp_range), "front_end": config.mel.to_dict()} | {
        name: getattr(config, name) for name in MODEL_NAMES if name != "grad_checkpointing"}
    ours, theirs = _options(ours), _options(stored)
    for name in ours | theirs:
        one, other = ours.get(name), theirs.get(name)
        any_length = name.endswith("frames") and config.positions == "rotary"
        if name in ours and one != other and name.removeprefix("decoder's ") not in FREE and not any_length:
            raise ValueError(f"{name} is {one}, but the model in {folder / 'config.json'} was made with {other}; give {name}={other}, or "
                             "start from another checkpoint")


def _options(entry: dict) -> dict[str, object]:
    """config.json with one entry an option, under the names of `TokenizerConfig`."""
    entry, names = dict(entry), {"input_size": "n_mels", "input_length": "frames", "mels": "n_mels"}
    parts = {"": entry.pop("audioconfig"), "decoder's ": entry.pop("daudioconfig"), " ": entry.pop("front_end")}
    return entry | {(before + names.get(name, name)).lstrip(): value for before, part in parts.items() for name, value in part.items()}


def load(folder: str | Path, device: torch.device | str = "cpu", **changes) -> tuple[AudioBSQModel, TokenizerConfig, MelFrontEnd]:
    """A trained model in evaluation mode, its configuration and its front end.

    Args: folder: a checkpoint.  device: where it goes.  changes: fields of the configuration, such as data_root.
    Raises: FileNotFoundError, ValueError: naming the folder, or the option, both values and the file.
    """
    folder = user_path(folder)
    model, mel = tokenizer_files.read_model(folder)
    stored = (read_json(folder / "training.json") or {}).get("config")
    if stored is None:
        raise FileNotFoundError(f"{folder} has no training.json, which says how the model was trained; copy the whole checkpoint")
    config = TokenizerConfig.from_dict(stored | {"data_root": None, "initial_checkpoint": None} | changes)
    check_structure(config, folder)
    return model.to(device), config, MelFrontEnd(mel).to(device)


class Tokenizer:
    """The family as the training loop sees it (`lib.training.loop.Family`).

    Args: config: a `TokenizerConfig`.  manifest: clips to use; None: prepared from the configuration.
    """

    name, monitor, Config = "tokenizer", "val/minus MAE", TokenizerConfig
    told = ("val/MAE",)
    memory_levers = ("lower batch_size or frames, set grad_checkpointing=True, "
                     "precision='bf16-mixed', or take a smaller variant")

    def __init__(self, config: TokenizerConfig, manifest: Manifest | None = None):
        self.config = config
        self.manifest = config.prepare() if manifest is None else manifest
        self.train_manifest = self.manifest.select(list(config.fit_splits))
        self.model, self.front_end = build(config), MelFrontEnd(config.mel)
        self.adversary = PatchDiscriminator(config.disc_ndf, config.disc_num_layers) if config.disc_weight else None
        self.train_set = dataset(config, self.train_manifest, train=True)
        self.probabilities: np.ndarray | None = None
        self._drawn: tuple[int, Tensor, Tensor] | None = None

    def batches(self, epoch: int, first_batch: int, skipped: Iterable[str] = ()):
        """This process's share of the batches of an epoch, with the optimiser step and a seed for each clip's masks."""
        c = self.config
        steps = epoch * -(-self.batches_per_epoch() // c.accumulation)
        loaded = batches(self.train_set, c.batch_size, epoch=epoch, seed=c.seed, shuffle=True, first_batch=first_batch, workers=c.workers,
                         skipped=skipped)
        for number, batch in enumerate(loaded, first_batch):
            yield batch | {"step": steps + number // c.accumulation,
                           "seeds": [randomness.derive(c.seed, "mask", epoch, clip) for clip in batch["clip_id"]]}

    def batches_per_epoch(self) -> int:
        """Number of training batches."""
        return count_batches(self.train_set, self.config.batch_size)

    def clips(self) -> int:
        """Number of training clips."""
        return len(self.train_manifest)

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        """Loss of a batch, that of all processes together.

        Returns:
            "loss" = reconstruct_weight "reconstruction" + mel_loss_weight "mel" + disc_weight "generator" + codebook_weight and ramp
            "quantizer" (those with a weight), beside "MAE" in dB, "entropy" of a token and "codebook entropy" in nats.
        """
        c, step = self.config, batch["step"]
        randomness.part(distributed.rank())
        mels = analyse(self.front_end, batch, self.train_set)
        masked = c.augment or c.augment_target
        given = mask_spectrogram(mels.levels, batch["seeds"], fill=self.front_end.config.floor, valid=mels.valid) if masked else mels.levels
        hidden = hidden_tokens(batch["seeds"], self.model.config.tokens, c.mask_ratio).to(given.device) if c.mask_ratio else None
        drawn, quantizer, info = model(given, hidden, mels.valid)
        prediction, target = (scaled(levels, self.front_end.config) for levels in (drawn, given if c.augment_target else mels.levels))
        parts = {"reconstruction": reconstruction_loss(prediction, target, mels.valid, c.rec_loss), "quantizer": quantizer}
        loss = c.reconstruct_weight * parts["reconstruction"] + c.codebook_weight * self.ramp(step) * quantizer
        if c.mel_loss_weight:
            parts["mel"] = multi_resolution_loss(prediction, target, mels.valid)
            loss = loss + c.mel_loss_weight * parts["mel"]
        if self.adversary is not None:
            padding = ~mels.valid[..., None]        # at the floor in both: it must not tell one from the other
            self._drawn = step, target.masked_fill(padding, -1), prediction.masked_fill(padding, -1)
            parts["generator"] = self._generator()
            loss = loss + c.disc_weight * parts["generator"]
            self._drawn = step, self._drawn[1].detach(), self._drawn[2].detach()
        with torch.no_grad():
            parts["MAE"] = distributed.mean((drawn - mels.levels).abs().mean(dim=2), mels.valid)
        found = info["quantized"]
        return {"loss": loss} | parts | {"entropy": found.persample_entropy, "codebook entropy": found.codebook_entropy}

    def ramp(self, step: int) -> float:
        """Factor of codebook_weight at an optimiser step: falls linearly from the multiplier to 1."""
        c = self.config
        left = max(0.0, 1 - step / c.codebook_rampup_steps) if c.codebook_rampup_steps else 0.0
        return 1 + (c.codebook_rampup_multiplier - 1) * left

    def _generator(self) -> Tensor:
        step, _, fake = self._drawn
        if step < self.config.disc_start:
            return fake.new_zeros(())
        with frozen(self.adversary):
            return generator_loss(self.adversary(fake), self.config.disc_loss)

    def adversary_losses(self) -> dict[str, Tensor]:
        """The discriminator's loss for the batch that `losses` saw last: "loss" = "real or fake" + "r1", which is 0 but for every
        disc_reg_freq-th step (its mean over steps is the penalty's). {} before disc_start."""
        c, (step, real, fake) = self.config, self._drawn
        if step < c.disc_start:
            return {}
        told = discriminator_loss(self.adversary(real), self.adversary(fake), c.disc_loss)
        penalty = real.new_zeros(())
        if c.disc_reg_freq and c.disc_reg_r1 and step % c.disc_reg_freq == 0:
            penalty = lazy_r1(gradient_penalty(self.adversary, real), c.disc_reg_r1, c.disc_reg_freq)
        return {"loss": told + penalty, "real or fake": told, "r1": penalty}

    def check_checkpoint(self, folder: Path) -> None:
        """See `check_structure`."""
        check_structure(self.config, folder)

    def compile(self) -> None:
        """torch.compile the networks in place (their parameters keep their names)."""
        self.model.encoder.compile()
        self.model.decoder.compile()

    def validate(self) -> dict[str, float]:
        """Metrics of the validation split under "val/...", empty where it has no clip or was trained on."""
        if "val" in self.config.fit_splits or "val" not in self.manifest.splits:
            return {}
        found, arrays = reconstruct(self.model, self.config, self.manifest.select("val"))
        self.probabilities = arrays["bit_probabilities"]
        usage = found["codebook"]
        return {"val/MAE": found["MAE"], "val/MSE": found["MSE"], "val/loss": found["loss"], "val/minus MAE": -found["MAE"],
                "val/bit entropy": usage["bit_entropy"], "val/used codes": usage["used_codes"],
                "val/worst bit balance": max(abs(share - 0.5) for share in usage["per_bit_balance"])}

    def save(self, folder: Path) -> Path:
        """Write the model into `folder`: config.json with structure and front end, model.safetensors, training.json and, once there was a
        validation, how often each bit is 1 (for arithmetic coding)."""
        tokenizer_files.write_model(folder, self.model, self.front_end.config, self.probabilities)
        write_json(folder / "training.json", {"family": self.name, "config": self.config.to_dict()})
        return folder


def dataset(config: TokenizerConfig, part: Manifest, train: bool = False) -> ClipDataset:
    """Clips of a manifest as windows of the front end's length: in training anywhere in the clip, otherwise in its middle."""
    mel = config.mel
    return ClipDataset(part, sample_rate=mel.sample_rate, seconds=mel.seconds, train=train, seed=config.seed, cache_bytes=CACHE_BYTES,
                       centred=True)


def analyse(front_end: MelFrontEnd, batch: dict, clips: ClipDataset | None = None) -> Mels:
    """Mel levels of a batch of `dataset`; clips that could not be read are padding only.

    Args: clips: where the batch comes from: on a CPU, levels of clips that are used whole are then made once in this process.
    """
    lengths = torch.tensor([round(seconds * front_end.config.sample_rate) for seconds in batch["duration"]])
    places = [None if failed or clips is None else clips.place(row) for row, failed in zip(batch["row"], batch["failed"])]
    if None in places or batch["waveform"].device.type != "cpu":
        return front_end(batch["waveform"], lengths)
    found, there = [], shared_cache(front_end.config, clips.manifest.root, CACHE_BYTES)
    for place, waveform, length in zip(places, batch["waveform"], lengths):
        if place not in there:      # alone: the same bits whichever clips come together
            one = front_end(waveform[None], length[None])
            there.keep(place, one, one.levels.nbytes)
        found.append(there.get(place) or one)
    return Mels(*map(torch.cat, zip(*found)))


def scaled(levels: Tensor, mel: MelConfig) -> Tensor:
    """dB within the front end's range to -1 .. 1 (levels / 40 + 1 for -80 .. 0)."""
    low, high = mel.clamp_range
    return (levels - low) * (2 / (high - low)) - 1


def hidden_tokens(seeds: Iterable[int], count: int, ratio: float) -> Tensor:
    """Which of `count` tokens masked pre-training hides: (clips, count) bool, round(ratio * count) of each clip, drawn by its seed."""
    hidden = torch.zeros(len(seeds := list(seeds)), count, dtype=torch.bool)
    for row, seed in zip(hidden, seeds):
        row[torch.from_numpy(randomness.generator(seed, "hidden tokens").permutation(count)[:round(ratio * count)])] = True
    return hidden


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within it the network's parameters get no gradients; what passes through it does."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in network.parameters():
            parameter.requires_grad_(True)


def analysed(config: TokenizerConfig, part: Manifest | list, device: torch.device | str = "cpu") -> Iterator[tuple[dict, Mels]]:
    """Batches of a split and their levels, without augmentation; frames of clips that could not be read are not valid.

    Args: part: the clips, or a list of what this gave for them, which is used again: several models are scored on one analysis.
    """
    if isinstance(part, list):
        yield from ((batch, Mels(*(x.to(device) for x in mels))) for batch, mels in part)
        return
    front_end = MelFrontEnd(config.mel).to(device)
    clips = dataset(config, part)
    for batch in batches(clips, config.batch_size, workers=config.workers):
        batch["waveform"] = batch["waveform"].to(device)
        yield batch, analyse(front_end, batch, clips)


class _Errors:
    """Absolute and squared error of every clip, over its valid frames, in the order of the manifest whatever the number of processes."""

    def __init__(self):
        self.rows, self.sums = [], []

    def add(self, batch: dict, mels: Mels, drawn: Tensor) -> None:
        difference = (drawn - mels.levels).double() * mels.valid[..., None]
        sums = torch.stack([difference.abs().sum((1, 2)), difference.square().sum((1, 2)), mels.valid.sum(1) * difference.shape[2]], dim=1)
        self.rows += gather_list(batch["row"])
        self.sums.append(distributed.gather(sums).cpu())

    def results(self, config: TokenizerConfig) -> tuple[dict, dict[str, np.ndarray]]:
        absolute, squared, count = torch.cat(self.sums).T
        heard = count > 0
        if not heard.any():
            raise ValueError("no clip of this split could be read; check it with python -m lib.data check")
        low, high = config.mel.clamp_range
        mae, mse = float(absolute.sum() / count.sum()), float(squared.sum() / count.sum())
        scale = 2 / (high - low)
        whole = {"MAE": mae, "MSE": mse, "loss": mae * scale if config.rec_loss == "l1" else mse * scale ** 2, "clips": int(heard.sum()),
                 "frames": int(count.sum()) // config.mel.mels, "left out": int((~heard).sum())}
        clips = {"row": np.array(self.rows)[heard.numpy()], "MAE": (absolute / count)[heard].numpy(),
                 "MSE": (squared / count)[heard].numpy(), "frames": (count[heard] / config.mel.mels).numpy().astype(int)}
        return whole, clips


@torch.inference_mode()
def reconstruct(model: AudioBSQModel, config: TokenizerConfig, part: Manifest | list, keep: int = 0, skip_quantize: bool = False
                ) -> tuple[dict, dict[str, np.ndarray]]:
    """How well a model draws the clips of a split again.

    Args:
        part: the clips, or what `analysed` gave for them.  keep: so many of the first ones are returned to be seen and heard.
        skip_quantize: the decoder sees the vectors before quantization: what the bits cost. There are no codebook statistics then.
    Returns:
        metrics: "MAE" (dB) and "MSE" (dB^2) over all values of valid frames of all processes, "loss" the same as the reconstruction
            loss (scaled levels), "clips", "frames", "left out"; "codebook": as `CodebookStatistics.results`, of tokens with sound.
        arrays: one value a clip in the manifest's order, "row", "MAE", "MSE", "frames"; "bit_probabilities" as token files take
            them; of the kept clips "levels" and "drawn" (keep, T, F), "peak" (keep,), "valid" (keep, T).
    """
    model.eval()
    errors, usage = _Errors(), CodebookStatistics(model.embed_dim, min(9, model.embed_dim))
    counts, kept = tokenizer_files.BitCounts(model), []
    for batch, mels in analysed(config, part, next(model.parameters()).device):
        drawn, _, info = model(mels.levels, valid=mels.valid, skip_quantize=skip_quantize)
        errors.add(batch, mels, drawn)
        if not skip_quantize:
            bits, real = tokenizer_files.bits_of(model, info), valid_tokens(mels.valid, model.config.grids(drawn.shape[1]))
            usage.update(bits, real)
            # what files hold: windows are filled up with padding, which is coded too; a stream has none
            counts.update(bits, real if model.config.causal else mels.valid.any(1)[:, None].expand_as(real))
        if len(kept) < keep:
            kept += [one for one in zip(*(x.cpu().numpy() for x in (mels.levels, drawn, mels.peak, mels.valid)))][:keep - len(kept)]
    metrics, arrays = errors.results(config)
    if not skip_quantize:
        metrics["codebook"] = usage.reduce().results()
        arrays["bit_probabilities"] = counts.probabilities()
    if keep:
        arrays |= {name: np.stack(values) for name, values in zip(("levels", "drawn", "peak", "valid"), zip(*kept))}
    return metrics, arrays


@torch.inference_mode()
def predict_mean(config: TokenizerConfig, train: Manifest | list, part: Manifest | list) -> tuple[dict, dict[str, np.ndarray]]:
    """What a model is compared with that knows only the mean level of each band over the training clips: metrics and arrays as
    `reconstruct` without those of the codebook, and "mean" (F,) in dB."""
    total, count = 0.0, 0
    steps = len(train) if isinstance(train, list) else -(-len(train) // config.batch_size)
    for _, mels in track(analysed(config, train), steps, "mean levels"):
        total = total + mels.levels[mels.valid].double().sum(0)
        count += int(mels.valid.sum())
    if not count:
        raise ValueError("no training clip could be read; check the data set with python -m lib.data check")
    whole = distributed.average(torch.cat([total, torch.tensor([count], dtype=torch.float64)]))
    mean, errors = (whole[:-1] / whole[-1]).float(), _Errors()
    for batch, mels in analysed(config, part):
        errors.add(batch, mels, mean.expand_as(mels.levels))
    metrics, arrays = errors.results(config)
    return metrics, arrays | {"mean": mean.numpy()}


@torch.inference_mode()
def tokens(model: AudioBSQModel, config: TokenizerConfig, part: Manifest) -> dict[str, np.ndarray]:
    """Tokens of the clips of a split that can be read: "bits" (n, N, L) bool, "valid" (n, N) bool, "peak" (n,) dB, "row" (n,)."""
    model.eval()
    found = {"bits": [], "valid": [], "peak": [], "row": []}
    for batch, mels in analysed(config, part, next(model.parameters()).device):
        _, _, info = model.encode(mels.levels, valid=mels.valid)
        good = mels.valid.any(1)
        for name, values in (("bits", tokenizer_files.bits_of(model, info)), ("peak", mels.peak),
                             ("valid", valid_tokens(mels.valid, model.config.grids(mels.levels.shape[1])))):
            found[name].append(distributed.gather(values[good]).cpu().numpy())
        found["row"].append(np.array(gather_list([row for row, heard in zip(batch["row"], good.tolist()) if heard]), dtype=int))
    return {name: np.concatenate(values) for name, values in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.families.tokenizer encode | decode`; returns the exit status: 0, 1 where a file failed."""
    parser = argparse.ArgumentParser(prog="python -m lib.families.tokenizer")
    verbs = parser.add_subparsers(dest="verb", required=True)
    encode = verbs.add_parser("encode", help="sounds to token files (.tok)")
    encode.add_argument("files", nargs="+", metavar="FILE_OR_FOLDER", help="sounds, or folders of them")
    encode.add_argument("--coding", choices=("packed", "arithmetic"), default="packed",
                        help="arithmetic: smaller, with the model's statistics")
    encode.add_argument("--stream", action="store_true", help="one sound of any length in constant memory (causal models)")
    decode = verbs.add_parser("decode", help="token files to sounds (.wav)")
    decode.add_argument("files", nargs="+", metavar="FILE_OR_FOLDER", help="token files, or folders of them")
    decode.add_argument("--vocoder", help="folder of a vocoder trained on the same mel levels; without it: Griffin-Lim")
    for verb in (encode, decode):
        verb.add_argument("--checkpoint", required=True, help="folder of a trained model (notebook 50)")
        verb.add_argument("--out", required=True, help="folder for the results")
        verb.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; files are the same to the bit on one kind of device only")
    options = parser.parse_args(arguments)
    try:
        codec = tokenizer_files.Codec.from_pretrained(options.checkpoint, options.device, getattr(options, "vocoder", None))
        if options.verb == "encode":
            return tokenizer_files.encode_files(codec, options.files, options.out, options.coding, options.stream)
        return tokenizer_files.decode_files(codec, options.files, options.out)
    except (ValueError, OSError, RuntimeError) as error:    # messages of ours say what to do; a traceback would hide them
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
