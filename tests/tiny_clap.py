"""A tiny CLAP in the layout of the hubs, for the tests of whatever is built on one."""
import json

import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

from lib.encoders.text import train_tokenizer

CAPTIONS = [f"A {what} {how}, loudly!" for what in ("Dog", "bird", "café door") for how in ("barks", "sings twice")]


def publish(folder, fusion=False, **front_end):
    """Write a tiny CLAP with segments of 1 s the way hubs publish it. Returns the model."""
    torch.manual_seed(0)
    core = json.loads(train_tokenizer(CAPTIONS).backend_tokenizer.to_str())["model"]
    tokenizer = RobertaTokenizer(vocab=core["vocab"], merges=[tuple(pair) for pair in core["merges"]], model_max_length=512)
    config = ClapConfig(
        projection_dim=12, text_config=dict(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                            intermediate_size=32, max_position_embeddings=40),
        audio_config=dict(spec_size=32, num_mel_bins=8, depths=[1, 1], num_attention_heads=[1, 2], window_size=2,
                          patch_embeds_hidden_size=8, hidden_size=16, num_hidden_layers=2, enable_fusion=fusion, fusion_type="aff_2d" if fusion else None))
    model = ClapModel(config).eval()
    with torch.no_grad():              # weights of transformers' size would place all clips and captions at one point
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
        model.audio_model.audio_encoder.batch_norm.running_mean.fill_(-20.0)
        model.audio_model.audio_encoder.batch_norm.running_var.fill_(400.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ClapFeatureExtractor(**dict(feature_size=8, max_length_s=1, frequency_min=50, truncation="fusion" if fusion else "rand_trunc",
                                padding="repeatpad") | front_end).save_pretrained(folder)
    return model
