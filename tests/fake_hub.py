"""A Hub on the loopback address: repositories, LFS, commits, revisions; `huggingface_hub`'s own client talks to it."""

import base64
import hashlib
import json

import yaml
from aiohttp import web
from loopback import LoopbackServer

TOKEN = "hf_loopbackloopbackloopback"
LFS_SUFFIXES = (".safetensors", ".parquet", ".png")
PREFIX = {"model": "", "dataset": "datasets/"}


def blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repo:
    def __init__(self, repo_type, name, private):
        self.type, self.name, self.private = repo_type, name, private
        self.commits = {}  # hash -> {path: content}, in order
        self.commit("initial commit", {".gitattributes": b""})

    @property
    def head(self):
        return list(self.commits)[-1]

    @property
    def files(self):
        return self.commits[self.head]

    def commit(self, message, files):
        state = message + repr(sorted((path, blob_id(content)) for path, content in files.items()))
        self.commits[hashlib.sha1((state + str(len(self.commits))).encode()).hexdigest()] = files

    def at(self, revision):
        return self.head if revision in ("main", None) else revision


class FakeHub(LoopbackServer):
    def __init__(self):
        self.repos, self.objects = {}, {}
        self.requests, self.url = [], None

    def repo(self, name, repo_type="model"):
        return self.repos[repo_type, name]

    # --- the endpoints ---

    async def handle(self, request):
        self.requests.append((request.method, request.path, request.headers.get("Authorization")))
        path = request.path.lstrip("/")
        if path == "api/repos/create":
            return self.create(request, await request.json())
        if path == "api/validate-yaml":
            return self.validate(await request.json())
        if path.startswith("lfs/"):
            return self.put(path.removeprefix("lfs/"), await request.read())
        repo_type, is_api = "model", path.startswith("api/")
        path = path.removeprefix("api/models/")
        if path.startswith(("datasets/", "api/datasets/")):
            repo_type, path = "dataset", path.removeprefix("api/").removeprefix("datasets/")
        owner, _, rest = path.partition("/")
        name, _, rest = rest.partition("/")
        name = f"{owner}/{name}"
        repo = self.repos.get((repo_type, name.removesuffix(".git")))
        if repo is None or (repo.private and not self.is_known(request)):
            return self.missing("RepoNotFound")
        action, _, rest = rest.partition("/")
        if action == "info" and name.endswith(".git"):
            return self.batch(await request.json())
        revision, _, rest = rest.partition("/")
        if action in ("", "revision") and is_api:
            return self.info(repo, revision or "main")
        if action == "preupload":
            return self.preupload(repo, await request.json())
        if action == "commit":
            return self.commit(request, repo, await request.text())
        if repo.at(revision) not in repo.commits:
            return self.missing("RevisionNotFound")
        files = repo.commits[repo.at(revision)]
        if action == "tree":
            return self.tree(files, rest)
        if action == "paths-info":
            form = await (request.json() if "json" in request.content_type else request.post())
            wanted = form.getall("paths") if hasattr(form, "getall") else form["paths"]
            return web.json_response([entry for entry in self.entries(files) if entry["path"] in wanted])
        if action == "resolve":
            return self.resolve(repo.at(revision), files, rest)
        return self.missing("EntryNotFound")

    def is_known(self, request):
        return request.headers.get("Authorization") == f"Bearer {TOKEN}"

    def missing(self, code):
        return web.json_response({"error": code}, status=404, headers={"X-Error-Code": code, "X-Error-Message": code})

    def create(self, request, body):
        if not self.is_known(request):
            return web.json_response({"error": "unauthorized"}, status=401)
        name, repo_type = f"{body['organization']}/{body['name']}", body.get("type", "model")
        if (repo_type, name) in self.repos:
            url = f"{self.url}/{PREFIX[repo_type]}{name}"
            return web.json_response({"error": "You already created this repo", "url": url}, status=409)
        self.repos[repo_type, name] = Repo(repo_type, name, body.get("visibility") == "private")
        return web.json_response({"url": f"{self.url}/{PREFIX[repo_type]}{name}", "name": name})

    def validate(self, body):
        """A part of the Hub's checks: YAML that parses, and a model-index of the documented form."""
        try:
            has_metadata = body["content"].startswith("---\n")
            data = yaml.safe_load(body["content"].split("---")[1]) if has_metadata else {}
            for model in data.get("model-index", []):
                for result in model["results"]:
                    assert result["task"]["type"] and result["dataset"]["type"] and result["metrics"][0]["type"]
            errors = []
        except Exception as error:
            errors = [{"message": repr(error)}]
        return web.json_response({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def preupload(self, repo, body):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": blob_id(repo.files[file["path"]]) if file["path"] in repo.files else None,
            }
            for file in body["files"]
        ]
        return web.json_response({"files": files})

    def batch(self, body):
        def answer(wanted):
            oid = wanted["oid"]
            actions = {} if oid in self.objects else {"actions": {"upload": {"href": f"{self.url}/lfs/{oid}"}}}
            return wanted | actions

        return web.json_response({"transfer": "basic", "objects": [answer(wanted) for wanted in body["objects"]]})

    def put(self, oid, content):
        if hashlib.sha256(content).hexdigest() != oid:
            return web.json_response({"error": "damaged"}, status=400)
        self.objects[oid] = content
        return web.Response()

    def commit(self, request, repo, text):
        if not self.is_known(request):
            return web.json_response({"error": "unauthorized"}, status=401)
        files, summary = dict(repo.files), ""
        for line in filter(None, text.splitlines()):
            record = json.loads(line)
            key, value = record["key"], record["value"]
            if key == "header":
                summary = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        repo.commit(summary, files)
        url = f"{self.url}/{PREFIX[repo.type]}{repo.name}/commit/{repo.head}"
        return web.json_response({"success": True, "commitOid": repo.head, "commitUrl": url})

    def info(self, repo, revision):
        sha = repo.at(revision)
        if sha not in repo.commits:
            return self.missing("RevisionNotFound")
        siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        return web.json_response(
            {
                "id": repo.name,
                "modelId": repo.name,
                "sha": sha,
                "private": repo.private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def entries(self, files):
        for path, content in sorted(files.items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            if path.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            yield entry
        for folder in sorted({path.rsplit("/", 1)[0] for path in files if "/" in path}):
            yield {"type": "directory", "path": folder, "size": 0, "oid": blob_id(folder.encode())}

    def tree(self, files, folder):
        found = [entry for entry in self.entries(files) if entry["path"].startswith(f"{folder}/" if folder else "")]
        return web.json_response(found) if found else self.missing("EntryNotFound")

    def resolve(self, sha, files, path):
        if path not in files:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        content = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob_id(content)}"'}
        if path.endswith(LFS_SUFFIXES):
            etag = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        return web.Response(body=content, headers=headers)

    # --- its life ---

    def app(self):
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app
