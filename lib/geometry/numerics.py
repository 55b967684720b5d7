"""What both models of hyperbolic space compute with: one check of the curvature, products that stay in full float32, distances
between rows by one matrix product, and the distance of points given by radius and direction.

Rows are float32 or float64 (half precision becomes float32). What there is one of a row (radii, conformal factors) is float64;
what there is one of a pair of rows has the dtype of the rows. Gradients flow into everything, the curvature included.
"""
from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor

CANCELS = 0.01  # pairs with |x-y|^2 below this share of |x|^2 + |y|^2 lose digits in the matrix product: float32 keeps 1e-5
CHUNK = 2**20  # numbers of the pairs that are recomputed at a time: the memory beyond N x M
SMALL = 1e-4  # below, f(u)/u is its series, exact to float64
TINY = 1e-20  # the norm that a zero vector counts with, so that its direction (0) and the gradient of its distances are finite
NOTHING = -1e4  # the logarithm of 0: exp() of it is 0 in every dtype, and its gradient is no 0 * inf


def curvature(c: float | Tensor) -> Tensor:
    """c as a 0-dim float64 tensor (gradients flow into it), for spaces of sectional curvature -c.

    Raises:
        ValueError: c is no single number, or not positive and finite.
    """
    c = torch.as_tensor(c, dtype=torch.float64)
    if c.dim() or not (c > 0 and c.isfinite()):
        given = f"a tensor of shape {tuple(c.shape)}" if c.dim() else f"{c.item()}"
        raise ValueError(f"c must be one finite number above 0 (the space has curvature -c), got {given}; if it is learned, "
                         "learn its logarithm as a 0-dim parameter and pass log_c.exp()")
    return c


def prepare(c: float | Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """The checked curvature (a scalar tensor) on the device of the rows (any shapes), and the rows in one dtype of at least float32."""
    dtype = torch.float32
    for x in rows:
        dtype = torch.promote_types(dtype, x.dtype)
    return curvature(c).to(rows[0].device), *(x.to(dtype) for x in rows)


def norm(x: Tensor) -> Tensor:
    """Lengths of rows (..., D) -> (...) in float64; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """Rows (..., D) times factors (...), in the dtype of the rows."""
    return x * factor.to(x.dtype)[..., None]


def direction(x: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths (...) and unit vectors (..., D) of rows, float64. A zero row has length TINY and direction 0: its TINY and the
    1/TINY in the gradient of its direction cancel in the distances below, whose gradient at a zero row is thus the true one."""
    length = norm(x).clamp(min=TINY)
    return length, x.double() * length.reciprocal()[..., None]


def over(function, u: Tensor, third: float) -> Tensor:
    """function(u)/u for an odd function u + third u^3 + ...; value 1 and gradient 0 at 0."""
    small = u < SMALL
    safe = torch.where(small, 1.0, u)  # where() alone would still send 0 * inf back through the division
    return torch.where(small, 1 + third * u.square(), function(safe) / safe)


def edge_gap(x: Tensor, c: Tensor) -> Tensor:
    """1 - c|x|^2 (...) in float64, at least the eps of the dtype of x. Near the edge this difference decides every distance, so
    it is formed with twice the digits of the coordinates: float32 in float64, float64 in pairs of them (Dekker 1971)."""
    gap = 1 - c * norm(x).square()
    if x.dtype == torch.float64:
        with torch.no_grad():
            high, low = _product(x, x)
            while high.shape[-1] > 1:  # sums of neighbours, and what their rounding leaves
                if high.shape[-1] % 2:
                    high, low = (torch.nn.functional.pad(part, (0, 1)) for part in (high, low))
                one, two = high[..., ::2], high[..., 1::2]
                high = one + two
                back = high - one
                low = low[..., ::2] + low[..., 1::2] + ((one - (high - back)) + (two - back))
            whole, rest = _product(c, high[..., 0])
            exact = (1 - whole) - rest - c * low[..., 0]
        gap = gap + (exact - gap).detach()
    return gap.clamp(min=torch.finfo(x.dtype).eps)


def _product(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded product, and what rounding took from it, exactly (Veltkamp's splitting into halves of 26 bits)."""
    (x1, x2), (y1, y2) = ((head, z - head) for z in (x, y) for head in (z * 134217729 - (z * 134217729 - z),))
    product = x * y
    return product, ((x1 * y1 - product) + x1 * y2 + x2 * y1) + x2 * y2


class _Arsinh(torch.autograd.Function):
    """log1p(x + x^2 / (1 + sqrt(1 + x^2))) in two buffers; autograd would keep six matrices of the size of x."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        square = x * x
        below = (square + 1).sqrt_().add_(1)
        return square.div_(below).add_(x).log1p_()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        return grad * (x * x + 1).rsqrt()


def arsinh(x: Tensor) -> Tensor:
    """arsinh of x >= 0, any shape, element by element without cancellation; torch.asinh on a CPU takes 3 times as long."""
    return _Arsinh.apply(x)


@contextmanager
def full_float32():
    """Whatever the user allows elsewhere (TF32, bfloat16): no rounding of the factors of a float32 matrix product in here.

    The flags belong to the process, hence they are touched only where one of them allows it.
    """
    matmuls = [m for m in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul) if m.fp32_precision in ("tf32", "bf16")]
    before = [matmul.fp32_precision for matmul in matmuls]
    for matmul in matmuls:
        matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        for matmul, precision in zip(matmuls, before):
            matmul.fp32_precision = precision


class _Chord(torch.autograd.Function):
    """|x_i - y_j| for rows x (N, D) and y (M, D), the product in `dtype`, cancelling pairs by differences in the dtype of x.

    Its own gradient, because autograd's would need N x M x D numbers for the differences, would leave the backward product to
    autocast and TF32, and would lose the same digits again: grad x_i = sum_j w_ij (x_i - y_j), w = grad / |x_i - y_j|.
    """

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        a, b = x.to(dtype), y.to(dtype)
        squares = a.square().sum(1)[:, None], b.square().sum(1)
        with torch.autocast(x.device.type, enabled=False), full_float32():
            chord = torch.addmm(squares[0] + squares[1], a, b.T, alpha=-2)
        near = (chord < CANCELS * squares[0] + CANCELS * squares[1]).nonzero()
        chord.clamp_(min=0).sqrt_()
        for i, j in _chunks(near, x):
            chord[i, j] = torch.linalg.vector_norm(x[i] - y[j], dim=1).to(dtype)
        ctx.save_for_backward(x, y, chord, near)
        return chord

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, y, chord, near = ctx.saved_tensors
        zero = chord == 0  # no gradient exists where points coincide; 0 is the mean of all directions
        weight = torch.where(zero, 0, grad / torch.where(zero, 1, chord))
        far = weight.index_put((near[:, 0], near[:, 1]), weight.new_zeros(()))
        with torch.autocast(x.device.type, enabled=False), full_float32():
            grad_x = x * far.sum(1)[:, None] - far @ y.to(far.dtype)
            grad_y = y * far.sum(0)[:, None] - far.T @ x.to(far.dtype)
        for i, j in _chunks(near, x):
            pull = weight[i, j, None] * (x[i] - y[j])
            grad_x, grad_y = grad_x.index_add(0, i, pull), grad_y.index_add(0, j, -pull)
        return grad_x, grad_y, None


def _chunks(pairs: Tensor, x: Tensor):
    """Index pairs (K, 2) in pieces whose rows of x together hold CHUNK numbers."""
    for piece in pairs.split(max(1, CHUNK // max(1, x.shape[1]))):
        yield piece[:, 0], piece[:, 1]


def chord(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Euclidean distances (N, M) in `dtype` between rows x (N, D) and y (M, D): one matrix product, memory O(N M).

    Relative error about 1e-5 in float32 (1e-13 in float64) also where rows nearly or quite coincide, which costs such pairs D
    operations each. Gradient 0 at coincident rows.
    """
    return _Chord.apply(x, y, dtype)


def polar_distance(a: Tensor, u: Tensor, b: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Distances (N, M) at curvature -1 between points at radii a (N), b (M) in directions u (N, D), v (M, D), all float64.

    sinh^2(d/2) = sinh^2((a-b)/2) + sinh a sinh b sin^2(theta/2): no edge to run into, nothing that cancels.
    """
    half = ((a / 2)[:, None] - b / 2).to(dtype)
    between = chord(u, v, dtype)  # 2 sin(theta/2)
    farthest = sum(float(r.detach().max()) for r in (a, b) if len(r))
    if farthest < (80 if dtype == torch.float32 else 700):  # sinh a sinh b is finite, and so is its inverse in the gradient
        squared = torch.addcmul(half.sinh().square(), a.sinh().to(dtype)[:, None] * b.sinh().to(dtype),
                                between.square(), value=0.25)
        return 2 * arsinh(squared.clamp(min=torch.finfo(dtype).tiny).sqrt())  # the clamp keeps the root's gradient finite
    half = half.abs()
    radial = half + _log(-torch.expm1(-2 * half) / 2)
    turned = ((_log_sinh(a)[:, None] + _log_sinh(b)) / 2).to(dtype) + _log(between / 2)
    height = torch.logaddexp(2 * radial, 2 * turned) / 2  # log sinh(d/2)
    low = height.clamp(max=20)  # above, arsinh(h) = log h + log 2 to 4e-18
    return 2 * (arsinh(low.exp()) + (height - low))


def _log(x: Tensor) -> Tensor:
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).log(), NOTHING)


def _log_sinh(x: Tensor) -> Tensor:
    return x + (-torch.expm1(-2 * x) / 2).log()
