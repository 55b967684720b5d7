import copy
import json

import pytest

from lib.files import write_json
from lib.workbook import findings, protocols, results, scoreboard

NOTEBOOK = "11_retrieval_evaluate"
PROTOCOL = {"split": "test", "n": 20, "positives": "clip", "prompts": [], "manifest_fingerprint": "aa", "seeds": [13],
            "weights_digest": "w1", "front_end": {"n_mels": 64}, "fit_splits": ["train"]}


def score(name="mAP@10", value=0.5, **changes):
    return results.metric(name, value, **dict(n=100, split="test", chance=0.1, ceiling=0.9, interval=(value - 0.1, value + 0.1), headline=True) | changes)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(report, job, metrics, protocol=..., family=..., ...) adds a result; write.board(*reports) gathers."""
    monkeypatch.setenv("WORKBOOK_REPORTS", str(tmp_path))

    def add(report, job, metrics, protocol=None, family="retrieval", dataset="soundscapes"):
        monkeypatch.setenv("WORKBOOK_REPORT", str(tmp_path / report))
        monkeypatch.setenv("WORKBOOK_JOB", job)
        results.write(job.partition(".")[0], metrics, family=family, dataset=dataset, protocol=PROTOCOL | (protocol or {}))

    add.board = lambda *reports: scoreboard.gather([tmp_path / report for report in reports])
    add.folder = tmp_path
    return add


def test_runs_of_one_protocol_share_a_column_whatever_their_model(write):
    write("one", NOTEBOOK, [score(value=0.5)])
    write("two", NOTEBOOK, [score(value=0.6)], {"seeds": [14], "weights_digest": "w2", "front_end": {"n_mels": 128}, "fit_splits": ["train", "val"]})
    board = write.board("one", "two")
    assert list(scoreboard.compare(board, "mAP@10")["value"]) == [0.5, 0.6]
    table = scoreboard.columns(board, "retrieval")
    assert list(table.columns) == [("mAP@10", "soundscapes test, n=100", board.table["protocol"][0])]
    assert [cell for cell, in table.to_numpy()] == ["0.500 [0.400, 0.600]", "0.600 [0.500, 0.700]", "0.100", "0.900"]


def test_validation_is_shown_only_where_nothing_was_evaluated(write):
    write("one", "10_retrieval_train", [score(split="val")])
    assert [column[1] for column in scoreboard.columns(write.board("one"), "retrieval")] == ["soundscapes val, n=100"]
    write("one", NOTEBOOK, [score(), score("R@1", headline=False)])
    board = write.board("one")
    assert [column[:2] for column in scoreboard.columns(board, "retrieval")] == [("mAP@10", "soundscapes test, n=100")]
    assert scoreboard.columns(board, "retrieval", headline_only=False).shape == (4, 3)


@pytest.mark.parametrize("entry, protocol, metric, dataset", [
    ("manifest_fingerprint", {"manifest_fingerprint": "bb"}, {}, "soundscapes"), ("split", {}, {"split": "val"}, "soundscapes"),
    ("n", {}, {"n": 101}, "soundscapes"), ("clips", {"n": 21}, {}, "soundscapes"), ("prompts", {"prompts": ["a sound of {}"]}, {}, "soundscapes"),
    ("positives", {"positives": "labels"}, {}, "soundscapes"), ("dataset", {}, {}, "esc50"), ("an entry nobody knows", {"an entry nobody knows": 1}, {}, "soundscapes")])
def test_another_protocol_is_refused_by_name_and_gets_its_own_column(write, entry, protocol, metric, dataset):
    write("one", NOTEBOOK, [score()])
    write("two", NOTEBOOK, [score(**metric)], protocol, dataset=dataset)
    board = write.board("one", "two")
    with pytest.raises(protocols.ProtocolError, match=rf"one/{NOTEBOOK}.*two/{NOTEBOOK}.*differ in {entry}: "):
        scoreboard.compare(board, "mAP@10")
    assert scoreboard.columns(board, "retrieval", headline_only=False).shape[1] == 2 and len(board.protocols) == 2


def test_errors_in_db_are_measured_on_the_front_end_so_it_counts(write):
    for report, mels in (("one", 64), ("two", 128)):
        write(report, "51_tokenizer_evaluate", [score("bsq 18 bits: MAE (dB)")], {"front_end": {"n_mels": mels}}, family="tokenizer")
    with pytest.raises(protocols.ProtocolError, match="front_end"):
        scoreboard.compare(write.board("one", "two"), "MAE (dB)")


def test_models_of_one_result_are_rows_and_their_difference_is_another_metric(write):
    write("one", "21_hyperbolic_evaluate", [score("hyperbolic: acc@1"), score("cosine: acc@1", 0.4), score("hyperbolic - cosine: acc@1", 0.1)],
          family="hyperbolic")
    board = write.board("one")
    assert list(scoreboard.compare(board, "acc@1").index.get_level_values("scored")) == ["hyperbolic", "cosine"]
    assert list(scoreboard.compare(board, "acc@1, difference")["value"]) == [0.1]
    assert protocols.scored("audio: loss") == ("", "audio: loss") and protocols.scored("top-1, both") == ("", "top-1, both")
    with pytest.raises(KeyError, match="acc@2.*acc@1"):
        scoreboard.compare(board, "acc@2")


def test_published_rows_enter_a_column_of_their_own_protocol_only(write):
    clotho = {"n": 1045}
    write("one", NOTEBOOK, [score(n=5225)], clotho, dataset="clotho")
    write("two", NOTEBOOK, [score(n=5225)], clotho, dataset="soundscapes")
    for report, values in (("one", [0.5, 0.2783, 0.2876, 0.3097, 0.3523]), ("two", [0.5])):
        table = scoreboard.compare(write.board(report), "mAP@10")
        assert list(table["value"]) == values and list(table.index.get_level_values("source")).count("ours") == 1
        assert sum("(published)" in run for _, run, _ in scoreboard.columns(write.board(report), "retrieval").index) == len(values) - 1
    write("one", NOTEBOOK, [score(n=5000)], {"n": 1000}, dataset="clotho")      # a part of it is another protocol
    assert list(scoreboard.compare(write.board("one"), "mAP@10")["value"]) == [0.5]


def test_published_rows_name_their_source_and_lie_in_range():
    rows = scoreboard.published()
    assert {row["family"] for row in rows} == set(findings.FAMILIES) and len(rows) > 50
    for row in rows:
        assert row["source"] and row["model"] and row["protocol"]["dataset"], row
        assert 0 < row["value"] <= (180 if "degrees" in row["metric"] else 1), row
        assert row["protocol"].get("metric", row["metric"]) == row["metric"], row
    assert len({(row["model"], row["metric"], json.dumps(row["protocol"])) for row in rows}) == len(rows)


def test_only_planned_results_of_families_are_gathered_and_times_never(write):
    write("one", NOTEBOOK, [score()])
    write("one", "91_performance", [score("times faster")], family="performance")
    write("one", "00_start_here", [score()], family=None)
    write("one", "10_retrieval_train", [score()])
    planned = [{"id": name, "notebook": name, "family": family, "combination": {}} for name, family in
               ((NOTEBOOK, "retrieval"), ("91_performance", "performance"), ("00_start_here", None), ("51_tokenizer_evaluate", "tokenizer"))]
    write_json(write.folder / "one" / "plan.json", {"jobs": planned})
    board = write.board("one")
    assert list(board.documents) == [("one", NOTEBOOK)] and list(board.jobs["one"]) == [NOTEBOOK, "51_tokenizer_evaluate"]
    (write.folder / "one" / "plan.json").unlink()
    assert sorted(job for _, job in write.board("one").documents) == ["10_retrieval_train", NOTEBOOK]


def test_reports_are_named_and_refused_when_they_are_not_there(write):
    write("one", NOTEBOOK, [score()])
    assert scoreboard.folders(["one", str(write.folder / "other")]) == [write.folder / "one", write.folder / "other"]
    with pytest.raises(FileNotFoundError, match="no report in .*other"):
        write.board("one", "other")
    write("sub/one", NOTEBOOK, [score()])
    with pytest.raises(ValueError, match="two reports are called 'one'"):
        write.board("one", "sub/one")


def test_files_are_the_same_for_results_that_differ_in_provenance_only(write, tmp_path):
    texts = []
    for clone in ("a", "b"):
        write(f"{clone}/quick", "21_hyperbolic_evaluate", [score("hyperbolic: acc@1", 1 / 3), score("cosine: acc@1", 2 / 3)], family="hyperbolic")
        write(f"{clone}/quick", NOTEBOOK, [score(value=0.1 + 0.2), score("R@1", interval=None, chance=None)])
        path = tmp_path / clone / "quick/results" / f"{NOTEBOOK}.json"
        document = results.read(path)
        changed = copy.deepcopy(document)
        changed["provenance"] |= {"host": clone, "started": clone, "wall_seconds": 1.0 if clone == "a" else 2.0, "commit": clone * 40}
        write_json(path, changed)
        names = scoreboard.write(write.board(f"{clone}/quick"), tmp_path / clone)
        texts.append([(tmp_path / clone / name).read_bytes() for name in names])
    assert texts[0] == texts[1] and b"0.30000000000000004" in texts[0][0] and str(tmp_path).encode() not in b"".join(texts[0])
    assert [row["metric"] for row in json.loads(texts[0][1])["rows"]] == ["acc@1", "acc@1", "mAP@10", "R@1"]


def test_a_sentence_for_every_family_says_what_the_intervals_say(write):
    def gain(name, value, low, high, **changes):
        return score(name, value, interval=(low, high), chance=None, ceiling=None, **changes)

    write("one", NOTEBOOK, [score(value=0.5, baseline=0.2, control=0.05)])
    write("one", "21_hyperbolic_evaluate", [gain("hyperbolic - cosine: mAP samples", -0.002, -0.02, 0.02), score("hyperbolic: mAP samples", 0.12, interval=None)],
          family="hyperbolic")
    write("one", "44_audiovisual_evaluate", [gain("few labels, gain of stage 1 only", -0.14, -0.25, -0.01), gain("few labels, gain of stages 1 + 2", 0.19, 0.1, 0.3)],
          family="audiovisual")
    write("one", "51_tokenizer_evaluate", [gain("bsq 18 - vq 18: MAE (dB)", 0.66, 0.59, 0.75, higher_is_better=False),
                                           score("bsq 18 bits: MAE (dB)", 3.9, chance=None, ceiling=3.0, baseline=12.75, higher_is_better=False)], family="tokenizer")
    told = findings.sentences(write.board("one"))
    assert [text.partition(":")[0] for text in told] == [entry[0] for entry in findings.FAMILIES.values()]
    assert "mAP@10 0.500 [0.400, 0.600], better than chance 0.100, better than baseline 0.200 (control 0.050, ceiling 0.900)" in told[0]
    assert "-0.002 [-0.020, 0.020], no difference shown" in told[1] and "0.120, beside 0.100, no interval and so no verdict" in told[1]
    assert "32_spatial_evaluate has no result here" in told[2]
    assert "alone -0.140 [-0.250, -0.010], worse" in told[3] and "by both +0.190 [0.100, 0.300], better" in told[3]
    assert "+0.660 [0.590, 0.750], worse" in told[4] and "3.900 [3.800, 4.000], better than baseline 12.750" in told[4]


@pytest.mark.parametrize("low, high, higher, word", [(0.2, 0.3, True, "better"), (0.2, 0.3, False, "worse"), (0.0, 0.05, True, "worse"),
                                                     (0.0, 0.05, False, "better"), (0.05, 0.1, True, "same"), (0.1, 0.2, False, "same")])
def test_a_verdict_needs_the_whole_interval(low, high, higher, word):
    assert findings.verdict({"interval": [low, high], "higher_is_better": higher}, 0.1, "same", "{}") == word


def test_seeds_of_a_sweep_are_one_sentence_a_variant_and_a_skipped_notebook_says_why(write):
    from scipy import stats

    values = {(13, 0.05): 0.5, (14, 0.05): 0.6, (15, 0.05): None, (13, 1.0): 0.2}
    jobs = []
    for (seed, tau), value in values.items():
        job = f"{NOTEBOOK}.seed={seed}+tau={tau}"
        jobs.append({"id": job, "notebook": NOTEBOOK, "family": "retrieval", "combination": {"seed": seed, "tau": tau}})
        if value:
            write("one", job, [score(value=value)])
    jobs.append({"id": "44_audiovisual_evaluate", "notebook": "44_audiovisual_evaluate", "family": "audiovisual", "combination": {}})
    write("one", "44_audiovisual_evaluate", [], {"skipped": "no videos"}, family=None)
    write_json(write.folder / "one" / "plan.json", {"jobs": jobs})
    board = write.board("one")
    told = findings.sentences(board)
    low, high = stats.t.interval(0.95, 1, loc=0.55, scale=stats.sem([0.5, 0.6]))
    assert "(tau 0.05, mean of 2 seeds of 3, the others are missing; interval over seeds, not clips)" in told[0] and f"0.550 [{low:.3f}, {high:.3f}], not told from chance" in told[0]
    assert "(tau 1.0) text to audio mAP@10 0.200" in told[1] and "44_audiovisual_evaluate was skipped: no videos." in told[4]
    assert [row["name"] for row in findings.drawn(board, "retrieval")] == ["mAP@10 (tau 0.05, mean of 2 seeds of 3, the others are missing; interval over seeds, not clips)", "mAP@10 (tau 1.0)"]


def test_sentences_are_escaped():
    assert findings.as_html(["A: <b> & c."]) == "<ul><li><b>A</b>: &lt;b&gt; &amp; c.</li></ul>"
