"""Models by their names on the Hugging Face hub, through huggingface_hub and its cache.

Only what this package reads is downloaded: settings, tokenizers and safetensors; never code, never
pickles. The library's variables hold: HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME, HF_TOKEN.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from inkstone.errors import HubError, InkstoneError

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}(/{_PART})?)(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?")
_DIGITS = "[0-9]" * 5
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
FILES = (
    *WEIGHTS,
    f"model-{_DIGITS}-of-{_DIGITS}.safetensors",
    "config.json",
    "generation_config.json",
    "inkstone.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "modules.json",  # of sentence-transformers
    "sentence_bert_config.json",
    "[0-9]_[A-Za-z]*/config.json",
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".ot")


def looks_like_name(text: str) -> bool:
    """Whether a text can be a name on the hub: "gpt2", "org/name", "org/name@revision".

    A path is none, nor is what begins with a folder that is here: "runs/mine" is then a slip of the
    pen, and nobody else needs to hear of it.
    """
    found = _NAME.fullmatch(text)
    if not found or ".." in text or "--" in text or text.endswith((".git", ".ipynb")):
        return False
    first, slash, _ = found["repo"].partition("/")
    return not (slash and Path(first).is_dir())


def fetch(name: str) -> Path:
    """The folder of the cache that holds a model, downloaded if it is not there yet.

    Args:
        name: "gpt2", "org/name" or "org/name@revision" (a branch, tag or commit).

    Raises:
        HubError: No such model or revision, no permission, no connection, offline and not in the
            cache, or its weights are pickles.
    """
    import huggingface_hub

    found = _NAME.fullmatch(name)
    if not found:
        raise HubError(
            f"{name[:100]!r} is not a name on the hub", fix='such as "org/name@revision"'
        )
    repo, revision = found["repo"], found["revision"]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(FILES))
        )
    except Exception as error:  # the library's own, its HTTP client's and the system's
        _explain(error, name, repo)
    if not any((folder / file).is_file() for file in WEIGHTS):
        _refuse(name, repo, revision)
    return folder


def _refuse(name: str, repo: str, revision: str | None) -> NoReturn:
    import huggingface_hub

    try:
        files = huggingface_hub.HfApi().list_repo_files(repo, revision=revision)
    except Exception:  # offline, say: the cache has told enough
        files = []
    pickled = [file for file in files if file.endswith(_PICKLED)]
    only = f", only {pickled[0][:100]!r}" if pickled else ""
    raise HubError(
        f"{name} holds no safetensors{only}; other kinds of weights can carry code and are never "
        "opened",
        fix="choose a revision or a copy of the model with model.safetensors "
        "(many repositories have one as refs/pr/N)",
    )


def _explain(error: Exception, name: str, repo: str) -> NoReturn:
    """Raise what went wrong in words that say what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, InkstoneError):
        raise error
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    endpoint = constants.ENDPOINT
    here = f"no folder {name!r} is here, and"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        message = f"{name} is gated: its owner asks who you are"
        fix = f"accept its terms at {endpoint}/{repo}, then set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        message, fix = f"{repo} has no revision like the one in {name!r}", f"see {endpoint}/{repo}"
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        message = f"{here} {endpoint} has no model of this name (or it is private)"
        fix = "check the spelling; for a private model set HF_TOKEN"
    elif isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        message = (
            f"{here} {constants.HF_HUB_CACHE} does not hold all of it, and HF_HUB_OFFLINE is set"
        )
        fix = "unset HF_HUB_OFFLINE once, to download it"
    elif status is not None:
        message, fix = f"{endpoint} answered {status} when asked for {name}", "try again later"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__ or error
        message = f"{here} {endpoint} cannot be reached: {str(cause)[:200]}"
        fix = "check the connection, or name a mirror in HF_ENDPOINT"
    else:
        message = f"{name} cannot be downloaded from {endpoint}: {str(error)[:200]}"
        fix = "check the connection and the room on the disk"
    raise HubError(message, fix=fix) from error
