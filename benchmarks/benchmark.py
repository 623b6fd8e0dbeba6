#!/usr/bin/env python3
"""EasyRobust's benchmark.py with the paper's attacks added: the same flags, any checkpoint."""

import sys

from ns_easyrobust.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
