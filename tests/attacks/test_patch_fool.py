"""PatchFool against its plain version (benchmarks/plain_patchfool.py), in float64, over its whole space of settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from helpers.models import small_vit
from helpers.processes import load_script
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ns_easyrobust.attacks.patch_fool import PatchFoolConfig, patchfool
from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.models.normalization import with_normalization

TIMM1 = not timm.__version__.startswith("0.")
SEEDS = [3, 14, 159]
SHORT = PatchFoolConfig(steps=3, alpha=1.0, layer=2, decay_steps=2, decay=0.5)
plain = load_script("plain_patchfool")


def make(kind: type[VisionTransformer] = VisionTransformer, *, depth: int = 8, **options) -> nn.Sequential:
    """A ViT of 16 patches of 4x4 pixels whose random weights are large enough for attention to differ."""
    torch.manual_seed(1)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
    vit = kind(depth=depth, **shape | options)
    for parameter in vit.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return with_normalization(vit, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)).double().eval()


@pytest.fixture
def model() -> nn.Sequential:
    return make()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 3, 4])


def expect_plain(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor, config: PatchFoolConfig) -> None:
    found = patchfool(model, images, labels, config, seeds=SEEDS)
    expected = plain.plain_patchfool(model, images, labels, config, seeds=SEEDS)
    assert (found - expected).abs().max() < 1e-9
    assert (expected - images).abs().amax((1, 2, 3)).min() > 0.05


def changed(images: torch.Tensor, attacked: torch.Tensor, size: int = 4) -> torch.Tensor:
    """Which patches (B, n) differ, and that nothing else does is what their number shows."""
    differs = (images != attacked).any(1, keepdim=True).double()
    return nn.functional.max_pool2d(differs, size).flatten(1).bool()


@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize(("norm", "epsilon"), [("none", 0.0), ("linf", 0.2), ("l2", 0.3)])
@pytest.mark.parametrize("loss", ["ce", "attention"])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_it_is_the_published_algorithm(model, images, labels, mode, loss, norm, epsilon, patches):
    expect_plain(
        model, images, labels, replace(SHORT, mode=mode, loss=loss, norm=norm, epsilon=epsilon, patches=patches)
    )


@pytest.mark.parametrize("depth", [4, 6, 11])
def test_with_any_number_of_attention_layers(images, labels, depth):
    for mode in ("official", "exact"):
        expect_plain(make(depth=depth), images, labels, replace(SHORT, mode=mode))


@pytest.mark.parametrize("select", ["saliency", "random"])
def test_other_choices_of_patches(model, images, labels, select):
    expect_plain(model, images, labels, replace(SHORT, select=select, patches=3))


def test_the_comparison_would_see_each_part(model, images, labels, monkeypatch):
    """The conflicts arise, and mode, loss and the layers each change the result."""
    changes = [{}, {"mode": "exact"}, {"loss": "ce"}, {"alpha": 0.5}, {"layer": 5}, {"norm": "l2", "epsilon": 0.3}]
    config = replace(SHORT, patches=2)
    results = [patchfool(model, images, labels, replace(config, **change), seeds=SEEDS) for change in changes]
    with monkeypatch.context() as patch:
        patch.setattr(plain, "_without_conflict", lambda g, ce_gradient, exact: g)
        results.append(plain.plain_patchfool(model, images, labels, config, seeds=SEEDS))
    for i, a in enumerate(results):
        assert all((a - b).abs().max() > 1e-3 for b in results[:i])


class Pooled(VisionTransformer):
    """Has no class token."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.num_tokens = self.num_prefix_tokens = 0

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.patch_embed(x))).mean(1))


class PooledWithClass(VisionTransformer):
    """Has a class token and reads all the tokens."""

    def forward(self, x):
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)), 1)
        return self.head(self.norm(self.blocks(tokens + self.pos_embed)).mean(1))


class Mixing(VisionTransformer):
    """Mixes neighbouring tokens before the first block."""

    def forward(self, x):
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)), 1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens + tokens.roll(1, 1)))[:, 0])


class Overlapping(nn.Module):
    """A stem whose tokens see their neighbours' pixels."""

    num_patches, patch_size = 16, (4, 4)

    def __init__(self, **kwargs):
        super().__init__()
        self.proj = nn.Conv2d(3, 16, 6, 4, padding=1)
        self.norm = nn.Identity()

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind", [PooledWithClass, Mixing, Pooled])
def test_models_where_no_token_can_be_left_out(images, labels, kind):
    for loss in ("attention", "ce"):
        expect_plain(make(kind), images, labels, replace(SHORT, patches=2, loss=loss))


class MixingMlp(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, tokens):
        return self.mlp(tokens + tokens.roll(1, 1))


def test_blocks_that_are_not_timms(model, images, labels):
    for block in (model[1].blocks[0], model[1].blocks[-1]):
        block.mlp = MixingMlp(block.mlp)
    expect_plain(model, images, labels, replace(SHORT, patches=2))


def test_a_stem_whose_patches_overlap(images, labels):
    model = make(embed_layer=Overlapping)
    assert isinstance(model[1].patch_embed, Overlapping)
    expect_plain(model, images, labels, replace(SHORT, patches=2))


def test_distillation_and_register_tokens(images, labels):
    if TIMM1:
        from timm.models.deit import VisionTransformerDistilled

        kinds = [make(VisionTransformerDistilled), make(reg_tokens=3), make(no_embed_class=True, init_values=0.5)]
    else:
        kinds = [make(distilled=True)]
    for model in kinds:
        expect_plain(model, images, labels, replace(SHORT, patches=2))


class LateClass(VisionTransformer):
    """Its class token joins at the third block, as ConViT's does."""

    def forward(self, x):
        tokens = self.patch_embed(x) + self.pos_embed[:, 1:]
        for i, block in enumerate(self.blocks):
            tokens = block(torch.cat((self.cls_token.expand(len(x), -1, -1), tokens), 1) if i == 2 else tokens)
        return self.head(self.norm(tokens)[:, 0])


@pytest.mark.parametrize("layer", [1, 2])
def test_a_class_token_that_joins_later(images, labels, layer):
    for mode in ("official", "exact"):
        expect_plain(make(LateClass), images, labels, replace(SHORT, patches=2, layer=layer, mode=mode))


@pytest.mark.skipif(not TIMM1, reason="timm 0.5.4 has no such models")
@pytest.mark.parametrize(
    "options",
    [
        {"dynamic_img_size": True},  # its embedding is (B, H, W, D)
        {"class_token": False, "global_pool": "map"},  # SigLIP
        {"global_pool": "avg", "fc_norm": True},
        {"global_pool": "avg", "class_token": False, "reg_tokens": 1, "init_values": 0.5, "no_embed_class": True},
        {"qk_norm": True, "patch_drop_rate": 0.5},
        {"eva": True, "qkv_fused": False, "use_rot_pos_emb": True},
        {"eva": True, "num_reg_tokens": 2, "use_rot_pos_emb": True, "use_abs_pos_emb": False, "init_values": 0.5},
    ],
    ids=lambda options: " ".join(options),
)
def test_timm_1s_own_kinds(images, labels, options):
    options = dict(options)
    if options.pop("eva", False):
        from timm.models.eva import Eva as kind
    else:
        kind = VisionTransformer
    for loss in ("attention", "ce"):
        expect_plain(make(kind, **options), images, labels, replace(SHORT, patches=2, loss=loss))


def test_patches_that_are_not_square(images, labels):
    expect_plain(make(patch_size=(4, 8)), images, labels, replace(SHORT, patches=2))


def test_only_the_most_attended_patches_change(model, images, labels):
    attention: list[torch.Tensor] = []
    block = model[1].blocks[2].attn
    fused, block.fused_attn = getattr(block, "fused_attn", None), False
    hook = block.attn_drop.register_forward_hook(lambda module, args, output: attention.append(output))
    model(images)
    hook.remove()
    block.fused_attn = fused
    wanted = attention[0].mean(1).mean(1)[:, 1:].argsort(descending=True)[:, :2]
    attacked = patchfool(model, images, labels, replace(SHORT, patches=2))
    assert torch.equal(changed(images, attacked), torch.zeros(3, 16).scatter(1, wanted, 1).bool())
    assert 0 <= attacked.min() <= attacked.max() <= 1


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_the_perturbation_stays_within_its_radius(model, images, labels, mode):
    config = replace(SHORT, mode=mode, patches=2, lr=1.0, steps=4)
    by = patchfool(model, images, labels, replace(config, norm="linf", epsilon=0.1)) - images
    assert 0.0999 < by.abs().max() < 0.1 + 1e-9
    by = patchfool(model, images, labels, replace(config, norm="l2", epsilon=0.4)) - images
    norms = by.flatten(2).norm(dim=2)  # of each channel
    assert 0.3999 < norms.max() < 0.4 + 1e-9


def test_exact_mode_knows_no_batch(model, images, labels):
    images, labels = torch.cat((images, images.flip(3)[:1])), torch.cat((labels, labels[:1]))
    config, seeds = replace(SHORT, patches=2, steps=6), [5, 6, 7, 8]

    def apart(config):
        single = [
            patchfool(model, images[i : i + 1], labels[i : i + 1], config, seeds=seeds[i : i + 1]) for i in range(4)
        ]
        return (patchfool(model, images, labels, config, seeds=seeds) - torch.cat(single)).abs().max()

    for select in ("attention", "saliency", "random"):
        assert apart(replace(config, mode="exact", select=select)) < 1e-9
    assert apart(replace(config, mode="official")) > 1e-4  # as published, and documented


def test_randomness_comes_from_seeds_alone(model, images, labels):
    state = torch.random.get_rng_state()

    def attack(seed=None, **kwargs):
        if seed is not None:
            kwargs["generator"] = torch.Generator().manual_seed(seed)
        return patchfool(model, images, labels, replace(SHORT, select="random"), **kwargs)

    assert torch.equal(attack(), attack(0))
    assert not torch.equal(attack(1), attack(0))
    assert torch.equal(attack(seeds=SEEDS), attack(seeds=SEEDS))
    assert not torch.equal(attack(seeds=SEEDS)[0], attack(seeds=[4, 14, 159])[0])
    assert torch.equal(torch.random.get_rng_state(), state)


def snapshot(model: nn.Module) -> list[object]:
    modules = [
        (module.training, getattr(module, "fused_attn", None), "forward" in vars(module),
         len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for module in model.modules()
    ]  # fmt: skip
    return [*modules, *((p.requires_grad, p.grad, p._version) for p in model.parameters())]


def test_the_model_is_left_as_it_was(model, images, labels):
    model.train()
    model[1].head.bias.requires_grad_(False)
    before = snapshot(model)
    patchfool(model, images, labels, SHORT)
    assert snapshot(model) == before
    hook = model[1].head.register_forward_hook(
        lambda module, args, output: output if not output.requires_grad else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        patchfool(model, images, labels, SHORT)
    hook.remove()
    assert snapshot(model) == before


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models(model, images, labels, wrap):
    assert torch.equal(patchfool(wrap(model), images, labels, SHORT), patchfool(model, images, labels, SHORT))


def test_without_normalisation_normalised_space_is_pixel_space(model, images, labels):
    bare = model[1]
    box = with_normalization(bare, (0.0,) * 3, (1.0,) * 3).double().eval()
    assert torch.equal(patchfool(bare, images, labels, SHORT), patchfool(box, images, labels, SHORT))
    assert not torch.allclose(patchfool(bare, images, labels, SHORT), patchfool(model, images, labels, SHORT))


def test_a_confident_models_vanishing_gradient_still_gives_a_direction(images, labels):
    """In float32 the squares of this gradient are zero; its direction decides what attention may do."""
    model = make()
    model[1].head.bias.data[3] = 70.0
    config, labels = replace(SHORT, mode="exact", select="random"), torch.full((3,), 3)
    expected = plain.plain_patchfool(model, images, labels, config, seeds=SEEDS)
    found = patchfool(model.float(), images.float(), labels, config, seeds=SEEDS)
    assert (found - expected).abs().max() < 1e-2


def test_it_fools_and_best_where_the_model_looks(trained, digits):
    images, labels = digits[0][1297:1597].clone(), digits[1][1297:1597]
    # One step: after several every patch of a digit, a sixteenth of it, fools this small model.
    config = PatchFoolConfig(loss="ce", mode="exact", steps=1, layer=2)

    def right(pixels):
        with torch.no_grad():
            return float((trained(pixels).argmax(1) == labels).float().mean())

    by_attention = right(patchfool(trained, images, labels, config))
    at_random = right(patchfool(trained, images, labels, replace(config, select="random")))
    start = right(patchfool(trained, images, labels, replace(config, lr=1e-9)))
    assert by_attention < at_random - 0.02 < start - 0.2 < right(images) - 0.2


def test_swin_is_served_where_no_attention_is_needed():
    model = small_vit(arch="swin_micro_patch2_32").eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(1)
    config = PatchFoolConfig(loss="ce", select="saliency", patches=40, steps=15)
    attacked = patchfool(model, images, labels, config)
    assert (changed(images, attacked, 2).sum(1) == 40).all()
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(model(x), labels) for x in (images, attacked))
    assert after > before + 1e-3
    for other in (replace(config, loss="attention"), replace(config, select="attention")):
        with pytest.raises(ModelError, match="SwinTransformer has no blocks whose attention can be read"):
            patchfool(model, images, labels, other)


class Plane(nn.Module):
    """Its patch embedding gives a plane (B, D, h, w), as RVT's."""

    def __init__(self):
        super().__init__()
        self.patch_embed, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.patch_embed(x).relu().mean((2, 3)))


def test_embeddings_with_channels_first(images, labels):
    torch.manual_seed(0)
    model = Plane().double()
    attacked = patchfool(model, images, labels, replace(SHORT, loss="ce", select="saliency", patches=5, steps=10))
    assert (changed(images, attacked).sum(1) == 5).all()
    before, after = (nn.functional.cross_entropy(model(x), labels) for x in (images, attacked))
    assert after > before + 0.01


def test_what_does_not_fit_is_refused(model, images, labels):
    with pytest.raises(DataError, match=r"expected pixels in \[0, 1\]"):
        patchfool(model, images * 2, labels, SHORT)
    with pytest.raises(ModelError, match=r"with a block 8 to choose patches by, found 8 blocks \(0..7\)"):
        patchfool(model, images, labels, replace(SHORT, layer=8))
    with pytest.raises(ModelError, match="at least 4 blocks for the attention loss, found 3"):
        patchfool(make(depth=3), images, labels, SHORT)
    with pytest.raises(OptionError, match="at most the image's 16, found 17"):
        patchfool(model, images, labels, replace(SHORT, patches=17))
    with pytest.raises(OptionError, match="one seed for each of 3 images, found 2"):
        patchfool(model, images, labels, SHORT, seeds=[1, 2])
    with pytest.raises(ModelError, match="no patch embedding"):
        patchfool(nn.Flatten(), images, labels, SHORT)
    model[1].num_prefix_tokens = model[1].num_tokens = 2
    for config in (SHORT, replace(SHORT, select="random")):
        with pytest.raises(ModelError, match="among 2 prefix tokens and 16 patches, found 17 tokens"):
            patchfool(model, images, labels, config)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"mode": "paper"}, "mode: expected one of official, exact, found 'paper'"),
        ({"select": "best"}, "select: expected one of attention, saliency, random"),
        ({"loss": "mse"}, "loss: expected one of attention, ce"),
        ({"norm": "l1"}, "norm: expected one of none, linf, l2"),
        ({"steps": 0}, "steps: expected a whole number of at least 1, found 0"),
        ({"patches": 1.5}, "patches: expected a whole number"),
        ({"layer": -1}, "layer: expected a whole number of at least 0"),
        ({"lr": float("nan")}, "lr > 0"),
        ({"alpha": -1}, "alpha >= 0"),
        ({"decay": 0}, "decay in"),
        ({"norm": "linf"}, "epsilon > 0 with norm 'linf', found 0"),
        ({"norm": "linf", "epsilon": 8}, "Divide it by 255"),
        ({"epsilon": 0.1}, "epsilon 0 with norm 'none', found 0.1"),
    ],
)
def test_settings_that_make_no_sense(settings, found):
    with pytest.raises(OptionError, match=found):
        PatchFoolConfig(**settings)
