"""The trainings behind the paper's tables: each model and each evaluation is kept and made once.

`tables.py` says which runs a table needs; those that tables share (K = 4, hybrid, filtered triplets) are shared here.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import concatenate_datasets, load_dataset
from safetensors.torch import load_file, save_file

from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.cli.models import default_device
from hycir_hf.evaluation import (
    MAPPER,
    TRAINING_FREE,
    BenchmarkData,
    EvaluationResults,
    encode_images,
    evaluate_benchmark,
    read_benchmark,
)
from hycir_hf.training import HybridTrainer, HybridTrainingArguments
from hycir_hf.training.arguments import read_config
from hycir_hf.training.data import Share
from hycir_hf.training.setup import load_model, open_streams

FILTERED, UNFILTERED, LASCO = "filtered", "unfiltered", "lasco"
_FILTER_REASON = "low_"  # begins the kinds of reason by a score: "low_similarity", "low_query_gain" ...


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        objective (`str`): "zs", "triplet" or "hybrid".
        num_pseudo_tokens (`int`): K.
        triplets (`str`): "filtered", "unfiltered", "lasco", or a name of `Place.further_triplets`; "none" for the
            objective "zs".
        seed (`int`): Of mapper, order and dropout.
    """

    objective: str = "hybrid"
    num_pseudo_tokens: int = 4
    triplets: str = FILTERED
    seed: int = 0

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.objective}-k{self.num_pseudo_tokens}-{self.triplets}-seed{self.seed}"


@dataclass(frozen=True)
class Place:
    """What all runs share.

    Args:
        config (`Path`): Training settings to start from; its triplets are the filtered ones.
        work (`Path`): Folder of features, models and evaluations.
        benchmark (`str`): A key of `BENCHMARKS`.
        data (`Path`): The benchmark's folder.
        steps (`int`, *optional*): In place of the config's.
        encoder (`str`, *optional*): In place of the config's.
        lasco (`str`, *optional*): LaSCo's JSON file.
        lasco_images (`str`, *optional*): LaSCo's images, where they do not lie with it.
        further_triplets (`Mapping[str, str]`): Name -> dataset on the same images, for a run's `triplets`.
    """

    config: Path
    work: Path
    benchmark: str
    data: Path
    steps: int | None = None
    encoder: str | None = None
    lasco: str | None = None
    lasco_images: str | None = None
    further_triplets: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The config, the encoder and the steps in words."""
        settings = read_config(str(self.config))
        encoder = Path(str(self.encoder or settings["encoder"])).name
        return f"{self.config.stem}-{encoder}-{self.steps or settings.get('steps')}"

    @property
    def runs(self) -> Path:
        """Folder of the runs: those of other settings or another encoder lie beside it."""
        known = json.dumps([read_config(str(self.config)), self.encoder, self.lasco], sort_keys=True)
        return self.work / f"{self.title}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


def train(place: Place, run: Run) -> Path:
    """Train a run, or find it trained: its model's folder. If interrupted, the same call resumes."""
    arguments = arguments_of(place, run)
    HybridTrainer(arguments).train()
    shutil.rmtree(Path(arguments.output_dir) / "checkpoints", ignore_errors=True)
    return Path(arguments.output_dir) / "model"


def arguments_of(place: Place, run: Run) -> HybridTrainingArguments:
    """The config's settings with those of the run over them."""
    settings = read_config(str(place.config))
    settings |= {"objective": run.objective, "num_pseudo_tokens": run.num_pseudo_tokens, "seed": run.seed}
    settings |= {"output_dir": str(place.runs / run.name), "progress": False}
    if place.steps is not None:
        warmup = min(settings.get("warmup_steps", 0), place.steps // 4)
        settings |= {"steps": place.steps, "warmup_steps": warmup, "epochs": None}
    if place.encoder is not None:
        settings["encoder"] = place.encoder
    if run.triplets in place.further_triplets:
        settings["triplet_images"] = settings.get("triplet_images") or f"{settings['triplets']}:images"
        settings["triplets"] = place.further_triplets[run.triplets]
    elif run.triplets == UNFILTERED:
        settings["triplet_images"] = settings.get("triplet_images") or f"{settings['triplets']}:images"
        settings["triplets"] = str(write_unfiltered(settings["triplets"], place.runs / "unfiltered.parquet"))
    elif run.triplets == LASCO:
        settings |= {"triplets": place.lasco, "triplet_kind": "lasco", "triplet_images": place.lasco_images}
    sources = {"unlabeled": settings["unlabeled"], "triplet": settings.get("triplet_images") or settings["triplets"]}
    for stream, source in sources.items():
        has_other_images = stream == "triplet" and run.triplets == LASCO
        if place.encoder is not None or has_other_images or not settings.get(f"{stream}_features"):
            name = "".join(letter if letter.isalnum() else "_" for letter in f"{settings['encoder']}-{source}")
            settings[f"{stream}_features"] = str(place.work / "features" / name)
    return HybridTrainingArguments(**settings)


def write_unfiltered(syncir: str, output: Path) -> Path:
    """Write SynCir's triplets together with those that its filter dropped, as a Parquet file.

    Pairs without a usable query text (equal captions, unusable or missing answers) are no triplets: they stay out.
    """
    if output.is_file():
        return output
    dropped = load_dataset(syncir, "dropped", split="train")
    dropped = dropped.filter(lambda reason: reason.startswith(_FILTER_REASON), input_columns="reason")
    kept = load_dataset(syncir, "triplets", split="train")
    columns = ["reference_id", "target_id", "query_text"]
    merged = concatenate_datasets([kept.select_columns(columns), dropped.select_columns(columns)])
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_suffix(".tmp")
    merged.to_parquet(unfinished)
    unfinished.rename(output)
    return output


def evaluate(place: Place, run: Run, split: str = "val") -> EvaluationResults:
    """Evaluate a run's mapper on a split of the benchmark, or read how it did."""
    return _evaluate(place, run, _results_path(place, run.name, split), [MAPPER], split)


def encoder_family(place: Place, run: Run) -> str:
    """Return the architecture of a trained run's encoder: "clip", "blip" ..."""
    return HyCIRModel.config_class.from_pretrained(place.runs / run.name / "model").encoder_config.model_type


def evaluate_training_free(place: Place, run: Run, split: str = "val") -> EvaluationResults:
    """Evaluate the methods that need no training, on the encoder of any run."""
    return _evaluate(place, run, _results_path(place, "training_free", split), list(TRAINING_FREE), split)


def _results_path(place: Place, name: str, split: str = "val") -> Path:
    return place.runs / name / f"{place.benchmark}-{split}.json"


def _evaluate(place: Place, run: Run, path: Path, methods: list[str], split: str) -> EvaluationResults:
    if path.is_file():
        kept = EvaluationResults.load(path)
        asked = read_benchmark(place.benchmark, place.data, split, with_images=False)
        if kept.provenance["data"]["fingerprint"] == asked.fingerprint():
            return kept
    folder = place.runs / run.name / "model"
    model = HyCIRModel.from_pretrained(folder).eval().to(default_device())
    processor = HyCIRProcessor.from_pretrained(folder)
    data = read_benchmark(place.benchmark, place.data, split)
    features = _picture_features(place, model, processor, data)
    evaluation = evaluate_benchmark(
        model, processor, data, methods=methods, image_features=features, model_name=path.parent.name
    )
    if evaluation.results is None:
        raise ValueError(f"Expected a split with answers, but {place.benchmark}'s {split} in {place.data} has none.")
    unfinished = path.with_suffix(".tmp")
    evaluation.results.save(unfinished)
    unfinished.rename(path)
    return evaluation.results


def _picture_features(place: Place, model: HyCIRModel, processor: HyCIRProcessor, data: BenchmarkData) -> torch.Tensor:
    """The benchmark's images through the frozen encoder, once for all runs and splits with the same images."""
    ids = hashlib.sha256("\n".join(data.images).encode()).hexdigest()[:16]
    path = place.work / "features" / f"{place.benchmark}-{model.encoder_fingerprint()[:16]}-{ids}.safetensors"
    if not path.is_file():
        features = encode_images(model, processor, data.images, label=data.benchmark.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"features": features.contiguous()}, unfinished)
        unfinished.rename(path)
    return load_file(path)["features"]


def complete(place: Place, runs: Sequence[Run], jobs: int = 1) -> None:
    """Train and evaluate the runs that are not there yet, `jobs` at once, each on a GPU of its own or on one thread."""
    waiting = [run for run in runs if not _results_path(place, run.name).is_file()]
    print(f"{len(runs)} runs, {len(waiting)} of them to be done, in {place.runs}", flush=True)
    if not waiting:
        return
    for run in {run.triplets: run for run in waiting}.values():
        _make_features(arguments_of(place, run), ["unlabeled", *(["triplets"] if run.triplets != "none" else [])])
    _use_one_thread()
    print(_do(place, waiting[0]), flush=True)  # alone: its evaluation encodes the benchmark's images for the others
    if jobs == 1:
        for run in waiting[1:]:
            print(_do(place, run), flush=True)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(jobs):
        numbers.put(number)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_set_up_job, initargs=(numbers,)) as pool:
        tasks = [pool.submit(_do, place, run) for run in waiting[1:]]
        try:
            for done in as_completed(tasks):
                print(done.result(), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _make_features(arguments: HybridTrainingArguments, streams: list[str]) -> None:
    """Encode the training images, before several processes want them."""
    model, processor = load_model(arguments)
    model.to(default_device())
    open_streams(streams, replace(arguments, progress=True), model, processor, Share(0, 1), lambda: None)


def _set_up_job(numbers: Any) -> None:
    """Give this process one of the GPUs, in turn, before torch looks for them."""
    if torch.cuda.device_count() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(numbers.get() % torch.cuda.device_count())
    _use_one_thread()


def _use_one_thread() -> None:
    """Use one thread on a CPU: then several jobs do not disturb each other, and sums have one order."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _do(place: Place, run: Run) -> str:
    train(place, run)
    values = {
        part: {metric: round(100 * one.mean, 2) for metric, one in metrics.items()}
        for part, metrics in evaluate(place, run).intervals()[MAPPER].items()
    }
    return f"{run.name}: {json.dumps(values)}"
