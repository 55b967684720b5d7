"""Binary spherical quantization: the definitions written out, gradients, indices at any width, refusals, two processes as one."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import lib.quantize.entropy
from lib.quantize import quantizer
from lib.quantize.bsq import BinarySphericalQuantizer, pack, unpack
from tests.runs import torchrun


def tokens(bits, count=40, dtype=torch.float64, seed=0):
    random = torch.randn(2, count // 2, bits, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(random, dim=-1).to(dtype)


def entropy(probability):
    return -(probability * torch.log(probability + 1e-8)).sum(-1)


def naive(z, bits, size, temperature, way, scale, beta, gamma0, gamma, zeta):
    """Token by token and group by group, softmax over codes that are listed one by one."""
    persample, commitment, average = 0, 0, 0
    for token in z:
        code = torch.tensor([scale if value > 0 else -scale for value in token.tolist()], dtype=z.dtype)
        commitment = commitment + ((code - token) ** 2).sum() / len(z)
        if way == "analytical":
            ones = [1 / (1 + torch.exp(-4 * temperature * scale * value)) for value in token]
            probabilities = [torch.stack([1 - one, one]) for one in ones]
        else:
            codes = [[scale if digit == "1" else -scale for digit in f"{number:0{size}b}"] for number in range(2**size)]
            codes = torch.tensor(codes, dtype=z.dtype)
            probabilities = [torch.softmax(2 * temperature * codes @ group, 0) for group in token.split(size)]
        persample = persample + sum(entropy(p) for p in probabilities) / len(z)
        average = average + torch.stack(probabilities) / len(z)
    codebook = sum(entropy(p) for p in average)
    loss = beta * commitment + zeta * (gamma0 * persample - gamma * codebook) / temperature
    return {"loss": loss, "persample_entropy": persample, "codebook_entropy": codebook, "commitment": commitment,
            "average_probability": average}


@pytest.mark.parametrize("bits, size, way", [(1, 1, "group"), (6, 1, "group"), (6, 2, "group"), (6, 3, "group"), (6, 6, "group"),
                                             (9, 9, "group"), (10, 5, "group"), (6, 1, "analytical"), (6, 3, "analytical"),
                                             (18, 9, "analytical")])
@pytest.mark.parametrize("temperature, post, weights", [(1.0, True, (0.0, 1.0, 1.0, 1.0)), (10.0, True, (0.5, 0.3, 2.0, 0.7)),
                                                        (2.0, False, (0.25, 1.5, 0.6, 1.3)), (100.0, True, (0.0, 1.0, 1.0, 1.0))])
def test_definitions(bits, size, way, temperature, post, weights):
    z = tokens(bits, 12).requires_grad_()
    scale = bits**-0.5 if post else 1.0
    beta, gamma0, gamma, zeta = weights
    ours = BinarySphericalQuantizer(bits, size, temperature, way, post_l2_norm=post, beta=beta, gamma0=gamma0, gamma=gamma, zeta=zeta)
    found, expected = ours(z), naive(z.flatten(0, 1), bits, size, temperature, way, scale, *weights)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=0, atol=1e-10, msg=lambda words: f"{name}: {words}")
    for name in ("loss", "persample_entropy", "codebook_entropy", "commitment"):
        gradients = [torch.autograd.grad(each, z, retain_graph=True)[0] for each in (getattr(found, name), expected[name])]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-10, msg=lambda words: f"gradient of {name}: {words}")
    assert found.average_probability.shape == ((bits, 2) if way == "analytical" else (bits // size, 2**size))
    assert torch.equal(found.codes, ((z > 0).double() * 2 - 1) * scale)


def test_zero_counts_as_negative_and_the_first_bit_is_the_most_significant():
    found = BinarySphericalQuantizer(4, group_size=2)(torch.tensor([[[0.0, -0.0, 0.6, 0.8], [0.6, 0.0, -0.8, 0.0]]]))
    assert found.codes.tolist() == [[[-0.5, -0.5, 0.5, 0.5], [0.5, -0.5, -0.5, -0.5]]]
    assert found.indices.tolist() == [[3, 8]] and found.group_indices.tolist() == [[[0, 3], [2, 0]]]


@pytest.mark.parametrize("bits, post", [(5, True), (18, True), (18, False)])
def test_gradient_through_the_sign(bits, post):
    """dq/du = s, and with the normaliser in front dq/dv = s / |v| (I - u u^T)."""
    v = torch.randn(1, 1, bits, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    ours = BinarySphericalQuantizer(bits, post_l2_norm=post)
    jacobian = torch.autograd.functional.jacobian(lambda v: ours(normalize(v, dim=-1)).codes, v).squeeze()
    u, scale = normalize(v, dim=-1).flatten().detach(), bits**-0.5 if post else 1.0
    expected = scale / v.detach().norm() * (torch.eye(bits, dtype=torch.float64) - torch.outer(u, u))
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way, size", [("analytical", 1), ("group", 1), ("group", 3), ("group", 6)])
def test_gradcheck(way, size):
    z = tokens(6, 6).requires_grad_()
    ours = BinarySphericalQuantizer(6, size, 3.0, way, beta=0.4)
    valid = torch.tensor([[True, False, True], [True, True, False]])
    for name in ("loss", "persample_entropy", "codebook_entropy"):
        assert torch.autograd.gradcheck(lambda z: getattr(ours(z, valid), name), z)


@pytest.mark.parametrize("temperature", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("size", [2, 3, 6, 9])
def test_group_and_analytical_entropies(monkeypatch, temperature, size):
    """Per-sample entropies are one but for the 1e-8 in the logarithms, which counts once for every code; codebook entropies fall."""
    z = tokens(18, 400)
    group, bitwise = BinarySphericalQuantizer(18, size, temperature, "group"), BinarySphericalQuantizer(18, size, temperature)
    grouped, single = group(z), bitwise(z)
    apart = abs(float(grouped.persample_entropy - single.persample_entropy))
    assert apart <= max(2**size * 18 // size, 36) * 1e-8, "the definitions' own difference: 1e-8 a code"
    assert apart <= 1e-6 or size > 3
    assert grouped.codebook_entropy <= single.codebook_entropy + 1e-8
    assert -1e-7 <= grouped.codebook_entropy - grouped.persample_entropy, "the entropy of a mean is at least the mean entropy"
    torch.testing.assert_close(grouped.average_probability.sum(-1), torch.ones(18 // size, dtype=torch.float64), rtol=0, atol=1e-12)
    monkeypatch.setattr(lib.quantize.entropy, "INSIDE_LOG", 1e-30)
    torch.testing.assert_close(group(z).persample_entropy, bitwise(z).persample_entropy, rtol=0, atol=1e-12)


def test_codebook_entropy_bounds_that_of_whole_codes():
    """Finer and finer groups: upper bounds, each looser than the one before, of the entropy of the 2^12 codes themselves."""
    z = tokens(12, 60) * torch.linspace(2, 1, 12, dtype=torch.float64)
    z[..., 6:] = z[..., :6]         # bits that depend on each other, in different groups
    z = normalize(z, dim=-1)
    found = [float(BinarySphericalQuantizer(12, size, 20.0, "group")(z).codebook_entropy) for size in (12, 6, 3, 1)]
    assert found == sorted(found) and found[1] > found[0] + 1.0 and found[3] <= 12 * torch.log(torch.tensor(2.0)) + 1e-6


def test_group_size_changes_nothing_of_the_analytical_loss():
    z = tokens(18)
    losses = {float(BinarySphericalQuantizer(18, size)(z).loss) for size in (1, 2, 3, 6, 9, 18)}
    assert len(losses) == 1


@pytest.mark.parametrize("temperature, random, vertex", [(1.0, 12.367, 12.366), (2.0, 12.059, 12.043), (10.0, 7.737, 5.763),
                                                         (50.0, 2.005, 0.003), (100.0, 1.011, 0.0)])
def test_published_table_of_temperatures(temperature, random, vertex):
    """Section 3 of the notes: mean per-sample entropy of random unit vectors, and at the vertices, at 18 bits."""
    ours = BinarySphericalQuantizer(18, inverse_temperature=temperature)
    spread = ours(tokens(18, 20000)).persample_entropy
    at_code = ours(ours(tokens(18, 10)).codes.detach()).persample_entropy
    assert abs(float(spread) - random) <= 0.025 and abs(float(at_code) - vertex) <= 6e-4


@pytest.mark.parametrize("bits, distance, squared", [(9, 0.590, 0.359), (18, 0.613, 0.382), (36, 0.625, 0.393)])
def test_distance_of_codes(bits, distance, squared):
    """Mean distances of random unit vectors as the notes have them; the worst case is a vector along an axis."""
    z, ours = tokens(bits, 20000), BinarySphericalQuantizer(bits)
    found = ours(z)
    lengths = (found.codes - z).norm(dim=-1)
    worst = (2 - 2 / bits**0.5) ** 0.5
    assert abs(float(lengths.mean()) - distance) <= 2e-3 and abs(float(found.commitment) - squared) <= 2e-3 and lengths.max() <= worst
    axis = torch.eye(bits, dtype=torch.float64)[None]
    assert ((ours(axis).codes - axis).norm(dim=-1) - worst).abs().max() <= 1e-12


@pytest.mark.parametrize("bits", [1, 9, 18, 31, 36, 60, 63])
@pytest.mark.parametrize("autocast", [False, True])
def test_indices_round_trip(bits, autocast):
    ours = BinarySphericalQuantizer(bits, group_size=bits)
    z = tokens(bits, 1000, torch.float32)
    z[0, 0], z[0, 1] = 1, -1        # the largest and the smallest index
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = ours(z)
        again = ours.indices_to_codes(found.indices)
    assert found.codes.dtype == again.dtype == torch.float32 and found.indices.dtype == torch.int64
    assert torch.equal(again, found.codes) and torch.equal(ours.group_indices_to_codes(found.group_indices), found.codes)
    assert found.indices[0, :2].tolist() == [2**bits - 1, 0] and torch.equal(ours(again).indices, found.indices)
    expected = [int("".join("1" if value > 0 else "0" for value in token), 2) for token in z[0].tolist()]
    assert found.indices[0].tolist() == expected


def test_more_bits_than_an_integer_holds():
    ours = BinarySphericalQuantizer(72, group_size=9)
    found = ours(tokens(72, dtype=torch.float32))
    assert found.indices is None and found.group_indices.shape == (2, 20, 8) and found.loss.isfinite()
    assert torch.equal(ours.group_indices_to_codes(found.group_indices), found.codes)
    for refused in (lambda: ours.indices_to_codes(torch.zeros(1, 1, dtype=torch.int64)), lambda: pack(torch.ones(64, dtype=torch.bool))):
        with pytest.raises(ValueError, match="do not fit into one index, 63 do: use group_indices"):
            refused()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 63).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=8))))
def test_pack_is_the_inverse_of_unpack(case):
    bits, numbers = case
    ones = unpack(torch.tensor(numbers), bits)
    assert ones.shape == (len(numbers), bits) and pack(ones).tolist() == numbers
    assert ["".join(str(int(bit)) for bit in row) for row in ones.tolist()] == [f"{number:0{bits}b}" for number in numbers]


@pytest.mark.parametrize("way, size", [("analytical", 1), ("group", 9)])
def test_float32_outside_autocast(way, size):
    ours = BinarySphericalQuantizer(18, size, 10.0, way, beta=0.1)
    z = tokens(18, 400, torch.float32)
    for given_ in (z, z.bfloat16(), z.half()):
        plain = ours(given_.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = ours(given_)
        for name, one, other in zip(found._fields, found, plain):
            assert torch.equal(one, other), f"{name} of {given_.dtype}"
    assert torch.equal(ours(z).indices, ours(z.double()).indices) and ours(z.double()).codes.dtype == torch.float64
    torch.testing.assert_close(ours(z).loss.double(), ours(z.double()).loss, rtol=0, atol=2e-6)


@pytest.mark.parametrize("way, size", [("analytical", 1), ("group", 6)])
def test_padding_counts_in_no_loss(way, size):
    ours = BinarySphericalQuantizer(12, size, 5.0, way, beta=1.0)
    z = tokens(12, 40)
    valid = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) < 0.6
    z[~valid] = float("nan")        # whatever is there must not matter
    z.requires_grad_()
    found, alone = ours(z, valid), ours(z[valid][None])
    for name in ("loss", "persample_entropy", "codebook_entropy", "commitment", "average_probability"):
        torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=0, atol=1e-12)
    gradient, = torch.autograd.grad(found.loss, z)
    assert (gradient[~valid] == 0).all() and gradient[valid].abs().sum() > 0
    assert found.codes.shape == z.shape, "padding has codes too"
    silent = ours(tokens(12).requires_grad_(), torch.zeros(2, 20, dtype=torch.bool))
    assert silent.loss == silent.persample_entropy == silent.commitment == 0 and silent.loss.requires_grad


def test_vectors_of_no_length_and_saturated_ones_are_finite():
    z = torch.stack([torch.zeros(18), torch.eye(18)[0], torch.full((18,), 18**-0.5)])[None].requires_grad_()
    for way, size in (("analytical", 1), ("group", 9)):
        found = BinarySphericalQuantizer(18, size, 1e6, way, beta=1.0)(z)
        gradient, = torch.autograd.grad(found.loss + found.codes.sum(), z)
        assert found.loss.isfinite() and gradient.isfinite().all()


def test_memory_does_not_grow_with_tokens_times_codes():
    """One codebook of 2^18 codes: all probabilities of 64 tokens would be 64 MiB in float32, and softmax keeps several such."""
    z = tokens(18, 64, torch.float32).requires_grad_()
    found = BinarySphericalQuantizer(18, 18, 10.0, "group")(z)
    saved, waiting, seen = 0, [found.loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
        saved += sum(tensor.numel() * tensor.element_size() for tensor in getattr(node, "saved_tensors", ()))
        saved += sum(getattr(node, name).numel() * 4 for name in ("_saved_self", "_saved_other", "_saved_mat2")
                     if isinstance(getattr(node, name, None), torch.Tensor))
    assert 0 < saved < 8 * 2**20
    torch.testing.assert_close(found.persample_entropy, BinarySphericalQuantizer(18, 1, 10.0)(z).persample_entropy, rtol=0, atol=3e-3)


@pytest.mark.parametrize("options, words", [
    ({"bits": 0}, "bits must be at least 1"), ({"group_size": 4}, "group_size must divide bits = 18, got 4"),
    ({"group_size": 0}, "must divide"), ({"entropy": "nce"}, "entropy must be 'analytical' or 'group', got 'nce'"),
    ({"codebook_entropy": "nce"}, "codebook_entropy must be 'group'"),
    ({"bits": 42, "group_size": 21, "entropy": "group"}, "at most 20 with entropy='group', got 21"),
    ({"bits": 64, "group_size": 64}, "at most 63 with entropy='analytical'"),
    ({"inverse_temperature": 0}, "inverse_temperature must be a number above 0"),
    ({"inverse_temperature": float("nan")}, "got nan"), ({"beta": -1.0}, "beta must be"), ({"gamma0": -1.0}, "gamma0 must be"),
    ({"gamma": float("inf")}, "gamma must be"), ({"zeta": float("nan")}, "zeta must be")])
def test_refused_settings(options, words):
    with pytest.raises(ValueError, match=words):
        BinarySphericalQuantizer(**{"bits": 18} | options)


@pytest.mark.parametrize("z, valid, words", [
    (torch.zeros(2, 18), None, r"\(clips, tokens, 18\) of floating-point numbers, got \(2, 18\)"),
    (torch.zeros(2, 3, 9), None, r"got \(2, 3, 9\)"), (torch.zeros(2, 3, 18, dtype=torch.int64), None, "torch.int64"),
    (torch.zeros(2, 3, 18), torch.ones(2, 2, dtype=torch.bool), r"valid must be \(2, 3\)"),
    (torch.zeros(2, 3, 18), torch.ones(2, 3), "of dtype bool, got")])
def test_refused_tokens(z, valid, words):
    with pytest.raises(ValueError, match=words):
        BinarySphericalQuantizer(18)(z, valid)


@pytest.mark.parametrize("indices, words", [
    (torch.tensor([[2.0]]), "must be integers, got torch.float32"), (torch.tensor([[True]]), "must be integers, got torch.bool"),
    (torch.tensor([[512]]), r"in \[0, 2\^9\), got 512 to 512"), (torch.tensor([[-1, 3]]), "got -1 to 3")])
def test_refused_indices(indices, words):
    with pytest.raises(ValueError, match=words):
        BinarySphericalQuantizer(9).indices_to_codes(indices)


def test_other_refusals():
    with pytest.raises(ValueError, match=r"group indices must be \(..., 2\), got \(1, 3\)"):
        BinarySphericalQuantizer(18, 9).group_indices_to_codes(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="of dtype bool, got torch.int64"):
        pack(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="quantizer must be one of bsq, vq, lfq, got 'fsq'"):
        quantizer("fsq", 9)
    assert repr(quantizer("bsq", 18, group_size=9)).endswith("(bits=18, group_size=9, inverse_temperature=1, entropy='analytical')")
    assert not list(quantizer("bsq", 18).state_dict())


# a shared layer in front, as the model has one; `average` does what distributed data parallel training does to its gradient
STEP = """
import torch
from torch.nn.functional import normalize
from lib import distributed
from lib.quantize import quantizer
from lib.quantize.statistics import CodebookStatistics

def step(case, part, average):
    made = quantizer(case["name"], case["bits"], **case["options"]).train()
    layer = case["layer"].clone().requires_grad_()
    out = {}
    for number in range(3):                                     # learned codebooks move from one to the next
        v = (case["v"][part] + number) @ layer
        z = normalize(v, dim=-1) if made.unit_input else v
        found = made(z, case["valid"][part])
        statistics = CodebookStatistics(case["bits"], 3)
        statistics.update(found.codes if case["name"] == "bsq" else z[..., :case["bits"]], case["valid"][part])
        gradient, = torch.autograd.grad(found.loss, layer)
        average(gradient)
        out |= {f"{name}{number}": getattr(found, name).detach() for name in ("loss", "persample_entropy", "codebook_entropy", "commitment",
                                                                           "average_probability")}
        out |= {f"gradient{number}": gradient, f"codes{number}": distributed.gather(found.codes.detach())}
    out |= {f"state.{name}": value.double() for name, value in made.state_dict().items()}
    total = statistics.reduce().state()
    return out | {name: total[name] for name in ("tokens", "ones", "counts", "table", "hashes")}
"""
TWO = STEP + """
import sys, torch.distributed as dist
dist.init_process_group("gloo")
cases, rank = torch.load(sys.argv[1], weights_only=True), distributed.rank()
torch.manual_seed(rank)                                         # streams differ between processes, and must not matter
def average(gradient):
    dist.all_reduce(gradient)
    gradient /= 2
results = []
for case in cases:
    torch.manual_seed(5)                                        # the same initial codebooks
    results.append(step(case, slice(0, case["split"]) if rank == 0 else slice(case["split"], None), average))
try:
    quantizer("lfq", 9)(torch.zeros(1, 1, 9))
    refused = ""
except ValueError as error:
    refused = str(error)
same = all(torch.equal(*distributed.gather(result[name].reshape(1, -1))) for result in results for name in result if "state." in name)
if rank == 0:
    torch.save({"results": results, "same": same, "refused": refused}, sys.argv[2])
distributed.leave()
"""


def test_two_processes_equal_one(tmp_path):
    """Uneven shares, padding, a process without rows or without a real token; codes above and below the statistics' table."""
    def case(name, bits, width, rows, split, dtype, **options):
        generator = torch.Generator().manual_seed(rows + bits)
        v, layer = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in ((rows, 16, width), (width, width)))
        valid = torch.rand(rows, 16, generator=generator) < 0.7
        valid[0] = False
        return {"name": name, "bits": bits, "v": v, "layer": layer, "valid": valid, "split": split, "options": options}
    bsq = {"inverse_temperature": 8.0, "beta": 0.3}
    cases = [case("bsq", 18, 18, 5, 3, torch.float64, **bsq),
             case("bsq", 18, 18, 4, 1, torch.float64, group_size=9, entropy="group", **bsq),
             case("bsq", 36, 36, 3, 0, torch.float32, group_size=6, entropy="group", **bsq), case("bsq", 9, 9, 6, 4, torch.float32, **bsq),
             case("vq", 6, 12, 4, 3, torch.float32, codebook_bits=3, code_dim=6), case("vq", 4, 4, 4, 1, torch.float32, code_dim=4)]
    torch.save(cases, tmp_path / "cases.pt")
    (tmp_path / "two.py").write_text(TWO)
    torchrun(tmp_path / "two.py", tmp_path / "cases.pt", tmp_path / "out.pt")
    two = torch.load(tmp_path / "out.pt", weights_only=True)
    scope = {}
    exec(STEP, scope)
    for number, (given_, found) in enumerate(zip(cases, two["results"], strict=True)):
        torch.manual_seed(5)
        one = scope["step"](given_, slice(None), lambda gradient: None)
        assert one.keys() == found.keys()
        for name, value in one.items():
            if not torch.is_tensor(value):
                assert value == found[name], f"case {number}, {name}"
                continue
            tolerance = 0 if not value.is_floating_point() else 1e-11 if given_["v"].dtype == torch.float64 else 1e-5
            torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda words: f"case {number}, {name}: {words}")
    assert two["same"], "learned codebooks are the same bits in every process"
    assert "one process only" in two["refused"]
