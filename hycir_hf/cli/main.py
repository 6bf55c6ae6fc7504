"""The console script `hycir`: arguments in, function called, result printed.

A subcommand is one function that adds its parser and one that runs it, and a line in `_COMMANDS`. Whatever is heavy is
imported when a subcommand runs, so that `hycir --help` loads no torch.
"""

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__

_SHOWN_NAMES = 5
_KINDS = ("flat", "sq8", "hnsw", "ivf_flat", "ivf_pq")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hycir`.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments; the process's own by default.

    Returns:
        `int`: 0 done, 1 failed, 130 interrupted. Wrong usage exits with 2 from within.
    """
    args = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    try:
        args.run(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"hycir {args.command}: error: {error} See `hycir {args.command} --help`.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _report_interrupt()
    except BrokenPipeError:  # `hycir search ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _is_interrupt(error):
            return _report_interrupt()
        if args.debug:
            raise
        print(f"hycir {args.command}: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


class UsageError(ValueError):
    """Arguments that do not go together."""


def _report_interrupt() -> int:
    print("hycir: interrupted. Run the same command again to go on.", file=sys.stderr)
    return 130


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: met while a C extension is imported, it comes out as an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="hycir", description="Composed image retrieval: a reference image and a text find the picture meant."
    )
    parser.add_argument("--version", action="version", version=f"hycir {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary, example, add_arguments, run in _COMMANDS:
        subparser = subparsers.add_parser(
            name,
            help=summary[0].lower() + summary[1:].rstrip("."),
            description=summary,
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_arguments(subparser)
        subparser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
        subparser.set_defaults(run=run, parser=subparser)
    return parser


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", metavar="S", help="data set's split, needed where there are several")
    parser.add_argument("--image-column", metavar="C", help="data set's image column ('image', or the only one)")
    parser.add_argument("--id-column", metavar="C", help="data set's id column ('image_id', or the row number)")


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help="folder of pictures, or a data set as PATH[:CONFIG]")
    parser.add_argument("--model", required=True, metavar="M", help="HyCIR model: folder or Hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the gallery; one there is replaced")
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="images at once (64)")
    parser.add_argument("--kind", choices=_KINDS, default="flat", help="index: flat is exact (default), others smaller")
    _add_columns(parser)
    parser.add_argument("--device", metavar="D", help="cpu, cuda ... (a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run_index(args: argparse.Namespace) -> None:
    from ..images import open_source
    from ..retrieval import index_images

    source = open_source(args.images, args.split, args.image_column, args.id_column)
    model, processor = _load_model(args.model, args.device)
    model_path = str(Path(args.model).resolve()) if Path(args.model).exists() else args.model
    report = index_images(
        model,
        processor,
        source,
        args.output,
        batch_size=args.batch_size,
        kind=args.kind,
        model_path=model_path,
        on_skip=_print_skip,
    )
    rate = report.num_encoded / max(report.seconds, 1e-9)
    if args.json:
        skipped = [{"image_id": id_, "reason": reason} for id_, reason in report.skipped]
        _print_json(
            gallery=args.output,
            count=len(report.gallery),
            dim=report.gallery.dim,
            kind=args.kind,
            encoded=report.num_encoded,
            resumed=report.num_resumed,
            skipped=skipped,
            images_per_second=round(rate, 1),
        )
        return
    print(f"{len(report.gallery)} images in {args.output} ({rate:.1f} images/s, kind {args.kind})")
    if report.num_resumed:
        print(f"{report.num_resumed} of them were encoded by an earlier run")
    if report.skipped:
        print(f"Skipped as unreadable: {len(report.skipped)}")


def _print_skip(image_id: str, reason: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"hycir index: skipped {_shown(image_id)}: {_shown(reason)}", file=sys.stderr)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gallery", metavar="DIR", help="gallery that `hycir index` made")
    parser.add_argument(
        "--image",
        required=True,
        action="append",
        metavar="REF",
        help="reference image: a file or an id of the gallery; give it again for several references",
    )
    parser.add_argument("--text", required=True, metavar="T", help='what to change; "" for the image alone')
    parser.add_argument("-k", type=_positive, default=10, metavar="K", help="number of results (10)")
    parser.add_argument("--model", metavar="M", help="model, by default the one that made the gallery")
    parser.add_argument(
        "--exclude-reference",
        action="append",
        default=[],
        metavar="ID",
        help="gallery id of the reference, left out; found by itself where REF lies in the indexed folder",
    )
    parser.add_argument("--keep-reference", action="store_true", help="leave the reference in the ranking")
    parser.add_argument("--html", metavar="OUT", help="write one self-contained page with the pictures")
    parser.add_argument("--device", metavar="D", help="cpu, cuda ... (a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run_search(args: argparse.Namespace) -> None:
    from ..retrieval import Gallery, read_references, search_composed

    gallery = Gallery.load(args.gallery)
    model_path = _model_of(gallery, args)
    references = read_references(gallery, args.gallery, args.image)
    own_ids = [] if args.keep_reference else references.gallery_ids
    excluded = sorted({*own_ids, *args.exclude_reference})
    model, processor = _load_model(model_path, args.device)
    results = search_composed(model, processor, gallery, references.images, args.text, args.k, excluded)
    if args.html:
        _write_page(args, gallery, references, excluded, results[0])
    if args.json:
        ranking = [{"rank": rank, "image_id": id_, "score": score} for rank, (id_, score) in enumerate(results[0], 1)]
        _print_json(images=args.image, text=args.text, excluded=excluded, results=ranking, html=args.html)
        return
    print("rank  score   image")
    for rank, (id_, score) in enumerate(results[0], 1):
        print(f"{rank:4d}  {score:+.4f}  {_shown(id_)}")
    if excluded:
        print(f"The reference is itself in the gallery and was left out: {', '.join(map(_shown, excluded))}")
    if args.html:
        print(f"Page: {args.html}")


def _model_of(gallery: Any, args: argparse.Namespace) -> str:
    model_path = args.model or gallery.model_path
    if model_path is None:
        raise ValueError(
            f"Expected --model, since the gallery {args.gallery} names no model. Give the one it was made with."
        )
    return model_path


def _add_app(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gallery", metavar="DIR", help="gallery that `hycir index` made")
    parser.add_argument("--model", metavar="M", help="model, by default the one that made the gallery")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to listen on (127.0.0.1: this machine)"
    )
    parser.add_argument("--port", type=_positive, metavar="P", help="port (the first free one from 7860)")
    parser.add_argument("--max-upload", type=_positive, default=20, metavar="MB", help="largest upload, in MB (20)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda ... (a GPU where there is one)")


def _run_app(args: argparse.Namespace) -> None:
    from ..app import build_app, launch_app, wait_for_interrupt
    from ..retrieval import Gallery

    gallery = Gallery.load(args.gallery)
    page = build_app(*_load_model(_model_of(gallery, args), args.device), gallery, args.gallery)
    url = launch_app(page, args.host, args.port, args.max_upload, block=False)
    print(f"{url} shows {len(gallery)} pictures; Ctrl-C ends it", flush=True)
    wait_for_interrupt(page)


def _add_features(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help="folder, PATH[:CONFIG] of a data set, .tar shards or .tsv")
    parser.add_argument("--model", required=True, metavar="M", help="HyCIR model or encoder: folder or Hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the feature cache")
    parser.add_argument(
        "--views", type=_positive, default=1, metavar="V", help="views of each image, more are random (1)"
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the features (float16)")
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="images at once (64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the views (0)")
    _add_columns(parser)
    parser.add_argument("--streaming", action="store_true", help="read the data set in order, without downloading it")
    parser.add_argument("--num-shards", type=_positive, metavar="N", help="jobs that share the work (all processes)")
    parser.add_argument("--shard-index", type=int, metavar="I", help="which of them this is, from 0 (this process)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda ... (a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run_features(args: argparse.Namespace) -> None:
    from transformers.utils import logging

    from ..images.features import encode_features

    logging.disable_progress_bar()

    cache = encode_features(
        args.images,
        args.model,
        args.output,
        columns=(args.split, args.image_column, args.id_column),
        is_streaming=args.streaming,
        num_shards=args.num_shards,
        shard_index=args.shard_index,
        device=args.device,
        num_views=args.views,
        dtype=args.dtype,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    skipped = [] if cache is None else cache.manifest["skipped"]
    if args.json:
        shape = None if cache is None else list(cache.features.shape)
        _print_json(features=args.output, is_complete=cache is not None, shape=shape, skipped=skipped)
    elif cache is None:
        print(f"This part of {args.output} is done; the last job to finish puts the cache together")
    else:
        print(f"{len(cache)} images in {args.output} (views, width: {cache.features.shape[1:]})")
        if skipped:
            print(f"Skipped as unreadable: {len(skipped)}; first: {_shown(': '.join(skipped[0]))}")


def _add_train(parser: argparse.ArgumentParser) -> None:
    from ..training.arguments import add_arguments

    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run_train(args: argparse.Namespace) -> None:
    from ..training.arguments import arguments_from

    arguments = arguments_from(args)  # all complaints before torch is loaded
    from transformers.utils import logging

    from ..training.trainer import HybridTrainer

    logging.disable_progress_bar()
    state = HybridTrainer(arguments).train()
    last = state.log[-1] if state.log else {}
    if args.json:
        _print_json(model=f"{arguments.output_dir}/model", steps=state.step, best_step=state.best_step, last=last)
        return
    print(f"{arguments.output_dir}/model: {state.step} steps, loss {last.get('loss', float('nan')):.4f}")
    if state.best_step is not None:
        print(f"Best {arguments.metric}: {state.best_metric:.4f} at step {state.best_step}")


def _write_page(args: argparse.Namespace, gallery: Any, references: Any, excluded: list[str], ranking: Any) -> None:
    from ..reports.pages import PageQuery, PageResult, render_search_page
    from ..retrieval import open_gallery_pictures

    pictures = open_gallery_pictures(gallery, args.gallery)
    results = []
    for id_, score in ranking:
        try:
            image = pictures.load(id_)
        except (ValueError, OSError) as error:
            print(f"hycir search: no picture for {_shown(id_)}: {_one_line(error)}", file=sys.stderr)
            image = None
        results.append(PageResult(id_, score, image))
    note = f"The reference is itself in the gallery and was left out: {', '.join(excluded)}." if excluded else ""
    names = ", ".join(Path(name).name for name in references.names)
    query = PageQuery(references.images, args.text, results, note, names)
    page = render_search_page([query], intro=f"{len(gallery)} pictures in {Path(args.gallery).resolve().name}.")
    output = Path(args.html)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8", errors="backslashreplace")  # file names need not be valid UTF-8


def _add_syncir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="folder of pictures, or a data set as PATH[:CONFIG]; `refilter DIR` moves a finished one's thresholds",
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the triplet data set")
    parser.add_argument("--config", metavar="Y", help="YAML file of settings (see SynCirConfig)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, over the file; repeatable"
    )
    _add_columns(parser)
    parser.add_argument("--estimate", action="store_true", help="print calls, tokens and cost of the LLM, then stop")
    parser.add_argument(
        "--prices", nargs=2, type=float, metavar=("IN", "OUT"), help="per million tokens, for --estimate's cost"
    )
    parser.add_argument("--until", choices=("features", "pairs", "captions", "query_texts"), help="stop after a stage")
    parser.add_argument(
        "--num-shards", type=_positive, default=1, metavar="N", help="processes that share the stage (1)"
    )
    parser.add_argument("--shard-index", type=int, default=0, metavar="I", help="which of them this is, from 0")
    parser.add_argument("--threshold", type=float, metavar="T", help="lowest similarity kept (0.7, with BERT)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda ... (a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run_syncir(args: argparse.Namespace) -> None:
    if args.images[0] == "refilter":
        _run_refilter(args)
        return
    from ..images import open_source
    from ..syncir import SynCirConfig, SynCirRun
    from ..syncir.launch import default_device, run_launched

    if len(args.images) > 1 or args.output is None:
        raise UsageError("Expected one IMAGES and --output DIR, or `refilter DIR`.")
    threshold = {} if args.threshold is None else {"threshold": args.threshold}
    config = SynCirConfig.from_yaml(args.config, **_settings(args.set), **threshold)
    source = open_source(args.images[0], args.split, args.image_column, args.id_column)
    run = SynCirRun(source, args.output, config, device=args.device or default_device())
    if args.estimate:
        _print_estimate(args, run.estimate())
        return
    recipe = run_launched(run, args.until, args.num_shards, args.shard_index)
    if recipe is not None:
        _print_recipe(args, args.output, recipe)
    elif args.json:
        _print_json(output=args.output, until=args.until, shard=args.shard_index, num_shards=args.num_shards)
    elif args.until is not None:
        print(
            f"Done until {args.until}, shard {args.shard_index} of {args.num_shards}. The same without --until goes on."
        )


def _run_refilter(args: argparse.Namespace) -> None:
    from ..syncir import refilter

    if len(args.images) != 2 or (args.threshold is None and not args.set):
        raise UsageError("Expected `refilter DIR` and --threshold T.")
    thresholds = {name: float(value) for name, value in _settings(args.set).items()}
    if args.threshold is not None:
        thresholds["similarity"] = args.threshold
    _print_recipe(args, args.images[1], refilter(args.images[1], thresholds))


def _settings(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE settings; values as YAML reads them."""
    import yaml

    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise UsageError(f"Expected --set NAME=VALUE, but found {wrong}. Write for example --set threshold=0.8.")
    return {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in pairs)}


def _print_estimate(args: argparse.Namespace, estimate: Any) -> None:
    calls = estimate.questions - estimate.answered
    cost = estimate.cost(*args.prices) if args.prices else None
    if args.json:
        _print_json(
            calls=calls,
            answered=estimate.answered,
            prompt_tokens=estimate.prompt_tokens,
            completion_tokens=estimate.completion_tokens,
            cost=cost,
        )
        return
    print(f"{calls:,} calls to make, {estimate.answered:,} answered already")
    print(f"about {estimate.prompt_tokens:,} tokens in, {estimate.completion_tokens:,} out (pictures not counted)")
    print(f"about {cost:,.2f} at these prices" if cost is not None else "--prices IN OUT gives the cost")


def _print_recipe(args: argparse.Namespace, output: str, recipe: dict[str, Any]) -> None:
    from ..syncir.report import count_rows, share_kept

    if args.json:
        _print_json(
            output=output, counts=recipe["counts"], thresholds=recipe["thresholds"], share_kept=share_kept(recipe)
        )
        return
    rows = count_rows(recipe)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:{width}}  {count:>12}" for name, count in rows))
    print("\nsimilarity")
    print("\n".join(recipe["histogram"]))
    print(f"\nThe filter kept {100 * share_kept(recipe):.1f}% of the triplets with a query text.")
    print(f"Report: {Path(output) / 'report.html'}")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="FILE", help="Pic2Word's, SEARLE's, LinCIR's or BLIP's .pt or .pth file")
    parser.add_argument("--encoder", required=True, metavar="E", help="its CLIP or BLIP: folder or Hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the HyCIR model")
    parser.add_argument("--prompt", metavar="P", help="prompt template (the original's)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run_convert(args: argparse.Namespace) -> None:
    from ..integrations.conversion import convert_checkpoint

    layout = convert_checkpoint(args.checkpoint, args.output, args.encoder, args.prompt)
    if args.json:
        _print_json(output=args.output, layout=layout)
        return
    print(f"{args.output}: converted from the layout {layout!r}")
    if layout == "blip":
        print("The checkpoint has no mapper: this one is untrained.")


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="saved model, or data set that `hycir syncir` made")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the Hub; made if missing, private")
    parser.add_argument("--public", action="store_true", help="let everybody read it; asks before")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--license", metavar="L", help="for the card: a licence of the Hub's list, such as apache-2.0")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="ID",
        help="for a model's card: Hub id of what it was trained on; repeatable",
    )
    parser.add_argument("--message", metavar="M", help="commit message")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run_push(args: argparse.Namespace) -> None:
    from ..hub import push_folder

    if args.public and not args.yes and not _confirm(f"Let everybody read {args.repo_id}?"):
        raise ValueError("Expected a yes to publish, but there was none. Leave --public out, or give --yes.")
    report = push_folder(
        args.folder,
        args.repo_id,
        private=not args.public,
        license=args.license,
        datasets=args.dataset,
        commit_message=args.message,
    )
    if args.json:
        _print_json(**vars(report))
        return
    print(f"{report.url} ({'private' if report.is_private else 'public'}): {len(report.uploaded)} files")
    if report.stripped:
        print(f"Local paths taken out: {', '.join(map(_shown, report.stripped))}")
    if report.deleted:
        print(f"Old parts deleted there: {_some(report.deleted)}")
    if report.left_out:
        print(f"Left out: {_some(report.left_out)}")
    if args.public and report.is_private:
        print(f"{args.repo_id} was private and stays so: only its page's settings can make it public.")


def _some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN_NAMES:,} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(map(_shown, names[:_SHOWN_NAMES])) + more


def _confirm(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help="HyCIR model: folder or Hub id")
    parser.add_argument(
        "--benchmark", metavar="B", help="cirr, circo, fashioniq[-union][-joined], genecis, coco, imagenet or emoji"
    )
    parser.add_argument("--data", metavar="DIR", help="the benchmark's official folder")
    parser.add_argument("--split", metavar="S", help="val by default; cirr: test1, circo and emoji: test")
    parser.add_argument("--part", action="append", metavar="P", help="only this part (dress, heldout_vendor ...)")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="N",
        help="'image only', 'text only', 'image + text', slerp, mapper, combiner, cirevl",
    )
    parser.add_argument("--combiner", metavar="DIR", help="trained combiner (objective: combiner), for that method")
    parser.add_argument("--captioner", metavar="C", help="captioning model, for cirevl: folder or Hub id")
    parser.add_argument("--llm", metavar="L", help="for cirevl: a model in this process, or the endpoint's name of one")
    parser.add_argument("--base-url", metavar="URL", help="an OpenAI-compatible endpoint that answers for --llm")
    parser.add_argument("--llm-prompt", metavar="FILE", help="text with {caption} and {text} that the LLM is asked")
    parser.add_argument("--answers", metavar="DIR", help="where the LLM's answers are kept (.cache/cirevl)")
    parser.add_argument("--pair", nargs=2, metavar="N", help="methods whose wins and losses --html shows")
    parser.add_argument("--submission", metavar="DIR", help="write the test server's files there, checked")
    parser.add_argument("--predictions", action="append", metavar="FILE", help="score rankings instead of a model")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two --json files, each as PATH[:METHOD]")
    parser.add_argument("--html", metavar="OUT", help="write one self-contained page: tables, wins and losses")
    parser.add_argument("--json", metavar="OUT", help="write the results as JSON, every query's among them")
    parser.add_argument("--allow-missing", action="store_true", help="go on without images that are not there")
    parser.add_argument("--device", metavar="D", help="cpu, cuda ... (a GPU where there is one)")


_METHOD_OPTIONS = ("combiner", "captioner", "llm", "base_url", "llm_prompt", "answers")


def _further_methods(args: argparse.Namespace) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """How to load the methods that need a model of their own, of those whose options were given."""
    if bool(args.captioner) != bool(args.llm) or ((args.base_url or args.llm_prompt or args.answers) and not args.llm):
        args.parser.error("cirevl needs --captioner and --llm; --base-url, --llm-prompt and --answers go with them")
    found: dict[str, Callable[[Any, Any, Any], Any]] = {}
    if args.combiner:
        found["combiner"] = lambda model, processor, data: _load_combiner(args.combiner, model, processor)
    if args.llm:
        found["cirevl"] = lambda model, processor, data: _load_cirevl(args, model, processor, data)
    return found


def _load_combiner(path: str, model: Any, processor: Any) -> Any:
    from ..evaluation import combiner_method
    from ..training import CombinerHead

    head = CombinerHead.from_pretrained(path).eval().to(model.device)
    if head.feature_size != model.config.feature_size:
        raise ValueError(
            f"Expected a combiner of width {model.config.feature_size}, the model's, but {path} has "
            f"{head.feature_size}. Give the one that was trained on this encoder."
        )
    return combiner_method(model, processor, head)


def _load_cirevl(args: argparse.Namespace, model: Any, processor: Any, data: Any) -> Any:
    from ..evaluation import CIREVL_PROMPT, language_method
    from ..syncir import ChatGenerator, LocalGenerator, answer_prompts
    from ..syncir.models import load_captioner

    device = str(model.device)
    generator: Any
    if args.base_url:
        generator = ChatGenerator(args.llm, args.base_url, temperature=0.0, max_tokens=60)
    else:
        generator = LocalGenerator.from_pretrained(args.llm, device, max_new_tokens=60)
    answers = Path(args.answers or ".cache/cirevl")
    prompt = Path(args.llm_prompt).read_text(encoding="utf-8") if args.llm_prompt else CIREVL_PROMPT
    return language_method(
        model,
        processor,
        data.pictures,
        load_captioner(args.captioner, device),
        lambda prompts: answer_prompts(generator, prompts, answers),
        prompt,
    )


def _run_evaluate(args: argparse.Namespace) -> None:
    from ..evaluation import run_comparison, run_evaluation, run_scoring

    ways = [name for name in ("model", "predictions", "compare") if getattr(args, name)]
    if len(ways) != 1:
        args.parser.error(f"expected one of --model, --predictions and --compare, found {ways or 'none'}")
    with_model = ("part", "submission", "html", "allow_missing", "device", "methods", "pair", *_METHOD_OPTIONS)
    unused = {
        "model": (),
        "predictions": with_model,
        "compare": ("benchmark", "data", "split", *with_model),
    }[ways[0]]
    needless = [name for name in unused if getattr(args, name)]
    if needless:
        options = ", ".join("--" + name.replace("_", "-") for name in needless)
        args.parser.error(f"--{ways[0]} goes without {options}")
    if args.compare:
        lines = run_comparison(args.compare[0], args.compare[1], args.json)
    elif not args.benchmark or not args.data:
        args.parser.error(f"--{ways[0]} needs --benchmark and --data")
    elif args.predictions:
        lines = run_scoring(args.predictions, args.benchmark, args.data, args.split, json_path=args.json)
    else:
        lines = run_evaluation(
            lambda: _load_model(args.model, args.device),
            args.model,
            args.benchmark,
            args.data,
            args.split,
            part_names=args.part,
            methods=args.methods,
            further_methods=_further_methods(args),
            pair=args.pair,
            submission=args.submission,
            html=args.html,
            json_path=args.json,
            allow_missing=args.allow_missing,
        )
    print("\n".join(lines))


def _load_model(path: str, device: str | None) -> tuple[Any, Any]:
    """The model in eval mode on its device, and its processor."""
    import datasets
    import torch
    from transformers.utils import logging

    from ..modeling_hycir import HyCIRModel
    from ..processing_hycir import HyCIRProcessor

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if not Path(path).exists() and (Path(path).is_absolute() or path.startswith(".") or path.count("/") != 1):
        raise ValueError(f"Expected a HyCIR model in {path}, but found nothing there. Give its folder or its Hub id.")
    if Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"Expected a HyCIR model in {path}, but found no config.json. Give the folder it was saved in."
        )
    model = HyCIRModel.from_pretrained(path).eval()
    processor = HyCIRProcessor.from_pretrained(path)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text}")
    return value


def _print_json(**values: Any) -> None:
    print(json.dumps(values, indent=2))


def _one_line(error: BaseException) -> str:
    return _shown(" ".join(str(error).split())) or type(error).__name__


def _shown(text: str) -> str:
    """Text with its control characters escaped: a file name may hold a newline or a terminal's commands."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


_AddArguments = Callable[[argparse.ArgumentParser], None]
_Run = Callable[[argparse.Namespace], None]
_COMMANDS: tuple[tuple[str, str, str, _AddArguments, _Run], ...] = (
    (
        "index",
        "Encode a folder of pictures, or a data set, into a gallery. Cut short, the same command goes on.",
        "  hycir index photos --model path/to/model --output gallery\n"
        "  hycir index examples/emoji/data:images --split test --model path/to/model --output gallery --kind hnsw",
        _add_index,
        _run_index,
    ),
    (
        "search",
        "Find the pictures that a reference image and a text mean.",
        '  hycir search gallery --image cat.jpg --text "make it black" -k 5 --html found.html',
        _add_search,
        _run_search,
    ),
    (
        "app",
        "Show the search page of a gallery in a browser: pick or upload a reference, type a text, go on from results.",
        "  hycir app gallery\n  hycir app gallery --port 8000 --max-upload 5",
        _add_app,
        _run_app,
    ),
    (
        "syncir",
        "Make a data set of triplets from unlabeled images. Cut short, the same command goes on.",
        "  hycir syncir photos --output triplets --set llm=gpt-4o-mini --estimate --prices 0.15 0.6\n"
        "  hycir syncir photos --output triplets --set llm=gpt-4o-mini\n"
        "  hycir syncir refilter triplets --threshold 0.8",
        _add_syncir,
        _run_syncir,
    ),
    (
        "convert",
        "Convert a checkpoint of the original Pic2Word, SEARLE, LinCIR or BLIP code.",
        "  hycir convert SEARLE_ViT-L14.pt --encoder openai/clip-vit-large-patch14 --output searle\n"
        "  hycir convert blip_coco_retrieval.pth --encoder Salesforce/blip-itm-base-coco --output blip",
        _add_convert,
        _run_convert,
    ),
    (
        "push",
        "Upload a model or a SynCir data set to the Hugging Face Hub, private unless --public.",
        "  hycir push path/to/model OWNER/my-hycir\n  hycir push triplets OWNER/my-triplets --public",
        _add_push,
        _run_push,
    ),
    (
        "evaluate",
        "Evaluate a model, or any system's files of rankings, on a benchmark; compare two results.",
        "  hycir evaluate --model path/to/model --benchmark cirr --data cirr_dataset --json results.json\n"
        "  hycir evaluate --model path/to/model --benchmark circo --data CIRCO --split test --submission files\n"
        "  hycir evaluate --model path/to/model --benchmark cirr --data cirr_dataset --methods mapper cirevl "
        "--captioner Salesforce/blip-image-captioning-base --llm NAME --base-url http://127.0.0.1:8000/v1\n"
        "  hycir evaluate --predictions recall.json --benchmark cirr --data cirr_dataset\n"
        "  hycir evaluate --compare results.json:mapper 'results.json:image + text'",
        _add_evaluate,
        _run_evaluate,
    ),
    (
        "features",
        "Encode each image once into a feature cache for training. Cut short, the same command goes on.",
        "  hycir features photos --model openai/clip-vit-large-patch14 --output features/photos\n"
        "  hycir features 'cc3m/*.tar' --model openai/clip-vit-large-patch14 --output features/cc3m --views 4",
        _add_features,
        _run_features,
    ),
    (
        "train",
        "Train a mapper by HyCIR's hybrid objective. Cut short, the same command goes on.",
        "  hycir train --config examples/configs/clip_vit_l14_paper.yaml --output-dir output/try --steps 1000",
        _add_train,
        _run_train,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
