from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from ns_easyrobust.attacks.base import Attack
from ns_easyrobust.attacks.gradient import CW, FGSM
from ns_easyrobust.attacks.patch_fool import PatchFoolConfig
from ns_easyrobust.data.benchmarks import class_folders
from ns_easyrobust.data.image_list import ImageList
from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.evaluation import judging
from ns_easyrobust.evaluation.judging import judge
from ns_easyrobust.evaluation.recorder import Recorder
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.evaluation.task import EvaluationTask, Measurement, outputs_of
from ns_easyrobust.models.normalization import with_normalization
from ns_easyrobust.report.table import ResultsTable

TENSOR = transforms.ToTensor()


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


def tasks(lists, attack=None, batch_size=4):
    """One task a list: the clean images, and one with noise that depends on the batch's seed."""

    @dataclass(frozen=True)
    class Noisy(Attack):
        name: str
        draws = True

        def __call__(self, model, pixels, labels, seeds):
            if attack is not None:
                attack()
            return (pixels + 0.06 * torch.rand(pixels.shape)).clamp(0, 1)

        def protocol(self):
            return {}

    return [
        EvaluationTask(
            partial(lambda images: images, images),
            TENSOR,
            batch_size,
            [Measurement(f"s{i}"), Measurement.under(Noisy(f"n{i}"))],
        )
        for i, images in enumerate(lists)
    ]


def plain(path):
    return [json.loads(replace(record, created="2026-01-01T00:00:00+00:00").to_json()) for record in read_records(path)]


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_through_one_loader_are_counted_each_by_itself(lists, tmp_path, workers):
    found = judge(Reader(), tasks(lists), workers=workers, recorder=recorder(tmp_path / "r.jsonl"))
    assert [(clean.correct, clean.n) for clean, _ in found] == [(9, 11), (7, 7), (7, 12)]
    assert any(noisy.correct != clean.correct for clean, noisy in found)
    records = read_records(tmp_path / "r.jsonl")
    assert [(r.suite, r.correct) for r in records if r.suite[0] == "s"] == [("s0", 9), ("s1", 7), ("s2", 7)]
    assert not (tmp_path / "r.jsonl.unfinished").exists()


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_records(lists, tmp_path, stop, caplog):
    (tmp_path / "whole").mkdir()
    judge(Reader(), tasks(lists), workers=0, recorder=recorder(tmp_path / "whole" / "r.jsonl"), seed=3)
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt

    (tmp_path / "cut").mkdir()
    path = tmp_path / "cut" / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        judge(Reader(), tasks(lists, interrupt), workers=0, recorder=recorder(path), seed=3)
    # As a kill in the middle of a line leaves it.
    journal = sorted((tmp_path / "cut" / "r.jsonl.unfinished").glob("*.jsonl"))[0]
    journal.write_bytes(journal.read_bytes()[:-3])
    model, again = Reader(), []
    with caplog.at_level("INFO"):
        judge(model, tasks(lists, lambda: again.append(1)), workers=0, recorder=recorder(path), seed=3)
    assert ("of an unfinished run" in caplog.text) == (stop in (1, 7)), "3 and 5 end a task"
    assert plain(path) == plain(tmp_path / "whole" / "r.jsonl")
    assert len(again) <= 8 - stop + 1  # 8 batches in all; at most the torn line's is judged twice
    assert sum(model.seen) < 2 * 30
    assert not (tmp_path / "cut" / "r.jsonl.unfinished").exists()


def test_what_is_recorded_is_not_measured_again_unless_asked(lists, tmp_path):
    path = tmp_path / "r.jsonl"
    first = judge(Reader(), tasks(lists), workers=0, recorder=recorder(path))
    model = Reader()
    assert judge(model, tasks(lists), workers=0, recorder=recorder(path)) == first
    assert model.seen == []
    assert len(read_records(path)) == 6
    judge(model, tasks(lists, batch_size=3), workers=0, recorder=recorder(path))  # another protocol
    assert sum(model.seen) == 2 * 30
    judge(model, tasks(lists), workers=0, recorder=recorder(path, remeasure=True))
    assert sum(model.seen) == 4 * 30
    assert len(read_records(path)) == 18


def test_another_seed_images_or_weights_are_measured_anew(lists, tmp_path):
    path, model = tmp_path / "r.jsonl", Reader()

    def judged(images=lists[0], who=None, **options):
        model.seen.clear()
        judge(model, tasks([images]), workers=0, recorder=who or recorder(path), **options)
        return sum(model.seen)

    assert (judged(), judged()) == (22, 0)
    assert judged(seed=4) == 11  # the clean images draw nothing
    assert judged(dtype=torch.bfloat16) == 22
    assert judged(who=replace(recorder(path), common={"label": "m", "model": "m", "checkpoint_sha256": "ab"})) == 22
    assert judged(who=replace(recorder(path), protocol={"mean": [0.5]})) == 22
    assert judged(images=lists[0].take(range(9))) == 18
    assert judged(images=replace(lists[0], labels=(1, *lists[0].labels[1:]))) == 22  # as after mending a label file
    seeds = {r.suite[0]: set() for r in read_records(path)}
    for record in read_records(path):
        seeds[record.suite[0]].add(record.seed)
    assert seeds == {"s": {None}, "n": {0, 4}}
    assert {r.protocol["dtype"] for r in read_records(path)} == {"float32", "bfloat16"}


def test_weights_in_memory_are_told_apart(lists, tmp_path):
    path, model = tmp_path / "r.jsonl", Reader()
    (((first, _), *_), (again, *_)) = [judge(model, tasks(lists), workers=0, recorder=recorder(path)) for _ in range(2)]
    assert first == again[0]
    seen = len(model.seen)
    model.scale.data.mul_(0)  # trained on, so to speak
    ((after, _), *_) = judge(model, tasks(lists), workers=0, recorder=recorder(path))
    assert len(model.seen) > seen
    assert after.correct == 3 != first.correct  # by hand: labels 0 among 11 images counted modulo 5
    names = {r.weights for r in read_records(path) if r.suite == "s0"}
    assert len(names) == 2
    named = replace(recorder(path), common={"label": "m", "model": "m", "checkpoint_sha256": "ab", "weights": "w"})
    judge(model, tasks(lists[:1]), workers=0, recorder=named)
    assert read_records(path)[-1].weights == "w"


def test_what_is_taken_from_the_records_is_what_the_table_shows(trained, digits_dir, tmp_path):
    path = tmp_path / "r.jsonl"
    images = class_folders(digits_dir / "imagenet-val", 10).take(range(0, 500, 25))

    def run(batch, dtype=torch.float32, radii=(0.5,)):
        task = EvaluationTask(
            lambda: images, TENSOR, batch, [Measurement("imagenet-val"), Measurement.under(CW(radii, steps=3))], {}
        )
        judge(trained, [task], workers=0, dtype=dtype, recorder=recorder(path))
        return ResultsTable(read_records(path))

    def shown(grid):
        return {(c.suite, c.metric, c.protocol.get("radius")): r for c, r in grid.row_records(grid.rows[0])}

    before = shown(run(10))
    between = shown(run(20, torch.bfloat16))
    length = len(read_records(path))
    after = shown(run(10))
    again = shown(run(10))
    assert len(before) == 4
    for key, record in before.items():
        assert record.protocol["batch_size"] != between[key].protocol["batch_size"]
        assert replace(after[key], created=record.created) == record
        assert again[key] == after[key]
    assert len(read_records(path)) == length + 4, "made the newest once, and not again where they are it"


def test_a_negative_seed_is_refused(lists):
    with pytest.raises(OptionError, match="seed: expected a whole number >= 0, found -1"):
        judge(Reader(), tasks(lists), workers=0, seed=-1)


def test_a_broken_link_is_named(tmp_path):
    listed = write(tmp_path / "x", [0, 1, 2])
    (tmp_path / "x" / "01.png").unlink()
    (tmp_path / "x" / "01.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"01\.png: expected an image, found: No such file"):
        judge(Reader(), tasks([listed]), workers=0)


def test_a_transform_that_words_do_not_describe_is_never_taken_from_the_records(lists, tmp_path):
    path, model = tmp_path / "r.jsonl", Reader()
    for darker in (1.0, 0.5):
        changed = transforms.Compose([TENSOR, transforms.Lambda(lambda pixels, by=darker: pixels * by)])
        task = EvaluationTask(lambda: lists[1], changed, 4, [Measurement("s")])
        judge(model, [task], workers=2 if darker == 1 else 0, recorder=recorder(path))  # a lambda reaches workers
    assert [(r.correct, r.protocol["resize"]) for r in read_records(path)] == [(7, None), (2, None)]
    assert "Lambda()" in read_records(path)[0].protocol["transform"]


def test_a_journal_that_a_kill_left_beside_its_record_goes(lists, tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "forget", lambda self, key: None)
        judge(Reader(), tasks(lists[:1]), workers=0, recorder=recorder(path))
    assert list(tmp_path.glob("*.unfinished/*"))
    judge(Reader(), tasks(lists[:1]), workers=0, recorder=recorder(path))
    assert not list(tmp_path.glob("*.unfinished"))


def test_records_beside_the_first_are_made_when_they_are_asked_for_later(trained, digits_dir, tmp_path):
    digits = class_folders(digits_dir / "imagenet-val", 10)
    for radii in ((), (0.5,), (0.5, 1.0), (0.5,)):
        task = EvaluationTask(lambda: digits.take(range(20)), TENSOR, 20, [Measurement.under(CW(radii, steps=5))])
        judge(trained, [task], workers=0, recorder=recorder(tmp_path / "r.jsonl"))
    found = [r.protocol["radius"] for r in read_records(tmp_path / "r.jsonl") if r.metric == "top1"]
    assert found == ["unbounded", 0.5, 1.0]


def test_float16_is_refused_for_attacks(lists):
    with pytest.raises(OptionError, match="expected float32 or bfloat16 for attacks"):
        judge(Reader(), tasks(lists), workers=0, dtype=torch.float16)


def test_a_model_that_misstates_its_outputs_is_refused(lists):
    model = Reader()
    wrong = replace(lists[0], outputs=7)
    with pytest.raises(ModelError, match="expected 7 logits, found 5"):
        judge(model, tasks([wrong]), workers=0)


def test_images_of_several_sizes_are_named(lists, tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "one" / "03.png")
    with pytest.raises(DataError, match=r"one size, found \(3, 4, 4\) .*, \(3, 6, 4\) \(03.png\)"):
        judge(Reader(), tasks(lists[:1]), workers=0)


def test_exact_patchfool_does_not_depend_on_the_batch(trained, digits_dir):
    digits = class_folders(digits_dir / "imagenet-val", 10).take(range(0, 500, 25))
    config = PatchFoolConfig(mode="exact", loss="ce", select="random", steps=4)
    found = set()
    for batch_size in (3, 20):
        task = EvaluationTask(lambda: digits, TENSOR, batch_size, [Measurement.under(config)])
        found.add(judge(trained, [task], workers=0)[0][0].correct)
    assert len(found) == 1


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
        found = judge(trained, [EvaluationTask(lambda: listed, TENSOR, 40, tried)], workers=0)[0]
        return [outcome.correct for outcome in found], len(forwards)

    (clean,), alone = run([Measurement("c")])
    (attacked,), attack_alone = run([Measurement.under(FGSM(8 / 255))])
    both, together = run([Measurement("c"), Measurement.under(FGSM(8 / 255))])
    assert both == [clean, attacked]
    assert attacked < clean
    assert together == attack_alone == alone + 1
    assert (
        run([Measurement.under(FGSM(4 / 255)), Measurement("c"), Measurement.under(FGSM(8 / 255))])[1] == 2 * together
    )
    seen = []
    monkeypatch.setattr(
        judging.ImageList, "correct_predictions", lambda self, logits, labels: seen.append(logits) or labels >= 0
    )
    run([Measurement("c"), Measurement.under(FGSM(8 / 255))])
    run([Measurement("c")])
    assert torch.equal(seen[0], seen[2])  # the unattacked images come first, with logits from FGSM's forward


def test_outputs_are_counted_by_a_forward_that_leaves_the_model_alone():
    model = with_normalization(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12, 7)), (0.5,) * 3, (0.5,) * 3)
    model.train()
    assert outputs_of(model, torch.zeros(3, 2, 2)) == 7
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
