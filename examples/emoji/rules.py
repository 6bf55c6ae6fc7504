"""The rules of the emoji benchmark: what a query text changes, and in which words it asks for it.

A *reader* takes a Unicode name apart into a `Reading`: a family and its attributes ("red heart" -> family `shape`,
colour `red`, shape `heart`). A `Rule` names the attributes that change; its target is the emoji of the same family
that differs from the reference in exactly these attributes. To add a rule, add one entry to `RULES`; if it is about
names that no reader knows, add one line to `PATTERNS`.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from concepts import SKIN_TONES, EmojiName, parse_name

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
    if emoji.concept in AGES:
        found.append(read("age", gender=gender, **kept))
    return found


def _pair(emoji: EmojiName) -> str:
    """Say who a couple is."""
    words = set(re.findall(r"[a-z]+", emoji.name))
    if words >= {"woman", "man"}:
        return "woman and man"
    return {"female": "women", "male": "men"}.get(emoji.gender or "", "people")


# ---------------------------------------------------------------- phrases

GENDERS: Phrases = {
    "male": "a man",
    "female": "a woman",
    "neutral": None,
    "boy": "a boy",
    "girl": "a girl",
    "child": None,
}
PAIRS: Phrases = {"men": "two men", "women": "two women", "woman and man": "a woman and a man", "people": None}
TONES: Phrases = {"yellow": None, **{tone: tone for tone in SKIN_TONES}}
HAIR: Phrases = {
    "": None,
    "red hair": "red hair",
    "curly hair": "curly hair",
    "white hair": "white hair",
    "blond hair": "blond hair",
    "bald": "a bald head",
    "beard": "a beard",
}
# A baby has no gender, so that "an adult" could be any of three.
AGES: Phrases = {"baby": "a baby", "child": "a child", "adult": None, "older adult": "an old person"}
ROLES: Phrases = {
    "farmer": "a farmer",
    "cook": "a cook",
    "student": "a student",
    "singer": "a singer",
    "artist": "an artist",
    "teacher": "a teacher",
    "factory worker": "a factory worker",
    "office worker": "an office worker",
    "mechanic": "a mechanic",
    "scientist": "a scientist",
    "astronaut": "an astronaut",
    "firefighter": "a firefighter",
    "judge": "a judge",
    "pilot": "a pilot",
    "police officer": "a police officer",
    "guard": "a royal guard",
    "detective": "a detective",
    "technologist": "a technologist at a computer",
    "health worker": "a health worker",
    "construction worker": "a construction worker",
}
ACTIVITIES: Phrases = {
    "running": "running",
    "kneeling": "kneeling",
    "standing": "standing",
    "climbing": "climbing",
    "getting massage": "getting a massage",
    "getting haircut": "getting a haircut",
    "tipping hand": "tipping a hand",
    "gesturing NO": "gesturing no with crossed arms",
    "raising hand": "raising a hand",
    "shrugging": "shrugging",
    "in lotus position": "sitting in the lotus position",
    "surfing": "surfing",
    "lifting weights": "lifting weights",
    "golfing": "playing golf",
    "rowing boat": "rowing a boat",
    "biking": "riding a bicycle on the road",
    "cartwheeling": "doing a cartwheel",
    "juggling": "juggling",
    "playing water polo": "playing water polo",
    "playing handball": "playing handball",
    "walking": "walking",
    "swimming": "swimming",
    "bowing": "bowing deeply",
    "facepalming": "facepalming",
    "gesturing OK": "gesturing OK with the arms over the head",
}
GESTURES: Phrases = {
    "thumbs up": "a thumbs up",
    "thumbs down": "a thumbs down",
    "raised fist": "a raised fist",
    "waving hand": "a waving hand",
    "vulcan salute": "a vulcan salute",
    "OK hand": "an OK sign",
    "pinched fingers": "pinched fingers",
    "sign of the horns": "the sign of the horns",
    "call me hand": "a call me sign",
    "crossed fingers": "crossed fingers",
    "victory hand": "a victory sign",
    "folded hands": "folded hands",
    "clapping hands": "clapping hands",
    "heart hands": "a heart made by two hands",
    "raising hands": "two raised hands",
    "raised hand": "a raised hand with the fingers together",
    "love-you gesture": "the love-you gesture",
    "palm up hand": "a hand with the palm up",
    "palm down hand": "a hand with the palm down",
    "right-facing fist": "a fist that faces right",
    "rightwards pushing hand": "a hand that pushes to the right",
}
EXPRESSIONS: Phrases = {
    "grinning": None,
    "slightly smiling": None,
    "neutral": None,
    "winking with tongue": "winking with the tongue out",
    "smiling with heart-eyes": "with hearts for eyes",
    "blowing a kiss": "blowing a kiss",
    "smiling with halo": "with a halo",
    "smiling with sunglasses": "wearing sunglasses",
    "smiling with hearts": "surrounded by hearts",
    "smiling with tear": "smiling with a tear",
    "nerd": "with thick nerdy glasses",
    "with monocle": "with a monocle",
    "thinking": "thinking with a hand on the chin",
    "shushing": "shushing with a finger on the lips",
    "saluting": "saluting",
    "cowboy hat": "wearing a cowboy hat",
    "partying": "partying with a party hat",
    "disguised": "in disguise",
    "smiling with horns": "smiling with horns",
    "angry with horns": "angry with horns",
    "with symbols on mouth": "swearing with symbols over the mouth",
    "zipper-mouth": "with a zipped mouth",
    "with raised eyebrow": "with one raised eyebrow",
    "with rolling eyes": "rolling its eyes",
    "sleeping": "fast asleep",
    "drooling": "drooling",
    "yawning": "yawning",
    "loudly crying": "crying loudly",
    "screaming in fear": "screaming in fear",
    "upside-down": "upside down",
    "rolling on the floor laughing": "rolling on the floor laughing",
    "melting": "melting",
    "with medical mask": "wearing a medical mask",
    "with thermometer": "with a thermometer in the mouth",
    "with head-bandage": "with a bandaged head",
    "nauseated": "nauseated",
    "vomiting": "throwing up",
    "sneezing": "sneezing",
    "cold": "freezing cold",
    "money-mouth": "with money in the mouth",
    "with spiral eyes": "with spirals for eyes",
    "without mouth": "without a mouth",
    "star-struck": "with stars for eyes",
    "confounded": "confounded",
    "anguished": "anguished",
    "fearful": "fearful",
    "tired": "tired",
    "persevering": None,
    "pleading": "pleading with big eyes",
    "with diagonal mouth": "with a diagonal mouth",
    "clown": "made up as a clown",
    "ogre": "as an ogre",
    "with steam from nose": "with steam coming out of the nose",
    "in clouds": "hidden in clouds",
    "lying": "with a long nose from lying",
    "relieved": "relieved",
    "with tears of joy": "laughing with tears of joy",
    "with crossed-out eyes": "with crosses for eyes",
    "exploding head": "with an exploding head",
}
SPECIES: Phrases = {"cat": "a cat", "face": "an ordinary smiley"}
# "closed book" is the red one. The heart suit is a red heart too and the hollow red circle a red circle, so that no
# text asks for red shapes.
COLOURS: Phrases = {colour: colour for colour in _COLOURS.split("|")} | {"red": None}
RED_TOO: Phrases = {"red": "red", "white": "white", "green": "green"}
BOOK_COLOURS: Phrases = {"green": "green", "orange": "orange", "blue": "blue", "closed": "red"}
SHAPES: Phrases = {"heart": "a heart", "circle": "a circle", "square": "a square"}
DIRECTIONS: Phrases = {
    "up": "up",
    "down": "down",
    "left": "to the left",
    "right": "to the right",
    "up-left": "up and to the left",
    "up-right": "up and to the right",
    "down-left": "down and to the left",
    "down-right": "down and to the right",
    "left-right": "both left and right",
}
HOURS: Phrases = {
    hour: hour
    for hour in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
}
NUMBERS: Phrases = {str(number): f"the number {number}" for number in range(11)} | {
    "1st": "first place",
    "2nd": "second place",
    "3rd": "third place",
}
PHASES: Phrases = {
    phase: f"a {phase}"
    for phase in (
        "waxing crescent moon",
        "waxing gibbous moon",
        "waning gibbous moon",
        "waning crescent moon",
    )
} | dict.fromkeys(("new moon", "first quarter moon", "full moon", "last quarter moon"))  # these are drawn twice
ANIMALS: Phrases = {
    **dict.fromkeys(("rabbit face", "monkey face", "dog face", "cat face", "cow face", "tiger face", "wing", "coral")),
    **{
        animal: f"a {animal}"
        for animal in (
            "frog",
            "goat",
            "koala",
            "hamster",
            "wolf",
            "panda",
            "chipmunk",
            "lion",
            "unicorn",
            "bat",
            "fox",
            "deer",
            "gorilla",
            "rhinoceros",
            "giraffe",
            "zebra",
            "kangaroo",
            "llama",
            "hippopotamus",
            "raccoon",
            "badger",
            "sloth",
            "skunk",
            "penguin",
            "peacock",
            "parrot",
            "swan",
            "flamingo",
            "duck",
            "snail",
            "spider",
            "scorpion",
            "dolphin",
            "crab",
            "shark",
            "squid",
            "jellyfish",
            "crocodile",
            "turtle",
            "boar",
            "hedgehog",
            "beaver",
            "lobster",
            "snake",
            "lizard",
            "sauropod",
            "butterfly",
            "cricket",
            "dodo",
        )
    },
    **{animal: f"an {animal}" for animal in ("otter", "octopus", "eagle", "elephant", "owl", "ant")},
}
FOODS: Phrases = {
    **{
        food: f"a {food}"
        for food in (
            "watermelon",
            "lemon",
            "banana",
            "pineapple",
            "pear",
            "peach",
            "coconut",
            "mango",
            "croissant",
            "hamburger",
            "strawberry",
            "cucumber",
            "carrot",
            "tangerine",
            "lime",
            "cupcake",
            "shortcake",
            "doughnut",
            "lollipop",
            "taco",
            "burrito",
            "sandwich",
            "waffle",
            "bagel",
            "pretzel",
        )
    },
    **dict.fromkeys(("potato", "cookie", "hot pepper", "bell pepper")),
    **{food: food for food in ("grapes", "cherries", "pancakes", "sushi", "popcorn", "pizza", "broccoli", "garlic")},
    "avocado": "an avocado",
    "onion": "an onion",
    "eggplant": "an eggplant",
    "rice ball": "a rice ball",
    "kiwi fruit": "a kiwi fruit",
    "fortune cookie": "a fortune cookie",
    "oden": "oden on a stick",
}
VEHICLES: Phrases = {
    **{
        vehicle: f"a {vehicle}"
        for vehicle in (
            "bicycle",
            "motorcycle",
            "tractor",
            "helicopter",
            "sailboat",
            "canoe",
            "skateboard",
            "ferry",
            "speedboat",
            "rocket",
            "monorail",
        )
    },
    "police car": "a police car seen from the side",
    "taxi": "a taxi seen from the side",
    "oncoming bus": "a bus seen from the front",
    "light rail": "a light rail train",
    "motor boat": "a motor boat",
    "fire engine": "a fire engine",
    "ambulance": "an ambulance",
    "flying saucer": "a flying saucer",
    "auto rickshaw": "an auto rickshaw",
    "kick scooter": "a kick scooter",
}
# Flags that another country or territory flies too, or that differ in a shade only.
_SHARED_FLAGS = {
    "Norway",
    "Bouvet Island",
    "Svalbard & Jan Mayen",
    "France",
    "St. Martin",
    "Clipperton Island",
    "Mayotte",
    "Réunion",
    "French Guiana",
    "Guadeloupe",
    "Martinique",
    "St. Pierre & Miquelon",
    "St. Barthélemy",
    "Wallis & Futuna",
    "French Southern Territories",
    "New Caledonia",
    "United States",
    "U.S. Outlying Islands",
    "Australia",
    "Heard & McDonald Islands",
    "Romania",
    "Chad",
    "Indonesia",
    "Monaco",
    "Netherlands",
    "Luxembourg",
    "Caribbean Netherlands",
    "United Kingdom",
    "Diego Garcia",
    "Ascension Island",
    "St. Helena",
    "Tristan da Cunha",
    "British Indian Ocean Territory",
    "Spain",
    "Ceuta & Melilla",
    "European Union",
    "United Nations",
    "Antarctica",
    "Congo - Kinshasa",
    "Congo - Brazzaville",
    "Myanmar (Burma)",
    "Hong Kong SAR China",
    "Macao SAR China",
    "Palestinian Territories",
    "Canary Islands",
    "Poland",
    "Ireland",
    "Côte d’Ivoire",
    "Mali",
    "Guinea",
    "Cocos (Keeling) Islands",
}
_WITH_ARTICLE = {
    "Philippines",
    "Bahamas",
    "Maldives",
    "Seychelles",
    "Comoros",
    "Gambia",
    "Solomon Islands",
    "Marshall Islands",
    "Cayman Islands",
    "Cook Islands",
    "Falkland Islands",
    "Faroe Islands",
    "Åland Islands",
    "Pitcairn Islands",
    "Northern Mariana Islands",
    "Isle of Man",
    "Turks & Caicos Islands",
    "British Virgin Islands",
    "U.S. Virgin Islands",
    "Dominican Republic",
    "United Arab Emirates",
    "Central African Republic",
    "South Georgia & South Sandwich Islands",
}


def country_phrases(countries: Iterable[str]) -> Phrases:
    """Say every country; a flag that is not unique is never asked for."""
    spoken = {name: f"the {name}" if name in _WITH_ARTICLE else name for name in sorted(countries)}
    return {name: None if name in _SHARED_FLAGS else phrase for name, phrase in spoken.items()}


# ---------------------------------------------------------------- rules


def make_rules(countries: Iterable[str]) -> tuple[Rule, ...]:
    """Make the table of rules.

    Args:
        countries: The names of all countries that have a flag.
    """
    skin_wordings = ("with {tone} skin tone", "make the skin tone {tone}", "the same, but with {tone} skin")
    return (
        Rule(
            "gender",
            ("person",),
            {"gender": GENDERS},
            ("make it {gender}", "change to {gender}", "the same, but as {gender}"),
        ),
        Rule("skin_tone", ("person",), {"tone": TONES}, skin_wordings),
        Rule(
            "skin_tone_removed",
            ("person",),
            {"tone": {"yellow": "yellow", **dict.fromkeys(SKIN_TONES)}},
            ("remove the skin tone", "in plain emoji {tone}", "without a skin tone, just {tone}"),
        ),
        Rule(
            "skin_tone_both",
            ("couple",),
            {"tone": TONES},
            ("both with {tone} skin tone", "give both of them {tone} skin", "the same pair, both with {tone} skin"),
        ),
        Rule(
            "pair",
            ("couple",),
            {"pair": PAIRS},
            ("make them {pair}", "the same, but with {pair}", "show {pair} instead"),
        ),
        Rule(
            "hair",
            ("person",),
            {"hair": HAIR},
            ("with {hair}", "give this person {hair}", "the same person, but with {hair}"),
        ),
        Rule(
            "age",
            ("age",),
            {"concept": AGES},
            ("make it {concept}", "the same, but as {concept}", "change the age: {concept}"),
        ),
        Rule(
            "profession",
            ("person",),
            {"concept": ROLES},
            ("make this person {concept}", "the same person as {concept}", "change the role to {concept}"),
        ),
        Rule(
            "activity",
            ("person",),
            {"concept": ACTIVITIES},
            ("the same person {concept}", "now {concept} instead", "show this person {concept}"),
        ),
        Rule(
            "gesture",
            ("person",),
            {"concept": GESTURES},
            ("change it to {concept}", "{concept}, in the same skin tone", "the same skin, but {concept} instead"),
        ),
        Rule(
            "facing",
            ("person",),
            {"facing": {"right": "right", "left": "left"}},
            ("facing {facing}", "turn this person to face {facing}", "mirror it, looking to the {facing}"),
        ),
        Rule(
            "expression",
            ("smiley",),
            {"expression": EXPRESSIONS},
            ("the same face, but {expression}", "now {expression}", "change the expression: {expression}"),
        ),
        Rule(
            "species",
            ("smiley",),
            {"species": SPECIES},
            ("the same expression on {species}", "as {species}", "make it {species} that feels the same"),
        ),
        *(
            Rule(
                "colour",
                families,
                {"colour": phrases},
                ("make it {colour}", "the same, but {colour}", "change the colour to {colour}"),
            )
            for families, phrases in (
                (("shape", "diamond"), COLOURS),
                (("mark", "apple"), RED_TOO),
                (("book",), BOOK_COLOURS),
            )
        ),
        Rule(
            "shape",
            ("shape",),
            {"shape": SHAPES},
            ("make it {shape}", "{shape} in the same colour", "change the shape to {shape}"),
        ),
        Rule(
            "direction",
            ("arrow", "thumb", "triangle", "fast button"),
            {"direction": DIRECTIONS},
            ("pointing {direction}", "turn it to point {direction}", "the same, but directed {direction}"),
        ),
        Rule(
            "direction",
            ("pointing hand",),
            {"direction": {**DIRECTIONS, "up": None}},  # "index pointing up" shows another side of the hand
            ("pointing {direction}", "turn it to point {direction}", "the same, but directed {direction}"),
        ),
        Rule(
            "direction",
            ("palm",),
            {"direction": DIRECTIONS},
            ("with the palm {direction}", "turn the palm {direction}", "the same hand, palm {direction}"),
        ),
        Rule(
            "flag",
            ("flag",),
            {"country": country_phrases(countries)},
            ("the flag of {country} instead", "change the country to {country}", "same kind of flag, for {country}"),
        ),
        Rule(
            "number",
            ("keycap", "medal"),
            {"number": NUMBERS},
            ("with {number}", "change it to {number}", "the same, but for {number}"),
        ),
        Rule(
            "clock_hour",
            ("clock",),
            {"hour": HOURS},
            ("set the hour to {hour}, same minutes", "the hour hand at {hour} instead", "change only the hour: {hour}"),
        ),
        Rule(
            "clock_half",
            ("clock",),
            {"minutes": {"-thirty": "half past the same hour", " o’clock": "the same hour on the dot"}},
            ("make it {minutes}", "set the clock to {minutes}", "now {minutes}"),
        ),
        Rule(
            "moon_phase",
            ("moon",),
            {"phase": PHASES},
            ("make it {phase}", "change the phase to {phase}", "{phase} instead"),
        ),
        Rule(
            "animal_part",
            ("animal part",),
            {"part": {" face": "only the face", "": "the whole body"}},
            ("show {part} of the animal", "the same animal, but {part}", "{part} instead"),
        ),
        Rule(
            "moon_face",
            ("moon part",),
            {"part": {" face": "with a face", "": "without a face"}},
            ("the same moon {part}", "draw the moon {part}", "{part}"),
        ),
        Rule(
            "animal",
            ("animal",),
            {"animal": ANIMALS},
            ("{animal} instead", "change the animal to {animal}", "replace it with {animal}"),
        ),
        Rule(
            "food",
            ("food",),
            {"food": FOODS},
            ("{food} instead", "replace it with {food}", "swap this food for {food}"),
        ),
        Rule(
            "vehicle",
            ("vehicle",),
            {"vehicle": VEHICLES},
            ("{vehicle} instead", "replace it with {vehicle}", "change the vehicle to {vehicle}"),
        ),
        # Compounds: two things change at once.
        Rule(
            "gender+skin_tone",
            ("person",),
            {"gender": GENDERS, "tone": TONES},
            (
                "make it {gender} with {tone} skin tone",
                "{gender} instead, and the skin {tone}",
                "change to {gender} and make the skin tone {tone}",
            ),
        ),
        Rule(
            "profession+skin_tone",
            ("person",),
            {"concept": ROLES, "tone": TONES},
            (
                "make this person {concept} with {tone} skin tone",
                "the same person as {concept}, with {tone} skin",
                "change the role to {concept} and the skin tone to {tone}",
            ),
        ),
        Rule(
            "profession+gender",
            ("person",),
            {"concept": ROLES, "gender": GENDERS},
            (
                "{concept} instead, and make it {gender}",
                "change the role to {concept} and the person to {gender}",
                "now {gender} who works as {concept}",
            ),
        ),
        Rule(
            "activity+gender",
            ("person",),
            {"concept": ACTIVITIES, "gender": GENDERS},
            (
                "{gender} instead, {concept}",
                "make it {gender} who is {concept}",
                "change to {gender}, now {concept}",
            ),
        ),
        Rule(
            "pair+skin_tone",
            ("couple",),
            {"pair": PAIRS, "tone": TONES},
            (
                "make them {pair}, both with {tone} skin tone",
                "the same, but with {pair} with {tone} skin",
                "show {pair} instead, and make the skin of both {tone}",
            ),
        ),
        Rule(
            "hair+skin_tone",
            ("person",),
            {"hair": HAIR, "tone": TONES},
            (
                "with {hair} and {tone} skin tone",
                "give this person {hair} and make the skin tone {tone}",
                "the same person, but with {hair} and with {tone} skin",
            ),
        ),
        Rule(
            "shape+colour",
            ("shape",),
            {"shape": SHAPES, "colour": COLOURS},
            (
                "make it {shape} and colour it {colour}",
                "{shape} instead, in {colour}",
                "change the shape to {shape} and the colour to {colour}",
            ),
        ),
        Rule(
            "clock_time",
            ("clock",),
            {"hour": HOURS, "minutes": {"-thirty": "half past", " o’clock": "exactly"}},
            ("set it to {minutes} {hour}", "the clock at {minutes} {hour}", "change the time to {minutes} {hour}"),
        ),
    )
