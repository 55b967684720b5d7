"""LibriSpeech's published layout in miniature: subsets as splits, transcripts, and downloads from a local server."""
import hashlib
import io
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from lib import data
from lib.data import librispeech
from lib.data.__main__ import main
from lib.data.download import DownloadError

SPEAKERS = {"train-clean-100": ("19", "26"), "dev-clean": ("84",), "test-clean": ("61",)}
pytestmark = pytest.mark.filterwarnings("ignore:.*hold fewer clips than published")


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def make(root, subset, utterances=3, chapters=("198", "2003")):
    """root/LibriSpeech/subset with one chapter of each number for each speaker; returns root."""
    for speaker in SPEAKERS[subset]:
        for chapter in chapters:
            folder = root / "LibriSpeech" / subset / speaker / chapter
            folder.mkdir(parents=True)
            names = [f"{speaker}-{chapter}-{k:04d}" for k in range(utterances)]
            for name in names:
                soundfile.write(folder / f"{name}.flac", 0.2 * np.sin(np.arange(3200) * 0.3), 16000)
            lines = [f"{name} HE SAID MISTER {k} ISN'T IN" for k, name in enumerate(names)]
            (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    (root / "LibriSpeech" / "README.TXT").write_text("about")
    return root


def make_all(root):
    for subset in SPEAKERS:
        make(root, subset)
    return root


def test_subsets_are_splits(tmp_path):
    manifest = data.prepare("librispeech", data_root=make_all(tmp_path / "root"))
    table = manifest.table
    assert manifest.splits == {"train": 12, "val": 6, "test": 6} and manifest.name == "librispeech" and manifest.classes == []
    row = manifest.row(0)
    assert row["clip_id"] == "train-clean-100/19-198-0000" and row["path"] == "LibriSpeech/train-clean-100/19/198/19-198-0000.flac"
    assert row["captions"] == ["he said mister 0 isn't in"] and row["speaker"] == "19" and row["chapter"] == "198"
    assert row["duration"] == pytest.approx(0.2) and manifest.file(0).is_file()
    assert table.groupby("split")["speaker"].agg(set).to_dict() == {"train": {"19", "26"}, "val": {"84"}, "test": {"61"}}
    assert manifest.info["found"] == {"train-clean-100": 12, "dev-clean": 6, "test-clean": 6} and manifest.info["left_out"] == {}
    assert manifest.info["expected"] == {"train-clean-100": 28539, "dev-clean": 2703, "test-clean": 2620}
    inner = data.prepare("librispeech", data_root=tmp_path / "root" / "LibriSpeech", probe_seconds=None)
    assert inner.row(0)["path"] == "train-clean-100/19/198/19-198-0000.flac" and inner.splits == manifest.splits


def test_some_subsets(tmp_path):
    root = make_all(tmp_path / "root")
    chosen = data.prepare("librispeech", data_root=root, subsets=("dev-clean", "test-clean"))
    assert chosen.splits == {"val": 6, "test": 6} and list(chosen.info["expected"]) == ["dev-clean", "test-clean"]
    assert data.prepare("librispeech", data_root=root, subsets="dev-clean").splits == {"val": 6}
    for wrong, words in (("dev-other", "subsets: 'dev-other' is none of train-clean-100, dev-clean, test-clean"),
                         ((), "name one at least")):
        with pytest.raises(ValueError, match=words):
            data.prepare("librispeech", data_root=root, subsets=wrong)
    with pytest.warns(UserWarning, match=r"0 of 28,539 \(train-clean-100\)"):
        assert data.prepare("librispeech", data_root=make(tmp_path / "dev", "dev-clean")).splits == {"val": 6}
    assert len(data.prepare("librispeech", data_root=root, num_samples=4)) == 4


def test_what_is_missing_is_counted(tmp_path):
    root = make(tmp_path / "root", "dev-clean")
    chapter = root / "LibriSpeech" / "dev-clean" / "84" / "198"
    (chapter / "84-198-0001.flac").unlink()
    soundfile.write(chapter / "84-198-0009.flac", np.zeros(900), 16000)
    (chapter / "84-198-0002.flac").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="1 of 6 audio files are not in"):
        manifest = data.prepare("librispeech", data_root=root)
    assert manifest.info["left_out"] == {"without a transcript": 1, "file not there": 1} and len(manifest) == 4
    assert manifest.info["health"]["reasons"] == {"unreadable": 1}


@pytest.mark.parametrize("line", ["84-198-0001", "84-199-0001 OF ANOTHER CHAPTER", "84-198-../../x.flac WORDS", "84-198-abc WORDS"])
def test_a_wrong_transcript_is_named(tmp_path, line):
    root = make(tmp_path / "root", "dev-clean")
    file = root / "LibriSpeech" / "dev-clean" / "84" / "198" / "84-198.trans.txt"
    file.write_text(f"84-198-0000 GOOD\n\n{line}\n")
    with pytest.raises(ValueError, match=r"84-198.trans.txt: line 3 must hold the name of an utterance"):
        data.prepare("librispeech", data_root=root)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m lib.data download librispeech"):
        data.prepare("librispeech")
    with pytest.raises(FileNotFoundError, match="holds no folder train-clean-100 or dev-clean or test-clean"):
        data.prepare("librispeech", data_root=tmp_path)


def pack(root, archive, extra=()):
    with tarfile.open(archive, "w:gz") as target:
        target.add(root / "LibriSpeech", "LibriSpeech")
        for name in extra:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            target.addfile(entry, io.BytesIO(b"bad"))


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        self.server.asked.append(self.path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder of archives on a local server, with their true MD5 as the published ones."""
    served = tmp_path / "served"
    served.mkdir()
    for subset in SPEAKERS:
        pack(make(tmp_path / f"of {subset}", subset), served / f"{subset}.tar.gz")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served))
    server.asked, server.folder = [], served
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(librispeech, "URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(librispeech, "EXPECTED", {"train-clean-100": 12, "dev-clean": 6, "test-clean": 6})
    monkeypatch.setattr(librispeech, "MD5", {s: hashlib.md5((served / f"{s}.tar.gz").read_bytes()).hexdigest() for s in SPEAKERS})
    yield server
    server.shutdown()
    server.server_close()


def test_download_of_parts_and_of_the_rest(server, capsys):
    assert main(["download", "librispeech", "--part", "dev-clean"]) == 0
    folder = capsys.readouterr().out.removeprefix("ready: ").strip()
    assert [path for path in server.asked if path.endswith("gz")] == ["/dev-clean.tar.gz"]
    assert data.prepare("librispeech", subsets="dev-clean").splits == {"val": 6}
    assert main(["download", "librispeech"]) == 0 and capsys.readouterr().out == f"ready: {folder}\n"
    assert [path for path in server.asked] == [f"/{s}.tar.gz" for s in ("dev-clean", "train-clean-100", "test-clean")]
    manifest = data.prepare("librispeech")
    assert manifest.splits == {"train": 12, "val": 6, "test": 6} and manifest.row(0)["clip_id"] == "train-clean-100/19-198-0000"
    assert manifest.row(0)["path"] == "train-clean-100/LibriSpeech/train-clean-100/19/198/19-198-0000.flac"
    librispeech.download()
    assert len(server.asked) == 3, "what is there is not fetched again"
    for name, part, words in (("librispeech", "dev-other", "'dev-other' of librispeech is unknown"),
                              ("esc50", "one", "esc50 comes in one piece")):
        assert main(["download", name, "--part", part]) == 1 and words in capsys.readouterr().err


def test_what_an_interrupt_left_is_no_obstacle(server, tmp_path):
    """This server sends whole files only; that ranges are asked for and go on is tested in test_download.py."""
    part = tmp_path / "data" / "librispeech" / "dev-clean.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((server.folder / "dev-clean.tar.gz").read_bytes()[:100])
    folder = librispeech.download(parts=("dev-clean",))
    assert sorted(f.name for f in folder.iterdir()) == ["dev-clean"], "neither the archive nor its part is left"


def test_download_refuses_other_bytes_other_places_and_other_contents(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(librispeech.MD5, "dev-clean", "0" * 32)
        with pytest.raises(DownloadError, match="expected md5 00000000000000000000000000000000"):
            librispeech.download(parts=("dev-clean",))
    with monkeypatch.context() as patch:
        patch.setitem(librispeech.EXPECTED, "dev-clean", 7)
        with pytest.raises(DownloadError, match="6 utterances instead of 7"):
            librispeech.download(parts=("dev-clean",))
    for extra, words in (("../../outside.txt", "points outside its folder"), ("/outside.txt", "points outside its folder")):
        pack(tmp_path / "of dev-clean", server.folder / "dev-clean.tar.gz", [extra])
        monkeypatch.setitem(librispeech.MD5, "dev-clean", hashlib.md5((server.folder / "dev-clean.tar.gz").read_bytes()).hexdigest())
        with pytest.raises(DownloadError, match=words):
            librispeech.download(parts=("dev-clean",))
    assert not list(tmp_path.rglob("outside.txt")) and not (tmp_path / "data" / "librispeech" / "dev-clean").exists()


def test_an_incomplete_subset_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(librispeech.EXPECTED, "dev-clean", 6)
    root = make(tmp_path / "root", "dev-clean")
    librispeech.verify(root, "dev-clean")
    (root / "LibriSpeech" / "dev-clean" / "84" / "198" / "84-198.trans.txt").write_text("84-198-0000 ONE\n")
    with pytest.raises(DownloadError, match="6 utterances instead of 6, 2 without words"):
        librispeech.verify(root, "dev-clean")
    (root / "LibriSpeech" / "dev-clean" / "84" / "198" / "84-198.trans.txt").write_text("nonsense\n")
    with pytest.raises(DownloadError, match="not dev-clean as published: .*line 1"):
        librispeech.verify(root, "dev-clean")
    with pytest.raises(DownloadError, match="0 utterances instead of 2,620"):
        librispeech.verify(root, "test-clean")
