"""Features of PaSST against the stock hear21passt path: the same numbers, faster (eval mode, random weights, 2 threads)."""
import pytest

from lib.performance import passt
from lib.performance.measure import threads


@pytest.mark.slow
@pytest.mark.parametrize("batch", passt.ASKED)
def test_features_are_the_same_and_faster(batch):
    with threads(2):
        found = passt.features({batch: passt.ASKED[batch]}, repetitions=5)
    print("", *found, sep="\n")
    assert [one.asked for one in found] == ([1.1] if batch == 1 else [1.2, 3.0])
    for one in found:
        one.require()
