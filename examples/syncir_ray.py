"""SynCir's stages on a Ray cluster: Ray Data gives shards to actors, which run the package's own stages.

    pip install "ray[data]"
    python examples/syncir_ray.py IMAGES OUTPUT --config syncir.yaml --workers 2

IMAGES and OUTPUT must lie on a file system that all nodes share. Every stage is resumable: if a node is lost, only its
unfinished blocks are computed again. The result is byte-identical to that of a single process.
"""

import argparse
from pathlib import Path
from typing import Any

import ray

from hycir_hf.syncir import SynCirConfig, SynCirModels, SynCirRun

SHARED_STAGES = ("features", "captions", "query_texts")


class Stage:
    """One actor: its models are loaded once and used for all its shards.

    *Input columns*: `id`, the shard's number. *Output columns*: the same.
    """

    def __init__(
        self, images: str, output: str, config: SynCirConfig, make_models: Any, stage: str, shards: int, device: str
    ) -> None:
        self.run = SynCirRun(images, output, config, make_models(), device, progress=False)
        self.stage, self.shards = stage, shards

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for shard in batch["id"].tolist():
            self.run.run(self.stage, self.shards, shard)
        return batch


def run_on_ray(
    images: str,
    output: str,
    config: SynCirConfig,
    workers: int,
    shards: int,
    make_models: Any = SynCirModels,
    num_gpus: float = 0,
) -> dict[str, Any] | None:
    """Run SynCir on the connected Ray cluster; `make_models` is called once in every actor."""
    whole = SynCirRun(images, output, config, make_models())
    for stage in ("features", "pairs", "captions", "query_texts"):
        if stage not in SHARED_STAGES:
            whole.run(stage)
            continue
        ray.data.range(shards, override_num_blocks=shards).map_batches(
            Stage,
            fn_constructor_args=(images, output, config, make_models, stage, shards, "cuda" if num_gpus else "cpu"),
            batch_size=1,
            concurrency=workers,
            num_cpus=0.5,  # Ray Data's own reading needs a CPU beside the actors
            num_gpus=num_gpus,
        ).materialize()
    return whole.run()


def main() -> None:
    """Run on the local machine, or on the cluster that RAY_ADDRESS names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder of images or dataset, readable by all nodes")
    parser.add_argument("output", type=Path)
    parser.add_argument("--config", type=Path, help="YAML file of settings (see SynCirConfig)")
    parser.add_argument("--workers", type=int, default=2, help="number of actors")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor; may be a fraction")
    parser.add_argument("--shards", type=int, help="number of shards (four per actor)")
    args = parser.parse_args()

    ray.init(ignore_reinit_error=True)
    shards = args.shards or 4 * args.workers
    config = SynCirConfig.from_yaml(args.config)
    images = str(Path(args.images).resolve()) if Path(args.images).exists() else args.images
    recipe = run_on_ray(images, str(args.output.resolve()), config, args.workers, shards, num_gpus=args.gpus)
    print(recipe["counts"] if recipe else "not finished")


if __name__ == "__main__":
    main()
