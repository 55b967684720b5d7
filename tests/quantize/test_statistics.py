"""Codebook statistics against counts by hand, in parts and as a whole, and the estimate of how many codes there are."""
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from lib.quantize import statistics
from lib.quantize.bsq import pack, unpack
from lib.quantize.statistics import CodebookStatistics


def some_bits(tokens, bits, seed=0):
    """Bits of uneven balance, the last one a copy of the first."""
    generator = torch.Generator().manual_seed(seed)
    ones = torch.rand(tokens, bits, generator=generator) < torch.linspace(0.1, 0.6, bits)
    ones[:, -1] = ones[:, 0]
    return ones


def entropy(counts):
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts if count)


@pytest.mark.parametrize("bits, size", [(1, 9), (9, 9), (12, 5), (18, 9), (20, 9), (36, 9), (70, 9)])
def test_counts_by_hand(bits, size):
    ones = some_bits(300, bits)
    counted = CodebookStatistics(bits, size)
    codes = (ones.float() * 2 - 1) * 0.3
    valid = torch.rand(2, 200, generator=torch.Generator().manual_seed(1)) < 2
    valid[1, 100:] = False
    padded = torch.cat([codes, torch.ones(100, bits)]).view(2, 200, bits)
    counted.update(padded, valid)
    found = counted.results()
    rows = ["".join("1" if bit else "0" for bit in row) for row in ones.tolist()]
    assert found["tokens"] == 300 and found["used_codes"] == len(set(rows)) and found["used_codes_exact"] == (bits <= 63)
    assert found["per_bit_balance"] == pytest.approx(ones.double().mean(0).tolist(), abs=1e-12)
    assert found["bit_entropy"] == pytest.approx(sum(entropy([int(n), 300 - int(n)]) for n in ones.sum(0)), abs=1e-10)
    groups = [Counter(row[begin:begin + size] for row in rows) for begin in range(0, bits, size)]
    for group, expected in zip(found["per_group"], groups, strict=True):
        width = len(next(iter(expected)))
        assert group["bits"] == width and group["used_codes"] == len(expected) and group["usage"] == len(expected) / 2**width
        assert group["entropy"] == pytest.approx(entropy(expected.values()), abs=1e-10)
        assert group["perplexity"] == pytest.approx(2 ** entropy(expected.values()), rel=1e-10)
    assert found["group_entropy"] == pytest.approx(sum(group["entropy"] for group in found["per_group"]), abs=1e-12)
    assert found["group_entropy"] <= found["bit_entropy"] + 1e-9
    if bits <= 18:
        assert found["usage"] == len(set(rows)) / 2**bits
        assert found["code_entropy"] == pytest.approx(entropy(Counter(rows).values()), abs=1e-10)
        assert found["code_perplexity"] == pytest.approx(2 ** found["code_entropy"])
        assert found["code_entropy"] <= found["group_entropy"] + 1e-9
    else:
        assert found["usage"] is found["code_entropy"] is found["code_perplexity"] is None
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("bits", [9, 36])
def test_parts_add_up(bits):
    """Batches, merged counters and states that went through a file give what one update gives."""
    ones = some_bits(1000, bits)
    whole = CodebookStatistics(bits)
    whole.update(ones)
    parts = [CodebookStatistics(bits) for _ in range(3)]
    for number, batch in enumerate(ones.split(90)):
        parts[number % 3].update(batch.view(1, -1, bits))
    parts[0].merge(CodebookStatistics.from_state(parts[1].state()))
    parts[0].merge(parts[2])
    parts[0].merge(CodebookStatistics(bits))
    assert parts[0].results() == whole.results() == whole.reduce().results()
    for name, value in parts[0].state().items():
        assert torch.equal(value, whole.state()[name]) if torch.is_tensor(value) else value == whole.state()[name]


def test_a_state_does_not_share_memory():
    counted = CodebookStatistics(20)
    counted.update(some_bits(10, 20))
    state = counted.state()
    counted.update(some_bits(10, 20, seed=1))
    again = CodebookStatistics.from_state(state)
    assert again.tokens == int(state["counts"][:512].sum()) == 10
    again.update(some_bits(10, 20, seed=1))
    assert again.results() == counted.results() and int(state["counts"][:512].sum()) == 10


def test_all_codes_and_one_code():
    counted = CodebookStatistics(9)
    counted.update(unpack(torch.arange(512), 9))
    found = counted.results()
    assert found["usage"] == 1 and found["code_perplexity"] == pytest.approx(512) and found["bit_entropy"] == pytest.approx(9)
    assert found["per_bit_balance"] == [0.5] * 9
    single = CodebookStatistics(9)
    single.update(torch.ones(5, 9))
    found = single.results()
    assert found["used_codes"] == found["code_perplexity"] == 1
    assert found["code_entropy"] == found["group_entropy"] == found["bit_entropy"] == 0


@pytest.mark.parametrize("bits, different", [(36, 5000), (36, 40000), (63, 20000), (100, 20000)])
def test_many_codes_are_estimated_in_bounded_memory(monkeypatch, bits, different):
    """With 2^12 hashes kept the standard error is 1.6 %: 4 of them are allowed; memory does not grow with codes or tokens."""
    monkeypatch.setattr(statistics, "KEPT", 2**12)
    numbers = torch.randint(2**62, (different,), generator=torch.Generator().manual_seed(bits))
    ones = torch.cat([torch.zeros(different, 100, dtype=torch.bool), unpack(numbers, 62)], -1)[:, -bits:]
    different = len(torch.unique(ones, dim=0))
    assert different > 4096
    counted, halves = CodebookStatistics(bits), [CodebookStatistics(bits) for _ in range(2)]
    for _ in range(2):                      # every code twice
        for batch in ones.split(3000):
            counted.update(batch)
            assert len(counted.hashes) <= 4096 and sum(map(len, counted._waiting)) < 4096
    for half, part in zip(halves, ones.split(different * 2 // 3)):
        half.update(part)
    halves[0].merge(halves[1])
    found = counted.results()
    assert not found["used_codes_exact"] and abs(found["used_codes"] / different - 1) <= 4 / 64
    assert np.array_equal(halves[0].hashes, counted.hashes), "neither how often a code came nor in which batch matters"


def test_hashes_are_one_to_one_and_depend_on_all_bits():
    ones = unpack(torch.randint(2**62, (2000,), generator=torch.Generator().manual_seed(0)), 63)
    assert len(set(statistics._hash(ones).tolist())) == len(torch.unique(pack(ones)))
    wide = torch.zeros(131, 130, dtype=torch.bool)
    wide[torch.arange(130), torch.arange(130)] = True       # one bit each, and none
    assert len(set(statistics._hash(wide).tolist())) == 131


@pytest.mark.parametrize("act, words", [
    (lambda: CodebookStatistics(0), "bits must be at least 1"), (lambda: CodebookStatistics(9, 19), "group_size must be 1 to 18, got 19"),
    (lambda: CodebookStatistics(9, 0), "group_size must be 1 to 18"),
    (lambda: CodebookStatistics(9).update(torch.zeros(2, 8)), r"codes must be \(..., 9\), got \(2, 8\)"),
    (lambda: CodebookStatistics(9).update(torch.zeros(2, 9, dtype=torch.int64)), "bool or of a floating-point dtype, got torch.int64"),
    (lambda: CodebookStatistics(9).update(torch.zeros(2, 9), torch.ones(3, dtype=torch.bool)), r"valid must be \(2,\)"),
    (lambda: CodebookStatistics(9).update(torch.zeros(2, 9), torch.ones(2)), "of dtype bool, got"),
    (lambda: CodebookStatistics(9).merge(CodebookStatistics(9, 3)), "in groups of 3 cannot be added to those of 9 bits in groups of 9"),
    (lambda: CodebookStatistics(9).results(), "no token was counted")])
def test_refusals(act, words):
    with pytest.raises(ValueError, match=words):
        act()
