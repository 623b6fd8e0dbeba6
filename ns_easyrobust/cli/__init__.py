"""The command line, a file a verb; the only folder that prints."""
