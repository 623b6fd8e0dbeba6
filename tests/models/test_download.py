"""Every checkpoint form in, safely; two forms out, atomically."""

import hashlib
import http.server
import io
import threading

import pytest
import torch
from helpers.checkpoints import ARCH, CLASSES, logits, make_model, one_line

from ns_easyrobust.errors import CheckpointError, OptionError
from ns_easyrobust.models.checkpoints import load_model, read_checkpoint


@pytest.fixture
def server(tmp_path, monkeypatch):
    """``server.pages[path] = body`` on 127.0.0.1; the cache is a folder of its own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            self.server.requests.append(path)
            body = self.server.pages.get(path)
            self.send_response(404 if body is None else 200)
            body = b"<html>not here</html>" if body is None else body
            self.send_header("Content-Length", str(len(body) + (100 if "short" in path else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.pages, running.requests = {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.cache = tmp_path / "torch" / "hub" / "checkpoints"
        thread = threading.Thread(target=running.serve_forever)
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
