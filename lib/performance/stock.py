"""What PaSST and its training step are compared with: the public baseline's way, hear21passt as it comes and RoBERTa with eager attention.

Both ways are the same `DualEncoder` around other towers, with the same weights, captions and padding: only the encoders differ.
"""
from __future__ import annotations

import contextlib
import copy
import io
import warnings

import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from lib.encoders import text
from lib.encoders.dual import DualEncoder
from lib.encoders.passt import PasstEncoder, hear21, segments_that_count
from lib.losses.contrastive import contrastive_loss

VOCABULARY = 50265      # of the published RoBERTa: its embedding is a fifth of what AdamW updates
THINGS = ["a dog", "heavy rain", "an old engine", "a crowd of people", "a church bell", "a violin", "running water", "a passing train"]
PLACES = ["in a narrow street", "far away behind a closed window", "on a tin roof at night while somebody is walking by"]


class StockPasst(nn.Module):
    """hear21passt with an encoder's weights: every 10 s segment of the padded window is encoded, one forward a segment (faster on a
    CPU than one for all), and those that count are averaged. In training, band edges and patchout are drawn in each forward."""

    def __init__(self, encoder: PasstEncoder):
        super().__init__()
        from hear21passt.models.preprocess import AugmentMelSTFT

        config, own = encoder.config, encoder.network
        patchout = dict(s_patchout_t=own.s_patchout_t, s_patchout_f=own.s_patchout_f)
        frames, seconds = config.front_end.frames(config.segment_samples), config.segment_seconds
        with contextlib.redirect_stdout(io.StringIO()):         # the whole network is printed
            if config.size == "published":
                network = hear21.get_model("passt_s_p16_s16_128_ap468", pretrained=False, input_tdim=frames, fstride=16, tstride=16, **patchout)
            else:
                network = hear21.PaSST(img_size=(128, frames), patch_size=(16, 16), stride=(16, 16), embed_dim=own.embed_dim, distilled=True,
                                       depth=len(own.blocks), num_heads=own.blocks[0].attn.num_heads, **patchout)
            self.front_end = AugmentMelSTFT(freqm=0, timem=0, fmin_aug_range=10, fmax_aug_range=2000)
        network.head, network.head_dist = nn.Identity(), nn.Identity()      # the classes of AudioSet
        network.load_state_dict(own.state_dict())
        assert type(network.blocks[0].attn) is hear21.Attention
        self.network, self.width, self.kind, self.samples, self.seconds = network, encoder.width, "stock", config.segment_samples, seconds

    def draw(self) -> None:
        """Nothing is drawn before the forward."""

    def forward(self, waveform: Tensor, durations: Tensor, draws: None = None) -> Tensor:
        """As `PasstEncoder.forward`."""
        segments = []
        for part in waveform.split(self.samples, dim=1):
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")                             # it calls what torch has given other names since
                mel = self.front_end(part)
            segments.append(self.network(mel[:, None])[1])
        counts = segments_that_count(durations, self.seconds, len(segments))
        return torch.stack([each[:count].mean(dim=0) for each, count in zip(torch.stack(segments, dim=1), counts.tolist())])


def captions(count: int) -> list[str]:
    """Different captions of 4 to 15 words."""
    return [f"{THINGS[i % 8]} and {THINGS[(i + 1 + i // 8) % 8]} {PLACES[i % 3]}" for i in range(count)]


def clips(batch: int, seconds: float, window: float) -> tuple[Tensor, Tensor]:
    """Noise that swells, zero-padded to `window` seconds at 32 kHz: (B, samples) and durations (B,)."""
    samples = round(seconds * 32000)
    noise = torch.rand(batch, samples, generator=torch.Generator().manual_seed(1)) - 0.5
    swell = torch.sin(torch.linspace(0, 20, samples)).abs()
    return nn.functional.pad(noise * swell, (0, round(window * 32000) - samples)), torch.full((batch,), float(seconds))


def dual_encoders(audio: PasstEncoder, text_size: str, vocabulary: int = VOCABULARY) -> tuple[DualEncoder, DualEncoder]:
    """A model with random weights and the same one in the stock way, both in training mode with RoBERTa's dropout at 0.2."""
    width, layers, heads, wide = text.SIZES[text_size]
    tokenizer = text.train_tokenizer(captions(64))
    roberta = RobertaConfig(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                            intermediate_size=wide, max_position_embeddings=514, type_vocab_size=1, hidden_dropout_prob=0.2,
                            attention_probs_dropout_prob=0.2, pad_token_id=tokenizer.pad_token_id)
    tower = text.RobertaText(text.TextConfig(text_size), tokenizer, RobertaModel(roberta, add_pooling_layer=False))
    ours = DualEncoder(audio, tower)
    eager = copy.deepcopy(tower)
    eager.network.set_attn_implementation("eager")
    assert (tower.network.config._attn_implementation, eager.network.config._attn_implementation) == ("sdpa", "eager")
    stock = DualEncoder(StockPasst(audio), eager)
    stock.load_state_dict(ours.state_dict(), strict=True)
    return ours.train(), stock.train()


def loss_of(model: DualEncoder, waveform: Tensor, durations: Tensor, texts: list[str]) -> Tensor:
    """The contrastive loss (scalar) of clips (B, samples) that last `durations` (B,) seconds, with one caption each."""
    audio, written = model(waveform, durations, texts)
    return contrastive_loss(model.logits(audio, written), torch.eye(len(texts), dtype=torch.bool, device=waveform.device))
