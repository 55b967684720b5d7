"""The embedding of AudioSet's ontology: quality in 2 and 5 dimensions, and CPU time, beside Euclidean points and shuffled ones."""
import os
import statistics
import time
from pathlib import Path

import pytest
import torch

from lib.data.taxonomy import read_ontology
from lib.geometry.graph_embedding import RECOMMENDED, mobius_center, reconstruction, train
from lib.settings import ROOT

ONTOLOGY = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data")) / "metadata/audioset_ontology.json"
SEEDS, MOST_SECONDS = (0, 1, 2), 60
LEAST = {2: 0.72, 5: 0.88}
SETTINGS = {"published": {}, "recommended": RECOMMENDED}


@pytest.mark.slow
@pytest.mark.skipif(not ONTOLOGY.is_file(), reason=f"AudioSet's ontology is not at {ONTOLOGY}; WORKBOOK_SHARED names the folder")
@pytest.mark.parametrize("dim", LEAST)
def test_order_of_the_ontology_beside_the_controls(dim, capsys):
    """Closure with a virtual root, every node to all its ancestors against all that are none, ties against."""
    taxonomy = read_ontology(ONTOLOGY).with_root()
    assert len(taxonomy) == 633
    rows: dict[str, list[dict]] = {}
    for seed in SEEDS:
        for geometry in ("poincare", "euclidean"):
            for setting, options in SETTINGS.items() if seed == SEEDS[0] else [("recommended", RECOMMENDED)]:       # published: once
                wall, cpu = time.perf_counter(), time.process_time()
                points = train(taxonomy.closure, len(taxonomy), dim, seed=seed, geometry=geometry, **options)
                figures = reconstruction(points, taxonomy.closure, geometry)
                figures |= {"wall s": time.perf_counter() - wall, "CPU s": time.process_time() - cpu}
                if geometry == "poincare":
                    radius = mobius_center(points, len(taxonomy) - 1).norm(dim=1)
                    parent, child = taxonomy.edges.T
                    figures["parents nearer the middle"] = float((radius[parent] < radius[child]).double().mean())
                rows.setdefault(f"{geometry}, {setting}", []).append(figures)
        shuffled = torch.randperm(len(taxonomy), generator=torch.Generator().manual_seed(seed))
        rows.setdefault("random (nodes shuffled)", []).append(reconstruction(points[shuffled], taxonomy.closure, "euclidean"))
    mean = {name: {key: statistics.mean(r[key] for r in found) for key in found[0]} for name, found in rows.items()}
    with capsys.disabled():
        print(f"\nAudioSet's ontology in {dim} dimensions, {len(taxonomy.closure)} pairs, mean over the seeds (published settings: one)")
        for name, figures in mean.items():
            each = " ".join(f"{r['MAP']:.3f}" for r in rows[name])
            print(f"  {name:24s}", ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), f"(MAP of each: {each})")
    for setting in SETTINGS:
        assert mean[f"poincare, {setting}"]["MAP"] > mean[f"euclidean, {setting}"]["MAP"] + 0.3
        assert mean[f"euclidean, {setting}"]["MAP"] > mean["random (nodes shuffled)"]["MAP"] + 0.1
    assert mean["poincare, recommended"]["MAP"] >= LEAST[dim]
    assert mean["poincare, recommended"]["parents nearer the middle"] > 0.95
    # CPU time, because the wall clock of a machine that does other work measures that work.
    assert max(r["CPU s"] for name, found in rows.items() if "," in name for r in found) < MOST_SECONDS
