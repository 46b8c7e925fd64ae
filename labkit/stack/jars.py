"""The jars of Kafka: downloaded once by jgo, verified against pinned hashes, then used offline."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from labkit.errors import StackError
from labkit.stack.state import Report, home, locked, quiet, writing

KAFKA_VERSION = "4.3.1"
# slf4j-simple, not slf4j-nop: the log must say why a broker died.
COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
DOWNLOAD_MB = 45
_COMPLETE = "complete"
_DISK = (errno.ENOSPC, errno.EROFS, errno.EACCES)


def folder() -> Path:
    """Return the folder of the jars; all labs share it."""
    return home().resolve() / "jars" / f"kafka-{KAFKA_VERSION}"


def present() -> bool:
    """Return whether every jar is present with its full size."""
    where = folder()
    try:
        lines = (where / _COMPLETE).read_text().splitlines()
        sizes = {name: int(size) for size, name in (line.split(" ", 1) for line in lines)}
        return bool(sizes) and all((where / n).stat().st_size == s for n, s in sizes.items())
    except (OSError, ValueError):
        return False


def ensure(report: Report = quiet) -> Path:
    """Return the folder of the jars; download them if one is missing.

    Raises:
        StackError: no network, a full disk, or a jar with a wrong hash.
    """
    if present():
        return folder()
    jars = folder().parent
    with locked(jars / "lock", "the download of Kafka", report):
        if not present():
            _download(jars / "download", report)
    return folder()


def _download(scratch: Path, report: Report) -> None:
    report(f"downloading Kafka {KAFKA_VERSION}: about {DOWNLOAD_MB} MB, once, to {folder()}")
    resumed = scratch.exists()
    try:
        jars = _checked(scratch, report)
    except StackError:
        if not resumed:
            raise
        # A killed download leaves a partial file, which jgo takes for a complete one.
        shutil.rmtree(scratch, ignore_errors=True)
        jars = _checked(scratch, report)
    whole = scratch / "whole"
    with writing(folder()):
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir(parents=True)
        for jar in jars:
            shutil.copyfile(jar, whole / jar.name)
        sizes = "".join(f"{jar.stat().st_size} {jar.name}\n" for jar in sorted(whole.glob("*.jar")))
        (whole / _COMPLETE).write_text(sizes)
        shutil.rmtree(folder(), ignore_errors=True)
        whole.rename(folder())
    shutil.rmtree(scratch, ignore_errors=True)
    report(f"Kafka {KAFKA_VERSION} is downloaded; no network is needed from now on")


def _checked(scratch: Path, report: Report) -> list[Path]:
    """Download the jars and verify that they are exactly the pinned ones."""
    jars = _resolve(scratch, report)
    found, pinned = {jar.name: sha256(jar) for jar in jars}, pins()
    names = found.keys() | pinned.keys()
    wrong = sorted(name for name in names if found.get(name) != pinned.get(name))
    if wrong:
        shutil.rmtree(scratch, ignore_errors=True)
        raise StackError(
            f"{wrong[0]} does not match its pinned SHA-256 (got {found.get(wrong[0], 'no file')}): "
            "try again; if the error persists, a proxy between here and Maven Central changes files"
        )
    return jars


def sha256(jar: Path) -> str:
    return hashlib.sha256(jar.read_bytes()).hexdigest()


def pins() -> dict[str, str]:
    """Return the pinned SHA-256 of each jar, by file name."""
    text = resources.files("labkit.stack").joinpath("kafka.sha256").read_text()
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def _resolve(scratch: Path, report: Report) -> list[Path]:
    # The import takes half a second, and only the first `up` needs it.
    from jgo.env import EnvironmentBuilder, LinkStrategy
    from jgo.maven import MavenContext, PythonResolver

    # Not ~/.m2: labkit writes only below its home folder.
    context = MavenContext(
        resolver=PythonResolver(progress_callback=_progress(report)),
        repo_cache=scratch / "maven",
        timeout=30,
    )
    with writing(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "probe").write_bytes(b"")
    # jgo may run a JDK's `jar`, which would leave a perf file in /tmp.
    java_options = os.environ.get("JAVA_TOOL_OPTIONS")
    os.environ["JAVA_TOOL_OPTIONS"] = f"{java_options or ''} -XX:-UsePerfData".strip()
    try:
        built = EnvironmentBuilder(
            context=context, cache_dir=scratch / "jgo", link_strategy=LinkStrategy.COPY
        ).from_endpoint(COORDINATES)
        return [Path(jar) for jar in built.all_jars]
    # Without network, jgo raises RuntimeError, ValueError, OSError or an error of requests.
    except Exception as error:
        with writing(scratch):
            if isinstance(error, OSError) and error.errno in _DISK:
                raise error
        reason = (
            " ".join(str(error).split()).partition(" with url")[0][:200] or type(error).__name__
        )
        raise StackError(
            f"cannot download Kafka {KAFKA_VERSION} from Maven Central ({reason}): connect to the "
            f"network for the first `labkit up` (about {DOWNLOAD_MB} MB, once)"
        ) from error
    finally:
        if java_options is None:
            del os.environ["JAVA_TOOL_OPTIONS"]
        else:
            os.environ["JAVA_TOOL_OPTIONS"] = java_options


def _progress(
    report: Report,
) -> Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]:
    step = 10_000_000
    received = 0

    @contextlib.contextmanager
    def one_file(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        def advance(count: int) -> None:
            nonlocal received
            before, received = received, received + count
            if before // step != received // step:
                report(f"  {received // 1_000_000} of about {DOWNLOAD_MB} MB")

        yield advance

    return one_file
