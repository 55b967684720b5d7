"""RoBERTa text encoder (Liu et al., arXiv 1907.11692) through transformers, pretrained or from scratch.

Captions are lower-cased, freed of punctuation and cut at `max_tokens`; the last hidden state of token 0 represents the caption.
A scratch size brings its own byte-level BPE tokenizer, trained on the training captions.
"""
from __future__ import annotations

import string
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from lib.encoders import weights

# name: (width, layers, heads, feed-forward width). The first two are the published sizes.
SIZES = {"roberta-large": (1024, 24, 16, 4096), "roberta-base": (768, 12, 12, 3072),
         "small": (256, 4, 4, 1024), "mini": (128, 2, 2, 512), "tiny": (32, 1, 2, 64)}
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(caption: str) -> str:
    """Caption in lower case without the characters of `string.punctuation`."""
    return caption.lower().translate(_PUNCTUATION)


def train_tokenizer(captions: list[str], vocabulary: int = 1000) -> PreTrainedTokenizerFast:
    """Byte-level BPE tokenizer with RoBERTa's special tokens (ids 0-4), trained on normalised captions.

    The result depends on the set of captions only, not on their order. Nothing is ever out of vocabulary (256 bytes).
    """
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(sorted({normalise(c) for c in captions}), vocab_size=vocabulary, min_frequency=2,
                            special_tokens=list(SPECIAL.values()), show_progress=False)
    core = bpe._tokenizer
    core.post_processor = RobertaProcessing(("</s>", core.token_to_id("</s>")), ("<s>", core.token_to_id("<s>")))
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)


@dataclass(frozen=True)
class TextConfig:
    """Settings of `RobertaText`.

    Args:
        size: a name of `SIZES`.  max_tokens: longer captions are cut.  dropout: hidden and attention dropout.
        vocabulary: entries of a tokenizer trained from scratch (at most; published tokenizers bring their own).
    """

    size: str = "roberta-large"
    max_tokens: int = 32
    dropout: float = 0.2
    vocabulary: int = 1000

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"text size {self.size!r} is not known; choose one of {', '.join(SIZES)}")

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)


class RobertaText(nn.Module):
    """Captions to one feature vector each.

    Args:
        config: a `TextConfig`.  tokenizer: a fast tokenizer with RoBERTa's special tokens.
        network: a RobertaModel without pooling layer; None: one of `config.size`, randomly initialised.
    """

    kind = "roberta"

    def __init__(self, config: TextConfig, tokenizer, network: RobertaModel | None = None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        if network is None:
            width, layers, heads, wide = SIZES[config.size]
            network = RobertaModel(RobertaConfig(
                vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                intermediate_size=wide, max_position_embeddings=max(config.max_tokens, 8) + 2, type_vocab_size=1,
                hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout,
                # BERT's 0.02 suits a width of 768 and more; narrow encoders would start with all captions at one point
                initializer_range=width ** -0.5 if width < 768 else 0.02,
                bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            ), add_pooling_layer=False)
        self.network = network
        self.width = network.config.hidden_size

    @classmethod
    def from_scratch(cls, config: TextConfig, captions: list[str]) -> "RobertaText":
        """Random weights and a tokenizer trained on `captions` (training captions only)."""
        return cls(config, train_tokenizer(captions, config.vocabulary))

    @classmethod
    def from_published(cls, config: TextConfig, source: str | Path) -> "RobertaText":
        """Weights and tokenizer of a hub id or a local folder in the published layout.

        Args:
            source: "roberta-large", "FacebookAI/roberta-base", "modelscope:<owner>/<name>" or a folder.
        Raises:
            FileNotFoundError: naming the source, when it is neither a folder nor reachable, or holds no tokenizer.
            ValueError: naming the folder and what is missing or does not fit in it.
        """
        folder = weights.resolve(source)
        tokenizer = weights.read_tokenizer(folder)
        network, report = RobertaModel.from_pretrained(
            folder, add_pooling_layer=False, hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout,
            dtype=torch.float32, output_loading_info=True)
        missing = sorted(name for name in report["missing_keys"] if not name.endswith("position_ids"))
        if missing:             # transformers would go on with random numbers in their place
            raise ValueError(f"{folder}: {len(missing)} entries are missing in the weights, such as {missing[0]}; they are no whole RoBERTa")
        if len(tokenizer) > network.config.vocab_size:
            raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} entries, the network {network.config.vocab_size}; its files must "
                             "be of one checkpoint")
        return cls(config, tokenizer, network)

    @classmethod
    def like(cls, other: "RobertaText", config: TextConfig) -> "RobertaText":
        """An encoder with the tokenizer and sizes of another one, the dropout and length of `config`, and random weights."""
        network = deepcopy(other.network.config)
        network.hidden_dropout_prob = network.attention_probs_dropout_prob = config.dropout
        return cls(config, other.tokenizer, RobertaModel(network, add_pooling_layer=False))

    def forward(self, captions: list[str]) -> Tensor:
        """Captions (a list of B texts) to Tensor (B, width)."""
        device = self.network.device
        tokens = self.tokenizer([normalise(c) for c in captions], padding=True, truncation=True,
                                max_length=self.config.max_tokens, return_tensors="pt")
        hidden = self.network(input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device))
        return hidden.last_hidden_state[:, 0]
