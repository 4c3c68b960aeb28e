"""What is done to the text of a document, and which documents are left out."""
