"""Pairwise distances of the Poincaré ball against geoopt by broadcasting: time and error on a set with near pairs, memory, growth."""
from __future__ import annotations

import torch
from torch import Tensor

from lib.geometry.poincare import expmap0, pairwise_distance, pairwise_distance_from_tangents
from lib.performance.measure import Comparison, Growth, growth, need, runs, threads
from lib.performance.memory import peak

N, M, D, C = 1000, 527, 512, 1.0
ASKED, WORST = 100, 1e-4
NAMES = ("ball coordinates", "tangents")


def clips_and_texts(n: int = N, m: int = M, d: int = D, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tangents (n, d) and (m, d) of lengths 0.1 to 3. Of 527 texts 60 are a clip once more, 60 a clip moved by 1e-4, 60 a clip moved by
    1e-4 along its ray, and 60 a clip moved by 1 to 30 % of its length: on either side of where pairs cease to be recomputed."""
    generator, k = torch.Generator().manual_seed(seed), 60 * m // M
    v, w = (torch.nn.functional.normalize(torch.randn(count, d, generator=generator)) for count in (n, m))
    v, w = (x * (0.1 + 2.9 * torch.rand(len(x), 1, generator=generator)) for x in (v, w))
    step = torch.nn.functional.normalize(torch.randn(k, d, generator=generator))
    length = v.norm(dim=1, keepdim=True)
    w[:k] = v[:k]
    w[k:2 * k] = v[k:2 * k] + 1e-4 * step
    w[2 * k:3 * k] = v[2 * k:3 * k] * (1 + 1e-4 / length[2 * k:3 * k])
    w[3 * k:4 * k] = v[3 * k:4 * k] + torch.linspace(0.01, 0.3, k)[:, None] * length[3 * k:4 * k] * step
    v[-n // 10:-n // 20] = v[:len(v[-n // 10:-n // 20])]                # the same clip twice
    return v, w


@torch.no_grad()
def compared(n: int = N, m: int = M, d: int = D, repetitions: int = 3, counts: tuple[int, ...] = (2, 1), seed: int = 0) -> list[Comparison]:
    """Both functions with each count of threads: when something else takes a core, two threads wait for it in each of our 20 steps of 0.2 ms.
    AssertionError where a distance is off by more than 1e-4 of it, or equal points are apart."""
    stereographic = need("geoopt.manifolds.stereographic.math", "geoopt")
    v, w = clips_and_texts(n, m, d, seed)
    x, y = expmap0(v, C), expmap0(w, C)
    k = torch.tensor(-C)

    def broadcasting():                                                # 50 rows at a time: 54 MB for each intermediate result
        return torch.cat([stereographic.dist(rows[:, None], y, k=k) for rows in x.split(50)])

    ways = {NAMES[0]: lambda: pairwise_distance(x, y, C), NAMES[1]: lambda: pairwise_distance_from_tangents(v, w, C)}
    notes = {NAMES[0]: agreement(ways[NAMES[0]](), exact(x, y)), NAMES[1]: agreement(ways[NAMES[1]](), exact_from_tangents(v, w))}
    ways["geoopt"], found, memory = broadcasting, [], {}
    for count in counts:
        with threads(count):
            memory = memory or {name: peak(way) for name, way in ways.items()}
            for name in NAMES:
                ways[name]()                                           # with so many threads
            times = runs(ways, repetitions, dict.fromkeys(NAMES, 5))
        found += [Comparison(f"distances {n} x {m} x {d} from {name}, {count} thread{'s' * (count > 1)}", "geoopt by broadcasting", times[name],
                             times["geoopt"], count, ASKED, ("wall",), memory=(memory[name], memory["geoopt"]), note=notes[name])
                  for name in NAMES]
    return found


def agreement(found: Tensor, truth: Tensor) -> str:
    """How far distances (N, M) are off, in words; AssertionError where a relative error is above WORST or equal points are not at 0."""
    same = truth == 0
    error = ((found - truth).abs() / truth.where(~same, 1))[~same].max().item()
    apart = found[same].max().item() if same.any() else 0.0
    assert error <= WORST and apart <= 1e-12, f"distances are off by {error:.1e} of their length, equal points are {apart:.1e} apart"
    return f"largest relative error {error:.1e} (at most {WORST:g}), {int(same.sum())} duplicates at most {apart:.0e}"


def exact(x: Tensor, y: Tensor) -> Tensor:
    """Distances (N, M) of float32 coordinates (N, d) and (M, d) of the ball, in float64 by differences."""
    x, y = x.double(), y.double()
    chord = torch.stack([(row - y).norm(dim=1) for row in x])
    gap = [(1 - C * z.square().sum(1)).clamp(min=torch.finfo(torch.float32).eps) for z in (x, y)]
    return 2 / C ** 0.5 * torch.asinh(C ** 0.5 * chord / (gap[0][:, None] * gap[1]).sqrt())


def exact_from_tangents(v: Tensor, w: Tensor) -> Tensor:
    """The same from float32 tangents (N, d) and (M, d), mapped to the ball in float64; equal tangents are exactly 0 apart."""
    v, w = v.double(), w.double()
    a, b = (z.norm(dim=1, keepdim=True) for z in (v, w))
    x, y = torch.tanh(C ** 0.5 * a) * v / a / C ** 0.5, torch.tanh(C ** 0.5 * b) * w / b / C ** 0.5
    chord = torch.stack([(row - y).norm(dim=1) for row in x])
    return 2 / C ** 0.5 * torch.asinh(C ** 0.5 * chord * torch.cosh(C ** 0.5 * a) * torch.cosh(C ** 0.5 * b).T)


def grown(sizes=(1000, 2000, 4000, 8000), repetitions: int = 3, m: int = M, d: int = 128) -> list[Growth]:
    """Distances of N points to the same M: time and memory as the matrix, N^1."""
    points = torch.randn(max(sizes) + m, d, generator=torch.Generator().manual_seed(0)) * d ** -0.5
    x, y = expmap0(points[m:], C), expmap0(points[:m], C)
    return [growth(f"distances to {m} points", "points", lambda n: lambda: pairwise_distance(x[:n], y, C), sizes, repetitions)]
