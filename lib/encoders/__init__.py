"""Encoders: features to embeddings. `load(folder)` returns the towers of any checkpoint of the workbook."""
from __future__ import annotations

from pathlib import Path


def load(folder: str | Path):
    """Audio and text towers of a checkpoint folder, in evaluation mode on the CPU.

    One family starts from another's weights through this function, without importing that family.

    Args:
        folder: a folder with config.json, model.safetensors and tokenizer files.
    Returns:
        a model with `embed_audio(waveform (B, samples), durations (B,)) -> (B, D)` and `embed_text(captions) -> (B, D)`,
        both unit vectors, and `.audio.sample_rate`.
    Raises:
        FileNotFoundError, ValueError: naming the folder and what is wrong with it.
    """
    from lib.encoders.dual import DualEncoder
    return DualEncoder.from_pretrained(folder)
