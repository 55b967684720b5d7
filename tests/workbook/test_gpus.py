import subprocess
import sys
import threading
import time

import pytest

from lib.glossary import ParameterError
from lib.settings import ROOT
from lib.workbook import gpus


@pytest.fixture
def take(tmp_path, monkeypatch):
    """take(names, **parameters): `gpus.take` of a machine with GPUs of these names."""
    monkeypatch.setattr(gpus, "SECONDS", 0.02)
    locks = tmp_path / "locks"
    return lambda names, say=print, **parameters: gpus.take({"device": "auto"} | parameters, lambda: list(names), locks, say)


def test_each_job_gets_its_own_and_the_next_one_waits(take):
    said, got = [], []

    def wait():
        with take("012", say=said.append) as mine:
            got.append(mine)

    with take("012") as first, take("012", device="cuda", devices=2) as second:
        assert (first, second) == (["0"], ["1", "2"])
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        assert said == ["waiting for 1 of 3 GPUs to become free"] and not got
    waiting.join(5)
    assert got == [["0"]]


def test_a_job_that_waits_for_two_keeps_none(take):
    with take("01") as one:
        waiting = take("01", devices=2, say=lambda text: None)
        thread = threading.Thread(target=waiting.__enter__)
        thread.start()
        time.sleep(0.1)
        with take("01") as other:
            assert (one, other) == (["0"], ["1"])
    thread.join(5)
    assert not thread.is_alive()
    waiting.__exit__(None, None, None)


@pytest.mark.parametrize("names, parameters", [("", {}), ("3", {}), ("01", {"device": "cpu"}), ("01", {"device": "cuda:1"})])
def test_where_there_is_no_choice_none_is_made(take, names, parameters):
    with take(names, **parameters) as mine, take(names, **parameters) as again:
        assert mine == again == []


def test_more_than_there_are(take):
    with pytest.raises(ParameterError, match=r"devices=3: 2 GPUs are visible \(0, GPU-8f/1\); lower devices"):
        with take(["0", "GPU-8f/1"], devices=3):
            pass


def test_a_killed_job_gives_its_gpu_back(take, tmp_path):
    program = ("import pathlib, sys, time; from lib.workbook import gpus\n"
               "with gpus.take({'device': 'auto'}, lambda: ['0', '1'], pathlib.Path(sys.argv[1])) as mine:\n"
               "    print(mine, flush=True); time.sleep(60)")
    command = [sys.executable, "-c", program, str(tmp_path / "locks")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as job:
        assert job.stdout.readline() == "['0']\n"
        with take("01") as mine:
            assert mine == ["1"]
        job.kill()
    with take("01") as mine:
        assert mine == ["0"]


@pytest.mark.parametrize("given, names", [("", []), ("-1", []), ("2", ["2"]), ("2, GPU-ab", ["2", "GPU-ab"]), ("0,-1,1", ["0"])])
def test_visible_reads_the_variable_as_cuda_does(monkeypatch, given, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.visible() == names


@pytest.mark.parametrize("parameters, count", [({}, 0), ({"device": "cpu", "devices": 2}, 0), ({"device": "auto"}, 1),
                                               ({"device": "cuda:1"}, 1), ({"device": "cuda", "devices": 4}, 4)])
def test_needed(parameters, count):
    assert gpus.needed(parameters) == count
