"""The spatial family: triplets that teach order and place, its controls, what is stored, refusals."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from lib import encoders, training
from lib.audio.ambisonics import encode
from lib.audio.directions import direction_word
from lib.data.manifest import Manifest
from lib.encoders import features
from lib.evaluation.triplets import triplet_metrics
from lib.families import spatial
from lib.families.spatial import ARMS, Clips, Groups, Spatial, SpatialConfig, arm, embed, load
from lib.glossary import ParameterError
from lib.media.audio import AudioError
from lib.training import loop
from tests.runs import same_in_one_and_two, stop_and_resume

RATE, LONG = 24000, 0.6
NAMES = ["hum", "tone", "whistle", "hiss"]
KHZ = dict(zip(NAMES, (0.2, 0.9, 3.5, 9.0)))


def scene(events, rng, detune=1.0):
    """Tones one after the other, each from its place: (4, samples)."""
    time, parts = np.arange(int(LONG * RATE)) / RATE, []
    for name, azimuth in events:
        parts.append(encode(0.2 * np.sin(2000 * np.pi * KHZ[name] * detune * time), azimuth, 0.0))
    whole = np.concatenate(parts, axis=1)
    return whole + 0.002 * rng.normal(size=whole.shape)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """32 triplets to train on, 8 for validation, 8 test, and single clips, of four tones at eight places."""
    folder, rows, rng = tmp_path_factory.mktemp("triplets"), [], np.random.default_rng(0)

    def add(split, group, role, events, detune):
        clip_id, words = f"{group}-{role}", [direction_word(a) for _, a in events]
        soundfile.write(folder / f"{clip_id}.wav", scene(events, rng, detune).T.astype(np.float32), RATE, subtype="FLOAT")
        told = [f"a {n} from the {w}" for (n, _), w in zip(events, words)]
        rows.append({"clip_id": clip_id, "path": f"{clip_id}.wav", "start": 0.0, "duration": LONG * len(events), "split": split, "role": role,
                     "group": group, "captions": [", then ".join(told)] * 5, "semantic_captions": [", then ".join(f"a {n}" for n, _ in events)] * 5,
                     "labels": [n for n, _ in events], "azimuth": [float(a) for _, a in events], "elevation": [0.0] * len(events),
                     "onset": [LONG * k for k in range(len(events))]})
    for split, count in (("train", 32), ("val", 8), ("test", 8)):
        for k in range(count):
            (a, b), (p, q) = rng.choice(NAMES, 2, replace=False), 45 * rng.choice(8, 2, replace=False) - 180 + 1.0
            group, detune = f"{split}-{k:06d}", rng.uniform(0.95, 1.05)
            add(split, group, "positive", [(a, p), (b, q)], detune)
            add(split, group, "temporal", [(b, q), (a, p)], detune)
            add(split, group, "spatial", [(a, q), (b, p)], detune)
            add(split, f"{split}-single-{k}", "single", [(a, p)], detune)
    return Manifest(pd.DataFrame(rows), "tones", folder, {"classes": NAMES})


@pytest.fixture
def config(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path_factory.getbasetemp() / "spatial data"))           # one feature store for the file
    return SpatialConfig(dataset="triplets", audio_size="tiny", text_size="tiny", embedding_dim=32, clip_seconds=1.25, epochs=2, batch_size=8,
                         learning_rate=1e-3, warmup_epochs=0.5, decay_epochs=1.5, store_features=True, rotation="symmetries", threads=1,
                         device="cpu", max_tokens=32)


def test_it_learns_order_and_place(manifest, config, tmp_path):
    config = replace(config, epochs=40, decay_epochs=39.0, learning_rate=4e-3, drop_path=0.0, text_dropout=0.0, selection="last", fit_splits=("train",),
                     weight_ts=1.0)
    run = loop.fit(Spatial(config, manifest), tmp_path)
    model, stored = load(run.checkpoint)
    assert stored == replace(config, data_root=None)
    found = embed(model, Clips(manifest, ["train"], 2), config, spatial.stored(config, manifest))
    metrics = triplet_metrics(found.audio["triplet"], found.text)
    assert metrics["text temporal"] > 0.9 and metrics["text spatial"] > 0.75, {k: v for k, v in metrics.items() if isinstance(v, float)}
    assert found.errors().mean() < 60, "chance is 75 degrees"
    last = run.history[-1]
    assert 0.3 < last["train/loss_modality"] < 1.2 and last["train/loss_logit_ts"] < 0.8 < np.log(3)


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_a_stopped_run_ends_with_the_same_bits(manifest, config, tmp_path, stop):
    assert stop_and_resume(Spatial, replace(config, checkpoint_steps=1), manifest, tmp_path, stop).steps == 8


def test_parts_of_the_loss_follow_their_schedules(manifest, config):
    learner = Spatial(config, manifest)
    learner.model.eval()
    batch = next(learner.batches(0, 0))
    names = {"loss_spatial_semantic": "joint", "loss_semantic": "semantic", "loss_doa": "doa", "loss_logit_ts": "temporal_spatial",
             "loss_modality": "modality"}
    for epoch in range(5):
        learner.epoch = epoch
        with torch.no_grad():
            parts = {name: float(value) for name, value in learner.losses(learner.model, batch).items()}
        sem, ts = (0.0 if epoch < 3 else 0.5), 0.2 * min(1, (epoch + 1) / 4)
        weights = dict(joint=1 - sem, semantic=sem, doa=1.0, temporal_spatial=ts, modality=0.2)
        assert parts["loss"] == pytest.approx(sum(weights[w] * parts[name] for name, w in names.items()), abs=1e-5)
    assert len(batch["caption"]) == 24 and batch["direction"].shape == (24, 2, 3)


def test_single_clips_have_no_three_way_loss(manifest, config, tmp_path):
    single = replace(config, events=1)
    run = loop.fit(Spatial(single, manifest), tmp_path)
    assert all(row["train/loss_logit_ts"] == 0 for row in run.history if "train/loss_logit_ts" in row)
    model, _ = load(run.checkpoint)
    assert model.audio(torch.randn(2, 7, 120, 64))["direction"].shape == (2, 1, 3)
    after = Spatial(replace(config, initial_checkpoint=str(run.checkpoint)), manifest).model       # its direction head starts anew
    kept = after.audio.semantic_head[0].weight
    assert torch.equal(kept, model.audio.semantic_head[0].weight) and after.audio.events == 2
    with pytest.raises(ParameterError, match="initial_checkpoint.*embedding_dim"):
        Spatial(replace(config, initial_checkpoint=str(run.checkpoint), embedding_dim=64), manifest)


@pytest.mark.parametrize("rotation", ["symmetries", "free"])
def test_turned_groups_stay_consistent(manifest, config, rotation):
    """Captions, directions and sound of all members turn together."""
    config = replace(config, rotation=rotation, store_features=False)
    clips = Clips(manifest, ["train"], 2)
    store = None if rotation == "free" else spatial.stored(replace(config, store_features=True), manifest)
    plain, turned = (Groups(clips, replace(config, rotation=kind), RATE, store) for kind in ("none", rotation))
    for epoch in range(4):
        before, after = plain[epoch, 3], turned[epoch, 3]
        old, new = before["direction"], after["direction"]
        angles = np.degrees(np.arctan2(new[..., 1], new[..., 0]))
        for member in range(3):
            for word in direction_word(angles[member]):
                assert word in after["caption"][member].split(", then ")[0] + after["caption"][member]
            said = [part.rsplit(" ", 1)[1] for part in after["caption"][member].split(", then ")]
            assert said == list(direction_word(angles[member]))
        dots = [(x[:, 0] * x[:, 1]).sum(-1) for x in (old, new)]
        torch.testing.assert_close(*dots, atol=1e-5, rtol=0)        # the angle between events stays
        assert after["semantic"] == before["semantic"]


def test_features_are_computed_once(manifest, config, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path))
    calls, original = [], spatial.read
    monkeypatch.setattr(spatial, "read", lambda *a: calls.append(a[-1]) or original(*a))
    config = replace(config, threads=1)
    model = Spatial(replace(config, store_features=False), manifest).model
    window = {"seconds": config.clip_seconds}
    make = lambda: features.feature_store(manifest, model.front_end, lambda row: spatial.read(manifest, config, RATE, row), window)  # noqa: E731
    first = make()
    assert len(calls) == len(manifest) and make().folder == first.folder and len(calls) == len(manifest)
    wave = original(manifest, config, RATE, 5)
    expected = model.front_end(wave[None])[0]
    torch.testing.assert_close(torch.from_numpy(np.array(first.of(manifest.table["clip_id"].iat[5]))).float(), expected, atol=0.04, rtol=1e-3)


def test_a_broken_member_replaces_its_whole_triplet(manifest, config, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in manifest.root.iterdir():
        (folder / file.name).symlink_to(file)
    clips = Clips(replace(manifest, root=folder), ["train"], 2)
    broken = clips.manifest.file(int(clips.groups[4][1]))
    broken.unlink()
    soundfile.write(broken, np.zeros(1000), RATE)                       # one channel
    config = replace(config, store_features=False, rotation="none")
    item = Groups(clips, config, RATE, None)[0, 4]
    assert item["failed"]["clip_id"] == "train-000004" and "1 channel, expected 4" in item["failed"]["reason"]
    roles = [clips.table["role"].iat[row] for row in item["rows"]]
    assert roles == list(spatial.ROLES) and item["clip_id"] != "train-000004"
    with pytest.raises(AudioError, match="1 channel, expected 4"):
        embed(Spatial(config, manifest).model, clips, config)


def test_a_checkpoint_opens_by_itself(manifest, config, tmp_path):
    learner = Spatial(config, manifest)
    folder = learner.save(tmp_path)
    model = encoders.load(folder)
    wave = torch.from_numpy(scene([("hum", 10.0), ("hiss", 100.0)], np.random.default_rng(1))).float()[None]
    learner.model.eval()
    assert torch.equal(model.embed_audio(wave, torch.tensor([1.2])), learner.model.embed_audio(wave))
    assert torch.equal(model.embed_text(["a hum"]), learner.model.embed_text(["a hum"])) and model.audio.sample_rate == RATE
    entry = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(entry | {"model_type": "other"}))
    with pytest.raises(ValueError, match="'other'"):
        load(folder)
    with pytest.raises(FileNotFoundError, match="notebook 31"):
        load(tmp_path / "nothing")


def test_refusals_say_what_and_where(manifest, config):
    with pytest.raises(ParameterError, match="events=2"):
        Clips(replace(manifest, table=manifest.table.assign(role="single")), ["train"], 1)
    plain = manifest.table.drop(columns=["role"])
    with pytest.raises(ParameterError, match="no events with directions"):
        Clips(replace(manifest, table=plain), ["train"], 2)
    with pytest.raises(ValueError, match="doa, semantic, temporal_spatial, modality"):
        replace(config, loss_weights=(1.0, 0.5))
    with pytest.raises(ParameterError, match="rotation"):
        replace(config, rotation="free", store_features=True)
    with pytest.raises(ParameterError, match="events"):
        replace(config, events=3)


def test_loss_weights_have_the_original_s_order(config):
    weights = replace(config, loss_weights=(1.0, 0.5, 0.3, 0.1)).weights()
    assert (weights.doa, weights.semantic, weights.temporal_spatial, weights.modality) == (1.0, 0.5, 0.3, 0.1)
    default = SpatialConfig().weights()
    assert (default.doa, default.semantic, default.temporal_spatial, default.modality) == (1.0, 0.5, 0.2, 0.2)


@pytest.mark.parametrize("name", ARMS)
def test_arms_train(manifest, config, name):
    learner = Spatial(arm(config, name), manifest)
    loss = learner.losses(learner.model, next(learner.batches(0, 0)))["loss"]
    loss.backward()
    missing = [n for n, p in learner.model.named_parameters() if p.grad is None]
    assert torch.isfinite(loss) and not missing, missing


@pytest.mark.slow
def test_two_processes_equal_one(manifest, config, tmp_path, monkeypatch):
    """Batches that do not divide, BatchNorm over all rows, every part of the loss."""
    from lib.data import triplets
    triplets.prepare(num_samples=24, clip_seconds=2.5, event_seconds=1.1, single_clips=6)
    config = replace(config, num_samples=24, clip_seconds=2.5, event_seconds=1.1, single_clips=6, batch_size=5, drop_path=0.0, text_dropout=0.0,
                     temporal_dropout=0.0, rotation="none", semantic_start_epoch=1)
    runs = {}
    for devices in (1, 2):
        monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / str(devices)))
        runs[devices] = training.launch("spatial", replace(config, devices=devices))
    same_in_one_and_two(runs[1], runs[2], left_out=("key.bias",))
