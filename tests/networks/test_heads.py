import pytest
import torch

from ulna.errors import UsageError
from ulna.networks.heads import Dense, mean_logits, probabilities


def test_mean_readout_averages_probabilities_of_a_sigmoid():
    logits = [torch.randn(2, 1, 5, 4, dtype=torch.float64) * 4 for _ in range(3)]
    expected = torch.stack([z.sigmoid() for z in logits]).mean(0)
    torch.testing.assert_close(mean_logits(logits, exclusive=False).sigmoid(), expected, atol=1e-14, rtol=1e-12)


def test_mean_readout_averages_probabilities_of_a_softmax():
    logits = [torch.randn(2, 4, 5, 4) * 4 for _ in range(3)]
    expected = torch.stack([z.softmax(1) for z in logits]).mean(0)
    torch.testing.assert_close(mean_logits(logits, exclusive=True).softmax(1), expected, atol=1e-6, rtol=1e-5)


def test_mean_readout_is_finite_where_probabilities_round_to_0_and_1():
    z = torch.tensor([[[[200.0, -200.0]]]])
    assert mean_logits([z, z], exclusive=False).flatten().tolist() == pytest.approx([200.0, -200.0])
    z = torch.tensor([500.0, -500.0]).reshape(1, 2, 1, 1)
    assert mean_logits([z, z], exclusive=True).isfinite().all()


def test_probabilities_follow_the_kind_of_classes():
    z = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(probabilities(z).sum(1), torch.ones(1, 2, 2))
    torch.testing.assert_close(probabilities(z, multilabel=True), z.sigmoid())
    torch.testing.assert_close(probabilities(z[:, :1]), z[:, :1].sigmoid())
    assert probabilities(z.bfloat16()).dtype == torch.float32


def test_a_head_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="heads at x0_1"):
        Dense(2, {"x0_1": 4}, 1).only("x0_2")
