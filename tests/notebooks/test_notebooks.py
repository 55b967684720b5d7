"""Every notebook from end to end on the tiny profile, through the command that users type."""
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import soundfile

from lib.settings import ROOT
from lib.workbook import results
from tests.reports import documents, report
from tests.workbook.test_kill import Report, kill_report

NOTEBOOKS = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    done = report(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_every_notebook_has_its_result_and_page(first):
    found = documents(first)
    assert sorted(found) == NOTEBOOKS
    for name, document in found.items():
        assert document["metrics"], name
        page = (first / f"reports/test/{name}.html").read_text()
        assert "Traceback" not in page and not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']https?:", page), name


def test_evaluation_has_chance_ceiling_baseline_and_control(first):
    document = documents(first)["11_retrieval_evaluate"]
    headline = {m["name"]: m for m in document["metrics"] if m["headline"]}
    assert {"mAP@10", "R@10"} <= set(headline)
    for m in headline.values():
        assert m["chance"] <= m["ceiling"] <= 1 and None not in (m["baseline"], m["control"], m["interval"]) and m["n"] == 40
    assert {"split", "front_end", "weights_digest", "manifest_fingerprint", "seeds", "n"} <= set(document["protocol"])
    assert document["protocol"]["split"] == "test" and document["protocol"]["fit_splits"] == ["train"]


def test_tagging_stands_beside_its_controls(first):
    found = documents(first)
    rows = {m["name"]: m for m in found["21_hyperbolic_evaluate"]["metrics"]}
    for name in ("mAP samples", "acc@1", "mAP macro"):
        m = rows[f"hyperbolic: {name}"]
        assert m["headline"] and m["n"] == 8 and m["chance"] < m["ceiling"] <= 1 and None not in (m["baseline"], m["control"])
        for control in ("cosine", "euclidean", "frozen", "constant", "frequency", "cones"):
            difference = rows[f"hyperbolic - {control}: {name}"]
            assert difference["interval"][0] <= difference["value"] <= difference["interval"][1]
            assert difference["value"] == pytest.approx(m["value"] - rows[f"{control}: {name}"]["value"], abs=1e-9)
    assert rows["cones: parents nearer the origin"]["chance"] == 0.5
    one, two = (first / "reports/test" / name for name in ("results_hyperbolic.json", "results_original.json"))
    files = [json.loads(file.read_text()) for file in (one, two)]
    assert [len(file["predictions"]) for file in files] == [8, 8] and len(files[0]["predictions"][0]["top_k_predictions"]) == 5
    assert files[0]["model_info"]["c"] == 1.0 and files[1]["model_info"]["use_hyperbolic"] is False
    assert found["22_poincare_atlas"]["artifacts"]["pictures"] and (first / "reports/test/atlas/taxonomy.svg").read_text().startswith("<?xml")
    page = (first / "reports/test/22_poincare_atlas.html").read_text()
    assert "data-atlas=" in page and "<svg" in page or "data:image/png" in page


def test_order_and_place_stand_beside_chance_and_controls(first):
    found = documents(first)
    rows = {m["name"]: m for m in found["32_spatial_evaluate"]["metrics"]}
    for name, chance in (("temporal", 1 / 2), ("spatial", 1 / 2), ("both", 1 / 3), ("every", 1 / 3)):
        for anchor in ("text", "audio"):
            m = rows[f"{name}, {anchor} anchor"]
            assert m["chance"] == pytest.approx(chance) and m["n"] == 8 and None not in (m["control"], m["baseline"], m["interval"])
    one, two = rows["error in degrees, one event"], rows["error in degrees, two events"]
    assert one["chance"] == pytest.approx(90, abs=2) and 60 < two["chance"] < 80 and two["n"] == 24 and one["n"] == 4
    assert {"text to audio mAP@10", "zero-shot direction, joint", "moved embedding R@10", "modality accuracy, fresh linear probe"} <= set(rows)
    shortcuts = [m for m in found["30_spatial_data"]["metrics"] if m["name"].startswith("shortcut")]
    assert len(shortcuts) == 4 and all(m["chance"] == pytest.approx(1 / 3) and m["interval"] for m in shortcuts)
    assert found["31_spatial_train"]["artifacts"]["checkpoints"].keys() == {"triplets", "one event"}
    page = (first / "reports/test/30_spatial_data.html").read_text()
    assert page.count("<audio") >= 6 and "<svg" in page


def test_three_stages_stand_beside_what_knows_nothing(first):
    found = documents(first)
    assert found["40_audiovisual_data"]["protocol"]["counts"]["both"] == 48
    stages = {name: {m["name"]: m for m in found[name]["metrics"]} for name in found if name.startswith("4")}
    for name in ("audio", "video"):
        m, test = stages["41_audiovisual_mae"][f"{name}: loss"], stages["44_audiovisual_evaluate"][f"{name}: loss below predict-the-mean"]
        assert 0 < m["baseline"] <= m["chance"] and test["n"] == 8 and test["interval"][0] <= test["value"] <= test["interval"][1]
    rows = stages["44_audiovisual_evaluate"]
    for what in ("both", "sound only", "picture only"):
        m = rows[f"top-1, {what}"]
        assert m["n"] == 8 and m["chance"] == pytest.approx(1 / 24) and None not in (m["baseline"], m["interval"])
    pair = rows["sound to picture R@1"]
    assert pair["chance"] == pytest.approx(1 / 8) and pair["baseline"] >= pair["chance"] and pair["control"] is not None
    starts = ("stages 1 + 2", "stage 1 only", "stage 2 only", "from scratch")
    mean = {start: rows[f"few labels, {start}: top-1"]["value"] for start in starts}
    for start in starts[:-1]:
        m = rows[f"few labels, gain of {start}"]
        assert m["value"] == pytest.approx(mean[start] - mean["from scratch"], abs=1e-9) and m["interval"][0] <= m["interval"][1]
    assert all(len(paths) == 2 for paths in found["43_audiovisual_finetune"]["artifacts"]["gain"].values())
    assert "<video" in (first / "reports/test/40_audiovisual_data.html").read_text()


def test_bits_stand_beside_the_mean_other_quantizers_and_the_ceiling(first):
    found = documents(first)
    made = found["50_tokenizer_train"]["artifacts"]
    assert {name: len(paths) for name, paths in made["checkpoints"].items()} == {"bsq 9": 2, "bsq 18": 2, "vq 18": 2}
    assert made["main"] == "bsq 18" and made["vocoder"]
    rows = {m["name"]: m for m in found["51_tokenizer_evaluate"]["metrics"]}
    m = rows["bsq 18 bits: MAE (dB)"]
    assert m["headline"] and m["n"] == 8 and m["interval"][0] <= m["value"] <= m["interval"][1]
    assert 0 < m["ceiling"] and m["baseline"] > 0 and m["control"] > 0
    assert rows["bsq 18 bits: MAE / predict-the-mean"]["value"] == pytest.approx(m["value"] / m["baseline"], rel=1e-6)
    difference = rows["bsq 18 - vq 18: MAE (dB)"]
    assert difference["value"] == pytest.approx(m["value"] - rows["vq 18 bits: MAE over seeds (dB)"]["value"], abs=1e-6)
    assert rows["bsq 9 bits: MAE over seeds (dB)"]["baseline"] is not None and "bsq 18 - scalar 18: MAE (dB)" in rows
    assert rows["bsq 18 bits: packed file (bits/s)"]["value"] >= rows["bsq 18 bits: packed file (bits/s)"]["ceiling"]
    sound = rows["bsq 18 bits: STOI"]
    assert sound["value"] <= sound["ceiling"] <= 1 and {"bsq 18 bits: STOI, vocoder", "bsq 18 bits: STOI - ceiling"} <= set(rows)
    assert rows["probe of tokens: accuracy"]["baseline"] > 0 and len(found["51_tokenizer_evaluate"]["artifacts"]["listen"]) >= 3
    assert (first / "reports/test/51_tokenizer_evaluate.html").read_text().count("<audio") >= 8


def test_scoreboard_gathers_every_family(first):
    found, folder = documents(first), first / "reports/test"
    board = found.pop("90_scoreboard")
    numbers = {m["name"]: m["value"] for m in board["metrics"]}
    told = board["protocol"]["findings"]
    assert numbers["families evaluated"] == len(told) == 5 and not any("no result here" in text or "skipped" in text for text in told)
    rows = (folder / "scoreboard.csv").read_text().splitlines()[1:]
    assert len(rows) == sum(len(d["metrics"]) for d in found.values() if d["family"] not in (None, "performance")) == numbers["numbers gathered"]
    assert [(folder / name).read_bytes()[:4] for name in board["artifacts"]["pictures"]] == 5 * [b"\x89PNG"]
    assert "cannot share a column" in (folder / "90_scoreboard.html").read_text()


def test_index_shows_numbers_and_plays(first):
    index = (first / "reports/test/index.html").read_text()
    assert all(name in index for name in NOTEBOOKS) and "mAP@10" in index and "chance" in index
    sounds = re.findall(r'<audio[^>]+src="([^"]+)"', index)
    assert sounds and all(soundfile.info(first / "reports/test" / s).duration > 1 for s in sounds)
    assert not re.search(r"(src|href)=[\"']https?:[^>]*(\.js|\.css)", index)


def test_second_run_repeats_nothing(first):
    before = {p: p.stat().st_mtime_ns for p in (first / "reports/test/results").glob("*.json")}
    start = time.monotonic()
    done = report(first)
    assert done.returncode == 0 and time.monotonic() - start < 30
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.slow
def test_same_parameters_give_the_same_results_though_killed_five_times(first, tmp_path):
    """Training and evaluation of two families once more, killed again and again: results and weights bit-identical to the run that nobody
    touched."""
    notebooks = Path(shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks"))
    with open(notebooks / "profiles/tiny.yaml", "a", encoding="utf-8") as file:
        file.write("notebooks: [11_retrieval_evaluate, 21_hyperbolic_evaluate]\n")
    names = ["01_data", "10_retrieval_train", "11_retrieval_evaluate", "20_hyperbolic_train", "21_hyperbolic_evaluate"]
    whole, killed = Report(first, "--profile=tiny"), Report(tmp_path, "--profile=tiny", notebooks=notebooks)
    seconds = {name: spent for name, spent in whole.seconds().items() if name in names}
    print("\nkilled:", *kill_report(killed, seconds, kills=5, seed=59), sep="\n  ")
    found, expected = killed.finish(), {name: results.stable(document) for name, document in documents(first).items()}
    assert sorted(found) == names
    for name in names:
        assert json.dumps(found[name], sort_keys=True) == json.dumps(expected[name], sort_keys=True), name
    weights = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("runs/**/model.safetensors"))
    assert {path.parts[1].split("-")[0] for path in weights} >= {"retrieval", "hyperbolic"}
    for path in weights:
        assert (tmp_path / path).read_bytes() == (first / path).read_bytes(), path
