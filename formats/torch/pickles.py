"""Read pickles without running anything: a closed world of known names and inert stubs.

``pickle`` calls whatever a file names, so a checkpoint that holds a pickle holds a program. This
reader has its own opcode loop and its own stack. A name that the caller did not list ends the read;
nothing is ever imported; the loop does not recurse, so nesting cannot exhaust the C stack.

Source of the opcodes: CPython's ``Lib/pickletools.py`` (protocols 0 to 5).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, NoReturn

from ...errors import CorruptCheckpoint, NemoconvError, UnsafeCheckpoint

#: Megatron's optimizer common.pt is the largest seen: some MB. Limits of security.md 3.1
MAX_BYTES: Final = 64 << 20
MAX_OPCODES: Final = 5_000_000
MAX_MEMO: Final = 1_000_000
#: 64 bytes hold every size, offset and random seed; int() of more digits takes quadratic time
MAX_INT_BYTES: Final = 64
_MAX_LINE: Final = 4096

_unpack_int32 = struct.Struct("<i").unpack_from
_unpack_uint16 = struct.Struct("<H").unpack_from
_unpack_uint32 = struct.Struct("<I").unpack_from
_unpack_uint64 = struct.Struct("<Q").unpack_from
_unpack_double = struct.Struct(">d").unpack_from

_INTEGER = re.compile(rb"[+-]?[0-9]{1,155}L?", re.ASCII)
_FLOAT = re.compile(rb"[+-]?(inf|nan|[0-9.]{1,340}(e[+-]?[0-9]{1,4})?)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Constant:
    """A known name that stands for ``value`` and cannot be called."""

    value: object


class Global:
    """A known name that may be called, as it stands on the stack. ``call`` None makes a Stub."""

    __slots__ = ("call", "kind")

    def __init__(self, kind: tuple[str, str], call: Callable[..., object] | None) -> None:
        self.kind = kind
        self.call = call

    def __repr__(self) -> str:
        return f"<global {'.'.join(self.kind)}>"


class Stub:
    """An object of a class that is known by name only. Nothing of that class is ever run.

    ``kind`` is (module, name), ``args`` what its constructor was given and ``state`` what its
    ``__setstate__`` would have got. Two stubs are equal only if they are the same object.
    """

    __slots__ = ("args", "kind", "state")

    def __init__(self, kind: tuple[str, str], args: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.args = args
        self.state: Any = None

    def get(self, name: str) -> Any:
        """The attribute ``name`` of the pickled object, None if it has none."""
        state = self.state
        if type(state) is tuple and len(state) == 2 and type(state[1]) is dict:
            state = state[1]  # (attributes, slots) of a class with __slots__
        return state.get(name) if isinstance(state, dict) else None

    def __repr__(self) -> str:
        return f"<stub of {'.'.join(self.kind)}>"


class PickledDict(dict[Any, Any]):
    """An OrderedDict or defaultdict. ``state`` holds its attributes, such as ``_metadata``."""

    __slots__ = ("state",)

    def __init__(self, *_factory: object) -> None:
        super().__init__()
        self.state: Any = None


def brief(value: object) -> str:
    """A short text for a message. The repr of a nested value may recurse, or be without end."""
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    return repr(value[:100]) if isinstance(value, (str, bytes)) else f"a {type(value).__name__}"


#: values of the table: a callable is called with the pickled arguments, ``Stub`` makes a stub
Known = Mapping[tuple[str, str], Callable[..., object] | Constant]

# Keys are hashed in C: a nested tuple would recurse there, and large ints can be made to collide.
_PLAIN_KEYS: Final = frozenset({str, bytes, float, bool, type(None), Stub, Global})
_MAX_INT_KEY: Final = 1 << 60
_MALFORMED: Final = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)


def _check_key(key: object, depth: int = 3) -> None:
    if type(key) in _PLAIN_KEYS:
        return
    if type(key) is int and -_MAX_INT_KEY < key < _MAX_INT_KEY:
        return
    if type(key) is tuple and len(key) <= 16 and depth:
        for part in key:
            _check_key(part, depth - 1)
        return
    raise ValueError("a dictionary key that no checkpoint needs")


def _add_items(target: object, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) & 1:
        raise ValueError("items for something that is not a dictionary")
    expected = len(target) + len(items) // 2
    pairs = iter(items)
    for key in pairs:
        if type(key) is not str:
            _check_key(key)
        target[key] = next(pairs)
    if len(target) != expected:
        raise ValueError("a dictionary that holds a key twice")


def _add_members(target: object, items: list[Any]) -> None:
    if type(target) is not set:
        raise ValueError("members for something that is not a set")
    for item in items:
        _check_key(item)
    target.update(items)


def _integer(text: bytes) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError("an integer that is none, or is too long")
    return int(text.rstrip(b"L"))


def _text_or_bytes(raw: bytes) -> str | bytes:
    # Python 2 wrote both text and bytes as these strings
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _quoted(line: bytes) -> str | bytes:
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise ValueError("a string without quotes")
    if b"\\" in line:
        raise ValueError("an escaped string of pickle protocol 0")
    return _text_or_bytes(line[1:-1])


def _raw_unicode(line: bytes) -> str:
    text = line.decode("raw-unicode-escape")
    text.encode("utf-8")  # refuses unpaired surrogates, which no file system call takes
    return text


def _whole_number(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def loads(
    data: bytes,
    *,
    known: Known,
    where: str,
    persistent_load: Callable[[Any], object] | None = None,
    max_bytes: int = MAX_BYTES,
    max_opcodes: int = MAX_OPCODES,
    max_memo: int = MAX_MEMO,
) -> Any:
    """The object that the pickle ``data`` describes, built of plain values and ``known`` names.

    ``where`` (a file, a record) begins every message. Raises UnsafeCheckpoint for a name outside
    ``known``, for a call of anything that is not listed as callable, and above a limit;
    CorruptCheckpoint for bytes that are no pickle, or that go on after its end.
    """
    size = len(data)
    if size > max_bytes:
        raise UnsafeCheckpoint(f"{where}: a pickle of {size:,} bytes, more than the {max_bytes:,} allowed")
    names: dict[tuple[str, str], object] = {}
    memo: dict[int, Any] = {}
    outer: list[list[Any]] = []
    stack: list[Any] = []
    pos = 0

    def find(module: object, name: object) -> object:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a global whose name is not text")
        kind = (module, name)
        if kind in names:
            return names[kind]
        entry = known.get(kind)
        if entry is None or "." in name:
            raise UnsafeCheckpoint(
                f"{where}: names {module[:200]}.{name[:200]}, which no checkpoint of this kind needs",
                hint="nothing of it was run; do not load this file with torch or pickle"
                " unless you trust its author",
            )
        if isinstance(entry, Constant):
            names[kind] = entry.value
        else:
            names[kind] = Global(kind, None if entry is Stub else entry)
        return names[kind]

    def located(error: NemoconvError) -> NemoconvError:
        return type(error)(f"{where}: {error.message}", hint=error.hint)

    def call(target: object, args: Any) -> object:
        if type(target) is not Global:
            raise UnsafeCheckpoint(
                f"{where}: calls what no checkpoint may call (byte {pos - 1:,} of the pickle)",
                hint="nothing of it was run",
            )
        if type(args) is not tuple:
            raise ValueError("arguments that are not a tuple")
        if target.call is None:
            return Stub(target.kind, args)
        try:
            return target.call(*args)
        except NemoconvError as error:
            raise located(error) from None

    def take(start: int, count: int) -> bytes:
        if count < 0 or start + count > size:
            raise IndexError
        return data[start : start + count]

    def line() -> bytes:
        nonlocal pos
        end = data.find(b"\n", pos, pos + _MAX_LINE)
        if end < 0:
            raise IndexError if size - pos < _MAX_LINE else ValueError("a line that is too long")
        text, pos = data[pos:end], end + 1
        return text

    def refuse(what: str) -> NoReturn:
        raise UnsafeCheckpoint(f"{where}: {what} (byte {pos - 1:,} of the pickle)")

    # The branches stand in the order of their frequency in .metadata files, in two halves.
    try:
        for _ in repeat(None, max_opcodes):
            op = data[pos]
            pos += 1
            if op < 0x80:
                if op == 0x6A:  # LONG_BINGET
                    stack.append(memo[_unpack_uint32(data, pos)[0]])
                    pos += 4
                elif op == 0x68:  # BINGET
                    stack.append(memo[data[pos]])
                    pos += 1
                elif op == 0x4B:  # BININT1
                    stack.append(data[pos])
                    pos += 1
                elif op == 0x28:  # MARK
                    outer.append(stack)
                    stack = []
                elif op == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                elif op == 0x7D:  # EMPTY_DICT
                    stack.append({})
                elif op == 0x62:  # BUILD
                    state = stack.pop()
                    target = stack[-1]
                    if type(target) is not Stub and type(target) is not PickledDict:
                        refuse("sets attributes of something that is not an object")
                    if target.state is not None:
                        raise ValueError("an object that is built twice")
                    target.state = state
                elif op == 0x75:  # SETITEMS
                    items = stack
                    stack = outer.pop()
                    _add_items(stack[-1], items)
                elif op == 0x71 or op == 0x72:  # BINPUT, LONG_BINPUT
                    if op == 0x71:
                        memo[data[pos]] = stack[-1]
                        pos += 1
                    else:
                        memo[_unpack_uint32(data, pos)[0]] = stack[-1]
                        pos += 4
                    if len(memo) > max_memo:
                        refuse(f"remembers more than {max_memo:,} objects")
                elif op == 0x52:  # REDUCE
                    args = stack.pop()
                    target = stack[-1]
                    stack[-1] = call(target, args)
                elif op == 0x4E:  # NONE
                    stack.append(None)
                elif op == 0x74:  # TUPLE
                    items = stack
                    stack = outer.pop()
                    stack.append(tuple(items))
                elif op == 0x4D:  # BININT2
                    stack.append(_unpack_uint16(data, pos)[0])
                    pos += 2
                elif op == 0x4A:  # BININT
                    stack.append(_unpack_int32(data, pos)[0])
                    pos += 4
                elif op == 0x58:  # BINUNICODE
                    count = _unpack_uint32(data, pos)[0]
                    stack.append(take(pos + 4, count).decode("utf-8"))
                    pos += 4 + count
                elif op == 0x63:  # GLOBAL
                    module = line().decode("utf-8")
                    stack.append(find(module, line().decode("utf-8")))
                elif op == 0x51 or op == 0x50:  # BINPERSID, PERSID
                    if persistent_load is None:
                        refuse("refers to an object outside the pickle")
                    key = stack.pop() if op == 0x51 else line().decode("utf-8")
                    try:
                        stack.append(persistent_load(key))
                    except NemoconvError as error:
                        raise located(error) from None
                elif op == 0x5D:  # EMPTY_LIST
                    stack.append([])
                elif op == 0x61 or op == 0x65:  # APPEND, APPENDS
                    if op == 0x61:
                        items = [stack.pop()]
                    else:
                        items = stack
                        stack = outer.pop()
                    if type(stack[-1]) is not list:
                        raise ValueError("elements for something that is not a list")
                    stack[-1].extend(items)
                elif op == 0x73:  # SETITEM
                    items = stack[-2:]
                    del stack[-2:]
                    _add_items(stack[-1], items)
                elif op == 0x47:  # BINFLOAT
                    stack.append(_unpack_double(data, pos)[0])
                    pos += 8
                elif op == 0x42:  # BINBYTES
                    count = _unpack_uint32(data, pos)[0]
                    stack.append(take(pos + 4, count))
                    pos += 4 + count
                elif op == 0x43:  # SHORT_BINBYTES
                    stack.append(take(pos + 1, data[pos]))
                    pos += 1 + data[pos]
                elif op == 0x54:  # BINSTRING
                    count = _unpack_int32(data, pos)[0]
                    stack.append(_text_or_bytes(take(pos + 4, count)))
                    pos += 4 + count
                elif op == 0x55:  # SHORT_BINSTRING
                    stack.append(_text_or_bytes(take(pos + 1, data[pos])))
                    pos += 1 + data[pos]
                elif op == 0x2E:  # STOP
                    value = stack.pop()
                    if stack or outer:
                        raise ValueError("objects that belong to nothing")
                    if pos != size:
                        raise CorruptCheckpoint(
                            f"{where}: {size - pos:,} bytes follow the pickle's end at {pos:,}"
                        )
                    return value
                # what only protocols 0 and 1 use
                elif op == 0x49:  # INT
                    text = line()
                    stack.append(text == b"01" if text in (b"00", b"01") else _integer(text))
                elif op == 0x4C:  # LONG
                    stack.append(_integer(line()))
                elif op == 0x46:  # FLOAT
                    text = line()
                    if not _FLOAT.fullmatch(text):
                        raise ValueError("a float that is none")
                    stack.append(float(text))
                elif op == 0x53:  # STRING
                    stack.append(_quoted(line()))
                elif op == 0x56:  # UNICODE
                    stack.append(_raw_unicode(line()))
                elif op == 0x70:  # PUT
                    index = _integer(line())
                    if not 0 <= index < 1 << 32:
                        raise ValueError("a memo index out of range")
                    memo[index] = stack[-1]
                    if len(memo) > max_memo:
                        refuse(f"remembers more than {max_memo:,} objects")
                elif op == 0x67:  # GET
                    stack.append(memo[_integer(line())])
                elif op == 0x6C:  # LIST
                    items = stack
                    stack = outer.pop()
                    stack.append(items)
                elif op == 0x64:  # DICT
                    items = stack
                    stack = outer.pop()
                    stack.append({})
                    _add_items(stack[-1], items)
                elif op == 0x30:  # POP
                    if stack:
                        stack.pop()
                    else:
                        stack = outer.pop()
                elif op == 0x31:  # POP_MARK
                    stack = outer.pop()
                elif op == 0x32:  # DUP
                    stack.append(stack[-1])
                elif op == 0x69:  # INST
                    module = line().decode("utf-8")
                    target = find(module, line().decode("utf-8"))
                    items = stack
                    stack = outer.pop()
                    stack.append(call(target, tuple(items)))
                elif op == 0x6F:  # OBJ
                    items = stack
                    stack = outer.pop()
                    stack.append(call(items[0], tuple(items[1:])))
                else:
                    raise ValueError(f"no opcode 0x{op:02x}")
            elif op == 0x94:  # MEMOIZE
                index = len(memo)
                memo[index] = stack[-1]
                if index >= max_memo:
                    refuse(f"remembers more than {max_memo:,} objects")
            elif op == 0x81:  # NEWOBJ
                args = stack.pop()
                target = stack[-1]
                stack[-1] = call(target, args)
            elif op == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
            elif op == 0x87:  # TUPLE3
                last, second = stack.pop(), stack.pop()
                stack[-1] = (stack[-1], second, last)
            elif op == 0x86:  # TUPLE2
                last = stack.pop()
                stack[-1] = (stack[-1], last)
            elif op == 0x8C:  # SHORT_BINUNICODE
                stack.append(take(pos + 1, data[pos]).decode("utf-8"))
                pos += 1 + data[pos]
            elif op == 0x89:  # NEWFALSE
                stack.append(False)
            elif op == 0x88:  # NEWTRUE
                stack.append(True)
            elif op == 0x8A:  # LONG1
                if data[pos] > MAX_INT_BYTES:
                    refuse(f"holds an integer of more than {MAX_INT_BYTES} bytes")
                stack.append(_whole_number(take(pos + 1, data[pos])))
                pos += 1 + data[pos]
            elif op == 0x8B:  # LONG4
                count = _unpack_int32(data, pos)[0]
                if count > MAX_INT_BYTES:
                    refuse(f"holds an integer of more than {MAX_INT_BYTES} bytes")
                stack.append(_whole_number(take(pos + 4, count)))
                pos += 4 + count
            elif op == 0x93:  # STACK_GLOBAL
                name = stack.pop()
                stack[-1] = find(stack[-1], name)
            elif op == 0x80:  # PROTO
                if data[pos] > 5:
                    raise ValueError(f"pickle protocol {data[pos]}, which does not exist")
                pos += 1
            elif op == 0x95:  # FRAME
                if pos + 8 + _unpack_uint64(data, pos)[0] > size:
                    raise IndexError
                pos += 8
            elif op == 0x8D or op == 0x8E or op == 0x96:  # BINUNICODE8, BINBYTES8, BYTEARRAY8
                count = _unpack_uint64(data, pos)[0]
                raw = take(pos + 8, count)
                stack.append(raw.decode("utf-8") if op == 0x8D else raw)
                pos += 8 + count
            elif op == 0x8F:  # EMPTY_SET
                stack.append(set())
            elif op == 0x90:  # ADDITEMS
                items = stack
                stack = outer.pop()
                _add_members(stack[-1], items)
            elif op == 0x91:  # FROZENSET
                items = stack
                stack = outer.pop()
                members: set[Any] = set()
                _add_members(members, items)
                stack.append(frozenset(members))
            elif op == 0x92:  # NEWOBJ_EX
                kwargs, args = stack.pop(), stack.pop()
                if type(kwargs) is not dict or type(args) is not tuple:
                    raise ValueError("arguments that are not a tuple and a dictionary")
                target = stack[-1]
                stack[-1] = call(target, (*args, kwargs) if kwargs else args)
            elif 0x82 <= op <= 0x84:  # EXT1, EXT2, EXT4
                refuse("asks for an entry of Python's extension registry")
            elif op == 0x97 or op == 0x98:  # NEXT_BUFFER, READONLY_BUFFER
                refuse("asks for a buffer outside the pickle")
            else:
                raise ValueError(f"no opcode 0x{op:02x}")
    except NemoconvError:
        raise
    except _MALFORMED as error:
        if isinstance(error, (IndexError, struct.error)) and pos + 9 > size:
            reason = f"the pickle is cut short at byte {size:,}"
        else:
            detail = error.args[0] if type(error) is ValueError and error.args else "bad operands"
            reason = f"malformed pickle: {detail} (byte {max(pos - 1, 0):,})"
        raise CorruptCheckpoint(
            f"{where}: {reason}",
            hint="the copy may be damaged; compare its checksum with the original",
        ) from None
    raise UnsafeCheckpoint(f"{where}: a pickle of more than {max_opcodes:,} opcodes")


def check_bounded(value: object, where: str, *, max_depth: int = 200, max_items: int = 10_000_000) -> None:
    """Raise UnsafeCheckpoint unless ``value`` is safe to walk recursively.

    A few bytes of pickle can describe 2**40 list elements, because lists may be shared; a list can
    also hold itself. Objects (stubs) may refer to each other in circles, as OmegaConf's do: what
    each of them holds is checked by itself.
    """
    sizes: dict[int, tuple[int, int]] = {}
    roots: list[object] = [value]
    stubs: set[int] = set()
    while roots:
        path: set[int] = set()
        stack: list[tuple[Any, bool]] = [(roots.pop(), False)]
        while stack:
            node, ready = stack.pop()
            if isinstance(node, Stub):
                if id(node) not in stubs:
                    stubs.add(id(node))
                    roots += [node.args, node.state]
                continue
            if not isinstance(node, (list, tuple, dict, set, frozenset)) or id(node) in sizes:
                continue
            members = list(node.values()) if isinstance(node, dict) else list(node)
            if not ready:
                if id(node) in path:
                    raise UnsafeCheckpoint(f"{where}: holds a list that contains itself")
                path.add(id(node))
                stack.append((node, True))
                stack += [(member, False) for member in members]
                if isinstance(node, PickledDict) and node.state is not None:
                    roots.append(node.state)
                continue
            path.discard(id(node))
            counts = [sizes.get(id(member), (1, 0)) for member in members]
            items = 1 + sum(count for count, _ in counts)
            depth = 1 + max((below for _, below in counts), default=0)
            if depth > max_depth:
                raise UnsafeCheckpoint(f"{where}: values nested more than {max_depth} deep")
            if items > max_items:
                raise UnsafeCheckpoint(f"{where}: describes more than {max_items:,} values")
            sizes[id(node)] = (items, depth)
