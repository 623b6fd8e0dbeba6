"""Suites by name, and how each one's images are preprocessed: three presets, whose settings the records spell out."""

from __future__ import annotations

from dataclasses import dataclass

from ..data import Preprocessing, Subset
from ..errors import OptionError

TABLE2 = ("val", "patchfool", "cw", "fgsm", "damagenet", "a", "c", "v2", "r", "sketch", "stylized")
EASYROBUST = ("val", "a", "r", "sketch", "v2", "stylized", "c")
GROUPS = {"table2": TABLE2, "easyrobust": EASYROBUST, "all": (*TABLE2, "objectnet", "pgd", "autoattack")}
SUITES = GROUPS["all"]
ON_VAL = ("val", "fgsm", "pgd", "cw", "patchfool", "autoattack")
SLOW = ("pgd", "cw", "patchfool", "autoattack")  # hours on ImageNet: run last, one at a time
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
    """A preset, applied to a model's image size.

    Attributes:
        preset: one of :data:`PRESETS`.
        size: side of the model's square input, in pixels.
        crop_pct, interpolation: override the preset's, crop_pct not for sets taken as they are; None: the preset's.
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
        """The preset's name, or "custom" if ``crop_pct`` or ``interpolation`` overrides it."""
        return self.preset if self.crop_pct is None and self.interpolation is None else "custom"

    def preprocessing(self, suite: str) -> Preprocessing:
        """The preprocessing of one suite; a crop_pct of 1 leaves images that have the model's size unchanged."""
        native = self.preset == "native"
        uncropped = suite in AS_THEY_ARE if not native else suite in (*AS_THEY_ARE, "damagenet")
        if self.preset == "paper" and suite == "patchfool":
            return Preprocessing(self.size, self.crop_pct or 1.0, self.interpolation or "bilinear")
        if uncropped and self.preset != "easyrobust":
            return Preprocessing(self.size, 1.0, self.interpolation or "bicubic")
        crop_pct = self.crop_pct or (self.own_crop_pct if native else 0.875)
        return Preprocessing(
            self.size, crop_pct, self.interpolation or (self.own_interpolation if native else "bicubic")
        )

    def subset(self, suite: str, outputs: int) -> Subset:
        """All images; for PatchFool and AutoAttack on a model of 1000 outputs, RobustBench's 5000."""
        return Subset("robustbench" if suite in SAMPLED and outputs == 1000 else "all")
