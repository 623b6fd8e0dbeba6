"""The finetuning run, and the companion losses that it may add."""
