"""Downloads that resume and are verified, and archives that cannot write outside their folder.

Nothing here runs unless a user asks for it (`python -m lib.data download NAME`).
"""
from __future__ import annotations

import hashlib
import http.client
import io
import os
import shutil
import stat
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import py7zr
from py7zr.io import Py7zIO, WriterFactory
from tqdm.auto import tqdm

CHUNK = 2**20  # bytes
TIMEOUT = 60  # seconds without a byte


class DownloadError(RuntimeError):
    """A download or an archive was refused or did not finish; the message says what to do."""


def fetch(url: str, path: str | Path, *, sha256: str | None = None, md5: str | None = None, size: int | None = None,
          attempts: int = 3) -> Path:
    """Download `url` to `path`, going on from where an earlier call was interrupted.

    The bytes collect in `path` + ".part"; `path` itself appears only when complete and verified. What an interrupted
    download left is used when the server confirms that the file is the same (its ETag) or when a checksum is given.

    Args:
        sha256, md5: hex digests that the file must have. size: its bytes. None: not known.
        attempts: how often to try when the connection breaks.

    Raises:
        DownloadError: the server refuses, the connection keeps breaking (call again: it goes on), or the file is not the
            expected one (then nothing is kept).
    """
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url}: only http and https addresses are downloaded")
    path = Path(path)
    part, tag = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.etag")
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, attempts + 1):
        try:
            _transfer(url, part, tag, trusted=bool(sha256 or md5))
            break
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{url}: the server answered {error.code} {error.reason}; check the address or download the "
                                f"file by hand to {path}") from error
        except (OSError, EOFError, http.client.HTTPException) as error:  # URLError, time-outs and resets are OSErrors
            if attempt == attempts:
                raise DownloadError(f"{url}: the connection broke {attempts} times ({error}); run the same command again "
                                    f"to go on from {part.stat().st_size if part.exists() else 0:,} bytes") from error
            time.sleep(min(2**attempt, 10))
    problem = _problem(part, sha256, md5, size)
    if problem:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise DownloadError(f"{url}: {problem}; the file was damaged or altered and has been removed, download it again")
    os.replace(part, path)
    tag.unlink(missing_ok=True)
    return path


def _transfer(url: str, part: Path, tag: Path, trusted: bool) -> None:
    """Append what is missing to `part`. Raises EOFError when fewer bytes came than the server stated."""
    known = tag.read_text() if tag.is_file() else ""
    offset = part.stat().st_size if part.is_file() and (trusted or known) else 0
    headers = {"User-Agent": "workbook", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if known:
            headers["If-Range"] = known  # the server sends the whole file when it is another one by now
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: the part is complete, or longer than the file; verification decides
            raise
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total != str(offset):
            part.unlink()
            return _transfer(url, part, tag, trusted)
        return None
    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise EOFError("the server sent another range than the one asked for")
        if response.status != 206:
            offset = 0
        etag = response.headers.get("ETag", "")
        tag.write_text("" if etag.startswith("W/") else etag)  # a weak tag does not promise equal bytes
        length = int(response.headers["Content-Length"]) if response.headers.get("Content-Length") else None
        total = None if length is None else offset + length
        with open(part, "ab" if offset else "wb") as target, \
                tqdm(total=total, initial=offset, desc=part.stem, unit="B", unit_scale=True, leave=False) as bar:
            while chunk := response.read(CHUNK):
                target.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise EOFError(f"{part.stat().st_size:,} of {total:,} bytes came")
    return None


def _problem(path: Path, sha256: str | None, md5: str | None, size: int | None) -> str | None:
    if size is not None and path.stat().st_size != size:
        return f"expected {size:,} bytes, got {path.stat().st_size:,}"
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected:
            with open(path, "rb") as stream:
                found = hashlib.file_digest(stream, name).hexdigest()
            if found != expected.lower():
                return f"expected {name} {expected}, got {found}"
    return None


def extract(archive: str | Path, folder: str | Path, *, max_bytes: int = 50 * 2**30,
            verify: Callable[[Path], None] | None = None) -> Path:
    """Unpack a zip, tar or 7z archive into a new folder, all of it or nothing.

    Refused before anything is written: absolute names, "..", links, devices, encrypted entries, more than `max_bytes` in
    all (the bytes are counted again while unpacking, because headers can lie). The CRC of every zip and 7z entry is checked.

    Args:
        archive: of a 7z archive that was split, the first volume, name.7z.001; the others lie beside it.
        folder: must not exist yet (or be empty); it appears only when everything is unpacked and verified.
        verify: called with the unpacked folder before it is moved into place; an exception refuses the archive.

    Raises:
        DownloadError: naming the entry and the rule it breaks, or the volume that is missing.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DownloadError(f"{folder} already exists and is not empty; remove it to unpack {archive.name} again")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        if _is_7z(archive):
            _unpack_7z(archive, part, max_bytes)
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as source:
                _unpack(_zip_entries(source), source.open, part, max_bytes, archive)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as source:
                _unpack(_tar_entries(source), source.extractfile, part, max_bytes, archive)
        else:
            raise DownloadError(f"{archive}: neither a zip, a tar nor a 7z archive; download it again")
        if verify:
            verify(part)
        os.replace(part, folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DownloadError(f"{archive}: damaged ({error}); remove it and download it again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


class _Entry(NamedTuple):
    name: str
    size: int  # bytes, as the archive states them
    is_folder: bool
    complaint: str
    handle: object  # what the library calls the entry


def _zip_entries(source: zipfile.ZipFile) -> Iterator[_Entry]:
    for entry in source.infolist():
        complaint = "is encrypted" if entry.flag_bits & 1 else ""
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            complaint = "is a link or a device"
        yield _Entry(entry.filename, entry.file_size, entry.is_dir(), complaint, entry)


def _tar_entries(source: tarfile.TarFile) -> Iterator[_Entry]:
    for entry in source:
        complaint = "" if entry.isreg() or entry.isdir() else "is a link or a device"
        yield _Entry(entry.name, entry.size, entry.isdir(), complaint, entry)


def _7z_entries(source: py7zr.SevenZipFile) -> Iterator[_Entry]:
    for entry in source.files:
        complaint = "is encrypted" if source.password_protected else ""
        if entry.is_symlink or entry.is_junction or entry.st_fmt not in (None, 0, stat.S_IFREG, stat.S_IFDIR):
            complaint = "is a link or a device"
        yield _Entry(entry.filename, entry.uncompressed, entry.is_directory, complaint, entry)


def _checked(entries: Iterable[_Entry], folder: Path, max_bytes: int, archive: Path) -> dict[Path, _Entry]:
    """The files of an archive by where they go, after their folders have been made. DownloadError where one breaks a rule."""
    files, folders, total = {}, {folder}, 0
    for entry in entries:
        name, path, complaint = entry.name, PurePosixPath(entry.name), entry.complaint
        if path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":" or "\0" in name:
            complaint = "points outside its folder"
        place = folder / path
        inside = {place if entry.is_folder else place.parent, *(folder / parent for parent in path.parents)}
        if not files.keys().isdisjoint(inside) or not entry.is_folder and (place in files or place in folders):
            complaint = "comes twice"
        total += entry.size
        if total > max_bytes:
            complaint = f"brings the archive above {max_bytes:,} bytes"
        if complaint:
            raise DownloadError(f"{archive}: refused, nothing was unpacked: entry {name!r} {complaint}")
        folders |= inside
        if not entry.is_folder:
            files[place] = entry
    for path in sorted(folders):
        path.mkdir(parents=True, exist_ok=True)
    return files


def _unpack(entries: Iterable[_Entry], opened: Callable[[object], IO[bytes]], folder: Path, max_bytes: int,
            archive: Path) -> None:
    files, left = _checked(entries, folder, max_bytes, archive), max_bytes
    for path, entry in tqdm(files.items(), desc=f"unpack {archive.name}", unit="file", leave=False):
        with opened(entry.handle) as source, open(path, "xb") as target:
            while chunk := source.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise DownloadError(f"{archive}: refused: it unpacks to more than {max_bytes:,} bytes")
                target.write(chunk)


def _is_7z(archive: Path) -> bool:
    with open(archive, "rb") as file:
        return file.read(6) == b"7z\xbc\xaf\x27\x1c"


# The first bytes of the numbers of methods whose blocks py7zr 1.1 decodes whole, at 2,000 times their size or more.
_BURSTING = (b"\x04\x01", b"\x04\xf7")


def _blocks(source: py7zr.SevenZipFile) -> list:
    streams = getattr(source.header, "main_streams", None)  # an archive of empty files has none
    return streams.unpackinfo.folders if streams else []


def _unpack_7z(archive: Path, folder: Path, max_bytes: int) -> None:
    """As `_unpack`; but py7zr decodes from end to end, as entries share one stream, and writes them through `_WriteTo`."""
    try:
        with _Volumes(archive) as volumes, py7zr.SevenZipFile(volumes, max_extract_size=max_bytes) as source:
            if any(coder["method"][:2] in _BURSTING for block in _blocks(source) for coder in block.coders):
                raise DownloadError(f"{archive}: refused, nothing was unpacked: packed by Deflate, Zstandard or Brotli, which "
                                    "here could fill the memory; unpack it with 7-Zip")
            files = _checked(_7z_entries(source), folder, max_bytes, archive)
            total = sum(entry.size for entry in files.values())
            with tqdm(total=total, desc=f"unpack {archive.name}", unit="B", unit_scale=True, leave=False) as bar:
                source.extractall(folder, factory=_WriteTo(bar))
        for path, entry in files.items():
            if not path.is_file() or path.stat().st_size != entry.size:
                raise ValueError(f"{entry.name!r} is incomplete")
    except (DownloadError, OSError):
        raise
    except py7zr.exceptions.PasswordRequired as error:
        raise DownloadError(f"{archive}: refused, nothing was unpacked: it is encrypted") from error
    except py7zr.exceptions.DecompressionBombError as error:
        raise DownloadError(f"{archive}: refused: it unpacks to more than {max_bytes:,} bytes") from error
    except py7zr.exceptions.UnsupportedCompressionMethodError as error:
        raise DownloadError(f"{archive}: packed in an unknown way ({error.message}); unpack it with 7-Zip") from error
    except Exception as error:  # py7zr and its decoders meet damaged bytes with errors of any kind
        raise DownloadError(f"{archive}: damaged ({error!r}); remove it and download it again") from error


class _WriteTo(WriterFactory):
    """Files that py7zr writes to piece by piece. (On its own it would also make links, and set modes and times.)"""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def create(self, filename: str) -> "_File":
        return _File(filename, self.bar)


class _File(Py7zIO):
    def __init__(self, path: str, bar: tqdm):
        self._file, self._bar = open(path, "xb"), bar

    def write(self, s: bytes | bytearray) -> int:
        self._bar.update(len(s))
        return self._file.write(s)

    def close(self) -> None:
        self._file.close()

    def size(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def flush(self) -> None:
        self._file.flush()

    def read(self, size: int | None = None) -> bytes:
        raise io.UnsupportedOperation("files are only written")


class _Volumes(io.RawIOBase):
    """The volumes of a split 7z archive as one file to read and to seek in; an archive that was not split is its only volume."""

    def __init__(self, first: Path):
        names = list(_volumes(first)) if first.suffix == ".001" else [first]
        self._ends = list(accumulate(name.stat().st_size for name in names))
        self._files = [open(name, "rb", buffering=0) for name in names]
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._ends[-1]}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        """All that is asked for, across the borders of volumes: a raw file may return less, and py7zr does not ask again."""
        parts, left = [], max(0, self._ends[-1] - self._place)
        left = left if size is None or size < 0 else min(left, size)
        while left:
            number = bisect_right(self._ends, self._place)
            self._files[number].seek(self._place - (self._ends[number - 1] if number else 0))
            part = self._files[number].read(left)
            if not part:
                raise EOFError("it became shorter while it was read")
            parts.append(part)
            left -= len(part)
            self._place += len(part)
        return b"".join(parts)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def _volumes(first: Path) -> Iterator[Path]:
    """The volumes of name.7z.001, as many as its header says. DownloadError where one is missing or has another size."""
    with open(first, "rb") as file:
        checksum, header = struct.unpack("<8xI20s", file.read(32))
    if zlib.crc32(header) != checksum:
        raise DownloadError(f"{first}: damaged (wrong CRC of its first bytes); remove it and download it again")
    offset, length = struct.unpack("<QQ4x", header)  # the table of contents, which is the end of the archive
    total, each = 32 + offset + length, first.stat().st_size
    for number in range(1, -(-total // each) + 1):
        volume, expected = first.with_suffix(f".{number:03d}"), min(each, total - (number - 1) * each)
        if not volume.is_file():
            raise DownloadError(f"{volume}: this volume, number {number} of {-(-total // each)}, is missing; download it, too")
        if volume.stat().st_size != expected:
            raise DownloadError(f"{volume}: expected a volume of {expected:,} bytes, got {volume.stat().st_size:,}; remove it "
                                "and download it again (the first volume, if all others seem wrong)")
        yield volume
