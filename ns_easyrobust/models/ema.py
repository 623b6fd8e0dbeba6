"""The exponential moving average of a model's weights."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import ModelEmaV2
from torch import nn


class Ema(ModelEmaV2):
    """timm's moving average, except that integer buffers are copied.

    timm 0.5.4 averages them too and truncates the result, which changes the
    ``relative_position_index`` of Swin and BEiT: 41 of 256 entries after 3 updates at decay 0.9999.
    """

    def _update(self, model: nn.Module, update_fn: Any) -> None:
        with torch.no_grad():
            for average, value in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
                average.copy_(update_fn(average, value.to(average.device)) if average.is_floating_point() else value)
