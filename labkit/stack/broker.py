"""One Kafka process that is both broker and KRaft controller."""

import base64
import contextlib
import subprocess
import uuid
from pathlib import Path

import psutil

from labkit.errors import StackError
from labkit.stack import jars, java
from labkit.stack.ports import HOST
from labkit.stack.processes import environment, last_line, launch, marked, stop
from labkit.stack.state import writing

# The broker starts in the folder of the lab, and all paths are relative to it. So this file stays
# plain ASCII, and a comma in the name of the folder does not split `log.dirs` in two.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=kafka

auto.create.topics.enable=false
# The log is the source of truth: records and committed offsets never expire.
log.retention.ms=-1
offsets.retention.minutes=2147483647

# A single node that starts fast: few partitions, small files.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=2
log.segment.bytes=67108864
log.index.size.max.bytes=1048576
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4

# Fast failover: rebalances start at once, short sessions are allowed, and the broker aborts the
# transaction of a dead worker within 1 s of its timeout (the default check runs every 10 s).
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# A killed broker can register again only after its old session has expired.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
"""


def mark(lab: Path) -> str:
    """Return the command-line argument that identifies the JVMs of this lab."""
    return f"-Dlabkit.lab={lab}"


def start(lab: Path, port: int, controller_port: int) -> psutil.Process:
    """Start Kafka with its data in ``lab / "kafka"``, without waiting until it is ready.

    Raises:
        StackError: Java is missing, or the data folder cannot be formatted.
    """
    command = _java(lab)
    with writing(lab):
        text = _PROPERTIES.format(host=HOST, port=port, controller_port=controller_port)
        (lab / "server.properties").write_text(text, encoding="ascii")
    if not (lab / "kafka" / "meta.properties").exists():
        _format(lab, command)
    return launch(
        [*command, "-Xmx512m", "-XX:+UseSerialGC", "kafka.Kafka", "server.properties"],
        cwd=lab,
        log=lab / "logs" / "kafka.log",
    )


def _java(lab: Path) -> list[str]:
    return [
        str(java.find().path),
        mark(lab),
        "-XX:-UsePerfData",  # avoids a file in /tmp/hsperfdata_USER
        f"-XX:ErrorFile={lab}/logs/kafka-crash.log",
        f"-Djava.io.tmpdir={lab}/tmp",  # the compression libraries unpack here
        "-Djava.net.preferIPv4Stack=true",
        "-Djava.awt.headless=true",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
        "-Dorg.slf4j.simpleLogger.showThreadName=false",
        "-Dorg.slf4j.simpleLogger.showShortLogName=true",
        "-cp",
        # Relative, because a colon in a folder name would end the entry.
        f"../../jars/{jars.folder().name}/*",
    ]


def _format(lab: Path, command: list[str]) -> None:
    # A half-formatted folder of a killed `up` holds no data, but Kafka refuses to format it again.
    with writing(lab):
        for name in ("bootstrap.checkpoint", "meta.properties.tmp"):
            (lab / "kafka" / name).unlink(missing_ok=True)
    # The storage tool parses a leading dash as an option.
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode().replace("-", "A")
    log = lab / "logs" / "kafka.log"
    try:
        with log.open("ab") as output:
            done = subprocess.run(
                [
                    *command,
                    "-XX:TieredStopAtLevel=1",
                    "kafka.tools.StorageTool",
                    "format",
                    "--ignore-formatted",
                    "-t",
                    cluster,
                    "-c",
                    "server.properties",
                ],
                cwd=lab,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                timeout=60,
            )
    except BaseException:
        # On Ctrl-C or timeout: the process has its own session, so no signal reaches it.
        stop(marked([mark(lab)]))
        raise
    if done.returncode:
        raise StackError(
            f"cannot format the data folder of Kafka: {last_line(log)}; see the log {log}"
        )


def answers(port: int, timeout: float = 2.0) -> bool:
    """Return whether the broker answers and lists itself in the cluster metadata."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    with contextlib.suppress(KafkaError, OSError):
        client = KafkaAdminClient(
            bootstrap_servers=f"{HOST}:{port}",
            bootstrap_timeout_ms=int(timeout * 1000),
            request_timeout_ms=int(timeout * 1000),
        )
        try:
            return len(client.describe_cluster()["brokers"]) > 0
        finally:
            client.close()
    return False
