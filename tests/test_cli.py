"""The command line as a user meets it: text, exit codes, JSON, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from nemoconv.mappings import samples


def nemoconv(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemoconv", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **options.pop("env", {})}  # type: ignore[dict-item]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, timeout=120, env=environment, **streams)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    samples.build(tmp_path / "llama")
    return tmp_path / "llama"


def test_every_command_has_help_and_is_in_the_readme_and_in_its_page() -> None:
    from nemoconv.cli import main

    root = Path(__file__).parents[1]
    readme, page = (root / "README.md").read_text(), (root / "docs" / "commands.md").read_text()
    for name, command in main.commands.items():
        assert command.help, name
        assert f"nemoconv {name}" in readme, f"README does not show {name}"
        assert f"| `nemoconv {name} " in page or f"| `nemoconv {name}`" in page, f"no row for {name}"
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{name} {parameter.name}"


def test_bare_command_shows_help_and_is_a_usage_error() -> None:
    result = nemoconv()
    assert result.returncode == 2
    assert "hf2nemo2" in result.stdout + result.stderr


def test_there_and_back(llama: Path, tmp_path: Path) -> None:
    result = nemoconv("hf2nemo2", llama, tmp_path / "nemo", "--tp", 2, "--pp", 2, "--verify", "--no-progress")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"wrote {tmp_path / 'nemo'} (hf -> nemo2, llama, tp2 pp2)")
    assert "verified bit for bit" in result.stdout
    assert result.stderr == ""
    result = nemoconv("nemo2hf", tmp_path / "nemo", tmp_path / "back", "-q")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    result = nemoconv("verify", llama, tmp_path / "back", "--no-progress")
    assert result.returncode == 0
    assert result.stdout == "27 tensors, 525,696 bytes: equal bit for bit\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "llama", "nemo"]


def test_progress_is_plain_lines_where_there_is_no_terminal(llama: Path, tmp_path: Path) -> None:
    result = nemoconv("convert", llama, tmp_path / "out", "--to", "nemo2")
    assert result.returncode == 0
    assert "writing: 100 % of 526 kB" in result.stderr.splitlines()
    assert "\r" not in result.stderr


def test_json_is_the_only_thing_on_stdout(llama: Path, tmp_path: Path) -> None:
    report = json.loads(nemoconv("convert", llama, tmp_path / "out", "--to", "nemo2", "--json").stdout)
    assert report["target_format"] == "nemo2"
    assert report["parameters"] == 262_848
    facts = json.loads(nemoconv("inspect", tmp_path / "out", "--json", "--grep", "layers.0.*fc2").stdout)
    assert facts["format"] == "nemo2"
    assert facts["vocabulary"] == {"true": 257, "rows": 257}
    assert facts["rope"]["rope_type"] == "llama3"
    assert [row["name"] for row in facts["tensor_list"]] == ["decoder.layers.0.mlp.linear_fc2.weight"]
    equal = json.loads(nemoconv("verify", tmp_path / "out", llama, "--json").stdout)
    assert equal["equal"] is True
    failed = nemoconv("inspect", tmp_path, "--json")
    assert json.loads(failed.stdout)["error"]["code"] == failed.returncode == 5


def test_dry_run_and_plan_write_nothing(llama: Path, tmp_path: Path) -> None:
    for command in (["plan"], ["convert", "--dry-run"]):
        result = nemoconv(command[0], llama, tmp_path / "out", "--to", "nemo2", "--tp", 2, *command[1:])
        assert result.returncode == 0
        assert result.stdout.startswith(f"would write {tmp_path / 'out'}")
        assert "39 tensors in, 9 out" in result.stdout
        assert "peak memory about" in result.stdout
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]
    (tmp_path / "out").mkdir()
    result = nemoconv("plan", llama, tmp_path / "out", "--to", "nemo2")
    assert result.returncode == 0
    assert f"note: {tmp_path / 'out'} exists already: pass --overwrite to replace it" in result.stdout


def test_a_source_of_another_format_than_the_command_says_is_noted(llama: Path, tmp_path: Path) -> None:
    result = nemoconv("nemo2hf", llama, tmp_path / "out", "--no-progress")
    assert result.returncode == 0
    assert "note: SRC is a checkpoint of format hf, not nemo2 or nemo or megatron" in result.stdout
    assert "SRC is" not in nemoconv("hf2nemo2", llama, tmp_path / "nemo").stdout


def test_inspect_lists_tensors(llama: Path) -> None:
    lines = nemoconv("inspect", llama, "--tensors").stdout.splitlines()
    assert "architecture: llama" in lines
    assert " bfloat16  [257, 64]                model.embed_tokens.weight" in lines


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "{tmp}"], 5, "error: {tmp}: no known checkpoint format; looked for hf (config.json beside "),
        (["inspect", "{tmp}/no"], 2, "error: {tmp}/no: no such file or directory; give a path or a hub "),
        (["inspect", "{tmp}/lama"], 2, "error: {tmp}/lama: no such file or directory; did you mean 'llama'? give "),
        (["inspect", "./nosuch"], 2, "error: ./nosuch: no such file or directory; give a path or a hub "),
        (["convert", "{llama}", "{tmp}/o", "--to", "gguf"], 2, "error: unknown format 'gguf'; one of: hf, "),
        (["convert", "{llama}", "{tmp}/o", "--to", "nemo3"], 2, "error: unknown format 'nemo3'; did you mean 'nemo"),
        (["convert", "{llama}", "{tmp}/o", "--to", "mcore"], 2, "error: megatron is read, and cannot be written; one"),
        (["convert", "{llama}", "{llama}", "--to", "hf"], 6, "error: {llama}: is the source, inside it or "),
        (["convert", "{llama}", "{tmp}", "--to", "hf"], 6, "error: {tmp}: is the source, inside it or around it"),
        (["hf2nemo2", "{llama}", "{tmp}/o", "--tp", "3"], 5, "error: cannot cut decoder.layers.*.self_"),
        (["hf2nemo2", "{llama}", "{tmp}/o", "--pp", "5"], 5, "error: cannot cut 4 layers into pipeline_parallel_"),
        (["hf2nemo", "{llama}", "{tmp}/o", "--pp", "3"], 5, "error: cannot cut 4 layers into pipeline_parallel_"),
        (["hf2nemo2", "{llama}", "{tmp}/o", "--ep", "2"], 5, "error: expert_parallel_size=2, but the model has no exp"),
        (["nemo2hf", "{llama}", "{tmp}/o", "--tp", "2"], 5, "error: the format hf has no parallel layout; leave "),
        (
            ["hf2nemo2", "{llama}", "{tmp}/o", "--flavor", "genai"], 2,
            "error: flavor means nothing for hf -> nemo2; it is an option of onnx",
        ),
        (
            ["hf2onnx", "{llama}", "{tmp}/o", "--dequantize"], 2,
            "error: dequantize means nothing for hf -> onnx; it is an option of onnx as the source",
        ),
        (["hf2nemo2", "{llama}", "{tmp}/o", "--exact"], 2, "error: exact is of no use without a dtype; leave it"),
        (["hf2nemo2", "{llama}", "{tmp}/o", "--dtype", "int8"], 2, "error: unknown dtype 'int8'; one of float64"),
        (["hf2nemo2", "{llama}", "{tmp}/o", "--max-memory", "1MB"], 2, "error: --max-memory 1,000,000 bytes is too"),
        (["hf2nemo2", "{llama}", "/proc/o"], 6, "error: /proc/"),
        (["hf2nemo2", "{llama}", "/dev/null/o"], 6, "error: /dev/null: is not a directory; choose another "),
        (["inspect", "nobody/nothing@v2"], 7, "error: nobody/nothing@v2: not a local path, and not in the hub "),
        (
            ["hf2nemo2", "nobody/nothing", "{tmp}/o"], 7,
            "error: nobody/nothing: not a local path, and not in the hub cache {tmp}/hub (offline); unset HF_HUB_",
        ),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_their_code(
    arguments: list[str], code: int, message: str, llama: Path, tmp_path: Path
) -> None:
    names = {"tmp": tmp_path, "llama": llama}
    result = nemoconv(*(a.format(**names) for a in arguments), env={"HF_HUB_CACHE": f"{tmp_path}/hub"})
    assert result.returncode == code, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(message.format(**names))
    assert not (tmp_path / "o").exists()


def test_an_existing_output_is_kept_unless_told_otherwise(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert nemoconv("hf2nemo2", llama, out).returncode == 0
    before = (out / "weights" / "__0_0.distcp").stat().st_ino
    refused = nemoconv("hf2nemo2", llama, out)
    assert refused.returncode == 6
    assert refused.stderr == f"error: {out}: exists already; pass --overwrite to replace it\n"
    assert (out / "weights" / "__0_0.distcp").stat().st_ino == before
    assert nemoconv("hf2nemo2", llama, out, "--overwrite", "--tp", 2).returncode == 0
    assert (out / "weights" / "__1_0.distcp").exists()


def test_a_difference_is_shown_and_exits_with_1(llama: Path, tmp_path: Path) -> None:
    samples.build(tmp_path / "other", seed=1)
    result = nemoconv("verify", llama, tmp_path / "other", "--no-progress")
    assert result.returncode == 1
    assert result.stdout.startswith(
        "27 of 27 tensors differ, first embedding.word_embeddings.weight (model.embed_tokens.weight): "
        "at [0, 0] (vocab hidden) one holds "
    )
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    result = nemoconv("verify", llama, tmp_path / "other", "--no-progress")
    assert result.returncode == 1
    assert result.stdout == "configs differ: layernorm_epsilon: 1e-05 and 1e-06\n"


def test_ignored_keys_are_recorded(llama: Path, tmp_path: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "sliding_window": 3}))
    result = nemoconv("hf2nemo2", llama, tmp_path / "out")
    assert result.returncode == 5
    assert "1 key(s) that may change what the model computes: sliding_window" in result.stderr
    assert "--allow-ignored sliding_window" in result.stderr
    result = nemoconv(
        "hf2nemo2", llama, tmp_path / "out", "--allow-ignored", "sliding_window", "--no-progress"
    )
    assert result.returncode == 0, result.stderr
    assert "ignored on request: sliding_window" in result.stdout
    manifest = json.loads((tmp_path / "out" / "nemoconv_manifest.json").read_text())
    assert manifest["ignored_config_keys"] == ["sliding_window"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cleans_up(number: signal.Signals, tmp_path: Path) -> None:
    config = {**samples.LLAMA, "num_hidden_layers": 30, "hidden_size": 1024, "intermediate_size": 8192}
    source, out = tmp_path / "big", tmp_path / "out"
    sparse(source, config)
    process = subprocess.Popen(
        [sys.executable, "-m", "nemoconv", "hf2nemo2", str(source), str(out), "--no-progress"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    stage = tmp_path / ".out.incomplete" / "out" / "weights" / "__0_0.distcp"
    deadline = time.monotonic() + 60
    while not stage.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert stderr == f"stopped by {number.name}; nothing was left behind\n"
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def sparse(folder: Path, config: dict[str, object]) -> None:
    """A checkpoint whose weights are a hole: any size at once."""
    from nemoconv.formats.safetensors import emit_header
    from nemoconv.tensors.dtypes import BY_NAME

    dtype = BY_NAME["bfloat16"]
    named = [(name, dtype, shape) for name, shape in samples.tensors(config)]
    header, offsets = emit_header(named)
    size = offsets[-1] + 2 * int.__mul__(*(*named[-1][2], 1)[:2])
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header)
        file.truncate(size)
    (folder / "config.json").write_text(json.dumps(config))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = nemoconv("inspect", tmp_path, "--debug")
    assert "Traceback" in result.stderr
    assert result.returncode == 5
    assert "Traceback" not in nemoconv("inspect", tmp_path).stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["inspect", "{llama}"], ["supported"], ["convert", "--help"]]
)
def test_starting_imports_nothing_heavy(arguments: list[str], llama: Path) -> None:
    code = (
        "import sys\n"
        "from nemoconv.cli import main\n"
        "try:\n"
        f"    main({[a.format(llama=llama) for a in arguments]!r})\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy', 'ml_dtypes', 'tqdm'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_converting_imports_neither_torch_nor_the_hub(llama: Path, tmp_path: Path) -> None:
    code = (
        "import sys, nemoconv\n"
        "assert 'numpy' not in sys.modules\n"
        f"nemoconv.convert({str(llama)!r}, {str(tmp_path / 'o')!r}, to='nemo2', dtype='float32')\n"
        f"assert nemoconv.verify({str(tmp_path / 'o')!r}).equal\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "SRC"),
        ("inspect", "SRC", "--tensors", "--json"),
        ("verify", "SRC"),
        ("convert", "SRC", "OUT", "--to", "nemo2"),
        ("convert", "SRC", "OUT", "--to", "nemo2", "--json"),
        ("plan", "SRC", "OUT", "--to", "nemo2"),
        ("supported",),
        ("supported", "--json"),
        ("demo",),
        ("--help",),
        ("hf2nemo2", "--help"),
        ("--version",),
    ],
)
def test_a_full_disk_under_standard_output(llama: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    places = {"SRC": str(llama), "OUT": str(tmp_path / "out")}
    with open("/dev/full", "w") as full:
        result = nemoconv(*(places.get(word, word) for word in arguments), stdout=full)
    assert result.returncode == 6
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: standard output cannot be written (No space left on device)")
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_an_error_that_nobody_can_be_told_keeps_its_code(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = nemoconv("inspect", tmp_path, "--json", stdout=full, stderr=full)
    assert result.returncode == 5


@pytest.mark.parametrize("escape", ["\x1b[31m", "\x9b31m", "\x07", "\u202e", "\r", "\n"])
def test_nothing_of_a_file_reaches_the_terminal_as_a_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], escape: str
) -> None:
    """Versions, names of tensors, classes, keys and the writer of a manifest are what somebody else wrote."""
    from click.testing import CliRunner

    from nemoconv.cli import main

    said = f"a{escape}b"
    config = {**tiny.CONFIG, "transformers_version": said, "id2label": {"0": said}}
    arrays = tiny.tensors(tiny.CONFIG)
    tiny.write(tmp_path / "model", config)
    tiny.write(tmp_path / "named", config, arrays={**arrays, f"x{said}": arrays["model.norm.weight"]})
    tiny.write(tmp_path / "kind", {**config, "model_type": said})
    tiny.write(tmp_path / "key", {**config, said: 1})
    runner = CliRunner()
    for arguments in (
        ("convert", "model", "nemo", "--to", "nemo2", "-v"),
        ("convert", "nemo", "back", "--to", "hf", "-v"),
        ("inspect", "model"),
        ("inspect", "nemo", "--tensors"),
        ("inspect", "named", "--tensors"),
        ("inspect", "named", "--json", "--tensors"),
        ("inspect", "kind"),
        ("inspect", "key"),
        ("verify", "named"),
        ("verify", "model", "named"),
        ("convert", "named", "plain", "--to", "safetensors"),
        ("convert", "key", "out", "--to", "nemo2"),
    ):
        places = [str(tmp_path / word) if (tmp_path / word).exists() or (word in ("nemo", "back", "plain", "out")
                  and at == 2) else word for at, word in enumerate(arguments)]  # fmt: skip
        result = runner.invoke(main, places)
        assert result.exit_code in (0, 1, 5), result.output
        printed = (result.output + result.stderr).replace("\n", "")
        assert printed.isprintable(), printed


def test_quiet_says_nothing(llama: Path, tmp_path: Path) -> None:
    for arguments in (
        ["inspect", llama],
        ["supported"],
        ["verify", llama],
        ["demo"],
        ["hf2nemo2", llama, tmp_path / "o"],
    ):
        result = nemoconv(*arguments, "-q")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("size", ["0", "-1", "five", "1e3", "0.0001k", "1.2.3GB", "9" * 400, "9999999TiB"])
def test_sizes_that_are_none(llama: Path, tmp_path: Path, size: str) -> None:
    result = nemoconv("hf2nemo2", llama, tmp_path / "out", f"--max-memory={size}")
    assert result.returncode == 2
    assert f"{size!r} is not a size such as 512MiB or 5GB" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_link_to_nothing_and_what_may_not_be_read(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nothing")
    result = nemoconv("inspect", tmp_path / "dangling")
    assert (result.returncode, result.stderr) == (3, f"error: {tmp_path}/dangling: is a link to nothing\n")
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    llama.chmod(0)
    for path in (llama, llama / "inside"):
        result = nemoconv("inspect", path)
        assert (result.returncode, result.stderr) == (
            3,
            f"error: {path}: cannot be read (Permission denied)\n",
        )
    llama.chmod(0o700)


def test_demo_runs_and_removes_its_files(tmp_path: Path) -> None:
    result = nemoconv("demo", env={"TMPDIR": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "equal bit for bit" in result.stdout
    assert list(tmp_path.iterdir()) == []
    lines = json.loads(nemoconv("demo", "--json", env={"TMPDIR": str(tmp_path)}).stdout)["lines"]
    assert lines[-1] == result.stdout.splitlines()[-1]
    assert nemoconv("demo", tmp_path / "kept").returncode == 0
    assert (tmp_path / "kept" / "llama-nemo2-tp2" / "weights" / "__1_0.distcp").exists()
