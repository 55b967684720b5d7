"""Token files: a sound as the bits of a tokenizer, in as little space as the bits need.

Convention: all numbers are little-endian, bits run most significant first. A file is

    8 bytes   magic, then the version (u16) and the length of the head (u32)
    head      what `TokenHeader` holds, then the numbers known at the end: tokens, samples, length and CRC-32 of the payload
    4 bytes   CRC-32 of all before it
    payload   blocks: tokens (u32), peaks (u32), length of the data (u32); the peaks (f32); the data

A clip is cut into chunks, each of which is the same grid of patches: time columns, and in each the rows, lowest frequency first.
The data of a block are its tokens' bits, either "packed" or through `lib.media.arithmetic` with one probability for each bit and,
if wanted, each row. Blocks hold about a million bits, so that a file of any length is written and read in the same memory.
A file is complete or not there: the writer fills a temporary file and renames it.
"""
from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.media import arithmetic

MAGIC = b"\x93BSQTOK\n"          # the first byte is no text, the last one tells of a transfer that changes line ends
VERSION = 1
CODINGS = ("packed", "arithmetic")
BLOCK_BITS = 1 << 20
_START = struct.Struct("<8sHI")
_FIXED = struct.Struct("<HHIIIBfBH")     # bits, scales, frames, sample rate, hop, reference kind, reference, coding, contexts
_END = struct.Struct("<QQQI")            # tokens, samples, payload bytes, CRC-32 of the payload
_BLOCK = struct.Struct("<III")
_NO_PEAKS = np.zeros(0, dtype=np.float32)


class TokenFileError(ValueError):
    """A file that is no token file, a damaged one, or one of another model; names the file and the reason."""


@dataclass(frozen=True)
class TokenHeader:
    """What is known of a token file before its first token.

    Args:
        model: digest of the model that made the tokens and can decode them; text of at most 255 bytes.
        bits: of a token.
        grids: (time columns, rows) of a chunk's patches; several for a model with several patch sizes, whose tokens follow one another.
        frames: of the spectrogram in a chunk.
        sample_rate: Hz.  hop: samples from one frame to the next.
        reference: None: every chunk has its own peak level in dB, which is stored; else the fixed level in dB that all share.
        coding: "packed" or "arithmetic".
        probabilities: for "arithmetic", as `lib.media.arithmetic.quantise` gives them: (1, bits), the same in every place, or
            (sum of rows of all grids, bits). See `bit_probabilities`.
    Raises:
        ValueError: naming the value that is wrong.
    """

    model: str
    bits: int
    grids: tuple[tuple[int, int], ...]
    frames: int
    sample_rate: int
    hop: int
    reference: float | None = None
    coding: str = "packed"
    probabilities: np.ndarray | None = None

    def __post_init__(self):
        object.__setattr__(self, "grids", tuple((int(columns), int(rows)) for columns, rows in self.grids))
        if len(self.model.encode()) > 255:
            raise ValueError(f"token file: model {self.model!r} has more than 255 bytes; give a digest")
        for name, most in (("bits", 2**16), ("frames", 2**32), ("sample_rate", 2**32), ("hop", 2**32)):
            if not 1 <= getattr(self, name) < most:
                raise ValueError(f"token file: {name} must be 1 .. {most - 1}, got {getattr(self, name)!r}")
        if not self.grids or any(not 1 <= side < 2**16 for grid in self.grids for side in grid):
            raise ValueError(f"token file: grids must be one or several (columns, rows) of at least 1, got {self.grids!r}")
        if self.reference is not None and not np.isfinite(self.reference):
            raise ValueError(f"token file: reference must be None or a level in dB, got {self.reference!r}")
        if self.coding not in CODINGS:
            raise ValueError(f"token file: coding must be one of {', '.join(CODINGS)}, got {self.coding!r}")
        if (self.probabilities is not None) != (self.coding == "arithmetic"):
            raise ValueError(f"token file: coding {self.coding!r} " + ("needs probabilities, see bit_probabilities"
                             if self.probabilities is None else "takes no probabilities"))
        if self.probabilities is not None:
            table = np.asarray(self.probabilities)
            if table.dtype != np.uint16 or table.shape not in ((1, self.bits), (self.rows, self.bits)) or not table.all():
                raise ValueError(f"token file: probabilities must be uint16 of at least 1 and of shape (1, {self.bits}) or "
                                 f"({self.rows}, {self.bits}), got {table.dtype} {table.shape}; see bit_probabilities")
            object.__setattr__(self, "probabilities", table.copy())

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return sum(columns * rows for columns, rows in self.grids)

    @property
    def rows(self) -> int:
        """Rows of all grids together: the places in frequency that a token can have."""
        return sum(rows for _, rows in self.grids)


def places(grids: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The row of each token of a chunk, rows of a second grid counting on from those of the first: (tokens,) int64."""
    start = np.cumsum([0, *(rows for _, rows in grids)])
    return np.concatenate([first + np.tile(np.arange(rows), columns) for first, (columns, rows) in zip(start, grids)])


def bit_probabilities(bits: np.ndarray, grids: tuple[tuple[int, int], ...] | None = None) -> np.ndarray:
    """How often each bit is 1, for `TokenHeader.probabilities`.

    Args:
        bits: (N, L) bool, tokens to learn from.
        grids: of a chunk, N being whole chunks; None: every place has the same probabilities.
    Returns:
        uint16 (1, L), or (sum of rows, L) with grids; half a count is added to both outcomes, for what never came may come.
    Raises:
        ValueError: bits of another shape or type, or no whole chunks.
    """
    bits = _bits(bits, None)
    row = places(grids) if grids else np.zeros(1, dtype=np.int64)
    if len(bits) % len(row):
        raise ValueError(f"{len(bits)} tokens are no whole chunks of {len(row)}")
    ones = np.zeros((row.max() + 1, bits.shape[1]))
    np.add.at(ones, row, bits.reshape(-1, len(row), bits.shape[1]).sum(axis=0))
    counts = np.bincount(row)[:, None] * (len(bits) // len(row))
    return arithmetic.quantise((ones + 0.5) / (counts + 1))


class TokenWriter:
    """Writes a token file chunk by chunk, in the memory of a block.

    As a context manager: an error inside leaves nothing behind. `samples` must be set, or `finish(samples)` called, before the end.
    """

    def __init__(self, path: str | Path, header: TokenHeader):
        self.path, self.header, self.samples = Path(path), header, None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._file = open(self._temporary, "wb")
        self._file.write(_head(header, (0, 0, 0, 0)))
        self._tokens = self._length = self._crc = 0
        self._waiting, self._waiting_peaks, self._waiting_chunks = [], [], 0

    def append(self, bits: np.ndarray, peaks: np.ndarray | None = None) -> None:
        """Args: bits: (chunks * tokens of a chunk, L) bool.  peaks: (chunks,) dB, just where the header has no reference.
        Raises: ValueError: shapes that do not fit the header."""
        header, bits = self.header, _bits(bits, self.header.bits)
        chunks, rest = divmod(len(bits), header.chunk_tokens)
        peaks = _NO_PEAKS if peaks is None else np.asarray(peaks, dtype=np.float32).ravel()
        if rest:
            raise ValueError(f"{self.path}: {len(bits)} tokens are no whole chunks of {header.chunk_tokens}")
        if len(peaks) != (chunks if header.reference is None else 0) or not np.isfinite(peaks).all():
            raise ValueError(f"{self.path}: {len(peaks)} peaks for {chunks} chunks" + (
                "; one finite level in dB for each is needed" if header.reference is None else " of a model with a fixed reference level"))
        # a block is full by its number of chunks, not by the pieces they came in: the file does not depend on these
        together = max(1, BLOCK_BITS // (header.chunk_tokens * header.bits))
        while chunks:
            taken = min(chunks, together - self._waiting_chunks)
            self._waiting.append(bits[:taken * header.chunk_tokens].copy())
            self._waiting_peaks.append(peaks[:taken])
            bits, peaks, chunks = bits[taken * header.chunk_tokens:], peaks[taken:], chunks - taken
            self._waiting_chunks += taken
            if self._waiting_chunks == together:
                self._flush()

    def _flush(self) -> None:
        bits, peaks = np.concatenate(self._waiting), np.concatenate(self._waiting_peaks).astype("<f4")
        data = _coded(bits, self.header)
        block = _BLOCK.pack(len(bits), len(peaks), len(data)) + peaks.tobytes() + data
        self._file.write(block)
        self._crc, self._length, self._tokens = zlib.crc32(block, self._crc), self._length + len(block), self._tokens + len(bits)
        self._waiting, self._waiting_peaks, self._waiting_chunks = [], [], 0

    def finish(self, samples: int | None = None) -> Path:
        """Write what is left, complete the head, and give the file its name. Args: samples: of the whole sound. Returns: the path."""
        self.samples = self.samples if samples is None else samples
        if self.samples is None or self.samples < 0:
            self._discard()
            raise ValueError(f"{self.path}: samples, the length of the sound, was not given; nothing was written")
        if self._waiting:
            self._flush()
        self._file.seek(0)
        self._file.write(_head(self.header, (self._tokens, self.samples, self._length, self._crc)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        return self.path

    def _discard(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self._discard()
        elif not self._file.closed:
            self.finish()


class TokenReader:
    """Reads a token file block by block, in the memory of a block; the whole file is checked before the first block.

    Attributes:
        header: TokenHeader.  tokens: number of them.  samples: length of the sound.  size: bytes of the file.
    Args:
        model: digest of the model that is to decode it; None: any.
    Raises:
        TokenFileError: no token file, another version, damaged, cut off, or of another model.  FileNotFoundError: no such file.
    """

    def __init__(self, path: str | Path, model: str | None = None):
        self.path = Path(path)
        with open(self.path, "rb") as file:
            self.header, (self.tokens, self.samples, length, expected) = _read_head(file, self.path)
            self._start, self.size = file.tell(), os.fstat(file.fileno()).st_size
            if self.size != self._start + length:
                what = "cut off" if self.size < self._start + length else "too long"
                raise TokenFileError(f"{self.path}: {what}: {self.size} bytes where its head promises {self._start + length}; copy again")
            found = 0
            while part := file.read(1 << 20):
                found = zlib.crc32(part, found)
        if found != expected:
            raise TokenFileError(f"{self.path}: damaged: the checksum of its tokens is {found:08x}, not {expected:08x}; copy it again")
        if model is not None and model != self.header.model:
            raise TokenFileError(f"{self.path}: made by model {self.header.model!r}; this one is {model!r}, which cannot decode it")

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return self.samples / self.header.sample_rate

    @property
    def bits_per_second(self) -> float:
        """What the file really takes, its head included; NaN for no sound."""
        return 8 * self.size / self.seconds if self.samples else float("nan")

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Bits (n, L) bool of whole chunks and the chunks' peaks in dB, (chunks,) float32 (none with a fixed reference), block by block."""
        header, seen = self.header, 0
        with open(self.path, "rb") as file:
            file.seek(self._start)
            while start := file.read(_BLOCK.size):
                try:
                    tokens, count, length = _BLOCK.unpack(start)
                    peaks, data = np.frombuffer(file.read(4 * count), "<f4", count=count), file.read(length)
                    seen += tokens
                    chunks, rest = divmod(tokens, header.chunk_tokens)
                    if rest or count != (chunks if header.reference is None else 0) or len(data) != length or seen > self.tokens:
                        raise ValueError("a block that does not fit the head")
                    bits = _decoded(data, chunks, header)
                except (ValueError, struct.error) as error:
                    raise TokenFileError(f"{self.path}: damaged: {error}; copy it again") from error
                yield bits, peaks.astype(np.float32)
        if seen != self.tokens:
            raise TokenFileError(f"{self.path}: damaged: {seen} tokens where its head promises {self.tokens}; copy it again")


@dataclass(frozen=True)
class TokenFile:
    """A whole token file.

    Attributes: header.  bits: (N, L) bool.  peaks: (chunks,) float32 dB, empty with a fixed reference.  samples: length of the sound.
        size: bytes of the file.  seconds, bits_per_second: as `TokenReader`.
    """

    header: TokenHeader
    bits: np.ndarray
    peaks: np.ndarray
    samples: int
    size: int
    seconds: float
    bits_per_second: float


def write_tokens(path: str | Path, bits: np.ndarray, header: TokenHeader, *, samples: int, peaks: np.ndarray | None = None) -> Path:
    """Write a token file at once. Args, Raises: as `TokenWriter.append` and `finish`. Returns: the path."""
    with TokenWriter(path, header) as writer:
        writer.append(bits, peaks)
        return writer.finish(samples)


def read_tokens(path: str | Path, model: str | None = None) -> TokenFile:
    """Read a token file at once. Args, Raises: as `TokenReader`."""
    reader = TokenReader(path, model)
    blocks = [(np.zeros((0, reader.header.bits), dtype=bool), _NO_PEAKS), *reader]
    bits, peaks = (np.concatenate(parts) for parts in zip(*blocks))
    return TokenFile(reader.header, bits, peaks, reader.samples, reader.size, reader.seconds, reader.bits_per_second)


def _bits(bits: np.ndarray, width: int | None) -> np.ndarray:
    bits = np.asarray(bits)
    if bits.dtype != np.bool_ or bits.ndim != 2 or (width is not None and bits.shape[1] != width):
        raise ValueError(f"tokens must be bool of shape (tokens, {width or 'bits'}), got {bits.dtype} {bits.shape}; codes > 0 are bits")
    return bits


def _spread(header: TokenHeader, chunks: int) -> np.ndarray:
    table = header.probabilities
    table = table[places(header.grids)] if len(table) > 1 else np.broadcast_to(table, (header.chunk_tokens, header.bits))
    return np.broadcast_to(table, (chunks, *table.shape))


def _coded(bits: np.ndarray, header: TokenHeader) -> bytes:
    if header.coding == "packed":
        return np.packbits(bits).tobytes()
    chunks = len(bits) // header.chunk_tokens
    return arithmetic.encode(bits.reshape(chunks, header.chunk_tokens, header.bits), _spread(header, chunks))


def _decoded(data: bytes, chunks: int, header: TokenHeader) -> np.ndarray:
    count = chunks * header.chunk_tokens * header.bits
    if header.coding == "arithmetic":
        return arithmetic.decode(data, _spread(header, chunks)).reshape(-1, header.bits)
    if len(data) != -(-count // 8):
        raise ValueError(f"{len(data)} bytes for {count} bits")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).astype(bool).reshape(-1, header.bits)


def _head(header: TokenHeader, end: tuple[int, int, int, int]) -> bytes:
    """All before the payload; its length depends on the header only."""
    name, table = header.model.encode(), header.probabilities
    reference = header.reference if header.reference is not None else 0.0
    body = _FIXED.pack(header.bits, len(header.grids), header.frames, header.sample_rate, header.hop, header.reference is not None,
                       reference, CODINGS.index(header.coding), 0 if table is None else len(table))
    body += bytes([len(name)]) + name + np.array(header.grids, dtype="<u2").tobytes()
    body += b"" if table is None else table.astype("<u2").tobytes()
    head = _START.pack(MAGIC, VERSION, len(body) + _END.size) + body + _END.pack(*end)
    return head + struct.pack("<I", zlib.crc32(head))


def _read_head(file, path: Path) -> tuple[TokenHeader, tuple[int, int, int, int]]:
    start = file.read(_START.size)
    if start[:len(MAGIC)] != MAGIC:
        raise TokenFileError(f"{path}: " + ("cut off: less than a head; copy it again" if MAGIC.startswith(start[:len(MAGIC)])
                                            else "no token file; it does not begin as one"))
    if len(start) < _START.size:
        raise TokenFileError(f"{path}: cut off: less than a head; copy it again")
    _, version, length = _START.unpack(start)
    if version != VERSION:
        raise TokenFileError(f"{path}: version {version} of token files; this workbook reads version {VERSION}")
    rest = file.read(min(length, 1 << 28) + 4)
    if len(rest) < length + 4:
        raise TokenFileError(f"{path}: cut off: its head has {len(rest)} of {length + 4} bytes; copy it again")
    if struct.unpack("<I", rest[-4:])[0] != zlib.crc32(start + rest[:-4]):
        raise TokenFileError(f"{path}: damaged: the checksum of its head is wrong; copy it again")
    try:
        bits, scales, frames, sample_rate, hop, fixed, reference, coding, contexts = _FIXED.unpack_from(rest)
        at = _FIXED.size + 1
        name, at = rest[at:at + rest[at - 1]].decode(), at + rest[at - 1]
        grids, at = np.frombuffer(rest, "<u2", 2 * scales, at).reshape(scales, 2).tolist(), at + 4 * scales
        table = np.frombuffer(rest, "<u2", contexts * bits, at).reshape(contexts, bits).astype(np.uint16) if contexts else None
        end = _END.unpack_from(rest, at + (0 if table is None else 2 * table.size))
        header = TokenHeader(name, bits, tuple(map(tuple, grids)), frames, sample_rate, hop, reference if fixed else None,
                             CODINGS[coding], table)
    except (ValueError, IndexError, struct.error) as error:        # right by its checksum: written by something else
        raise TokenFileError(f"{path}: a head that no token file of version {VERSION} has ({error})") from error
    return header, end
