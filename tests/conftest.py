"""Makes this directory importable, so that tests of every kind can share what is made up in it."""
