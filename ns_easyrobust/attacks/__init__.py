"""Pixels and labels to adversarial pixels."""
