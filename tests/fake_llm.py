"""An OpenAI-compatible server on the loopback address, with faults if asked for. It runs in a thread, or as a script.

Answers depend only on the messages. The package talks to it through the real `openai` package.
"""

import argparse
import asyncio
import hashlib
import json
import random
import re
from collections import Counter

from aiohttp import web
from loopback import LoopbackServer

FAULTS = ("429", "500", "hang", "garbage", "cut", "empty")


def answer_to(messages):
    """What the server writes: an instruction that names the target caption's last word."""
    text = json.dumps(messages, sort_keys=True)
    content = messages[-1]["content"]
    caption = re.search(r"Target (?:caption|sentence): (.*?)(?: If source sentence|\n|$)", str(content))
    word = caption[1].split()[-1] if caption else "picture"
    return f"Instruction: make it {word} {hashlib.sha256(text.encode()).hexdigest()[:4]}"


class FakeLLM(LoopbackServer):
    path = "/v1"

    def __init__(self, latency=0.0, fault_share=0.0, faults=FAULTS, seed=0, key=None, model=None, retry_after="0"):
        self.latency, self.fault_share, self.faults = latency, fault_share, faults
        self.random, self.key, self.model, self.retry_after = random.Random(seed), key, model, retry_after
        self.answered, self.requests = Counter(), []
        self.batches, self.files = {}, {}
        self.active = self.most_active = 0
        self.batch_error = None
        self.reply = lambda body: None  # body of a request -> (status, answer), or None for the usual answer

    # --- the endpoints ---

    async def chat(self, request):
        body = await request.json()
        self.requests.append(body)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            refused = self.refuse(request, body)
            if refused is not None:
                return refused
            if (reply := self.reply(body)) is not None:
                return web.json_response(reply[1], status=reply[0])
            if self.random.random() < self.fault_share:
                return await self.misbehave(request, self.random.choice(self.faults))
            await asyncio.sleep(self.latency)
            self.answered[json.dumps(body["messages"], sort_keys=True)] += 1
            return web.json_response(self.completion(body))
        finally:
            self.active -= 1

    def refuse(self, request, body):
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            said = request.headers.get("Authorization", "").removeprefix("Bearer ")
            return web.json_response({"error": {"message": f"Incorrect API key provided: {said}"}}, status=401)
        if self.model is not None and body["model"] != self.model:
            error = {"message": f"The model {body['model']} does not exist", "code": "model_not_found"}
            return web.json_response({"error": error}, status=404)
        return None

    def completion(self, body):
        message = {"role": "assistant", "content": answer_to(body["messages"])}
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57},
        }

    async def misbehave(self, request, fault):
        if fault == "429":
            headers = {"Retry-After": self.retry_after}
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers=headers)
        if fault == "500":
            return web.Response(status=500, text="oops")
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "garbage":
            return web.Response(text="<html>not what you asked for</html>", content_type="text/html")
        if fault == "empty":
            return web.json_response({"id": "x", "choices": []})
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"id": "x", "choices": [')
        request.transport.close()
        return response

    async def upload(self, request):
        form = await request.post()
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read().decode()
        return web.json_response(self.file_record(name))

    def file_record(self, name):
        size = len(self.files[name])
        return {
            "id": name, "object": "file", "bytes": size, "created_at": 0, "filename": "x", "purpose": "batch",
            "status": "processed",
        }  # fmt: skip

    async def content(self, request):
        return web.Response(text=self.files[request.match_info["name"]])

    async def create_batch(self, request):
        body = await request.json()
        name = f"batch-{len(self.batches)}"
        lines = []
        for line in self.files[body["input_file_id"]].splitlines():
            asked = json.loads(line)
            self.answered[json.dumps(asked["body"]["messages"], sort_keys=True)] += 1
            status, said = self.reply(asked["body"]) or (200, self.completion(asked["body"]))
            response = {"status_code": status, "body": said}
            lines.append(
                json.dumps({"custom_id": asked["custom_id"], "response": response, "error": None}, ensure_ascii=False)
            )
        self.files[f"out-{name}"] = "\n".join(lines[1:] if self.fault_share else lines)  # a fault: one has no answer
        self.batches[name] = {
            "id": name, "object": "batch", "endpoint": body["endpoint"], "completion_window": "24h", "created_at": 0,
            "input_file_id": body["input_file_id"], "status": "in_progress", "metadata": body["metadata"],
            "output_file_id": f"out-{name}",
        }  # fmt: skip
        return web.json_response(self.batches[name])

    async def get_batch(self, request):
        batch = self.batches[request.match_info["name"]]
        now, batch["status"] = dict(batch), "failed" if self.batch_error else "completed"  # done at the second look
        if self.batch_error:
            batch["errors"] = {"object": "list", "data": [{"code": "x", "message": self.batch_error}]}
        return web.json_response(now)

    async def list_batches(self, request):
        refused = self.refuse(request, {"model": self.model})
        if refused is not None:
            return refused
        return web.json_response({"object": "list", "data": list(self.batches.values()), "has_more": False})

    # --- running ---

    def app(self):
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/files", self.upload)
        app.router.add_get("/v1/files/{name}/content", self.content)
        app.router.add_post("/v1/batches", self.create_batch)
        app.router.add_get("/v1/batches", self.list_batches)
        app.router.add_get("/v1/batches/{name}", self.get_batch)
        return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0)
    server = FakeLLM(latency=parser.parse_args().latency)

    async def serve():
        await server.start()
        print(server.url, flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())
