"""The tree of planted errors and its reader: what other tests count by has to be exact itself."""

from __future__ import annotations

import io
import json

import pytest
import torch
from helpers.processes import load_script
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from ns_easyrobust.data import benchmarks
from ns_easyrobust.data.image_list import Subset
from ns_easyrobust.data.transforms import Preprocessing

script = load_script("make_benchmark_tree")


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("JPEG", {"quality": 95})])
@pytest.mark.parametrize(
    ("transform", "step"),
    [(transforms.ToTensor(), 3), (Preprocessing(32, 32 / 36).transform(), 7), (Preprocessing().transform(), 97)],
)
def test_a_colour_survives_file_format_resizing_and_cropping(form, options, transform, step):
    codes = [(shows, flag) for shows in range(1000) for flag in range(script.FLAGS)][::step]
    pixels = []
    for code in codes:
        file = io.BytesIO()
        Image.new("RGB", (42, 36), script.colour(*code)).save(file, form, **options)
        pixels.append(transform(Image.open(file)))
    model = script.ReadsPixels()
    with torch.no_grad():
        answers = torch.cat([model(torch.stack(pixels[i : i + 250])) for i in range(0, len(pixels), 250)]).argmax(-1)
    assert answers.tolist() == [script.answer(*code) for code in codes]


def test_what_a_flag_answers():
    from ns_easyrobust.data.imagenet import imagenet_a_classes, imagenet_r_classes

    for shows, in_some in [(imagenet_a_classes()[0], True), (999, False), (0, False)]:
        answers = [script.answer(shows, flag) for flag in range(script.FLAGS)]
        assert answers[:2] == [shows, (shows + 1) % 1000]
        assert shows not in answers[1:]
        assert answers[2] not in imagenet_a_classes() + imagenet_r_classes()
        assert answers[3] in set(imagenet_a_classes()) & set(imagenet_r_classes())
        pixels = torch.tensor([script.colour(shows, flag) for flag in range(script.FLAGS)])[:, :, None, None] / 255
        second = script.ReadsPixels()(pixels).topk(2).indices[:, 1].tolist()
        assert second[2:] == [shows, shows]
        assert in_some == (shows in imagenet_a_classes())


def test_a_step_of_one_level_has_a_gradient_and_changes_nothing():
    model = script.ReadsPixels(50)
    pixels = (torch.tensor([script.colour(c, 0) for c in range(50)])[:, :, None, None] / 255).expand(-1, -1, 4, 4)
    pixels = (pixels + torch.tensor([1, -1, 1])[:, None, None] / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(pixels), torch.arange(50)), pixels)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    attacked = (pixels + gradient.sign() / 255).clamp(0, 1)
    assert model(attacked).argmax(-1).tolist() == list(range(50))


def test_the_plan_is_what_lies_there(tree, reads_pixels):
    root, planted = tree
    assert json.loads((root / "planted.json").read_text()).keys() == planted.keys()
    assert len(planted) == 9 + 75
    thousands = [right for n, right, _ in planted.values() if n == 1000]
    assert len(set(thousands)) == len(thousands) == 6
    for name, load in {"imagenet-r": benchmarks.imagenet_r, "imagenet-c/fog/2": benchmarks.class_folders}.items():
        listed = load(root / name, 1000, transforms.ToTensor())
        pixels, labels = next(iter(DataLoader(listed, len(listed))))
        logits = reads_pixels(pixels)
        right = int(listed.correct_predictions(logits, labels).sum())
        assert (len(listed), right, int((logits.argmax(-1) == labels).sum())) == planted[name]
    n, right, unmasked = planted["imagenet-r"]
    assert unmasked < right < n


def test_error_counts_differ_in_all_folders_of_a_whole_tree():
    counts = {folder: script.planted(folder, pictures) for folder, pictures in script.plan().items()}
    thousands = [count.right for count in counts.values() if count.n == 1000]
    assert len(thousands) == len(set(thousands)) == 81
    assert all(0 < count.right < count.n for count in counts.values())


def test_robustbench_files_on_demand(tmp_path):
    script.write_tree(tmp_path / "data", robustbench=True, folders=["imagenet-val"])
    listed = benchmarks.imagenet_val(tmp_path / "data" / "imagenet-val", 1000)
    assert len(listed) == 5003
    assert len(Subset("robustbench").of(listed)) == 5000
