import re

import pytest
import yaml

from lib.glossary import ParameterError
from lib.workbook import sources
from lib.workbook.parameters import read_notebook, read_notebooks
from lib.workbook.plan import make_jobs, select


@pytest.fixture
def house(tmp_path, write_notebook):
    """Two families, a shared start (01) and a board (90) that gathers."""
    folder = tmp_path / "notebooks"
    two = "seed = 0  # the seed\nthreads = 2  # threads"
    write_notebook(folder, "00_start")
    write_notebook(folder, "01_data", parameters='seed = 0  # the seed\ndataset = "soundscapes"  # data\ndata_root = None  # folder')
    write_notebook(folder, "10_a_train", parameters=two, family="a", after=["01_data"])
    write_notebook(folder, "11_a_evaluate", parameters="threads = 1  # threads", family="a", after=["10_a_train"])
    write_notebook(folder, "20_b_train", family="b", after=["01_data"])
    write_notebook(folder, "90_board", after=["11_a_evaluate", "20_b_train"])
    (folder / "profiles").mkdir()

    def jobs(profile=None, **choices):
        if profile is not None:
            (folder / "profiles" / "p.yaml").write_text(profile)
        return make_jobs(read_notebooks(folder), profile="p" if profile is not None else None, **choices)

    jobs.folder = folder
    return jobs


def test_a_family_brings_what_it_needs_and_no_other_family(house):
    jobs = {job.id: job for job in house(family="a")}
    assert sorted(jobs) == ["00_start", "01_data", "10_a_train", "11_a_evaluate", "90_board"]
    assert jobs["90_board"].upstream == ["11_a_evaluate"]
    assert [job.id for job in house()][-1] == "90_board" and len(house()) == 6


def test_all_is_every_notebook_and_the_board_comes_last(house):
    everything = house(family="all")
    assert everything == house() and everything[-1].id == "90_board"
    assert sorted(everything[-1].upstream) == ["11_a_evaluate", "20_b_train"]
    with pytest.raises(ParameterError, match="did you mean 'all'"):
        house(family="al")


def test_a_board_alone_depends_on_the_reports_that_it_gathers(house, write_notebook, tmp_path, monkeypatch):
    """A result that comes into another report makes the board be drawn anew; nothing else is run."""
    monkeypatch.setenv("WORKBOOK_REPORTS", str(tmp_path / "reports"))
    write_notebook(house.folder, "90_board", parameters="reports = []  # reports", after=["11_a_evaluate", "20_b_train"])
    whole = tmp_path / "elsewhere" / "results"

    def board(reports):
        job, = house(profile="notebooks: [90_board]", settings={"reports": reports})
        assert job.id == "90_board" and not job.upstream
        return job.key

    before = board(["quick", str(whole.parent)])
    assert board(["quick", str(whole.parent)]) == before != board(["quick"])
    for folder in (tmp_path / "reports/quick/results", whole):
        folder.mkdir(parents=True)
        (folder / "10.json").write_text("{}")
        assert board(["quick", str(whole.parent)]) != before
        before = board(["quick", str(whole.parent)])


def test_a_profile_may_restrict(house):
    assert [job.id for job in house(profile="notebooks: [11_a_evaluate]")] == ["01_data", "10_a_train", "11_a_evaluate"]


def test_what_is_given_is_not_made(house, write_notebook):
    """A notebook whose model comes from elsewhere does not wait for the one that would train it."""
    write_notebook(house.folder, "30_c_train", parameters="checkpoint = None  # a model", family="c", after=["01_data", "10_a_train"],
                   given={"checkpoint": "10_a_train"})
    assert "10_a_train" in [job.id for job in house(family="c")]
    jobs = {job.id: job for job in house(family="c", settings={"checkpoint": "laion/larger_clap_general"})}
    assert "10_a_train" not in jobs and jobs["30_c_train"].upstream == ["01_data"]
    assert "10_a_train" not in [job.id for job in house(family="c", profile="30_c_train: {checkpoint: 'modelscope:laion/larger_clap_general'}")]
    write_notebook(house.folder, "30_c_train", parameters="checkpoint = None  # a model", family="c", given={"chekpoint": "10_a_train"})
    with pytest.raises(ParameterError, match="given.*chekpoint"):
        house(family="c")


def test_precedence_and_threads(house):
    profile = "all: {seed: 1, threads: 4}\n10_a_train: {seed: 2}\n"
    jobs = {job.id: job for job in house(profile=profile)}
    assert (jobs["10_a_train"].parameters, jobs["10_a_train"].threads) == ({"seed": 2, "threads": 4}, 4)
    assert jobs["20_b_train"].parameters == {"seed": 1}
    assert {job.id: job for job in house(profile=profile, settings={"seed": 3})}["10_a_train"].parameters["seed"] == 3


def test_sweep_fans_a_family_out_and_the_board_gathers(house):
    jobs = {job.id: job for job in house(profile="sweep: {seed: [0, 1]}\nnotebooks: [90_board, 11_a_evaluate, 01_data]", family="a")}
    assert sorted(jobs) == ["01_data", "10_a_train.seed=0", "10_a_train.seed=1", "11_a_evaluate.seed=0", "11_a_evaluate.seed=1", "90_board"]
    assert jobs["10_a_train.seed=1"].parameters["seed"] == 1 and jobs["10_a_train.seed=1"].upstream == ["01_data"]
    assert jobs["11_a_evaluate.seed=1"].upstream == ["10_a_train.seed=1"]
    assert jobs["90_board"].upstream == ["11_a_evaluate.seed=0", "11_a_evaluate.seed=1"]


def test_sweep_over_two_parameters_and_one_fixed_on_the_command_line(house):
    profile = "sweep: {seed: [0, 1], threads: [1, 2]}\nnotebooks: [10_a_train]"
    assert len([j for j in house(profile=profile) if j.notebook == "10_a_train"]) == 4
    assert [j.id for j in house(profile=profile, settings={"seed": 5}) if j.notebook == "10_a_train"] == ["10_a_train.threads=1", "10_a_train.threads=2"]


def test_notebooks_downstream_follow_their_combination(house, write_notebook):
    """Two swept parameters of training and one of evaluation; a notebook that fixes a swept one is not multiplied by it."""
    lines = "seed = 0  # the seed\ntau = 0.05  # temperature"
    write_notebook(house.folder, "10_a_train", parameters=lines, family="a", after=["01_data"])
    write_notebook(house.folder, "11_a_evaluate", parameters='split = "test"  # split', family="a", after=["10_a_train"])
    profile = "sweep: {seed: [0, 1, 2], tau: [0.1, 1], split: [test, val]}\n20_b_train: {seed: 7}\n"
    jobs = {job.id: job for job in house(profile=profile)}
    trained = [job for job in jobs.values() if job.notebook == "10_a_train"]
    scored = [job for job in jobs.values() if job.notebook == "11_a_evaluate"]
    assert (len(trained), len(scored), len([j for j in jobs.values() if j.notebook == "20_b_train"])) == (6, 12, 1)
    assert "10_a_train.seed=2+tau=1.0" in jobs and jobs["20_b_train"].parameters["seed"] == 7
    for job in scored:
        (before,) = job.upstream
        assert job.parameters["split"] == job.combination["split"] and jobs[before].combination.items() <= job.combination.items()
    assert len(jobs["90_board"].upstream) == 13


def test_values_that_look_alike_are_jobs_of_their_own(house, write_notebook, tmp_path):
    write_notebook(house.folder, "10_a_train", parameters='text_weights = None  # weights', family="a")
    odd = ["a/b", "a-b", "a b", "a{b}", "'a' \"b\"", "-rf", "../x", "ü", "x" * 300, "x" * 301, "a+b=c", None, "None", "1", "1.0"]
    jobs = house(profile=yaml.safe_dump({"sweep": {"text_weights": odd}, "notebooks": ["10_a_train"]}))
    assert len({job.id.lower() for job in jobs}) == len(odd) and [job.parameters["text_weights"] for job in jobs] == odd
    for job in jobs:
        assert re.fullmatch(r"10_a_train\.text_weights=[A-Za-z0-9_.=+-]*", job.id) and len(job.id) < 150, job.id


@pytest.mark.parametrize("sweep", ["tau: [1, 1.0]", "seed: [3, 4, 3]", "fit_splits: [[train], [train]]"])
def test_a_value_listed_twice_is_refused(house, write_notebook, sweep):
    lines = 'seed = 0  # seed\ntau = 1.0  # temperature\nfit_splits = ["train"]  # splits'
    write_notebook(house.folder, "10_a_train", parameters=lines, family="a")
    with pytest.raises(ParameterError, match="sweep: .* twice; each value is one job"):
        house(profile=f"sweep: {{{sweep}}}")


@pytest.mark.parametrize("lines, count", [("seed = 0  # seed", 0), ('device = "auto"  # where', 1),
                                          ('device = "cpu"  # where\ndevices = 2  # processes', 0),
                                          ('device = "cuda"  # where\ndevices = 2  # processes', 2)])
def test_gpus_of_a_job(house, write_notebook, lines, count):
    write_notebook(house.folder, "10_a_train", parameters=lines, family="a")
    assert {job.notebook: job.gpu for job in house()}["10_a_train"] == count


@pytest.mark.parametrize("profile, words", [
    ("all: {num_samples: 3}", "'num_samples'"), ("12_a: {seed: 1}", "no notebook '12_a'"), ("sweep: {seed: 3}", "sweep seed must be a list"),
    ("sweep: {seed: [1, x]}", "seed.*'x'"), ("notebooks: [10_a_trian]", "did you mean '10_a_train'"), ("sweep: {dataset: [esc50]}", "'dataset'"),
    ("[1, 2]", "must be a mapping"), ("all: seed", "must map parameters")])
def test_bad_profiles_are_refused(house, profile, words):
    with pytest.raises(ParameterError, match=words):
        house(profile=profile)


def test_circles_are_refused(tmp_path, write_notebook):
    write_notebook(tmp_path, "10_x", after=["11_x"])
    write_notebook(tmp_path, "11_x", after=["10_x"])
    with pytest.raises(ParameterError, match="circle: 10_x -> 11_x -> 10_x"):
        select(read_notebooks(tmp_path), None, None)


def test_key_follows_parameters_notebook_and_data(house, tmp_path):
    root = tmp_path / "clips"
    root.mkdir()
    (root / "-a.wav").write_bytes(b"1")

    def keys(**choices):
        return {job.id: job.key for job in house(data_root=str(root), **choices)}

    before = keys()
    assert keys() == before
    changed = keys(settings={"seed": 1})
    assert changed["01_data"] != before["01_data"] and changed["11_a_evaluate"] == before["11_a_evaluate"]
    (root / "b.wav").write_bytes(b"2")
    changed = keys()
    assert changed["01_data"] != before["01_data"] and changed["20_b_train"] == before["20_b_train"]


def test_source_digest_follows_imports_and_nothing_else(tmp_path, write_notebook):
    root = tmp_path / "program"
    files = {"lib/__init__.py": "", "lib/a/__init__.py": "", "lib/a/one.py": "from . import two", "lib/a/two.py": "from lib.b import thing",
             "lib/b.py": "thing = 1", "lib/c.py": "", "lib/d.py": "", "lib/e/f.yaml": "1", "lib/g.yaml": "1", "requirements.txt": "x==1"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    notebook = read_notebook(write_notebook(tmp_path, "10_x", "%matplotlib inline\nfrom lib.a.one import x", uses=["lib/c.py", "lib/e", "lib/g.yaml"]))
    digest = sources.source_digest(notebook, root)
    for name in ("lib/b.py", "lib/a/two.py", "lib/a/__init__.py", "lib/c.py", "lib/e/f.yaml", "lib/g.yaml", "requirements.txt"):
        (root / name).write_text(files[name] + "\n# edited")
        assert sources.source_digest(notebook, root) != digest, name
        (root / name).write_text(files[name])
    (root / "lib/d.py").write_text("# edited")
    assert sources.source_digest(notebook, root) == digest
