"""Learned codebooks and lookup-free quantization: the same interface, exact codes, and what the library computes."""
import pytest
import torch
from torch.nn.functional import normalize
from vector_quantize_pytorch import LFQ

from lib.quantize import quantizer
from lib.quantize.baselines import LookupFreeQuantizer, VectorQuantizer
from lib.quantize.bsq import BinarySphericalQuantizer, unpack
from lib.quantize.entropy import code_probabilities


def tokens(width, count=200, seed=0):
    return torch.randn(2, count // 2, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["bsq", "vq", "lfq"])
@pytest.mark.parametrize("bits, groups", [(9, 1), (18, 2), (36, 4), (4, 1)])
def test_one_interface(name, bits, groups):
    torch.manual_seed(0)
    made = quantizer(name, bits, **({"group_size": min(9, bits)} if name == "bsq" else {}))
    z = tokens(made.dim)
    z = (normalize(z, dim=-1) if made.unit_input else z).requires_grad_()
    valid = torch.rand(2, 100, generator=torch.Generator().manual_seed(2)) < 0.8
    for train in (True, False):
        found = made.train(train)(z, valid)
        assert found.codes.shape == z.shape and found.indices.shape == (2, 100) and found.group_indices.shape == (2, 100, groups)
        assert found.codes.dtype == found.loss.dtype == torch.float32 and found.indices.dtype == found.group_indices.dtype == torch.int64
        ones = unpack(found.group_indices, min(9, bits)).flatten(-2)
        assert torch.equal(ones, unpack(found.indices, bits)), "the first group holds the most significant bits"
        for value in (found.loss, found.persample_entropy, found.codebook_entropy, found.commitment):
            assert value.ndim == 0 and value.isfinite()
        assert found.average_probability.shape == ((bits, 2) if name == "bsq" else (groups, 2 ** min(9, bits)))
        torch.testing.assert_close(found.average_probability.sum(-1), torch.ones(len(found.average_probability)), rtol=0, atol=1e-5)
        if train:
            gradient, = torch.autograd.grad(found.codes.sum() + found.loss, z)
            assert gradient[valid].abs().min() >= 0 and (gradient[~valid] - (made.scale if name == "bsq" else 1)).abs().max() < 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = made(z, valid)
        assert torch.equal(again.codes, found.codes), "float32 in autocast too"
        assert torch.equal(made.indices_to_codes(again.indices), found.codes)
        assert torch.equal(made.group_indices_to_codes(found.group_indices), found.codes)
        assert torch.equal(made.bits_to_codes(ones), found.codes)


@pytest.mark.parametrize("bits", [4, 6])
def test_nearest_vector_of_each_slice(bits):
    torch.manual_seed(1)
    made = VectorQuantizer(bits, codebook_bits=3 if bits == 6 else 4, code_dim=5)
    for _ in range(3):
        made.train()(tokens(made.dim))
    z = tokens(made.dim, seed=4).requires_grad_()
    found = made.eval()(z)
    books = made.network.codebook.view(made.groups, -1, 5)
    away = 0
    for group in range(made.groups):
        part = z[..., group * 5:(group + 1) * 5]
        distances = (part[..., None, :] - books[group]).square().sum(-1)
        assert torch.equal(found.group_indices[..., group], distances.argmin(-1))
        assert torch.equal(found.codes[..., group * 5:(group + 1) * 5], books[group][distances.argmin(-1)])
        away = away + distances.min(-1).values.mean() / made.dim
    torch.testing.assert_close(found.commitment.detach(), away.detach())
    torch.testing.assert_close(found.loss.detach(), 0.25 * away.detach())
    gradient, = torch.autograd.grad(found.loss, z)
    torch.testing.assert_close(gradient, 0.25 * 2 * (z - found.codes).detach() / z.numel(), rtol=1e-5, atol=1e-9)
    counts = torch.stack([torch.bincount(column, minlength=2**made.group_size) for column in found.group_indices.flatten(0, 1).mT]) / 200
    torch.testing.assert_close(found.average_probability, counts)
    assert found.persample_entropy == 0
    torch.testing.assert_close(found.codebook_entropy, -(counts * (counts + 1e-8).log()).sum())


def test_codebooks_learn_clusters():
    """8 clusters and 32 vectors: after a few updates each cluster has vectors of its own, with all of its tokens near them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 4, generator=generator) * 5
    made, commitments = VectorQuantizer(5, code_dim=4, decay=0.8).train(), []
    for _ in range(40):
        z = centres[torch.randint(8, (1, 256), generator=generator)] + 0.1 * torch.randn(1, 256, 4, generator=generator)
        found = made(z)
        commitments.append(float(found.commitment))
    assert made.updates == 40 and commitments[-1] < 0.01 < 1 < commitments[0] and found.codebook_entropy > 2.5
    assert torch.cdist(centres, made.network.codebook).min(1).values.max() < 0.2
    assert found.group_indices.unique().numel() >= 24, "vectors that no token is nearest to were replaced"


def test_codebooks_are_repeatable_and_leave_the_random_stream_alone():
    """Updates after loading a state are those without it, whatever the global generator holds; padding teaches nothing; eval neither."""
    torch.manual_seed(0)
    made = VectorQuantizer(6, codebook_bits=3, code_dim=4).train()
    made(tokens(8))
    state = {name: value.clone() for name, value in made.state_dict().items()}
    torch.manual_seed(9)
    before = torch.get_rng_state()
    made(tokens(8, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(77)
    other = VectorQuantizer(6, codebook_bits=3, code_dim=4).train()
    other.load_state_dict(state)
    padded = torch.cat([tokens(8, seed=1), torch.full((2, 10, 8), 1e3)], 1)
    other(padded, torch.arange(110).expand(2, 110) < 100)
    other.eval()(tokens(8, seed=2))
    other.train()(tokens(8, seed=2), torch.zeros(2, 100, dtype=torch.bool))
    for name, value in made.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert not list(made.parameters()), "no optimiser touches codebooks"


@pytest.mark.parametrize("bits", [9, 18])
def test_lookup_free_is_the_library(bits):
    ours = LookupFreeQuantizer(bits, inverse_temperature=10.0, gamma=0.5).train()
    z, valid = tokens(bits).requires_grad_(), torch.rand(2, 100) < 0.7
    library = LFQ(dim=bits, codebook_size=2**9, num_codebooks=bits // 9, keep_num_codebooks_dim=True, entropy_loss_weight=0.1,
                  diversity_gamma=0.5, commitment_loss_weight=0.25).train()
    found, ((codes, indices, loss), parts) = ours(z, valid), library(z, inv_temperature=10.0, mask=valid, return_loss_breakdown=True)
    assert torch.equal(found.group_indices, indices.long()) and torch.equal(found.loss, loss)
    assert torch.equal(found.codes, torch.where(z > 0, 1.0, -1.0)) and (found.codes - codes).abs().max() < 1e-6
    assert (found.persample_entropy, found.codebook_entropy, found.commitment) == tuple(parts)
    assert torch.equal(*(torch.autograd.grad(each, z, retain_graph=True)[0] for each in (found.loss, loss)))


@pytest.mark.parametrize("temperature, within", [(1.0, 1e-5), (10.0, 3e-4), (100.0, 1e-4)])
def test_per_sample_entropy_of_the_library_at_matched_scale_and_temperature(temperature, within):
    """The library brings each codebook's half to unit length and takes the mean over the two; its codes are +-1/3 at 2^9.

    It clamps probabilities at 1e-5 inside the logarithm: at the middle temperature, where many codes are just below that, the
    entropies are further apart than elsewhere, and with that clamp they are not.
    """
    halves = normalize(tokens(18, 1000).unflatten(-1, (2, 9)), dim=-1)
    library = LFQ(codebook_size=2**9, num_codebooks=2, dim=18, spherical=True).train()
    _, parts = library(halves.flatten(-2), inv_temperature=temperature, return_loss_breakdown=True)
    # log-odds 4 T s z: 4 temperature / 3 times a half of unit length there, s = 1 / sqrt(18) here
    for way, size in (("analytical", 1), ("group", 9)):
        found = BinarySphericalQuantizer(18, size, temperature * 2**0.5, way)(halves.flatten(-2))
        torch.testing.assert_close(found.persample_entropy / 2, parts.per_sample_entropy, rtol=0, atol=within)
    probability = code_probabilities(4 * temperature / 3 * halves)
    clamped = -(probability * probability.clamp(min=1e-5).log()).sum(-1).mean()
    torch.testing.assert_close(clamped, parts.per_sample_entropy, rtol=0, atol=5e-6)
    mean = probability.mean((0, 1))
    torch.testing.assert_close(-(mean * mean.clamp(min=1e-5).log()).sum(-1).mean(), parts.batch_entropy, rtol=0, atol=5e-6)


@pytest.mark.parametrize("act, words", [
    (lambda: VectorQuantizer(0), "bits must be 1 to 63"), (lambda: LookupFreeQuantizer(72), "bits must be 1 to 63, got 72"),
    (lambda: VectorQuantizer(20), "codebook_bits must be 1 to 16 and divide bits = 20"),
    (lambda: VectorQuantizer(34, codebook_bits=17), "got 17"),
    (lambda: VectorQuantizer(9, code_dim=0), "code_dim must be"), (lambda: VectorQuantizer(9, decay=1.0), r"decay must be in \[0, 1\)"),
    (lambda: VectorQuantizer(9, commitment_weight=-1), "commitment_weight and dead_below"),
    (lambda: VectorQuantizer(9, dead_below=-1), "commitment_weight and dead_below must be at least 0, got 0.25 and -1"),
    (lambda: LookupFreeQuantizer(9, inverse_temperature=0), "inverse_temperature must be above 0"),
    (lambda: LookupFreeQuantizer(9, gamma=-1), "entropy_weight, gamma and commitment_weight must be at least 0"),
    (lambda: LookupFreeQuantizer(9)(torch.zeros(1, 2, 8)), r"tokens must be \(clips, tokens, 9\)"),
    (lambda: LookupFreeQuantizer(9)(torch.zeros(1, 2, 9), torch.zeros(1, 2, dtype=torch.bool)), "valid leaves no token"),
    (lambda: VectorQuantizer(18)(torch.zeros(1, 2, 18)), r"tokens must be \(clips, tokens, 16\)"),
    (lambda: VectorQuantizer(18).group_indices_to_codes(torch.zeros(2, 2, dtype=torch.int64)), r"\(clips, tokens, 2\), got \(2, 2\)"),
    (lambda: VectorQuantizer(18).indices_to_codes(torch.tensor([[2**18]])), r"in \[0, 2\^18\)"),
    (lambda: LookupFreeQuantizer(18).group_indices_to_codes(torch.full((1, 1, 2), 512)), r"in \[0, 2\^9\)")])
def test_refusals(act, words):
    with pytest.raises(ValueError, match=words):
        act()
