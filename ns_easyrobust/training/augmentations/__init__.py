"""Companion losses, a file a method."""
