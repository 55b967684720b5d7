"""A tiny data set and configuration for whole training runs, and a way to start them quickly in processes of their own."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

SERVER = """
import json, os, sys
import lib.data.folder, lib.families.retrieval, lib.training.loop, torch.utils.tensorboard     # imported once, for every run
import lib.training.__main__ as command
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ.update(job["environment"])
        try:
            code = command.main(job["arguments"])
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """A folder data set: 40 tones of four pitches and 1 s, 32 of them to train on, each with two captions."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    words, lines = ["a low hum", "a middle tone", "a high whistle", "a very high hiss"], ["file_name,split,caption_1,caption_2"]
    for i in range(40):
        kind, time = i % 4, np.arange(32000) / 32000
        wave = 0.2 * np.sin(2 * np.pi * [150, 900, 4000, 11000][kind] * rng.uniform(0.9, 1.1) * time) + 0.01 * rng.normal(size=32000)
        soundfile.write(folder / f"{i:02d}.wav", wave.astype(np.float32), 32000)
        lines.append(f"{i:02d}.wav,{'train' if i < 32 else 'val'},{words[kind]},{words[kind]} is heard")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def settings(tones):
    """Parameters of a training run of seconds."""
    return dict(dataset="folder", data_root=str(tones), audio_size="tiny", text_size="tiny", clip_seconds=1.0, segment_seconds=1.0,
                embedding_dim=16, batch_size=8, epochs=2, warmup_epochs=0.5, decay_epochs=1.5, learning_rate=1e-3, threads=1, device="cpu",
                every_caption=False, patchout_time=0.2)


@pytest.fixture(scope="session")
def server():
    """Starts `python -m lib.training` in forks of one process that has imported everything: milliseconds instead of seconds each."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(config, environment, log):
        """Starts a run; returns its process id and a function that waits for its exit code."""
        job = {"arguments": ["--family", "retrieval", "--config", str(config)], "log": str(log),
               "environment": {k: str(v) for k, v in environment.items()} | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        pid = int(process.stdout.readline())
        return pid, lambda: int(process.stdout.readline())
    yield start
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    assert os.WIFEXITED(0)
