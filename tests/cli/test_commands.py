"""The small commands: models, keygen, completion, --version and --help."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from models import MODELS
from tests.cli.running import tunnel
from tunnel._version import __version__
from tunnel.cli import build_parser
from tunnel.config import DEFAULTS
from tunnel.keys import METHODS

SERVERS = ["serve", "local", "forward"]
COMMANDS = [*SERVERS, "models", "status", "keygen", "completion"]
FLAGS = [
    *(
        "--model",
        "--config",
        "--listen",
        "--backlog",
        "--method",
        "--password-file",
        "--workers",
        "--timeout",
    ),
    *("--handshake-timeout", "--connect-timeout", "--grace", "--log-level", "--log-format"),
    *("--max-requests", "--heartbeat", "--relay", "--log-file"),
]


def test_version_is_the_packages() -> None:
    assert tunnel("--version") == (0, f"tunnel {__version__}\n", "")


def test_help_names_every_command() -> None:
    code, out, err = tunnel("--help")
    assert (code, err) == (0, "")
    assert all(f"\n    {name}" in out for name in COMMANDS)
    assert "tunnel serve" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command: str) -> None:
    code, out, err = tunnel(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: tunnel {command}")
    assert "show this help message" in out


@pytest.mark.parametrize("command", SERVERS)
def test_a_servers_help_names_every_flag_and_default(command: str) -> None:
    out = " ".join(tunnel(command, "--help").out.split())
    own = {"serve": ["--allow"], "local": ["--server"], "forward": ["--server", "--target"]}
    assert all(flag in out for flag in FLAGS + own[command])
    assert ("where --service relay leads to" in out) == (command == "serve")
    for name in DEFAULTS.keys() - {"no_delay"}:  # which has no flag
        shown = f"{DEFAULTS[name]:g}" if isinstance(DEFAULTS[name], float) else DEFAULTS[name]
        assert f"default: {shown}" in out
    assert ("127.0.0.1:8388" if command == "serve" else "127.0.0.1:1080") in out
    assert all(method in out for method in METHODS)


@pytest.mark.parametrize(("columns", "terminal", "widest"), [("50", 70, 50), ("much", 70, 70), ("", 0, 80)])
def test_help_is_as_wide_as_the_terminal(
    columns: str, terminal: int, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_terminal_size(_fd: int) -> os.terminal_size:
        if not terminal:
            raise OSError("no terminal")
        return os.terminal_size((terminal, 24))

    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("os.get_terminal_size", get_terminal_size)
    lines = build_parser().format_help().splitlines()
    assert 0.75 * widest < max(map(len, lines)) <= widest


def test_no_flag_takes_a_password() -> None:
    """What stands in argv is everybody's to read."""
    for command in SERVERS:
        out = tunnel(command, "--help").out
        assert "--password " not in out
        assert "--key" not in out


def test_models_lists_the_registry_in_its_order() -> None:
    code, out, err = tunnel("models")
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["NAME", "FAMILY", "SOURCE"]
    assert [row.split()[0] for row in rows] == list(MODELS)
    for row, model in zip(rows, MODELS.values(), strict=True):
        assert row.split()[1] == model.family
        assert model.source in row
        assert row.endswith(model.summary)


def test_keygen_prints_a_fresh_key_for_the_longest_method() -> None:
    ended = [tunnel("keygen") for _ in range(2)]
    assert ended[0].out != ended[1].out
    for code, out, err in ended:
        assert (code, err) == (0, "")
        assert out.endswith("\n")
        assert len(base64.b64decode(out.strip(), validate=True)) == 32


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_keygen_writes_a_file_for_its_owner_alone_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "password"
    before = os.umask(umask)
    try:
        assert tunnel("keygen", "--output", str(path)) == (0, "", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(base64.b64decode(path.read_text().strip(), validate=True)) == 32


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_prints_a_script_that_knows_commands_and_flags(shell: str) -> None:
    code, out, err = tunnel("completion", shell)
    assert (code, err) == (0, "")
    for word in ("tunnel", *SERVERS, "password-file", "handshake-timeout"):
        assert word in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_shell_can_parse_its_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = tmp_path / "script"
    script.write_text(tunnel("completion", shell).out)
    ended = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def complete(*words: str) -> list[str]:
    """What bash offers after these words, the last of them unfinished."""
    script = tunnel("completion", "bash").out
    ask = f"""
        {script}
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
        COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        $(complete -p tunnel | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    return [word.strip() for word in ended.stdout.split()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("tunnel", "ser"), "serve"),
        (("tunnel", "serve", "--hand"), "--handshake-timeout"),
        (("tunnel", "serve", "--model", "prefork-re"), "prefork-reuseport"),
        (("tunnel", "local", "--method", "chacha"), "chacha20-ietf-poly1305"),
    ],
)
def test_bash_completes_commands_flags_and_their_values(words: tuple[str, ...], offered: str) -> None:
    assert complete(*words) == [offered]
