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
@pytest.mark.skipif(not (SHARED / "esc10").is_dir(), reason="the ESC-10 recordings are not beside the project")
def test_real_recordings(tmp_path):
    done = report(tmp_path, "DATASET=esc50", f"DATA_ROOT={SHARED / 'esc10'}", "SET=num_samples=60 positives=labels loss_reduction=rows")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    accuracy = [m for m in documents(tmp_path)["11_retrieval_evaluate"]["metrics"] if m["name"] == "class accuracy"]
    assert len(accuracy) == 1 and accuracy[0]["chance"] == pytest.approx(0.1) and accuracy[0]["interval"][0] < accuracy[0]["value"]
