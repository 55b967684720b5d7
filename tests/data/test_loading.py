"""Batches depend on (seed, epoch, position) alone, and hold what was in the files."""
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from lib import randomness
from lib.data import loading
from lib.data.loading import ClipDataset, batches, collate, count_batches
from lib.data.manifest import Manifest

RATE = 8000


@pytest.fixture
def manifest(tmp_path):
    """Seven ramps of 1 to 4 s: the value of a sample says where in which file it lies."""
    rows = []
    for i in range(7):
        samples = RATE * (1 + i % 4)
        soundfile.write(tmp_path / f"{i}.wav", (np.arange(samples) / 1e5 + i / 10).astype(np.float32), RATE, subtype="FLOAT")
        rows.append({"clip_id": f"c{i}", "path": f"{i}.wav", "start": 0.0, "duration": samples / RATE, "split": "train",
                     "captions": [f"caption {i}{k}" for k in "ab"], "labels": [f"l{i % 2}"]})
    return Manifest(pd.DataFrame(rows), "ramps", tmp_path, {})


def dataset(manifest, **changes):
    return ClipDataset(manifest, **{"sample_rate": RATE, "seconds": 2.0, "every_caption": True, "train": True, "gain_db": 3.0, "seed": 4} | changes)


def flat(source):
    return [(b["clip_id"], b["caption"], b["duration"], b["waveform"]) for b in source]


def equal(one, two):
    return len(one) == len(two) and all(a[:3] == b[:3] and torch.equal(a[3], b[3]) for a, b in zip(one, two))


def test_windows_padding_and_durations(manifest):
    rows = dataset(manifest, train=False, every_caption=False)
    for i in range(7):
        item, seconds = rows[0, i], min(2, 1 + i % 4)
        expected = torch.arange(RATE * seconds) / 1e5 + i / 10
        assert item["waveform"].shape == (2 * RATE,) and item["duration"] == seconds
        torch.testing.assert_close(item["waveform"][:RATE * seconds], expected, atol=1e-6, rtol=0)
        assert not item["waveform"][RATE * seconds:].any()


def test_centred_windows(manifest):
    rows, starts = dataset(manifest, train=False, every_caption=False, centred=True), [0, 0, 0.5, 1, 0, 0, 0.5]
    for i, start in enumerate(starts):
        assert float(rows[0, i]["waveform"][0]) == pytest.approx(start * RATE / 1e5 + i / 10, abs=1e-6)


def test_random_windows_lie_in_the_clip_and_differ_by_epoch(manifest):
    rows = dataset(manifest, gain_db=0.0, every_caption=False)
    first = [float(rows[epoch, 3]["waveform"][0] - 0.3) * 1e5 for epoch in range(20)]
    assert min(first) >= -0.6 and max(first) <= 2 * RATE + 0.6 and len({round(x) for x in first}) > 15


@pytest.mark.parametrize("workers", [0, 2])
def test_same_batches_whatever_the_workers_and_from_the_middle(manifest, workers):
    rows = dataset(manifest)
    whole = flat(batches(rows, 4, epoch=2, seed=9, shuffle=True))
    assert len(whole) == count_batches(rows, 4) == 4
    assert equal(flat(batches(dataset(manifest), 4, epoch=2, seed=9, shuffle=True, workers=workers)), whole)
    assert equal(flat(batches(rows, 4, epoch=2, seed=9, shuffle=True, first_batch=2, workers=workers)), whole[2:])
    assert not equal(flat(batches(rows, 4, epoch=3, seed=9, shuffle=True)), whole)
    assert sorted(c for b in whole for c in b[1]) == sorted(c for row in manifest.table["captions"] for c in row), "every row once"


def test_cache_changes_nothing_and_respects_its_budget(manifest):
    plain, cached = dataset(manifest), dataset(manifest, cache_bytes=3 * RATE * 4)
    for _ in range(2):
        assert equal(flat(batches(cached, 5, epoch=1, seed=1)), flat(batches(plain, 5, epoch=1, seed=1)))
    held = sum(wave.nbytes for wave in cached._decoded.values())
    assert held == 3 * RATE * 4 - cached._decoded.free and 0 < held <= 3 * RATE * 4 and plain._decoded is None


def test_cache_is_shared_and_sees_that_a_file_has_changed(manifest, monkeypatch):
    settings = dict(cache_bytes=1 << 20, gain_db=0.0)
    item, reads = dataset(manifest, **settings)[0, 3], []
    first, file = item["waveform"], manifest.file(item["row"])
    read = loading.audio.read
    monkeypatch.setattr(loading.audio, "read", lambda file, **window: reads.append(file) or read(file, **window))
    assert torch.equal(dataset(manifest, **settings)[1, 3]["waveform"], first) and not reads
    sound, rate = soundfile.read(file)
    soundfile.write(file, -sound, rate, subtype="FLOAT")
    torch.testing.assert_close(dataset(manifest, **settings)[1, 3]["waveform"], -first)
    assert reads == [file]


def test_shift_is_circular_and_gain_is_bounded(manifest):
    rows, plain = dataset(manifest, shift=True, gain_db=0.0), dataset(manifest, gain_db=0.0, train=False)
    assert torch.equal(rows[0, 0]["waveform"][:RATE].sort().values, plain[0, 0]["waveform"][:RATE].sort().values)
    loud = [float(dataset(manifest)[e, 1]["waveform"].max() / plain[0, 1]["waveform"].max()) for e in range(30)]
    assert max(loud) <= 10 ** (3 / 20) + 1e-4 and min(loud) >= 10 ** (-3 / 20) - 1e-4 and max(loud) / min(loud) > 1.3


def test_one_row_a_clip_draws_its_captions_over_the_epochs(manifest):
    rows = dataset(manifest, every_caption=False)
    seen = [{rows[epoch, i]["caption"] for epoch in range(12)} for i in range(7)]
    assert len(rows) == 7 and seen == [{f"caption {i}a", f"caption {i}b"} for i in range(7)]
    assert rows[3, 2]["caption"] == dataset(manifest, every_caption=False)[3, 2]["caption"]
    assert dataset(manifest, every_caption=False, train=False)[5, 2]["caption"] == "caption 2a"


def test_collate_stacks_one_shape_and_lists_the_rest():
    batch = collate([{"a": torch.zeros(2), "b": torch.zeros(1), "c": "x"}, {"a": torch.ones(2), "b": torch.zeros(3), "c": "y"}])
    assert batch["a"].shape == (2, 2) and isinstance(batch["b"], list) and batch["c"] == ["x", "y"]


def test_drop_last(manifest):
    assert [len(b["row"]) for b in batches(dataset(manifest), 4, drop_last=True)] == [4, 4, 4]


def test_randomness_is_stateless():
    assert randomness.derive(1, "a", 2) == randomness.derive(1, "a", 2) != randomness.derive(1, "a2")
    assert randomness.derive(1, 12) != randomness.derive(11, 2), "parts do not run into each other"
    assert sorted(randomness.epoch_order(50, 3, 1)) == list(range(50))
    assert not (randomness.epoch_order(50, 3, 1) == randomness.epoch_order(50, 3, 2)).all()
    randomness.seed_all(1, "x")
    one = (torch.rand(1).item(), np.random.rand())
    randomness.seed_all(1, "x")
    assert one == (torch.rand(1).item(), np.random.rand())


def mixture(manifest):
    """The ramps as two sets: five clips of "many", two of "few"."""
    table = manifest.table.assign(source=["many"] * 5 + ["few"] * 2)
    return Manifest(table, "many+few", manifest.root, {})


def test_shares_of_a_mixture(manifest):
    """An epoch keeps its length and divides it as asked; no row of a set comes again before all of it have come; f(seed, epoch)."""
    rows = dataset(mixture(manifest), shares={"many": 1, "few": 3})
    assert len(rows) == 14
    epochs = [rows.order(epoch, 7, True) for epoch in range(8)]
    assert all(len(order) == 14 and (order < 10).sum() == 4 for order in epochs)       # rows 0-9 are of "many": 3.5, rounded up
    for first, size in ((0, 10), (10, 4)):
        stream = np.concatenate([np.sort(order[(order >= first) & (order < first + size)]) for order in epochs])
        counts = np.bincount(stream - first, minlength=size)
        assert counts.max() - counts.min() <= 1, "rows of one set come equally often"
    assert np.array_equal(rows.order(3, 7, True), epochs[3]) and not np.array_equal(rows.order(3, 8, True), epochs[3])
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(rows.order(0, 7, False), np.arange(14)), "in evaluation every row comes once"
    whole = flat(batches(rows, 4, epoch=1, seed=7, shuffle=True))
    assert equal(flat(batches(rows, 4, epoch=1, seed=7, shuffle=True, first_batch=2)), whole[2:])


@pytest.mark.parametrize("shares, words", [
    ({"many": 1}, r"given for \['many'\], the training clips come from \['few', 'many'\]"), ({"many": 1, "few": 0}, "must be positive")])
def test_wrong_shares_are_refused(manifest, shares, words):
    with pytest.raises(ValueError, match=words):
        dataset(mixture(manifest), shares=shares)
