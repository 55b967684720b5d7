"""`make prefetch`: what jobs need, what is there, what is fetched and what cannot be had. No network: downloads are played."""
from pathlib import Path

import pytest

from lib import data
from lib.data import clotho, esc50, librispeech
from lib.data.download import DownloadError
from lib.encoders import passt, weights
from lib.glossary import PARAMETERS
from lib.settings import ROOT
from lib.workbook import prefetch
from lib.workbook.parameters import read_notebooks
from lib.workbook.plan import make_jobs

NOTEBOOKS = read_notebooks(ROOT / "notebooks")


def test_every_parameter_that_may_name_a_hub_is_looked_at():
    said = {name for name, entry in PARAMETERS.items() if entry.hub or "hub id" in entry.meaning or "downloaded)" in entry.meaning}
    assert said == set(prefetch.WEIGHTS)


def test_quick_settings_need_nothing_from_elsewhere():
    assert prefetch.needed(make_jobs(NOTEBOOKS)) == {}


def test_what_the_published_settings_need():
    items = prefetch.needed(make_jobs(NOTEBOOKS, profile="full"))
    assert items["weights", "roberta-large"] == ["10_retrieval_train"] == items["weights", "passt_s_p16_s16_128_ap468"]
    assert {("data", name) for name in ("clotho", "audiocaps", "wavcaps", "audioset")} <= items.keys()
    assert "11_retrieval_evaluate" in items["data", "clotho"] and "11_retrieval_evaluate" not in items["data", "wavcaps"]
    t3av = prefetch.needed(make_jobs(NOTEBOOKS, profile="t3av_vggsound", family="audiovisual"))
    assert "41_audiovisual_mae" in t3av["weights", "google/vit-base-patch16-224-in21k"]


def test_what_is_named_by_a_path_is_there(tmp_path):
    settings = {"data_root": str(tmp_path), "text_weights": str(tmp_path), "audio_weights": str(tmp_path)}
    items = prefetch.needed(make_jobs(NOTEBOOKS, family="retrieval", dataset="clotho", settings=settings))
    assert items == {}


def test_triplets_need_the_data_of_their_events():
    jobs = make_jobs(NOTEBOOKS, family="spatial", settings={"source": "esc50"})
    assert {"30_spatial_data", "31_spatial_train"} <= set(prefetch.needed(jobs)["data", "esc50"])


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Downloads that write a file into a folder of theirs unless it is there; what is in `broken` fails. Returns (broken, calls)."""
    broken, calls = {}, []

    def get(name: str) -> Path:
        calls.append(name)
        if name in broken:
            raise broken[name]
        file = tmp_path / "there" / name.replace("/", "--") / "file"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text("x")
        return file.parent

    for module in (clotho, esc50, librispeech):
        monkeypatch.setattr(module, "download", lambda name=module.__name__.rpartition(".")[2]: get(name))
    monkeypatch.setattr(weights, "resolve", get)
    monkeypatch.setattr(passt, "fetch", lambda url, path: get("passt") / "file")
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    return broken, calls


def test_what_is_missing_is_fetched_once(played, capsys):
    arguments = ["--family=retrieval", "--profile=retrieval_clotho"]
    assert prefetch.main(arguments) == 0
    first = capsys.readouterr().out
    assert sorted(played[1]) == ["clotho", "passt", "roberta-large"] and first.count("fetched to") == 3
    assert prefetch.main(arguments) == 0
    assert capsys.readouterr().out.count("there already") == 3


def test_what_cannot_be_had_is_listed_and_keeps_nothing_else_from_coming(played, capsys):
    broken, calls = played
    broken["roberta-large"] = FileNotFoundError("no such model")
    broken["clotho"] = DownloadError("the connection broke")
    assert prefetch.main(["--family=retrieval", "--profile=retrieval_clotho"]) == 1
    said = capsys.readouterr()
    assert "could not get weights roberta-large: FileNotFoundError: no such model" in said.err
    assert "could not get data clotho: DownloadError: the connection broke" in said.err
    assert "data clotho: MISSING (for 01_data, 10_retrieval_train" in said.out and "passt_s_p16_s16_128_ap468: fetched to" in said.out


def test_data_that_only_a_person_can_get(played, capsys):
    assert prefetch.main(["--family=tokenizer", "--set=dataset=commonvoice"]) == 1
    assert "could not get data commonvoice: FileNotFoundError" in capsys.readouterr().err


def test_bad_choices_are_refused(capsys):
    assert prefetch.main(["--profile=ful"]) == 2 and "did you mean 'full'" in capsys.readouterr().err


def test_a_downloaded_esc50_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path))
    (tmp_path / "esc50").mkdir()
    monkeypatch.setattr(esc50.transfer, "fetch", lambda *_, **__: pytest.fail("asked for again"))
    assert esc50.download() == tmp_path / "esc50" and "esc50" in data.DATASETS
