"""Checkpoint files: written and read back, broken ones refused by name, never half written; and whose word counts for an option."""
import argparse
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lib.encoders.t3av import T3AV, T3AVSettings
from lib.encoders.t3av_files import (ALIASES, MEANING_CHANGING, OPTION_PARTS, SHAPE_CHANGING, check_labels, export, load_into, read,
                                     resolve, stage1_source, strip)
from lib.encoders.vit import VitConfig

DEFAULTS = {"epochs": 100, "learning_rate": 1.5e-4, "num_frames": 16, "bb_layers": 6, "bb_heads": 12, "n_mels": 128, "dec_layers": 2,
            "classes": 10, "clf_hidden_dim": 512, "contrastive_dim": 128, "vit_model_name": "google/vit", "splits": ("train",)}


class Small(nn.Module):
    def __init__(self, classes=3, decoders=True):
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": nn.Linear(4, 4), "video": nn.Linear(4, 4)})
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        if decoders:
            self.decoders = nn.Linear(4, 2)
        self.classifier = nn.Linear(4, classes)


def saved(path, stage="mae", model=None, epoch=3, **more):
    return export(path, stage, epoch, (model or Small()).state_dict(), {"bb_heads": 12}, **more)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage, best, name, config", [
    ("mae", False, "t3_av_stage1_epoch_3.pt", "stage1_config.json"), ("contrastive", False, "t3_av_stage2_epoch_3.pt", "stage2_config.json"),
    ("finetune", False, "t3_av_finetune_epoch_3.pt", "finetune_config.json"),
    ("finetune", True, "t3_av_finetune_best_model.pt", "finetune_config.json"), ("mae", True, "t3_av_stage1_best_model.pt", "stage1_config.json")])
def test_round_trip(tmp_path, stage, best, name, config):
    model, args = Small(), {"bb_heads": 12, "splits": ("train", "val"), "csv_path": "-x's \"y\".csv", "amp": False, "seed": None}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.decoders(model.backbone(torch.ones(2, 4))).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    folder = tmp_path / "-out 'quoted' [1]"
    path = export(folder, stage, 3, model.state_dict(), args, optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict(), best=best,
                  label_map=["dog", "cat, \"big\""], val_accuracy=np.float64(0.75), random_state=torch.get_rng_state())
    assert path == folder / name and sorted(p.name for p in folder.iterdir()) == sorted([name, config])
    assert json.loads((folder / config).read_text()) == args | {"splits": ["train", "val"]}
    plain = torch.load(path, weights_only=True)                                  # what any other program sees
    assert plain["epoch"] == 3 and plain["args"] == args and plain["format_version"] == 1 and plain["versions"]["torch"] == torch.__version__
    assert type(plain["model_state_dict"]) is dict
    got = read(path)
    assert equal(got["model_state_dict"], model.state_dict()) and got["stage"] == stage and got["label_map"] == ["dog", "cat, \"big\""]
    assert got["val_accuracy"] == 0.75 and torch.equal(got["random_state"], torch.get_rng_state())
    again = torch.optim.AdamW(model.parameters(), lr=7.0)
    again.load_state_dict(got["optimizer_state_dict"])
    assert again.param_groups[0]["lr"] == 1e-3 * 0.5 and got["scheduler_state_dict"]["base_lrs"] == [1e-3]
    assert torch.equal(again.state[model.decoders.weight]["exp_avg"], optimizer.state[model.decoders.weight]["exp_avg"])
    other = Small()
    assert "loaded" in load_into(other, got) and equal(other.state_dict(), model.state_dict())


def test_a_view_is_saved_alone(tmp_path):
    state = {"row": torch.zeros(1000, 1000)[3]}
    assert export(tmp_path / "one.pt", "mae", 0, state, {}).stat().st_size < 20_000


@pytest.mark.parametrize("bad, entry", [({"args": {"path": Path("x")}}, r"args\['path'\] is a PosixPath"),
                                        ({"label_map": [np.int64(3)]}, r"label_map\[0\] is a int64"),
                                        ({"random_state": {"numpy": np.zeros(2)}}, r"random_state\['numpy'\] is a ndarray")])
def test_what_could_not_be_read_back_is_not_written(tmp_path, bad, entry):
    old = saved(tmp_path)
    before = old.read_bytes()
    with pytest.raises(ValueError, match=entry):
        export(old, "mae", 3, {}, bad.pop("args", {}), **bad)
    with pytest.raises(ValueError, match="stage 'stage1' is not one of mae"):
        export(old, "stage1", 3, {}, {})
    assert old.read_bytes() == before and {p.name for p in tmp_path.iterdir()} == {old.name, "stage1_config.json"}


def killed_export(path, moment):
    """Runs in a process of its own: export, killed in the middle of writing or just before the rename."""
    die, save = lambda *_: os.kill(os.getpid(), signal.SIGKILL), torch.save

    def half(content, file):
        save(content, file)
        file.truncate(file.tell() // 2)
        file.flush()
        die()

    if moment == "write":
        torch.save = half
    else:
        os.replace = die
    export(path, "mae", 3, {"new": torch.ones(5000)}, {"bb_heads": 1})


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_kill_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path, moment):
    path = saved(tmp_path)
    before = path.read_bytes()
    process = multiprocessing.get_context("fork").Process(target=killed_export, args=(path, moment))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == before and read(path)["epoch"] == 3
    left, = tmp_path.glob(".*.tmp")
    assert left.stat().st_size > 5000 * 2 and left.name.startswith(f".{path.name}.")
    saved(tmp_path, model=Small(classes=5))
    assert not list(tmp_path.glob(".*.tmp")) and read(path)["model_state_dict"]["classifier.weight"].shape == (5, 4)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        saved(tmp_path)
    assert path.read_bytes() == before and not list(tmp_path.glob(".*.tmp"))


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    for damage in (whole[:len(whole) // 2], whole[:10], b"", b"just text\n", whole[:-200], b"\x80\x02}q\x00."[:3]):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=rf"stage1_checkpoint .*{path.name} cannot be read: .*copy it again"):
            read(path, option="stage1_checkpoint")
    with pytest.raises(FileNotFoundError, match="missing.pt does not exist"):
        read(tmp_path / "missing.pt")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="is a folder; give one of its files: t3_av_stage1_epoch_3.pt"):
        read(tmp_path)


def test_files_that_would_run_code_are_never_opened_otherwise(tmp_path):
    path = tmp_path / "t3_av_stage1_epoch_1.pt"
    torch.save({"epoch": 1, "model_state_dict": {}, "args": argparse.Namespace(bb_heads=12)}, path)
    with pytest.raises(ValueError, match="other things than tensors, numbers and texts .*Namespace"):
        read(path)


@pytest.mark.parametrize("content, match", [
    ([1, 2], "holds a list"), ({"epoch": 1}, "'model_state_dict' is missing"), ({"model_state_dict": {}}, "'epoch' is missing"),
    ({"epoch": "one", "model_state_dict": {}}, "'epoch' is a str, expected a int"),
    ({"epoch": 1, "model_state_dict": {"a": 3.0}}, "entry 'a' of model_state_dict is a float"),
    ({"epoch": 1, "model_state_dict": {}, "args": [1]}, "'args' is a list"),
    ({"epoch": 1, "model_state_dict": {}, "format_version": 99}, "format 99"),
    ({"epoch": 1, "model_state_dict": {}, "stage": "fourth"}, "stage 'fourth' is not one of"),
    ({"epoch": 1, "model_state_dict": {"module.a": torch.ones(1), "a": torch.ones(1)}}, "two entries of model_state_dict are 'a'")])
def test_wrong_entries_are_named(tmp_path, content, match):
    path = tmp_path / "x y.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=match) as error:
        read(path)
    assert str(path) in str(error.value)


def test_files_of_the_original_and_of_other_stages(tmp_path):
    """The original's files have no stage and no label map, and its last stage no scheduler."""
    content = {"epoch": 9, "model_state_dict": Small().state_dict(), "optimizer_state_dict": {}, "args": {"bb_heads": 12, "lr": 1e-4}}
    for name, stage in (("t3_av_stage1_epoch_9.pt", "mae"), ("t3_av_stage2_epoch_9.pt", "contrastive"),
                        ("t3_av_finetune_best_model.pt", "finetune"), ("renamed.pt", None)):
        torch.save(content, tmp_path / name)
        got = read(tmp_path / name)
        assert got["stage"] == stage and got["label_map"] is None and got["args"]["bb_heads"] == 12
    with pytest.raises(ValueError, match="pretrained_checkpoint .* is of stage 'finetune'; expected one of mae, contrastive"):
        read(tmp_path / "t3_av_finetune_best_model.pt", stages=("mae", "contrastive"), option="pretrained_checkpoint")


def test_prefixes_are_removed_wherever_they_stand(tmp_path):
    assert strip("module._orig_mod.encoders.audio.module.weight") == "encoders.audio.weight"
    assert strip("modules.my_module.weight") == "modules.my_module.weight"
    model = Small()
    for prefixed in ({f"module.{k}": v for k, v in model.state_dict().items()},
                     {k.replace("backbone.", "backbone._orig_mod."): v for k, v in model.state_dict().items()}):
        buffer = tmp_path / "t3_av_stage1_epoch_1.pt"
        torch.save({"epoch": 1, "model_state_dict": prefixed}, buffer)                 # written by another program
        other = Small()
        load_into(other, read(buffer))
        assert equal(other.state_dict(), model.state_dict())
        assert read(export(tmp_path / "ours.pt", "mae", 1, prefixed, {}))["model_state_dict"].keys() == model.state_dict().keys()
    wrapped = nn.Module()
    wrapped.module = Small()                                                            # what DistributedDataParallel looks like
    load_into(wrapped, read(saved(tmp_path, model=model)))
    assert equal(wrapped.module.state_dict(), model.state_dict())


def test_exactly_the_expected_groups_may_be_missing(tmp_path):
    stage1, fresh = read(saved(tmp_path / "1", model=Small(classes=1))), Small(decoders=False)
    head = fresh.classifier.weight.clone()
    line = load_into(fresh, stage1, missing=["classifier"], unused=["decoders", "classifier"])
    assert line == f"{stage1['file']}: 8 entries loaded, 4 not used (decoders, classifier); new: classifier"
    assert torch.equal(fresh.classifier.weight, head)
    assert torch.equal(fresh.encoders["audio"].weight, stage1["model_state_dict"]["encoders.audio.weight"])
    for model, groups, match in [
            (Small(decoders=False), {}, "2 of its entries are unexpected, first decoders.bias, decoders.weight"),
            (Small(decoders=False), {"unused": ["decoders"]}, r"2 shapes differ, first classifier.weight \(file \(1, 4\), model \(3, 4\)\)"),
            (Small(), {"missing": ["classifier"]}, "2 of its entries are unexpected, first classifier"),
            (Small(), {"unused": ["classifier"]}, "2 parameters of the model are missing in it, first classifier.bias"),
            (Small(), {"missing": ["heads"]}, "group 'heads' is to be missing, but the model has no such part")]:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=match) as error:
            load_into(model, stage1, **groups)
        assert stage1["file"] in str(error.value) and equal(model.state_dict(), before)
    part = dict(stage1) | {"model_state_dict": {k: v for k, v in stage1["model_state_dict"].items() if k != "classifier.bias"}}
    with pytest.raises(ValueError, match="unexpected, first classifier.weight"):        # half a group is neither there nor missing
        load_into(Small(classes=1), part, missing=["classifier"])
    video = {k: v for k, v in stage1["model_state_dict"].items() if not k.startswith("encoders.video")}
    load_into(Small(classes=1), dict(stage1) | {"model_state_dict": video}, missing=["encoders.video"])
    wrong = dict(stage1) | {"model_state_dict": {f"model.{k}": v for k, v in stage1["model_state_dict"].items()}}
    with pytest.raises(ValueError, match="parameters of the model are missing in it"):  # an unknown prefix loads nothing silently
        load_into(Small(), wrong)


def test_three_stages_start_from_one_another(tmp_path):
    settings = dict(num_frames=2, bb_layers=1, bb_heads=2, dec_layers=1, dec_heads=2, contrastive_dim=8, proj_hidden_dim=8,
                    clf_hidden_dim=8, classes=3)
    vit = VitConfig(size="tiny", image_size=32)
    torch.manual_seed(0)
    models = {stage: T3AV(T3AVSettings(audio=vit, video=vit, **settings), stage) for stage in ("mae", "contrastive", "finetune")}
    source = None
    for stage, own, left in (("mae", None, None), ("contrastive", "heads", "decoders"), ("finetune", "classifier", "heads")):
        if source:
            load_into(models[stage], read(source), missing=[own], unused=[left])
        source = export(tmp_path, stage, 1, models[stage].state_dict(), settings)
    for name, value in models["mae"].state_dict().items():
        if not name.startswith("decoders"):
            assert torch.equal(models["finetune"].state_dict()[name], value)
    other = T3AV(T3AVSettings(audio=vit, video=vit, **settings | {"bb_layers": 2}), "finetune")
    with pytest.raises(ValueError, match="missing in it, first backbone.layers.1"):
        load_into(other, read(source))


def test_explicit_then_stored_then_default():
    stored = {"epochs": 7, "num_frames": 8, "bb_heads": 4, "n_mels": 64, "mask_ratio": 0.5, "vit_model_name": "google/vit", "splits": ["train"]}
    got, lines = resolve({"epochs": 9, "num_frames": 8}, stored, DEFAULTS, file="a.pt")
    assert got == DEFAULTS | {"epochs": 9, "num_frames": 8, "bb_heads": 4, "n_mels": 64, "splits": ["train"]}
    assert lines == ["epochs: 9 is used, a.pt was made with 7"]
    assert resolve({"splits": ("train",)}, stored, DEFAULTS)[1] == []                  # a list and a tuple of equal values
    assert resolve({"n_mels": 32}, None, DEFAULTS) == (DEFAULTS | {"n_mels": 32}, [])
    free, lines = resolve({}, stored | {"learning_rate": 9.0}, DEFAULTS, file="a.pt", same_stage=False)
    assert (free["epochs"], free["learning_rate"], free["num_frames"]) == (100, 1.5e-4, 8)
    assert lines == ["epochs: 100 is used, a.pt was made with 7", "learning_rate: 0.00015 is used, a.pt was made with 9.0"]
    silent = resolve({}, {}, DEFAULTS, file="a.pt")
    assert silent[0] == DEFAULTS and [line.split(":")[0] for line in silent[1]] == ["bb_heads", "n_mels", "vit_model_name"]
    assert "a.pt does not tell; 12 is used" in silent[1][0]


@pytest.mark.parametrize("option, stored, asked", [("num_frames", 16, 8), ("bb_layers", 6, 4), ("dec_layers", 2, 1), ("classes", 10, 309),
                                                   ("contrastive_dim", 128, 64), ("clf_hidden_dim", 512, 256)])
def test_options_that_change_shapes_are_refused(option, stored, asked):
    assert option in SHAPE_CHANGING
    for allow in ((), (option,)):
        with pytest.raises(ValueError) as error:
            resolve({option: asked}, {option: stored}, DEFAULTS, file="run/t3_av_stage1_epoch_1.pt", allow_config_change=allow)
        if not allow:
            for said in (option, str(asked), f"run/t3_av_stage1_epoch_1.pt was made with {stored}", "shape", f"leave {option} out"):
                assert said in str(error.value)
        else:
            assert f"allow_config_change: option '{option}' is not one of" in str(error.value)


@pytest.mark.parametrize("option, stored, asked", [("bb_heads", 12, 8), ("n_mels", 128, 64), ("vit_model_name", "google/vit", "copies/vit's")])
def test_options_that_change_the_meaning_are_refused_unless_allowed(option, stored, asked):
    assert option in MEANING_CHANGING
    with pytest.raises(ValueError) as error:
        resolve({option: asked}, {option: stored}, DEFAULTS, file="a.pt")
    for said in (option, repr(asked), f"a.pt was made with {stored!r}", f"leave {option} out, or name it in allow_config_change"):
        assert said in str(error.value)
    got, lines = resolve({option: asked}, {option: stored}, DEFAULTS, file="a.pt", allow_config_change=[option])
    assert got[option] == asked and f"{option}: {asked!r} is used, a.pt was made with {stored!r} (allowed)" in lines


def test_all_mismatches_are_told_at_once_and_unknown_names_refused():
    with pytest.raises(ValueError, match="num_frames is 8.*; bb_heads is 3"):
        resolve({"num_frames": 8, "bb_heads": 3}, {"num_frames": 16, "bb_heads": 12}, DEFAULTS)
    for wrong, match in [({"explicit": {"bb_head": 3}}, "option 'bb_head' is not one of"), ({"unused": ["decoder"]}, "part 'decoder' is not one of"),
                         ({"allow_config_change": ["epochs"]}, "allow_config_change: option 'epochs'")]:
        with pytest.raises(ValueError, match=match):
            resolve(**{"explicit": {}, "stored": {}, "defaults": DEFAULTS} | wrong)


def test_parts_that_are_not_taken_from_the_file_are_not_compared():
    stored = {"dec_layers": 4, "clf_hidden_dim": 64, "classes": 1, "contrastive_dim": 32, "pooling": "class"}
    got, lines = resolve({"dec_layers": 1, "classes": 309}, stored, DEFAULTS | {"pooling": "class"}, unused=("decoders", "classifier"))
    assert (got["dec_layers"], got["classes"], got["clf_hidden_dim"]) == (1, 309, 512)      # the file's say nothing of a new classifier
    assert got["contrastive_dim"] == 32 and not any("dec_layers" in line or "classes" in line for line in lines)
    with pytest.raises(ValueError, match="pooling"):                                        # the heads were trained on it
        resolve({"pooling": "mean"}, stored, DEFAULTS | {"pooling": "class"}, unused=("classifier",))
    assert resolve({"pooling": "mean"}, stored, DEFAULTS | {"pooling": "class"}, unused=("classifier", "heads"))[0]["pooling"] == "mean"
    assert set(OPTION_PARTS) <= {*SHAPE_CHANGING, *MEANING_CHANGING}


def test_aliases():
    assert {"contrastive_embed_dim": "contrastive_dim", "proj_hidden_dim_contrastive": "proj_hidden_dim"}.items() <= ALIASES.items()
    got, lines = resolve({"lr": 1e-3}, {"contrastive_embed_dim": 64, "learning_rate": 1e-4}, DEFAULTS, file="a.pt")
    assert got["contrastive_dim"] == 64 and got["learning_rate"] == 1e-3 and got.keys() == DEFAULTS.keys()
    assert "learning_rate: 0.001 is used, a.pt was made with 0.0001" in lines
    with pytest.raises(ValueError, match="contrastive_dim is 32, but a.pt was made with 64"):
        resolve({"contrastive_dim": 32}, {"contrastive_embed_dim": 64}, DEFAULTS, file="a.pt")
    with pytest.raises(ValueError, match="a.pt: contrastive_dim is both 64 and 32"):
        resolve({}, {"contrastive_embed_dim": 64, "contrastive_dim": 32}, DEFAULTS, file="a.pt")
    spelled, _ = resolve({"classes": 4}, {}, {"num_classes": 10})
    assert spelled == {"num_classes": 4}                                                     # as the caller spells it


def test_label_maps():
    file = {"file": "a.pt", "label_map": ["dog", "cat"]}
    check_labels(file, ("dog", "cat"))
    check_labels(file | {"label_map": None}, ["anything"])
    for classes, match in ((["dog", "cat", "cow"], "a.pt: its classifier has 2 classes, the data has 3"),
                           (["cat", "dog"], "class 0 of its classifier is 'dog', of the data 'cat'")):
        with pytest.raises(ValueError, match=match):
            check_labels(file, classes)


def test_what_stage1_checkpoint_is(tmp_path):
    assert stage1_source(None) == stage1_source("") == ("none", None)
    file = saved(tmp_path / "run")
    assert stage1_source(str(file)) == ("stage1", file)
    vit = tmp_path / "-vit 'b'"
    vit.mkdir()
    with pytest.raises(ValueError, match="folder with no config.json"):
        stage1_source(vit)
    (vit / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="a ViT without weights"):
        stage1_source(vit)
    (vit / "model.safetensors").touch()
    assert stage1_source(vit) == ("vit", vit)
    (vit / "config.json").write_text('{"model_type": "clap"}')
    with pytest.raises(ValueError, match="a model of type 'clap'"):
        stage1_source(vit)
    for damaged in ("{", "[1]"):
        (vit / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match="config.json is damaged"):
            stage1_source(vit)
    with pytest.raises(ValueError, match="stage-1 files, give one of them: t3_av_stage1_epoch_3.pt"):
        stage1_source(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="stage1_checkpoint .*nowhere does not exist"):
        stage1_source(tmp_path / "nowhere")
