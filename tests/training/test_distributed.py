"""Two processes (gloo) compute what one computes: gradients through gathered rows, shares of batches, whole training runs."""
import json
import os
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file

from lib import distributed, training
from lib.training import devices
from lib.families.retrieval import RetrievalConfig
from lib.files import write_json
from tests import fake_slurm
from tests.runs import on_two_nodes, same_in_one_and_two, torchrun

PIECES = """
import json, sys, torch, torch.distributed as dist
from lib import distributed
from lib.data.loading import bounds
from lib.losses.contrastive import contrastive_loss
dist.init_process_group("gloo")
rank, rows = distributed.rank(), torch.load(sys.argv[1], weights_only=True)
part = distributed.share(len(rows["audio"]))
weight = rows["weight"].clone().requires_grad_()                       # a shared layer, as distributed data parallel training has it
tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
audio, text = rows["audio"][part] @ weight, rows["text"][part]
loss = contrastive_loss(distributed.gather(audio) @ distributed.gather(text).T / tau)
loss.backward()
for gradient in (weight.grad, tau.grad):
    dist.all_reduce(gradient)
    gradient /= distributed.world()
names = distributed.gather_list([f"{rank}:{i}" for i in range(part.stop - part.start)])
flags = distributed.anywhere([rank == 1, False], torch.device("cpu"))
try:
    refused = bounds(1, 8) and ""
except ValueError as error:
    refused = str(error)
if rank == 0:
    torch.save({"loss": loss.detach(), "weight": weight.grad, "tau": tau.grad}, sys.argv[2])
    print(json.dumps({"names": names, "flags": flags, "bounds": bounds(17, 8), "refused": refused}))
dist.barrier()
dist.destroy_process_group()
"""


def test_gathered_loss_has_the_gradients_of_one_process(tmp_path):
    from lib.losses.contrastive import contrastive_loss
    torch.manual_seed(0)
    rows = {"audio": torch.randn(7, 5, dtype=torch.float64), "text": torch.randn(7, 4, dtype=torch.float64), "weight": torch.randn(5, 4, dtype=torch.float64)}
    torch.save(rows, tmp_path / "rows.pt")
    (tmp_path / "pieces.py").write_text(PIECES)
    said = json.loads(torchrun(tmp_path / "pieces.py", tmp_path / "rows.pt", tmp_path / "out.pt"))
    weight, tau = rows["weight"].clone().requires_grad_(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(rows["audio"] @ weight @ rows["text"].T / tau)
    loss.backward()
    two = torch.load(tmp_path / "out.pt", weights_only=True)
    for name, one in (("loss", loss.detach()), ("weight", weight.grad), ("tau", tau.grad)):
        torch.testing.assert_close(two[name], one, rtol=1e-12, atol=1e-12)
    assert said["names"] == ["0:0", "0:1", "0:2", "0:3", "1:0", "1:1", "1:2"] and said["flags"] == [True, False]
    assert said["bounds"] == [[0, 8], [8, 17]] and "lower devices" in said["refused"]


@pytest.mark.parametrize("rows, processes", [(0, 3), (1, 1), (7, 2), (8, 2), (10, 4), (3, 5)])
def test_shares_lose_and_double_nothing(rows, processes, monkeypatch):
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "world", lambda: processes)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(list(range(rows))[distributed.share(rows)])
    assert sum(parts, []) == list(range(rows)) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_left_alone():
    rows = torch.ones(2, 3)
    assert distributed.gather(rows) is rows and distributed.gather_list([1]) == [1] and distributed.world() == 1 and distributed.rank() == 0


@pytest.mark.parametrize("changes", [
    {"chunk_size": 2}, pytest.param({"patchout_time": 0.0, "patchout_frequency": 0.0, "accumulation": 2, "positives": "labels", "loss_reduction": "rows", "train_tau": True, "workers": 1}, marks=pytest.mark.slow)])
def test_training_in_two_processes_equals_one(tones, settings, tmp_path, monkeypatch, capsys, changes):
    """Dropout off, patchout and mel jitter on (drawn once a step, the same everywhere), with gradient caching; the last batch of an epoch
    is uneven, and two files are damaged behind the health check's back."""
    folder = tmp_path / "tones"
    shutil.copytree(tones, folder)
    settings = settings | {"data_root": str(folder), "text_dropout": 0.0, "batch_size": 5,
                           "bad_media_budget": 0.2} | changes
    RetrievalConfig(**settings).prepare()
    for name in ("03.wav", "20.wav"):
        before = (folder / name).stat()
        (folder / name).write_bytes(b"x" * before.st_size)
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))        # so that the cached verdict still says "good"
    runs = {}
    for devices in (1, 2):
        monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / str(devices)))
        runs[devices] = training.launch("retrieval", RetrievalConfig(**settings, devices=devices))
    one, two = (load_file(runs[n].checkpoint / "model.safetensors") for n in (1, 2))
    for name in one:
        compared = ...
        if name.endswith("key.bias"):       # softmax cancels what keys share: the true gradient is 0, and AdamW turns its rounding into steps
            continue
        if name.endswith("attn.qkv.bias"):
            third = len(one[name]) // 3
            compared = torch.cat([torch.arange(third), torch.arange(2 * third, 3 * third)])
        torch.testing.assert_close(two[name][compared], one[name][compared], rtol=0, atol=1e-5, msg=name)
    assert [row.keys() for row in runs[1].history] == [row.keys() for row in runs[2].history]
    for first, second in zip(runs[1].history, runs[2].history):
        assert all(abs(first[name] - second[name]) <= 1e-5 for name in first), (first, second)
    assert set(runs[1].skipped) == {"03.wav", "20.wav"} and runs[1].skipped == runs[2].skipped
    said = capsys.readouterr().out
    assert "epoch 2:" in said and said.count("03.wav cannot be used") == 2, "once in each run; what the processes say is passed on"
    again = training.launch("retrieval", RetrievalConfig(**settings, devices=2))
    assert again == runs[2] and "read, not repeated" in capsys.readouterr().out


def test_training_on_two_nodes_equals_one_process(settings, tmp_path, monkeypatch, capsys):
    """Two torchrun groups, as `srun torchrun --nnodes 2` starts them; a notebook that asks for the run afterwards reads it."""
    config = RetrievalConfig(**settings | {"text_dropout": 0.0, "batch_size": 6})
    write_json(tmp_path / "config.json", config.to_dict())
    runs = {}
    for nodes in (1, 2):
        monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / str(nodes)))
        if nodes == 2:
            on_two_nodes("lib.training", "--family", "retrieval", "--config", tmp_path / "config.json")
            assert len(list((tmp_path / "2").iterdir())) == 1
            capsys.readouterr()
        runs[nodes] = training.launch("retrieval", config)
    assert "read, not repeated" in capsys.readouterr().out
    same_in_one_and_two(runs[1], runs[2], left_out=("key.bias", "attn.qkv.bias"))


def test_one_process_is_not_told_to_use_srun_where_there_is_slurm(tmp_path, monkeypatch):
    fake_slurm.install(tmp_path, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fabric = devices.fabric("cpu", "32-true", 1)
    assert (fabric.world_size, fabric.is_global_zero) == (1, True)


def test_a_failing_process_is_told_with_its_words(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path))
    with pytest.raises(RuntimeError, match="(?s)training in 2 processes failed.*learning_rate must be at least"):
        training.launch("retrieval", RetrievalConfig(**settings | {"learning_rate": 1e-9}, devices=2))
