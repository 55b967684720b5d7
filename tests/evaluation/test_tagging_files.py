"""Result files of the original scripts: their keys, both variants, what is refused, and comparisons worked by hand."""
import copy
import json

import numpy as np
import pytest

from lib.evaluation import tagging_files
from lib.evaluation.statistics import paired_bootstrap
from lib.evaluation.tagging import clip_metrics, seed_metrics
from lib.evaluation.tagging_files import HYPERBOLIC, ORIGINAL, Projection, compare, read

METRICS = ["acc@1", "acc@3", "acc@5", "acc@10", "f1_micro", "precision_micro", "recall_micro", "f1_macro", "precision_macro",
           "recall_macro", "map", "valid_samples", "total_samples"]
CLASSES = ["Speech", "Music", "Bark", "Fly, housefly", 'Quote "inside"', "-dash", "Rain", "Wind", "Siren", "Cat", "Dog", "Bell"]
FACTS = dict(parquet_dir="-eval/it's", device="cpu", model_path="larger_clap_general", workbook={"prompt": "a sound of {}"})


def example(seed, clips=40):
    rng = np.random.default_rng(9)
    targets = rng.random((clips, len(CLASSES))) < 0.15
    targets[np.arange(clips), rng.integers(len(CLASSES), size=clips)] = True
    scores = np.random.default_rng(seed).normal(size=targets.shape).astype(np.float32) + targets
    rows = [{"video_id": f"-v{n}", "labels": [f"/m/{c}" for c in np.flatnonzero(targets[n])],
             "human_labels": [CLASSES[c].upper() + " " for c in np.flatnonzero(targets[n])]} for n in range(clips)]
    return scores, targets, rows


@pytest.fixture
def pair(tmp_path):
    """A cosine and a hyperbolic run over the same 40 clips, the second with its clips in another order."""
    scores, targets, clips = example(0)
    first = tagging_files.write(tmp_path / ORIGINAL, scores, targets, CLASSES, clips, top_k=10, **FACTS)
    scores, _, _ = example(1)
    turned = [clip | {"sample_id": 100 + n} for n, clip in enumerate(clips)][::-1]
    second = tagging_files.write(tmp_path / HYPERBOLIC, scores[::-1].copy(), targets[::-1].copy(), CLASSES, turned, top_k=10,
                                 projection=Projection("best_projection_epoch_3.pth", 0.01, 1.0), **FACTS)
    return first, second


def document(kept=5):
    """What the original general script wrote for three clips, by hand; its acc@10 looks at the five kept predictions."""
    def clip(number, labels, best):
        return {"sample_id": number, "video_id": f"id{number}", "predicted_top1": best[0],
                "top_k_predictions": [{"rank": r, "classname": name, "similarity": 0.5 / r} for r, name in enumerate(best, 1)],
                "ground_truth_labels": ["/m/09x0r"] * len(labels), "ground_truth_human_labels": labels}
    return {
        "test_info": {"timestamp": "2025-12-01T10:00:00.1", "parquet_dir": "./eval", "num_samples": 3, "device": "cuda:0",
                      "model_path": "clap"},
        "model_info": {"model_type": "modelscope", "model_path": "clap", "use_hyperbolic": False, "projection_checkpoint": None,
                       "c": None, "temperature": None},
        "similarity_stats": {"min": -0.1, "max": 0.5, "mean": 0.1, "std": 0.1},
        "metrics": dict.fromkeys(METRICS, 0.25) | {"acc@1": 1 / 3, "acc@5": 2 / 3, "acc@10": 2 / 3, "valid_samples": 3,
                                                   "total_samples": 4},
        "predictions": [clip(0, ["speech"], ["Speech", "Music", "Bark", "Rain", "Wind"][:kept]),
                        clip(1, ["Fly, housefly", "Rain"], ["Music", "Speech", "Bark", "Fly, housefly", "Wind"][:kept]),
                        clip(2, ["Siren"], ["Music", "Speech", "Bark", "Rain", "Wind"][:kept]),
                        clip(3, [], ["Music", "Speech", "Bark", "Rain", "Wind"][:kept])]}


def save(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_round_trip_has_the_original_keys(pair):
    scores, targets, clips = example(0)
    got = json.loads(pair[0].read_text(encoding="utf-8"))
    assert list(got) == ["test_info", "model_info", "similarity_stats", "metrics", "predictions", "workbook"]
    assert list(got["test_info"]) == ["timestamp", "parquet_dir", "num_samples", "device", "model_path"]
    assert got["model_info"] == {"model_type": "modelscope", "model_path": "larger_clap_general", "use_hyperbolic": False,
                                 "projection_checkpoint": None, "c": None, "temperature": None}
    assert list(got["metrics"]) == METRICS and got["metrics"] == pytest.approx(seed_metrics(scores, targets))
    assert got["similarity_stats"] == pytest.approx({name: getattr(scores, name)() for name in ("min", "max", "mean", "std")})
    best, prediction = np.argsort(-scores[3])[:10], got["predictions"][3]
    assert list(prediction) == ["sample_id", "video_id", "predicted_top1", "top_k_predictions", "ground_truth_labels",
                                "ground_truth_human_labels"]
    assert [kept["classname"] for kept in prediction["top_k_predictions"]] == [CLASSES[c] for c in best]
    assert [kept["rank"] for kept in prediction["top_k_predictions"]] == list(range(1, 11))
    assert prediction["top_k_predictions"][2]["similarity"] == pytest.approx(float(scores[3, best[2]]))
    assert (prediction["sample_id"], prediction["video_id"], prediction["predicted_top1"]) == (3, "-v3", CLASSES[best[0]])
    assert prediction["ground_truth_human_labels"] == clips[3]["human_labels"] and got["workbook"] == FACTS["workbook"]
    assert read(pair[0]).document == got and read(pair[0]).projection is None and read(pair[0]).kept == 10
    hyperbolic = read(pair[1])
    assert hyperbolic.projection == Projection("best_projection_epoch_3.pth", 0.01, 1.0)
    assert hyperbolic.document["model_info"]["model_type"] == "hyperbolic_clap_modelscope"
    assert hyperbolic.predictions[0]["sample_id"] == 139


def test_the_dedicated_variant_keeps_its_settings_in_test_info(tmp_path):
    scores, targets, clips = example(0)
    projection = Projection("p.pth", 0.006, 2.0)
    facts = FACTS | {"projection": projection, "dedicated": True}
    path = tagging_files.write(tmp_path / "-odd 'name'.json", scores, targets, CLASSES, clips, **facts)
    got = json.loads(path.read_text(encoding="utf-8"))
    assert list(got["test_info"])[-3:] == ["projection_checkpoint", "c", "temperature"] and got["test_info"]["c"] == 0.006
    assert got["model_info"] == {"model_type": "hyperbolic_clap_modelscope", "model_path": "larger_clap_general",
                                 "projection_checkpoint": "p.pth"}
    assert read(path).projection == projection and read(path).kept == 5
    with pytest.raises(ValueError, match="dedicated script knows hyperbolic runs only"):
        tagging_files.write(path, scores, targets, CLASSES, clips, dedicated=True, **FACTS)


def test_unlabelled_clips_are_predicted_and_not_measured(tmp_path):
    scores, targets, clips = example(0)
    clips[7] |= {"human_labels": []}
    targets[9] = False
    clips[9] |= {"human_labels": ["no such class"]}
    got = read(tagging_files.write(tmp_path / "r.json", scores, targets, CLASSES, clips, **FACTS))
    assert (got.document["metrics"]["valid_samples"], got.document["metrics"]["total_samples"]) == (39, 40)
    hits = got.hits(3)
    assert len(got.predictions) == 40 and len(hits) == 39 and 7 not in hits and hits[9] is False
    assert np.mean(list(hits.values())) == pytest.approx(got.document["metrics"]["acc@3"])
    with pytest.raises(ValueError, match=r"must be \(clips, classes\) = \(39, 12\)"):
        tagging_files.write(tmp_path / "r.json", scores, targets, CLASSES, clips[1:], **FACTS)
    with pytest.raises(ValueError, match="none of the 40 clips has a human label"):
        tagging_files.write(tmp_path / "r.json", scores, targets, CLASSES, [c | {"human_labels": []} for c in clips], **FACTS)
    scores[2, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        tagging_files.write(tmp_path / "r.json", scores, targets, CLASSES, clips, **FACTS)


def test_a_file_of_the_original_script(tmp_path):
    got = read(save(tmp_path / "a.json", document()))
    assert got.kept == 5 and got.projection is None
    assert got.hits(1) == {0: True, 1: False, 2: False} and got.hits(4) == {0: True, 1: True, 2: False}
    with pytest.raises(ValueError, match=r"a\.json: acc@10 needs 10 predictions a clip and the file keeps 5"):
        got.hits(10)


def broken(path, value):
    content = document()
    node = content
    for key in path[:-1]:
        node = node[key]
    if value is KeyError:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content


@pytest.mark.parametrize("path, value, message", [
    (["metrics"], KeyError, "'metrics' is a required property"),
    (["metrics", "acc@1"], "high", "metrics"),
    (["similarity_stats", "std"], None, "similarity_stats.std: None is not of type 'number'"),
    (["predictions"], [], "predictions: .*non-empty"),
    (["predictions", 2, "top_k_predictions", 1, "classname"], 7, r"predictions\[2\].top_k_predictions\[1\].classname: 7 is not"),
    (["predictions", 1, "video_id"], KeyError, r"predictions\[1\]: 'video_id' is a required property"),
    (["model_info", "use_hyperbolic"], True, "model_info.projection_checkpoint is missing"),
    (["model_info"], {"model_type": "hyperbolic_clap_modelscope", "model_path": "clap"}, "test_info.projection_checkpoint is"),
    (["similarity_stats", "max"], float("nan"), "not strict JSON .it holds NaN"),
])
def test_broken_files_are_named_with_the_key(tmp_path, path, value, message):
    file = save(tmp_path / "-broken.json", broken(path, value))
    with pytest.raises(ValueError, match="-broken.json: .*" + message):
        read(file)


def test_files_that_are_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json is not there; the evaluation writes results_original"):
        read(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"test_info": {', encoding="utf-8")
    with pytest.raises(ValueError, match=r"cut\.json: not strict JSON"):
        read(tmp_path / "cut.json")
    with pytest.raises(ValueError, match=r"list\.json: the whole: .*not of type 'object'"):
        read(save(tmp_path / "list.json", []))
    content = document()
    content["metrics"] = None                                # as the scripts write it when no clip has a label
    assert read(save(tmp_path / "none.json", content)).document["metrics"] is None


def test_comparison_pairs_the_clips(pair):
    rows = compare(*pair)
    (a, targets, _), (b, _, _) = example(0), example(1)
    for k, row in zip((1, 3, 5, 10), rows):
        right = [clip_metrics(scores, targets, (k,))[f"acc@{k}"] for scores in (a, b)]
        expected = dict(zip(("difference", "low", "high"), paired_bootstrap(*right)))
        assert row == expected | {"metric": f"acc@{k}", "a": pytest.approx(right[0].mean()), "b": pytest.approx(right[1].mean()),
                                  "clips": 40, "source": "predictions", "note": ""}
    stored = {row["metric"]: row for row in rows if row["source"] == "stored"}
    assert list(stored) == METRICS[:-2]
    mine = seed_metrics(a, targets)
    for name, row in stored.items():
        assert row["a"] == pytest.approx(mine[name]) and row["difference"] == row["a"] - row["b"] and row["low"] is None
    assert [row["difference"] for row in compare(*pair[::-1])] == pytest.approx([-row["difference"] for row in rows])


def test_comparison_refuses_what_five_predictions_cannot_tell(tmp_path):
    first = save(tmp_path / "a.json", document())
    content = copy.deepcopy(document())
    content["predictions"][2]["top_k_predictions"][0]["classname"] = "siren"
    second = save(tmp_path / "b.json", content)
    rows = {(row["source"], row["metric"]): row for row in compare(first, second)}
    assert rows["predictions", "acc@1"]["a"] == pytest.approx(1 / 3) and rows["predictions", "acc@1"]["b"] == pytest.approx(2 / 3)
    assert rows["predictions", "acc@1"]["difference"] == pytest.approx(-1 / 3) and rows["predictions", "acc@1"]["clips"] == 3
    for source in ("predictions", "stored"):
        row = rows[source, "acc@10"]
        assert row["a"] is row["b"] is row["difference"] is None and "a.json keeps 5 predictions a clip" in row["note"]
    assert rows["stored", "acc@5"]["a"] == pytest.approx(2 / 3) and not rows["stored", "acc@5"]["note"]
    with pytest.raises(ValueError, match=r"a\.json: acc@10 needs 10 predictions"):
        compare(first, second, ks=(1, 10))


def test_comparison_refuses_other_clips(tmp_path):
    first = save(tmp_path / "a.json", document())
    content = document()
    content["predictions"][1]["video_id"] = "elsewhere"
    with pytest.raises(ValueError, match=r"different clips: 1 of 4 are only in .*a\.json, such as video_id 'id1'"):
        compare(first, save(tmp_path / "b.json", content))
    content = document()
    del content["predictions"][3]
    with pytest.raises(ValueError, match=r"1 of 4 are only in .*a\.json, such as video_id 'id3'"):
        compare(save(tmp_path / "b.json", content), first)
    content = document()
    content["predictions"][0]["ground_truth_human_labels"] = ["Cat"]
    with pytest.raises(ValueError, match="1 of 4 clips have other true labels.*video_id 'id0'"):
        compare(first, save(tmp_path / "b.json", content))


def test_clips_without_video_ids_are_matched_by_number(tmp_path):
    content = document()
    for prediction in content["predictions"]:
        prediction["video_id"] = ""
    first = save(tmp_path / "a.json", content)
    content["predictions"].reverse()
    second = save(tmp_path / "b.json", content)
    assert all(row["difference"] == 0 for row in compare(first, second, ks=(1, 5)) if row["a"] is not None)
    content["predictions"][0]["sample_id"] = 0
    with pytest.raises(ValueError, match="neither video_id nor sample_id tells all clips apart"):
        compare(first, save(tmp_path / "b.json", content))
