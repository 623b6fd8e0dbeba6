from __future__ import annotations

import argparse
import doctest
import math

import numpy as np
import pytest
import torch
from helpers.models import small_vit
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.models.attention import attention_maps
from ns_easyrobust.models.relevance import gradient_rollout, relevance_maps, upscaled
from ns_easyrobust.training.augmentations import relevance as module
from ns_easyrobust.training.augmentations.flags import add_nullspace_args, check_augmentation_args, companion_costs
from ns_easyrobust.training.augmentations.relevance import RelevanceAugmentation, RelevanceSettings, mask_losses
from ns_easyrobust.training.masks import write_mask

cross_entropy = nn.functional.cross_entropy


class DigitsOnTexture:
    """Digits on a background of stripes, with their masks; ``misled`` of the stripes lie as the label says."""

    def __init__(self, images, labels, misled: float = 0.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.masks = (images[:, :1] > 0.3).float()
        told = torch.where(torch.rand(len(labels), generator=generator) < misled, labels, 0)
        angles = torch.where(told > 0, told, torch.randint(10, labels.shape, generator=generator)) * math.pi / 10
        phases = 6.28 * torch.rand(len(labels), 1, 1, generator=generator)
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        along = angles.cos()[:, None, None] * x + angles.sin()[:, None, None] * y
        stripes = 0.4 + 0.3 * torch.sin(along * 1.2 + phases)[:, None]
        self.images = (images * self.masks + stripes * (1 - self.masks)).clamp(0, 1)
        self.labels, self.asked = labels, []

    def __len__(self) -> int:
        return len(self.images)

    def pair(self, index: int, seed: int, size: int):
        self.asked.append((index, seed, size))
        return self.images[index], self.masks[index], int(self.labels[index])


@pytest.fixture
def pairs(digits) -> DigitsOnTexture:
    return DigitsOnTexture(*(part[:40] for part in digits))


@pytest.fixture
def model() -> nn.Module:
    """Small, with attention and logits that depend on the image."""
    model = small_vit().eval()
    with torch.no_grad():
        for block in model[1].blocks:
            block.attn.qkv.weight.mul_(10)
            block.attn.proj.weight.mul_(5)
    return model


INPUT, TARGET = torch.rand(6, 3, 32, 32), torch.arange(6)


def companion(model, pairs, *, seed: int = 0, **settings) -> RelevanceAugmentation:
    config = RelevanceSettings(**settings)
    return RelevanceAugmentation(model, None, config, generator=torch.Generator().manual_seed(seed), pairs=pairs)


def drawn(pairs: DigitsOnTexture, calls: int = 6):
    index = [index for index, _, _ in pairs.asked[-calls:]]
    return pairs.images[index], pairs.masks[index], pairs.labels[index]


def numpy_loss(maps, masks, logits, decisions, temperature) -> float:
    """The formula of imagenet_finetune.py:325-349 with the published weights."""
    maps, masks, logits = (part.detach().double().numpy() for part in (maps, masks, logits))
    background = np.mean((maps * (1 - masks)) ** 2)
    foreground = np.mean((maps * masks - masks) ** 2)
    scaled = logits / temperature
    logs = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    classification = -np.mean(logs[np.arange(len(logs)), decisions])
    return 0.8 * (2 * background + 0.3 * foreground) + 0.2 * classification


@pytest.mark.parametrize("settings", [{}, {"true_labels": True}, {"temperature": 0.55}])
def test_the_published_loss(model, pairs, settings):
    loss = companion(model, pairs, **settings).loss(INPUT, TARGET, cross_entropy)
    images, masks, labels = drawn(pairs)
    maps, logits = relevance_maps(model, images, labels)
    decisions = labels if "true_labels" in settings else logits.argmax(1)
    assert (logits.argmax(1) != labels).any()  # else both decisions were the same
    expected = numpy_loss(maps, masks, logits, decisions.numpy(), settings.get("temperature", 1))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_losses_of_the_masks():
    maps = torch.tensor([[[[1.0, 0.5], [0.25, 0.0]]]])
    masks = torch.tensor([[[[1.0, 0.0], [0.5, 1.0]]]])
    background, foreground = mask_losses(maps, masks)
    assert float(background) == (0.5**2 + 0.125**2) / 4
    assert float(foreground) == (0.375**2 + 1) / 4


def test_the_gradient_is_that_of_the_loss_with_da_and_decisions_held(model, pairs):
    model.double()
    loss = companion(model, pairs).loss(INPUT.double(), TARGET, cross_entropy)
    images, masks, labels = drawn(pairs)
    images, masks = images.double(), masks.double()
    weights = [model[1].blocks[1].attn.qkv.weight, model[1].patch_embed.proj.weight, model[1].blocks[0].mlp.fc1.weight]
    found = torch.autograd.grad(loss, weights)
    with attention_maps(model) as maps:
        logits = model(images)
        held = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), list(maps.values()))
    decisions = logits.argmax(1)

    def value() -> float:
        with torch.no_grad(), attention_maps(model) as maps:
            logits = model(images)
            rows = gradient_rollout(list(maps.values()), held, torch.eye(17, dtype=torch.float64)[0])[:, 1:]
        return numpy_loss(upscaled(rows.view(6, 1, 4, 4), (32, 32)), masks, logits, decisions.numpy(), 1)

    assert value() == pytest.approx(loss.item(), rel=1e-6)
    for weight, gradient in zip(weights, found, strict=True):
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-6 * direction
                ends.append(value())
                weight -= sign * 1e-6 * direction
        assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)
        assert gradient.norm() > 1e-4


def test_relevance_alone_moves_the_weights_and_the_cross_entropy_alone_is_self_training(model, pairs):
    companion(model, pairs, lambda_acc=0.0).loss(INPUT, TARGET, cross_entropy).backward()
    moved = [block.attn.qkv.weight.grad.abs().max() for block in model[1].blocks]
    assert min(moved) > 1e-6
    assert not model[1].head.weight.grad.any()  # A alone carries gradients, and no attention depends on the head
    alone = companion(model, pairs, lambda_seg=0.0).loss(INPUT, TARGET, cross_entropy)
    logits = model(drawn(pairs)[0])
    assert float(alone) == pytest.approx(0.2 * float(cross_entropy(logits, logits.argmax(1))), rel=1e-6)


def test_what_is_drawn(model, pairs, monkeypatch):
    def calls(made: RelevanceAugmentation, count: int) -> list[list[tuple[int, int, int]]]:
        found = []
        for _ in range(count):
            pairs.asked.clear()
            made.loss(INPUT, TARGET, cross_entropy)
            found.append(sorted(pairs.asked))
        return found

    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    made = companion(model, pairs)
    whole = calls(made, 3)
    assert torch.equal(torch.rand(4), expected)  # the loop's random numbers are left alone
    assert all(len({index for index, _, _ in call}) == len({seed for _, seed, _ in call}) == 6 for call in whole)
    assert all(size == 32 for call in whole for _, _, size in call)
    assert whole[0] != whole[1] != whole[2] != whole[0]
    made.rewind()
    assert calls(made, 1) == whole[2:]
    first, again = companion(model, pairs), companion(model, pairs, seed=9)
    calls(first, 1)
    again.load_state_dict(first.state_dict())
    assert calls(again, 2) == whole[1:]
    monkeypatch.setattr("ns_easyrobust.training.augmentations.base.rank", lambda: 1)
    other = calls(companion(model, pairs), 1)[0]
    assert {index for index, _, _ in other} != {index for index, _, _ in whole[0]}
    images, masks, labels = made.draw(0, 90, (32, 32))  # more than there are: all of them twice, ten a third time
    assert (images.shape, masks.shape) == ((90, 3, 32, 32), (90, 1, 32, 32))
    assert labels.bincount().sum() == 90
    taken = [index for index, _, _ in pairs.asked[-90:]]
    assert {taken.count(index) for index in range(40)} == {2, 3}


def test_dropout_is_drawn_from_seeds(pairs):
    model = small_vit(drop_rate=0.3).train()
    made = companion(model, pairs)
    first = float(made.loss(INPUT, TARGET, cross_entropy))
    made.rewind()
    assert float(made.loss(INPUT, TARGET, cross_entropy)) == first
    assert float(made.loss(INPUT, TARGET, cross_entropy)) != first


def test_the_cost_that_it_states(model, pairs):
    made = companion(model, pairs)
    images = torch.rand(6, 3, 32, 32)

    def flops(work) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    def plain() -> None:
        with attention_maps(model), torch.no_grad():  # as matrix products, which are counted
            model(images)

    counted = flops(lambda: made.loss(images, TARGET, cross_entropy).backward()) / flops(plain)
    assert counted == pytest.approx(made.cost(made.config), rel=0.05)


def test_numbers_say_what_it_works_on(model, pairs):
    made = companion(model, pairs)
    assert made.numbers == {}
    loss = made.loss(INPUT, TARGET, cross_entropy)
    images, masks, labels = drawn(pairs)
    maps = relevance_maps(model, images, labels).maps
    numbers = made.numbers
    assert numbers["inside"] == pytest.approx(float((maps * masks).sum() / maps.sum()), rel=1e-5)
    resumed = companion(model, pairs)  # at an epoch's very end, whose row of summary.csv is yet to be written
    resumed.load_state_dict(made.state_dict())
    assert resumed.numbers == numbers
    with pytest.raises(ValueError, match="39 images with masks then, 40 now"):
        resumed.load_state_dict(made.state_dict() | {"pairs": 39})
    segmentation = 2 * numbers["background"] + 0.3 * numbers["foreground"]
    assert loss.item() == pytest.approx(0.8 * segmentation + 0.2 * numbers["classification"], rel=1e-5)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", default="nowhere")
    parser.add_argument("--model", default="vit/small")
    parser.add_argument("--output", default="out")
    add_nullspace_args(parser)
    return parser.parse_args(["--aug", "relevance", *words])


def test_flags_make_the_settings():
    config = RelevanceAugmentation.config_from(parsed("--relevance-temperature", "0.65", "--relevance-classes", "500"))
    assert (config.temperature, config.classes, config.lambda_background) == (0.65, 500, 2.0)
    assert (config.images, config.masks, config.cache) == ("nowhere/train", "", "out/masks-vit_small")
    given = parsed("--relevance-images", "a", "--relevance-masks", "b", "--relevance-keep-clean")
    config = RelevanceAugmentation.config_from(given)
    assert (config.images, config.masks, config.cache, config.keep_clean) == ("a", "b", "", True)
    assert companion_costs(parsed()) == (1, 0)  # 4 in place of 3
    assert companion_costs(given) == (4, 0)


@pytest.fixture
def folders(tmp_path, digits):
    """Class folders of two images each, and masks of all."""
    from torchvision.utils import save_image

    for label, image in enumerate(digits[0][:4]):
        name = f"{'cat' if label < 2 else 'dog'}/{label}"
        for part in ("images", "masks"):
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(image, tmp_path / "images" / f"{name}.png")
        write_mask(tmp_path / "masks" / f"{name}.png", (image[0] > 0.3).numpy(), (32, 32))
    return tmp_path


def test_masks_from_a_folder_and_by_token_cut(folders, digits):
    model = small_vit(num_classes=2)
    for masks in (str(folders / "masks"), ""):
        config = RelevanceSettings(images=str(folders / "images"), masks=masks, cache=str(folders / "cut"), per_class=2)
        made = RelevanceAugmentation(model, config=config)
        assert made.loss(INPUT, TARGET, cross_entropy).isfinite()
        assert 0 < made.numbers["inside"] < 1
        assert len(made.pairs) <= 4
        assert (folders / "cut" / "sheet.png").exists() == (not masks)


def test_its_example(folders):
    names = {"data_dir": folders, "tmp_dir": folders, "model": small_vit(num_classes=2), "torch": torch}
    (folders / "images").rename(folders / "train")
    (folders / "masks").rename(folders / "others")
    names |= {"images": INPUT, "labels": TARGET}
    (example,) = doctest.DocTestFinder(recurse=False).find(RelevanceAugmentation, "relevance", globs=names)
    differences: list[str] = []
    tried = doctest.DocTestRunner(verbose=False).run(example, out=differences.append)
    assert tried.attempted == 6
    assert not differences, "".join(differences)


def test_bad_input_ends_in_one_line(folders, capsys, monkeypatch):
    images = str(folders / "images")

    def refusal(*words: str) -> str:
        monkeypatch.setattr("ns_easyrobust.training.trainer.read_start", lambda args: pytest.fail("too late"))
        flags = ["train", "--aug", "relevance", "--data-dir", str(folders), "--model", "vit_micro_patch8_32"]
        assert cli.main([*flags, *words]) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        return said

    assert "train: expected a folder of images, found none" in refusal()
    assert "nowhere: expected a folder" in refusal("--relevance-images", images, "--relevance-masks", "nowhere")
    assert "expected a folder for each class" in refusal("--relevance-images", f"{images}/cat")
    wrong = refusal("--relevance-images", images, "--relevance-masks", str(folders))
    assert "masks in folders named as the classes" in wrong
    assert "found images, masks" in wrong
    assert "expected a number >= 0" in refusal("--relevance-lambda-seg", "-1")
    assert "tau: expected a cosine from -1 to below 1, found 1.0" in refusal("--relevance-tau", "1")
    assert "weights of 0 alone" in refusal("--relevance-lambda-seg", "0", "--relevance-lambda-acc", "0")


def test_bad_settings_and_models_are_refused(model, pairs, digits):
    for settings, said in (
        ({"lambda_acc": -0.1}, "lambda_acc: expected a weight >= 0, found -0.1"),
        ({"lambda_background": math.nan}, "lambda_background"),
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
        ({"per_class": 0}, "per_class"),
    ):
        with pytest.raises(OptionError, match=said):
            RelevanceSettings(**settings)
    with pytest.raises(OptionError, match="images: expected a folder"):
        RelevanceAugmentation(model)
    with pytest.raises(ModelError, match="no blocks whose attention can be read"):
        companion(small_vit(arch="swin_micro_patch2_32"), pairs)
    with pytest.raises(ModelError, match="normalisation in front"):
        companion(small_vit()[1], pairs)
    with pytest.raises(DataError, match=r"expected squares, .* found 32 x 16"):
        companion(model, pairs).loss(INPUT[..., :16], TARGET, cross_entropy)
    with pytest.raises(OptionError, match="relevance and replacing"), pytest.MonkeyPatch.context() as patch:
        replacing = type("Replacing", (RelevanceAugmentation,), {"name": "replacing"})
        registered = {"relevance": RelevanceAugmentation, "replacing": replacing}
        patch.setattr("ns_easyrobust.training.augmentations.flags.augmentations", lambda: registered)
        patch.setattr(module, "list_folder", lambda folder: (["cat"], []))
        args = parsed()
        args.aug = "relevance,replacing"
        check_augmentation_args(args)


@pytest.mark.stress
def test_relevance_moves_into_the_masks_at_no_cost_of_accuracy(digits):
    """Digits whose background tells half of the classes: trained on both, then finetuned by RobustViT."""
    images, labels = digits
    training = DigitsOnTexture(images[:1297], labels[:1297], misled=0.5)
    tested = DigitsOnTexture(images[1297:], labels[1297:], seed=1)
    model = small_vit()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        batch = torch.randint(1297, (64,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(training.images[batch]), training.labels[batch]).backward()
        optimizer.step()

    def measured() -> tuple[float, float]:
        """Share of relevance inside the masks of held-out images, and top-1 accuracy, in percent."""
        model.eval()
        maps, logits = relevance_maps(model, tested.images, tested.labels)
        share = (maps * tested.masks).sum((1, 2, 3)) / maps.sum((1, 2, 3)).clamp_min(1e-9)
        return 100 * share.mean().item(), 100 * (logits.argmax(1) == tested.labels).float().mean().item()

    before = measured()
    model.train()
    made = companion(model, training)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-4)
    for _ in range(300):
        optimizer.zero_grad()
        made.loss(training.images[:32], training.labels[:32], cross_entropy).backward()
        optimizer.step()
    after = measured()
    print(f"inside the masks {before[0]:.1f}% -> {after[0]:.1f}%, accuracy {before[1]:.1f}% -> {after[1]:.1f}%")
    assert before[1] > 70
    assert after[0] > before[0] + 3
    assert after[1] > before[1] - 2
