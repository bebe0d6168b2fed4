"""Where a source is: a local path, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import CorruptCheckpoint, Unreachable, UnsafeCheckpoint, UnsupportedFormat, UsageError, some
from ..stores.files import is_there
from . import registry

_REPO = re.compile(r"(?:hf://)?(\w[\w.-]*/\w[\w.-]*?)(?:@([\w./-]+))?")
#: one ONNX model of a repository, which may have several
_ONNX = re.compile(r"(?:hf://)?(\w[\w.-]*/[\w.-]+?)(?:@([\w.-]+))?/([\w./ -]+\.onnx)")
#: what a conversion can use of a repository: no pickles, no code
_BESIDE = ["*.json", "*.model", "*.txt", "*.jinja"]
_PATTERNS = ["*.safetensors", "*.safetensors.index.json", *_BESIDE]
#: names of files that are patterns of nothing else
_PLAIN = re.compile(r"[\w./ -]+")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How to reach the hub; the defaults are huggingface_hub's own."""

    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None
    offline: bool = False


def locate(source: str, hub: HubOptions = HubOptions()) -> Path:
    """The local path of ``source``: a path, ``org/name[@revision]`` or ``hf://org/name[@revision]``.

    ``org/name[@revision]/path/in/it.onnx`` is an ONNX model of a repository: it is fetched with the files
    that hold its weights, configs and tokenizer. Of a repository whose name alone is given, an ONNX model is
    taken only if it has neither safetensors nor a .nemo archive: model.onnx or onnx/model.onnx.

    A local path wins over a repository of the same name, and so does a local folder in which a file is
    missing. Raises UsageError where nothing is there, Unreachable, saying what was tried, where the hub does
    not give it.
    """
    if not source.startswith("hf://") and is_there(source):
        return Path(source)
    match = _ONNX.fullmatch(source) or _REPO.fullmatch(source)
    if match is None:
        near = registry.near(Path(source))
        raise UsageError(
            f"{source}: no such file or directory",
            hint=f"{near}give a path or a hub repository as org/name",
        )
    name, revision = match[1], match[2]
    if revision and hub.revision and revision != hub.revision:
        raise UsageError(f"two revisions are given: {revision!r} and {hub.revision!r}")
    wanted = match[3] if match.re is _ONNX else None
    if wanted and not source.startswith("hf://") and is_there(match[1]):
        raise UsageError(
            f"{source}: no such file or directory", hint=f"a repository is meant by hf://{source}"
        )
    return _download(name, revision or hub.revision, hub, wanted)


def _download(name: str, revision: str | None, hub: HubOptions, onnx: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    offline = hub.offline or constants.HF_HUB_OFFLINE
    tried = f"{name}{f'@{revision}' if revision else ''}: not a local path, and "

    def fetch(patterns: list[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                token=hub.token,
                cache_dir=hub.cache_dir,
                local_files_only=offline,
                allow_patterns=patterns,
            )
        )

    try:
        if onnx is not None:
            return _fetch_onnx(name, onnx, fetch)
        found = fetch(_PATTERNS)
        if not any(found.glob("*.safetensors")):  # many of NeMo's own repositories hold nothing else
            found = fetch(["*.nemo"])
        if not any(found.glob("*.safetensors")) and not any(found.glob("*.nemo")):
            from .onnx.reader import PLACES

            found = fetch([*PLACES])
            place = next((place for place in PLACES if (found / place).exists()), None)
            if place is not None:
                return _fetch_onnx(name, place, fetch)
    except errors.GatedRepoError:
        raise Unreachable(
            tried + "the hub repository is gated",
            hint="accept its terms on the hub, then pass --token or set HF_TOKEN",
        ) from None
    except errors.RepositoryNotFoundError:
        raise Unreachable(
            tried + "the hub has no such repository, or none that you may see",
            hint="check the spelling; for a private one pass --token or set HF_TOKEN",
        ) from None
    except errors.RevisionNotFoundError:
        raise UsageError(tried + f"the hub repository has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError as error:
        cache = hub.cache_dir or constants.HF_HUB_CACHE
        if offline:
            raise Unreachable(
                tried + f"not in the hub cache {cache} (offline)",
                hint="unset HF_HUB_OFFLINE and leave out --offline to download it, or set --cache-dir",
            ) from None
        raise Unreachable(
            tried + f"not in the hub cache {cache}, and the hub cannot be reached ({_cause(error)})",
            hint="check the network (HTTPS_PROXY, HF_ENDPOINT), or download elsewhere and give the path",
        ) from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise Unreachable(
            tried + f"the hub cannot be reached ({_cause(error)})",
            hint="check the network (HTTPS_PROXY, HF_ENDPOINT), or download elsewhere and give the path",
        ) from None
    if not any(found.iterdir()):
        raise CorruptCheckpoint(f"{found}: the hub repository {name} has no files that can be converted")
    archives = sorted(found.glob("*.nemo"))
    if not archives or any(found.glob("*.safetensors")):
        return found
    if len(archives) > 1:
        raise UnsupportedFormat(
            f"the hub repository {name} has {len(archives)} .nemo archives: {some(p.name for p in archives)}",
            hint=f"give one of them: {archives[0]}",
        )
    return archives[0]


def _fetch_onnx(name: str, path: str, fetch: Callable[[list[str]], Path]) -> Path:
    """An ONNX model of a repository, with the files that its graph says hold weights."""
    from ..formats.onnx.file import external_files
    from ..stores.files import SourceDir

    place = PurePosixPath(path)
    if ".." in place.parts or place.as_posix() != path:
        raise UsageError(f"{path} is not the name of a file of a hub repository")
    found = fetch([path, *_BESIDE])
    if not (found / path).exists():
        raise UsageError(f"the hub repository {name} has no file {path}")
    folder = SourceDir(found)
    try:
        held = external_files(folder.file(path))
    finally:
        folder.close()
    for location in held:
        if not _PLAIN.fullmatch(location) or ".." in PurePosixPath(location).parts:
            raise UnsafeCheckpoint(f"{found / path}: names {location!r} as a file that holds weights")
    if held:
        fetch([str(place.parent / location) for location in held])
    return found / path


def _cause(error: BaseException) -> str:
    """The innermost error's first line: that is the one that says what happened."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
