import ast
import os

import pytest
import yaml

from lib.config import RunConfig
from lib.files import user_path
from lib.glossary import PARAMETERS, ParameterError, check
from lib.workbook.parameters import load_yaml, parse_settings, read_notebook, read_notebooks, read_profile, resolve_values


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


# ---- paths: what a person writes, in a notebook cell (Python), a profile (YAML) and a command line

@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A home folder with `data/new clips`, and a working folder beside it."""
    folder = tmp_path / "home" / "data" / "new clips"
    folder.mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return folder


SPELLINGS = ["~/data/new clips", "~/data//new clips/", "~\\data\\new clips", "~\\\\data\\\\new clips", "../home/data/new clips",
             "..\\home\\data\\new clips"]


@pytest.mark.parametrize("text", SPELLINGS)
def test_one_folder_in_every_spelling_and_every_place(clips, text):
    """The same folder, as text, from a Python literal, a YAML document in each of its quotings, SET and --data-root."""
    assert os.path.samefile(user_path(text), clips)
    doubled = text.replace("\\", "\\\\")
    yamls = [f"data_root: {text}", f"data_root: '{text}'", f'data_root: "{doubled}"']
    settings = [f'seed=1 data_root="{text}"', f"data_root='{text}' seed=1"]
    given = [ast.literal_eval(f'"{doubled}"'), text, *(load_yaml(line, "x")["data_root"] for line in yamls),
             *(parse_settings(line)["data_root"] for line in settings)]
    for value in given:
        check({"data_root": value}, "here")
        RunConfig(data_root=value)
        resolved = resolve_values({"data_root": value, "epochs": 1, "weight_decay": 1})
        assert resolved == {"data_root": str(user_path(text).absolute()), "epochs": 1, "weight_decay": 1.0}


@pytest.mark.parametrize("name", ["-o", "it's \"odd\" <b>", "Ã\x85ngstrÃ¶m", "back\\slash", "a: #1", "ﬁ ☃"])
def test_odd_names_survive_the_way_to_a_job(clips, name):
    folder = clips / name
    folder.mkdir()
    (clips / "back" / "slash").mkdir(parents=True)           # the name as it is written comes first
    value = resolve_values({"data_root": str(folder)})
    assert load_yaml(yaml.safe_dump(value), "values.yaml") == value == {"data_root": str(folder)}
    check(value, "a job")
    os.chdir(clips)
    assert resolve_values({"data_root": name}) == value


@pytest.mark.parametrize("literal, forward", [
    (r'"C:\new\table"', "C:/new/table"), (r'"C:\data\\x\rain\fan\bird\alarm\voice"', "C:/data/x/rain/fan/bird/alarm/voice"),
    (r'"C:\0\1\x1f"', "C:/0/1/x1f"), (r"'it\'s \"odd\"\new'", 'it\'s "odd"/new')])
def test_an_unescaped_backslash_is_refused_with_the_right_spelling(clips, literal, forward):
    value = ast.literal_eval(literal)
    for name in ("data_root", "checkpoint", "audio_weights", "text_weights"):
        with pytest.raises(ParameterError) as caught:
            check({name: value}, "notebook 01")
        before, shown = str(caught.value).split("; write ")
        assert before.startswith(f"notebook 01: parameter {name} ") and "control character" in before
        spelled, raw = shown.split(" or, in Python, ")
        quoted = spelled.split(", ")
        if '"odd"' not in forward:                            # with both kinds of quotes a person has to look closer anyway
            back = forward.replace("/", "\\")
            assert [ast.literal_eval(text) for text in (*quoted, raw)] == [forward, back, back]
        else:
            assert forward in quoted[0]


def test_a_line_break_is_refused_also_in_a_name_that_exists(clips):
    (clips / "a\nb").mkdir()
    with pytest.raises(ParameterError, match="control character"):
        check({"data_root": str(clips / "a\nb")}, "here")


def test_yaml_escapes_are_refused_with_the_right_spelling():
    for text in ("C:\\new\\Next\\Last\\each", "C:\\Next"):
        value = load_yaml(f'data_root: "{text}"', "profile x")["data_root"]
        with pytest.raises(ParameterError, match=f'profile x: .*write "{text.replace(chr(92), "/")}"'):
            check({"data_root": value}, "profile x")
    with pytest.raises(ParameterError, match="profile x: not readable as YAML .write a path as C:/new/table, or"):
        load_yaml('data_root: "C:\\data\\clips"', "profile x")


def test_the_notebook_the_profile_and_the_configuration_refuse_alike(tmp_path, write_notebook):
    line = 'data_root = "C:\\new"  # folder\n'
    write_notebook(tmp_path, "01_data", parameters=line)
    with pytest.raises(ParameterError, match='01_data.ipynb: parameter data_root .* write "C:/new"'):
        read_notebooks(tmp_path)
    with pytest.raises(ParameterError, match='RunConfig: parameter data_root .* write "C:/new"'):
        RunConfig.from_parameters({"data_root": ast.literal_eval('"C:\\new"')})
    write_notebook(tmp_path, "01_data", parameters="data_root = None  # folder\n")
    (tmp_path / "profiles").mkdir(exist_ok=True)
    (tmp_path / "profiles" / "own.yaml").write_text('all: {data_root: "C:\\new"}\n')
    with pytest.raises(ParameterError, match='profile own, section all: parameter data_root .* write "C:/new"'):
        read_profile("own", tmp_path / "profiles", read_notebooks(tmp_path))


@pytest.mark.parametrize("text, words", [
    ("", "no path; give one, or None"), ("~/elsewhere", "'~/elsewhere' does not exist; give an existing path"),
    ("~\\elsewhere", "does not exist; give an existing path"),
    ("~nobody-of-that-name/x", "home folder that is not there; write the whole path, or ./~nobody-of-that-name/x"),
    ("C:\\data\\clotho", r"'C:\\\\data\\\\clotho' does not exist"), ("x" * 5000, "does not exist")])
def test_paths_that_lead_nowhere_are_named_as_they_were_written(clips, text, words):
    with pytest.raises(ParameterError, match=words):
        check({"data_root": text}, "here")
    assert PARAMETERS["data_root"].problem(None) is None


def test_weights_are_a_local_path_or_a_name(clips):
    """A local folder or file becomes absolute, as the job runs in another folder; a hub id stays what it is."""
    (clips / "roberta").mkdir()
    assert resolve_values({"text_weights": "~\\data\\new clips\\roberta"}) == {"text_weights": str(clips / "roberta")}
    os.chdir(clips)
    assert resolve_values({"text_weights": "roberta"}) == {"text_weights": str(clips / "roberta")}
    for name in ("roberta-base", "owner/name", "modelscope:owner/name", "passt_s_p16_s16_128_ap468", None):
        check({"text_weights": name, "audio_weights": name}, "here")
        assert resolve_values({"text_weights": name}) == {"text_weights": name}


def test_backslashes_in_settings_stand_for_themselves():
    text = r"""a=C:\new b='C:\new' c=\\host\x d="it's" e='an "odd" one' f=C#"""
    assert parse_settings(text) == {"a": r"C:\new", "b": r"C:\new", "c": r"\\host\x", "d": "it's", "e": 'an "odd" one', "f": "C#"}
