"""Notebooks that a person opens before anything is trained: with starter weights they get to their last cell and play."""
import json

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from lib.settings import ROOT
from lib.workbook import results


@pytest.mark.parametrize("name, family, settings", [
    ("12_retrieval_search", "retrieval", {"num_samples": 24, "queries": ["A dog barks."]}),
    ("22_poincare_atlas", "hyperbolic", {"num_samples": 24, "repeats": 1, "atlas_epochs": 4, "atlas_dims": [2]}),
    ("51_tokenizer_evaluate", "tokenizer", {"num_samples": 24, "clips_shown": 1})])
def test_notebooks_open_by_hand_without_training(monkeypatch, tmp_path, name, family, settings):
    monkeypatch.setenv("WORKBOOK_REPORT", str(tmp_path))
    monkeypatch.delenv("WORKBOOK_JOB", raising=False)
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    place = next(number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells[place].source += "\n" + "\n".join(f"{key} = {value!r}" for key, value in (settings | {"threads": 1}).items())
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert f"the starter weights starter:{family} are opened" in shown and "num_samples is" not in shown
    assert "<audio" in shown and ("<svg" in shown or "image/png" in shown)
    document = results.of(tmp_path, name)
    assert document["protocol"]["split"] == "test" and document["metrics"] and np.isfinite([row["value"] for row in document["metrics"]]).all()
