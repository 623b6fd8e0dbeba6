"""The only place that knows transformer anatomy; checkpoints in and out."""
