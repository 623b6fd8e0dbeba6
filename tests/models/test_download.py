"""Every checkpoint form in, safely; two forms out, atomically."""

import hashlib
import http.server
import io
import threading

import pytest
import torch
from helpers.checkpoints import ARCH, CLASSES, logits, make_model, one_line

from ns_easyrobust.errors import CheckpointError, OptionError
from ns_easyrobust.models import download
from ns_easyrobust.models.checkpoints import load_model, read_checkpoint
from ns_easyrobust.utils import FileLock


@pytest.fixture
def server(tmp_path, monkeypatch):
    """``server.pages[path] = body`` on 127.0.0.1; the cache is a folder of its own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            self.server.requests.append(path)
            self.server.headers[path] = self.headers
            body = self.server.pages.get(path)
            self.send_response(404 if body is None else 200)
            body = b"<html>not here</html>" if body is None else body
            self.send_header("Content-Length", str(len(body) + (100 if "short" in path else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.pages, running.headers, running.requests = {}, {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.cache = tmp_path / "torch" / "hub" / "checkpoints"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def saved(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def test_two_addresses_with_one_basename_are_two_files(server):
    first, second = make_model(seed=1), make_model(seed=2)
    server.pages = {
        "/a/model_best.pth.tar": saved(first.state_dict()),
        "/b/model_best.pth.tar": saved(second.state_dict()),
    }
    for _ in range(2):
        for folder, model in (("a", first), ("b", second)):
            loaded = load_model(ARCH, f"{server.url}/{folder}/model_best.pth.tar", num_classes=CLASSES)
            assert torch.equal(logits(loaded), logits(model))
    assert server.requests == ["/a/model_best.pth.tar", "/b/model_best.pth.tar"]  # each downloaded once
    names = sorted(path.name for path in server.cache.iterdir())
    assert len(names) == 2
    assert all(name.endswith("-model_best.pth.tar") for name in names)
    read_checkpoint(f"{server.url}/a/model_best.pth.tar?token=x/y")  # the whole address counts
    assert len(list(server.cache.iterdir())) == 3


def test_failed_downloads_leave_nothing_in_the_cache(server):
    server.pages = {"/short.pth": saved({"a": torch.ones(1)}), "/page.pth": b"<html>log in</html>"}
    for path, match in (
        ("/none.pth", "cannot download .*404"),
        ("/short.pth", "cannot download .*closed after"),
        ("/page.pth", "web page"),
    ):
        with pytest.raises(CheckpointError, match=match) as caught:
            read_checkpoint(server.url + path)
        assert server.url + path in one_line(caught)
        assert list(server.cache.iterdir()) == []
    server.pages["/page.pth"] = saved({"a": torch.ones(1)})  # and mends by itself
    assert read_checkpoint(server.url + "/page.pth").weights().state["a"] == 1
    with pytest.raises(CheckpointError, match="cannot download"):
        read_checkpoint("http://127.0.0.1:1/c.pth")
    with pytest.raises(CheckpointError, match="expected a http, https or file address, found s3"):
        read_checkpoint("s3://bucket/c.pth")


def test_sha256_is_checked_of_downloads_and_files(server, tmp_path):
    body = saved({"a": torch.ones(1)})
    right, wrong = hashlib.sha256(body).hexdigest(), "0" * 64
    server.pages = {"/c.pth": body}
    checkpoint = read_checkpoint(server.url + "/c.pth", sha256=right.upper())
    assert checkpoint.sha256() == right
    with pytest.raises(CheckpointError, match=rf"expected SHA-256 {wrong}, found {right}.*removed") as caught:
        read_checkpoint(server.url + "/c.pth", sha256=wrong)
    one_line(caught)
    assert list(server.cache.iterdir()) == []
    local = tmp_path / "c.pth"
    local.write_bytes(body)
    for source in (local, local.as_uri()):
        assert read_checkpoint(source, sha256=right).path == local
        with pytest.raises(CheckpointError, match="expected SHA-256"):
            read_checkpoint(source, sha256=wrong)
        assert local.exists()
    with pytest.raises(CheckpointError, match="expected SHA-256"):
        load_model(ARCH, read_checkpoint(local), sha256=wrong)
    with pytest.raises(OptionError, match="64 hexadecimal digits"):
        read_checkpoint(local, sha256="abc")


@pytest.mark.parametrize("spelling", ["file://{}", "FILE://{}", "File://localhost{}", "FILE:{}"])
def test_a_users_file_is_never_removed(tmp_path, spelling):
    own = tmp_path / "mine.pth"
    for content in (b"damaged", b"", b"<html>", saved({"a": torch.ones(1)})[:-9]):
        own.write_bytes(content)
        for options in ({}, {"sha256": "0" * 64}):
            with pytest.raises(CheckpointError):
                read_checkpoint(spelling.format(own), **options)
        assert own.read_bytes() == content


def test_the_file_of_another_machine_is_refused(tmp_path):
    (tmp_path / "c.pth").write_bytes(saved({"a": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="expected a file of this machine"):
        read_checkpoint(f"file://elsewhere{tmp_path}/c.pth")


def test_only_damage_removes_a_cached_file(server, monkeypatch):
    """A file that is whole is not downloaded again because torch is old, or because its objects are not read."""
    server.pages["/c.pth"] = saved({"a": torch.ones(1), "x": threading.Thread.run})
    for _ in range(2):
        with pytest.raises(CheckpointError, match="Python object"):
            read_checkpoint(server.url + "/c.pth")
    assert server.requests == ["/c.pth"]
    (cached,) = server.cache.iterdir()
    link = cached.with_name("kept")
    cached.rename(link)
    link.write_bytes(b"damaged")
    cached.symlink_to(link)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(server.url + "/c.pth")
    assert [path.name for path in server.cache.iterdir()] == ["kept"]  # the entry, not what it led to


def test_two_that_want_one_file_download_it_once(server, monkeypatch):
    server.pages["/c.pth"] = saved({"a": torch.ones(1)})
    real, both_started = download._download, threading.Barrier(2, timeout=20)

    def slow(url, path):
        both_started.wait()
        real(url, path)

    monkeypatch.setattr(download, "_download", slow)
    found = []
    first = threading.Thread(target=lambda: found.append(read_checkpoint(server.url + "/c.pth")))
    first.start()
    while not list(server.cache.glob(".*.lock")):
        pass
    second = threading.Thread(target=lambda: found.append(read_checkpoint(server.url + "/c.pth")))
    second.start()
    both_started.wait()  # the first downloads, and the second cannot get there
    first.join()
    second.join()
    assert [checkpoint.weights().state["a"].item() for checkpoint in found] == [1, 1]
    assert server.requests == ["/c.pth"]
    assert len(list(server.cache.iterdir())) == 1  # no lock, no temporary


def test_what_killed_downloads_left_is_cleaned_by_the_next(server):
    server.pages["/c.pth"] = saved({"a": torch.ones(1)})
    server.cache.mkdir(parents=True)
    own = download.cache_path(server.url + "/c.pth").name
    other = download.cache_path(server.url + "/d.pth").name
    busy = download.cache_path(server.url + "/busy.pth").name
    dead = [f".{own}.{'a' * 32}.tmp", f".{other}.{'b' * 32}.tmp", f".{other}.{'c' * 32}.part"]
    alive = [f".{busy}.{'d' * 32}.tmp", "resnet50.pth.0a1b.partial", ".hidden.tmp", "precious.pth"]
    for name in (*dead, *alive):
        (server.cache / name).write_bytes(b"half")
    with FileLock(server.cache / f".{busy[:16]}.lock", "a download"):
        read_checkpoint(server.url + "/c.pth")
        assert {path.name for path in server.cache.iterdir()} == {own, f".{busy[:16]}.lock", *alive}


def test_a_link_in_the_way_is_not_followed(server, tmp_path):
    server.pages["/c.pth"] = saved({"a": torch.ones(1)})
    server.cache.mkdir(parents=True)
    own = tmp_path / "mine"
    own.write_bytes(b"precious")
    cached = download.cache_path(server.url + "/c.pth")
    cached.symlink_to(tmp_path / "gone")  # dangling: not there, as far as a reader can tell
    read_checkpoint(server.url + "/c.pth")
    assert not cached.is_symlink()
    assert not (tmp_path / "gone").exists()


def test_what_an_address_hides_reaches_the_server_alone(server, caplog):
    server.pages["/c.pth"] = saved({"a": torch.ones(1)})
    address = server.url.replace("//", "//me:s%40cret@")
    with caplog.at_level("INFO"):
        for _ in range(2):
            checkpoint = read_checkpoint(address + "/c.pth")
    assert server.headers["/c.pth"]["Authorization"] == "Basic bWU6c0BjcmV0"  # base64 of me:s@cret
    assert checkpoint.source == server.url.replace("//", "//***@") + "/c.pth"
    for path in ("/none.pth", "/short.pth", "/page.pth"):
        server.pages["/page.pth"] = b"<html>"
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(address + path)
        assert "cret" not in one_line(caught)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint("http://me:s%40cret@127.0.0.1:1/c.pth")
    assert "cret" not in one_line(caught)
    assert "taken from the cache" in caplog.text
    assert "cret" not in caplog.text


def test_a_read_only_cache_is_used(server):
    server.pages["/c.pth"] = saved({"a": torch.ones(1)})
    read_checkpoint(server.url + "/c.pth")
    server.cache.chmod(0o500)
    try:
        assert read_checkpoint(server.url + "/c.pth").weights().state["a"] == 1
    finally:
        server.cache.chmod(0o700)


@pytest.mark.parametrize(
    "address",
    ["http://[::1/c.pth", "http://host:port/c.pth", "http:///c.pth", "http://a b/c", "x://", "http://[::1]:x/\udcff"],
)
def test_addresses_that_are_none_are_one_line(address):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(address)
    one_line(caught)
