"""Find the format of a path, or the one that a name means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..entry_points import entries
from ..errors import CorruptCheckpoint, NemoconvError, UnsupportedFormat, UsageError, some
from ..stores.files import is_there
from .options import COMMON, Option, When, nearest, said

if TYPE_CHECKING:
    from .base import Checkpoint
    from .format import Format


def find_format(name: str) -> Format:
    """The format of a name, in whatever case, or of another name that people have for it.

    Raises UsageError for an unknown one, naming what comes near it.
    """
    known = entries("converters")
    if name in known:
        return _load(name)
    plain, named = _plain(name), {_plain(each): each for each in known}
    if plain in named:
        return _load(named[plain])
    for each in formats():
        if plain in map(_plain, each.aliases):
            return each
    names = sorted(known)
    raise UsageError(f"unknown format {name!r}", hint=f"{nearest(name, names)}one of: {', '.join(names)}")


def target_format(name: str) -> Format:
    """The same of a format to be written. Raises UsageError for one that is only read, too."""
    try:
        found = find_format(name)
        problem = "" if found.writes else f"{found.name} is read, and cannot be written"
    except UsageError as error:
        problem = error.message
    if problem:
        names = writable()
        raise UsageError(problem, hint=f"{nearest(name, names)}one of: {', '.join(names)}")
    return found


def formats() -> Iterator[Format]:
    """Every format; a broken plug-in is left out, and named when it is asked for."""
    for name in entries("converters"):
        try:
            yield _load(name)
        except NemoconvError:
            continue


def writable() -> list[str]:
    """Names of the formats that ``--to`` takes."""
    return [each.name for each in formats() if each.writes]


def _load(name: str) -> Format:
    from .format import Format

    entry = entries("converters")[name]
    loaded = entry.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Format)):
        raise NemoconvError(
            f"the plug-in {name!r} of package {entry.origin!r} is no nemoconv.plugin.Format",
            hint=f"it may be made for another version of nemoconv: update or uninstall {entry.origin}",
        )
    made: Format = loaded()
    return made


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def recognize(path: Path) -> Format:
    """The format that ``path`` has.

    Raises UsageError where nothing is there, UnsupportedFormat that says what was looked for,
    CorruptCheckpoint for what may not be read.
    """
    if not is_there(path):
        raise UsageError(f"{path}: no such file or directory", hint=near(path).rstrip())
    if not path.exists():
        raise CorruptCheckpoint(f"{path}: is a link to nothing")
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise CorruptCheckpoint(f"{path}: cannot be read (Permission denied)")
    tried = []
    for name in entries("converters"):
        try:
            candidate = _load(name)
        except NemoconvError as error:  # a broken plug-in stops nobody else
            tried.append(f"{name} ({error.message})")
            continue
        if candidate.recognizes(path):
            return candidate
        tried.append(f"{name} ({candidate.looks_for})")
    raise UnsupportedFormat(f"{path}: no known checkpoint format; looked for {'; '.join(tried)}")


def near(path: Path) -> str:
    """``did you mean 'x'? `` of what lies where ``path`` should, under a name like it."""
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    return nearest(path.name, names)


def open_checkpoint(path: str | Path, **options: Any) -> Checkpoint:
    """Open a checkpoint of any format for reading; only headers are read. ``options`` are those of its
    format, such as ``config``, a config.json to use instead of its own."""
    found = recognize(Path(path))
    given = said(options)
    known = {option.name for option in found.options_for("read")}
    for name in given:
        if name not in known:
            check_known(given, ())
            raise _means_nothing(name, f"reading {found.name}", found.name, found.name)
    return found.open(Path(path), given)


def open_alike(path: str | Path, **options: Any) -> Checkpoint:
    """The same for one of several checkpoints: options that its format has not are those of another."""
    found = recognize(Path(path))
    known = {option.name for option in found.options_for("read")}
    return found.open(Path(path), {name: value for name, value in said(options).items() if name in known})


def split_options(
    given: Mapping[str, Any], source: Format, target: Format
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of ``given`` the source's reader and the target's writer take, checked.

    Raises UsageError for what means nothing to either, and for values that there are not.
    """
    sides = {"read": list(source.options_for("read")), "write": list(target.options_for("write"))}
    found = {
        when: {option.name: option.check(given[option.name]) for option in side if option.name in given}
        for when, side in sides.items()
    }
    for name in given:
        if name not in found["read"] and name not in found["write"]:
            raise _means_nothing(name, f"{source.name} -> {target.name}", source.name, target.name)
    return found["read"], found["write"]


def check_known(given: Mapping[str, Any], others: tuple[Option, ...] = COMMON) -> None:
    """Raise UsageError for a name that no format has among its options, naming what comes near it."""
    known = {option.name for option in others} | {
        option.name for each in formats() for option in each.options
    }
    for name in given:
        if name not in known:
            raise UsageError(
                f"unknown option {name!r}", hint=f"{nearest(name, known)}one of: {some(sorted(known), 50)}"
            )


def _means_nothing(name: str, what: str, source: str, target: str) -> UsageError:
    """An option of other formats, or of these the other way."""
    owners: list[tuple[str, When]] = [
        (each.name, option.when) for each in formats() for option in each.options if option.name == name
    ]
    ways = {"read": "source", "write": "target"}
    told = [f"{owner} as the {ways[when]}" if owner in (source, target) else owner for owner, when in owners]
    listed = " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))
    return UsageError(f"{name} means nothing for {what}", hint=f"it is an option of {listed}")
