"""Tools of the notebooks: looking, stepping by hand, raw records, exercises."""

from labkit.teaching.exercises import check, try_out
from labkit.teaching.kept import OnServers
from labkit.teaching.looking import Look, commands, commits, running
from labkit.teaching.raw import poll_all, read_raw, send_raw
from labkit.teaching.stepping import (
    Copy,
    answer_all,
    catch_up,
    one_by_one,
    project,
    seconds_for,
    settle,
    step_while_waiting,
    stop_part,
    work,
)

__all__ = [
    "Copy",
    "Look",
    "OnServers",
    "answer_all",
    "catch_up",
    "check",
    "commands",
    "commits",
    "one_by_one",
    "poll_all",
    "project",
    "read_raw",
    "running",
    "seconds_for",
    "send_raw",
    "settle",
    "step_while_waiting",
    "stop_part",
    "try_out",
    "work",
]
