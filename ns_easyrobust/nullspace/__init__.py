"""The paper's nullspaces: the patch embedding's exact one, and noise in the encoder's approximate one."""
