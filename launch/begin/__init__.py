"""Commands that begin work: make a corpus, train, verify, generate."""
