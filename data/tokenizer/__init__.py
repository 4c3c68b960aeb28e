"""Tokenizers, each of them one `tokenizer.json` that says everything.

So all who read a corpus later (training, generation, export) need one file and one library, `tokenizers`,
whichever kind of tokenizer `prepare` used.

    training   tokenizers trained on texts (bpe, wordpiece, characters) or built without (bytes)
    folders    a Hugging Face folder's
    loading    a tokenizer.json: its vocabulary, its separator, its template
    comparison do two make the same ids of a text?
    encoder    text to ids and back
    prompting  texts as a trained model is asked about them
"""
