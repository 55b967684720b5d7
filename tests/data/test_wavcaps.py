"""WavCaps: the overlap with AudioCaps, lists of ids as other programs write them, hostile tables.

The overlap with Clotho on the published list, the other rules and the layouts are in test_captioned.py.
"""
import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from lib import data
from lib.data import wavcaps


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


def make(root, subset, records, files=None):
    table = root / "json_files" / subset / wavcaps.TABLES[subset]
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps({"num_captions_per_audio": 1, "data": [{"caption": "a", "duration": 1.0} | r for r in records]}))
    (root / "Audio" / subset).mkdir(parents=True)
    for name in files or [r["id"] for r in records]:
        file = root / "Audio" / subset / (str(name).removesuffix(".wav") + ".flac")
        soundfile.write(file, np.random.default_rng(0).uniform(-0.3, 0.3, 2000), 8000)
    return root


def test_overlap_with_audiocaps(tmp_path):
    """By the list that WavCaps publishes; of AudioSet_SL only, as its ids mean other things elsewhere; without it, a warning."""
    root = make(tmp_path, "AudioSet_SL", [{"id": f"Y{c * 11}.wav"} for c in "abcd"])
    make(root, "SoundBible", [{"id": "Yaaaaaaaaaaa"}, {"id": "7"}])
    with pytest.warns(UserWarning, match="AudioCaps' val and test splits stay in AudioSet_SL; get it from json_files/blacklist/"):
        assert len(data.prepare("wavcaps", data_root=root)) == 6
    (root / "json_files" / "blacklist").mkdir()
    listed = root / "json_files" / "blacklist" / wavcaps.IN_AUDIOCAPS
    listed.write_text(json.dumps({"AudioSet": ["Yaaaaaaaaaaa.wav", "Ycccccccccccc.wav", "Yccccccccccc.wav"], "FreeSound": ["7"]}))
    manifest = data.prepare("wavcaps", data_root=root)
    assert sorted(manifest.table["clip_id"]) == ["AudioSet_SL/Ybbbbbbbbbbb", "AudioSet_SL/Yddddddddddd", "SoundBible/7",
                                                 "SoundBible/Yaaaaaaaaaaa"]
    assert manifest.info["left_out"] == {"in AudioCaps' val or test split": 2}
    assert manifest.info["found"] == {"FreeSound": 0, "BBC_Sound_Effects": 0, "SoundBible": 2, "AudioSet_SL": 4}
    for text in ('{"FreeSound": []}', "[]", "no JSON"):
        listed.write_text(text)
        with pytest.raises(ValueError, match=f"{wavcaps.IN_AUDIOCAPS}: not the published list"):
            data.prepare("wavcaps", data_root=root)


@pytest.mark.parametrize("written", ["1001\n1003\n", "1001.0\n\"1003.0\"\n", " 1001 \nNot found\n1003\n", "1001.0\n\n1003\nNaN\n"])
def test_lists_as_other_programs_write_them(tmp_path, written, monkeypatch):
    """Numbers, numbers with a fraction (a column with a gap), blanks: every way excludes the same two clips."""
    root = make(tmp_path / "w", "FreeSound", [{"id": "1000"}, {"id": "1001"}, {"id": 1003}, {"id": "10010"}])
    (tmp_path / "mine.csv").write_text("sound_id\n" + written)
    monkeypatch.chdir(tmp_path)
    manifest = data.prepare("wavcaps", data_root=root, excluded_ids="mine.csv")
    assert sorted(manifest.table["clip_id"]) == ["FreeSound/1000", "FreeSound/10010"]
    assert manifest.info["excluded_ids"] == 2 and manifest.info["left_out"] == {"on the list of excluded FreeSound ids": 2}


def test_lists_that_cannot_be_the_right_one(tmp_path):
    root = make(tmp_path / "w", "FreeSound", [{"id": str(i)} for i in range(1, 1002)], files=["1", "2"])
    mine = tmp_path / "mine.csv"
    mine.write_text("sound_id\n77777\n")
    with pytest.warns(UserWarning, match="none of its 1001 clips is among the 1 excluded ids; is it the right list"):
        assert len(data.prepare("wavcaps", data_root=root, excluded_ids=str(mine))) == 2
    mine.write_text("sound_id\nNot found\n1.5\n")
    with pytest.raises(ValueError, match="mine.csv: column sound_id holds no FreeSound id"):
        data.prepare("wavcaps", data_root=root, excluded_ids=str(mine))
    mine.write_text("id\n1\n")
    with pytest.raises(ValueError, match="mine.csv: column 'sound_id' is missing, it has id"):
        data.prepare("wavcaps", data_root=root, excluded_ids=str(mine))
    with pytest.raises(FileNotFoundError, match=f"absent.csv. Get it from {wavcaps.EXCLUDED_URL}, or set excluded_ids .* or to 'none'"):
        data.prepare("wavcaps", data_root=root, excluded_ids=str(tmp_path / "absent.csv"))


def test_every_row_is_kept_or_counted(tmp_path):
    """Lengths that are missing, zero, NaN or wrong, blank captions, hostile ids: kept + left out = rows of the table."""
    records = [{"id": "1"}, {"id": "2", "duration": float("nan")}, {"id": "3", "duration": None}, {"id": "4", "duration": 0},
               {"id": "5", "caption": "  "}, {"id": "6", "duration": 500}, {"id": "../../7"}, {"id": "<b>'8\""}]
    root = make(tmp_path / "w", "SoundBible", records, files=["1", "2", "3", "4", "5", "6", "<b>'8\""])
    manifest = data.prepare("wavcaps", data_root=root, subsets="SoundBible")
    assert sorted(manifest.table["clip_id"]) == [f"SoundBible/{i}" for i in ("1", "2", "3", "4", "<b>'8\"")]
    assert manifest.info["left_out"] == {"without a caption": 1, "longer than 120 s": 1, "file not there": 1}
    assert len(manifest) + sum(manifest.info["left_out"].values()) == len(records) == manifest.info["found"]["SoundBible"]
    assert np.allclose(manifest.table["duration"], 0.25)
    with pytest.raises(ValueError, match="subsets: name one at least"):
        data.prepare("wavcaps", data_root=root, subsets=())


def test_ids_are_text(tmp_path):
    """0012, 12 and 12.5 are three clips."""
    root = make(tmp_path / "w", "BBC_Sound_Effects", [{"id": "0012"}, {"id": "12"}, {"id": "12.5"}])
    manifest = data.prepare("wavcaps", data_root=root)
    ids = [clip.partition("/")[2] for clip in manifest.table["clip_id"]]
    assert sorted(ids) == ["0012", "12", "12.5"] and pd.Series(manifest.table["path"]).nunique() == 3
    assert all(manifest.file(i).stem == name for i, name in enumerate(ids))
