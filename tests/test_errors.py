"""One line, without secrets and without characters that steer a terminal."""

from __future__ import annotations

import pytest

from ns_easyrobust.errors import DataError, UserError, printable, without_secrets


def test_a_line_is_one_line_and_shows_what_it_hides():
    line = UserError("a\x1b[2J\nb \u202ec\x07 é 漢 https://me:pass@word@host/x?y=1").line
    assert line == r"a\x1b[2J b \u202ec\x07 é 漢 https://***@host/x?y=1"


def test_a_worker_passes_its_error_on():
    trace = "Original Traceback (most recent call last):\n  x\nerrors.DataError: a\x1b b\n"
    assert DataError(f"Caught DataError in worker.\n{trace}").line == r"a\x1b b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://token@host/a@b", "http://***@host/a@b"),
        ("see ftp://a:b@c and s3://d:e@f", "see ftp://***@c and s3://***@f"),
        ("https://host/user:pass@x", "https://host/user:pass@x"),
        ("http://h/a?b=1&X-Amz-Signature=9f&c=2#d", "http://h/a?b=1&X-Amz-Signature=***&c=2#d"),
        ("http://h/a?access_token=9f, found", "http://h/a?access_token=*** found"),
        ("http://h/a?b=1#access_token=9f", "http://h/a?b=1#access_token=***"),
        ("http://h/sig=1?n=2", "http://h/sig=1?n=2"),
        ("me@example.org: http://host", "me@example.org: http://host"),
    ],
)
def test_secrets_of_urls(text, shown):
    assert without_secrets(text) == shown


def test_printable_leaves_what_can_be_shown():
    assert printable("ViT-B/16 é 漢 🙂 a\\n") == "ViT-B/16 é 漢 🙂 a\\n"


def test_a_long_value_does_not_fill_the_terminal():
    line = UserError(f"x: expected a name, found {'n' * 100_000}. Choose a shorter one.").line
    assert len(line) < 2100
    assert line.startswith("x: expected a name, found nnn")
    assert line.endswith("nnn. Choose a shorter one.")
