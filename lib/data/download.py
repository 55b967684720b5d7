"""Downloads that resume and are verified, and archives that cannot write outside their folder.

Nothing here runs unless a user asks for it (`python -m lib.data download NAME`).
"""
from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

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
    """Unpack a zip or tar archive into a new folder, all of it or nothing.

    Refused before anything is written: absolute names, "..", links, devices, encrypted entries, more than `max_bytes` in
    all (the bytes are counted again while unpacking, because headers can lie). The CRC of every zip entry is checked.

    Args:
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
        else:
            raise DownloadError(f"{archive}: neither a zip nor a tar archive; download it again")
        if verify:
            verify(part)
        os.replace(part, folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
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


def _unpack(entries: Iterator[_Entry], folder: Path, max_bytes: int, archive: Path) -> None:
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
