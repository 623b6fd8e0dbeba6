from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from ns_easyrobust import judging, trials
from ns_easyrobust.images import ImageList
from ns_easyrobust.judging import Part, Trial, judge, outputs_of
from ns_easyrobust.recorder import Recorder
from ns_easyrobust.records import read_records
from ns_easyrobust.vit import with_normalization


class Reader(nn.Module):
    """The class is the red value / 20; every forward of the model is counted."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(255 / 20))
        self.seen = []

    def forward(self, pixels):
        self.seen.append(len(pixels))
        return -(pixels[:, 0, :1, 0] * self.scale - torch.arange(5.0)).square()


def write(folder, reds):
    folder.mkdir(parents=True)
    for number, red in enumerate(reds):
        Image.new("RGB", (4, 4), (20 * red, 0, 0)).save(folder / f"{number:02}.png")
    names = tuple(f"{n:02}.png" for n in range(len(reds)))
    return ImageList(folder, names, tuple(n % 5 for n in range(len(reds))), 5, transforms.ToTensor())


@pytest.fixture
def lists(tmp_path):
    """Three folders of 11, 7 and 12 images with 2, 0 and 5 of them showing another class."""
    plan = {"one": (11, {3, 10}), "two": (7, set()), "three": (12, {0, 1, 2, 3, 4})}
    return [write(tmp_path / name, [(i + (i in wrong)) % 5 for i in range(n)]) for name, (n, wrong) in plan.items()]


def recorder(path, **options):
    return Recorder(path, {"label": "m", "model": "m", "seed": 3}, **options)


def parts(lists, attack=None, batch_size=4):
    """One part a list: the clean images, and one with noise that depends on the batch's seed."""

    def noisy(model, pixels, labels, seeds):
        if attack is not None:
            attack()
        return (pixels + 0.06 * torch.rand(pixels.shape)).clamp(0, 1)

    return [
        Part(partial(lambda images: images, images), batch_size, [trials.clean(f"s{i}"), Trial(f"n{i}", attack=noisy)])
        for i, images in enumerate(lists)
    ]


def plain(path):
    return [json.loads(replace(record, created="2026-01-01T00:00:00+00:00").to_json()) for record in read_records(path)]


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_through_one_loader_are_counted_each_by_itself(lists, tmp_path, workers):
    found = judge(Reader(), parts(lists), workers=workers, recorder=recorder(tmp_path / "r.jsonl"))
    assert [(clean.correct, clean.n) for clean, _ in found] == [(9, 11), (7, 7), (7, 12)]
    assert any(noisy.correct != clean.correct for clean, noisy in found)
    records = read_records(tmp_path / "r.jsonl")
    assert [(r.suite, r.correct) for r in records if r.suite[0] == "s"] == [("s0", 9), ("s1", 7), ("s2", 7)]
    assert not (tmp_path / "r.jsonl.unfinished").exists()


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_records(lists, tmp_path, stop):
    (tmp_path / "whole").mkdir()
    judge(Reader(), parts(lists), workers=0, recorder=recorder(tmp_path / "whole" / "r.jsonl"), seed=3)
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt

    (tmp_path / "cut").mkdir()
    path = tmp_path / "cut" / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        judge(Reader(), parts(lists, interrupt), workers=0, recorder=recorder(path), seed=3)
    # As a kill in the middle of a line leaves it.
    journal = sorted((tmp_path / "cut" / "r.jsonl.unfinished").glob("*.jsonl"))[0]
    journal.write_bytes(journal.read_bytes()[:-3])
    model, again = Reader(), []
    judge(model, parts(lists, lambda: again.append(1)), workers=0, recorder=recorder(path), seed=3)
    assert plain(path) == plain(tmp_path / "whole" / "r.jsonl")
    assert len(again) <= 8 - stop + 1  # 8 batches in all; at most the torn line's is judged twice
    assert sum(model.seen) < 2 * 30
    assert not (tmp_path / "cut" / "r.jsonl.unfinished").exists()


def test_what_is_recorded_is_not_measured_again_unless_asked(lists, tmp_path):
    path = tmp_path / "r.jsonl"
    first = judge(Reader(), parts(lists), workers=0, recorder=recorder(path))
    model = Reader()
    assert judge(model, parts(lists), workers=0, recorder=recorder(path)) == first
    assert model.seen == []
    assert len(read_records(path)) == 6
    judge(model, parts(lists, batch_size=3), workers=0, recorder=recorder(path))  # another protocol
    assert sum(model.seen) == 2 * 30
    judge(model, parts(lists), workers=0, recorder=recorder(path, again=True))
    assert sum(model.seen) == 4 * 30
    assert len(read_records(path)) == 18


def test_another_seed_images_or_weights_are_measured_anew(lists, tmp_path):
    path, model = tmp_path / "r.jsonl", Reader()
    judge(model, parts(lists[:1]), workers=0, recorder=recorder(path))
    for changed in (
        replace(recorder(path), common={"label": "m", "model": "m", "seed": 4}),
        replace(recorder(path), common={"label": "m", "model": "m", "seed": 3, "checkpoint_sha256": "ab"}),
        replace(recorder(path), protocol={"mean": [0.5]}),
    ):
        before = len(model.seen)
        judge(model, parts(lists[:1]), workers=0, recorder=changed)
        assert len(model.seen) > before
    before = len(model.seen)
    judge(model, parts([lists[0].take(range(9))]), workers=0, recorder=recorder(path))
    assert len(model.seen) > before


def test_clean_logits_of_fgsms_own_forward_are_those_of_a_forward_without(trained, digits, monkeypatch, tmp_path):
    images, labels = digits[0][1300:1340], digits[1][1300:1340]
    folder = tmp_path / "digits"
    folder.mkdir()
    names = []
    for i, image in enumerate(images):
        transforms.ToPILImage()(image).save(folder / f"{i:02}.png")
        names.append(f"{i:02}.png")
    listed = ImageList(folder, tuple(names), tuple(labels.tolist()), 10, transforms.ToTensor())
    forwards = []
    trained[0].register_forward_hook(lambda *_: forwards.append(1))

    def run(tried):
        forwards.clear()
        found = judge(trained, [Part(lambda: listed, 40, tried)], workers=0)[0]
        return [outcome.correct for outcome in found], len(forwards)

    (clean,), alone = run([trials.clean("c")])
    (attacked,), attack_alone = run([trials.fgsm(8 / 255)])
    both, together = run([trials.clean("c"), trials.fgsm(8 / 255)])
    assert both == [clean, attacked]
    assert attacked < clean
    assert together == attack_alone == alone + 1
    seen = []
    monkeypatch.setattr(
        judging.ImageList, "predictions_right", lambda self, logits, labels: seen.append(logits) or labels >= 0
    )
    run([trials.clean("c"), trials.fgsm(8 / 255)])
    run([trials.clean("c")])
    assert torch.equal(seen[1], seen[2])  # FGSM goes first, then the images as they are


def test_outputs_are_counted_by_a_forward_that_leaves_the_model_alone():
    model = with_normalization(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12, 7)), (0.5,) * 3, (0.5,) * 3)
    model.train()
    assert outputs_of(model, torch.zeros(3, 2, 2)) == 7
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
