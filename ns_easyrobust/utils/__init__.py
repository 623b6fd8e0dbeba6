"""What everything else stands on: seeds, whole files, ranks, progress bars, flags."""
