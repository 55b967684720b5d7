"""Starter weights: one small trained model a family, shipped here, so that results can be seen and heard without training.

Wherever a checkpoint is asked for, `starter:NAME` is the folder lib/starters/NAME (`lib.files.user_path`): "starter:retrieval",
"starter:tokenizer/vocoder". The README.md of a family's folder is its model card; the card's numbers stand in its scores.json.

    python -m lib.starters collect --report reports/starter                # the folders, from what `make report PROFILE=starter` trained
    python -m lib.starters score --report reports/starter_scores --data-root ESC-50-folder     # their scores and cards
"""
from __future__ import annotations

import os
from pathlib import Path

from lib.files import STARTER, STARTERS, user_path
from lib.workbook import results

# family: the names of its weights; the first folder holds the family's card and scores
FAMILIES = {"retrieval": ("retrieval",), "hyperbolic": ("hyperbolic",), "spatial": ("spatial",),
            "audiovisual": ("audiovisual", "audiovisual/contrastive", "audiovisual/mae"), "tokenizer": ("tokenizer", "tokenizer/vocoder")}
NAMES = tuple(name for names in FAMILIES.values() for name in names)


def folder(name: str) -> Path:
    """Folder of a starter, such as "retrieval" or "tokenizer/vocoder". FileNotFoundError: naming those that there are."""
    found = user_path(STARTER + name)
    if not (found / "model.safetensors").is_file():
        there = [known for known in NAMES if (STARTERS / known / "model.safetensors").is_file()]
        raise FileNotFoundError(f"there are no starter weights {STARTER}{name}; there are {', '.join(there) or 'none'}")
    return found


def choose(checkpoint: str | Path | None, family: str, notebook: str, num_samples: int | None, *, usual: int | None, fewer: int
           ) -> tuple[str | Path | None, dict | None, int | None]:
    """What a notebook that looks at a trained model opens, and with how many clips.

    A checkpoint that is given is opened; otherwise the model of the training notebook in this report. Where a person opened the
    notebook and nothing is trained yet, it is the family's starter, which is said; a report never falls back on it. By hand, a
    starter comes with fewer clips, so that something is seen soon, unless the number is not the notebook's own.

    Args:
        checkpoint, num_samples: the notebook's parameters.  family: whose starter.  notebook: that trains, "10_retrieval_train".
        usual: the notebook's own num_samples.  fewer: what takes its place.
    Returns:
        (checkpoint, None, num_samples), or (None, result of the training notebook, num_samples).
    Raises:
        FileNotFoundError: in a report, where the training notebook has no result.  `results.Skipped`: where it was skipped.
    """
    by_hand, made = "WORKBOOK_JOB" not in os.environ, None
    if checkpoint is None:
        try:
            made = results.upstream(notebook)
        except FileNotFoundError:
            if not by_hand:
                raise
            checkpoint = f"{STARTER}{family}"
            folder(family)
            print(f"{notebook} has no result here: the starter weights {checkpoint} are opened in its place. What they are and how\n"
                  f"good they are: lib/starters/{family}/README.md. Run that notebook to see a model of your own.")
    if by_hand and str(checkpoint).startswith(STARTER) and num_samples == usual:
        print(f"num_samples is {fewer} in place of {'all' if usual is None else usual}, so that something is seen soon: intervals are wide.\n"
              "Any other number is taken as it is. The clips are held out: no split depends on how many there are.")
        num_samples = fewer
    return checkpoint, made, num_samples
