import pytest

from lib.glossary import ParameterError
from lib.workbook.parameters import load_yaml, parse_settings, read_notebook, read_notebooks


def test_defaults_and_comments_are_read_without_running(tmp_path, write_notebook):
    text = "seed = -1  # the seed, # and more\ndata_root = None  # folder\n\nthreads: int = 2  # threads\n"
    notebook = read_notebook(write_notebook(tmp_path, "01_data", parameters=text, family="x", after=["00_a"], threads=2, uses=["lib/data"]))
    assert notebook.parameter_lines == {"seed": (-1, "the seed, # and more"), "data_root": (None, "folder"), "threads": (2, "threads")}
    assert (notebook.title, notebook.family, notebook.after, notebook.threads) == ("About 01_data", "x", ("00_a",), 2)


@pytest.mark.parametrize("line", ["seed = 1 + len('a')  # derived", "import os", "seed, threads = 1, 2  # pair", "print(1)"])
def test_parameters_cell_holds_literals_only(tmp_path, write_notebook, line):
    with pytest.raises(ParameterError, match="01_data.ipynb: the parameters cell"):
        read_notebook(write_notebook(tmp_path, "01_data", parameters=line)).defaults


def test_outputs_do_not_change_the_source(tmp_path, write_notebook):
    path = write_notebook(tmp_path, "01_data")
    before = read_notebook(path).source
    path.write_text(path.read_text().replace('"execution_count": null', '"execution_count": 7'))
    assert read_notebook(path).source == before
    path.write_text(path.read_text().replace("seed = 0", "seed = 1"))
    assert read_notebook(path).source != before


def test_bad_places_are_named(tmp_path, write_notebook):
    write_notebook(tmp_path, "10_train", after=["01_dat"])
    with pytest.raises(ParameterError, match="10_train.ipynb.*'01_dat'"):
        read_notebooks(tmp_path)
    with pytest.raises(ParameterError, match="unknown key 'familly'"):
        read_notebook(write_notebook(tmp_path, "11_x", familly="a"))
    (tmp_path / "12_x.ipynb").write_text("{")
    with pytest.raises(ParameterError, match="12_x.ipynb: not readable"):
        read_notebook(tmp_path / "12_x.ipynb")
    with pytest.raises(ParameterError, match="no notebooks"):
        read_notebooks(tmp_path / "profiles")


def test_settings_are_read_as_yaml():
    text = """rate=1e-3 seed=3 name="two words" flag=true none=null list="[1, 2]" path=-x exact=1.5"""
    assert parse_settings(text) == {"rate": 0.001, "seed": 3, "name": "two words", "flag": True, "none": None, "list": [1, 2], "path": "-x", "exact": 1.5}


@pytest.mark.parametrize("text", ["seed", "=3", "a-b=1", 'seed="1'])
def test_settings_that_are_none_are_refused(text):
    with pytest.raises(ParameterError, match="name=value"):
        parse_settings(text)


def test_yaml_key_twice_and_python_objects_are_refused():
    with pytest.raises(ParameterError, match="'seed' is given twice"):
        load_yaml("seed: 1\nseed: 2\n", "profile x")
    with pytest.raises(ParameterError, match="profile x"):
        load_yaml("a: !!python/object/apply:os.getpid []", "profile x")
