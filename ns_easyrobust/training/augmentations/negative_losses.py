"""Losses that turn a model away from what survives in negative examples (Qin et al. 2022, section 4).

All are means over the batch, computed in float32 or better, and smaller where the model follows the negatives less.
"""

from __future__ import annotations

from ...utils import nn, torch

LOSSES = ("uniform", "l2", "contrastive")


def uniform_loss(negative_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the negatives' predictions with the uniform distribution: at least ln K, where they are uniform.

    Args:
        negative_logits: (B, K).
    """
    return -_widened(negative_logits).log_softmax(1).mean()


def l2_loss(logits: torch.Tensor, negative_logits: torch.Tensor) -> torch.Tensor:
    """Minus the mean distance ||p - p'||_2 between the probabilities of images and of their negatives: in [-sqrt 2, 0].

    The distance is not squared, and of probabilities: the paper finds that of logits unstable. Where p = p' it has no
    gradient, and gives zero.

    Args:
        logits, negative_logits: (B, K) each.
    """
    difference = _widened(logits).softmax(1) - _widened(negative_logits).softmax(1)
    return -torch.linalg.vector_norm(difference, dim=1).mean()  # its gradient at zero is zero, unlike a square root's


def contrastive_loss(
    features: torch.Tensor, negative_features: torch.Tensor, classes: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, Eq. 2) whose denominator holds the negatives too.

    For an image i with the others of its class P(i), on cosine similarities s divided by ``temperature``::

        -1 / |P(i)| * sum over p in P(i) of log(exp(s_ip) / sum over all a but i, and all negatives, of exp(s_ia))

    averaged over the images whose P(i) is not empty; zero if there is none.

    Args:
        features, negative_features: (B, D) each.
        classes: (B,) whole numbers.
        temperature: > 0.
    """
    with torch.autocast(features.device.type, enabled=False):  # half precision would round similarities of 1 / tau
        normalised = nn.functional.normalize(_widened(features))
        others = torch.cat((normalised, nn.functional.normalize(_widened(negative_features))))
        similarity = normalised @ others.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    is_positive = (classes[:, None] == classes) & ~itself
    excluded = nn.functional.pad(itself, (0, len(negative_features)))
    log_share = similarity.masked_fill(excluded, -torch.inf).log_softmax(1)[:, : len(features)]
    number = is_positive.sum(1)
    of_image = -log_share.masked_fill(~is_positive, 0).sum(1) / number.clamp_min(1)
    return of_image.sum() / (number > 0).sum().clamp_min(1)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
