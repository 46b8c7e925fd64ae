"""One Kafka process: broker and KRaft controller in one."""

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

# All paths in it are relative to the folder of the lab, in which the broker is started: so it is
# plain ASCII whatever the folder is called, and a comma there does not make two folders of one.
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
# The log is the truth: it is kept for ever, and so are the positions in it.
log.retention.ms=-1
offsets.retention.minutes=2147483647

# One node, quick to start: few partitions, small files.
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

# Quick to hand over: no wait for more members, short sessions allowed, and the open transaction
# of a dead worker is ended a second after its time-out (the default looks every 10 s).
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# A broker that was killed is let in again only when the session of the dead one has ended.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
"""


def mark(lab: Path) -> str:
    """Return the argument by which this lab's JVMs are known among all processes."""
    return f"-Dlabkit.lab={lab}"


def start(lab: Path, port: int, controller_port: int) -> psutil.Process:
    """Start Kafka with its data in ``lab / "kafka"``; returns at once.

    Raises:
        StackError: no Java, or the data folder cannot be formatted.
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
        "-XX:-UsePerfData",  # it would leave a file in /tmp/hsperfdata_USER
        f"-XX:ErrorFile={lab}/logs/kafka-crash.log",
        f"-Djava.io.tmpdir={lab}/tmp",  # where the compression libraries unpack themselves
        "-Djava.net.preferIPv4Stack=true",
        "-Djava.awt.headless=true",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
        "-Dorg.slf4j.simpleLogger.showThreadName=false",
        "-Dorg.slf4j.simpleLogger.showShortLogName=true",
        "-cp",
        # Relative too: a colon in the folder's name would end the entry.
        f"../../jars/{jars.folder().name}/*",
    ]


def _format(lab: Path, command: list[str]) -> None:
    # What a killed `up` left half formatted holds no data, and Kafka refuses to format over it.
    with writing(lab):
        for name in ("bootstrap.checkpoint", "meta.properties.tmp"):
            (lab / "kafka" / name).unlink(missing_ok=True)
    # A leading dash would be read as an option by the storage tool.
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
        # Ctrl-C, or the time-out: its session is its own, so nobody else ends it.
        stop(marked([mark(lab)]))
        raise
    if done.returncode:
        raise StackError(
            f"Kafka's data folder could not be formatted: {last_line(log)} (log: {log})"
        )


def answers(port: int, timeout: float = 2.0) -> bool:
    """Return whether the broker takes requests and names itself in its metadata."""
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
