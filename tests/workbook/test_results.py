import json

import numpy as np
import pytest

from lib.files import write_json
from lib.workbook import results


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_REPORT", str(tmp_path))
    monkeypatch.delenv("WORKBOOK_JOB", raising=False)
    return tmp_path


def one(**changes):
    return results.metric("mAP@10", **{"value": np.float32(0.5), "n": np.int64(3), "split": "test", "interval": (0.4, 0.6), "chance": 0.01} | changes)


def test_round_trip_with_numpy_paths_and_odd_text(folder):
    path = results.write("10_a_train", [one()], family="a", dataset="esc50", protocol={"seeds": (1, 2), "scores": np.arange(2)},
                         artifacts={"checkpoint": folder / "best", "listen": [{"title": "<dog> ü", "audio": "clips/-1.ogg", "score": np.float64(1)}]},
                         parameters={"seed": 0, "data_root": None})
    document = results.read(path)
    assert path == folder / "results" / "10_a_train.json"
    assert document["metrics"][0]["value"] == 0.5 and document["metrics"][0]["interval"] == [0.4, 0.6]
    assert document["protocol"] == {"seeds": [1, 2], "scores": [0, 1]} and document["artifacts"]["checkpoint"] == str(folder / "best")
    assert {"python", "torch", "transformers"} <= document["versions"].keys()
    assert document["provenance"]["cpu_seconds"] > 0 and document["provenance"]["peak_memory_mb"] > 1


def test_equal_runs_are_equal_but_for_provenance(folder):
    first = results.read(results.write("10_a_train", [one()]))
    second = results.read(results.write("10_a_train", [one()]))
    assert results.stable(first) == results.stable(second) and "versions" in results.stable(first)
    assert not {"commit", "host", "wall_seconds", "started"} & results.stable(first).keys()
    assert results.stable(results.read(results.write("10_a_train", [one(value=0.6)]))) != results.stable(first)


@pytest.mark.parametrize("changes, words", [({"value": float("nan")}, "mAP@10.*value is nan"), ({"chance": float("inf")}, "chance"),
                                            ({"interval": (0.6, 0.4)}, "interval must be")])
def test_metrics_that_are_none_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        one(**changes)


@pytest.mark.parametrize("arguments, words", [
    ({"metrics": [{"name": "x", "value": 1}]}, "metrics.0: 'n' is a required"), ({"metrics": [one(n=0)]}, "metrics.0.n"),
    ({"metrics": [], "protocol": {"loss": float("nan")}}, "result.protocol.loss: nan"), ({"metrics": [], "artifacts": {"x": object()}}, "result.artifacts.x"),
    ({"metrics": [], "artifacts": {"listen": [{"title": "x"}]}}, "artifacts.listen.0")])
def test_results_that_do_not_fit_are_refused_and_leave_nothing(folder, arguments, words):
    with pytest.raises(ValueError, match=words):
        results.write("10_a_train", **arguments)
    assert not list(folder.rglob("*.json"))


def test_bad_names_and_damaged_files_are_named(folder):
    with pytest.raises(ValueError, match="notebook"):
        results.write("train", [])
    path = results.write("10_a_train", [])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))
    with pytest.raises(ValueError, match="10_a_train.json.*run its notebook again"):
        results.read(path)


def test_upstream_follows_the_combination(folder, monkeypatch):
    """11 has a swept parameter of its own (split), 12 does not come from 10 directly, 90 gathers."""
    with pytest.raises(FileNotFoundError, match="run notebook 10_a_train first"):
        results.upstream("10_a_train")
    monkeypatch.delenv("WORKBOOK_JOB", raising=False)
    results.write("10_a_train", [one(value=0.5)])
    assert results.upstream("10_a_train")["metrics"][0]["value"] == 0.5
    combinations = {"10_a_train": [{"seed": 1}, {"seed": 2}], "12_a": [{"seed": 2}], "90_board": [{}],
                    "11_a_evaluate": [{"seed": 2, "split": "val"}, {"seed": 1, "split": "test"}]}
    jobs = [{"id": f"{name}.{number}", "notebook": name, "combination": combination}
            for name, several in combinations.items() for number, combination in enumerate(several)]
    write_json(folder / "plan.json", {"jobs": jobs})
    for job in jobs[:2]:
        monkeypatch.setenv("WORKBOOK_JOB", job["id"])
        results.write("10_a_train", [one(value=job["combination"]["seed"])])
    for job in (job for job in jobs[2:] if job["combination"]):
        monkeypatch.setenv("WORKBOOK_JOB", job["id"])
        assert results.upstream("10_a_train")["metrics"][0]["value"] == job["combination"]["seed"]
    monkeypatch.setenv("WORKBOOK_JOB", "90_board.0")
    with pytest.raises(ValueError, match="gathers 2 runs of 10_a_train.*10_a_train.0, 10_a_train.1"):
        results.upstream("10_a_train")


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    from lib.workbook import provenance
    assert provenance.git_state(tmp_path) == ("unknown", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state() == ("unknown", None)


def test_start_prints_versions_and_a_report_without_machine_path(folder, capsys):
    from lib import workbook
    workbook.start("10_a_train")
    text = capsys.readouterr().out
    assert all(word in text for word in ("python", "torch", "transformers", "devices", "threads", "commit")) and str(folder) not in text


def test_times_are_compared_by_what_was_measured(folder):
    """Results that are times differ from run to run: what is stable of them is which ones there are."""
    other = results.metric("another", 1.0, n=1, split="test")
    timed, again, fewer = (results.read(results.write("91_performance", rows, protocol={"measures": "times"}, artifacts={"seconds": len(rows)}))
                           for rows in ([one(value=0.6), other], [other, one(value=0.7)], [one(value=0.6)]))
    assert results.stable(timed) == results.stable(again) != results.stable(fewer)


def test_result_of_a_job_of_a_report(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBOOK_REPORT", str(tmp_path))
    results.write("01_data", [results.metric("clips", 3.0, n=3, split="all")])
    assert results.of(tmp_path, "01_data")["metrics"][0]["value"] == 3.0
    with pytest.raises(FileNotFoundError, match="02_none has no result in"):
        results.of(tmp_path, "02_none")
