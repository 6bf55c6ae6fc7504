"""From a model and a benchmark's data to results: encode, compose, rank, score."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..modeling_hycir import HyCIRModel
from ..names import public_path
from ..processing_hycir import HyCIRProcessor
from ..retrieval import rank_candidates, rank_gallery
from ..retrieval.queries import MAPPER, TRAINING_FREE, Combiner
from .benchmarks import BENCHMARKS, BenchmarkData, BenchmarkPart, check_data, reference_ids_of
from .benchmarks.missing import without_broken
from .methods import Method, by_shape, encode_readable, part_features
from .results import EvaluationResults, describe_run
from .scoring import PartScores, score_part


@dataclass(frozen=True)
class PartRankings:
    """One method's answers to a part's queries.

    Args:
        ids (`list[list[str]]`): Q rows of gallery ids, best first.
        scores (`list[list[float]]`): Cosine similarities.
        subset_ids (`list[list[str]]`, *optional*): Each query's subset, best first.
    """

    ids: list[list[str]]
    scores: list[list[float]]
    subset_ids: list[list[str]] | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results with the rankings behind them.

    Args:
        results (`EvaluationResults`, *optional*): None if the targets are not known.
        rankings (`Mapping[str, Mapping[str, PartRankings]]`): Method -> part -> rankings.
        data (`BenchmarkData`): What was asked: the data without the images that cannot be read.
    """

    results: EvaluationResults | None
    rankings: Mapping[str, Mapping[str, PartRankings]]
    data: BenchmarkData


def evaluate_benchmark(
    model: HyCIRModel,
    processor: HyCIRProcessor,
    data: BenchmarkData,
    combiners: Mapping[str, Combiner] = TRAINING_FREE,
    further_methods: Mapping[str, Method] | None = None,
    methods: Sequence[str] | None = None,
    image_features: Tensor | None = None,
    features_directory: str | os.PathLike | None = None,
    model_name: str | None = None,
    seed: int = 0,
    allow_missing: bool = False,
) -> Evaluation:
    """Answer a benchmark's queries by every method and score them.

    Args:
        model (`HyCIRModel`): In eval mode.
        processor (`HyCIRProcessor`): The model's. If the benchmark has a prompt, that one is used instead.
        data (`BenchmarkData`): From `read_benchmark` or `read_table`, with images; or your own.
        combiners (`Mapping[str, Combiner]`): Name -> (reference features, text features) -> query features; a trained
            combiner is one entry more.
        further_methods (`Mapping[str, Method]`, *optional*): Name -> method, from `combiner_method`,
            `language_method` or your own.
        methods (`Sequence[str]`, *optional*): Only these, of the combiners, "mapper" and the further methods.
        image_features (`torch.Tensor` of shape `(N, D)`, *optional*): What `encode_images` gave for the data's images,
            so that several models on one encoder share it.
        features_directory (`str` or `Path`, *optional*): Where the images' features are stored, so that another
            evaluation with the same encoder reads them.
        model_name (`str`, *optional*): Kept in the results.
        seed (`int`): Random seed of the bootstrap.
        allow_missing (`bool`): Leave out images that cannot be read, as `read_benchmark` does with missing ones.

    Returns:
        `Evaluation`: With the mapper, unless `methods` leaves it out.

    Raises:
        ValueError: If a method is unknown, your own data is wrong, an image is broken, or the gallery is smaller than
            the benchmark's ranks.
    """
    known = [*combiners, MAPPER, *(further_methods or {})]
    unknown = [name for name in methods or () if name not in known]
    if unknown:
        raise ValueError(f"There are no methods {unknown}. Choose among {known}.")
    wanted = methods or known
    combiners = {name: combine for name, combine in combiners.items() if name in wanted}
    further_methods = {name: answer for name, answer in (further_methods or {}).items() if name in wanted}
    if data.benchmark not in BENCHMARKS.values():
        check_data(data)
    encoded = image_features
    if encoded is None:
        label = data.benchmark.title
        place = features_directory
        encoded, reasons = encode_readable(model, processor, data.images, place, label, data.stored_features)  # (N, D)
        ids = [id_ for id_ in data.images if id_ not in reasons]
        data = without_broken(data, reasons, allow_missing)
    else:
        ids = list(data.images)
    row_of = {id_: row for row, id_ in enumerate(ids)}
    feature_of = dict(zip(ids, encoded, strict=True))
    unit = F.normalize(encoded, dim=-1)
    rankings: dict[str, dict[str, PartRankings]] = {}
    for part in data.parts:
        text_prompt = data.benchmark.text_prompt or "{text}"

        def answer_all(part: BenchmarkPart, text_prompt: str = text_prompt) -> dict[str, Tensor]:
            found = part_features(model, processor, part, feature_of, combiners, text_prompt, data.benchmark.prompt)
            found |= {name: answer(part, feature_of) for name, answer in further_methods.items()}
            return {name: found[name] for name in wanted}

        features = by_shape(part, answer_all)
        gallery = unit[[row_of[id_] for id_ in part.gallery_ids]]  # (N, D)
        for name, queries in features.items():
            rankings.setdefault(name, {})[part.name] = rank_part(data, part, queries, gallery)
    results = None
    if data.has_targets:
        provenance = describe_run(
            data,
            model=public_path(model_name) if model_name else None,
            encoder_fingerprint=model.encoder_fingerprint(),
            prompt=data.benchmark.prompt or processor.prompt,
        )
        scores = {name: score_rankings_of(data, parts) for name, parts in rankings.items()}
        results = EvaluationResults(data.benchmark.name, data.split, scores, provenance, seed)
    return Evaluation(results, rankings, data)


def rank_part(data: BenchmarkData, part: BenchmarkPart, queries: Tensor, gallery: Tensor) -> PartRankings:
    """Rank a part's gallery for its queries.

    Args:
        data (`BenchmarkData`): Says whether references are left out, and how deep to rank.
        part (`BenchmarkPart`): Queries and gallery ids.
        queries (`torch.Tensor` of shape `(Q, D)`): Unit L2 norm.
        gallery (`torch.Tensor` of shape `(N, D)`): Unit L2 norm, in the order of `part.gallery_ids`.
    """
    place = {id_: row for row, id_ in enumerate(part.gallery_ids)}
    references = [[place[id_] for id_ in reference_ids_of(query) if id_ in place] for query in part.queries]
    left_out = references if data.benchmark.leaves_reference_out else [[] for _ in part.queries]
    subsets = None
    if data.benchmark.subset_ranks:
        candidates = [
            [row for id_ in query["subset_ids"] if (row := place[id_]) not in set(own)]
            for query, own in zip(part.queries, left_out, strict=True)
        ]
        ranked = rank_candidates(queries, gallery, candidates)
        subsets = _ids_of(part, ranked)
        if not data.benchmark.ranks:  # a gallery of its own for each query
            scores = [(gallery[row] @ query).tolist() for row, query in zip(ranked, queries, strict=True)]
            return PartRankings(subsets, scores, subsets)
    lengths = [kind.length for kind in data.benchmark.submissions if not kind.ranks_subset]
    depth = max([*data.benchmark.ranks, *lengths])
    rows, found = rank_gallery(queries, gallery, depth, left_out)
    return PartRankings(_ids_of(part, rows.tolist()), found.tolist(), subsets)


def score_rankings_of(data: BenchmarkData, rankings: Mapping[str, PartRankings]) -> dict[str, PartScores]:
    """Score one method's rankings of all parts."""
    return {
        part.name: score_part(
            data.benchmark,
            part,
            rankings[part.name].ids if data.benchmark.ranks else None,
            rankings[part.name].subset_ids,
        )
        for part in data.parts
    }


def _ids_of(part: BenchmarkPart, rows: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[part.gallery_ids[row] for row in one] for one in rows]
