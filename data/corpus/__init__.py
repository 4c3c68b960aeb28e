"""A corpus on a disk or a server: its manifest, its shards and their indexes, and the proof of every byte."""
