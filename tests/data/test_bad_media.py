"""A folder as people have them: every kind of broken file is counted with its reason, every odd but good one is read correctly."""
import csv
import os

import numpy as np
import pytest
import soundfile

from lib import data
from lib.families.retrieval import Retrieval, RetrievalConfig
from lib.media import audio
from lib.training import loop

RATE = 32000
GOOD = ["plain.wav", "8k.wav", "stereo.flac", "24 bit.wav", "half second.wav", "wrong ending.mp3", "mojibake Ã©Ã¨.wav", "-dash.wav",
        "it's \"quoted\" & <script>alert(1)<.wav", "100% #1 ?x=y.ogg", "ünï 音.flac"]
BAD = {"empty.wav": "empty", "cut.wav": "truncated", "cut.ogg": "truncated", "cut.mp3": "truncated", "nan.wav": "nan", "silent.wav": "silent",
       "0.05 s.wav": "too short", "folder.wav": "unreadable", "words.wav": "unreadable", "pipe.wav": "unreadable"}


@pytest.fixture
def mess(tmp_path, monkeypatch):
    """The folder with a table; each good file is a tone of its own pitch, which its caption names."""
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    root = tmp_path / "clips"
    root.mkdir()

    def write(name, wave, rate=RATE, **options):
        kind = {"wrong ending.mp3": "WAV"}.get(name)
        with open(root / name, "wb") as file:
            soundfile.write(file, wave, rate, format=kind or name.rpartition(".")[2].upper(), **options)

    def tone(pitch, seconds=1.0, rate=RATE):
        return 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    for k, name in enumerate(GOOD):
        rate, seconds = 8000 if name == "8k.wav" else RATE, 0.5 if name.startswith("half") else 1.0
        wave = tone(300 + 200 * k, seconds, rate)
        write(name, np.stack([wave, wave], axis=1) if "stereo" in name else wave, rate, **({"subtype": "PCM_24"} if "24" in name else {}))
    for suffix in ("wav", "ogg", "mp3"):
        write(f"cut.{suffix}", np.random.default_rng(0).uniform(-0.3, 0.3, 4 * RATE))
        whole = (root / f"cut.{suffix}").read_bytes()
        (root / f"cut.{suffix}").write_bytes(whole[:len(whole) // 2])
    bad = tone(500)
    bad[7] = np.nan
    write("nan.wav", bad, subtype="FLOAT"), write("silent.wav", np.zeros(RATE)), write("0.05 s.wav", tone(500, 0.05))
    (root / "empty.wav").touch(), (root / "folder.wav").mkdir(), (root / "words.wav").write_text("not a sound\n" * 99), os.mkfifo(root / "pipe.wav")
    with open(root / "captions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption", "split"])
        for k, name in enumerate(GOOD):
            table.writerow([name, f"tone {300 + 200 * k}, \"<script>alert({k})</script>\"", "train"])
        table.writerows([name, f"bad {name}", "train"] for name in [*BAD, "missing.wav"])
    return root


def test_counted_with_a_reason_or_read_correctly(mess):
    with pytest.warns(UserWarning) as said:
        manifest = data.prepare("folder", data_root=mess, workers=2)
    health = manifest.info["health"]
    listed = {name: reason for reason, names in health["examples"].items() for name in names}
    # a folder and a missing file are no files: the listing leaves them out and says so
    no_files = {"folder.wav"}
    assert listed == {name: reason for name, reason in BAD.items() if name not in no_files}
    assert manifest.info["left_out"] == {"rows without a file": len(no_files) + 1} and "2 rows without a file" in str(said[0].message)
    assert health["checked"] == len(GOOD) + len(BAD) - len(no_files) and health["kept"] == len(manifest) == len(GOOD)
    assert sorted(manifest.table["path"]) == sorted(GOOD)
    for i in range(len(manifest)):
        row = manifest.row(i)
        pitch = 300 + 200 * GOOD.index(row["path"])
        assert row["captions"] == [f"tone {pitch}, \"<script>alert({GOOD.index(row['path'])})</script>\""]
        wave = audio.read(manifest.file(i), sample_rate=RATE)[0]
        assert len(wave) == pytest.approx(RATE * row["duration"], abs=2) and row["duration"] == pytest.approx(0.5 if "half" in row["path"] else 1.0, abs=0.01)
        found = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * RATE / len(wave)
        assert abs(found - pitch) <= 2, "the sound of one file stands beside the caption of another"


def test_a_run_on_such_a_folder_completes(mess, tmp_path):
    config = RetrievalConfig(dataset="folder", data_root=str(mess), audio_size="tiny", text_size="tiny", clip_seconds=1.0, segment_seconds=1.0,
                             embedding_dim=8, batch_size=4, epochs=1, warmup_epochs=0.0, decay_epochs=1.0, learning_rate=1e-3, threads=1,
                             device="cpu", patchout_time=0.2)
    with pytest.warns(UserWarning, match="rows without a file"):
        run = loop.fit(Retrieval(config), tmp_path / "run")
    assert run.steps == 3 and run.skipped == {}


@pytest.mark.parametrize("name, words", [("missing.wav", "does not exist"), ("folder.wav", "is a folder"), ("empty.wav", "0 bytes"),
                                         ("words.wav", "cannot be decoded as audio")])
def test_reading_one_says_what_is_wrong(mess, name, words):
    with pytest.raises(audio.AudioError, match=f"{name}.*{words}"):
        audio.read(mess / name, sample_rate=RATE)
