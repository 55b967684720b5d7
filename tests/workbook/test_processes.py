import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from lib.workbook.processes import Busy, end_marked, hold, new_mark


def sleeper(mark):
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ | {"WORKBOOK_SESSION": mark}, start_new_session=True)


def test_only_marked_processes_are_ended():
    mark, other = new_mark(), new_mark()
    ours, theirs = sleeper(mark), sleeper(other)
    try:
        time.sleep(0.2)
        assert end_marked("WORKBOOK_SESSION", mark) == 1
        ours.wait(5)
        assert not psutil.pid_exists(ours.pid) and theirs.poll() is None
    finally:
        assert end_marked("WORKBOOK_SESSION", other) == 1
        theirs.wait(5)


WRITER = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: {on_term})
path = pathlib.Path(sys.argv[1])
while True:
    path.write_text(str(os.getpid()))
    time.sleep(0.001)
"""


STARTS_ANOTHER = "(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']), os._exit(0))"


@pytest.mark.parametrize("on_term", ["None", STARTS_ANOTHER])
def test_who_does_not_end_when_asked_or_starts_another_is_ended_all_the_same(tmp_path, on_term):
    mark, path = new_mark(), tmp_path / "marker"
    command = [sys.executable, "-c", WRITER.format(on_term=on_term), str(path)]
    writer = subprocess.Popen(command, env=os.environ | {"WORKBOOK_SESSION": mark})
    while not path.exists():
        time.sleep(0.01)
    assert end_marked("WORKBOOK_SESSION", mark, patience=0.5) == (1 if on_term == "None" else 2)
    path.unlink()
    time.sleep(0.1)
    assert writer.poll() is not None and not path.exists() and end_marked("WORKBOOK_SESSION", mark) == 0


def test_no_mark_ends_nobody():
    with pytest.raises(AssertionError):
        end_marked("WORKBOOK_SESSION", None)


def test_lock_is_exclusive_and_released(tmp_path):
    with hold(tmp_path, new_mark()):
        with pytest.raises(Busy, match="another `make report`"):
            with hold(tmp_path, new_mark()):
                pass
    with hold(tmp_path, new_mark()):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


def test_what_is_started_while_it_is_held_ends_with_it(tmp_path):
    mark = new_mark()
    with hold(tmp_path, mark):
        ours = sleeper(mark)
        time.sleep(0.2)
    assert ours.wait(5) != 0


def test_a_lock_file_that_was_cut_off_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").write_text('{"pid": 12, "mar')
    with hold(tmp_path, new_mark()):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_what_a_killed_holder_left_is_ended(tmp_path, capsys):
    mark = new_mark()
    program = f"import os, signal, pathlib; from lib.workbook.processes import hold\nwith hold(pathlib.Path({str(tmp_path)!r}), {mark!r}): os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", program], env=os.environ).returncode == -9
    left = sleeper(mark)
    time.sleep(0.2)
    with hold(tmp_path, new_mark()):
        left.wait(5)
        assert not psutil.pid_exists(left.pid)
    assert "ended 1 process" in capsys.readouterr().out
