"""timm's optimizers: built, tried before the run, and gradients clipped as timm's script does."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import torch
from timm.models import model_parameters
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.utils import dispatch_clip_grad
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import OptionError
from ..models import unwrap
from ..utils import fork_rng, mean_over_ranks

_TRIAL_STEPS = 7  # Lookahead does something else at each sixth


def build_optimizer(args: argparse.Namespace, model: nn.Sequential, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that ``--opt`` names, for the parameters of ``model``; it has made steps on a small model before.

    Raises:
        OptionError: timm has no such optimizer, or not with these settings, or it cannot step under the installed
            PyTorch (Lookahead of timm 0.5.4), or it is of second order, with ``--sam-rho``.
    """
    # A plain Sequential hides no_weight_decay() from timm, as in the paper's code.
    optimizer = _created(args, nn.Sequential(*model) if args.decay_tokens else model)
    if args.sam_rho is not None and is_second_order(optimizer):
        raise OptionError(
            f"--sam-rho: expected an optimizer of first order, found --opt {args.opt}, whose step differentiates the "
            "gradients again, of weights that SAM has moved back by then. Choose another, such as adamw."
        )
    try:
        with fork_rng(0, device):
            _try_out(args, device)
    except Exception as error:  # whatever an optimizer written for another PyTorch raises
        reason = " ".join(str(error).split())[:200]
        raise OptionError(
            f"--opt {args.opt}: expected an optimizer that can step, found one that cannot with these settings under "
            f"torch {torch.__version__} ({type(error).__name__}: {reason}). Choose another, such as adamw."
        ) from error
    return optimizer


def _created(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    except (AssertionError, ImportError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or "no such name"  # timm 0.5.4 knows names by assertion
        raise OptionError(
            f"--opt {args.opt}: expected an optimizer of timm's and settings that it takes (--opt-betas, --opt-eps, "
            f"--momentum), found: {reason}. Correct them."
        ) from error
    return optimizer


def _try_out(args: argparse.Namespace, device: torch.device) -> None:
    """Some steps on a model with parameters of the shapes that transformers have, and its state saved and loaded."""
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.LayerNorm(2), nn.Linear(2, 2)).to(device)
    optimizer = _created(args, model)
    for _ in range(_TRIAL_STEPS):
        optimizer.zero_grad()
        loss = model(torch.rand(2, 1, 2, 2, device=device)).square().mean()
        loss.backward(create_graph=is_second_order(optimizer))
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def is_second_order(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step differentiates the gradients again, as AdaHessian's does."""
    return bool(getattr(optimizer, "is_second_order", False))


def differentiable_attention(optimizer: torch.optim.Optimizer) -> contextlib.AbstractContextManager[Any]:
    """For the forward: attention that can be differentiated twice, which fused kernels cannot, if the step needs it."""
    return sdpa_kernel(SDPBackend.MATH) if is_second_order(optimizer) else contextlib.nullcontext()


def clip_gradients(args: argparse.Namespace, model: nn.Module) -> None:
    """Clip the gradients by ``--clip-mode``; ``agc`` leaves out the last two parameters, the classifier's, as timm."""
    parameters = model_parameters(unwrap(model), exclude_head="agc" in args.clip_mode)
    dispatch_clip_grad(parameters, value=args.clip_grad, mode=args.clip_mode)


def average_gradients(model: nn.Module) -> None:
    """Average each parameter's gradient over the ranks, which DDP does only for forwards through its wrapper."""
    for parameter in unwrap(model).parameters():
        if parameter.grad is not None:
            parameter.grad = mean_over_ranks(parameter.grad)
