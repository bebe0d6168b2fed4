"""Options of conversions, declared once: flags, ``--help``, keywords of the library, checks and messages
follow from them. This module and the formats' own are light: help is shown without opening anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from ..errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

#: what a value is: "size" is a number of bytes, "path" a file, "words" several texts
Kind = Literal["flag", "number", "size", "text", "path", "words"]
#: whose business a value of a format is: the source's reader, or the target's writer
When = Literal["read", "write"]
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
DEFAULT_MAX_MEMORY: Final = 512 << 20


@dataclass(frozen=True, slots=True)
class Option:
    """Something that a user may say: ``name`` is the keyword in Python, ``flag`` the one of the command line
    (``--name`` with dashes unless given).

    ``help`` is one sentence, ``example`` a value to show. ``choices`` are all values that there are; ``when``
    says of a format's option whether it is for reading or for writing.
    """

    name: str
    kind: Kind
    help: str
    example: str = ""
    choices: tuple[str, ...] = ()
    default: Any = None
    when: When = "write"
    flag: str = ""

    @property
    def flags(self) -> str:
        """What it is called on the command line."""
        return self.flag or "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> Any:
        """The value as the program takes it. Raises UsageError for one that there is not."""
        if value is None:
            return None
        if self.choices:
            found = next((each for each in self.choices if each == str(value).lower()), None)
            if found is None:
                raise UsageError(
                    f"unknown {self.name} {value!r}",
                    hint=f"{nearest(str(value), self.choices)}one of {', '.join(self.choices)}",
                )
            return found
        return _CHECKS[self.kind](self.name, value)

    def parse(self, text: str) -> Any:
        """The value that a word on the command line means. Raises UsageError."""
        number = self.kind == "number" and text.strip().isdecimal()
        return self.check(int(text) if number else text)

    def of(self, options: Mapping[str, Any]) -> Any:
        """The value among ``options``, or the default."""
        value = self.check(options.get(self.name))
        return self.check(self.default) if value is None else value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name}={value!r} is neither True nor False")
    return value


def _number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name}={value!r} is not a positive number")
    return value


def _size(name: str, value: Any) -> int:
    return parse_size(value, name) if isinstance(value, str) else _number(name, value)


def _text(_: str, value: Any) -> Any:
    return value


def _words(_: str, value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


_CHECKS: Final = {
    "flag": _flag,
    "number": _number,
    "size": _size,
    "text": _text,
    "path": _text,
    "words": _words,
}


def parse_size(text: str, name: str = "size") -> int:
    """A number of bytes: 512MiB (powers of 1024), 5GB (powers of 1000), 1000. Raises UsageError."""
    match = re.fullmatch(r"([\d.]+)\s*([kmgt]?)(i?)b?", text.strip().lower())
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    nbytes = number * (1024 if match[3] else 1000) ** _POWERS[match[2]] if match else 0.0
    if not 1 <= nbytes < 2**63:
        raise UsageError(f"{name}: {text!r} is not a size such as 512MiB or 5GB")
    return int(nbytes)


def said(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something: None and False are as good as nothing."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def nearest(name: str, names: Iterable[str]) -> str:
    """``did you mean 'flavor'? `` where one of ``names`` looks like ``name``, else nothing."""
    from difflib import get_close_matches  # only needed when something went wrong

    found = get_close_matches(name.lower(), list(names), 1)
    return f"did you mean {found[0]!r}? " if found else ""


# what every conversion may be told

LAYOUT: Final = (
    Option("tensor_parallel_size", "number", "Tensor parallel size.", "2", flag="--tp"),
    Option("pipeline_parallel_size", "number", "Pipeline parallel size.", "4", flag="--pp"),
    Option("virtual_pipeline_parallel_size", "number", "Runs of layers per stage.", "2", flag="--vpp"),
    Option("expert_parallel_size", "number", "Expert parallel size.", "8", flag="--ep"),
    Option("expert_tensor_parallel_size", "number", "Tensor parallel size of experts.", "1", flag="--etp"),
    Option("layout", "path", "YAML file that describes a layout; see docs/layout.md.", "layout.yaml"),
)
DTYPES: Final = ("float64", "float32", "bfloat16", "float16")
_SHORT: Final = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DTYPE: Final = Option(
    "dtype",
    "text",
    "float32, bfloat16, float16 or float64 (fp32, bf16, fp16, fp64); default: as it is.",
    "bfloat16",
)
EXACT: Final = Option("exact", "flag", "With --dtype: refuse if a value would be rounded.")
ALLOW_IGNORED: Final = Option(
    "allow_ignored", "words", "Accept an unknown config key; recorded. May be given several times.", "KEY"
)
OVERWRITE: Final = Option("overwrite", "flag", "Replace OUT, once the new one is whole.")
VERIFY: Final = Option("verify", "flag", "Read the output back and compare every bit.")
DRY_RUN: Final = Option("dry_run", "flag", "Plan and check, write nothing.")
RESUME: Final = Option("resume", "flag", "With --ranks: continue a run that did not finish.")
RANKS: Final = Option(
    "ranks",
    "flag",
    "Share the work with the other processes of a launcher (RANK, WORLD_SIZE).",
)
MAX_MEMORY: Final = Option("max_memory", "size", "Bound on memory.", "2GiB", default="512MiB")
IGNORE_MANIFEST: Final = Option(
    "ignore_manifest", "flag", "Do not compare SRC with its own nemoconv_manifest.json; recorded."
)
WORKERS: Final = Option("workers", "number", "Threads; default: the cores that this process may use.", "8")
DEVICE: Final = Option(
    "device",
    "text",
    "Where values are decoded and cast, and short runs gathered; the result is the same.",
    "cuda",
    choices=("cpu", "cuda"),
    default="cpu",
)
PICTURE: Final = Option(
    "picture", "path", "An .svg or .html file to draw the plan in: who holds what, which bytes move."
)
#: those that :class:`Settings` holds
SETTINGS: Final = (
    EXACT,
    ALLOW_IGNORED,
    RANKS,
    RESUME,
    MAX_MEMORY,
    WORKERS,
    DEVICE,
    PICTURE,
    IGNORE_MANIFEST,
)  #: what commands that write take, besides --html and --svg
RUN: Final = (
    DRY_RUN,
    OVERWRITE,
    VERIFY,
    RANKS,
    RESUME,
    MAX_MEMORY,
    WORKERS,
    DEVICE,
    ALLOW_IGNORED,
    IGNORE_MANIFEST,
)
#: every one that is no format's own
COMMON: Final = (*LAYOUT, DTYPE, OVERWRITE, VERIFY, DRY_RUN, *SETTINGS)

# what several formats have in common

CONFIG: Final = Option(
    "config", "path", "config.json to use instead of the source's own.", "config.json", when="read"
)
MAX_SHARD_NBYTES: Final = Option(
    "max_shard_nbytes", "size", "Largest safetensors file.", "2GB", default="1GiB", flag="--max-shard-size"
)
VOCABULARY: Final = Option(
    "make_vocab_size_divisible_by", "number", "Pad the vocabulary to a multiple of N times --tp.", "128"
)


class ParallelSizes(TypedDict, total=False):
    """Parallel sizes, by their names in Python."""

    tensor_parallel_size: int | None
    pipeline_parallel_size: int | None
    virtual_pipeline_parallel_size: int | None
    expert_parallel_size: int | None
    expert_tensor_parallel_size: int | None


class Common(ParallelSizes, total=False):
    """Keywords of every conversion and of ``reshard``, beside those that their signatures show."""

    allow_ignored: Sequence[str]
    config: str | Path | None
    device: str
    ignore_manifest: bool
    make_vocab_size_divisible_by: int | None
    max_memory: int | str
    picture: str | Path | None
    ranks: bool
    resume: bool
    workers: int | None


@dataclass(frozen=True, slots=True)
class Settings:
    """How a conversion is carried out, whatever its formats. Sizes are in bytes."""

    allow_ignored: tuple[str, ...] = ()
    device: str = "cpu"
    exact: bool = False
    ignore_manifest: bool = False
    max_memory: int = DEFAULT_MAX_MEMORY
    picture: str | Path | None = None
    ranks: bool = False
    resume: bool = False
    workers: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Those among ``options``. Raises UsageError for values that there are not."""
        found = {option.name: option.of(options) for option in SETTINGS}
        return cls(
            **{field.name: found[field.name] for field in fields(cls) if found[field.name] is not None}
        )


def check_dtype(dtype: str | None) -> str | None:
    """The full name of a type that weights may be cast to; the eight-bit ones need scales, which a cast does
    not make. Raises UsageError."""
    if dtype is None:
        return None
    plain = str(dtype).lower().removeprefix("torch.")
    name = _SHORT.get(plain, plain)
    if name not in DTYPES:
        hint = f"{nearest(plain, (*DTYPES, *_SHORT))}one of {', '.join((*DTYPES, *_SHORT))}"
        raise UsageError(f"unknown dtype {dtype!r}", hint=hint)
    return name
