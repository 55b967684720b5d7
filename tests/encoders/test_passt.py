"""PaSST against stock hear21passt, segments, patchout and loading."""
import copy

import pytest
import torch
from hear21passt.models import passt as hear21
from safetensors.torch import save_file

from lib.encoders.passt import PasstConfig, PasstEncoder, segments_that_count

SMALL = dict(size="tiny", segment_seconds=2.0)


def small(**changes):
    torch.manual_seed(0)
    return PasstEncoder(PasstConfig(**SMALL | changes)).eval()


def test_construction_and_forward_are_silent(capfd):
    small()(torch.randn(1, 64000), torch.tensor([2.0]))
    assert capfd.readouterr() == ("", "")


def stock_of(encoder, **patchout):
    """The stock network with the encoder's weights."""
    stock = hear21.PaSST(img_size=(128, 200), patch_size=(16, 16), stride=(16, 16), in_chans=1, num_classes=0, distilled=True,
                         embed_dim=64, depth=2, num_heads=2, **patchout)
    stock.head, stock.head_dist = torch.nn.Identity(), None
    stock.load_state_dict(encoder.network.state_dict())
    assert type(stock.blocks[0].attn) is hear21.Attention
    return stock


@pytest.mark.parametrize("training", [False, True])
def test_network_equals_stock(training):
    """Same features and gradients as the stock network with its softmax and convolution written out, the same patches dropped."""
    encoder = small(patchout_time=0.3, patchout_frequency=0.25).train(training)
    stock = stock_of(encoder, s_patchout_t=encoder.network.s_patchout_t, s_patchout_f=2).train(training)
    assert encoder.network.s_patchout_t == 4
    mel = torch.randn(2, 128, 200, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    mine = encoder.network(mel, *(encoder.network.draw() if training else ()))
    torch.manual_seed(2)
    theirs = torch.stack(stock.forward_features(mel[:, None])).mean(dim=0)
    assert (mine - theirs).abs().max() <= 1e-5
    mine.square().sum().backward()
    theirs.square().sum().backward()
    for (name, a), (_, b) in zip(encoder.network.named_parameters(), stock.named_parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_faster_product_changes_nothing_else():
    """Features without gradients, where the layers take oneDNN's product, are those with gradients; autocast and copies stay as they are."""
    encoder, waveform, durations = small(), torch.randn(2, 64000, generator=torch.Generator().manual_seed(1)), torch.tensor([2.0, 2.0])
    with_gradients = encoder(waveform, durations).detach()
    with torch.no_grad():
        torch.testing.assert_close(encoder(waveform, durations), with_gradients, atol=1e-5, rtol=0)
        torch.testing.assert_close(copy.deepcopy(encoder)(waveform, durations), with_gradients, atol=1e-5, rtol=0)
        layer, tokens = encoder.network.blocks[0].mlp.fc1, torch.randn(2, 3, 64)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(tokens).dtype == torch.bfloat16
        assert layer(tokens).dtype == torch.float32 and layer.double()(tokens.double()).dtype == torch.float64


def test_draws_are_stock_passt_s():
    """One generator state gives the band edges of AugmentMelSTFT, then the columns and rows of stock PaSST; evaluation draws nothing."""
    encoder = small().train()
    torch.manual_seed(3)
    draws = encoder.draw()
    torch.manual_seed(3)
    assert draws.edges == (torch.randint(10, (1,)).item(), 15000 + 1000 - torch.randint(2000, (1,)).item())
    columns, rows = torch.randperm(12)[:9].sort().values, torch.randperm(8)[:6].sort().values
    assert torch.equal(draws.columns, columns) and torch.equal(draws.rows, rows)
    assert encoder.eval().draw() is None


def test_given_draws_are_used():
    encoder = small().train()
    wave, durations, draws = torch.randn(1, 64000), torch.tensor([2.0]), encoder.draw()
    assert torch.equal(encoder(wave, durations, draws), encoder(wave, durations, draws))
    assert not torch.equal(encoder(wave, durations, encoder.draw()), encoder(wave, durations, draws))


def test_published_size():
    """8 x 62 patches, 15 columns and 2 rows dropped, 768 features, about 85 million parameters."""
    encoder = PasstEncoder()
    assert encoder.config.grid == (8, 62) and encoder.width == 768
    assert (encoder.network.s_patchout_t, encoder.network.s_patchout_f) == (15, 2)
    assert 84e6 < sum(p.numel() for p in encoder.parameters()) < 87e6


def test_segments_that_count():
    durations = torch.tensor([0.0, 4.0, 10.0, 10.01, 20.0, 29.0, 30.0, 200.0])
    assert segments_that_count(durations, 10.0, 3).tolist() == [1, 1, 1, 2, 2, 3, 3, 3]


def test_pooling_is_the_mean_of_counted_segments():
    encoder = small()
    wave = torch.randn(3, 3 * 64000)
    durations = torch.tensor([1.5, 4.0, 6.0])
    got = encoder(wave, durations)
    each = torch.stack([encoder.features(wave[:, k * 64000:(k + 1) * 64000]) for k in range(3)], dim=1)
    expected = torch.stack([each[0, 0], each[1, :2].mean(0), each[2].mean(0)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    wave[0, 64000:] = 100.0                                   # what lies in an uncounted segment must not matter
    torch.testing.assert_close(encoder(wave, durations)[0], got[0], atol=1e-5, rtol=1e-4)


def test_short_input_and_silence():
    encoder = small()
    assert torch.isfinite(encoder(torch.zeros(2, 1000), torch.tensor([0.0, 0.03]))).all()


def test_patchout_only_in_training_and_its_limit():
    encoder = small()
    wave, durations = torch.randn(1, 64000), torch.tensor([2.0])
    assert torch.equal(encoder(wave, durations), encoder(wave, durations))
    encoder.train()
    assert not torch.equal(encoder(wave, durations), encoder(wave, durations))
    with pytest.raises(ValueError, match="patchout_time=0.8 keeps 2 and at least 4"):
        PasstConfig(**SMALL, patchout_time=0.8)


def test_official_state_dict_from_a_local_file(tmp_path):
    """The official layout: the network's names with heads, under "net." or not, .pt or .safetensors."""
    source = small()
    state = {k: v + 1 for k, v in source.network.state_dict().items()} | {"head.1.weight": torch.zeros(527, 64), "head_dist.weight": torch.zeros(1)}
    torch.save({"state_dict": {f"net.{k}": v for k, v in state.items()}}, tmp_path / "passt.pt")
    save_file(state, tmp_path / "passt.safetensors")
    for name in ("passt.pt", "passt.safetensors"):
        encoder = small()
        encoder.load_published(tmp_path / name)
        assert torch.equal(encoder.network.cls_token, source.network.cls_token + 1)
    with pytest.raises(FileNotFoundError, match="no.pt' are no file"):
        small().load_published("no.pt")
    with pytest.raises(ValueError, match="passt.pt does not fit PaSST size 'tiny' with 4.0 s segments: 1 entries.*time_new_pos"):
        small(segment_seconds=4.0).load_published(tmp_path / "passt.pt")


def test_a_published_name_is_downloaded_once(tmp_path, monkeypatch):
    """By name the release file goes to the data folder; the second time nothing is fetched."""
    asked = []

    def fetch(url, path):
        asked.append(url)
        path.parent.mkdir(parents=True)
        torch.save(small().network.state_dict(), path)
        return path
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path))
    monkeypatch.setattr("lib.encoders.passt.fetch", fetch)
    for _ in range(2):
        small().load_published("passt_s_p16_s16_128_ap468")
    assert asked == [hear21.default_cfgs["passt_s_p16_s16_128_ap468"]["url"]] and asked[0].startswith("https://github.com/kkoutini/PaSST/")
    assert (tmp_path / "weights" / asked[0].rpartition("/")[2]).is_file()
