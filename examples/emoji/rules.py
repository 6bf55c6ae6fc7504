"""The rules of the emoji benchmark: what a query text changes, and in which words it asks for it.

A *reader* takes a Unicode name apart into a `Reading`: a family and its attributes ("red heart" -> family `shape`,
colour `red`, shape `heart`). A `Rule` names the attributes that change; its target is the emoji of the same family
that differs from the reference in exactly these attributes. The rules and all their words stand in `rules.yaml`: to add
a rule, add an entry there. If it is about names that no reader knows, also add one line to `PATTERNS`.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from concepts import EmojiName, parse_name

WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))

Phrases = dict[str, str | None]  # value -> how a text says it; None: a change may start here, but not lead here


@dataclass(frozen=True)
class Reading:
    """One way to read an emoji's name: a family, and the values of its attributes (sorted by attribute)."""

    family: str
    values: tuple[tuple[str, str], ...]

    def get(self, attribute: str) -> str | None:
        """Return the value of an attribute, or `None` if the family has no such attribute."""
        return self._value_of.get(attribute)

    @cached_property
    def _value_of(self) -> dict[str, str]:
        return dict(self.values)

    def distance(self, other: "Reading") -> int:
        """Count the attributes in which two readings of a family differ."""
        return len(set(self.values) - set(other.values))


def read(family: str, **values: str | None) -> Reading:
    """Make a reading; an attribute that is `None` counts as the empty value."""
    return Reading(family, tuple(sorted((attribute, value or "") for attribute, value in values.items())))


@dataclass(frozen=True)
class Change:
    """A rule applied to an emoji: its name, the target's, and the phrases that the wordings ask for it with."""

    name: str
    target_name: str
    phrases: dict[str, str]
    reading: Reading
    target_reading: Reading


@dataclass(frozen=True, eq=False)
class Rule:
    """What changes (attribute -> its values' phrases), in which families, and how a text may say so.

    Each attribute of `changes` changes; each other attribute of the family stays as it is.
    """

    name: str
    families: tuple[str, ...]
    changes: dict[str, Phrases]
    wordings: tuple[str, ...]

    def apply(self, emoji: "EmojiIndex") -> Iterator[Change]:
        """Yield every change that the rule can make of an emoji."""
        alike: dict[tuple, list[tuple[str, Reading]]] = defaultdict(list)  # all but the attributes that change
        for family in self.families:
            for name, reading in emoji.names_of_family[family]:
                if any(reading.get(attribute) not in phrases for attribute, phrases in self.changes.items()):
                    continue
                kept = tuple(item for item in reading.values if item[0] not in self.changes)
                alike[family, kept].append((name, reading))
        for group in alike.values():
            for (name, reading), (target_name, target) in itertools.permutations(group, 2):
                phrases = self._phrases(reading, target)
                if phrases and len(emoji.names_of[target]) == 1:  # more than one: the text would be ambiguous
                    yield Change(name, target_name, phrases, reading, target)

    def _phrases(self, reading: Reading, target: Reading) -> dict[str, str]:
        """Say the target's values of the attributes that change; nothing if this is no change that the rule makes."""
        said = {}
        for attribute, phrases in self.changes.items():
            old, new = reading.get(attribute), target.get(attribute)
            if old == new or not (phrase := phrases[new]):
                return {}
            said[attribute] = phrase
        return said


class EmojiIndex:
    """All emoji, by name and by reading."""

    def __init__(self, emoji: Iterable[tuple[str, str, str]]):
        """Read the names: (name, category, subcategory) of every emoji."""
        self.readings_of: dict[str, list[Reading]] = {}
        self.names_of: dict[Reading, list[str]] = defaultdict(list)
        self.names_of_family: dict[str, list[tuple[str, Reading]]] = defaultdict(list)
        for name, category, subcategory in sorted(set(emoji)):
            self.readings_of[name] = readings(name, category, subcategory)
            for reading in self.readings_of[name]:
                self.names_of[reading].append(name)
                self.names_of_family[reading.family].append((name, reading))


# ---------------------------------------------------------------- readers

_COLOURS = "red|orange|yellow|green|blue|light blue|purple|brown|black|white|grey|pink"
_TONED = r"(: (?P<tone>[a-z-]+) skin tone)?"
_TWO_PART_ANIMALS = "mouse|cow|tiger|cat|horse|dog|pig|rabbit|monkey|dragon"

# family -> pattern of the whole name; the named groups are the attributes
PATTERNS = {
    "shape": rf"(?P<colour>{_COLOURS}) (?P<shape>heart|circle|square)",
    "book": r"(?P<colour>green|orange|blue|closed) book",
    "apple": r"(?P<colour>red|green) apple",
    "mark": r"(?P<colour>red|white) (?P<mark>exclamation|question) mark",
    "diamond": r"(?P<size>small|large) (?P<colour>orange|blue) diamond",
    "arrow": r"(?P<direction>up|down|left|right|up-left|up-right|down-left|down-right|left-right) arrow",
    "pointing hand": rf"backhand index pointing (?P<direction>up|down|left|right){_TONED}",
    "thumb": rf"thumbs (?P<direction>up|down){_TONED}",
    "palm": rf"palm (?P<direction>up|down) hand{_TONED}",
    "triangle": r"red triangle pointed (?P<direction>up|down)",
    "fast button": r"fast (?P<direction>up|down) button",
    "flag": r"flag: (?P<country>.+)",
    "keycap": r"keycap: (?P<number>\d+)",
    "medal": r"(?P<number>1st|2nd|3rd) place medal",
    "clock": r"(?P<hour>[a-z]+)(?P<minutes> o’clock|-thirty)",
    "animal part": rf"(?P<animal>{_TWO_PART_ANIMALS})(?P<part> face)?",
    "moon part": r"(?P<moon>new moon|first quarter moon|full moon|last quarter moon)(?P<part> face)?",
    "moon": r"(?P<phase>(new|full|first quarter|last quarter|(waxing|waning) (crescent|gibbous)) moon)",
}
_COMPILED = {family: re.compile(pattern) for family, pattern in PATTERNS.items()}
_COUPLES = ("kiss", "couple with heart", "holding hands", "with bunny ears", "wrestling")


def readings(name: str, category: str, subcategory: str) -> list[Reading]:
    """Read a Unicode name in all ways that the rules know."""
    found = [
        read(family, **match.groupdict())
        for family, pattern in _COMPILED.items()
        if (match := pattern.fullmatch(name)) and (family != "flag" or subcategory == "country-flag")
    ]
    if category == "people-body":
        found += _person_readings(parse_name(name, category))
    if subcategory.startswith(("face-", "cat-face")):
        found.append(read("smiley", species="cat" if "cat" in name.split() else "face", expression=_expression(name)))
    if subcategory.startswith("animal-"):
        found.append(read("animal", animal=name))
    if subcategory in ("food-fruit", "food-vegetable", "food-sweet", "food-prepared", "food-asian"):
        found.append(read("food", food=name))
    if subcategory in ("transport-ground", "transport-air", "transport-water"):
        found.append(read("vehicle", vehicle=name))
    return found


def _expression(name: str) -> str:
    """Write a smiley's name without its species: "grinning cat", "grinning face" -> "grinning"."""
    return re.sub(r"\b(face|cat)\b ?", "", name).strip()


def _person_readings(emoji: EmojiName) -> list[Reading]:
    """Read a person, a couple or a hand."""
    tone = "+".join(emoji.skin_tones) or "yellow"
    gender = emoji.gender or "neutral"
    if emoji.concept in _COUPLES:
        if emoji.concept in ("with bunny ears", "wrestling") and not re.match(r"(men|women|people) ", emoji.base):
            return []
        # Who of a couple of two skin tones keeps which tone, a text does not say: no rule changes those.
        pair = f"{_pair(emoji)} of two skin tones" if "+" in tone else _pair(emoji)
        return [read("couple", concept=emoji.concept, pair=pair, tone=tone)]
    if emoji.concept in ("family", "handshake"):
        return []
    facing = "right" if emoji.name.endswith("facing right") else "left"
    kept = {"concept": emoji.concept, "tone": tone, "hair": emoji.hair, "facing": facing}
    if emoji.concept == "child":
        young = {"female": "girl", "male": "boy"}.get(gender, "child")
        return [read("person", gender=young, **kept), read("age", gender=gender, **kept)]
    found = [read("person", gender=gender, **kept)]
    if emoji.concept in WORDS["phrases"]["ages"]:
        found.append(read("age", gender=gender, **kept))
    return found


def _pair(emoji: EmojiName) -> str:
    """Say who a couple is."""
    words = set(re.findall(r"[a-z]+", emoji.name))
    if words >= {"woman", "man"}:
        return "woman and man"
    return {"female": "women", "male": "men"}.get(emoji.gender or "", "people")


# ---------------------------------------------------------------- rules


def make_rules(countries: Iterable[str]) -> tuple[Rule, ...]:
    """Make the rules of `rules.yaml`.

    Args:
        countries: The names of all countries that have a flag.
    """
    phrases = WORDS["phrases"] | {"countries": _country_phrases(countries)}
    rules = []
    for words in WORDS["rules"]:
        changes = {key: phrases[table] if isinstance(table, str) else table for key, table in words["changes"].items()}
        rules.append(Rule(words["name"], tuple(words["families"]), changes, tuple(words["wordings"])))
    return tuple(rules)


def _country_phrases(countries: Iterable[str]) -> Phrases:
    """Say every country; a flag that is not unique is never asked for."""
    spoken = {name: f"the {name}" if name in WORDS["countries_with_article"] else name for name in sorted(countries)}
    return {name: None if name in WORDS["shared_flags"] else phrase for name, phrase in spoken.items()}
