"""A clip that fails during training is replaced by a draw that depends on nothing but (seed, epoch, row), counted, and budgeted."""
import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from lib.data.loading import ClipDataset, batches
from lib.data.manifest import Manifest
from lib.families.retrieval import Retrieval, RetrievalConfig, embed
from lib.media.audio import AudioError
from lib.training import loop
from tests.runs import stop_and_resume

CLIPS = 500


@pytest.fixture
def clips(tmp_path):
    """Makes a manifest of 500 training clips and 10 validation clips of 0.5 s, of which the named ones are broken on disk."""
    words = ["a low hum", "a high whistle"]
    for kind in range(2):
        wave = 0.3 * np.sin(2 * np.pi * [200, 5000][kind] * np.arange(16000) / 32000)
        soundfile.write(tmp_path / f"{kind}.wav", wave.astype(np.float32), 32000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 32000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("<script>alert(1)</script>")

    def make(broken: dict[int, str]) -> Manifest:
        rows = [{"clip_id": f"c{i:03d}", "path": broken.get(i, f"{i % 2}.wav"), "start": 0.0, "duration": 0.5,
                 "split": "train" if i < CLIPS else "val", "captions": [words[i % 2]], "labels": [words[i % 2]]} for i in range(CLIPS + 10)]
        return Manifest(pd.DataFrame(rows), "toy", tmp_path, {"classes": words})
    return make


def config(**changes):
    return RetrievalConfig(**dict(audio_size="frames", text_size="tiny", clip_seconds=0.5, segment_seconds=0.5, embedding_dim=8, batch_size=50,
                                  epochs=1, learning_rate=1e-3, threads=1, device="cpu", patchout_time=0.0, patchout_frequency=0.0, decay_epochs=1.0, warmup_epochs=0.0) | changes)


def test_one_percent_against_half_a_percent_stops_with_the_list(clips, tmp_path):
    broken = {7: "gone.wav", 100: "nan.wav", 200: "text.wav", 300: "gone.wav", 499: "nan.wav"}
    with pytest.raises(loop.BadMedia, match=r"3 of 500 training clips \(0\.60%\).*bad_media_budget=0\.005(.|\n)*raise bad_media_budget") as caught:
        loop.fit(Retrieval(config(), clips(broken)), tmp_path / "run")
    listed = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert len(listed) == 3 and all(clip in str(caught.value) and reason in str(caught.value) for clip, reason in listed.items())
    assert set(listed) < {f"c{i:03d}" for i in broken}
    run = loop.fit(Retrieval(config(bad_media_budget=0.01), clips(broken)), tmp_path / "run")
    assert set(run.skipped) == {f"c{i:03d}" for i in broken}, "with a larger budget the run goes on and meets all five"


def test_less_than_the_budget_completes_and_says_so(clips, tmp_path, capsys):
    run = loop.fit(Retrieval(config(epochs=2), clips({3: "gone.wav", 400: "nan.wav"})), tmp_path / "run")
    assert set(run.skipped) == {"c003", "c400"} and "does not exist" in run.skipped["c003"] and "no finite" in run.skipped["c400"]
    said = capsys.readouterr().out
    assert said.count("c003 cannot be used") == 1 and "(2 of 500 so far)" in said
    assert json.loads((tmp_path / "run" / "skipped.json").read_text()) == run.skipped


def test_replacement_is_whole_and_repeatable(clips):
    manifest = clips({3: "gone.wav", 4: "text.wav"})
    rows = ClipDataset(manifest.select("train"), sample_rate=32000, seconds=0.5, train=True, seed=5, gain_db=6.0)
    items = [rows[epoch, 3] for epoch in range(12)]
    assert all(item["failed"] == {"clip_id": "c003", "reason": item["failed"]["reason"]} and item["clip_id"] != "c003" for item in items)
    for item in items:      # sound, caption, label and row belong to one clip
        clip = manifest.row(item["row"])
        low = float(np.abs(np.fft.rfft(item["waveform"])).argmax()) < 500
        assert item["clip_id"] == clip["clip_id"] and item["caption"] == clip["captions"][0] == ("a low hum" if low else "a high whistle")
    assert len({item["clip_id"] for item in items}) > 8, "another draw in every epoch"
    known = ClipDataset(manifest.select("train"), sample_rate=32000, seconds=0.5, train=True, seed=5, gain_db=6.0)
    known.skipped = frozenset({"c003"})
    for epoch, item in enumerate(items):        # not tried, the same stand-in with the same gain: a resumed run agrees
        again = known[epoch, 3]
        assert again["clip_id"] == item["clip_id"] and (again["waveform"] == item["waveform"]).all()
    assert rows[0, 5]["failed"] is None


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_agrees_about_replacements(clips, tmp_path, workers):
    settings, manifest = config(epochs=2, checkpoint_steps=3, workers=workers), clips({3: "gone.wav", 400: "text.wav"})
    assert stop_and_resume(Retrieval, settings, manifest, tmp_path, 8).skipped


def test_nothing_left_to_stand_in_is_an_error(clips):
    manifest = clips({i: "gone.wav" for i in range(CLIPS)})
    with pytest.raises(AudioError, match="gone.wav.*nor could 20 other clips"):
        next(batches(ClipDataset(manifest.select("train"), sample_rate=32000, seconds=0.5, train=True), 4))


def test_scoring_refuses_and_validation_leaves_out(clips):
    manifest = clips({505: "gone.wav"})
    learner = Retrieval(config(), manifest)
    with pytest.raises(AudioError, match="1 of 10 clips cannot be decoded any more, such as c505"):
        embed(learner.model, manifest.select("val"), learner.config)
    with pytest.warns(UserWarning, match="c505.*left out"):
        gallery = embed(learner.model, manifest.select("val"), learner.config, leave_out_unreadable=True)
    assert len(gallery.audio) == len(gallery.queries) == 9 and gallery.relevant.sum() == 9
    with pytest.warns(UserWarning, match="left out"):
        assert "val/mAP@10" in learner.validate()
