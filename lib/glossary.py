"""Every parameter of the workbook, once: its type, its range, its meaning.

A parameter name means the same thing in every notebook, profile and configuration class. `check` is what refuses an
unknown name, a wrong type or a value out of range, before a job is launched (no import of torch is needed) and again
when a typed configuration is built. To add a parameter, add a line here.
"""
from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

from lib.files import user_path


class ParameterError(ValueError):
    """A parameter is unknown, of the wrong type, out of range or names a folder that is not there."""


@dataclass(frozen=True)
class Parameter:
    """One entry of the glossary.

    Args:
        kind: int, float, bool, str, `list` (of `item`) or `Path` (a string as `lib.files.user_path` reads it; it must exist).
        meaning: one line for people, with the unit.
        low, high: inclusive bounds for numbers.
        choices: the allowed strings; a choice ending in ":N" allows any whole number there.
        optional: None is allowed and means what `meaning` says.
        joined: several choices may be given as one text, joined by "+".
        hub: the text is an existing path, or the id of a model on a hub (owner/name, modelscope:owner/name).
        local: the text may name a local file or folder, and is then read as a path; it may also be the name of something else.
    """

    kind: type
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False
    item: type = str
    local: bool = False
    joined: bool = False
    hub: bool = False

    def describe(self) -> str:
        """What a value may be, in words (for error messages and tables)."""
        text = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "an existing path",
                list: f"a list of {self.item.__name__}"}[self.kind]
        if self.choices:
            text = ("a list out of " if self.kind is list else "one of ") + ", ".join(self.choices)
            text += ", or several joined by +" if self.joined else ""
        elif math.isfinite(self.low) or math.isfinite(self.high):
            text += f" from {self.low:g}" if math.isfinite(self.low) else ""
            text += f" up to {self.high:g}" if math.isfinite(self.high) else ""
        return text + (" or None" if self.optional else "")

    def problem(self, value: object) -> str | None:
        """Why `value` cannot be used, or None when it can."""
        if value is None:
            return None if self.optional else f"must be {self.describe()}, got None"
        if self.kind is list:
            bad = not isinstance(value, (list, tuple)) or any(not _is(v, self.item) for v in value)
        else:
            bad = not _is(value, self.kind)
        if bad:
            return f"must be {self.describe()}, got {value!r} ({type(value).__name__})"
        numbers = [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, (int, float))]
        if any(not math.isfinite(v) or not self.low <= v <= self.high for v in numbers):
            return f"must be {self.describe()}, got {value!r}"
        chosen = value if isinstance(value, (list, tuple)) else value.split("+") if self.joined else [value]
        if self.choices and not all(any(_chosen(str(v), choice) for choice in self.choices) for v in chosen):
            return f"must be {self.describe()}, got {value!r}"
        return self._path_problem(value) if self.kind is Path or self.local else None

    def _path_problem(self, value: str | Path) -> str | None:
        try:
            path = user_path(value)
        except ValueError as error:
            return str(error)
        needed = self.kind is Path or self.hub and not re.fullmatch(r"(modelscope:)?[A-Za-z0-9][\w.-]*/[\w.-]+", str(value))
        if needed and not os.path.exists(path):
            return (f"{str(value)!r} does not exist; give an existing path" + (", or the id of a model on a hub" if self.hub else "")
                    + f" (looked for {path.absolute()})")
        return None

    def resolve(self, value: object) -> object:
        """A value without a `problem`, meaning the same in every working folder: a path that exists is made absolute (a text)."""
        if value is None or not (self.kind is Path or self.local):
            return value
        path = user_path(value)
        return str(path.absolute()) if os.path.exists(path) else value


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (str, Path) if kind is Path else kind)


def _chosen(value: str, choice: str) -> bool:
    return value.startswith(choice[:-1]) and value[len(choice) - 1:].isdigit() if choice.endswith(":N") else value == choice


PARAMETERS: dict[str, Parameter] = {
    # every notebook
    "device": Parameter(str, "where the model runs", choices=("auto", "cpu", "cuda", "cuda:N")),
    "devices": Parameter(int, "devices that train together (processes, on the CPU); batch_size is shared out to them", 1, 1024),
    "dataset": Parameter(str, "which data set, or a mixture such as clotho+audiocaps, whose first one gives val and test", joined=True,
                         choices=("soundscapes", "esc50", "folder", "clotho", "audiocaps", "wavcaps", "audioset", "triplets", "stclotho", "vggsound",
                                  "librispeech", "commonvoice", "digits")),
    "data_root": Parameter(Path, "folder of the data set; None: made or downloaded under the data folder", optional=True),
    "seed": Parameter(int, "seed of every random draw", 0, 2**31 - 1),
    "num_samples": Parameter(int, "use at most this many clips, shared over the splits; None: all", 1, optional=True),
    "threads": Parameter(int, "CPU threads of the computation", 1, 1024),
    "workers": Parameter(int, "processes that decode clips; 0: in the main process", 0, 256),
    "compile": Parameter(str, "torch.compile; auto: on CUDA devices of capability 7.0 and more", choices=("auto", "on", "off")),
    "precision": Parameter(str, "arithmetic of the networks", choices=("auto", "32-true", "bf16-mixed", "16-mixed")),
    "rendering": Parameter(str, "how soundscapes are written: one channel, four (FOA) in the open or in a room, or video with sound",
                           choices=("mono", "foa", "foa_room", "video")),
    "scene_seconds": Parameter(float, "length of a rendered soundscape in seconds", 3, 30),
    "clips_shown": Parameter(int, "clips that a notebook plays for each question", 1, 100),

    # optimisation, every family
    "epochs": Parameter(int, "passes over the training rows", 1, 100_000),
    "batch_size": Parameter(int, "rows in one batch", 2, 65_536),
    "accumulation": Parameter(int, "batches whose gradients make one optimiser step", 1, 4096),
    "learning_rate": Parameter(float, "peak learning rate", 0, 1),
    "start_learning_rate": Parameter(float, "learning rate before the warm-up", 0, 1),
    "floor_learning_rate": Parameter(float, "learning rate after the decay", 0, 1),
    "warmup_epochs": Parameter(float, "epochs of linear warm-up", 0, 100_000),
    "decay_epochs": Parameter(float, "epochs of cosine decay after the warm-up; None: no decay", 0, 100_000, optional=True),
    "weight_decay": Parameter(float, "decoupled weight decay of AdamW", 0, 10),
    "gradient_clip": Parameter(float, "largest gradient norm; None: no clipping", 1e-9, 1e9, optional=True),
    "betas": Parameter(list, "AdamW: decay of the averages of gradients and of their squares", 0, 1 - 1e-9, item=float),
    "ema_decay": Parameter(float, "validate and keep a moving average of the weights with this decay a step; None: the weights as they are", 0,
                           1 - 1e-9, optional=True),
    "checkpoint_steps": Parameter(int, "optimiser steps between checkpoints inside an epoch; None: at epoch ends only", 1, optional=True),
    "fit_splits": Parameter(list, "splits that are trained on", choices=("train", "val")),
    "selection": Parameter(str, "which checkpoint is kept: best on validation, or the last epoch's", choices=("best", "last")),
    "patience": Parameter(int, "epochs without a better validation score after which training stops; None: never", 1, optional=True),
    "bad_media_budget": Parameter(float, "share of the training clips that may fail to decode before the run stops", 0, 1),
    "loggers": Parameter(list, "logs besides CSV and TensorBoard, offline in a batch", choices=("wandb", "swanlab")),

    # retrieval
    "excluded_ids": Parameter(str, "FreeSound ids that WavCaps must not train on: a CSV file; none: leave nothing out; None: the published "
                              "list, beside the data", optional=True, local=True),
    "mixture_shares": Parameter(list, "share of an epoch for each data set of a mixture; []: every row once", 0, 1e9, item=float),
    "initial_checkpoint": Parameter(Path, "folder of a trained model that training starts from; None: as the weights below say", optional=True),
    "audio_encoder": Parameter(str, "audio tower: PaSST, or CLAP's (audio_weights)", choices=("passt", "clap")),
    "text_encoder": Parameter(str, "text tower: RoBERTa, or CLAP's (text_weights)", choices=("roberta", "clap")),
    "chunk_size": Parameter(int, "rows encoded at a time (gradient caching): less memory, the same gradients; None: the whole batch", 1,
                            optional=True),
    "teachers": Parameter(list, "second stage: folders of trained models whose estimates are the targets"),
    "teacher_weight": Parameter(float, "second stage: share of the estimated targets in the loss; the rest is the contrastive loss", 0, 1),
    "permute_captions": Parameter(bool, "control: train on the captions of other clips"),
    "control_epochs": Parameter(int, "epochs of the control that trains on the captions of other clips; 0: none", 0, 100_000),
    "extra_relevance": Parameter(Path, "CSV file of queries with all their relevant files (query, audio_filenames); None: none", optional=True),
    "predict_folder": Parameter(Path, "folder of audio files to compare with predict_queries; None: no prediction", optional=True),
    "predict_queries": Parameter(Path, "CSV file whose column caption holds the queries of a prediction", optional=True),
    "audio_size": Parameter(str, "size of the PaSST encoder", choices=("published", "small", "frames", "tiny")),
    "audio_weights": Parameter(str, "official PaSST state dict: a local file, or passt_s_p16_s16_128_ap468 (downloaded), None: from scratch; "
                               "or a CLAP: hub id or folder", optional=True, local=True),
    "clip_seconds": Parameter(float, "longest window of a clip in seconds; shorter clips are zero-padded", 0.5, 300),
    "segment_seconds": Parameter(float, "input length of the audio encoder in seconds; longer clips are cut into segments", 0.5, 60),
    "patchout_frequency": Parameter(float, "share of rows of patches dropped in training", 0, 0.99),
    "patchout_time": Parameter(float, "share of columns of patches dropped in training", 0, 0.99),
    "drop_path": Parameter(float, "stochastic depth of the audio encoder's last block", 0, 0.9),
    "time_masks": Parameter(int, "SpecAugment: masks along time", 0, 20),
    "time_mask": Parameter(float, "SpecAugment: widest time mask as a share of the clip", 0, 1),
    "frequency_masks": Parameter(int, "SpecAugment: masks along frequency", 0, 20),
    "frequency_mask": Parameter(float, "SpecAugment: widest frequency mask as a share of the bands", 0, 1),
    "text_size": Parameter(str, "size of the RoBERTa encoder", choices=("roberta-large", "roberta-base", "small", "mini", "tiny")),
    "text_weights": Parameter(str, "hub id or local folder of RoBERTa, None: from scratch; or of a CLAP", optional=True, local=True),
    "max_tokens": Parameter(int, "longest caption in tokens", 4, 512),
    "text_dropout": Parameter(float, "hidden and attention dropout of the text encoder", 0, 0.9),
    "embedding_dim": Parameter(int, "size of the common space; None: that of the towers, without projections (both of one CLAP)", 2, 16_384,
                               optional=True),
    "tau": Parameter(float, "temperature: similarities are divided by it", 1e-4, 100),
    "train_tau": Parameter(bool, "make the temperature a parameter"),
    "positives": Parameter(str, "which pairs of a batch belong together: of one clip, or of one set of labels", choices=("clip", "labels")),
    "loss_reduction": Parameter(str, "mean over positive pairs, or over rows first", choices=("pairs", "rows")),
    "every_caption": Parameter(bool, "an epoch has one row per caption; otherwise one per clip, with a caption drawn anew"),
    "gain_db": Parameter(float, "augmentation: random gain within +- this many dB", 0, 60),
    "shift": Parameter(bool, "augmentation: random circular shift in time (not for data with an order of events)"),
    "mix": Parameter(float, "augmentation: probability that a clip is mixed with another one of its batch", 0, 1),
    "checkpoint": Parameter(str, "a trained audio-text model: its folder, starter:retrieval, or a CLAP's id on a hub (modelscope:owner/name); None: the model "
                            "of notebook 10 in this report", optional=True, local=True, hub=True),
    # spatial-temporal
    "source": Parameter(str, "triplets: the data set whose clips are the events", choices=("soundscapes", "esc50", "folder", "clotho", "audiocaps")),
    "val_fold": Parameter(int, "triplets of esc50: the fold that is validation; None: a fifth of the sources of each class", 1, 5, optional=True),
    "space": Parameter(str, "triplets: plane waves in the open, or shoebox rooms", choices=("anechoic", "shoebox")),
    "event_seconds": Parameter(float, "triplets: longest event in seconds; two must fit into clip_seconds", 0.2, 30),
    "single_clips": Parameter(int, "triplets: clips of one event, over all splits; None: as many as triplets", 0, optional=True),
    "padding": Parameter(str, "how short clips are filled: silence, or repetitions, which make the order of events unknowable", choices=("zero", "repeat")),
    "events": Parameter(int, "events of a clip, and directions that the model predicts: 2: triplets; 1: single clips", 1, 2),
    "chunks": Parameter(int, "pieces of time that the temporal encoder sees", 2, 32),
    "temporal_encoder": Parameter(bool, "encode the order of the pieces; without it the triplet embedding is the joint one"),
    "temporal_dropout": Parameter(float, "dropout of the temporal encoder", 0, 0.9),
    "position_std": Parameter(float, "standard deviation of the temporal encoder's positions at the start", 0, 10),
    "intensity_vectors": Parameter(bool, "the spatial branch sees intensity vectors besides the four levels"),
    "order_blind": Parameter(bool, "control: features are averaged over time before anything sees them"),
    "arm": Parameter(str, "which model: the full one, an ablation, or the control that cannot know the order",
                     choices=("full", "no_temporal_encoder", "no_ts_loss", "no_temporal", "no_adversary", "no_intensity", "order_blind")),
    "loss_weights": Parameter(list, "the weights below as one list in the order doa, semantic, ts, modality; []: by their names", 0, 1e6, item=float),
    "weight_doa": Parameter(float, "weight of the direction loss", 0, 1e6),
    "weight_semantic": Parameter(float, "weight of the semantic contrast; the spatial-semantic one has 1 minus it", 0, 1),
    "weight_ts": Parameter(float, "weight of the three-way loss within triplets", 0, 1e6),
    "weight_modality": Parameter(float, "weight of the modality classifier's loss, behind gradient reversal", 0, 1e6),
    "weight_triplet": Parameter(float, "weight of a contrast over the batch for the triplet embedding, too (original: 0)", 0, 1e6),
    "semantic_start_epoch": Parameter(int, "epoch (from 0) at which the semantic contrast enters", 0, 100_000),
    "semantic_schedule": Parameter(str, "how it enters: at once, or over as many epochs again", choices=("step", "ramp")),
    "ts_ramp_epochs": Parameter(int, "epochs over which the three-way loss reaches its weight", 1, 100_000),
    "reversal_strength": Parameter(float, "factor of the reversed gradient", 0, 100),
    "reversal_warmup_epochs": Parameter(int, "epochs over which the reversal reaches its strength; 0: constant", 0, 100_000),
    "classifier_hidden": Parameter(list, "widths of the modality classifier's hidden layers; []: D/2, D/4, D/8, D/16", 1, 65_536, item=int),
    "classifier_unit": Parameter(bool, "the modality classifier sees embeddings at one length (original: as they are)"),
    "ordered_directions": Parameter(bool, "the direction loss asks for the order of events, too; otherwise the best assignment counts"),
    "direction_from": Parameter(str, "embedding that directions are predicted from (SALM: spatial; the original's code: triplet)", choices=("spatial", "triplet")),
    "raw_temperature": Parameter(bool, "reproduce the reference: similarities are multiplied by the learned logarithm itself"),
    "rotation": Parameter(str, "augmentation: the 16 exact turns and reflections, or any turn about the vertical axis; words turn along",
                          choices=("none", "symmetries", "free")),
    "store_features": Parameter(bool, "compute features once and keep them on disk (small networks), instead of in every epoch"),
    "single_epochs": Parameter(int, "epochs on clips of one event before the triplets (plays the part of published weights); 0: none", 0, 100_000),
    "single_learning_rate": Parameter(float, "peak learning rate of the training on clips of one event", 0, 1),
    "spatial_checkpoint": Parameter(Path, "a trained model of notebook 31, or starter:spatial; None: the one in this report", optional=True),
    # audio-visual model
    "csv_path": Parameter(Path, "vggsound.csv (no header: id, start, label, split); None: found in data_root", optional=True),
    "video_dir": Parameter(Path, "folder of the clips <id>_<start, 6 digits>.mp4; None: found in data_root", optional=True),
    "subset": Parameter(str, "one of the original's subsets of VGGSound; None: all", choices=("subset_10", "subset_40", "10_classes"), optional=True),
    "val_share": Parameter(float, "share of the training videos that becomes validation", 0, 0.9),
    "split_seed": Parameter(int, "seed of that choice, the same for all stages", 0, 2**63 - 1),
    "label_share": Parameter(float, "share of the labelled training clips of each class that is used", 0, 1),
    "stage": Parameter(str, "masked autoencoding, contrastive alignment, or classification", choices=("mae", "contrastive", "finetune")),
    "stage1_checkpoint": Parameter(Path, "where stage 2 starts: a stage-1 checkpoint or file, or a folder of a plain ViT; None: fresh", optional=True),
    "pretrained_checkpoint": Parameter(Path, "where stage 3 starts: a checkpoint or file of stage 1 or 2; None: fresh", optional=True),
    "allow_config_change": Parameter(list, "options that may contradict the checkpoint although they change what its weights mean"),
    "vit_model_name": Parameter(str, "published ViT that both encoders start from, with vit_size published: hub id or folder; None: the "
                                "checkpoint's (google/vit-base-patch16-224-in21k)", optional=True, local=True, hub=True),
    "pixel_mean": Parameter(float, "mean of the frames in 0..1, which the video ViT sees standardised; None: the checkpoint's (0.5)", 0, 1, optional=True),
    "pixel_std": Parameter(float, "their standard deviation; None: the checkpoint's (0.5)", 1e-3, 10, optional=True),
    "token_share": Parameter(float, "share of a clip's patches that stages 2 and 3 encode while they train, drawn anew in every epoch", 0.01, 1),
    "crop_area": Parameter(float, "share of the picture's area that random crops of training clips keep at least, half of them mirrored; 1: no crops",
                           0.01, 1),
    "vit_size": Parameter(str, "size of the two ViTs; None: the checkpoint's (published)", choices=("published", "small", "tiny"), optional=True),
    "image_size": Parameter(int, "pixels of a side of pictures and frames; None: the checkpoint's (224)", 8, 4096, optional=True),
    "patch_size": Parameter(int, "side of a patch in pixels, or in frames and mel bands; None: the checkpoint's (16)", 1, 256, optional=True),
    "num_frames": Parameter(int, "frames of a clip; None: the checkpoint's (16)", 1, 1024, optional=True),
    "bb_layers": Parameter(int, "layers of the shared backbone; None: the checkpoint's (6)", 1, 100, optional=True),
    "bb_heads": Parameter(int, "heads of the shared backbone; None: the checkpoint's (12)", 1, 100, optional=True),
    "dec_layers": Parameter(int, "layers of each decoder; None: the checkpoint's (2)", 1, 100, optional=True),
    "dec_heads": Parameter(int, "heads of each decoder; None: the checkpoint's (8)", 1, 100, optional=True),
    "positions": Parameter(str, "audio-visual: position table, one number a token, or row and column (and frame); None: the checkpoint's (1d). "
                           "Tokenizer: one table, tables of time and frequency, or differences of time in attention (any length)",
                           choices=("1d", "2d", "flat", "factorised", "rotary"), optional=True),
    "masking": Parameter(str, "patches are hidden before the encoders, or after them (the original's place, which leaks); None: the checkpoint's (before)",
                         choices=("before", "after"), optional=True),
    "normalize_patches": Parameter(bool, "targets are normalised patch by patch; None: the checkpoint's (False)", optional=True),
    "contrastive_dim": Parameter(int, "size of the common embedding; None: the checkpoint's (128)", 1, 100_000, optional=True),
    "proj_hidden_dim": Parameter(int, "hidden layer of the projection heads; None: the checkpoint's (768)", 1, 100_000, optional=True),
    "clf_hidden_dim": Parameter(int, "hidden layer of the classifier; None: the checkpoint's (512)", 1, 100_000, optional=True),
    "pooling": Parameter(str, "what heads and classifier read: the class state, or the mean or maximum of patch states; None: the checkpoint's (class)",
                         choices=("class", "mean", "max"), optional=True),
    "sample_rate": Parameter(int, "of the sound in Hz; None: the checkpoint's (16000), or the preset's", 1000, 192_000, optional=True),
    "n_mels": Parameter(int, "mel bands; None: the checkpoint's (128), or the preset's", 1, 1024, optional=True),
    "n_fft": Parameter(int, "samples of an analysis window; None: the checkpoint's (1024), or the preset's", 16, 65_536, optional=True),
    "hop": Parameter(int, "samples between windows; None: the checkpoint's (512), or the preset's", 1, 65_536, optional=True),
    "audio_duration": Parameter(float, "window of a clip in seconds; None: the checkpoint's (10)", 0.1, 600, optional=True),
    "backbone_dropout": Parameter(float, "dropout of backbone and decoders", 0, 0.99),
    "mask": Parameter(str, "which patches are hidden: any, or the same places in all frames", choices=("random", "tube")),
    "mask_ratio": Parameter(float, "share of hidden patches; tokenizer: 0 but for masked pre-training", 0, 0.99),
    "train_audio_mae": Parameter(bool, "stage 1 trains the sound"),
    "train_video_mae": Parameter(bool, "stage 1 trains the picture"),
    "collapse_check_after": Parameter(int, "stage 2 stops when after so many steps its loss still is that of knowing nothing; 0: never", 0, 2**31),
    "freeze_encoders": Parameter(bool, "both ViTs stay as they are"),
    "freeze_backbone": Parameter(bool, "the shared backbone stays as it is"),
    "freeze_all_except_head": Parameter(bool, "stage 3 trains the classifier alone"),
    "unfreeze_backbone_layers": Parameter(int, "stage 3 also trains so many last layers of the backbone", 0, 100),
    "unfreeze_encoder_layers": Parameter(int, "stage 3 also trains so many last layers of the audio ViT", 0, 100),
    "unfreeze_all": Parameter(bool, "stage 3 trains everything"),
    "without_stage1": Parameter(bool, "stage 2 is trained a second time, from random weights, for comparison"),
    "gain_share": Parameter(float, "share of the labels in the comparison of pretrainings; 0: no comparison", 0, 1),
    "gain_epochs": Parameter(int, "epochs of each of its trainings", 1, 100_000),
    "store_windows": Parameter(bool, "decode every clip once and keep its window on disk (small runs)"),
    "checkpoint_interval": Parameter(int, "epochs between the original's files in output_dir", 1, 100_000),
    "mae_checkpoint": Parameter(Path, "a trained model of notebook 41, or starter:audiovisual/mae; None: the one in this report", optional=True),
    "contrastive_checkpoint": Parameter(Path, "a trained model of notebook 42, or starter:audiovisual/contrastive; None: the one in this report", optional=True),
    "finetune_checkpoint": Parameter(Path, "a trained model of notebook 43, or starter:audiovisual; None: the one in this report", optional=True),
    # tokenizer
    "preset": Parameter(str, "front end: sample rate, window, hop, mel bands and frames together", choices=("default", "speech", "music", "environmental")),
    "frames": Parameter(int, "frames of a clip; None: the preset's", 1, 1_000_000, optional=True),
    "clamp_range": Parameter(list, "lowest and highest level in dB, 0 dB being the reference; None: the preset's (-80, 0)", -300, 300, item=float,
                             optional=True),
    "reference": Parameter(float, "mel power in dB that 0 dB stands for; None: the loudest place of each clip", -300, 300, optional=True),
    "centred": Parameter(bool, "frames are centred, the clip's ends mirrored; False: frames begin at their first sample, for streams"),
    "variant": Parameter(str, "sizes of the model: bits, width, layers and heads together", choices=("tiny", "quick", "small", "standard", "large")),
    "embed_dim": Parameter(int, "bits of a token; None: the variant's", 1, 4096, optional=True),
    "width": Parameter(int, "width of the transformer; None: the variant's", 1, 65_536, optional=True),
    "layers": Parameter(int, "layers of encoder and decoder each; None: the variant's", 1, 1000, optional=True),
    "heads": Parameter(int, "attention heads; None: the variant's", 1, 1000, optional=True),
    "head_width": Parameter(int, "hidden width of the decoder's last layers; None: the variant's", 1, 65_536, optional=True),
    "decoder_width": Parameter(int, "width of the decoder; None: as the encoder", 1, 65_536, optional=True),
    "decoder_layers": Parameter(int, "layers of the decoder; None: as the encoder", 1, 1000, optional=True),
    "decoder_heads": Parameter(int, "attention heads of the decoder; None: as the encoder", 1, 1000, optional=True),
    "mlp_ratio": Parameter(float, "hidden width of a layer's MLP over the width", 0, 64),
    "time_patch_size": Parameter(int, "frames of a patch; None: patch_size", 1, 65_536, optional=True),
    "freq_patch_size": Parameter(int, "mel bands of a patch; None: patch_size", 1, 65_536, optional=True),
    "patch_sizes": Parameter(list, "several scales of square patches instead of patch_size, such as [16, 32, 64]; None: one", 1, 65_536, item=int,
                             optional=True),
    "drop_rate": Parameter(float, "dropout of the transformer's layers", 0, 0.99),
    "attn_drop_rate": Parameter(float, "dropout of attention weights", 0, 0.99),
    "drop_path_rate": Parameter(float, "stochastic depth of the last layer", 0, 0.99),
    "ls_init_value": Parameter(float, "start of learned gains of every branch; None: no such gains", 0, 10, optional=True),
    "ln_pre": Parameter(bool, "LayerNorm before the layers"),
    "ln_post": Parameter(bool, "LayerNorm after the layers"),
    "use_conv_module": Parameter(bool, "a convolution module in every layer"),
    "conv_kernel_size": Parameter(int, "its taps, odd", 1, 9999),
    "conv_kernel_2d": Parameter(list, "its taps along time and frequency with conv_axis 2d, odd", 1, 999, item=int),
    "conv_axis": Parameter(str, "it runs along the sequence of tokens, along time, or over time and frequency",
                           choices=("flat", "time", "2d")),
    "mask_type": Parameter(str, "what attention may see: everything, or tokens (or blocks of them) up to its own",
                           choices=("none", "causal", "block-causal"), optional=True),
    "mask_block_size": Parameter(int, "tokens of a block with mask_type block-causal", 1, 1_000_000, optional=True),
    "causal": Parameter(bool, "no column of patches depends on later ones, for streams"),
    "attention_window": Parameter(int, "columns of patches that attention reaches; None: all", 1, 1_000_000, optional=True),
    "grad_checkpointing": Parameter(bool, "compute layers again in the backward pass: less memory, about a third slower"),
    "quantizer": Parameter(str, "binary spherical quantization, learned codebooks, or lookup-free quantization",
                           choices=("bsq", "vq", "lfq")),
    "l2_norm": Parameter(bool, "vectors are brought to unit length before they are quantized"),
    "post_q_l2_norm": Parameter(bool, "codes are of unit length; otherwise +-1"),
    "embed_group_size": Parameter(int, "bits whose codes are looked at together; divides embed_dim", 1, 63),
    "persample_entropy_compute": Parameter(str, "entropy of a token: bit by bit, or over the codes of each group",
                                           choices=("analytical", "group")),
    "cb_entropy_compute": Parameter(str, "entropy of the codebook", choices=("group",)),
    "inv_temperature": Parameter(float, "inverse temperature of the entropies; 1 leaves that of a token next to no gradient", 1e-6, 1e6),
    "beta": Parameter(float, "weight of the commitment in the quantizer's loss", 0, 1e6),
    "gamma0": Parameter(float, "weight of the entropy of a token", 0, 1e6),
    "gamma": Parameter(float, "weight of the entropy of the codebook", 0, 1e6),
    "zeta": Parameter(float, "weight of both entropies", 0, 1e6),
    "rec_loss": Parameter(str, "mean absolute (l1) or squared (l2) difference of levels scaled to -1 .. 1", choices=("l1", "l2")),
    "reconstruct_weight": Parameter(float, "its weight", 0, 1e6),
    "mel_loss_weight": Parameter(float, "weight of differences of levels and of their slopes at several resolutions; 0: none", 0, 1e6),
    "codebook_weight": Parameter(float, "weight of the quantizer's loss after the ramp", 0, 1e6),
    "codebook_rampup_multiplier": Parameter(float, "factor of it at the first step, falling to 1", 1e-6, 1e6),
    "codebook_rampup_steps": Parameter(int, "optimiser steps of that ramp; 0: none", 0, 2**31),
    "disc_weight": Parameter(float, "weight of the discriminator in the model's loss; 0: no discriminator (published: 0.1)", 0, 1e6),
    "disc_start": Parameter(int, "optimiser step at which the discriminator enters", 0, 2**31),
    "disc_loss": Parameter(str, "its loss", choices=("hinge", "vanilla")),
    "disc_reg_freq": Parameter(int, "optimiser steps from one gradient penalty (R1) to the next; 0: none", 0, 100_000),
    "disc_reg_r1": Parameter(float, "weight of that penalty", 0, 1e6),
    "disc_ndf": Parameter(int, "channels of its first layer", 1, 4096),
    "disc_num_layers": Parameter(int, "its layers that halve time and frequency", 1, 10),
    "augment": Parameter(bool, "SpecAugment: mask frames and bands of the input in training"),
    "augment_target": Parameter(bool, "the masked input is also the target (the original's way: the model learns to draw holes)"),
    "bits": Parameter(list, "bits of a token: a model of the first of tokenizer_arms is trained for each", 1, 4096, item=int),
    "compared_bits": Parameter(list, "bits of a token of the other tokenizer_arms", 1, 4096, item=int),
    "tokenizer_arms": Parameter(list, "models: binary spherical quantization as the parameters say, learned codebooks, lookup-free quantization, or "
                                "the first with one thing changed", choices=(
                                    "bsq", "vq", "lfq", "temperature_1", "temperature_10", "temperature_100", "no_conv", "conv_time", "conv_2d",
                                    "ln_pre", "no_l2")),
    "vocoder_size": Parameter(str, "size of the vocoder of notebook 50", choices=("tiny", "quick", "published")),
    "vocoder_steps": Parameter(int, "steps that it is trained for; 0: no vocoder", 0, 10_000_000),
    "tokenizer_checkpoint": Parameter(Path, "a trained model of notebook 50, or starter:tokenizer; None: all in this report", optional=True),
    "vocoder_checkpoint": Parameter(Path, "a vocoder for the same mel levels, or starter:tokenizer/vocoder; None: notebook 50's", optional=True),
    # hyperbolic CLAP
    "parquet_dir": Parameter(Path, "AudioSet: a folder of parquet shards, instead of dataset and data_root", optional=True),
    "train_ratio": Parameter(float, "AudioSet: share of the training shards' clips that is trained on; the rest is validation", 0.01, 0.99),
    "class_labels": Parameter(Path, "AudioSet: class table, CSV or JSON; None: beside the shards", optional=True),
    "ontology": Parameter(Path, "AudioSet's ontology.json; None: beside the shards, if it is there", optional=True),
    "array_sample_rate": Parameter(int, "AudioSet: Hz of audio that is stored as a bare array; None: such rows cannot be read", 1000, 768_000,
                                   optional=True),
    "encoding_batch": Parameter(int, "clips that the frozen model encodes together", 1, 4096),
    "geometry": Parameter(str, "space of the embeddings: the Poincare ball, the Lorentz sheet, or a control without curvature; published: the "
                               "original code's formula", choices=("poincare", "lorentz", "euclidean", "cosine", "published")),
    "c": Parameter(float, "curvature is -c: a larger c is a more curved, smaller ball (in evaluation None: the checkpoint's)", 1e-4, 100, optional=True),
    "train_c": Parameter(bool, "learn the curvature, within a factor of 10"),
    "temperature": Parameter(float, "distances are divided by it (in evaluation None: the checkpoint's)", 1e-3, 1000, optional=True),
    "train_temperature": Parameter(bool, "learn the temperature, above 0.01"),
    "maps": Parameter(str, "one linear map for audio and text, or one each", choices=("shared", "separate")),
    "train_scales": Parameter(bool, "learn a factor of at most 1 on the tangent vectors of audio and of text"),
    "max_radius": Parameter(float, "longest tangent vector, in units of 1/sqrt(c); None: no limit", 0.01, 100, optional=True),
    "tagging_loss": Parameter(str, "batch: against the labels of the batch; softmax, sum: against all classes", choices=("batch", "softmax", "sum")),
    "label_choice": Parameter(str, "which of a clip's labels is its text in a batch: drawn anew each epoch, or the first",
                              choices=("random", "first")),
    "entailment_weight": Parameter(float, "weight of the entailment cones: parent above class above clip", 0, 100),
    "monitor": Parameter(str, "validation metric that chooses the checkpoint", choices=("mAP samples", "mAP macro", "acc@1", "loss")),
    "repeats": Parameter(int, "trainings of each model, with the seeds seed, seed + 1, ...", 1, 1000),
    "arms": Parameter(list, "models that are trained: hyperbolic (the parameters as they are), cones (with entailment_weight), seed (the original "
                            "project's loss and fixed temperature)", choices=("hyperbolic", "cones", "seed")),
    "controls": Parameter(list, "what they are judged by: the frozen model, the same map with cosine or Euclidean distance, rankers that hear "
                                "nothing", choices=("frozen", "cosine", "euclidean", "constant", "frequency")),
    "atlas_epochs": Parameter(int, "passes of the Poincare embedding over the pairs of the taxonomy", 1, 100_000),
    "atlas_dims": Parameter(list, "dimensions in which the taxonomy is embedded; the picture is the one in 2", 2, 512, item=int),
    "projection_checkpoint": Parameter(Path, "trained projection: folder, starter:hyperbolic, or .pth of the original project; None: notebook 20's", optional=True),
    "use_hyperbolic": Parameter(bool, "score the projection; otherwise the frozen model's cosine alone"),
    "top_k": Parameter(int, "classes that are written for each clip", 1, 1000),
    "output_dir": Parameter(str, "folder for the original project's checkpoint files; None: none are written", optional=True, local=True),
    "output_json": Parameter(str, "result in the original project's form; None: in the report folder", optional=True, local=True),
    "compare_files": Parameter(list, "two result files in the original project's form, to be compared; []: those of this run"),
    "split": Parameter(str, "which split is scored", choices=("test", "val")),
    "compare_with": Parameter(Path, "folder of a second trained model, whose answers stand beside the first one's; None: none", optional=True),
    "queries": Parameter(list, "texts that a gallery of clips is searched for"),
    "query_audio": Parameter(list, "audio files that a gallery of clips is searched with (whole paths); []: one clip of another split"),
    "reports": Parameter(list, "further reports that the scoreboard gathers: names below reports/, or whole paths"),
    "headline_only": Parameter(bool, "show headline metrics of held-out clips only; the files hold all"),
    # performance
    "parts": Parameter(list, "what is measured; []: every part", choices=("features", "training_step", "distances", "quantizer", "ranking", "torchmetrics",
                                                          "store_epoch", "masked_step", "windows", "video", "front_end")),
    "work": Parameter(str, "sizes of what is measured: those that ratios were asked for, or tiny ones that show nothing", choices=("asked", "tiny")),
    "repetitions": Parameter(int, "interleaved runs behind every median", 1, 1000),
    "results_shown": Parameter(int, "clips that are shown for each query of a search", 1, 20),
}


def check(values: dict[str, object], where: str) -> None:
    """Refuse the first parameter that is unknown or has a bad value.

    Args:
        values: parameter name -> value.
        where: what the values belong to (a notebook, a profile, a class), named in the message.

    Raises:
        ParameterError: with the parameter, what was expected and, for a mistyped name, the nearest one.
    """
    for name, value in values.items():
        entry = PARAMETERS.get(name)
        if entry is None:
            raise unknown(name, PARAMETERS, where)
        problem = entry.problem(value)
        if problem:
            raise ParameterError(f"{where}: parameter {name} ({entry.meaning}) {problem}")


def unknown(name: str, known, where: str) -> ParameterError:
    """The error for a name that `where` does not have, with the nearest known name as the fix."""
    near = get_close_matches(name, list(known), n=1)
    return ParameterError(f"{where}: unknown parameter {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"))


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as the number it is (YAML 1.1 wants 1.0e-3) and refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(problem=f"{twice[0]!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))


def load_yaml(text: str, where: str) -> object:
    """Parse YAML; ParameterError naming `where` when it is none."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        remedy = " (write a path as C:/new/table, or with doubled backslashes)" if "escape" in str(error) else ""
        raise ParameterError(f"{where}: not readable as YAML{remedy}: {error}") from error
