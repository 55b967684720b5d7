import math
import re

import pytest

from lib.workbook import index, results
from lib.files import write_json

EVIL = '<script>alert("x")</script>'


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(id, state=..., value=..., upstream=...) adds a job to a report; make.build() builds it and returns (text, unfinished)."""
    jobs = []

    def add(name, state="ok", value=0.5, started=10.0, finished=20.0, combination=None, upstream=(), key="k", listen=(), result=True, dataset=None, **changes):
        jobs.append({"id": name, "notebook": name.partition(".")[0], "title": f"About {name} {EVIL}", "family": None, "combination": combination or {},
                     "upstream": list(upstream), "key": "k"} | changes)
        if state:
            write_json(tmp_path / "status" / f"{name}.json", {"key": key, "state": state, "started": started, "finished": finished, "seconds": 1.0,
                                                            "failure": f"Traceback {EVIL}" if state == "failed" else None})
        if result:
            monkeypatch.setenv("WORKBOOK_REPORT", str(tmp_path))
            monkeypatch.setenv("WORKBOOK_JOB", name)
            score = results.metric(f"mAP {EVIL}", value, n=7, split="test", headline=True, chance=0.02, ceiling=0.9, baseline=0.3, interval=(0.4, 0.6))
            results.write(name.partition(".")[0], [score], dataset=dataset, artifacts={"listen": list(listen)})

    def build():
        page, unfinished = index.build(tmp_path, {"run": "quick", "family": None, "profile": None, "dataset": None, "jobs": jobs})
        return page.read_text(), unfinished

    add.build = build
    return add


def test_numbers_stand_beside_chance_baseline_ceiling_and_interval(make):
    make("10_a")
    text, unfinished = make.build()
    assert not unfinished and "1 of 1 jobs succeeded" in text
    cells = re.sub(r"<[^>]+>", " ", text)
    for number in ("0.500", "0.400 to 0.600", "0.020", "0.300", "0.900", "7"):
        assert number in cells


def test_everything_is_escaped_and_nothing_is_loaded_from_elsewhere(make):
    clip = {"title": EVIL, "caption": EVIL, "score": 0.25}
    make("10_a", listen=[clip | {"audio": "data:audio/ogg;base64,AAAA"}, clip | {"audio": "clips/-a b\"><img src=x>.ogg"}, clip | {"audio": "javascript:alert(1)"},
                         clip | {"audio": 'data:audio/ogg;base64,"><script>'}])
    make("11_b", state="failed", result=False)
    text, _ = make.build()
    assert "<script" not in text and "<img" not in text
    assert 'src="data:audio/ogg;base64,AAAA"' in text and 'src="clips/-a%20b%22%3E%3Cimg%20src%3Dx%3E.ogg"' in text
    assert "javascript:" not in text and text.count("<audio") == 4
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)


def test_stale_results_are_not_shown_as_success(make):
    make("10_a", state="failed")                                        # its marker is a left-over
    make("11_a", upstream=["10_a"])                                     # so is this one's
    make("20_b", key="other")                                           # of other parameters
    make("30_c", state="running")                                       # killed
    make("40_d", started=100.0, finished=200.0)
    make("41_d", upstream=["40_d"], started=30.0)                       # older than what it needs
    make("50_e", result=False)
    text, unfinished = make.build()
    assert sorted(unfinished) == ["10_a", "11_a", "20_b", "30_c", "41_d", "50_e"]
    assert unfinished["11_a"] == "not run: it needs 10_a" and "killed" in unfinished["30_c"] and "out of date" in unfinished["41_d"]
    assert "Traceback &lt;script&gt;" in text and text.count('class="card failed"') == 2


def test_sweeps_show_mean_and_t_interval_over_seeds_only(make):
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        make(f"10_a.seed={seed}", combination={"seed": seed, "threads": 1}, value=value)
    make("10_a.seed=9", combination={"seed": 0, "threads": 2}, value=0.1)
    text, _ = make.build()
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert f"{0.6 - half:.3f} to {0.6 + half:.3f}" in text and "0.500, 0.600, 0.700" in text and "3 of 3" in text and "1 of 1" in text


def test_a_group_is_everything_but_the_seed_and_tells_what_is_missing(make):
    """Two parameters, three seeds: one failed run stays out of the mean; a group without any run is there as well."""
    for tau, values in (("1", (0.2, 0.4, None)), (1.0, (0.5, 0.6, 0.7)), (0.05, (None, None, None))):
        for seed, value in enumerate(values):
            make(f"10_a.{type(tau).__name__}{tau}+{seed}", combination={"tau": tau, "seed": seed}, value=value or 0.0,
                 state="ok" if value else "failed", result=bool(value))
    text, unfinished = make.build()
    table = text[text.index("<h2>Over several runs"):text.index("<h2>Notebooks")]
    rows = [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
            for row in re.findall(r"<tr><td>.*?</tr>", table)]
    assert len(unfinished) == 4 and len(rows) == 3 and "<script" not in table
    assert [row[0].rpartition(" · ")[2] for row in rows] == ["tau 1", "tau 1.0", "tau 0.05"]
    assert rows[0][2:] == ["0.300", "0.020", "-0.971 to 1.571", "0.200, 0.400", "2 of 3: 1 missing", ""]
    assert rows[1][2:] == ["0.600", "0.020", "0.352 to 0.848", "0.500, 0.600, 0.700", "3 of 3", "+0.250 [-0.385 to 0.885] 2 of 3 pairs: 1 missing"]
    assert rows[2][1:] == ["", "0 of 3: 3 missing", ""]


def test_variants_of_another_protocol_are_not_compared(make):
    for dataset in ("a", "b", "c"):
        make(f"10_a.{dataset}", combination={"dataset": dataset}, dataset=dataset if dataset != "c" else "a")
    text, _ = make.build()
    assert text.count("not compared: other protocol") == 1 and "differ in dataset" in text
    assert "+0.000 1 of 1 pairs" in text, "one pair has a difference and no interval"
