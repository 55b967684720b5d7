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


def test_lock_is_exclusive_and_released(tmp_path):
    with hold(tmp_path, new_mark()):
        with pytest.raises(Busy, match="another `make report`"):
            with hold(tmp_path, new_mark()):
                pass
    with hold(tmp_path, new_mark()):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


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
