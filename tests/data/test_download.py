"""Downloads against a local server that can break off, and archives that try to write elsewhere."""
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import py7zr
import pytest

from lib.data import download
from lib.data.download import DownloadError, extract, fetch
from lib.settings import ROOT

CONTENT = os.urandom(300_000)


class _Server(ThreadingHTTPServer):
    content, etag, ranges, break_after = CONTENT, '"v1"', True, None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests, self.stalled = [], threading.Event()
        self.stalled.set()
        self.url = f"http://127.0.0.1:{self.server_port}/file.zip"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked, server = self.headers.get("Range"), self.server
        server.requests.append(asked)
        if self.path == "/absent":
            return self.send_error(404)
        partial = asked and server.ranges and self.headers.get("If-Range", server.etag) == server.etag
        first = int(asked[6:-1]) if partial else 0
        if first >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = server.content[first:]
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.break_after])
        server.stalled.wait(60)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_whole_file(server, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = fetch(server.url, tmp_path / "new" / "file.zip", sha256=digest, size=len(CONTENT), md5=hashlib.md5(CONTENT).hexdigest())
    assert file.read_bytes() == CONTENT and os.listdir(file.parent) == ["file.zip"] and server.requests == [None]


def test_interrupted_and_resumed(server, tmp_path):
    file, server.break_after = tmp_path / "file.zip", 100_000
    with pytest.raises(DownloadError, match="run the same command again to go on from 100,000 bytes"):
        fetch(server.url, file, attempts=1)
    assert not file.exists() and (tmp_path / "file.zip.part").read_bytes() == CONTENT[:100_000]
    server.break_after = None
    assert fetch(server.url, file).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-"] and os.listdir(tmp_path) == ["file.zip"]


def test_goes_on_by_itself(server, tmp_path):
    server.break_after = 120_000
    assert fetch(server.url, tmp_path / "f", attempts=3).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=120000-", "bytes=240000-"]


def test_a_killed_download_goes_on(server, tmp_path):
    """kill -9 while the server stalls after 2.5 of 3 MiB: what has been written counts."""
    server.content, server.break_after, file = os.urandom(3 << 20), 5 << 19, tmp_path / "it's a 'file'.zip"
    server.stalled.clear()
    process = subprocess.Popen([sys.executable, "-c", "import sys; from lib.data.download import fetch; fetch(*sys.argv[1:])", server.url, str(file)], cwd=ROOT)
    part, deadline = file.with_name(file.name + ".part"), time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size >= 2 << 20):
        assert process.poll() is None and time.monotonic() < deadline
    process.kill()
    process.wait()
    server.stalled.set()
    server.break_after, begun = None, part.stat().st_size
    assert not file.exists() and fetch(server.url, file).read_bytes() == server.content
    assert server.requests == [None, f"bytes={begun}-"] and os.listdir(tmp_path) == [file.name]


def test_changed_on_the_server_meanwhile(server, tmp_path):
    server.break_after = 100_000
    with pytest.raises(DownloadError):
        fetch(server.url, tmp_path / "f", attempts=1)
    server.break_after, server.etag, server.content = None, '"v2"', CONTENT[::-1]
    assert fetch(server.url, tmp_path / "f").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag, ranges", [("", True), ('W/"v1"', True), ('"v1"', False)])
def test_starts_again_where_resuming_is_not_safe(server, tmp_path, etag, ranges):
    server.etag, server.ranges, server.break_after = etag, ranges, 100_000
    with pytest.raises(DownloadError):
        fetch(server.url, tmp_path / "f", attempts=1)
    server.break_after = None
    assert fetch(server.url, tmp_path / "f").read_bytes() == CONTENT


def test_part_that_is_already_whole(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "f", sha256=hashlib.sha256(CONTENT).hexdigest()).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("expected", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size": 5}])
def test_altered_file_is_refused_and_removed(server, tmp_path, expected):
    with pytest.raises(DownloadError, match=f"expected .*{expected.get('size', '0000')}"):
        fetch(server.url, tmp_path / "f", **expected)
    assert os.listdir(tmp_path) == []


def test_addresses(server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        fetch(server.url.replace("file.zip", "absent"), tmp_path / "f")
    with pytest.raises(DownloadError, match="only http"):
        fetch("file:///etc/passwd", tmp_path / "f")


def _zip(path, *entries, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries:
            target.writestr(name, content)
    return path


def _tar(path, *entries):
    with tarfile.open(path, "w:gz") as target:
        for name, content in entries:
            if isinstance(name, str):
                name = tarfile.TarInfo(name)
                name.size = len(content)
            target.addfile(name, io.BytesIO(content))
    return path


def _7z(path, *entries, **options):
    """A 7z archive; names that py7zr would not write are put in by writing over others of the same length."""
    names = [name for name, _ in entries if ".." in name or name[0] == "/" or "\\" in name or ":" in name]
    renamed = {f"{i}".rjust(len(name), "_"): name for i, name in enumerate(names)}
    stored = {name: safe for safe, name in renamed.items()}
    with py7zr.SevenZipFile(path, "w", filters=[{"id": py7zr.FILTER_COPY}], **options) as target:
        target.set_encoded_header_mode(False)
        for name, content in entries:
            target.writestr(content, stored.get(name, name))
    if renamed:
        data = path.read_bytes()
        header = data[32 + int.from_bytes(data[12:20], "little"):]
        changed = header
        for safe, name in renamed.items():
            changed = changed.replace(safe.encode("utf-16-le"), name.encode("utf-16-le"))
        assert changed != header and len(changed) == len(header)
        start = data[12:28] + zlib.crc32(changed).to_bytes(4, "little")
        path.write_bytes(data[:8] + zlib.crc32(start).to_bytes(4, "little") + start + data[32:len(data) - len(header)] + changed)
    return path


def _link(name, target, kind=tarfile.SYMTYPE):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def _tree(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


@pytest.mark.parametrize("make", [_zip, _tar, _7z])
def test_unpacks(tmp_path, make):
    archive = make(tmp_path / "a", ("top/x.txt", b"1"), ("top/deep/-y: z.txt", b"22"))
    folder = extract(archive, tmp_path / "out")
    assert _tree(folder) == {"top", "top/deep", "top/x.txt", "top/deep/-y: z.txt"} and (folder / "top/deep/-y: z.txt").read_bytes() == b"22"
    with pytest.raises(DownloadError, match="already exists"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:/out.txt"])
@pytest.mark.parametrize("make", [_zip, _tar, _7z])
def test_names_that_lead_out(tmp_path, make, name):
    archive = make(tmp_path / "a", ("good.txt", b"1"), (name, b"2"))
    with pytest.raises(DownloadError, match="outside"):
        extract(archive, tmp_path / "in" / "out")
    assert _tree(tmp_path) <= {"a", "in"}


def test_links_and_devices(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archives = [_zip(tmp_path / "0", (link, "/etc/passwd"))]
    for i, entry in enumerate([_link("l", "/etc"), _link("l", "/etc/passwd", tarfile.LNKTYPE), _link("l", "", tarfile.FIFOTYPE)], 1):
        archives.append(_tar(tmp_path / str(i), (entry, b""), ("l/x", b"1")))
    for archive in archives:
        with pytest.raises(DownloadError, match="link or a device"):
            extract(archive, tmp_path / "out")
    os.symlink("/etc/passwd", tmp_path / "l")
    with py7zr.SevenZipFile(tmp_path / "4", "w") as target:
        target.write(tmp_path / "l", "l")
    (tmp_path / "l").unlink()
    with pytest.raises(DownloadError, match="link or a device"):
        extract(tmp_path / "4", tmp_path / "out")
    assert _tree(tmp_path) == {"0", "1", "2", "3", "4"}


def test_bombs(tmp_path):
    for make in (_zip, _7z):
        archive = make(tmp_path / "a", *((f"{i}", b"0" * 100_000) for i in range(5)))
        with pytest.raises(DownloadError, match="above 400,000 bytes"):
            extract(archive, tmp_path / "out", max_bytes=400_000)
    with pytest.raises(DownloadError, match="comes twice"), pytest.warns(UserWarning):
        extract(_zip(tmp_path / "b", ("x", b"1"), ("x", b"2")), tmp_path / "out")
    assert _tree(tmp_path) == {"a", "b"}


def test_damaged_archives(tmp_path):
    content = bytearray(_zip(tmp_path / "a", ("first", b"1"), ("x", os.urandom(1000))).read_bytes())
    content[500] ^= 1
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b"<html>not found</html>")
    (tmp_path / "c").write_bytes(_tar(tmp_path / "c", ("x", os.urandom(9000))).read_bytes()[:5000])
    for name in "abc":
        with pytest.raises(DownloadError, match="download it again"):
            extract(tmp_path / name, tmp_path / "out")
    assert _tree(tmp_path) == {"a", "b", "c"}


def test_refused_by_the_caller(tmp_path):
    def verify(folder):
        raise DownloadError(f"{len(_tree(folder))} file")

    with pytest.raises(DownloadError, match="1 file"):
        extract(_zip(tmp_path / "a", ("x", b"1")), tmp_path / "out", verify=verify)
    assert _tree(tmp_path) == {"a"}


def _split(path, size):
    """The archive cut into volumes of `size` bytes, as 7-Zip does; returns the first."""
    data = path.read_bytes()
    for i in range(0, len(data), size):
        path.with_name(f"{path.name}.{i // size + 1:03d}").write_bytes(data[i:i + size])
    path.unlink()
    return path.with_name(f"{path.name}.001")


@pytest.mark.parametrize("size", [1000, 40_000, 10**6])
def test_volumes_of_a_split_archive_are_one(tmp_path, size):
    files = {f"top/{i}.mp3": os.urandom(9000) for i in range(8)} | {"top/empty": b"", "top/text.txt": b"again and " * 3000}
    (tmp_path / "volumes").mkdir()
    with py7zr.SevenZipFile(tmp_path / "volumes" / "w[1].7z", "w") as target:
        for name, content in files.items():
            target.writestr(content, name)
    folder = extract(_split(tmp_path / "volumes" / "w[1].7z", size), tmp_path / "out")
    assert {name: (folder / name).read_bytes() for name in files} == files


def test_missing_and_damaged_volumes(tmp_path):
    def archive():
        with py7zr.SevenZipFile(tmp_path / "w.7z", "w", filters=[{"id": py7zr.FILTER_COPY}]) as target:
            target.writestr(bytes(5000), "x")
        return _split(tmp_path / "w.7z", 1000)
    archive()
    (tmp_path / "w.7z.003").unlink()
    with pytest.raises(DownloadError, match="w.7z.003: this volume, number 3 of 6, is missing"):
        extract(tmp_path / "w.7z.001", tmp_path / "out")
    archive()
    (tmp_path / "w.7z.004").write_bytes(b"1" + (tmp_path / "w.7z.004").read_bytes()[1:])       # a CRC that does not fit
    with pytest.raises(DownloadError, match="damaged.*download it again"):
        extract(tmp_path / "w.7z.001", tmp_path / "out")
    archive()
    (tmp_path / "w.7z.006").unlink()                                                           # the end of the archive
    with pytest.raises(DownloadError, match="w.7z.006: this volume, number 6 of 6, is missing"):
        extract(tmp_path / "w.7z.001", tmp_path / "out")
    archive()
    for number in (2, 6):
        volume = tmp_path / f"w.7z.00{number}"
        volume.write_bytes(volume.read_bytes()[:-1])
        with pytest.raises(DownloadError, match=f"w.7z.00{number}: expected a volume of .* bytes, got .*download it again"):
            extract(tmp_path / "w.7z.001", tmp_path / "out")
        archive()
    (tmp_path / "w.7z.001").write_bytes((tmp_path / "w.7z.001").read_bytes()[:20])
    with pytest.raises(DownloadError, match="damaged.*download it again"):
        extract(tmp_path / "w.7z.001", tmp_path / "out")
    for options in ({}, {"header_encryption": True}):
        with py7zr.SevenZipFile(tmp_path / "secret.7z", "w", password="x", **options) as target:
            target.writestr(b"1", "x")
        with pytest.raises(DownloadError, match="encrypted"):
            extract(tmp_path / "secret.7z", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_headers_of_7z_that_lie(tmp_path, monkeypatch):
    """Neither a header that states too little nor one that states too much gets anything into the folder."""
    for stated in (10, 200_000):
        with py7zr.SevenZipFile(tmp_path / "a", "w") as target:
            target.writestr(b"0" * 100_000, "x")
        monkeypatch.setattr(py7zr.py7zr.ArchiveFile, "uncompressed", stated)
        with pytest.raises(DownloadError, match="damaged.*download it again"):
            extract(tmp_path / "a", tmp_path / "out")
        monkeypatch.undo()
    monkeypatch.setattr(download, "_checked", lambda entries, folder, *_: folder.mkdir() or {folder / "x": next(entries)})
    with pytest.raises(DownloadError, match="it unpacks to more than 50,000 bytes"):       # counted again while unpacking
        extract(tmp_path / "a", tmp_path / "out", max_bytes=50_000)
    assert _tree(tmp_path) == {"a"}


def test_any_damage_to_a_7z_archive_is_named(tmp_path):
    """One byte changed anywhere: refused with the fix, or (a date, a padding byte) without an effect; never half a folder."""
    random, files = np.random.default_rng(0), {"top/x": os.urandom(300), "top/y": b"again " * 99}
    with py7zr.SevenZipFile(tmp_path / "a", "w") as target:
        for name, content in files.items():
            target.writestr(content, name)
    whole, refused = (tmp_path / "a").read_bytes(), 0
    for place in random.permutation(len(whole))[:150]:
        (tmp_path / "a").write_bytes(whole[:place] + bytes([whole[place] ^ int(random.integers(1, 256))]) + whole[place + 1:])
        try:
            extract(tmp_path / "a", tmp_path / "out")
            assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
            shutil.rmtree(tmp_path / "out")
        except DownloadError as error:
            assert "download it again" in str(error)
            refused += 1
        assert _tree(tmp_path) == {"a"}
    assert refused > 140
    for length in range(0, len(whole), 40):
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(DownloadError, match="download it again"):
            extract(tmp_path / "a", tmp_path / "out")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "a/")])
def test_a_file_that_is_a_folder_too(tmp_path, names):
    entries = [(_link(name, "", tarfile.DIRTYPE), b"") if name[-1] == "/" else (name, b"1") for name in names]
    with pytest.raises(DownloadError, match="comes twice"):
        extract(_tar(tmp_path / "t", *entries), tmp_path / "out")
    assert _tree(tmp_path) == {"t"}


@pytest.mark.parametrize("method", [py7zr.FILTER_ZSTD, py7zr.FILTER_DEFLATE, py7zr.FILTER_BROTLI])
def test_methods_that_burst(tmp_path, method):
    with py7zr.SevenZipFile(tmp_path / "a", "w", filters=[{"id": method, "level": 1}]) as target:
        target.writestr(b"1" * 1000, "x")
    with pytest.raises(DownloadError, match="could fill the memory; unpack it with 7-Zip"):
        extract(tmp_path / "a", tmp_path / "out")
    assert _tree(tmp_path) == {"a"}


@pytest.mark.slow
def test_a_large_7z_archive_is_not_held_in_memory(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.truncate(1_000_000_000)
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 0}]) as target:
        target.write(tmp_path / "x", "x")
    code = ("import sys; from resource import *; from lib.data.download import extract\n"
            "used = lambda: getrusage(RUSAGE_SELF).ru_maxrss * 1024\n"
            "before = used(); extract(*sys.argv[1:]); print(used() - before)")
    command = [sys.executable, "-c", code, tmp_path / "a.7z", tmp_path / "out"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (tmp_path / "out" / "x").stat().st_size == 1_000_000_000 and int(result.stdout) < 450e6
