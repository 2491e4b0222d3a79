"""Every file format that the package reads: an intact example, what may be damaged in it, how it is read."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
import yaml
from edm_snapshots import snapshot
from fake_r3gan import snapshot_bytes
from ldm_checkpoints import loading_options, state_dict, write_checkpoint
from mutations import HOSTILE, damaged_bytes, damaged_tensors, damaged_tree
from safetensors import safe_open
from safetensors.torch import save_file
from sample_tools import make_samples

from gas_ext import GeneralizedSolver, NoiseSchedule
from gas_ext._utils.sealed_files import checksum
from gas_ext.cli.options import read_labels
from gas_ext.configs import __file__ as configs_file
from gas_ext.configs import load_config
from gas_ext.evaluation.chunks import CellFolder, ChunkResult
from gas_ext.evaluation.metrics import Reference
from gas_ext.evaluation.setup import Chunk
from gas_ext.samples import ReferenceDataset, TeacherSamples, verify_samples
from gas_ext.samples.manifest import _hash
from gas_ext.teachers.diffusers.files import load_model
from gas_ext.teachers.edm import load_edm_snapshot
from gas_ext.teachers.edm.teacher import build_teacher
from gas_ext.teachers.folder import load_teacher, save_teacher, weights_hash_of
from gas_ext.teachers.ldm import load_checkpoint
from gas_ext.training import read_log
from gas_ext.training.checkpoints import newest_checkpoint, save_checkpoint
from gas_ext.training.discriminators import (
    R3GANDiscriminator,
    build_discriminator,
    load_discriminator,
    load_r3gan_snapshot,
    save_discriminator,
)
from gas_ext.training.discriminators.r3gan import R3GANConfig
from gas_ext.training.losses import read_weights


class Format:
    """One format; `damage` changes the file that `make` wrote."""

    cost = 1  # how many cases of the cheap formats one case takes as long as

    def make(self, folder: Path) -> Path:
        raise NotImplementedError

    def load(self, path: Path):
        raise NotImplementedError

    def damage(self, rng, path: Path) -> None:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))


class Sealed(Format):
    """Safetensors with a record; half of the cases have a checksum that fits what was changed."""

    key = ""

    def damage(self, rng, path):
        if rng.random() < 0.4:
            return super().damage(rng, path)
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()[self.key])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if rng.random() < 0.7:
            record = damaged_tree(rng, record)
        else:
            tensors = damaged_tensors(rng, tensors)
        self.write(path, record, tensors)

    def write(self, path, record, tensors):
        if isinstance(record, dict):
            record["sha256"] = checksum(record, tensors)
        save_file({name: t.contiguous() for name, t in tensors.items()}, path, {self.key: json.dumps(record)})


class Solver(Sealed):
    key = "gas_ext_solver"
    schedule = NoiseSchedule.edm()

    def make(self, folder):
        path = folder / "solver.safetensors"
        GeneralizedSolver(self.schedule, 3, t_eps=0.3).save(
            path, teacher={"name": "a"}, training={"iterations": 3}
        )
        return path

    def load(self, path):
        return GeneralizedSolver.load(path).coefficients("sample")


class KnotsSolver(Solver):
    schedule = NoiseSchedule.vp_discrete(torch.linspace(0.99, 0.0, 5, dtype=torch.float64))


class Student(Format):
    def make(self, folder):
        GeneralizedSolver(NoiseSchedule.flow(), 3).save_reference_checkpoint(folder / "student.pt")
        return folder / "student.pt"

    def load(self, path):
        return GeneralizedSolver.from_reference_checkpoint(path, NoiseSchedule.flow(), 3)

    def damage(self, rng, path):
        if rng.random() < 0.6:
            return super().damage(rng, path)
        content = damaged_tree(rng, torch.load(path, weights_only=False))
        torch.save(content, path)


class Discriminator(Sealed):
    key = "gas_ext_discriminator"

    def make(self, folder):
        path = folder / "discriminator.safetensors"
        save_discriminator(build_discriminator("convolution", (1, 8, 8), seed=0, width=2, max_width=4), path)
        return path

    def load(self, path):
        return load_discriminator(path)


def r3gan():
    config = R3GANConfig(widths=(8, 8), cardinalities=(1, 1), blocks=(1, 1))
    return R3GANDiscriminator((3, 8, 8), config)


class R3GANFile(Discriminator):
    def make(self, folder):
        save_discriminator(r3gan(), folder / "r3gan.safetensors")
        return folder / "r3gan.safetensors"


class R3GANSnapshot(Format):
    def make(self, folder):
        (folder / "snapshot.pkl").write_bytes(snapshot_bytes(r3gan()))
        return folder / "snapshot.pkl"

    def load(self, path):
        return load_r3gan_snapshot(path)


class Samples(Format):
    """A folder, whose manifest is damaged and sealed again."""

    def make(self, folder):
        make_samples(folder / "samples", range(5), shard_size=3)
        return folder / "samples"

    def load(self, path):
        verify_samples(path)
        samples = TeacherSamples.open(path)
        samples.missing()
        return samples.batch([0, len(samples) - 1])

    def damage(self, rng, path):
        place = path / "manifest.json"
        record = json.loads(place.read_text())
        if rng.random() < 0.3:
            place.write_bytes(damaged_bytes(rng, place.read_bytes()))
            return
        record.pop("sha256")
        record = damaged_tree(rng, record)
        if isinstance(record, dict):
            record["sha256"] = _hash(record)
        place.write_text(json.dumps(record))


class ShardFile(Samples, Sealed):
    """A shard that is damaged, sealed again, and listed in the manifest as it is then."""

    key = "gas_ext_samples"

    def damage(self, rng, path):
        shard, place = path / "shard-00001.safetensors", path / "manifest.json"
        Sealed.damage(self, rng, shard)
        manifest = json.loads(place.read_text())
        manifest.pop("sha256")
        manifest["shards"][shard.name]["bytes"] = shard.stat().st_size
        try:
            with safe_open(shard, framework="pt") as file:
                found = json.loads(file.metadata()[self.key])["sha256"]
        except Exception:  # of whatever is left of it
            found = "0"
        manifest["shards"][shard.name]["sha256"] = found
        place.write_text(json.dumps({**manifest, "sha256": _hash(manifest)}))


class RunCheckpoint(Sealed):
    key = "gas_ext_checkpoint"

    def make(self, folder):
        tensors = {"a": torch.zeros(3, dtype=torch.float64), "b": torch.ones(2, 2)}
        found = {"iteration": 2, "loss": 0.5, "l1": 0.5, "rejected": 0}
        state = {
            "solver": tensors,
            "average": tensors,
            "best": {"0": tensors["a"], "1": tensors["b"]},
            "optimizer": {"0": {"step": torch.tensor(2.0), "exp_avg": torch.zeros(3)}},
            "losses": torch.zeros(2, dtype=torch.float64),
            **{"rejected": 0, "in_a_row": 0, "adversary": None, "settings": {"a": 1}},
            "validation": {"first": found, "last": found, "best": found},
        }
        return save_checkpoint(folder / "checkpoints", 2, state)

    def load(self, path):
        return newest_checkpoint(path.parent)


class TrainingConfig(Format):
    values = ("!!bool x", "!!int ''", "!!timestamp x", "!!float y", "&a [*a]", "*a", "1e999", "!!python/none")
    values += (
        "!!binary '%'",
        "!!set {a}",
        "!!omap [x]",
        "<<",
        "10" * 300,
        "1" * 5000,
        "2001-99-99",
        "0x",
        "0b",
    )

    def make(self, folder):
        path = folder / "config.yaml"
        shutil.copy(Path(configs_file).parent / "demo.yaml", path)
        return path

    def load(self, path):
        return load_config(path)

    def damage(self, rng, path):
        tree = yaml.safe_load(path.read_text())
        how = rng.random()
        if how < 0.3:
            return super().damage(rng, path)
        if how < 0.6:
            try:
                path.write_text(yaml.safe_dump(damaged_tree(rng, tree)))
            except (RecursionError, ValueError):
                path.write_text("[" * rng.choice([10, 900, 100_000]))
            return
        lines = path.read_text().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = lines[place].partition(":")[0] + ": " + rng.choice(self.values)
        path.write_text("\n".join(lines))


def edm_teacher(**arguments):
    small = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    return build_teacher("EDMPrecond", {"network": "SongUNet", **small, **arguments}, (1, 8, 8))


class TeacherFolder(Format):
    cost = 3

    def make(self, folder):
        arguments = {"network": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
        teacher = build_teacher(
            "EDMPrecond", {**arguments, "attn_resolutions": [], "label_dim": 2}, (1, 8, 8)
        )
        return save_teacher(teacher, folder / "teacher")

    def load(self, path):
        return load_teacher(path)

    def damage(self, rng, path):
        card, weights = path / "teacher.json", path / "model.safetensors"
        if rng.random() < 0.3:
            weights.write_bytes(damaged_bytes(rng, weights.read_bytes()))
        content = json.loads(card.read_text())
        if rng.random() < 0.2:
            card.write_bytes(damaged_bytes(rng, card.read_bytes()))
            return
        content = damaged_tree(rng, content)
        try:
            from gas_ext.teachers.folder import _describe_files

            if rng.random() < 0.7:
                card.unlink()
                content["files"] = _describe_files(path)
            content["weights_hash"] = weights_hash_of(content["files"])
        except Exception:  # of whatever is left of it
            pass
        card.write_text(json.dumps(content))


class EDMSnapshot(Format):
    cost = 2

    def make(self, folder):
        (folder / "edm.pkl").write_bytes(snapshot(edm_teacher()))
        return folder / "edm.pkl"

    def load(self, path):
        return load_edm_snapshot(path)

    def damage(self, rng, path):
        if rng.random() < 0.6:
            return super().damage(rng, path)
        arguments = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "label_dim": 0}
        names = [*arguments, "img_resolution", "img_channels", "model_type", "resample_filter", "x"]
        path.write_bytes(snapshot(edm_teacher(), arguments={rng.choice(names): rng.choice(HOSTILE)}))


class Dataset(Format):
    def make(self, folder):
        noise = torch.randn(3, 1, 4, 4)
        self.content = {"noise": noise, "latents": noise + 1, "images": noise, "condition": torch.arange(3)}
        (folder / "dataset.pkl").write_bytes(pickle.dumps(self.content, 4))
        return folder / "dataset.pkl"

    def load(self, path):
        dataset = ReferenceDataset(path)
        return dataset.batch(range(len(dataset)))

    def damage(self, rng, path):
        how = rng.random()
        if how < 0.5:
            return super().damage(rng, path)
        damaged = damaged_tensors(rng, self.content) if how < 0.8 else damaged_tree(rng, self.content)
        path.write_bytes(pickle.dumps(damaged, 4))


class LatentCheckpoint(Format):
    cost = 10

    def make(self, folder):
        self.tensors = state_dict("cin_small")
        return write_checkpoint(self.tensors, folder / "model.ckpt")

    def load(self, path):
        return load_checkpoint(path, **loading_options("cin_small"))

    def damage(self, rng, path):
        if rng.random() < 0.4:
            return super().damage(rng, path)
        write_checkpoint(damaged_tensors(rng, self.tensors), path)


class LatentSafetensors(LatentCheckpoint):
    def make(self, folder):
        self.tensors = state_dict("cin_small")
        save_file(self.tensors, folder / "model.safetensors")
        return folder / "model.safetensors"

    def damage(self, rng, path):
        if rng.random() < 0.4:
            return Format.damage(self, rng, path)
        save_file({n: t.contiguous() for n, t in damaged_tensors(rng, self.tensors).items()}, path)


class DiffusersFolder(Format):
    cost = 10

    def make(self, folder):
        from diffusers import UNet2DModel

        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        UNet2DModel(8, 1, 1, block_out_channels=(32,), layers_per_block=1, **blocks).save_pretrained(
            folder / "diffusers"
        )
        return folder / "diffusers"

    def load(self, path):
        return load_model(path)

    def damage(self, rng, path):
        weights, config = path / "diffusion_pytorch_model.safetensors", path / "config.json"
        if rng.random() < 0.3:
            weights.write_bytes(damaged_bytes(rng, weights.read_bytes()))
        elif rng.random() < 0.3:
            config.write_bytes(damaged_bytes(rng, config.read_bytes()))
        else:
            config.write_text(json.dumps(damaged_tree(rng, json.loads(config.read_text()))))


class EvaluationChunk(Sealed):
    key = "gas_ext_chunk"
    chunk = Chunk(range(3), "ab12")

    def make(self, folder):
        cell = CellFolder(folder / "cell")
        cell.write(self.chunk, ChunkResult({"nfe": 1}, {"l1": torch.zeros(3)}))
        return cell.chunk_path(self.chunk)

    def load(self, path):
        return CellFolder(path.parent).read(self.chunk)


class Statistics(Format):
    def make(self, folder):
        self.arrays = {"mu": torch.zeros(4, dtype=torch.float64), "sigma": torch.eye(4, dtype=torch.float64)}
        np.savez(folder / "stats.npz", **{name: array.numpy() for name, array in self.arrays.items()})
        return folder / "stats.npz"

    def load(self, path):
        return Reference.load(path)

    def damage(self, rng, path):
        how = rng.random()
        if how < 0.4:
            return super().damage(rng, path)
        if how < 0.7:
            np.savez(path, **{n: t.numpy() for n, t in damaged_tensors(rng, self.arrays).items()})
            return
        with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
            for name in self.arrays:
                member = io.BytesIO()
                shape = rng.choice([(4,), (4, 4), (10**9,), (2**62,), (0, 2**40), (-1,), (2**20, 2**20)])
                header = {
                    "descr": rng.choice(["<f8", "|O", "<U99999999"]),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(member, header)
                file.writestr(f"{name}.npy", member.getvalue() + bytes(rng.choice([0, 32, 128, 30 * 2**20])))


class SealedReference(Sealed):
    key = "gas_ext_reference"

    def make(self, folder):
        Reference.from_features("r", torch.randn(5, 3)).save(folder / "reference.safetensors")
        return folder / "reference.safetensors"

    def load(self, path):
        return Reference.load(path)


class PlainWeights(Format):
    def make(self, folder):
        torch.save({"a": torch.zeros(3)}, folder / "weights.pth")
        return folder / "weights.pth"

    def load(self, path):
        return read_weights(path)


class Labels(Format):
    def make(self, folder):
        (folder / "labels.txt").write_text("0-9,3, 4\n5")
        return folder / "labels.txt"

    def load(self, path):
        return read_labels(str(path))

    def damage(self, rng, path):
        if rng.random() < 0.5:
            return super().damage(rng, path)
        path.write_text(
            rng.choice(["0-99999998", "9" * 50, "5-1", "-", ",", "0-9999999", "1," * 5000, "\x1b[0m"])
        )


class Log(Format):
    def make(self, folder):
        (folder / "log.jsonl").write_text('{"kind": "train", "iteration": 1, "loss": 0.5}\n' * 3)
        return folder / "log.jsonl"

    def load(self, path):
        return [record["iteration"] + 0 for record in read_log(path)]


FORMATS = {
    cls.__name__: cls
    for cls in (
        *(Solver, KnotsSolver, Student, Discriminator, R3GANFile, R3GANSnapshot, Samples, ShardFile),
        *(RunCheckpoint, TrainingConfig, TeacherFolder, EDMSnapshot, Dataset, LatentCheckpoint),
        *(
            LatentSafetensors,
            DiffusersFolder,
            EvaluationChunk,
            Statistics,
            SealedReference,
            PlainWeights,
            Labels,
            Log,
        ),
    )
}
