"""The records that the package reads and writes, as `datasets.Features`.

UNLABELED  images without labels: what SynCir and the loss L_ZS start from
TRIPLET    SynCir's pseudo triplets; the images are found by id in an UNLABELED dataset
GENERATED  further columns of a triplet that an LLM made
DROPPED    further columns of a triplet that SynCir dropped
QUERY      a benchmark's composed queries
GALLERY    a benchmark's gallery images
"""

from datasets import Features, Image, Sequence, Value

UNLABELED = Features({"image_id": Value("string"), "image": Image(), "caption": Value("string")})

TRIPLET = Features(
    {
        "reference_id": Value("string"),
        "target_id": Value("string"),
        "query_text": Value("string"),
        "reference_caption": Value("string"),
        "target_caption": Value("string"),
        "similarity": Value("float32"),  # the language-space filter's score, in [-1, 1]
        "group_id": Value("int64"),  # the subgroup that the pair was taken from
    }
)

GENERATED = Features(
    {
        "triplet_id": Value("int64"),  # number of the pair it was made from
        "generator": Value("string"),  # name of the LLM
        "prompt": Value("string"),  # name of the prompt
        "answer": Value("string"),  # as the LLM wrote it
    }
)

DROPPED = Features(
    {
        "reason": Value("string"),  # its kind: "low_similarity", "equal_captions", "no_answer" ...
        "detail": Value("string"),  # more about this triplet: "0.5912 < 0.7"; may be empty
    }
)

QUERY = Features(
    {
        "query_id": Value("string"),
        "reference_id": Value("string"),
        "query_text": Value("string"),
        "target_ids": Sequence(Value("string")),
        "subset_ids": Sequence(Value("string")),  # the candidates of R_subset@K
        "hard_negative_ids": Sequence(Value("string")),  # images that ignore the text, or that change in another way
        "rule": Value("string"),
        "wording": Value("int32"),  # which of a rule's wordings
        "split": Value("string"),
    }
)

GALLERY = Features(
    {
        "image_id": Value("string"),
        "image": Image(),
        "name": Value("string"),
        "vendor": Value("string"),
        "concept": Value("string"),
    }
)
