"""Evaluation folders with right labels, transforms, seeded batches, corruptions."""
