"""A small synthetic world with a known gold preference, which needs no network and no data files."""
