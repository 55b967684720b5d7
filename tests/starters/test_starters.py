"""The starter weights as they are shipped, and the tool that makes them."""
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import encoders, starters
from lib.audio.ambisonics import encode
from lib.data import event_sources, soundscapes, triplets
from lib.encoders.vocoder import Vocoder
from lib.encoders.weights import model_digest, resolve, weights_digest
from lib.families import audiovisual, hyperbolic, retrieval, spatial, tokenizer
from lib.files import STARTER, STARTERS, read_json, user_path, write_json
from lib.starters import FAMILIES, NAMES, card, collect
from lib.starters.score import HELD_OUT, held_out
from lib.workbook import results

TEXTS = sorted(path for path in STARTERS.rglob("*") if path.suffix in (".json", ".md"))


def sound(samples, clips=1):
    """Tones with a little noise, the same every time: Tensor (clips, samples)."""
    time = torch.arange(samples) / 16000
    noise = torch.randn(clips, samples, generator=torch.Generator().manual_seed(0))
    return 0.2 * torch.sin(2 * torch.pi * 440 * time) + 0.01 * noise


def test_starters_are_small():
    sizes = {name: (starters.folder(name) / "model.safetensors").stat().st_size for name in NAMES}
    assert max(sizes.values()) <= 3_000_000, sizes
    assert sum(path.stat().st_size for path in STARTERS.rglob("*") if path.is_file()) < 15_000_000
    assert not list(STARTERS.rglob("state.pt")), "the state of a training is not shipped"


def test_no_file_names_a_place_on_a_machine():
    assert TEXTS
    for path in TEXTS:
        found = re.search(r"""["'\s(]([/~]|[A-Za-z]:\\)[\w.-]+/[^"'\s]*""", path.read_text(encoding="utf-8"))
        assert not found or path.name == "tokenizer.json", f"{path}: {found}"


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_computed_with_in_single_precision(name):
    stored = load_file(starters.folder(name) / "model.safetensors")
    kept = {value.dtype for value in stored.values() if value.ndim > 1 and value.numel() >= collect.SMALLEST}
    assert kept <= {torch.float16, torch.float8_e4m3fn}
    models = {"retrieval": retrieval.load, "hyperbolic": hyperbolic.load, "spatial": spatial.load, "tokenizer": tokenizer.load,
              "tokenizer/vocoder": lambda path: (Vocoder.from_pretrained(path),)}
    model = models.get(name, audiovisual.load)(f"{STARTER}{name}")[0]
    own = model.state_dict()
    assert not model.training and all(value.dtype == torch.float32 for value in own.values() if value.is_floating_point())
    for entry, value in stored.items():
        assert torch.equal(own[entry].double(), value.double()), entry


def embedded(family):
    """A clip as a starter hears it, by its own loader."""
    if family in ("retrieval", "hyperbolic"):
        model, config = retrieval.load("starter:retrieval")
        row = model.embed_audio(sound(5 * model.audio.sample_rate), torch.tensor([5.0]))
        return row if family == "retrieval" else hyperbolic.load("starter:hyperbolic")[0].tangents(row, "audio")
    if family == "spatial":
        model, _ = spatial.load("starter:spatial")
        return model.embed_audio(encode(sound(model.samples)[0], 30.0, 0.0)[None])
    if family == "audiovisual":
        model, config, picture = audiovisual.load("starter:audiovisual")
        return model({"audio": picture(sound(picture.config.samples))}, mode="states", only="audio")["audio"]
    model, config, front_end = tokenizer.load("starter:tokenizer")
    mels = front_end(sound(config.mel.samples))
    drawn = model(mels.levels, valid=mels.valid)[0]
    return Vocoder.from_pretrained("starter:tokenizer/vocoder").sound(drawn, mels.peak)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_starter_hears_the_same_every_time(family):
    with torch.no_grad():
        one, two = embedded(family), embedded(family)
    assert torch.isfinite(one).all() and one.abs().max() > 0 and torch.equal(one, two)


def test_stages_start_from_starters_too():
    assert encoders.load("starter:hyperbolic").dim == encoders.load("starter:retrieval").dim       # the towers beneath it
    assert resolve("starter:tokenizer/vocoder") == starters.folder("tokenizer/vocoder") == user_path("starter:tokenizer/vocoder")
    assert read_json(starters.folder("hyperbolic") / "config.json")["backbone_digest"] == model_digest("starter:retrieval")
    config = audiovisual.AudiovisualConfig(dataset="soundscapes", stage="finetune", pretrained_checkpoint="starter:audiovisual/contrastive")
    model, lines = audiovisual.build(config.resolved()[0], classes=3)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values()) and lines
    with pytest.raises(FileNotFoundError, match="no starter weights starter:clap; there are retrieval, hyperbolic"):
        starters.folder("clap")
    with pytest.raises(FileNotFoundError, match="starter:clap"):
        resolve("starter:clap")


@pytest.mark.parametrize("family", FAMILIES)
def test_cards_say_what_was_measured_with_these_weights(family):
    scores = read_json(STARTERS / family / "scores.json")
    assert scores["weights_digest"] == weights_digest(f"{STARTER}{family}")
    text = (STARTERS / family / "README.md").read_text(encoding="utf-8")
    assert text == card.card(family), "python -m lib.starters score writes both"
    for part, names in (("held_out", HELD_OUT[family][1]), ("esc10", ("linear probe: accuracy", "linear probe - log-mel"))):
        rows = {row["name"]: row for row in scores[part]["metrics"]}
        assert set(names) <= rows.keys()
        for row in rows.values():
            assert row["split"] == "test" and f"| {row['name']}" in text and results.number(row["value"]) in text
    probe = rows["linear probe: accuracy"]
    assert probe["n"] == 80 and probe["chance"] == 0.1 and None not in (probe["baseline"], probe["control"], probe["interval"])


def test_a_card_gives_its_verdicts_by_the_intervals():
    row = results.metric("linear probe - log-mel", -0.1, n=8, split="test", chance=0.0, interval=(-0.2, -0.01))
    part = {"metrics": [row], "protocol": {"title": "", "splits": {"test": 8}, "test_fold": 4, "embedding": ""}}
    for low, high, words in ((-0.2, -0.01, "worse than"), (-0.2, 0.1, "not to be told apart"), (0.1, 0.2, "better than")):
        row["interval"] = [low, high]
        assert words in "\n".join(card._recordings(part))


def test_what_is_looked_at_was_never_trained_on():
    """Scenes and triplets of a split are the first ones of it whatever their number, and splits share no sound."""
    settings = set()
    for family, events in (("retrieval", None), ("hyperbolic", None), ("tokenizer", None), ("audiovisual", 1)):
        trained = read_json(starters.folder(family) / "training.json")["config"]
        assert trained["fit_splits"] == ["train"] and trained["dataset"] == "soundscapes"
        settings.add((trained["num_samples"] or 2000, trained["scene_seconds"], events))
    for total, seconds, events in settings:
        whole = {split: list(soundscapes._scenes(0, split, count, seconds, events)) for split, count in soundscapes.split_counts(total).items()}
        heard = {event.cell for split in ("train", "val") for scene in whole[split] for event in scene.events}
        for few in (24, 300):
            shown = list(soundscapes._scenes(0, "test", soundscapes.split_counts(few)["test"], seconds, events))
            assert shown[:len(whole["test"])] == whole["test"][:len(shown)]
            assert not heard & {event.cell for scene in shown for event in scene.events}
    trained = read_json(starters.folder("spatial") / "training.json")["config"]
    assert trained["fit_splits"] == ["train"] and trained["source"] == "soundscapes"
    bank, fixed = event_sources.Synthesised(trained["event_seconds"]), dict(seed=0, space=trained["space"], clip_seconds=trained["clip_seconds"])
    sounds = {split: {event.name for i in range(count) for event in triplets.sample_triplet(bank, split, i, **fixed).events}
              for split, count in triplets.split_counts(trained["num_samples"]).items()}
    assert not sounds["test"] & (sounds["train"] | sounds["val"])


@pytest.fixture
def by_hand(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBOOK_REPORT", str(tmp_path / "report"))
    monkeypatch.delenv("WORKBOOK_JOB", raising=False)
    return tmp_path / "report"


def choose(checkpoint=None, num_samples=1100):
    return starters.choose(checkpoint, "tokenizer", "50_tokenizer_train", num_samples, usual=1100, fewer=200)


def test_by_hand_a_starter_stands_in_and_says_so(by_hand, capsys):
    assert choose() == ("starter:tokenizer", None, 200)
    said = capsys.readouterr().out
    assert "50_tokenizer_train has no result here: the starter weights starter:tokenizer are opened" in said and "num_samples is 200" in said
    assert choose(num_samples=64) == ("starter:tokenizer", None, 64) and choose("starter:tokenizer") == ("starter:tokenizer", None, 200)
    assert choose("some/folder") == ("some/folder", None, 1100)
    capsys.readouterr()
    results.write("50_tokenizer_train", [results.metric("loss", 1.0, n=1, split="val")])
    checkpoint, made, num_samples = choose()
    assert checkpoint is None and made["job"] == "50_tokenizer_train" and num_samples == 1100
    assert "starter" not in capsys.readouterr().out


def test_a_report_never_falls_back(by_hand, monkeypatch, capsys):
    monkeypatch.setenv("WORKBOOK_JOB", "51_tokenizer_evaluate")
    with pytest.raises(FileNotFoundError, match="50_tokenizer_train has no result"):
        choose()
    assert choose("starter:tokenizer") == ("starter:tokenizer", None, 1100)      # asked for by name, with as many clips as asked for
    assert "starter" not in capsys.readouterr().out


def test_large_models_are_stored_in_fewer_bits_until_they_fit():
    state = {"a": torch.randn(64, 64), "b": torch.randn(128, 64), "norm": torch.randn(64), "steps": torch.tensor(3)}
    whole = collect.small(state, 10 ** 6)
    assert [whole[name].dtype for name in state] == [torch.float16, torch.float16, torch.float32, torch.int64]
    tight = collect.small(state, 2 * 64 * 64 + 128 * 64 + 1000)
    assert [tight[name].dtype for name in state] == [torch.float16, torch.float8_e4m3fn, torch.float32, torch.int64]
    assert (tight["b"].float() - state["b"]).norm() / state["b"].norm() < 0.04
    with pytest.raises(ValueError, match="12,353 weights do not fit into 9,000 bytes"):
        collect.small(state, 9000)


def test_collect_takes_weights_and_leaves_the_machine_behind(by_hand, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / "runs"))
    source, target = tmp_path / "runs" / "audiovisual" / "step_1", tmp_path / "starters"
    source.mkdir(parents=True)
    save_file({"weight": torch.randn(64, 64)}, source / "model.safetensors")
    (source / "state.pt").write_text("optimizer")
    write_json(source / "config.json", {"model_type": "workbook-audiovisual"})
    write_json(source / "training.json", {"family": "audiovisual", "config": {"data_root": str(tmp_path), "pretrained_checkpoint": "/runs/x"}})
    with pytest.raises(FileNotFoundError, match="43_audiovisual_finetune has no result"):
        collect.collect(by_hand, ("audiovisual",), target)
    results.write("43_audiovisual_finetune", [results.metric("top-1", 1.0, n=1, split="val")], artifacts={"checkpoint": "audiovisual/step_1"},
                  protocol={"fit_splits": ["train"], "selection": "best", "seeds": [1]})
    assert collect.collect(by_hand, ("audiovisual",), target) == [target / "audiovisual"]
    assert sorted(path.name for path in (target / "audiovisual").iterdir()) == ["config.json", "model.safetensors", "origin.json", "training.json"]
    assert read_json(target / "audiovisual" / "training.json")["config"] == {"data_root": None, "pretrained_checkpoint": None}
    assert load_file(target / "audiovisual" / "model.safetensors")["weight"].dtype == torch.float16
    assert str(tmp_path) not in "".join(path.read_text() for path in (target / "audiovisual").glob("*.json"))
    write_json(source / "config.json", {"model_type": "workbook-audiovisual", "vit": {"source": "/models/vit"}})
    with pytest.raises(ValueError, match="would hold a path of this machine: '/models/vit'"):
        collect.collect(by_hand, ("audiovisual",), target)


def test_scores_of_other_weights_are_refused(by_hand):
    rows = [results.metric(name, 0.5, n=4, split="test") for name in HELD_OUT["retrieval"][1]]
    results.write("11_retrieval_evaluate", rows, protocol={"weights_digest": "another"})
    with pytest.raises(ValueError, match="scored the weights another, those of starter:retrieval are"):
        held_out("retrieval", by_hand)
    results.write("11_retrieval_evaluate", rows, protocol={"weights_digest": weights_digest("starter:retrieval")})
    assert held_out("retrieval", by_hand) == rows
