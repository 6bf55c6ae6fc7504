"""SynCir's triplet dataset as a `datasets` loading script.

    load_dataset("dataset_scripts/syncir.py", "triplets", data_dir=FOLDER, trust_remote_code=True)  # datasets 3

`datasets` 4 and later does not run scripts. There, `load_dataset(FOLDER, "triplets")` reads the same rows, and so does
the builder:

    builder = SynCir(config_name="triplets", data_dir=FOLDER)
    builder.download_and_prepare()
    triplets = builder.as_dataset(split="train")

Configs: `triplets` (default), `images` (each image once, or only its id), `dropped` (with reason, detail and scores).
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

_FILES = {"triplets": "triplets.parquet", "images": "images/part-*.parquet", "dropped": "dropped.parquet"}


class SynCir(datasets.ArrowBasedBuilder):
    """Reads the Parquet files of a SynCir folder, named by `data_dir`."""

    BUILDER_CONFIGS = [datasets.BuilderConfig(name=name, version=datasets.Version("1.0.0")) for name in _FILES]  # noqa: RUF012
    DEFAULT_CONFIG_NAME = "triplets"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # `datasets` finds its cache by this hash: the rows of an older state of the folder must not come back.
        recipe = Path(kwargs.get("data_dir") or "") / "recipe.json"
        if recipe.is_file():
            kwargs["hash"] = hashlib.sha256(recipe.read_bytes()).hexdigest()[:16]
        super().__init__(*args, **kwargs)

    def _info(self) -> datasets.DatasetInfo:
        features = datasets.Features.from_arrow_schema(pq.read_schema(self._paths()[0]))
        return datasets.DatasetInfo(
            description="Synthetic triplets for composed image retrieval (HyCIR, arXiv 2407.05795).", features=features
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"paths": self._paths()})]

    def _generate_tables(self, paths: list[str]) -> Iterator[tuple[str, pa.Table]]:
        for number, path in enumerate(paths):
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                yield f"{number:05d}-{group:05d}", file.read_row_group(group)

    def _paths(self) -> list[str]:
        if self.config.data_dir is None:
            raise ValueError("SynCir's folder is missing. Give it as data_dir=FOLDER.")
        found = sorted(map(str, Path(self.config.data_dir).glob(_FILES[self.config.name])))
        if not found:
            raise ValueError(
                f"There is no {_FILES[self.config.name]} in {self.config.data_dir}. Give SynCir's folder. (A config "
                "without rows has no file.)"
            )
        return found
