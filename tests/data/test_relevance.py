"""The list of extra relevance: fetched and counted, file names that differ a little, names that fit two clips.

The published list on the published table is in test_captioned.py.
"""
import threading
import unicodedata
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from lib.data import relevance
from lib.data.download import DownloadError
from lib.data.manifest import Manifest
from lib.data.relevance import on_manifest, read_relevance


def clips(tmp_path, *paths):
    return Manifest(pd.DataFrame({"clip_id": list(paths), "path": list(paths), "start": 0.0, "duration": 1.0, "split": "test",
                                  "captions": [["a"]] * len(paths), "labels": [[]] * len(paths)}), "clips", tmp_path)


def test_names_that_differ_a_little(tmp_path):
    """Another ending, a blank before it, an accent of two characters, a folder: the same clip. Case is not ignored."""
    manifest = clips(tmp_path, "e/Rain.mp3", "e/rain.mp3", unicodedata.normalize("NFD", "e/\u00e9t\u00e9.wav"), "e/radio.mp3")
    listed = [("a", ["Rain.wav"]), ("b", ["rain.wav", "\u00e9t\u00e9.wav"]), ("c", ["radio .wav", "RADIO.wav"])]
    queries, relevant, lost = on_manifest(listed, manifest)
    assert queries == ["a", "b", "c"] and lost == {"queries": 0, "files": 1}
    assert relevant.int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_a_name_that_fits_two_clips(tmp_path):
    """Its own file if that is there, otherwise none: a guess would score the wrong clip."""
    manifest = clips(tmp_path, "x.wav", "x.mp3", "y.wav")
    _, relevant, lost = on_manifest([("a", ["x.mp3"]), ("b", ["x.flac", "y.flac"])], manifest)
    assert relevant.int().tolist() == [[0, 1, 0], [0, 0, 1]] and lost == {"queries": 0, "files": 1}
    with pytest.raises(ValueError, match="two clips are called 'x.wav'.*Score one split"):
        on_manifest([("a", ["x.wav"])], clips(tmp_path, "train/x.wav", "test/x.wav"))


def test_a_file_named_twice_counts_once(tmp_path):
    (tmp_path / "r.csv").write_text("query,audio_filenames\nrain,\"['y.wav', 'y.wav', \"\"it's.wav\"\"]\"\n")
    assert read_relevance(tmp_path / "r.csv") == [("rain", ["y.wav", "it's.wav"])]
    with pytest.raises(FileNotFoundError, match="extra_relevance: .*absent.csv does not exist"):
        read_relevance(tmp_path / "absent.csv")


def test_download(tmp_path, monkeypatch):
    """Fetched once; a list of another length, or a page of HTML, is not taken for the published one."""
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(relevance, "URL", f"http://127.0.0.1:{server.server_port}/list.csv")
        lines = ["query,audio_filenames", *(f"q{i},['{i}.wav']" for i in range(relevance.QUERIES))]
        (tmp_path / "list.csv").write_text("\n".join(lines[:-1]))
        with pytest.raises(DownloadError, match="1,036 queries, the published list has 1,037; remove it"):
            relevance.download()
        (tmp_path / "data/clotho/metadata_eval.csv").unlink()
        (tmp_path / "list.csv").write_text("\n".join(lines))
        file = relevance.download()
        assert file == tmp_path / "data/clotho/metadata_eval.csv" and len(read_relevance(file)) == 1037
        asked.clear()
        assert relevance.download() == file and asked == []
        (tmp_path / "list.csv").write_text("<html>not found</html>")
        with pytest.raises(ValueError, match="metadata_eval.csv: column 'query' is missing"):
            relevance.download(tmp_path / "elsewhere")
    finally:
        server.shutdown()
        server.server_close()
