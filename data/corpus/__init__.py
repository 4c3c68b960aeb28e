"""A corpus on a disk or a server: shards of documents, their indexes, and the proof of every byte.

manifest   what a corpus folder holds, and manifest.json: begin here
shards     writing a shard of documents                   (used by `prepare`)
questions  what a corpus keeps of questions, so that answers can be told as texts
marked     how much of what documents ask is behind the end of a row
columns    what an index may hold beside each document's ids: a picture's place, a label
index      the index beside each shard: written, read, checked
listing/   what a start knows of a corpus without reading its indexes: catalogue, counts of blocks
storage    the interface through which a corpus is read: files by name, bytes by shard
local      a storage on a local or mounted disk           (memory-mapped)
remote/    a storage on a server                          (cached whole, or read by range)
corpus     an open corpus and its blocks; opening one, or finding those in a folder
tar        a strict reader of WebDataset tars
subset     some documents of a corpus as a corpus of its own (used by `germinal transfer`)
scan       a shard's index made anew from the shard
"""
