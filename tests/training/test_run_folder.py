import os
import platform
import signal

import filelock
import pytest
import torch
from toy_run import in_child, toy_config

from gas_ext.configs import config_text, load_config
from gas_ext.training.checkpoints import save_checkpoint
from gas_ext.training.folder import RunFolder, described
from gas_ext.training.plan import make_plan


def state(settings, iterations=4):
    parts = {name: {} for name in ("solver", "average", "best", "optimizer", "validation")}
    numbers = {"losses": torch.zeros(iterations), "rejected": 0, "in_a_row": 0, "adversary": None}
    return {**parts, **numbers, "settings": settings}


def settings(loss="gs", steps=3, **training):
    return described(make_plan(toy_config(training), loss, steps).config, loss)


def begun(path, loss="gs"):
    folder = RunFolder(path)
    folder.begin(make_plan(toy_config(), loss, 3).config, None)
    return folder


def test_a_run_is_found_by_its_settings(tmp_path):
    folder = begun(tmp_path / "run")
    assert folder.find(settings()) is None
    save_checkpoint(folder.path / "checkpoints", 4, state(settings()))
    assert folder.find(settings()).iteration == 4


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (settings(batch_size=2), r"has training\.batch_size 4, not 2; resume it with its own settings, .*"),
        (settings(steps=4), r"has run\.steps 3, not 4; "),
        (settings(seed=1, ema=0.5), r"has training\.ema 0\.9, not 0\.5, training\.seed 0, not 1; "),
        (settings(iterations=21), r"has training\.iterations\.gs 20, not 21; "),
        (settings("gas"), r"has training\.iterations\.gs 20, not None, .*, and \d+ more; "),
        ({**settings(), "teacher": "other"}, r"has teacher None, not 'other'"),
    ],
)
def test_differences_are_listed(tmp_path, other, message):
    folder = begun(tmp_path / "run")
    save_checkpoint(folder.path / "checkpoints", 4, state(settings()))
    with pytest.raises(ValueError, match=message) as caught:
        folder.find(other)
    assert "--no-resume." in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", ["gs", "gas"])
def test_a_run_from_before_a_setting_existed_resumes_with_its_default(tmp_path, loss):
    folder = begun(tmp_path / "run", loss)
    later = ("student.preset", "adversarial.noise_levels", "training.scale_rates")
    new = settings(loss, scale_rates=False)
    saved = {name: value for name, value in new.items() if name not in later}
    assert len(saved) == len(new) - (3 if loss == "gas" else 2)
    save_checkpoint(folder.path / "checkpoints", 4, state(saved))
    assert folder.find(new).iteration == 4
    with pytest.raises(ValueError, match=r"has student\.preset 'gs', not 'ld3'; "):
        folder.find({**new, "student.preset": "ld3"})
    with pytest.raises(ValueError, match=r"has training\.scale_rates False, not True; resume it with"):
        folder.find(settings(loss))
    save_checkpoint(folder.path / "checkpoints", 8, state({**saved, "student.kind": "ld3"}, 8))
    assert folder.find({**new, "student.preset": "ld3"}).iteration == 8


def test_a_run_at_constant_rates_may_be_made_longer(tmp_path):
    folder = begun(tmp_path / "run")
    save_checkpoint(folder.path / "checkpoints", 20, state(settings(schedule="constant"), 20))
    assert folder.find(settings(schedule="constant", iterations=30)).iteration == 20
    with pytest.raises(ValueError, match=r"has training\.iterations\.gs 20, not 19; "):
        folder.find(settings(schedule="constant", iterations=19))
    with pytest.raises(ValueError, match=r"training\.schedule 'constant', not 'cosine'"):
        folder.find(settings(iterations=30))


def test_settings_that_do_not_change_the_solver_may_differ():
    other = settings(accumulation=2, recompute=True, checkpoint_every=7, shown_images=3)
    assert other == settings()
    moved = make_plan(toy_config(), "gs", 3, samples="elsewhere").config
    assert described(moved, "gs") == settings()
    assert settings(iterations={"gs": 20, "gas": 99}) == settings()
    assert settings("gas", iterations={"gs": 99, "gas": 20}) == settings("gas")


def test_starting_over_removes_the_run_and_nothing_else(tmp_path):
    folder = begun(tmp_path / "run")
    own = [
        "solver.safetensors",
        "log.jsonl",
        "checkpoints/iteration-00000003.safetensors",
        "images/grid-1.png",
    ]
    foreign = ["notes.txt", "images/holiday.png", "checkpoints/mine.bin"]
    for name in own + foreign:
        path = folder.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    folder.begin(make_plan(toy_config(), "gs", 5).config, None)
    assert not any((folder.path / name).exists() for name in own)
    assert all((folder.path / name).read_text() == name for name in foreign)
    assert load_config(folder.path / "config.yaml").run.steps == 5


@pytest.mark.parametrize("name", ["solver.safetensors", "config.yaml", "last.safetensors"])
def test_foreign_files_are_not_replaced(tmp_path, name):
    text = config_text(toy_config()) if name == "config.yaml" else "mine"
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} exists, but .* is not the folder of a run; choose another"):
        RunFolder(tmp_path)
    assert (tmp_path / name).read_text() == text


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; choose another output folder"):
        RunFolder(tmp_path / "file" / "run")


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    folder = begun(tmp_path)
    for name in (".solver.safetensors.ab12", ".log.jsonl.x", ".config.yaml.y"):
        (tmp_path / name).write_text("half")
    folder.begin(make_plan(toy_config(), "gs", 3).config, None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_folder_is_locked_by_one_process_until_that_ends(tmp_path):
    folder = RunFolder(tmp_path / "run")
    ready, done = os.pipe()

    def hold():
        with folder.lock():
            os.write(done, b"!")
            signal.pause()

    child = in_child(hold)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"!"
        holder = rf"run is in use by process {child} on {platform.node()}; wait .* another folder with -o\.$"
        with pytest.raises(ValueError, match=holder), folder.lock():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for _ in range(2):  # free after a process was killed, and after one that released it
        with folder.lock():
            pass
    assert [path.name for path in folder.path.iterdir()] == [".lock"]


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_warned_of_once(tmp_path, monkeypatch, error):
    def refuse(lock):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match=r"could not be locked \(.*\)") as caught, RunFolder(tmp_path).lock():
        (tmp_path / "log.jsonl").write_text("")
    assert len(caught) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_refused_run_leaves_no_new_folder(tmp_path):
    (tmp_path / "old").mkdir()
    for name, exists in (("new", False), ("old", True)):
        folder = RunFolder(tmp_path / name)
        with pytest.raises(ValueError, match="refused"), folder.lock():
            raise ValueError("refused")
        assert folder.path.exists() == exists
