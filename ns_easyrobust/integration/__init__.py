"""Other people's training loops: EasyRobust's scripts and modules."""
