"""Files of the original T3-AV project, and whose word counts when a run starts from one.

A file is a plain dict of tensors, numbers and texts: `epoch`, `model_state_dict`, `optimizer_state_dict`, `scheduler_state_dict`,
`args` as in the original, and ours: `stage`, `format_version`, `versions`, `label_map`. It is written under a temporary name,
flushed to disk and renamed. Whatever is wrong with a file is a ValueError that names it and the entry. Parameters of another
model (the original's own names) are refused by `load_into`, never skipped.

An option is what was asked for, else what the file was made with, else the default (`resolve`). Options fall into three kinds:
SHAPE_CHANGING ones cannot differ from the file; MEANING_CHANGING ones leave all shapes as they are, so that loading would not
notice, and may differ only when named in `allow_config_change`; all others are free.
"""
from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.files import read_json, user_path, write_json

FORMAT_VERSION = 1
NAMES = {"mae": "t3_av_stage1", "contrastive": "t3_av_stage2", "finetune": "t3_av_finetune"}
CONFIGS = {"mae": "stage1_config.json", "contrastive": "stage2_config.json", "finetune": "finetune_config.json"}
SHAPE_CHANGING = ("vit_size", "image_size", "patch_size", "num_frames", "bb_layers", "dec_layers", "contrastive_dim", "proj_hidden_dim",
                  "clf_hidden_dim", "classes")
# vit_model_name stands here although it may change shapes: one model has a hub id and a folder on each machine, so there must
# be a way to say that two names mean the same; where they do not, `load_into` stops at the first shape
MEANING_CHANGING = ("vit_model_name", "pixel_mean", "pixel_std", "bb_heads", "dec_heads", "sample_rate", "n_mels", "n_fft", "hop", "audio_duration",
                    "positions", "normalize_patches", "masking", "pooling")
# parts of the model that alone have to do with an option: where none of them is taken from the file, neither is its word on it
OPTION_PARTS = {"dec_layers": ("decoders",), "dec_heads": ("decoders",), "normalize_patches": ("decoders",),
                "masking": ("decoders",), "contrastive_dim": ("heads",), "proj_hidden_dim": ("heads",),
                "clf_hidden_dim": ("classifier",), "classes": ("classifier",), "pooling": ("heads", "classifier")}
PARTS = ("encoders", "backbone", "decoders", "heads", "classifier")
ENTRIES = {"epoch": int, "model_state_dict": dict, "args": dict, "label_map": list, "optimizer_state_dict": dict,
           "scheduler_state_dict": dict, "format_version": int}
REQUIRED = ("epoch", "model_state_dict")
ALIASES = {"contrastive_embed_dim": "contrastive_dim", "proj_hidden_dim_contrastive": "proj_hidden_dim", "lr": "learning_rate",
           "norm_pix_loss": "normalize_patches", "hop_length": "hop", "masking_place": "masking", "num_classes": "classes"}


def export(path: str | Path, stage: str, epoch: int, model: Mapping[str, Tensor], args: Mapping, *,
           optimizer: Mapping | None = None, scheduler: Mapping | None = None, label_map: Sequence[str] | None = None,
           best: bool = False, **extras) -> Path:
    """Write a checkpoint in the original's layout; beside it, in a folder, the options as stage1_config.json and so on.

    Args:
        path: a folder, where the file gets the original's name (`t3_av_stage1_epoch_3.pt`, with `best`
            `t3_av_finetune_best_model.pt`), or a file ending in .pt, which is replaced.
        stage: "mae", "contrastive" or "finetune".  epoch: epochs done, from 0.
        model: state dict; prefixes of wrappers are removed.  optimizer, scheduler: state dicts.
        args: every option of the run by name, numbers, texts, lists.  label_map: the classes in the order of the scores.
        extras: further entries (val_accuracy, train_accuracy, scaler_state_dict, random_state, the source checkpoint, ...).
    Returns: the file.
    Raises: ValueError: another stage; an entry that `torch.load(weights_only=True)` would refuse, naming it.
    """
    _known_stage(stage)
    path = user_path(path)
    if path.is_dir() or path.suffix != ".pt":
        write_json(path / CONFIGS[stage], _plain(dict(args), "args"))
        path /= f"{NAMES[stage]}_best_model.pt" if best else f"{NAMES[stage]}_epoch_{epoch}.pt"
    content = {"epoch": epoch, "model_state_dict": _stripped(model, path), "optimizer_state_dict": optimizer,
               "scheduler_state_dict": scheduler, "args": dict(args), "stage": stage, "format_version": FORMAT_VERSION,
               "versions": {"torch": torch.__version__, "transformers": version("transformers")},
               "label_map": None if label_map is None else list(label_map), **extras}
    content = {name: _plain(value, name) for name, value in content.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):     # of killed writers: one process writes a run's files
        stale.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read(path: str | Path, stages: Collection[str] = tuple(NAMES), option: str = "checkpoint") -> dict:
    """The checked contents of a file of this project or of the original.

    Args:
        path: the file; tensors come to the CPU.  stages: those that the file may be of.
        option: the parameter that names the file, for messages.
    Returns: the dict, `model_state_dict` without prefixes of wrappers; always with "args" ({} where the file has none), "stage"
        (from the file's name where it does not say, otherwise None), "label_map" (maybe None) and "file" (its path as text).
    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a damaged or foreign file, an entry that is missing or wrong, a stage that is not wanted.
    """
    path = user_path(path)
    where = f"{option} {path}"
    if path.is_dir():
        found = sorted(p.name for p in path.glob("t3_av_*.pt")) or ["none is there"]
        raise ValueError(f"{where} is a folder; give one of its files: {', '.join(found)}")
    if not path.is_file():
        raise FileNotFoundError(f"{where} does not exist; give a file that a stage has written, such as t3_av_stage1_epoch_1.pt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:              # torch has several for a broken file; the cause stays attached
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = next((line for line in lines if "unpickler" in line.lower()), lines[0] if lines else "")
        raise ValueError(f"{where} cannot be read: it is damaged, cut off, or holds other things than tensors, numbers and texts "
                         f"({type(error).__name__}: {why[:200]}); copy it again, or save it again as a plain dict") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds a {type(content).__name__}; expected a dict with {', '.join(ENTRIES)}")
    for entry, kind in ENTRIES.items():
        if content.get(entry) is None and entry in REQUIRED:
            raise ValueError(f"{where}: entry {entry!r} is missing; expected {', '.join(REQUIRED)}, as every stage writes them")
        if content.get(entry) is not None and not isinstance(content[entry], kind):
            raise ValueError(f"{where}: entry {entry!r} is a {type(content[entry]).__name__}, expected a {kind.__name__}")
    if (content.get("format_version") or 0) > FORMAT_VERSION:
        raise ValueError(f"{where} has format {content['format_version']}, known: up to {FORMAT_VERSION}; update the workbook")
    named = re.match(r"t3_av_(stage1|stage2|finetune)_", path.name)
    stage = content.get("stage") or (next(s for s, name in NAMES.items() if name == f"t3_av_{named[1]}") if named else None)
    if stage is not None:
        _known_stage(stage, f"{where}: ")
        if stage not in stages:
            raise ValueError(f"{where} is of stage {stage!r}; expected one of {', '.join(stages)}")
    return content | {"model_state_dict": _stripped(content["model_state_dict"], path), "args": content.get("args") or {},
                      "stage": stage, "label_map": content.get("label_map"), "file": str(path)}


def load_into(model: nn.Module, contents: Mapping, missing: Collection[str] = (), unused: Collection[str] = ()) -> str:
    """Copy a file's weights into a model: every entry of the file is used and every parameter is found, but for the groups named.

    A group is the start of names up to a dot: "classifier", "audio.head". Nothing is copied when anything is wrong.

    Args:
        model: maybe wrapped or compiled.  contents: from `read`.
        missing: groups of the model that the file has not (a fresh classifier): none of their entries may be in the file, all
            must be in the model.
        unused: groups that the file may have and that are not taken from it (decoders after stage 1); where the model has such a
            group it is to be named in `missing`, too.
    Returns: a line for the log.
    Raises: ValueError: naming the file and the first entry that is missing, unexpected or of another shape.
    """
    own = {strip(name): name for name in model.state_dict()}
    shapes = {strip(name): tuple(value.shape) for name, value in model.state_dict().items()}
    stored = {name: value for name, value in contents["model_state_dict"].items() if not _in(name, unused)}
    file, fresh = contents["file"], {name for name in own if _in(name, missing)}
    idle = [group for group in missing if not any(_in(name, [group]) for name in own)]
    if idle:
        raise ValueError(f"{file}: group {idle[0]!r} is to be missing, but the model has no such part")
    problems = [(f"{len(names)} {what}", names) for what, names in (
        ("parameters of the model are missing in it", sorted(own.keys() - fresh - stored.keys())),
        ("of its entries are unexpected", sorted((stored.keys() - own.keys()) | (stored.keys() & fresh)))) if names]
    differ = [name for name in own if name in stored and name not in fresh and tuple(stored[name].shape) != shapes[name]]
    if differ:
        problems.append((f"{len(differ)} shapes differ", [f"{name} (file {tuple(stored[name].shape)}, model {shapes[name]})"
                                                          for name in differ]))
    if problems:
        said = "; ".join(f"{what}, first {', '.join(names[:3])}" for what, names in problems)
        raise ValueError(f"{file} does not fit the model: {said}. Use the options that it was made with and the stage it is for")
    model.load_state_dict({own[name]: stored[name] for name in own if name not in fresh}, strict=not fresh)
    left = len(contents["model_state_dict"]) - len(stored)
    return (f"{file}: {len(stored)} entries loaded" + (f", {left} not used ({', '.join(unused)})" if left else "")
            + (f"; new: {', '.join(missing)}" if missing else ""))


def resolve(explicit: Mapping, stored: Mapping | None, defaults: Mapping, *, file: str = "the checkpoint",
            shape_changing: Collection[str] = SHAPE_CHANGING, meaning_changing: Collection[str] = MEANING_CHANGING,
            allow_config_change: Collection[str] = (), unused: Collection[str] = (), aliases: Mapping[str, str] = ALIASES,
            same_stage: bool = True) -> tuple[dict, list[str]]:
    """The options of a run that starts from a file: the explicit value, else the stored one, else the default.

    Args:
        explicit: what a person asked for, and only that.  defaults: every option of this stage.
        stored: the file's "args", options that are none of this stage's being passed over; None: there is no file.
        file: for messages.  shape_changing, meaning_changing: options whose explicit value must be the stored one.
        allow_config_change: meaning-changing options that may differ all the same.
        unused: those of PARTS that are not taken from the file: what it says of their options (OPTION_PARTS) counts for nothing.
        aliases: other names of options, in all three.
        same_stage: False where the file is of an earlier stage, whose free options (its epochs, its rates) are not taken over.
    Returns: {option: value} with the keys of `defaults`, and lines for the log: what differs from the file.
    Raises: ValueError: an unknown option; two names of one option with two values; options that must not differ and do, each with
        both values, the file and what to do.
    """
    started, spelling = stored is not None, {aliases.get(name, name): name for name in defaults}
    explicit, stored, defaults = (_canonical(values, aliases, where) for values, where in (
        (explicit, "the explicit options"), (stored or {}, file), (defaults, "the defaults")))
    bound, allowed = {*shape_changing, *meaning_changing}, {aliases.get(name, name) for name in allow_config_change}
    for names, what, known in ((explicit, "option", defaults.keys()), (unused, "part", PARTS),
                               (allowed, "allow_config_change: option", set(meaning_changing) - set(shape_changing))):
        for name in names:
            if name not in known:
                raise ValueError(f"{what} {name!r} is not one of {', '.join(sorted(known))}")
    ignored = {name for name, parts in OPTION_PARTS.items() if set(parts) <= set(unused)}
    effective, lines, refused = {}, [], []
    for name, default in defaults.items():
        counts = name in stored and name not in ignored
        taken = counts and (same_stage or name in bound)
        value = effective[name] = explicit[name] if name in explicit else stored[name] if taken else default
        if not counts:
            if started and name in meaning_changing and name not in ignored:
                lines.append(f"{name}: {file} does not tell; {value!r} is used, and no check would notice if that is wrong")
        elif not _same(value, stored[name]):
            made = f"{file} was made with {stored[name]!r}"
            if name not in bound or name in allowed:
                lines.append(f"{name}: {value!r} is used, {made}" + (" (allowed)" if name in allowed else ""))
            elif name in shape_changing:
                refused.append(f"{name} is {value!r}, but {made}; it changes the shape of weights: leave {name} out")
            else:
                refused.append(f"{name} is {value!r}, but {made}; it changes what weights mean, which no shape shows: "
                               f"leave {name} out, or name it in allow_config_change")
    if refused:
        raise ValueError("; ".join(refused))
    return {spelling[name]: value for name, value in effective.items()}, lines


def check_labels(contents: Mapping, classes: Sequence[str]) -> None:
    """Stop where a file's classifier has other classes, or another order of them, than the data.

    Args: contents: from `read`; a file without label map is checked by its class count when it is loaded.  classes: of the data.
    Raises: ValueError: naming the file, both counts or the first class that differs.
    """
    stored, classes = contents["label_map"], list(classes)
    if stored is None or stored == classes:
        return
    place = next((i for i, (one, other) in enumerate(zip(stored, classes)) if one != other), None)
    what = (f"its classifier has {len(stored)} classes, the data has {len(classes)}" if len(stored) != len(classes)
            else f"class {place} of its classifier is {stored[place]!r}, of the data {classes[place]!r}")
    raise ValueError(f"{contents['file']}: {what}; use the data that it was trained with, or start with a new classifier")


def stage1_source(value: str | Path | None, option: str = "stage1_checkpoint") -> tuple[str, Path | None]:
    """What `stage1_checkpoint` is.

    Args: value: None or "" (nothing), a stage-1 file, or a folder with a plain ViT in the published layout.
    Returns: ("none", None), ("stage1", the file: `read` it with stages=("mae",)) or ("vit", the folder).
    Raises: FileNotFoundError: no such path.  ValueError: a folder without a ViT, saying what it holds.
    """
    if value is None or str(value) == "":
        return "none", None
    path = user_path(value)
    if path.is_file():
        return "stage1", path
    if not path.is_dir():
        raise FileNotFoundError(f"{option} {path} does not exist: give a stage-1 file, a folder with a ViT (config and weights), "
                                "or leave it empty")
    try:
        kind = (read_json(path / "config.json") or {}).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{option} {path}: config.json is damaged ({error}); copy it again") from error
    weights = [p for pattern in ("model*.safetensors", "pytorch_model*.bin") for p in path.glob(pattern)]
    if kind == "vit" and weights:
        return "vit", path
    files = sorted(p.name for p in path.glob("t3_av_stage1_*.pt"))
    holds = (f"stage-1 files, give one of them: {', '.join(files)}" if files else "a ViT without weights" if kind == "vit"
             else f"a model of type {kind!r}" if kind else "no config.json")
    raise ValueError(f"{option} {path} is a folder with {holds}; expected: a stage-1 file, or a folder with a published ViT")


def strip(name: str) -> str:
    """A parameter's name without what DistributedDataParallel and torch.compile add to it, wherever that stands."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _stripped(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    result = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{file}: entry {name!r} of model_state_dict is a {type(value).__name__}; expected tensors by name")
        if strip(name) in result:
            raise ValueError(f"{file}: two entries of model_state_dict are {strip(name)!r} without the prefixes of wrappers")
        result[strip(name)] = value
    return result


def _in(name: str, groups: Collection[str]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def _canonical(values: Mapping, aliases: Mapping[str, str], where: str) -> dict:
    result = {}
    for name, value in values.items():
        option = aliases.get(name, name)
        if option in result and not _same(result[option], value):
            raise ValueError(f"{where}: {option} is both {result[option]!r} and {value!r} ({name} is another name); give it once")
        result[option] = value
    return result


def _same(one: object, other: object) -> bool:
    """Equal, a list and a tuple of equal values being the same (files have no tuples)."""
    one, other = (list(value) if isinstance(value, tuple) else value for value in (one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _known_stage(stage: object, where: str = "") -> None:
    if not isinstance(stage, str) or stage not in NAMES:
        raise ValueError(f"{where}stage {stage!r} is not one of {', '.join(NAMES)}")


def _plain(value: object, entry: str) -> object:
    """What `torch.load(weights_only=True)` reads back: tensors on the CPU, numbers, texts, lists, tuples, dicts."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # a view would be saved with all that it is a view of
        return value.clone() if value.untyped_storage().nbytes() > value.numel() * value.element_size() else value
    kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    if value is None or kind:
        return kind and kind(value)                 # a subclass (numpy.float64, torch's version) would be refused on reading
    if isinstance(value, Mapping) and all(type(key) in (str, int) for key in value):
        return {key: _plain(item, f"{entry}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{entry}[{place}]") for place, item in enumerate(value))
    raise ValueError(f"{entry} is a {type(value).__name__}, which a checkpoint cannot hold; use tensors, numbers, texts, lists, "
                     "or dicts with names or whole numbers as keys")
