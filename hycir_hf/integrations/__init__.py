"""HyCIR inside other libraries: a transformers pipeline, Sentence Transformers, dataset columns, converted weights."""
