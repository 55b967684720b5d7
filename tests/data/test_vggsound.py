"""The table in its published format, the published draws, the tools from the command line, and the manifest of tiny videos."""
import csv
import json
import os
import random
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from lib.data import prepare, vggsound, vggsound_table, vggsound_tools
from lib.data.__main__ import main
from lib.data.vggsound_table import draw_classes, find_videos, read_table, select_classes, select_preset, select_subset

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data"))
DRAWN = [57, 12, 140, 125, 114, 71, 52, 279, 44, 302]  # positions of the ten published classes
COMMAS = "bird chirping, tweeting"


def video(path, seconds=1.0, sound=True, pictures=True, level=0.4, seed=0):
    """A tiny video: grey noise at 8 frames a second, and a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        if pictures:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        if sound:
            tones = container.add_stream("aac", rate=16000, layout="mono")
        if pictures:
            for _ in range(round(8 * seconds)):
                picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
        if sound:
            signal = level * np.sin(np.arange(round(16000 * seconds)) * 0.3, dtype=np.float32)[None]
            frame = av.AudioFrame.from_ndarray(signal, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux([*tones.encode(frame), *tones.encode(None)])
    return path


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def ids(table):
    return table["clip_id"].tolist()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A table of 309 labels, 20 to 49 training and 6 to 12 test clips each, in no order of labels."""
    rng, rows = random.Random(1), []
    for number in range(309):
        for split, low, high in (("train", 20, 49), ("test", 6, 12)):
            for clip in range(rng.randint(low, high)):
                rows.append((f"{'-' if clip % 9 == 0 else 'x'}{number:05d}{split[:2]}{clip:03d}", 30 * clip, f"label {number}, of many", split))
    rng.shuffle(rows)
    file = write_csv(tmp_path_factory.mktemp("published") / "vggsound.csv", rows)
    return file, rows


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Good and bad videos by clip id, made once; the verdicts on them are kept, too."""
    folder = tmp_path_factory.mktemp("-videos")
    for number, name in enumerate(("-1VcGT09lUI_000126", "aaaaaaaaaaa_000000", "aaaaaaaaaaa_000030", "bbbbbbbbbbb_021217", "NA_000007", "0123_000001",
                                   "ttttttttttt_000010", "-ttttttttt-_000020", "ttttttttttt_000050")):
        video(folder / ("deep" if number % 2 else ".") / f"{name}.mp4", seed=number)
    whole = video(folder / "whole.mp4", seconds=4.0, seed=99)
    cut = folder / "cccccccccct_000001.mp4"
    cut.write_bytes(whole.read_bytes()[:whole.stat().st_size // 3])
    (folder / "eeeeeeeeeee_000001.mp4").write_bytes(b"")
    video(folder / "blackscreen_000001.mp4", pictures=False)
    video(folder / "nosoundatal_000001.mp4", sound=False)
    video(folder / "silentsound_000001.mp4", level=0.0)
    return folder


ROWS = [("-1VcGT09lUI", 126, COMMAS, "train"), ("aaaaaaaaaaa", 0, "dog", "train"), ("aaaaaaaaaaa", 30, COMMAS, "train"),
        ("bbbbbbbbbbb", 21217, "dog", "train"), ("NA", 7, "NA", "train"), ("0123", 1, 'a "quoted" one', "train"),
        ("ttttttttttt", 10, "dog", "test"), ("-ttttttttt-", 20, COMMAS, "test"), ("ttttttttttt", 50, "dog", "train"),
        ("cccccccccct", 1, "dog", "train"), ("eeeeeeeeeee", 1, "dog", "train"), ("blackscreen", 1, "dog", "train"),
        ("nosoundatal", 1, "dog", "train"), ("silentsound", 1, "dog", "train"), ("gonegonegon", 5, "never there", "test")]


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("table") / "vggsound.csv", ROWS)


def test_table_is_read_as_text_and_written_as_read(table_file, tmp_path):
    table = read_table(table_file)
    assert list(table[["video_id", "start", "label", "split"]].itertuples(index=False, name=None)) == ROWS
    assert ids(table)[:4] == ["-1VcGT09lUI_000126", "aaaaaaaaaaa_000000", "aaaaaaaaaaa_000030", "bbbbbbbbbbb_021217"]
    written = vggsound_table.write_table(tmp_path / "again.csv", table)
    assert read_table(written).equals(table) and written.read_text().splitlines()[0] == f'-1VcGT09lUI,126,"{COMMAS}",train'


@pytest.mark.parametrize("line, words", [
    ("id,start,label,split", "line 2: start 'start' must be a whole number.*no header"), ("abc,-3,dog,train", "start '-3'"),
    ("abc,3,bird chirping, tweeting,train", "has 5 columns, expected 4"), ("../abc,3,dog,train", "'../abc' must consist of letters"),
    ("abc,3,dog,validation", "train or test.*'validation'"), ("abc,3,,test", "must have a label"), ('abc,3,"dog,test', "not readable as CSV")])
def test_wrong_lines_are_named(tmp_path, line, words):
    file = tmp_path / "vggsound.csv"
    file.write_text(f"aaaaaaaaaaa,0,dog,train\n{line}\n")
    with pytest.raises(ValueError, match=f"(?s)vggsound.csv.*{words}"):
        read_table(file)


def test_missing_and_empty_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the path of vggsound.csv"):
        read_table(tmp_path / "vggsound.csv")
    (tmp_path / "vggsound.csv").write_text("\n")
    with pytest.raises(ValueError, match="holds no rows"):
        read_table(tmp_path / "vggsound.csv")


def test_ten_classes_are_the_published_positions(published):
    table = read_table(published[0])
    labels = list(dict.fromkeys(row[2] for row in published[1]))
    assert len(labels) == 309
    assert [labels.index(label) for label in draw_classes(table, 10)] == DRAWN
    random.seed(42)  # the script seeded the module's own generator
    assert random.sample(labels, 10) == draw_classes(table, 10)
    chosen = select_preset(table, set(table["clip_id"]), "10_classes")
    wanted = {labels[position] for position in DRAWN}
    assert list(chosen[["video_id", "start", "label", "split"]].itertuples(index=False, name=None)) == [r for r in published[1] if r[2] in wanted]
    assert draw_classes(table, 10, seed=1) != draw_classes(table, 10) and sorted(draw_classes(table, 309)) == sorted(labels)


def naive_subset(rows, present, num_train, num_test):
    """The published rule written out: numpy's generator of 42 permutes the positions of each class and split anew."""
    chosen, blocks = [], {}
    for row in rows:
        if f"{row[0]}_{row[1]:06d}" in present:
            blocks.setdefault(row[2:], []).append(row)
    for label in dict.fromkeys(row[2] for row in rows):
        for split, count in (("train", num_train), ("test", num_test)):
            block = blocks.get((label, split), [])
            if len(block) > count:
                block = [block[i] for i in np.random.RandomState(42).permutation(len(block))[:count]]
            chosen += block
    return chosen


def test_subsets_are_the_published_draw(published):
    file, rows = published
    table = read_table(file)
    present = {clip for number, clip in enumerate(ids(table)) if number % 10}  # a tenth has no file
    with pytest.warns(UserWarning, match="num_classes: 310 classes were asked for, the table has 309; all of them are taken"):
        ten, forty = (select_preset(table, present, name) for name in ("subset_10", "subset_40"))
    for chosen, sizes in ((ten, (8, 2)), (forty, (36, 4))):
        assert list(chosen[["video_id", "start", "label", "split"]].itertuples(index=False, name=None)) == naive_subset(rows, present, *sizes)
    assert len(ten) == 3090 and set(ids(ten)) < set(ids(forty)) and set(ids(forty)) <= present
    classes = draw_classes(table, 3)
    assert ids(select_subset(table, present, classes, num_train=0, num_test=2)) == [
        clip for label in classes for clip in ids(select_subset(table, present, [label], num_train=8, num_test=2))[8:]]
    few = select_subset(table, present, classes[:1], num_train=1000, num_test=0)
    assert ids(few) == [c for c, s in zip(ids(select_classes(table, present, classes[:1])), select_classes(table, present, classes[:1])["split"]) if s == "train"]


@pytest.mark.parametrize("call, words", [(lambda t: draw_classes(t, 0), "num_classes must be at least 1"), (lambda t: select_preset(t, (), "x"), "subset_10, subset_40"),
                                         (lambda t: select_subset(t, (), ["dog"], num_test=-1), "num_test must not be negative")])
def test_wrong_sizes(table_file, call, words):
    with pytest.raises(ValueError, match=words):
        call(read_table(table_file))


@pytest.fixture(scope="module")
def there(published, tmp_path_factory):
    """Empty files for nine of ten clips: selecting looks at names only."""
    folder = tmp_path_factory.mktemp("there") / "-there"
    folder.mkdir()
    for number, (video_id, start, _, _) in enumerate(published[1]):
        if number % 10:
            (folder / f"{video_id}_{start:06d}.mp4").touch()
    return folder


def run(*arguments):
    return main(["vggsound", *map(str, arguments)])


def test_select_from_the_command_line(published, there, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(there.parent)
    file, rows = published
    present = set(find_videos(there))
    with pytest.warns(UserWarning, match="310"):
        assert run("select-subset", "--input_csv", file, "--preset", "subset_10", f"--audio_dir={there.name}", "--output_csv", tmp_path / "ten.csv") == 0
    written = read_table(tmp_path / "ten.csv")
    assert ids(written) == [f"{r[0]}_{r[1]:06d}" for r in naive_subset(rows, present, 8, 2)]
    summary = json.loads((tmp_path / "ten.csv.json").read_text())
    assert summary["classes"] == {"asked": 310, "found": 309} and summary["rows"]["found"] == 3090 and summary["seed"] == 42
    label, counts = next(iter(summary["per_class"].items()))
    mine = [f"{r[0]}_{r[1]:06d}" for r in rows if r[2] == label]
    assert counts == {"asked": 10, "found": len(present & set(mine)), "written": 10, "missing": len(set(mine) - present), "undecodable": 0}
    assert summary["missing"] == len(rows) - len(present) and "309 of 310 asked for" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert run("select-classes", "--input_csv", file, "--output_csv", "./-classes.csv", "--num_classes", 10, "--video_dir", there, "--seed", 42) == 0
    assert ids(read_table(tmp_path / "-classes.csv")) == ids(select_preset(read_table(file), present, "10_classes"))
    assert run("select-subset", "--input_csv", file, "--preset", "subset_40", "--num_classes", 2, "--num_test", 0, "--seed", 7, "--video_dir", there) == 0
    small = read_table(tmp_path / "vggsound_subset_40.csv")
    assert list(dict.fromkeys(small["label"])) == draw_classes(read_table(file), 2, 7) and set(small["split"]) == {"train"}
    assert run("select-subset", "--input_csv", file, "--video_dir", there) == 0
    assert len(read_table(tmp_path / "vggsound_subset_custom.csv")) == 70  # 10 classes of 5 + 2


def test_clean_keeps_what_is_there(published, there, tmp_path, capsys):
    file = write_csv(tmp_path / "bad.csv", [published[1][1], ("abc", "soon", "x", "train"), *published[1][2:30]])
    with pytest.warns(UserWarning, match="dropped 1 rows whose start is no whole number of seconds, the first in line 2"):
        assert run("clean", "--input_csv", file, "--video_dir", there, "--output_csv", tmp_path / "clean.csv") == 0
    kept = [row for number, row in enumerate(published[1][:30]) if number % 10]
    assert list(read_table(tmp_path / "clean.csv").drop(columns="clip_id").itertuples(index=False, name=None)) == kept
    assert json.loads((tmp_path / "clean.csv.json").read_text())["missing"] == 2


@pytest.mark.parametrize("arguments, words", [
    (("select-subset", "--input_csv", "{0}/none.csv", "--video_dir", "{0}"), "none.csv does not exist"),
    (("select-classes", "--input_csv", "{0}/vggsound.csv", "--video_dir", "{0}/none"), "none is not a folder"),
    (("clean", "--input_csv", "{0}/vggsound.csv", "--video_dir", "{0}/empty", "--output_csv", "{0}/out.csv"), "holds none of the 15 videos"),
    (("select-subset", "--input_csv", "{0}/vggsound.csv", "--video_dir", "{0}/one", "--num_classes", "1", "--output_csv", "{0}/out.csv"), "not written, as no row is left"),
    (("copy-subset", "--subset_csv", "{0}/vggsound.csv", "--source_video_dir", "{0}/empty"), "holds none of the 15 videos"),
    (("check", "--input_csv", "{0}/vggsound.csv", "--video_dir", "{0}/one", "--", "-1VcGT09lUI_000127"), "no clip '-1VcGT09lUI_000127'")])
def test_missing_input_and_empty_results_fail(table_file, tmp_path, arguments, words, capsys):
    shutil.copy(table_file, tmp_path)
    (tmp_path / "empty").mkdir(), (tmp_path / "one").mkdir()
    (tmp_path / "one" / "NA_000007.mp4").touch()  # seed 42 draws another class
    assert run(*(argument.format(tmp_path) for argument in arguments)) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "out.csv").exists()


def test_copy_is_resumable(table_file, videos, tmp_path, capsys):
    target = tmp_path / "-copied"
    first = vggsound_tools.copy_subset(table_file, videos, target)
    assert (first["asked"], first["found"], first["copied"], first["identical"], first["missing"]) == (15, 14, 14, 0, 1)
    assert first["per_class"]["never there"] == {"asked": 1, "missing": 1} and not first["failed"]
    source, copy = videos / "-1VcGT09lUI_000126.mp4", target / "-1VcGT09lUI_000126.mp4"
    assert copy.read_bytes() == source.read_bytes() and copy.stat().st_mtime == source.stat().st_mtime
    assert sorted(file.name for file in target.iterdir()) == sorted(f"{clip}.mp4" for clip in ids(read_table(table_file)) if clip in find_videos(videos))
    copy.write_bytes(b"half"), os.utime(target / "NA_000007.mp4")  # broken off; touched, but the same
    (target / "aaaaaaaaaaa_000000.mp4").unlink()
    before = (target / "NA_000007.mp4").stat().st_mtime_ns
    assert run("copy-subset", "--subset_csv", table_file, "--source_video_dir", videos, f"--destination_video_dir={target}", "--summary_json", tmp_path / "copy.json") == 0
    assert {k: v for k, v in json.loads((tmp_path / "copy.json").read_text()).items() if k in ("copied", "identical")} == {"copied": 2, "identical": 12}
    assert copy.read_bytes() == source.read_bytes() and (target / "NA_000007.mp4").stat().st_mtime_ns == before
    (target / "-1VcGT09lUI_000126.mp4").unlink(), (target / "-1VcGT09lUI_000126.mp4").mkdir()
    assert run("copy-subset", "--subset_csv", table_file, "--source_video_dir", videos, "--destination_video_dir", target) == 1
    assert "1 failed" in capsys.readouterr().out


def test_check_decodes_what_is_named_or_drawn(table_file, videos, tmp_path, capsys):
    named = ["-1VcGT09lUI_000126", "NA_000007"]
    assert run("check", "--input_csv", table_file, "--video_dir", videos, "--summary_json", tmp_path / "check.json", "--", *named) == 0
    summary = json.loads((tmp_path / "check.json").read_text())
    assert (summary["asked"], summary["found"], summary["missing"], summary["checked"], summary["failed"]) == (15, 14, 1, 2, 0)
    look = summary["clips"][0]
    assert [l["clip_id"] for l in summary["clips"]] == named and (look["frames"], look["width"], look["frame_rate"]) == (8, 32, 8.0)
    assert 1.0 <= look["sound_seconds"] <= 1.1 and 0.35 < look["peak"] < 0.5 and look["label"] == COMMAS
    bad = ["cccccccccct_000001", "eeeeeeeeeee_000001", "blackscreen_000001", "nosoundatal_000001", "silentsound_000001", "gonegonegon_000005"]
    looks = vggsound_tools.check(table_file, videos, clips=bad)
    assert looks["failed"] == 6 and [look["problem"] for look in looks["clips"]][3:] == ["it has no sound", "it is silent", "missing: there is no such file"]
    assert "0 bytes" in looks["clips"][1]["problem"] and "no video stream" in looks["clips"][2]["problem"]
    assert run("check", "--input_csv", table_file, "--video_dir", videos, "--", *bad) == 1
    assert "0 of 6 clips are good" in capsys.readouterr().out
    drawn = [vggsound_tools.check(table_file, videos, num_clips=3, seed=seed)["clips"] for seed in (0, 0, 1)]
    assert [len(d) for d in drawn] == [3] * 3
    first, again, other = ([look["clip_id"] for look in d] for d in drawn)
    assert first == again != other


def test_check_decode_leaves_out_what_cannot_be_used(table_file, videos, tmp_path):
    summary = vggsound_tools.clean(table_file, tmp_path / "good.csv", videos, check_decode=True)
    left = ids(read_table(tmp_path / "good.csv"))
    assert left == [f"{r[0]}_{r[1]:06d}" for r in ROWS[:9]] + ["silentsound_000001"]  # silence decodes
    assert summary["undecodable"] == 4 and summary["missing"] == 1 and summary["per_class"]["dog"]["undecodable"] == 4


def test_manifest(table_file, videos):
    with pytest.warns(UserWarning, match="1 of 15 videos are not in .*'never there': 1"):
        manifest = prepare("vggsound", data_root=videos, csv_path=str(table_file))
    rows = {manifest.row(i)["clip_id"]: manifest.row(i) for i in range(len(manifest))}
    assert list(rows) == ["-1VcGT09lUI_000126", "aaaaaaaaaaa_000000", "aaaaaaaaaaa_000030", "bbbbbbbbbbb_021217", "NA_000007", "0123_000001",
                          "ttttttttttt_000010", "-ttttttttt-_000020"]
    row = rows["bbbbbbbbbbb_021217"]
    assert row["path"] == row["video"] == "deep/bbbbbbbbbbb_021217.mp4" and row["start"] == 0.0 and row["start_second"] == 21217
    assert row["labels"] == row["captions"] == ["dog"] and row["group"] == "bbbbbbbbbbb" and row["duration"] == pytest.approx(1.0, abs=0.1)
    assert {clip for clip, row in rows.items() if row["split"] == "test"} == {"ttttttttttt_000010", "-ttttttttt-_000020"}
    assert (manifest.table.groupby("group")["split"].nunique() == 1).all() and manifest.splits["val"] >= 1 and manifest.splits["train"] >= 1
    assert manifest.classes == sorted({row[2] for row in ROWS})  # also the one whose only clip is missing: a label map is of the table
    info = manifest.info
    assert info["videos"] == {"train": {"expected": 12, "found": 12}, "test": {"expected": 3, "found": 2}} and info["missing"] == {"never there": 1}
    assert info["left_out"] == {vggsound.NOT_THERE: 1, vggsound.SHARED: 1}
    assert info["health"]["reasons"] == {"empty": 1, "unreadable": 2, "silent": 1, "no pictures": 1}
    assert info["health"]["checked"] == 13 and info["health"]["kept"] == 8 and info["health"]["examples"]["no pictures"] == ["blackscreen_000001.mp4"]


def test_broken_pictures_under_whole_sound(videos, tmp_path):
    """A file whose sound is whole is listened to in vain: only the check of pictures finds it out."""
    for name in ("-1VcGT09lUI_000126", "aaaaaaaaaaa_000000"):
        shutil.copy(find := next(videos.rglob(f"{name}.mp4")), tmp_path)
    broken = tmp_path / find.name
    with av.open(str(broken)) as container:
        spots = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(broken.read_bytes())
    for pos, size in spots:
        data[pos:pos + size] = bytes(size)
    broken.write_bytes(data)
    write_csv(tmp_path / "vggsound.csv", ROWS[:2])
    manifest = prepare("vggsound", data_root=tmp_path)
    assert manifest.table["clip_id"].tolist() == ["-1VcGT09lUI_000126"] and manifest.info["health"]["reasons"] == {"no pictures": 1}
    assert manifest.info["health"]["checked"] == 2 and manifest.info["health"]["kept"] == 1


def splits(table, val_share=0.1, split_seed=42):
    return vggsound._splits(table["video_id"], table["split"], val_share, split_seed)


def test_validation_is_stateless_and_by_video(tmp_path):
    """The split of a clip depends on its video and split_seed alone: not on the rest of the table, its files or the seed."""
    rows = [(f"v{i // 2:010d}", 10 * (i % 2), f"c{i % 7}", "train") for i in range(4000)] + [(f"t{i:010d}", 0, "c0", "test") for i in range(50)]
    whole = read_table(write_csv(tmp_path / "whole.csv", rows))
    made = dict(zip(ids(whole), splits(whole)))
    assert sum(s == "val" for s in made.values()) == pytest.approx(400, abs=60)
    assert all(made[f"v{i:010d}_000000"] == made[f"v{i:010d}_000010"] for i in range(2000)) and all(made[f"t{i:010d}_000000"] == "test" for i in range(50))
    part = whole.iloc[::3]
    assert all(made[c] == s for c, s in zip(ids(part), splits(part)))
    assert splits(whole, split_seed=7) != splits(whole) and "val" not in splits(whole, 0.0)
    for count in range(2, 12):  # a handful of videos always leaves one to choose on and one to train on
        assert {"train", "val"} == set(splits(whole.iloc[::2][:count]))


def test_options_of_prepare(table_file, videos, tmp_path, monkeypatch):
    with pytest.warns(UserWarning):
        manifest = prepare("vggsound", csv_path=str(table_file), video_dir=str(videos), seed=3, num_samples=3)
        whole = prepare("vggsound", csv_path=str(table_file), video_dir=str(videos))
    splits = dict(zip(whole.table["clip_id"], whole.table["split"]))
    assert len(manifest) <= 3 and all(splits[c] == s for c, s in zip(manifest.table["clip_id"], manifest.table["split"]))
    assert whole.fingerprint != manifest.fingerprint and manifest.classes == whole.classes
    with pytest.warns(UserWarning, match="310 classes were asked for, the table has 5"):
        assert prepare("vggsound", csv_path=str(table_file), video_dir=str(videos), subset="subset_10").info["subset"] == "subset_10"
    for options, words in (({"val_share": 1.0}, "val_share must be from 0 to 0.9"), ({"subset": "ten"}, "subset must be one of")):
        with pytest.raises(ValueError, match=words):
            prepare("vggsound", csv_path=str(table_file), video_dir=str(videos), **options)
    with pytest.raises(FileNotFoundError, match="holds no table.*csv_path"):
        prepare("vggsound", data_root=videos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds none of the 15 videos of .*for example no -1VcGT09lUI_000126.mp4"):
        prepare("vggsound", data_root=tmp_path / "empty", csv_path=str(table_file))
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="VGGSound is not in .*set data_root"):
        prepare("vggsound")


def test_repeated_rows_and_prepare_from_the_command_line(videos, tmp_path, capsys):
    file = write_csv(tmp_path / "twice.csv", [*ROWS[:2], ROWS[1], *ROWS[6:8]])
    assert main(["prepare", "vggsound", "--data-root", str(videos), "--option", f"csv_path={file}", "--out", str(tmp_path / "m.parquet")]) == 0
    out = capsys.readouterr().out
    assert "train: 2 of 2 videos of the table are there" in out and f"left out: 1 {vggsound.REPEATED}" in out and "health: 4 of 4 clips" in out


def test_a_folder_of_videos(videos, tmp_path):
    root = tmp_path / "mine"
    for name, source in (("dog/-one.mp4", "-1VcGT09lUI_000126"), ("dog/two.mp4", "aaaaaaaaaaa_000030"), ("cat/three.mp4", "NA_000007")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / f"{source}.mp4", root / name)
    for name, source in (("cat/unseen.mp4", "blackscreen"), ("cat/unheard.mp4", "nosoundatal")):
        shutil.copy(videos / f"{source}_000001.mp4", root / name)
    video(root / "cat/five.mkv", seed=5)
    (root / "dog/noise.wav").write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match="1 files that are no videos"):
        manifest = prepare("folder", data_root=root, pictures=True)
    assert set(manifest.table["video"]) == {"dog/-one.mp4", "dog/two.mp4", "cat/three.mp4", "cat/five.mkv"} and manifest.classes == ["cat", "dog"]
    assert (manifest.table["video"] == manifest.table["path"]).all() and manifest.info["health"]["reasons"] == {"unreadable": 1, "no pictures": 1}
    assert "video" not in prepare("folder", data_root=root).table and "cat/unseen.mp4" in set(prepare("folder", data_root=root).table["path"])
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.wav").touch()
    with pytest.raises(ValueError, match="no video file in .*known endings are .mkv .mov .mp4 .webm"):
        prepare("folder", data_root=tmp_path / "sounds", pictures=True)


@pytest.mark.skipif(not (SHARED / "media").is_dir(), reason="the real videos are not here")
def test_real_videos(tmp_path):
    (tmp_path / "video").mkdir()
    shutil.copy(SHARED / "media" / "KlsG1EnBEjc_000361.mp4", tmp_path / "video")  # VGGSound's own name
    shutil.copy(SHARED / "media" / "00W1lcxW-WU_40.000.mp4", tmp_path / "video" / "00W1lcxW-WU_000040.mp4")
    file = write_csv(tmp_path / "vggsound.csv", [("KlsG1EnBEjc", 361, "a", "train"), ("00W1lcxW-WU", 40, "b", "test")])
    manifest = prepare("vggsound", data_root=tmp_path)
    assert manifest.table["clip_id"].tolist() == ["KlsG1EnBEjc_000361", "00W1lcxW-WU_000040"] and manifest.info["health"]["reasons"] == {}
    assert manifest.table["duration"].tolist() == pytest.approx([10.0, 10.0], abs=0.1)
    looks = vggsound_tools.check(file, tmp_path, num_clips=5)
    assert [(look["frames"], look["width"]) for look in looks["clips"]] == [(299, 1280), (125, 256)] and not looks["failed"]


@pytest.mark.skipif(not (SHARED / "metadata" / "vggsound_test_list.csv").is_file(), reason="the published test list is not here")
def test_published_test_list(tmp_path):
    with open(SHARED / "metadata" / "vggsound_test_list.csv", newline="", encoding="utf-8") as stream:
        listed = list(csv.reader(stream))
    rows = [(name[:11], int(name[12:18]), label, "test") for name, label in listed]
    table = read_table(write_csv(tmp_path / "vggsound.csv", rows))
    assert len(table) == 15446 and [f"{clip}.mp4" for clip in ids(table)] == [name for name, _ in listed] and not table["clip_id"].duplicated().any()
    assert table["label"].nunique() == 309 and table["video_id"].nunique() == 14851
    assert sum(video.startswith("-") for video in table["video_id"]) == 299 and sum("," in label for label in table["label"].unique()) == 23
