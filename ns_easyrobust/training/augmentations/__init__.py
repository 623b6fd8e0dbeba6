"""Companion losses: the methods that ``--aug`` offers."""
