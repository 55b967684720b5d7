"""kill -9 at any moment of a training: started again, it ends with the bits of a run that nobody touched."""
import hashlib
import json
import os
import random
import signal
import time

import pytest

from lib.training import checkpoint


def _run_folder(runs):
    return next(path for path in runs.iterdir() if path.is_dir())


def _digest(runs):
    """Weights and optimiser of every kept checkpoint, and the result, without times."""
    folder = _run_folder(runs)
    done = json.loads((folder / "finished.json").read_text())
    states = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        assert checkpoint.valid(path), path
        state = checkpoint.load_state(path)
        moments = [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
        total = hashlib.sha256((path / "model.safetensors").read_bytes())
        for tensor in moments:
            total.update(tensor.numpy().tobytes())
        states[path.name] = total.hexdigest()
    return states, {k: v for k, v in done.items() if not k.endswith("_seconds")}


def _reached(runs):
    """(newest checkpoint's step, step of the one that is being written) of the run in `runs`, -1 where there is none."""
    names = [path.name for path in runs.glob("*/checkpoints/*step_*")]
    done = [int(name[5:]) for name in names if name.startswith("step_")]
    return max(done, default=-1), max((int(name.split(".")[1][5:]) for name in names if name.startswith(".")), default=-1)


def _survive(server, settings, tmp_path, kills, seed):
    """Kill a run `kills` times, spread over its length; returns digests of the untouched and of the killed run, and what was met."""
    config, rng, met = tmp_path / "config.json", random.Random(seed), []
    config.write_text(json.dumps(settings))
    environments = {name: {"WORKBOOK_RUNS": tmp_path / name, "WORKBOOK_DATA": tmp_path / "data"} for name in ("whole", "killed")}
    pid, wait = server(config, environments["whole"], tmp_path / "whole.log")
    assert wait() == 0, (tmp_path / "whole.log").read_text()
    runs = tmp_path / "killed"
    for number, target in enumerate(sorted(rng.sample(range(settings["epochs"] * 4 - 4), kills))):
        pid, wait = server(config, environments["killed"], tmp_path / "killed.log")
        while max(_reached(runs)[number % 2:]) < target and os.path.exists(f"/proc/{pid}/stat"):
            time.sleep(0.0002)              # every second kill waits for a checkpoint that is being written
        if number % 2 == 0:
            time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert wait() == -9, (tmp_path / "killed.log").read_text()
        done, writing = _reached(runs)
        met.append(f"writing {writing}" if writing > done else f"after {done}")
    pid, wait = server(config, environments["killed"], tmp_path / "killed.log")
    assert wait() == 0, (tmp_path / "killed.log").read_text()
    return _digest(tmp_path / "whole"), _digest(runs), met


def test_killed_twice(server, settings, tmp_path):
    whole, killed, met = _survive(server, settings | {"checkpoint_steps": 1, "epochs": 4, "text_dropout": 0.3, "mix": 0.5}, tmp_path, 2, seed=1)
    assert len(met) == 2 and killed == whole


@pytest.mark.slow
def test_killed_twenty_times(server, settings, tmp_path):
    """The kills fall into steps, ends of epochs (every fourth step) and checkpoint writes."""
    changes = {"checkpoint_steps": 2, "epochs": 30, "decay_epochs": 29, "text_dropout": 0.3, "mix": 0.5, "gain_db": 3.0, "patience": 25}
    whole, killed, met = _survive(server, settings | changes, tmp_path, 20, seed=2)
    print("\n20 kills:", ", ".join(met))
    assert sum(place.startswith("writing") for place in met) >= 5 and {int(place.split()[1]) % 4 for place in met} >= {0, 2}
    assert killed == whole
