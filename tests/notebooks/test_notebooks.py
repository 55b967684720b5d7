"""Every notebook from end to end on the tiny profile, through the command that users type."""
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lib.settings import ROOT
from lib.workbook import results
from tests import tiny_audioset, tiny_clap

NOTEBOOKS = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))
SHARED = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data"))


def report(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`make report` with this environment and generated files below `folder`."""
    environment = os.environ | {f"WORKBOOK_{n}": str(folder / n.lower()) for n in ("DATA", "RUNS", "REPORTS")}
    return subprocess.run(["make", "report", f"VENV={sys.prefix}", "RUN=test", "PROFILE=tiny", *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=900)


def documents(folder: Path) -> dict[str, dict]:
    return {p.stem: results.read(p) for p in sorted((folder / "reports/test/results").glob("*.json"))}


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
def test_same_parameters_give_the_same_results(first, tmp_path):
    done = report(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    one, two = documents(first), documents(tmp_path)
    for name in NOTEBOOKS:
        assert json.dumps(results.stable(one[name]), sort_keys=True) == json.dumps(results.stable(two[name]), sort_keys=True), name


def test_own_folder_with_hostile_names_and_captions(tmp_path):
    """One parameter away from the user's own recordings; text from outside never becomes markup."""
    own, rng = tmp_path / "own sounds", np.random.default_rng(0)
    own.mkdir()
    rows = ["file_name,caption"]
    for i in range(30):
        name = "-rf 'x' \"y\".wav" if i == 0 else f"clip {i}.wav"
        soundfile.write(own / name, (0.1 * rng.normal(size=32000 * 2)).astype(np.float32), 32000)
        quoted = name.replace('"', '""')
        rows.append(f'"{quoted}","<script>alert({i})</script> sound number {i}"')
    (own / "captions.csv").write_text("\n".join(rows))
    (own / "broken.wav").write_bytes(b"not audio")
    (tmp_path / "queries.csv").write_text('caption\n"<script>alert(99)</script>, loud"\nrain\n')
    (tmp_path / "extra.csv").write_text('query,audio_filenames\n<script>alert(7)</script>,"[' + ", ".join(f"'clip {i}.wav'" for i in range(1, 30)) + ']"\n')
    settings = {"predict_folder": own, "predict_queries": tmp_path / "queries.csv", "extra_relevance": tmp_path / "extra.csv"}
    done = report(tmp_path, "DATASET=folder", f"DATA_ROOT={own}", "SET=" + " ".join(f'{name}="{path}"' for name, path in settings.items()))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for page in (tmp_path / "reports/test").glob("*.html"):
        assert "<script>alert" not in page.read_text(), page.name
    document = documents(tmp_path)["11_retrieval_evaluate"]
    assert document["dataset"] == "folder" and any(m["name"] == "extra relevance mAP@16" and m["headline"] for m in document["metrics"])
    predictions = (tmp_path / "reports/test/predictions.csv").read_text().splitlines()
    assert len(predictions) == 3 and predictions[0].startswith("index,") and predictions[0].count(".wav") == 31


@pytest.mark.slow
def test_audioset_shards_and_a_published_clap(tmp_path):
    """The original project's profile on its folder layout and a CLAP in the hubs' layout, then its own commands: one folder of shards to
    evaluate, its checkpoint file, and plain cosine."""
    tiny_audioset.publish(tmp_path / "AudioSet", train=60, eval=24)
    tiny_clap.publish(tmp_path / "clap")
    options = {"checkpoint": tmp_path / "clap", "output_dir": tmp_path / "checkpoints", "clip_seconds": 1.0, "epochs": 60, "learning_rate": 1e-2,
               "num_samples": "null"}
    environment = os.environ | {f"WORKBOOK_{n}": str(tmp_path / n.lower()) for n in ("DATA", "RUNS", "REPORTS")}

    def make(*arguments, **settings):
        text = " ".join(f'{name}="{value}"' for name, value in settings.items())
        done = subprocess.run(["make", "report", f"VENV={sys.prefix}", "FAMILY=hyperbolic", *arguments, f"SET={text}"], cwd=ROOT, env=environment,
                              capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout
    said = make("RUN=test", "PROFILE=hyperbolic_seed", f"DATA_ROOT={tmp_path / 'AudioSet'}", **options)
    assert "10_retrieval_train" not in said, "the frozen model was given"
    found = documents(tmp_path)
    train, evaluate = found["20_hyperbolic_train"], found["21_hyperbolic_evaluate"]
    assert train["parameters"]["temperature"] == 1.0 and train["parameters"]["monitor"] == "loss" and train["protocol"]["seeds"] == [42]
    rows = {m["name"]: m for m in evaluate["metrics"]}
    assert rows["hyperbolic: acc@1"]["n"] == 24 and rows["hyperbolic: acc@1"]["control"] is not None
    file, = (tmp_path / "checkpoints").glob("best_projection_epoch_*.pth")
    own = json.loads((tmp_path / "reports/test/results_hyperbolic.json").read_text())
    assert len(own["predictions"]) == 24 and own["predictions"][0]["ground_truth_labels"][0].startswith("/")

    def evaluate_again(report, **values):
        (tmp_path / "values.yaml").write_text(json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in values.items()}))
        done = subprocess.run([sys.executable, "-m", "lib.workbook.run", "--notebook", ROOT / "notebooks/21_hyperbolic_evaluate.ipynb", "--report",
                               tmp_path / report, "--parameters", tmp_path / "values.yaml"], cwd=ROOT, env=environment, capture_output=True,
                              text=True, timeout=300)
        return done.returncode, done.stdout
    values = {"checkpoint": tmp_path / "clap", "projection_checkpoint": file, "parquet_dir": tmp_path / "AudioSet/eval", "c": 1.0, "temperature": 1.0}
    assert evaluate_again("mine", output_json=str(tmp_path / "mine.json"), top_k=10, **values)[0] == 0
    mine = json.loads((tmp_path / "mine.json").read_text())
    assert mine["model_info"]["c"] == 1.0 and len(mine["predictions"]) == 24 and len(mine["predictions"][0]["top_k_predictions"]) == 10
    files = [str(tmp_path / name) for name in ("mine.json", "reports/test/results_original.json")]
    code, said = evaluate_again("plain", use_hyperbolic=False, compare_files=files, **values)
    assert code == 0, said
    assert json.loads((tmp_path / "plain/results_original.json").read_text())["model_info"]["use_hyperbolic"] is False
    code, said = evaluate_again("wrong", **values | {"c": 0.5})
    assert code == 1 and "c is 0.5" in said and "was trained with c 1" in said


@pytest.mark.slow
def test_stclotho_folder_with_the_original_s_settings(tmp_path):
    """Profile tSALM_triple on a folder in its layout, with tiny encoders: waveforms are read and turned into features in every epoch."""
    from lib.data import triplets
    made = triplets.prepare(num_samples=30, single_clips=0, clip_seconds=2.5, event_seconds=1.1)
    (made.root / "test/triplets/spatial_negative_000003.flac").unlink()
    sizes = ("audio_size=tiny text_size=tiny audio_weights=null text_weights=null embedding_dim=32 epochs=1 warmup_epochs=0.5 decay_epochs=0.5 "
             "batch_size=6 precision=32-true threads=2 workers=1 clip_seconds=2.5")
    environment = os.environ | {f"WORKBOOK_{n}": str(tmp_path / n.lower()) for n in ("DATA", "RUNS", "REPORTS")}
    done = subprocess.run(["make", "report", f"VENV={sys.prefix}", "FAMILY=spatial", "PROFILE=tSALM_triple", "RUN=test", f"DATA_ROOT={made.root}",
                           f"SET={sizes}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = documents(tmp_path)
    rows = {m["name"]: m for m in found["32_spatial_evaluate"]["metrics"]}
    whole = int((made.table["split"] == "test").sum()) // 3
    assert rows["both, text anchor"]["n"] == whole - 1, "the triplet without its spatial negative is left out, and counted"
    parameters = found["31_spatial_train"]["parameters"]
    assert parameters["loss_weights"] == [1.0, 0.5, 0.2, 0.2] and parameters["rotation"] == "none" and parameters["reversal_strength"] == 1.0
    assert "zero-shot direction, joint" not in rows, "there are no clips of one event"
    assert "missing" in (tmp_path / "reports/test/30_spatial_data.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "esc10").is_dir(), reason="the ESC-10 recordings are not beside the project")
def test_real_recordings(tmp_path):
    done = report(tmp_path, "DATASET=esc50", f"DATA_ROOT={SHARED / 'esc10'}", "SET=num_samples=60 positives=labels loss_reduction=rows")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    accuracy = [m for m in documents(tmp_path)["11_retrieval_evaluate"]["metrics"] if m["name"] == "class accuracy"]
    assert len(accuracy) == 1 and accuracy[0]["chance"] == pytest.approx(0.1) and accuracy[0]["interval"][0] < accuracy[0]["value"]
