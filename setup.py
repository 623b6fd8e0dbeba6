"""README as a package index shows it; all else about the package stands in setup.cfg."""

import configparser
import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def long_description(readme: str, source: str) -> str:
    """``readme`` for a page that has none of the repository's other files.

    Links and pictures get the address of the repository ``source``; where it is "", links become their words, and
    pictures and the lines that they fill are left out.
    """
    relative = r"(?!\w+:|#)([^)\"\s]+)"
    if source:
        text = re.sub(rf"(!\[[^]]*\]\(|src=\"){relative}", rf"\1{source}/raw/HEAD/\2", readme)
        return re.sub(rf"(?<!!)(\[[^]]*\]\(){relative}", rf"\1{source}/blob/HEAD/\2", text)
    text = re.sub(rf"(?m)^(!\[[^]]*\]\({relative}\)|<img src=\"{relative}\"[^>]*>)\n+", "", readme)
    return re.sub(rf"\[([^]]*)\]\({relative}\)", r"\1", text)


if __name__ == "__main__":
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    urls = dict(line.split(" = ") for line in config["metadata"]["project_urls"].strip().splitlines())
    setup(
        long_description=long_description((ROOT / "README.md").read_text(encoding="utf-8"), urls.get("Source", "")),
        long_description_content_type="text/markdown",
    )
