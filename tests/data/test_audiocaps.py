"""AudioCaps: file names of every convention, clips without a caption, the published validation table. Layouts: test_captioned.py."""
import os
import random
import string
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from lib import data
from lib.data.audiocaps import youtube_id
from lib.settings import ROOT

METADATA = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data")) / "metadata"


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 8000), 8000)


def test_ids_in_names():
    """Every convention gives back any id, also one that begins with Y or -, or ends in what looks like a start time."""
    draw = random.Random(0)
    letters = string.ascii_letters + string.digits + "-_"
    ids = ["".join(draw.choices(letters, k=11)) for _ in range(500)]
    ids += ["Y" + i[1:] for i in ids[:100]] + ["-" + i[1:] for i in ids[:100]] + [i[:8] + "_30" for i in ids[:100]]
    ids += ["Y" + i[1:8] + "_30" for i in ids[:100]] + [i[:10] + "_" for i in ids[:50]] + ["Y" + i[1:10] + "_" for i in ids[:50]]
    for name in ("{}", "Y{}", "{}_30", "Y{}_30", "{}_7_17", "Y{}_30000_40000"):
        assert [youtube_id(name.format(i)) for i in ids] == ids
    assert youtube_id("a recording of mine") == "a recording of mine"


def test_blank_captions(tmp_path):
    """A video all of whose captions are blank is counted; of another only the blank ones are lost."""
    texts = {"aaaaaaaaaaa": ["", " "], "-bbbbbbbbbb": ["", "rain, <b>\"heavy\"</b>"]}
    rows = [{"audiocap_id": "1", "youtube_id": video, "start_time": "30", "caption": text} for video, both in texts.items() for text in both]
    pd.DataFrame(rows).to_csv(tmp_path / "test.csv", index=False)
    for video in texts:
        sound(tmp_path / "AUDIOCAPS" / "audio_32000Hz" / "test" / f"{video}_30.flac")      # aac-datasets' layout
    manifest = data.prepare("audiocaps", data_root=tmp_path)
    assert [manifest.row(i)["captions"] for i in range(len(manifest))] == [["rain, <b>\"heavy\"</b>"]]
    assert manifest.info["left_out"] == {"without a caption": 1} and manifest.info["found"] == {"train": 0, "val": 0, "test": 2}


@pytest.mark.skipif(not METADATA.is_dir(), reason=f"the published tables are not in {METADATA}")
def test_published_validation_table(tmp_path):
    """494 of the 495 validation clips are in this copy of the table, each with five captions: said, not fatal."""
    (tmp_path / "val.csv").write_bytes((METADATA / "audiocaps_val_wide.csv").read_bytes())
    names = pd.read_csv(tmp_path / "val.csv", dtype=str)["file_name"]
    for name in names[:3]:
        sound(tmp_path / "val" / f"{name.removesuffix('.wav').removeprefix('Y')}_30.wav")
    with pytest.warns(UserWarning, match=r"0 of 49,838 \(train\), 494 of 495 \(val\), 0 of 975 \(test\)"):
        manifest = data.prepare("audiocaps", data_root=tmp_path)
    assert list(manifest.table["clip_id"]) == [f"val/{name[1:12]}" for name in names[:3]]
    assert manifest.info["left_out"] == {"file not there": 491} and all(len(c) == 5 for c in manifest.table["captions"])


def test_column_that_is_missing(tmp_path):
    (tmp_path / "train.csv").write_text("audiocap_id,youtube,caption\n1,a,b\n")
    with pytest.raises(ValueError, match=r"train.csv: column 'youtube_id' is missing, it has audiocap_id, youtube, caption"):
        data.prepare("audiocaps", data_root=tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m lib.data download audiocaps"):
        data.prepare("audiocaps")
