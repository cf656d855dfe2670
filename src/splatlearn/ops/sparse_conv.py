"""Sparse convolution on sorted voxels: gather, matrix product, scatter, in plain torch on any device.

Legend: M input rows, T output rows, K offsets of a kernel, I and O input and output channels.

One class serves submanifold, strided and transposed convolutions; the kernel map decides which it is. All are
correlations (no flip): out[t] = sum over offsets k of in[s] W[k] for the pairs (s, t) of offset k.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from splatlearn.errors import UserError
from splatlearn.ops.voxels import KernelMap


class _SparseConvolution(torch.autograd.Function):
    """Saves the input and the weight alone: what was gathered per offset is gathered again in backward."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.kernel_map = kernel_map
        return _correlate(features, weight, kernel_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        features, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        for_features, for_weight = ctx.needs_input_grad[:2]
        d_features = d_weight = None
        if for_features:
            d_features = _correlate(gradient, weight.transpose(1, 2), ctx.kernel_map.transposed)
        if for_weight:
            d_weight = _weight_gradient(features, gradient, weight, ctx.kernel_map)
        return d_features, d_weight, None


def _correlate(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """(T O) = sum over offsets of features[sources] @ weight, added up in float32 at least and rounded once."""
    precision = torch.promote_types(features.dtype, torch.float32)
    if kernel_map.identity is None:
        result = features.new_zeros(kernel_map.target_rows, weight.shape[2], dtype=precision)
    else:
        result = (features @ weight[kernel_map.identity]).to(precision)
    for sources, targets, matrix in zip(kernel_map.sources, kernel_map.targets, weight.unbind()):
        if len(sources):
            result.index_add_(0, targets, features.index_select(0, sources).mm(matrix).to(precision))
    return result.to(features.dtype)


def _weight_gradient(features: Tensor, gradient: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """(K I O) = features[sources]^T @ gradient[targets] per offset."""
    result = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    matrices = result.unbind()
    if kernel_map.identity is not None:
        torch.mm(features.t(), gradient, out=matrices[kernel_map.identity])
    for sources, targets, matrix in zip(kernel_map.sources, kernel_map.targets, matrices):
        if len(sources):
            torch.mm(features.index_select(0, sources).t(), gradient.index_select(0, targets), out=matrix)
    return result


def sparse_convolution(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """(T O) features of the output sites; differentiable once, in `features` and `weight`.

    Deterministic on the CPU, and on CUDA too: within one offset no output row is written twice. Follows autocast.

    Args:
        features: (M I).
        weight: (K I O), offsets in the order of the kernel map (x slowest, z fastest).
        kernel_map: pairs per offset, from `submanifold_map`, `strided_map`, or the latter's `transposed`.

    Raises:
        UserError: shapes that do not fit one another.
    """
    expected = (len(kernel_map.sources), features.shape[1])
    if tuple(weight.shape[:2]) != expected or len(features) != kernel_map.source_rows:
        raise UserError(
            f"sparse_convolution: features {tuple(features.shape)} and weight {tuple(weight.shape)} do not fit a "
            f"map of {len(kernel_map.sources)} offsets from {kernel_map.source_rows} rows"
        )
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        features, weight = features.to(dtype), weight.to(dtype)
    with torch.autocast(kind, enabled=False):
        result: Tensor = _SparseConvolution.apply(features, weight, kernel_map)  # pyright: ignore[reportAssignmentType]
    return result


class SparseConv3d(nn.Module):
    """A sparse convolution without bias; `forward` takes the kernel map of the level.

    Args:
        in_channels, out_channels: widths.
        kernel: edge of the kernel: odd for submanifold, 2 for strided and transposed.

    Weights (kernel^3, in, out), x slowest, z fastest. Kaiming normal by fan-out (MinkowskiEngine's ResNet).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(kernel**3, in_channels, out_channels))
        nn.init.normal_(self.weight, std=(2.0 / (kernel**3 * out_channels)) ** 0.5)

    def forward(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        """(M in) -> (T out)."""
        return sparse_convolution(features, self.weight, kernel_map)

    def extra_repr(self) -> str:
        """Widths and kernel, for printing."""
        _, into, out = self.weight.shape
        return f"{into}, {out}, kernel={self.kernel}"
