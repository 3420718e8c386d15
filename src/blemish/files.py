"""What blemish writes: whole or not at all, and never over what is not its own.

A folder that a command writes is its own. The file `.blemish` in it is its mark, which says what wrote it and which
files are its own, and its lock: one process at a time writes a folder. So

- a folder without a mark that holds anything is another's, and is refused in words;
- a folder of blemish's is replaced only where the user asked for that, and only if every file in it is its own;
- a marked folder is never read as data.

`staged` is for folders that appear when they are complete: they are made in `.NAME.partial` beside NAME and take its
place in one step, where the system has one (Linux, macOS), else in two, with the old one in `.NAME.old` in between. A
kill at any point leaves the old folder or the new one whole, and the next call puts it into its place. `kept` is for
folders that grow while they are there. All is checked before the work, and again when a folder takes its place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from blemish.atomic import Lock, exchange, lock_file, naming, rename
from blemish.ownership import MARK, Mark, files_in, is_empty, mark_of, not_own
from blemish.types import BlemishError

LONGEST = 255  # bytes of a file's name, on all common file systems


@contextmanager
def staged(target: Path, kind: str, *, overwrite: bool = False, reads: Sequence[Path] = ()) -> Iterator[Path]:
    """A new folder, which becomes `target` when the block ends and is removed when the block raises. `reads` are what
    the command reads: `target` must not hold any of it.

    Raises `BlemishError`, before the block, where `target` cannot be written or is not ours to replace; and after it,
    where that has become so meanwhile: the new folder is then kept under another name, which the error says.
    """
    writable(target, reads)
    if target.is_mount():
        raise BlemishError(f"{target}: is a mounted disk, which cannot be replaced; choose a new folder in it.")
    with _parents_of(target), naming(target, _beside(target, "partial")):
        lock = _claim(target, kind)
        partial = _beside(target, "partial")
        try:
            _refuse_existing(target, kind, overwrite)
            yield partial
            lock.write(Mark(kind, files=frozenset(files_in(partial)), complete=True).content())
            _put(partial, target, kind, overwrite, lock)
        finally:
            if lock.holds(partial / MARK):
                _remove(partial)
            lock.close()


@dataclass
class Kept:
    """A folder that is written in place. What is `adopted` (paths relative to it) is its own."""

    path: Path
    adopted: set[str] = field(default_factory=set)


@contextmanager
def kept(
    target: Path,
    kind: str,
    names: Sequence[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    foreign: Callable[[Path], bool] = lambda _: True,
    reads: Sequence[Path] = (),
) -> Iterator[Kept]:
    """The folder `target`, made where it is missing, which no other process writes until the block ends. `names` are
    the files and folders that this kind writes into it; without `resume`, only what was adopted is its own once the
    block has ended.

    An earlier one is replaced with `overwrite`, and continued with `resume`. `foreign` says of a folder without a mark
    that holds something whether it is another's. Raises `BlemishError` where it cannot be written or is not ours.
    """
    writable(target, reads)
    with _parents_of(target), naming(target, target / MARK):
        made, folder, complete = not os.path.lexists(target), Kept(target), False
        lock = _entered(target, Mark(kind, tuple(names)), overwrite=overwrite, resume=resume, foreign=foreign)
        try:
            lock.write(Mark(kind, tuple(names)).content())
            yield folder
            complete = True
        finally:
            # Of what was interrupted, threads may have written files that were not adopted any more.
            files = frozenset(folder.adopted) if complete and not resume else None
            with suppress(OSError):  # a full disk
                lock.write(Mark(kind, tuple(names), files, complete).content())
            if not complete and lock.holds(target / MARK) and is_empty(target):
                if made:
                    _remove(target)
                else:
                    (target / MARK).unlink()
            lock.close()


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path beside `file`, which takes its place when the block ends, and is removed when the block raises.
    What a killed process left there is overwritten. In a complete folder of blemish's, the file becomes its own. Raises
    `BlemishError` where `file` is a folder, or another process writes it."""
    if file.is_dir():
        raise BlemishError(f"{file}: is a folder; choose a file to write.")
    temporary = _beside(file, "partial")
    with naming(file, temporary):
        lock = lock_file(temporary, file)
        try:
            lock.write(b"")
            yield temporary
            temporary.replace(file)
        finally:
            if lock.holds(temporary):
                temporary.unlink()
            lock.close()
    mark = mark_of(file.parent)
    if mark and mark.files is not None and file.name not in mark.files:
        # Another process may write there, and the mark may be another user's.
        with suppress(BlemishError, OSError), closing(_lock(file.parent, file.parent)) as lock:
            lock.write(replace(mark, files=mark.files | {file.name}).content())


def write_text(file: Path, text: str) -> None:
    """Writes a text file whole or not at all, as `replacing`."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def writable(target: Path, reads: Sequence[Path] = ()) -> None:
    """Raises `BlemishError` unless a command may write `target`, a file or folder: one with a name of its own, no link,
    not in a bundle, not the current folder or one above it, and without any of what the command `reads`."""
    if target.name.strip() in ("", ".."):
        raise BlemishError(f"'{target}' is no name for something new; choose a folder or file that may be written.")
    try:
        current = Path.cwd()
    except FileNotFoundError:
        raise BlemishError("The current folder has been deleted; change to another one and run it again.") from None
    if target.is_symlink():
        raise BlemishError(f"{target}: is a link; choose the place itself that it leads to, or another one.")
    above = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise BlemishError(f"{target}: {above} is no folder; choose another place.")
    if not os.access(target if target.exists() else above, os.W_OK):
        raise BlemishError(f"{target}: you may not write {target if target.exists() else above}; choose another place.")
    here = target.resolve()
    if current.is_relative_to(here):
        raise BlemishError(f"{target}: is the current folder, or one above it; choose a folder in it.")
    for folder in here.parents:
        if (folder / "card.json").is_file() and (folder / "model.onnx").is_file():
            raise BlemishError(f"{target}: is in the bundle {folder}, which must stay as it is; choose another place.")
    for source in reads:
        if source.resolve().is_relative_to(here):
            raise BlemishError(
                f"{target}: {'' if source == target else f'holds {source}, which '}is read by this "
                "command; choose another place to write to."
            )


def check_file(file: Path, start: str, reads: Sequence[Path] = ()) -> None:
    """Raises `BlemishError` unless `file` is new and `writable`, or is ours to replace: empty, or with the text `start`
    within its first 1000 bytes."""
    writable(file, reads)
    if not file.exists():
        return
    if not file.is_file():
        raise BlemishError(f"{file}: is a folder or device; choose a file to write.")
    with file.open("rb") as stream:
        head = stream.read(1000)
    if head and start.encode() not in head:
        raise BlemishError(f"{file}: exists and is something else, so it is not replaced; choose another file.")


def _refuse_existing(target: Path, kind: str, overwrite: bool) -> None:
    """Raises `BlemishError` where `target` exists, unless it may be replaced."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise BlemishError(f"{target} exists and is no folder; choose another one.")
    mark = mark_of(target)
    if mark is None and not is_empty(target):
        raise BlemishError(f"{target} exists and was not written by this version of blemish; choose another folder.")
    if mark and mark.kind not in ("", kind):
        raise BlemishError(f"{target} exists and is of another kind ({mark.kind}, not {kind}); choose another folder.")
    if not overwrite:
        raise BlemishError(f"{target} exists; choose another folder, or replace it with --overwrite.")
    if name := not_own(target):
        raise BlemishError(f"{target} holds {name}, which is not its own; move that away, or choose another folder.")


def _refuse_awaited(target: Path) -> None:
    """Raises `BlemishError` where another process makes the folder that is to be `target`."""
    partial = _beside(target, "partial")
    if not target.exists() and mark_of(partial):
        with suppress(FileNotFoundError):  # it has just taken its place, or is gone
            lock_file(partial / MARK, target).close()


def _put(partial: Path, target: Path, kind: str, overwrite: bool, lock: Lock) -> None:
    """Moves the complete folder `partial` to `target`, where that is still missing or ours to replace; else, and where
    the system does not let us, to a free name beside it."""
    replaced = None
    try:
        _refuse_existing(target, kind, overwrite)
        if not os.path.lexists(target):
            rename(partial, target)
            return
        replaced = _lock(target, target)
        _exchange(partial, target)
    except (BlemishError, OSError) as cause:
        for held in (lock, replaced):
            if held:
                held.close()  # some network file systems move no folder with an open file
        place = _moved(partial, target)
        if place == target:
            return
        if isinstance(cause, OSError) and not isinstance(cause, FileExistsError):
            why = f"{target} cannot be replaced: {cause.strerror or cause}."
        else:
            why = f"{target} has changed during the work: {cause if isinstance(cause, BlemishError) else 'it exists.'}"
        raise BlemishError(f"The result is in {place}, since {why}") from None
    _discard(partial, target, replaced)


def _discard(partial: Path, target: Path, lock: Lock) -> None:
    """Removes the folder at `partial` that was replaced, with its `lock`, unless something has come into it since it
    was checked."""
    with closing(lock):
        name = not_own(partial) if lock.holds(partial / MARK) else None
        if not name and lock.holds(partial / MARK):
            _remove(partial)
    if name:
        place = _moved(partial, target)
        raise BlemishError(
            f"{target} is new, and what was there before is in {place}, as {name} has come into it meanwhile; take "
            "that out, and remove the rest."
        )


def _moved(partial: Path, target: Path) -> Path:
    """Moves a folder to `target` if that is free, else to the next free name, TARGET-2, TARGET-3 ...; returns where it
    is then, which is `partial` where it cannot be moved at all."""
    place, number = target, 1
    while os.path.lexists(place):
        number += 1
        place = target.with_name(f"{target.name}-{number}")
    try:
        rename(partial, place)
    except OSError:
        return partial
    return place


def _entered(target: Path, begun: Mark, *, overwrite: bool, resume: bool, foreign: Callable[[Path], bool]) -> Lock:
    """The lock of a kept folder, which is made, emptied or continued, see `kept`."""
    mark = mark_of(target)
    resumed = resume and not overwrite and mark is not None and mark.kind == begun.kind
    if target.exists() and not resumed:
        unmarked = target.is_dir() and not (mark and mark.kind)  # a power cut may have emptied the mark
        if not (unmarked and (is_empty(target) or not foreign(target))):
            _refuse_existing(target, begun.kind, overwrite)
            return _emptied(target, begun)
    _refuse_awaited(target)
    lock = _lock(target, target)
    now = mark_of(target)
    if now and now.kind and now != mark:  # another process has been there between the check and the lock
        lock.close()
        return _entered(target, begun, overwrite=overwrite, resume=resume, foreign=foreign)
    return lock


def _emptied(target: Path, begun: Mark) -> Lock:
    """The lock of an empty folder that has taken the place of one of ours."""
    partial, before, lock = _beside(target, "partial"), _lock(target, target), None
    try:
        lock = _claim(target, begun.kind)
        _exchange(partial, target)
    except OSError:  # a mounted disk cannot be moved, nor anything in a folder where we may not write
        if lock:
            _remove(partial)
            lock.close()
        before.write(begun.content())
        _clear(target)
        return before
    except BaseException:
        if lock and lock.holds(partial / MARK):
            _remove(partial)
        before.close()
        raise
    try:
        _discard(partial, target, before)
    except BaseException:
        lock.close()
        raise
    return lock


def _exchange(partial: Path, target: Path) -> None:
    """Both change places; in two steps where the system has no single one."""
    if exchange(partial, target):
        return
    old = _beside(target, "old")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:  # also a signal
        with suppress(OSError):
            old.rename(target)
        raise
    with suppress(OSError):  # the next call removes it
        old.rename(partial)


def _claim(target: Path, kind: str) -> Lock:
    """Makes `.NAME.partial`, empty, and locks it. What a kill left is put in order first: a complete folder that had
    not reached its place reaches it, else the one that was moved away comes back."""
    partial, old = _beside(target, "partial"), _beside(target, "old")
    left = mark_of(partial)
    unmarked = left is None and os.path.lexists(partial) and not (partial.is_dir() and is_empty(partial))
    if unmarked or (left and left.complete and not_own(partial)):
        raise BlemishError(f"{partial}: is in the way of {target}; move it away, or choose another folder.")
    lock = _lock(partial, target)
    try:
        mark = mark_of(partial)
        if not os.path.lexists(target) and mark and mark.complete:
            rename(partial, target)
            lock.close()
            return _claim(target, kind)
        if mark_of(old):
            if os.path.lexists(target):
                _remove(old)
            else:
                rename(old, target)
        lock.write(Mark(kind).content())
        _clear(partial)
    except BaseException:
        if lock.holds(partial / MARK) and is_empty(partial):  # a full disk, or a signal
            _remove(partial)
        lock.close()
        raise
    return lock


def _lock(folder: Path, target: Path) -> Lock:
    """Makes the folder and its mark where they are missing, and locks the mark; `target` is what the user named."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the process that had it has just removed it
            return lock_file(folder / MARK, target)


@contextmanager
def _parents_of(target: Path) -> Iterator[None]:
    """Makes the folders above `target`, and removes those again that are empty when the block raises."""
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _remove(folder: Path) -> None:
    """Removes a marked folder. It is no longer complete from the first moment, so that a kill leaves no half of one
    that looks whole; the mark goes last."""
    os.truncate(folder / MARK, 0)
    _clear(folder)
    (folder / MARK).unlink()
    folder.rmdir()


def _clear(folder: Path) -> None:
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARK:
            entry.unlink()


def _beside(target: Path, what: str) -> Path:
    """`.NAME.what` beside it, shortened where that would be too long a name."""
    name = f".{target.name}.{what}"
    if len(os.fsencode(name)) > LONGEST:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}.{what}"
    return target.with_name(name)
