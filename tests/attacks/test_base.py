from __future__ import annotations

import pytest
import torch

from ns_easyrobust.attacks.base import Attack, register_attack, require_adversarial
from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.utils import setting


@pytest.mark.parametrize(
    ("attacked", "found"),
    [
        (torch.zeros(1, 3, 4, 4), r"shape \(2, 3, 4, 4\), found \(1, 3, 4, 4\)"),
        (None, "found NoneType"),
        (torch.full((2, 3, 4, 4), 1.5), "in \\[0, 1\\], found 1.5 to 1.5"),
        (torch.full((2, 3, 4, 4), torch.nan), "found nan to nan"),
    ],
)
def test_what_an_attack_must_not_return(attacked, found):
    pixels = torch.rand(2, 3, 4, 4)
    require_adversarial(pixels, pixels.shape, "mine")
    with pytest.raises(ModelError, match=f"mine: expected adversarial pixels .*{found}"):
        require_adversarial(attacked, pixels.shape, "mine")


def test_a_forgotten_dataclass_or_name_is_told():
    with pytest.raises(OptionError, match=r"attack Forgetful: expected @dataclass\(frozen=True\)"):

        @register_attack
        class Forgetful(Attack):
            name = "forgetful"
            radius: float = setting(1.0, "a radius")

    with pytest.raises(OptionError, match="attack: expected a name of letters"):

        @register_attack
        class Nameless(Attack):
            pass
