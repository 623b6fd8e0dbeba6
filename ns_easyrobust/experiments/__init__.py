"""The figures, tables and applications of the paper, a file each."""
