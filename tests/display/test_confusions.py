"""The clips that are shown are those that were mistaken, of the pairs that are mistaken most."""
import numpy as np
import pandas as pd
import pytest
import soundfile

from lib.data.manifest import Manifest
from lib.display.confusions import confused_pairs


def test_mistaken_clips_of_the_worst_pair(tmp_path):
    rows = []
    for k, label in enumerate("aabbc"):
        soundfile.write(tmp_path / f"{k}.wav", 0.1 * np.sin(np.arange(8000) * (k + 1) / 20), 8000)
        rows.append({"clip_id": str(k), "path": f"{k}.wav", "start": 0.0, "duration": 1.0, "split": "test", "captions": [f"clip {k}"], "labels": [{"b": "<b>"}.get(label, label)]})
    manifest = Manifest(pd.DataFrame(rows), "letters", tmp_path, {"classes": ["a", "<b>", "c"]})
    target, predicted = np.array([0, 0, 1, 1, 2]), np.array([1, 1, 0, 1, 2])
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, (target, predicted), 1)
    page = confused_pairs(counts, manifest, range(5), target, predicted)
    assert page.players == 2
    assert "a taken for &lt;b&gt;" in page.html and "&lt;b&gt; taken for a" in page.html and "2 of 2 clips of a" in page.html
    with pytest.raises(ValueError, match="one each a clip"):
        confused_pairs(counts, manifest, range(4), target, predicted)
