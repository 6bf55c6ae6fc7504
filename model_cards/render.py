"""Render the cards of this folder anew: `python model_cards/render.py`.

Each `NAME.json` holds a card's facts and names its file of results. `emoji_results.json` is what

    hycir evaluate run --model examples/emoji/hycir --benchmark emoji --data examples/emoji/data --output RESULTS

wrote, without each query's values ("per_query").
"""

import json
from pathlib import Path

from hycir_hf.reports.cards import ModelCardFacts, read_results


def render(path: Path) -> str:
    """Render the card of one facts file."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["results"] = read_results(path.parent / facts["results"])
    return ModelCardFacts(**facts).render()


if __name__ == "__main__":
    for card_path in sorted(Path(__file__).parent.glob("*.md")):
        card_path.write_text(render(card_path.with_suffix(".json")), encoding="utf-8")
