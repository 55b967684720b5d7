"""The audio-visual family: stages that learn, hand over and resume; pairs that stay pairs; what is refused."""
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import ViTConfig, ViTModel

from lib import encoders, training
from lib.data.av_loading import WindowStore
from lib.data.manifest import Manifest
from lib.encoders import t3av_files
from lib.evaluation.retrieval import retrieval_metrics
from lib.families import audiovisual
from lib.families.audiovisual import STAGES, Audiovisual, AudiovisualConfig, embed, export, has_videos, labelled_part, load, mean_states, score
from lib.glossary import ParameterError
from lib.losses.contrastive import contrastive_loss
from lib.training import loop
from tests.runs import same_in_one_and_two, stop_and_resume, weights

RATE, SECONDS, FRAMES, SIZE, CLASSES = 4000, 0.5, 2, 16, 6
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]])


@pytest.fixture(scope="module")
def tones():
    """Six classes, each a colour and a tone; how bright a clip is, is how loud it is: (manifest, its windows)."""
    rng, rows, frames, sound = np.random.default_rng(0), [], [], []
    time = np.arange(round(RATE * SECONDS)) / RATE
    for split, count in (("train", 48), ("val", 18), ("test", 18)):
        for k in range(count):
            label, light = k % CLASSES, rng.uniform(0.3, 1)
            half = np.ones((FRAMES, SIZE, SIZE)) * np.linspace(0.4, 1, SIZE)
            frames.append((half[:, None] * light * COLOURS[label][:, None, None] + rng.uniform(0, 5, (FRAMES, 3, SIZE, SIZE))).clip(0, 255))
            sound.append(light * np.sin(2 * np.pi * (200 + 250 * label) * time) + 0.01 * rng.normal(size=len(time)))
            rows.append({"clip_id": f"{split}-{k}", "path": f"{split}-{k}.mp4", "start": 0.0, "duration": SECONDS, "split": split,
                         "captions": [f"tone {label}"], "labels": [f"tone {label}"], "group": f"{split}-{k}"})
    manifest = Manifest(pd.DataFrame(rows), "tones", Path("nowhere"), {"classes": [f"tone {k}" for k in range(CLASSES)]})
    scale = np.array([np.abs(wave).max() / 32767 for wave in sound], dtype=np.float32)
    store = WindowStore(Path("nowhere"), {"frames": FRAMES, "size": SIZE, "sample_rate": RATE, "seconds": SECONDS},
                        np.array(frames).astype(np.uint8), np.round(np.array(sound) / scale[:, None]).astype(np.int16), scale,
                        {row["clip_id"]: i for i, row in enumerate(rows)}, {}, frozenset())
    return manifest, store


@pytest.fixture
def config(tones, monkeypatch):
    monkeypatch.setattr(audiovisual, "stored_windows", lambda manifest, **settings: tones[1])
    return AudiovisualConfig(dataset="folder", vit_size="tiny", image_size=SIZE, patch_size=8, num_frames=FRAMES, bb_layers=1, bb_heads=2, dec_layers=1,
                             dec_heads=2, contrastive_dim=16, proj_hidden_dim=32, clf_hidden_dim=32, pooling="mean", sample_rate=RATE, n_mels=16,
                             n_fft=256, hop=128, audio_duration=SECONDS, backbone_dropout=0.0, mask_ratio=0.5, epochs=2, batch_size=16,
                             learning_rate=3e-3, warmup_epochs=0.5, decay_epochs=1.5, threads=1, device="cpu", store_windows=True)


def stage(config, name, source=None, **changes):
    given = {"contrastive": "stage1_checkpoint", "finetune": "pretrained_checkpoint"}
    return replace(config, stage=name, **({given[name]: str(source)} if source else {}), **changes)


def test_three_stages_learn_and_hand_over(tones, config, tmp_path):
    manifest, store = tones
    long = replace(config, epochs=25, decay_epochs=24.0)
    first = loop.fit(Audiovisual(long, manifest), tmp_path / "1")
    losses = [row["val/loss_audio"] + row["val/loss_video"] for row in first.history if "val/loss_audio" in row]
    assert losses[-1] < 0.3 * losses[0]
    second_learner = Audiovisual(stage(long, "contrastive", first.checkpoint), manifest)
    assert torch.equal(second_learner.model.backbone.class_token, weights(first)["backbone.class_token"])
    second = loop.fit(second_learner, tmp_path / "2")
    third_learner = Audiovisual(stage(long, "finetune", second.checkpoint, unfreeze_all=True), manifest)
    assert "new: classifier" in third_learner.lines[-1]
    third = loop.fit(third_learner, tmp_path / "3")

    test = manifest.select("test")
    model, used, picture = load(second.checkpoint)
    audio, video, rows = embed(model, used, test, store, picture)
    assert rows == list(range(18)) and torch.allclose(audio.norm(dim=1), torch.ones(18), atol=1e-5)
    assert retrieval_metrics(audio @ video.T, torch.arange(18))["R@5"] > 0.7, "chance is 5/18"
    model, used, picture = load(third.checkpoint)
    absent = mean_states(model, used, manifest.select("train"), store, picture)
    for only in (None, "audio", "video"):
        scores, target, _ = score(model, used, test, store, picture, only, absent)
        assert (scores.argmax(dim=1).numpy() == target).mean() > (0.9 if only is None else 0.3), "chance is 1/6"


@pytest.mark.parametrize("name", STAGES)
def test_a_stopped_run_ends_with_the_same_bits(tones, config, tmp_path, name):
    changes = {"crop_area": 0.5, "token_share": 0.5} | ({"unfreeze_backbone_layers": 1} if name == "finetune" else {})
    run = stop_and_resume(Audiovisual, stage(config, name, checkpoint_steps=1, **changes), tones[0], tmp_path, 4)
    assert run.steps == 6


def test_shuffled_pairs_stay_at_ln_b(tones, config, tmp_path):
    """Trained on pairs that do not belong together, a model knows nothing of held-out ones; trained on pairs, it does."""
    manifest, store = tones

    class Shuffled(Audiovisual):
        def inputs(self, batch):
            own = super().inputs(batch)
            order = torch.randperm(len(own["video"]), generator=torch.Generator().manual_seed(self.steps))
            return own | {"video": own["video"][order]}

    long, found = stage(config, "contrastive", epochs=25, decay_epochs=24.0, selection="last", collapse_check_after=0), {}
    for name, family in (("pairs", Audiovisual), ("shuffled", Shuffled)):
        model, used, picture = load(loop.fit(family(long, manifest), tmp_path / name).checkpoint)
        audio, video, _ = embed(model, used, manifest.select("test"), store, picture)
        found[name] = float(contrastive_loss(model.logits(audio, video)))
    assert found["pairs"] < 0.7 * math.log(18) and found["shuffled"] > 0.97 * math.log(18), found


def test_pictures_of_stored_sounds_are_made_once(tones, config, monkeypatch):
    learner = Audiovisual(config, tones[0])
    batch, made = next(iter(learner.batches(0, 0))), []
    monkeypatch.setattr(learner, "picture", lambda waveform, make=learner.picture: made.append(len(waveform)) or make(waveform))
    first = learner.inputs(batch)["audio"]
    torch.testing.assert_close(first, audiovisual.sound_picture(learner.config)(batch["waveform"]), rtol=0, atol=1e-6)
    assert made == [1] * 16
    monkeypatch.setattr(audiovisual, "PICTURES_KEPT", 0)
    again = {name: value[:3] for name, value in batch.items()}
    assert torch.equal(learner.inputs(again)["audio"], first[:3]) and len(made) == 16
    learner._pictures.clear()
    assert torch.equal(learner.inputs(again)["audio"], first[:3]) and not learner._pictures and len(made) == 19


def test_validation_of_pairs_is_the_mean_of_both_ways(tones, config):
    learner = Audiovisual(stage(config, "contrastive"), tones[0])
    audio, video, _ = embed(learner.model, learner.config, tones[0].select("val"), tones[1], learner.picture)
    one, two = (retrieval_metrics(a @ b.T, torch.arange(18)) for a, b in ((audio, video), (video, audio)))
    found = learner.validate()
    assert learner.monitor in found and found == {f"val/{name}": pytest.approx((one[name] + two[name]) / 2) for name in ("R@1", "R@5", "R@10", "mAP@10")}


def test_a_collapsed_run_stops(tones, config, tmp_path):
    frozen = stage(config, "contrastive", freeze_encoders=True, freeze_backbone=True, learning_rate=1e-7, collapse_check_after=3, temperature=10.0)
    with pytest.raises(RuntimeError, match=r"learnt nothing.*collapse_check_after"):
        loop.fit(Audiovisual(frozen, tones[0]), tmp_path)


@pytest.mark.parametrize("changes, message", [
    ({"bb_heads": 4}, "bb_heads is 4.*made with 2.*allow_config_change"),
    ({"num_frames": 4}, "num_frames is 4.*made with 2.*shape"),
    ({"n_mels": 32}, "n_mels is 32.*made with 16.*allow_config_change"),
    ({"bb_layers": 2}, "bb_layers is 2.*made with 1.*shape"),
    ({"patch_size": 4}, "patch_size is 4.*made with 8.*shape")])
def test_a_contradiction_to_the_checkpoint_is_refused(tones, config, tmp_path, changes, message):
    folder = Audiovisual(config, tones[0]).save(tmp_path)
    with pytest.raises(ValueError, match=message):
        Audiovisual(replace(stage(config, "contrastive", folder), **changes), tones[0])
    free = {name: None for name in audiovisual.STRUCTURE}
    taken = Audiovisual(stage(replace(config, **free), "contrastive", folder), tones[0]).config
    assert all(getattr(taken, name) == getattr(config, name) for name in ("bb_heads", "num_frames", "n_mels", "vit_size", "patch_size"))


def test_an_allowed_change_is_logged(tones, config, tmp_path):
    folder = Audiovisual(config, tones[0]).save(tmp_path)
    learner = Audiovisual(stage(config, "contrastive", folder, n_mels=32, allow_config_change=("n_mels",)), tones[0])
    assert any("n_mels: 32 is used" in line and "(allowed)" in line for line in learner.lines)


def test_other_classes_are_refused(tones, config, tmp_path):
    manifest = tones[0]
    model, *_ = load(Audiovisual(stage(config, "finetune"), manifest).save(tmp_path))
    assert model.classifier[-1].out_features == CLASSES
    contents = audiovisual.read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="6 classes, the data has 5"):
        t3av_files.check_labels(contents, manifest.classes[:5])


def test_exports_are_the_original_s_files(tones, config, tmp_path, capsys):
    out = tmp_path / "files"
    run = loop.fit(Audiovisual(replace(config, output_dir=str(out), checkpoint_interval=1, selection="last"), tones[0]), tmp_path / "run")
    assert sorted(p.name for p in out.iterdir()) == ["stage1_config.json", "t3_av_stage1_epoch_1.pt", "t3_av_stage1_epoch_2.pt"]
    contents = torch.load(out / "t3_av_stage1_epoch_2.pt", weights_only=True)
    assert contents["epoch"] == 2 and contents["args"]["bb_heads"] == 2 and json.loads((out / "stage1_config.json").read_text())["n_mels"] == 16
    models = [Audiovisual(stage(config, "contrastive", source), tones[0]).model.state_dict() for source in
              (run.checkpoint, out / "t3_av_stage1_epoch_2.pt")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert audiovisual.main(["export", "--checkpoint", str(run.checkpoint), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/t3_av_stage1_epoch_2.pt").is_file()
    assert audiovisual.main(["export", "--checkpoint", str(tmp_path), "--out", str(out)]) == 1 and "no checkpoint of this family" in capsys.readouterr().err
    fine = Audiovisual(stage(config, "finetune"), tones[0]).save(tmp_path / "fine") if (tmp_path / "fine").mkdir() is None else None
    assert export(fine, out, best=True, val_accuracy=0.5).name == "t3_av_finetune_best_model.pt"


def test_a_plain_vit_may_stand_in_for_stage_1(tones, config, tmp_path):
    torch.manual_seed(1)
    vit = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=SIZE, patch_size=8),
                   add_pooling_layer=False)
    vit.save_pretrained(tmp_path)
    learner = Audiovisual(stage(replace(config, vit_size="published"), "contrastive", tmp_path), tones[0])
    assert "start from" in learner.lines[-1]
    own = learner.model.encoders["video"].network.state_dict()
    stored = vit.state_dict()
    same = [name for name in stored if name in own and torch.equal(stored[name], own[name])]
    assert len(same) == len(stored), sorted(set(stored) - set(same))
    loop.fit(learner, tmp_path / "run")


def test_what_is_missing_does_not_move_pairs(tones, config):
    """A clip without sound and one without picture: no pair is made of them, and the others keep their values."""
    manifest, store = tones
    learner = Audiovisual(config, manifest)
    learner.model.eval()
    batch = next(learner.batches(0, 0))
    with torch.no_grad():
        before = learner.model(learner.inputs(batch))
        gone = batch | {"has_audio": [k != 1 for k in range(16)], "has_video": [k != 2 for k in range(16)]}
        gone["waveform"], gone["frames"] = batch["waveform"].clone(), batch["frames"].clone()
        gone["waveform"][1], gone["frames"][2] = 0, 0
        after = learner.model(learner.inputs(gone))
    for name, lost in (("audio", 1), ("video", 2)):
        kept = [k for k in range(16) if k != lost]
        torch.testing.assert_close(after[name]["prediction"][kept], before[name]["prediction"][kept], atol=1e-5, rtol=0)
        assert not after[name]["hidden"][lost].any() and after[name]["hidden"][kept].any(dim=1).all()
    broken = replace(store, missing={"val-3": {"audio": "no sound"}, "val-5": {"video": "no picture"}})
    pairs = Audiovisual(stage(config, "contrastive"), manifest)
    audio, video, rows = embed(pairs.model, pairs.config, manifest.select("val"), broken, pairs.picture)
    whole_audio, whole_video, _ = embed(pairs.model, pairs.config, manifest.select("val"), store, pairs.picture)
    assert rows == [k for k in range(18) if k not in (3, 5)]
    torch.testing.assert_close(audio, whole_audio[rows])
    torch.testing.assert_close(video, whole_video[rows])


def test_what_has_videos(tmp_path):
    assert has_videos("soundscapes", None) and has_videos("vggsound", None) and not has_videos("esc50", None) and not has_videos("a+b", None)
    assert not has_videos("folder", None)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "one.wav").write_bytes(b"")
    assert not has_videos("folder", tmp_path)
    (tmp_path / "dog" / "two.MP4").write_bytes(b"")
    assert has_videos("folder", str(tmp_path))


def test_a_share_of_the_labels_is_nested(tones):
    manifest = tones[0].select("train")
    few, more = (set(labelled_part(manifest, share, 3).table["clip_id"]) for share in (0.25, 0.5))
    assert few < more and len(few) == CLASSES * 2 and len(more) == CLASSES * 4
    assert few != set(labelled_part(manifest, 0.25, 4).table["clip_id"])


def test_refusals_say_what_and_where(tones, config, tmp_path):
    with pytest.raises(ParameterError, match="both False"):
        replace(config, train_audio_mae=False, train_video_mae=False)
    with pytest.raises(ParameterError, match="use pretrained_checkpoint"):
        stage(config, "finetune", stage1_checkpoint=str(tmp_path))
    with pytest.raises(ValueError, match="no text tower"):
        encoders.load(Audiovisual(config, tones[0]).save(tmp_path))
    with pytest.raises(ValueError, match="unfreeze_backbone_layers"):
        Audiovisual(stage(config, "finetune", unfreeze_all=True, unfreeze_backbone_layers=1), tones[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_two_processes_equal_one(tmp_path, monkeypatch, name):
    """Batches that do not divide, on rendered videos."""
    config = AudiovisualConfig(dataset="soundscapes", num_samples=24, scene_seconds=3.0, audio_duration=3.0, stage=name, vit_size="tiny", image_size=32,
                               patch_size=8, num_frames=2, bb_layers=1, bb_heads=2, dec_layers=1, dec_heads=2, contrastive_dim=16, proj_hidden_dim=32,
                               clf_hidden_dim=32, backbone_dropout=0.0, epochs=2, batch_size=5, warmup_epochs=0.5, decay_epochs=1.5, threads=1,
                               device="cpu", store_windows=True, learning_rate=1e-3, crop_area=0.5, token_share=0.5,
                               **({"unfreeze_all": True} if name == "finetune" else {}))
    config.prepare()
    runs = {}
    for devices in (1, 2):
        monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / str(devices)))
        runs[devices] = training.launch("audiovisual", replace(config, devices=devices))
    same_in_one_and_two(runs[1], runs[2], left_out=("k_proj.bias",))
