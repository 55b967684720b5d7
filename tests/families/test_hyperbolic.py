"""The hyperbolic family: a map that learns, geometries that are what they say, files of the original project, refusals."""
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from lib import encoders, training
from lib.data.manifest import Manifest
from lib.evaluation import tagging_files
from lib.evaluation.tagging import tagging_metrics
from lib.families import hyperbolic
from lib.families.hyperbolic import Hyperbolic, HyperbolicConfig, Projection, Space, arm, export_seed, features, import_seed, load, score
from lib.geometry import lorentz, poincare
from lib.glossary import ParameterError
from lib.training import loop
from tests.runs import same_in_one_and_two, stop_and_resume
from tests.tiny_clap import publish

RATE = 48000
CLASSES = ["hum", "tone", "whistle", "hiss"]
TAXONOMY = {"hum": ["low"], "tone": ["low"], "whistle": ["high"], "hiss": ["high"]}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Tones of four pitches and mixtures of two; 32 train, 8 val, 8 test clips of 1 s, one without a label."""
    folder, rows, rng = tmp_path_factory.mktemp("tones"), [], np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    for i in range(48):
        kinds = [i % 4] if i % 5 else sorted({i % 4, (i + 1) % 4})
        wave = sum(0.2 * np.sin(2 * np.pi * [150, 900, 4000, 11000][k] * rng.uniform(0.9, 1.1) * time) for k in kinds) + 0.01 * rng.normal(size=RATE)
        soundfile.write(folder / f"{i}.wav", wave.astype(np.float32), RATE)
        rows.append({"clip_id": f"c{i:02d}", "path": f"{i}.wav", "start": 0.0, "duration": 1.0,
                     "split": ["train", "train", "train", "train", "val", "test"][i // 8],
                     "captions": [CLASSES[k] for k in kinds], "labels": [CLASSES[k] for k in kinds] if i != 7 else []})
    return Manifest(pd.DataFrame(rows), "tones", folder, {"classes": CLASSES, "taxonomy": TAXONOMY, "templates": ["{}", "the sound of {}"]})


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    publish(folder)
    return folder


@pytest.fixture
def config(clap, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path_factory.getbasetemp() / "hyperbolic data"))       # one store for all tests of the file
    return HyperbolicConfig(checkpoint=str(clap), clip_seconds=1.0, epochs=3, batch_size=8, learning_rate=1e-2, temperature=0.07,
                            train_temperature=True, threads=1, device="cpu")


@pytest.mark.parametrize("changes", [{}, {"geometry": "cosine"}, {"geometry": "euclidean"}, {"tagging_loss": "softmax", "entailment_weight": 0.2},
                                     {"geometry": "lorentz", "tagging_loss": "sum", "train_c": True, "maps": "separate", "train_scales": True}])
def test_it_learns(manifest, config, tmp_path, changes):
    config = replace(config, epochs=30, **changes)
    found = features(config, manifest)
    rows = found.rows(["test"])
    run = loop.fit(Hyperbolic(config, manifest), tmp_path)
    model, stored = load(run.checkpoint)
    assert stored == config
    trained, frozen = (tagging_metrics(score(m, found, rows), found.targets[rows])["mAP samples"] for m in (model, None))
    chance = np.mean([tagging_metrics(np.random.default_rng(k).random((len(rows), 4)), found.targets[rows])["mAP samples"] for k in range(50)])
    assert trained > max(0.8, chance + 0.2), f"{trained:.2f}, frozen {frozen:.2f}, chance {chance:.2f}"
    if config.train_c:
        assert model.numbers()["c"] != 1.0 and 0.1 <= model.numbers()["c"] <= 10


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_a_stopped_run_ends_with_the_same_bits(manifest, config, tmp_path, stop):
    config = replace(config, checkpoint_steps=1, entailment_weight=0.2, train_c=True)
    assert stop_and_resume(Hyperbolic, config, manifest, tmp_path, stop).steps == 12


@pytest.mark.slow
def test_two_processes_equal_one(clap, tmp_path, monkeypatch):
    """Batches that do not divide, every gathered term: several positives, cones, trained c and temperature."""
    from lib.data import soundscapes
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    soundscapes.prepare(num_samples=48, clip_seconds=3.0)
    config = HyperbolicConfig(dataset="soundscapes", scene_seconds=3.0, num_samples=48, checkpoint=str(clap), clip_seconds=1.0, epochs=3, batch_size=5,
                              learning_rate=1e-2, temperature=0.07, train_temperature=True, train_c=True, entailment_weight=0.2, threads=1, device="cpu")
    runs = {}
    for devices in (1, 2):
        monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / str(devices)))
        runs[devices] = training.launch("hyperbolic", replace(config, devices=devices))
    same_in_one_and_two(runs[1], runs[2])


def test_training_never_calls_the_backbone_again(manifest, config, tmp_path, monkeypatch):
    calls = []
    original = encoders.load
    monkeypatch.setattr(encoders, "load", lambda folder: calls.append(folder) or original(folder))
    features(config, manifest)
    before = len(calls)
    for seed in (1, 2):
        loop.fit(Hyperbolic(replace(config, seed=seed), manifest), tmp_path / str(seed))
    assert len(calls) == before <= 1, "the store was there, and the model was loaded all the same"


def test_clips_without_label_or_audio_are_left_out(manifest, config, tmp_path):
    learner = Hyperbolic(config, manifest)
    assert learner.clips() == 31 and "c07" not in {c for batch in learner.batches(0, 0) for c in batch["clip_id"]}
    assert learner.batches_per_epoch() == len(list(learner.batches(0, 0))) == 4


def test_batches_are_a_function_of_seed_epoch_and_place(manifest, config):
    learner, same = Hyperbolic(config, manifest), Hyperbolic(config, manifest)
    whole = list(learner.batches(3, 0))
    for one, two in zip(whole[2:], same.batches(3, 2), strict=True):
        assert one["clip_id"] == two["clip_id"] and torch.equal(one["label"], two["label"]) and torch.equal(one["audio"], two["audio"])
    assert [b["clip_id"] for b in whole] != [b["clip_id"] for b in learner.batches(4, 0)]
    several = [c for c, row in zip(manifest.table["clip_id"], manifest.targets()) if row.sum() > 1]
    drawn = {(clip, int(label)) for epoch in range(8) for b in learner.batches(epoch, 0) for clip, label in zip(b["clip_id"], b["label"]) if clip in several}
    targets = dict(zip(manifest.table["clip_id"], manifest.targets()))
    assert all(targets[clip][label] for clip, label in drawn) and len(drawn) > len({clip for clip, _ in drawn})
    first = Hyperbolic(replace(config, label_choice="first"), manifest)
    assert all(int(label) == targets[clip].argmax() for b in first.batches(0, 0) for clip, label in zip(b["clip_id"], b["label"]))


def projections(geometry, **changes):
    torch.manual_seed(0)
    model = Projection(12, 8, Space(geometry=geometry, **changes)).double().eval()
    v, w = (torch.randn(n, 12, dtype=torch.float64) for n in (5, 7))
    return model, v, w


@pytest.mark.parametrize("c", [0.01, 1.0, 2.0])
def test_similarity_is_minus_the_distance_of_the_points(c):
    model, audio, text = projections("poincare", c=c, temperature=0.5)
    v, w = model(audio, text)
    x, y = poincare.expmap0(v, c), poincare.expmap0(w, c)
    expected = -torch.stack([poincare.distance(x, row, c) for row in y], dim=1) / 0.5
    torch.testing.assert_close(model.similarity(v, w), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(-model.similarity(v, torch.zeros_like(w))[:, 0] * 0.5, 2 * v.norm(dim=1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_lorentz_is_the_same_map_on_the_sheet(c):
    model, audio, text = projections("lorentz", c=c)
    v, w = model(audio, text)
    s, t = (lorentz.expmap0(model.linear(x), c) for x in (audio, text))
    torch.testing.assert_close(-model.similarity(v, w), lorentz.pairwise_distance(s, t, c), rtol=1e-7, atol=1e-7)


def test_flat_controls_are_cosine_and_the_limit_of_small_curvature():
    model, audio, text = projections("cosine", temperature=0.1)
    v, w = model(audio, text)
    torch.testing.assert_close(model.similarity(v, w), torch.nn.functional.cosine_similarity(v[:, None], w[None], dim=-1) / 0.1)
    model, audio, text = projections("euclidean")
    v, w = model(audio, text)
    nearly_flat = Projection(12, 8, Space(c=1e-10)).double()
    torch.testing.assert_close(model.similarity(v, w), nearly_flat.similarity(v, w), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("c", [0.01, 0.1, 1.0])
def test_published_similarity_is_the_original_s_formula(c):
    """Points clipped at norm 0.9, distance without c inside; where all are clipped it is a function of the cosine alone (notes, 4)."""
    model, audio, text = projections("published", c=c)
    v, w = model(audio, text)

    def point(u):
        p = torch.tanh(math.sqrt(c) * u.norm()) * u / (math.sqrt(c) * u.norm())
        return p * min(1.0, 0.9 / float(p.norm()))
    for i in range(3):
        for j in range(3):
            x, y = point(v[i]), point(w[j])
            inside = 1 + 2 * (x - y).square().sum() / ((1 - x.square().sum()) * (1 - y.square().sum()))
            assert float(model.similarity(v, w)[i, j]) == pytest.approx(-float(torch.arccosh(inside)) / math.sqrt(c), rel=1e-6)
    if c <= 0.1:
        assert model.clipped(torch.cat([v, w])) > 0.9
        cosine = torch.nn.functional.cosine_similarity(v[:, None], w[None], dim=-1)
        both = (poincare.expmap0(v, c).norm(dim=1)[:, None] > 0.9) & (poincare.expmap0(w, c).norm(dim=1)[None] > 0.9)
        expected = -torch.arccosh(1 + 89.75069 * (1 - cosine)) / math.sqrt(c)
        torch.testing.assert_close(model.similarity(v, w)[both], expected[both], rtol=1e-5, atol=1e-5)


def test_max_radius_bounds_the_geodesic_radius():
    model, audio, text = projections("poincare", c=4.0, max_radius=0.5)
    v, _ = model(audio * 100, text)
    radius = poincare.distance(poincare.expmap0(v, 4.0), torch.zeros_like(v), 4.0)
    assert float(radius.max()) <= 2 * 0.5 / 2 + 1e-9 and model.clipped(v) == 1.0
    v, _ = model(audio * 0, text)
    assert model.clipped(v) == 0 and torch.isfinite(v).all()


@pytest.mark.parametrize("geometry", ["poincare", "lorentz", "euclidean", "cosine", "published"])
@pytest.mark.parametrize("c", [1e-4, 1.0, 10.0])
def test_nothing_becomes_non_finite(geometry, c):
    """Scales to 50, zero vectors, duplicates, bf16 autocast around, gradients through loss and cones."""
    torch.manual_seed(0)
    model = Projection(6, 6, Space(geometry=geometry, c=c, temperature=0.07, train_temperature=True, train_c=geometry in hyperbolic.BALL))
    base = torch.randn(8, 6)
    for scale in (0.0, 1e-20, 1e-6, 1.0, 50.0):
        audio = torch.cat([base * scale, torch.zeros(2, 6), base[:2] * scale]).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            v, w = model(audio, audio)
            similarity = model.similarity(v, w)
        assert similarity.dtype == torch.float32 and torch.isfinite(similarity).all(), (geometry, c, scale)
        loss = torch.nn.functional.cross_entropy(similarity, torch.arange(len(audio)))
        if geometry in hyperbolic.BALL:
            loss = loss + hyperbolic.entailment_loss(w, v, model.c)
        gradients = torch.autograd.grad(loss, [audio, *(p for p in model.parameters() if p.requires_grad)], allow_unused=True)
        assert all(torch.isfinite(g).all() for g in gradients if g is not None), (geometry, c, scale)


def test_seed_file_goes_there_and_back(manifest, config, tmp_path):
    run = loop.fit(Hyperbolic(replace(config, train_temperature=False, temperature=1.0), manifest), tmp_path / "run")
    file = export_seed(run.checkpoint, tmp_path / "checkpoints_hyperbolic")
    stored = torch.load(file, weights_only=True)
    assert file.name == f"best_projection_epoch_{stored['epoch']}.pth" and tuple(stored) == hyperbolic.SEED_KEYS
    assert set(stored["projection_state_dict"]) == {"linear.weight", "linear.bias"} and stored["c"] == stored["temperature"] == 1.0
    assert stored["embed_dim"] == 12 and stored["train_loss"] > 0 and stored["val_loss"] > 0
    linear = torch.nn.Linear(12, 12)
    torch.optim.Adam(linear.parameters()).load_state_dict(stored["optimizer_state_dict"])
    one, _ = load(run.checkpoint)
    two, none = load(file, geometry="poincare")
    assert none is None
    x = torch.randn(3, 12)
    assert torch.equal(one.similarity(*one(x, x)), two.similarity(*two(x, x)))
    assert export_seed(run.checkpoint, tmp_path, best=False).name == f"projection_epoch_{stored['epoch']}.pth"


def test_refusals_say_what_and_where(manifest, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nowhere")):
        load("nowhere")
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        load(tmp_path)
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="broken.pth cannot be read"):
        load(tmp_path / "broken.pth")
    torch.save({"epoch": 1, "c": 1.0}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match="half.pth: key 'projection_state_dict' is missing"):
        import_seed(tmp_path / "half.pth")
    run = loop.fit(Hyperbolic(replace(config, epochs=1, train_temperature=False, temperature=0.5), manifest), tmp_path / "run")
    for name, value in (("c", 0.1), ("temperature", 1.0)):
        with pytest.raises(ValueError, match=rf"{name} is {value:g}, but .*{run.checkpoint.name} was trained with {name}"):
            load(run.checkpoint, **{name: value})
    assert load(run.checkpoint, c=1.0, temperature=0.5)[0].temperature == 0.5
    with pytest.raises(ParameterError, match="entailment_weight needs a curved space"):
        replace(config, geometry="cosine", entailment_weight=0.1)
    with pytest.raises(ParameterError, match="temperature must be given"):
        replace(config, temperature=None)
    with pytest.raises(ParameterError, match="no labels"):
        features(config, Manifest(manifest.table.assign(labels=[[] for _ in range(48)]), "bare", manifest.root, {}))
    separate = loop.fit(Hyperbolic(replace(config, epochs=1, maps="separate"), manifest), tmp_path / "separate")
    with pytest.raises(ValueError, match="separate maps"):
        export_seed(separate.checkpoint, tmp_path)


def test_command_line_exports_and_compares(manifest, config, tmp_path, capsys):
    run = loop.fit(Hyperbolic(replace(config, epochs=1), manifest), tmp_path / "run")
    assert hyperbolic.main(["export", "--checkpoint", str(run.checkpoint), "--out", str(tmp_path / "out")]) == 0
    assert load(next((tmp_path / "out").glob("best_projection_epoch_1.pth")))[0].space.geometry == "published"
    found = features(config, manifest)
    rows = found.rows(["test"])
    told = [{"video_id": str(i), "labels": [], "human_labels": [CLASSES[k] for k in np.flatnonzero(found.targets[i])]} for i in rows]
    files = [tagging_files.write(tmp_path / f"{k}.json", score(model, found, rows), found.targets[rows], CLASSES, told, parquet_dir="tones", device="cpu",
                                 model_path="clap") for k, model in enumerate((None, load(run.checkpoint)[0]))]
    assert hyperbolic.main(["compare", *map(str, files)]) == 0
    said = capsys.readouterr().out
    assert "acc@1" in said and "map" in said
    assert hyperbolic.main(["export", "--checkpoint", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "is no checkpoint" in capsys.readouterr().err


def test_arms_change_what_they_are_named_for(config):
    config = replace(config, entailment_weight=0.3)
    assert arm(config, "hyperbolic") == replace(config, entailment_weight=0.0) and arm(config, "cones") == config
    assert arm(replace(config, entailment_weight=0.0), "cones").entailment_weight == 0.2
    for name in ("cosine", "euclidean"):
        flat = arm(replace(config, train_temperature=False, temperature=1.0), name)
        assert (flat.geometry, flat.train_temperature, flat.temperature, flat.entailment_weight) == (name, True, 0.07, 0.0)
    original = arm(config, "seed")
    assert (original.temperature, original.train_temperature, original.label_choice, original.tagging_loss) == (1.0, False, "first", "batch")


def test_a_checkpoint_names_its_backbone_and_loads_its_towers(manifest, config, tmp_path):
    run = loop.fit(Hyperbolic(replace(config, epochs=1), manifest), tmp_path)
    entry = json.loads((run.checkpoint / "config.json").read_text())
    assert entry["classes"] == CLASSES and entry["prompts"]["hum"] == ["hum", "the sound of hum"] and entry["backbone_digest"] == config.inputs()[0]
    assert entry["front_end"]["clip_seconds"] == 1.0 and entry["front_end"]["sampling_rate"] == RATE
    towers, own = encoders.load(run.checkpoint), encoders.load(config.checkpoint)
    with torch.inference_mode():
        assert torch.equal(towers.embed_text(["a tone"]), own.embed_text(["a tone"]))
