"""What a start knows of a corpus without reading its indexes.

blocks     blocks of documents: where they are, and what is counted of each
catalogue  the manifest and the counts of all blocks in one small file: begin here
tables     files of arrays that can be made again, such as the catalogue
"""
