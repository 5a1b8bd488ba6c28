"""Files and folders that appear whole or not at all, and say which file is damaged.

A folder is written beside its final place under a hidden name, every file is synced and hashed,
and then one rename makes it visible. Replacing a folder exchanges the two names in a single system
call where the file system can (Linux, RENAME_EXCHANGE). Elsewhere the old one steps aside under
`.NAME.old-XXXXXXXX` first; a crash between the two renames leaves only that, and `recover`, which
every load and every save calls, puts it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from inkstone.errors import CheckpointError, UsageError

MANIFEST = "sha256.json"
_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-[0-9a-f]{8}")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write durably: temporary sibling, fsync, rename, fsync of the folder.

    Raises:
        OSError: No room, no permission; whatever stood at `path` is untouched.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_new(path: Path | str, content: str, option: str) -> None:
    """Write a text file that a user asked for: whole, and never onto one that is there.

    Args:
        path: The new file.
        content: Its text.
        option: What named it, for messages: "--output".

    Raises:
        UsageError: The file is there already, or cannot be written.
    """
    target = Path(path)
    private = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write_atomic(private, content)
        os.link(private, target)  # unlike a rename, never onto a file that has come meanwhile
        sync(target.parent)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already", fix=f"choose another {option}") from error
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}", fix=f"choose another {option}"
        ) from error
    finally:
        private.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Ask the disk to hold a file, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def complete_lines(path: Path) -> Iterator[str]:
    """The lines of a text file; a last one that a crash cut short is left out."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.endswith("\n"):
                yield line


@contextlib.contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Give a private folder to fill; when the block ends well, it becomes `target`.

    What earlier saves left behind when they were killed is removed first. If anything fails, the
    private folder is removed and an existing `target` stays as it was.

    Args:
        target: The final place; its parents are made, an existing folder is replaced.

    Raises:
        CheckpointError: The disk is full, read-only or failing.
    """
    target = Path(target).absolute()
    lock = -1
    private = target
    try:
        private = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        private.mkdir()
        lock = os.open(private, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says to other savers: in use
        yield private
        _write_manifest(private)
        _sync_tree(private)
        _put_in_place(private, target)
    except OSError as error:
        raise CheckpointError(
            f"could not save {target}: {error.strerror or error}",
            fix="what was there before is intact; make room or choose another place, and go on",
        ) from error
    finally:
        if private != target:  # after success this name is gone, or holds what was replaced
            _remove_tree(private)
        if lock >= 0:
            with contextlib.suppress(OSError):  # nothing was written through it
                os.close(lock)


@contextlib.contextmanager
def new_file(target: Path | str) -> Iterator[Path]:
    """Give a private path to write a file at; when the block ends well, it becomes `target`.

    What earlier calls left behind when they were killed is removed first. If anything fails, the
    private file is removed; a file that stands at `target` stays as it is.

    Args:
        target: A new name; its parents are made.

    Raises:
        CheckpointError: The file is there already, or the disk is full, read-only or failing.
    """
    target = Path(target).absolute()
    private = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    lock = -1
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(f".{_escaped(target.name)}.tmp-*"):
            if _HIDDEN.fullmatch(stale.name) and stale.is_file() and not _in_use(stale):
                stale.unlink(missing_ok=True)
        lock = os.open(private, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says to other writers: in use
        yield private
        sync(private)
        os.link(private, target)  # unlike a rename, never onto a file that has come meanwhile
        sync(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"could not write {target}: {error.strerror or error}",
            fix="nothing was left behind; make room or choose another place",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            private.unlink(missing_ok=True)
        if lock >= 0:
            with contextlib.suppress(OSError):
                os.close(lock)


def recover(target: Path | str) -> None:
    """Undo a replacement that was cut off between its two renames, if that is what happened."""
    target = Path(target).absolute()
    if target.exists() or not target.parent.is_dir():
        return
    for path in sorted(target.parent.glob(f".{_escaped(target.name)}.old-*")):
        if _HIDDEN.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.rename(target)
            return


def verify_folder(folder: Path | str, names: set[str] | None = None) -> None:
    """Compare the files of a folder with its manifest `sha256.json`.

    Args:
        folder: A folder that `atomic_folder` made.
        names: Check only these of the listed files; None checks all.

    Raises:
        CheckpointError: The manifest is missing or malformed, or a file is missing or changed; the
            message names it.
    """
    folder = Path(folder)
    recover(folder)
    for name, expected in _read_manifest(folder).items():
        if names is not None and name not in names:
            continue
        path = folder / name
        try:
            size = path.stat().st_size
            same = size == expected["bytes"] and sha256(path) == expected["sha256"]
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}") from error
        if not same:
            raise CheckpointError(
                f"{path} is not as it was written (its SHA-256 differs from {MANIFEST})",
                fix="use an earlier checkpoint or a fresh copy; if you changed this file on "
                f"purpose, delete {MANIFEST}",
            )


def read_json(path: Path, max_bytes: int = 1 << 24) -> dict[str, Any]:
    """A JSON object from a file that may be hostile.

    Raises:
        CheckpointError: Missing, too large, not JSON, not an object, or with a key given twice.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if len(raw) > max_bytes:
        raise CheckpointError(f"{path} is larger than {max_bytes} bytes")
    return parse_json(raw, str(path))


def parse_json(raw: bytes, where: str, *, most_keys: int | None = None) -> dict[str, Any]:
    """A JSON object from bytes; errors as in `read_json`, naming `where`.

    Args:
        raw: UTF-8.
        where: What it is called in errors.
        most_keys: Of any one object in it; None for as many as there are.
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if most_keys is not None and len(pairs) > most_keys:
            raise ValueError(f"an object has {len(pairs):,} keys, of {most_keys:,} at most")
        return _no_duplicates(pairs)

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=checked)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds no JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object the way people read it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:100]!r} appears twice")
        found[key] = value
    return found


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    listing = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in files
    }
    write_json(folder / MANIFEST, listing)


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {MANIFEST}", fix="it is not a finished checkpoint of Inkstone"
        )
    listing = read_json(path)
    for name, entry in listing.items():
        parts = PurePosixPath(name).parts
        inside = parts and ".." not in parts and not name.startswith("/")
        if not inside or not isinstance(entry, dict) or {"bytes", "sha256"} - entry.keys():
            raise CheckpointError(f"{path}: malformed entry {name[:100]!r}")
    return listing


def _sync_tree(folder: Path) -> None:
    """Ask the disk to hold every file, then every folder that lists them."""
    paths = sorted(folder.rglob("*"), key=lambda path: (path.is_dir(), -len(path.parts)))
    for path in [*paths, folder]:
        sync(path)


def _put_in_place(private: Path, target: Path) -> None:
    if not target.exists():
        private.rename(target)
        sync(target.parent)
        return
    if _exchange(private, target):
        try:
            sync(target.parent)
        except OSError:
            _exchange(private, target)  # the old one is the one that is known to be on the disk
            raise
        return
    aside = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
    target.rename(aside)
    try:
        private.rename(target)
        sync(target.parent)
    except OSError:
        if target.exists():
            target.rename(private)
        aside.rename(target)
        raise
    _remove_tree(aside)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two names in one step; False where the system has no such call."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code))


def _sweep(parent: Path) -> None:
    """Remove what killed saves left; put back what a killed replacement had moved aside."""
    for path in sorted(parent.iterdir()):
        found = _HIDDEN.fullmatch(path.name)
        if not found or not path.is_dir():
            continue
        if found["kind"] == "old":
            recover(parent / found["name"])
        if path.exists() and not _in_use(path):
            _remove_tree(path)


def _remove_tree(folder: Path) -> None:
    """Delete what can be deleted; the next save sweeps away the rest."""
    with contextlib.suppress(OSError):  # rmtree lets an error of fstat through all the same
        shutil.rmtree(folder, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    """Whether another saver holds the lock of this private folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
