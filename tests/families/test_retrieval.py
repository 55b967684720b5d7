"""The retrieval family: training that learns, resumes to the same bits, refuses what is not finite; embedding and relevance."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from lib import training
from lib.data.manifest import Manifest
from lib.families import retrieval
from lib.families.retrieval import Retrieval, RetrievalConfig, embed, mix_clips, relevance, shared
from lib.glossary import ParameterError
from lib.training import checkpoint, loop
from tests.runs import stop_and_resume, weights
from tests.tiny_clap import publish

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
    assert stop_and_resume(Retrieval, config, manifest, tmp_path, stop).steps == 8


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


def gradients(learner, batch, seed=0, dtype=None):
    """Loss and gradients of one step, as the loop makes them."""
    learner.model.train().zero_grad()
    torch.manual_seed(seed)
    parts = learner.losses(learner.model, batch)
    parts["loss"].backward()
    return parts["loss"].item(), {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_gradient_caching_equals_the_whole_batch(manifest, chunk):
    """Dropout and drop-path 0; patchout and mel jitter are on, drawn once a step and shared by all chunks and both passes."""
    whole = Retrieval(tiny(text_dropout=0.0), manifest)
    batch = next(whole.batches(0, 0))
    parts = Retrieval(tiny(text_dropout=0.0, chunk_size=chunk), manifest)
    loss, expected = gradients(whole, batch)
    found, cached = gradients(parts, batch)
    assert found == pytest.approx(loss, abs=1e-5) and expected.keys() == cached.keys()
    for name in expected:
        torch.testing.assert_close(cached[name], expected[name], atol=1e-5, rtol=0, msg=name)
    assert gradients(parts, batch, seed=1)[0] != found, "another step draws other patches"


def test_gradient_caching_replays_the_random_state(manifest):
    """With dropout and drop-path every chunk's second pass must see the masks of its first: the gradient is that of chunks whose
    graphs are all kept."""
    config = tiny(text_dropout=0.3, drop_path=0.3, chunk_size=3)
    learner = Retrieval(config, manifest)
    batch = next(learner.batches(0, 0))
    loss, cached = gradients(learner, batch)

    learner.model.zero_grad()
    torch.manual_seed(0)
    draws, durations, rows = learner.model.audio.draw(), torch.tensor(batch["duration"]), range(0, len(batch["caption"]), 3)
    audio = torch.cat([learner.model.embed_audio(batch["waveform"][i:i + 3], durations[i:i + 3], draws) for i in rows])
    text = torch.cat([learner.model.embed_text(batch["caption"][i:i + 3]) for i in rows])
    names = learner.names(batch)
    expected = retrieval.contrastive_loss(learner.model.logits(audio, text), shared([[name] for name in names], names))
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    for name, parameter in learner.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(cached[name], parameter.grad, atol=1e-5, rtol=0, msg=name)
    learner.model.audio.network.blocks[-1].drop_path.drop_prob = 0.9
    assert gradients(learner, batch)[0] != loss, "drop-path was on"


def test_gradient_caching_holds_the_activations_of_one_chunk(manifest):
    """What autograd keeps alive at the end of the forward pass shrinks from the whole batch's activations to its input and embeddings."""
    def kept(chunk):
        learner, sizes = Retrieval(tiny(chunk_size=chunk), manifest), []
        batch = next(learner.batches(0, 0))
        learner.model.train()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            learner.losses(learner.model, batch)
        return sum(sizes) - (batch["waveform"].numel() if chunk else 0)
    assert kept(2) < kept(None) / 100


def test_bf16_trains_close_to_float32(manifest, tmp_path):
    """Mixed precision on the CPU: the losses of the first epoch within a few percent, embeddings and loss in float32."""
    runs = [loop.fit(Retrieval(tiny(precision=precision, epochs=1, text_dropout=0.0), manifest), tmp_path / precision) for precision in ("32-true", "bf16-mixed")]
    one, two = (run.history[-1]["train/loss"] for run in runs)
    assert one != two and two == pytest.approx(one, rel=0.03)


def test_initial_checkpoint(manifest, tmp_path):
    """Weights and tokenizer of another run, with this run's dropout; sizes that differ are refused with both values."""
    first = loop.fit(Retrieval(tiny(text_dropout=0.1), manifest), tmp_path / "first")
    config = tiny(initial_checkpoint=str(first.checkpoint), text_dropout=0.4, tau=0.1, seed=99)
    learner = Retrieval(config, manifest)
    for name, value in weights(first).items():
        if name != "tau":
            assert torch.equal(learner.model.state_dict()[name], value), name
    assert learner.model.text.network.config.hidden_dropout_prob == 0.4 and learner.model.tau.item() == pytest.approx(0.1)
    with pytest.raises(ParameterError, match="audio_size='small'.*'tiny'.*" + first.checkpoint.name):
        Retrieval(replace(config, audio_size="small"), manifest)
    with pytest.raises(ParameterError, match="embedding_dim=32.*16"):
        Retrieval(replace(config, embedding_dim=32), manifest)


def test_second_stage_learns_what_the_teachers_estimate(manifest, tmp_path, monkeypatch):
    """Two teachers are encoded once; the loss goes towards their mean estimate, and a student ends nearer to it than it began."""
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    taught = [loop.fit(Retrieval(tiny(seed=seed, epochs=6, decay_epochs=5, positives="labels", loss_reduction="rows", text_dropout=0.0), manifest),
                       tmp_path / str(seed)).checkpoint for seed in (1, 2)]
    config = tiny(teachers=tuple(map(str, taught)), teacher_weight=0.75, text_dropout=0.0, epochs=6, decay_epochs=5)
    learner = Retrieval(config, manifest)
    batch = next(learner.batches(0, 0))
    learner.model.eval()
    parts = {name: value.item() for name, value in learner.losses(learner.model, batch).items()}
    assert parts["loss"] == pytest.approx(0.25 * parts["contrastive"] + 0.75 * parts["estimated"], abs=1e-5)
    models = [retrieval.load(folder)[0] for folder in taught]
    durations = torch.tensor(batch["duration"])
    with torch.no_grad():
        expected = sum(m.logits(m.embed_audio(batch["waveform"], durations), m.embed_text(batch["caption"])) for m in models) / 2
    torch.testing.assert_close(learner.teachers.logits(batch["row"], batch["caption"]), expected, atol=2e-3, rtol=0)
    stores = list((tmp_path / "data" / "embeddings").glob("*/audio.npy"))
    assert len(stores) == 2
    stamps = [store.stat().st_mtime_ns for store in stores]
    run = loop.fit(Retrieval(config, manifest), tmp_path / "student")
    assert [store.stat().st_mtime_ns for store in stores] == stamps, "read, not encoded again"
    estimated = [row["train/estimated"] for row in run.history if "train/estimated" in row]
    assert estimated[-1] < estimated[0] - 0.1
    leaking = Retrieval(tiny(fit_splits=("train", "val"), selection="last", epochs=1), manifest)
    leaked = loop.fit(leaking, tmp_path / "leaked").checkpoint
    with pytest.raises(ParameterError, match=r"trained on \['val'\]"):
        Retrieval(replace(config, teachers=(str(leaked),)), manifest).losses(learner.model, batch)
    with pytest.raises(ParameterError, match="set mix=0"):
        Retrieval(replace(config, mix=0.5), manifest)


def test_permuted_captions_leave_no_clip_its_own(manifest):
    table = manifest.select("train").table
    changed = retrieval.permuted(manifest.select("train"), 5).table
    own = {clip: captions for clip, captions in zip(table["clip_id"], table["captions"])}
    assert sorted(map(tuple, changed["captions"])) == sorted(map(tuple, table["captions"])), "the same captions, at other clips"
    assert list(changed["path"]) == list(table["path"])
    numbered = manifest.table.assign(captions=[[str(i)] for i in range(len(manifest))])
    moved = retrieval.permuted(Manifest(numbered, "n", manifest.root, {}), 5).table["captions"]
    assert all(captions != [str(i)] for i, captions in enumerate(moved))
    learner = Retrieval(tiny(permute_captions=True), manifest)
    assert any(own[clip] != captions for clip, captions in zip(learner.train_manifest.table["clip_id"], learner.train_manifest.table["captions"]))
    assert learner.manifest is manifest, "validation keeps the true captions"


@pytest.fixture
def trained(manifest, tmp_path):
    return loop.fit(Retrieval(tiny(), manifest), tmp_path / "run").checkpoint


def test_predict_writes_the_challenge_s_table(manifest, trained, tmp_path, capsys):
    """Files in any order of names, hostile ones and one that is no sound among them; queries with quotes, commas and tags."""
    audio = tmp_path / "audio"
    (audio / "sub").mkdir(parents=True)
    names = ["-b.wav", "a \"quoted\", <b>.wav", "sub/c.wav", "d.wav"]
    for name, number in zip(names, (1, 2, 3, 4)):
        (audio / name).write_bytes((manifest.root / f"{number}.wav").read_bytes())
    (audio / "broken.wav").write_bytes(b"no sound")
    queries = ["a low hum", 'a "very, very" high <script>hiss</script>', "a low hum"]
    pd.DataFrame({"caption": queries, "other": 1}).to_csv(tmp_path / "queries.csv", index=False)
    arguments = ["predict", "--checkpoint", str(trained), "--audio", str(audio), "--queries", str(tmp_path / "queries.csv"), "--out", str(tmp_path / "out" / "p.csv")]
    with pytest.warns(UserWarning, match="1 of 5 files cannot be used and get the similarity -1, such as broken.wav"):
        assert retrieval.main(arguments) == 0
    table = pd.read_csv(tmp_path / "out" / "p.csv")
    assert list(table.columns) == ["index", *sorted([*names, "broken.wav"])] and list(table["index"]) == queries
    model, _ = retrieval.load(trained)
    for name, number in zip(names, (1, 2, 3, 4)):
        wave = torch.from_numpy(soundfile.read(manifest.root / f"{number}.wav", dtype="float32")[0])[None]
        expected = (model.embed_text(queries) @ model.embed_audio(wave, torch.tensor([1.0])).T)[:, 0]
        np.testing.assert_allclose(table[name], expected.detach(), atol=2e-5)
    assert (table["broken.wav"] == -1).all()
    assert not list((tmp_path / "out").glob(".*")), "no temporary file stays"


@pytest.mark.parametrize("text, words", [("text\na hum\n", "column 'caption' is missing, its columns are text"), ("caption\n", "no query in it"),
                                         ("caption\na hum\n\"\"\n", "line 3 holds no caption")])
def test_predict_refuses_wrong_tables_in_words(manifest, trained, tmp_path, capsys, text, words):
    (tmp_path / "q.csv").write_text(text)
    assert retrieval.main(["predict", "--checkpoint", str(trained), "--audio", str(manifest.root), "--queries", str(tmp_path / "q.csv"),
                           "--out", str(tmp_path / "p.csv")]) == 1
    said = capsys.readouterr().err
    assert words in said and "q.csv" in said and not (tmp_path / "p.csv").exists()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler (g++) on the CPU")
@pytest.mark.parametrize("chunk", [None, 3])
def test_compiled_training_is_the_same_training(manifest, tmp_path, chunk):
    """torch.compile on both encoders, with patchout, gradient caching and batches of two sizes: losses to 1e-4, the same names of weights.
    Without validation, whose metrics are not compared and for which more programs would be compiled."""
    runs = [loop.fit(Retrieval(tiny(compile=choice, chunk_size=chunk, batch_size=12, text_dropout=0.0), manifest.select("train")), tmp_path / choice)
            for choice in ("off", "on")]
    plain, compiled = (weights(run) for run in runs)
    assert plain.keys() == compiled.keys()
    for one, two in zip(*(run.history for run in runs)):
        assert all(two[name] == pytest.approx(one[name], abs=1e-4) for name in one if "loss" in name)


@pytest.mark.parametrize("dim", [None, 16])
def test_training_starts_from_a_clap(manifest, tmp_path, dim):
    """Both towers of a CLAP, in its own space or under new projections: trains, saves, goes on from its checkpoint without the CLAP."""
    publish(tmp_path / "clap")
    config = tiny(audio_encoder="clap", text_encoder="clap", audio_weights=str(tmp_path / "clap"), text_weights=str(tmp_path / "clap"),
                  embedding_dim=dim, text_dropout=0.0, chunk_size=3)
    start = {name: value.clone() for name, value in Retrieval(config, manifest).model.state_dict().items()}
    run = loop.fit(Retrieval(config, manifest), tmp_path / "run")
    model, _ = retrieval.load(run.checkpoint)
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert {"audio", "text"} <= changed and model.audio.sample_rate == 48000
    shutil.rmtree(tmp_path / "clap")
    again = Retrieval(replace(config, audio_weights=None, text_weights=None, initial_checkpoint=str(run.checkpoint), epochs=1), manifest)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.model.state_dict().items() if name != "tau")
    mixed = Retrieval(tiny(), manifest)
    assert mixed.model.audio.kind == "passt"
    with pytest.raises(ParameterError, match="audio_weights: CLAP's towers are not trained from scratch"):
        Retrieval(tiny(audio_encoder="clap"), manifest)
    with pytest.raises(ParameterError, match="audio_encoder='passt'.*'clap'"):
        Retrieval(tiny(initial_checkpoint=str(run.checkpoint)), manifest)
