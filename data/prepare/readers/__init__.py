"""Readers: the documents of one range of a file, for each kind of file.

- `dispatch.py`: read first; which reader reads which kind, and what damage raises.
- `text.py` (also FASTA), `json_rows.py`, `squad.py`, `tables.py`, `conll.py`, `ids.py`, `samples.py`: the
  readers.
- `json_elements.py`: the elements of a JSON array, one at a time.
- `records.py`: how a row or JSON object becomes a document, for all of them.
- `table_columns.py`: which columns of a table are read.
- `parquet_pages.py`: refuses Parquet pages that would fill the memory.
"""
