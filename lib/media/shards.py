"""Clips that lie in parquet files: the audio of one row, found without loading the file.

Convention: a row is addressed like a file, "train_balanced/00.parquet#17" (rows count from 0), with "@16000" behind it where the
sample rate in Hz of a bare array is known from elsewhere. `lib.media.audio` and all that is built on it take such addresses; a
real file of such a name comes first. The column `audio` holds encoded files (`bytes`), or samples: a list of numbers, or of one
list a channel (or a moment), by itself or as `array` beside `sampling_rate`.

A thread keeps one place in one row group open and goes forward from there, row by row: clips in their order cost one pass over
each row group, in two to three times the memory of its largest page, which may be the whole row group. A row that lies behind
begins its row group again: in a random order, reading costs several times as much as decoding.
"""
from __future__ import annotations

import os
import re
import threading
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lib.media.audio import AudioError

COLUMN = "audio"
MOST_CHANNELS = 16  # of an array; with more rows than that it is a spectrogram, or something else
_BUFFER = 2**16  # bytes; with a buffer pyarrow reads page by page, without one the whole row group first
_ADDRESS = re.compile(r"(.+\.parquet)#(\d+)(?:@(\d+))?", re.DOTALL)
_thread = threading.local()  # .place: the `_Place` of this thread


@dataclass(frozen=True)
class Row:
    """Where a clip lies: file, row from 0, and the sample rate in Hz of an array that does not state its own (None: unknown)."""

    file: str
    number: int
    sample_rate: int | None = None

    def __str__(self) -> str:
        return f"{self.file}#{self.number}" + (f"@{self.sample_rate}" if self.sample_rate else "")


def parse(path: str | os.PathLike) -> Row | None:
    """The row that a path addresses; None for any other path, and for a file that is really called so."""
    found = _ADDRESS.fullmatch(os.fspath(path))
    if found is None or os.path.lexists(path):
        return None
    return Row(found[1], int(found[2]), int(found[3]) if found[3] else None)


def read_row(row: Row) -> bytes | tuple[np.ndarray, int]:
    """What a row holds: an encoded file, or samples (n, channels) float32 of full scale +-1 and their rate in Hz.

    Raises:
        AudioError: naming the row and what is wrong: no such row, no audio in it, an array that is no waveform or has no sample
            rate, a file that is no longer there or no valid parquet.
    """
    try:
        place = getattr(_thread, "place", None)
        if place is None or place.key != _key(row.file):
            place = _thread.place = None  # the old one's memory is free before the new one's is taken
            place = _thread.place = _Place(row.file)
        if row.number >= place.ends[-1]:
            raise AudioError(f"{row}: the file has only {place.ends[-1]} rows; prepare the data set again", "missing")
        cell = place.cell(row.number)
    except (pa.ArrowException, OSError) as error:
        _thread.place = None
        raise AudioError(f"{row}: cannot be read from the parquet file ({error}); fetch {row.file} again") from error
    return _content(row, cell)


def _key(file: str) -> tuple:
    status = os.stat(file)
    return file, status.st_size, status.st_mtime_ns, os.getpid()  # a forked process must not share the reader of its parent


class _Place:
    """One row after the other of one parquet file."""

    def __init__(self, file: str):
        self.key = _key(file)
        self.parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        metadata = self.parquet.metadata
        self.ends = list(accumulate(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))) or [0]
        self.group, self.next = None, 0  # the row that comes next
        self.last: pa.Array | None = None

    def cell(self, number: int) -> pa.Array:
        """Row `number` of the column, as an array of length 1. The row that was read last is still at hand."""
        group = bisect_right(self.ends, number)
        if group != self.group or number < self.next - 1:
            self.rows = self.last = None
            self.rows = self.parquet.iter_batches(batch_size=1, row_groups=[group], columns=[COLUMN], use_threads=False)
            self.group, self.next = group, self.ends[group - 1] if group else 0
        while self.next <= number:
            batch = next(self.rows, None)
            if batch is None:
                raise pa.ArrowInvalid(f"row group {group} ends at row {self.next}")
            self.last = batch.column(0)
            self.next += 1
        return self.last


def _content(row: Row, cell: pa.Array) -> bytes | tuple[np.ndarray, int]:
    rate = row.sample_rate
    if pa.types.is_struct(cell.type):
        names = [field.name for field in cell.type] if cell[0].is_valid else []
        encoded = cell.field("bytes") if "bytes" in names else None
        if encoded is not None and encoded[0].is_valid:
            return _file(row, encoded[0])
        if "sampling_rate" in names:
            rate = cell.field("sampling_rate")[0].as_py() or rate
        if "array" not in names:
            raise AudioError(f"{row}: no audio in this row (column {COLUMN!r} is null, or has no bytes); leave it out", "empty")
        cell = cell.field("array")
    if not cell[0].is_valid:
        raise AudioError(f"{row}: no audio in this row (column {COLUMN!r} is null); leave it out", "empty")
    if pa.types.is_binary(cell.type) or pa.types.is_large_binary(cell.type):
        return _file(row, cell[0])
    if not isinstance(cell[0], pa.ListScalar):
        raise AudioError(f"{row}: column {COLUMN!r} is of type {cell.type}; expected a struct with bytes, or with array and "
                         "sampling_rate, or a list of samples")
    signal = _signal(row, cell[0].values)
    if not isinstance(rate, (int, float)) or not rate >= 1:
        raise AudioError(f"{row}: an array with no sample rate; set array_sample_rate to that of the data set", "no sample rate")
    return signal, round(rate)


def _file(row: Row, scalar: pa.Scalar) -> bytes:
    content = scalar.as_py()
    if not content:
        raise AudioError(f"{row}: no audio in this row (0 bytes); leave it out", "empty")
    return content


def _signal(row: Row, values: pa.Array) -> np.ndarray:
    """The items of a list as samples (n, channels) float32; the smaller axis of two is the channels."""
    shape = (len(values), 1)
    if isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        lengths = np.unique(pc.list_value_length(values).to_numpy(zero_copy_only=False))
        if len(lengths) > 1 or values.null_count:
            raise AudioError(f"{row}: an array with channels of different lengths; expected as many samples in each")
        shape, values = (len(values), *map(int, lengths)), values.flatten()
    if not len(values):
        return np.zeros((0, 1), dtype=np.float32)
    if min(shape) > MOST_CHANNELS:
        raise AudioError(f"{row}: an array of shape {shape} is no waveform; expected (samples,), (channels, samples) or "
                         "(samples, channels)")
    signal = _floats(row, values).reshape(shape)
    return signal if shape[1] <= shape[0] else np.ascontiguousarray(signal.T)


def _floats(row: Row, values: pa.Array) -> np.ndarray:
    """Numbers as float32; whole ones are divided by the full scale of their type, what is null becomes NaN."""
    kind = values.type
    if pa.types.is_floating(kind):
        return values.to_numpy(zero_copy_only=False).astype(np.float32)
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise AudioError(f"{row}: an array of type {kind}; expected numbers")
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if pa.types.is_null(kind):
        return numbers.astype(np.float32)
    bits, middle = kind.bit_width, 0.0
    if bits == 64:  # what lists of Python's numbers become, whatever they were before
        bits = 16
        if np.nanmax(np.abs(numbers), initial=0.0) > 2**15:
            raise AudioError(f"{row}: 64-bit whole numbers beyond 16 bits have no known full scale; store int16, int32, or "
                             "floats of -1 to 1")
    elif pa.types.is_unsigned_integer(kind):
        middle = 2.0 ** (bits - 1)
    return ((numbers - middle) / 2.0 ** (bits - 1)).astype(np.float32)
