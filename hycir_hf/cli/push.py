"""`hycir push`: a model or a dataset to the Hub."""

import dataclasses
from typing import Any

from cyclopts import App

import hycir_hf

from .options import Common, Report, Switch, shown, some

app = App(
    name="push",
    help_epilogue="""\
The repository is private unless you pass --public.

Examples:
  hycir push path/to/model OWNER/my-hycir --dry-run
  hycir push path/to/model OWNER/my-hycir
  hycir push triplets OWNER/my-triplets --public""",
)


@app.default
def push(
    folder: str,
    repo_id: str,
    /,
    *,
    public: Switch = False,
    yes: Switch = False,
    dry_run: Switch = False,
    license: str | None = None,
    dataset: list[str] | None = None,
    message: str | None = None,
    common: Common | None = None,
) -> Report:
    """Upload a model or a triplet dataset to the Hugging Face Hub.

    Files that hold secrets or local paths are refused.

    Args:
        folder: Saved model, or dataset that `hycir syncir run` made.
        repo_id: OWNER/NAME on the Hub. Created if it is missing.
        public: Let everybody read it. Asks before it does.
        yes: Do not ask.
        dry_run: List files, sizes, secrets and local paths. Send nothing.
        license: Licence for the card, from the Hub's list, such as apache-2.0.
        dataset: Hub id of a dataset that the model was trained on, for its card. Repeatable.
        message: Commit message.
    """
    if dry_run:
        return _list_plan(hycir_hf.hub.plan_push(folder))
    if public and not yes and not _confirm(f"Let everybody read {repo_id}?"):
        raise ValueError("Not published. Answer y, or pass --yes.")
    report = hycir_hf.hub.push_folder(
        folder, repo_id, private=not public, license=license, datasets=dataset or [], commit_message=message
    )
    lines = [f"{report.url} ({'private' if report.is_private else 'public'}): {len(report.uploaded)} files"]
    if report.deleted:
        lines.append(f"Old parts deleted there: {some(report.deleted)}")
    if report.left_out:
        lines.append(f"Left out: {some(report.left_out)}")
    if public and report.is_private:
        lines.append(f"{repo_id} was private and stays private: only its settings page can make it public.")
    return Report(vars(report), lines)


def _list_plan(plan: Any) -> Report:
    lines = [f"{size:>14,}  {shown(name)}" for name, size in sorted(plan.sizes.items())]
    lines.append(f"{sum(plan.sizes.values()):>14,}  bytes in {len(plan.sizes)} files; nothing was sent")
    lines += [f"Left out: {shown(name)}" for name in plan.left_out]
    lines += [f"REFUSED: {shown(str(leak))}" for leak in plan.leaks] or ["No secrets or local paths found."]
    return Report(dataclasses.asdict(plan), lines)


def _confirm(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
