"""Sources: from the SOURCE arguments of a command to files, each with its kind and its encoding.

- `sources.py`: read first; which files a source names, and the kind of each.
- `folders_of_datasets.py`: folders that hold a saved data set, and its splits.
- `looks.py`: what a file is by its first bytes. `decoding.py`: how its bytes become text.
"""
