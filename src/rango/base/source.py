"""From what the user names, a folder or a hub name, to a local folder."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rango.errors import CheckpointError, RangoError

_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
_UNWANTED = ["*/*", "consolidated*"]


def local_folder(
    source: str | Path,
    revision: str | None = None,
    *,
    error: type[RangoError] = CheckpointError,
    weights: bool = True,
) -> Path:
    """The folder of `source`: itself if it is one, else the hub's snapshot of that name.

    Only safetensors, JSON and tokenizer files are fetched (without `weights`, no safetensors).
    Raises `error` if it is neither a folder nor a name the hub knows or the cache holds.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise error(f"{source}: expected the folder of a checkpoint, found a file; name its folder")
    if not _may_be_hub_name(str(source)):
        raise error(f"{source}: no such folder; name the folder of a Hugging Face checkpoint")
    wanted = _WANTED if weights else [pattern for pattern in _WANTED if pattern != "*.safetensors"]
    try:
        return Path(
            snapshot_download(
                str(source), revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED
            )
        )
    except GatedRepoError as refused:
        raise error(
            f"{source}: its owner asks for consent first; accept the terms on its page on the "
            "hub, then log in with `hf auth login`"
        ) from refused
    except RevisionNotFoundError as missing:
        raise error(f"{source}: the hub has no revision {revision!r} of it") from missing
    except RepositoryNotFoundError as missing:
        raise error(
            f"{source}: neither a folder here nor a model on the hub (or a private one: log in "
            "with `hf auth login`)"
        ) from missing
    except HFValidationError as invalid:
        raise error(f"{source}: neither a folder here nor a valid hub name") from invalid
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as unreachable:
        raise error(
            f"{source}: no such folder, not in the local cache, and the hub cannot be reached; "
            "check the name and the network, or name a local folder"
        ) from unreachable


def _may_be_hub_name(source: str) -> bool:
    return source.count("/") <= 1 and not source.startswith((".", "/", "~")) and bool(source)
