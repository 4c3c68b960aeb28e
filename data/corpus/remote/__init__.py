"""Corpora on a remote store: http(s)://, s3://, and whatever else fsspec opens.

remote_storage   a corpus at a URL, as a `data.corpus.storage.Storage`: begin here
cache            with `data.cache_dir`: whole shards in a local folder, shared by all processes
ranges           without: single documents by range requests, each checked when it arrives
fetching         one request: tried again where it fails, or where wrong bytes arrive
"""
