"""T3-AV: sizes, no leak of hidden pixels, places of tokens, stages written out, freezing."""
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.encoders.patches import patchify, unpatchify, visible_index
from lib.encoders.t3av import MODALITIES, PARTS, Freezing, T3AV, T3AVSettings
from lib.encoders.vit import VitConfig, VitEncoder
from lib.losses.masked import masked_patch_loss

TINY = T3AVSettings(audio=VitConfig("tiny", image_size=64), video=VitConfig("tiny", image_size=32, layers=2), num_frames=3,
                    bb_layers=2, bb_heads=2,
                    dec_layers=1, dec_heads=2, contrastive_dim=8, proj_hidden_dim=16, classes=4, clf_hidden_dim=12)


def model(stage="mae", settings=TINY, **options):
    torch.manual_seed(0)
    return T3AV(settings, stage, **options)


def batch(clips=2, seed=1, **more):
    make = torch.Generator().manual_seed(seed)
    return {"audio": torch.rand(clips, 1, 64, 64, generator=make), "seeds": list(range(clips)),
            "video": torch.randint(0, 256, (clips, 3, 3, 32, 32), generator=make, dtype=torch.uint8)} | more


def count(part):
    return sum(p.numel() for p in part.parameters())


def losses(out):
    return sum(masked_patch_loss(one["prediction"], one["target"], one["hidden"]) for one in out.values())


def test_parameter_counts_of_the_published_size():
    """The original always builds everything: 247,956,481 with one class. Two poolers, and in each encoder a linear layer
    and a table of positions, are never used there and are not built here."""
    with torch.device("meta"):
        stages = {stage: T3AV(T3AVSettings(classes=1), stage) for stage in PARTS}
        ten = T3AV(T3AVSettings(classes=10), "finetune")
    mae, heads, classifier = stages["mae"], stages["contrastive"].heads, stages["finetune"].classifier
    assert count(mae.backbone) + count(mae.decoders) == 71_668_480 and count(heads) == 1_378_048
    poolers, dead = 2 * (768 * 768 + 768), 2 * (768 * 768 + 768) + (196 + 16) * 768
    assert dead == 1_344_000
    assert count(mae) + count(heads) + count(classifier) + poolers + dead == 247_956_481
    assert count(mae) + count(heads) + count(ten.classifier) + poolers + dead == 247_961_098
    assert [count(stages[stage]) for stage in PARTS] == [243_265_792, 215_503_360, 214_912_769]
    assert mae.positions_video.shape == (3137, 768) and mae.decoders["video"].output.out_features == 768
    assert mae.positions_audio.shape == (197, 768) and mae.decoders["audio"].output.out_features == 256


@pytest.mark.parametrize("stage", PARTS)
def test_only_what_a_stage_needs_is_built_and_stored(stage):
    names = model(stage).state_dict().keys()
    assert {name.split(".")[0] for name in names} == set(PARTS[stage])
    one = model("mae", modalities=("video",))
    assert list(one.encoders) == list(one.decoders) == ["video"] and one(batch()).keys() == {"video"}


def test_parts_go_from_stage_to_stage():
    """What two stages share has one name, so that the rest of a checkpoint is what is missing."""
    first, second = model("mae"), model("finetune")
    report = second.load_state_dict({name: value + 1 for name,
                                     value in first.state_dict().items() if not name.startswith("decoders")}, strict=False)
    assert not report.unexpected_keys and all(name.startswith("classifier") for name in report.missing_keys)
    assert all(torch.equal(mine, other + 1) for mine, other in zip(second.backbone.parameters(), first.backbone.parameters()))


def hide_pixels(given, masks):
    """The batch with other pixels in the hidden patches."""
    changed = dict(given)
    for name in MODALITIES:
        patches = patchify(given[name], 16)
        patches.view(len(patches), -1, patches.shape[-1])[masks[name]] = 1 if name == "audio" else 200
        changed[name] = unpatchify(patches, 16)
    return changed


@pytest.mark.parametrize("mask", ["random", "tube"])
@pytest.mark.parametrize("positions", ["1d", "2d"])
def test_no_leak(mask, positions):
    """Other pixels in the hidden patches change no prediction, bit for bit; targets do change."""
    mine, given = model(settings=replace(TINY, mask=mask, positions=positions)).eval(), batch()
    with torch.no_grad():
        out = mine(given)
        other = mine(hide_pixels(given, {name: one["hidden"] for name, one in out.items()}))
    for name in MODALITIES:
        assert torch.equal(out[name]["prediction"], other[name]["prediction"])
        moved = (out[name]["target"] != other[name]["target"]).any(dim=-1)
        assert torch.equal(moved, out[name]["hidden"])


def test_the_old_place_of_masking_leaks():
    """The positive control of the test above: masking after the encoder, visible states carry what is hidden."""
    mine, given = model(settings=replace(TINY, masking="after")).eval(), batch()
    with torch.no_grad():
        out = mine(given)
        other = mine(hide_pixels(given, {name: one["hidden"] for name, one in out.items()}))
    for name in MODALITIES:
        assert (out[name]["prediction"] - other[name]["prediction"]).abs().max() > 1e-4


@pytest.mark.parametrize("masking", ["before", "after"])
@pytest.mark.parametrize("name", MODALITIES)
def test_reconstruction_written_out(name, masking):
    mine, given = model(settings=replace(TINY, masking=masking)).eval(), batch()
    with torch.no_grad():
        out = mine(given)[name]
        pixels = (given["video"].float() / 255 if name == "video" else given["audio"].expand(-1, 3, -1, -1)) * 2 - 1
        encoder, decoder, table = mine.encoders[name], mine.decoders[name], getattr(mine, f"positions_{name}")
        for b in range(2):
            visible = (~out["hidden"][b]).nonzero()[:, 0]
            states = encoder(pixels[b:b + 1], visible[None] if masking == "before" else None)[0]
            states = states if masking == "before" else states[visible]
            placed = [state + table[1 + l] for state, l in zip(states, visible.tolist())]
            sequence = torch.stack([mine.backbone.class_token[0, 0] + table[0], *placed])
            for layer in mine.backbone.layers:
                sequence = layer(sequence[None])[0]
            tokens = [decoder.mask_token[0, 0]] * len(out["hidden"][b])
            for state, l in zip(sequence[1:], visible.tolist()):
                tokens[l] = state
            full = torch.stack(tokens) + table[1:]
            for layer in decoder.layers:
                full = layer(full[None])[0]
            assert (out["prediction"][b] - decoder.output(full)).abs().max() < 1e-5
        target = patchify((given["audio"] if name == "audio" else pixels), 16).reshape(out["target"].shape)
        assert (out["target"] - target).abs().max() < 1e-6
        assert (~out["hidden"]).sum(dim=1).tolist() == [int(TINY.tokens(name) * 0.25)] * 2


def test_stages_agree_on_places_and_a_mask_of_nothing_is_the_full_encoding():
    """With ratio 0 the masked path gives the states of stages 2 and 3."""
    mine, given = model(settings=replace(TINY, mask_ratio=0.0)).eval(), batch()
    with torch.no_grad():
        states = mine(given, "states")
        for name in MODALITIES:
            images = mine._images(name, given)
            everything = visible_index(mine.draw_mask(name, [1, 2]))
            assert torch.equal(mine._encode(name, images, everything), mine._encode(name, images))
            assert torch.equal(states[name], mine._encode(name, images)[:, 0])


def test_the_backbone_reads_positions_at_the_places_of_tokens():
    backbone, table = model().backbone.eval(), torch.randn(13, 32)
    states, visible = torch.randn(2, 3, 32), torch.tensor([[0, 5, 11], [2, 3, 4]])
    with torch.no_grad():
        full, near = backbone(states, table, visible), backbone(states, table[:4])
        assert (full - near).abs().max() > 1e-2
        assert (backbone(states + table[1 + visible], torch.cat([table[:1], torch.zeros(12, 32)]),
                         visible) - full).abs().max() < 1e-5


def test_normalised_inputs_are_one_for_bytes_and_floats():
    mine, given = model().eval(), batch()
    with torch.no_grad():
        bytes_, floats = (mine(given | {"video": video}, "states")["video"] for video in (given["video"], given["video"] / 255))
    assert (bytes_ - floats).abs().max() < 1e-4


def test_masks_and_so_losses_do_not_depend_on_how_a_batch_is_shared():
    mine, given = model().eval(), batch(4)
    whole = mine(given)
    halves = [mine({key: value[rows] for key, value in given.items()}) for rows in (slice(0, 2), slice(2, 4))]
    for name in MODALITIES:
        for key in ("prediction", "hidden", "target"):
            joined = torch.cat([half[name][key] for half in halves])
            assert (joined.float() - whole[name][key].float()).abs().max() < 1e-5
    assert (sum(losses(half) for half in halves) / 2 - losses(whole)).abs() < 1e-6
    assert not torch.equal(mine.draw_mask("audio", [5])[0, :12],
                           mine.draw_mask("video", [5])[0]), "each modality has masks of its own"
    given["hidden"] = {name: whole[name]["hidden"].flip(0) for name in MODALITIES}
    assert torch.equal(mine(given)["audio"]["hidden"], whole["audio"]["hidden"].flip(0)), "masks may be given"


def test_tubes_and_order_of_frames():
    """Frames in another order: same masks, same states of the encoder in that order; the backbone's table tells them apart."""
    mine, given, order = model(settings=replace(TINY, mask="tube", mask_ratio=0.5)).eval(), batch(), torch.tensor([2, 0, 1])
    swapped = given | {"video": given["video"][:, order]}
    hidden = mine.draw_mask("video", given["seeds"])
    assert torch.equal(hidden.view(2, 3, 4)[:, order], hidden.view(2, 3, 4))
    with torch.no_grad():
        visible = visible_index(hidden)
        first, second = (mine.encoders["video"](mine._images("video", some), visible).view(2, 3, 2, 32)
                         for some in (given, swapped))
        assert (first[:, order] - second).abs().max() < 1e-5
        assert (mine(given, "states")["video"] - mine(swapped, "states")["video"]).abs().max() > 1e-4


def test_contrastive_stage_written_out():
    mine, given = model("contrastive").eval(), batch(3, has_audio=[True, True, False], has_video=[True, False, True])
    with torch.no_grad():
        out, states = mine(given), mine(given, "states")
        for name in MODALITIES:
            first, _, last = mine.heads[name]
            row = last(torch.nn.functional.gelu(first(states[name])))
            assert (out[name] - row / row.norm(dim=1, keepdim=True)).abs().max() < 1e-6
        assert out["valid"].tolist() == [True, False, False]
        assert (mine.logits(out["audio"], out["video"]) - out["audio"] @ out["video"].T / 0.07).abs().max() < 1e-5
        assert torch.equal(mine(given, only="video")["video"], out["video"]) and "audio" not in mine(given, only="video")


def test_mean_pooling_reads_the_patches():
    mine, given = model("contrastive", replace(TINY, pooling="mean")).eval(), batch()
    with torch.no_grad():
        expected = mine._encode("audio", mine._images("audio", given))[:, 1:].mean(dim=1)
        assert torch.equal(mine(given, "states")["audio"], expected)


def test_classification_with_one_modality_alone_or_missing():
    """Zeros, or what is given, stand for the state that is not there; the order is [audio | video]."""
    mine, given = model("finetune").eval(), batch(3)
    with torch.no_grad():
        states, zero, mean = mine(given, "states"), torch.zeros(3, 32), torch.randn(32)
        joined = mine.classifier(torch.cat([states["audio"], states["video"]], dim=1))
        assert torch.equal(mine(given)["logits"], joined)
        sound = {"audio": given["audio"]}                       # nothing else is needed
        assert torch.equal(mine(sound, only="audio")["logits"], mine.classifier(torch.cat([states["audio"], zero], dim=1)))
        expected = mine.classifier(torch.cat([mean.expand(3, -1), states["video"]], dim=1))
        assert torch.equal(mine(given, only="video", absent={"audio": mean})["logits"], expected)
        some = mine(given | {"has_audio": torch.tensor([True, False, True])})["logits"]
        assert torch.equal(some[[0, 2]], joined[[0, 2]]) and (some[1] - mine(given, only="video")["logits"][1]).abs().max() < 1e-6


def test_clips_without_a_modality_hide_nothing():
    """Their pixels change neither loss nor gradient of the others."""
    mine, given = model().eval(), batch(has_video=[True, False])
    out = mine(given)
    assert not out["video"]["hidden"][1].any() and out["audio"]["hidden"][1].any()
    silent = batch(has_video=[False, False])
    with pytest.raises(ValueError, match="no patch is hidden"):
        losses(mine(silent))
    loss = masked_patch_loss(mine(silent)["video"]["prediction"], mine(silent)["video"]["target"],
                             mine(silent)["video"]["hidden"], count=1)
    loss.backward()
    assert loss.item() == 0 and not mine.decoders["video"].output.weight.grad.any(), "gradients of 0"
    given["video"][1] = 0
    assert losses(mine(given)).item() == pytest.approx(losses(out).item(), abs=1e-6)


def stage_loss(mine, given):
    out = mine(given)
    if mine.stage == "mae":
        return losses(out)
    rows = out["logits"] if mine.stage == "finetune" else mine.logits(out["audio"], out["video"])
    return nn.functional.cross_entropy(rows, torch.arange(len(rows)))


@pytest.mark.parametrize("stage, freezing, expected", [
    ("mae", Freezing(), {"encoders", "backbone", "decoders"}), ("mae", Freezing(freeze_encoders=True), {"backbone", "decoders"}),
    ("contrastive", Freezing(), {"encoders", "backbone", "heads"}),
                                                       ("contrastive", Freezing(freeze_encoders=True, freeze_backbone=True),
                                                        {"heads"}),
    ("contrastive", Freezing(freeze_backbone=True), {"encoders", "heads"}),
    ("finetune", Freezing(), {"classifier"}), ("finetune", Freezing(freeze_all_except_head=True), {"classifier"}),
    ("finetune", Freezing(unfreeze_all=True), {"encoders", "backbone", "classifier"}),
    ("finetune", Freezing(unfreeze_all=True, freeze_encoders=True), {"backbone", "classifier"}),
    ("finetune", Freezing(unfreeze_backbone_layers=1), {"backbone.layers.1", "classifier"}),
    ("finetune", Freezing(unfreeze_encoder_layers=1, freeze_backbone=True),
     {"encoders.audio.network.layers.0", "encoders.audio.network.layernorm", "classifier"})])
def test_what_is_counted_trains_and_what_is_frozen_is_in_evaluation_mode(stage, freezing, expected):
    mine = model(stage, freezing=freezing)
    assert mine.training
    named = dict(mine.named_parameters())
    assert {name for name, p in named.items() if p.requires_grad} == {name for name in named if name.startswith(tuple(expected))}
    stage_loss(mine, batch()).backward()
    assert {name for name, p in named.items() if p.grad is not None} == {name for name, p in named.items() if p.requires_grad}
    counts = mine.trainable()
    assert counts.pop("total") == sum(counts.values()) == sum(p.numel() for p in named.values() if p.requires_grad)
    dropouts = {name: module.training for name,
                module in mine.named_modules() if isinstance(module, nn.Dropout) and name.startswith("backbone")}
    assert len(dropouts) == 6
    for name, training in dropouts.items():
        assert training == name.startswith(tuple(expected)), name
    assert all(module.training for name, module in mine.named_modules() if name.startswith(("decoders.", "heads.", "classifier")))
    assert not any(module.training for module in mine.eval().modules())


@pytest.mark.parametrize("stage, freezing, words", [
    ("finetune", Freezing(freeze_all_except_head=True, unfreeze_backbone_layers=1),
     "freeze_all_except_head and unfreeze_backbone_layers=1 contradict"),
    ("finetune", Freezing(freeze_all_except_head=True, unfreeze_all=True), "freeze_all_except_head and unfreeze_all=True"),
    ("finetune", Freezing(unfreeze_all=True, unfreeze_encoder_layers=1), "unfreeze_all and unfreeze_encoder_layers=1"),
    ("finetune", Freezing(freeze_backbone=True, unfreeze_backbone_layers=2), "freeze_backbone and unfreeze_backbone_layers=2"),
    ("finetune", Freezing(freeze_encoders=True, unfreeze_encoder_layers=1), "freeze_encoders and unfreeze_encoder_layers=1"),
    ("finetune", Freezing(unfreeze_backbone_layers=3), "unfreeze_backbone_layers is 3, expected 0 to 2"),
    ("finetune", Freezing(unfreeze_encoder_layers=-1), "unfreeze_encoder_layers is -1, expected 0 to 1"),
    ("mae", Freezing(unfreeze_all=True), "unfreeze_all: of stage 'finetune' only; stage 'mae'"),
    ("contrastive", Freezing(freeze_all_except_head=True), "freeze_all_except_head: of stage 'finetune'")])
def test_contradictions_are_refused(stage, freezing, words):
    with pytest.raises(ValueError, match=words):
        model(stage, freezing=freezing)


@pytest.mark.parametrize("stage", PARTS)
def test_a_small_batch_is_learned(stage):
    mine, given = model(stage, freezing=Freezing(unfreeze_all=stage == "finetune")), batch(3)
    optimizer = torch.optim.AdamW(mine.parameters(), lr=2e-3)
    torch.manual_seed(1)
    first = stage_loss(mine, given).item()
    for _ in range(25):
        loss = stage_loss(mine, given)
        optimizer.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in mine.parameters())
        optimizer.step()
    assert loss.item() < 0.5 * first


@pytest.mark.parametrize("stage", PARTS)
def test_bfloat16_autocast(stage):
    mine, given = model(stage).eval(), batch(3)
    loss = stage_loss(mine, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = stage_loss(mine, given)
        if stage == "contrastive":
            assert all(mine(given)[name].dtype == torch.float32 for name in MODALITIES)
    low.backward()
    assert torch.isfinite(low) and abs(low.item() - loss.item()) < 0.1 * (1 + loss.item())


def test_published_weights_in_both_encoders(tmp_path):
    torch.manual_seed(3)
    source = VitEncoder.from_scratch(VitConfig("tiny", image_size=32))
    source.network.save_pretrained(tmp_path / "vit")
    config = VitConfig.from_published(tmp_path / "vit")
    mine = model("contrastive", replace(TINY, audio=config, video=config), vit_weights=tmp_path / "vit")
    assert all(torch.equal(mine.encoders[name].network.state_dict()[key], value) for name in MODALITIES for key,
               value in source.network.state_dict().items())
    assert mine.encoders["audio"].projection.weight is not mine.encoders["video"].projection.weight
    with pytest.raises(ValueError, match="the ViT for audio does not fit: image_size is 32 there and 64 here"):
        model(vit_weights=tmp_path / "vit")


def test_settings_come_back_from_json():
    assert T3AVSettings.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


@pytest.mark.parametrize("change, words", [
    (dict(video=VitConfig("small", image_size=32)), "one width, got 32 for audio and 64"),
                                           (dict(bb_heads=5), "bb_heads = 5 does not divide the width 32"),
    (dict(positions="3d"), "positions must be one of 1d, 2d"), (dict(masking="during"), "masking must be one of before, after"),
    (dict(mask_ratio=1.0), "mask_ratio is 1.0"), (dict(num_frames=0), "num_frames is 0"),
                                           (dict(temperature=0.0), "temperature must be above 0")])
def test_settings_that_cannot_be_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **change)


@pytest.mark.parametrize("call, words", [
    (lambda: model("pretrain"), "stage must be one of mae, contrastive, finetune"),
                                         (lambda: model("finetune", replace(TINY, classes=0)), "needs classes"),
    (lambda: model("contrastive", modalities=("audio",)), r"modalities are \('audio',\).*needs both"),
                                         (lambda: model("mae", modalities=("smell",)), "smell"),
    (lambda: model()(batch(), "finetune"), "built for stage 'mae' with audio and video; asked for mode 'finetune'"),
    (lambda: model("mae", modalities=("video",))(batch(), only="audio"), "only='audio'"),
    (lambda: model()(batch() | {"video": torch.zeros(2, 4, 3, 32, 32)}),
     r"video has shape \(2, 4, 3, 32, 32\).*\(clips, 3, 3, 32, 32\).*num_frames"),
    (lambda: model()(batch() | {"audio": torch.zeros(2, 1, 32, 32)}), r"audio has shape.*\(clips, 1, 64, 64\)"),
    (lambda: model()(batch() | {"seeds": [1]}), r"mask of audio has shape \(1, 16\), expected \(2, 16\); give one seed a clip")])
def test_wrong_uses_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_maximum_over_patches_finds_one_patch():
    net = model("contrastive", replace(TINY, pooling="max"))
    states = torch.randn(2, 1 + 5, TINY.width)
    assert torch.equal(net._pool(states), states[:, 1:].max(dim=1).values)
    shuffled = torch.cat([torch.randn(2, 1, TINY.width), states[:, 1:][:, [4, 2, 0, 1, 3]]], dim=1)
    assert torch.equal(net._pool(shuffled), net._pool(states)), "neither the class state nor an order counts"


def test_a_share_of_the_tokens_is_encoded_in_training_only_and_drawn_by_the_clips_seed():
    whole, part = (model("contrastive", replace(TINY, dropout=0.0, token_share=share)) for share in (1.0, 0.5))
    lengths = []
    part.backbone.register_forward_hook(lambda module, given, out: lengths.append(out.shape[1] - 1))
    first, again, other = part(batch(seeds=[1, 2])), part(batch(seeds=[1, 2])), part(batch(seeds=[1, 3]))
    assert lengths == [TINY.tokens("audio") // 2, TINY.tokens("video") // 2] * 3
    assert torch.equal(first["video"], again["video"])
    assert torch.allclose(first["video"][0], other["video"][0], atol=1e-6) and not torch.allclose(first["video"][1], other["video"][1], atol=1e-4)
    whole.eval(), part.eval()
    assert torch.equal(part(batch())["video"], whole(batch())["video"]), "evaluation encodes all"
    with pytest.raises(ValueError, match="token_share is 0"):
        replace(TINY, token_share=0.0)
