"""Unicode emoji names taken apart: concept, gender, skin tones, hair.

One base emoji in all its skin tones, genders, ages and hair styles is one *concept*; the split by concept therefore
never shows a training run another variant of a held-out emoji.
"""

import hashlib
import re
from dataclasses import dataclass

SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
HAIR_STYLES = ("red hair", "curly hair", "white hair", "bald", "beard", "blond hair")
HELD_OUT_SHARE = 0.15

# Gendered words that Unicode does not build from "man" or "woman".
_CONCEPT_OF_NAME = {
    **dict.fromkeys(("boy", "girl", "child"), "child"),
    **dict.fromkeys(("man", "woman", "person"), "adult"),
    **dict.fromkeys(("old man", "old woman", "older person"), "older adult"),
    **dict.fromkeys(("prince", "princess", "person with crown"), "royal"),
    **dict.fromkeys(("merman", "mermaid", "merperson"), "merperson"),
    **dict.fromkeys(("Santa Claus", "Mrs. Claus", "Mx Claus", "mx claus"), "Christmas person"),
    **dict.fromkeys(("men holding hands", "women holding hands", "woman and man holding hands"), "holding hands"),
    "people holding hands": "holding hands",
}
_FEMALE = re.compile(r"\b(woman|women|girl|mermaid|princess|Mrs\.)(?=\W|$)")
_MALE = re.compile(r"\b(man|men|boy|merman|prince|Santa)\b")
_GENDER_WORD = re.compile(r"\b(woman|women|man|men|person|people)\b")
_TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")


@dataclass(frozen=True)
class EmojiName:
    """What a CLDR short name says of its emoji."""

    name: str
    base: str
    concept: str
    gender: str | None
    skin_tones: tuple[str, ...]
    hair: str | None


def parse_name(name: str, category: str = "") -> EmojiName:
    """Take a CLDR short name apart.

    Args:
        name: For example `"woman firefighter: medium skin tone"`.
        category: The emoji's group; gender is read for people only.
    """
    base, _, qualifiers = name.partition(": ")
    is_person = category == "people-body"
    if not is_person:
        concept = re.sub(r" face$", "", name)  # "cat" and "cat face"
        concept = re.sub(r"^(.+)-thirty$", r"\1 o’clock", concept)  # "one-thirty" and "one o'clock"
        return EmojiName(name, base, concept, None, (), None)
    words = f"{base}, {qualifiers}"
    hair = next((style for style in HAIR_STYLES if style in words), None)
    female, male = bool(_FEMALE.search(words)), bool(_MALE.search(words))
    gender = None if female == male else ("female" if female else "male")
    concept = _CONCEPT_OF_NAME.get(base) or re.sub(r"\s+", " ", _GENDER_WORD.sub("", base)).strip(" :,") or base
    return EmojiName(name, base, concept, gender, tuple(_TONE.findall(qualifiers)), hair)


def held_out_concepts(concepts_of_category: dict[str, set[str]]) -> set[str]:
    """Choose 15% of each category's concepts, by hash: the choice outlives new emoji and new runs."""
    chosen: set[str] = set()
    for concepts in concepts_of_category.values():
        by_hash = sorted(concepts, key=lambda concept: hashlib.sha256(f"hycir {concept}".encode()).digest())
        chosen.update(by_hash[: round(HELD_OUT_SHARE * len(by_hash))])
    return chosen
