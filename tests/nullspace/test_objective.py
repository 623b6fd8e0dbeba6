from __future__ import annotations

import itertools
import logging

import pytest
import torch
from helpers.models import small_vit

from ns_easyrobust.models.hooks import storage_free_zeros
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.objective import CleanBatch, clean_batches
from ns_easyrobust.nullspace.synthesis import synthesize


def taken(size, reuse, count):
    """Numbers of the batches that ``count`` steps see, and of those whose clean logits were computed."""
    computed = []

    def see(images):
        computed.append(int(images))
        return CleanBatch(images, None, images * 10)

    stream = (torch.tensor(float(i)) for i in itertools.count())
    seen = []
    for batch in itertools.islice(clean_batches(stream, see, size, reuse), count):
        assert batch.logits == batch.images * 10
        seen.append(int(batch.images))
    return seen, computed


def test_without_a_pool_each_batch_is_used_once():
    assert taken(0, 0, 4) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_kept_batches_are_gone_through_in_turn():
    assert taken(3, 0, 8) == ([0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2])


def test_after_their_uses_fresh_ones_take_their_place():
    assert taken(2, 2, 9) == ([0, 1, 0, 1, 2, 3, 2, 3, 4], [0, 1, 2, 3, 4])
    assert taken(2, 1, 4) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_its_memory_is_said(caplog):
    caplog.set_level(logging.INFO)
    stream = (torch.zeros(64, 3, 32, 32) for _ in range(5))
    embedding = (torch.zeros(64, 16, 64), (4, 4))
    see = {
        "images": lambda x: CleanBatch(x, None, torch.zeros(64, 10)),
        "tokens": lambda x: CleanBatch(storage_free_zeros(x), embedding, x),
    }
    list(itertools.islice(clean_batches(stream, see["images"], 2, 0), 3))
    assert "keeps 2 batches with their clean logits: 1.5 MiB" in caplog.text
    assert see["tokens"](torch.zeros(1)).memory == 4 + 4 + 64 * 16 * 64 * 4


def test_a_pool_of_all_batches_gives_algorithm_1_bit_for_bit(trained, batches):
    """The same batches in the same order: the same trajectory, with no clean forward after the first round."""
    config = NoiseConfig(max_steps=60, eps=1e-9)
    plain = synthesize(trained, batches, config)
    forwards = []
    trained.register_forward_hook(lambda *_: forwards.append(1))
    pooled = synthesize(trained, batches, NoiseConfig(max_steps=60, eps=1e-9, pool=len(batches)))
    assert torch.equal(pooled.value, plain.value)
    assert pooled.trace == plain.trace
    assert len(forwards) == 3 + 60 + len(batches)  # of one image for shape and embedding; noisy, clean


@pytest.mark.stress
def test_a_late_reader_stops_at_the_same_step(trained, batches, monkeypatch):
    """As on a GPU, where some steps are queued before the stop test of the first is read."""
    early = synthesize(trained, batches)
    monkeypatch.setattr("ns_easyrobust.nullspace.objective.lag_on", lambda device: 7)
    tested = []
    late = synthesize(trained, batches, on_step=tested.append)
    assert early.stopped
    assert early.steps > 20
    assert torch.equal(late.value, early.value)
    assert (late.steps, late.trace) == (early.steps, early.trace)
    assert tested == list(early.trace)


def test_minibatches_are_parts_of_the_batches(trained, batches):
    halves = [(images[part], 0) for images, _ in batches for part in (slice(0, 32), slice(32, 64))]
    expected = synthesize(trained, halves, NoiseConfig(max_steps=9, eps=1e-9))
    for size in (32, 63):  # no tail of one image, which could stop the search by luck
        found = synthesize(trained, batches, NoiseConfig(max_steps=9, eps=1e-9, minibatch=size))
        assert found.trace == expected.trace


@pytest.mark.parametrize("name", ["pool", "reuse", "minibatch", "patience"])
def test_settings_out_of_range(name):
    from ns_easyrobust.errors import OptionError

    with pytest.raises(OptionError, match=f"noise {name}: expected"):
        NoiseConfig(**{name: -2})


def test_images_are_kept_only_where_the_model_needs_them(trained, batches, monkeypatch, caplog):
    """Tokens take a third of the memory in this ViT, and give the same bits."""
    caplog.set_level(logging.INFO)
    config = NoiseConfig(max_steps=10, eps=1e-9, pool=2)
    tokens = synthesize(trained, batches, config)
    monkeypatch.setattr("ns_easyrobust.nullspace.objective.depends_on_embedding_alone", lambda *_: False)
    images = synthesize(trained, batches, config)
    assert torch.equal(tokens.value, images.value)
    assert tokens.trace == images.trace
    swin = small_vit(arch="swin_micro_patch2_32")  # whose tokens are larger than its images
    monkeypatch.undo()
    synthesize(swin, [torch.rand(4, 3, 32, 32) for _ in range(2)], NoiseConfig(max_steps=3, eps=1e-9, pool=2))
    assert [message.rpartition(" ")[0].rpartition(" ")[2] for message in caplog.messages] == ["0.5", "1.5", "0.1"]
