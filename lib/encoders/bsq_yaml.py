"""The original project's yaml files of audio tokenizers, read as parameters of the workbook.

Sections: model.params (with audioconfig and daudioconfig), loss.params, data (with train and val), optimizer, evaluation, wandb. Names are
kept but for those in RENAMED; what the workbook has no use for (IGNORED) is named, what it does not know is an error, and so are values
that contradict one another: n_mels against input_size, target_length against input_length.
"""
from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from lib.files import user_path
from lib.glossary import ParameterError, load_yaml, unknown

RENAMED = {"input_size": "n_mels", "input_length": "frames", "hop_length": "hop", "target_length": "frames", "dataset_type": "dataset",
           "num_workers": "workers"}
AUDIO = ("input_size", "input_length", "patch_size", "time_patch_size", "freq_patch_size", "width", "layers", "heads", "mlp_ratio",
         "drop_rate", "attn_drop_rate", "drop_path_rate", "ls_init_value", "ln_pre", "ln_post", "use_conv_module", "conv_kernel_size", "mask_type",
         "mask_block_size", "grad_checkpointing")
DECODER = {"width": "decoder_width", "layers": "decoder_layers", "heads": "decoder_heads"}
KNOWN = {
    "model": ("grad_checkpointing",),
    "model.params": ("embed_dim", "embed_group_size", "l2_norm", "post_q_l2_norm", "persample_entropy_compute", "cb_entropy_compute",
                     "beta", "gamma0", "gamma", "zeta", "inv_temperature", "clamp_range", "grad_checkpointing"),
    "model.params.audioconfig": AUDIO, "model.params.daudioconfig": AUDIO,
    "loss.params": ("disc_loss", "disc_start", "disc_weight", "disc_reg_freq", "disc_reg_r1", "disc_num_layers", "disc_ndf",
                    "codebook_weight", "codebook_rampup_multiplier", "codebook_rampup_steps", "reconstruct_weight"),
    "data": ("dataset_type", "sample_rate", "n_mels", "n_fft", "hop_length", "target_length", "batch_size", "num_workers", "clamp_range"),
    "optimizer.params": ("weight_decay", "betas"),
}
IGNORED = {
    "model": ("target",), "model.params": ("logit_laplace", "selective_checkpointing", "ckpt_path", "ignore_keys"), "loss": ("target",),
    "loss.params": ("disc_type", "disc_in_channels", "perceptual_weight", "use_adaptive_disc_weight"), "data.train": ("target",),
    "data.val": ("target",), "data.train.params": ("normalize",), "data.val.params": ("normalize", "augment"), "optimizer": ("target",),
    "optimizer.params": ("eps",), "evaluation": ("compute_mse", "compute_mae"), "wandb": ("project", "run"),
}
# what would change the result if it were dropped: the one value that the workbook can do
FIXED = {"logit_laplace": (False, None), "perceptual_weight": (0, None), "use_adaptive_disc_weight": (False, None), "ckpt_path": (None, ""),
         "disc_in_channels": (1, None), "eps": (1e-8, None)}
SPECIAL = ("optimizer", "optimizer.lr_scheduler_config", "data.train.params", "data.val.params")
SCHEDULE = ("warmup_iters", "warmup_steps", "min_lr_multiplier", "warmup_multiplier", "multiplier_min", "target", "params")
DATASETS = {"librispeech": "librispeech", "commonvoice": "commonvoice", "common_voice": "commonvoice", "folder": "folder",
            "audiofolder": "folder", "audio_folder": "folder", "simple": "folder", "generic": "folder"}
CLIPS = {"librispeech": 28539}      # of train-clean-100, which steps are counted in
WARMUP_STEPS, WARMUP_START, FLOOR = 5000, 0.1, 0.5      # of the original's multiplier of the learning rate


def from_yaml(path: str | Path, *, clips: int | None = None, processes: int = 1) -> dict[str, object]:
    """Parameters of a `TokenizerConfig` that a yaml file of the original project stands for.

    Args:
        path: the file.
        clips: training clips, which turn max_iter, in steps, into epochs; None: known for LibriSpeech, otherwise epochs stay as they are
            and a warning says so.
        processes: that train together: the file's batch_size is that of each, and its base_lr is multiplied by both. The dictionary has the
            batch of all of them, and `devices`.
    Returns:
        names and values, for `TokenizerConfig.from_dict` or a profile.
    Raises:
        ParameterError: naming the file, and the key that is unknown, contradicts another one or asks for what there is not.
    """
    path = user_path(path)
    document = load_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(document, Mapping) or not isinstance(document.get("model"), Mapping):
        raise ParameterError(f"{path}: expected the sections model, loss, data and optimizer of an audio tokenizer")
    values: dict[str, object] = {"variant": "standard"}
    origin: dict[str, str] = {}

    def put(name: str, value: object, where: str) -> None:
        if name in origin and values[name] != value:
            raise ParameterError(f"{path}: {where} is {value}, but {origin[name]} is {values[name]}; both are the parameter "
                                 f"{name}, write one of them")
        values[name], origin[name] = value, where

    unused, optimizer = [], {}
    for where, name, value in _leaves(document):
        if where in SPECIAL and name not in IGNORED.get(where, ()):
            _special(path, where, name, value, put, optimizer)
        elif name in IGNORED.get(where, ()):
            if name in FIXED and value not in FIXED[name]:
                raise ParameterError(f"{path}: {where}.{name} is {value}; only {FIXED[name][0]} is possible here, leave it out")
            unused.append(f"{where}.{name}")
        elif name not in KNOWN.get(where, ()):
            raise unknown(f"{where}.{name}" if where else name,
                          [f"{place}.{key}" for place, keys in KNOWN.items() for key in keys], str(path))
        elif where.endswith("daudioconfig"):
            theirs = document["model"]["params"].get("audioconfig", {}).get(name)
            if name in DECODER:
                put(DECODER[name], value, f"{where}.{name}")
            elif name != "grad_checkpointing" and value != theirs:
                raise ParameterError(f"{path}: {where}.{name} is {value}, in audioconfig it is {theirs}; a decoder may "
                                     f"differ in {', '.join(DECODER)}")
        elif name == "dataset_type":
            if str(value).lower() not in DATASETS:
                raise ParameterError(f"{path}: {where}.{name} is {value!r}; known are {', '.join(DATASETS)}")
            put("dataset", DATASETS[str(value).lower()], f"{where}.{name}")
        else:
            value = None if name == "mask_block_size" and value == -1 else value        # how the original writes that there is none
            put(RENAMED.get(name, name), value, f"{where}.{name}")
    if unused:
        warnings.warn(f"{path}: not used here: {', '.join(unused)}", stacklevel=2)
    if processes > 1:
        values["batch_size"], values["devices"] = int(values.get("batch_size", 32)) * processes, processes
    return values | _optimisation(path, values, optimizer, clips)


def _leaves(document: Mapping, where: str = "") -> Iterator[tuple[str, str, object]]:
    """(section, name, value) of every entry that is no section itself."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}.{name}".lstrip("."))
        elif value is not None or name != "daudioconfig":
            yield where, str(name), value


def _special(path: Path, where: str, name: str, value: object, put, optimizer: dict) -> None:
    """Entries that are no parameter of the same meaning."""
    if where.startswith("optimizer"):
        known = ("base_lr", "max_iter", "disable_amp", "use_bf16") if where == "optimizer" else SCHEDULE
        if name not in known:
            raise unknown(f"{where}.{name}", [f"{where}.{key}" for key in known], str(path))
        optimizer[name] = value
    elif name == "root":
        put("data_root", _root(str(value), where, path), f"{where}.root")
    elif name == "augment":
        put("augment", value, f"{where}.augment")
    elif name != "split" and name not in ("sample_rate", "n_mels", "n_fft", "hop_length", "target_length", "clamp_range"):
        raise unknown(f"{where}.{name}", [f"{where}.{key}" for key in ("root", "split", "augment")], str(path))
    elif name != "split":
        put(RENAMED.get(name, name), value, f"{where}.{name}")


def _root(text: str, where: str, path: Path) -> str:
    """A data set's folder: my_audio/train and my_audio/val are both parts of my_audio."""
    root = Path(text)
    return str(root.parent if root.name in ("train", "val", "valid") else root)


def _optimisation(path: Path, values: Mapping, optimizer: Mapping, clips: int | None) -> dict[str, object]:
    """Learning rate, precision and length of a run."""
    batch, found = int(values.get("batch_size", 32)), {}
    if "base_lr" in optimizer:
        rate = float(optimizer["base_lr"]) * batch
        found |= {"learning_rate": rate, "start_learning_rate": WARMUP_START * rate, "floor_learning_rate": FLOOR * rate}
    if "use_bf16" in optimizer or "disable_amp" in optimizer:
        found["precision"] = "32-true" if optimizer.get("disable_amp") else "bf16-mixed" if optimizer.get("use_bf16") else "16-mixed"
    clips = CLIPS.get(values.get("dataset")) if clips is None else clips
    if "max_iter" in optimizer and clips:
        steps = max(1, clips // batch)
        epochs = float(optimizer["max_iter"]) / steps
        warmup = min(float(optimizer.get("warmup_iters", optimizer.get("warmup_steps", WARMUP_STEPS))) / steps, epochs)
        found |= {"epochs": max(1, round(epochs)), "warmup_epochs": round(warmup, 6), "decay_epochs": round(epochs - warmup, 6)}
    elif "max_iter" in optimizer:
        warnings.warn(f"{path}: optimizer.max_iter is in steps; give the number of training clips (clips=) to turn it into epochs",
                      stacklevel=3)
    return found
