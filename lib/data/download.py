"""Downloads that resume and are verified, and archives that cannot write outside their folder.

Nothing here runs unless a user asks for it (`python -m lib.data download NAME`).
"""
from __future__ import annotations

import glob
import hashlib
import http.client
import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO

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
        DownloadError: naming the entry and the rule it breaks.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DownloadError(f"{folder} already exists and is not empty; remove it to unpack {archive.name} again")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as source:
                _unpack(_zip_entries(source), part, max_bytes, archive)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as source:
                _unpack(_tar_entries(source), part, max_bytes, archive)
        elif _is_7z(archive):
            with ExitStack() as opened:
                _unpack_7z(opened.enter_context(py7zr.SevenZipFile(opened.enter_context(_Volumes(archive)))), part, max_bytes, archive)
        else:
            raise DownloadError(f"{archive}: neither a zip, a tar nor a 7z archive; download it again")
        if verify:
            verify(part)
        os.replace(part, folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, *_DAMAGED_7Z) as error:
        raise DownloadError(f"{archive}: damaged ({error}); remove it and download it again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


_Entry = tuple[str, int, Callable[[], IO[bytes]] | None, str]  # name, stated bytes, opener (None: a folder), complaint


def _zip_entries(source: zipfile.ZipFile) -> Iterator[_Entry]:
    for entry in source.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        complaint = "is encrypted" if entry.flag_bits & 1 else ""
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            complaint = "is a link or a device"
        yield entry.filename, entry.file_size, None if entry.is_dir() else lambda e=entry: source.open(e), complaint


def _tar_entries(source: tarfile.TarFile) -> Iterator[_Entry]:
    for entry in source:
        complaint = "" if entry.isreg() or entry.isdir() else "is a link or a device"
        yield entry.name, entry.size, None if entry.isdir() else lambda e=entry: source.extractfile(e), complaint


# what py7zr and its decoders raise at bytes that are no archive of theirs
_DAMAGED_7Z = (py7zr.exceptions.ArchiveError, lzma.LZMAError, struct.error, ValueError, IndexError, TypeError, KeyError, AssertionError)


class _Volumes(io.RawIOBase):
    """The volumes of a split file as one file that can be read and sought; a file that was not split is its only volume."""

    def __init__(self, first: Path):
        names = [first]
        if first.suffix == ".001":
            numbers = sorted(int(p.suffix[1:]) for p in first.parent.glob(f"{glob.escape(first.stem)}.[0-9][0-9][0-9]"))
            absent = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
            if absent:
                raise DownloadError(f"{first.parent}: volume {first.stem}.{absent[0]:03d} is missing; download it again")
            names = [first.with_suffix(f".{number:03d}") for number in numbers]
        self._files = [open(name, "rb") for name in names]
        self._ends = list(accumulate(os.path.getsize(name) for name in names))
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

    def readinto(self, buffer) -> int:
        number = bisect_right(self._ends, self._place)
        if number == len(self._files):
            return 0
        begin = self._ends[number - 1] if number else 0
        self._files[number].seek(self._place - begin)
        count = self._files[number].readinto(memoryview(buffer)[:self._ends[number] - self._place])
        self._place += count
        return count

    def read(self, size: int = -1) -> bytes:
        """All that is asked for, across the borders of volumes."""
        parts, left = [], self._ends[-1] - self._place if size is None or size < 0 else size
        while left > 0 and (part := super().read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def _is_7z(archive: Path) -> bool:
    with open(archive, "rb") as file:
        return file.read(6) == b"7z\xbc\xaf\x27\x1c"


class _Written(Py7zIO):
    """A file that py7zr writes to, within what is left of the allowance."""

    def __init__(self, path: Path, left: list[int], refusal: str):
        self._file, self._left, self._refusal = open(path, "xb"), left, refusal

    def write(self, s: bytes | bytearray) -> int:
        self._left[0] -= len(s)
        if self._left[0] < 0:
            raise DownloadError(self._refusal)
        return self._file.write(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0            # it asks for the start of what it has written, which nobody reads back

    def flush(self) -> None:
        self._file.flush()

    def size(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _unpack_7z(source: py7zr.SevenZipFile, folder: Path, max_bytes: int, archive: Path) -> None:
    """As `_unpack`; a 7z archive is one stream, which py7zr decodes from end to end (checking each CRC) and writes where it is told to."""
    if source.password_protected:
        raise DownloadError(f"{archive}: refused, nothing was unpacked: it is encrypted")
    entries = [(entry.filename, entry.uncompressed, None if entry.is_directory else _never,
                "is a link or a device" if entry.is_symlink or entry.is_junction or entry.is_socket else "") for entry in source.files]
    checked = _checked(entries, folder, max_bytes, archive)
    folder.mkdir(parents=True)
    for path, opener in checked:
        (path if opener is None else path.parent).mkdir(parents=True, exist_ok=True)
    left, bar = [max_bytes], tqdm(total=len(checked), desc=f"unpack {archive.name}", unit="file", leave=False)

    class Factory(WriterFactory):
        def create(self, filename: str) -> Py7zIO:
            bar.update()
            return _Written(folder / filename, left, f"{archive}: refused: it unpacks to more than {max_bytes:,} bytes")
    with bar:
        source.extractall(factory=Factory())
    for path, opener in checked:       # of empty files nothing is ever written
        if opener is not None and not path.exists():
            path.touch()


def _never() -> IO[bytes]:
    raise NotImplementedError("entries of a 7z archive are not opened one by one")


def _checked(entries: Iterable[_Entry], folder: Path, max_bytes: int, archive: Path) -> list[tuple[Path, Callable[[], IO[bytes]] | None]]:
    """Where every entry goes and what opens it (None: a folder). DownloadError at the first that breaks a rule."""
    checked, seen, total = [], set(), 0
    for name, size, opener, complaint in entries:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":" or "\0" in name:
            complaint = "points outside its folder"
        if opener and path in seen:
            complaint = "comes twice"
        seen.add(path)
        total += size
        if total > max_bytes:
            complaint = f"brings the archive above {max_bytes:,} bytes"
        if complaint:
            raise DownloadError(f"{archive}: refused, nothing was unpacked: entry {name!r} {complaint}")
        checked.append((folder / path, opener))
    return checked


def _unpack(entries: Iterable[_Entry], folder: Path, max_bytes: int, archive: Path) -> None:
    checked = _checked(entries, folder, max_bytes, archive)
    folder.mkdir(parents=True)
    left = max_bytes
    for path, opener in tqdm(checked, desc=f"unpack {archive.name}", unit="file", leave=False):
        if opener is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with opener() as source, open(path, "xb") as target:
            while chunk := source.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise DownloadError(f"{archive}: refused: it unpacks to more than {max_bytes:,} bytes")
                target.write(chunk)
