"""T3-AV: a vision transformer each for sound pictures and video frames, a transformer that both share, and what a stage
adds to them.

Stage "mae" predicts the pixels of hidden patches, "contrastive" makes unit vectors that agree for sound and video of one clip,
"finetune" tells what the clip shows. Only the parts of the stage are built (`PARTS`), and all of it runs through
`T3AV.forward`, so that DistributedDataParallel averages every gradient. Tokens carry the position they have in the whole
clip: row 0 of a table is the class token's, row l + 1 is token l's, also where most tokens are hidden. Tables are fixed
and not stored.
Shapes: B clips, F frames, S pixels of a side, N tokens of a clip, V visible ones, D width, P values of a patch.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lib.encoders.patches import patchify, position_table, random_mask, take, tube_mask, visible_index
from lib.encoders.vit import VitConfig, VitEncoder
from lib.randomness import derive

MODALITIES = ("audio", "video")
PARTS = {"mae": ("encoders", "backbone", "decoders"), "contrastive": ("encoders", "backbone", "heads"),
         "finetune": ("encoders", "backbone", "classifier")}           # first words of a stage's state_dict
CHOICES = {"positions": ("1d", "2d"), "mask": ("random", "tube"), "masking": ("before", "after"), "pooling": ("class", "mean", "max")}


@dataclass(frozen=True)
class T3AVSettings:
    """Structure of a `T3AV`, under the names of the original's options.

    Args:
        audio, video: sizes of the two ViTs, of one width D.  num_frames: F.
        pixel_mean, pixel_std: of the frames in 0 .. 1, which the video ViT sees standardised. 0.5 and 0.5 are those of the published
            ViT; from scratch, what differs from clip to clip drowns in a common brightness unless they fit the videos.
        bb_layers, bb_heads: of the shared backbone.  dec_layers, dec_heads: of each decoder.
        dropout: of backbone and decoders, in [0, 1); their feed-forward layers have width 4 D.
        positions: "1d", or "2d": see `position_table`.
        mask_ratio: share of hidden tokens, in [0, 1).  mask: "random" over all tokens, or "tube": the same places in all frames.
        masking: "before" the ViTs, which then see no hidden pixel; "after" them (the original's place, for comparison): their
            visible outputs carry what the hidden patches show.
        token_share: of the tokens of a clip, in (0, 1], that "contrastive" and "finetune" encode while they train (Li et al., "Scaling
            Language-Image Pre-training via Masking", CVPR 2023): faster, and another part of the clip in every epoch.
        contrastive_dim, proj_hidden_dim: of the projection heads.  temperature: of `T3AV.logits`, fixed.
        classes, clf_hidden_dim: of the classifier.  pooling: what heads and classifier read: the "class" state, or of each dimension the "mean" or the "max" over
            patch states, which finds what few patches show.
    Raises:
        ValueError: naming the setting and what it should be.
    """

    audio: VitConfig = field(default_factory=VitConfig)
    video: VitConfig = field(default_factory=VitConfig)
    num_frames: int = 16
    pixel_mean: float = 0.5
    pixel_std: float = 0.5
    bb_layers: int = 6
    bb_heads: int = 12
    dec_layers: int = 2
    dec_heads: int = 8
    dropout: float = 0.1
    positions: str = "1d"
    mask_ratio: float = 0.75
    mask: str = "random"
    token_share: float = 1.0
    masking: str = "before"
    contrastive_dim: int = 128
    proj_hidden_dim: int = 768
    temperature: float = 0.07
    classes: int = 0
    clf_hidden_dim: int = 512
    pooling: str = "class"

    def __post_init__(self):
        if self.audio.width != self.video.width:
            raise ValueError(f"T3-AV: the ViTs share a backbone and must have one width, got {self.audio.width} for audio and "
                             f"{self.video.width} for video")
        for name in ("num_frames", "bb_layers", "bb_heads", "dec_layers", "dec_heads", "contrastive_dim", "proj_hidden_dim",
                     "clf_hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"T3-AV: {name} is {getattr(self, name)}, expected at least 1")
        for name in ("bb_heads", "dec_heads"):
            if self.width % getattr(self, name):
                raise ValueError(f"T3-AV: {name} = {getattr(self, name)} does not divide the width {self.width} of the ViTs")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"T3-AV: {name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("dropout", "mask_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"T3-AV: {name} is {getattr(self, name)}, expected at least 0 and below 1")
        if not 0 < self.token_share <= 1:
            raise ValueError(f"T3-AV: token_share is {self.token_share}, expected above 0 and at most 1")
        if not self.pixel_std > 0:
            raise ValueError(f"T3-AV: pixel_std is {self.pixel_std}, expected above 0")
        if not self.temperature > 0 or self.classes < 0:
            raise ValueError(f"T3-AV: temperature must be above 0 and classes at least 0, got {self.temperature} "
                             f"and {self.classes}")

    @classmethod
    def from_dict(cls, values: Mapping) -> T3AVSettings:
        """Read `to_dict`'s form back."""
        return cls(**dict(values) | {name: VitConfig(**values[name]) for name in MODALITIES})

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)

    @property
    def width(self) -> int:
        """D."""
        return self.audio.width

    def vit(self, modality: str) -> VitConfig:
        """Sizes of a modality's ViT."""
        return self.audio if modality == "audio" else self.video

    def frames(self, modality: str) -> int:
        """Pictures of a clip: 1 for audio."""
        return 1 if modality == "audio" else self.num_frames

    def tokens(self, modality: str) -> int:
        """N (published: 196 for audio, 3136 for video)."""
        return self.frames(modality) * self.vit(modality).places

    def values(self, modality: str) -> int:
        """P of the targets: sound pictures are grey (256 for patches of 16 x 16), frames have three colours (768)."""
        return (1 if modality == "audio" else self.vit(modality).channels) * self.vit(modality).patch ** 2


@dataclass(frozen=True)
class Freezing:
    """What does not train.

    In "mae" and "contrastive" all trains but what freeze_encoders and freeze_backbone name. In "finetune" the classifier trains,
    and: unfreeze_backbone_layers, the last N layers of the backbone (not its class token); unfreeze_encoder_layers, the last N
    of the audio ViT and its final norm (the video ViT stays frozen); or unfreeze_all, everything but what freeze_encoders and
    freeze_backbone name. freeze_all_except_head says that nothing is unfrozen.
    """

    freeze_encoders: bool = False
    freeze_backbone: bool = False
    freeze_all_except_head: bool = False
    unfreeze_backbone_layers: int = 0
    unfreeze_encoder_layers: int = 0
    unfreeze_all: bool = False

    def check(self, settings: T3AVSettings, stage: str) -> None:
        """ValueError: options that contradict each other, that the stage does not have, or more layers than there are."""
        given = {name for name, value in asdict(self).items() if value}
        only = given - {"freeze_encoders", "freeze_backbone"}
        if stage != "finetune" and only:
            raise ValueError(f"{', '.join(sorted(only))}: of stage 'finetune' only; stage {stage!r} has freeze_encoders "
                             "and freeze_backbone")
        for one, others in {"freeze_all_except_head": ("unfreeze_all", "unfreeze_backbone_layers", "unfreeze_encoder_layers"),
                            "unfreeze_all": ("unfreeze_backbone_layers", "unfreeze_encoder_layers"),
                            "freeze_backbone": ("unfreeze_backbone_layers",),
                            "freeze_encoders": ("unfreeze_encoder_layers",)}.items():
            for other in others:
                if one in given and other in given:
                    raise ValueError(f"{one} and {other}={getattr(self, other)} contradict each other; give one of them")
        for name, layers in (("unfreeze_backbone_layers", settings.bb_layers),
                             ("unfreeze_encoder_layers", settings.audio.layers)):
            if not 0 <= getattr(self, name) <= layers:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to {layers}, the number of layers")


class Backbone(nn.Module):
    """Post-norm transformer (ReLU) with a learned class token, shared by the modalities."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        # not nn.TransformerEncoder, which starts all its layers with the same weights
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True)
                                    for _ in range(layers))

    def forward(self, states: Tensor, table: Tensor, visible: Tensor | None = None) -> Tensor:
        """Args: states: Tensor (B, V, D).  table: Tensor (1 + N, D).  visible: Tensor (B, V), the tokens' numbers; None: all N.
        Returns: Tensor (B, 1 + V, D), the class state first."""
        first = (self.class_token + table[:1]).expand(len(states), -1, -1)
        states = torch.cat([first, states + (table[1:] if visible is None else table[1 + visible])], dim=1)
        for layer in self.layers:
            states = layer(states)
        return states


class Decoder(nn.Module):
    """Visible states at their places, a learned mask token at all others, post-norm transformer layers, values of every patch."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float, values: int):
        super().__init__()
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True)
                                    for _ in range(layers))
        self.output = nn.Linear(width, values)

    def forward(self, states: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        """Args: states: Tensor (B, V, D) without class state.  table: Tensor (1 + N, D).  visible: Tensor (B, V).
        Returns: Tensor (B, N, P)."""
        filled = self.mask_token.to(states.dtype).expand(len(states), len(table) - 1, -1)
        states = filled.scatter(1, visible[..., None].expand_as(states), states) + table[1:]
        for layer in self.layers:
            states = layer(states)
        return self.output(states)


class T3AV(nn.Module):
    """The model of one stage.

    Args:
        settings: a `T3AVSettings`.  stage: "mae", "contrastive" or "finetune".
        modalities: "audio", "video" or both; one alone in stage "mae" only.
        freezing: a `Freezing`.  Frozen parts are in evaluation mode also while the model trains.
        vit_weights: where the ViTs start: hub id or folder in the published layout; None: random weights.
    Raises:
        ValueError, FileNotFoundError: naming what does not fit.
    """

    def __init__(self, settings: T3AVSettings, stage: str, modalities: tuple[str, ...] = MODALITIES,
                 freezing: Freezing = Freezing(), vit_weights: str | Path | None = None):
        super().__init__()
        if stage not in PARTS:
            raise ValueError(f"stage must be one of {', '.join(PARTS)}, got {stage!r}")
        if not modalities or not set(modalities) <= set(MODALITIES) or (stage != "mae" and set(modalities) != set(MODALITIES)):
            raise ValueError(f"modalities are {tuple(modalities)}; stage 'mae' trains audio, video or both, stage {stage!r} "
                             + ("one at least" if stage == "mae" else "needs both"))
        if stage == "finetune" and settings.classes < 1:
            raise ValueError("stage 'finetune' needs classes, the number of labels")
        freezing.check(settings, stage)
        self.settings, self.stage, self.freezing = settings, stage, freezing
        self.modalities = tuple(name for name in MODALITIES if name in modalities)
        width, s = settings.width, settings
        self.encoders = nn.ModuleDict({name: self._encoder(name, vit_weights) for name in self.modalities})
        self.backbone = Backbone(width, s.bb_layers, s.bb_heads, s.dropout)
        if stage == "mae":
            self.decoders = nn.ModuleDict({name: Decoder(width, s.dec_layers, s.dec_heads, s.dropout, s.values(name))
                                           for name in self.modalities})
        elif stage == "contrastive":
            self.heads = nn.ModuleDict({name: _two_layers(width, s.proj_hidden_dim, s.contrastive_dim)
                                        for name in self.modalities})
        else:
            self.classifier = _two_layers(2 * width, s.clf_hidden_dim, s.classes)
        for name in self.modalities:
            table = position_table(s.positions, s.vit(name).grid, s.frames(name), width)
            self.register_buffer(f"positions_{name}", table.float(), persistent=False)
        self._freeze()

    def _encoder(self, name: str, source: str | Path | None) -> VitEncoder:
        config = self.settings.vit(name)
        if source is None:
            return VitEncoder.from_scratch(config)
        encoder = VitEncoder.from_published(source)
        own, asked = encoder.config.to_dict() | {"size": None}, config.to_dict() | {"size": None}
        if own != asked:
            differ = [f"{key} is {own[key]} there and {asked[key]} here" for key in own if own[key] != asked[key]]
            raise ValueError(f"{source}: the ViT for {name} does not fit: {', '.join(differ)}; "
                             "use VitConfig.from_published of it")
        return encoder

    def _freeze(self) -> None:
        f = self.freezing
        head_only = self.stage == "finetune" and not f.unfreeze_all
        self.encoders.requires_grad_(not (head_only or f.freeze_encoders))
        self.backbone.requires_grad_(not (head_only or f.freeze_backbone))
        free = list(self.backbone.layers)[len(self.backbone.layers) - f.unfreeze_backbone_layers:]
        if f.unfreeze_encoder_layers:
            audio = self.encoders["audio"]
            free += [*audio.layers[-f.unfreeze_encoder_layers:], audio.norm]
        for module in free:
            module.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> T3AV:
        """Training mode for what trains; frozen parts stay in evaluation mode, without dropout."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        return self

    def trainable(self) -> dict[str, int]:
        """Number of parameters that a step changes, of each part and in "total"."""
        counts = {part: sum(p.numel() for p in getattr(self, part).parameters() if p.requires_grad) for part in PARTS[self.stage]}
        return counts | {"total": sum(counts.values())}

    def forward(self, batch: Mapping[str, object], mode: str | None = None, only: str | None = None,
                absent: Mapping[str, Tensor] | None = None) -> dict:
        """Run a stage.

        Args:
            batch: "audio": Tensor (B, 1, S, S), sound pictures in [0, 1]; "video": Tensor (B, F, 3, S, S), uint8 or float
                in [0, 1]; "has_audio", "has_video" (optional): B bools, False where a clip has none and its tensor holds
                anything finite. For "mae" also "seeds": one whole number a clip, from which its masks are drawn; or
                "hidden": {modality: Tensor (B, N) bool}. Other stages draw from "seeds" the tokens of token_share; without
                seeds they take all.
            mode: None: the stage; "states": what heads and classifier read, in any stage.
            only: a modality: the other one is not encoded.
            absent: {modality: Tensor (D,)} for "finetune": what stands for a state that is missing, such as its mean over
                training clips; None: zeros.
        Returns:
            "mae": {modality: {"prediction", "target": Tensor (B, N, P), "hidden": Tensor (B, N) bool}}; nothing is hidden
                in clips without the modality. Targets: sound in 0 .. 1, video in -1 .. 1.
            "contrastive": {modality: Tensor (B, contrastive_dim), unit vectors; "valid": Tensor (B,) bool, clips that have both}.
            "finetune": {"logits": Tensor (B, classes)}, also where `only` one modality is asked.
            "states": {modality: Tensor (B, D)}.
        Raises:
            ValueError: a mode of another stage, an unknown modality, or tensors of another size, naming them.
        """
        mode = mode or self.stage
        if mode not in (self.stage, "states") or only not in (None, *self.modalities):
            raise ValueError(f"this model was built for stage {self.stage!r} with {' and '.join(self.modalities)}; asked for "
                             f"mode {mode!r}, only={only!r}")
        names = (only,) if only else self.modalities
        images = {name: self._images(name, batch) for name in names}
        if mode == "mae":
            return {name: self._reconstruct(name, images[name], batch) for name in names}
        states = {name: self._pool(self._encode(name, images[name], self._part(name, batch))) for name in names}
        if mode == "states":
            return states
        has = {name: self._has(name, batch, len(states[names[0]])) for name in names}
        if mode == "contrastive":
            out = {name: self.heads[name](state) for name, state in states.items()}
            with torch.autocast(out[names[0]].device.type, enabled=False):
                return {name: normalize(rows.float(), dim=-1) for name, rows in out.items()} | {
                    "valid": torch.stack(list(has.values())).all(dim=0)}
        sample = states[names[0]]
        fill = {name: torch.zeros_like(sample) for name in MODALITIES}
        fill |= {name: state.to(sample).expand_as(sample) for name, state in (absent or {}).items()}
        joined = [torch.where(has[name][:, None], states[name], fill[name]) if name in states else fill[name]
                  for name in MODALITIES]
        return {"logits": self.classifier(torch.cat(joined, dim=1))}

    def logits(self, audio: Tensor, video: Tensor) -> Tensor:
        """Similarities over the temperature, for `lib.losses.contrastive.contrastive_loss`: unit vectors (A, C), (V, C) to
        (A, V), in float32."""
        with torch.autocast(audio.device.type, enabled=False):
            return audio.float() @ video.float().T / self.settings.temperature

    def _images(self, name: str, batch: Mapping) -> Tensor:
        """What the batch holds of a modality, in -1 .. 1: Tensor (B, F, channels, S, S), audio with one channel."""
        images, config = batch[name], self.settings.vit(name)
        channels, side = (1 if name == "audio" else config.channels), config.image_size
        expected = (channels, side, side) if name == "audio" else (self.settings.num_frames, channels, side, side)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"{name} has shape {tuple(images.shape)}, this model expects (clips, "
                             f"{', '.join(map(str, expected))}); "
                             "its image_size, num_frames and channels must be those that the clips are decoded with")
        images = images[:, None] if name == "audio" else images
        return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else 2 * images.float() - 1

    def _has(self, name: str, batch: Mapping, clips: int) -> Tensor:
        given = batch.get(f"has_{name}")
        given = [True] * clips if given is None else given
        return torch.as_tensor(given, dtype=torch.bool, device=next(self.parameters()).device)

    def _encode(self, name: str, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Pictures and numbers of visible tokens (B, V) to states (B, 1 + V, D), the class state first."""
        s = self.settings
        if name == "video":
            images = (images - (2 * s.pixel_mean - 1)) / (2 * s.pixel_std)              # from -1 .. 1
        images = images.expand(-1, -1, s.vit(name).channels, -1, -1)                     # grey to equal channels
        if visible is not None and self.settings.masking == "after":
            states = take(self.encoders[name](images), visible)
        else:
            states = self.encoders[name](images, visible)
        return self.backbone(states, getattr(self, f"positions_{name}"), visible)

    def _part(self, name: str, batch: Mapping) -> Tensor | None:
        """Numbers of the tokens that are encoded in training: Tensor (B, V); None: all."""
        share = self.settings.token_share
        if not self.training or share == 1 or "seeds" not in batch:
            return None
        seeds = [derive(int(seed), name, "part") for seed in batch["seeds"]]
        return visible_index(random_mask(seeds, self.settings.tokens(name), 1 - share)).to(next(self.parameters()).device)

    def _pool(self, states: Tensor) -> Tensor:
        pooling = self.settings.pooling
        return states[:, 0] if pooling == "class" else states[:, 1:].mean(dim=1) if pooling == "mean" else states[:, 1:].amax(dim=1)

    def _reconstruct(self, name: str, images: Tensor, batch: Mapping) -> dict[str, Tensor]:
        hidden = self.draw_mask(name, batch["seeds"]) if "hidden" not in batch else batch["hidden"][name]
        expected = len(images), self.settings.tokens(name)
        if hidden.shape != expected:
            raise ValueError(f"the mask of {name} has shape {tuple(hidden.shape)}, expected {expected}; give one seed a clip")
        hidden = hidden.to(images.device)
        visible = visible_index(hidden)
        states = self._encode(name, images, visible)
        prediction = self.decoders[name](states[:, 1:], getattr(self, f"positions_{name}"), visible)
        target = batch[name][:, None].float() if name == "audio" else images
        return {"prediction": prediction, "target": patchify(target, self.settings.vit(name).patch).flatten(1, 2),
                "hidden": hidden & self._has(name, batch, len(images))[:, None]}

    def draw_mask(self, modality: str, seeds) -> Tensor:
        """The mask of each clip: Tensor (B, N) bool on the CPU. Of one seed, audio and video have masks of their own."""
        s, own = self.settings, [derive(int(seed), modality) for seed in seeds]
        if s.mask == "tube":
            return tube_mask(own, s.frames(modality), s.vit(modality).places, s.mask_ratio)
        return random_mask(own, s.tokens(modality), s.mask_ratio)


def _two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
