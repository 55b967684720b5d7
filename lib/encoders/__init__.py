"""Encoders: features to embeddings. `load(folder)` returns the towers of any checkpoint of the workbook, and of published CLAPs."""
from __future__ import annotations

from pathlib import Path


def load(folder: str | Path):
    """Audio and text towers of a checkpoint, in evaluation mode on the CPU.

    One family starts from another's weights through this function, without importing that family.

    Args:
        folder: a folder with config.json, model.safetensors and tokenizer files, written by the workbook; or a published CLAP: its
            folder, its id on Hugging Face ("laion/larger_clap_general") or ModelScope ("modelscope:laion/larger_clap_general").
    Returns:
        a model with `embed_audio(waveform (B, samples), durations (B,)) -> (B, D)` and `embed_text(captions) -> (B, D)`,
        both unit vectors, and `.audio.sample_rate`.
    Raises:
        FileNotFoundError, ValueError: naming the folder and what is wrong with it.
    """
    from lib.encoders.dual import DualEncoder
    from lib.encoders.weights import resolve
    from lib.files import read_json
    folder = resolve(folder)
    config = read_json(folder / "config.json") or {}
    if config.get("model_type") == "workbook-hyperbolic":         # the towers beneath its projection
        return load(config["backbone"])
    if config.get("model_type") == "workbook-spatial":             # whose clips have four channels
        from lib.encoders.spatial_dual import SpatialDual
        return SpatialDual.from_pretrained(folder)
    if config.get("model_type") == "workbook-audiovisual":
        raise ValueError(f"{folder} is an audio-visual model, which has no text tower; open it with lib.families.audiovisual.load")
    if config.get("model_type") == "audio-bsq-vit":
        raise ValueError(f"{folder} is a tokenizer, which has no text tower; open it with lib.families.tokenizer.load")
    if config.get("model_type") == "clap":
        from lib.encoders.clap import load_clap
        return load_clap(folder)
    return DualEncoder.from_pretrained(folder)
