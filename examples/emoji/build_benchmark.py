"""Build the emoji benchmark: composed queries (reference image + query text -> target images), by rules.

    python examples/emoji/build_benchmark.py

Reads `examples/emoji/data/images/` and writes `examples/emoji/data/queries/{val,test}.parquet` in the QUERY schema with
one more column, `part`: which images are the gallery. A gallery holds *all* images of its vendors, of seen and of
held-out concepts, and is named by `image_id` only (`GALLERY_VENDORS`); drop the reference from each ranking.

- `training_vendor`: Noto. Its images of val's concepts were seen by the encoder's training.
- `heldout_vendor`: Twemoji, which no training has seen.
- `mixed`: Noto, OpenMoji, Fluent 3D and Twemoji: the same emoji by every vendor is correct, the
  reference's vendor first.

val holds the concepts of training, test only concepts that training has never seen (reference and target alike). Each
pair of images is asked in all of its rule's wordings, so that the sensitivity to wording can be measured on pairs.
"""

import argparse
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from rules import Change, EmojiIndex, Rule, make_rules

from hycir_hf.evaluation import EMOJI_VENDORS as GALLERY_VENDORS
from hycir_hf.schemas import QUERY

HERE = Path(__file__).parent
FEATURES = Features({**QUERY, "part": Value("string")})
SUBSET_SIZE = 6  # as CIRR's subsets
NUM_HARD_NEGATIVES = 8
# Pairs of images of one rule in one part. Where the text alone names the target, fewer: they are not the point.
MAX_PAIRS = 8
MAX_PAIRS_OF_RULE = {"flag": 6, "animal": 4, "food": 4, "vehicle": 4, "skin_tone_removed": 4, "moon_face": 4}


@dataclass(frozen=True)
class Picture:
    """One emoji as one vendor draws it."""

    image_id: str
    name: str
    vendor: str
    concept: str
    category: str
    subcategory: str
    fingerprint: bytes  # of the file: some vendors draw two emoji alike


@dataclass(frozen=True)
class Pair:
    """A reference and its target in one gallery, and the change that leads from one to the other."""

    rule: Rule
    reference: Picture
    target: Picture
    change: Change


class World:
    """All images, by vendor and name, and what the split says of their concepts."""

    def __init__(self, images: Path):
        """Read the images' names, without decoding the images."""
        columns = ["image_id", "image", "name", "vendor", "concept", "category", "subcategory"]
        self.pictures: dict[str, dict[str, Picture]] = defaultdict(dict)
        self.split_of_concept: dict[str, str] = {}
        for split in ("train", "heldout_concepts", "heldout_vendor"):
            for row in pq.read_table(images / f"{split}.parquet", columns=columns).to_pylist():
                fingerprint = hashlib.sha256(row.pop("image")["bytes"]).digest()
                self.pictures[row["vendor"]][row["name"]] = Picture(**row, fingerprint=fingerprint)
                if split != "heldout_vendor":
                    self.split_of_concept[row["concept"]] = "val" if split == "train" else "test"
        everything = [picture for vendor in self.pictures.values() for picture in vendor.values()]
        self.index = EmojiIndex((picture.name, picture.category, picture.subcategory) for picture in everything)
        countries = [name for name, _ in self.index.names_of_family["flag"]]
        self.rules = make_rules(name.removeprefix("flag: ") for name in countries)
        split_of_name = {picture.name: self.split_of_concept.get(picture.concept) for picture in everything}
        self.changes_of: dict[tuple[str | None, Rule], list[Change]] = defaultdict(list)
        for rule in self.rules:
            for change in rule.apply(self.index):
                if split_of_name[change.name] == split_of_name[change.target_name]:
                    self.changes_of[split_of_name[change.name], rule].append(change)

    def draws(self, picture: Picture, vendor: str) -> Picture | None:
        """Return the same emoji by another vendor."""
        return self.pictures[vendor].get(picture.name)


@cache
def hash_of(text: str) -> int:
    """Hash a text: an order by hash survives new emoji and new rules."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def order_of(*parts: str) -> int:
    """Order by the hashes of several texts, each of which is hashed once only."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 0x9E3779B97F4A7C15 + hash_of(part)) % 2**64
    return mixed ^ mixed >> 32


def pairs_of(rule: Rule, vendors: tuple[str, ...], split: str, world: World) -> Iterator[Pair]:
    """Yield all pairs of images of a rule, each emoji by one of the vendors."""
    for change in world.changes_of[split, rule]:
        drawn = [(by.get(change.name), by.get(change.target_name)) for by in map(world.pictures.__getitem__, vendors)]
        drawn = [(one, two) for one, two in drawn if one and two and one.fingerprint != two.fingerprint]
        if drawn:
            yield Pair(rule, *min(drawn, key=lambda it: order_of(rule.name, it[0].image_id, it[1].image_id)), change)


def choose(pairs: Iterable[Pair], limit: int, part: str) -> list[Pair]:
    """Choose pairs in rounds over (reference's concept, what the text asks for), by hash: no concept dominates."""
    rounds: list[tuple[int, int, int, Pair]] = []
    in_group: Counter[tuple] = Counter()
    of_concept: Counter[str] = Counter()
    ordered = sorted(pairs, key=lambda it: order_of(it.reference.image_id, it.target.image_id, part, it.rule.name))
    for number, pair in enumerate(ordered):
        group = (pair.reference.concept, *pair.change.phrases.values())
        rounds.append((in_group[group], of_concept[pair.reference.concept], number, pair))
        in_group[group] += 1
        of_concept[pair.reference.concept] += 1
    return [pair for *_, pair in sorted(rounds, key=lambda row: row[:3])[:limit]]


def targets_of(pair: Pair, vendors: tuple[str, ...], world: World) -> list[Picture]:
    """List the correct images, the reference's vendor first: the target by each vendor, and any drawn just alike."""
    ordered = sorted(vendors, key=lambda vendor: vendor != pair.reference.vendor)
    by_vendor = [picture for vendor in ordered if (picture := world.draws(pair.target, vendor))]
    found = {picture.image_id: picture for picture in by_vendor}
    for same in by_vendor:
        for picture in world.pictures[same.vendor].values():
            if picture.fingerprint == same.fingerprint:
                found.setdefault(picture.image_id, picture)
    return list(found.values())


def hard_negatives_of(pair: Pair, targets: list[Picture], vendors: tuple[str, ...], world: World) -> list[Picture]:
    """List images that ignore the text, or do something else with it, hardest first.

    They are of the reference's family (a person's variants, coloured shapes, flags ...) and by its vendor, nearest to
    the target and then to the reference; in a mixed gallery also the reference's emoji by the other vendors.
    """
    wrong = {target.fingerprint for target in targets} | {pair.reference.fingerprint}
    rows = []
    for name, reading in world.index.names_of_family[pair.change.reading.family]:
        from_target = reading.distance(pair.change.target_reading)
        picture = world.pictures[pair.reference.vendor].get(name)
        if from_target > 2 or picture is None or picture.fingerprint in wrong:
            continue
        both = from_target + reading.distance(pair.change.reading)
        subcategory = picture.subcategory != pair.target.subcategory
        key = (both, from_target, subcategory, order_of(pair.reference.name, pair.target.name, name))
        rows.append((key, picture))
    nearest = [picture for _, picture in sorted(rows, key=lambda row: row[0])]
    others = [picture for vendor in vendors if (picture := world.draws(pair.reference, vendor))]
    ignoring = [picture for picture in others if picture.fingerprint not in wrong]
    mixed = [picture for both in zip_longest(nearest, ignoring) for picture in both if picture]
    return mixed[:NUM_HARD_NEGATIVES]


def subset_of(pair: Pair, targets: list[Picture], negatives: list[Picture], world: World) -> list[str]:
    """Fill a subset of six with the hard negatives, then with images of the target's subcategory."""
    wrong = {picture.fingerprint for picture in (pair.reference, *targets)}
    candidates = negatives
    if len(negatives) < SUBSET_SIZE - 1:
        drawn = world.pictures[pair.reference.vendor].values()
        fill = [it for it in drawn if it.category == pair.target.category and it.fingerprint not in wrong]
        elsewhere = {it.image_id: it.subcategory != pair.target.subcategory for it in fill}
        fill.sort(key=lambda it: (elsewhere[it.image_id], order_of(it.name, pair.target.name)))
        candidates = [*negatives, *fill]
    chosen = list(dict.fromkeys(picture.image_id for picture in candidates))[: SUBSET_SIZE - 1]
    return sorted([pair.target.image_id, *chosen])  # sorted: the place says nothing


def queries_of(pair: Pair, part: str, split: str, world: World) -> Iterator[dict]:
    """Yield a pair's query in each wording; none where a correct image belongs to the other split."""
    vendors = GALLERY_VENDORS[part]
    targets = targets_of(pair, vendors, world)
    negatives = hard_negatives_of(pair, targets, vendors, world)
    target_ids = [picture.image_id for picture in targets]
    if not negatives or pair.reference.image_id in target_ids:
        return
    if any(world.split_of_concept.get(picture.concept) != split for picture in targets):
        return
    target_key = pair.target.image_id.partition("/")[2]
    subset_ids = subset_of(pair, targets, negatives, world)
    for wording, template in enumerate(pair.rule.wordings):
        yield {
            "query_id": f"{split}.{part}.{pair.rule.name}.{pair.reference.image_id}.{target_key}.{wording}",
            "reference_id": pair.reference.image_id,
            "query_text": template.format(**pair.change.phrases),
            "target_ids": target_ids,
            "subset_ids": subset_ids,
            "hard_negative_ids": [picture.image_id for picture in negatives],
            "rule": pair.rule.name,
            "wording": wording,
            "split": split,
            "part": part,
        }


def build_queries(world: World, split: str) -> list[dict]:
    """Build the queries of a split, `"val"` or `"test"`."""
    queries = []
    for part, vendors in GALLERY_VENDORS.items():
        for rule in world.rules:
            limit = MAX_PAIRS_OF_RULE.get(rule.name, MAX_PAIRS)
            for pair in choose(pairs_of(rule, vendors, split, world), limit, part):
                queries += queries_of(pair, part, split, world)
    return queries


def write_queries(images: Path, output: Path) -> dict[str, list[dict]]:
    """Build and write both splits; the same images give the same bytes."""
    output.mkdir(parents=True, exist_ok=True)
    world = World(images)
    queries = {split: build_queries(world, split) for split in ("val", "test")}
    for split, rows in queries.items():
        Dataset.from_list(rows, features=FEATURES).to_parquet(output / f"{split}.parquet")
    return queries


def print_counts(queries: dict[str, list[dict]]) -> None:
    """Print how many queries each rule has in each split and part."""
    columns = [(split, part) for split in queries for part in GALLERY_VENDORS]
    counts = Counter((row["rule"], row["split"], row["part"]) for rows in queries.values() for row in rows)
    print(f"{'rule':22}", *(f"{split + ' ' + part:>20}" for split, part in columns))
    for rule in dict.fromkeys(rule for rule, _, _ in counts):
        print(f"{rule:22}", *(f"{counts[rule, split, part]:20}" for split, part in columns))
    print({split: len(rows) for split, rows in queries.items()})


def main() -> None:
    """Build the benchmark and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=HERE / "data" / "images", help="the pictures' folder")
    parser.add_argument("--output", type=Path, default=HERE / "data" / "queries")
    args = parser.parse_args()
    print_counts(write_queries(args.images, args.output))


if __name__ == "__main__":
    main()
