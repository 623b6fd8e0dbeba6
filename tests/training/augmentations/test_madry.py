from __future__ import annotations

import pytest
import torch
from helpers.costs import counted
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.attacks import PGD, AutoAttack
from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.training.augmentations.joined import part_loss
from ns_easyrobust.training.augmentations.madry import Madry, MadrySettings
from ns_easyrobust.training.augmentations.trades import Trades, TradesSettings
from ns_easyrobust.training.options import build_parser
from ns_easyrobust.utils.seeding import fork_rng

cross_entropy = nn.functional.cross_entropy


class TwoClasses(nn.Sequential):
    """Logits W x, with W drawn from N(0, 1)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(nn.Flatten(), nn.Linear(48, 2, bias=False))
        nn.init.normal_(self[1].weight, generator=torch.Generator().manual_seed(seed))

    def other_minus(self, labels: torch.Tensor) -> torch.Tensor:
        """w_other - w_y of each label, (B, 3, 4, 4): where the loss grows."""
        return (self[1].weight[1 - labels] - self[1].weight[labels]).detach().view(-1, 3, 4, 4)


@pytest.fixture
def batch(digits):
    return digits[0][1297:1313].clone(), digits[1][1297:1313]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("settings", [{}, {"random_start": False, "steps": 4}, {"best": True}])
def test_a_linear_models_images_go_to_the_corner_of_the_ball(settings, soft):
    model, labels = TwoClasses(), torch.tensor([0, 1, 1, 0, 1])
    pixels = torch.full((5, 3, 4, 4), 0.5) + torch.linspace(-0.3, 0.3, 48).view(3, 4, 4)
    target = nn.functional.one_hot(labels, 2).float() if soft else labels
    attacked = Madry(model, config=MadrySettings(**settings)).attack(pixels, target)
    change = torch.where(model.other_minus(labels) > 0, 8 / 255, -8 / 255)
    assert torch.equal(attacked, pixels + change)
    white = Madry(model, config=MadrySettings(**settings)).attack(torch.ones(5, 3, 4, 4), target)
    assert torch.equal(white, 1 + change.clamp_max(0))


@pytest.mark.parametrize("random_start", [True, False])
def test_the_images_are_those_of_torchattacks(trained, batch, random_start):
    torchattacks = pytest.importorskip("torchattacks")
    images, labels = batch
    config = MadrySettings(random_start=random_start)
    with fork_rng(3):
        attacked = Madry(trained.train(), config=config).attack(images, labels)
    with fork_rng(3):
        expected = torchattacks.PGD(trained.eval(), eps=8 / 255, alpha=2 / 255, steps=10, random_start=random_start)(
            images, labels
        )
    assert torch.equal(attacked, expected)  # also the gradients' scale: of a sum and, for 16 images, of a mean
    assert (attacked - images).abs().max() == pytest.approx(8 / 255, abs=1e-6)


def test_the_best_iterate_is_that_of_the_largest_loss(trained, batch):
    images, labels = batch
    config = MadrySettings(best=True, random_start=False, steps=6, step_size=0.1, epsilon=0.1)  # too long a step
    seen = []
    handle = trained.register_forward_hook(lambda module, args, logits: seen.append((args[0].detach(), logits)))
    best = Madry(trained, config=config).attack(images, labels)
    handle.remove()
    assert len(seen) == 7
    losses = torch.stack([cross_entropy(logits, labels, reduction="none").detach() for _, logits in seen])
    winners = losses.argmax(0)
    assert torch.equal(best, torch.stack([seen[winner][0][i] for i, winner in enumerate(winners)]))
    assert len(winners.unique()) > 1
    last = Madry(trained, config=MadrySettings(random_start=False, steps=6, step_size=0.1, epsilon=0.1))
    assert torch.equal(last.attack(images, labels), seen[-1][0])


@pytest.mark.parametrize("alone", [False, True])
def test_the_loss_is_the_loops_on_the_attacked_images_in_the_models_mode(trained, batch, alone):
    images, labels = batch
    model = trained.train()
    config = MadrySettings(alone=True, random_start=False) if alone else MadrySettings(beta=0.3, random_start=False)
    madry = Madry(model, config=config)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.2)
    loss = madry.loss(images, labels, smoothed)
    expected = smoothed(model(madry.attack(images, labels)), labels)
    assert torch.equal(loss, expected if alone else 0.3 * expected)
    assert madry.replaces_clean is alone
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_beta_0_is_plain_training_bit_for_bit(batch):
    gradients = []
    for beta in (None, 0.0):
        model = small_vit(drop_rate=0.2).train()
        with fork_rng(1):
            loss = cross_entropy(model(batch[0]), batch[1])
            if beta is not None:
                loss = loss + Madry(model, config=MadrySettings(beta=beta)).loss(*batch, cross_entropy)
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(
    ("settings", "equivalents"),
    [({}, 23), ({"steps": 7, "alone": True}, 17), ({"steps": 7, "alone": True, "best": True}, 18)],
)
def test_cost(trained, batch, settings, equivalents):
    madry = Madry(trained.train(), config=MadrySettings(**settings))
    with counted(trained) as count:
        madry.loss(*batch, cross_entropy).backward()
    assert count.equivalents == Madry.cost(madry.config) == equivalents
    assert count.modes == [False] * (len(count.modes) - 1) + [True]


def test_leaves_the_model_and_the_loops_random_numbers_alone(batch):
    model = small_vit(drop_rate=0.5).train()
    model[1].blocks[0].eval()  # as a loop that freezes a part of it
    model[1].head.bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    madry = Madry(model)
    first, second = (madry.loss(*batch, cross_entropy).item() for _ in range(2))
    assert torch.equal(torch.rand(4), expected)
    assert first != second
    assert [module.training for module in model.modules()] == modes
    assert not model[1].head.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [Madry, Trades])
def test_mixed_precision_keeps_every_gradient(trained, batch, kind):
    """Weights that autocast converts during an attack without gradients would stay without them in its cache."""
    images, labels = batch
    trained.train()
    losses = []
    config = kind.Settings(best=True) if kind is Madry else kind.Settings(form="original")
    for enabled in (True, False):
        trained.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = kind(trained, config=config).loss(images, labels, cross_entropy)
        loss.backward()
        losses.append(loss.item())
        assert all(parameter.grad.abs().sum() > 0 for parameter in trained.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.4)  # about as strong an attack


@pytest.mark.parametrize("kind", [Madry, Trades])
def test_float16_attacks_images_that_the_model_is_sure_of(batch, kind):
    """Below the model, gradients of less than 6e-8 are 0 in float16; half of the pixels would stay."""
    model, images = (
        small_vit().eval(),
        0.25 + 0.5 * torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        model[1].head.weight.mul_(300)
        confidence = model(images).softmax(1).amax(1)
        labels = model(images).argmax(1)
    assert confidence.max() > 1 - 1e-5
    attack = kind(model, config=kind.Settings(steps=1)).attack
    with torch.autocast("cpu", torch.float16), fork_rng(0):
        attacked = attack(images, labels) if kind is Madry else attack(images)
    with fork_rng(0):
        start = images + (images.new_empty(images.shape).uniform_(-8 / 255, 8 / 255) if kind is Madry else 0)
    assert ((attacked - start).abs() > 1e-4).float().mean() > 0.98


def test_half_precision_models_get_whole_steps():
    """Beside 1 - 1/256, bfloat16 has no room for 1/255."""
    model, pixels = TwoClasses().bfloat16(), torch.full((2, 3, 4, 4), 0.9, dtype=torch.bfloat16)
    config = MadrySettings(epsilon=1 / 255, step_size=0.1 / 255, random_start=False)
    attacked = Madry(model, config=config).attack(pixels, torch.tensor([0, 1]))
    assert attacked.dtype == torch.bfloat16
    assert ((attacked - pixels).sign() == model.other_minus(torch.tensor([0, 1])).sign()).all()


@pytest.mark.parametrize("kind", [Madry, Trades])
def test_pixels_outside_0_to_1_are_refused(trained, batch, kind):
    with pytest.raises(DataError, match=r"expected pixels in \[0, 1\], found \[-1, 1\]. Normalise inside the model"):
        kind(trained).loss(2 * batch[0] - 1, batch[1], cross_entropy)
    args = build_parser().parse_args(["--erase-outside", "--reprob", "0.25"])
    with pytest.raises(OptionError, match=f"erase_outside: expected erased pixels inside .* {kind.name} has its"):
        kind.check(args)
    kind.check(build_parser().parse_args(["--erase-outside"]))  # which erases nothing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 8}, "expected epsilon in pixels of .* found 8. Divide it by 255"),
        ({"epsilon": -0.1}, "expected epsilon >= 0"),
        ({"step_size": 2}, "expected step_size in pixels"),
        ({"steps": 0}, "expected steps >= 1, found 0"),
        ({"beta": float("nan")}, "expected beta >= 0, found nan"),
    ],
)
@pytest.mark.parametrize("kind", [MadrySettings, TradesSettings])
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(OptionError, match=f"{kind.method}: {message}"):
        kind(**settings)


def test_other_bad_input(batch):
    with pytest.raises(OptionError, match="expected no beta with alone"):
        MadrySettings(alone=True, beta=6.0)
    with pytest.raises(OptionError, match="trades: expected noise in pixels"):
        TradesSettings(noise=2)

    with pytest.raises(DataError, match="madry: expected a target for each image, found 2 for 3 images"):
        Madry(TwoClasses()).loss(torch.rand(3, 3, 4, 4), torch.tensor([0, 1]), cross_entropy)

    class Rounds(TwoClasses):
        def forward(self, images):
            return super().forward(images.detach())

    with pytest.raises(ModelError, match="madry: expected logits with a gradient to the pixels"):
        Madry(Rounds()).loss(torch.rand(2, 3, 4, 4), torch.tensor([0, 1]), cross_entropy)


def finetuned(start: dict, data, kind, updates: int = 60) -> nn.Module:
    """A small ViT after ``updates`` on the same batches, with a companion loss or (None) without."""
    images, labels = data
    model = small_vit(img_size=16, depth=2)
    model.load_state_dict(start)
    companion = None if kind is None else kind(model)
    optimizer, generator = torch.optim.AdamW(model.parameters(), 1e-3), torch.Generator().manual_seed(1)
    for _ in range(updates):
        index = torch.randint(1297, (64,), generator=generator)
        output = model(images[index])
        loss = cross_entropy(output, labels[index])
        if companion is not None:
            loss = loss + part_loss(companion, images[index], labels[index], cross_entropy, output)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.stress
@pytest.mark.parametrize("kind", [Madry, Trades])
def test_accuracy_under_pgd_and_autoattack_rises(digits, kind):
    """At equal updates from the same start, on 200 digits of 16 x 16 pixels; prints the figures (-s).

    Plain finetuning is attacked by PGD alone, which bounds its accuracy under attack from above.
    """
    data = nn.functional.interpolate(digits[0], size=16, mode="area"), digits[1]
    images, labels = (part[1297:1497] for part in data)
    start = finetuned(small_vit(img_size=16, depth=2).state_dict(), data, None, updates=350).state_dict()

    def accuracy(model: nn.Module, attack: PGD | AutoAttack | None) -> float:
        with fork_rng(0):
            pixels = images if attack is None else attack(model, images, labels, range(200))
        with torch.no_grad():
            return 100 * float((model(pixels).argmax(1) == labels).float().mean())

    plain, model = finetuned(start, data, None), finetuned(start, data, kind)
    attacks = None, PGD(epsilon=8 / 255), AutoAttack(epsilon=8 / 255)
    clean, under_pgd, under_autoattack = (accuracy(model, attack) for attack in attacks)
    plain_clean, plain_under_pgd = (accuracy(plain, attack) for attack in attacks[:2])
    print(f"plain {plain_clean:.1f} clean, {plain_under_pgd:.1f} under PGD; {kind.name} {clean:.1f} clean, ", end="")
    print(f"{under_pgd:.1f} under PGD, {under_autoattack:.1f} under AutoAttack")
    assert clean > plain_clean - 2
    assert min(under_pgd, under_autoattack) > plain_under_pgd + 5
