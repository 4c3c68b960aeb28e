"""`germinal data verify`: is every byte and every sample of a corpus what its manifest says, and every table
that was made from it?

verify   shards, indexes and tokenizer: begin here
tables   the tables beside a corpus: everything in them is counted again
"""
