"""What tests ask of whole runs: the same bits after a stop, one process and two the same, no trace of kills."""
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from lib.settings import ROOT
from lib.training import loop


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint / "model.safetensors")


def torchrun(*arguments, processes=2, environment=None) -> str:
    """Run a program in several processes (gloo), with one thread each; what it printed."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *map(str, arguments)],
                          capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on_two_nodes(*arguments, environment=None) -> None:
    """Run a module with `torchrun` on two "nodes": two process groups on this machine, of one process each, that meet at a port of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
              "--master-port", str(port)]
    nodes = [subprocess.Popen([*common, "--node-rank", str(rank), "-m", *map(str, arguments)], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}), start_new_session=True)
             for rank in range(2)]
    try:
        said = [node.communicate(timeout=300)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)


def stop_and_resume(family, config, manifest, folder, stop: int):
    """Train a run to its end, and another one that is stopped after `stop` batches and started again; both must end with the same bits.

    Returns the run that was never stopped.
    """
    whole = loop.fit(family(config, manifest), folder / "whole")

    class Stopped(family):
        seen = 0

        def losses(self, model, batch):
            self.seen += 1
            if self.seen > stop:
                raise KeyboardInterrupt
            return super().losses(model, batch)

    with pytest.raises(KeyboardInterrupt):
        loop.fit(Stopped(config, manifest), folder / "halves")
    resumed = loop.fit(family(config, manifest), folder / "halves")
    assert resumed.history == whole.history and resumed.checkpoint.name == whole.checkpoint.name and resumed.skipped == whole.skipped
    one, two = weights(whole), weights(resumed)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    return whole


def same_in_one_and_two(one, two, tolerance: float = 1e-5, left_out: tuple[str, ...] = ()):
    """Weights and history of two runs agree, relative to what is larger than 1.

    left_out: ends of names whose true gradient is 0, which AdamW moves by rounding alone.
    """
    first, second = weights(one), weights(two)
    for name in first:
        if not name.endswith(left_out or ("\0",)):
            mine, other = first[name], second[name]
            if name.endswith("in_proj_bias"):           # of torch's attention: query, key, value; the key's has no gradient, either
                mine, other = (torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in (mine, other))
            torch.testing.assert_close(other, mine, rtol=tolerance, atol=tolerance, msg=lambda said: f"{name}: {said}")
    assert [row.keys() for row in one.history] == [row.keys() for row in two.history]
    for row, other in zip(one.history, two.history):
        assert all(abs(row[name] - other[name]) <= tolerance * max(1, abs(row[name])) for name in row), (row, other)


def kill_at_random_times(code: str, folder, attempts: int, clips: int) -> int:
    """Run Python `code`, which renders `clips` FLAC files below `folder` in several processes, and kill -9 it within half a second of
    its first new file, again and again; in turns with all its processes and alone, when they have to notice.

    Returns how many of the kills came while clips were being made.
    """
    rng, done, interrupted = np.random.default_rng(), 0, 0
    for attempt in range(attempts):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
        deadline = time.monotonic() + 120
        while len(list(folder.rglob("*.flac"))) == done and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        if attempt % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "workers outlive the process that started them"
        before, done = done, len(list(folder.rglob("*.flac")))
        interrupted += before < done < clips
    print(f"{interrupted} of {attempts} kills came while clips were being made")
    return interrupted
