"""The retrieval family: training that learns, resumes to the same bits, refuses what is not finite; embedding and relevance."""
import json

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from lib import training
from lib.data.manifest import Manifest
from lib.families import retrieval
from lib.families.retrieval import Retrieval, RetrievalConfig, embed, mix_clips, relevance, shared
from lib.glossary import ParameterError
from lib.training import checkpoint, loop

TINY = dict(audio_size="tiny", text_size="tiny", clip_seconds=1.0, segment_seconds=1.0, embedding_dim=16, batch_size=8, epochs=2,
            warmup_epochs=0.5, decay_epochs=1.5, learning_rate=1e-3, threads=1, device="cpu", every_caption=False, patchout_time=0.2)


def tiny(**changes):
    return RetrievalConfig(**TINY | changes)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Tones of four pitches, each with captions that name it; 32 train, 8 val, 8 test clips of 1 s."""
    folder, rows, rng = tmp_path_factory.mktemp("tones"), [], np.random.default_rng(0)
    words = ["a low hum", "a middle tone", "a high whistle", "a very high hiss"]
    for i in range(48):
        kind, time = i % 4, np.arange(32000) / 32000
        wave = 0.2 * np.sin(2 * np.pi * [150, 900, 4000, 11000][kind] * rng.uniform(0.9, 1.1) * time) + 0.01 * rng.normal(size=32000)
        soundfile.write(folder / f"{i}.wav", wave.astype(np.float32), 32000)
        rows.append({"clip_id": f"c{i:02d}", "path": f"{i}.wav", "start": 0.0, "duration": 1.0, "split": ["train", "train", "train", "train", "val", "test"][i // 8],
                     "captions": [words[kind], f"{words[kind]} is heard"], "labels": [words[kind]]})
    return Manifest(pd.DataFrame(rows), "tones", folder, {"classes": words})


def weights(run):
    return load_file(run.checkpoint / "model.safetensors")


def test_it_learns_what_can_be_heard(manifest, tmp_path):
    config = tiny(epochs=14, decay_epochs=13, positives="labels", loss_reduction="rows", text_dropout=0.0)
    run = loop.fit(Retrieval(config, manifest), tmp_path)
    model, stored = retrieval.load(run.checkpoint)
    assert stored == config
    gallery = embed(model, manifest.select("test"), config)
    best = gallery.similarity.argmax(dim=1)
    share = gallery.relevant[torch.arange(len(best)), best].float().mean()
    assert share >= 0.75, f"{share:.2f} of the queries find their kind first; chance is 0.25"
    losses = [row["train/loss"] for row in run.history if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.3
    assert (tmp_path / "metrics.csv").read_text().count("\n") == len(run.history) + 1


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_stopped_run_ends_with_the_same_bits(manifest, tmp_path, stop):
    """Stopped in the middle of an epoch (1, 3, 6) and at its end (4): weights and history equal the uninterrupted run's."""
    config = tiny(checkpoint_steps=1, text_dropout=0.3, gain_db=3.0, mix=0.5)
    whole = loop.fit(Retrieval(config, manifest), tmp_path / "whole")
    assert whole.steps == 8

    class Stopped(Retrieval):
        seen = 0

        def losses(self, model, batch):
            self.seen += 1
            if self.seen > stop:
                raise KeyboardInterrupt
            return super().losses(model, batch)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(Stopped(config, manifest), tmp_path / "halves")
    resumed = loop.fit(Retrieval(config, manifest), tmp_path / "halves")
    assert resumed.history == whole.history and resumed.checkpoint.name == whole.checkpoint.name
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_accumulation_counts_steps_and_thread_change_warns(manifest, tmp_path):
    run = loop.fit(Retrieval(tiny(accumulation=3, epochs=1), manifest), tmp_path)
    assert run.steps == 2, "4 batches: three make a step, the last one makes its own"
    with pytest.warns(UserWarning, match="threads=1 and continues with 2"):
        loop.fit(Retrieval(tiny(accumulation=3, epochs=2, threads=2), manifest), tmp_path)
    torch.set_num_threads(1)


def test_nonfinite_loss_stops_before_the_update(manifest, tmp_path):
    class Broken(Retrieval):
        def losses(self, model, batch):
            return super().losses(model, batch) | {"extra": torch.tensor(float("nan"))}
    learner = Broken(tiny(), manifest)
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    with pytest.raises(loop.NonFiniteLoss, match="'extra' is nan at step 0"):
        loop.fit(learner, tmp_path)
    assert all(torch.equal(before[k], v) for k, v in learner.model.state_dict().items())
    assert len(json.loads((tmp_path / "nonfinite_step_00000000.json").read_text())["clip_id"]) == 8


def test_launch_reads_a_finished_run(manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path))
    monkeypatch.setattr(RetrievalConfig, "prepare", lambda self: manifest)
    first = training.launch("retrieval", tiny(epochs=1))
    assert first.folder.parent == tmp_path and checkpoint.valid(first.checkpoint)
    capsys.readouterr()
    monkeypatch.setattr(loop, "fit", None)
    second = training.launch("retrieval", tiny(epochs=1, workers=1))
    assert "read, not repeated" in capsys.readouterr().out
    assert second == first
    with pytest.raises(TypeError):            # another parameter is another run
        training.launch("retrieval", tiny(epochs=1, seed=1))


def test_relevance_by_clip_and_by_labels(manifest):
    part = manifest.select("test")
    queries, relevant, group = relevance(part, "clip")
    assert len(queries) == 16 and relevant.sum(1).tolist() == [1] * 16 and group.tolist() == [i // 2 for i in range(16)]
    queries, relevant, group = relevance(part, "labels")
    assert len(queries) == 8 and relevant.sum(1).tolist() == [2] * 8 and len(set(queries)) == 8


def test_shared_and_mix():
    names = ["a", "b", "a"]
    assert shared([[n] for n in names], names).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    assert shared([["a", "b"], ["c", "c"]], ["a", "b", "c"]).tolist() == [[True, True, False], [False, False, True]]
    wave, durations = torch.eye(3, 5), torch.tensor([1.0, 2.0, 3.0])
    mixed, longest, heard = mix_clips(wave, durations, 0.0)
    assert torch.equal(mixed, wave) and torch.equal(longest, durations) and heard.tolist() == [[0, 0], [1, 1], [2, 2]]
    torch.manual_seed(3)
    mixed, longest, heard = mix_clips(wave, durations, 1.0)
    for i in range(3):
        sounding = mixed[i, :3] > 0
        assert sounding.nonzero().flatten().tolist() == sorted(set(heard[i].tolist())), "the rows that are named sound in the mixture"
        assert longest[i] == durations[sounding].max() and (mixed[i][mixed[i] > 0] >= 10 ** -0.5 - 1e-6).all()


@pytest.mark.parametrize("change, words", [
    ({"epochs": 0}, "epochs .* from 1 up to 100000, got 0"), ({"batch_size": "8"}, "batch_size .* got '8' \\(str\\)"),
    ({"device": "gpu"}, "device .* one of auto, cpu, cuda, cuda:N"), ({"data_root": "/no/such/folder"}, "data_root .* does not exist"),
    ({"fit_splits": ("train", "val")}, "selection 'last'"), ({"tau": float("nan")}, "tau")])
def test_bad_parameters_are_refused_by_name(change, words):
    with pytest.raises(ParameterError, match=words):
        tiny(**change)


def test_configuration_round_trip_and_digest():
    config = tiny(fit_splits=["train", "val"], selection="last")
    assert RetrievalConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert tiny(workers=3, device="auto").digest() == tiny().digest() != tiny(seed=1).digest()
    with pytest.raises(ParameterError, match="unknown parameter 'epoch'; did you mean 'epochs'"):
        RetrievalConfig.from_dict({"epoch": 3})
    assert RetrievalConfig.from_parameters({"epochs": 3, "other": 1}).epochs == 3


def test_training_command_refuses_and_trains(manifest, tmp_path, monkeypatch, capsys):
    from lib.training.__main__ import main
    assert main(["--family", "retrieval", "epochs=0"]) == 2 and "epochs" in capsys.readouterr().err
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path))
    monkeypatch.setattr(RetrievalConfig, "prepare", lambda self: manifest)
    (tmp_path / "c.json").write_text(json.dumps(tiny().to_dict()))
    assert main(["--family", "retrieval", "--config", str(tmp_path / "c.json"), "epochs=1", "learning_rate=1e-3"]) == 0
    assert checkpoint.valid(tmp_path / json.loads(capsys.readouterr().out.splitlines()[-1])["checkpoint"])
