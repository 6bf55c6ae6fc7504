"""A platform engineer's walk: a gallery as a service, asked 1,000 times by 8 clients while it is updated.

    python tests/walks/service.py FOLDER             # with the `hycir` of this Python
    python tests/walks/service.py FOLDER --install   # in a new environment, by the steps of examples/service/Dockerfile

FOLDER is new. Prints what each step took; ends with status 1 if a request failed.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from datasets import Image, load_dataset

ROOT = Path(__file__).parents[2]
EMOJI = ROOT / "examples" / "emoji"
CLIENTS, REQUESTS = 8, 125
KEY = {"authorization": "Bearer secret"}


def install(folder):
    """Run the Dockerfile's pip steps in a new environment; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    for line in (ROOT / "examples" / "service" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            for source in sources:
                place = folder / "app" / (target if target != "./" else source)
                place.parent.mkdir(exist_ok=True)
                (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
        elif line.startswith("RUN pip "):
            step = line.removeprefix("RUN pip ").replace('"', "").split()
            subprocess.run([python, "-m", "pip", "--quiet", *step], check=True, cwd=folder / "app")
    return python


def write_photos(folder, start, stop):
    rows = load_dataset(str(EMOJI / "data"), "images", split="heldout_vendor")
    for number, row in enumerate(rows.cast_column("image", Image(decode=False)).select(range(start, stop)), start):
        (folder / f"{number:03d}.webp").write_bytes(row["image"]["bytes"])


def ask(url, photos, client):
    """Ask in turn by id, by upload, and for embeddings; returns (seconds, status) of each."""
    found = []
    with httpx.Client(base_url=url, headers=KEY, timeout=300) as session:
        for number in range(REQUESTS):
            name = f"{(31 * client + number) % 300:03d}.webp"
            requests = (
                ("/search", {"json": {"references": [name], "text": "make it red", "k": 5}}),
                ("/search", {"files": {"image": (photos / name).read_bytes()}, "data": {"text": "a woman", "k": "5"}}),
                ("/v1/embeddings", {"json": {"input": ["red", "blue"]}}),
            )
            path, body = requests[number % 3]
            start = time.perf_counter()
            status = session.post(path, **body).status_code
            found.append((time.perf_counter() - start, status))
    return found


def main(folder, *options):
    clock = time.perf_counter()

    def report(text):
        print(f"{time.perf_counter() - clock:6.1f} s  {text}", flush=True)

    data = folder / "data"
    (data / "photos").mkdir(parents=True)
    environment = os.environ | {"HYCIR_API_KEY": "secret"}
    python = sys.executable
    if "--install" in options:
        python = install(folder)
        environment.pop("PYTHONPATH", None)
        report("installed")
    hycir = [python, "-m", "hycir_hf.cli"]
    shutil.copytree(EMOJI / "hycir", data / "model")
    shutil.copytree(EMOJI / "encoder", data / "encoder")
    write_photos(data / "photos", 0, 300)
    index = [*hycir, "index", data / "photos", "--model", data / "model", "--output", data / "gallery"]
    run = {"check": True, "env": environment, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(index, **run)
    report("indexed 300 images")
    command = [*hycir, "serve", data / "gallery", "--model", data / "model", "--port", "0"]
    service = subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        url = next(json.loads(line)["url"] for line in service.stderr if '"listening"' in line)
        threading.Thread(target=service.stderr.read, daemon=True).start()
        report(f"listens on {url}")
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(ask, url, data / "photos", client) for client in range(CLIENTS)]
            write_photos(data / "photos", 300, 320)
            subprocess.run(index, **run)
            answers = sorted(answer for one in clients for answer in one.result())
        middle, late = (answers[int(len(answers) * share)][0] for share in (0.5, 0.99))
        statuses = Counter(status for _, status in answers)
        report(f"{len(answers)} requests: {dict(statuses)}, median {middle:.3f} s, 99% within {late:.3f} s")
        while (images := httpx.get(f"{url}/health").json()["images"]) != 320:
            time.sleep(0.2)
        report(f"serves {images} images")
    finally:
        service.terminate()
    return int(service.wait(60) != 0 or set(statuses) != {200})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), *sys.argv[2:]))
