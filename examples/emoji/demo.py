"""The demonstration: a gallery of a vendor that no training has seen, ten composed queries, a table, a page.

    make demo

Prints each query's first answer and the rank of the right one, then R@K of the mapper beside its training-free rivals
on the emoji benchmark's val split, writes `demo/index.html`, and trains a small mapper live (`live_training.py`).
"""

import argparse
import time
from pathlib import Path

import torch
from live_training import train_live
from retrieval import (
    MODEL,
    RANKS,
    build_gallery,
    evaluate_methods,
    picture_of,
    read_pictures,
    read_queries,
    table_rows,
)

from hycir_hf import Gallery, HyCIRModel, HyCIRProcessor
from hycir_hf.evaluation import compose
from hycir_hf.reports.pages import PageQuery, PageResult, PageTable, render_search_page

ROOT = Path(__file__).parents[2]
PART = "heldout_vendor"
SHOWN = 6
QUERIES = (  # reference, query text, what should be found
    ("woman firefighter", "make it a man", "man firefighter"),
    ("man cook: dark skin tone", "with light skin", "man cook: light skin tone"),
    ("woman astronaut", "change her job to a judge", "woman judge"),
    ("thumbs up", "thumbs down", "thumbs down"),
    ("green apple", "make it red", "red apple"),
    ("cat face", "show the whole animal", "cat"),
    ("up arrow", "point down instead", "down arrow"),
    ("three o’clock", "show five o'clock", "five o’clock"),
    ("flag: France", "the flag of Japan instead", "flag: Japan"),
    ("man running: medium skin tone", "make it a woman with dark skin", "woman running: dark skin tone"),
)


def answer_queries(
    model: HyCIRModel, processor: HyCIRProcessor, gallery: Gallery, features: dict[str, torch.Tensor], pictures: dict
) -> list[PageQuery]:
    """Answer the ten queries by the mapper, and print what came first."""
    id_of = {row["name"]: image_id for image_id, row in pictures.items()}
    references = [id_of[reference] for reference, _, _ in QUERIES]
    composed = compose(
        model, processor, torch.stack([features[image_id] for image_id in references]), [text for _, text, _ in QUERIES]
    )
    results = gallery.search(composed, k=len(gallery) - 1, exclude_ids=[[image_id] for image_id in references])
    page = []
    print(f"\n{'reference':32}{'query text':34}{'found first':36}rank of the right one")
    for (reference, text, target), image_id, ranking in zip(QUERIES, references, results, strict=True):
        rank = [found for found, _ in ranking].index(id_of[target]) + 1
        first = pictures[ranking[0][0]]["name"]
        print(f"{reference:32}{text:34}{first:36}{rank}")
        shown = [
            PageResult(found, score, picture_of(pictures[found]), found == id_of[target], pictures[found]["name"])
            for found, score in ranking[:SHOWN]
        ]
        note = "" if rank <= SHOWN else f"The right image, “{target}”, is at rank {rank} of {len(ranking):,}."
        page.append(PageQuery([picture_of(pictures[image_id])], text, shown, note, reference))
    return page


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "index.html")
    args = parser.parse_args()

    start = time.monotonic()
    model, processor = HyCIRModel.from_pretrained(args.model).eval(), HyCIRProcessor.from_pretrained(args.model)
    pictures = read_pictures(PART)
    gallery, features = build_gallery(model, processor, pictures, "encoding Twemoji")
    answered = answer_queries(model, processor, gallery, features, pictures)

    queries = read_queries("val", PART)
    rows = table_rows(evaluate_methods(model, processor, gallery, features, queries))
    header = ["", *(f"R@{k}" for k in RANKS)]
    caption = f"Emoji benchmark, val: {len(queries)} composed queries over {len(gallery):,} images, recall in percent"
    print(f"\n{caption}\n")
    for row in [header, *rows]:
        print(f"{row[0]:16}" + "".join(f"{cell:>8}" for cell in row[1:]))

    args.output.parent.mkdir(parents=True, exist_ok=True)
    intro = (
        "An image and a text find another image. The gallery is Twemoji, a vendor that neither the encoder nor the "
        "mapper has seen in training; the mapper was trained on images and on triplets that SynCir made of them, "
        "without any label. The reference itself is left out of each ranking; a green frame marks the right answer."
    )
    page = render_search_page(answered, "Composed image retrieval on emoji", intro, [PageTable(caption, header, rows)])
    args.output.write_text(page, encoding="utf-8")
    train_live(gallery, features, queries)
    print(f"\n{time.monotonic() - start:.0f} s. Open {args.output} in a browser.")


if __name__ == "__main__":
    main()
