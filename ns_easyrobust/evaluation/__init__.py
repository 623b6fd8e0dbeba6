"""Which images a model gets right, exactly, and the records of it."""
