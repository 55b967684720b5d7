"""A vocoder beside the runs: trained once, the same when it was broken off, read afterwards."""
import pytest
import torch
from safetensors.torch import load_file

from lib.encoders.vocoder import Vocoder
from lib.families.tokenizer import TokenizerConfig
from lib.training import vocoder as training
from lib.training.vocoder import launch_vocoder

SMALL = dict(dataset="soundscapes", num_samples=24, scene_seconds=3.0, preset="environmental", frames=256, variant="tiny")


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path))
    return TokenizerConfig(**SMALL)


def test_trained_once_and_read_afterwards(config, monkeypatch, capsys):
    manifest = config.prepare()
    folder = launch_vocoder(config, manifest, "tiny", 3)
    vocoder = Vocoder.from_pretrained(folder)
    assert vocoder.config.mel == config.mel and not vocoder.training
    levels = torch.full((1, 256, 128), -40.0)
    assert vocoder.sound(levels, torch.zeros(1)).shape == (1, config.mel.samples)
    monkeypatch.setattr(training, "fit", None)          # not called again
    assert launch_vocoder(config, manifest, "tiny", 3) == folder and "read, not repeated" in capsys.readouterr().out
    with pytest.raises(TypeError):                      # another number of steps is another vocoder
        launch_vocoder(config, manifest, "tiny", 4)


def test_broken_off_it_becomes_the_same(config, monkeypatch, tmp_path):
    manifest = config.prepare()
    whole = load_file(launch_vocoder(config, manifest, "tiny", 4) / "model.safetensors")
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / "again"))
    save = training.checkpoint.save
    monkeypatch.setattr(training.checkpoint, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launch_vocoder(config, manifest, "tiny", 4)
    monkeypatch.setattr(training.checkpoint, "save", save)
    again = load_file(launch_vocoder(config, manifest, "tiny", 4) / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_clips_that_cannot_be_read_are_left_out(config):
    manifest = config.prepare()
    manifest.table.loc[manifest.table["split"] == "train", "path"] = "nowhere.flac"
    with pytest.raises(ValueError, match="nothing to learn from"):
        launch_vocoder(config, manifest, "tiny", 2)
