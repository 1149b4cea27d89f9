"""Wheels in pieces: packages for a machine without internet that takes small files only.

    python -m mosrt_bench.wheels split onnxruntime_gpu-….whl … --out pieces --part-mb 50
    python -m mosrt_bench.wheels install pieces --target site

`split` writes each wheel as NAME.whl.000, NAME.whl.001, … and adds its SHA-256 to the list
`sha256.txt`. `install` joins the pieces of every wheel of the list, compares its SHA-256, and has
pip install them into a folder that goes into PYTHONPATH, from nowhere else and without what they
depend on. It needs Python and pip alone, since nothing else may be there yet.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

__all__ = ["LIST", "PiecesError", "install", "join", "main", "split"]

LIST: Final = "sha256.txt"
_CHUNK_BYTES: Final = 1 << 20


class PiecesError(Exception):
    """Pieces that do not make a wheel; the message names the file and the cure."""


def split(wheels: Sequence[Path], out: Path, part_bytes: int) -> None:
    """Writes wheels as pieces of `part_bytes`, the last ones shorter, and adds them to the list."""
    out.mkdir(parents=True, exist_ok=True)
    known = dict(_listed(out)) if (out / LIST).exists() else {}
    for wheel in wheels:
        for old in out.glob(f"{wheel.name}.[0-9][0-9][0-9]"):
            old.unlink()
        with wheel.open("rb") as stream:
            number = 0
            while piece := stream.read(part_bytes):
                (out / f"{wheel.name}.{number:03d}").write_bytes(piece)
                number += 1
        known[wheel.name] = _digest(wheel)
    # As sha256sum writes and checks it.
    text = "".join(f"{digest}  {name}\n" for name, digest in known.items())
    (out / LIST).write_text(text, encoding="utf-8")


def join(folder: Path, out: Path) -> list[Path]:
    """Writes every wheel of the list to `out`.

    Raises:
        PiecesError: A piece is missing, or a wheel is not what was split.
    """
    joined = []
    for name, digest in _listed(folder):
        pieces = sorted(folder.glob(f"{name}.[0-9][0-9][0-9]"))
        numbers = [int(piece.suffix[1:]) for piece in pieces]
        if not pieces or numbers != list(range(len(pieces))):
            raise PiecesError(f"{folder / name}: pieces {numbers} are there; copy all of them")
        wheel = out / name
        with wheel.open("wb") as stream:
            for piece in pieces:
                stream.write(piece.read_bytes())
        if _digest(wheel) != digest:
            raise PiecesError(
                f"{folder / name}: {len(pieces)} pieces make another file than was split; copy "
                "them again, the last ones may be missing"
            )
        joined.append(wheel)
    return joined


def install(
    folder: Path, target: Path, run: Callable[[list[str]], None] | None = None
) -> list[str]:
    """Joins all wheels of a folder and installs them into `target`; tells their names.

    Args:
        folder: With the pieces and the list.
        target: Folder that is to go into PYTHONPATH.
        run: Runs a command line; for tests.

    Raises:
        PiecesError: As `join`.
        subprocess.CalledProcessError: pip failed; its output says why.
    """
    with TemporaryDirectory() as temporary:
        wheels = join(folder, Path(temporary))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--upgrade", "--target", str(target), *map(str, wheels)]
        (run or _run)(command)
    return [wheel.name for wheel in wheels]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="mosrt_bench.wheels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    splitting = commands.add_parser("split")
    splitting.add_argument("wheels", nargs="+", type=Path)
    splitting.add_argument("--out", required=True, type=Path)
    splitting.add_argument("--part-mb", default=50, type=int)
    installing = commands.add_parser("install")
    installing.add_argument("folder", type=Path)
    installing.add_argument("--target", required=True, type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "split":
            split(options.wheels, options.out, options.part_mb * 1_000_000)
        else:
            print("\n".join(install(options.folder, options.target)))
    except (PiecesError, OSError) as exc:
        sys.exit(f"Error: {exc}")
    except subprocess.CalledProcessError as exc:
        sys.exit(exc.returncode)


def _listed(folder: Path) -> list[tuple[str, str]]:
    """Names and digests of the list."""
    path = folder / LIST
    if not path.exists():
        raise PiecesError(f"{path}: no such list; make it with `mosrt_bench.wheels split`")
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not name.endswith(".whl") or Path(name).name != name:
            raise PiecesError(f"{path}: {line!r} is no digest and name of a wheel")
        found.append((name, digest))
    return found


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
