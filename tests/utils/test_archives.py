"""Zip archives that others wrote: their checksums compared, their sizes bounded."""

import io
import zipfile

import numpy as np
import pytest
import torch
from helpers.hostile_checkpoints import archive, rewritten, saved

from ns_easyrobust.models import read_checkpoint
from ns_easyrobust.utils import check_archive, read_arrays

NUMBERS = np.arange(1000, dtype=np.float32)


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_arrays_are_numpys(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(npz(a=NUMBERS, b=np.ones((2, 3), np.int8)))
    found = read_arrays(path)
    assert list(found) == ["a", "b"]
    assert np.array_equal(found["a"], NUMBERS)
    assert (found["b"].dtype, found["b"].shape) == (np.int8, (2, 3))


@pytest.mark.parametrize("content", [npz(a=NUMBERS), saved({"a": torch.from_numpy(NUMBERS)})], ids=["npz", "torch"])
def test_each_bit_of_what_is_stored_is_checked(tmp_path, content):
    path, place = tmp_path / "a", content.index(NUMBERS.tobytes())
    for offset in (0, 1999, 3999):
        path.write_bytes(
            content[: place + offset] + bytes([content[place + offset] ^ 1]) + content[place + offset + 1 :]
        )
        with pytest.raises(ValueError, match="Bad CRC-32"):
            check_archive(path)


def test_no_checksums_are_no_wrong_ones(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        (tmp_path / "a").write_bytes(saved({"a": torch.ones(3)}))
    finally:
        torch.serialization.set_crc32_options(before)
    assert any(member.filename.endswith("data/0") for member in check_archive(tmp_path / "a"))
    assert torch.equal(read_checkpoint(tmp_path / "a").weights().state["a"], torch.ones(3))


def test_what_would_inflate_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(rewritten(archive({"a.npy": bytes(1 << 20)}, 8), lambda m: setattr(m, "file_size", 1 << 32)))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"\d+ bytes that would unpack to 4294967296"):
        check_archive(path)


def test_an_honest_archive_may_be_packed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, zeros=np.zeros(3_000_000, np.uint8))  # a thousandth of its size on disk
    assert read_arrays(path)["zeros"].shape == (3_000_000,)


def test_a_directory_that_takes_long_to_read_is_not_read(tmp_path, monkeypatch):
    content = bytearray(archive({"a.npy": b"1"}))
    content[-10:-6] = (1 << 30).to_bytes(4, "little")  # the length of the list of members, APPNOTE 4.3.16
    (tmp_path / "a").write_bytes(content)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="a list of members of 1073741824 bytes"):
        check_archive(tmp_path / "a")


def test_a_directory_said_to_lie_before_the_file_is_damage(tmp_path):
    content = bytearray(archive({"a.npy": b"1"}))
    content[-6:-2] = (1 << 20).to_bytes(4, "little")  # where the list of members begins, APPNOTE 4.3.16
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"outside of the file|negative seek|Bad magic"):
        check_archive(tmp_path / "a")
