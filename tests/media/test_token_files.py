"""Token files: round trips, the same bytes however they are written, real bit rates, memory, and every damage refused."""
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.media import arithmetic, token_files
from lib.media.token_files import (BLOCK_BITS, TokenFileError, TokenHeader, TokenReader, TokenWriter, bit_probabilities, places, read_tokens,
                                   write_tokens)

HEADER = TokenHeader("0123456789abcdef", 18, ((64, 8),), 1024, 16000, 160)
SMALL = replace(HEADER, bits=5, grids=((3, 2),), frames=48)
GIVEN = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tokens(header, chunks, share=0.3, seed=0):
    draw = np.random.default_rng(seed)
    return draw.random((chunks * header.chunk_tokens, header.bits)) < share, draw.normal(0, 20, chunks).astype(np.float32)


def coded(header, bits, context):
    return replace(header, coding="arithmetic", probabilities=bit_probabilities(bits, header.grids if context else None))


def same(one, other):
    one, other = ({**vars(h), "probabilities": None if h.probabilities is None else h.probabilities.tolist()} for h in (one, other))
    return one == other


@pytest.mark.parametrize("grids", [((64, 8),), ((7, 3),), ((4, 8), (2, 4), (1, 2))], ids=str)
@pytest.mark.parametrize("coding", ["packed", "bits", "rows"])
@pytest.mark.parametrize("reference", [None, -12.5])
def test_round_trip(tmp_path, grids, coding, reference):
    header = replace(HEADER, grids=grids, reference=reference, bits=13)
    bits, peaks = tokens(header, 3)
    header = header if coding == "packed" else coded(header, bits, coding == "rows")
    peaks = peaks if reference is None else None
    path = write_tokens(tmp_path / "deep" / "a.tokens", bits, header, samples=123_457, peaks=peaks)
    found = read_tokens(path, model=HEADER.model)
    assert found.bits.dtype == bool and (found.bits == bits).all() and found.samples == 123_457 and same(found.header, header)
    assert found.peaks.dtype == np.float32 and (found.peaks.tolist() == ([] if peaks is None else peaks.tolist()))
    assert found.size == path.stat().st_size and found.bits_per_second == pytest.approx(8 * found.size / (123_457 / 16000))
    assert [p.name for p in path.parent.iterdir()] == ["a.tokens"], "no temporary file is left"


def test_first_bit_is_the_highest():
    bits = np.zeros((6, 5), dtype=bool)
    bits[0, 0] = bits[1, 3] = bits[5, 4] = True
    assert token_files._coded(bits, SMALL) == bytes([0b10000000, 0b10000000, 0, 0b00000100])
    assert places(((2, 3),)).tolist() == [0, 1, 2, 0, 1, 2] and places(((2, 2), (1, 1))).tolist() == [0, 1, 0, 1, 2]


@GIVEN
@given(data=st.data())
def test_the_file_does_not_depend_on_the_pieces(tmp_path, data):
    bits, peaks = tokens(SMALL, 60)
    header = data.draw(st.sampled_from([SMALL, coded(SMALL, bits, True)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "BLOCK_BITS", data.draw(st.integers(1, 1000)))
        whole = write_tokens(tmp_path / "a", bits, header, samples=5, peaks=peaks).read_bytes()
        cuts = [0, *sorted(data.draw(st.lists(st.integers(0, 60), max_size=6))), 60]
        with TokenWriter(tmp_path / "b", header) as writer:
            for first, end in zip(cuts, cuts[1:]):
                writer.append(bits[6 * first:6 * end], peaks[first:end])
            writer.samples = 5
        assert (tmp_path / "b").read_bytes() == whole
        pieces = list(TokenReader(tmp_path / "b"))
        assert (np.concatenate([b for b, _ in pieces]) == bits).all() and (np.concatenate([p for _, p in pieces]) == peaks).all()


def test_rates_are_real(tmp_path):
    """18 bits, 50 tokens a second: 900 b/s and little on top; skewed bits cost what their entropy says."""
    chunks, samples = 20, 20 * 163_840
    bits, peaks = tokens(HEADER, chunks, np.linspace(0.05, 0.5, 18))
    packed = read_tokens(write_tokens(tmp_path / "a", bits, HEADER, samples=samples, peaks=peaks))
    assert 900 < packed.bits_per_second < 900 * 1.01 and packed.seconds == pytest.approx(204.8)
    header = coded(HEADER, bits, False)
    entropy = arithmetic.cost(bits, header.probabilities) / packed.seconds
    small = read_tokens(write_tokens(tmp_path / "b", bits, header, samples=samples, peaks=peaks))
    assert (small.bits == bits).all() and entropy < small.bits_per_second < 1.02 * entropy < 0.8 * 900
    # what differs by row is known with a table a row only
    share = np.where(places(HEADER.grids) % 2, 0.05, 0.95)
    bits = np.random.default_rng(1).random((chunks, 512, 18)) < share[:, None]
    bits = bits.reshape(-1, 18)
    rows, flat = (read_tokens(write_tokens(tmp_path / "c", bits, coded(HEADER, bits, context), samples=samples, peaks=peaks)) for context in (True, False))
    assert (rows.bits == bits).all() and rows.bits_per_second < 0.35 * flat.bits_per_second


def test_probabilities_are_counts():
    bits, _ = tokens(SMALL, 50)
    by_row = bit_probabilities(bits, SMALL.grids)
    for row in range(2):
        expected = (bits[row::2].sum(axis=0) + 0.5) / (150 + 1)
        assert by_row[row].tolist() == np.rint(expected * 65536).tolist()
    assert bit_probabilities(bits).tolist() == [np.rint((bits.sum(axis=0) + 0.5) / 301 * 65536).tolist()]
    assert bit_probabilities(np.zeros((0, 5), dtype=bool)).tolist() == [[32768] * 5]
    with pytest.raises(ValueError, match="7 tokens are no whole chunks of 6"):
        bit_probabilities(np.zeros((7, 5), dtype=bool), SMALL.grids)


def test_memory_does_not_grow(tmp_path):
    header, most = replace(HEADER, reference=0.0, grids=((1, 8),), frames=16), {}
    bits, _ = tokens(header, 2000)
    for parts in (10, 60):
        tracemalloc.start()
        with TokenWriter(tmp_path / "long", header) as writer:
            for _ in range(parts):
                writer.append(bits)
            writer.samples = parts
        sizes = [part.size for part, _ in TokenReader(tmp_path / "long")]
        most[parts] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(sizes) == parts * bits.size > 2 * BLOCK_BITS and max(sizes) <= BLOCK_BITS
    assert most[60] < 1.05 * most[10] < 20e6, most


def test_blocks_of_an_arithmetic_file(tmp_path):
    header = replace(HEADER, reference=0.0)
    bits, _ = tokens(header, 150)
    header = coded(header, bits, True)
    write_tokens(tmp_path / "a", bits, header, samples=1)
    parts = [part for part, _ in TokenReader(tmp_path / "a")]
    assert [len(part) for part in parts] == [113 * 512, 37 * 512] and (np.concatenate(parts) == bits).all()


@GIVEN
@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
def test_any_changed_byte_is_refused(tmp_path, place, value):
    path = tmp_path / "a"
    bits, peaks = tokens(SMALL, 7)
    if not path.exists():
        write_tokens(path, bits, coded(SMALL, bits, True), samples=9, peaks=peaks)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= value
    (tmp_path / "b").write_bytes(data)
    with pytest.raises(TokenFileError, match=str(tmp_path / "b")):
        read_tokens(tmp_path / "b")


def test_any_other_length_is_refused(tmp_path):
    bits, peaks = tokens(SMALL, 2)
    data = write_tokens(tmp_path / "a", bits, SMALL, samples=9, peaks=peaks).read_bytes()
    for length in range(len(data)):
        (tmp_path / "b").write_bytes(data[:length])
        with pytest.raises(TokenFileError, match="cut off"):
            read_tokens(tmp_path / "b")
    (tmp_path / "b").write_bytes(data + b"\0")
    with pytest.raises(TokenFileError, match="too long"):
        read_tokens(tmp_path / "b")


def test_foreign_files_versions_and_models(tmp_path):
    bits, peaks = tokens(SMALL, 2)
    path = write_tokens(tmp_path / "a", bits, SMALL, samples=9, peaks=peaks)
    data, other = path.read_bytes(), tmp_path / "b"
    for foreign in (b"RIFF" + bytes(200), b"\x93NUMPY\x01\0" + bytes(90), b"\0"):
        other.write_bytes(foreign)
        with pytest.raises(TokenFileError, match="no token file"):
            read_tokens(other)
    other.write_bytes(data[:8] + struct.pack("<H", 2) + data[10:])
    with pytest.raises(TokenFileError, match="version 2 .* reads version 1"):
        read_tokens(other)
    with pytest.raises(TokenFileError, match="made by model '0123456789abcdef'; this one is 'me'"):
        read_tokens(path, model="me")
    with pytest.raises(FileNotFoundError):
        read_tokens(tmp_path / "none")


def test_a_well_checksummed_lie_is_refused(tmp_path):
    """Heads and blocks of another program: right checksums, impossible contents."""
    bits, peaks = tokens(SMALL, 2)
    data, other = write_tokens(tmp_path / "a", bits, SMALL, samples=9, peaks=peaks).read_bytes(), tmp_path / "b"
    length = struct.unpack_from("<I", data, 10)[0]
    end = 14 + length

    def told(body, payload, count=None):
        body = bytearray(body)
        struct.pack_into("<QQQI", body, len(body) - 28, 12 if count is None else count, 9, len(payload), zlib.crc32(payload))
        head = data[:10] + struct.pack("<I", len(body)) + bytes(body)
        other.write_bytes(head + struct.pack("<I", zlib.crc32(head)) + payload)
        return read_tokens(other)

    body, payload = data[14:end], data[end + 4:]
    assert (told(body, payload).bits == bits).all(), "the forger's tools work"
    for wrong in (b"\0\0" + body[2:], body[:2] + b"\xff\xff" + body[4:], body[:4] + bytes(4) + body[8:], body[:21] + b"\x07" + body[22:]):
        with pytest.raises(TokenFileError, match="a head that no token file"):
            told(wrong, payload)
    for wrong, count in ((payload[:5], 12), (payload[:-1], 12), (payload, 13), (payload, 6), (struct.pack("<III", 7, 2, 0) + payload[12:], 12),
                         (struct.pack("<III", 12, 1, 8) + payload[12:], 12), (payload + payload, 12), (struct.pack("<III", 12, 2, 2**32 - 1) + payload[12:], 12)):
        with pytest.raises(TokenFileError, match="damaged"):
            told(body, wrong, count)


def test_what_cannot_be_written(tmp_path):
    bits, peaks = tokens(SMALL, 2)
    for wrong, words in [(dict(bits=bits[:5]), "5 tokens are no whole chunks of 6"), (dict(peaks=peaks[:1]), "1 peaks for 2 chunks; one finite"),
                         (dict(peaks=None), "0 peaks"), (dict(peaks=[0, np.nan]), "finite"), (dict(bits=bits.astype(int)), r"bool of shape \(tokens, 5\), got int64"),
                         (dict(bits=bits[:, :4]), r"got bool \(12, 4\)"), (dict(samples=None), "samples"), (dict(samples=-1), "samples"),
                         (dict(header=replace(SMALL, reference=0.0)), "fixed reference")]:
        with pytest.raises(ValueError, match=words):
            write_tokens(tmp_path / "a", **({"bits": bits, "header": SMALL, "samples": 9, "peaks": peaks} | wrong))
        assert not list(tmp_path.iterdir()), "nothing is left"
    with pytest.raises(ValueError, match="was not given"), TokenWriter(tmp_path / "a", SMALL):
        pass
    (tmp_path / "a").write_text("older")
    with pytest.raises(RuntimeError), TokenWriter(tmp_path / "a", SMALL) as writer:
        writer.append(bits, peaks)
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "older" and len(list(tmp_path.iterdir())) == 1


def test_no_tokens_at_all(tmp_path):
    found = read_tokens(write_tokens(tmp_path / "-a", np.zeros((0, 5), bool), SMALL, samples=0, peaks=[]))
    assert found.bits.shape == (0, 5) and len(found.peaks) == 0 and np.isnan(found.bits_per_second)


@pytest.mark.parametrize("wrong, words", [
    ({"model": "x" * 256}, "digest"), ({"bits": 0}, "bits"), ({"frames": 0}, "frames"), ({"hop": 2**32}, "hop"), ({"sample_rate": 0}, "sample_rate"),
    ({"grids": ()}, "grids"), ({"grids": ((0, 3),)}, "grids"), ({"reference": float("inf")}, "reference"), ({"coding": "zip"}, "packed, arithmetic"),
    ({"coding": "arithmetic"}, "needs probabilities"), ({"probabilities": np.ones((1, 18), np.uint16)}, "takes no probabilities"),
    ({"coding": "arithmetic", "probabilities": np.ones((1, 18))}, "uint16"), ({"coding": "arithmetic", "probabilities": np.zeros((1, 18), np.uint16)}, "at least 1"),
    ({"coding": "arithmetic", "probabilities": np.ones((2, 18), np.uint16)}, r"\(8, 18\)")], ids=str)
def test_headers_that_are_wrong(wrong, words):
    with pytest.raises(ValueError, match=words):
        replace(HEADER, **wrong)
