"""Write the cards of this folder again: `python model_cards/render.py`.

Each `NAME.json` holds the facts of a card and names its result file. `emoji_results.json` was written by

    hycir evaluate run --model examples/emoji/hycir --benchmark emoji --data examples/emoji/data --output RESULTS

The values of the single queries ("per_query") were removed from it.
"""

import json
from pathlib import Path

from hycir_hf.reports.cards import ModelCardFacts, read_results


def render(path: Path) -> str:
    """Render the card of one file of facts."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["results"] = [read_results(path.parent / facts["results"])]
    return ModelCardFacts(**facts).render()


if __name__ == "__main__":
    for card_path in sorted(Path(__file__).parent.glob("*.md")):
        card_path.write_text(render(card_path.with_suffix(".json")), encoding="utf-8")
