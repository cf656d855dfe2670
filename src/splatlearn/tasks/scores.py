"""Scores of semantic segmentation, of points and of pixels. Legend: N rows, K classes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex, MulticlassStatScores

from splatlearn.errors import BadData
from splatlearn.losses.segmentation import IGNORE


class Scores:
    """Sums over clouds or images, and the numbers of a table from them.

    Args:
        classes: K.
        what: is labelled, for the error where nothing is.
    """

    def __init__(self, classes: int, what: str) -> None:
        self.what = what
        each_class = {"num_classes": classes, "average": None, "ignore_index": IGNORE}
        self.metrics = MetricCollection(
            {
                "iou": MulticlassJaccardIndex(**each_class),
                "recall": MulticlassAccuracy(**each_class),
                "accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE),
                "counts": MulticlassStatScores(**each_class),
            }
        )

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds points or pixels: (N) predicted classes and (N) labels."""
        strict, warn_only = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        # Counts are whole numbers, exact in any order; torchmetrics' deterministic way is a hundred times slower.
        torch.use_deterministic_algorithms(False)
        try:
            self.metrics.to(prediction.device).update(prediction, label)
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)

    def compute(self, names: Sequence[str]) -> dict[str, float]:
        """`miou`, `macc` and `accuracy` in percent, means over the classes that occur, and `iou/CLASS`.

        Raises:
            BadData: nothing was labelled.
        """
        values = self.metrics.compute()
        occurs = values["counts"][:, 4] > 0
        if not bool(occurs.any()):
            raise BadData(f"segmentation: no {self.what} is labelled")
        numbers = {
            "miou": values["iou"][occurs].mean(),
            "macc": values["recall"][occurs].mean(),
            "accuracy": values["accuracy"],
        }
        numbers |= {f"iou/{name}": iou for name, iou, there in zip(names, values["iou"], occurs) if there}
        return {name: 100 * float(value) for name, value in numbers.items()}
