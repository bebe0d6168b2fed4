"""The embedded sample: a tiny seeded Llama, converted there and back, with a tour of what happened."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path


def run(folder: str | None = None) -> Iterator[str]:
    """Build, convert to NeMo 2 at tensor parallel size 2, convert back, verify; yields a tour."""
    from ..converters.look.inspect import inspect
    from ..converters.look.verify import verify
    from ..converters.run.convert import convert
    from ..errors import NemoconvError, OutputError
    from ..mappings import samples

    with ExitStack() as stack:
        root = Path(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="nemoconv-demo-")))
        source, nemo, back = root / "llama", root / "llama-nemo2-tp2", root / "llama-back"
        if source.exists():
            raise OutputError(f"{source}: exists already", hint="choose an empty folder")
        samples.build(source)
        yield f"1. A Hugging Face Llama with random weights: {source}"
        report = convert(source, nemo, to="nemo2", tensor_parallel_size=2, verify=True)
        yield f"2. nemoconv hf2nemo2 {source} {nemo} --tp 2 --verify"
        yield f"     {report.tensors_in} tensors became {report.tensors_out}: layers are stacked, q, k and v"
        yield "     interleaved by query group, gate and up fused; one .distcp file per rank:"
        for file in sorted(path for path in nemo.rglob("*") if path.is_file()):
            yield f"       {file.stat().st_size:>9,}  {file.relative_to(nemo)}"
        facts = inspect(nemo)
        rows, true = facts["vocabulary"]["rows"], facts["vocabulary"]["true"]
        yield f"     The vocabulary of {true} does not divide by 2: it was padded to {rows} rows of zeros."
        convert(nemo, back, to="hf", verify=True)
        yield f"3. nemoconv nemo2hf {nemo} {back} --verify"
        yield "     The padding is gone, the names and shapes are the old ones."
        yield f"4. nemoconv verify {nemo}"
        yield f"     {verify(nemo).describe()}"
        yield f"5. nemoconv verify {source} {back}"
        result = verify(source, back)
        yield f"     {result.describe()}"
        if not result.equal:
            raise NemoconvError(f"the demo came back changed: {result.describe()}")
        yield "Nothing here needed torch, NeMo, Megatron or a GPU." + ("" if folder else " Removed it all.")
