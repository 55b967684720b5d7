"""Clotho, AudioCaps and WavCaps from folders in their published layouts, mixtures of them, and the list of extra relevance."""
import json
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import py7zr
import pytest
import soundfile

from lib import data
from lib.data import audiocaps, clotho, wavcaps
from lib.data.relevance import on_manifest, read_relevance
from lib.settings import ROOT

METADATA = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data")) / "metadata"
real = pytest.mark.skipif(not METADATA.is_dir(), reason=f"the published tables are not in {METADATA}")
NAMES = ["Santa Motor.wav", "it's \"quoted\", <b>.wav", "FR.CTC.08.CoyuyoS.001.wav", "été.wav"]


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def sound(path, seconds=1.0, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).uniform(-0.3, 0.3, round(seconds * rate))
    soundfile.write(path, noise, rate, **({"format": "MP3"} if path.suffix == ".mp3" else {}))


def captions(path, names, count=5):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"file_name": names} | {f"caption_{k}": [f"{name} {k}" for name in names] for k in range(1, count + 1)}).to_csv(path, index=False)


def make_clotho(root, audio="{part}", tables=".", suffix=".wav"):
    for part, names in zip(clotho.SPLITS, (NAMES, NAMES[:2], NAMES[2:3])):
        captions(root / tables / f"clotho_captions_{part}.csv", names)
        for name in names:
            sound(root / audio.format(part=part) / (name.removesuffix(".wav") + suffix))
    return root


def make_wavcaps(root, subset, ids, folder="{}", suffix=".flac", durations=None):
    records = [{"id": i, "caption": f"caption of {i}", "duration": d} for i, d in zip(ids, durations or [1.0] * len(ids))]
    file = root / "json_files" / subset / wavcaps.TABLES[subset]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"num_captions_per_audio": 1, "data": records}))
    for name in ids:
        sound(root / folder.format(subset) / (name.removesuffix(".wav") + suffix), 0.2)
    return root


@pytest.mark.parametrize("layout", [{}, {"audio": "CLOTHO_v2.1/clotho_audio_files/{part}", "tables": "CLOTHO_v2.1/clotho_csv_files"},
                                    {"audio": "{part}/{part}", "suffix": ".mp3"}])
def test_clotho_in_every_layout(tmp_path, layout):
    manifest = data.prepare("clotho", data_root=make_clotho(tmp_path / "c", **layout))
    assert manifest.splits == {"train": 4, "val": 2, "test": 1}
    assert list(manifest.table["clip_id"][:4]) == [f"development/{name}" for name in NAMES]
    assert manifest.row(1)["captions"] == [f"{NAMES[1]} {k}" for k in range(1, 6)]
    assert manifest.info["expected"] == {"train": 3839, "val": 1045, "test": 1045} and manifest.info["left_out"] == {}


def test_clotho_counts_what_is_missing_and_refuses_what_is_not_clotho(tmp_path):
    root = make_clotho(tmp_path / "c")
    (root / "development" / NAMES[0]).unlink()
    (root / "validation" / NAMES[0]).write_bytes(b"no sound")
    with pytest.warns(UserWarning, match="1 of 7 audio files are not in"):
        manifest = data.prepare("clotho", data_root=root)
    assert manifest.info["left_out"] == {"file not there": 1} and manifest.info["health"]["reasons"] == {"unreadable": 1}
    (root / "clotho_captions_development.csv").write_text("file_name,caption\na,b\n")
    with pytest.raises(ValueError, match=r"clotho_captions_development.csv: column 'caption_1' is missing, it has file_name, caption;"):
        data.prepare("clotho", data_root=root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no clotho_captions_development.csv.*download clotho"):
        data.prepare("clotho", data_root=tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="python -m lib.data download clotho"):
        data.prepare("clotho")


@real
def test_clotho_s_published_tables(tmp_path):
    """Every name of the real tables is found under its own name on disk; blanks at the end of names may be lost."""
    for part in ("validation", "evaluation"):
        (tmp_path / f"clotho_captions_{part}.csv").write_bytes((METADATA / f"clotho_captions_{part}.csv").read_bytes())
        table = pd.read_csv(tmp_path / f"clotho_captions_{part}.csv")
        (tmp_path / part).mkdir()
        sound(tmp_path / "x.wav", 0.2)
        for name in table["file_name"]:
            os.link(tmp_path / "x.wav", tmp_path / part / (name.removesuffix(".wav").rstrip() + ".wav"))
    manifest = data.prepare("clotho", data_root=tmp_path)
    assert manifest.splits == {"val": 1045, "test": 1045} and manifest.info["left_out"] == {}
    assert sum(map(len, manifest.table["captions"])) == 2 * 5225
    queries, relevant, lost = on_manifest(read_relevance(METADATA / "dcase2025_task6_metadata_eval.csv"), manifest.select("test"))
    assert len(queries) == 1037 and relevant.shape == (1037, 1045) and lost == {"queries": 0, "files": 0}
    assert relevant.sum(dim=1).min() >= 1 and relevant.sum() > 1037


VIDEOS = ["vfY_TJq7n_U", "-tdWhHV3X25", "YtdWhHV3X25"]


@pytest.mark.parametrize("name", ["{}", "Y{}", "{}_30", "Y{}_30000"])
def test_audiocaps_by_any_file_name(tmp_path, name):
    """Published tables (a row a caption), files called by id, with Y and start time or not; ids begin with - and Y."""
    for split, count in (("train", 1), ("val", 5), ("test", 5)):
        rows = [{"audiocap_id": str(i * 10 + k), "youtube_id": video, "start_time": "30", "caption": f"{video} {k}"}
                for i, video in enumerate(VIDEOS) for k in range(count)]
        pd.DataFrame(rows).to_csv(tmp_path / f"{split}.csv", index=False)
        for video in VIDEOS[:2]:
            sound(tmp_path / "audio_32000Hz" / split / (name.format(video) + ".mp3"), rate=32000)
    with pytest.warns(UserWarning, match="3 of 9 audio files"):
        manifest = data.prepare("audiocaps", data_root=tmp_path)
    assert manifest.splits == {"train": 2, "val": 2, "test": 2} and manifest.info["left_out"] == {"file not there": 3}
    assert manifest.row(0)["clip_id"] == f"train/{VIDEOS[0]}" and manifest.row(0)["captions"] == [f"{VIDEOS[0]} 0"]
    assert manifest.row(2)["captions"] == [f"{VIDEOS[0]} {k}" for k in range(5)]


@real
def test_audiocaps_wide_table(tmp_path):
    """The real validation table, 494 clips with five captions; two of their files are there."""
    source = METADATA / "audiocaps_val_wide.csv"
    (tmp_path / "audiocaps_val_wide.csv").write_bytes(source.read_bytes())
    table = pd.read_csv(source, dtype=str)
    for name in table["file_name"][:2]:
        sound(tmp_path / "val" / name)
    with pytest.warns(UserWarning, match=f"{len(table) - 2} of {len(table)} audio files"):
        manifest = data.prepare("audiocaps", data_root=tmp_path)
    assert len(table) == 494 and len(manifest) == 2 and all(len(c) == 5 for c in manifest.table["captions"])
    assert manifest.row(0)["captions"][1] == table["caption_2"][0].strip()


@real
def test_overlap_filter_on_the_published_list(tmp_path):
    """Exactly 3,079 ids; a FreeSound table with 40 of them among 60 loses exactly 40; read as numbers it would lose none."""
    listed = sorted(wavcaps.read_excluded(METADATA / wavcaps.EXCLUDED))
    assert len(listed) == 3079 and all(isinstance(i, str) and i.isdigit() for i in listed)
    root = make_wavcaps(tmp_path / "w", "FreeSound", [*listed[:40], *(str(10**9 + i) for i in range(20))])
    with pytest.raises(FileNotFoundError, match="overlaps Clotho's evaluation split.*excluded_ids"):
        data.prepare("wavcaps", data_root=root)
    (root / wavcaps.EXCLUDED).write_bytes((METADATA / wavcaps.EXCLUDED).read_bytes())
    manifest = data.prepare("wavcaps", data_root=root)
    assert len(manifest) == 20 and manifest.info["left_out"] == {"on the list of excluded FreeSound ids": 40} and manifest.info["excluded_ids"] == 3079
    assert not {clip.partition("/")[2] for clip in manifest.table["clip_id"]} & set(listed)
    cleaned = tmp_path / "cleaned.csv"          # of its text row: a reader that guesses types gets numbers
    cleaned.write_text("sound_id\n" + "\n".join(listed) + "\n")
    assert pd.read_csv(cleaned)["sound_id"].dtype == np.int64
    assert len(data.prepare("wavcaps", data_root=root, excluded_ids=str(cleaned))) == 20
    everything = data.prepare("wavcaps", data_root=root, excluded_ids="none")
    assert len(everything) == 60 and everything.info["excluded_ids"] == 0
    (root / wavcaps.EXCLUDED).write_text("sound_id\n1\n2\n")
    with pytest.raises(ValueError, match="2 ids, the published list has 3,079"):
        data.prepare("wavcaps", data_root=root)


@real
def test_soundbible_loses_nothing_to_the_overlap_filter(tmp_path):
    """The real table: ids are compared with FreeSound's in FreeSound only."""
    records = wavcaps.read_table(METADATA / "wavcaps_sb_final.json")
    root = tmp_path / "w"
    (root / "SoundBible_flac").mkdir(parents=True)
    (root / "sb_final.json").write_bytes((METADATA / "wavcaps_sb_final.json").read_bytes())
    (root / wavcaps.EXCLUDED).write_text("sound_id\n" + "\n".join(r["id"] for r in records[:3079]) + "\n" + "\n".join(map(str, range(10**9, 10**9 + 3079 - len(records)))))
    sound(root / "x.flac", 0.2)
    for record in records:
        os.link(root / "x.flac", root / "SoundBible_flac" / f"{record['id']}.flac")
    manifest = data.prepare("wavcaps", data_root=root)
    too_long = sum(record["duration"] > 120 for record in records)
    assert len(records) == 1232 and len(manifest) == 1232 - too_long
    assert manifest.info["left_out"] == ({"longer than 120 s": too_long} if too_long else {}) and "excluded_ids" not in manifest.info


def test_wavcaps_rules_and_their_counts(tmp_path):
    """Stated and measured length, the broken list (AudioSet only), ids that end in .wav, bad files, sources in folders with suffixes."""
    root = tmp_path / "w"
    make_wavcaps(root, "AudioSet_SL", ["YVcu0pVF1npM.wav", "Y-good_0001.wav", "Yempty00000.wav"], folder="audio/{}_mp3", suffix=".mp3")
    make_wavcaps(root, "SoundBible", ["7", "007", "YVcu0pVF1npM", "300"], durations=[1.0, 0.0, 1.0, 300.0])
    (root / "audio/AudioSet_SL_mp3/Yempty00000.mp3").write_bytes(b"")
    sound(root / "SoundBible" / "7.flac", 121)                # longer than its table says
    manifest = data.prepare("wavcaps", data_root=root)
    assert sorted(manifest.table["clip_id"]) == ["AudioSet_SL/Y-good_0001", "SoundBible/007", "SoundBible/YVcu0pVF1npM"]
    assert manifest.info["left_out"] == {"on the list of broken files": 1, "longer than 120 s": 2}
    assert manifest.info["health"]["reasons"] == {"empty": 1}
    assert manifest.splits == {"train": 3} and manifest.row(0)["captions"] == ["caption of 007"]
    assert len(data.prepare("wavcaps", data_root=root, subsets=("AudioSet_SL",), max_seconds=None)) == 1
    with pytest.raises(ValueError, match="subsets: 'Freesound' is none of FreeSound"):
        data.prepare("wavcaps", data_root=root, subsets=("Freesound",))
    (root / "json_files" / "SoundBible" / "sb_final.json").write_text('{"data": [{"id": "7"}]}')
    with pytest.raises(ValueError, match="sb_final.json: not a table of WavCaps.*caption"):
        data.prepare("wavcaps", data_root=root)


def test_mixture(tmp_path):
    """Training clips of all, val and test of the first only; ids and sources tell them apart; options go where they are understood."""
    make_clotho(tmp_path / "clotho")
    make_wavcaps(tmp_path / "wavcaps", "SoundBible", ["1", "2", "3"], durations=[1, 1, 200])
    for split in ("train", "val"):
        pd.DataFrame([{"youtube_id": v, "caption": "x"} for v in VIDEOS]).to_csv(tmp_path / f"{split}.csv", index=False)
    (tmp_path / "audiocaps").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").rename(tmp_path / "audiocaps" / f"{split}.csv")
        for video in VIDEOS:
            sound(tmp_path / "audiocaps" / split / f"{video}.wav")
    manifest = data.prepare("clotho+audiocaps+wavcaps", data_root=tmp_path, max_seconds=100)
    assert manifest.name == "clotho+audiocaps+wavcaps" and manifest.root == tmp_path
    assert manifest.splits == {"train": 4 + 3 + 2, "val": 2, "test": 1}
    assert manifest.table.groupby("source").size().to_dict() == {"clotho": 7, "audiocaps": 3, "wavcaps": 2}
    assert manifest.info["left_out"] == {"audiocaps: val and test, only the first data set has any": 3, "wavcaps: longer than 100 s": 1}
    assert all(manifest.file(i).is_file() for i in range(len(manifest))) and manifest.info["health"]["checked"] == 7 + 6 + 2
    alone = data.prepare("clotho", data_root=tmp_path / "clotho")
    assert [clip.removeprefix("clotho/") for clip in manifest.table["clip_id"][:7]] == list(alone.table["clip_id"])
    assert len(data.prepare("clotho+wavcaps", data_root=tmp_path, num_samples=4)) == 4
    with pytest.raises(ValueError, match="no option 'subset'"):
        data.prepare("clotho+wavcaps", data_root=tmp_path, subset=1)
    with pytest.raises(ValueError, match="names a part twice"):
        data.prepare("clotho+clotho", data_root=tmp_path)
    with pytest.raises(FileNotFoundError, match="esc50"):
        data.prepare("clotho+esc50", data_root=tmp_path)


def serve(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/"


def test_clotho_download(tmp_path, monkeypatch):
    """Archives in the published layout from a server, verified, unpacked, read; a second call fetches nothing; an altered one is refused."""
    make_clotho(tmp_path / "made")
    for part in clotho.SPLITS:
        with py7zr.SevenZipFile(tmp_path / "made" / f"clotho_audio_{part}.7z", "w") as target:
            target.writeall(tmp_path / "made" / part, part)
    server, url = serve(tmp_path / "made")
    try:
        monkeypatch.setattr(clotho, "URL", url)
        with pytest.raises(data.download.DownloadError, match="expected md5"):
            clotho.download()
        import hashlib
        monkeypatch.setattr(clotho, "MD5", {name: hashlib.md5((tmp_path / "made" / name).read_bytes()).hexdigest() for name in clotho.MD5})
        folder = clotho.download()
        monkeypatch.setattr(clotho, "URL", "http://127.0.0.1:9/")
        assert clotho.download() == folder
    finally:
        server.shutdown()
    manifest = data.prepare("clotho")
    assert manifest.root == folder and manifest.splits == {"train": 4, "val": 2, "test": 1}
    assert not list(folder.glob("*.7z"))


def test_wavcaps_download(tmp_path, monkeypatch):
    """The 15 volumes of one archive, the list of ids and the tables; the hub is not reached, its snapshot is made here."""
    make_wavcaps(tmp_path / "made", "SoundBible", [str(i) for i in range(20)], suffix=".mp3")
    with py7zr.SevenZipFile(tmp_path / "w.7z", "w", filters=[{"id": py7zr.FILTER_COPY}]) as target:
        target.writeall(tmp_path / "made" / "SoundBible", "WavCaps_mp3/SoundBible")
    content = (tmp_path / "w.7z").read_bytes()
    size = -(-len(content) // len(wavcaps.VOLUMES))
    for number, share in enumerate(wavcaps.VOLUMES, 1):
        file = tmp_path / "served" / share / f"WavCaps_mp3.7z.{number:03d}"
        file.parent.mkdir(parents=True)
        file.write_bytes(content[(number - 1) * size:number * size])
    (tmp_path / "served" / "list.csv").write_text("sound_id\nNot found\n" + "\n".join(str(10**6 + i) for i in range(3079)))
    server, url = serve(tmp_path / "served")

    def snapshot(hub, repo_type, revision, allow_patterns, local_dir):
        assert (hub, repo_type, len(revision)) == ("cvssp/WavCaps", "dataset", 40)
        target = Path(local_dir) / "json_files" / "SoundBible"
        target.mkdir(parents=True)
        (target / "sb_final.json").write_bytes((tmp_path / "made/json_files/SoundBible/sb_final.json").read_bytes())
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr(wavcaps, "SHARE", url + "{}/{}")
    monkeypatch.setattr(wavcaps, "EXCLUDED_URL", url + "list.csv")
    try:
        folder = wavcaps.download()
    finally:
        server.shutdown()
    assert len(data.prepare("wavcaps")) == 20 and not list(folder.glob("*.7z.*"))


def test_audiocaps_download(tmp_path, monkeypatch):
    import zipfile
    sound(tmp_path / "made" / "a.mp3", rate=32000)
    with zipfile.ZipFile(tmp_path / "made" / "AUDIOCAPS.zip", "w") as target:
        target.write(tmp_path / "made" / "a.mp3", f"AUDIOCAPS/audio_32000Hz/train/{VIDEOS[0]}_30.mp3")
        target.writestr("AUDIOCAPS/train.csv", f"audiocap_id,youtube_id,start_time,caption\n1,{VIDEOS[0]},30,a <script> barks\n")
    server, url = serve(tmp_path / "made")
    try:
        monkeypatch.setattr(audiocaps, "URL", url + "AUDIOCAPS.zip")
        audiocaps.download()
    finally:
        server.shutdown()
    assert data.prepare("audiocaps").row(0)["captions"] == ["a <script> barks"]


@pytest.mark.parametrize("text, words", [
    ("query,files\na,['x.wav']\n", "column 'audio_filenames' is missing"), ("query,audio_filenames\na,x.wav\n", "row 2: expected a query and a list"),
    ("query,audio_filenames\na,[]\n", "row 2"), ("query,audio_filenames\na,__import__('os').getcwd()\n", "row 2"),
    ("query,audio_filenames\na,\"['x.wav', 3]\"\n", "row 2")])
def test_relevance_refuses_what_is_no_list(tmp_path, text, words):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_relevance(tmp_path / "r.csv")


def test_relevance_on_a_manifest(tmp_path):
    manifest = data.prepare("clotho", data_root=make_clotho(tmp_path / "c", suffix=".mp3")).select("train")
    listed = [("one", [NAMES[2], NAMES[0]]), ("none", ["gone.wav"]), ("two", ["gone.wav", NAMES[3]])]
    queries, relevant, lost = on_manifest(listed, manifest)
    assert queries == ["one", "two"] and lost == {"queries": 1, "files": 2}
    assert relevant.tolist() == [[True, False, True, False], [False, False, False, True]]
    with pytest.raises(ValueError, match="none of the 1 files"):
        on_manifest(listed[1:2], manifest)
