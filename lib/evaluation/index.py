"""Nearest items of a gallery by inner product: exact, in blocks, or through a FAISS index where the gallery is large.

Scores come from matrix products of one shape a search, padded with zeros. BLAS takes other paths for narrow products and for the
rest that does not fill a product, whose sums differ in the last bits; padded, copies of an item tie wherever they are.
"""
from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.files import alone, read_json, write_json
from lib.progress import track

QUERIES, ITEMS = 256, 4096   # most rows of a product, 4 MB of scores: BLAS runs at full speed, on several threads, too
_NARROWEST = (64, 1024)      # rows that the numbers of queries and items of a product are multiples of
EXACT_UP_TO = 50_000         # items that a flat index searches in milliseconds; above, "auto" means "ivf"
KINDS = ("flat", "ivf", "hnsw")
_PER_CELL = 64               # items a cell of an inverted file that its centres are fitted to (FAISS asks for 39 at least)


def score_blocks(queries: Tensor | np.ndarray, items: Tensor | np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Inner products of all queries and all items, a block at a time, items in the outer loop, with progress.

    Args:
        queries: (Q, D), held in memory; the products run on its device.
        items: (N, D), Tensor or array; may be memory-mapped and of half precision: what a block needs is read and made float32.
    Yields:
        The queries, the items and their scores (q, n) float32, overwritten by the next block; q <= 256, n <= 4096.
    Raises:
        ValueError: shapes that do not fit, or a score that is NaN.
    """
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise ValueError(f"embeddings of queries {('Q', *queries.shape[1:])} and of items {('N', *items.shape[1:])} must be "
                         "(Q, D) and (N, D), with one D")
    device = queries.device if isinstance(queries, Tensor) else torch.device("cpu")
    height, width = (min(most, -(-count // least) * least)
                     for most, least, count in zip((QUERIES, ITEMS), _NARROWEST, (len(queries), len(items))))
    above, below = range(0, len(queries), height or 1), range(0, len(items), width or 1)
    left = torch.zeros(len(above) * height, queries.shape[1], device=device)
    left[:len(queries)] = _float_rows(queries, slice(None))
    right = torch.zeros(width, queries.shape[1], device=device)
    product = torch.empty(height, width, device=device)
    for first in track(below, len(below), "scoring the gallery") if len(below) > 1 else below:
        rows = slice(first, min(first + width, len(items)))
        right[:rows.stop - first] = _float_rows(items, rows)      # after the last row old ones stay, and their scores are cut off
        for start in above:
            asked = slice(start, min(start + height, len(queries)))
            torch.mm(left[start:start + height], right.T, out=product)
            scores = product[:asked.stop - start, :rows.stop - first].cpu().numpy()
            if np.isnan(scores.min()):
                wrong = [int((~side.isfinite()).any(dim=1).sum()) for side in (left, right)]
                raise ValueError(f"scores are NaN, since embeddings are not finite (or huge): those of {wrong[0]} queries, "
                                 f"and of {wrong[1]} of the {rows.stop - first} items looked at")
            yield asked, rows, scores


def _float_rows(source: Tensor | np.ndarray, rows: slice | np.ndarray) -> Tensor:
    """Tensor float32 of some rows; copied from an array, which may be read-only."""
    chosen = source[rows]
    return chosen.detach().float() if isinstance(chosen, Tensor) else torch.from_numpy(np.array(chosen, dtype=np.float32))


def search(queries: Tensor | np.ndarray, gallery: Tensor | np.ndarray, k: int = 10) -> tuple[Tensor, Tensor]:
    """The k best items for each query, exactly; of equal scores the lower row comes first.

    Args: queries (Q, D) and gallery (N, D) as for `score_blocks`.  k: 1..N.
    Returns: scores (Q, k) float32, best first, and rows (Q, k) int64 of the gallery, on the CPU.
    Raises: ValueError: as `score_blocks`, or k out of range.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k = {k}: expected 1 to {len(gallery)}, the items of the gallery")
    best = torch.full((len(queries), k), torch.iinfo(torch.int64).min)
    for asked, rows, scores in score_blocks(queries, gallery):
        # whole numbers that sort as (score, -row) do: the bits of a float sort like its value, negative ones the other way round
        bits = (scores + np.float32(0)).view(np.int32)            # -0 becomes 0, which it equals
        bits ^= (bits >> 31) & 0x7FFFFFFF
        keys = (bits.astype(np.int64) << 32) | (0xFFFFFFFF - np.arange(rows.start, rows.stop))
        best[asked] = torch.cat([best[asked], torch.from_numpy(keys)], dim=1).topk(k).values
    keys = best.numpy()
    bits = (keys >> 32).astype(np.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return torch.from_numpy(bits.view(np.float32)), torch.from_numpy(0xFFFFFFFF - (keys & 0xFFFFFFFF))


@dataclass(frozen=True, eq=False)
class GalleryIndex:
    """A FAISS index of the inner products with a gallery, read from disk as it is needed (memory-mapped).

    Attributes:
        kind: flat (exact), ivf (cells around centres, of which a query looks into a few) or hnsw (a graph of neighbours).
        items: N.  dimension: D.  fingerprint: of the gallery that it was made from.
        effort: cells that a query looks into (ivf), candidates that it keeps (hnsw), 0 for flat; `dataclasses.replace` sets it.
    """

    kind: str
    items: int
    dimension: int
    fingerprint: str
    effort: int
    index: Any

    def search(self, queries: Tensor | np.ndarray, k: int = 10) -> tuple[Tensor, Tensor]:
        """As the function `search`, but approximate unless kind is flat, and in no certain order among equal scores.

        With many queries at a time an ivf of a large gallery gains little over exact search; with one it is 100 times faster.

        Returns: scores (Q, k) float32 and rows (Q, k) int64; -inf and -1 where the cells or the graph gave fewer than k items.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension or not 1 <= k <= self.items:
            raise ValueError(f"queries {tuple(queries.shape)}, k = {k}: expected (Q, {self.dimension}) and 1 to {self.items}")
        with _faiss() as faiss:
            faiss.ParameterSpace().set_index_parameters(self.index, _effort(self.kind, self.effort))
            scores, rows = self.index.search(np.ascontiguousarray(_float_rows(queries, slice(None)).cpu().numpy()), k)
        return torch.from_numpy(np.where(rows < 0, np.float32(-np.inf), scores)), torch.from_numpy(rows)


def open_index(gallery: Tensor | np.ndarray, path: str | Path, kind: str = "auto", made_from: str | None = None) -> GalleryIndex:
    """The index of a gallery in the file `path`, built and written first unless the one there is of this gallery and kind.

    Args:
        gallery: (N, D), may be memory-mapped or of half precision. While it is built the index holds its own float32 copy.
        path: of the index; beside it lies `path`.json with what it was made from.
        kind: flat | ivf | hnsw | auto: flat up to 50,000 items, ivf above. hnsw takes several times as long as ivf to build.
        made_from: what identifies the gallery (such as a digest of weights and manifest); None: a digest of its numbers.
    Raises:
        ValueError: an unknown kind, a gallery that is empty or not (N, D) or not finite.
    """
    if kind not in (*KINDS, "auto"):
        raise ValueError(f"kind = {kind!r}: expected one of {', '.join(KINDS)} or auto")
    if gallery.ndim != 2 or not len(gallery):
        raise ValueError(f"gallery {tuple(gallery.shape)}: expected (N, D) with at least one item")
    kind = ("flat" if len(gallery) <= EXACT_UP_TO else "ivf") if kind == "auto" else kind
    cells = max(1, round(math.sqrt(len(gallery)))) if kind == "ivf" else 0
    # an eighth of the cells finds nearly all where items lie in groups, as embeddings of sounds do; `recall` says how many
    note = {"kind": kind, "items": len(gallery), "dimension": gallery.shape[1], "fingerprint": made_from or fingerprint(gallery),
            "effort": {"flat": 0, "ivf": max(1, cells // 8), "hnsw": 128}[kind]}
    path = Path(path)
    beside = path.with_name(path.name + ".json")
    with alone(path.with_name(path.name + ".lock"), f"the index {path}"), _faiss() as faiss:
        if not path.is_file() or read_json(beside) != note | {"bytes": path.stat().st_size}:
            beside.unlink(missing_ok=True)      # whatever happens from here on, no note stands beside another's index
            _build(faiss, gallery, path, {"flat": "Flat", "ivf": f"IVF{cells},Flat", "hnsw": "HNSW32"}[kind], cells)
            write_json(beside, note | {"bytes": path.stat().st_size})
        mapped = faiss.IO_FLAG_MMAP if kind == "ivf" else faiss.IO_FLAG_MMAP_IFC
        return GalleryIndex(**note, index=faiss.read_index(str(path), mapped))


def _build(faiss, gallery: Tensor | np.ndarray, path: Path, recipe: str, cells: int) -> None:
    index = faiss.index_factory(gallery.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
    if cells:
        picks = np.random.default_rng(0).choice(len(gallery), min(len(gallery), _PER_CELL * cells), replace=False)
        faiss.extract_index_ivf(index).cp.min_points_per_centroid = 1         # a small gallery is no reason for a warning
        index.train(_finite(gallery, np.sort(picks)))
    starts = range(0, len(gallery), ITEMS)
    for start in track(starts, len(starts), "indexing the gallery"):
        index.add(_finite(gallery, slice(start, start + ITEMS)))
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        faiss.write_index(index, str(part))
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _finite(gallery: Tensor | np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
    chosen = _float_rows(gallery, rows).cpu()
    if not chosen.isfinite().all():
        wrong = int((~chosen.isfinite()).any(dim=1).sum())
        raise ValueError(f"the gallery has {wrong} rows that are not finite; check the embeddings")
    return np.ascontiguousarray(chosen.numpy())


def _effort(kind: str, effort: int) -> str:
    return {"flat": "", "ivf": f"nprobe={effort}", "hnsw": f"efSearch={effort}"}[kind]


@contextmanager
def _faiss() -> Iterator[Any]:
    """FAISS, imported where it is needed (0.1 to 0.2 s), on as many threads as torch has; its own number comes back afterwards.

    Imported after torch it uses torch's OpenMP, and to set its number of threads is to set torch's; before torch, one of its own.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


def fingerprint(gallery: Tensor | np.ndarray) -> str:
    """16 hexadecimal digits of the sha256 of a gallery's shape and numbers (as float32)."""
    state = hashlib.sha256(repr(tuple(gallery.shape)).encode())
    for start in range(0, len(gallery), ITEMS):
        state.update(np.ascontiguousarray(_float_rows(gallery, slice(start, start + ITEMS)).cpu().numpy()))
    return state.hexdigest()[:16]


def recall(index: GalleryIndex, gallery: Tensor | np.ndarray, queries: Tensor | np.ndarray, k: int = 10) -> float:
    """Share, in [0, 1], of the exact k best items of the queries (Q, D) that the index finds among its k best."""
    exact, found = search(queries, gallery, k)[1].numpy(), index.search(queries, k)[1].numpy()
    return float(np.mean([np.isin(truth, answer).mean() for truth, answer in zip(exact, found)]))
