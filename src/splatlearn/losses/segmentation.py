"""Losses of semantic segmentation. Legend: N rows, K classes. Labels -1 are ignored."""

import torch
from torch import Tensor
from torch.nn import functional

from splatlearn.ops.reduce import global_mean

IGNORE = -1


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, the mean over the labelled rows of the global batch.

    Args:
        logits: (N K).
        labels: (N) int64 in [0, K), or -1 where the row counts for nothing.

    Returns:
        Scalar; zero (with zero gradients) when no row is labelled.
    """
    values = functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    return global_mean(values, labels != IGNORE)


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovasz extension of 1 - IoU, the mean over the classes that occur (Berman et al. 2018, eq. 8 and 11).

    The IoU is that of this rank's rows: over several ranks the result is the mean over (rank, class) pairs, not
    the value of the joined batch.

    Args:
        logits: (N K).
        labels: (N) int64 in [0, K), or -1 where the row counts for nothing.

    Returns:
        Scalar; zero (with zero gradients) when no row is labelled.
    """
    kept = labels != IGNORE
    probabilities = logits[kept].float().softmax(1)
    truth = functional.one_hot(labels[kept], logits.shape[1]).to(probabilities)
    errors, order = (truth - probabilities).abs().sort(0, descending=True)
    per_class = (errors * _jaccard_gradient(truth.gather(0, order))).sum(0)
    return global_mean(per_class, truth.sum(0) > 0)


def _jaccard_gradient(truth: Tensor) -> Tensor:
    """(N K) increments of 1 - IoU as rows join the wrong ones, largest error first.

    Args:
        truth: (N K) 0 or 1, rows sorted by falling error, class by class.
    """
    total = truth.sum(0)
    intersection = total - truth.cumsum(0)
    union = total + (1 - truth).cumsum(0)
    loss = 1 - intersection / union
    return torch.diff(loss, dim=0, prepend=torch.zeros_like(loss[:1]))
