"""Which files a user means: a file, a folder, a pattern, or a list of those.

In a folder, hidden files and folders are passed over, and so are files of unknown kind (counted). A
symbolic link is followed if it leads to a file of the same folder. One that leads out of it is an
error: a downloaded corpus must not pull `~/.ssh` into the training text unnoticed. Links to folders
inside are passed over, since the folder is read anyway: no loop. What the user names is followed
wherever it leads.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from inkstone.errors import DataError
from inkstone.text.log import ReadLog
from inkstone.text.streams import display

Data = str | Path | Sequence[str | Path]
STDIN = Path("-")
COMPRESSED = (".gz", ".zst")
KINDS = frozenset({".txt", ".md", ".jsonl", ".csv", ".tsv", ".html", ".htm", ".parquet"})
SOURCES = frozenset({
    ".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".go", ".h", ".hpp", ".java", ".jl", ".js", ".kt",
    ".lua", ".php", ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".rst", ".scala", ".sh", ".sql",
    ".swift", ".toml", ".ts", ".tsx",
})  # fmt: skip
_KNOWN = (
    f"known: {', '.join(sorted(KINDS))}, plain or .gz or .zst; source code with "
    "text.source_code=true"
)


def kind_of(path: Path) -> str:
    """Suffix in lower case without that of compression; stdin is plain text."""
    if path == STDIN:
        return ".txt"
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def find_files(data: Data, *, log: ReadLog | None = None) -> list[Path]:
    """The readable files of a file, a folder (recursive), a pattern ("**/*.txt"), or a list.

    Each part's are sorted by the bytes of their paths; a file that is found twice is listed once.
    Takes about 250 bytes of memory a file.

    Args:
        data: What the user names; "-" is stdin.
        log: Decides what becomes of bad links and unreadable folders, and counts what is skipped.

    Raises:
        DataError: Nothing is there, nothing of it is of a known kind, or a link leads out.
    """
    parts = [data] if isinstance(data, str | Path) else list(data)
    found = [file for part in parts for file in _find(part, log)]
    return list(dict.fromkeys(found)) if len(parts) > 1 else found


def _readable(path: Path, log: ReadLog | None) -> bool:
    kind = kind_of(path)
    return kind in KINDS or (kind in SOURCES and log is not None and log.config.source_code)


def _find(part: str | Path, log: ReadLog | None) -> list[Path]:
    path = Path(part)
    if path == STDIN:
        return [path]
    try:
        if path.is_dir():
            return _find_in_folder(path, log)
        exists = path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:  # a name too long, a zero byte, a link to itself
        raise DataError(f"{str(part)[:200]!r}: {error}", fix="check the path") from error
    if exists:
        if not _readable(path, log):
            raise DataError(f"{display(path)}: unknown kind of file", fix=_KNOWN)
        return [path]
    if not glob.has_magic(str(part)):
        raise DataError(f"{display(path)} does not exist", fix="check the path")
    matches = (Path(match) for match in glob.iglob(str(part), recursive=True))
    files = sorted((p for p in matches if _readable(p, log) and not p.is_dir()), key=os.fsencode)
    if not files:
        raise DataError(
            f"no file of a known kind matches {display(path)}",
            fix=f"check the pattern, and quote it in a shell; {_KNOWN}",
        )
    return files


def _find_in_folder(folder: Path, log: ReadLog | None) -> list[Path]:
    root = os.path.realpath(folder)
    found = [Path(name) for name in _walk(os.fspath(folder), root, log)]
    if not found:
        raise DataError(f"no file under {display(folder)} is of a known kind", fix=_KNOWN)
    found.sort(key=os.fsencode)
    return found


def _walk(folder: str, root: str, log: ReadLog | None) -> Iterator[str]:
    """Names of files of a known kind at any depth, in no order."""
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink() and not _leads_inside(entry.path, root):
                        _bad(log, _leads_out(entry.path), "links that lead out of the folder")
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif _readable(Path(entry.name), log):
                        if not (entry.is_symlink() and os.path.isdir(entry.path)):
                            yield entry.path
                    elif log is not None:
                        log.skipped["files of other kinds"] += 1
        except OSError as error:
            name = display(Path(folder))
            problem = DataError(f"{name}: {error.strerror}", fix="check the folder's rights")
            _bad(log, problem, "unreadable folders")


def _leads_inside(path: str, root: str) -> bool:
    target = os.path.realpath(path)
    return target == root or target.startswith(root.rstrip(os.sep) + os.sep)


def _leads_out(path: str) -> DataError:
    return DataError(
        f"{display(Path(path))} is a symbolic link that leads out of the folder",
        fix="name its target as data too, or remove the link, or skip such links with "
        'text.on_error="skip"',
    )


def _bad(log: ReadLog | None, error: DataError, kind: str) -> None:
    if log is None:
        raise error
    log.bad(error, kind)
