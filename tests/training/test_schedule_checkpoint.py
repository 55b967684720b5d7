"""Learning rate against the published schedule; checkpoints that are whole or not there."""
import math

import pytest
import torch

from lib.training import checkpoint
from lib.training.schedule import learning_rate


def test_published_schedule():
    """1e-7 -> 2e-5 in 1 epoch, cosine to 1e-7 over 15, constant to 20 (300 steps an epoch)."""
    rate = lambda step: learning_rate(step, steps_per_epoch=300, peak=2e-5)
    assert rate(0) == 1e-7 and rate(300) == 2e-5
    assert rate(150) == pytest.approx((1e-7 + 2e-5) / 2)
    assert rate(300 + 15 * 150) == pytest.approx((1e-7 + 2e-5) / 2)
    assert rate(300 + 15 * 300) == rate(20 * 300) == pytest.approx(1e-7)
    written_out = [1e-7 + (2e-5 - 1e-7) * (1 + math.cos(math.pi * (s - 300) / 4500)) / 2 for s in range(300, 4801)]
    assert [rate(s) for s in range(300, 4801)] == pytest.approx(written_out)
    assert all(a >= b for a, b in zip(written_out, written_out[1:]))


def test_no_warmup_and_no_decay():
    assert learning_rate(0, steps_per_epoch=10, peak=1.0, warmup_epochs=0, decay_epochs=2) == 1.0
    assert learning_rate(50, steps_per_epoch=10, peak=1.0, floor=0.5, warmup_epochs=1, decay_epochs=0) == 0.5


def write(folder):
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")


def test_newest_valid_wins_and_old_ones_go(tmp_path):
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, write, {"step": step, "x": torch.ones(2)}, keep=2, protect=("step_00000001",))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step_00000001", "step_00000003", "step_00000010"]
    assert checkpoint.newest(tmp_path).name == "step_00000010"
    assert checkpoint.load_state(checkpoint.newest(tmp_path))["step"] == 10


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "no manifest", "broken manifest"])
def test_damaged_checkpoints_are_passed_over(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, write, {"step": step})
    last = tmp_path / "step_00000002"
    if damage == "truncate":
        (last / "state.pt").write_bytes((last / "state.pt").read_bytes()[:-5])
    elif damage == "flip":
        (last / "model.safetensors").write_bytes(b"weighty")
    elif damage == "missing":
        (last / "config.json").unlink()
    else:
        (last / "manifest.json").unlink() if damage == "no manifest" else (last / "manifest.json").write_text('{"a')
    (tmp_path / ".step_00000003.77").mkdir()          # a write that was killed
    assert checkpoint.newest(tmp_path).name == "step_00000001"
    assert not (tmp_path / ".step_00000003.77").exists()


def test_a_failing_write_leaves_what_was_there(tmp_path):
    checkpoint.save(tmp_path, 1, write, {"step": 1})

    def broken(folder):
        write(folder)
        raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, 2, broken, {"step": 2})
    assert checkpoint.newest(tmp_path).name == "step_00000001"


class Code:
    """Something that only unpickling can bring back."""


def test_state_is_read_without_unpickling_code(tmp_path):
    checkpoint.save(tmp_path, 1, write, {"bad": Code()})
    with pytest.raises(Exception, match="(?i)weights.only"):
        checkpoint.load_state(tmp_path / "step_00000001")
