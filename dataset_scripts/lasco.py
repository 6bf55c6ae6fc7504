"""LaSCo (Levy et al., 2024), as its authors publish it, in the package's TRIPLET and UNLABELED columns.

    load_dataset("dataset_scripts/lasco.py", "triplets", data_dir=FOLDER, trust_remote_code=True)  # datasets 3

    builder = LaSCo(config_name="triplets", data_dir=FOLDER)  # any version of datasets
    builder.download_and_prepare()
    triplets = builder.as_dataset(split="train")

FOLDER holds `lasco_train.json`, `lasco_val.json` (either alone will do) and COCO's folders `train2014` and `val2014`.
Configs: `triplets` (default; needs no images) and `images`: each image that a triplet names, once.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

_KEYS = ("qid", "query-image", "query-text", "target-image")
_TEXT = datasets.Value("string")
_TRIPLETS = datasets.Features(
    {
        "reference_id": _TEXT,
        "target_id": _TEXT,
        "query_text": _TEXT,
        "reference_caption": _TEXT,
        "target_caption": _TEXT,
        "similarity": datasets.Value("float32"),
        "group_id": datasets.Value("int64"),
        "triplet_id": datasets.Value("int64"),
    }
)
_IMAGES = datasets.Features({"image_id": _TEXT, "image": datasets.Image(), "caption": _TEXT})


class LaSCo(datasets.GeneratorBasedBuilder):
    """Reads LaSCo's JSON files from `data_dir`; ids are COCO's image ids, captions are empty."""

    BUILDER_CONFIGS = [  # noqa: RUF012
        datasets.BuilderConfig(name=name, version=datasets.Version("1.0.0")) for name in ("triplets", "images")
    ]
    DEFAULT_CONFIG_NAME = "triplets"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="LaSCo: large-scale composed image retrieval on COCO (arXiv 2303.09429).",
            features=_TRIPLETS if self.config.name == "triplets" else _IMAGES,
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        folder = Path(self.config.data_dir or "")
        files = {split: folder / f"lasco_{split}.json" for split in ("train", "val")}
        present = {split: path for split, path in files.items() if path.is_file()}
        if self.config.data_dir is None or not present:
            raise ValueError(
                f"Expected lasco_train.json or lasco_val.json in data_dir, but found none in {self.config.data_dir}. "
                "Give the folder that holds LaSCo's files."
            )
        names = {"train": datasets.Split.TRAIN, "val": datasets.Split.VALIDATION}
        return [
            datasets.SplitGenerator(name=names[split], gen_kwargs={"rows": self._read(path)})
            for split, path in present.items()
        ]

    def _read(self, path: Path) -> list[dict[str, Any]]:
        """The rows of a file; images are looked for before anything is written."""
        entries = read_entries(path)
        if self.config.name == "triplets":
            return [_as_triplet(entry) for entry in entries]
        sides = (entry[side] for entry in entries for side in ("query-image", "target-image"))
        places = {str(image_id): path.parent / place for image_id, place in sides}
        missing = [str(place) for place in places.values() if not place.is_file()]
        if missing:
            raise ValueError(
                f"Expected the pictures that {path} names, but {len(missing)} are missing (the first: {missing[0]}). "
                "Put COCO's train2014 and val2014 beside the JSON files."
            )
        return [{"image_id": image_id, "image": str(place), "caption": ""} for image_id, place in places.items()]

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(rows)


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read a LaSCo file; ValueError with file and entry if it is no such file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, but {error}. Download it again.") from error
    if not isinstance(entries, list):
        raise ValueError(f"Expected a list of triplets in {path}, but found {type(entries).__name__}.")
    for number, entry in enumerate(entries):
        missing = [key for key in _KEYS if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(
                f"Expected {list(_KEYS)} in {path}, but entry {number} lacks {missing}. Take LaSCo's published file."
            )
    return entries


def _as_triplet(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "reference_id": str(entry["query-image"][0]),
        "target_id": str(entry["target-image"][0]),
        "query_text": entry["query-text"],
        "reference_caption": "",
        "target_caption": "",
        "similarity": None,  # nobody measured it
        "group_id": -1,
        "triplet_id": int(entry["qid"]),
    }
