"""Triplet, gallery, direction, editing and modality measures against loops, closed forms, ties and controls."""
import numpy as np
import pytest
import torch

from lib.audio.directions import DIRECTIONS
from lib.evaluation.retrieval import retrieval_metrics
from lib.evaluation.statistics import wilson_interval
from lib.evaluation.triplets import (CHANCE, PARTIAL, POSITIVE, SPATIAL, TEMPORAL, edit_embedding, edited_retrieval,
                                     gallery_metrics, member_confusion, probe_modality, share_of_best, triplet_metrics,
                                     triplet_scores, zero_shot_direction)


def embeddings(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def cosine(a, b):
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("captions", [None, 5])
def test_triplet_scores_equal_loops(captions):
    audio = embeddings(36, 8)
    text = embeddings(36, 8, seed=1) if captions is None else embeddings(36, captions, 8, seed=1)
    got = triplet_scores(audio, text)
    of = text[:, None] if captions is None else text
    for b in range(12):
        rows = [3 * b, 3 * b + 1, 3 * b + 2]
        for anchor in ("text", "audio"):
            sums = dict.fromkeys(CHANCE, 0.0)
            for k in range(of.shape[1]):
                table = [[cosine(audio[j], of[i, k]) if anchor == "text" else cosine(audio[i], of[j, k])
                          for j in rows] for i in rows]
                sums["temporal"] += table[0][0] > table[0][1]
                sums["spatial"] += table[0][0] > table[0][2]
                sums["both"] += table[0][0] > max(table[0][1:])
                sums["every"] += sum(np.argmax(table[i]) == i for i in range(3)) / 3
            for what, total in sums.items():
                assert got[f"{anchor} {what}"][b] == pytest.approx(total / of.shape[1])


def test_what_cannot_tell_members_apart_is_exactly_at_chance():
    constant = torch.ones(30, 6)
    for audio, text in [(constant, constant), (constant.float() * 0.3, embeddings(30, 5, 6)), (torch.zeros(30, 6), constant)]:
        result = triplet_metrics(audio, text)
        for name, chance in result["chance"].items():
            if name.startswith("text"):                     # all audios alike: each caption is indifferent
                assert result[name] == pytest.approx(chance, abs=1e-12)
    result = triplet_metrics(constant, constant)
    assert all(result[name] == pytest.approx(chance, abs=1e-12) for name, chance in result["chance"].items())
    shares = share_of_best(torch.tensor([[1, 1, 0.5], [1, 1, 1], [0, 0, 3], [1, 1 - 1e-8, 0]], dtype=torch.float64))
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0], [1 / 3] * 3, [0, 0, 1], [0.5, 0.5, 0]])


@pytest.mark.parametrize("knows", PARTIAL)
def test_models_of_one_ability(knows):
    """Each member has an order of sounds, a place for each sound, and so a sequence of directions; a model hears one of them."""
    order, binding = (0, 1, 0), (0, 0, 1)
    heard = {"order of the sounds": order, "place of each sound": binding,
             "sequence of directions": [o ^ b for o, b in zip(order, binding)]}
    hear = lambda state: embeddings(200, 2, 64, seed=3)[:, list(state)].flatten(0, 1)
    result = triplet_metrics(hear(heard[knows]), hear(heard[knows]))
    for anchor in ("text", "audio"):
        assert {what: result[f"{anchor} {what}"] for what in CHANCE} == pytest.approx(PARTIAL[knows])
    two = torch.cat([hear(heard[other]) for other in PARTIAL if other != knows], dim=1)            # two of them tell all apart
    everything = triplet_metrics(two, two[:, None].repeat(1, 2, 1))
    assert all(everything[name] == 1 for name in everything["chance"])
    assert everything["interval"]["text both"] == pytest.approx(wilson_interval(200, 200)) and everything["n"] == 200
    assert result["temporal sensitivity"] == result["text temporal"] and result["chance"]["text both"] == 1 / 3


def test_a_mark_of_the_positive_fools_its_anchor_but_not_every_member():
    audio, text = embeddings(3000, 16), embeddings(3000, 16, seed=1)
    audio[0::3, 0] += 50
    text[:, 0] += 5
    result = triplet_metrics(audio, text)
    assert result["text both"] > 0.99 and result["text every"] == pytest.approx(1 / 3, abs=0.02)
    low, high = result["interval"]["text every"]
    assert low < 1 / 3 < high and result["per_triplet"]["text every"].shape == (1000,)


@pytest.mark.parametrize("anchor", ["audio", "text"])
def test_member_confusion_equals_a_loop(anchor):
    audio, text = embeddings(60, 8), embeddings(60, 3, 8, seed=1)
    for members in [(POSITIVE, TEMPORAL), (POSITIVE, SPATIAL), (0, 1, 2)]:
        expected = np.zeros((len(members),) * 2)
        for b in range(20):
            for i, true in enumerate(members):
                for k in range(3):
                    scores = [cosine(audio[3 * b + true], text[3 * b + m, k]) if anchor == "audio" else
                              cosine(audio[3 * b + m], text[3 * b + true, k]) for m in members]
                    expected[i, np.argmax(scores)] += 1 / 3
        got = member_confusion(audio, text, members, anchor)
        np.testing.assert_allclose(got, expected)
        np.testing.assert_allclose(got.sum(axis=1), 20)
    with pytest.raises(ValueError, match="'audio' or 'text'"):
        member_confusion(audio, text, anchor="video")


def test_incomplete_triplets_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="no whole triplets"):
        triplet_scores(embeddings(7, 4), embeddings(7, 4))
    for text in (embeddings(6, 5), embeddings(9, 4), embeddings(9, 2, 4), embeddings(6, 0, 4)):
        with pytest.raises(ValueError, match="must be"):
            triplet_scores(embeddings(6, 4), text)
    with pytest.raises(ValueError, match="audio has 1 embeddings with NaN"):
        gallery_metrics(torch.full((1, 4), float("nan")), embeddings(1, 4))


def test_gallery_equals_loops_over_sorted_ranks():
    n, captions = 30, 5
    audio = embeddings(n, 6)
    text = audio[:, None] + 1.5 * embeddings(n, captions, 6, seed=1)
    got = gallery_metrics(audio, text)
    cosines = np.array([[[cosine(a, t) for t in own] for own in text] for a in audio])          # (audio, clip of text, caption)
    ranks = np.array([[1 + (cosines[:, i, k] > cosines[i, i, k]).sum() for k in range(captions)] for i in range(n)])
    t2a, a2t = got["text_to_audio"], got["audio_to_text"]
    for k in (1, 5, 10):
        assert t2a[f"R@{k}"] == pytest.approx((ranks <= k).mean())
    assert t2a["mAP@10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean()) and got["mAP@1"] == t2a["R@1"]
    sorted_ranks = np.array([sorted(1 + (cosines[i] > cosines[i, i, k]).sum() for k in range(captions)) for i in range(n)])
    for k in (1, 5, 10):
        assert a2t[f"R@{k}"] == pytest.approx((sorted_ranks[:, 0] <= k).mean())
    m = np.arange(1, captions + 1)
    assert a2t["mAP@10"] == pytest.approx(np.where(sorted_ranks <= 10, m / sorted_ranks, 0).mean()) and a2t["mAP@10"] <= 1
    assert t2a["chance"]["R@10"] == pytest.approx(10 / n) and (t2a["n"], a2t["n"]) == (n * captions, n)
    assert t2a["interval"]["R@5"][0] < t2a["R@5"] < t2a["interval"]["R@5"][1]
    assert "mAP@1" not in gallery_metrics(audio, text, ks=(5,))


def test_identical_captions_of_other_clips_are_relevant():
    audio, text = embeddings(12, 6), embeddings(12, 2, 6, seed=1)
    keys = [[f"{i % 4} first", f"{i} second"] for i in range(12)]
    relevant = torch.tensor([[key in keys[j] for j in range(12)] for row in keys for key in row])
    unit = torch.nn.functional.normalize
    expected = retrieval_metrics(unit(text, dim=-1).flatten(0, 1) @ unit(audio, dim=-1).T, relevant, map_at=(10,))
    got = gallery_metrics(audio, text, keys, groups=np.arange(12) // 3)
    assert {name: got["text_to_audio"][name] for name in expected} == pytest.approx(expected)
    back = retrieval_metrics(unit(audio, dim=-1) @ unit(text, dim=-1).flatten(0, 1).T, relevant.T, map_at=(10,))
    assert {name: got["audio_to_text"][name] for name in back} == pytest.approx(back)
    assert got["text_to_audio"]["chance"]["R@1"] == pytest.approx((3 / 12 + 1 / 12) / 2)
    for wrong in (keys[:5], [row[:1] for row in keys], ["ab"] * 12):
        with pytest.raises(ValueError, match="12 lists of 2 texts"):
            gallery_metrics(audio, text, wrong)


def test_zero_shot_direction():
    words = embeddings(8, 20)
    azimuth = np.array([0, 45, 90, 135, 180, -135, -90, -45.0])                                 # the middle of every sector
    result = zero_shot_direction(words * 3, words, azimuth)
    assert result["accuracy"] == 1 and result["majority"] == 1 / 8
    np.testing.assert_array_equal(result["confusion"], np.eye(8))
    turned = zero_shot_direction(words.roll(1, 0), words, azimuth)                              # each says its neighbour
    assert (turned["accuracy"], turned["adjacent"]) == (0, 1)
    opposite = zero_shot_direction(words.roll(4, 0), words, azimuth)
    assert opposite["adjacent"] == 0 and opposite["confusion"][0, 4] == 1 and DIRECTIONS[4] == "north"
    blind = zero_shot_direction(torch.ones(8, 20), torch.ones(8, 20), azimuth)
    assert blind["accuracy"] == pytest.approx(blind["accuracy chance"]) == 1 / 8
    assert blind["adjacent"] == pytest.approx(blind["adjacent chance"]) == 3 / 8
    with pytest.raises(ValueError, match="order of DIRECTIONS"):
        zero_shot_direction(words, words[:4], azimuth)
    with pytest.raises(ValueError, match="finite"):
        zero_shot_direction(words, words, np.full(8, np.nan))


def test_editing_replaces_the_place_and_keeps_its_length():
    semantic, spatial, s, word = embeddings(5, 8), embeddings(5, 8, seed=1), embeddings(8, seed=2), embeddings(8, seed=3)
    for n, row in enumerate(edit_embedding(semantic, spatial, s, word)):
        torch.testing.assert_close(row, semantic[n] + s * (spatial[n] ** 2).sum().sqrt() * word / (word ** 2).sum().sqrt())
    torch.testing.assert_close(edit_embedding(semantic, spatial, s, 7 * spatial), semantic + s * spatial)


def test_edited_retrieval_finds_the_new_direction():
    """A model that is what it should be: the sum of what sounds and where from. Captions of 40 sounds from 8 directions."""
    sounds, places, s = embeddings(40, 64), embeddings(8, 64, seed=1), torch.ones(64)
    unit = torch.nn.functional.normalize(places, dim=1)
    captions = (sounds[:, None] + 8 * unit).flatten(0, 1)
    old, new = np.arange(40) % 8, (np.arange(40) + 3) % 8
    spatial = 8 * unit[old]
    edited = edit_embedding(sounds, spatial, s, places[new])
    relevant = torch.from_numpy(np.arange(40) * 8 + new)
    result = edited_retrieval(edited, sounds + spatial, captions, relevant)
    assert result["edited"]["R@1"] == 1 and result["unedited"]["R@1"] == 0
    assert result["gain"]["R@1"] == (1, 1, 1) and result["edited"]["chance"]["R@1"] == pytest.approx(1 / 320)
    assert result["edited"]["n"] == 40 and set(result["unedited"]["interval"]) == {"R@1", "R@10", "mAP@10"}
    with pytest.raises(ValueError, match="same clips"):
        edited_retrieval(edited, spatial[:3], captions, relevant)


def test_the_probe_finds_what_tells_modalities_apart_and_nothing_else():
    groups = np.arange(450) // 3
    shared = embeddings(150, 24).repeat_interleave(3, dim=0)                                    # the group shows in both
    audio, text = (shared + 0.5 * embeddings(450, 24, seed=i) for i in (1, 2))
    alike = probe_modality(audio, text, groups)
    for kind in ("linear", "two_layer"):
        assert alike[kind]["accuracy"] == pytest.approx(0.5, abs=0.06)
        assert alike[kind]["interval"][0] < alike["chance"] < alike[kind]["interval"][1]
    assert (alike["n"], alike["folds"]) == (900, 5)
    gap = torch.zeros(24)
    gap[3] = 4.0
    assert min(probe_modality(audio + gap, text, groups)[kind]["accuracy"] for kind in ("linear", "two_layer")) > 0.9
    # the same mean, another shape: only the second kind of probe can see it
    signs = torch.sign(embeddings(450, 1, seed=4))
    bent = probe_modality(audio + 6 * gap * signs, text, groups)
    assert bent["two_layer"]["accuracy"] > 0.9 > 0.65 > bent["linear"]["accuracy"]
    assert probe_modality(audio, text, groups, seed=0) == alike
    assert probe_modality(audio, audio, groups)["linear"]["accuracy"] == 0.5
    with pytest.raises(ValueError, match="at least 5 groups"):
        probe_modality(audio[:9], text[:9], groups[:9])
