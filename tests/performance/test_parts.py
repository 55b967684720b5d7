"""Every part of notebook 91 at tiny sizes: both ways run and agree, and what is measured is there."""
import pytest
import torch

from lib.performance import gpu, masked_step, parts, ranking, video
from lib.performance.parts import PARTS, measure


@pytest.mark.parametrize("name", PARTS)
def test_part(name):
    compared, grown, missing = measure(name, "tiny", repetitions=1, count=1)
    assert missing == "" and compared and len({one.name for one in (*compared, *grown)}) == len(compared) + len(grown)
    for one in compared:
        assert one.asked is None and one.times > 0 and all(wall > 0 for wall, _ in (*one.ours, *one.theirs)) and one.threads == 1
    assert bool(grown) == (PARTS[name].grown is not None)
    for one in grown:
        assert len(one.sizes) == len(one.times) == 4 and all(cpu > 0 for _, cpu in one.times)
        assert one.memory is None or len(one.memory) == 4


def test_sizes_that_were_asked_for_are_the_defaults():
    """Profiles and tests change sizes; what a ratio is asked of is written once."""
    assert (ranking.QUERIES, ranking.ITEMS, masked_step.CLIPS, masked_step.WIDTH, video.COUNT) == (5225, 1045, 2, 512, 16)
    assert parts.passt.ASKED == {1: {30.0: 1.1}, 4: {30.0: 1.2, 8.0: 3.0}} and parts.quantizer.ASKED == {("analytical", 1): 15.0, ("group", 9): 1.3}
    assert (parts.distances.N, parts.distances.M, parts.distances.D, parts.distances.ASKED) == (1000, 527, 512, 100)


def test_a_missing_peer_leaves_the_growth(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "geoopt.manifolds.stereographic.math", None)
    compared, grown, missing = measure("distances", "tiny", 1, 1)
    assert not compared and len(grown) == 1 and "geoopt" in missing


def test_ways_that_disagree_are_no_comparison(monkeypatch):
    monkeypatch.setattr(ranking, "loop", lambda *given: {name: values + 0.01 for name, values in ranking.query_metrics(*given).items()})
    with pytest.raises(AssertionError, match="R@|mAP|rank"):
        ranking.compared(50, 20, 1)
    monkeypatch.setattr(parts.distances, "pairwise_distance", lambda x, y, c: torch.ones(len(x), len(y)))
    with pytest.raises(AssertionError, match="distances are off by"):
        parts.distances.compared(40, 20, 8, 1, (1,))


def test_step_of_a_gpu_on_the_cpu():
    """The same code with tiny towers: both ways step in 16 bits; no device, no share of its peak."""
    step = gpu.training_step(torch.device("cpu"), batch=2, seconds=10.0, repetitions=1, size="tiny", text_size="tiny", compiled=False)
    assert step.flops > 1e7 and min(step.clips_per_second) > 0 and step.utilisation == (None, None) and step.bytes == (None, None)
    assert step.clips_per_second[0] == pytest.approx(2 / step.comparison.seconds[0]["wall"]) and step.comparison.asked == 2.0


def test_peaks_are_found_by_name():
    assert gpu.peak_flops("NVIDIA H200") == 989e12 and gpu.peak_flops("NVIDIA L4") == 121e12 and gpu.peak_flops("NVIDIA L40S") == 362e12
    assert gpu.peak_flops("Something else") is None
