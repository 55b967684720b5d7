"""The coder of bits: round trips, the entropy bound, a written-out reference, fixed bytes, and every refusal."""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.media import arithmetic

DRAW = np.random.default_rng(0)


def drawn(shape, probability, seed=0):
    return np.random.default_rng(seed).random(shape) < probability


def naive(bits, probability):
    """One lane, with Python's own whole numbers."""
    state, words = 1 << 32, []
    for bit, p in reversed(list(zip(bits, probability))):
        share, start = (p, 0) if bit else (65536 - p, p)
        if state >= share << 32:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // share << 16) + state % share + start
    return state.to_bytes(6, "little") + b"".join(word.to_bytes(2, "little") for word in reversed(words))


def test_one_lane_is_the_written_out_coder():
    for seed, p in enumerate((0.5, 0.03, 0.999)):
        bits, table = drawn(3000, p, seed), arithmetic.quantise(np.random.default_rng(seed).random(3000))
        assert arithmetic.encode(bits, table) == naive(bits.tolist(), table.tolist())
    assert arithmetic.encode(np.array([True, False, True, True]), np.uint16(40000)).hex() == naive([1, 0, 1, 1], [40000] * 4).hex() == "006f85490b00"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 65535)), max_size=200))
def test_round_trip_of_anything(pairs):
    bits, table = np.array([b for b, _ in pairs], dtype=bool), np.array([p for _, p in pairs], dtype=np.uint16)
    assert (arithmetic.decode(arithmetic.encode(bits, table), table) == bits).all()


@pytest.mark.parametrize("count", [1, 16383, 32768, 3 * 16384 + 17, 40 * 16384 + 1, 260 * 16384])
def test_round_trip_at_every_number_of_lanes(count):
    table = arithmetic.quantise(np.random.default_rng(count).random(count) ** 3)
    bits = drawn(count, table / 65536)
    data = arithmetic.encode(bits, table)
    assert (arithmetic.decode(data, table) == bits).all()
    overhead = 8 * len(data) - arithmetic.cost(bits, table)
    assert overhead < 48 * max(1, min(256, count // 16384)) + 1e-5 * arithmetic.cost(bits, table), overhead


@pytest.mark.parametrize("probability", [0.5, 0.2, 0.05, 0.005, 0.9, 0.99])
def test_within_one_percent_of_the_entropy(probability):
    bits = drawn((20000, 18), probability)
    share = bits.mean(axis=0)
    entropy = 20000 * float(-(share * np.log2(share) + (1 - share) * np.log2(1 - share)).sum())
    data = arithmetic.encode(bits, arithmetic.quantise(share))
    assert entropy < arithmetic.cost(bits, arithmetic.quantise(share)) < 1.0001 * entropy
    assert 8 * len(data) < 1.0001 * entropy + 48 * 21, "21 lanes"
    assert 8 * len(data) < 1.01 * entropy or entropy < 0.3 * bits.size, "where a lane's share is 16384 bits of little content it shows"


def test_contexts_broadcast_and_shapes_come_back():
    table = arithmetic.quantise(DRAW.random((8, 6)))                    # a table a place in frequency
    bits = drawn((50, 8, 6), table / 65536)
    data = arithmetic.encode(bits, table)
    found = arithmetic.decode(data, np.broadcast_to(table, bits.shape))
    assert found.shape == bits.shape and (found == bits).all()
    assert arithmetic.encode(np.zeros((0, 6), bool), table[0]) == b"" and arithmetic.decode(b"", np.zeros((0, 6))).shape == (0, 6)


def test_quantise_and_cost():
    assert arithmetic.quantise([0, 1, 0.5, 1e-9]).tolist() == [1, 65535, 32768, 1] and arithmetic.quantise(0.25).dtype == np.uint16
    assert arithmetic.cost(np.array([True, False]), np.uint16(16384)) == pytest.approx(2 - math.log2(0.75), abs=1e-12)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share of ones"):
            arithmetic.quantise([0.5, wrong])


def test_what_is_not_the_code_is_refused():
    bits, table = drawn(20000, 0.3), np.full(20000, 20000, np.uint16)
    data = arithmetic.encode(bits, table)
    for wrong in (data[:-2], data[:-1], data[:4], b"", data + b"\0\0"):
        with pytest.raises(ValueError, match="bytes"):
            arithmetic.decode(wrong, table)
    with pytest.raises(ValueError, match="these probabilities"):
        arithmetic.decode(data, np.full(20000, 30000, np.uint16))
    with pytest.raises(ValueError, match="0 coded bits"):
        arithmetic.decode(b"\0\0", np.zeros(0))
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match="these probabilities"):
        arithmetic.decode(bytes(changed), table)
    with pytest.raises(ValueError, match="must be bool, got int64"):
        arithmetic.encode(np.array([0, 1]), 5)
    for wrong in (0, 65536, -1):
        with pytest.raises(ValueError, match="quantise"):
            arithmetic.encode(bits, wrong)
