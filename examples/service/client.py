"""Ask a service that `hycir serve` runs: search by an upload, by an id with weights, and embed as with OpenAI.

    hycir serve gallery &
    python examples/service/client.py IMAGE "make it night"

HYCIR_URL is the service's address (default http://127.0.0.1:8000), HYCIR_API_KEY its key.
"""

import base64
import os
import sys
from pathlib import Path

import httpx

URL = os.environ.get("HYCIR_URL", "http://127.0.0.1:8000")
key = os.environ.get("HYCIR_API_KEY")
client = httpx.Client(base_url=URL, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=60)


def ask(path: str, **body: object) -> dict:
    answer = client.post(path, **body)
    if answer.is_error:
        raise SystemExit(f"{answer.status_code}: {answer.json()['error']['message']}")
    return answer.json()


image, text = Path(sys.argv[1]), sys.argv[2]
found = ask("/search", files={"image": image.read_bytes()}, data={"text": text, "k": "3"})
for one in found["results"]:
    print(f"{one['rank']}  {one['score']:+.4f}  {one['image_id']}")

best = {"id": found["results"][0]["image_id"], "weight": 0.6}
found = ask("/search", json={"references": [best], "text": {"text": text, "weight": 1.0}, "without": "people", "k": 1})
print("from the best, without people:", found["results"][0]["image_id"])

part = {"type": "image_url", "image_url": {"url": f"data:;base64,{base64.b64encode(image.read_bytes()).decode()}"}}
vector = ask("/v1/embeddings", json={"input": [[part, {"type": "text", "text": text}]]})["data"][0]["embedding"]
print(f"composed feature: {len(vector)} numbers")
