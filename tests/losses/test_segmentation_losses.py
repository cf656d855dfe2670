import itertools

import pytest
import torch

from splatlearn.losses.segmentation import cross_entropy, lovasz_softmax


def random_case(rows: int = 30, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(-1, classes - 1, (rows,), generator=generator)


class TestCrossEntropy:
    def test_matches_torch_where_labelled(self):
        logits, labels = random_case()
        expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)
        torch.testing.assert_close(cross_entropy(logits, labels), expected)

    def test_no_label_is_zero_with_zero_gradient(self):
        logits = torch.randn(5, 3, requires_grad=True)
        loss = cross_entropy(logits, torch.full((5,), -1))
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None and not logits.grad.any()


class TestLovasz:
    def test_hard_predictions_give_one_minus_iou(self):
        """At the corners of the cube the Lovasz extension is the set function: 1 - IoU, per class that occurs."""
        for labels in itertools.product(range(3), repeat=3):
            for guess in itertools.product(range(3), repeat=3):
                truth, predicted = torch.tensor(labels), torch.tensor(guess)
                logits = 200.0 * torch.nn.functional.one_hot(predicted, 3).float()
                losses = []
                for c in set(labels):
                    both = ((truth == c) & (predicted == c)).sum()
                    losses.append(1 - both / ((truth == c) | (predicted == c)).sum())
                torch.testing.assert_close(lovasz_softmax(logits, truth), torch.stack(losses).mean())

    def test_ignored_rows_change_nothing(self):
        logits, labels = random_case()
        kept = labels >= 0
        torch.testing.assert_close(lovasz_softmax(logits, labels), lovasz_softmax(logits[kept], labels[kept]))

    def test_gradient(self):
        logits, labels = random_case(8, 3)
        assert torch.autograd.gradcheck(
            lambda x: lovasz_softmax(x, labels), logits.double().requires_grad_(), atol=1e-3, rtol=1e-2, eps=1e-3
        )

    @pytest.mark.parametrize("rows", [0, 4])
    def test_no_label_is_zero(self, rows):
        logits = torch.randn(rows, 3, requires_grad=True)
        loss = lovasz_softmax(logits, torch.full((rows,), -1))
        loss.backward()
        assert loss.item() == 0
