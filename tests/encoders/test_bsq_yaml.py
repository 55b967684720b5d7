"""The original's yaml layout as parameters: the two published files, contradictions, unknown keys."""
import json

import pytest

from lib.encoders.bsq_yaml import from_yaml
from lib.families.tokenizer import TokenizerConfig
from lib.glossary import ParameterError

AUDIO = {"input_size": 128, "input_length": 1024, "patch_size": 16, "time_patch_size": None, "freq_patch_size": None, "width": 768, "layers": 12,
         "heads": 12, "mlp_ratio": 4.0, "drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0, "ls_init_value": None, "ln_pre": True,
         "ln_post": True, "use_conv_module": True, "conv_kernel_size": 31, "mask_type": "none", "mask_block_size": -1}
LIBRISPEECH = {
    "model": {"target": "somewhere.AudioBSQModel", "params": {
        "embed_dim": 18, "embed_group_size": 1, "l2_norm": True, "post_q_l2_norm": True, "persample_entropy_compute": "analytical",
        "cb_entropy_compute": "group", "beta": 0.0, "gamma0": 1.0, "gamma": 1.0, "zeta": 1.0, "inv_temperature": 1.0, "clamp_range": [-80, 0],
        "logit_laplace": False, "grad_checkpointing": False, "selective_checkpointing": False, "ckpt_path": None, "ignore_keys": [],
        "audioconfig": AUDIO, "daudioconfig": AUDIO}},
    "loss": {"target": "somewhere.Loss", "params": {
        "disc_type": "patchgan", "disc_loss": "hinge", "disc_start": 0, "disc_weight": 0.1, "disc_reg_freq": 16, "disc_reg_r1": 10, "disc_in_channels": 1,
        "disc_num_layers": 4, "disc_ndf": 64, "codebook_weight": 0.1, "codebook_rampup_multiplier": 3.0, "codebook_rampup_steps": 2000,
        "reconstruct_weight": 1.0, "perceptual_weight": 0.0, "use_adaptive_disc_weight": False}},
    "data": {"dataset_type": "librispeech", "sample_rate": 16000, "n_mels": 128, "n_fft": 1024, "hop_length": 160, "target_length": 1024,
             "batch_size": 32, "num_workers": 8, "clamp_range": [-80, 0],
             "train": {"target": "x", "params": {"root": "./data/LibriSpeech", "split": "train-clean-100", "normalize": True, "augment": True}},
             "val": {"target": "x", "params": {"root": "./data/LibriSpeech", "split": "dev-clean", "normalize": True, "augment": False}}},
    "optimizer": {"target": "torch.optim.AdamW", "base_lr": 4e-7, "max_iter": 500000, "disable_amp": False, "use_bf16": True,
                  "lr_scheduler_config": {"warmup_iters": 5000}, "params": {"weight_decay": 1e-4, "betas": [0.9, 0.99], "eps": 1e-8}},
    "evaluation": {"compute_mse": True, "compute_mae": True}, "wandb": {"project": "audio", "run": "b18"},
}


def changed(document, place, value):
    """A copy with another value at a place such as "data.n_mels"; ...: without it."""
    document = json.loads(json.dumps(document))
    *parts, last = place.split(".")
    inner = document
    for part in parts:
        inner = inner.setdefault(part, {})
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return document


@pytest.fixture
def read(tmp_path):
    def inner(document, **options):
        file = tmp_path / "tokenizer.yaml"
        file.write_text(json.dumps(document))        # which is yaml, too
        return from_yaml(file, **options)
    return inner


def test_the_published_file(read, tmp_path):
    with pytest.warns(UserWarning, match="not used here: .*loss.params.disc_type.*wandb.project"):
        values = read(LIBRISPEECH)
    (tmp_path / "data" / "LibriSpeech").mkdir(parents=True)
    c = TokenizerConfig.from_dict(values | {"data_root": str(tmp_path / "data")})
    assert (c.dataset, c.size("embed_dim"), c.size("width"), c.mel.samples) == ("librispeech", 18, 768, 163_680)
    assert c.disc_weight == 0.1 and c.betas == (0.9, 0.99) and c.augment and c.precision == "bf16-mixed" and c.workers == 8 and not c.grad_checkpointing
    assert c.learning_rate == pytest.approx(1.28e-5) and c.start_learning_rate == pytest.approx(1.28e-6) and c.floor_learning_rate == pytest.approx(6.4e-6)
    steps = 28539 // 32
    assert c.epochs == round(500_000 / steps) and c.warmup_epochs * steps == pytest.approx(5000, rel=1e-4)
    assert (c.warmup_epochs + c.decay_epochs) * steps == pytest.approx(500_000, rel=1e-4)
    with pytest.warns(UserWarning):
        four = read(LIBRISPEECH, processes=8)
    assert four["batch_size"] == 256 and four["devices"] == 8 and four["learning_rate"] == pytest.approx(1.024e-4)


@pytest.mark.filterwarnings("ignore:.*not used here")
def test_ones_own_folder(read, tmp_path):
    document = changed(changed(changed(LIBRISPEECH, "data.dataset_type", "folder"), "data.train.params.root", "my_audio/train"),
                       "data.val.params.root", "my_audio/val")
    with pytest.warns(UserWarning, match="number of training clips"):
        values = read(document)
    assert values["data_root"] == "my_audio" and values["dataset"] == "folder" and "epochs" not in values
    assert read(document, clips=64)["epochs"] == 250_000


@pytest.mark.filterwarnings("ignore:.*not used here")
@pytest.mark.parametrize("place", ["model.grad_checkpointing", "model.params.grad_checkpointing", "model.params.audioconfig.grad_checkpointing"])
def test_checkpointing_is_understood_wherever_it_stands(read, place):
    document = changed(LIBRISPEECH, "model.params.grad_checkpointing", ...)
    assert read(changed(document, place, True))["grad_checkpointing"] is True


@pytest.mark.filterwarnings("ignore:.*not used here")
def test_one_number_in_one_place(read):
    """The seed's presets name the mel bands and frames under data only."""
    short = changed(changed(LIBRISPEECH, "model.params.audioconfig", {"use_conv_module": True}), "model.params.daudioconfig", ...)
    values = read(changed(changed(short, "data.n_mels", 80), "data.target_length", 512))
    audio = TokenizerConfig.from_dict({k: v for k, v in values.items() if k != "data_root"}).audioconfig
    assert (audio["input_size"], audio["input_length"]) == (80, 512)
    smaller = changed(LIBRISPEECH, "model.params.daudioconfig.layers", 6)
    assert TokenizerConfig.from_dict({k: v for k, v in read(smaller).items() if k != "data_root"}).daudioconfig["layers"] == 6


@pytest.mark.filterwarnings("ignore:.*not used here")
@pytest.mark.parametrize("place, value, words", [
    ("data.n_mels", 80, "data.n_mels is 80, but .*input_size is 128; both are the parameter n_mels"),
    ("data.target_length", 512, "both are the parameter frames"), ("data.clamp_range", [-60, 0], "both are the parameter clamp_range"),
    ("model.params.embed_dims", 9, "unknown parameter 'model.params.embed_dims'; did you mean 'model.params.embed_dim'"),
    ("model.params.audioconfig.width_", 9, "audioconfig.width_"), ("optimizer.lr", 1e-4, "'optimizer.lr'"), ("data.train.params.roots", "x", "roots"),
    ("loss.params.perceptual_weight", 0.1, "perceptual_weight is 0.1; only 0 is possible"), ("model.params.ckpt_path", "x.pt", "ckpt_path is x.pt"),
    ("model.params.daudioconfig.patch_size", 8, "patch_size is 8, in audioconfig it is 16"), ("data.dataset_type", "imagenet", "known are librispeech"),
    ("data.val.params.root", "elsewhere", "both are the parameter data_root"), ("surprise", 1, "surprise")])
def test_contradictions_and_unknown_keys(read, place, value, words):
    with pytest.raises(ParameterError, match=words):
        read(changed(LIBRISPEECH, place, value))


def test_another_kind_of_file(tmp_path):
    (tmp_path / "x.yaml").write_text("- 1\n")
    with pytest.raises(ParameterError, match="x.yaml: expected the sections model"):
        from_yaml(tmp_path / "x.yaml")
