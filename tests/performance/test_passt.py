"""Features of PaSST against the stock hear21passt path: the same numbers, faster (eval mode, random weights, 2 threads)."""
import pytest
import torch

from lib.encoders.passt import PasstEncoder
from tests.performance.stock import Comparison, StockPasst, clips, medians, threads

WINDOW = 30.0
FASTER = {1: {30.0: 1.1}, 4: {30.0: 1.2, 8.0: 3.0}}             # clips: {seconds of sound in each: times}


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    ours = PasstEncoder().eval()
    return ours, StockPasst(ours).eval()


@pytest.mark.slow
@pytest.mark.parametrize("batch", FASTER)
def test_features_are_the_same_and_faster(encoders, batch):
    """The stock path always encodes the window: one measurement of it serves clips of all lengths."""
    ours, stock = encoders
    inputs = {seconds: clips(batch, seconds, WINDOW) for seconds in FASTER[batch]}
    with threads(2), torch.inference_mode():
        difference = max((ours(*given) - stock(*given)).abs().max().item() for given in inputs.values())
        assert difference <= 1e-5
        ways = {seconds: lambda given=given: ours(*given) for seconds, given in inputs.items()}
        found = medians(ways | {"stock": lambda: stock(*inputs[WINDOW])})
        compared = {seconds: Comparison(f"{batch} clips of {seconds:g} s", found[seconds], found["stock"], 5, 2) for seconds in inputs}
    print("", *compared.values(), f"  largest difference of a feature {difference:.1e}", sep="\n")
    for seconds, times in FASTER[batch].items():
        compared[seconds].require(times)
