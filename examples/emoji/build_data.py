"""Rebuild the emoji images and names from their npm packages.

    npm install --prefix examples/emoji --ignore-scripts --no-package-lock
    python examples/emoji/build_data.py

Writes `examples/emoji/data/`: Parquet in the GALLERY schema with the splits `train`, `heldout_concepts` (training
vendors, concepts that no training may see) and `heldout_vendor` (Twemoji, all concepts).
"""

import argparse
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import resvg_py
from concepts import held_out_concepts, parse_name
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as PILImage
from tqdm import tqdm

HERE = Path(__file__).parent
SIZE = 64
HELD_OUT_VENDOR = "twemoji"
FEATURES = Features(
    {
        "image_id": Value("string"),
        "image": Image(),
        "name": Value("string"),
        "keywords": Sequence(Value("string")),
        "vendor": Value("string"),
        "concept": Value("string"),
        "category": Value("string"),
        "subcategory": Value("string"),
    }
)


def read_names(packages: Path) -> dict[str, dict]:
    """Read the standard emoji: hexcode without variation selectors -> name, keywords, category."""
    names = {}
    for row in json.loads((packages / "openmoji/data/openmoji.json").read_text(encoding="utf-8")):
        if row["group"].startswith("extras") or row["group"] == "component":
            continue
        names[key_of(row["hexcode"])] = {
            "name": row["annotation"],
            "keywords": [tag.strip() for tag in row["tags"].split(",") if tag.strip()],
            "category": row["group"],
            "subcategory": row["subgroups"],
            "openmoji_file": row["hexcode"],
        }
    return names


def key_of(hexcode: str) -> str:
    """Drop the variation selector FE0F, which the vendors write or leave out as they please."""
    return (
        "-".join(part for part in hexcode.lower().replace("_", "-").split("-") if part != "fe0f")
        .removeprefix("00")
        .lstrip("0")
        or "0"
    )


def slug(name: str) -> str:
    """Write a name as the Iconify sets write it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("’", "").replace("'", "").replace(".", "")).strip("-")


def read_vendors(packages: Path, names: dict[str, dict]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (vendor, emoji key, image as PNG, WebP or SVG bytes) of every vendor."""
    for vendor, folder in (
        ("noto", "emoji-datasource-google/img/google/64"),
        (HELD_OUT_VENDOR, "emoji-datasource-twitter/img/twitter/64"),
    ):
        for path in sorted((packages / folder).glob("*.png")):
            yield vendor, key_of(path.stem), path.read_bytes()
    for path in sorted((packages / "@lobehub/fluent-emoji-3d/assets").glob("*.webp")):
        yield "fluent-3d", key_of(path.stem), path.read_bytes()
    for key, row in names.items():
        path = packages / "openmoji/color/svg" / f"{row['openmoji_file']}.svg"
        if path.exists():
            yield "openmoji", key, path.read_bytes()
    key_of_slug = {slug(row["name"]): key for key, row in names.items()}
    for vendor in ("fluent-emoji-flat", "emojione", "noto-v1"):
        folder = packages / "@iconify-json" / vendor
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        characters = (
            json.loads((folder / "chars.json").read_text(encoding="utf-8")) if (folder / "chars.json").exists() else {}
        )
        key_of_icon = {**key_of_slug, **{icon: key_of(code) for code, icon in characters.items()}}
        for name, icon in icons["icons"].items():
            if name in key_of_icon:
                yield vendor.replace("-emoji", ""), key_of_icon[name], svg_of(icon, icons)


def svg_of(icon: dict, icons: dict) -> bytes:
    """Write an icon of an Iconify set as an SVG file."""
    left, top, width, height = (icon.get(side, icons.get(side, 0)) for side in ("left", "top", "width", "height"))
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'.encode()


def render(picture: bytes) -> bytes:
    """Lay an image on white at 64 x 64 pixels; WebP, near-lossless."""
    if picture.lstrip()[:1] == b"<":
        picture = resvg_py.svg_to_bytes(svg_string=picture.decode(), width=SIZE * 2, height=SIZE * 2)
    rgba = PILImage.open(io.BytesIO(picture)).convert("RGBA")
    rgba.thumbnail((SIZE, SIZE), PILImage.Resampling.LANCZOS)
    canvas = PILImage.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(rgba, ((SIZE - rgba.width) // 2, (SIZE - rgba.height) // 2), rgba)
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", quality=82, method=6)
    return buffer.getvalue()


def main() -> None:
    """Build the data and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=HERE / "node_modules", help="the npm packages' folder")
    parser.add_argument("--output", type=Path, default=HERE / "data" / "images")
    args = parser.parse_args()

    names = read_names(args.packages)
    parsed = {key: parse_name(row["name"], row["category"]) for key, row in names.items()}
    concepts_of_category = defaultdict(set)
    for key, row in names.items():
        concepts_of_category[row["category"]].add(parsed[key].concept)
    held_out = held_out_concepts(concepts_of_category)

    rows_of_split: dict[str, list[dict]] = {"train": [], "heldout_concepts": [], "heldout_vendor": []}
    unnamed: Counter[str] = Counter()
    seen: set[str] = set()
    for vendor, key, picture in tqdm(read_vendors(args.packages, names), desc="pictures", unit=" pictures"):
        if key not in names:
            unnamed[vendor] += 1
            continue
        image_id = f"{vendor}/{key}"
        if image_id in seen:  # some packages hold an emoji twice, with and without the variation selector
            continue
        seen.add(image_id)
        concept = parsed[key].concept
        split = (
            "heldout_vendor" if vendor == HELD_OUT_VENDOR else "heldout_concepts" if concept in held_out else "train"
        )
        row = {column: names[key][column] for column in ("name", "keywords", "category", "subcategory")}
        image = {"bytes": render(picture), "path": None}
        rows_of_split[split].append({"image_id": image_id, "image": image, "vendor": vendor, "concept": concept, **row})

    args.output.mkdir(parents=True, exist_ok=True)
    for split, rows in rows_of_split.items():
        path = args.output / f"{split}.parquet"
        Dataset.from_list(rows, features=FEATURES).to_parquet(path)
        print(split, len(rows), dict(Counter(row["vendor"] for row in rows)), f"{path.stat().st_size / 1e6:.1f} MB")
    total = sum(map(len, concepts_of_category.values()))
    print(f"{len(held_out)} of {total} concepts held out; without a name: {dict(unnamed)}")


if __name__ == "__main__":
    main()
