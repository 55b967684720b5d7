"""Rows of parquet files against the same bytes in a file, every kind of array, what must be refused, and how much is read for it."""
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lib.data import health
from lib.media import audio, shards
from lib.settings import ROOT
from tests import tiny_audioset as tiny

RATE = 16_000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * RATE + 77, 2))
ARRAY = pa.struct([("array", pa.list_(pa.float32())), ("sampling_rate", pa.int64())])


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))


@pytest.fixture
def reads(monkeypatch):
    """What is read of row groups: a list of (name of the file, row group)."""
    made, real = [], pq.ParquetFile.iter_batches

    def counted(self, *args, **options):
        made.extend((Path(shards._thread.place.key[0]).name if shards._thread.place else None, g) for g in options["row_groups"])
        return real(self, *args, **options)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    monkeypatch.setattr(shards._thread, "place", None, raising=False)
    return made


def row(file, number, rate=None):
    return str(shards.Row(str(file), number, rate))


def m4a(signal, rate):
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(signal.T, dtype=np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        for packet in (*track.encode(frame), *track.encode(None)):
            container.mux(packet)
    return stream.getvalue()


def contents():
    made = {f"{kind} {rate}": tiny.encode(NOISE, rate, kind, subtype) for kind, subtype, rate in
            [("FLAC", "PCM_24", 48_000), ("FLAC", None, 44_100), ("WAV", None, RATE), ("WAV", "FLOAT", 8000), ("OGG", None, RATE), ("MP3", None, 44_100)]}
    return made | {"mono": tiny.encode(NOISE[:, 0], RATE), "m4a": m4a(NOISE, 44_100), "mp3 without length": _headless(made["MP3 44100"])}


def _headless(mp3):
    """Without its first frame, the one that tells how long it is."""
    start = next(i for i in range(400, len(mp3)) if mp3[i] == 0xFF and mp3[i + 1] & 0xE0 == 0xE0)
    return mp3[start:]


def test_a_row_is_decoded_like_the_same_bytes_in_a_file(tmp_path):
    """Bit for bit: every container, windows in any place, own rate and others; so are header, blocks and verdict."""
    made = contents()
    names, pairs = list(made), {}
    file = tiny.shard(tmp_path / "00.parquet", row_group=4, audio=pa.array([{"bytes": made[n], "path": n} for n in names], type=tiny.BYTES))
    for number, name in enumerate(names):
        plain, address = tmp_path / f"{number}.bin", row(file, number)
        plain.write_bytes(made[name])
        assert audio.probe(address) == audio.probe(plain), name
        for rate in (None, 32_000):
            for start, duration in [(0, None), (0, 0.5), (0.3333, 0.7), (1.3, 5.0), (9.0, 1.0)]:
                window = dict(sample_rate=rate, start=start, duration=duration, mono=start > 1)
                assert torch.equal(audio.read(address, **window), audio.read(plain, **window)), (name, window)
        assert all(np.array_equal(a, b) for a, b in zip(audio.blocks(address), audio.blocks(plain), strict=True))
        assert audio.encoded(address).read() == made[name]
        pairs[address] = str(plain)
    verdicts = health.inspect([*pairs, *pairs.values()])
    assert all(verdicts[address] == verdicts[plain] and verdicts[plain].duration > 0.6 for address, plain in pairs.items())


WHOLE = {"int16": 2**15, "int32": 2**31, "int8": 2**7, "int64": 2**15}


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", *WHOLE, "uint8", "uint16"])
def test_arrays_of_every_type(tmp_path, kind):
    signal = NOISE[:500, 0]
    if kind.startswith("u"):
        half = 2 ** (int(kind[4:]) - 1)
        values = np.round(signal * half + half).astype(kind)
        expected = (values.astype(np.float64) - half) / half
    elif kind in WHOLE:
        values = np.round(signal * WHOLE[kind]).astype(kind)
        expected = values / WHOLE[kind]
    else:
        values = expected = signal.astype(kind)
    file = tiny.shard(tmp_path / "a.parquet", audio=pa.array([{"array": values, "sampling_rate": RATE}],
                                                             type=pa.struct([("array", pa.list_(pa.from_numpy_dtype(kind))), ("sampling_rate", pa.int32())])))
    found = audio.read(row(file, 0), sample_rate=None)
    assert found.dtype == torch.float32 and np.array_equal(found[0].numpy(), np.asarray(expected, dtype=np.float32))
    assert audio.probe(row(file, 0)) == audio.AudioInfo(500 / RATE, RATE, 1, "array/float32")


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 300)])
def test_two_axes_the_smaller_one_is_the_channels(tmp_path, make):
    signal = NOISE[:300].astype(np.float32)
    across = pa.array([signal.T.tolist()], type=pa.list_(make(pa.float32())))
    along = pa.array([signal.tolist()], type=pa.list_(pa.list_(pa.float32())))
    for number, cells in enumerate((across, along)):
        file = tiny.shard(tmp_path / f"{number}.parquet", audio=cells)
        assert np.array_equal(audio.read(row(file, 0, RATE), sample_rate=None, mono=False).numpy(), signal.T)
        folded = audio.read(row(file, 0, RATE), sample_rate=8000, start=0.005, duration=0.01)
        assert torch.equal(folded, audio.read(row(file, 0, RATE), sample_rate=8000)[:, 40:120]), "windows as of files"


def test_rates_are_the_rows_own_before_that_of_the_address(tmp_path):
    file = tiny.shard(tmp_path / "a.parquet", audio=pa.array([{"array": [0.5] * 80, "sampling_rate": 8000}, {"array": [0.5] * 80, "sampling_rate": None}],
                                                             type=ARRAY))
    assert audio.probe(row(file, 0, 4000)).sample_rate == 8000 and audio.probe(row(file, 1, 4000)).sample_rate == 4000


def bad_rows(folder):
    """{address: (reason, words of the message)}"""
    kinds = {
        "bytes": (tiny.BYTES, [({"bytes": None, "path": "gone.flac"}, "empty", "no bytes"), (None, "empty", "null"), ({"bytes": b"", "path": ""}, "empty", "0 bytes"),
                               ({"bytes": b"no sound" * 99, "path": ""}, "unreadable", "cannot be decoded")]),
        "array": (ARRAY, [({"array": [0.1] * 99, "sampling_rate": None}, "no sample rate", "set array_sample_rate"), (None, "empty", "null"),
                          ({"array": None, "sampling_rate": RATE}, "empty", "null"), ({"array": [0.1] * 99, "sampling_rate": 0}, "no sample rate", "set array")]),
        "list": (pa.list_(pa.float64()), [([0.1] * 99, "no sample rate", "set array_sample_rate"), (None, "empty", "null")]),
        "axes": (pa.list_(pa.list_(pa.int16())), [([[1, 2], [3]], "unreadable", "different lengths"), ([[1] * 40] * 30, "unreadable", r"shape \(30, 40\)"),
                                                  ([[1, 2], None], "unreadable", "different lengths")]),
        "long": (pa.list_(pa.int64()), [([2**20, 1], "unreadable", "no known full scale")]),
        "text": (pa.list_(pa.string()), [(["0.5"], "unreadable", "expected numbers")]),
        "number": (pa.int64(), [(7, "unreadable", "of type int64; expected a struct")]),
    }
    made = {}
    for name, (kind, cells) in kinds.items():
        file = tiny.shard(folder / f"{name}.parquet", audio=pa.array([cell for cell, *_ in cells], type=kind))
        made |= {row(file, number): (reason, words) for number, (_, reason, words) in enumerate(cells)}
    made[row(folder / "bytes.parquet", 99)] = ("missing", "has only 4 rows")
    (folder / "text only.parquet").write_text("no parquet")
    made[row(folder / "text only.parquet", 0)] = ("unreadable", "cannot be read from the parquet file.*fetch .*text only.parquet again")
    return made


def test_what_cannot_be_read_says_so_and_is_counted(tmp_path):
    expected = bad_rows(tmp_path)
    for address, (reason, words) in expected.items():
        with pytest.raises(audio.AudioError, match=words) as caught:
            audio.read(address, sample_rate=None)
        assert caught.value.reason == reason and str(address.split("#")[0]) in str(caught.value), address
    verdicts = health.inspect(expected)
    assert {address: verdict.reason for address, verdict in verdicts.items()} == {address: reason for address, (reason, _) in expected.items()}
    assert set(health.REASONS) >= {reason for reason, _ in expected.values()}


def test_arrays_that_are_empty_or_hold_nulls_are_counted(tmp_path):
    cells = pa.array([[], [None] * 50, [0.1, None, 0.2] * 50, [0.1] * 5000, np.sin(np.arange(5000)).tolist()], type=pa.list_(pa.float64()))
    file = tiny.shard(tmp_path / "a.parquet", audio=cells)
    verdicts = health.inspect([row(file, k, RATE) for k in range(5)])
    assert [v.reason for v in verdicts.values()] == ["empty", "nan", "nan", "silent", ""]
    nulls = tiny.shard(tmp_path / "null.parquet", audio=pa.array([[], []]))
    assert health.inspect([row(nulls, 0, RATE)])[row(nulls, 0, RATE)].reason == "empty"
    assert audio.read(row(nulls, 1, RATE), sample_rate=8000).shape == (1, 0)


def test_damage_within_a_shard_costs_its_rows_only(tmp_path):
    cells = [{"bytes": tiny.encode(NOISE[k:4000, 0], RATE), "path": ""} for k in range(4)]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"audio": pa.array(cells, type=tiny.BYTES)}), file, row_group_size=2, write_page_checksum=True, compression="NONE")
    place = pq.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    content = bytearray(file.read_bytes())
    content[place:place + 40] = b"\xff" * 40  # the header of a page
    file.write_bytes(content)
    assert [v.reason for v in health.inspect([row(file, k) for k in range(4)]).values()] == ["unreadable", "unreadable", "", ""]


def test_names_with_hashes_and_worse(tmp_path, monkeypatch):
    """The last # counts; a file that is really called so comes first; relative names may begin with a dash."""
    one, two = tiny.encode(NOISE[:800], RATE), tiny.encode(NOISE[:1600], RATE)
    folder = tmp_path / "-a#7 'b\" <i>.parquet#3"
    file = tiny.shard(folder / "x#1@8.parquet", audio=pa.array([{"bytes": one, "path": ""}] * 3, type=tiny.BYTES))
    assert audio.probe(row(file, 2)).duration == 0.05 and shards.parse(row(file, 2, 44_100)) == shards.Row(str(file), 2, 44_100)
    (folder / "x#1@8.parquet#2").write_bytes(two)
    assert audio.probe(row(file, 2)).duration == 0.1, "a real file comes first"
    assert shards.parse(row(file, 2)) is None and shards.parse(row(file, 1)) is not None
    monkeypatch.chdir(folder.parent)
    assert audio.probe(f"{folder.name}/x#1@8.parquet#1").duration == 0.05
    for name in ("a.parquet", "a.parquet#", "a.parquet#-1", "a.parquet#1@", "a.parquet#1x", "b.wav#1"):
        assert shards.parse(name) is None
    with pytest.raises(audio.AudioError, match="a.parquet#1: does not exist"):
        audio.read(tmp_path / "a.parquet#1", sample_rate=None)
    assert health.inspect([str(tmp_path / "a.parquet#1")])[str(tmp_path / "a.parquet#1")].reason == "missing"


def test_rows_in_their_order_cost_one_pass(tmp_path, reads):
    """One start a row group however many windows a row is read for, with gaps, too; going back starts it again, another file closes it."""
    cells = [{"bytes": tiny.encode(np.full(50, k / 100), RATE), "path": ""} for k in range(20)]
    a, b = (tiny.shard(tmp_path / f"{name}.parquet", row_group=5, audio=pa.array(cells, type=tiny.BYTES)) for name in "ab")

    def value(file, number):
        assert audio.probe(row(file, number)).duration == 50 / RATE
        return round(float(audio.read(row(file, number), sample_rate=None)[0, 7]) * 100)
    assert [value(a, k) for k in range(20)] == list(range(20)) and reads == [("a.parquet", g) for g in range(4)]
    del reads[:]
    assert [value(a, k) for k in (1, 4, 11, 12, 12)] == [1, 4, 11, 12, 12] and [g for _, g in reads] == [0, 2]
    del reads[:]
    assert [value(a, 10), value(b, 3), value(b, 4), value(a, 12)] == [10, 3, 4, 12] and reads == [("a.parquet", 2), ("b.parquet", 0), ("a.parquet", 2)]
    order = np.random.default_rng(0).permutation(20).tolist()
    assert [value(a, k) for k in order] == order
    with ThreadPoolExecutor(4) as pool:  # each thread has a place of its own
        assert list(pool.map(lambda k: value(a, k), order)) == order
    tiny.shard(tmp_path / "a.parquet", row_group=5, audio=pa.array(cells[::-1], type=tiny.BYTES))
    assert value(a, 3) == 16, "a file that changed is opened again"


def test_verdicts_are_kept_until_the_file_changes(tmp_path, monkeypatch):
    cells = [{"bytes": tiny.encode(NOISE[:400 * (k + 1)], RATE), "path": ""} for k in range(4)]
    file = tiny.shard(tmp_path / "a.parquet", audio=pa.array(cells, type=tiny.BYTES))
    addresses = [row(file, k) for k in range(4)]
    first = health.inspect(addresses, workers=2)
    assert [first[address].duration for address in addresses] == [0.025, 0.05, 0.075, 0.1]
    looked, real = [], health.inspect_all
    monkeypatch.setattr(health, "inspect_all", lambda files, *rest: looked.extend(files) or real(files, *rest))
    assert health.inspect(addresses) == first and looked == []
    tiny.shard(file, audio=pa.array(cells[:3] + [{"bytes": b"x", "path": ""}], type=tiny.BYTES))
    again = health.inspect(addresses)
    assert [again[address].reason for address in addresses] == ["", "", "", "unreadable"] and len(looked) == 4


def test_memory_is_that_of_a_row_group(tmp_path):
    """60 MB in row groups of 1.5 MB: reading all of it takes a few of them, also where a row group is one page as pyarrow writes it."""
    rng = np.random.default_rng(0)
    cells = [{"bytes": tiny.encode(rng.uniform(-1, 1, 75_000), RATE), "path": ""} for _ in range(10)]
    file = tiny.shard(tmp_path / "a.parquet", row_group=10, audio=pa.array(cells * 40, type=tiny.BYTES))
    code = ("import re, sys; from lib.media import audio; import lib.media.shards\n"
            "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
            "begin = peak()\n"
            "assert all(audio.probe(f'{sys.argv[1]}#{k}').sample_rate == 16000 for k in range(400)); print(peak() - begin)")
    run = subprocess.run([sys.executable, "-c", code, str(file)], cwd=ROOT, capture_output=True, text=True, check=True)
    size, more = file.stat().st_size, int(run.stdout)
    assert size > 55e6 and more < 25e6, f"{more / 1e6:.1f} MB more for row groups of {size / 40e6:.1f} MB"
