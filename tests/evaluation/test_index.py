"""Search of a gallery: exact against a sort in float64, FAISS indexes against exact, and their files."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lib.evaluation import index
from lib.evaluation.index import fingerprint, open_index, recall, search

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gallery():
    """3,000 unit vectors in 150 groups, as recordings of the same things lie together."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(150, 32, generator=generator)
    rows = centres.repeat(20, 1) + 0.6 * torch.randn(3000, 32, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 40), st.integers(1, 5), st.sampled_from([0, 1, 2]), st.data())
def test_exact_search_against_sorting(seed, count, items, dimension, spread, data):
    """Whole numbers, whose products are exact: many ties, of which the lower row comes first; zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-spread, spread + 1, (count, dimension), generator=generator).float()
    rows = torch.randint(-spread, spread + 1, (items, dimension), generator=generator).float()
    k = data.draw(st.integers(1, items))
    product = (queries.double() @ rows.double().T).numpy()
    expected = np.argsort(-product, axis=1, kind="stable")[:, :k]
    scores, found = search(queries, rows, k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(product, expected, axis=1))
    assert scores.dtype == torch.float32 and found.dtype == torch.int64


def test_exact_search_over_several_blocks(tmp_path):
    generator = torch.Generator().manual_seed(1)
    queries, rows = torch.randn(300, 16, generator=generator), torch.randn(9000, 16, generator=generator)
    rows[8500] = rows[4100] = rows[3]                                   # copies in three blocks
    queries[7] = rows[3]
    rows[8500:8502] *= 5
    product = queries.double() @ rows.double().T
    scores, found = search(queries, rows, 20)
    assert found[7, :3].tolist() == [8500, 3, 4100]
    torch.testing.assert_close(scores.double(), product.topk(20, dim=1).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.double(), product.gather(1, found), atol=1e-5, rtol=0)
    assert all(len(set(row)) == 20 for row in found.tolist())
    np.save(tmp_path / "gallery.npy", rows.half().numpy())
    on_disk = search(queries, np.load(tmp_path / "gallery.npy", mmap_mode="r"), 20)
    assert all(map(torch.equal, on_disk, search(queries, rows.half().float(), 20)))
    assert all(map(torch.equal, search(queries[7:8], rows, 5), (scores[7:8, :5], found[7:8, :5])))


def test_extreme_scores_keep_their_order():
    values = torch.tensor([-3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3e38])
    scores, found = search(torch.ones(1, 1), values[:, None], 8)
    assert found[0].tolist() == [7, 6, 5, 3, 4, 2, 1, 0]                # -0 and 0 tie: the lower row first
    assert torch.equal(scores[0], values[found[0]] + 0.0)


@pytest.mark.parametrize("queries, rows, k, words", [
    (torch.zeros(1, 3), torch.zeros(5, 3), 6, "k = 6: expected 1 to 5"),
    (torch.zeros(1, 3), torch.zeros(5, 3), 0, "k = 0"),
    (torch.zeros(1, 3), torch.zeros(5, 4), 1, r"\('Q', 3\) and of items \('N', 4\)"),
    (torch.zeros(1, 3), torch.full((5, 3), float("nan")), 1, "of 0 queries, and of 5 of the 5 items")])
def test_refusals_of_search(queries, rows, k, words):
    with pytest.raises(ValueError, match=words):
        search(queries, rows, k)


@pytest.mark.parametrize("kind, required", [("flat", 1.0), ("ivf", 0.9), ("hnsw", 0.95)])
def test_indexes_find_the_nearest(kind, required, gallery, tmp_path):
    generator = torch.Generator().manual_seed(1)
    queries = torch.nn.functional.normalize(gallery[::30] + 0.1 * torch.randn(100, 32, generator=generator), dim=1)
    path = tmp_path / "it's -a \"name\"" / "-gallery.faiss"
    opened = open_index(gallery, path, kind)
    assert (opened.kind, opened.items, opened.dimension, opened.fingerprint) == (kind, 3000, 32, fingerprint(gallery))
    quality = recall(opened, gallery, queries)
    print(f"{kind}: recall@10 {quality:.3f}")
    assert quality >= required
    scores, rows = opened.search(queries, 10)
    torch.testing.assert_close(scores, (queries @ gallery.T).gather(1, rows), atol=1e-5, rtol=0)
    assert (scores.diff(dim=1) <= 0).all()
    written = path.stat().st_mtime_ns
    again = open_index(gallery.numpy(), path, kind)
    assert path.stat().st_mtime_ns == written                         # read, not built again
    assert all(map(torch.equal, again.search(queries, 10), (scores, rows)))
    half = open_index(gallery.half(), tmp_path / "half.faiss", kind)
    assert half.fingerprint != opened.fingerprint and recall(half, gallery, queries) >= required - 0.05
    with pytest.raises(ValueError, match=r"expected \(Q, 32\) and 1 to 3000"):
        opened.search(queries[:, :5])


def test_recall_by_hand(gallery):
    class Half:
        """Finds the even ranks of the exact ten."""
        def search(self, queries, k):
            scores, rows = search(queries, gallery, 2 * k)
            return scores[:, ::2], rows[:, ::2]

    assert recall(Half(), gallery, gallery[:5]) == 0.5


def test_too_few_found_are_marked(gallery, tmp_path):
    opened = open_index(gallery, tmp_path / "a.faiss", "ivf")
    scores, rows = opened.search(gallery[:4], 3000)
    assert (rows[:, 0] == torch.arange(4)).all() and (rows[:, -1] == -1).all() and (scores[:, -1] == -torch.inf).all()


def test_automatic_choice(gallery, tmp_path, monkeypatch):
    assert open_index(gallery, tmp_path / "a.faiss").kind == "flat"
    monkeypatch.setattr(index, "EXACT_UP_TO", 2999)
    assert open_index(gallery, tmp_path / "a.faiss").kind == "ivf"
    assert open_index(gallery[:1], tmp_path / "one.faiss", "ivf").search(gallery[:1], 1)[1].tolist() == [[0]]


def test_another_gallery_or_a_damaged_file_is_built_again(gallery, tmp_path):
    path, queries = tmp_path / "a.faiss", gallery[:5]
    open_index(gallery, path, made_from="weights 1")
    kept = open_index(-gallery, path, made_from="weights 1")             # what it is made from is the caller's word
    assert kept.search(queries, 1)[1].tolist() == [[0], [1], [2], [3], [4]]
    other = open_index(-gallery, path, made_from="weights 2")
    assert other.search(queries, 1)[0].max() < 0.99
    assert json.loads((tmp_path / "a.faiss.json").read_text())["fingerprint"] == "weights 2"
    assert kept.search(queries, 1)[1].tolist() == [[0], [1], [2], [3], [4]]          # one that is open goes on with its file
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    open_index(-gallery, path, made_from="weights 2")
    assert path.read_bytes() == whole
    path.unlink()
    open_index(-gallery, path, made_from="weights 2")
    assert path.read_bytes() == whole


def test_an_interrupted_write_leaves_no_index_that_looks_right(gallery, tmp_path, monkeypatch):
    path = tmp_path / "a.faiss"
    open_index(gallery, path, made_from="1")
    replace = os.replace

    def broken(source, target):
        if Path(target) == path:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(index.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        open_index(-gallery, path, made_from="2")
    assert {p.name for p in tmp_path.iterdir()} == {"a.faiss", "a.faiss.lock"}       # no half file, no note
    monkeypatch.undo()
    assert open_index(gallery, path, made_from="1").search(gallery[:1], 1)[1].item() == 0


@pytest.mark.parametrize("rows, kind, words", [
    (torch.zeros(4, 2), "annoy", "flat, ivf, hnsw or auto"),
    (torch.zeros(0, 2), "auto", "at least one item"),
    (torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]), "flat", "1 rows that are not finite")])
def test_refusals_of_indexes(rows, kind, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        open_index(rows, tmp_path / "a.faiss", kind)
    assert not list(tmp_path.glob("*.faiss*json")) and not (tmp_path / "a.faiss").exists()


THREADS = """
import sys, torch, faiss
from pathlib import Path
from lib.evaluation.index import open_index

gallery = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
for threads in (1, 2):
    torch.set_num_threads(threads)
    before = faiss.omp_get_max_threads()
    product = gallery @ gallery.T
    opened = open_index(gallery, Path(sys.argv[1]) / str(threads), "ivf")
    for _ in range(3):
        rows = opened.search(gallery, 5)[1]
        assert torch.equal(product, gallery @ gallery.T)
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == (threads, before), (threads, before)
    print(rows.tolist())
"""


@pytest.mark.parametrize("imports", ["torch, faiss", "faiss, torch"])      # the one that is loaded first brings the OpenMP
def test_threads_of_torch_and_faiss_live_together(imports, tmp_path):
    code = THREADS.replace("torch, faiss", imports)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one, two = done.stdout.splitlines()
    assert one == two                                                          # what is found does not depend on the threads
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_faiss_is_imported_only_where_it_is_needed():
    code = "import sys, lib.evaluation.retrieval, lib.evaluation.index; print('faiss' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
