"""Every row reaches every log once, also over a kill; a log that fails costs a warning and nothing else."""
import csv
import json
import os
import signal
import struct
import subprocess
import sys
import time
import warnings

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.settings import ROOT
from lib.training import logs
from lib.training.logs import Log


def train(log, first, last, per_epoch=10):
    """What the loop calls for the steps first .. last."""
    for step in range(first, last + 1):
        log.step({"step": step, "epoch": (step - 1) // per_epoch}, {"loss": 1 / step}, 0.1)
        if step % per_epoch == 0:
            log.epoch({"step": step, "epoch": step // per_epoch}, {"train/loss": 2 / step, "val/mAP@10": step / 100})


def expected(last, per_epoch=10):
    """(metric, step) -> value of `train` from step 1 on, every step logged; `epoch` and `learning_rate` left out."""
    rows = {("step/loss", step): 1 / step for step in range(1, last + 1)}
    for step in range(per_epoch, last + 1, per_epoch):
        rows |= {("train/loss", step): 2 / step, ("val/mAP@10", step): step / 100}
    return rows


def records(path):
    """Payloads of a file of wandb or SwanLab (LevelDB's log): blocks of 32 KiB, pieces after their checksum, length and kind."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position:position + 7])
        parts += data[position + 7:position + 7 + length]
        position += 7 + length
        if kind in (1, 4):                                   # a whole record, or the last piece of one
            yield parts
            parts = b""


def scalars(path):
    """[((metric, step), value)] of such a file; `epoch`, `learning_rate` and what the library adds left out."""
    found = []
    if path.suffix == ".wandb":
        from wandb.proto.wandb_internal_pb2 import Record
        for record in map(Record.FromString, records(path)):
            if record.WhichOneof("record_type") == "history":
                row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                found += [((name, row["_step"]), value) for name, value in row.items() if "/" in name]
    else:
        from swanlab.proto.swanlab.record.v1.record_pb2 import Record
        for record in map(Record.FromString, records(path)):
            scalar = record.scalar                            # system metrics are scalars as well
            if record.WhichOneof("record_type") == "scalar" and "/" in scalar.key and not scalar.key.startswith("__"):
                found.append(((scalar.key, scalar.step), scalar.value.number))
    return found


def session(folder, kind):
    """The file of the one session of a run that counts."""
    pattern = {"wandb": "wandb/offline-run-*/*.wandb", "swanlab": "swanlog/run-*/*.swanlab"}[kind]
    return next(iter(folder.glob(pattern)))


def ways_out():
    """What libraries like to put their hands on."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return handlers, sys.excepthook, sys.exit, sys.stdout, dict(os.environ)


EARLIER = set()     # processes of other tests


def left_over():
    return [process.cmdline() for process in psutil.Process().children(recursive=True) if process not in EARLIER]


@pytest.fixture
def batch(monkeypatch, tmp_path):
    """No terminal and a home folder in which nothing may appear."""
    EARLIER.update(psutil.Process().children(recursive=True))
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    monkeypatch.setattr(logs, "interactive", lambda: False)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "SWANLAB_", "XDG_"))]:
        monkeypatch.delenv(name)
    yield
    assert not list(home.iterdir()) and not list(here.iterdir())


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Put a package `wandb` in place that fails as told, here and in the logger's process."""
    def install(source):
        packages = tmp_path / "packages"
        (packages / "wandb").mkdir(parents=True)
        (packages / "wandb" / "__init__.py").write_text("class Settings:\n    def __init__(self, **_): pass\n" + source)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]))
        monkeypatch.syspath_prepend(str(packages))
    return install


FINISH = 'print("finished with", exit_code)'
FAKE_RUN = f"""
class Run:
    step = 0
    def log(self, values, step): pass
    def finish(self, exit_code): {FINISH}
def init(**_): return Run()
"""


def test_csv_holds_every_row_and_stays_whole(tmp_path, capsys, monkeypatch):
    history = []
    log = Log(tmp_path / "run", history, 0, every=10)
    train(log, 1, 20)
    log.close()
    assert capsys.readouterr().out == "epoch 1: train/loss 0.200  val/mAP@10 0.100\nepoch 2: train/loss 0.100  val/mAP@10 0.200\n"
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert list(rows[0]) == ["step", "epoch", "learning_rate", "step/loss", "train/loss", "val/mAP@10"]
    assert [(row["step"], row["step/loss"], row["train/loss"]) for row in rows] == [
        ("1", "1.0", ""), ("10", "", "0.2"), ("11", str(1 / 11), ""), ("20", "", "0.1")]
    assert [row["step"] for row in history] == [1, 10, 11, 20]
    before = (tmp_path / "run/metrics.csv").read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    log = Log(tmp_path / "run", history, 20)
    with pytest.warns(UserWarning, match="metrics.csv could not be written.*No space left"):
        train(log, 21, 30)
    assert (tmp_path / "run/metrics.csv").read_text() == before           # the whole old table, not half of a new one


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path):
    history = [{"step": step, "epoch": 0, "step/loss": 1.0} for step in (1, 11, 21)]
    Log(tmp_path, history, 11).close()
    assert [row["step"] for row in history] == [1, 11]
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 3


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    """The first session gets to step 27 and is killed: nothing is closed; the second begins at the checkpoint of step 20."""
    first = Log(tmp_path, [], 0, every=1)
    train(first, 1, 27)
    first.running["tensorboard"].board.flush()
    time.sleep(1.1)                                           # event files are named by the second and read in that order
    second = Log(tmp_path, [row for row in first.history if row["step"] <= 20], 20, every=1)
    train(second, 21, 30)
    second.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    names = [name for name in board.Tags()["scalars"] if "/" in name]
    found = [((name, event.step), event.value) for name in names for event in board.Scalars(name)]
    assert len(found) == len(dict(found)) and dict(found) == pytest.approx(expected(30), rel=1e-6)
    first.close()


def test_a_failing_tensorboard_costs_one_warning(tmp_path, monkeypatch):
    from torch.utils import tensorboard
    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", lambda *_: (_ for _ in ()).throw(ValueError("broken pen")))
    log = Log(tmp_path, [], 0, every=1)
    with pytest.warns(UserWarning, match="tensorboard log is off since step 1 .*ValueError: broken pen") as caught:
        train(log, 1, 10)
        log.close()
    assert len(caught) == 1 and len(log.history) == 11


@pytest.mark.parametrize("kind", ["wandb", "swanlab"])
def test_offline_session_holds_the_run(tmp_path, batch, kind):
    before = ways_out()
    folder, began = tmp_path / "runs" / "a run, <named> \"oddly\"", time.monotonic()
    log = Log(folder, [], 0, every=1, loggers=(kind,), config={"learning_rate": 1e-3, "fit_splits": ["train"], "data_root": None})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(log, 1, 20)
        log.close()
    assert time.monotonic() - began < 30 and left_over() == []
    assert ways_out() == before
    found = scalars(session(folder, kind))
    assert len(found) == len(dict(found)) and dict(found) == pytest.approx(expected(20), rel=1e-6)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wandb", "swanlab"])
def test_a_killed_session_is_continued(tmp_path, batch, kind):
    """A process is killed after 27 steps; from the checkpoint of step 20, the next one makes the log whole, without repeats."""
    script = ("import os, sys, time; sys.path[:0] = sys.argv[4:]\nfrom pathlib import Path\nimport test_logs\n"
              "log = test_logs.Log(Path(sys.argv[1]), [], 0, every=1, loggers=(sys.argv[2],))\ntest_logs.train(log, 1, 27)\n"
              "while not list(Path(sys.argv[1]).glob(sys.argv[3])): time.sleep(0.05)\nos.kill(os.getpid(), 9)")
    place = {"wandb": "wandb/offline-run-*/*.wandb", "swanlab": "swanlog/run-*/*.swanlab"}[kind]
    folder = tmp_path / "run"
    command = [sys.executable, "-c", script, str(folder), kind, place, str(ROOT), os.path.dirname(__file__)]
    killed = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20                          # its logger ends by itself when its pipe does
    while any(str(folder) in " ".join(p.info["cmdline"] or []) or (p.info["cwd"] or "").startswith(str(folder))
              for p in psutil.process_iter(["cmdline", "cwd"])):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    identity = session(folder, kind).stem
    history = [{"step": step, "epoch": (step - 1) // 10, "step/loss": 1 / step} for step in range(1, 21)]
    history += [{"step": step, "epoch": step // 10, "train/loss": 2 / step, "val/mAP@10": step / 100} for step in (10, 20)]
    history.sort(key=lambda row: row["step"])
    log = Log(folder, history, 20, every=1, loggers=(kind,))
    train(log, 21, 30)
    log.close()
    assert session(folder, kind).stem == identity and len(list(folder.glob(place))) == 1 and left_over() == []
    found = scalars(session(folder, kind))
    assert len(found) == len(dict(found)) and dict(found) == pytest.approx(expected(30), rel=1e-6)
    assert len(list((folder / logs.FOLDERS[kind] / "superseded").iterdir())) == 1


@pytest.mark.parametrize("source, reason, at_the_end", [
    ("raise ImportError('half installed')", "ImportError: half installed", False),
    (FAKE_RUN.replace("return Run()", "raise OSError('no network')"), "OSError: no network", False),
    (FAKE_RUN.replace("step): pass", "step): raise KeyError('row')"), "KeyError: 'row'", False),
    (FAKE_RUN.replace(FINISH, "raise RuntimeError('upload broke off')"), "RuntimeError: upload broke off", True),
    (FAKE_RUN.replace(FINISH, "import os; os._exit(7)"), "it said nothing", True),
], ids=["import", "start", "row", "close", "death"])
def test_a_failing_logger_costs_one_warning(tmp_path, batch, fake, source, reason, at_the_end):
    fake(source)
    log = Log(tmp_path / "run", [], 0, every=1, loggers=("wandb",))
    with pytest.warns(UserWarning, match="wandb log is off since step .* and lacks rows; metrics.csv has all") as caught:
        train(log, 1, 10)
        if not at_the_end:
            log.running["wandb"].process.wait(20)                # it has failed before the next row
        train(log, 11, 20)
        assert ("wandb" in log.running) == at_the_end
        log.close()
    assert len(caught) == 1 and reason in str(caught[0].message) and "session.log" in str(caught[0].message)
    assert len(log.history) == 22 and left_over() == []
    assert len(list(csv.DictReader((tmp_path / "run/metrics.csv").open()))) == 22


@pytest.mark.parametrize("moment", ["start", "row", "close"])
def test_a_hanging_logger_holds_nothing_up(tmp_path, batch, fake, monkeypatch, moment):
    """Training goes on at once, close waits its time and ends the logger with what it has started."""
    hang = "import subprocess, time; subprocess.Popen(['sleep', '1000'], start_new_session=True); time.sleep(1000)"
    fake({"start": f"{FAKE_RUN}\ndef init(**_):\n    {hang}", "row": FAKE_RUN.replace("step): pass", f"step): {hang}"),
          "close": FAKE_RUN.replace(FINISH, hang)}[moment])
    monkeypatch.setattr(logs, "CLOSE_SECONDS", 1.0)
    log = Log(tmp_path / "run", [], 0, every=1, loggers=("wandb",))
    log.starts.pop("tensorboard")
    train(log, 1, 1)
    began = time.monotonic()
    for step in range(2, 2000):                               # more than a pipe holds
        log.step({"step": step, "epoch": 0}, {"loss": 1.0, "a term with a long name": 2.0}, 0.1)
    assert time.monotonic() - began < 3 and log.running
    with pytest.warns(UserWarning, match="wandb log is off since step 1999.*TimeoutError: it did not finish in time"):
        log.close()
    assert time.monotonic() - began < 10 and left_over() == []


@pytest.mark.slow
def test_a_hanging_logger_does_not_outlive_a_killed_training_for_long(tmp_path, batch, fake):
    fake(FAKE_RUN.replace("return Run()", "import time; time.sleep(1000)"))
    script = ("import os, sys; sys.path[:0] = sys.argv[2:]\nfrom pathlib import Path\nimport test_logs\n"
              "test_logs.logs.CLOSE_SECONDS = 0.5\nlog = test_logs.Log(Path(sys.argv[1]), [], 0, every=1, loggers=('wandb',))\n"
              "test_logs.train(log, 1, 3)\nprint(log.running['wandb'].process.pid)\nsys.stdout.flush()\nos.kill(os.getpid(), 9)")
    command = [sys.executable, "-c", script, str(tmp_path / "run"), str(ROOT), os.path.dirname(__file__)]
    killed = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    deadline, pid = time.monotonic() + 15, int(killed.stdout)
    while any(p.info["pid"] == pid and p.info["status"] != psutil.STATUS_ZOMBIE
              for p in psutil.process_iter(["pid", "status"])):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_success_and_failure_are_told_apart(tmp_path, batch, fake):
    fake(FAKE_RUN)
    log = Log(tmp_path / "good", [], 0, every=1, loggers=("wandb",))
    train(log, 1, 3)
    log.close()
    log = Log(tmp_path / "bad", [], 0, every=1, loggers=("wandb",))
    with pytest.raises(ZeroDivisionError):
        try:
            train(log, 1, 3)
            train(log, 0, 1)                                   # the closing of a run that ends with an error
        finally:
            log.close()
    assert (tmp_path / "good/wandb/session.log").read_text() == "finished with 0\n"
    assert (tmp_path / "bad/wandb/session.log").read_text() == "finished with 1\n"


def test_a_logger_that_is_not_installed_is_named_with_the_remedy(tmp_path, batch, monkeypatch):
    find = logs.importlib.util.find_spec
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: None if name == "swanlab" else find(name))
    log = Log(tmp_path / "run", [], 0, every=1, loggers=("swanlab",))
    with pytest.warns(UserWarning, match="the swanlab log is off.*not installed; run: .* -m pip install swanlab"):
        train(log, 1, 2)
    log.close()
    assert len(log.history) == 2


@pytest.mark.parametrize("present, setting, seen", [
    (False, None, "offline"), (False, "online", "offline"), (False, "disabled", "disabled"),
    (True, None, None), (True, "online", "online")])
def test_offline_in_a_batch_and_the_users_choice_elsewhere(tmp_path, batch, fake, monkeypatch, present, setting, seen):
    told = "[os.environ.get('WANDB_MODE'), sys.stdin.read(), os.environ.get('WANDB_SERVICE'), sys.stdin.isatty()]"
    fake(FAKE_RUN.replace("def init(**_): ", f"import os, sys\ndef init(**_):\n    print({told})\n    "))
    monkeypatch.setattr(logs, "interactive", lambda: present)
    monkeypatch.setenv("WANDB_SERVICE", "that of the user")
    if setting:
        monkeypatch.setenv("WANDB_MODE", setting)
    log = Log(tmp_path / "run", [], 0, every=1, loggers=("wandb",))
    train(log, 1, 2)
    log.close()
    assert (tmp_path / "run/wandb/session.log").read_text().splitlines()[0] == str([seen, "", None, False])
