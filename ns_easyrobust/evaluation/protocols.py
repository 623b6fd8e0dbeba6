"""How each suite's images are prepared, and how many are taken: three presets, spelled out in the records."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.image_list import Subset
from ..data.transforms import Preprocessing
from ..errors import OptionError

PRESETS = {
    "paper": "what the paper's authors ran: photographs to 256 bicubic and cropped, ImageNet-C and Stylized as "
    "they are, PatchFool on RobustBench's 5000 images at 224 bilinear",
    "easyrobust": "as EasyRobust's benchmark.py: everything to 256 bicubic and cropped, ImageNet-C and Stylized too",
    "native": "the model's own resizing from timm's config; ImageNet-C, Stylized and DamageNet as they are",
}
AS_THEY_ARE = ("c", "stylized")  # made at 224 pixels
SAMPLED = ("patchfool", "autoattack")  # too slow for 50,000 images


@dataclass(frozen=True)
class Protocol:
    """A preset for a model's image size.

    Attributes:
        preset: of :data:`PRESETS`.
        size: side of the model's input.
        crop_pct, interpolation: of photographs; None: the preset's.
        own_crop_pct, own_interpolation: the model's own, from timm's config.
    """

    preset: str = "paper"
    size: int = 224
    crop_pct: float | None = None
    interpolation: str | None = None
    own_crop_pct: float = 0.875
    own_interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise OptionError(f"protocol: expected one of {', '.join(PRESETS)}, found {self.preset!r}.")

    @property
    def name(self) -> str:
        """The preset's name, or "custom" where a flag has changed it."""
        return self.preset if self.crop_pct is None and self.interpolation is None else "custom"

    def preprocessing(self, suite: str) -> Preprocessing:
        """Of one suite; images that already have the model's size stay as they are where nothing is cropped."""
        native = self.preset == "native"
        whole = suite in AS_THEY_ARE if not native else suite in (*AS_THEY_ARE, "damagenet")
        if self.preset == "paper" and suite == "patchfool":
            return Preprocessing(self.size, self.crop_pct or 1.0, self.interpolation or "bilinear")
        if whole and self.preset != "easyrobust":
            return Preprocessing(self.size, 1.0, self.interpolation or "bicubic")
        crop_pct = self.crop_pct or (self.own_crop_pct if native else 0.875)
        return Preprocessing(
            self.size, crop_pct, self.interpolation or (self.own_interpolation if native else "bicubic")
        )

    def subset(self, suite: str, outputs: int) -> Subset:
        """All images, but RobustBench's 5000 for the slow attacks on ImageNet's classes."""
        return Subset("robustbench" if suite in SAMPLED and outputs == 1000 else "all")
