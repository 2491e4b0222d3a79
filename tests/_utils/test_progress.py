import pytest

from gas_ext._utils import progress
from gas_ext._utils.progress import BarReporter, LogReporter, SilentReporter, make_reporter


def test_log_lines_at_start_and_end():
    lines = []
    with LogReporter(lines.append).task("Counting", 2) as advance:
        advance()
        advance(note="last")
    assert lines[0] == "Counting ..."
    assert lines[1].startswith("Counting: done in ")
    assert lines[1].endswith("s last")
    assert len(lines) == 2


def test_log_lines_now_and_then(monkeypatch):
    lines, clock = [], iter([0.0, 20.0, 20.0, 21.0, 400.0, 400.0, 401.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with LogReporter(lines.append).task("Counting", 10) as advance:
        advance(3, note="a")
        advance(1, note="b")  # one second later: nothing to say
        advance(1, note="c")
    assert lines[1:3] == [
        "Counting: 3/10 a, 20 s so far, 47 s left",
        "Counting: 5/10 c, 7 min so far, 7 min left",
    ]


def test_failed_task_is_not_reported_as_done():
    lines = []
    with pytest.raises(KeyError), LogReporter(lines.append).task("Counting", 2):
        raise KeyError
    assert lines == ["Counting ..."]


@pytest.mark.parametrize("reporter", [SilentReporter(), BarReporter()])
def test_other_reporters_take_the_same_calls(reporter):
    with reporter.task("Counting", 3) as advance:
        advance()
        advance(2, note="x")
    reporter.message("[done]")


@pytest.mark.parametrize(
    ("terminal", "processes", "reporter_type"),
    [(True, 1, BarReporter), (False, 1, LogReporter), (True, 2, LogReporter)],
)
def test_bars_only_on_a_terminal_of_one_process(monkeypatch, terminal, processes, reporter_type):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert isinstance(make_reporter(), reporter_type)


def test_names_from_files_do_not_steer_the_terminal():
    lines = []
    reporter = LogReporter(lines.append)
    reporter.message("shard \x1b[31m is damaged")
    with reporter.task("\x1b[0m", 1) as advance:
        advance(1, "\x07")
    assert lines[0] == "shard \\x1b[31m is damaged"
    assert "\x1b" not in "".join(lines)
    assert "\x07" not in "".join(lines)
