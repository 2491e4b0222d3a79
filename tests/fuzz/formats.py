"""Every file format that the package reads: an intact example, its damage, and its reader."""

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
from gas_ext.teachers.folder import _describe_files, load_teacher, save_teacher, weights_hash_of
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

FORMATS = {}


class Format:
    """One format. `make` writes an intact example into a folder, by default one file with `write`."""

    file = ""
    cost = 1  # number of cases of the cheap formats that take as long as one case
    bytes_only = 1.0  # part of the cases in which bytes are damaged rather than content

    def __init_subclass__(cls):
        if cls.file or cls.make is not Format.make:
            FORMATS[cls.__name__] = cls

    def make(self, folder: Path) -> Path:
        self.write(folder / self.file)
        return folder / self.file

    def write(self, path: Path) -> None:
        raise NotImplementedError

    def load(self, path: Path):
        raise NotImplementedError

    def damage(self, rng, path: Path) -> None:
        if rng.random() < self.bytes_only:
            spoil(rng, path)
        else:
            self.damage_content(rng, path)

    def damage_content(self, rng, path: Path) -> None:
        raise NotImplementedError


def spoil(rng, path: Path) -> None:
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))


def sealed(record):
    """A manifest of samples with its checksum, if it is still a dict."""
    if isinstance(record, dict):
        record.pop("sha256", None)
        record["sha256"] = _hash(record)
    return record


class Sealed(Format):
    """Safetensors with a record; damaged content gets a matching checksum."""

    key = ""
    bytes_only = 0.4

    def damage_content(self, rng, path):
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()[self.key])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if rng.random() < 0.7:
            record = damaged_tree(rng, record)
        else:
            tensors = damaged_tensors(rng, tensors)
        if isinstance(record, dict):
            record["sha256"] = checksum(record, tensors)
        save_file({name: t.contiguous() for name, t in tensors.items()}, path, {self.key: json.dumps(record)})


class Solver(Sealed):
    key, file = "gas_ext_solver", "solver.safetensors"
    schedule = NoiseSchedule.edm()

    def write(self, path):
        solver = GeneralizedSolver(self.schedule, 3, t_eps=0.3)
        solver.save(path, teacher={"name": "a"}, training={"iterations": 3})

    def load(self, path):
        return GeneralizedSolver.load(path).coefficients("sample")


class KnotsSolver(Solver):
    schedule = NoiseSchedule.vp_discrete(torch.linspace(0.99, 0.0, 5, dtype=torch.float64))


class Student(Format):
    file, bytes_only = "student.pt", 0.6

    def write(self, path):
        GeneralizedSolver(NoiseSchedule.flow(), 3).save_reference_checkpoint(path)

    def load(self, path):
        return GeneralizedSolver.from_reference_checkpoint(path, NoiseSchedule.flow(), 3)

    def damage_content(self, rng, path):
        torch.save(damaged_tree(rng, torch.load(path, weights_only=False)), path)


class Discriminator(Sealed):
    key, file = "gas_ext_discriminator", "discriminator.safetensors"

    def write(self, path):
        save_discriminator(build_discriminator("convolution", (1, 8, 8), seed=0, width=2, max_width=4), path)

    def load(self, path):
        return load_discriminator(path)


def r3gan():
    config = R3GANConfig(widths=(8, 8), cardinalities=(1, 1), blocks=(1, 1))
    return R3GANDiscriminator((3, 8, 8), config)


class R3GANFile(Discriminator):
    def write(self, path):
        save_discriminator(r3gan(), path)


class R3GANSnapshot(Format):
    file = "snapshot.pkl"

    def write(self, path):
        path.write_bytes(snapshot_bytes(r3gan()))

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
        manifest = path / "manifest.json"
        if rng.random() < 0.3:
            return spoil(rng, manifest)
        record = json.loads(manifest.read_text())
        record.pop("sha256")
        manifest.write_text(json.dumps(sealed(damaged_tree(rng, record))))


class ShardFile(Samples, Sealed):
    """A shard that is damaged, sealed again, and listed in the manifest as it is then."""

    key = "gas_ext_samples"

    def damage(self, rng, path):
        shard, manifest = path / "shard-00001.safetensors", path / "manifest.json"
        Sealed.damage(self, rng, shard)
        record = json.loads(manifest.read_text())
        try:
            with safe_open(shard, framework="pt") as file:
                found = json.loads(file.metadata()[self.key])["sha256"]
        except Exception:  # of a damaged file
            found = "0"
        record["shards"][shard.name].update(bytes=shard.stat().st_size, sha256=found)
        manifest.write_text(json.dumps(sealed(record)))


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
    file, bytes_only = "config.yaml", 0.3
    values = (
        *("!!bool x", "!!int ''", "!!timestamp x", "!!float y", "&a [*a]", "*a", "1e999", "!!python/none"),
        *("!!binary '%'", "!!set {a}", "!!omap [x]", "<<", "10" * 300, "1" * 5000, "2001-99-99", "0x", "0b"),
    )

    def write(self, path):
        shutil.copy(Path(configs_file).parent / "demo.yaml", path)

    def load(self, path):
        return load_config(path)

    def damage_content(self, rng, path):
        if rng.random() < 0.4:
            try:
                path.write_text(yaml.safe_dump(damaged_tree(rng, yaml.safe_load(path.read_text()))))
            except (RecursionError, ValueError):
                path.write_text("[" * rng.choice([10, 900, 100_000]))
            return
        lines = path.read_text().splitlines()
        position = rng.randrange(len(lines))
        lines[position] = lines[position].partition(":")[0] + ": " + rng.choice(self.values)
        path.write_text("\n".join(lines))


def edm_teacher(**arguments):
    small = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    return build_teacher("EDMPrecond", {"network": "SongUNet", **small, **arguments}, (1, 8, 8))


class TeacherFolder(Format):
    cost = 3

    def make(self, folder):
        return save_teacher(edm_teacher(label_dim=2), folder / "teacher")

    def load(self, path):
        return load_teacher(path)

    def damage(self, rng, path):
        card = path / "teacher.json"
        content = json.loads(card.read_text())
        if rng.random() < 0.3:
            spoil(rng, path / "model.safetensors")
        if rng.random() < 0.2:
            return spoil(rng, card)
        content = damaged_tree(rng, content)
        try:
            if rng.random() < 0.7:
                card.unlink()
                content["files"] = _describe_files(path)
            content["weights_hash"] = weights_hash_of(content["files"])
        except Exception:  # of damaged content
            pass
        card.write_text(json.dumps(content))


class EDMSnapshot(Format):
    file, cost, bytes_only = "edm.pkl", 2, 0.6

    def write(self, path):
        path.write_bytes(snapshot(edm_teacher()))

    def load(self, path):
        return load_edm_snapshot(path)

    def damage_content(self, rng, path):
        sizes = ["model_channels", "channel_mult", "num_blocks", "label_dim"]
        name = rng.choice([*sizes, "img_resolution", "img_channels", "model_type", "resample_filter", "x"])
        path.write_bytes(snapshot(edm_teacher(), arguments={name: rng.choice(HOSTILE)}))


class Dataset(Format):
    file, bytes_only = "dataset.pkl", 0.5

    def write(self, path):
        noise = torch.randn(3, 1, 4, 4)
        self.content = {"noise": noise, "latents": noise + 1, "images": noise, "condition": torch.arange(3)}
        path.write_bytes(pickle.dumps(self.content, 4))

    def load(self, path):
        dataset = ReferenceDataset(path)
        return dataset.batch(range(len(dataset)))

    def damage_content(self, rng, path):
        damage = damaged_tensors if rng.random() < 0.6 else damaged_tree
        path.write_bytes(pickle.dumps(damage(rng, self.content), 4))


class LatentCheckpoint(Format):
    file, cost, bytes_only = "model.ckpt", 10, 0.4

    def write(self, path):
        self.tensors = state_dict("cin_small")
        self.write_tensors(self.tensors, path)

    def write_tensors(self, tensors, path):
        write_checkpoint(tensors, path)

    def load(self, path):
        return load_checkpoint(path, **loading_options("cin_small"))

    def damage_content(self, rng, path):
        self.write_tensors(damaged_tensors(rng, self.tensors), path)


class LatentSafetensors(LatentCheckpoint):
    file = "model.safetensors"

    def write_tensors(self, tensors, path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


class DiffusersFolder(Format):
    cost = 10

    def make(self, folder):
        from diffusers import UNet2DModel

        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        model = UNet2DModel(8, 1, 1, block_out_channels=(32,), layers_per_block=1, **blocks)
        model.save_pretrained(folder / "diffusers")
        return folder / "diffusers"

    def load(self, path):
        return load_model(path)

    def damage(self, rng, path):
        weights, config = path / "diffusion_pytorch_model.safetensors", path / "config.json"
        if rng.random() < 0.5:
            spoil(rng, rng.choice([weights, config]))
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
    file, bytes_only = "stats.npz", 0.4
    arrays = {"mu": torch.zeros(4, dtype=torch.float64), "sigma": torch.eye(4, dtype=torch.float64)}  # noqa: RUF012

    def write(self, path):
        np.savez(path, **{name: array.numpy() for name, array in self.arrays.items()})

    def load(self, path):
        return Reference.load(path)

    def damage_content(self, rng, path):
        if rng.random() < 0.5:
            np.savez(path, **{n: t.numpy() for n, t in damaged_tensors(rng, self.arrays).items()})
            return
        with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
            for name in self.arrays:
                member = io.BytesIO()
                shape = rng.choice([(4,), (4, 4), (10**9,), (2**62,), (0, 2**40), (-1,), (2**20, 2**20)])
                dtype = rng.choice(["<f8", "|O", "<U99999999"])
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                file.writestr(f"{name}.npy", member.getvalue() + bytes(rng.choice([0, 32, 128, 30 * 2**20])))


class SealedReference(Sealed):
    key, file = "gas_ext_reference", "reference.safetensors"

    def write(self, path):
        Reference.from_features("r", torch.randn(5, 3)).save(path)

    def load(self, path):
        return Reference.load(path)


class PlainWeights(Format):
    file = "weights.pth"

    def write(self, path):
        torch.save({"a": torch.zeros(3)}, path)

    def load(self, path):
        return read_weights(path)


class Labels(Format):
    file, bytes_only = "labels.txt", 0.5
    texts = ("0-99999998", "9" * 50, "5-1", "-", ",", "0-9999999", "1," * 5000, "\x1b[0m")

    def write(self, path):
        path.write_text("0-9,3, 4\n5")

    def load(self, path):
        return read_labels(str(path))

    def damage_content(self, rng, path):
        path.write_text(rng.choice(self.texts))


class Log(Format):
    file = "log.jsonl"

    def write(self, path):
        path.write_text('{"kind": "train", "iteration": 1, "loss": 0.5}\n' * 3)

    def load(self, path):
        return [record["iteration"] + 0 for record in read_log(path)]
