"""`kimi-offload pull`: download a model from the hub."""

from __future__ import annotations

from typing import Any

import click

from cli._options import Text
from cli._render import say


@click.command("pull")
@click.argument("name", metavar="hf:OWNER/REPO[:QUANT]", type=Text(what="the name of the model"))
@click.option("--check", is_flag=True, help="Only say whether it would run and fit here.")
@click.option(
    "--revision",
    type=Text(what="the revision"),
    metavar="REV",
    help="Branch, tag or commit; also hf:OWNER/REPO@REV:QUANT.  [default: main]",
)
@click.option(
    "--parallel",
    type=click.IntRange(min=1, max=32),
    default=4,
    show_default=True,
    metavar="N",
    help="Files to fetch at once.",
)
@click.option("--verify", is_flag=True, help="Also compute checksums of files that are here.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; also what does not fit in RAM.")
@click.option("--force", is_flag=True, help="Also what this program cannot run, or a full disk.")
def command(name: str, check: bool, **values: Any) -> None:
    """Download a model from the hub (Hugging Face), or take up where it broke off.

    QUANT is a part of a file's or folder's name, such as UD-TQ1_0 or Q4_K_M; without it the choices
    are listed. hf:OWNER/REPO/FILE.gguf and a page's address do as well. The same names work after
    run, inspect and bench, which use a complete copy without asking the hub.

    Before anything large is fetched, headers are read and it is said whether the model runs and
    fits here. At a terminal, downloads of more than 4 GB are asked for. Elsewhere they begin at
    once, but a model larger than free RAM needs --yes.

    Files lie in huggingface_hub's cache and are checked by checksum. Standard output is the path.
    HF_TOKEN: for gated models; HF_HUB_CACHE: another folder; HF_ENDPOINT: another hub;
    HF_HUB_OFFLINE=1: use only what is here. Needs the package huggingface_hub.
    """
    import offload
    from cli.hub_model import Approval, show_verdict
    from cli.pull_display import PullDisplay
    from offload import hub

    name = name if hub.is_hub_name(name) else f"hf:{name}"
    if check:
        with PullDisplay() as display:
            verdict = hub.preview(name, revision=values["revision"], notice=display.notice)
        show_verdict(verdict)
        if verdict.refusal is not None:
            raise offload.HubError(verdict.refusal)
        return
    with PullDisplay() as display:
        path = offload.pull(
            name,
            revision=values["revision"],
            parallel=values["parallel"],
            verify=values["verify"],
            approve=Approval(display, yes=values["yes"], force=values["force"]),
            progress=display.callback,
            notice=display.notice,
        )
    say(str(path))
