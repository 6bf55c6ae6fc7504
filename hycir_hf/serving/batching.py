"""Concurrent requests answered in batches, by one model and one gallery that can be replaced.

While the model computes, further requests wait; the next batch takes all of them. So an idle service answers at once,
and a busy one in full batches.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from re import compile as compile_pattern
from typing import Any

import numpy as np

from ..images.sources import GalleryImages
from ..images.uploads import MAX_PIXELS, count_pixels, read_gallery_image, read_upload
from ..retrieval import Gallery, open_gallery_images
from ..retrieval.gallery_files import MANIFEST_NAME
from ..retrieval.terms import WITHOUT_WEIGHT, Query, encode_terms
from ..retriever import ComposedEncoder, ImageRetriever
from .requests import EmbeddingRequest, Reference, RequestError, SearchRequest, SearchResponse, WeightedText

logger = logging.getLogger(__name__)

_START_NS = 600 * 10**9  # a gallery that is older than that was whole when it was loaded
_RETRY_SECONDS = 10.0  # after a gallery could not be loaded


@dataclass(frozen=True)
class Snapshot:
    """A gallery as one request sees it, from its first check to its answer."""

    gallery: Gallery
    images: GalleryImages | None

    @classmethod
    def open(cls, gallery: Gallery, directory: Path | None) -> "Snapshot":
        """Open a gallery's images, if they are still there."""
        try:
            return cls(gallery, open_gallery_images(gallery, directory or Path()))
        except (ValueError, OSError) as error:
            logger.warning("gallery ids cannot be references: %s", error)
            return cls(gallery, None)


@dataclass
class Job:
    """What one request asks of the model, and, if it is a search, of the gallery."""

    queries: list[Query]
    snapshot: Snapshot | None = None
    k: int = 0
    excluded: list[str] = field(default_factory=list)
    restrict_to: list[str] | None = None
    answer: "asyncio.Future[Any] | None" = None


class Answering:
    """The model, the gallery, and the requests that wait for them.

    Args:
        retriever (`ImageRetriever`): With a gallery; `directory` is watched for a new one.
        max_queue (`int`): Requests that may be here at once; more are refused with status 503.
        max_batch (`int`): Requests whose images are decoded, and that are answered, at once.
        on_batch (function): Called with the size of each batch.
    """

    def __init__(
        self, retriever: ImageRetriever, max_queue: int, max_batch: int, on_batch: Callable[[int], None]
    ) -> None:
        self.retriever, self.encoder = retriever, retriever.encoder
        self.directory, self.max_queue, self.max_batch, self.on_batch = (
            retriever.directory,
            max_queue,
            max_batch,
            on_batch,
        )
        stamp = self._read_stamp()
        is_recent = stamp is not None and time.time_ns() - stamp[0] < _START_NS
        self._stamp = None if is_recent else stamp  # it may have changed while the model was loaded
        self.snapshot = Snapshot.open(retriever.gallery, self.directory)
        self.num_waiting = self.num_reloads = 0
        self.reload_error: str | None = None
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self._slots = asyncio.Semaphore(max_batch)

    async def __aenter__(self) -> None:
        if self.num_waiting >= self.max_queue:
            raise RequestError("The service is busy. Try again in a moment.", 503)
        self.num_waiting += 1

    async def __aexit__(self, *error: object) -> None:
        self.num_waiting -= 1

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Answer a search.

        Raises:
            RequestError: If it cannot be answered as it is.
        """
        async with self._slots:
            job = await asyncio.to_thread(search_job, request, self.snapshot)
            ranking = await self._answer(job)
        results = [{"rank": rank, "image_id": id_, "score": score} for rank, (id_, score) in enumerate(ranking, 1)]
        return SearchResponse.model_validate({"results": results, "excluded": job.excluded})

    async def embed(self, request: EmbeddingRequest) -> np.ndarray:
        """Answer a request for embeddings: `(N, D)`, unit norm.

        Raises:
            RequestError: If it cannot be answered as it is.
        """
        async with self._slots:
            job = await asyncio.to_thread(embedding_job, request)
            return await self._answer(job)

    async def _answer(self, job: Job) -> Any:
        job.answer = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait(job)
        return await job.answer

    async def answer_forever(self) -> None:
        """Answer batches of the jobs that wait, one batch after the other."""
        while True:
            jobs = [await self._jobs.get()]
            while len(jobs) < self.max_batch and not self._jobs.empty():
                jobs.append(self._jobs.get_nowait())
            self.on_batch(len(jobs))
            for job, answer in zip(jobs, await asyncio.to_thread(self._answers, jobs), strict=True):
                if job.answer is None or job.answer.done():
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)

    def _answers(self, jobs: Sequence[Job]) -> list[Any]:
        """Answer jobs together; where that fails, one by one, so that one cannot spoil the others."""
        try:
            return answer_jobs(self.encoder, jobs)
        except Exception as error:  # every request must get its answer
            if len(jobs) == 1:
                return [error]
            return [answer for job in jobs for answer in self._answers([job])]

    async def watch_forever(self, seconds: float) -> None:
        """Load the gallery anew whenever its manifest changed; a gallery that cannot be loaded changes nothing."""
        while self.directory is not None:
            await asyncio.sleep(seconds if self.reload_error is None else max(seconds, _RETRY_SECONDS))
            stamp = self._read_stamp()
            if stamp is None or stamp == self._stamp:
                continue
            try:
                self.snapshot = await asyncio.to_thread(self._load)
            except Exception as error:  # a gallery's files can be broken in any way
                if self.reload_error is None:
                    logger.error("the changed gallery cannot be loaded, the old one stays: %s", error)
                self.reload_error = type(error).__name__
                continue
            self.num_reloads += self._stamp is not None
            self._stamp, self.reload_error = stamp, None
            logger.info("the gallery was loaded again: %d images", len(self.snapshot.gallery))

    def _load(self) -> Snapshot:
        self.retriever = self.retriever.reloaded()
        return Snapshot.open(self.retriever.gallery, self.directory)

    def _read_stamp(self) -> tuple[int, int] | None:
        try:
            found = Path(self.directory or "", MANIFEST_NAME).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def search_job(request: SearchRequest, snapshot: Snapshot) -> Job:
    """Check a search against a gallery and decode its images.

    Raises:
        RequestError: If an id is unknown, an image is broken, or there is nothing to search for.
    """
    gallery = snapshot.gallery
    references = [Reference(id=one) if isinstance(one, str) else one for one in request.references]
    own_ids = [one.id for one in references if one.id is not None]
    for name, ids in (
        ("references", own_ids),
        ("exclude", request.exclude),
        ("restrict_to", request.restrict_to or ()),
    ):
        unknown = [one for one in ids if one not in gallery]
        if unknown:
            raise RequestError(f"{name}: the gallery holds no image {unknown[0][:200]!r}.", 404)
    check_pixels([one.image for one in references if one.image is not None])
    try:
        images = [
            read_upload(one.image) if one.image is not None else read_gallery_image(snapshot.images, one.id or "")
            for one in references
        ]
        weights = [one.weight for one in references]
        query = Query(
            list(zip(images, weights, strict=True)), _terms(request.text, 1.0), _terms(request.without, WITHOUT_WEIGHT)
        )
    except ValueError as error:
        raise RequestError(str(error)) from error
    excluded = sorted({*request.exclude, *(() if request.keep_reference else own_ids)})
    return Job([query], snapshot, request.k, excluded, _candidates(request, gallery))


def embedding_job(request: EmbeddingRequest) -> Job:
    """Decode the images of a request for embeddings.

    Raises:
        RequestError: If an image is broken or all are too large together, or there is nothing to embed.
    """
    inputs = request.parts()
    check_pixels([part for one in inputs for part in one if isinstance(part, bytes)])
    try:
        return Job([_embedded_query(one) for one in inputs])
    except ValueError as error:
        raise RequestError(str(error)) from error


def answer_jobs(encoder: ComposedEncoder, jobs: Sequence[Job]) -> list[Any]:
    """Answer jobs: a ranking for each search, `(N, D)` for each request for embeddings, or its error."""
    features = encode_terms(encoder, [query for job in jobs for query in job.queries])  # (Q, D)
    ends = np.cumsum([len(job.queries) for job in jobs])
    blocks = np.split(features, ends[:-1])
    answers: list[Any] = list(blocks)
    groups: dict[int, list[int]] = {}  # searches by gallery: it may have been replaced meanwhile
    for number, (job, block) in enumerate(zip(jobs, blocks, strict=True)):
        if not block.any(axis=1).all():
            answers[number] = RequestError("The terms of the query cancel out. Change a weight.")
        elif job.snapshot is not None:
            groups.setdefault(id(job.snapshot), []).append(number)
    for numbers in groups.values():
        searches = [jobs[number] for number in numbers]
        found = searches[0].snapshot.gallery.search(  # type: ignore[union-attr]
            np.concatenate([blocks[number] for number in numbers]),
            k=max(job.k for job in searches),
            exclude_ids=[job.excluded for job in searches],
            restrict_to=[job.restrict_to for job in searches],
        )
        for number, job, ranking in zip(numbers, searches, found, strict=True):
            answers[number] = ranking[: job.k]
    return answers


def check_pixels(contents: Sequence[bytes]) -> None:
    """Refuse images that decode to too much together; RequestError."""
    if sum(map(count_pixels, contents)) > MAX_PIXELS:
        raise RequestError(f"The images of a request may have {MAX_PIXELS:,} pixels together. Shrink them first.", 413)


def _terms(texts: Any, weight: float) -> list[tuple[str, float]]:
    several = texts if isinstance(texts, list) else [texts]
    pairs = [(one.text, one.weight or weight) if isinstance(one, WeightedText) else (one, weight) for one in several]
    return [(text, one) for text, one in pairs if text.strip()]


def _candidates(request: SearchRequest, gallery: Gallery) -> list[str] | None:
    """The ids that are searched, or None for all."""
    if request.filter is None:
        return request.restrict_to
    patterns = [request.filter] if isinstance(request.filter, str) else request.filter
    matches = compile_pattern("|".join(map(translate, patterns)) or r"(?!)").match
    return [one for one in (gallery.ids if request.restrict_to is None else request.restrict_to) if matches(one)]


def _embedded_query(parts: Sequence[str | bytes]) -> Query:
    """One image or one text is embedded as such; together they are composed."""
    images = [(read_upload(part), 1.0) for part in parts if isinstance(part, bytes)]
    text = " ".join(part.strip() for part in parts if isinstance(part, str)).strip()
    return Query(images, [(text, 1.0)] if text else [], composes=len(images) > 1 or bool(text))
