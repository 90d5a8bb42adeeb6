"""Feed mutated files to everything that reads strangers' files, and judge what comes out."""
