"""Vision transformer (ViT, arXiv 2010.11929) that encodes only the visible patches of pictures or of a clip's frames.

The network is transformers' ViTModel without its pooler, so that published weights (google/vit-base-patch16-224-in21k)
fit; its parts are found by type, because their names change between major versions. Every frame is a picture of its own
with a class token of its own. Hidden patches are dropped before the first layer: their pixels are never read, and what is
visible keeps the position it has in the whole picture. Where pictures show unequally many patches, all but the attention
runs on one row of the tokens that exist, and only the attention pads each picture to the longest.
Shapes: B clips, F frames, P patches a frame, N = F * P tokens (frame-major), V visible ones, D width.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, scaled_dot_product_attention
from transformers import AttentionInterface, ViTModel
from transformers import ViTConfig as NetworkConfig
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer

from lib.encoders import weights
from lib.encoders.patches import patchify, sincos_2d, take
from lib.files import read_json

PUBLISHED = "google/vit-base-patch16-224-in21k"
# name: (width, layers, heads, feed-forward width)
SIZES = {"published": (768, 12, 12, 3072), "small": (64, 3, 2, 256), "tiny": (32, 1, 2, 64)}
# what a published folder may not have otherwise, because a checkpoint stores sizes only
FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True, "hidden_dropout_prob": 0,
         "attention_probs_dropout_prob": 0}
ATTENTION = "visible_patches"           # under this name transformers' layers find `_attend`


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a `VitEncoder`.

    Args:
        size: a name of `SIZES`, from which the four sizes come that are None.  image_size: pixels of a side.
        patch: pixels of a patch's side; it divides image_size.  channels: of a picture.
        width, layers, heads, feedforward: other sizes than those of `size`.
    Raises:
        ValueError: naming the field and what it should be.
    """

    size: str = "published"
    image_size: int = 224
    patch: int = 16
    channels: int = 3
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    feedforward: int | None = None

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"ViT size {self.size!r} is not known; choose one of {', '.join(SIZES)}")
        for name, value in zip(("width", "layers", "heads", "feedforward"), SIZES[self.size]):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, value in asdict(self).items():
            if name != "size" and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"ViT: {name} is {value!r}, expected a whole number of at least 1")
        if self.image_size % self.patch:
            raise ValueError(f"ViT: image_size {self.image_size} is no multiple of patch {self.patch}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"ViT: width {self.width} must be a multiple of 4 and of heads = {self.heads}")

    @classmethod
    def from_published(cls, source: str | Path = PUBLISHED) -> VitConfig:
        """Sizes of a hub id or of a local folder in the published layout.

        Raises: FileNotFoundError, ValueError: naming the folder and what is not there, or is not as in the published ViTs.
        """
        folder = weights.resolve(source)
        entry = read_json(folder / "config.json")
        if entry is None or entry.get("model_type") != "vit":
            raise ValueError(f"{folder} holds no ViT: a config.json with model_type 'vit' is expected there, "
                             f"for example of {PUBLISHED}")
        said = NetworkConfig(**{name: value for name, value in entry.items() if name in NetworkConfig().to_dict()})
        other = [f"{name} = {getattr(said, name)!r} instead of {value!r}" for name, value in FIXED.items()
                 if getattr(said, name) != value]
        if other:
            raise ValueError(f"{folder}/config.json: {', '.join(other)}; only ViTs like {PUBLISHED} can be used")
        return cls("published", said.image_size, said.patch_size, said.num_channels, said.hidden_size, said.num_hidden_layers,
                   said.num_attention_heads, said.intermediate_size)

    def to_dict(self) -> dict:
        """JSON-able form, with every size."""
        return asdict(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.image_size // self.patch,) * 2

    @property
    def places(self) -> int:
        """Patches P of a picture (published: 196)."""
        return (self.image_size // self.patch) ** 2


class VitEncoder(nn.Module):
    """Pictures to one state a patch, after the last layer and the final norm.

    From scratch, positions start at MAE's fixed table and stay trainable: a short training has no time to learn where
    patches lie.

    Args:
        config: a `VitConfig`.  network: a ViTModel of these sizes; None: random weights.
    """

    def __init__(self, config: VitConfig = VitConfig(), network: ViTModel | None = None):
        super().__init__()
        self.config, self.width = config, config.width
        if network is None:
            network = ViTModel(NetworkConfig(
                hidden_size=config.width, num_hidden_layers=config.layers, num_attention_heads=config.heads,
                intermediate_size=config.feedforward, image_size=config.image_size, patch_size=config.patch,
                num_channels=config.channels,
                # 0.02 suits a width of 768 and more; in narrow layers every step would make the signal smaller
                initializer_range=config.width ** -0.5 if config.width < 768 else 0.02, attn_implementation=ATTENTION, **FIXED),
                add_pooling_layer=False)
        self.network = network
        if network.config._attn_implementation != ATTENTION:
            raise ValueError(f"the ViT was built with attention {network.config._attn_implementation!r}, expected {ATTENTION!r}")

    @classmethod
    def from_scratch(cls, config: VitConfig) -> VitEncoder:
        """Random weights (of torch's global generator)."""
        encoder = cls(config)
        with torch.no_grad():
            encoder.embeddings.position_embeddings.copy_(sincos_2d(*config.grid, config.width))
            # as MAE does, like a linear layer (flatten gives a view): pixels would drown the positions
            nn.init.xavier_uniform_(encoder.projection.weight.flatten(1))
        return encoder

    @classmethod
    def from_published(cls, source: str | Path = PUBLISHED) -> VitEncoder:
        """Weights of a hub id, "modelscope:<owner>/<name>" or a local folder in the published layout.

        Raises: FileNotFoundError, ValueError: naming the folder and what is missing or does not fit in it.
        """
        folder = weights.resolve(source)
        config = VitConfig.from_published(folder)
        network, report = ViTModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32,
                                                   attn_implementation=ATTENTION, output_loading_info=True)
        if report["missing_keys"]:             # transformers would go on with random numbers in their place
            raise ValueError(f"{folder}: {len(report['missing_keys'])} entries are missing in the weights, such as "
                             f"{min(report['missing_keys'])}; they are no whole ViT")
        return cls(config, network)

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer layers, first to last."""
        return [module for module in self.network.modules() if isinstance(module, ViTLayer)]

    @property
    def norm(self) -> nn.LayerNorm:
        """The norm after the last layer."""
        return next(child for child in self.network.children() if isinstance(child, nn.LayerNorm))

    @property
    def embeddings(self) -> ViTEmbeddings:
        """Class token, positions and the projection of patches."""
        return next(child for child in self.network.children() if isinstance(child, ViTEmbeddings))

    @property
    def projection(self) -> nn.Conv2d:
        """The projection of a patch's pixels, whose weight (D, C, patch, patch) has the order of `patchify`."""
        return next(module for module in self.embeddings.modules() if isinstance(module, nn.Conv2d))

    def forward(self, images: Tensor, visible: Tensor | None = None, classes: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Encode the visible patches.

        Args:
            images: Tensor (B, C, S, S), or (B, F, C, S, S) frames of clips, S = image_size, normalised to -1 .. 1.
            visible: Tensor (B, V) int64, ascending token numbers in 0 .. N - 1; None: all.
            classes: return the frames' class states too.
        Returns:
            Tensor (B, V, D), V = N for all; with `classes` also Tensor (B, F, D).
        Raises:
            ValueError: pictures of another size, or numbers that are not ascending or out of range.
        """
        config, embeddings = self.config, self.embeddings
        images = images[:, None] if images.ndim == 4 else images
        expected = config.channels, config.image_size, config.image_size
        if images.ndim != 5 or images.shape[2:] != expected:
            raise ValueError(f"pictures have shape {tuple(images.shape)}, this ViT expects (clips, "
                             f"{', '.join(map(str, expected))}), or the same with frames after clips; decode with its image_size")
        frames, layout = images.shape[1], None
        patches = patchify(images, config.patch).flatten(1, 2)
        place = torch.arange(patches.shape[1], device=images.device).expand(len(images), -1) if visible is None else visible
        if visible is not None:
            layout = _layout(visible, len(images), frames, config.places)
            patches = take(patches, visible)
        positions = embeddings.position_embeddings[0]
        # embedding, because threads that add up the gradients of an indexed table do so in any order
        placed = embedding(1 + place % config.places, positions)
        tokens = linear(patches, self.projection.weight.flatten(1), self.projection.bias) + placed
        first, count = (embeddings.cls_token[0] + positions[:1]).to(tokens.dtype), len(images) * frames
        if layout is None:                     # pictures are equally long: (B * F, 1 + V / F, D)
            states = torch.cat([first.expand(count, 1, -1), tokens.reshape(count, -1, self.width)], dim=1)
        else:                                  # one row: the class tokens of all pictures, then all patches
            states = torch.cat([first.expand(count, -1), tokens.flatten(0, 1)])[None]
        for layer in self.layers:
            states = layer(states, layout)
        states = self.norm(states)
        own, rest = (states[:, 0], states[:, 1:]) if layout is None else states[0].split([count, states.shape[1] - count])
        rest = rest.reshape(len(images), -1, self.width)
        return (rest, own.reshape(len(images), frames, self.width)) if classes else rest


class _Layout(NamedTuple):
    """Where the tokens of a row stand when every picture is padded to the longest.

    slots: Tensor (T,) place in (pictures * longest).  keys: Tensor (pictures, 1, 1, longest) bool, True where a token is.
    """

    slots: Tensor
    keys: Tensor


def _layout(visible: Tensor, clips: int, frames: int, places: int) -> _Layout | None:
    """Places of class tokens and visible patches (B, V); None where every picture shows equally many."""
    fits = visible.ndim == 2 and len(visible) == clips and visible.numel()
    if not fits or (visible.diff(dim=1) <= 0).any() or visible[:, 0].min() < 0 or visible[:, -1].max() >= frames * places:
        raise ValueError(f"visible must be ({clips} clips, patches) of ascending numbers from 0 to {frames * places - 1}, "
                         f"one at least, got shape {tuple(visible.shape)}")
    picture = torch.arange(clips, device=visible.device)[:, None] * frames + visible // places                # (B, V)
    counts = torch.bincount(picture.flatten(), minlength=clips * frames)
    longest = 1 + int(counts.max())
    if (counts == longest - 1).all():
        return None
    # tokens are ordered by picture: a token's rank in its picture is its number less that of the picture's first
    rank = torch.arange(picture.numel(), device=visible.device) - (counts.cumsum(0) - counts)[picture.flatten()]
    own = torch.arange(len(counts), device=visible.device) * longest
    keys = torch.arange(longest, device=visible.device) <= counts[:, None]
    return _Layout(torch.cat([own, picture.flatten() * longest + 1 + rank]), keys[:, None, None])


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, layout: _Layout | None, scaling: float | None = None,
            dropout: float = 0.0, **unused) -> tuple[Tensor, None]:
    """Attention within pictures, called by transformers' layers.

    Args: query, key, value: Tensor (pictures, heads, L, d) without a layout, otherwise (1, heads, T, d).
    Returns: Tensor (pictures, L, heads, d) or (1, T, heads, d); no weights.
    """
    if layout is None:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling).transpose(1, 2), None
    pictures, longest = len(layout.keys), layout.keys.shape[-1]
    padded = (rows[0].transpose(0, 1) for rows in (query, key, value))                                        # (T, heads, d)
    padded = (rows.new_zeros(pictures * longest, *rows.shape[1:]).index_copy(0, layout.slots, rows) for rows in padded)
    mixed = scaled_dot_product_attention(*(rows.unflatten(0, (pictures, longest)).transpose(1, 2) for rows in padded),
                                         attn_mask=layout.keys, dropout_p=dropout, scale=scaling)
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, layout.slots)[None], None


AttentionInterface.register(ATTENTION, _attend)
