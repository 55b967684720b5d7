"""The log-mel front end against hear21passt's, and its behaviour at the edges."""
import pytest
import torch
from hear21passt.models.preprocess import AugmentMelSTFT

from lib.audio.logmel import LogMel, LogMelConfig


def stock():
    return AugmentMelSTFT(n_mels=128, sr=32000, win_length=800, hopsize=320, n_fft=1024, freqm=0, timem=0, htk=False,
                          fmin=0.0, fmax=None, norm=1, fmin_aug_range=10, fmax_aug_range=2000)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
def test_equals_augmentmelstft(training, monkeypatch):
    """Same numbers in evaluation, and in training with the same random state (the jitter draws line up)."""
    # the stock class asks torch.stft for real output, which current torch spells as view_as_real of the complex one
    complex_stft = torch.stft
    monkeypatch.setattr(torch, "stft", lambda *a, **k: torch.view_as_real(complex_stft(*a, **k | {"return_complex": True})))
    reference = stock().train(training)
    wave = torch.randn(3, 32000 * 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [0.1], [0.001]])
    torch.manual_seed(5)
    expected = reference(wave)
    monkeypatch.undo()
    torch.manual_seed(5)
    got = LogMel().train(training)(wave)
    assert got.shape == (3, 128, 200) == expected.shape
    assert (got - expected).abs().max() <= 1e-5
    if training:
        torch.manual_seed(6)
        assert (LogMel().train()(wave) - got).abs().max() > 1e-3


def test_frames_silence_and_autocast():
    config = LogMelConfig()
    assert config.frames(320_000) == 1000
    silent = LogMel(config).eval()(torch.zeros(1, 16000))
    assert torch.isfinite(silent).all() and silent.std() < 1e-6
    wave = torch.randn(1, 16000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LogMel(config).eval()(wave)
    assert inside.dtype == torch.float32 and torch.equal(inside, LogMel(config).eval()(wave))


def test_masks_only_in_training():
    config = LogMelConfig(time_masks=2, time_mask=0.3, frequency_masks=1, frequency_mask=0.3, fmin_jitter=1, fmax_jitter=1, fmax=15000)
    front_end, wave = LogMel(config), torch.randn(4, 32000)
    plain = front_end.eval()(wave)
    torch.manual_seed(0)
    masked = front_end.train()(wave)
    share = (plain != masked).float().mean(dim=(1, 2))
    assert (share > 0.01).all() and (share < 0.75).all()
    assert share.unique().numel() > 1, "every clip has masks of its own"
