"""HyCIR inside other libraries: a transformers pipeline, Sentence Transformers, `datasets` columns, converters."""
