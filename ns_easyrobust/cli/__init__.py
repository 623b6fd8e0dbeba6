"""The command line, one file for each verb; the only folder that prints."""

__all__: list[str] = []
