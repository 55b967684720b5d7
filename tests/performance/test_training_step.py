"""A whole training step of PaSST-S and RoBERTa-base against the same step on stock hear21passt and eager attention (2 threads)."""
import pytest

from lib.performance import passt
from lib.performance.measure import threads


@pytest.mark.slow
def test_step_is_the_same_and_faster():
    with threads(2):
        found, = passt.training_step(batch=8, repetitions=3, memory=False)
    print(f"\n{found}")
    assert found.asked == 1.0
    found.require()
