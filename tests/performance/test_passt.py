"""Features of PaSST against the stock hear21passt path: the same numbers, faster (eval mode, random weights, 2 threads)."""
import pytest
import torch

from lib.encoders.passt import PasstEncoder
from tests.performance.stock import StockPasst, clips, compare, threads

WINDOW = 30.0
FASTER = {(1, 30.0): 1.1, (4, 30.0): 1.2, (4, 8.0): 3.0}        # (clips, seconds of sound): the stock path always encodes the window


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    ours = PasstEncoder().eval()
    return ours, StockPasst(ours).eval()


@pytest.mark.slow
@pytest.mark.parametrize("batch,seconds", FASTER)
def test_features_are_the_same_and_faster(encoders, batch, seconds):
    ours, stock = encoders
    waveform, durations = clips(batch, seconds, WINDOW)
    with threads(2), torch.inference_mode():
        difference = (ours(waveform, durations) - stock(waveform, durations)).abs().max().item()
        assert difference <= 1e-5
        found = compare(f"{batch} clips of {seconds:g} s", lambda: ours(waveform, durations), lambda: stock(waveform, durations))
    print(f"\n{found}\n  largest difference of a feature {difference:.1e}")
    found.require(FASTER[batch, seconds])
