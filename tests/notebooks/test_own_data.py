"""Notebooks from end to end on data from outside: own recordings, published layouts, the original projects' profiles."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lib.settings import ROOT
from tests import tiny_audioset, tiny_clap
from tests.reports import documents, report

SHARED = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data"))


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
    done = report(tmp_path, "FAMILY=retrieval", "DATASET=folder", f"DATA_ROOT={own}", "SET=" + " ".join(f'{name}="{path}"' for name, path in settings.items()))
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
    done = report(tmp_path, "FAMILY=retrieval", "DATASET=esc50", f"DATA_ROOT={SHARED / 'esc10'}", "SET=num_samples=60 positives=labels loss_reduction=rows")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    accuracy = [m for m in documents(tmp_path)["11_retrieval_evaluate"]["metrics"] if m["name"] == "class accuracy"]
    assert len(accuracy) == 1 and accuracy[0]["chance"] == pytest.approx(0.1) and accuracy[0]["interval"][0] < accuracy[0]["value"]
