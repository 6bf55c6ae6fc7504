"""`transformers.pipeline("composed-image-retrieval")`: ranks a gallery's images for composed queries.

Importing this module registers the task. `save_pretrained` and `push_to_hub` take this file along as remote code, which
may import no other file of its package relatively. Where it is loaded, hycir_hf must be installed.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hycir_hf.retrieval import Gallery

TASK = "composed-image-retrieval"


class ComposedImageRetrievalPipeline(Pipeline):
    """Rank a gallery's images for composed queries.

    ```python
    import hycir_hf.integrations.transformers_pipeline
    from transformers import pipeline

    retrieve = pipeline("composed-image-retrieval", model=folder, gallery=images, k=5)
    retrieve({"image": reference, "text": "make it night"})  # [{"id": "12", "score": 0.31}, ...]
    ```

    Args (of the pipeline, or of a call):
        gallery (`Gallery`, path of a gallery, or images): What is ranked. Images are encoded each time they are given,
            so give them to the pipeline and not to every call.
        k (`int`): Number of images in each ranking (10).
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __call__(self, queries: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Answer one query or several.

        Args:
            queries (`dict` or an iterable of them): Each has "image" (one, or a list of them) and "text" ("" means the
                image alone). "exclude_ids" (*optional*) is a list of gallery ids to leave out of its ranking.
            batch_size (`int`, *optional*): Queries encoded at once. The default is the pipeline's, or 1.
            **kwargs: "gallery" and "k", for this call only.

        Returns:
            Each query's ranking, a list of `{"id", "score"}`. For a single query, the ranking itself.

        Raises:
            ValueError: If a query has another form, there is no gallery, or another encoder made the gallery.
        """
        is_single = isinstance(queries, dict)
        batches = _batches([queries] if is_single else queries, batch_size or self._batch_size or 1)
        rankings = [ranking for batch in super().__call__(batches, batch_size=1, **kwargs) for ranking in batch]
        return rankings[0] if is_single else rankings

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model, processor and this file, for `pipeline(model=folder, trust_remote_code=True)`."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload what `save_pretrained` writes, to a private repository by default."""
        return super().push_to_hub(repo_id, **({"private": True} | kwargs))

    def _sanitize_parameters(self, gallery: Any = None, k: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            raise ValueError(f"The pipeline takes gallery and k, not {sorted(kwargs)}. Leave those out.")
        given = {"gallery": None if gallery is None else self._as_gallery(gallery), "k": k}
        return {}, {}, {name: value for name, value in given.items() if value is not None}

    def _as_gallery(self, gallery: Any) -> Gallery:
        """Load or encode what was given as a gallery, and check who encoded it."""
        if isinstance(gallery, str | os.PathLike):
            gallery = Gallery.load(gallery)
        elif not isinstance(gallery, Gallery):
            return Gallery.from_images(self.model, self.processor, gallery, progress=False)
        gallery.check_encoder(self.model)
        return gallery

    def preprocess(self, queries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Turn a batch of queries into the model's inputs."""
        for query in queries:
            if not isinstance(query, dict) or not {"image", "text"} <= set(query) <= {"image", "text", "exclude_ids"}:
                found = sorted(query) if isinstance(query, dict) else type(query).__name__
                raise ValueError(
                    f"Expected a query with 'image', 'text' and perhaps 'exclude_ids', but found {found}. An example: "
                    "{'image': reference_image, 'text': 'make it night'}."
                )
            if isinstance(query.get("exclude_ids"), str):
                raise ValueError(
                    f"Expected a list as exclude_ids, but found the string {query['exclude_ids']!r}. Put it in a list."
                )
        images = [query["image"] if isinstance(query["image"], list) else [query["image"]] for query in queries]
        inputs = self.processor(images=images, text=[query["text"] for query in queries], return_tensors="pt")
        return {"inputs": dict(inputs), "exclude_ids": [query.get("exclude_ids") for query in queries]}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        self.model.eval()  # in training mode the mapper's dropout would shuffle the ranking
        features = self.model.get_composed_features(**model_inputs["inputs"])  # (B, D)
        return {"features": features, "exclude_ids": model_inputs["exclude_ids"]}

    def postprocess(
        self, model_outputs: dict[str, Any], gallery: Gallery | None = None, k: int = 10
    ) -> list[list[dict[str, Any]]]:
        """Rank the gallery for a batch of composed features."""
        if gallery is None:
            raise ValueError("The pipeline has no gallery. Pass gallery= to the pipeline or to this call.")
        results = gallery.search(model_outputs["features"], k=k, exclude_ids=model_outputs["exclude_ids"])
        return [[{"id": id_, "score": score} for id_, score in ranking] for ranking in results]


def _batches(queries: Any, batch_size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for query in queries:
        batch.append(query)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=ComposedImageRetrievalPipeline, pt_model=AutoModel, type="multimodal"
)
